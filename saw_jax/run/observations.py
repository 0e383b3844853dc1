"""Observations behind what a policy said: the text that PaW's term predicts."""

from collections.abc import Sequence

import jax
import numpy as np

from saw_jax.rollout import transcript as transcript_lib
from saw_jax.rollout.transcript import Transcript
from saw_jax.run import agents, rollouts
from saw_jax.run.learner import Learner, Rows
from saw_jax.training import estimation, hosts, objective, parallel
from saw_jax.training.batch import TrainBatch
from saw_jax.training.estimation import StepRecord
from saw_jax.types import Array, PyTree

# Folded into the keys of selections; no example has this number.
_SELECTION = 2**31 - 1


def selection_keys(seeds: Sequence[int], step: int) -> Array:
  """Keys `[N]`, that no row has, to select the transitions of an update."""
  return rollouts.row_keys(seeds, step, [[_SELECTION]] * len(seeds), 1)[:, 0]


def append(
  learner: Learner,
  transcript: Transcript,
  said: Sequence[Sequence[Sequence[int]]],
  selected: np.ndarray,
  step: int,
) -> Transcript:
  """Puts the selected ones of token ids `[N][B]` behind rows `[N, B]`."""
  chosen = [
    [tokens if take else [] for tokens, take in zip(*pair, strict=True)]
    for pair in zip(said, selected, strict=True)
  ]
  if learner.made.method.world.shuffled:
    for row, seed in zip(chosen, learner.seeds, strict=True):
      places = [i for i, tokens in enumerate(row) if tokens]
      order = np.random.default_rng([seed, step]).permutation(places)
      moved = [row[int(source)] for source in order]
      for place, tokens in zip(places, moved, strict=True):
        row[place] = tokens
  shape = transcript.starts.shape
  encoder = learner.policy.encoder
  longer = transcript_lib.append_observations(
    jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), transcript),
    [tokens for row in chosen for tokens in row],
    max_tokens=learner.made.episodes.max_observation_tokens,
    before=agents.glue_of(encoder.tokenizer),
  )
  longer = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), longer)
  return rollouts.trim(longer, encoder.config.completion_multiple)


class Appender:
  """Gives the rows of answers their observations and weights."""

  def __init__(self, learner: Learner):
    made, policy = learner.made, learner.policy
    self._learner, self._made, world = learner, made, made.method.world
    components, loop = made.task.components, made.loop
    self._minima = np.array([c.minimum for c in components], np.float32)
    self._range = float(sum(c.maximum - c.minimum for c in components))

    def measure(params: PyTree, batch: TrainBatch) -> Array:
      outputs = learner.forward(params, batch)
      return world.measure(
        entropies=outputs.entropies,
        log_probs=outputs.log_probs,
        completion_mask=batch.completion_mask,
      )

    STATE, ROWS, SAME = parallel.STATE, parallel.ROWS, parallel.SAME
    parts = loop.num_minibatches * loop.num_microbatches
    self._measure = policy.lift.wrap(
      objective.in_parts(measure, parts), (STATE, ROWS), (ROWS,)
    )
    self._estimate = policy.lift.wrap(
      estimation.make_world_estimate(world, max_return=1.0),
      (ROWS, SAME),
      (ROWS,),
      takes_axis_name=True,
    )

  def append(
    self,
    batch: TrainBatch,
    scores: rollouts.Rollout,
    examples: rollouts.Examples,
    step: int,
  ) -> tuple[TrainBatch, Rows]:
    """Selects responses, and puts what the world said behind them.

    λ reads the rewards that the update has, be they of labels or of votes;
    entropies are those of the current policies, whoever sampled.
    """
    learner = self._learner
    shape = (*scores.lengths.shape, 1)
    seen = self._observe(scores, examples)
    most = self._made.episodes.max_observation_tokens
    shares = (scores.rewards - self._minima).sum(-1) / self._range
    scored = scores.scored.all(-1)
    entropies = hosts.fetch(self._measure(learner.policy.params, batch))
    counts = [[min(len(x), most) for x in row] for row in seen]
    record = StepRecord(
      rewards=np.where(scored, shares, 0.0).astype(np.float32)[..., None],
      steps=np.ones(shape, bool),
      scored=scored,
      entropies=np.asarray(entropies).reshape(shape),
      observed=np.array(counts, np.int32).reshape(shape),
    )
    pool = record.observed > 0
    keys = selection_keys(learner.seeds, step)
    made = hosts.fetch(self._estimate(record, keys))
    selected = made.selected.reshape(len(seen), -1)
    longer = append(learner, scores.transcript, seen, selected, step)
    weights = jax.tree.map(lambda x: x.reshape(batch.starts.shape), made.world)
    return _widened(batch, longer).replace(world=weights), [
      {
        "lambda": float(made.coefficients[n].mean()),
        "selected": float(selected[n].sum() / max(pool[n].sum(), 1)),
        "observed": float(pool[n].mean()),
        "action_entropy": float(record.entropies[n].mean()),
      }
      for n in range(len(seen))
    ]

  def _observe(
    self, scores: rollouts.Rollout, examples: rollouts.Examples
  ) -> list[list[list[int]]]:
    """What the world says to each response, as tokens `[N][P * G]`."""
    encoder, task = self._learner.policy.encoder, self._made.task
    texts = np.array(rollouts.texts_of(scores, encoder), object)
    texts = texts.reshape(scores.lengths.shape)
    limit = self._made.episodes.max_observation_chars
    return [
      [
        list(encoder.tokenizer.encode(said))
        if (said := task.observe(example, text)[:limit])
        else []
        for example, group in zip(*pair, strict=True)
        for text in group
      ]
      for pair in zip(examples, texts, strict=True)
    ]


def _widened(batch: TrainBatch, longer: Transcript) -> TrainBatch:
  """The batch over the positions of a longer transcript."""
  width = longer.tokens.shape[-1] - longer.prompt_size

  def widen(values):
    """Pads by 0, which no loss of a response reads."""
    values = np.asarray(hosts.fetch(values))[..., :width]
    return np.pad(values, ((0, 0), (0, 0), (0, width - values.shape[-1])))

  names = ("behave_log_probs", "old_log_probs", "ref_log_probs")
  values = {name: getattr(batch, name) for name in names}
  return batch.replace(
    tokens=longer.tokens,
    roles=longer.roles,
    starts=longer.starts,
    packing=None,
    **{name: x if x is None else widen(x) for name, x in values.items()},
  )
