# SPDX-License-Identifier: Apache-2.0
"""Policy losses, KL estimators and entropy, from log-probs of taken tokens.

A loss is a pure function of arrays that returns a `Ratio`: numerators and
denominators of micro-batches, devices and hosts add up, and one place divides.
How tokens and sequences are averaged is an argument that is a function. What
the mask excludes is selected away before any arithmetic, so that garbage there
reaches neither the value nor the gradient. Losses are minimised.
"""

from collections.abc import Callable
from typing import NamedTuple

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


class ClipFractions(NamedTuple):
  """Shares of the tokens that the clip takes out of the gradient."""

  low: Ratio  # advantage below 0, ratio below 1 - clip_low
  high: Ratio  # advantage above 0, ratio above 1 + clip_high


def token_mean(token_losses: Array, completion_mask: Array) -> Ratio:
  """Averages over the completion tokens of the batch.

    Σ_b Σ_t m x / Σ_b Σ_t m

  Args:
    token_losses: x, loss of each token. Shape `[B, T]`.
    completion_mask: m, the tokens that the policy chose. Shape `[B, T]`.

  Returns:
    The sum and the number of tokens. Gradient flows where the mask is on.

  References:
    DAPO, https://arxiv.org/abs/2503.14476

  >>> x = jnp.array([[1.0, 2.0], [6.0, 9.0]])
  >>> print(token_mean(x, jnp.array([[True, True], [True, False]])).value())
  3.0
  """
  _check(token_losses, completion_mask)
  return Ratio(
    reductions.all_sum(token_losses, where=completion_mask),
    reductions.all_sum(_ones(token_losses), where=completion_mask),
  )


def sequence_mean_token_mean(
  token_losses: Array, completion_mask: Array
) -> Ratio:
  """Averages over a response's tokens, then over responses.

    1/rows Σ_b 1/n_b Σ_t m x

  Args:
    token_losses: x, loss of each token. Shape `[B, T]`.
    completion_mask: m, the tokens that the policy chose. Shape `[B, T]`.

  Returns:
    The sum of the responses' means, and the number of responses that have a
    token. Gradient flows where the mask is on.

  References:
    GRPO, https://arxiv.org/abs/2402.03300

  >>> x = jnp.array([[1.0, 2.0], [6.0, 9.0]])
  >>> mask = jnp.array([[True, True], [True, False]])
  >>> print(sequence_mean_token_mean(x, mask).value())
  3.75
  """
  _check(token_losses, completion_mask)
  means = reductions.all_mean(token_losses, axis=-1, where=completion_mask)
  return Ratio(jnp.sum(means), _rows(means, completion_mask))


def sequence_mean_token_sum(
  token_losses: Array, completion_mask: Array
) -> Ratio:
  """Adds up a response's tokens, then averages over responses.

    1/rows Σ_b Σ_t m x

  Args:
    token_losses: x, loss of each token. Shape `[B, T]`.
    completion_mask: m, the tokens that the policy chose. Shape `[B, T]`.

  Returns:
    The sum, and the number of responses that have a token. Gradient flows where
    the mask is on.

  References:
    Dr. GRPO, https://arxiv.org/abs/2503.20783

  >>> x = jnp.array([[1.0, 2.0], [6.0, 9.0]])
  >>> mask = jnp.array([[True, True], [True, False]])
  >>> print(sequence_mean_token_sum(x, mask).value())
  4.5
  """
  _check(token_losses, completion_mask)
  total = reductions.all_sum(token_losses, where=completion_mask)
  return Ratio(total, _rows(total, completion_mask))


def sequence_mean_token_sum_const(
  token_losses: Array, completion_mask: Array, *, length: float
) -> Ratio:
  """Adds up a response's tokens over a constant, then averages over responses.

  No length is favoured, and the scale is that of a mean.

    1/(rows · length) Σ_b Σ_t m x

  Args:
    token_losses: x, loss of each token. Shape `[B, T]`.
    completion_mask: m, the tokens that the policy chose. Shape `[B, T]`.
    length: the constant, e.g. the longest completion allowed. It is not read
      off `T`, or padding would change the loss.

  Returns:
    The sum, and `length` times the number of responses that have a token.
    Gradient flows where the mask is on.

  References:
    Dr. GRPO, https://arxiv.org/abs/2503.20783

  >>> x, mask = jnp.array([[1.0, 2.0]]), jnp.array([[True, True]])
  >>> print(sequence_mean_token_sum_const(x, mask, length=6).value())
  0.5
  """
  numerator, rows = sequence_mean_token_sum(token_losses, completion_mask)
  return Ratio(numerator, length * rows)


