# SPDX-License-Identifier: Apache-2.0
"""How well a selection did, seen with the truth about all prompts.

For the log alone: in a run, labels of prompts that were not bought are unknown.
Shares of nothing are 0.

CARE, https://arxiv.org/abs/2605.25864, as its released code logs them.
"""

import chex
import jax.numpy as jnp

from saw_jax import reductions
from saw_jax.labels import selection as selections
from saw_jax.labels.selection import Selection
from saw_jax.types import Array


def gate_figures(gated: Array, vote_right: Array) -> dict[str, Array]:
  """The gate as a classifier of votes: precision, recall, F1, accuracy."""
  chex.assert_equal_shape([gated, vote_right])
  gated, right = jnp.asarray(gated, bool), jnp.asarray(vote_right, bool)
  hits = _count(gated & right)
  return {
    "gate/precision": reductions.divide(hits, _count(gated)),
    "gate/recall": reductions.divide(hits, _count(right)),
    "gate/f1": reductions.divide(2 * hits, _count(gated) + _count(right)),
    "gate/accuracy": reductions.all_mean(gated == right),
  }


def count_figures(
  count_probabilities: Array, correct_outside: Array, where: Array
) -> dict[str, Array]:
  """Macro recalls of the second probe: of all counts, and of those above 0.

  From `care.care_probabilities [P, G + 1]` and `voting.correct_outside [P]`,
  over the prompts of `where [P]`, which are those that are not gated.
  """
  predicted = jnp.argmax(count_probabilities, axis=-1)
  classes = count_probabilities.shape[-1]
  return {
    name: macro_recall(
      predicted, correct_outside, classes, where=where, minimum=minimum
    )
    for name, minimum in (("count/recall", 0), ("count/recall_above_0", 1))
  }


def label_figures(
  selection: Selection, vote_right: Array, gaps: Array, true_rewards: Array
) -> dict[str, Array]:
  """What the budget was spent on.

  The share of prompts trained on ground truth; of these, the shares whose vote
  was right ("wasted") and without a correct response ("hopeless"); and the
  `overlap` of the bought prompts, and of the first 5 % and 10 % of the ranking.
  """
  bought = selection.labelled
  chex.assert_equal_shape([bought, vote_right])
  chex.assert_equal_shape_prefix([bought, true_rewards], 1)
  hopeless = jnp.all(jnp.asarray(true_rewards) == 0, axis=-1)
  order, size = jnp.asarray(selection.order), gaps.shape[0]
  return {
    "labels/labelled": reductions.all_mean(bought),
    "labels/wasted": reductions.all_mean(vote_right, where=bought),
    "labels/hopeless": reductions.all_mean(hopeless, where=bought),
    "overlap/labelled": overlap(bought, gaps),
  } | {
    f"overlap/{percent}": overlap(
      selections.first(order, selections.budget(size, percent / 100)), gaps
    )
    for percent in (5, 10)
  }


def overlap(chosen: Array, gaps: Array) -> Array:
  """The share of the chosen prompts that are among the best: CARE's overlap@r.

    |chosen ∩ best| / |chosen|

  Best are all prompts whose gap is that of the |chosen|-th largest or more:
  with ties they may be more than the chosen, and even all of them. `chosen` is
  a mask `[P]`; `gaps [P]` are the true ones, `selection.oracle_scores`.

  >>> print(overlap(jnp.array([1, 0, 1]), jnp.array([5.0, 4.0, 0.0])))
  0.5
  """
  chex.assert_rank(gaps, 1)
  chex.assert_equal_shape([chosen, gaps])
  gaps, chosen = jnp.asarray(gaps), jnp.asarray(chosen, bool)
  descending = jnp.sort(gaps)[::-1]
  least = descending[jnp.maximum(jnp.sum(chosen) - 1, 0)]
  return reductions.all_mean(gaps >= least, where=chosen)


def macro_recall(
  predicted: Array,
  true: Array,
  num_classes: int,
  *,
  where: Array | None = None,
  minimum: int = 0,
) -> Array:
  """Averages recall over the classes from `minimum` on that occur."""
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


def _count(mask: Array, axis: int | None = None) -> Array:
  return jnp.sum(mask, axis=axis, dtype=jnp.result_type(float))
