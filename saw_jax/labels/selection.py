# SPDX-License-Identifier: Apache-2.0
"""Which prompts of a batch get a label, and what the others are trained on.

A budget is a share of the batch, rounded up. CARE buys where the expected gap
is largest, after it has set aside ("gated") the prompts whose vote is most
likely right; the baselines buy by one score, without a gate. A label turns a
prompt's rewards into true ones, and a gated prompt keeps those of its vote; all
others have advantage 0, but stay in the batch and its denominators.

Numbers of prompts are Python integers, so that one compiled function serves
every step. Masks are `[P]`, and shares of nothing are 0. CARE,
https://arxiv.org/abs/2605.25864.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
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
    """The prompts that are trained on their vote."""
    return self.gated & ~self.labelled


def budget(batch_size: int, fraction: float) -> int:
  """Counts the prompts that are a share of a batch: ⌈P · fraction⌉ in [0, P].

  The product is rounded up as floating point has it: 7% of 100 are 8.
  """
  return min(max(math.ceil(batch_size * fraction), 0), batch_size)


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

  Ties go to the lower index, in the gate (where the reference code leaves them
  open) as in the ranking, and a NaN ranks below everything. A gated prompt is
  labelled only if there are too few others. With a gate_fraction of 0 this is
  how the baselines buy. `scores [P]` are expected gaps, not negative;
  `vote_probabilities [P]` that the vote is right; `step` counts from 1.

  >>> scores, p = jnp.array([5.0, 4.0, 3.0]), jnp.array([0.9, 0.1, 0.2])
  >>> later = care_selection(scores, p, 21, label_fraction=0.3)
  >>> print(later.labelled, later.gated)
  [False  True False] [ True False False]
  """
  chex.assert_equal_shape([scores, vote_probabilities])
  (size,) = scores.shape
  trusted = first(_order(vote_probabilities), budget(size, gate_fraction))
  gated = trusted & (step > warm_up)
  order = _order(jnp.where(gated, -1, scores))
  return Selection(first(order, budget(size, label_fraction)), gated, order)


def advantage_multipliers(
  selection: Selection, scores: Array, soft_adv: float = 1.0
) -> Array:
  """How much each prompt counts in the update: factors of advantages, `[P]`.

    1                            labelled
    clip(soft_adv · score, 0, 1) gated, and not labelled
    0                            else

  `scores [P]` are those that the prompts were selected with. An expected gap is
  0, where all responses agree, or at least √G: with soft_adv = 1 every gated
  prompt that matters counts 1. With soft_adv ≤ 0 every prompt counts 1, and
  those without a label are trained on their vote. No gradient flows.
  """
  scores = jax.lax.stop_gradient(scores)
  scores = reductions.select(scores, selection.pseudo_labelled)
  softened = jnp.clip(soft_adv * scores, 0, 1)
  return jnp.where(selection.labelled | (soft_adv <= 0), 1, softened)


def random_scores(key: Key, num_prompts: int) -> Array:
  """Scores at random, `[P]`: whom to label is a fair draw. Consumes the key."""
  # A permutation rather than draws from an interval, in which two can be equal.
  return jax.random.permutation(key, num_prompts).astype(jnp.result_type(float))


def entropy_scores(answer_ids: Array) -> Array:
  """Scores by how much the answers differ: `voting.vote_entropy`, `[P]`."""
  return voting.vote_entropy(voting.majority_vote(answer_ids))


def unlikeliness_scores(mean_probabilities: Array) -> Array:
  """Scores by how improbable the tokens of the responses are: −mean_j mean_t π.

  From `certainty.mean_probability [P, G]`; 0 where a mean is not finite.
  """
  mean = jnp.mean(reductions.at_least_float32(mean_probabilities), axis=-1)
  return -reductions.select(mean, jnp.isfinite(mean))


def oracle_scores(pseudo_rewards: Array, true_rewards: Array) -> Array:
  """Scores by the gap itself, which nobody knows before labels are bought.

  Rounded, as all prompts that split into the vote and the right answer have 2√G
  up to the last digits. 0-or-1 rewards are `[P, G]`.
  """
  gaps = gap.corrective_advantage_gap(pseudo_rewards, true_rewards)
  return jnp.round(gaps, 9 if gaps.dtype == jnp.float64 else 5)


class Groups(NamedTuple):
  """What a method may look at before it buys: the groups of one seed."""

  answer_ids: Array  # int32 [P, G]
  mean_probabilities: Array  # [P, G]; 0 unless it needs log-probs
  correct: Array  # bool [P, G]; false unless it sees the truth
  gaps: Array | None = None  # [P], expected by the probes if there are any


def every_vote(chosen: Selection, scores: Array, soft_adv: float) -> Array:
  """Trains on the vote of every prompt without a label."""
  return jnp.ones_like(scores)


def trusted_votes(chosen: Selection, scores: Array, soft_adv: float) -> Array:
  """Drops votes that are not trusted; a score that is no gap scales nothing."""
  return advantage_multipliers(chosen, jnp.ones_like(scores))


