# SPDX-License-Identifier: Apache-2.0
"""The Corrective Advantage Gap: what a label would change in an update.

A prompt without a label is trained on whether its responses agree with the
vote. The gap is how far the advantages move if the label is bought:

  CAG = ‖A(r_true) − A(r_pseudo)‖₂,   A(r) = (r − mean) / std

over the `G` responses of a prompt, with the population's deviation and without
an ε, and A = 0 where all rewards are equal. It has nothing to do with the
advantages that a policy is trained on, which are `saw_jax.advantages`.

Where rewards are 0 or 1 it is 0 if the vote is right, √G if nobody is, and from
G √(2/(G−1)) to 2√G if the vote is wrong and some are right.
CARE, https://arxiv.org/abs/2605.25864.
"""

import chex
import jax.numpy as jnp

from saw_jax import reductions
from saw_jax.types import Array

# Groups whose deviation is below have advantage 0, as in the reference code.
_LEAST_STD = 1e-8


def gap_advantages(rewards: Array) -> Array:
  """Standardises rewards `[..., G]` within each group, for the gap alone.

    Aⱼ = (rⱼ − mean) / std,   0 where std < 10⁻⁸

  Times √((G−1)/G) they are GRPO's. Gradient flows where rewards differ.
  """
  std = reductions.all_std(rewards, axis=-1, keepdims=True)
  std = jnp.where(std < _LEAST_STD, 0, std)
  return reductions.divide(reductions.all_deviations(rewards, axis=-1), std)


def corrective_advantage_gap(
  pseudo_rewards: Array, true_rewards: Array
) -> Array:
  """Measures how far a label moves the advantages of a group. `[...]`.

    CAG = ‖A(r_true) − A(r_pseudo)‖₂

  With ρ for the correlation of both rewards `[..., G]` it is √(2G(1 − ρ)); √G
  if one of them varies, 0 if none does.

  >>> wrong_vote = jnp.array([1.0, 1.0, 1.0, 0.0])
  >>> print(corrective_advantage_gap(wrong_vote, 1 - wrong_vote))
  4.0
  """
  difference = gap_advantages(true_rewards) - gap_advantages(pseudo_rewards)
  gap = reductions.square_root(jnp.sum(jnp.square(difference), axis=-1))
  # Equal rewards may be standardised by two programs that round differently.
  same = jnp.all(pseudo_rewards == true_rewards, axis=-1)
  return jnp.where(same, 0, gap)


def is_possible(voted: Array, correct: Array, group_size: int) -> Array:
  """Whether counts can occur: 0 ≤ y ≤ x and x + y ≤ G.

  `voted` is x, the responses that gave the voted answer, and `correct` y, those
  that gave another, correct one, which more responses would have made the vote.
  """
  return (correct >= 0) & (correct <= voted) & (voted + correct <= group_size)


def gap_from_counts(voted: Array, correct: Array, group_size: int) -> Array:
  """The gap of a group whose rewards are 0 or 1, from counts alone.

    √(2G (1 + √(x y / ((G−x)(G−y)))))   where 0 < x < G and 0 < y < G
    √G                                  where one of both holds
    0                                   where none does, or counts cannot occur

  x and y are those of `is_possible`: the vote is wrong, or y is 0.

  >>> x, y = jnp.array([8, 5, 5, 7]), jnp.array([0, 0, 1, 1])
  >>> print(jnp.array_str(gap_from_counts(x, y, 8), precision=3))
  [0.    2.828 4.879 5.657]
  """
  possible, size = is_possible(voted, correct, group_size), group_size
  x, y = (
    jnp.where(possible, n, 0).astype(jnp.result_type(float))
    for n in (voted, correct)
  )
  varies_x, varies_y = (x > 0) & (x < size), (y > 0) & (y < size)
  odds = reductions.divide(x * y, (size - x) * (size - y))
  both = jnp.sqrt(2 * size * (1 + reductions.square_root(odds)))
  gap = jnp.where(varies_x & varies_y, both, size**0.5)
  return jnp.where(varies_x | varies_y, gap, 0)


def gap_table(group_size: int) -> Array:
  """`gap_from_counts` by x, then y. Float `[G + 1, G + 1]`."""
  return gap_from_counts(*jnp.indices([group_size + 1] * 2), group_size)


def expected_gap(probabilities: Array, voted: Array) -> Array:
  """Averages the gap over what is not known: how many others are right. `[P]`.

    score = Σ_y P(y) CAG(G, x, y)

  y = 0 counts as a wrong vote with nobody right, although a right vote has it
  too: a prompt whose vote is surely right scores √G, and CARE's gate removes
  it. `probabilities [P, G + 1]` are those of y, and get a gradient; `voted [P]`
  is x. 0 where x is 0 or G, else from √G to 2√G.

  >>> p = jnp.array([[0.5, 0.5, 0.0, 0.0, 0.0]])
  >>> print(expected_gap(p, jnp.array([3])))  # (√4 + 2 √4) / 2
  [3.]
  """
  probabilities = reductions.at_least_float32(probabilities)
  table = gap_table(probabilities.shape[-1] - 1).astype(probabilities.dtype)
  costs = table[jnp.asarray(voted)]
  chex.assert_equal_shape([probabilities, costs])
  # What cannot occur costs 0, whatever its probability is.
  return jnp.sum(reductions.select(probabilities, costs > 0) * costs, axis=-1)
