"""From rewards to advantages: what an update is told about its batch.

All that refers to groups is decided here, once per update: of answers on
`[P, G, M]`; of an episode's steps on `[P, G, E]` with a mask of those taken.
After it, rows can be dropped, padded, shuffled and split.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from saw_jax import (
  advantages,
  diagnostics,
  losses,
  naming,
  weighting,
  world_model,
)
from saw_jax.reductions import all_sum, check_shapes
from saw_jax.training import update as update_lib
from saw_jax.training.batch import TrainBatch
from saw_jax.training.objective import Objective
from saw_jax.types import Array, PyTree

# What an advantage of steps may read, as its arguments are called.
READABLE = ("rewards", "values", "anchors", "steps", "penalties", "ratios")


def make_estimate(
  advantage: Callable[..., Array],
  weights: Callable[..., Array] | None,
  *,
  minima: Array,
) -> Callable[..., tuple[Array, dict[str, Array]]]:
  """Composes a weighting with an advantage, see `advantages`; no gradient.

  Makes `(rewards [P, G, M], scored, lengths [P, G], penalties [P, G],
  weights before [M], step=None, *, axis_name) -> (advantages [P, G],
  statistics)`; lengths and penalties may be None. Where `weights` is, the
  persistent ones count, which sum to 1, times M. A weighting may name `step`,
  and `persistent`: what it gave at the step before.
  """

  def estimate(
    rewards, scored, lengths, penalties, before, step=None, *, axis_name=None
  ):
    batch = dict(scored=scored, axis_name=axis_name)
    if weights is None:
      weight = rewards.shape[-1] * before
    else:
      if "step" in naming.arguments(weights) and step is None:
        raise ValueError("a weighting names the step, which is unknown here")
      known = dict(step=step, persistent=before, **batch)
      weight = naming.supply(weights, rewards, **known)
      check_shapes(weight, rewards.shape[2:], weights)
    if penalties is not None and "penalties" not in naming.arguments(advantage):
      user = naming.name_of(advantage)
      raise ValueError(f"{user} takes no penalties: put the KL in the loss")
    found = naming.supply(
      advantage, rewards, weight, lengths=lengths, penalties=penalties, **batch
    )
    check_shapes(found, rewards.shape[:2], advantage)
    statistics = diagnostics.reward_statistics(rewards, minima=minima, **batch)
    return jax.lax.stop_gradient(found), {"weight": weight, **statistics}

  return estimate


def make_gradient_weights(
  objective: Objective,
  *,
  num_microbatches: int = 1,
  merge: update_lib.Merge | None = None,
  learning_rate: float = 1e-6,
  temperature: float = 1e-5,
) -> Callable[..., Array]:
  """The gradient-weighting baseline (Lu et al.): one backward a reward.

  Makes `(params, weights [M], batch, rewards [P, G, M], scored, base=None, *,
  axis_name) -> [M]`, weights that sum to 1. `objective` is the policy term
  alone, under each component's own group-normalised rewards.
  """
  gradient_of = update_lib.make_gradient(
    objective, num_microbatches=num_microbatches, merge=merge
  )

  def gradient_weights(
    params, weights, batch, rewards, scored, base=None, *, axis_name=None
  ):
    def component_gradient(component: Array) -> PyTree:
      take = functools.partial(jnp.take, indices=component, axis=-1)
      one = advantages.normalize_groups(take(rewards), scored=take(scored))
      batch_of_one = batch.replace(advantages=one.reshape(-1))
      return gradient_of(params, batch_of_one, base, axis_name=axis_name)[0]

    gradients = jax.lax.map(component_gradient, jnp.arange(rewards.shape[-1]))
    gram = weighting.gram_of_clipped(gradients)
    return weighting.gradient_weights(
      weights, gram, learning_rate=learning_rate, temperature=temperature
    )

  return gradient_weights


def kl_penalties(
  batch: TrainBatch,  # rows [N, P * G]
  estimator: losses.KLEstimator,
  coefficient: Array | float,
  *,
  group_size: int,
) -> Array:
  """What KL in the reward takes from each response. Shape `[N, P, G]`."""
  old = batch.require("old_log_probs", "KL in the reward")
  ref = batch.require("ref_log_probs", "KL in the reward")
  penalty = functools.partial(
    losses.kl_penalty, estimator=estimator, coefficient=coefficient
  )
  found = jax.vmap(penalty)(old, ref, batch.completion_mask)
  return found.reshape(found.shape[0], -1, group_size)


@flax.struct.dataclass
class StepRecord:
  """What is known about the steps of all episodes of one seed."""

  rewards: Array  # float32 [P, G, E], of the environment
  steps: Array  # bool [P, G, E], taken, in episodes that count
  scored: Array  # bool [P, G], episodes that count
  # int32 [P, G, E], equal where what was seen before is
  anchors: Array | None = None
  penalties: Array | None = None  # float32 [P, G, E], of invalid replies
  values: Array | None = None  # float32 [P, G, E], in units of max_return
  ratios: Array | None = None  # float32 [P, G, E], π / μ of whole actions
  entropies: Array | None = None  # float32 [P, G, E], of each action
  observed: Array | None = None  # int32 [P, G, E], tokens of what followed


@flax.struct.dataclass
class StepEstimate:
  """What the rows of an update get: all of it, or the world model's part."""

  coefficients: Array  # float32 [P], λ of the world model; 0 without it
  advantages: Array | None = None  # float32 [P, G, E]
  value_targets: Array | None = None  # [P, G, E], in units of max_return
  selected: Array | None = None  # bool [P, G, E]
  world: world_model.RowWeights | None = None  # [P, G, E] each