def importance_ratio(log_probs: Array, old_log_probs: Array) -> Array:
  """Divides the probability of a token now by that when it was taken.

    ρ = exp(log π − log π_old)

  Args:
    log_probs: current policy's. Any shape.
    old_log_probs: old policy's. The same shape.

  Returns:
    The ratio, within e⁻²⁰ and e²⁰. Gradient flows to `log_probs` only, and not
    beyond those bounds. The same shape.

  References:
    PPO, https://arxiv.org/abs/1707.06347

  >>> ratio = importance_ratio(jnp.log(0.5), jnp.log(0.25))
  >>> print(f"{ratio:.3f}")
  2.000
  """
  chex.assert_equal_shape([log_probs, old_log_probs])
  log_probs = reductions.at_least_float32(log_probs)
  old_log_probs = jax.lax.stop_gradient(old_log_probs)
  log_ratio = log_probs - reductions.at_least_float32(old_log_probs)
  return jnp.exp(jnp.clip(log_ratio, -_MAX_LOG_RATIO, _MAX_LOG_RATIO))


def token_ratio(
  log_probs: Array, old_log_probs: Array, completion_mask: Array
) -> Array:
  """Takes the importance ratio of each token.

    ρ_bt = π / π_old

  Args:
    log_probs: current policy's, of the taken tokens. Shape `[B, T]`.
    old_log_probs: of the policy that the ratio is to. Shape `[B, T]`.
    completion_mask: the tokens that the policy chose. Shape `[B, T]`.

  Returns:
    The ratio, within e⁻²⁰ and e²⁰, and 1 where the mask is off. Gradient flows
    to `log_probs` only. Shape `[B, T]`.

  References:
    PPO, https://arxiv.org/abs/1707.06347

  >>> l, mask = jnp.log(jnp.array([[0.5, 0.5]])), jnp.array([[True, True]])
  >>> print(token_ratio(l, jnp.log(jnp.array([[0.25, 0.5]])), mask))
  [[2. 1.]]
  """
  _check(log_probs, completion_mask)
  return importance_ratio(
    reductions.select(log_probs, completion_mask),
    reductions.select(old_log_probs, completion_mask),
  )


def sequence_ratio(
  log_probs: Array, old_log_probs: Array, completion_mask: Array
) -> Array:
  """Takes the importance ratio of each response, for all of its tokens.

    ρ_b = Πₜ π / π_old = exp(Σₜ m (log π − log π_old))

  Args:
    log_probs: current policy's, of the taken tokens. Shape `[B, T]`.
    old_log_probs: of the policy that the ratio is to. Shape `[B, T]`.
    completion_mask: the tokens that the policy chose. Shape `[B, T]`.

  Returns:
    The ratio, below e²⁰. Gradient flows to `log_probs` only. Shape `[B, T]`.

  References:
    TOPR, https://arxiv.org/abs/2503.14286

  >>> l, mask = jnp.log(jnp.array([[0.5, 0.5]])), jnp.array([[True, True]])
  >>> print(sequence_ratio(l, jnp.log(jnp.array([[0.25, 0.25]])), mask))
  [[4. 4.]]
  """
  log_ratio = _masked_log_ratio(log_probs, old_log_probs, completion_mask)
  total = jnp.sum(log_ratio, axis=-1, keepdims=True)
  # No bound below: hundreds of tokens reach e⁻²⁰ together, and 0 is right.
  ratio = jnp.exp(jnp.minimum(total, _MAX_LOG_RATIO))
  return jnp.broadcast_to(ratio, log_ratio.shape)


