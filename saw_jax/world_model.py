# SPDX-License-Identifier: Apache-2.0
"""PaW: the policy also learns to predict what its actions bring about.

A sample is one transition: a prompt, the action that the policy wrote, and the
observation that followed, whose log-probs come with the same forward pass. Once
per update: `action_entropy` ranks the transitions, `highest_entropy` selects
some, `adaptive_coefficients` weighs groups by how far they are from being
solved, and `group_mean` or `flat_selected` joins both into `RowWeights`. Then

    L = policy loss + world_model_loss(log_probs, observation_mask, weights)

is a sum of two `Ratio`s that the update adds with coefficient 1: eq. (11). With
coefficients of 0 the gradient of the second is exactly 0.

`B` counts transitions; `groups [B]` says to which of the `P` groups each
belongs. Over a device axis, `axis_name`, a group's rows are on one device, with
its entry of the coefficients. No selection, weight or mask carries a gradient.
PaW: https://arxiv.org/abs/2606.02388
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from saw_jax import reductions
from saw_jax.reductions import Ratio
from saw_jax.types import Array, Axis, Mask

TokenLoss = Callable[[Array], Array]  # of log-probs of observation tokens
Rounding = Callable[[float], int]  # of α |pool|, how many to select

# α is read as so many parts of this: 0.3 · 10 is 3, and not 3.0000000000000004.
_PARTS = 10**6


class RowWeights(NamedTuple):
  """How rows add up to a loss: Σ weights · x / Σ counts, over an update."""

  weights: Array  # [B]
  counts: Array  # [B]


def action_entropy(entropies: Array, completion_mask: Array) -> Array:
  """Averages the entropy of the policy over an action's tokens.

    H = 1/n Σₜ m Hₜ,   Hₜ = −Σᵥ π log π

  The paper's prose on (4). A third reading is `stale_losses.sequence_nll`.
  """
  entropies = jax.lax.stop_gradient(entropies)
  return reductions.all_mean(entropies, axis=-1, where=completion_mask)


def printed_action_entropy(log_probs: Array, completion_mask: Array) -> Array:
  """Averages −q log q of the sampled tokens alone: the formula before (4).

  It is greatest at q = 1/e, so that a rare token counts as certain.
  """
  x = reductions.select(jax.lax.stop_gradient(log_probs), completion_mask)
  # e^(−100) (−100) is 0 in float32 already; e^(−∞) (−∞) would be NaN.
  x = jnp.maximum(x, jnp.finfo(x.dtype).min)
  return -reductions.all_mean(jnp.exp(x) * x, axis=-1, where=completion_mask)


def highest_entropy(
  entropies: Array,
  pool: Array,
  *,
  alpha: float = 0.75,
  rounding: Rounding = math.ceil,
  axis_name: Axis = None,
) -> Array:
  """Selects the transitions whose actions were the least certain.

    S = the max(1, ⌈α |pool|⌉) of highest H in the whole update             (4)

  `pool [B]` are real rows with an observation. Ties go to the lower index over
  all devices.

  >>> h, pool = jnp.array([3.0, 1.0, 2.0, 9.0]), jnp.array([1, 1, 1, 0], bool)
  >>> print(highest_entropy(h, pool, alpha=0.5))
  [ True False  True False]
  """
  chex.assert_equal_shape([entropies, pool])
  if not 0 < alpha <= 1:
    raise ValueError(f"alpha is a share in (0, 1], not {alpha}")
  scores = reductions.select(jax.lax.stop_gradient(entropies), pool)
  rows, pool = pool.shape[0], jnp.asarray(pool, bool)
  if axis_name is not None:
    gather = functools.partial(jax.lax.all_gather, tiled=True)
    scores, pool = gather(scores, axis_name), gather(pool, axis_name)
  # Exact, for each size that the pool can have.
  parts = round(alpha * _PARTS)
  sizes = [max(1, rounding(n * parts / _PARTS)) for n in range(len(pool) + 1)]
  # The last key is the first to be compared; the sort is stable.
  order = jnp.lexsort((-scores, ~pool))
  rank = jnp.zeros_like(order).at[order].set(jnp.arange(len(pool)))
  selected = pool & (rank < jnp.array(sizes)[jnp.sum(pool)])
  return reductions.own_rows(selected, rows, axis_name)


def lowest_entropy(
  entropies: Array, pool: Array, *, alpha: float = 0.75, axis_name: Axis = None
) -> Array:
  """Selects the actions that were the most certain: a control."""
  entropies = -reductions.at_least_float32(entropies)
  return highest_entropy(entropies, pool, alpha=alpha, axis_name=axis_name)


def random_transitions(
  key: Array, pool: Array, *, alpha: float = 0.75, axis_name: Axis = None
) -> Array:
  """Selects as many at random: a control. The key is one on all devices."""
  rows = pool.shape[0]
  scores = jax.random.uniform(key, (rows * _axis_size(axis_name),))
  scores = reductions.own_rows(scores, rows, axis_name)
  return highest_entropy(scores, pool, alpha=alpha, axis_name=axis_name)


def absolute_error(log_probs: Array) -> Array:
  """One minus the token's probability (6): no push on what nobody predicts."""
  return -jnp.expm1(reductions.at_least_float32(log_probs))


