"""Turns scored responses into updates of the policies of all seeds."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from saw_jax.run import engines
from saw_jax.run.policy import Policy
from saw_jax.run.rollouts import OUTCOMES, Rollout
from saw_jax.run.session import Clock
from saw_jax.tasks import data
from saw_jax.training import batch as batch_lib
from saw_jax.training import estimation, hosts, objective, parallel, update
from saw_jax.training.batch import TrainBatch

Rows = list[dict[str, float]]  # what each seed logs


class Learner:
  """Recomputes log-probs, weighs rewards, estimates advantages, and updates."""

  def __init__(self, policy: Policy, seeds: Sequence[int], clock: Clock):
    self.made, self.policy = policy.made, policy
    self.seeds, self.clock = list(seeds), clock
    self._method, self._loop = self.made.method, self.made.loop
    # Before a step's first update the old policy is the current one.
    self.needs_old = bool(self._method.kl_in_reward) or (
      self._method.needs_old and self._loop.num_minibatches > 1
    )
    self._reference = None
    if self._method.needs_reference:
      self._reference = policy.reference()
    self._how = {
      "temperature": self.made.sampling.temperature,
      "chunk_size": self._loop.chunk_size,
    }
    self.forward = objective.make_forward(policy.decoder, **self._how)
    self.programs = self._make_programs()
    self.faults: list[str] = []  # what was not finite in each seed's update

  def batch_indices(self, count: int, step: int) -> list[np.ndarray]:
    """Which of `count` prompts or worlds each seed has in a step, `[N][P]`."""
    sizes = count, self._loop.prompts_per_step
    draw = functools.partial(data.batch_indices, *sizes, step=step)
    return [draw(seed=seed) for seed in self.seeds]

  def prepare(
    self, transcript
  ) -> tuple[TrainBatch, objective.Observation | None]:
    """Makes a batch, and starts to compute the log-probs that it needs."""
    zeros = np.zeros(transcript.starts.shape, np.float32)
    batch, observed = batch_lib.make_batch(transcript, zeros), None
    if self.made.labels.method != "truth":
      laid = self.in_parts(batch)
      observed = self.programs["observe"](self.policy.attached, laid)
      if self.needs_old:
        batch = batch.replace(old_log_probs=observed.log_probs)
    return self.recompute(batch), observed

  def recompute(self, batch: TrainBatch) -> TrainBatch:
    """Starts to compute the log-probs that a batch needs and lacks."""
    batch = self.in_parts(batch)
    log_probs = self.programs["log_probs"]
    if self.needs_old and batch.old_log_probs is None:
      ours = log_probs(self.policy.attached, batch)
      batch = batch.replace(old_log_probs=ours)
    if self._reference is not None:
      batch = batch.replace(ref_log_probs=log_probs(self._reference, batch))
    return batch

  def values(self, batch: TrainBatch) -> np.ndarray:
    """The value head's estimate for each row. Shape `[N, B]`."""
    batch = self.in_parts(batch)
    values = self.programs["values"](self.policy.attached, batch)
    return np.asarray(hosts.fetch(values))

  def ratios(self, batch: TrainBatch) -> np.ndarray:
    """Each row's probability now over that of its sampler. `[N, B]`."""
    laid = self.in_parts(batch)
    now = hosts.fetch(self.programs["log_probs"](self.policy.attached, laid))
    moved = np.asarray(now) - np.asarray(batch.behave_log_probs)
    return np.exp(np.where(batch.completion_mask, moved, 0).sum(-1))

  def estimate(
    self, batch: TrainBatch, scores: Rollout, step: int = 0
  ) -> tuple[TrainBatch, Rows]:
    """Gives a batch its advantages; returns what each seed logs of rewards."""
    policy, truncated = self.policy, self._method.truncated
    weights, scored, whole = policy.state.weights, scores.scored, batch
    if truncated != "learn":
      batch = batch_lib.leave_out(batch, ~scores.ended)
    if truncated == "drop":
      scored = scored & scores.ended[..., None]
    if self._method.weights is None:
      weights = self.programs["weigh"](
        policy.state.params,
        weights,
        self.packed(batch, self._loop.num_microbatches),
        scores.rewards,
        scored,
        policy.base,
      )
      weights = jax.block_until_ready(weights)
      self._keep(weights)
      self.clock.lap("weigh")
    penalties = None
    if self._method.kl_in_reward:
      estimator, coefficient = self._method.kl_in_reward
      coefficient = objective.at_step(coefficient, np.int32(step), "KL")
      penalties = estimation.kl_penalties(
        whole, estimator, coefficient, group_size=self._loop.group_size
      )
    advantages, statistics = jax.block_until_ready(
      self.programs["estimate"](
        scores.rewards,
        scored,
        scores.lengths.astype(np.float32),
        penalties,
        weights,
        np.full(policy.num_seeds, step, np.int32),
      )
    )
    if self._method.carries:
      self._keep(statistics["weight"])
    self.clock.lap("estimate")
    if scores.multipliers is not None:
      advantages = advantages * scores.multipliers[..., None]
    batch = batch.replace(advantages=advantages.reshape(batch.starts.shape))
    return batch, self._describe(scores, hosts.fetch(statistics))

  def _keep(self, weights: jax.Array) -> None:
    """Keeps weights for the next step, unless they are not finite."""
    state = self.policy.state
    kept = self.programs["keep"](weights, state.weights)
    self.policy.state = state.replace(weights=kept)

  def update(self, batch: TrainBatch) -> Rows:
    """Updates the policies on rows `[N, B]`; returns what each seed logs."""
    policy, loop = self.policy, self._loop
    apart = self._apart(batch)
    policy.drop_merged()
    updates = []
    for part in range(loop.num_minibatches):
      rows = batch_lib.take_rows(batch, part, loop.num_minibatches)
      rows = self.packed(rows, loop.num_microbatches)
      given = policy.state, rows, policy.base
      policy.state, values = self.programs["update"](*given)
      updates.append({**values, "padding": rows.padded_share()})
    updates = hosts.fetch(updates)
    self.clock.lap("update")
    rows, self.faults = [], []
    for n in range(policy.num_seeds):
      row = {
        name: float(np.mean([values[name][n] for values in updates]))
        for name in updates[0]
      }
      if "sampler_mismatch" in row:
        # Only the first update starts from the sampler's own parameters.
        row["sampler_mismatch"] = float(updates[0]["sampler_mismatch"][n])
      rows.append(row)
      row |= apart | policy.engine.figures()
      fault = update.not_finite(row)
      if fault and not np.isfinite(hosts.fetch(batch.advantages)[n]).all():
        fault = "advantages are not finite: look at the rewards"
      self.faults.append(fault)
    return rows

  def _apart(self, batch: TrainBatch) -> dict[str, float]:
    """How far an engine's log-probs are from ours, in one micro-batch.

    For rows sampled ahead it includes how far the policy has moved since.
    """
    behave = batch.behave_log_probs
    if self.policy.engine.traits.publishes == "memory" or behave is None:
      return {}
    parts = self._loop.num_microbatches * self._loop.num_minibatches
    rows = batch_lib.take_rows(batch, 0, parts)
    ours = rows.old_log_probs
    if ours is None:
      given = self.policy.params, self.packed(rows, 1)
      ours = self.programs["log_probs_of_part"](*given)
    apart = np.abs(np.asarray(ours) - np.asarray(rows.behave_log_probs))
    apart = apart[np.asarray(rows.completion_mask)]
    found = engines.describe(apart, self.made)
    self.clock.lap("compare")
    return found

  def in_parts(self, batch: TrainBatch) -> TrainBatch:
    """Packs a step's rows for passes of one micro-batch at a time."""
    parts = self._loop.num_minibatches * self._loop.num_microbatches
    return self.packed(batch, parts)

  def packed(self, batch: TrainBatch, num_microbatches: int) -> TrainBatch:
    """Packs rows, if the run packs any."""
    if not self._loop.pack_length:
      return batch
    lift = self.policy.lift
    return batch_lib.pack_rows(
      batch,
      self._loop.pack_length,
      num_shards=lift.num_shards if lift.has_own_rows else 1,
      num_microbatches=num_microbatches,
      row_multiple=1 if lift.has_own_rows else lift.num_shards,
      # An eighth, to bound the number of compiled shapes.
      target_multiple=max(
        self.made.rollout.completion_multiple, self._loop.pack_length // 8
      ),
    )

  def _describe(self, scores: Rollout, statistics: dict[str, Any]) -> Rows:
    names = [component.name for component in self.made.task.components]

    def each(kind: str, values) -> dict[str, float]:
      pairs = zip(names, values, strict=True)
      return {f"{kind}/{name}": float(value) for name, value in pairs}

    rows = []
    for n, own in enumerate(scores.outcomes):
      row = each("reward", statistics["mean"][n])
      row["reward/total"] = float(sum(statistics["mean"][n]))
      for name in ("weight", "cv", "std", "constant_groups"):
        row |= each(name, statistics[name][n])
      for k, outcome in enumerate(OUTCOMES):
        row[f"outcome/{outcome.value}"] = float((own == k).mean())
      row["unscored"] = float(1 - scores.scored[n].mean())
      row["length"] = float(scores.lengths[n].mean())
      row["ended"] = float(scores.ended[n].mean())
      rows.append(row)
    return rows

  def _make_programs(self) -> dict[str, Callable]:
    """Lifts the functions of a step over seeds; nothing is compiled yet."""
    STATE, ROWS, SAME = parallel.STATE, parallel.ROWS, parallel.SAME
    policy, method, loop = self.policy, self._method, self._loop
    parts, forward = loop.num_microbatches, self.forward
    all_parts = loop.num_minibatches * parts
    observe = objective.make_observe(
      policy.decoder,
      group_size=loop.group_size,
      log_probs_too=self.needs_old or self.made.labels.strategy.needs_log_probs,
      num_parts=all_parts,
      **self._how,
    )
    log_probs = lambda *x: forward(*x).log_probs  # noqa: E731
    values = objective.in_parts(lambda *x: forward(*x).values, all_parts)
    minima = [component.minimum for component in self.made.task.components]
    estimate = estimation.make_estimate(
      method.advantage, method.weights, minima=np.array(minima, np.float32)
    )
    weigh = estimation.make_gradient_weights(
      objective.make_objective(forward, {"policy": method.terms["policy"]}),
      merge=policy.attach,
      num_microbatches=parts,
      **method.gradient_options,
    )
    decide, how = None, (method.keep, method.step_size)
    if any(how):
      decide = objective.make_decide(forward, *how, num_parts=parts)
    step = update.make_update(
      objective.make_objective(forward, method.terms, method.diagnostics),
      policy.optimizer,
      merge=policy.attach,
      num_microbatches=parts,
      num_minibatches=loop.num_minibatches,
      can_overflow=self.made.optimizer.can_overflow,
      by_term=method.by_term,
      decide=decide,
    )
    keep = lambda x, old: jnp.where(jnp.isfinite(x).all(), x, old)  # noqa: E731
    wrap = policy.lift.wrap
    total = functools.partial(wrap, takes_axis_name=True)
    of_rows = (STATE, ROWS), (ROWS,)
    by_gradients = (STATE, STATE, ROWS, ROWS, ROWS, STATE), (STATE,)
    of_rewards = (ROWS, ROWS, ROWS, ROWS, STATE, SAME), (ROWS, SAME)
    return {
      "observe": wrap(observe, *of_rows),
      "log_probs": wrap(objective.in_parts(log_probs, all_parts), *of_rows),
      "log_probs_of_part": wrap(log_probs, *of_rows),
      "values": wrap(values, *of_rows),
      "weigh": total(weigh, *by_gradients),
      "keep": wrap(keep, (SAME if method.carries else STATE, STATE), (STATE,)),
      "estimate": total(estimate, *of_rewards),
      "update": total(step, (STATE, ROWS, STATE), (STATE, SAME), donate=(0,)),
    }
