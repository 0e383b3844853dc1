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

Where an episode has several steps, `step_grpo` and `gigpo` give each its own
advantage: rewards and results are `[P, G, E]`, with a mask of the steps that
were taken.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from saw_jax import reductions
from saw_jax.types import Array

# (advantages [P, G], *, scored [P, G], lengths [P, G], axis_name) -> [P, G]
Whitening = Callable[..., Array]
# (rewards [..., G], *, scored [..., G]) -> [..., G]
Normalization = Callable[..., Array]


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


def center_groups(rewards: Array, *, scored: Array | None = None) -> Array:
  """Subtracts the group's mean, and divides by nothing.

  What may take the place of `normalize_groups` in the estimators of steps
  ("mean_norm" of verl-agent).

  Args:
    rewards: one number a response. Shape `[..., G]`.
    scored: mask of the rewards that exist. The shape of `rewards`.

  Returns:
    The advantages, with their gradient stopped; 0 in a group of equal rewards,
    and a group of one as it is. The shape of `rewards`.

  References:
    Dr. GRPO, https://arxiv.org/abs/2503.20783

  >>> print(center_groups(jnp.array([[0.0, 1.0, 5.0]])))
  [[-2. -1.  3.]]
  """
  return _center_groups(jax.lax.stop_gradient(rewards), scored)


def leave_one_out(rewards: Array, *, scored: Array | None = None) -> Array:
  """Subtracts from each reward the mean of the others in its group.

    Aⱼ = (rⱼ − mean_group) n / (n − 1)

  Args:
    rewards: one number a response. Shape `[..., G]`.
    scored: mask of the rewards that exist. The shape of `rewards`.

  Returns:
    The advantages, with their gradient stopped; 0 for one alone. The shape of
    `rewards`.

  References:
    RLOO, https://arxiv.org/abs/2402.14740

  >>> print(leave_one_out(jnp.array([[0.0, 1.0, 2.0]])))
  [[-1.5  0.   1.5]]
  """
  rewards = reductions.select(jax.lax.stop_gradient(rewards), scored)
  deviations = reductions.all_deviations(rewards, axis=-1, where=scored)
  count = reductions.all_sum(
    jnp.ones_like(rewards), axis=-1, where=scored, keepdims=True
  )
  return deviations * reductions.divide(count, count - 1)


def step_returns(rewards: Array, steps: Array, *, gamma: float = 0.95) -> Array:
  """Adds up what each step and the later ones were paid.

    Rₜ = Σ_{k≥t} γ^(k−t) rₖ

  Args:
    rewards: r, of each step of each episode. Shape `[P, G, E]`.
    steps: mask of the steps that were taken, from the first on. Shape
      `[P, G, E]`.
    gamma: γ.

  Returns:
    R, with its gradient stopped; 0 where the mask is off. Shape `[P, G, E]`.

  References:
    GiGPO, https://arxiv.org/abs/2505.10978

  >>> r = jnp.array([[[0.0, 0.0, 8.0]]])
  >>> print(step_returns(r, jnp.ones_like(r), gamma=0.5))
  [[[2. 4. 8.]]]
  """
  chex.assert_rank([rewards, steps], 3)
  rewards = reductions.select(jax.lax.stop_gradient(rewards), steps)

  def add(later, reward):
    total = reward + gamma * later
    return total, total

  _, returns = jax.lax.scan(
    add,
    jnp.zeros_like(rewards[..., 0]),
    jnp.moveaxis(rewards, -1, 0),
    reverse=True,
  )
  return reductions.select(jnp.moveaxis(returns, 0, -1), steps)


def step_grpo(
  rewards: Array,
  steps: Array,
  *,
  penalties: Array | None = None,
  normalize: Normalization = normalize_groups,
) -> Array:
  """Standardises episodes' returns over all steps of a group.

    sₜ = Σₖ rₖ − penaltyₜ,   A = (s − mean_steps) / (std_steps + ε)

  A long episode has more steps and weighs more. An invalid step's penalty is
  its own; in a group that always fails it is the only difference there is, and
  gets an advantage of order 1.

  Args:
    rewards: r, of each step of each episode. Shape `[P, G, E]`.
    steps: mask of the steps that were taken. Shape `[P, G, E]`.
    penalties: subtracted from the step's own score. Shape `[P, G, E]`.
    normalize: `normalize_groups` or `center_groups`.

  Returns:
    The advantages of the steps, with their gradient stopped; 0 where the mask
    is off and in groups whose scores are all alike. Shape `[P, G, E]`.

  References:
    GRPO as in verl-agent's agent loop. https://arxiv.org/abs/2402.03300

  >>> r = jnp.array([[[0.0, 1.0], [0.0, 0.0]]])
  >>> print(step_grpo(r, jnp.ones_like(r), normalize=center_groups))
  [[[ 0.5  0.5]
    [-0.5 -0.5]]]
  """
  scores = _step_scores(rewards, steps, penalties)
  flat = (scores.shape[0], -1)
  advantages = normalize(
    scores.reshape(flat), scored=jnp.asarray(steps, bool).reshape(flat)
  )
  return advantages.reshape(scores.shape)