def geometric_ratio(
  log_probs: Array, old_log_probs: Array, completion_mask: Array
) -> Array:
  """Takes the geometric mean of a response's ratios, for all of its tokens.

    s_b = exp(1/n_b Σₜ m (log π − log π_old))

  Args:
    log_probs: current policy's, of the taken tokens. Shape `[B, T]`.
    old_log_probs: of the policy that the ratio is to. Shape `[B, T]`.
    completion_mask: the tokens that the policy chose. Shape `[B, T]`.

  Returns:
    The ratio, within e⁻²⁰ and e²⁰. Gradient flows to `log_probs` only. Shape
    `[B, T]`.

  References:
    GSPO, https://arxiv.org/abs/2507.18071

  >>> l, mask = jnp.log(jnp.array([[0.5, 0.5]])), jnp.array([[True, True]])
  >>> print(geometric_ratio(l, jnp.log(jnp.array([[0.25, 0.25]])), mask))
  [[2. 2.]]
  """
  log_ratio = _masked_log_ratio(log_probs, old_log_probs, completion_mask)
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
  dual_clip: float | None = None,
  aggregate: Aggregate = token_mean,
) -> Ratio:
  """Improves on the old policy as far as the clip trusts it.

    x = max(−A ρ, −A clip(ρ, 1 − ε_low, 1 + ε_high)),   ρ = π / π_old
    x ← min(x, −A c)   where A < 0, with a dual clip

  DAPO is `clip_high=0.28`; Dr. GRPO changes `aggregate` and the advantages.

  Args:
    log_probs: current policy's, of the taken tokens. Shape `[B, T]`.
    old_log_probs: policy's at the time of the rollout. Shape `[B, T]`.
    advantages: A, one a response or one a token. Shape `[B]` or `[B, T]`.
    completion_mask: the tokens that the policy chose. Shape `[B, T]`.
    clip_low: ε_low, how far the ratio may usefully fall below 1.
    clip_high: ε_high, how far it may usefully rise above 1.
    dual_clip: c > 1, the ratio from which a bad token is not pushed further
      down; `None` for no such bound.
    aggregate: how tokens and sequences are averaged.

  Returns:
    The loss. Gradient flows to `log_probs` only.

  References:
    PPO, https://arxiv.org/abs/1707.06347
    Dual clip, https://arxiv.org/abs/1912.09729

  >>> l, old = jnp.log(jnp.array([[0.6]])), jnp.log(jnp.array([[0.4]]))
  >>> mask = jnp.array([[True]])
  >>> loss = clipped_surrogate_loss(l, old, jnp.array([1.0]), mask)
  >>> print(f"{loss.value():.3f}")  # the ratio 1.5 counts as 1.2
  -1.200
  """
  ratio = token_ratio(log_probs, old_log_probs, completion_mask)
  token_losses = clipped_token_losses(
    ratio,
    token_advantages(advantages, completion_mask),
    clip_low=clip_low,
    clip_high=clip_high,
    dual_clip=dual_clip,
  )
  return aggregate(token_losses, completion_mask)


def clipped_token_losses(
  ratio: Array,
  advantages: Array,
  *,
  clip_low: float,
  clip_high: float,
  dual_clip: float | None = None,
) -> Array:
  """Holds what a ratio can gain between two bounds.

    x = max(−A ρ, −A clip(ρ, 1 − ε_low, 1 + ε_high))
    x ← min(x, −A c)   where A < 0, with a dual clip

  Args:
    ratio: ρ, of each token. Shape `[B, T]`.
    advantages: A, of each token. Shape `[B, T]`.
    clip_low: ε_low.
    clip_high: ε_high.
    dual_clip: c > 1; `None` for no such bound.

  Returns:
    The loss of each token. Gradient flows to `ratio`, and not beyond the
    bounds. Shape `[B, T]`.

  References:
    PPO, https://arxiv.org/abs/1707.06347
    Dual clip, https://arxiv.org/abs/1912.09729

  >>> ratio, a = jnp.array([[1.5, 1.5]]), jnp.array([[1.0, -1.0]])
  >>> print(clipped_token_losses(ratio, a, clip_low=0.25, clip_high=0.25))
  [[-1.25  1.5 ]]
  """
  chex.assert_equal_shape([ratio, advantages])
  advantages = jax.lax.stop_gradient(advantages).astype(ratio.dtype)
  clipped = jnp.clip(ratio, 1 - clip_low, 1 + clip_high)
  token_losses = jnp.maximum(-advantages * ratio, -advantages * clipped)
  if dual_clip is None:
    return token_losses
  bounded = jnp.minimum(token_losses, -advantages * dual_clip)
  return jnp.where(advantages < 0, bounded, token_losses)


