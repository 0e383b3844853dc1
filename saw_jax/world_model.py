# SPDX-License-Identifier: Apache-2.0
"""PaW: the policy also learns to predict what its actions bring about.

A sample is one transition: a prompt, the action that the policy wrote, and the
observation that followed. Causal attention leaves the action's logits as they
are, so the observation's log-probs come with the same forward pass. Once per
update: `action_entropy` ranks the transitions, `highest_entropy` selects some,
`adaptive_coefficients` weighs groups by how far they are from being solved, and
`group_mean` or `flat_selected` joins both into `RowWeights`. After that

    L = policy loss + world_model_loss(log_probs, observation_mask, weights)

is a sum of two `Ratio`s that the update adds with coefficient 1: eq. (11). With
coefficients of 0 the gradient of the second is exactly 0.

`B` counts transitions; `groups [B]` says to which of the `P` groups each
belongs. Over a device axis a group's rows are on one device, with its entry of
the coefficients. No selection, weight or mask carries a gradient.

References:
  PaW, https://arxiv.org/abs/2606.02388
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from saw_jax import losses, reductions
from saw_jax.reductions import Ratio
from saw_jax.types import Array

# (log_probs [...]) -> [...], both of observation tokens
TokenLoss = Callable[[Array], Array]
# α |pool|, a number that is not an integer in general -> how many to select
Rounding = Callable[[float], int]

# α is read as so many parts of this: 0.3 · 10 is 3, and not 3.0000000000000004.
_PARTS = 10**6


class RowWeights(NamedTuple):
  """How rows add up to a loss: Σ weights · x / Σ counts.

  Both are made once per update, from all of its rows, so that micro-batches and
  devices take their rows' share of each.
  """

  weights: Array  # [B]
  counts: Array  # [B]


def action_entropy(entropies: Array, completion_mask: Array) -> Array:
  """Averages the entropy of the policy over an action's tokens.

    H = 1/n Σₜ m Hₜ,   Hₜ = −Σᵥ π log π

  The prose of the paper. A third reading, the mean of −log q, is
  `stale_losses.sequence_nll`.

  Args:
    entropies: Hₜ of the policy that sampled, over the whole vocabulary. Shape
      `[B, T]`.
    completion_mask: m, the tokens that the policy chose. Shape `[B, T]`.

  Returns:
    H, with its gradient stopped; 0 for an action without tokens. Shape `[B]`.

  References:
    PaW, the prose on (4). https://arxiv.org/abs/2606.02388

  >>> h = jnp.array([[1.0, 3.0], [5.0, jnp.nan]])
  >>> print(action_entropy(h, jnp.array([[True, True], [True, False]])))
  [2. 5.]
  """
  _check(entropies, completion_mask)
  return reductions.all_mean(
    jax.lax.stop_gradient(entropies), axis=-1, where=completion_mask
  )


def printed_action_entropy(log_probs: Array, completion_mask: Array) -> Array:
  """Averages −q log q of the sampled tokens alone.

    H = −1/n Σₜ m q log q

  The formula as the paper prints it. It is greatest at q = 1/e, so that a rare
  token counts as certain.

  Args:
    log_probs: log q, of the policy that sampled. Shape `[B, T]`.
    completion_mask: m, the tokens that the policy chose. Shape `[B, T]`.

  Returns:
    H, with its gradient stopped; 0 for an action without tokens. Shape `[B]`.

  References:
    PaW, the equation before (4). https://arxiv.org/abs/2606.02388

  >>> l = jnp.log(jnp.array([[0.5, 0.25]]))  # log 2 / 2 both
  >>> print(f"{printed_action_entropy(l, jnp.ones((1, 2)))[0]:.3f}")
  0.347
  """
  _check(log_probs, completion_mask)
  log_probs = reductions.select(
    jax.lax.stop_gradient(log_probs), completion_mask
  )
  # e^(−100) (−100) is 0 in float32 already; e^(−∞) (−∞) would be NaN.
  log_probs = jnp.maximum(log_probs, jnp.finfo(log_probs.dtype).min)
  return -reductions.all_mean(
    jnp.exp(log_probs) * log_probs, axis=-1, where=completion_mask
  )


def highest_entropy(
  entropies: Array,
  pool: Array,
  *,
  alpha: float = 0.75,
  rounding: Rounding = math.ceil,
  axis_name: str | None = None,
) -> Array:
  """Selects the transitions whose actions were the least certain.

    S = the max(1, ⌈α |pool|⌉) of highest H in the whole update             (4)

  Ties go to the lower index, devices counted in order. `alpha=1` selects the
  pool, the control without selection.

  Args:
    entropies: H of each action. Shape `[B]`.
    pool: mask of the transitions to select from: real rows with an observation.
      Shape `[B]`.
    alpha: α, the share of the pool, a number in (0, 1] known when tracing.
    rounding: `math.ceil`, `math.floor` or `round`.
    axis_name: device axis that the rows are split over.

  Returns:
    The selected rows, boolean; none if the pool is empty. Shape `[B]`.

  Raises:
    ValueError: `alpha` is not in (0, 1].

  References:
    PaW, eq. (4). https://arxiv.org/abs/2606.02388

  >>> h, pool = jnp.array([3.0, 1.0, 2.0, 9.0]), jnp.array([1, 1, 1, 0], bool)
  >>> print(highest_entropy(h, pool, alpha=0.5))
  [ True False  True False]
  """
  chex.assert_equal_shape([entropies, pool])
  scores = reductions.select(jax.lax.stop_gradient(entropies), pool)
  return _select_top(
    _gather(scores, axis_name), pool, alpha, rounding, axis_name
  )


def lowest_entropy(
  entropies: Array,
  pool: Array,
  *,
  alpha: float = 0.75,
  rounding: Rounding = math.ceil,
  axis_name: str | None = None,
) -> Array:
  """Selects the transitions whose actions were the most certain: a control.

  Args:
    entropies: H of each action. Shape `[B]`.
    pool: mask of the transitions to select from. Shape `[B]`.
    alpha: α, the share of the pool, in (0, 1].
    rounding: `math.ceil`, `math.floor` or `round`.
    axis_name: device axis that the rows are split over.

  Returns:
    The selected rows, boolean; as many as `highest_entropy` selects, ties to
    the lower index too. Shape `[B]`.

  Raises:
    ValueError: `alpha` is not in (0, 1].

  >>> h, pool = jnp.array([3.0, 1.0, 2.0]), jnp.ones(3, bool)
  >>> print(lowest_entropy(h, pool, alpha=0.5))
  [False  True  True]
  """
  return highest_entropy(
    -reductions.at_least_float32(entropies),
    pool,
    alpha=alpha,
    rounding=rounding,
    axis_name=axis_name,
  )


def random_transitions(
  key: Array,
  pool: Array,
  *,
  alpha: float = 0.75,
  rounding: Rounding = math.ceil,
  axis_name: str | None = None,
) -> Array:
  """Selects transitions at random: a control.

  Args:
    key: the same on every device.
    pool: mask of the transitions to select from. Shape `[B]`.
    alpha: α, the share of the pool, in (0, 1].
    rounding: `math.ceil`, `math.floor` or `round`.
    axis_name: device axis that the rows are split over.

  Returns:
    The selected rows, boolean; as many as `highest_entropy` selects. They do
    not depend on how many devices there are. Shape `[B]`.

  Raises:
    ValueError: `alpha` is not in (0, 1].

  >>> selected = random_transitions(jax.random.key(0), jnp.ones(8, bool))
  >>> print(selected.sum())
  6
  """
  chex.assert_rank(pool, 1)
  rows = pool.shape[0] * _axis_size(axis_name)
  scores = jax.random.uniform(key, (rows,))
  return _select_top(scores, pool, alpha, rounding, axis_name)


def absolute_error(log_probs: Array) -> Array:
  """Takes what is missing of a token's probability.

    x = 1 − p,   ∂x/∂z = −p (1[v] − π)

  A token that nothing could predict has p → 0 and hardly any gradient, where
  the cross-entropy has its greatest.

  Args:
    log_probs: log p of observation tokens. Any shape.

  Returns:
    The loss of each token. Gradient flows. The same shape.

  References:
    PaW, eq. (6). https://arxiv.org/abs/2606.02388

  >>> print(f"{absolute_error(jnp.log(0.25)):.3f}")
  0.750
  """
  return -jnp.expm1(reductions.at_least_float32(log_probs))


def clipped_absolute_error(log_probs: Array, *, rho: float = 0.2) -> Array:
  """Takes the absolute error of the tokens that are not learned yet.

    x = 1[p ≤ ρ] (1 − p)                                                 (7)(8)

  The mask is a constant. ρ = 1 is `absolute_error`.

  Args:
    log_probs: log p of observation tokens. Any shape.
    rho: ρ, the probability from which a token counts as learned.

  Returns:
    The loss of each token. Gradient flows where p ≤ ρ. The same shape.

  References:
    PaW, eq. (7) and (8). https://arxiv.org/abs/2606.02388

  >>> print(clipped_absolute_error(jnp.log(jnp.array([0.125, 0.5]))))
  [0.875 0.   ]
  """
  error = absolute_error(log_probs)
  return jnp.where(_is_hard(log_probs, rho), error, jnp.zeros_like(error))


def reversed_absolute_error(log_probs: Array, *, rho: float = 0.2) -> Array:
  """Takes the absolute error of the tokens above ρ: an experiment.

    x = 1[p > ρ] (1 − p)

  One sentence of the paper would fit it; its equation does not.

  Args:
    log_probs: log p of observation tokens. Any shape.
    rho: ρ.

  Returns:
    The loss of each token. Gradient flows where p > ρ. The same shape.

  >>> print(reversed_absolute_error(jnp.log(jnp.array([0.125, 0.5]))))
  [0.  0.5]
  """
  error = absolute_error(log_probs)
  return jnp.where(_is_hard(log_probs, rho), jnp.zeros_like(error), error)


def hinge(log_probs: Array, *, rho: float = 0.2) -> Array:
  """Takes what is missing to a margin.

    x = max(0, ρ − p)

  The gradient of `clipped_absolute_error` wherever p ≠ ρ, with another value.

  Args:
    log_probs: log p of observation tokens. Any shape.
    rho: ρ, the margin.

  Returns:
    The loss of each token. Gradient flows where p ≤ ρ. The same shape.

  References:
    PaW, the "margin objective" of its appendix.

  >>> print(f"{hinge(jnp.log(0.125), rho=0.25):.3f}")
  0.125
  """
  log_probs = reductions.at_least_float32(log_probs)
  margin = rho - jnp.exp(log_probs)
  return jnp.where(_is_hard(log_probs, rho), margin, jnp.zeros_like(margin))


def cross_entropy(log_probs: Array) -> Array:
  """Takes the negative log-likelihood.

    x = −log p                                                              (5)

  Args:
    log_probs: log p of observation tokens. Any shape.

  Returns:
    The loss of each token. Gradient flows. The same shape.

  References:
    PaW, eq. (5). https://arxiv.org/abs/2606.02388

  >>> print(f"{cross_entropy(jnp.log(0.5)):.3f}")
  0.693
  """
  return -reductions.at_least_float32(log_probs)


def adaptive_coefficients(
  returns: Array, *, max_return: float, scored: Array | None = None
) -> Array:
  """Weighs a group by how far it is from being solved.

    λ_g = 1 − mean R / R_max                                               (10)

  A group without success has exactly 1, a solved one exactly 0.

  Args:
    returns: R, what the environment paid in each episode, without penalties
      for invalid actions: with them λ can exceed 1. Shape `[P, G]`.
    max_return: R_max, the most that an episode can pay.
    scored: mask of the returns that exist. Shape `[P, G]`.

  Returns:
    λ, with its gradient stopped; 0 for a group without returns. Shape `[P]`.

  References:
    PaW, eq. (10). https://arxiv.org/abs/2606.02388

  >>> print(adaptive_coefficients(jnp.array([[10.0, 0.0]]), max_return=10.0))
  [0.5]
  """
  chex.assert_rank(returns, 2)
  # Differences first: a mean of equal returns need not be that return.
  missing = max_return - reductions.at_least_float32(returns)
  return reductions.all_mean(
    jax.lax.stop_gradient(missing) / max_return, axis=-1, where=scored
  )


def constant_coefficients(
  returns: Array, *, value: float = 1.0, scored: Array | None = None
) -> Array:
  """Weighs all groups alike: the ablation of the adaptive coefficient.

  Args:
    returns: not read but for its shape. Shape `[P, G]`.
    value: λ.
    scored: not read.

  Returns:
    λ for each group. Shape `[P]`.

  References:
    PaW, table 4. https://arxiv.org/abs/2606.02388

  >>> print(constant_coefficients(jnp.zeros((2, 3)), value=0.5))
  [0.5 0.5]
  """
  del scored
  chex.assert_rank(returns, 2)
  zeros = jnp.zeros_like(reductions.at_least_float32(returns[:, 0]))
  return zeros + value


def group_mean(
  selected: Array,
  coefficients: Array,
  groups: Array,
  *,
  rows: Array | None = None,
  axis_name: str | None = None,
) -> RowWeights:
  """Averages over a group's selected transitions, then over groups.

    wᵢ = 1[i ∈ S] λ_g / |S_g|,   L = 1/P Σᵢ wᵢ ℓᵢ                      (9)(11)

  A group without a selected transition adds 0 and is counted. A random
  mini-batch of the rows has B/b Σ wᵢ ℓᵢ / P, whose mean is L.

  Args:
    selected: mask of the transitions that are learned from. Shape `[B]`.
    coefficients: λ of each group. Shape `[P]`.
    groups: g, the group of each row, below `P`. Integers of shape `[B]`.
    rows: mask of the rows that are transitions and not padding. Shape `[B]`.
    axis_name: device axis that the groups are split over.

  Returns:
    The weights; their counts add up to the number of groups.

  References:
    PaW, eq. (11). https://arxiv.org/abs/2606.02388

  >>> selected = jnp.array([True, True, False, True])
  >>> lambdas, groups = jnp.array([0.5, 1.0]), jnp.array([0, 0, 0, 1])
  >>> print(group_mean(selected, lambdas, groups).weights)
  [0.25 0.25 0.   1.  ]
  """
  selected, coefficients = _check_rows(selected, coefficients, groups, rows)
  sizes = jax.ops.segment_sum(selected, groups, coefficients.shape[0])
  share = reductions.divide(coefficients, sizes)
  return RowWeights(
    selected * share[groups],
    _count_groups(selected, coefficients, rows, axis_name),
  )


def flat_selected(
  selected: Array,
  coefficients: Array,
  groups: Array,
  *,
  rows: Array | None = None,
  axis_name: str | None = None,
) -> RowWeights:
  """Averages over the selected transitions, whatever their groups.

    wᵢ = 1[i ∈ S] λ_g,   L = 1/|S| Σᵢ wᵢ ℓᵢ

  What a loop over shuffled mini-batches computes most easily. It differs from
  `group_mean` in that a group weighs by its selected transitions.

  Args:
    selected: mask of the transitions that are learned from. Shape `[B]`.
    coefficients: λ of each group. Shape `[P]`.
    groups: g, the group of each row, below `P`. Integers of shape `[B]`.
    rows: not read.
    axis_name: not read.

  Returns:
    The weights; their counts add up to the number of selected transitions.

  >>> selected = jnp.array([True, True, False, True])
  >>> lambdas, groups = jnp.array([0.5, 1.0]), jnp.array([0, 0, 0, 1])
  >>> print(flat_selected(selected, lambdas, groups).weights)
  [0.5 0.5 0.  1. ]
  """
  del axis_name
  selected, coefficients = _check_rows(selected, coefficients, groups, rows)
  return RowWeights(selected * coefficients[groups], selected)


def trajectory_mean(
  trajectories: Array,
  groups: Array,
  *,
  rows: Array | None = None,
  axis_name: str | None = None,
) -> RowWeights:
  """Averages a sum over steps over a group's episodes, then over groups.

    wᵢ = 1 / n_g,   L = 1/P Σ_g 1/n_g Σ_{i∈g} xᵢ                         (1)(11)

  Args:
    trajectories: n, episodes of each group. Shape `[P]`.
    groups: g, the group of each row, below `P`. Integers of shape `[B]`.
    rows: mask of the rows that are transitions and not padding. Shape `[B]`.
    axis_name: device axis that the groups are split over.

  Returns:
    The weights; their counts add up to the number of groups.

  References:
    PaW, eq. (1) and (11). https://arxiv.org/abs/2606.02388

  >>> print(trajectory_mean(jnp.array([2]), jnp.array([0, 0, 0])).weights)
  [0.5 0.5 0.5]
  """
  every = jnp.ones(groups.shape, bool) if rows is None else rows
  every, trajectories = _check_rows(every, trajectories, groups, rows)
  share = reductions.divide(jnp.ones_like(trajectories), trajectories)
  return RowWeights(
    every * share[groups],
    _count_groups(every, trajectories, rows, axis_name),
  )


def transition_losses(
  log_probs: Array,
  observation_mask: Array,
  *,
  token_loss: TokenLoss = clipped_absolute_error,
) -> Array:
  """Averages the loss of an observation over all of its tokens.

    ℓ = 1/|o| Σᵢ x(pᵢ)                                                      (8)

  |o| counts every token of the observation, clipped or not.

  Args:
    log_probs: log p of all tokens, under the current policy. Shape `[B, T]`.
    observation_mask: the tokens that the environment wrote. Shape `[B, T]`.
    token_loss: x, from a token's log-prob.

  Returns:
    ℓ, and 0 for a transition without observation. Gradient flows where the mask
    is on. Shape `[B]`.

  References:
    PaW, eq. (8). https://arxiv.org/abs/2606.02388

  >>> l = jnp.log(jnp.array([[0.125, 0.5]]))
  >>> print(transition_losses(l, jnp.ones((1, 2), bool)))
  [0.4375]
  """
  _check(log_probs, observation_mask)
  return reductions.all_mean(
    token_loss(reductions.select(log_probs, observation_mask)),
    axis=-1,
    where=observation_mask,
  )


def world_model_loss(
  log_probs: Array,
  observation_mask: Array,
  weights: RowWeights,
  *,
  token_loss: TokenLoss = clipped_absolute_error,
) -> Ratio:
  """Makes the policy predict the observations of the selected transitions.

    L_WM = Σᵢ wᵢ ℓᵢ / Σᵢ cᵢ                                            (9)(11)

  Args:
    log_probs: log p of all tokens, under the current policy. Shape `[B, T]`.
    observation_mask: the tokens that the environment wrote. Shape `[B, T]`.
    weights: w and c of each row, λ included; see `group_mean`.
    token_loss: from a token's log-prob to its loss.

  Returns:
    The loss. Gradient flows to observation tokens of rows whose weight is not
    0.

  References:
    PaW, eq. (9) and (11). https://arxiv.org/abs/2606.02388

  >>> l, mask = jnp.log(jnp.array([[0.125], [0.125]])), jnp.ones((2, 1), bool)
  >>> w = RowWeights(jnp.array([1.0, 0.0]), jnp.array([0.5, 0.5]))
  >>> print(world_model_loss(l, mask, w).value())
  0.875
  """
  per_row = transition_losses(
    log_probs, observation_mask, token_loss=token_loss
  )
  return _weighted(per_row, weights)


def group_policy_gradient_loss(
  log_probs: Array,
  advantages: Array,
  completion_mask: Array,
  weights: RowWeights,
) -> Ratio:
  """Is the policy gradient as the paper writes it.

    L_RL = Σᵢ wᵢ (−Aᵢ Σₜ m log π) / Σᵢ cᵢ                                   (1)

  PaW keeps the loss of its base algorithm, which is usually another
  (`losses.clipped_surrogate_loss`).

  Args:
    log_probs: current policy's, of the taken tokens. Shape `[B, T]`.
    advantages: A, one a transition. Shape `[B]`.
    completion_mask: m, the tokens that the policy chose. Shape `[B, T]`.
    weights: of `trajectory_mean`.

  Returns:
    The loss. Gradient flows to `log_probs` only.

  References:
    PaW, eq. (1). https://arxiv.org/abs/2606.02388

  >>> l, mask = jnp.array([[-1.0, -2.0]]), jnp.ones((1, 2), bool)
  >>> w = RowWeights(jnp.ones(1), jnp.ones(1))
  >>> print(group_policy_gradient_loss(l, jnp.array([2.0]), mask, w).value())
  6.0
  """
  _check(log_probs, completion_mask)
  chex.assert_shape(advantages, completion_mask.shape[:1])
  total = reductions.all_sum(log_probs, axis=-1, where=completion_mask)
  advantages = jax.lax.stop_gradient(advantages).astype(total.dtype)
  return _weighted(-advantages * total, weights)


def echo_loss(
  log_probs: Array,
  observation_mask: Array,
  *,
  coefficient: float = 0.05,
  trained_mask: Array | None = None,
  aggregate: losses.Aggregate = losses.sequence_mean_token_mean,
) -> Ratio:
  """Is ECHO's term: cross-entropy of all observations, with a constant weight.

    L = λ · mean over rows of −1/|O| Σ_{i∈O} log p

  No selection and no clip. Useful weights are between 0.01 and 0.05; from 0.2
  on, policies have collapsed.

  Args:
    log_probs: log p of all tokens, under the current policy. Shape `[B, T]`.
    observation_mask: the tokens that the environment wrote. Shape `[B, T]`.
    coefficient: λ.
    trained_mask: where some of them, as warnings of the harness, are counted in
      |O| but not learned: those that are. Shape `[B, T]`.
    aggregate: how tokens and rows are averaged.

  Returns:
    The loss, λ included. Gradient flows where both masks are on.

  References:
    ECHO, https://arxiv.org/abs/2605.24517

  >>> l, mask = jnp.array([[-1.0, -3.0]]), jnp.ones((1, 2), bool)
  >>> print(f"{echo_loss(l, mask).value():.3f}")
  0.100
  """
  _check(log_probs, observation_mask)
  learned = observation_mask if trained_mask is None else trained_mask
  token_losses = cross_entropy(reductions.select(log_probs, learned))
  numerator, denominator = aggregate(token_losses, observation_mask)
  return Ratio(coefficient * numerator, denominator)


def clipped_token_share(
  log_probs: Array, observation_mask: Array, *, rho: float = 0.2
) -> Ratio:
  """Says how many observation tokens the clip takes out of the loss.

  Args:
    log_probs: log p of all tokens, under the current policy. Shape `[B, T]`.
    observation_mask: the tokens that the environment wrote. Shape `[B, T]`.
    rho: ρ of `clipped_absolute_error`.

  Returns:
    The number of tokens with p > ρ, and that of all of them.

  References:
    PaW, https://arxiv.org/abs/2606.02388

  >>> l, mask = jnp.log(jnp.array([[0.125, 0.5]])), jnp.ones((1, 2), bool)
  >>> print(clipped_token_share(l, mask).value())
  0.5
  """
  _check(log_probs, observation_mask)
  learned = ~_is_hard(reductions.select(log_probs, observation_mask), rho)
  return losses.token_mean(learned.astype(jnp.float32), observation_mask)


def _check(per_token: Array, mask: Array) -> None:
  chex.assert_rank([per_token, mask], 2)
  chex.assert_equal_shape([per_token, mask])


def _check_rows(
  selected: Array, per_group: Array, groups: Array, rows: Array | None
) -> tuple[Array, Array]:
  """The mask as numbers and what there is per group, without gradient."""
  chex.assert_rank([selected, per_group], 1)
  chex.assert_equal_shape([selected, groups])
  if rows is not None:
    chex.assert_equal_shape([selected, rows])
  per_group = jax.lax.stop_gradient(reductions.at_least_float32(per_group))
  return jnp.asarray(selected, bool).astype(per_group.dtype), per_group


def _is_hard(log_probs: Array, rho: float) -> Array:
  """Whether p ≤ ρ, a constant of the update."""
  log_probs = reductions.at_least_float32(log_probs)
  return jnp.exp(jax.lax.stop_gradient(log_probs)) <= rho


def _weighted(per_row: Array, weights: RowWeights) -> Ratio:
  chex.assert_equal_shape([per_row, *weights])
  scale, counts = (jax.lax.stop_gradient(x) for x in weights)
  # Selected, not multiplied by 0: a row that is left out may hold infinity.
  kept = reductions.select(per_row, scale != 0)
  return Ratio(jnp.sum(scale * kept), jnp.sum(counts))


def _count_groups(
  like: Array, per_group: Array, rows: Array | None, axis_name: str | None
) -> Array:
  """Each row's share of the number of groups."""
  rows = (
    jnp.ones_like(like)
    if rows is None
    else reductions.select(rows, jnp.asarray(rows, bool))
  )
  count = reductions.all_sum(rows, axis_name=axis_name)
  groups = per_group.shape[0] * _axis_size(axis_name)
  return rows.astype(like.dtype) * reductions.divide(groups, count)