def clipped_absolute_error(log_probs: Array, *, rho: float = 0.2) -> Array:
  """The absolute error where p ≤ ρ, of tokens not learned yet (7)."""
  return jnp.where(is_hard(log_probs, rho), absolute_error(log_probs), 0.0)


def reversed_absolute_error(log_probs: Array, *, rho: float = 0.2) -> Array:
  """The absolute error above ρ, as one sentence of the paper may be read."""
  return jnp.where(is_hard(log_probs, rho), 0.0, absolute_error(log_probs))


def hinge(log_probs: Array, *, rho: float = 0.2) -> Array:
  """The appendix's margin, `max(0, ρ − p)`: the clipped error's gradient."""
  margin = rho - jnp.exp(reductions.at_least_float32(log_probs))
  return jnp.where(is_hard(log_probs, rho), margin, 0.0)


def cross_entropy(log_probs: Array) -> Array:
  """The negative log-likelihood: `x = −log p` (5)."""
  return -reductions.at_least_float32(log_probs)


def adaptive_coefficients(
  returns: Array, *, max_return: float, scored: Mask = None
) -> Array:
  """Weighs a group by how far it is from being solved.

    λ_g = 1 − mean R / R_max                                               (10)

  A group without success has exactly 1, a solved one exactly 0, and one without
  a `scored` return too. With penalties for invalid actions λ could exceed 1.
  """
  # Differences first: a mean of equal returns need not be that return.
  missing = max_return - reductions.at_least_float32(returns)
  missing = jax.lax.stop_gradient(missing) / max_return
  return reductions.all_mean(missing, axis=-1, where=scored)


def constant_coefficients(returns: Array, *, value: float = 1.0) -> Array:
  """Weighs all groups alike: the ablation of table 4."""
  return jnp.zeros_like(reductions.at_least_float32(returns[:, 0])) + value


def group_mean(
  selected: Array,
  coefficients: Array,
  groups: Array,
  *,
  rows: Mask = None,
  axis_name: Axis = None,
) -> RowWeights:
  """Averages over a group's selected transitions, then over groups.

    wᵢ = 1[i ∈ S] λ_g / |S_g|,   L = 1/P Σᵢ wᵢ ℓᵢ                      (9)(11)

  A group without a selected transition adds 0 and is counted. A mini-batch of b
  random rows has B/b Σ wᵢ ℓᵢ / P, whose mean is L. `rows [B]` are no padding.
  """
  every = jnp.ones_like(selected) if rows is None else rows
  chex.assert_equal_shape([selected, groups, every])
  selected, coefficients = _numbers(selected, coefficients)
  sizes = jax.ops.segment_sum(selected, groups, coefficients.shape[0])
  share = reductions.divide(coefficients, sizes)
  # Each row has its share of the number of groups.
  every = jnp.asarray(every, bool).astype(selected.dtype)
  count = reductions.all_sum(every, axis_name=axis_name)
  num_groups = coefficients.shape[0] * _axis_size(axis_name)
  every *= reductions.divide(num_groups, count)
  return RowWeights(selected * share[groups], every)