def trajectory_grpo(
  rewards: Array,
  steps: Array,
  *,
  penalties: Array | None = None,
  eps: float = 1e-6,
) -> Array:
  """Standardises steps' scores by the mean and deviation of episodes.

    sₜ = Σₖ rₖ − penaltyₜ,   A = (s − mean_episodes) / (std_episodes + ε)

  Each episode counts once in the statistics, without penalties. Where all
  episodes end alike there is no deviation, and a penalty is divided by ε: use
  it without penalties, or use `step_grpo`.

  Args:
    rewards: r, of each step of each episode. Shape `[P, G, E]`.
    steps: mask of the steps that were taken. Shape `[P, G, E]`.
    penalties: subtracted from the step's own score. Shape `[P, G, E]`.
    eps: ε, added to the sample's deviation.

  Returns:
    The advantages of the steps, with their gradient stopped. Shape `[P, G, E]`.

  References:
    GRPO, https://arxiv.org/abs/2402.03300

  >>> r = jnp.array([[[0.0, 2.0], [0.0, 0.0], [1.0, 0.0]]])
  >>> print(jnp.array_str(trajectory_grpo(r, jnp.ones_like(r))[0], precision=3))
  [[ 1.  1.]
   [-1. -1.]
   [ 0.  0.]]
  """
  centered, std = _against_trajectories(rewards, steps, penalties)
  return reductions.divide(centered, std + eps)


def trajectory_center(
  rewards: Array, steps: Array, *, penalties: Array | None = None
) -> Array:
  """Subtracts the mean of the episodes' returns from steps' scores.

  `trajectory_grpo` without its division.

  Args:
    rewards: r, of each step of each episode. Shape `[P, G, E]`.
    steps: mask of the steps that were taken. Shape `[P, G, E]`.
    penalties: subtracted from the step's own score. Shape `[P, G, E]`.

  Returns:
    The advantages of the steps, with their gradient stopped. Shape `[P, G, E]`.

  References:
    Dr. GRPO, https://arxiv.org/abs/2503.20783

  >>> r = jnp.array([[[0.0, 2.0], [0.0, 0.0]]])
  >>> print(trajectory_center(r, jnp.ones_like(r)))
  [[[ 1.  1.]
    [-1. -1.]]]
  """
  return _against_trajectories(rewards, steps, penalties)[0]


def anchor_advantages(
  returns: Array,
  anchors: Array,
  steps: Array,
  *,
  normalize: Normalization = normalize_groups,
) -> Array:
  """Compares the steps of a group that started from the same observation.

    Aₜ = (Rₜ − mean_anchor) / (std_anchor + ε)

  Args:
    returns: R of each step. Shape `[P, G, E]`.
    anchors: a number per observation, equal within a prompt's episodes where
      the observations are. Integers of shape `[P, G, E]`.
    steps: mask of the steps that were taken. Shape `[P, G, E]`.
    normalize: `normalize_groups` or `center_groups`.

  Returns:
    The advantages of the steps, with their gradient stopped; 0 for a step that
    nothing can be compared with. Memory is quadratic in `G E`. Shape
    `[P, G, E]`.

  References:
    GiGPO, https://arxiv.org/abs/2505.10978

  >>> r = jnp.array([[[4.0, 9.0], [2.0, 7.0]]])
  >>> at = jnp.array([[[0, 1], [0, 2]]])
  >>> print(anchor_advantages(r, at, r > 0, normalize=center_groups))
  [[[ 1.  0.]
    [-1.  0.]]]
  """
  chex.assert_rank([returns, anchors, steps], 3)
  chex.assert_equal_shape([returns, anchors, steps])
  flat = (returns.shape[0], -1)
  taken = jnp.asarray(steps, bool).reshape(flat)
  anchors = anchors.reshape(flat)
  same = anchors[:, :, None] == anchors[:, None, :]
  same &= taken[:, :, None] & taken[:, None, :]
  # A row per step: the returns of the steps that it is compared with.
  others = jnp.broadcast_to(
    reductions.select(returns.reshape(flat), taken)[:, None, :], same.shape
  )
  advantages = jnp.diagonal(normalize(others, scored=same), axis1=-2, axis2=-1)
  comparable = jnp.sum(same, axis=-1) > 1
  return reductions.select(advantages, comparable).reshape(returns.shape)