def _axis_size(axis_name: str | None) -> int:
  return 1 if axis_name is None else jax.lax.axis_size(axis_name)


def _gather(x: Array, axis_name: str | None) -> Array:
  """The rows of all devices, in their order."""
  if axis_name is None:
    return x
  return jax.lax.all_gather(x, axis_name, tiled=True)


def _select_top(
  scores: Array,
  pool: Array,
  alpha: float,
  rounding: Rounding,
  axis_name: str | None,
) -> Array:
  """Marks this device's rows among the best `scores` of all devices."""
  if not 0 < alpha <= 1:
    raise ValueError(f"alpha is a share in (0, 1], not {alpha}")
  rows = pool.shape[0]
  pool = _gather(jnp.asarray(pool, bool), axis_name)
  # Exact, for each size that the pool can have.
  parts = round(alpha * _PARTS)
  sizes = jnp.array(
    [max(1, rounding(n * parts / _PARTS)) for n in range(pool.shape[0] + 1)]
  )
  # The last key is the first to be compared; the sort is stable.
  order = jnp.lexsort((-scores, ~pool))
  rank = jnp.zeros_like(order).at[order].set(jnp.arange(pool.shape[0]))
  selected = pool & (rank < sizes[jnp.sum(pool)])
  if axis_name is None:
    return selected
  first = jax.lax.axis_index(axis_name) * rows
  return jax.lax.dynamic_slice_in_dim(selected, first, rows)