def flat_selected(
  selected: Array,
  coefficients: Array,
  groups: Array,
  *,
  rows: Mask = None,
  of_all: bool = False,
) -> RowWeights:
  """Averages over the selected transitions, so that groups weigh by theirs.

    wᵢ = 1[i ∈ S] λ_g,   L = 1/|S| Σᵢ wᵢ ℓᵢ

  `of_all` it is over all `rows [B]`, with an observation or without: what rLLM
  divides ECHO's term by (arXiv 2605.24517).
  """
  selected, coefficients = _numbers(selected, coefficients)
  counts = selected
  if of_all:
    every = jnp.ones_like(selected) if rows is None else rows
    counts = every.astype(selected.dtype)
  return RowWeights(selected * coefficients[groups], counts)


def flat_tokens(
  selected: Array, coefficients: Array, groups: Array, observed: Array
) -> RowWeights:
  """Averages over the selected tokens, so that transitions weigh by theirs.

    wᵢ = 1[i ∈ S] λ_g |oᵢ|,   L = Σᵢ wᵢ ℓᵢ / Σ_{i ∈ S} |oᵢ|

  `observed [B]` are the |o| of `transition_losses`. prime-rl divides ECHO's
  term so, by the tokens that are trained; a verl policy with `token_mean`, by
  all that were observed (docs/reproducing.md).
  """
  selected, coefficients = _numbers(selected, coefficients)
  counts = selected * observed
  return RowWeights(counts * coefficients[groups], counts)


def transition_losses(
  log_probs: Array,
  observation_mask: Array,
  *,
  token_loss: TokenLoss = clipped_absolute_error,
) -> Array:
  """Averages the loss of an observation over all of its tokens. Shape `[B]`.

    ℓ = 1/|o| Σᵢ x(pᵢ)                                                      (8)

  |o| counts every token that the environment wrote, clipped or not.
  """
  tokens = token_loss(reductions.select(log_probs, observation_mask))
  return reductions.all_mean(tokens, axis=-1, where=observation_mask)


def world_model_loss(
  log_probs: Array,
  observation_mask: Array,
  weights: RowWeights,
  *,
  token_loss: TokenLoss = clipped_absolute_error,
) -> Ratio:
  """Makes the policy predict the observations of the selected transitions.

    L_WM = Σᵢ wᵢ ℓᵢ / Σᵢ cᵢ                                            (9)(11)

  `log_probs [B, T]` are of all tokens, the weights hold λ. Gradient flows to
  observation tokens of rows whose weight is not 0.
  """
  per_row = transition_losses(
    log_probs, observation_mask, token_loss=token_loss
  )
  chex.assert_equal_shape([per_row, *weights])
  scale, counts = map(jax.lax.stop_gradient, weights)
  # Selected, not multiplied by 0: a row that is left out may hold infinity.
  kept = reductions.select(per_row, scale != 0)
  return Ratio(jnp.sum(scale * kept), jnp.sum(counts))


def _numbers(selected: Array, per_group: Array) -> tuple[Array, Array]:
  chex.assert_rank([selected, per_group], 1)
  per_group = jax.lax.stop_gradient(reductions.at_least_float32(per_group))
  return jnp.asarray(selected, bool).astype(per_group.dtype), per_group


def is_hard(log_probs: Array, rho: float) -> Array:
  """Whether p ≤ ρ, a constant of the update."""
  log_probs = reductions.at_least_float32(log_probs)
  return jnp.exp(jax.lax.stop_gradient(log_probs)) <= rho


def _axis_size(axis_name: Axis) -> int:
  return 1 if axis_name is None else jax.lax.axis_size(axis_name)
