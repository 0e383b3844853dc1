# SPDX-License-Identifier: Apache-2.0
"""Policy losses, KL estimators and entropy, from log-probs of taken tokens.

A loss is a pure function of arrays that returns a `Ratio`: numerators and
denominators of micro-batches, devices and hosts add up, and one place divides.
Losses are minimised. Here and in `stale_losses` they read

- `log_probs [B, T]`: current policy's, of the taken tokens. Gradient flows to
  these (or to entropies) alone.
- `old_log_probs`, `behave_log_probs`, `ref_log_probs [B, T]`: those of the
  policy that the update starts from, of the one that sampled, and of the frozen
  reference. **A loss takes exactly those that it needs.**
- `advantages`, A: one a response `[B]` or one a token `[B, T]`.
- `completion_mask [B, T]`, m: the tokens that the policy chose. The others are
  selected away first: garbage there reaches neither value nor gradient.
- `aggregate`: how tokens are averaged, and rows, the responses with a token.

Papers are arXiv numbers; KL estimators: http://joschu.net/blog/kl-approx.html
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from saw_jax import reductions
from saw_jax.reductions import Ratio
from saw_jax.types import Array

# (token_losses [B, T], completion_mask [B, T]) -> Ratio
Aggregate = Callable[[Array, Array], Ratio]
# (log_probs [B, T], ref_log_probs [B, T]) -> [B, T]
KLEstimator = Callable[[Array, Array], Array]
# (log_probs [B, T], old_log_probs [B, T], completion_mask [B, T]) -> [B, T]
RatioOf = Callable[[Array, Array, Array], Array]

# e²⁰ = 5e8: no clip lets such a ratio act, and e⁸⁹ overflows float32, where an
# advantage of 0 would give 0 · ∞ = NaN.
_MAX_LOG_RATIO = 20.0


def token_mean(token_losses: Array, completion_mask: Array) -> Ratio:
  """Averages over the batch's tokens: `Σ m x / Σ m`. DAPO, 2503.14476.

  >>> x = jnp.array([[1.0, 2.0], [6.0, 9.0]])
  >>> print(token_mean(x, jnp.array([[True, True], [True, False]])).value())
  3.0
  """
  total = reductions.all_sum(token_losses, where=completion_mask)
  # Counted at least in float32: bfloat16 counts to 256.
  ones = jnp.ones_like(token_losses, total.dtype)
  return Ratio(total, reductions.all_sum(ones, where=completion_mask))


def sequence_mean_token_mean(
  token_losses: Array, completion_mask: Array
) -> Ratio:
  """Averages over a response's tokens, then over rows. GRPO, 2402.03300."""
  means = reductions.all_mean(token_losses, axis=-1, where=completion_mask)
  return Ratio(jnp.sum(means), _rows(means, completion_mask))


def sequence_mean_token_sum(
  token_losses: Array, completion_mask: Array
) -> Ratio:
  """Adds up a response's tokens, averages over rows. Dr. GRPO, 2503.20783."""
  total = reductions.all_sum(token_losses, where=completion_mask)
  return Ratio(total, _rows(total, completion_mask))


def sequence_mean_token_sum_const(
  token_losses: Array, completion_mask: Array, *, length: float
) -> Ratio:
  """`sequence_mean_token_sum` over a constant, e.g. the longest completion.

  No length is favoured, and the scale is that of a mean. The constant is not
  read off `T`, or padding would change the loss.
  """
  total, rows = sequence_mean_token_sum(token_losses, completion_mask)
  return Ratio(total, length * rows)


def token_ratio(
  log_probs: Array, old_log_probs: Array, completion_mask: Array
) -> Array:
  """Each token's own: `ρ_bt = π / π_old`, 1 where the mask is off. PPO."""
  log_ratio = _masked(kl_k1, log_probs, old_log_probs, completion_mask)
  return jnp.exp(jnp.clip(log_ratio, -_MAX_LOG_RATIO, _MAX_LOG_RATIO))


def sequence_ratio(
  log_probs: Array, old_log_probs: Array, completion_mask: Array
) -> Array:
  """The response's, for all of its tokens: `ρ_b = Πₜ π / π_old`. TOPR."""
  log_ratio = _masked(kl_k1, log_probs, old_log_probs, completion_mask)
  total = jnp.sum(log_ratio, axis=-1, keepdims=True)
  # No bound below: hundreds of tokens reach e⁻²⁰ together, and 0 is right.
  ratio = jnp.exp(jnp.minimum(total, _MAX_LOG_RATIO))
  return jnp.broadcast_to(ratio, log_ratio.shape)


def geometric_ratio(
  log_probs: Array, old_log_probs: Array, completion_mask: Array
) -> Array:
  """The geometric mean of a response's ratios: `s_b = ρ_b^(1/n_b)`. GSPO."""
  log_ratio = _masked(kl_k1, log_probs, old_log_probs, completion_mask)
  mean = reductions.all_mean(
    log_ratio, axis=-1, where=completion_mask, keepdims=True
  )
  ratio = jnp.exp(jnp.clip(mean, -_MAX_LOG_RATIO, _MAX_LOG_RATIO))
  return jnp.broadcast_to(ratio, log_ratio.shape)