class WorldModel(NamedTuple):
  """The functions that make a world model, with their options bound.

  Each is given those of the values on the right that its arguments name.
  """

  token_loss: Callable  # of the objective; not read here
  measure: Callable  # entropies=, log_probs=, completion_mask= [B, T] -> [B]
  select: Callable  # key, entropies, pool [B], axis_name -> [B]
  coefficients: Callable  # returns, scored [P, G], max_return -> [P]
  aggregate: Callable  # selected, coefficients, groups, rows, observed, ...
  shuffled: bool = False  # observations change places: the placebo


def make_step_estimate(
  advantage: Callable[..., Array],
  *,
  max_return: float,
  whiten: advantages.Whitening | None = None,
  world: WorldModel | None = None,
) -> Callable[..., StepEstimate]:
  """Composes an advantage of steps with a world model's weights; no gradient.

  The advantage is given those of `READABLE` that its arguments name; if it
  reads values, rewards and penalties are divided by `max_return`, the most that
  an episode can pay; it may give a pair, with what the values learn. `whiten`
  goes over all steps of the batch, as PPO has it.
  """
  reads = naming.positional(advantage)
  for name in reads:
    if name not in READABLE:
      raise TypeError(f"an advantage of steps cannot read {name!r}: {READABLE}")
  reads_values = "values" in reads
  weigh = world and make_world_estimate(world, max_return)

  def estimate(record: StepRecord, key: Array, *, axis_name=None):
    scale = max_return if reads_values else 1.0
    given = {name: getattr(record, name) for name in READABLE}
    for name in ("rewards", "penalties"):
      given[name] = given[name] / scale
    found, targets = naming.supply(advantage, **given), None
    if isinstance(found, tuple):  # with what its value function learns
      found, targets = found
    elif reads_values:
      targets = found + record.values
    check_shapes(found, record.steps.shape, advantage)
    if whiten is not None:
      found = whiten(found, scored=record.steps, axis_name=axis_name)
    made = StepEstimate(jnp.zeros(found.shape[:1], found.dtype))
    if weigh is not None:
      made = weigh(record, key, axis_name=axis_name)
    made = made.replace(advantages=found, value_targets=targets)
    return jax.lax.stop_gradient(made)

  return estimate


def make_world_estimate(
  world: WorldModel, max_return: float
) -> Callable[..., StepEstimate]:

  def weigh(record: StepRecord, key: Array, *, axis_name=None):
    shape, rows = record.steps.shape, record.steps.reshape(-1)
    observed = record.observed.reshape(-1)
    selected = naming.supply(
      world.select,
      key=key,
      entropies=record.entropies.reshape(-1),
      pool=rows & (observed > 0),
      axis_name=axis_name,
    )
    coefficients = naming.supply(
      world.coefficients,
      returns=all_sum(record.rewards, axis=-1, where=record.steps),
      scored=record.scored,
      max_return=max_return,
    )
    weights = naming.supply(
      world.aggregate,
      selected=selected,
      coefficients=coefficients,
      groups=jnp.repeat(jnp.arange(shape[0]), shape[1] * shape[2]),
      rows=rows,
      observed=observed,
      axis_name=axis_name,
    )
    made = StepEstimate(
      coefficients,
      selected=selected.reshape(shape),
      world=world_model.RowWeights(*(x.reshape(shape) for x in weights)),
    )
    return jax.lax.stop_gradient(made)

  return weigh
