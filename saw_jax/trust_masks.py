# SPDX-License-Identifier: Apache-2.0
"""Which stale tokens count in an update, and how far it steps.

What is not linear in a batch is decided once per update, of all rows and
devices before they are split, from the policy as it is then:

    keep(log_ratios, advantages, mask, *, axis_name) -> bool [B, T]
    step_size(the same) -> [], a factor of the learning rate

Each takes what it names of d = log π − log μ, to the sampler, A, and the
policy's tokens, all `[B, T]` and 0 off the mask. A token that is not kept has
advantage 0: it adds nothing, and is counted. A token is *harmful* where
A d > 0: it has been pushed that way already. No gradient flows. M2PO:
https://arxiv.org/abs/2510.01161
"""

import jax
import jax.numpy as jnp

from saw_jax import reductions
from saw_jax.types import Array, Axis


def keep_second_moment(
  log_ratios: Array,
  advantages: Array,
  mask: Array,
  *,
  budget: float = 0.04,  # τ
  axis_name: Axis = None,
) -> Array:
  """Drops the harmful tokens that are furthest off, to a mean d² of τ or less.

  All others stay. M2PO's final paper, whose loss is `importance_loss`.
  """
  harmful = advantages * log_ratios > 0
  rank, v, count = _ranked(log_ratios, harmful, axis_name)
  return mask & (~harmful | (rank < jnp.sum(jnp.cumsum(v) <= budget * count)))


def keep_second_moment_of_all(
  log_ratios: Array,
  mask: Array,
  *,
  budget: float = 0.04,
  axis_name: Axis = None,
) -> Array:
  """Drops the tokens that are furthest off, harmful or not, to a mean below τ.

  One is left. AReaL's form of M2PO, which has PPO's clip, and divides by what
  is kept.
  """
  rank, v, count = _ranked(log_ratios, mask, axis_name)
  kept = jnp.sum(jnp.cumsum(v) < budget * count)
  return mask & (rank < jnp.maximum(kept, 1))


def keep_within_bounds(
  log_ratios: Array,
  advantages: Array,
  mask: Array,
  *,
  budget: float = 0.04,
  least_low: float = 0.0,  # widths that the bounds have at least
  least_high: float = 0.0,
  axis_name: Axis = None,
) -> Array:
  """Drops what a clip leaves no gradient that is as wide as τ allows.

  Of n harmful squares v₁ ≤ v₂ ≤ … the first k with v₁ + … + v_k + (n − k) v_k
  ≥ τ n has the bounds e^∓√v_{k−1} before it; none where the mean is at most τ.
  M2PO as its authors' code, which takes each micro-batch for itself.
  """
  harmful = advantages * log_ratios > 0
  _, v, count = _ranked(log_ratios, harmful, axis_name)
  n, total = jnp.sum(jnp.isfinite(v)), jnp.cumsum(v)
  # Their code takes 1e-12 off each square, so that the one before is beyond.
  first = jnp.argmax(total + (v - 1e-12) * (n - count) >= budget * n)
  before = jnp.where(first > 0, v[jnp.maximum(first - 1, 0)], 0)
  is_free = (n == 0) | (total[jnp.maximum(n - 1, 0)] <= budget * n)
  moved = jnp.expm1(log_ratios)
  near = (moved <= least_high) & (-moved <= least_low)
  beyond = harmful & (jnp.square(log_ratios) >= before) & ~near
  return mask & (is_free | ~beyond)


def keep_likely_responses(
  log_ratios: Array, advantages: Array, mask: Array, *, delta: float = 0.5
) -> Array:
  """Drops bad responses that became too unlikely: A < 0 and −mean d > δ.

  DeepSeek-V3.2, eq. (9), arXiv 2512.02556; δ as in an example of TRL.
  """
  mean = reductions.all_mean(log_ratios, axis=-1, where=mask, keepdims=True)
  return mask & ((advantages >= 0) | (-mean <= delta))


def effective_step_size(
  log_ratios: Array,
  mask: Array,
  *,
  base: float = 1.0,
  power: float = 0.5,  # 1: the linear rule
  axis_name: Axis = None,
) -> Array:
  """Steps less where a few of B responses carry the update.

    min(1, share / base)^power,   share = (Σ w)² / (B Σ w²),   w = Πₜ π / μ

  From 1, where all ratios are equal, to 1/B. VCPO, arXiv 2602.17616
  """
  d = jnp.sum(log_ratios, axis=-1)
  rows = dict(where=jnp.any(mask, axis=-1), axis_name=axis_name)
  # The greatest is 1: no sum overflows, and the scale of w drops out.
  w = jnp.exp(d - reductions.all_max(d, **rows))
  total, squares, count = (
    reductions.all_sum(x, **rows) for x in (w, w**2, jnp.ones_like(w))
  )
  share = reductions.divide(total**2, count * squares)
  return jnp.minimum(share / base, 1.0) ** power


def _ranked(log_ratios: Array, where: Array, axis_name: Axis):
  """The rank of each token by d², the squares in rising order, and 1, 2, 3, …

  Of the tokens of all devices; those that do not matter come last, as infinity.
  """
  flat = jnp.where(where, jnp.square(log_ratios), jnp.inf).reshape(-1)
  every = flat
  if axis_name is not None:
    every = jax.lax.all_gather(flat, axis_name, tiled=True)
  order = jnp.argsort(every, stable=True)
  number = jnp.arange(every.size)
  rank = jnp.zeros_like(order).at[order].set(number)
  rank = reductions.own_rows(rank, flat.size, axis_name)
  return rank.reshape(log_ratios.shape), every[order], number + 1
