# SPDX-License-Identifier: Apache-2.0
"""How well a selection did, seen with the truth about all prompts.

For the log alone: in a run, labels of prompts that were not bought are unknown.
Masks are boolean `[P]`, and shares of nothing are 0.

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
  hits, trusted, right = map(_count, (gated & vote_right, gated, vote_right))
  return {
    "gate/precision": reductions.divide(hits, trusted),
    "gate/recall": reductions.divide(hits, right),
    "gate/f1": reductions.divide(2 * hits, trusted + right),
    "gate/accuracy": reductions.all_mean(gated == vote_right),
  }


def count_figures(
  count_probabilities: Array, correct_outside: Array, where: Array
) -> dict[str, Array]:
  """Macro recalls of the second probe: of all counts, and of those above 0.

  From `care.care_probabilities [P, G + 1]` and `voting.correct_outside [P]`,
  over the prompts of `where`, those that are not gated: recall averaged over
  the counts that occur.
  """
  predicted = jnp.argmax(count_probabilities, axis=-1)
  classes = jnp.arange(count_probabilities.shape[-1])[None]
  is_class = (correct_outside[:, None] == classes) & where[:, None]
  hits = is_class & (predicted == correct_outside)[:, None]
  counts = _count(is_class, axis=0)
  recalls = reductions.divide(_count(hits, axis=0), counts)
  return {
    name: reductions.all_mean(
      recalls, where=(counts > 0) & (classes[0] >= minimum)
    )
    for name, minimum in (("count/recall", 0), ("count/recall_above_0", 1))
  }


def label_figures(
  selection: Selection, vote_right: Array, gaps: Array, correct: Array
) -> dict[str, Array]:
  """What the budget was spent on.

  The share of prompts trained on ground truth; of these, the shares whose vote
  was right ("wasted") and without a correct response ("hopeless"); and the
  `overlap` of the bought prompts, and of the first 5 % and 10 % of the ranking.
  `correct` is `[P, G]`.
  """
  bought, order = selection.labelled, jnp.asarray(selection.order)
  chex.assert_equal_shape([bought, vote_right, gaps])
  hopeless = ~jnp.any(correct, axis=-1)
  return {
    "labels/labelled": reductions.all_mean(bought),
    "labels/wasted": reductions.all_mean(vote_right, where=bought),
    "labels/hopeless": reductions.all_mean(hopeless, where=bought),
    "overlap/labelled": overlap(bought, gaps),
  } | {
    f"overlap/{percent}": overlap(
      selections.first(order, selections.budget(gaps.size, percent / 100)), gaps
    )
    for percent in (5, 10)
  }


def overlap(chosen: Array, gaps: Array) -> Array:
  """The share of the chosen prompts that are among the best: CARE's overlap@r.

    |chosen ∩ best| / |chosen|

  Best are all prompts whose gap is that of the |chosen|-th largest or more:
  with ties they may be more than the chosen, and even all of them. `gaps [P]`
  are the true ones, `selection.oracle_scores`.

  >>> print(overlap(jnp.array([1, 0, 1], bool), jnp.array([5.0, 4.0, 0.0])))
  0.5
  """
  descending = jnp.sort(gaps)[::-1]
  least = descending[jnp.maximum(jnp.sum(chosen) - 1, 0)]
  return reductions.all_mean(gaps >= least, where=chosen)


def _count(mask: Array, axis: int | None = None) -> Array:
  return jnp.sum(mask, axis=axis, dtype=jnp.result_type(float))