def clip_fractions(
  log_probs: Array,
  old_log_probs: Array,
  advantages: Array,
  completion_mask: Array,
  *,
  clip_low: float = 0.2,
  clip_high: float = 0.2,
  ratio_of: RatioOf = token_ratio,
) -> ClipFractions:
  """Counts the tokens that the clip takes out of the gradient.

  Args:
    log_probs: current policy's, of the taken tokens. Shape `[B, T]`.
    old_log_probs: policy's at the time of the rollout. Shape `[B, T]`.
    advantages: one a response or one a token. Shape `[B]` or `[B, T]`.
    completion_mask: the tokens that the policy chose. Shape `[B, T]`.
    clip_low: how far the ratio may usefully fall below 1.
    clip_high: how far it may usefully rise above 1.
    ratio_of: the ratio that is clipped, of a token or of its response.

  Returns:
    Shares of the completion tokens that are held at either bound, with their
    gradient stopped.

  References:
    PPO, https://arxiv.org/abs/1707.06347

  >>> l, old = jnp.log(jnp.array([[0.6]])), jnp.log(jnp.array([[0.4]]))
  >>> mask = jnp.array([[True]])
  >>> print(clip_fractions(l, old, jnp.array([1.0]), mask).high.value())
  1.0
  """
  ratio = ratio_of(
    jax.lax.stop_gradient(log_probs), old_log_probs, completion_mask
  )
  advantages = token_advantages(advantages, completion_mask)
  low = (advantages < 0) & (ratio < 1 - clip_low)
  high = (advantages > 0) & (ratio > 1 + clip_high)
  return ClipFractions(
    low=token_mean(low.astype(ratio.dtype), completion_mask),
    high=token_mean(high.astype(ratio.dtype), completion_mask),
  )


def policy_gradient_loss(
  log_probs: Array,
  advantages: Array,
  completion_mask: Array,
  *,
  aggregate: Aggregate = token_mean,
) -> Ratio:
  """Raises the log-probs of good tokens, whoever sampled them.

    x = −A log π

  Args:
    log_probs: current policy's, of the taken tokens. Shape `[B, T]`.
    advantages: A, one a response or one a token. Shape `[B]` or `[B, T]`.
    completion_mask: the tokens that the policy chose. Shape `[B, T]`.
    aggregate: how tokens and sequences are averaged.

  Returns:
    The loss. Gradient flows to `log_probs` only.

  References:
    Williams (1992), REINFORCE. https://doi.org/10.1007/BF00992696

  >>> l, mask = jnp.array([[-1.0, -3.0]]), jnp.array([[True, True]])
  >>> print(policy_gradient_loss(l, jnp.array([2.0]), mask).value())
  4.0
  """
  _check(log_probs, completion_mask)
  log_probs = reductions.select(log_probs, completion_mask)
  advantages = token_advantages(advantages, completion_mask)
  advantages = advantages.astype(log_probs.dtype)
  return aggregate(-advantages * log_probs, completion_mask)


def kl_k1(log_probs: Array, ref_log_probs: Array) -> Array:
  """Estimates KL(π, π_ref) by the log-ratio.

  Unbiased, of high variance, often negative. Its *gradient* has mean 0 under
  the policy, so it belongs in the reward (see `check_kl`).

    k₁ = log π − log π_ref

  Args:
    log_probs: current policy's. Any shape.
    ref_log_probs: reference policy's. The same shape.

  Returns:
    The estimate of each token. Gradient flows to `log_probs`.

  References:
    Schulman, "Approximating KL divergence". http://joschu.net/blog/kl-approx.html

  >>> print(kl_k1(jnp.array(-1.0), jnp.array(-1.5)))
  0.5
  """
  return _log_ratio(log_probs, ref_log_probs)


def kl_k2(log_probs: Array, ref_log_probs: Array) -> Array:
  """Estimates KL(π, π_ref) by half the squared log-ratio.

  Biased, of low variance. Its gradient is, on average, that of the divergence.

    k₂ = (log π − log π_ref)² / 2

  Args:
    log_probs: current policy's. Any shape.
    ref_log_probs: reference policy's. The same shape.

  Returns:
    The estimate of each token. Gradient flows to `log_probs`.

  References:
    Schulman, "Approximating KL divergence". http://joschu.net/blog/kl-approx.html

  >>> print(kl_k2(jnp.array(-1.0), jnp.array(-1.5)))
  0.125
  """
  return 0.5 * jnp.square(_log_ratio(log_probs, ref_log_probs))


