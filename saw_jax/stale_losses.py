# SPDX-License-Identifier: Apache-2.0
"""Policy losses for responses that an older policy sampled.

Some correct by a ratio of log-probs: to the policy that the update starts from
(`old_log_probs`, an extra forward pass of the trainer) or to the one that
sampled (`behave_log_probs`, which has to be carried along). Others read the
current policy alone and damp what it holds to be unlikely. **A loss takes as
arguments exactly the log-probs that it needs**, so that what has to be recorded
can be read off its signature.

As in `losses`: pure functions that return a `Ratio` and are minimised; what the
mask excludes is selected away before any arithmetic.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from saw_jax import losses, reductions
from saw_jax.reductions import Maximum, Ratio
from saw_jax.types import Array


class Balance(NamedTuple):
  """How the responses that rise weigh against those that fall."""

  nll_positive: Ratio  # mean S of the responses with A > 0
  nll_negative: Ratio  # mean S of the responses with A < 0
  balance: Ratio  # Δ, mean of A S: 0 is balance
  balance_ratio: Ratio  # Σ_neg |A| S / Σ_pos A S: 1 is balance
  zero_advantage: Ratio  # share of the responses with A = 0
  largest_inverse_nll: Maximum  # of 1 / S, what ASymPO multiplies by


def sequence_nll(log_probs: Array, completion_mask: Array) -> Array:
  """Averages the negative log-likelihood of a response's tokens.

    S_b = −1/n_b Σₜ m log π

  Args:
    log_probs: current policy's, of the taken tokens. Shape `[B, T]`.
    completion_mask: m, the tokens that the policy chose. Shape `[B, T]`.

  Returns:
    S, and 0 for a response without tokens. Gradient flows. Shape `[B]`.

  References:
    ASymPO, https://arxiv.org/abs/2606.03070

  >>> l = jnp.array([[-1.0, -3.0], [-5.0, jnp.nan]])
  >>> print(sequence_nll(l, jnp.array([[True, True], [True, False]])))
  [2. 5.]
  """
  _check(log_probs, completion_mask)
  return -reductions.all_mean(log_probs, axis=-1, where=completion_mask)


def spo_loss(
  log_probs: Array,
  advantages: Array,
  completion_mask: Array,
  *,
  negative_weight: float = 0.2,
  aggregate: losses.Aggregate = losses.sequence_mean_token_mean,
) -> Ratio:
  """Learns less from bad responses, by a constant.

    x = −A C log π,   C = 1 where A ≥ 0, α where A < 0

  α = 1 is the policy gradient, α = 0 learns from good responses alone.

  Args:
    log_probs: current policy's, of the taken tokens; no others are needed.
      Shape `[B, T]`.
    advantages: A, one a response or one a token. Shape `[B]` or `[B, T]`.
    completion_mask: the tokens that the policy chose. Shape `[B, T]`.
    negative_weight: α, from 0 to 1.
    aggregate: how tokens and sequences are averaged.

  Returns:
    The loss. Gradient flows to `log_probs` only.

  References:
    ASymPO, eq. (17). https://arxiv.org/abs/2606.03070

  >>> l, mask = jnp.array([[-1.0], [-5.0]]), jnp.ones((2, 1), bool)
  >>> loss = spo_loss(l, jnp.array([0.5, -0.5]), mask)
  >>> print(loss.value())  # (0.5 · 1 − 0.2 · 0.5 · 5) / 2
  0.0
  """
  _check(log_probs, completion_mask)
  log_probs = reductions.select(log_probs, completion_mask)
  advantages = losses.token_advantages(advantages, completion_mask)
  advantages = advantages.astype(log_probs.dtype)
  scale = jnp.where(advantages < 0, negative_weight, 1.0)
  return aggregate(-advantages * scale * log_probs, completion_mask)


def asympo_loss(
  log_probs: Array,
  advantages: Array,
  completion_mask: Array,
  *,
  floor: float = 1e-6,
  p_low: float | None = None,
  p_high: float | None = None,
  scale_positives: bool = True,
  scale_negatives: bool = True,
  aggregate: losses.Aggregate = losses.sequence_mean_token_mean,
) -> Ratio:
  """Divides a response's loss by its own likelihood, held fixed.

  A good response that is certain already and a bad one that has become unlikely
  then push alike, and over whole groups the signed losses add up to 0, however
  stale the responses are. So the value says nothing; its gradient is that of
  the mean of A log S.

    x = −A log π / sg(max(S, floor)),   S_b = −1/n_b Σₜ m log π            (19)

  with sg the stopped gradient. A token may count no further than a bound:

    log π ← min(log π, log p_high)   where A ≥ 0
    log π ← max(log π, log p_low)    where A < 0

  A response without tokens counts neither above nor below the bar, where the
  paper divides by all P · G; sampled responses have a token.

  Args:
    log_probs: current policy's, of the taken tokens; no others are needed.
      Shape `[B, T]`.
    advantages: A, one a response or one a token. Shape `[B]` or `[B, T]`.
    completion_mask: m, the tokens that the policy chose. Shape `[B, T]`.
    floor: least divisor. A response that is certain has S = 0.
    p_low: what a bad token's probability is not pushed below; `None`: no bound.
    p_high: what a good token's is not pushed above; `None`: no bound. A token
      beyond its bound has no gradient, but still counts in S.
    scale_positives: whether responses with A ≥ 0 are divided; a control.
    scale_negatives: whether responses with A < 0 are; a control.
    aggregate: how tokens and sequences are averaged. The losses add up to 0
      under `sequence_mean_token_mean` only.

  Returns:
    The loss. Gradient flows to `log_probs` only, and not through the divisor.

  References:
    ASymPO, https://arxiv.org/abs/2606.03070

  >>> l, mask = jnp.array([[-1.0, -3.0], [-4.0, -4.0]]), jnp.ones((2, 2), bool)
  >>> loss = asympo_loss(l, jnp.array([0.5, -0.5]), mask)
  >>> print(loss.value())
  0.0
  """
  _check(log_probs, completion_mask)
  log_probs = reductions.select(log_probs, completion_mask)
  advantages = losses.token_advantages(advantages, completion_mask)
  advantages = advantages.astype(log_probs.dtype)
  good = advantages >= 0
  if p_high is not None:
    # Where the mask is off, 0 becomes log p_high: `aggregate` and S skip it.
    held = log_probs > jnp.log(p_high)
    log_probs = jnp.where(good & held, jnp.log(p_high), log_probs)
  if p_low is not None:
    held = log_probs < jnp.log(p_low)
    log_probs = jnp.where(~good & held, jnp.log(p_low), log_probs)
  nll = jax.lax.stop_gradient(sequence_nll(log_probs, completion_mask))
  divisor = jnp.maximum(nll, floor)[:, None]
  scaled = jnp.where(good, scale_positives, scale_negatives)
  divisor = jnp.where(scaled, divisor, jnp.ones_like(divisor))
  return aggregate(-advantages * log_probs / divisor, completion_mask)


def batch_asympo_loss(
  log_probs: Array,
  advantages: Array,
  completion_mask: Array,
  *,
  floor: float = 1e-6,
  aggregate: losses.Aggregate = losses.sequence_mean_token_mean,
) -> Ratio:
  """Divides by the batch's mean likelihood: a control for ASymPO.

  It has the scale of ASymPO without its asymmetry: a step of the policy
  gradient whose length does not depend on how certain the policy is.

    loss = Σ_b A S / sg(Σ_b max(S, floor))

  Numerator and denominator still add up over parts of a batch, but the
  denominator depends on the parameters, which costs the update a second forward
  pass.

  Args:
    log_probs: current policy's, of the taken tokens; no others are needed.
      Shape `[B, T]`.
    advantages: A, one a response or one a token. Shape `[B]` or `[B, T]`.
    completion_mask: the tokens that the policy chose. Shape `[B, T]`.
    floor: least S of a response, in the denominator.
    aggregate: how tokens and sequences are averaged, above and below the bar.

  Returns:
    The loss. Gradient flows to `log_probs` only, and not through the divisor.

  References:
    ASymPO, https://arxiv.org/abs/2606.03070

  >>> l, mask = jnp.array([[-1.0], [-3.0]]), jnp.ones((2, 1), bool)
  >>> loss = batch_asympo_loss(l, jnp.array([0.5, -0.5]), mask)
  >>> print(loss.value())  # (0.5 · 1 − 0.5 · 3) / (1 + 3)
  -0.25
  """
  plain = losses.policy_gradient_loss(
    log_probs, advantages, completion_mask, aggregate=aggregate
  )
  nll = jax.lax.stop_gradient(sequence_nll(log_probs, completion_mask))
  floored = jnp.broadcast_to(
    jnp.maximum(nll, floor)[:, None], completion_mask.shape
  )
  return Ratio(plain.numerator, aggregate(floored, completion_mask).numerator)


def gspo_loss(
  log_probs: Array,
  old_log_probs: Array,
  advantages: Array,
  completion_mask: Array,
  *,
  clip_low: float = 3e-4,
  clip_high: float = 4e-4,
  aggregate: losses.Aggregate = losses.sequence_mean_token_mean,
) -> Ratio:
  """Clips one ratio for the whole response.

    x = max(−A s, −A clip(s, 1 − ε_low, 1 + ε_high))
    s_b = exp(1/n_b Σₜ m (log π − log π_old))

  Args:
    log_probs: current policy's, of the taken tokens. Shape `[B, T]`.
    old_log_probs: of the policy that the ratio is to: the one that the update
      starts from, or the one that sampled. Shape `[B, T]`.
    advantages: A, one a response or one a token. Shape `[B]` or `[B, T]`.
    completion_mask: the tokens that the policy chose. Shape `[B, T]`.
    clip_low: ε_low.
    clip_high: ε_high.
    aggregate: how responses are averaged; every token of one has its loss, so
      that `sequence_mean_token_mean` counts each response once.

  Returns:
    The loss. Gradient flows to `log_probs` only.

  References:
    GSPO, https://arxiv.org/abs/2507.18071

  >>> l, mask = jnp.log(jnp.array([[0.2, 0.8]])), jnp.ones((1, 2), bool)
  >>> old = jnp.log(jnp.array([[0.4, 0.4]]))  # ratios 1/2 and 2: s = 1
  >>> print(f"{gspo_loss(l, old, jnp.array([1.0]), mask).value():.3f}")
  -1.000
  """
  token_losses = losses.clipped_token_losses(
    losses.geometric_ratio(log_probs, old_log_probs, completion_mask),
    losses.token_advantages(advantages, completion_mask),
    clip_low=clip_low,
    clip_high=clip_high,
  )
  return aggregate(token_losses, completion_mask)


def cispo_loss(
  log_probs: Array,
  old_log_probs: Array,
  advantages: Array,
  completion_mask: Array,
  *,
  r_min: float = 0.0,
  r_max: float = 5.0,
  aggregate: losses.Aggregate = losses.token_mean,
) -> Ratio:
  """Clips the ratio as a weight, so that no token loses its gradient.

    x = −sg(clip(ρ, r_min, r_max)) A log π,   ρ = π / π_old

  Args:
    log_probs: current policy's, of the taken tokens. Shape `[B, T]`.
    old_log_probs: of the policy that the ratio is to: the one that the update
      starts from, or the one that sampled. Shape `[B, T]`.
    advantages: A, one a response or one a token. Shape `[B]` or `[B, T]`.
    completion_mask: the tokens that the policy chose. Shape `[B, T]`.
    r_min: least weight; 1 − ε_low in the paper.
    r_max: greatest weight; 1 + ε_high in the paper.
    aggregate: how tokens and sequences are averaged.

  Returns:
    The loss. Gradient flows to `log_probs` only, and not through the weight.

  References:
    MiniMax-M1, https://arxiv.org/abs/2506.13585
    ScaleRL, for the bounds. https://arxiv.org/abs/2510.13786

  >>> l, mask = jnp.array([[-1.0]]), jnp.array([[True]])
  >>> print(cispo_loss(l, l - 9, jnp.array([1.0]), mask).value())
  5.0
  """
  ratio = losses.token_ratio(log_probs, old_log_probs, completion_mask)
  return _weighted_policy_gradient(
    jnp.clip(ratio, r_min, r_max),
    log_probs,
    advantages,
    completion_mask,
    aggregate,
  )


def tis_reinforce_loss(
  log_probs: Array,
  behave_log_probs: Array,
  advantages: Array,
  completion_mask: Array,
  *,
  cap: float = 2.0,
  ratio_of: losses.RatioOf = losses.token_ratio,
  aggregate: losses.Aggregate = losses.token_mean,
) -> Ratio:
  """Weighs the policy gradient by a truncated ratio to the sampler.

    x = −sg(min(ρ, c)) A log π,   ρ = π / μ

  Args:
    log_probs: current policy's, of the taken tokens. Shape `[B, T]`.
    behave_log_probs: of the policy μ that sampled. Shape `[B, T]`.
    advantages: A, one a response or one a token. Shape `[B]` or `[B, T]`.
    completion_mask: the tokens that the policy chose. Shape `[B, T]`.
    cap: c, the greatest weight.
    ratio_of: `losses.token_ratio` or `losses.sequence_ratio`.
    aggregate: how tokens and sequences are averaged.

  Returns:
    The loss. Gradient flows to `log_probs` only, and not through the weight.

  References:
    IMPALA, for the truncation. https://arxiv.org/abs/1802.01561

  >>> l, mask = jnp.array([[-1.0]]), jnp.array([[True]])
  >>> print(tis_reinforce_loss(l, l - 9, jnp.array([1.0]), mask).value())
  2.0
  """
  ratio = ratio_of(log_probs, behave_log_probs, completion_mask)
  return _weighted_policy_gradient(
    jnp.minimum(ratio, cap), log_probs, advantages, completion_mask, aggregate
  )


def topr_loss(
  log_probs: Array,
  behave_log_probs: Array,
  advantages: Array,
  completion_mask: Array,
  *,
  ratio_of: losses.RatioOf = losses.sequence_ratio,
  aggregate: losses.Aggregate = losses.sequence_mean_token_sum,
) -> Ratio:
  """Tapers bad responses as the policy leaves them behind.

    x = −sg(a) A log π,   a = 1 where A ≥ 0, min(π/μ, 1) where A < 0        (8)

  Args:
    log_probs: current policy's, of the taken tokens. Shape `[B, T]`.
    behave_log_probs: of the policy μ that sampled. Shape `[B, T]`.
    advantages: A, in the paper a reward of ±1; one a response or one a token.
      Shape `[B]` or `[B, T]`.
    completion_mask: the tokens that the policy chose. Shape `[B, T]`.
    ratio_of: `losses.sequence_ratio`, or `losses.token_ratio` as in ROLL.
    aggregate: how tokens and sequences are averaged.

  Returns:
    The loss. Gradient flows to `log_probs` only, and not through the weight.

  References:
    TOPR, https://arxiv.org/abs/2503.14286

  >>> l, mask = jnp.log(jnp.array([[0.25]])), jnp.array([[True]])
  >>> bad = topr_loss(l, jnp.log(jnp.array([[0.5]])), jnp.array([-1.0]), mask)
  >>> print(f"{bad.value():.3f}")  # half of log 0.25
  -0.693
  """
  ratio = ratio_of(log_probs, behave_log_probs, completion_mask)
  bad = losses.token_advantages(advantages, completion_mask) < 0
  weight = jnp.where(bad, jnp.minimum(ratio, 1.0), jnp.ones_like(ratio))
  return _weighted_policy_gradient(
    weight, log_probs, advantages, completion_mask, aggregate
  )


def tis_loss(
  log_probs: Array,
  old_log_probs: Array,
  behave_log_probs: Array,
  advantages: Array,
  completion_mask: Array,
  *,
  cap: float = 2.0,
  clip_low: float = 0.2,
  clip_high: float = 0.2,
  dual_clip: float | None = None,
  ratio_of: losses.RatioOf = losses.token_ratio,
  aggregate: losses.Aggregate = losses.token_mean,
) -> Ratio:
  """Weighs PPO's loss by a truncated ratio of old policy to sampler.

    x = min(π_old / μ, c) · max(−A ρ, −A clip(ρ, 1 − ε_low, 1 + ε_high))

  with ρ = π / π_old. The weight answers an inference engine that computes other
  log-probs than the trainer does, and staleness.

  Args:
    log_probs: current policy's, of the taken tokens. Shape `[B, T]`.
    old_log_probs: of the policy that the update starts from. Shape `[B, T]`.
    behave_log_probs: of the policy μ that sampled. Shape `[B, T]`.
    advantages: A, one a response or one a token. Shape `[B]` or `[B, T]`.
    completion_mask: the tokens that the policy chose. Shape `[B, T]`.
    cap: c, the greatest weight.
    clip_low: ε_low.
    clip_high: ε_high.
    dual_clip: bound on the ratio of bad tokens, above 1; `None`: no bound.
    ratio_of: of the weight: `losses.token_ratio` or `losses.sequence_ratio`.
    aggregate: how tokens and sequences are averaged.

  Returns:
    The loss. Gradient flows to `log_probs` only.

  References:
    Yao et al. (2025), "Your efficient RL framework secretly brings you
    off-policy RL training". https://fengyao.notion.site/off-policy-rl

  >>> l, mask = jnp.array([[-1.0]]), jnp.array([[True]])
  >>> loss = tis_loss(l, l, l - 9, jnp.array([1.0]), mask)
  >>> print(loss.value())
  -2.0
  """
  weight = ratio_of(old_log_probs, behave_log_probs, completion_mask)
  weight = jax.lax.stop_gradient(jnp.minimum(weight, cap))
  token_losses = losses.clipped_token_losses(
    losses.token_ratio(log_probs, old_log_probs, completion_mask),
    losses.token_advantages(advantages, completion_mask),
    clip_low=clip_low,
    clip_high=clip_high,
    dual_clip=dual_clip,
  )
  return aggregate(weight * token_losses, completion_mask)


def decoupled_ppo_loss(
  log_probs: Array,
  old_log_probs: Array,
  behave_log_probs: Array,
  advantages: Array,
  completion_mask: Array,
  *,
  clip_low: float = 0.2,
  clip_high: float = 0.2,
  dual_clip: float | None = None,
  cap: float | None = None,
  aggregate: losses.Aggregate = losses.token_mean,
) -> Ratio:
  """Clips around a recent policy, and corrects from the one that sampled.

    x = π_old / μ · max(−A ρ, −A clip(ρ, 1 − ε_low, 1 + ε_high)),  ρ = π / π_old

  The policy that is not to be left and the policy that sampled are two, so a
  stale sampler does not hold the update back.

  Args:
    log_probs: current policy's, of the taken tokens. Shape `[B, T]`.
    old_log_probs: of the proximal policy, the one that the update starts from.
      Shape `[B, T]`.
    behave_log_probs: of the policy μ that sampled. Shape `[B, T]`.
    advantages: A, one a response or one a token. Shape `[B]` or `[B, T]`.
    completion_mask: the tokens that the policy chose. Shape `[B, T]`.
    clip_low: ε_low.
    clip_high: ε_high.
    dual_clip: bound on the ratio of bad tokens, above 1; `None`: no bound.
    cap: tokens with a greater weight add nothing to the numerator, but count in
      the denominator; `None`: all tokens add.
    aggregate: how tokens and sequences are averaged.

  Returns:
    The loss. Gradient flows to `log_probs` only.

  References:
    Hilton et al. (2021), https://arxiv.org/abs/2110.00641
    AReaL, for the cap. https://arxiv.org/abs/2505.24298

  >>> l, mask = jnp.array([[-1.0]]), jnp.array([[True]])
  >>> behave = l - jnp.log(3.0)
  >>> loss = decoupled_ppo_loss(l, l, behave, jnp.array([1.0]), mask)
  >>> print(f"{loss.value():.3f}")
  -3.000
  """
  weight = losses.token_ratio(old_log_probs, behave_log_probs, completion_mask)
  weight = jax.lax.stop_gradient(weight)
  if cap is not None:
    weight = jnp.where(weight > cap, jnp.zeros_like(weight), weight)
  token_losses = losses.clipped_token_losses(
    losses.token_ratio(log_probs, old_log_probs, completion_mask),
    losses.token_advantages(advantages, completion_mask),
    clip_low=clip_low,
    clip_high=clip_high,
    dual_clip=dual_clip,
  )
  return aggregate(weight * token_losses, completion_mask)


def dppo_kl_loss(
  log_probs: Array,
  behave_log_probs: Array,
  advantages: Array,
  completion_mask: Array,
  *,
  bound: float = 0.2,
  coefficient: float = 1e-3,
  aggregate: losses.Aggregate = losses.token_mean,
) -> Ratio:
  """Drops tokens whose probability has moved far enough, and pulls all back.

    x = −A ρ keep + β (log π − log μ)²,   ρ = π / μ
    keep = 0 where A > 0 and π − μ > δ, or A < 0 and π − μ < −δ

  A difference of probabilities, not a ratio: rare tokens are not the first to
  be dropped.

  Args:
    log_probs: current policy's, of the taken tokens. Shape `[B, T]`.
    behave_log_probs: of the policy μ that sampled. Shape `[B, T]`.
    advantages: A, one a response or one a token. Shape `[B]` or `[B, T]`.
    completion_mask: the tokens that the policy chose. Shape `[B, T]`.
    bound: δ, how far a probability may usefully move.
    coefficient: β of the squared log-ratio.
    aggregate: how tokens and sequences are averaged.

  Returns:
    The loss. Gradient flows to `log_probs` only.

  References:
    DPPO, https://arxiv.org/abs/2602.04879

  >>> l, mask = jnp.log(jnp.array([[0.6]])), jnp.array([[True]])
  >>> behave = jnp.log(jnp.array([[0.3]]))
  >>> loss = dppo_kl_loss(l, behave, jnp.array([1.0]), mask, coefficient=0.0)
  >>> print(abs(loss.value()))  # moved by 0.3, beyond 0.2
  0.0
  """
  ratio = losses.token_ratio(log_probs, behave_log_probs, completion_mask)
  advantages = losses.token_advantages(advantages, completion_mask)
  log_probs = reductions.select(log_probs, completion_mask)
  behave_log_probs = reductions.select(
    jax.lax.stop_gradient(behave_log_probs), completion_mask
  )
  moved = jnp.exp(jax.lax.stop_gradient(log_probs)) - jnp.exp(behave_log_probs)
  far = jnp.where(advantages > 0, moved > bound, moved < -bound)
  gain = jnp.where(far, jnp.zeros_like(ratio), advantages * ratio)
  penalty = jnp.square(log_probs - behave_log_probs)
  return aggregate(coefficient * penalty - gain, completion_mask)


def balance(
  log_probs: Array,
  advantages: Array,
  completion_mask: Array,
  *,
  floor: float = 1e-6,
) -> Balance:
  """Says which side of the policy gradient is the heavier.

  The policy gradient's loss is Δ, the mean of A S; when bad responses have
  become unlikely it is far below 0, and they drive the update.

  Args:
    log_probs: current policy's, of the taken tokens; no others are needed.
      Shape `[B, T]`.
    advantages: A, one a response. Shape `[B]`.
    completion_mask: the tokens that the policy chose. Shape `[B, T]`.
    floor: least S of the largest 1 / S.

  Returns:
    The statistics over the responses that have a token, with their gradient
    stopped.

  References:
    ASymPO, https://arxiv.org/abs/2606.03070

  >>> l, mask = jnp.array([[-1.0], [-3.0]]), jnp.ones((2, 1), bool)
  >>> print(balance(l, jnp.array([0.5, -0.5]), mask).balance_ratio.value())
  3.0
  """
  chex.assert_shape(advantages, completion_mask.shape[:1])
  nll = sequence_nll(jax.lax.stop_gradient(log_probs), completion_mask)
  rows = jnp.any(jnp.asarray(completion_mask, bool), axis=-1)
  advantages = reductions.select(jax.lax.stop_gradient(advantages), rows)
  advantages = advantages.astype(nll.dtype)

  def total(x, where=rows):
    return reductions.all_sum(x, where=where)

  good, bad = advantages > 0, advantages < 0
  ones, signed = jnp.ones_like(nll), advantages * nll
  return Balance(
    nll_positive=Ratio(total(nll, good), total(ones, good)),
    nll_negative=Ratio(total(nll, bad), total(ones, bad)),
    balance=Ratio(total(signed), total(ones)),
    balance_ratio=Ratio(total(-signed, bad), total(signed, good)),
    zero_advantage=Ratio(total(ones, rows & (advantages == 0)), total(ones)),
    largest_inverse_nll=Maximum(
      reductions.all_max(1 / jnp.maximum(nll, floor), where=rows)
    ),
  )


def _check(log_probs: Array, completion_mask: Array) -> None:
  chex.assert_rank([log_probs, completion_mask], 2)
  chex.assert_equal_shape([log_probs, completion_mask])


def _weighted_policy_gradient(
  weights: Array,
  log_probs: Array,
  advantages: Array,
  completion_mask: Array,
  aggregate: losses.Aggregate,
) -> Ratio:
  """−sg(w) A log π, on average."""
  advantages = losses.token_advantages(advantages, completion_mask)
  return losses.policy_gradient_loss(
    log_probs,
    jax.lax.stop_gradient(weights) * advantages,
    completion_mask,
    aggregate=aggregate,
  )
