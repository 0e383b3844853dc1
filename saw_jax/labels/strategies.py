# SPDX-License-Identifier: Apache-2.0
"""How each method decides what prompts are trained on.

A method that ranks prompts trains on votes and, if it buys, on labels; the
others (the truth, the policy's certainty, its verdict) rank nothing. Baselines
of CARE, https://arxiv.org/abs/2605.25864.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from saw_jax.labels import selection, voting
from saw_jax.labels.selection import Selection
from saw_jax.types import Array, Key


class Groups(NamedTuple):
  """What a method may look at before it buys: the groups of one seed."""

  answer_ids: Array  # int32 [P, G]
  mean_probabilities: Array  # [P, G]; 0 unless it needs log-probs
  correct: Array  # bool [P, G]; false unless it sees the truth
  gaps: Array | None = None  # [P], expected by the probes if there are any


# (selection, scores [P], soft_adv) -> factors of advantages [P]
Weigh = Callable[[Selection, Array, float], Array]


def every_vote(chosen: Selection, scores: Array, soft_adv: float) -> Array:
  """Trains on the vote of every prompt without a label."""
  return jnp.ones_like(scores)


def trusted_votes(chosen: Selection, scores: Array, soft_adv: float) -> Array:
  """Drops votes that are not trusted; a score that is no gap scales nothing."""
  return selection.advantage_multipliers(chosen, jnp.ones_like(scores))


@dataclasses.dataclass(frozen=True)
class Strategy:
  """What a method looks at, and what it does with it."""

  # What prompts are bought by, `[P]`; None: the method ranks no prompts.
  rank: Callable[[Groups, Key], Array] | None = None
  weigh: Weigh = trusted_votes
  buys: bool = False
  sees_truth: bool = False  # of prompts whose label nobody bought
  has_probes: bool = False
  needs_log_probs: bool = False
  needs_verdicts: bool = False


_buying = functools.partial(Strategy, buys=True)


def _right_votes(groups: Groups, key: Key) -> Array:
  right = voting.is_vote_right(groups.answer_ids, groups.correct)
  return right.astype(jnp.float32)


def _oracle(groups: Groups, key: Key) -> Array:
  votes = voting.majority_vote(groups.answer_ids)
  return selection.oracle_scores(votes.for_winner, groups.correct)


STRATEGIES = {
  "truth": Strategy(),
  "vote": Strategy(lambda g, _: jnp.zeros(g.answer_ids.shape[0]), every_vote),
  # As TTRL's released script for knights and knaves: no vote that is wrong.
  "filtered_vote": Strategy(
    _right_votes, lambda chosen, scores, soft_adv: scores, sees_truth=True
  ),
  "random": _buying(
    lambda g, key: selection.random_scores(key, g.answer_ids.shape[0])
  ),
  "entropy": _buying(lambda g, _: selection.entropy_scores(g.answer_ids)),
  "mean_probability": _buying(
    # From 0 up, as a gated prompt ranks below 0.
    lambda g, _: 1 + selection.unlikeliness_scores(g.mean_probabilities),
    needs_log_probs=True,
  ),
  "oracle": _buying(_oracle, sees_truth=True),
  "care": _buying(
    lambda g, _: g.gaps, selection.advantage_multipliers, has_probes=True
  ),
  "certainty": Strategy(needs_log_probs=True),
  "self_verification": Strategy(needs_verdicts=True),
}
