# SPDX-License-Identifier: Apache-2.0
"""From rewards to one advantage a response, relative to its group.

`combine` makes one score a response out of rewards `[P, G, M]` and weights
`[M]`; an estimator compares scores `[..., G]` within their group; a whitening
goes over the batch. What has the name of a method is made of these:

    advantage(rewards, weights, *, scored=None, ...) -> [P, G]

`scored` is the mask of the rewards that exist, of their shape (a response
counts if all of its components are scored), `penalties [P, G]` are subtracted
from the weighted sum (a KL, say), `lengths [P, G]` are completion tokens, and
`axis_name` is the device axis that prompts are split over. A method names those
that it reads, and is given these.

A response to a prompt with `G = 1` has nothing to be compared with, and keeps
its reward, as in the reference code; where one of a larger group is scored its
advantage is 0. What is not scored has advantage 0, and no part in any
statistic. No gradient flows. Papers are arXiv numbers or addresses.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from saw_jax import reductions
from saw_jax.types import Array, Axis, Mask

Estimator = Callable[..., Array]  # (scores [..., G], *, scored) -> [..., G]
Whitening = Callable[..., Array]  # (advantages, *, scored, lengths, axis_name)
# (scores [P, G], scored [P, G]) -> what counts, and among what
Counted = Callable[[Array, Mask], tuple[Array, Mask]]


def combine(
  rewards: Array, weights: Array, scored: Mask = None, penalties: Mask = None
) -> tuple[Array, Mask]:
  """One score a response, `sⱼ = Σₘ wₘ rₘⱼ − penaltyⱼ`, and which are whole."""
  chex.assert_rank(rewards, 3)
  rewards = reductions.select(jax.lax.stop_gradient(rewards), scored)
  scores = weighted_sum(rewards, weights)
  if penalties is not None:
    chex.assert_equal_shape([scores, penalties])
    scores -= jax.lax.stop_gradient(penalties).astype(scores.dtype)
  return scores, None if scored is None else jnp.all(scored, axis=-1)


def normalize_groups(
  scores: Array, *, scored: Mask = None, eps: float = 1e-6, ddof: int = 1
) -> Array:
  """Standardises scores in their group: `(sⱼ − mean) / (std + eps)`.

  `ddof` is 1 for the sample's deviation (`torch.std`), 0 for the population's.
  A group of equal scores has exactly 0, and a group of one s / (1 + eps).
  GDPO, eq. (2) and (4). https://arxiv.org/abs/2601.05242

  >>> a = normalize_groups(jnp.array([[0.0, 1.0, 2.0]]))
  >>> print(jnp.array_str(a, precision=3))
  [[-1.  0.  1.]]
  """
  scores = reductions.select(jax.lax.stop_gradient(scores), scored)
  if scores.shape[-1] == 1:
    return scores / (1 + eps)
  group = dict(axis=-1, where=scored)
  std = reductions.all_std(scores, ddof=ddof, keepdims=True, **group)
  deviations = reductions.all_deviations(scores, **group)
  # With eps = 0 a constant group would be 0 / 0.
  return reductions.divide(deviations, std + eps)


def normalize_components(
  rewards: Array, scored: Mask = None, eps: float = 1e-6
) -> tuple[Array, Mask]:
  """`normalize_groups` of each component, and which responses have any."""
  chex.assert_rank(rewards, 3)
  components, some = jnp.moveaxis(jnp.asarray(rewards), -1, 0), None
  if scored is not None:
    some, scored = jnp.any(scored, axis=-1), jnp.moveaxis(scored, -1, 0)
  components = normalize_groups(components, scored=scored, eps=eps)
  return jnp.moveaxis(components, 0, -1), some


def center_groups(scores: Array, *, scored: Mask = None) -> Array:
  """Subtracts the group's mean. Dr. GRPO, https://arxiv.org/abs/2503.20783"""
  scores = jax.lax.stop_gradient(scores)
  if scores.shape[-1] == 1:
    return reductions.select(scores, scored)
  return reductions.all_deviations(scores, axis=-1, where=scored)


def leave_one_out(scores: Array, *, scored: Mask = None) -> Array:
  """Subtracts the mean of the *other* scores of the group.

    Aⱼ = sⱼ − 1/(n−1) Σₖ≠ⱼ sₖ = n/(n−1) (sⱼ − mean)

  RLOO, https://arxiv.org/abs/2402.14740
  """
  ones = jnp.ones_like(reductions.at_least_float32(scores))
  count = reductions.all_sum(ones, axis=-1, where=scored, keepdims=True)
  # A group of one has no others, and is left as it is.
  factor = reductions.divide(count, jnp.maximum(count - 1, 1))
  return center_groups(scores, scored=scored) * factor


def token_whiten(
  advantages: Array,
  *,
  scored: Mask = None,
  lengths: Array | None,
  axis_name: Axis = None,
  eps: float = 1e-8,
) -> Array:
  """Standardises advantages over the completion tokens of the batch.

    n = Σⱼ Lⱼ,   m = Σⱼ Lⱼ Aⱼ / n,   v = Σⱼ Lⱼ (Aⱼ − m)² / (n − 1)
    A′ⱼ = (Aⱼ − m) / √(v + eps)

  Long responses weigh more: the form of GDPO's verl code, unlike eq. (6) of the
  paper. 0 if the responses do not differ; a `ValueError` without lengths L.
  """
  if lengths is None:
    raise ValueError("token_whiten needs lengths; sequence_whiten does not")
  batch = dict(where=scored, weights=lengths, axis_name=axis_name)
  advantages = jax.lax.stop_gradient(advantages)
  var = reductions.all_var(advantages, ddof=1, **batch)
  deviations = reductions.all_deviations(advantages, **batch)
  return reductions.divide(deviations, reductions.square_root(var + eps))


