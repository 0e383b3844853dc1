# SPDX-License-Identifier: Apache-2.0
"""How much each reward component counts: SAW and what it is compared with.

A weighting is `weights(rewards, *, scored=None, axis_name=None) -> [M]` once
its options are bound. `rewards` are `[..., M]`, normally `[P, G, M]`; `scored`
is the mask of those that exist, of the same shape; `axis_name` is the device
axis that responses are split over. Statistics are over the whole rollout batch,
each response counting once. Weights carry no gradient.
SAW: https://arxiv.org/abs/2606.07705
"""

import math
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from saw_jax import reductions
from saw_jax.types import Array, Axis, Mask, Numeric, PyTree

# (rewards, *, scored, minima, delta, mean_eps, axis_name) -> [M]
Statistic = Callable[..., Array]


def coefficient_of_variation(
  rewards: Array,
  *,
  scored: Mask = None,
  minima: Numeric = 0.0,
  delta: Numeric = 1e-8,
  mean_eps: Numeric = 1e-8,
  axis_name: Axis = None,
) -> Array:
  """How much each component still varies, relative to its mean. Shape `[M]`.

  The least reward that is possible (not the least in the batch) is moved to 0
  first, since the coefficient of a signed reward explodes near mean 0. For a
  reward in {0, 1} with success rate p it is about √((1 − p) / p).

    CVₘ = σₘ / (|μₘ| + mean_eps),   μₘ, σₘ of r′ₘ = rₘ − minimaₘ + delta

  `minima`, scalar or `[M]`, are the least values that components *can* take. 0
  for one that does not vary, or of which one response at most is scored.
  """
  std = deviation(rewards, scored=scored, axis_name=axis_name)
  rewards, scored = _flatten(rewards, scored)
  minima = jnp.broadcast_to(jnp.asarray(minima, rewards.dtype), std.shape)
  shifted = rewards - minima[None] + delta
  mean = reductions.all_mean(shifted, axis=0, where=scored, axis_name=axis_name)
  return reductions.divide(std, jnp.abs(mean) + mean_eps)


def inverse_coefficient(rewards: Array, **measured: Any) -> Array:
  """A control: one over the coefficient of variation, 0 where it is 0."""
  cv = coefficient_of_variation(rewards, **measured)
  return reductions.divide(jnp.ones_like(cv), cv)


def group_coefficient(
  rewards: Array, *, scored: Mask = None, axis_name: Axis = None, **rest: Any
) -> Array:
  """The groups' mean coefficient: prompts are not compared with each other."""
  chex.assert_rank(rewards, 3)
  scored = jnp.ones(rewards.shape, bool) if scored is None else scored
  cv_PM = jax.vmap(lambda r, s: coefficient_of_variation(r, scored=s, **rest))(
    rewards, scored
  )
  return reductions.all_mean(cv_PM, axis=0, axis_name=axis_name)


def deviation(
  rewards: Array, *, scored: Mask = None, axis_name: Axis = None, **unread: Any
) -> Array:
  """The standard deviation alone: SAW without its division by the mean."""
  x, where = _flatten(rewards, scored)
  return reductions.all_std(x, ddof=1, axis=0, where=where, axis_name=axis_name)


def saw_weights(
  rewards: Array,
  *,
  scored: Mask = None,
  minima: Numeric = 0.0,
  priorities: Numeric = 1.0,  # α, fixed importance; scalar or [M]
  delta: Numeric = 1e-8,  # also the sum up to which all count as flat
  mean_eps: Numeric = 1e-8,
  sum_eps: Numeric = 0.0,
  flat_weight: Numeric = 1.0,
  total: Numeric | None = None,  # None: M
  axis_name: Axis = None,
  statistic: Statistic = coefficient_of_variation,
) -> Array:
  """Weights each component by its relative coefficient of variation.

  A component whose rewards have become alike says little about which response
  was better, so its weight falls; one that is rarely satisfied gets most.

    wₘ = αₘ · total · CVₘ / (Σₖ CVₖ + sum_eps)
    wₘ = αₘ · flat_weight   if Σₖ CVₖ ≤ delta

  The defaults are the paper's form with weights that sum to M, which its text
  uses for GDPO and its code for both; only their ratios matter to either. The
  released code is `delta=0, sum_eps=1e-8, flat_weight=0` with the minima
  (-3, 0). A control measures another `statistic`.
  SAW, Algorithm 1. https://arxiv.org/abs/2606.07705

  >>> r = jnp.array([[0.0, 1.0], [2.0, 1.0]])  # the second component is flat
  >>> print(jnp.array_str(saw_weights(r), precision=3))
  [2. 0.]
  """
  options = dict(minima=minima, delta=delta, mean_eps=mean_eps)
  batch = dict(scored=scored, axis_name=axis_name)
  measured = statistic(rewards, **options, **batch)
  sum_ = jnp.sum(measured)
  total = measured.shape[-1] if total is None else total
  weights = total * reductions.divide(measured, sum_ + sum_eps)
  weights = jnp.where(sum_ <= delta, flat_weight, weights)
  priorities = jnp.asarray(priorities, weights.dtype)
  return weights * jnp.broadcast_to(priorities, weights.shape)


