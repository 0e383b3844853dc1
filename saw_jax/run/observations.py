"""Observations behind what a policy said: the text that PaW's term predicts.

Episodes have them after each action. A task of single answers has them where it
says what the world answers: then a response is an episode of one step.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import jax
import numpy as np

from saw_jax import world_model
from saw_jax.rollout import transcript as transcript_lib
from saw_jax.rollout.transcript import Transcript
from saw_jax.run import agents, rollouts
from saw_jax.run.experiment import Experiment
from saw_jax.tasks.base import Example
from saw_jax.training import hosts, objective, parallel, step_estimation
from saw_jax.training.batch import TrainBatch
from saw_jax.training.step_estimation import StepRecord
from saw_jax.types import Array, PyTree

# Of the keys of selections, folded in where no example has a number.
_SELECTION = 2**31 - 1


@runtime_checkable
class ObservedTask(Protocol):
  """A task whose world answers to a response."""

  def observe(self, example: Example, completion: str) -> str:
    """Returns what the world says to a response; empty if nothing.

    A function of the prompt and the response alone: the reference is not
    read, since a label may not have been bought.
    """
    ...


def selection_keys(seeds: Sequence[int], step: int) -> Array:
  """Makes the key with which the transitions of an update are selected.

  Args:
    seeds: of the runs, `N`.
    step: of the run.

  Returns:
    Keys `[N]`, that no row has.
  """
  return rollouts.row_keys(seeds, step, [[_SELECTION]] * len(seeds), 1)[:, 0]


def exchange(
  observations: Sequence[Sequence[int]], rng: np.random.Generator
) -> list[Sequence[int]]:
  """Lets observations change places: the placebo of a world model.

  Args:
    observations: token ids of each row; rows without any keep none.
    rng: decides.

  Returns:
    The same observations in other rows.
  """
  moved = list(observations)
  places = [i for i, tokens in enumerate(moved) if tokens]
  if places:
    for place, source in zip(places, rng.permutation(places), strict=True):
      moved[place] = observations[source]
  return moved


def append(
  transcript: Transcript,
  observations: Sequence[Sequence[Sequence[int]]],
  *,
  max_tokens: int,
  glue: Sequence[int],
) -> Transcript:
  """Puts observations behind the rows of all seeds.

  Args:
    transcript: host arrays, rows `[N, B]`.
    observations: token ids, `[N][B]`; a row without any stays as it is.
    max_tokens: of an observation that are kept.
    glue: tokens of the chat template in between.

  Returns:
    The transcript, longer.
  """
  shape = transcript.starts.shape
  flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), transcript)
  longer = transcript_lib.append_observations(
    flat,
    [tokens for row in observations for tokens in row],
    max_tokens=max_tokens,
    before=glue,
  )
  return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), longer)


class Appender:
  """Gives the rows of answers their observations and weights."""

  def __init__(
    self, experiment: Experiment, lift: parallel.Lift, seeds: Sequence[int]
  ):
    """Lifts the functions; nothing is compiled yet.

    Args:
      experiment: its method has a world model, its task an `observe`.
      lift: how arrays are spread.
      seeds: of the runs.
    """
    world = experiment.method.world
    self._experiment, self._world, self._seeds = experiment, world, list(seeds)
    self._glue = agents.glue_of(experiment.tokenizer)
    components = experiment.task.components
    self._minima = np.array([c.minimum for c in components], np.float32)
    self._range = float(sum(c.maximum - c.minimum for c in components))
    forward = objective.make_forward(
      experiment.decoder,
      temperature=experiment.sampling.temperature,
      chunk_size=experiment.loop.chunk_size,
    )

    def measure(params: PyTree, batch: TrainBatch) -> Array:
      outputs = forward(params, batch)
      return world.measure(
        entropies=outputs.entropies,
        log_probs=outputs.log_probs,
        completion_mask=batch.completion_mask,
      )

    loop = experiment.loop
    self._measure = lift.wrap(
      objective.in_parts(measure, loop.num_minibatches * loop.num_microbatches),
      (parallel.STATE, parallel.ROWS),
      (parallel.ROWS,),
    )
    self._estimate = lift.wrap(
      step_estimation.make_world_estimate(world, max_return=1.0),
      (parallel.ROWS, parallel.SAME),
      (parallel.ROWS,),
      takes_axis_name=True,
    )

  def append(
    self,
    batch: TrainBatch,
    scores: rollouts.Rollout,
    examples: Sequence[Sequence[Example]],
    params: PyTree,
    step: int,
  ) -> tuple[TrainBatch, list[dict[str, float]]]:
    """Selects responses, and puts what the world said behind them.

    Args:
      batch: of the responses, rows `[N, P * G]`, with the log-probs that were
        recomputed.
      scores: of the same responses. A prompt's λ reads the rewards that the
        update has, be they of labels or of votes.
      examples: their prompts, `[N][P]`.
      params: of the current policies; the entropy of a response is theirs,
        whoever sampled it.
      step: of the run, from 0.

    Returns:
      The batch, with observations and the rows' weights, and what each seed
      logs.
    """
    experiment, shape = self._experiment, scores.lengths.shape
    seen = self._observe(scores, examples)
    shares = (scores.rewards - self._minima).sum(-1) / self._range
    scored = scores.scored.all(-1)
    record = StepRecord(
      rewards=np.where(scored, shares, 0.0).astype(np.float32)[..., None],
      steps=np.ones((*shape, 1), bool),
      scored=scored,
      anchors=np.zeros((*shape, 1), np.int32),
      penalties=np.zeros((*shape, 1), np.float32),
      entropies=np.asarray(hosts.fetch(self._measure(params, batch))).reshape(
        *shape, 1
      ),
      pool=np.array([[bool(tokens) for tokens in row] for row in seen]).reshape(
        *shape, 1
      ),
    )
    made = hosts.fetch(
      self._estimate(record, selection_keys(self._seeds, step))
    )
    selected = made.selected.reshape(len(seen), -1)
    chosen = [
      [tokens if take else [] for tokens, take in zip(*pair, strict=True)]
      for pair in zip(seen, selected, strict=True)
    ]
    if self._world.shuffled:
      chosen = [
        exchange(row, np.random.default_rng([seed, step]))
        for seed, row in zip(self._seeds, chosen, strict=True)
      ]
    longer = rollouts.trim(
      append(
        scores.transcript,
        chosen,
        max_tokens=experiment.episodes.max_observation_tokens,
        glue=self._glue,
      ),
      experiment.rollout.completion_multiple,
    )
    rows = batch.starts.shape
    batch = _widened(batch, longer).replace(
      world=world_model.RowWeights(
        made.weights.reshape(rows), made.counts.reshape(rows)
      )
    )
    return batch, [
      {
        "lambda": float(made.coefficients[n].mean()),
        "selected": float(selected[n].sum() / max(record.pool[n].sum(), 1)),
        "observed": float(record.pool[n].mean()),
        "action_entropy": float(record.entropies[n].mean()),
      }
      for n in range(len(seen))
    ]

  def _observe(
    self, scores: rollouts.Rollout, examples: Sequence[Sequence[Example]]
  ) -> list[list[list[int]]]:
    """What the world says to each response, as tokens `[N][P * G]`."""
    experiment, (_, num_prompts, size) = self._experiment, scores.lengths.shape
    texts = scores.completions
    if not texts:  # A queue keeps tokens alone.
      texts, _, _ = rollouts.read(
        scores.transcript, experiment.tokenizer, experiment.rollout.stops
      )
    asked = [
      example for row in examples for example in row for _ in range(size)
    ]
    limit = experiment.episodes.max_observation_chars
    said = [
      experiment.task.observe(example, text)[:limit]
      for example, text in zip(asked, texts, strict=True)
    ]
    tokens = [
      list(experiment.tokenizer.encode(text)) if text else [] for text in said
    ]
    step = num_prompts * size
    return [tokens[i : i + step] for i in range(0, len(tokens), step)]


def _widened(batch: TrainBatch, longer: Transcript) -> TrainBatch:
  """The batch over the positions of a longer transcript."""
  width = longer.tokens.shape[-1] - longer.prompt_size

  def widen(values):
    """Nothing is known of an observation, and no loss of a response asks."""
    if values is None:
      return None
    values = np.asarray(hosts.fetch(values))
    missing = width - values.shape[-1]
    return np.pad(values[..., :width], ((0, 0), (0, 0), (0, max(missing, 0))))

  return batch.replace(
    tokens=longer.tokens,
    roles=longer.roles,
    starts=longer.starts,
    behave_log_probs=widen(batch.behave_log_probs),
    old_log_probs=widen(batch.old_log_probs),
    ref_log_probs=widen(batch.ref_log_probs),
    packing=None,
  )
