# SPDX-License-Identifier: Apache-2.0
"""Which prompts of a batch get a label, and what the others are trained on.

A budget is a share of the batch, rounded up. CARE buys where the expected gap
is largest, after it has set aside ("gated") the prompts whose vote is most
likely right; the baselines buy by one score. Numbers of prompts are Python
integers, so that one compiled function serves every step, warm-up included.

A label turns a prompt's rewards into true ones. A gated prompt keeps the
rewards of its vote. All others have advantage 0: they are dropped, but stay in
the batch and its denominators.

arXiv:2605.25864.
"""

import functools
import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from saw_jax import reductions
from saw_jax.labels import gap, voting
from saw_jax.types import Array, Key, Numeric

WARM_UP = 20  # steps before the gate opens


class Selection(NamedTuple):
  """What becomes of each prompt of a batch."""

  labelled: Array  # bool [P]: the ground truth is bought
  gated: Array  # bool [P]: its vote is among the most trusted
  order: Array  # int32 [P]: prompts by rank, the bought ones first

  @property
  def pseudo_labelled(self) -> Array:
    """The prompts that are trained on their vote. Boolean `[P]`."""
    return self.gated & ~self.labelled

  @property
  def dropped(self) -> Array:
    """The prompts that are trained on nothing. Boolean `[P]`."""
    return ~self.gated & ~self.labelled


def budget(batch_size: int, fraction: float) -> int:
  """Counts the prompts that are a share of a batch.

    ⌈P · fraction⌉, from 0 to P

  The product is rounded up as floating point has it: 7% of 100 are 8.

  Args:
    batch_size: P.
    fraction: of it; what is not between 0 and 1 is cut.

  Returns:
    The count.

  References:
    CARE, https://arxiv.org/abs/2605.25864

  >>> budget(64, 0.2), budget(8, 1.7), budget(8, 0.0)
  (13, 8, 0)
  """
  return min(max(math.ceil(batch_size * fraction), 0), batch_size)


@functools.partial(
  jax.jit, static_argnames=("label_fraction", "gate_fraction", "warm_up")
)
def care_selection(
  scores: Array,
  vote_probabilities: Array,
  step: Numeric,
  *,
  label_fraction: float = 0.2,
  gate_fraction: float = 0.25,
  warm_up: int = WARM_UP,
) -> Selection:
  """Buys labels where they are expected to change most.

    gated    = the ⌈P · gate_fraction⌉ prompts whose vote is likeliest right,
               none before step warm_up + 1
    rank     = score, but −1 where gated
    labelled = the ⌈P · label_fraction⌉ prompts of highest rank

  The gate is a share by rank and no threshold. Ties go to the lower index, in
  the gate (where the reference code leaves them open) as in the ranking.

  Args:
    scores: expected gaps, not negative. A NaN ranks below everything. Shape
      `[P]`.
    vote_probabilities: that the vote is right. Shape `[P]`.
    step: of the training, from 1. An integer, which may be traced.
    label_fraction: share of prompts whose label is bought.
    gate_fraction: share of prompts that are trusted.
    warm_up: number of steps without a gate.

  Returns:
    The selection. A gated prompt is labelled only if there are too few others.

  References:
    CARE, https://arxiv.org/abs/2605.25864

  >>> scores, p = jnp.array([5.0, 4.0, 3.0]), jnp.array([0.9, 0.1, 0.2])
  >>> first = care_selection(scores, p, 20, label_fraction=0.3)
  >>> later = care_selection(scores, p, 21, label_fraction=0.3)
  >>> print(first.labelled, later.labelled, later.gated)
  [ True False False] [False  True False] [ True False False]
  """
  chex.assert_rank(scores, 1)
  chex.assert_equal_shape([scores, vote_probabilities])
  batch_size = scores.shape[0]
  trusted = _first(
    _order(vote_probabilities), budget(batch_size, gate_fraction)
  )
  gated = trusted & (jnp.asarray(step) > warm_up)
  order = _order(jnp.where(gated, -jnp.ones_like(scores), scores))
  labelled = _first(order, budget(batch_size, label_fraction))
  return Selection(labelled, gated, order)


@functools.partial(jax.jit, static_argnames=("label_fraction",))
def top_selection(scores: Array, *, label_fraction: float = 0.2) -> Selection:
  """Buys the labels of the prompts that score highest: what a baseline does.

  Args:
    scores: the higher, the sooner it is bought; ties go to the lower index, and
      a NaN ranks below everything. Shape `[P]`.
    label_fraction: share of prompts whose label is bought, rounded up.

  Returns:
    The selection; nothing is gated.

  References:
    The baselines of CARE, https://arxiv.org/abs/2605.25864

  >>> top = top_selection(jnp.array([1.0, 3.0, 3.0]), label_fraction=0.3)
  >>> print(top.labelled)
  [False  True False]
  """
  chex.assert_rank(scores, 1)
  order = _order(scores)
  labelled = _first(order, budget(scores.shape[0], label_fraction))
  return Selection(labelled, jnp.zeros_like(labelled), order)