def static_weights(
  rewards: Array,
  *,
  values: Numeric,  # scalar or [M]
  scored: Mask = None,
  axis_name: Axis = None,
) -> Array:
  """Gives the components fixed weights: GDPO, eq. (7), arXiv 2601.05242."""
  dtype = reductions.at_least_float32(rewards).dtype
  return jnp.broadcast_to(jnp.asarray(values, dtype), rewards.shape[-1:])


def equal_weights(
  rewards: Array, *, scored: Mask = None, axis_name: Axis = None
) -> Array:
  """Gives each component weight 1: plain GRPO and GDPO."""
  return static_weights(rewards, values=1.0, scored=scored, axis_name=axis_name)


def saturation_weights(
  rewards: Array,
  *,
  scored: Mask = None,
  minima: Numeric = 0.0,
  maxima: Numeric = 1.0,
  priorities: Numeric = 1.0,
  gamma: Numeric = 0.5,
  axis_name: Axis = None,
) -> Array:
  """Takes weight from a component as its mean nears the best that it can be.

    wₘ = αₘ (1 − sₘ)^γ,   sₘ = (μₘ − minimaₘ) / (maximaₘ − minimaₘ) in [0, 1]

  For a reward in {0, 1} with success rate p it is (1 − p)^γ, and tends to 1
  where SAW's coefficient grows without bound. γ = 0 is GDPO. The weights do not
  sum to M: what is whitened does not see their scale. A component that nobody
  scored counts as unsaturated. SA-MRPO (2026), from the paper's text.

  >>> r = jnp.array([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
  >>> print(jnp.array_str(saturation_weights(r), precision=3))
  [0.    0.707]
  """
  rewards, scored = _flatten(rewards, scored)
  mean, minima, maxima, priorities = (
    jnp.broadcast_to(jnp.asarray(x, rewards.dtype), rewards.shape[-1:])
    for x in (
      reductions.all_mean(rewards, axis=0, where=scored, axis_name=axis_name),
      *(minima, maxima, priorities),
    )
  )
  ones = jnp.ones_like(rewards)
  seen = reductions.all_sum(ones, axis=0, where=scored, axis_name=axis_name) > 0
  saturation = reductions.divide(mean - minima, maxima - minima)
  saturation = jnp.clip(jnp.where(seen, saturation, 0), 0, 1)
  return priorities * (1 - saturation) ** gamma


def scheduled_weights(
  rewards: Array,
  step: Array,
  *,
  steps: Array,  # [K], rising
  values: Array,  # [K, M]
  scored: Mask = None,
  axis_name: Axis = None,
) -> Array:
  """Weights of the step alone: linear between anchors, constant outside.

  What claims to know the stage of training is compared with this: the weights
  that it had on average at each step, without a look at the rewards. A
  `ValueError` for anchors that do not rise or are not of M components.

  >>> r, anchors = jnp.ones((1, 2)), jnp.array([[2.0, 0.0], [1.0, 1.0]])
  >>> print(scheduled_weights(r, 50, steps=[0, 100], values=anchors))
  [1.5 0.5]
  """
  steps, values = (np.asarray(x, np.float64) for x in (steps, values))
  wanted = (*steps.shape, rewards.shape[-1])
  if not steps.size or (np.diff(steps) <= 0).any() or values.shape != wanted:
    raise ValueError(
      f"a schedule has rising steps [K] and values [K, {rewards.shape[-1]}], "
      f"not {steps.tolist()} and {values.tolist()}"
    )
  dtype = reductions.at_least_float32(rewards).dtype
  step, steps, values = (jnp.asarray(x, dtype) for x in (step, steps, values))
  return jnp.stack([jnp.interp(step, steps, column) for column in values.T])


