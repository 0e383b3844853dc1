"""Turns scored responses into updates of the policies of all seeds."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from saw_jax import algorithms
from saw_jax.run import labelling, rollouts
from saw_jax.run.policy import Policy
from saw_jax.tasks.base import Component, Outcome
from saw_jax.training import batch as batch_lib
from saw_jax.training import (
  estimation,
  hosts,
  objective,
  parallel,
  update,
)
from saw_jax.training.batch import TrainBatch


@dataclasses.dataclass(frozen=True)
class LoopConfig:
  """Sizes of a run."""

  num_steps: int = 100
  prompts_per_step: int = 16  # P
  group_size: int = 8  # G
  num_minibatches: int = 1  # updates per rollout
  num_microbatches: int = 1  # parts of an update that run one after the other
  chunk_size: int = 1024  # tokens whose logits exist at one time
  pack_length: int = 0  # tokens of a packed row; 0: rows are not packed
  checkpoint_interval: int = 25  # steps; 0: only at the end
  skip_nonfinite: bool = False  # go on after an update that is not finite
  writers: tuple[str, ...] = ()  # beside the files: tensorboard, wandb


class Learner:
  """Recomputes log-probs, weighs rewards, estimates advantages, and updates.

  With `labels` that look at the policy, the pass that recomputes log-probs
  observes too what they look at.
  """

  def __init__(
    self,
    policy: Policy,
    method: algorithms.Method,
    loop: LoopConfig,
    clock: labelling.Laps,
    *,
    components: Sequence[Component],
    temperature: float,
    target_multiple: int,
    labels: labelling.LabelConfig,
  ):
    self.policy, self.clock = policy, clock
    self._method, self._loop = method, loop
    self._components = components
    self._target_multiple = target_multiple
    self._observes = not labels.is_truth
    # Else the old policy is the current one: nothing has to be recomputed.
    self._needs_old = bool(method.kl_in_reward) or (
      method.needs_old and loop.num_minibatches > 1
    )
    self._reference = policy.copy_params() if method.needs_reference else None
    minima = np.array([c.minimum for c in components], np.float32)
    self._programs = _make_programs(
      policy,
      method,
      loop,
      minima,
      temperature=temperature,
      observes_log_probs=self._needs_old or labels.strategy.needs_log_probs,
    )

  def prepare(
    self, transcript
  ) -> tuple[TrainBatch, objective.Observation | None]:
    """Makes a batch, and has the device start on the log-probs it needs.

    They need no rewards, and are computed while the graders read the text. The
    advantages are 0; with the batch comes what the buying of labels looks at.
    """
    zeros = np.zeros(transcript.starts.shape, np.float32)
    batch = self._packed(batch_lib.make_batch(transcript, zeros), 1)
    observed = None
    if self._observes:
      observed = self._programs["observe"](self.policy.params, batch)
      if self._needs_old:
        batch = batch.replace(old_log_probs=observed.log_probs)
    return self.recompute(batch), observed

  def recompute(self, batch: TrainBatch) -> TrainBatch:
    """Has the device start on the log-probs that a batch needs and lacks."""
    if batch.packing is None:
      batch = self._packed(batch, 1)
    log_probs = self._programs["log_probs"]
    if self._needs_old and batch.old_log_probs is None:
      batch = batch.replace(old_log_probs=log_probs(self.policy.params, batch))
    if self._reference is not None:
      batch = batch.replace(ref_log_probs=log_probs(self._reference, batch))
    return batch

  def values(self, batch: TrainBatch) -> np.ndarray:
    """What the value head says of each row. Shape `[N, B]`."""
    return np.asarray(self._programs["values"](self.policy.params, batch))

  def weigh(self, batch: TrainBatch, scores: rollouts.Rollout) -> None:
    """Moves the reward weights that follow gradients, if the method has any."""
    if self._method.weights is not None:
      return
    policy = self.policy
    weights = self._programs["weigh"](
      policy.state.params,
      policy.state.weights,
      self._packed(batch, self._loop.num_microbatches),
      scores.rewards,
      scores.scored,
      policy.base,
    )
    policy.state = policy.state.replace(weights=jax.block_until_ready(weights))
    self.clock.lap("weigh")

  def estimate(
    self, batch: TrainBatch, scores: rollouts.Rollout
  ) -> tuple[TrainBatch, list[dict[str, float]]]:
    """Gives a batch its advantages; returns what each seed logs of rewards."""
    penalties = None
    if self._method.kl_in_reward:
      estimator, coefficient = self._method.kl_in_reward
      penalties = estimation.kl_penalties(
        batch, estimator, coefficient, group_size=self._loop.group_size
      )
    advantages, statistics = jax.block_until_ready(
      self._programs["estimate"](
        scores.rewards,
        scores.scored,
        scores.lengths.astype(np.float32),
        penalties,
        self.policy.state.weights,
      )
    )
    self.clock.lap("estimate")
    if scores.multipliers is not None:
      advantages = advantages * scores.multipliers[..., None]
    batch = batch.replace(advantages=advantages.reshape(batch.starts.shape))
    return batch, self._describe(scores, hosts.fetch(statistics))

  def update(self, batch: TrainBatch) -> list[dict[str, float]]:
    """Updates the policies on rows `[N, B]`; returns what each seed logs.

    What an update says of its mini-batch is averaged over the step's.
    """
    policy, loop = self.policy, self._loop
    policy.drop_merged()
    updates = []
    for part in range(loop.num_minibatches):
      rows = batch_lib.take_rows(batch, part, loop.num_minibatches)
      policy.state, values = self._programs["update"](
        policy.state, self._packed(rows, loop.num_microbatches), policy.base
      )
      updates.append(values)
    updates = hosts.fetch(updates)
    self.clock.lap("update")
    rows = []
    for n in range(policy.num_seeds):
      row = {
        name: float(np.mean([values[name][n] for values in updates]))
        for name in updates[0]
      }
      if "sampler_mismatch" in row:
        # Only the first update meets the sampler's own parameters.
        row["sampler_mismatch"] = float(updates[0]["sampler_mismatch"][n])
      rows.append(row)
    return rows

  def _packed(self, batch: TrainBatch, num_microbatches: int) -> TrainBatch:
    if not self._loop.pack_length:
      return batch
    lift = self.policy.lift
    layout = batch_lib.Layout(
      length=self._loop.pack_length,
      num_shards=lift.num_shards if lift.has_own_rows else 1,
      num_microbatches=num_microbatches,
      row_multiple=1 if lift.has_own_rows else lift.num_shards,
      target_multiple=self._target_multiple,
    )
    return batch_lib.pack_rows(batch, layout)

  def _describe(
    self, scores: rollouts.Rollout, statistics: dict[str, Any]
  ) -> list[dict[str, float]]:
    def each(kind: str, values) -> dict[str, float]:
      return {
        f"{kind}/{component.name}": float(value)
        for component, value in zip(self._components, values, strict=True)
      }

    outcomes = np.array([o.value for o in scores.outcomes])
    rows = []
    for n, own in enumerate(outcomes.reshape(len(scores.lengths), -1)):
      row = each("reward", statistics["mean"][n])
      row["reward/total"] = float(sum(statistics["mean"][n]))
      for name in ("weight", "cv", "std", "constant_groups"):
        row |= each(name, statistics[name][n])
      for outcome in Outcome:
        row[f"outcome/{outcome.value}"] = float((own == outcome.value).mean())
      row["unscored"] = float(1 - scores.scored[n].mean())
      row["length"] = float(scores.lengths[n].mean())
      row["ended"] = float(scores.ended[n].mean())
      rows.append(row)
    return rows


def _make_programs(
  policy: Policy,
  method: algorithms.Method,
  loop: LoopConfig,
  minima: np.ndarray,
  *,
  temperature: float,
  observes_log_probs: bool,
) -> dict[str, Callable]:
  """Lifts the functions of a step over seeds; nothing is compiled yet."""
  STATE, ROWS, SAME = parallel.STATE, parallel.ROWS, parallel.SAME
  forward = objective.make_forward(
    policy.decoder, temperature=temperature, chunk_size=loop.chunk_size
  )
  parts = loop.num_minibatches * loop.num_microbatches
  over_parts = {"num_microbatches": loop.num_microbatches}

  observe = objective.make_observe(
    policy.decoder,
    group_size=loop.group_size,
    temperature=temperature,
    chunk_size=loop.chunk_size,
    log_probs_too=observes_log_probs,
  )
  estimate = estimation.make_estimate(
    method.advantage, method.weights, minima=minima
  )
  weigh = estimation.make_gradient_weights(
    objective.make_objective(forward, {"policy": method.terms["policy"]}),
    merge=policy.merge,
    **over_parts,
    **method.gradient_options,
  )
  step = update.make_update(
    objective.make_objective(forward, method.terms, method.diagnostics),
    policy.optimizer,
    merge=policy.merge,
    **over_parts,
  )
  log_probs = objective.in_parts(lambda *x: forward(*x).log_probs, parts)
  wrap = policy.lift.wrap
  total = functools.partial(wrap, takes_axis_name=True)
  of_rows = (STATE, ROWS), (ROWS,)
  by_gradients = (STATE, STATE, ROWS, ROWS, ROWS, STATE), (STATE,)
  of_rewards = (ROWS, ROWS, ROWS, ROWS, STATE), (ROWS, SAME)
  return {
    "observe": wrap(observe, *of_rows),
    "log_probs": wrap(log_probs, *of_rows),
    "values": wrap(lambda *x: forward(*x).values, *of_rows),
    "weigh": total(weigh, *by_gradients),
    "estimate": total(estimate, *of_rewards),
    "update": total(step, (STATE, ROWS, STATE), (STATE, SAME), donate=(0,)),
  }
