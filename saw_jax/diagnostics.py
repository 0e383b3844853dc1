# SPDX-License-Identifier: Apache-2.0
"""What is logged beside the losses, without gradient.

Arguments are those of `weighting`, `losses`, `stale_losses` and `world_model`.
ASymPO, https://arxiv.org/abs/2606.03070
"""

import chex
import jax
import jax.numpy as jnp

from saw_jax import losses, reductions, stale_losses, weighting, world_model
from saw_jax.reductions import Maximum, Ratio
from saw_jax.types import Array, Axis, Mask, Numeric, PyTree


def reward_statistics(
  rewards: Array,
  *,
  scored: Mask = None,
  minima: Numeric = 0.0,
  axis_name: Axis = None,
) -> dict[str, Array]:
  """Summarises each component of `rewards [P, G, M]`.

  `mean`, `std` (the sample's), `cv`, and `constant_groups`: the share of groups
  in which no two scored responses differ. Each of shape `[M]`.
  """
  chex.assert_rank(rewards, 3)
  options = dict(scored=scored, axis_name=axis_name, minima=minima)
  cv = weighting.coefficient_of_variation(rewards, **options)
  rewards = jax.lax.stop_gradient(rewards)
  least = reductions.all_min(rewards, axis=1, where=scored)
  constant = reductions.all_max(rewards, axis=1, where=scored) <= least
  constant = reductions.all_mean(constant, axis=0, axis_name=axis_name)
  batch = dict(axis=(0, 1), where=scored, axis_name=axis_name)
  return {
    "mean": reductions.all_mean(rewards, **batch),
    "std": reductions.all_std(rewards, ddof=1, **batch),
    "cv": cv,
    "constant_groups": constant,
  }


def clip_fractions(
  log_probs: Array,
  old_log_probs: Array,
  advantages: Array,
  completion_mask: Array,
  *,
  clip_low: float = 0.2,
  clip_high: float = 0.2,
  clipped_ratio: losses.RatioOf = losses.token_ratio,
) -> dict[str, Ratio]:
  """The shares of the tokens that a clip holds at either bound."""
  log_probs = jax.lax.stop_gradient(log_probs)
  ratio = clipped_ratio(log_probs, old_log_probs, completion_mask)
  advantages = losses.token_advantages(advantages, completion_mask)
  low = (advantages < 0) & (ratio < 1 - clip_low)
  high = (advantages > 0) & (ratio > 1 + clip_high)
  return _shares(low, high, completion_mask)


def held_fractions(
  gradient: Array, advantages: Array, completion_mask: Array
) -> dict[str, Ratio]:
  """`clip_fractions` of a loss by its gradient: a clip leaves none."""
  a, held = losses.token_advantages(advantages, completion_mask), gradient == 0
  return _shares(held & (a < 0), held & (a > 0), completion_mask)


def _shares(low: Array, high: Array, mask: Array) -> dict[str, Ratio]:
  low, high = (losses.token_mean(x.astype(float), mask) for x in (low, high))
  return {"clipped_low": low, "clipped_high": high}


def balance(
  log_probs: Array,
  advantages: Array,
  completion_mask: Array,
  *,
  floor: float = 1e-6,
) -> dict[str, Ratio | Maximum]:
  """Which side of the policy gradient is the heavier.

  With S of `sequence_nll` and A one a response `[B]`: mean S where A > 0 and
  where A < 0; Δ, the mean of A S, which is the policy gradient's loss; Σ_neg
  |A| S / Σ_pos A S; the share with A = 0; and the largest 1 / max(S, floor).
  """
  chex.assert_shape(advantages, completion_mask.shape[:1])
  log_probs = jax.lax.stop_gradient(log_probs)
  nll = stale_losses.sequence_nll(log_probs, completion_mask)
  rows = jnp.any(jnp.asarray(completion_mask, bool), axis=-1)
  advantages = reductions.select(jax.lax.stop_gradient(advantages), rows)
  advantages = advantages.astype(nll.dtype)

  def total(x, where=rows):
    return reductions.all_sum(x, where=where)

  good, bad = advantages > 0, advantages < 0
  ones, signed = jnp.ones_like(nll), advantages * nll
  return {
    "nll/positive": Ratio(total(nll, good), total(ones, good)),
    "nll/negative": Ratio(total(nll, bad), total(ones, bad)),
    "balance": Ratio(total(signed), total(ones)),
    "balance_ratio": Ratio(total(-signed, bad), total(signed, good)),
    "zero_advantage": Ratio(total(ones, rows & (advantages == 0)), total(ones)),
    "largest_inverse_nll": Maximum(
      reductions.all_max(1 / jnp.maximum(nll, floor), where=rows)
    ),
  }


def gradient_cosine(gradient: PyTree, previous: PyTree) -> Array:
  """How far two gradients agree, `⟨g, h⟩ / |g| |h|` over all parameters.

  Of consecutive updates it is near 0 where responses are fresh, and high where
  they are stale: GAC's diagnostic, arXiv 2603.01501, whose projection is not
  published. NaN, which is logged as missing, where one of them is 0.
  """
  inner = mine = theirs = jnp.zeros((), jnp.float32)
  pairs = (jax.tree.leaves(tree) for tree in (gradient, previous))
  for g, h in zip(*pairs, strict=True):
    g, h = map(reductions.at_least_float32, (g, h))
    inner += jnp.sum(g * h)
    mine += jnp.sum(jnp.square(g))
    theirs += jnp.sum(jnp.square(h))
  # Each root by itself: a product of two squares underflows early.
  norm = jnp.sqrt(mine) * jnp.sqrt(theirs)
  return jnp.where(norm > 0, reductions.divide(inner, norm), jnp.nan)


def clipped_token_share(
  log_probs: Array, observation_mask: Array, *, rho: float = 0.2
) -> Ratio:
  """The share of observation tokens that the clip takes out of the loss."""
  log_probs = reductions.select(log_probs, observation_mask)
  learned = ~world_model.is_hard(log_probs, rho)
  return losses.token_mean(learned.astype(jnp.float32), observation_mask)