def dual_weights(
  rewards: Array,
  step: Array,
  persistent: Array,
  *,
  targets: Array,  # [M]; NaN, or None in a config: an objective
  rate: float = 0.5,
  most: float = 10.0,
  scored: Mask = None,
  axis_name: Axis = None,
) -> Array:
  """Raises the weight of a reward whose mean is below its target: a multiplier.

    λₘ ← clip(λₘ + rate (targetₘ − μₘ), 0, most),   λₘ = 0 before step 0

  An objective has 1. With r = 1 − C it is the dual ascent of constrained GRPO
  on costs C of rate 1 − target (2602.05863), whose advantage is MO-GRPO's; the
  step, its rate and its bound are ours. Where all of a group fall short alike,
  no λ gives a gradient. `persistent [M]` are the weights of the step before.

  >>> r, before = jnp.array([[2.0, 0.0], [3.0, 1.0]]), jnp.array([1.0, 0.25])
  >>> print(dual_weights(r, 7, before, targets=[jnp.nan, 1.0]))
  [1.  0.5]
  """
  rewards, scored = _flatten(rewards, scored)
  targets = jnp.asarray(targets, rewards.dtype)
  chex.assert_equal_shape([rewards[0], persistent, targets])
  short = jnp.nan_to_num(targets)[None] - rewards  # 0 if nobody is scored
  short = reductions.all_mean(short, axis=0, where=scored, axis_name=axis_name)
  moved = jnp.where(step == 0, 0, persistent) + rate * short
  return jnp.where(jnp.isnan(targets), 1, jnp.clip(moved, 0, most))


def gradient_weights(
  weights: Array,
  gram: Array,
  *,
  learning_rate: float = 1e-6,  # η, that of the optimizer
  temperature: float = 1e-5,  # τ
) -> Array:
  """Moves weight to components whose gradient agrees with the others'.

  Weights `[M]` persist over steps and sum to 1; `gram` is of `gram_of_clipped`.

    w ← softmax(log w + s),   sₘ = η Σₗ ⟨gₘ, gₗ⟩ / τ

  Lu et al., https://arxiv.org/abs/2509.11452
  """
  chex.assert_rank(weights, 1)
  chex.assert_shape(gram, (weights.shape[0], weights.shape[0]))
  weights = reductions.at_least_float32(jax.lax.stop_gradient(weights))
  gram = reductions.at_least_float32(jax.lax.stop_gradient(gram))
  gain = learning_rate * jnp.sum(gram, axis=-1) / temperature
  return jax.nn.softmax(jnp.log(weights) + gain)


def gram_of_clipped(gradients: PyTree, *, max_norm: float = 1.0) -> Array:
  """Multiplies the components' gradients with each other, each clipped first.

    ⟨c(gₘ), c(gₗ)⟩,   c(g) = g · min(1, max_norm / |g|)

  Each leaf of `gradients` has a leading axis of size M.
  """
  leaves, gram = jax.tree.leaves(jax.lax.stop_gradient(gradients)), 0.0
  if not leaves:
    raise ValueError("gram_of_clipped needs at least one array")
  for leaf in map(reductions.at_least_float32, leaves):
    flat = leaf.reshape(leaf.shape[0], math.prod(leaf.shape[1:]))
    # The default precision of a product is bfloat16 on some devices.
    gram += jnp.matmul(flat, flat.T, precision=jax.lax.Precision.HIGHEST)
  norm = jnp.sqrt(jnp.diagonal(gram))
  scale = jnp.where(norm > max_norm, reductions.divide(max_norm, norm), 1.0)
  return gram * scale[:, None] * scale[None, :]


def _flatten(rewards: Array, scored: Mask) -> tuple[Array, Mask]:
  """Responses by components, at least in float32, with no gradient."""
  if scored is not None:
    chex.assert_equal_shape([rewards, scored])
    scored = jnp.asarray(scored).reshape(-1, scored.shape[-1])
  rewards = reductions.at_least_float32(jax.lax.stop_gradient(rewards))
  return rewards.reshape(-1, rewards.shape[-1]), scored