def kl_k3(log_probs: Array, ref_log_probs: Array) -> Array:
  """Estimates KL(π, π_ref) by the log-ratio with a control variate.

  Unbiased, never negative. In the loss its gradient is, on average, that of
  KL(π_ref, π) near the reference.

    k₃ = π_ref/π − log(π_ref/π) − 1

  Args:
    log_probs: current policy's. Any shape.
    ref_log_probs: reference policy's. The same shape.

  Returns:
    The estimate of each token. Gradient flows to `log_probs`.

  References:
    Schulman, "Approximating KL divergence". http://joschu.net/blog/kl-approx.html

  >>> k3 = kl_k3(jnp.log(jnp.array(0.5)), jnp.log(jnp.array(0.25)))
  >>> print(f"{k3:.3f}")
  0.193
  """
  log_ratio = -_log_ratio(log_probs, ref_log_probs)
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
  """Averages a KL estimate, for the loss.

  Args:
    log_probs: current policy's, of the taken tokens. Shape `[B, T]`.
    ref_log_probs: frozen reference policy's. Shape `[B, T]`.
    completion_mask: the tokens that the policy chose. Shape `[B, T]`.
    estimator: estimate of each token; `check_kl` says which makes sense here.
    aggregate: how tokens and sequences are averaged.

  Returns:
    The loss, without its coefficient. Gradient flows to `log_probs` only.

  References:
    GRPO, eq. (4). https://arxiv.org/abs/2402.03300

  >>> l, mask = jnp.array([[-1.0, -2.0]]), jnp.array([[True, False]])
  >>> print(kl_loss(l, l - 1, mask, estimator=kl_k2).value())
  0.5
  """
  _check(log_probs, completion_mask)
  token_losses = estimator(
    reductions.select(log_probs, completion_mask),
    reductions.select(ref_log_probs, completion_mask),
  )
  return aggregate(token_losses, completion_mask)


def kl_penalty(
  log_probs: Array,
  ref_log_probs: Array,
  completion_mask: Array,
  *,
  estimator: KLEstimator = kl_k1,
  coefficient: float = 1.0,
) -> Array:
  """Adds up a response's KL estimate, for the reward.

    penalty_b = β Σ_t m k(log π, log π_ref)

  Args:
    log_probs: policy's at the time of the rollout. Shape `[B, T]`.
    ref_log_probs: frozen reference policy's. Shape `[B, T]`.
    completion_mask: the tokens that the policy chose. Shape `[B, T]`.
    estimator: estimate of each token.
    coefficient: β, what a nat costs in units of reward.

  Returns:
    What is subtracted from the rewards, with its gradient stopped. Shape `[B]`.

  References:
    RLHF, https://arxiv.org/abs/2203.02155

  >>> l, mask = jnp.array([[-1.0, -2.0]]), jnp.array([[True, True]])
  >>> print(kl_penalty(l, l - 1, mask, coefficient=0.5))
  [1.]
  """
  _check(log_probs, completion_mask)
  estimates = estimator(
    reductions.select(log_probs, completion_mask),
    reductions.select(ref_log_probs, completion_mask),
  )
  total = reductions.all_sum(estimates, axis=-1, where=completion_mask)
  return coefficient * jax.lax.stop_gradient(total)


def check_kl(
  estimator: KLEstimator, placement: str, *, force: bool = False
) -> None:
  """Refuses a KL estimator where its gradient does nothing.

  Args:
    estimator: e.g. `kl_k3`.
    placement: "loss" or "reward".
    force: lets k1 into the loss.

  Raises:
    ValueError: an unknown placement, or k1 in the loss.

  References:
    Schulman, "Approximating KL divergence". http://joschu.net/blog/kl-approx.html

  >>> check_kl(kl_k1, "reward")
  >>> check_kl(kl_k3, "loss")
  """
  if placement not in ("loss", "reward"):
    raise ValueError(f'KL placement {placement!r} is not "loss" or "reward"')
  if estimator is kl_k1 and placement == "loss" and not force:
    raise ValueError(
      "k1 in the loss: the gradient of log π − log π_ref is that of log π, "
      "whose mean under the policy is 0, so the term adds noise and holds "
      "nothing near the reference. Put k1 in the reward, take k2 or k3 in the "
      "loss, or force it."
    )