def sequence_whiten(
  advantages: Array,
  *,
  scored: Mask = None,
  lengths: Array | None = None,
  axis_name: Axis = None,
  eps: float = 1e-4,
) -> Array:
  """`(Aⱼ − mean) / (std + eps)` over responses: GDPO, eq. (6), and TRL."""
  batch = dict(where=scored, axis_name=axis_name)
  advantages = jax.lax.stop_gradient(advantages)
  std = reductions.all_std(advantages, ddof=1, **batch)
  deviations = reductions.all_deviations(advantages, **batch)
  return reductions.divide(deviations, std + eps)


def grpo(
  rewards: Array,
  weights: Array,
  *,
  scored: Mask = None,
  penalties: Array | None = None,
  eps: float = 1e-6,
  ddof: int = 1,
) -> Array:
  """Standardises the weighted sum of rewards in its group. GRPO, 2402.03300"""
  scores, whole = combine(rewards, weights, scored, penalties)
  return normalize_groups(scores, scored=whole, eps=eps, ddof=ddof)


def dr_grpo(
  rewards: Array,
  weights: Array,
  *,
  scored: Mask = None,
  lengths: Array | None = None,
  penalties: Array | None = None,
  axis_name: Axis = None,
  whiten: Whitening | None = None,
) -> Array:
  """Subtracts the group's mean and leaves its deviation alone.

  Dividing favours prompts that are nearly always, or nearly never, solved.
  Dr. GRPO, 2503.20783; REINFORCE++ with a baseline, 2501.03262, whitens tokens.
  """
  scores, whole = combine(rewards, weights, scored, penalties)
  centered = center_groups(scores, scored=whole)
  if whiten is None:
    return centered
  return whiten(centered, scored=whole, lengths=lengths, axis_name=axis_name)


def rloo(
  rewards: Array, weights: Array, *, scored: Mask = None, penalties: Mask = None
) -> Array:
  """Subtracts the others' mean reward. RLOO, 2402.14740"""
  scores, whole = combine(rewards, weights, scored, penalties)
  return leave_one_out(scores, scored=whole)


def varied(scores: Array, scored: Mask = None) -> tuple[Array, Mask]:
  """Which groups have two scored responses that differ, among which. `[P]`."""
  # Compared, not subtracted: a deviation of rounding errors is not 0.
  least = reductions.all_min(scores, axis=-1, where=scored)
  differs = reductions.all_max(scores, axis=-1, where=scored) > least
  return differs, None if scored is None else jnp.any(scored, axis=-1)


def rewarded(scores: Array, scored: Mask = None) -> tuple[Array, Mask]:
  """Which responses have a score other than 0, among which. `[P, G]`."""
  return scores != 0, scored


def gpg(
  rewards: Array,
  weights: Array,
  *,
  scored: Mask = None,
  penalties: Array | None = None,
  axis_name: Axis = None,
  f_norm: float = 1.0,  # F
  counted: Counted = varied,
) -> Array:
  """Subtracts the group's mean, and makes up for what says nothing.

    Aⱼ = α (sⱼ − mean) / F,   α = all / counted,   1 if none is

  Groups whose scores are all alike have advantage 0 but count in the loss's
  average. The paper counts groups that are `varied`, and verl's form responses
  that are `rewarded`: with rewards of 0 and 1 its α is one over the accuracy,
  and grows as the policy gets worse. GPG, https://arxiv.org/abs/2504.02546
  """
  scores, whole = combine(rewards, weights, scored, penalties)
  ones, among = counted(scores, whole)
  count, total = (
    reductions.all_sum(x, where=among, axis_name=axis_name)
    for x in (ones, jnp.ones_like(ones))
  )
  alpha = jnp.where(count > 0, reductions.divide(total, count), 1.0)
  return alpha * center_groups(scores, scored=whole) / f_norm


def gdpo(
  rewards: Array,
  weights: Array,
  *,
  scored: Mask = None,
  lengths: Array | None = None,
  axis_name: Axis = None,
  eps: float = 1e-6,
  whiten: Whitening | None = token_whiten,
) -> Array:
  """Standardises each component in its group, adds up, and whitens the sum.

  Keeps apart combinations of rewards that GRPO's sum would merge.

    Aₘ = (rₘ − mean_group) / (std_group + eps)                              (4)
    A = whiten(Σₘ wₘ Aₘ)                                                 (6)(7)

  TRL's form is `eps=1e-4, whiten=sequence_whiten`. A component that is not
  scored adds 0; a response counts if any is scored. A penalty has no place here
  (the reference code drops it): put a KL in the loss. arXiv 2601.05242

  >>> r = jnp.array([[[0.0, 9.0], [1.0, 9.0], [2.0, 9.0]]])
  >>> print(jnp.array_str(gdpo(r, jnp.ones(2), whiten=None), precision=3))
  [[-1.  0.  1.]]
  """
  components, some = normalize_components(rewards, scored, eps)
  total = weighted_sum(components, weights)
  if whiten is None:
    return total
  return whiten(total, scored=some, lengths=lengths, axis_name=axis_name)


def varied_groups(
  rewards: Array, weights: Array, *, scored: Mask = None
) -> Array:
  """Which groups, `[P]`, have weighted sums that differ. DAPO, 2503.14476"""
  return varied(*combine(rewards, weights, scored))[0]


def weighted_sum(x: Array, weights: Array) -> Array:
  """Σₘ wₘ xₘ, not as a matrix product, which is bfloat16 on some devices."""
  chex.assert_shape(weights, x.shape[-1:])
  weights = jax.lax.stop_gradient(weights).astype(x.dtype)
  return jnp.sum(x * weights[None, None], axis=-1)