def clipped_surrogate_loss(
  log_probs: Array,
  old_log_probs: Array,
  advantages: Array,
  completion_mask: Array,
  *,
  clip_low: float = 0.2,
  clip_high: float = 0.2,
  dual_clip: float | None = None,  # c > 1
  clipped_ratio: RatioOf = token_ratio,
  aggregate: Aggregate = token_mean,
) -> Ratio:
  """Improves on the old policy as far as the clip trusts it.

    x = max(−A ρ, −A clip(ρ, 1 − ε_low, 1 + ε_high)),   ρ = π / π_old
    x ← min(x, −A c)   where A < 0, with a dual clip

  From a ratio of c on, a bad token is not pushed further down. DAPO is
  `clip_high=0.28`; Dr. GRPO changes `aggregate` and the advantages.
  PPO, 1707.06347; the dual clip, 1912.09729

  >>> l, old = jnp.log(jnp.array([[0.6]])), jnp.log(jnp.array([[0.4]]))
  >>> mask = jnp.array([[True]])
  >>> loss = clipped_surrogate_loss(l, old, jnp.array([1.0]), mask)
  >>> print(f"{loss.value():.3f}")  # the ratio 1.5 counts as 1.2
  -1.200
  """
  ratio = clipped_ratio(log_probs, old_log_probs, completion_mask)
  cost = -token_advantages(advantages, completion_mask).astype(ratio.dtype)
  held = jnp.clip(ratio, 1 - clip_low, 1 + clip_high)
  token_losses = jnp.maximum(cost * ratio, cost * held)
  if dual_clip is not None:
    bounded = jnp.minimum(token_losses, cost * dual_clip)
    token_losses = jnp.where(cost > 0, bounded, token_losses)
  return aggregate(token_losses, completion_mask)


def policy_gradient_loss(
  log_probs: Array,
  advantages: Array,
  completion_mask: Array,
  *,
  aggregate: Aggregate = token_mean,
) -> Ratio:
  """REINFORCE, whoever sampled: `x = −A log π`. doi.org/10.1007/BF00992696"""
  log_probs = reductions.select(log_probs, completion_mask)
  cost = -token_advantages(advantages, completion_mask).astype(log_probs.dtype)
  return aggregate(cost * log_probs, completion_mask)


def entropy_loss(
  entropies: Array, completion_mask: Array, *, aggregate: Aggregate = token_mean
) -> Ratio:
  """Rewards an undecided policy: `x = −H(π)`, in nats. A3C, 1602.01783."""
  entropies = reductions.select(entropies, completion_mask)
  return aggregate(-entropies, completion_mask)


def kl_k1(log_probs: Array, ref_log_probs: Array) -> Array:
  """Estimates the KL of a token: `k₁ = log π − log π_ref`.

  Unbiased, of high variance, often negative. Its *gradient* has mean 0 under
  the policy, so it belongs in the reward.
  """
  chex.assert_equal_shape([log_probs, ref_log_probs])
  ref_log_probs = jax.lax.stop_gradient(ref_log_probs)
  return reductions.at_least_float32(log_probs) - reductions.at_least_float32(
    ref_log_probs
  )


def kl_k2(log_probs: Array, ref_log_probs: Array) -> Array:
  """Estimates the KL of a token: `k₂ = (log π − log π_ref)² / 2`.

  Biased, of low variance. Its gradient is, on average, that of the divergence.
  """
  return 0.5 * jnp.square(kl_k1(log_probs, ref_log_probs))


def kl_k3(log_probs: Array, ref_log_probs: Array) -> Array:
  """Estimates the KL of a token: `k₃ = π_ref/π − log(π_ref/π) − 1`.

  Unbiased, never negative. Its gradient is, on average, that of KL(π_ref, π).
  """
  log_ratio = -kl_k1(log_probs, ref_log_probs)
  # exp(d) - 1 would lose all digits at the small d of early training.
  return jnp.expm1(log_ratio) - log_ratio


def kl_loss(
  log_probs: Array,
  ref_log_probs: Array,
  completion_mask: Array,
  *,
  estimator: KLEstimator = kl_k3,
  aggregate: Aggregate = token_mean,
) -> Ratio:
  """Averages a KL estimate, for the loss. GRPO, eq. (4), 2402.03300."""
  estimates = _masked(estimator, log_probs, ref_log_probs, completion_mask)
  return aggregate(estimates, completion_mask)


def kl_penalty(
  log_probs: Array,
  ref_log_probs: Array,
  completion_mask: Array,
  *,
  estimator: KLEstimator = kl_k1,
  coefficient: float = 1.0,  # β, what a nat costs in units of reward
) -> Array:
  """Adds up a response's KL estimate, `β Σ_t m k`, for the reward. `[B]`.

  No gradient flows. RLHF, 2203.02155
  """
  estimates = _masked(estimator, log_probs, ref_log_probs, completion_mask)
  total = reductions.all_sum(estimates, axis=-1, where=completion_mask)
  return coefficient * jax.lax.stop_gradient(total)


def token_advantages(advantages: Array, completion_mask: Array) -> Array:
  """Each token's advantage, without gradient; 0 where the mask is off."""
  advantages = jnp.asarray(jax.lax.stop_gradient(advantages))
  if advantages.ndim == 1:
    chex.assert_shape(advantages, completion_mask.shape[:1])
    advantages = jnp.broadcast_to(advantages[:, None], completion_mask.shape)
  return reductions.select(advantages, completion_mask)


def _rows(like: Array, completion_mask: Array) -> Array:
  """The number of responses that have a token."""
  rows = jnp.any(jnp.asarray(completion_mask, bool), axis=-1)
  return jnp.sum(rows, dtype=like.dtype)


def _masked(estimator: KLEstimator, log_probs, others, mask) -> Array:
  """An estimate of each token, that of two zeros where the mask is off."""
  chex.assert_rank([log_probs, mask], 2)
  log_probs, others = (reductions.select(x, mask) for x in (log_probs, others))
  return estimator(log_probs, others)
