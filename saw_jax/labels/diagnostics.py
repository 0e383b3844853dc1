# SPDX-License-Identifier: Apache-2.0
"""How well a selection did, seen with the truth about all prompts.

For the log, and for nothing else: in a run labels of prompts that were not
bought are unknown, and these figures need them. Shares of nothing are 0.

arXiv:2605.25864, as its released code logs them.
"""

from typing import NamedTuple

import chex
import jax.numpy as jnp

from saw_jax import reductions
from saw_jax.labels import selection as selections
from saw_jax.labels.selection import Selection
from saw_jax.types import Array


class GateFigures(NamedTuple):
  """The gate as a classifier: gated says that the vote is right."""

  precision: Array  # share of the gated prompts whose vote is right
  recall: Array  # share of the right votes that are gated
  f1: Array  # harmonic mean of both
  accuracy: Array  # share of all prompts where gated and right agree


def gate_figures(gated: Array, vote_right: Array) -> GateFigures:
  """Compares the prompts that are trusted with those that deserve it.

  Args:
    gated: the prompts whose vote is trusted. Boolean, shape `[P]`.
    vote_right: whether each vote is right. Shape `[P]`.

  Returns:
    The figures, scalars; precision, recall and F1 are 0 while nothing is gated.

  References:
    CARE, https://arxiv.org/abs/2605.25864

  >>> figures = gate_figures(jnp.array([1, 1, 0, 0]), jnp.array([1, 0, 1, 1]))
  >>> print(figures.precision, figures.accuracy)
  0.5 0.25
  """
  chex.assert_equal_shape([gated, vote_right])
  gated, right = jnp.asarray(gated, bool), jnp.asarray(vote_right, bool)
  hits = _count(gated & right)
  return GateFigures(
    precision=reductions.divide(hits, _count(gated)),
    recall=reductions.divide(hits, _count(right)),
    f1=reductions.divide(2 * hits, _count(gated) + _count(right)),
    accuracy=reductions.all_mean(gated == right),
  )


def overlap(order: Array, gaps: Array, fraction: float) -> Array:
  """Gives the share of the first prompts that are among the best ones.

    |first ∩ best| / |first|,   first = ⌈P · fraction⌉ prompts of the order

  with best all prompts whose gap is that of the ⌈P · fraction⌉-th largest or
  more: with ties they may be more than the first, and even all of them.

  Args:
    order: prompts by rank, such as `Selection.order`. Integers, shape `[P]`.
    gaps: the true ones, `selection.oracle_scores`, whose ties are exact. Shape
      `[P]`.
    fraction: of the prompts.

  Returns:
    The share, a scalar.

  References:
    "overlap@r" of CARE, https://arxiv.org/abs/2605.25864

  >>> print(overlap(jnp.array([2, 0, 1]), jnp.array([5.0, 4.0, 0.0]), 0.5))
  0.5
  """
  chex.assert_rank(gaps, 1)
  chex.assert_equal_shape([order, gaps])
  gaps = jnp.asarray(gaps)
  count = selections.budget(gaps.shape[0], fraction)
  if not count:
    return jnp.zeros(())
  least = jnp.sort(gaps)[-count]
  return reductions.all_mean((gaps >= least)[jnp.asarray(order)[:count]])


def macro_recall(
  predicted: Array,
  true: Array,
  num_classes: int,
  *,
  where: Array | None = None,
  minimum: int = 0,
) -> Array:
  """Averages recall over the classes that occur, each counted once.

  Args:
    predicted: class of each prompt. Integers, shape `[P]`.
    true: class of each prompt. Integers, shape `[P]`.
    num_classes: C.
    where: mask of the prompts that count. Shape `[P]`.
    minimum: the first class that counts; 1 leaves out class 0.

  Returns:
    The recall, a scalar.

  References:
    CARE, https://arxiv.org/abs/2605.25864

  >>> print(macro_recall(jnp.array([0, 0, 1]), jnp.array([0, 0, 2]), 3))
  0.5
  """
  chex.assert_equal_shape([predicted, true])
  predicted, true = jnp.asarray(predicted), jnp.asarray(true)
  is_class = true[:, None] == jnp.arange(num_classes)[None]
  if where is not None:
    is_class &= jnp.asarray(where, bool)[:, None]
  hits = is_class & (predicted == true)[:, None]
  counts = _count(is_class, axis=0)
  recalls = reductions.divide(_count(hits, axis=0), counts)
  there = (counts > 0) & (jnp.arange(num_classes) >= minimum)
  return reductions.all_mean(recalls, where=there)