@dataclasses.dataclass(frozen=True)
class Strategy:
  """What a method looks at, and what it does with it."""

  # What prompts are bought by, `[P]`; None: the method ranks no prompts.
  rank: Callable[[Groups, Key], Array] | None = None
  # (selection, scores [P], soft_adv) -> factors of advantages [P]
  weigh: Callable[[Selection, Array, float], Array] = trusted_votes
  buys: bool = False
  sees_truth: bool = False  # of prompts whose label nobody bought
  has_probes: bool = False
  has_curves: bool = False  # of visits, which say whose votes are trusted
  needs_log_probs: bool = False
  needs_verdicts: bool = False


_buying = functools.partial(Strategy, buys=True)


def _oracle(groups: Groups, key: Key) -> Array:
  """Ranks by the true gap; prompts of equal gaps, such as 0, by entropy."""
  votes = voting.majority_vote(groups.answer_ids)
  gaps = oracle_scores(votes.for_winner, groups.correct)
  order = jnp.lexsort((-entropy_scores(groups.answer_ids), -gaps))
  return (gaps.size - jnp.argsort(order)).astype(gaps.dtype)


# A method that ranks prompts trains on votes and, if it buys, on labels; the
# others (the truth, the policy's certainty, its verdict) rank nothing.
STRATEGIES = {
  "truth": Strategy(),
  "vote": Strategy(lambda g, _: jnp.zeros(g.answer_ids.shape[0]), every_vote),
  # As TTRL's released script for knights and knaves: no vote that is wrong.
  "filtered_vote": Strategy(
    lambda g, _: 1.0 * voting.is_vote_right(g.answer_ids, g.correct),
    lambda chosen, scores, soft_adv: scores,
    sees_truth=True,
  ),
  "random": _buying(lambda g, key: random_scores(key, g.answer_ids.shape[0])),
  "entropy": _buying(lambda g, _: entropy_scores(g.answer_ids)),
  "margin": _buying(
    lambda g, _: 1 - voting.vote_margin(voting.majority_vote(g.answer_ids))
  ),
  "mean_probability": _buying(
    # From 0 up, as a gated prompt ranks below 0.
    lambda g, _: 1 + unlikeliness_scores(g.mean_probabilities),
    needs_log_probs=True,
  ),
  "oracle": _buying(_oracle, sees_truth=True),
  "care": _buying(lambda g, _: g.gaps, advantage_multipliers, has_probes=True),
  # Its labels are of a fixed set of prompts: there is nothing to rank.
  "trapo": _buying(has_curves=True),
  "certainty": Strategy(needs_log_probs=True),
  "self_verification": Strategy(needs_verdicts=True),
}


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

  Recall is averaged over the counts that occur, of the prompts in `where`.
  """
  predicted = jnp.argmax(count_probabilities, axis=-1)
  classes = jnp.arange(count_probabilities.shape[-1])[None]
  is_class = (correct_outside[:, None] == classes) & where[:, None]
  hits = is_class & (predicted == correct_outside)[:, None]
  counts = _count(is_class, axis=0)
  recalls = reductions.divide(_count(hits, axis=0), counts)
  mean, there = reductions.all_mean, counts > 0
  return {
    "count/recall": mean(recalls, where=there),
    "count/recall_above_0": mean(recalls, where=there & (classes[0] > 0)),
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
  first_5, first_10 = (budget(gaps.size, share) for share in (0.05, 0.1))
  return {
    "labels/labelled": reductions.all_mean(bought),
    "labels/wasted": reductions.all_mean(vote_right, where=bought),
    "labels/hopeless": reductions.all_mean(hopeless, where=bought),
    "overlap/labelled": overlap(bought, gaps),
    "overlap/5": overlap(first(order, first_5), gaps),
    "overlap/10": overlap(first(order, first_10), gaps),
  }


def overlap(chosen: Array, gaps: Array) -> Array:
  """The share of the chosen prompts that are among the best: CARE's overlap@r.

    |chosen ∩ best| / |chosen|

  Best are all prompts whose gap is that of the |chosen|-th largest or more:
  with ties they may be more than the chosen, and even all of them. `gaps [P]`
  are the true ones, `oracle_scores`.
  """
  descending = jnp.sort(gaps)[::-1]
  least = descending[jnp.maximum(jnp.sum(chosen) - 1, 0)]
  return reductions.all_mean(gaps >= least, where=chosen)


def first(order: Array, count: int) -> Array:
  """Marks the first `count` prompts of an order. Boolean `[P]`."""
  return jnp.zeros(order.shape, bool).at[order[:count]].set(True)


def _order(scores: Array) -> Array:
  """Prompts from the highest score to the lowest, ties by index."""
  return jnp.argsort(-jnp.asarray(scores), stable=True).astype(jnp.int32)


def _count(mask: Array, axis: int | None = None) -> Array:
  return jnp.sum(mask, axis=axis, dtype=jnp.result_type(float))
