# SPDX-License-Identifier: Apache-2.0
"""Policy losses for responses that an older policy sampled.

Some correct by a ratio of log-probs: to the policy that the update starts from
(`old_log_probs`, an extra forward pass of the trainer) or to the one that
sampled, μ (`behave_log_probs`, which has to be carried along). Others read the
current policy alone and damp what it holds to be unlikely.

Arguments are those of `losses`; sg stops the gradient. SPO, CISPO,
TIS-REINFORCE and TOPR are policy gradients `x = −sg(w) A log π` that differ in
the weight w; TIS and decoupled PPO are PPO's clipped loss times a weight.
ASymPO and SPO: https://arxiv.org/abs/2606.03070
"""

import functools
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from saw_jax import losses, reductions
from saw_jax.reductions import Ratio
from saw_jax.types import Array

# (weights [B, T], what is bounded [B, T], least, greatest) -> weights
Bound = Callable[[Array, Array, float, float], Array]


def sequence_nll(log_probs: Array, completion_mask: Array) -> Array:
  """The mean −log π of a response's tokens, S `[B]`; 0 without tokens."""
  chex.assert_rank([log_probs, completion_mask], 2)
  return -reductions.all_mean(log_probs, axis=-1, where=completion_mask)


def asympo_loss(
  log_probs: Array,
  advantages: Array,
  completion_mask: Array,
  *,
  floor: float = 1e-6,  # least divisor: a response that is certain has S = 0
  p_low: float | None = None,
  p_high: float | None = None,
  scale_positives: bool = True,  # a control: whether those with A ≥ 0 and
  scale_negatives: bool = True,  # those with A < 0 are divided
  aggregate: losses.Aggregate = losses.sequence_mean_token_mean,
) -> Ratio:
  """Divides a response's loss by its own likelihood, held fixed.

  A good response that is certain already and a bad one that has become unlikely
  then push alike, and over whole groups the signed losses add up to 0 (under
  `sequence_mean_token_mean`). The gradient is that of the mean of A log S.

    x = −A log π / sg(max(S, floor)),   S_b = −1/n_b Σₜ m log π            (19)

  Beyond a bound a token has no gradient, but still counts in S:

    log π ← min(log π, log p_high)   where A ≥ 0
    log π ← max(log π, log p_low)    where A < 0

  A response without tokens does not count, where the paper divides by P · G.

  >>> l, mask = jnp.array([[-1.0, -3.0], [-4.0, -4.0]]), jnp.ones((2, 2), bool)
  >>> loss = asympo_loss(l, jnp.array([0.5, -0.5]), mask)
  >>> print(loss.value())
  0.0
  """
  log_probs = reductions.select(log_probs, completion_mask)
  advantages = losses.token_advantages(advantages, completion_mask)
  good = advantages >= 0
  if p_high is not None:
    # Where the mask is off, 0 becomes log p_high: `aggregate` and S skip it.
    held = log_probs > jnp.log(p_high)
    log_probs = jnp.where(good & held, jnp.log(p_high), log_probs)
  if p_low is not None:
    held = log_probs < jnp.log(p_low)
    log_probs = jnp.where(~good & held, jnp.log(p_low), log_probs)
  divisor = _least_nll(log_probs, completion_mask, floor)
  scaled = jnp.where(good, scale_positives, scale_negatives)
  divisor = jnp.where(scaled, divisor, 1.0)
  cost = -advantages.astype(log_probs.dtype)
  return aggregate(cost * log_probs / divisor, completion_mask)


def batch_asympo_loss(
  log_probs: Array,
  advantages: Array,
  completion_mask: Array,
  *,
  floor: float = 1e-6,
  aggregate: losses.Aggregate = losses.sequence_mean_token_mean,
) -> Ratio:
  """Divides by the batch's mean likelihood: a control for ASymPO.

    loss = Σ_b A S / sg(Σ_b max(S, floor))

  Its denominator depends on the parameters: an update needs a second pass.
  """
  plain = losses.policy_gradient_loss(
    log_probs, advantages, completion_mask, aggregate=aggregate
  )
  nll = _least_nll(log_probs, completion_mask, floor)
  nll = jnp.broadcast_to(nll, completion_mask.shape)
  return Ratio(plain.numerator, aggregate(nll, completion_mask).numerator)


# PPO's loss with one ratio for the whole response. GSPO, 2507.18071
gspo_loss = functools.partial(
  losses.clipped_surrogate_loss,
  clip_low=3e-4,
  clip_high=4e-4,
  clipped_ratio=losses.geometric_ratio,
  aggregate=losses.sequence_mean_token_mean,
)


def spo_loss(
  log_probs: Array,
  advantages: Array,
  completion_mask: Array,
  *,
  negative_weight: float = 0.2,  # α, from 0 to 1
  aggregate: losses.Aggregate = losses.sequence_mean_token_mean,
) -> Ratio:
  """Learns less from bad responses: `w = α where A < 0, 1 elsewhere` (17)."""
  bad = losses.token_advantages(advantages, completion_mask) < 0
  weights = jnp.where(bad, negative_weight, 1.0)
  return _weighted(weights, log_probs, advantages, completion_mask, aggregate)


