"""The source of rows that are steps of episodes."""

from typing import NamedTuple

import jax
import numpy as np

from saw_jax.rollout.transcript import Transcript
from saw_jax.run import agents, completions, observations, rollouts
from saw_jax.run.groups import Packed
from saw_jax.run.learner import Learner, Rows
from saw_jax.run.session import Session
from saw_jax.tasks.workers.environment_pool import EnvironmentPool
from saw_jax.training import batch as batch_lib
from saw_jax.training import estimation, hosts, parallel
from saw_jax.training.batch import TrainBatch
from saw_jax.training.estimation import StepEstimate, StepRecord


class Scored(NamedTuple):
  """The episodes of a step, and which of their rows an update has."""

  played: agents.Episodes
  record: StepRecord
  rows: np.ndarray  # int64 [N, B]; -1 is padding


class Episodes:
  """Plays the worlds of each step, which reward the episodes."""

  def __init__(self, learner: Learner, pool: EnvironmentPool, session: Session):
    del session  # A step is a function of the state alone.
    self._learner, self._clock, self._pool = learner, learner.clock, pool
    self._made = made = learner.made
    self._policy, self._world = learner.policy, made.method.world
    self._config, self._task = made.episodes, made.task
    self._loop = loop = made.loop
    lift, has_world = self._policy.lift, self._world is not None
    is_split = lift.has_own_rows or not loop.prompts_per_step % lift.num_shards
    kind = parallel.ROWS if is_split else parallel.SAME
    self._turn = self._policy.make_turn(
      made.sampling, record_entropies=has_world
    )
    self._estimate = lift.wrap(
      estimation.make_step_estimate(
        made.method.advantage,
        max_return=made.task.max_return,
        whiten=made.method.whiten,
        world=self._world,
      ),
      (kind, parallel.SAME),
      (kind,),
      takes_axis_name=True,
    )
    if has_world:
      self._measure = jax.jit(self._world.measure)
    # Rows of an update are a multiple of this: few shapes, equal parts.
    most = loop.prompts_per_step * loop.group_size * made.task.max_steps
    parts = loop.num_minibatches * loop.num_microbatches * lift.num_shards
    self._unit = -(-most // (made.episodes.row_parts * parts)) * parts

  def generate(self, step: int) -> agents.Episodes:
    """Plays the worlds of a step, a function of state, seed and step alone."""
    learner, size = self._learner, self._loop.group_size
    count = self._task.num_episodes("train")
    worlds = np.array(learner.batch_indices(count, step))
    played = agents.play(
      self._policy,
      self._turn,
      [[("train", int(world)) for world in row] for row in worlds],
      rollouts.row_keys(learner.seeds, step, worlds, size),
      self._pool,
    )
    self._clock.lap("generate")
    return played

  def score(self, played: agents.Episodes, step: int) -> Scored:
    # The rows that count, in order, for each seed: `[N, B]`; -1 pads.
    chosen = [np.flatnonzero(own) for own in played.steps]
    size = -(-max(1, *map(len, chosen)) // self._unit) * self._unit
    rows = np.full((len(chosen), size), -1, np.int64)
    for row, own in zip(rows, chosen, strict=True):
      row[: len(own)] = own
    record = StepRecord(
      rewards=played.rewards,
      steps=played.steps,
      scored=~played.failed,
      anchors=played.anchors,
      penalties=np.float32(self._config.invalid_penalty) * played.invalid,
    )
    transcript, shape = played.played.transcript, played.steps.shape
    if self._world is not None:
      width = transcript.behave_log_probs.shape[-1]
      entropies = self._measure(
        entropies=transcript.entropies.reshape(-1, width),
        log_probs=transcript.behave_log_probs.reshape(-1, width),
        completion_mask=transcript.completion_mask.reshape(-1, width),
      )
      observed = np.zeros((len(rows), shape[1] * shape[2], shape[3]), np.int32)
      for place, tokens in played.observations.items():
        observed[place] = len(tokens)
      record = record.replace(
        entropies=np.asarray(entropies).reshape(shape),
        observed=observed.reshape(shape),
      )
    if self._made.method.reads_values:
      zeros = np.zeros(rows.shape, np.float32)
      batch = batch_lib.make_batch(_take(transcript, rows), zeros)
      values = _put_back(self._learner.values(batch), rows, shape)
      record = record.replace(values=values)
      if self._made.method.reads_ratios:
        ratios = _put_back(self._learner.ratios(batch), rows, shape)
        record = record.replace(ratios=ratios)
    return Scored(played, record, rows)

  def estimate(self, scored: Scored, step: int) -> tuple[TrainBatch, Rows]:
    """Estimates advantages, and lays the rows of the update out."""
    (played, record, rows), learner = scored, self._learner
    keys = observations.selection_keys(learner.seeds, step)
    made: StepEstimate = hosts.fetch(self._estimate(record, keys))
    self._clock.lap("estimate")
    transcript = _take(played.played.transcript, rows)
    if self._world is None:
      multiple = self._made.rollout.completion_multiple
      transcript = rollouts.trim(transcript, multiple)
    else:
      size, seen = self._task.max_steps, played.observations
      said = [
        [seen.get((n, *divmod(int(row), size)), []) for row in own]
        for n, own in enumerate(rows)
      ]
      chosen = _gather(made.selected, rows, False)
      transcript = observations.append(learner, transcript, said, chosen, step)
    batch = batch_lib.make_batch(transcript, _gather(made.advantages, rows))
    targets, world = jax.tree.map(
      lambda x: _gather(x, rows), (made.value_targets, made.world)
    )
    batch = batch.replace(value_targets=targets, world=world)
    if self._made.method.truncated == "mask":
      _, _, ended = rollouts.read(transcript, self._policy.encoder)
      batch = batch_lib.leave_out(batch, ~ended)
    if self._loop.num_minibatches > 1:  # Each update takes a part of them.
      size = rows.shape[1]
      order = np.random.default_rng([size, step]).permutation(size)
      batch = jax.tree.map(lambda x: x[:, order], batch)
    self._clock.lap("lay out")
    described = [self._describe(scored, made, n) for n in range(len(rows))]
    return learner.recompute(batch), described

  def samples(self, scored: Scored, batch: TrainBatch) -> completions.Rows:
    return completions.of_episodes(scored.played, self._task.max_return)

  def finish(self, rows: Rows, step: int) -> Rows:
    return rows

  def pack(self, step: int) -> Packed:
    return {}, {}  # Episodes are functions of the state.

  def _describe(
    self, scored: Scored, made: StepEstimate, n: int
  ) -> dict[str, float]:
    """What a seed logs of its episodes."""
    played, record, _ = scored
    counts = ~played.failed[n]
    steps = record.steps[n]
    returns = played.returns[n][counts]
    taken = max(int(steps.sum()), 1)
    lengths = np.asarray(played.played.transcript.completion_lengths)[n]
    won = returns >= self._task.max_return
    is_whole = steps.sum(-1)[counts] == self._task.max_steps
    row = {
      "reward/return": _mean(returns),
      "reward/total": _mean(returns),
      "success": _mean(won),
      "constant_groups": _mean(np.ptp(played.returns[n], axis=-1) == 0),
      "steps": _mean(steps.sum(-1)[counts]),
      "invalid": float(played.invalid[n][steps].sum() / taken),
      "over_limit": _mean(is_whole & ~won),
      "failed": float(played.failed[n].mean()),
      "length": float(lengths.sum() / taken),
    }
    if made.selected is not None:
      pool = (record.observed[n] > 0) & steps
      row["lambda"] = float(made.coefficients[n].mean())
      row["selected"] = float(made.selected[n].sum() / max(pool.sum(), 1))
      row["action_entropy"] = float(record.entropies[n][steps].mean())
    return row


def _mean(x: np.ndarray) -> float:
  return float(np.mean(x)) if x.size else 0.0


def _gather(x: np.ndarray, rows: np.ndarray, filler=0) -> np.ndarray:
  """Takes rows `[N, B]` of `[N, R]`, and a filler where they are -1."""
  taken = x.reshape(len(rows), -1)[np.arange(len(rows))[:, None], rows]
  return np.where(rows < 0, filler, taken)


def _put_back(found: np.ndarray, rows: np.ndarray, shape) -> np.ndarray:
  """Values `[N, B]` of rows in their places `[N, P, G, E]`; 0 elsewhere."""
  values = np.zeros((len(rows), np.prod(shape[1:])), np.float32)
  for n, own in enumerate(rows):
    values[n, own[own >= 0]] = found[n, own >= 0]
  return values.reshape(shape)


def _take(transcript: Transcript, rows: np.ndarray) -> Transcript:
  """The rows of a transcript that are learned from; padding has no role."""
  seeds, size = np.arange(len(rows))[:, None], transcript.prompt_size
  bare = transcript.replace(entropies=None)
  taken = jax.tree.map(lambda x: x[seeds, rows], bare)
  for x in jax.tree.leaves(taken):
    x[rows < 0] = 0
  taken.starts[rows < 0] = taken.ends[rows < 0] = size
  return taken
