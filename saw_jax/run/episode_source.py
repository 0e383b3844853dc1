"""The source of rows that are steps of episodes.

What `sync_loop.Responses` is for single answers: it plays the worlds of a step,
gives each action its advantage and each observation its weight, and leaves the
update to the learner.
"""

from collections.abc import Sequence

import jax
import numpy as np

from saw_jax import world_model
from saw_jax.rollout import transcript as transcript_lib
from saw_jax.rollout.transcript import Transcript
from saw_jax.run import agents, observations, rollouts
from saw_jax.run.learner import Learner, update_row
from saw_jax.run.session import Clock
from saw_jax.tasks import data
from saw_jax.tasks.workers.environment_pool import EnvironmentPool
from saw_jax.training import batch as batch_lib
from saw_jax.training import parallel, step_estimation
from saw_jax.training.step_estimation import StepEstimate, StepRecord


class Episodes:
  """Learns from the episodes of each step."""

  def __init__(
    self, learner: Learner, seeds: Sequence[int], pool: EnvironmentPool
  ):
    """Lifts the functions of a step; nothing is compiled yet.

    Args:
      learner: of all seeds.
      seeds: of the runs.
      pool: of environments.
    """
    experiment = learner.experiment
    method, lift = experiment.method, learner.lift
    self._learner, self._seeds, self._pool = learner, list(seeds), pool
    self._experiment, self._world = experiment, method.world
    self._glue = agents.glue_of(experiment.tokenizer)
    self._generate = rollouts.make_generate(
      lift,
      experiment.decoder,
      experiment.rollout,
      experiment.tokenizer,
      sampling=experiment.sampling,
      group_size=1,
      record_entropies=method.world is not None,
    )
    self._estimate = lift.wrap(
      step_estimation.make_step_estimate(
        method.advantage,
        max_return=experiment.task.max_return,
        whiten=method.whiten,
        world=method.world,
      ),
      (parallel.ROWS, parallel.SAME),
      (parallel.ROWS,),
      takes_axis_name=True,
    )
    if method.world is not None:
      self._measure = jax.jit(method.world.measure)

  def learn(self, step: int, clock: Clock) -> tuple[list[dict], float]:
    """Plays the episodes of a step and updates the policy.

    Args:
      step: of the run, from 0; with state and seeds it decides everything.
      clock: takes the time of each part.

    Returns:
      What each seed logs, and how many tokens were learned from.
    """
    learner, loop = self._learner, self._experiment.loop
    played = self._play(step)
    clock.lap("generate")
    rows = _rows_of(played, self._row_unit())
    record = self._record(played, rows)
    made: StepEstimate = jax.device_get(
      self._estimate(record, observations.selection_keys(self._seeds, step))
    )
    clock.lap("estimate")
    transcript = _take(played.played.transcript, rows)
    transcript = transcript.replace(
      policy_versions=np.full_like(
        transcript.policy_versions, step * loop.num_minibatches
      )
    )
    if self._world is not None:
      transcript = self._append(transcript, played, rows, made, step)
    transcript = rollouts.trim(
      transcript.replace(entropies=None),
      self._experiment.rollout.completion_multiple,
    )
    order = self._order(rows.shape[1], step)
    batch = jax.tree.map(
      lambda x: x[:, order], _make_batch(transcript, made, rows)
    )
    clock.lap("lay out")
    updates = learner.fit(learner.recompute(batch), clock)
    logged = [
      {**self._describe(played, record, made, n), **update_row(updates, n)}
      for n in range(len(self._seeds))
    ]
    tokens = (transcript.roles == transcript_lib.POLICY).sum()
    return logged, float(tokens)

  def pack(self, step: int) -> tuple[dict, dict[str, np.ndarray]]:
    """Returns what a checkpoint must hold beside the learner's state.

    Args:
      step: steps done.

    Returns:
      Nothing: the episodes of a step are functions of seed and step.
    """
    del step
    return {}, {}

  def _play(self, step: int) -> agents.Episodes:
    """Plays the worlds of a step, a function of seed and step alone."""
    experiment, loop = self._experiment, self._experiment.loop
    worlds = np.array(
      [
        data.batch_indices(
          experiment.task.num_episodes("train"),
          loop.prompts_per_step,
          seed=seed,
          step=step,
        )
        for seed in self._seeds
      ]
    )
    return agents.play(
      self._generate,
      self._learner.params,
      [[("train", int(world)) for world in row] for row in worlds],
      rollouts.row_keys(self._seeds, step, worlds, loop.group_size),
      task=experiment.task,
      tokenizer=experiment.tokenizer,
      pool=self._pool,
      config=experiment.episodes,
      rollout=experiment.rollout,
      group_size=loop.group_size,
    )

  def _row_unit(self) -> int:
    """Rows of an update are a multiple of this: few shapes, equal parts."""
    experiment = self._experiment
    loop = experiment.loop
    most = loop.prompts_per_step * loop.group_size * experiment.task.max_steps
    parts = loop.num_minibatches * loop.num_microbatches
    parts *= self._learner.lift.num_shards
    unit = -(-most // experiment.episodes.row_parts)
    return -(-unit // parts) * parts

  def _record(self, played: agents.Episodes, rows: np.ndarray) -> StepRecord:
    config, method = self._experiment.episodes, self._experiment.method
    steps = played.steps
    record = StepRecord(
      rewards=played.rewards,
      steps=steps,
      scored=~played.failed,
      anchors=played.anchors,
      penalties=np.float32(config.invalid_penalty) * played.invalid,
    )
    transcript = played.played.transcript
    if method.world is not None:
      width = transcript.behave_log_probs.shape[-1]
      record = record.replace(
        entropies=np.asarray(
          self._measure(
            entropies=transcript.entropies.reshape(-1, width),
            log_probs=transcript.behave_log_probs.reshape(-1, width),
            completion_mask=np.asarray(transcript.completion_mask).reshape(
              -1, width
            ),
          )
        ).reshape(steps.shape),
        pool=_observed(played),
      )
    if method.reads_values:
      batch = batch_lib.make_batch(
        _take(transcript, rows), np.zeros(rows.shape, np.float32)
      )
      found = np.asarray(self._learner.values(self._learner.params, batch))
      values = np.zeros((len(rows), steps[0].size), np.float32)
      for n, own in enumerate(rows):
        values[n, own[own >= 0]] = found[n, own >= 0]
      record = record.replace(values=values.reshape(steps.shape))
    return record

  def _append(
    self,
    transcript: Transcript,
    played: agents.Episodes,
    rows: np.ndarray,
    made: StepEstimate,
    step: int,
  ) -> Transcript:
    """Puts the selected observations behind their actions, and no others."""
    num_steps = played.rewards.shape[-1]
    selected = made.selected.reshape(len(rows), -1)
    targets = []
    for n, own in enumerate(rows):
      chosen = [
        played.observations[n, *divmod(int(row), num_steps)]
        if row >= 0 and selected[n, row]
        else []
        for row in own
      ]
      if self._world.shuffled:
        rng = np.random.default_rng([self._seeds[n], step])
        chosen = observations.exchange(chosen, rng)
      targets.append(chosen)
    return observations.append(
      transcript,
      targets,
      max_tokens=self._experiment.episodes.max_observation_tokens,
      glue=self._glue,
    )

  def _order(self, rows: int, step: int) -> np.ndarray:
    """The order of rows: shuffled where each update takes a part of them."""
    if self._experiment.loop.num_minibatches == 1:
      return np.arange(rows)
    return np.random.default_rng([rows, step]).permutation(rows)

  def _describe(
    self,
    played: agents.Episodes,
    record: StepRecord,
    made: StepEstimate,
    n: int,
  ) -> dict[str, float]:
    """What a seed logs of its episodes."""
    task = self._experiment.task
    counts = ~played.failed[n]
    steps = record.steps[n]
    returns = played.returns[n][counts]
    taken = max(int(steps.sum()), 1)
    lengths = np.asarray(played.played.transcript.completion_lengths)[n]
    row = {
      "reward/return": _mean(returns),
      "reward/total": _mean(returns),
      "success": _mean(returns >= task.max_return),
      "constant_groups": float(
        np.mean([np.ptp(r) == 0 for r in played.returns[n]])
      ),
      "steps": _mean(steps.sum(-1)[counts]),
      "invalid": float(played.invalid[n][steps].sum() / taken),
      "over_limit": _mean(
        (steps.sum(-1)[counts] == task.max_steps) & (returns < task.max_return)
      ),
      "failed": float(played.failed[n].mean()),
      "length": float(lengths.sum() / taken),
    }
    if made.selected is not None:
      pool = record.pool[n] & steps
      row["lambda"] = float(made.coefficients[n].mean())
      row["selected"] = float(made.selected[n].sum() / max(pool.sum(), 1))
      row["action_entropy"] = float(record.entropies[n][steps].mean())
    return row


def _mean(x: np.ndarray) -> float:
  return float(np.mean(x)) if x.size else 0.0


def _observed(played: agents.Episodes) -> np.ndarray:
  """Which steps an observation followed. Shape `[N, P, G, E]`."""
  shape = played.rewards.shape
  pool = np.zeros((shape[0], shape[1] * shape[2], shape[3]), bool)
  for n, b, step in played.observations:
    pool[n, b, step] = True
  return pool.reshape(shape)


def _rows_of(played: agents.Episodes, unit: int) -> np.ndarray:
  """The rows of the update for each seed, `[N, B]`; -1 is padding.

  The steps that count, in order, as many for each seed as the one with most
  has, rounded up.
  """
  steps = played.steps.reshape(len(played.steps), -1)
  most = max(int(steps.sum(-1).max()), 1)
  rows = np.full((len(steps), -(-most // unit) * unit), -1, np.int64)
  for n, own in enumerate(steps):
    chosen = np.flatnonzero(own)
    rows[n, : len(chosen)] = chosen
  return rows


def _gather(x: np.ndarray, rows: np.ndarray, filler) -> np.ndarray:
  """Takes rows `[N, B]` of `[N, R, ...]`, and a filler where they are -1."""
  taken = np.take_along_axis(
    x, np.maximum(rows, 0).reshape(*rows.shape, *[1] * (x.ndim - 2)), axis=1
  )
  taken[rows < 0] = filler
  return taken


def _take(transcript: Transcript, rows: np.ndarray) -> Transcript:
  """The rows of a transcript that are learned from; padding has no role."""
  size = transcript.prompt_size

  def take(name: str, filler=0):
    return _gather(getattr(transcript, name), rows, filler)

  return transcript.replace(
    tokens=take("tokens"),
    roles=take("roles", transcript_lib.PAD),
    starts=take("starts", size),
    ends=take("ends", size),
    behave_log_probs=take("behave_log_probs"),
    group_ids=take("group_ids"),
    policy_versions=take("policy_versions"),
    entropies=None,
  )


def _make_batch(
  transcript: Transcript, made: StepEstimate, rows: np.ndarray
) -> batch_lib.TrainBatch:
  def take(x):
    return None if x is None else _gather(x.reshape(len(rows), -1), rows, 0)

  world = None
  if made.weights is not None:
    world = world_model.RowWeights(take(made.weights), take(made.counts))
  return batch_lib.make_batch(transcript, take(made.advantages)).replace(
    value_targets=take(made.value_targets), world=world
  )