def cispo_loss(
  log_probs: Array,
  old_log_probs: Array,
  advantages: Array,
  completion_mask: Array,
  *,
  r_min: float = 0.0,  # 1 − ε_low in the paper
  r_max: float = 5.0,  # 1 + ε_high in the paper
  aggregate: losses.Aggregate = losses.token_mean,
) -> Ratio:
  """Clips the ratio as a weight: `w = clip(π / π_old, r_min, r_max)`.

  MiniMax-M1, arXiv 2506.13585; ScaleRL, for the bounds, 2510.13786
  """
  ratio = losses.token_ratio(log_probs, old_log_probs, completion_mask)
  weights = jnp.clip(ratio, r_min, r_max)
  return _weighted(weights, log_probs, advantages, completion_mask, aggregate)


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
  """Truncates the ratio as IMPALA does (1802.01561): `w = min(π / μ, cap)`."""
  ratio = ratio_of(log_probs, behave_log_probs, completion_mask)
  weights = jnp.minimum(ratio, cap)
  return _weighted(weights, log_probs, advantages, completion_mask, aggregate)


def topr_loss(
  log_probs: Array,
  behave_log_probs: Array,
  advantages: Array,
  completion_mask: Array,
  *,
  ratio_of: losses.RatioOf = losses.sequence_ratio,
  aggregate: losses.Aggregate = losses.sequence_mean_token_sum,
) -> Ratio:
  """Tapers bad responses: `w = 1 where A ≥ 0, min(π / μ, 1) where A < 0` (8).

  ROLL has `ratio_of=token_ratio`. TOPR, https://arxiv.org/abs/2503.14286
  """
  ratio = ratio_of(log_probs, behave_log_probs, completion_mask)
  bad = losses.token_advantages(advantages, completion_mask) < 0
  weights = jnp.where(bad, jnp.minimum(ratio, 1.0), 1.0)
  return _weighted(weights, log_probs, advantages, completion_mask, aggregate)


def truncate(
  weights: Array, measured: Array, floor: float, cap: float
) -> Array:
  """Holds weights at the bounds that they are beyond: TIS."""
  del measured
  return jnp.clip(weights, floor, cap)


def drop(weights: Array, measured: Array, floor: float, cap: float) -> Array:
  """Makes weights 0 where what is measured is beyond a bound: IcePop."""
  return jnp.where((measured < floor) | (measured > cap), 0.0, weights)


def tis_loss(
  log_probs: Array,
  old_log_probs: Array,
  behave_log_probs: Array,
  advantages: Array,
  completion_mask: Array,
  *,
  floor: float = 0.0,
  cap: float = 2.0,  # c, the greatest weight
  outside: Bound = truncate,
  clip_low: float = 0.2,
  clip_high: float = 0.2,
  dual_clip: float | None = None,
  clipped_ratio: losses.RatioOf = losses.token_ratio,
  ratio_of: losses.RatioOf = losses.token_ratio,  # of the weight
  measured_by: losses.RatioOf | None = None,  # what the bounds are of, if other
  aggregate: losses.Aggregate = losses.token_mean,
) -> Ratio:
  """Weighs `losses.clipped_surrogate_loss` by `π_old / μ`, within bounds.

  For staleness, and inference engines with other log-probs than the trainer's.
  With `outside=drop` a weight beyond the bounds is 0, and its tokens still
  count below: IcePop by token, MIS by `sequence_ratio`; `seq-mask-tis` weighs
  tokens and is `measured_by` `geometric_ratio`. Yao et al. (2025), for TIS and
  its cap, fengyao.notion.site/off-policy-rl; IcePop, the Ling team (2025)
  """
  recorded = old_log_probs, behave_log_probs, completion_mask
  weights = ratio_of(*recorded)
  measured = weights if measured_by is None else measured_by(*recorded)
  weights = outside(weights, measured, floor, cap)
  return losses.clipped_surrogate_loss(
    *(log_probs, old_log_probs, advantages, completion_mask),
    **dict(clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip),
    clipped_ratio=clipped_ratio,
    aggregate=_weighed(weights, aggregate),
  )


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
  clipped_ratio: losses.RatioOf = losses.token_ratio,
  cap: float | None = None,
  aggregate: losses.Aggregate = losses.token_mean,
) -> Ratio:
  """Clips around a recent policy, and corrects from the one that sampled.

  PPO's loss times π_old / μ: a stale sampler does not hold the update back.
  Tokens with a weight above `cap` add 0, but are counted. Hilton et al. (2021),
  2110.00641; AReaL, for the cap, 2505.24298
  """
  weights = losses.token_ratio(old_log_probs, behave_log_probs, completion_mask)
  if cap is not None:
    weights = drop(weights, weights, 0.0, cap)
  return losses.clipped_surrogate_loss(
    *(log_probs, old_log_probs, advantages, completion_mask),
    **dict(clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip),
    clipped_ratio=clipped_ratio,
    aggregate=_weighed(weights, aggregate),
  )


def _weighted(weights, log_probs, advantages, mask, aggregate) -> Ratio:
  """The policy gradient of weighted tokens: `x = −sg(w) A log π`."""
  a = weights * losses.token_advantages(advantages, mask)
  return losses.policy_gradient_loss(log_probs, a, mask, aggregate=aggregate)


def _weighed(weights: Array, aggregate: losses.Aggregate) -> losses.Aggregate:
  """Multiplies the losses of tokens before they are averaged."""
  weights = jax.lax.stop_gradient(weights)
  return lambda x, completion_mask: aggregate(weights * x, completion_mask)


def _least_nll(log_probs: Array, completion_mask: Array, floor: float) -> Array:
  """max(S, floor), without gradient. `[B, 1]`."""
  nll = jax.lax.stop_gradient(sequence_nll(log_probs, completion_mask))
  return jnp.maximum(nll, floor)[:, None]