def gigpo(
  rewards: Array,
  anchors: Array,
  steps: Array,
  *,
  penalties: Array | None = None,
  gamma: float = 0.95,
  omega: float = 1.0,
  normalize: Normalization = normalize_groups,
) -> Array:
  """Adds the comparison of steps to the comparison of episodes.

    A = A^E + ω A^S

  A^E is `step_grpo`, A^S is `anchor_advantages` of the discounted returns, from
  which an invalid step's own penalty is subtracted. ω = 0 is GRPO over steps.

  Args:
    rewards: r, what the environment paid for each step. Shape `[P, G, E]`.
    anchors: a number per observation before the step, equal where the
      observations are. Integers of shape `[P, G, E]`.
    steps: mask of the steps that were taken. Shape `[P, G, E]`.
    penalties: of invalid steps, subtracted in both terms at that step only.
      Shape `[P, G, E]`.
    gamma: γ of the returns.
    omega: ω, weight of the steps' term.
    normalize: `normalize_groups`, or `center_groups` for "mean_norm".

  Returns:
    The advantages of the steps, with their gradient stopped. Shape `[P, G, E]`.

  References:
    GiGPO, https://arxiv.org/abs/2505.10978

  >>> r = jnp.array([[[0.0, 1.0], [0.0, 0.0]]])
  >>> at = jnp.array([[[0, 1], [0, 2]]])
  >>> every = jnp.ones(r.shape, bool)
  >>> print(gigpo(r, at, every, gamma=0.5, normalize=center_groups))
  [[[ 0.75  0.5 ]
    [-0.75 -0.5 ]]]
  """
  episode = step_grpo(rewards, steps, penalties=penalties, normalize=normalize)
  returns = step_returns(rewards, steps, gamma=gamma)
  if penalties is not None:
    returns -= reductions.select(jax.lax.stop_gradient(penalties), steps)
  return episode + omega * anchor_advantages(
    returns, anchors, steps, normalize=normalize
  )


def step_rloo(
  rewards: Array, steps: Array, *, penalties: Array | None = None
) -> Array:
  """Subtracts from a step's score the mean of all others of its group.

    A = (s − mean_steps) n / (n − 1)

  `step_grpo` with another normalisation: n counts steps.

  Args:
    rewards: r, of each step of each episode. Shape `[P, G, E]`.
    steps: mask of the steps that were taken. Shape `[P, G, E]`.
    penalties: subtracted from the step's own score. Shape `[P, G, E]`.

  Returns:
    The advantages of the steps, with their gradient stopped. Shape `[P, G, E]`.

  References:
    RLOO as in verl-agent's agent loop. https://arxiv.org/abs/2402.14740

  >>> r = jnp.array([[[0.0, 2.0], [0.0, 0.0]]])
  >>> print(jnp.array_str(step_rloo(r, jnp.ones_like(r))[0], precision=3))
  [[ 1.333  1.333]
   [-1.333 -1.333]]
  """
  return step_grpo(rewards, steps, penalties=penalties, normalize=leave_one_out)


def step_gae(
  rewards: Array,
  values: Array,
  steps: Array,
  *,
  penalties: Array | None = None,
  gamma: float = 1.0,
  lambda_: float = 1.0,
) -> Array:
  """Estimates advantages of steps against a value function of steps.

  `gae` where time runs over the steps of an episode.

  Args:
    rewards: r, of each step of each episode. Shape `[P, G, E]`.
    values: V, of what was seen before each step. Shape `[P, G, E]`.
    steps: mask of the steps that were taken. Shape `[P, G, E]`.
    penalties: subtracted from the step's own reward. Shape `[P, G, E]`.
    gamma: γ.
    lambda_: λ.

  Returns:
    The advantages of the steps, with their gradient stopped. What a value
    function learns is A + V. Shape `[P, G, E]`.

  References:
    Schulman et al. (2015). https://arxiv.org/abs/1506.02438

  >>> r, v = jnp.array([[[0.0, 1.0]]]), jnp.array([[[0.25, 0.5]]])
  >>> print(step_gae(r, v, jnp.ones_like(r)))
  [[[0.75 0.5 ]]]
  """
  chex.assert_rank([rewards, values, steps], 3)
  if penalties is not None:
    rewards = rewards - reductions.select(penalties, steps)
  flat = (-1, rewards.shape[-1])
  return gae(
    rewards.reshape(flat),
    values.reshape(flat),
    jnp.asarray(steps, bool).reshape(flat),
    gamma=gamma,
    lambda_=lambda_,
  ).reshape(rewards.shape)


