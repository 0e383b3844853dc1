# SPDX-License-Identifier: Apache-2.0
"""From rewards to one advantage a response, relative to its group.

An estimator is `advantage(rewards [P, G, M], weights [M], *, scored, lengths,
penalties, axis_name) -> [P, G]` once its hyper-parameters are bound. A group is
an axis: nothing between the prompts and the update reorders rows.

A response to a prompt with `G = 1` has nothing to be compared with, and keeps
its reward, as in the reference code. In a larger group of which one response
is scored the comparison is missing by accident, so the group is like one whose
rewards are all alike: advantage 0. What is not scored has advantage 0, and no
part in any statistic. Rewards get no gradient.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from saw_jax import reductions
from saw_jax.types import Array

# (advantages [P, G], *, scored [P, G], lengths [P, G], axis_name) -> [P, G]
Whitening = Callable[..., Array]


def normalize_groups(
  rewards: Array,
  *,
  scored: Array | None = None,
  eps: float = 1e-6,
  ddof: int = 1,
) -> Array:
  """Standardises rewards within each group.

    Aⱼ = (rⱼ − mean_group) / (std_group + ε)

  A group of equal rewards has exactly 0, and a group of one r / (1 + ε).

  Args:
    rewards: one number a response. Shape `[..., G]`, normally `[P, G]`.
    scored: mask of the rewards that exist. The shape of `rewards`.
    eps: ε, added to the deviation.
    ddof: 1 for the sample's deviation (`torch.std`), 0 for the population's.

  Returns:
    The advantages, with their gradient stopped. The shape of `rewards`.

  References:
    GDPO, eq. (2) and (4). https://arxiv.org/abs/2601.05242

  >>> a = normalize_groups(jnp.array([[0.0, 1.0, 2.0]]))
  >>> print(jnp.array_str(a, precision=3))
  [[-1.  0.  1.]]
  """
  rewards = reductions.select(jax.lax.stop_gradient(rewards), scored)
  if rewards.shape[-1] == 1:
    return rewards / (1 + eps)
  std = reductions.all_std(
    rewards, axis=-1, where=scored, ddof=ddof, keepdims=True
  )
  deviations = reductions.all_deviations(rewards, axis=-1, where=scored)
  # With eps = 0 a constant group would be 0 / 0.
  return reductions.divide(deviations, std + eps)


def grpo(
  rewards: Array,
  weights: Array,
  *,
  scored: Array | None = None,
  lengths: Array | None = None,
  penalties: Array | None = None,
  axis_name: str | None = None,
  eps: float = 1e-6,
  ddof: int = 1,
) -> Array:
  """Standardises the weighted sum of a response's rewards in its group.

    rⱼ = Σₘ wₘ rₘⱼ − penaltyⱼ,   Aⱼ = (rⱼ − mean_group) / (std_group + ε)

  A common factor of the weights cancels, up to ε and to groups of one.

  Args:
    rewards: reward of each response in each component. Shape `[P, G, M]`.
    weights: weight of each component. Shape `[M]`.
    scored: mask of the rewards that exist; a response counts if all of its
      components are scored. Shape `[P, G, M]`.
    lengths: not read.
    penalties: subtracted from the weighted sum, e.g. a KL. Shape `[P, G]`.
    axis_name: not read: a group is on one device.
    eps: ε, added to the deviation.
    ddof: 1 for the sample's deviation, 0 for the population's.

  Returns:
    The advantages, with their gradient stopped. Shape `[P, G]`.

  References:
    GRPO, https://arxiv.org/abs/2402.03300

  >>> r = jnp.array([[[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]])
  >>> print(jnp.array_str(grpo(r, jnp.ones(2)), precision=3))
  [[-1.  0.  1.]]
  """
  del lengths, axis_name
  combined, whole = _combine(rewards, weights, scored, penalties)
  return normalize_groups(combined, scored=whole, eps=eps, ddof=ddof)


def dr_grpo(
  rewards: Array,
  weights: Array,
  *,
  scored: Array | None = None,
  lengths: Array | None = None,
  penalties: Array | None = None,
  axis_name: str | None = None,
) -> Array:
  """Subtracts the group's mean and leaves its deviation alone.

  Dividing by the deviation favours prompts that are nearly always, or nearly
  never, solved.

    Aⱼ = rⱼ − mean_group

  Args:
    rewards: reward of each response in each component. Shape `[P, G, M]`.
    weights: weight of each component. Shape `[M]`.
    scored: mask of the rewards that exist. Shape `[P, G, M]`.
    lengths: not read.
    penalties: subtracted from the weighted sum, e.g. a KL. Shape `[P, G]`.
    axis_name: not read: a group is on one device.

  Returns:
    The advantages, with their gradient stopped. Shape `[P, G]`.

  References:
    Dr. GRPO, https://arxiv.org/abs/2503.20783

  >>> print(dr_grpo(jnp.array([[[0.0], [1.0], [5.0]]]), jnp.ones(1)))
  [[-2. -1.  3.]]
  """
  del lengths, axis_name
  combined, whole = _combine(rewards, weights, scored, penalties)
  return _center_groups(combined, whole)


def rloo(
  rewards: Array,
  weights: Array,
  *,
  scored: Array | None = None,
  lengths: Array | None = None,
  penalties: Array | None = None,
  axis_name: str | None = None,
) -> Array:
  """Subtracts the mean of the *other* responses of the group.

    Aⱼ = rⱼ − 1/(n−1) Σₖ≠ⱼ rₖ = n/(n−1) (rⱼ − mean_group)

  Args:
    rewards: reward of each response in each component. Shape `[P, G, M]`.
    weights: weight of each component. Shape `[M]`.
    scored: mask of the rewards that exist; `n` counts those. Shape `[P, G, M]`.
    lengths: not read.
    penalties: subtracted from the weighted sum, e.g. a KL. Shape `[P, G]`.
    axis_name: not read: a group is on one device.

  Returns:
    The advantages, with their gradient stopped. Shape `[P, G]`.

  References:
    RLOO, https://arxiv.org/abs/2402.14740

  >>> print(rloo(jnp.array([[[0.0], [1.0], [5.0]]]), jnp.ones(1)))
  [[-3.  -1.5  4.5]]
  """
  del lengths, axis_name
  combined, whole = _combine(rewards, weights, scored, penalties)
  centered = _center_groups(combined, whole)
  count = reductions.all_sum(
    jnp.ones_like(combined), axis=-1, where=whole, keepdims=True
  )
  # A group of one has no others, and is left as it is.
  return centered * count / jnp.maximum(count - 1, 1)


def gpg(
  rewards: Array,
  weights: Array,
  *,
  scored: Array | None = None,
  lengths: Array | None = None,
  penalties: Array | None = None,
  axis_name: str | None = None,
  f_norm: float = 1.0,
) -> Array:
  """Subtracts the group's mean, and makes up for groups that say nothing.

  Groups whose rewards are all alike have advantage 0 but count in the loss's
  average, so the others are raised by the share that they are of the batch:

    Aⱼ = α (rⱼ − mean_group) / F,   α = groups / groups whose rewards vary

  Args:
    rewards: reward of each response in each component. Shape `[P, G, M]`.
    weights: weight of each component. Shape `[M]`.
    scored: mask of the rewards that exist; a group of which no response is
      scored is not counted. Shape `[P, G, M]`.
    lengths: not read.
    penalties: subtracted from the weighted sum, e.g. a KL. Shape `[P, G]`.
    axis_name: device axis that the prompts are split over.
    f_norm: F, a constant.

  Returns:
    The advantages, with their gradient stopped; if no group varies, α is 1.
    Shape `[P, G]`.

  References:
    GPG, https://arxiv.org/abs/2504.02546

  >>> r = jnp.array([[[0.0], [1.0]], [[1.0], [1.0]]])
  >>> print(gpg(r, jnp.ones(1)))
  [[-1.  1.]
   [ 0.  0.]]
  """
  del lengths
  combined, whole = _combine(rewards, weights, scored, penalties)
  alpha = _inverse_share(
    _varied(combined, whole).astype(combined.dtype),
    None if whole is None else jnp.any(whole, axis=-1),
    axis_name=axis_name,
  )
  return alpha * _center_groups(combined, whole) / f_norm


def gpg_nonzero(
  rewards: Array,
  weights: Array,
  *,
  scored: Array | None = None,
  lengths: Array | None = None,
  penalties: Array | None = None,
  axis_name: str | None = None,
  f_norm: float = 1.0,
) -> Array:
  """Subtracts the group's mean, and makes up for responses without reward.

  verl's form of `gpg`. With rewards of 0 and 1, α is one over the accuracy, and
  grows as the policy gets worse.

    Aⱼ = α (rⱼ − mean_group) / F,   α = responses / responses with r ≠ 0

  Args:
    rewards: reward of each response in each component. Shape `[P, G, M]`.
    weights: weight of each component. Shape `[M]`.
    scored: mask of the rewards that exist. Shape `[P, G, M]`.
    lengths: not read.
    penalties: subtracted from the weighted sum, e.g. a KL. Shape `[P, G]`.
    axis_name: device axis that the prompts are split over.
    f_norm: F, a constant.

  Returns:
    The advantages, with their gradient stopped; if all rewards are 0, α is 1.
    Shape `[P, G]`.

  References:
    GPG, https://arxiv.org/abs/2504.02546, as in verl's `gpg` estimator.

  >>> r = jnp.array([[[0.0], [1.0]], [[1.0], [1.0]]])
  >>> print(jnp.array_str(gpg_nonzero(r, jnp.ones(1)), precision=3))
  [[-0.667  0.667]
   [ 0.     0.   ]]
  """
  del lengths
  combined, whole = _combine(rewards, weights, scored, penalties)
  alpha = _inverse_share(
    (combined != 0).astype(combined.dtype), whole, axis_name=axis_name
  )
  return alpha * _center_groups(combined, whole) / f_norm


def varied_groups(
  rewards: Array, weights: Array, *, scored: Array | None = None
) -> Array:
  """Says which groups have something to compare.

  The others have no advantage. Dynamic sampling leaves them out and samples
  other prompts in their place, which is the business of the loop.

  Args:
    rewards: reward of each response in each component. Shape `[P, G, M]`.
    weights: weight of each component. Rewards that differ but add up to the
      same do not vary. Shape `[M]`.
    scored: mask of the rewards that exist; a response counts if all of its
      components are scored. Shape `[P, G, M]`.

  Returns:
    True where two scored responses of the group differ. Shape `[P]`, boolean.

  References:
    DAPO, https://arxiv.org/abs/2503.14476

  >>> r = jnp.array([[[0.0], [1.0]], [[1.0], [1.0]]])
  >>> print(varied_groups(r, jnp.ones(1)))
  [ True False]
  """
  return _varied(*_combine(rewards, weights, scored, None))


def token_whiten(
  advantages: Array,
  *,
  scored: Array | None = None,
  lengths: Array | None,
  axis_name: str | None = None,
  eps: float = 1e-8,
) -> Array:
  """Standardises advantages over the completion tokens of the batch.

  A response counts as often as it has tokens, so long ones weigh more: the form
  of the reference code, unlike eq. (6) of the paper.

    n = Σⱼ Lⱼ,   m = Σⱼ Lⱼ Aⱼ / n,   v = Σⱼ Lⱼ (Aⱼ − m)² / (n − 1)
    A′ⱼ = (Aⱼ − m) / √(v + ε)

  Args:
    advantages: one number a response. Any shape, normally `[P, G]`.
    scored: mask of the responses that count. The shape of `advantages`.
    lengths: L, completion tokens of each response. The shape of `advantages`.
    axis_name: device axis that the responses are split over.
    eps: ε, added to the variance.

  Returns:
    The whitened advantages, with their gradient stopped; 0 where not scored,
    and everywhere if the responses do not differ or have no tokens. The shape
    of `advantages`.

  Raises:
    ValueError: `lengths` are missing.

  References:
    GDPO, eq. (6), and its verl code. https://arxiv.org/abs/2601.05242

  >>> a = token_whiten(jnp.array([1.0, -1.0]), lengths=jnp.array([3, 1]))
  >>> print(jnp.array_str(a, precision=3))
  [ 0.5 -1.5]
  """
  if lengths is None:
    raise ValueError(
      "token_whiten weighs a response by its completion tokens: give lengths, "
      "or whiten with sequence_whiten"
    )
  over = dict(where=scored, weights=lengths, axis_name=axis_name)
  advantages = jax.lax.stop_gradient(advantages)
  var = reductions.all_var(advantages, ddof=1, **over)
  deviations = reductions.all_deviations(advantages, **over)
  return reductions.divide(deviations, reductions.square_root(var + eps))


def sequence_whiten(
  advantages: Array,
  *,
  scored: Array | None = None,
  lengths: Array | None = None,
  axis_name: str | None = None,
  eps: float = 1e-4,
) -> Array:
  """Standardises advantages over the responses of the batch.

  Each response counts once, as in the paper and in its TRL code.

    A′ⱼ = (Aⱼ − mean_batch) / (std_batch + ε)                               (6)

  Args:
    advantages: one number a response. Any shape, normally `[P, G]`.
    scored: mask of the responses that count. The shape of `advantages`.
    lengths: not read.
    axis_name: device axis that the responses are split over.
    eps: ε, added to the sample's deviation.

  Returns:
    The whitened advantages, with their gradient stopped; 0 where not scored,
    and everywhere if the responses do not differ. The shape of `advantages`.

  References:
    GDPO, eq. (6). https://arxiv.org/abs/2601.05242

  >>> a = sequence_whiten(jnp.array([0.0, 1.0, 2.0]))
  >>> print(jnp.array_str(a, precision=3))
  [-1.  0.  1.]
  """
  del lengths
  over = dict(where=scored, axis_name=axis_name)
  advantages = jax.lax.stop_gradient(advantages)
  std = reductions.all_std(advantages, ddof=1, **over)
  deviations = reductions.all_deviations(advantages, **over)
  return reductions.divide(deviations, std + eps)


def reinforce_plus_plus_baseline(
  rewards: Array,
  weights: Array,
  *,
  scored: Array | None = None,
  lengths: Array | None = None,
  penalties: Array | None = None,
  axis_name: str | None = None,
  whiten: Whitening = token_whiten,
) -> Array:
  """Subtracts the group's mean, then standardises over the batch.

    A = whiten(r − mean_group)

  Args:
    rewards: reward of each response in each component. Shape `[P, G, M]`.
    weights: weight of each component. Shape `[M]`.
    scored: mask of the rewards that exist. Shape `[P, G, M]`.
    lengths: completion tokens of each response. Shape `[P, G]`.
    penalties: subtracted from the weighted sum, e.g. a KL. Shape `[P, G]`.
    axis_name: device axis that the prompts are split over.
    whiten: `token_whiten` or `sequence_whiten`.

  Returns:
    The advantages, with their gradient stopped. Shape `[P, G]`.

  Raises:
    ValueError: `lengths` are missing and `whiten` needs them.

  References:
    REINFORCE++, https://arxiv.org/abs/2501.03262

  >>> r = jnp.array([[[0.0], [2.0]], [[1.0], [3.0]]])
  >>> a = reinforce_plus_plus_baseline(r, jnp.ones(1), whiten=sequence_whiten)
  >>> print(jnp.array_str(a, precision=3))
  [[-0.866  0.866]
   [-0.866  0.866]]
  """
  combined, whole = _combine(rewards, weights, scored, penalties)
  return whiten(
    _center_groups(combined, whole),
    scored=whole,
    lengths=lengths,
    axis_name=axis_name,
  )


def gdpo(
  rewards: Array,
  weights: Array,
  *,
  scored: Array | None = None,
  lengths: Array | None = None,
  penalties: Array | None = None,
  axis_name: str | None = None,
  eps: float = 1e-6,
  whiten: Whitening | None = token_whiten,
) -> Array:
  """Standardises each component in its group, adds up, and whitens the sum.

  Rewards of different combinations stay apart that GRPO's sum makes equal.

    Aₘ = (rₘ − mean_group) / (std_group + ε)                                (4)
    A = whiten(Σₘ wₘ Aₘ)                                                 (6)(7)

  TRL's form is `eps=1e-4, whiten=sequence_whiten`.

  Args:
    rewards: reward of each response in each component. Shape `[P, G, M]`.
    weights: weight of each component. Shape `[M]`.
    scored: mask of the rewards that exist. A component that is not scored adds
      0; a response with none scored is left out. Shape `[P, G, M]`.
    lengths: completion tokens of each response. Shape `[P, G]`.
    penalties: must be `None`.
    axis_name: device axis that the prompts are split over.
    eps: ε, added to the deviation of a group.
    whiten: `token_whiten`, `sequence_whiten`, or `None` for the sum as it is.

  Returns:
    The advantages, with their gradient stopped. Shape `[P, G]`.

  Raises:
    ValueError: `penalties` are given, or `lengths` are missing and `whiten`
      needs them.

  References:
    GDPO, https://arxiv.org/abs/2601.05242

  >>> r = jnp.array([[[0.0, 9.0], [1.0, 9.0], [2.0, 9.0]]])
  >>> print(jnp.array_str(gdpo(r, jnp.ones(2), whiten=None), precision=3))
  [[-1.  0.  1.]]
  """
  if penalties is not None:
    # Differs from the reference code, which drops them without a word.
    raise ValueError(
      "gdpo normalises each component on its own, so a penalty in the reward "
      "has no place in it: put the KL in the loss, or use grpo"
    )
  _check(rewards, weights, scored, lengths)
  rewards = jnp.moveaxis(jnp.asarray(rewards), -1, 0)
  by_component = normalize_groups(
    rewards,
    scored=None if scored is None else jnp.moveaxis(scored, -1, 0),
    eps=eps,
  )
  total = _weighted_sum(jnp.moveaxis(by_component, 0, -1), weights)
  if whiten is None:
    return total
  return whiten(
    total,
    scored=None if scored is None else jnp.any(scored, axis=-1),
    lengths=lengths,
    axis_name=axis_name,
  )


def condition_rewards(
  rewards: Array, *, component: int, on: int, threshold: float
) -> Array:
  """Grants an easy reward only where a hard one is earned.

  Weights alone do not make a policy prefer the harder objective; this does.

    rₘ ← rₘ if rₗ ≥ t else 0                                                (8)

  Args:
    rewards: reward of each response in each component. Shape `[..., M]`.
    component: m, the reward that is conditioned.
    on: l, the reward that it depends on.
    threshold: t, what that reward has to reach.

  Returns:
    The rewards, with that component replaced. Where `on` is not scored,
    `condition_scored` takes the component away too. The shape of `rewards`.

  References:
    GDPO, eq. (8). https://arxiv.org/abs/2601.05242

  >>> r = jnp.array([[1.0, 1.0], [0.0, 1.0]])
  >>> print(condition_rewards(r, component=1, on=0, threshold=1.0))
  [[1. 1.]
   [0. 0.]]
  """
  rewards = reductions.at_least_float32(rewards)
  earned = rewards[..., on] >= threshold
  return rewards.at[..., component].set(
    jnp.where(earned, rewards[..., component], 0.0)
  )


def condition_scored(scored: Array, *, component: int, on: int) -> Array:
  """Leaves a conditioned reward unscored where its condition is unscored.

  Args:
    scored: mask of the rewards that exist. Shape `[..., M]`.
    component: the reward that is conditioned.
    on: the reward that it depends on.

  Returns:
    The mask that belongs to `condition_rewards`. The shape of `scored`.

  References:
    GDPO, eq. (8). https://arxiv.org/abs/2601.05242

  >>> print(condition_scored(jnp.array([False, True]), component=1, on=0))
  [False False]
  """
  scored = jnp.asarray(scored, bool)
  return scored.at[..., component].set(scored[..., component] & scored[..., on])


def _check(
  rewards: Array,
  weights: Array,
  scored: Array | None,
  per_response: Array | None,
) -> None:
  """Static checks that the estimators share."""
  chex.assert_rank([rewards, weights], [3, 1])
  chex.assert_shape(weights, rewards.shape[-1:])
  if scored is not None:
    chex.assert_equal_shape([rewards, scored])
  if per_response is not None:
    chex.assert_shape(per_response, rewards.shape[:-1])


def _weighted_sum(x: Array, weights: Array) -> Array:
  """Σₘ wₘ xₘ, not as a matrix product, which is bfloat16 on some devices."""
  weights = jax.lax.stop_gradient(weights).astype(x.dtype)
  return jnp.sum(x * weights[None, None], axis=-1)


def _combine(
  rewards: Array,
  weights: Array,
  scored: Array | None,
  penalties: Array | None,
) -> tuple[Array, Array | None]:
  """One reward a response, and which responses are scored in everything."""
  _check(rewards, weights, scored, penalties)
  rewards = reductions.select(jax.lax.stop_gradient(rewards), scored)
  combined = _weighted_sum(rewards, weights)
  if penalties is not None:
    combined -= jax.lax.stop_gradient(penalties).astype(combined.dtype)
  return combined, None if scored is None else jnp.all(scored, axis=-1)


def _center_groups(combined: Array, scored: Array | None) -> Array:
  """Rewards less their group's mean; a group of one as it is."""
  if combined.shape[-1] == 1:
    return reductions.select(combined, scored)
  return reductions.all_deviations(combined, axis=-1, where=scored)


def _varied(combined: Array, scored: Array | None) -> Array:
  """Whether the scored rewards of each group differ."""
  over = dict(axis=-1, where=scored)
  # Compared, not subtracted: a deviation of rounding errors is not 0.
  return reductions.all_max(combined, **over) > reductions.all_min(
    combined, **over
  )


def _inverse_share(
  counted: Array, where: Array | None, *, axis_name: str | None
) -> Array:
  """One over the share of the batch that is `counted`; 1 if none is."""
  over = dict(where=where, axis_name=axis_name)
  count = reductions.all_sum(counted, **over)
  total = reductions.all_sum(jnp.ones_like(counted), **over)
  return jnp.where(count > 0, reductions.divide(total, count), 1.0)