def label_figures(
  selection: Selection, vote_right: Array, true_rewards: Array
) -> dict[str, Array]:
  """Says what the budget was spent on.

  Args:
    selection: of `P` prompts.
    vote_right: whether each vote is right. Shape `[P]`.
    true_rewards: 0 or 1 under the ground truth. Shape `[P, G]`.

  Returns:
    Scalars: `labelled`, the share of prompts trained on ground truth; of these,
    `wasted`, the share whose vote was right, and `hopeless`, the share without
    a correct response.

  References:
    CARE, https://arxiv.org/abs/2605.25864

  >>> all_bought = selections.top_selection(jnp.zeros(2), label_fraction=1.0)
  >>> rewards = jnp.array([[1.0, 1.0], [0.0, 0.0]])
  >>> figures = label_figures(all_bought, jnp.array([True, False]), rewards)
  >>> print(figures["wasted"], figures["hopeless"])
  0.5 0.5
  """
  bought = selection.labelled
  chex.assert_equal_shape([bought, vote_right])
  chex.assert_equal_shape_prefix([bought, true_rewards], 1)
  hopeless = jnp.all(jnp.asarray(true_rewards) == 0, axis=-1)
  return {
    "labelled": reductions.all_mean(bought),
    "wasted": reductions.all_mean(vote_right, where=bought),
    "hopeless": reductions.all_mean(hopeless, where=bought),
  }


def care_figures(
  selection: Selection,
  count_probabilities: Array,
  vote_right: Array,
  correct_outside: Array,
  gaps: Array,
  true_rewards: Array,
) -> dict[str, Array]:
  """Collects everything that CARE logs about one selection.

  Args:
    selection: of `P` prompts.
    count_probabilities: from `care.care_probabilities`. Shape `[P, G + 1]`.
    vote_right: `voting.is_vote_right` of all prompts. Shape `[P]`.
    correct_outside: `voting.correct_outside` of all prompts. Shape `[P]`.
    gaps: `selection.oracle_scores` of all prompts. Shape `[P]`.
    true_rewards: 0 or 1 under the ground truth. Shape `[P, G]`.

  Returns:
    Scalars by name: the gate's figures, overlaps at 5 %, 10 % and the share
    that was bought, macro recalls of the second probe on prompts that are not
    gated (of all counts, and of counts above 0), and `label_figures`.

  References:
    CARE, https://arxiv.org/abs/2605.25864
  """
  gate = gate_figures(selection.gated, vote_right)
  predicted = jnp.argmax(count_probabilities, axis=-1)
  recalls = {
    name: macro_recall(
      predicted,
      correct_outside,
      count_probabilities.shape[-1],
      where=~selection.gated,
      minimum=minimum,
    )
    for name, minimum in (("recall", 0), ("recall_above_0", 1))
  }
  figures = {f"gate/{name}": x for name, x in gate._asdict().items()}
  figures |= {f"count/{name}": x for name, x in recalls.items()}
  figures |= {
    f"overlap/{percent}": overlap(selection.order, gaps, percent / 100)
    for percent in (5, 10)
  }
  figures["overlap/labelled"] = _overlap_of_bought(selection, gaps)
  of_labels = label_figures(selection, vote_right, true_rewards)
  return figures | {f"labels/{name}": x for name, x in of_labels.items()}


def _overlap_of_bought(selection: Selection, gaps: Array) -> Array:
  """`overlap` at the budget, whose size is known to the mask alone."""
  count = jnp.sum(selection.labelled)
  descending = jnp.sort(jnp.asarray(gaps))[::-1]
  least = descending[jnp.maximum(count - 1, 0)]
  return reductions.all_mean(gaps >= least, where=selection.labelled)


def _count(mask: Array, axis: int | None = None) -> Array:
  return jnp.sum(mask, axis=axis, dtype=jnp.result_type(float))