def gae(
  rewards: Array,
  values: Array,
  mask: Array,
  *,
  gamma: float = 1.0,
  lambda_: float = 1.0,
) -> Array:
  """Estimates advantages against a value function.

    δₜ = rₜ + γ Vₜ₊₁ − Vₜ,   Aₜ = δₜ + γ λ Aₜ₊₁

  Time runs over what the mask selects: t + 1 is the next selected token, and
  after the last the value is 0. What the critic learns is A + V.

  Args:
    rewards: r, of each token. Shape `[B, T]`.
    values: V, of the state that each token was chosen in. Shape `[B, T]`.
    mask: the tokens that the policy chose. Shape `[B, T]`.
    gamma: γ.
    lambda_: λ; 1 is the return less the value, 0 the error of one step.

  Returns:
    The advantages, with their gradient stopped; 0 where the mask is off. Shape
    `[B, T]`.

  References:
    Schulman et al. (2015). https://arxiv.org/abs/1506.02438

  >>> r, v = jnp.array([[0.0, 1.0]]), jnp.array([[0.25, 0.5]])
  >>> print(gae(r, v, jnp.ones_like(r)))
  [[0.75 0.5 ]]
  """
  chex.assert_rank([rewards, values, mask], 2)
  chex.assert_equal_shape([rewards, values, mask])
  rewards = reductions.select(jax.lax.stop_gradient(rewards), mask)
  values = reductions.select(jax.lax.stop_gradient(values), mask)
  dtype = jnp.result_type(rewards, values)

  def step(later, now):
    next_value, next_advantage = later
    reward, value, on = now
    error = reward + gamma * next_value - value
    advantage = error + gamma * lambda_ * next_advantage
    later = (
      jnp.where(on, value, next_value),
      jnp.where(on, advantage, next_advantage),
    )
    return later, jnp.where(on, advantage, jnp.zeros_like(advantage))

  zeros = jnp.zeros(rewards.shape[:1], dtype)
  _, advantages = jax.lax.scan(
    step,
    (zeros, zeros),
    (
      rewards.T.astype(dtype),
      values.T.astype(dtype),
      jnp.asarray(mask, bool).T,
    ),
    reverse=True,
  )
  return advantages.T


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


def _step_scores(
  rewards: Array, steps: Array, penalties: Array | None
) -> Array:
  """The return of its episode for each step, less the step's own penalty."""
  chex.assert_rank([rewards, steps], 3)
  chex.assert_equal_shape([rewards, steps])
  rewards = reductions.select(jax.lax.stop_gradient(rewards), steps)
  scores = jnp.broadcast_to(
    jnp.sum(rewards, axis=-1, keepdims=True), rewards.shape
  )
  if penalties is not None:
    chex.assert_equal_shape([rewards, penalties])
    scores -= jax.lax.stop_gradient(penalties).astype(scores.dtype)
  return reductions.select(scores, steps)


def _against_trajectories(
  rewards: Array, steps: Array, penalties: Array | None
) -> tuple[Array, Array]:
  """Steps' scores less the mean return of episodes, and its deviation."""
  scores = _step_scores(rewards, steps, penalties)
  returns = _step_scores(rewards, steps, None)
  ran = jnp.any(jnp.asarray(steps, bool), axis=-1)
  totals = reductions.all_max(returns, axis=-1, where=steps)
  totals = reductions.select(totals, ran)
  # What a step lost to its episode, so that equal episodes deviate by 0.
  lost = scores - returns
  deviations = reductions.all_deviations(totals, axis=-1, where=ran)
  std = reductions.all_std(totals, axis=-1, where=ran, ddof=1, keepdims=True)
  centered = reductions.select(deviations[..., None] + lost, steps)
  return centered, std[..., None]