def entropy_loss(
  entropies: Array,
  completion_mask: Array,
  *,
  aggregate: Aggregate = token_mean,
) -> Ratio:
  """Rewards an undecided policy.

    x = −H(π)

  Args:
    entropies: entropy of the policy at each token, in nats. Shape `[B, T]`.
    completion_mask: the tokens that the policy chose. Shape `[B, T]`.
    aggregate: how tokens and sequences are averaged.

  Returns:
    Minus the mean entropy. Gradient flows to `entropies`.

  References:
    A3C, https://arxiv.org/abs/1602.01783

  >>> mask = jnp.array([[True, False]])
  >>> print(entropy_loss(jnp.array([[0.5, jnp.nan]]), mask).value())
  -0.5
  """
  _check(entropies, completion_mask)
  return aggregate(
    -reductions.select(entropies, completion_mask), completion_mask
  )


def drop_constant_groups(
  rewards: Array, completion_mask: Array, *, scored: Array | None = None
) -> Array:
  """Masks the responses of groups whose rewards are all alike.

  They have no advantage, but would count in the loss's denominator. (DAPO
  samples others in their place, which is the business of the rollout.)

  Args:
    rewards: one number a response. Shape `[P, G]`.
    completion_mask: the tokens that the policy chose, with rows ordered as
      `[P, G]` flattened. Shape `[P * G, T]`.
    scored: mask of the rewards that exist. Shape `[P, G]`.

  Returns:
    The mask without those groups. Shape `[P * G, T]`, boolean.

  References:
    DAPO, https://arxiv.org/abs/2503.14476

  >>> r, mask = jnp.array([[1.0, 1.0], [0.0, 1.0]]), jnp.ones((4, 1), bool)
  >>> print(drop_constant_groups(r, mask).squeeze())
  [False False  True  True]
  """
  chex.assert_rank([rewards, completion_mask], 2)
  chex.assert_axis_dimension(
    completion_mask, 0, rewards.shape[0] * rewards.shape[1]
  )
  over = dict(axis=-1, where=scored, keepdims=True)
  varied = reductions.all_max(rewards, **over) > reductions.all_min(
    rewards, **over
  )
  kept = jnp.broadcast_to(varied, rewards.shape).reshape(-1, 1)
  return jnp.asarray(completion_mask, bool) & kept


def token_advantages(advantages: Array, completion_mask: Array) -> Array:
  """Gives each token the advantage of its response.

  Args:
    advantages: one a response or one a token. Shape `[B]` or `[B, T]`.
    completion_mask: the tokens that the policy chose. Shape `[B, T]`.

  Returns:
    The advantages, with their gradient stopped, 0 where the mask is off. Shape
    `[B, T]`.

  References:
    GRPO, https://arxiv.org/abs/2402.03300

  >>> mask = jnp.array([[True, True], [True, False]])
  >>> print(token_advantages(jnp.array([1.0, -1.0]), mask))
  [[ 1.  1.]
   [-1.  0.]]
  """
  advantages = jnp.asarray(jax.lax.stop_gradient(advantages))
  if advantages.ndim == 1:
    chex.assert_shape(advantages, completion_mask.shape[:1])
    advantages = jnp.broadcast_to(advantages[:, None], completion_mask.shape)
  return reductions.select(advantages, completion_mask)


def _check(per_token: Array, completion_mask: Array) -> None:
  """Static checks that the losses share."""
  chex.assert_rank([per_token, completion_mask], 2)
  chex.assert_equal_shape([per_token, completion_mask])


def _ones(x: Array) -> Array:
  """What a mask counts, at least in float32: bfloat16 counts to 256."""
  return jnp.ones(x.shape, reductions.at_least_float32(x).dtype)


def _rows(like: Array, completion_mask: Array) -> Array:
  """The number of responses that have a token."""
  rows = jnp.any(jnp.asarray(completion_mask, bool), axis=-1)
  return jnp.sum(rows, dtype=like.dtype)


def _log_ratio(log_probs: Array, ref_log_probs: Array) -> Array:
  """log π − log π_ref, with a gradient to the policy only."""
  chex.assert_equal_shape([log_probs, ref_log_probs])
  ref_log_probs = jax.lax.stop_gradient(ref_log_probs)
  return reductions.at_least_float32(log_probs) - reductions.at_least_float32(
    ref_log_probs
  )


def _masked_log_ratio(
  log_probs: Array, old_log_probs: Array, completion_mask: Array
) -> Array:
  """log π − log π_old, 0 where the mask is off."""
  _check(log_probs, completion_mask)
  return _log_ratio(
    reductions.select(log_probs, completion_mask),
    reductions.select(old_log_probs, completion_mask),
  )
