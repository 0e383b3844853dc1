# SPDX-License-Identifier: Apache-2.0
"""How much each reward component counts: SAW and what it is compared with.

A weighting is `weights(rewards, *, scored=None, axis_name=None) -> [M]`, once
its hyper-parameters are bound with `functools.partial`. Statistics are over the
whole rollout batch, each response counting once.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from saw_jax import reductions
from saw_jax.types import Array, Numeric, PyTree

Weighting = Callable[..., Array]


class RewardStatistics(NamedTuple):
  """What is worth logging about a batch of rewards, per component."""

  mean: Array  # [M], of the rewards as they came
  std: Array  # [M], the sample's
  cv: Array  # [M], coefficient of variation above the minimum
  constant_groups: Array  # [M], share of the groups without any spread


def coefficient_of_variation(
  rewards: Array,
  *,
  scored: Array | None = None,
  minima: Numeric = 0.0,
  delta: Numeric = 1e-8,
  mean_eps: Numeric = 1e-8,
  axis_name: str | None = None,
) -> Array:
  """Measures how much each component still varies, relative to its mean.

  The least reward that is possible (not the least in the batch) is moved to 0
  first, since the coefficient of a signed reward explodes near mean 0. For a
  reward in {0, 1} with success rate p it is about √((1 − p) / p).

    CVₘ = σₘ / (|μₘ| + ε),   μₘ, σₘ of r′ₘ = rₘ − minₘ + δ

  Args:
    rewards: reward of each response in each component. Shape `[..., M]`.
    scored: mask of the rewards that exist. The shape of `rewards`.
    minima: least value that a component can take. Scalar or shape `[M]`.
    delta: δ, added to the shifted rewards.
    mean_eps: ε, added to their mean.
    axis_name: device axis that the responses are split over.

  Returns:
    The coefficients, with their gradient stopped; 0 for a component that does
    not vary, or of which one response at most is scored. Shape `[M]`.

  References:
    SAW, https://arxiv.org/abs/2606.07705

  >>> r = jnp.array([[0.0, 1.0], [2.0, 1.0]])  # the second component is flat
  >>> print(jnp.array_str(coefficient_of_variation(r), precision=3))
  [1.414 0.   ]
  """
  rewards, scored = _flatten(rewards, scored)
  num_components = rewards.shape[-1]
  minima = jnp.broadcast_to(jnp.asarray(minima, rewards.dtype), num_components)
  over = dict(axis=0, where=scored, axis_name=axis_name)
  mean = reductions.all_mean(rewards - minima[None] + delta, **over)
  std = reductions.all_std(rewards, ddof=1, **over)
  return reductions.divide(std, jnp.abs(mean) + mean_eps)


def saw_weights(
  rewards: Array,
  *,
  scored: Array | None = None,
  minima: Numeric = 0.0,
  priorities: Numeric = 1.0,
  delta: Numeric = 1e-8,
  mean_eps: Numeric = 1e-8,
  sum_eps: Numeric = 0.0,
  flat_weight: Numeric = 1.0,
  total: Numeric | None = None,
  axis_name: str | None = None,
) -> Array:
  """Weights each component by its relative coefficient of variation.

  A component whose rewards have become alike says little about which response
  was better, so its weight falls; one that is rarely satisfied gets most.

    wₘ = αₘ · total · CVₘ / (Σₖ CVₖ + ε),   wₘ = αₘ · flat_weight if Σₖ CVₖ ≤ δ

  The defaults are the paper's form with weights that sum to M, which its text
  uses for GDPO and its code for both. Only ratios of weights matter to either
  estimator. The released code is `delta=0, sum_eps=1e-8, flat_weight=0` with
  the minima (-3, 0): it shifts without δ, bounds the sum, and gives components
  that are all flat no weight.

  Args:
    rewards: reward of each response in each component. Shape `[..., M]`,
      normally `[P, G, M]`.
    scored: mask of the rewards that exist. The shape of `rewards`.
    minima: least value that a component can take. Scalar or shape `[M]`.
    priorities: α, fixed importance of the components. Scalar or shape `[M]`.
    delta: δ, added to the shifted rewards, and the sum of coefficients up to
      which the components count as all flat.
    mean_eps: added to the mean under the coefficient.
    sum_eps: ε, added to the sum of the coefficients.
    flat_weight: what each component gets when all are flat.
    total: sum of the weights before priorities; `None` for M.
    axis_name: device axis that the responses are split over.

  Returns:
    The weights, with their gradient stopped. Shape `[M]`.

  References:
    SAW, Algorithm 1. https://arxiv.org/abs/2606.07705

  >>> r = jnp.array([[0.0, 1.0], [2.0, 1.0]])  # the second component is flat
  >>> print(jnp.array_str(saw_weights(r), precision=3))
  [2. 0.]
  """
  cv = coefficient_of_variation(
    rewards,
    scored=scored,
    minima=minima,
    delta=delta,
    mean_eps=mean_eps,
    axis_name=axis_name,
  )
  weights = _proportional(
    cv, flat_below=delta, sum_eps=sum_eps, flat_weight=flat_weight, total=total
  )
  return weights * jnp.broadcast_to(
    jnp.asarray(priorities, weights.dtype), weights.shape
  )


def equal_weights(
  rewards: Array,
  *,
  scored: Array | None = None,
  axis_name: str | None = None,
) -> Array:
  """Gives each component weight 1: plain GRPO and GDPO.

  Args:
    rewards: reward of each response in each component. Shape `[..., M]`.
    scored: not read.
    axis_name: not read.

  Returns:
    Ones. Shape `[M]`.

  References:
    GDPO, https://arxiv.org/abs/2601.05242

  >>> print(equal_weights(jnp.zeros((5, 2))))
  [1. 1.]
  """
  return static_weights(rewards, values=1.0, scored=scored, axis_name=axis_name)


def static_weights(
  rewards: Array,
  *,
  values: Numeric,
  scored: Array | None = None,
  axis_name: str | None = None,
) -> Array:
  """Gives the components fixed weights.

  With SAW's weights averaged over a run, this is the control that tells
  whether it matters *when* a component counts.

  Args:
    rewards: reward of each response in each component. Shape `[..., M]`.
    values: the weights. Scalar or shape `[M]`.
    scored: not read.
    axis_name: not read.

  Returns:
    The weights. Shape `[M]`.

  References:
    GDPO, eq. (7). https://arxiv.org/abs/2601.05242

  >>> print(static_weights(jnp.zeros((5, 2)), values=jnp.array([1.5, 0.5])))
  [1.5 0.5]
  """
  del scored, axis_name
  dtype = reductions.at_least_float32(rewards).dtype
  return jnp.broadcast_to(jnp.asarray(values, dtype), rewards.shape[-1:])


def inverse_saw_weights(
  rewards: Array,
  *,
  scored: Array | None = None,
  minima: Numeric = 0.0,
  delta: Numeric = 1e-8,
  mean_eps: Numeric = 1e-8,
  axis_name: str | None = None,
) -> Array:
  """Turns SAW around: the more a component varies, the less it counts.

  A control. If it does as well as SAW, the direction of SAW is not what helps.

    wₘ = M · CVₘ⁻¹ / Σₖ CVₖ⁻¹   over the components that vary

  Args:
    rewards: reward of each response in each component. Shape `[..., M]`.
    scored: mask of the rewards that exist. The shape of `rewards`.
    minima: least value that a component can take. Scalar or shape `[M]`.
    delta: added to the shifted rewards.
    mean_eps: added to the mean under the coefficient.
    axis_name: device axis that the responses are split over.

  Returns:
    The weights, with their gradient stopped: 0 for a flat component, 1 each if
    all are flat. Shape `[M]`.

  References:
    SAW, https://arxiv.org/abs/2606.07705

  >>> r = jnp.array([[0.0, 1.0], [2.0, 3.0]])  # coefficients √2 and √2 / 2
  >>> print(jnp.array_str(inverse_saw_weights(r), precision=3))
  [0.667 1.333]
  """
  cv = coefficient_of_variation(
    rewards,
    scored=scored,
    minima=minima,
    delta=delta,
    mean_eps=mean_eps,
    axis_name=axis_name,
  )
  return _proportional(reductions.divide(jnp.ones_like(cv), cv))


def deviation_weights(
  rewards: Array,
  *,
  scored: Array | None = None,
  axis_name: str | None = None,
) -> Array:
  """Weights each component by its standard deviation alone.

  A control: SAW without its division by the mean. It depends on the unit of a
  reward, and not on where the reward is 0.

    wₘ = M · σₘ / Σₖ σₖ

  Args:
    rewards: reward of each response in each component. Shape `[..., M]`.
    scored: mask of the rewards that exist. The shape of `rewards`.
    axis_name: device axis that the responses are split over.

  Returns:
    The weights, with their gradient stopped; 1 each if all components are
    flat. Shape `[M]`.

  References:
    SAW, https://arxiv.org/abs/2606.07705

  >>> w = deviation_weights(jnp.array([[0.0, 5.0], [3.0, 6.0]]))
  >>> print(jnp.array_str(w, precision=3))
  [1.5 0.5]
  """
  rewards, scored = _flatten(rewards, scored)
  return _proportional(
    reductions.all_std(
      rewards, axis=0, where=scored, ddof=1, axis_name=axis_name
    )
  )


def group_saw_weights(
  rewards: Array,
  *,
  scored: Array | None = None,
  minima: Numeric = 0.0,
  delta: Numeric = 1e-8,
  mean_eps: Numeric = 1e-8,
  axis_name: str | None = None,
) -> Array:
  """Weights each component by the mean of its groups' coefficients.

  An ablation of SAW, whose deviation also holds the differences between
  prompts. Here only responses to one prompt are compared, as in the advantages.

    wₘ ∝ 1/P Σₚ CVₘ(group p)

  Args:
    rewards: reward of each response in each component. Shape `[P, G, M]`.
    scored: mask of the rewards that exist. The shape of `rewards`.
    minima: least value that a component can take. Scalar or shape `[M]`.
    delta: added to the shifted rewards.
    mean_eps: added to the mean under the coefficient.
    axis_name: device axis that the prompts are split over.

  Returns:
    The weights, with their gradient stopped. They sum to M, and are 1 each if
    no group varies in any component. Shape `[M]`.

  References:
    SAW, https://arxiv.org/abs/2606.07705

  >>> r = jnp.array([[[0.0, 1.0], [2.0, 1.0]], [[0.0, 3.0], [2.0, 3.0]]])
  >>> print(jnp.array_str(group_saw_weights(r), precision=3))
  [2. 0.]
  """
  chex.assert_rank(rewards, 3)
  if scored is None:
    scored = jnp.ones(rewards.shape, bool)

  def cv(group_rewards: Array, group_scored: Array) -> Array:
    return coefficient_of_variation(
      group_rewards,
      scored=group_scored,
      minima=minima,
      delta=delta,
      mean_eps=mean_eps,
    )

  cv_PM = jax.vmap(cv)(jnp.asarray(rewards), jnp.asarray(scored))
  cv = reductions.all_mean(cv_PM, axis=0, axis_name=axis_name)
  return _proportional(cv, flat_below=delta)


def floored_weights(
  rewards: Array,
  *,
  scored: Array | None = None,
  weighting: Weighting = saw_weights,
  floor: Numeric = 0.1,
  axis_name: str | None = None,
) -> Array:
  """Mixes a weighting with equal weights, so that no component is dropped.

    w′ₘ = (1 − φ) wₘ + φ · 1/M Σₖ wₖ

  Args:
    rewards: reward of each response in each component. Shape `[..., M]`.
    scored: mask of the rewards that exist. The shape of `rewards`.
    weighting: what is mixed, with its own hyper-parameters bound.
    floor: φ, the least share of an equal weight. In [0, 1].
    axis_name: device axis that the responses are split over.

  Returns:
    The weights, whose sum is that of `weighting`. Shape `[M]`.

  References:
    An ablation that SAW lacks. https://arxiv.org/abs/2606.07705

  >>> r = jnp.array([[0.0, 1.0], [2.0, 1.0]])  # SAW gives 2 and 0
  >>> print(jnp.array_str(floored_weights(r, floor=0.5), precision=3))
  [1.5 0.5]
  """
  weights = weighting(rewards, scored=scored, axis_name=axis_name)
  return (1 - floor) * weights + floor * jnp.mean(weights)


def gradient_weights(
  weights: Array,
  gram: Array,
  *,
  learning_rate: float = 1e-6,
  temperature: float = 1e-5,
) -> Array:
  """Moves weight to components whose gradient agrees with the others'.

  The baseline that SAW is compared with. Its weights persist over steps.

    w ← softmax(log w + s),   sₘ = η Σₗ ⟨gₘ, gₗ⟩ / τ

  Args:
    weights: of the step before, summing to 1. Shape `[M]`.
    gram: inner products of the components' gradients. Shape `[M, M]`.
    learning_rate: η, that of the optimizer.
    temperature: τ.

  Returns:
    The weights, summing to 1, with their gradient stopped; the caller
    multiplies by M. Shape `[M]`.

  References:
    Lu et al., https://arxiv.org/abs/2509.11452

  >>> gram = jnp.log(jnp.array([[3.0, 1.0], [1.0, 1.0]]))
  >>> w = jnp.array([0.5, 0.5])
  >>> w = gradient_weights(w, gram, learning_rate=1.0, temperature=1.0)
  >>> print(jnp.array_str(w, precision=3))
  [0.75 0.25]
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

  Args:
    gradients: gradient of each component's loss, stacked: each leaf has a
      leading axis of size M.
    max_norm: greatest norm of a gradient, over all leaves.

  Returns:
    The inner products, with their gradient stopped. Shape `[M, M]`.

  Raises:
    ValueError: there are no leaves.

  References:
    Lu et al., https://arxiv.org/abs/2509.11452

  >>> print(gram_of_clipped({"w": jnp.array([[3.0, 4.0], [0.0, 0.5]])}))
  [[1.   0.4 ]
   [0.4  0.25]]
  """
  leaves = jax.tree.leaves(gradients)
  if not leaves:
    raise ValueError("gram_of_clipped needs at least one array")
  gram = 0.0
  for leaf in leaves:
    flat = reductions.at_least_float32(jax.lax.stop_gradient(leaf))
    flat = flat.reshape(flat.shape[0], math.prod(flat.shape[1:]))
    # The default precision of a product is bfloat16 on some devices.
    gram += jnp.matmul(flat, flat.T, precision=jax.lax.Precision.HIGHEST)
  norm = jnp.sqrt(jnp.diagonal(gram))
  scale = jnp.where(norm > max_norm, reductions.divide(max_norm, norm), 1.0)
  return gram * scale[:, None] * scale[None, :]


def reward_statistics(
  rewards: Array,
  *,
  scored: Array | None = None,
  minima: Numeric = 0.0,
  delta: Numeric = 1e-8,
  mean_eps: Numeric = 1e-8,
  axis_name: str | None = None,
) -> RewardStatistics:
  """Summarises each component of a batch, for the log.

  Args:
    rewards: reward of each response in each component. Shape `[P, G, M]`.
    scored: mask of the rewards that exist. The shape of `rewards`.
    minima: least value that a component can take. Scalar or shape `[M]`.
    delta: added to the shifted rewards under the coefficient.
    mean_eps: added to their mean under the coefficient.
    axis_name: device axis that the prompts are split over.

  Returns:
    Mean, sample deviation, coefficient of variation, and the share of groups in
    which the component gives no signal: no two scored responses differ. Each of
    shape `[M]`, with its gradient stopped.

  References:
    SAW, https://arxiv.org/abs/2606.07705

  >>> r = jnp.array([[[0.0], [2.0]], [[1.0], [1.0]]])
  >>> print(reward_statistics(r).constant_groups)
  [0.5]
  """
  chex.assert_rank(rewards, 3)
  cv = coefficient_of_variation(
    rewards,
    scored=scored,
    minima=minima,
    delta=delta,
    mean_eps=mean_eps,
    axis_name=axis_name,
  )
  rewards = reductions.at_least_float32(jax.lax.stop_gradient(rewards))
  groups = dict(axis=1, where=scored)
  constant = reductions.all_max(rewards, **groups) <= reductions.all_min(
    rewards, **groups
  )
  batch = dict(axis=(0, 1), where=scored, axis_name=axis_name)
  return RewardStatistics(
    mean=reductions.all_mean(rewards, **batch),
    std=reductions.all_std(rewards, ddof=1, **batch),
    cv=cv,
    constant_groups=reductions.all_mean(constant, axis=0, axis_name=axis_name),
  )


def _flatten(
  rewards: Array, scored: Array | None
) -> tuple[Array, Array | None]:
  """Responses by components, at least in float32, with no gradient."""
  if scored is not None:
    chex.assert_equal_shape([rewards, scored])
    scored = jnp.asarray(scored).reshape(-1, scored.shape[-1])
  rewards = reductions.at_least_float32(jax.lax.stop_gradient(rewards))
  return rewards.reshape(-1, rewards.shape[-1]), scored


def _proportional(
  scores: Array,
  *,
  flat_below: Numeric = 0.0,
  sum_eps: Numeric = 0.0,
  flat_weight: Numeric = 1.0,
  total: Numeric | None = None,
) -> Array:
  """Scales scores to a sum; `flat_weight` each if there is nothing to scale."""
  if total is None:
    total = scores.shape[-1]
  score = jnp.sum(scores)
  weights = total * reductions.divide(scores, score + sum_eps)
  return jnp.where(score <= flat_below, flat_weight, weights)
