# SPDX-License-Identifier: Apache-2.0
"""Advantages that look at how the reward components of a group agree.

Arguments are those of `advantages`, and so is what holds of groups of one and
of what is not scored: a component that is not adds nothing, and a response
counts if any is. `gdpo` with whitening off and equal weights is MO-GRPO
(2509.22047). Papers are arXiv numbers or addresses.
"""

import chex
import jax
import jax.numpy as jnp

from saw_jax import advantages, reductions
from saw_jax.types import Array, Axis, Mask


def dvao(
  rewards: Array,
  weights: Array,
  *,
  scored: Mask = None,
  eps: float = 1e-6,
  ddof: int = 1,
) -> Array:
  """Weighs each component by its deviation in the group.

    w′ₖ = wₖ σₖ / Σₗ wₗ σₗ,   A = Σₖ w′ₖ (rₖ − μₖ) / σₖ
                                = Σₖ wₖ (rₖ − μₖ) / (Σₗ wₗ σₗ + eps)

  So it is GRPO on the weighted sum with another divisor, which is never smaller
  than the deviation of that sum, and with one component it is GRPO. 0 where
  nothing in a group varies. DVAO, 2605.25604, from two readings that agree; eps
  and ddof are ours.

  >>> r = jnp.array([[[0.0, 1.0], [1.0, 0.0], [2.0, 2.0]]])
  >>> print(jnp.array_str(dvao(r, jnp.ones(2)), precision=3))
  [[-0.5 -0.5  1. ]]
  """
  if rewards.shape[1] == 1:
    scores, _ = advantages.combine(rewards, weights, scored)
    return scores / (1 + eps)
  rewards = jax.lax.stop_gradient(jnp.asarray(rewards))
  chex.assert_rank(rewards, 3)
  group = dict(axis=1, where=scored)
  deviations = reductions.all_deviations(rewards, **group)
  std = reductions.all_std(rewards, ddof=ddof, keepdims=True, **group)
  total = advantages.weighted_sum(deviations, weights)
  return reductions.divide(total, advantages.weighted_sum(std, weights) + eps)


def gd2po(
  rewards: Array,
  weights: Array,
  *,
  scored: Mask = None,
  lengths: Array | None = None,
  axis_name: Axis = None,
  tau: float = 0.8,  # infinite: the hard form, without any conflict
  eps: float = 1e-6,
  least: float = 1e-8,  # what counts as a sign, and under the divisor
) -> Array:
  """Drops responses whose components pull apart, before GDPO's whitening.

    q = Z L,   conflict: some qₖ > least and some qₖ < −least
    s = Σ q / (Σ |q| + least),   keep unless conflict and |s| < tau
    A = whiten(keep · Σ Z · (kept share of the group)),   0 where dropped

  Z are the components, standardised in their group and weighted, L the
  response's tokens. Only what is kept is whitened over; what is dropped still
  counts in the loss. A group that does not vary is kept with 0, and whitening
  moves it off 0, as GDPO's does. tau = 0 is GDPO. GD2PO, 2606.16771
  """
  if lengths is None:
    raise ValueError("gd2po needs lengths")
  parts, some = advantages.normalize_components(rewards, scored, eps)
  weights = jax.lax.stop_gradient(jnp.asarray(weights, parts.dtype))
  parts = parts * weights[None, None]
  pulls = parts * lengths[..., None]
  conflict = (pulls > least).any(-1) & (pulls < -least).any(-1)
  consensus = jnp.abs(pulls.sum(-1)) / (jnp.abs(pulls).sum(-1) + least)
  keep = ~(conflict & (consensus < tau))
  if some is not None:
    keep &= some
  share = reductions.all_mean(keep, axis=-1, where=some, keepdims=True)
  total = jnp.sum(parts, axis=-1) * share
  return advantages.token_whiten(
    total, scored=keep, lengths=lengths, axis_name=axis_name
  )


def opmd(
  rewards: Array,
  weights: Array,
  *,
  scored: Mask = None,
  penalties: Array | None = None,
  tau: float = 1.0,
) -> Array:
  """Subtracts the group's soft maximum, `τ log mean exp(s / τ)`.

  As τ grows it is the mean: `dr_grpo`. A group of one keeps its reward. OPMD's
  loss is the policy gradient over 1 + τ. github.com/agentscope-ai/Trinity-RFT
  """
  scores, whole = advantages.combine(rewards, weights, scored, penalties)
  if scores.shape[-1] == 1:
    return reductions.select(scores, whole)
  group = dict(axis=-1, where=whole, keepdims=True)
  # From the greatest down, where equal scores are 0 to the last digit.
  below = scores - reductions.all_max(scores, **group)
  excess = reductions.all_mean(jnp.expm1(below / tau), **group)
  return reductions.select(below - tau * jnp.log1p(excess), whole)
