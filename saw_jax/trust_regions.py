# SPDX-License-Identifier: Apache-2.0
"""Losses that let go of a token, or pull it back, as the policy moves.

PPO's clip cuts off; these fade, pull, or guess the policy that the clip is
around. Arguments are those of `losses`, sg stops the gradient, ρ is a ratio.
Papers are arXiv numbers or addresses.
"""

import functools

import jax
import jax.numpy as jnp

from saw_jax import losses, reductions, stale_losses
from saw_jax.reductions import Ratio
from saw_jax.types import Array

# x = −A ρ without any bound, for what `trust_masks` keep.
importance_loss = functools.partial(
  losses.clipped_surrogate_loss, clip_low=jnp.inf, clip_high=jnp.inf
)


def sapo_loss(
  log_probs: Array,
  old_log_probs: Array,
  advantages: Array,
  completion_mask: Array,
  *,
  tau_pos: float = 1.0,  # where A > 0
  tau_neg: float = 1.05,
  ratio_of: losses.RatioOf = losses.token_ratio,
  aggregate: losses.Aggregate = losses.sequence_mean_token_mean,
) -> Ratio:
  """Fades a token out as its ratio leaves 1.

    x = −A (4/τ) σ(τ (ρ − 1)),   ρ = π / π_old

  The gradient with respect to log π is −A · 4 s (1 − s) ρ with s the sigmoid:
  −A at ρ = 1, as the policy gradient's, and smaller on both sides. SAPO, arXiv
  2511.20347 (there are others of that name)
  """
  ratio = ratio_of(log_probs, old_log_probs, completion_mask)
  a = losses.token_advantages(advantages, completion_mask).astype(ratio.dtype)
  tau = jnp.where(a > 0, tau_pos, tau_neg).astype(ratio.dtype)
  gate = jax.nn.sigmoid(tau * (ratio - 1))
  return aggregate(-a * 4 / tau * gate, completion_mask)


def quadratic_loss(
  log_probs: Array,
  old_log_probs: Array,
  advantages: Array,
  completion_mask: Array,
  *,
  beta: float = 0.1,  # τ in Kimi k1.5; ROLL's default
  per_response: bool = False,
  aggregate: losses.Aggregate = losses.token_mean,
) -> Ratio:
  """Pulls back in proportion to how far the policy has moved.

    x = −A log π + (β/2) d²,   d = log π − log π_old

  Least at d = A/β. The advantages are centred and not divided: `dr_grpo`.
  `per_response` it is the sum of d that is squared, an equal part to each
  token: under `sequence_mean_token_sum` that is, but for a constant,
  (A − β Σ d)² / 2β. DRO, as in verl; Kimi k1.5, eq. (3), arXiv 2501.12599
  """
  log_probs, old_log_probs = (
    reductions.select(x, completion_mask)
    for x in (log_probs, jax.lax.stop_gradient(old_log_probs))
  )
  square = jnp.square(log_probs - old_log_probs)
  if per_response:
    total = jnp.sum(log_probs - old_log_probs, axis=-1, keepdims=True)
    count = jnp.sum(completion_mask, axis=-1, keepdims=True)
    square = reductions.divide(jnp.square(total), count)
  a = losses.token_advantages(advantages, completion_mask)
  gain = a.astype(log_probs.dtype) * log_probs
  return aggregate(0.5 * beta * square - gain, completion_mask)


def near_policy(
  log_probs: Array, behave_log_probs: Array, lags: Array
) -> Array:
  """Guesses the policy that the update starts from, without a forward pass.

    log π_near = log μ + α sg(log π − log μ),   α = 1 − 1/lag, and 0 at lag 0

  `lags [B]` count versions since a response was sampled. A-3PO, 2512.06547
  """
  now, behave = map(jax.lax.stop_gradient, (log_probs, behave_log_probs))
  lags = jnp.maximum(lags.astype(now.dtype), 1)[:, None]
  return behave + (1 - 1 / lags) * (now - behave)


def a3po_loss(
  log_probs: Array,
  behave_log_probs: Array,
  lags: Array,
  advantages: Array,
  completion_mask: Array,
  *,
  clip_low: float = 0.2,
  clip_high: float = 0.2,
  correct: bool = True,  # by π_near / μ; AReaL does not by default
  aggregate: losses.Aggregate = losses.token_mean,
) -> Ratio:
  """Decoupled PPO around `near_policy`.

  The weight times the ratio is π / μ whatever α, so that without a clip it is
  PPO to the sampler, and its clip is one of (1 ± ε)^lag on that: it widens with
  the lag. At lags 0 and 1 it is PPO. A-3PO, arXiv 2512.06547
  """
  log_probs, behave = (
    reductions.select(x, completion_mask) for x in (log_probs, behave_log_probs)
  )
  near = near_policy(log_probs, behave, lags)
  return stale_losses.decoupled_ppo_loss(
    *(log_probs, near, behave if correct else near),
    *(advantages, completion_mask),
    **dict(clip_low=clip_low, clip_high=clip_high, aggregate=aggregate),
  )


def dppo_kl_loss(
  log_probs: Array,
  behave_log_probs: Array,
  advantages: Array,
  completion_mask: Array,
  *,
  bound: float = 0.2,  # δ, how far a probability may usefully move
  coefficient: float = 1e-3,  # β
  aggregate: losses.Aggregate = losses.token_mean,
) -> Ratio:
  """Drops tokens whose probability has moved far enough, and pulls all back.

    x = −A ρ keep + β (log π − log μ)²,   ρ = π / μ
    keep = 0 where A > 0 and π − μ > δ, or A < 0 and π − μ < −δ

  Rare tokens are not the first to be dropped. DPPO, arXiv 2602.04879
  """
  ratio = losses.token_ratio(log_probs, behave_log_probs, completion_mask)
  advantages = losses.token_advantages(advantages, completion_mask)
  log_probs = reductions.select(log_probs, completion_mask)
  behave = reductions.select(behave_log_probs, completion_mask)
  now, behave = map(jax.lax.stop_gradient, (log_probs, behave))
  moved = jnp.exp(now) - jnp.exp(behave)
  far = jnp.where(advantages > 0, moved > bound, moved < -bound)
  gain = jnp.where(far, 0.0, advantages * ratio)
  penalty = jnp.square(log_probs - behave)
  return aggregate(coefficient * penalty - gain, completion_mask)