def advantage_multipliers(
  selection: Selection, scores: Array, *, soft_adv: float = 1.0
) -> Array:
  """Says how much each prompt counts in the update.

    1                            labelled
    clip(soft_adv · score, 0, 1) gated, and not labelled
    0                            else

  An expected gap is 0 (all responses agree, so that advantages are 0 anyway) or
  at least √G ≥ 1: with soft_adv = 1 every gated prompt that matters counts 1.

  Args:
    selection: of `P` prompts.
    scores: of the same prompts, with which they were selected. Shape `[P]`.
    soft_adv: 0 or less: every prompt counts 1, and those without a label are
      trained on their vote.

  Returns:
    The multipliers of the advantages. Shape `[P]`. No gradient flows.

  References:
    CARE, https://arxiv.org/abs/2605.25864

  >>> s = Selection(*jnp.array([[1, 0, 0], [0, 1, 0]], bool), jnp.arange(3))
  >>> print(advantage_multipliers(s, jnp.array([4.0, 0.4, 3.0])))
  [1.  0.4 0. ]
  """
  chex.assert_equal_shape([selection.labelled, scores])
  scores = reductions.select(
    jax.lax.stop_gradient(scores), selection.pseudo_labelled
  )
  softened = jnp.clip(soft_adv * scores, 0, 1)
  ones = jnp.ones_like(softened)
  multipliers = jnp.where(selection.labelled, ones, softened)
  return jnp.where(soft_adv > 0, multipliers, ones)


def training_rewards(
  pseudo_rewards: Array, true_rewards: Array, labelled: Array
) -> Array:
  """Takes true rewards where a label was bought, and no others.

  Args:
    pseudo_rewards: under the vote. Shape `[P, G]`.
    true_rewards: under the ground truth; what they are where no label was
      bought reaches nothing. Shape `[P, G]`.
    labelled: where a label was bought. Boolean, shape `[P]`.

  Returns:
    The rewards. Shape `[P, G]`.

  References:
    CARE, https://arxiv.org/abs/2605.25864

  >>> pseudo, true = jnp.zeros((2, 2)), jnp.ones((2, 2))
  >>> print(training_rewards(pseudo, true, jnp.array([True, False])))
  [[1. 1.]
   [0. 0.]]
  """
  chex.assert_equal_shape([pseudo_rewards, true_rewards])
  return jnp.where(jnp.asarray(labelled)[:, None], true_rewards, pseudo_rewards)


def random_scores(key: Key, num_prompts: int) -> Array:
  """Scores at random: whom to label is a fair draw.

  Args:
    key: consumed.
    num_prompts: P.

  Returns:
    The scores. Shape `[P]`.

  References:
    The baseline "random" of CARE, https://arxiv.org/abs/2605.25864

  >>> scores = random_scores(jax.random.key(0), 8)
  >>> print(top_selection(scores, label_fraction=0.25).labelled.sum())
  2
  """
  # A permutation rather than draws from an interval, in which two can be equal.
  return jax.random.permutation(key, num_prompts).astype(jnp.result_type(float))


def entropy_scores(answer_ids: Array) -> Array:
  """Scores by how much the answers to a prompt differ.

  Args:
    answer_ids: of each response, -1 for no answer. Integers, shape `[P, G]`.

  Returns:
    `voting.vote_entropy`. Shape `[P]`.

  References:
    The baseline "entropy" of CARE, https://arxiv.org/abs/2605.25864

  >>> print(entropy_scores(jnp.array([[1, 1, 1, 1]])))
  [0.]
  """
  return voting.vote_entropy(voting.majority_vote(answer_ids))


def unlikeliness_scores(mean_probabilities: Array) -> Array:
  """Scores by how improbable the tokens of the responses are.

    −mean_j mean_t π

  Args:
    mean_probabilities: `certainty.mean_probability` of each response. Shape
      `[P, G]`.

  Returns:
    The scores; a mean that is not finite counts as 0. Shape `[P]`.

  References:
    The baseline "average probability" of CARE,
    https://arxiv.org/abs/2605.25864

  >>> print(unlikeliness_scores(jnp.array([[0.25, 0.75], [1.0, jnp.nan]])))
  [-0.5 -0. ]
  """
  mean = jnp.mean(reductions.at_least_float32(mean_probabilities), axis=-1)
  return -reductions.select(mean, jnp.isfinite(mean))


def oracle_scores(
  pseudo_rewards: Array, true_rewards: Array, *, scored: Array | None = None
) -> Array:
  """Scores by the gap itself, which nobody knows before labels are bought.

  Args:
    pseudo_rewards: 0 or 1, under the vote. Shape `[P, G]`.
    true_rewards: 0 or 1, under the ground truth. Shape `[P, G]`.
    scored: mask of the responses whose rewards exist. Shape `[P, G]`.

  Returns:
    The gaps, rounded so that equal ones are equal: all prompts that split into
    the vote and the right answer have 2√G up to the last digits. Shape `[P]`.

  References:
    The baseline "oracle CAG" of CARE, https://arxiv.org/abs/2605.25864

  >>> votes = jnp.array([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]])
  >>> print(oracle_scores(votes, 1 - votes))
  [4. 4.]
  """
  gaps = gap.corrective_advantage_gap(
    pseudo_rewards, true_rewards, scored=scored
  )
  return jnp.round(gaps, 9 if gaps.dtype == jnp.float64 else 5)


def _order(scores: Array) -> Array:
  """Prompts from the highest score to the lowest, ties by index."""
  return jnp.argsort(-jnp.asarray(scores), stable=True).astype(jnp.int32)


def _first(order: Array, count: int) -> Array:
  """Marks the first `count` of an order."""
  return jnp.zeros(order.shape, bool).at[order[:count]].set(True)
