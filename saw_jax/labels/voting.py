# SPDX-License-Identifier: Apache-2.0
"""The answer that most responses to a prompt gave, and how they split.

Answers come as integers, `answer_ids [P, G]`: responses of one prompt with the
same id gave the same answer, and -1 is no answer. A cluster is all responses
with one answer. The vote is the answer of the largest cluster, and of equally
large ones that of the cluster whose first member comes first. Responses without
an answer are in no cluster, but count in `G`. `correct [P, G]` says whether the
ground truth accepts a response.
CARE, https://arxiv.org/abs/2605.25864; a vote as a label is from TTRL,
https://arxiv.org/abs/2504.16084.
"""

from typing import NamedTuple

import chex
import jax.numpy as jnp

from saw_jax import reductions
from saw_jax.types import Array


class Votes(NamedTuple):
  """How the responses to each prompt voted."""

  winner: Array  # int32 [P]: id of the voted answer; -1 if there is no answer
  size: Array  # int32 [P]: x, responses that gave it
  answered: Array  # int32 [P]: responses that gave any answer
  sizes: Array  # int32 [P, G]: of all clusters, descending, then 0
  for_winner: Array  # bool [P, G]: responses that gave the voted answer
  for_other: Array  # bool [P, G]: responses that gave another answer


def majority_vote(answer_ids: Array) -> Votes:
  """Counts votes: of answers -1, 9, 8, 8 and 9 it is 9, of sizes 2 and 2.

  >>> votes = majority_vote(jnp.array([[-1, 9, 8, 8, 9]]))  # a tie: 9 was first
  >>> print(votes.winner, votes.size, votes.sizes)
  [9] [2] [[2 2 0 0 0]]
  """
  same, answered = _same_answer(answer_ids), answer_ids >= 0
  # Size of the own cluster; the first of the largest is the vote.
  sizes = jnp.sum(same, axis=-1, dtype=jnp.int32)
  voter = jnp.argmax(sizes, axis=-1, keepdims=True)
  winner = jnp.take_along_axis(answer_ids, voter, axis=-1)
  winner = jnp.where(jnp.any(answered, axis=-1, keepdims=True), winner, -1)
  for_winner = answered & (answer_ids == winner)
  earlier = jnp.tri(same.shape[-1], k=-1, dtype=bool)
  is_first = answered & ~jnp.any(same & earlier[None], axis=-1)
  return Votes(
    winner=winner[:, 0].astype(jnp.int32),
    size=jnp.sum(for_winner, axis=-1, dtype=jnp.int32),
    answered=jnp.sum(answered, axis=-1, dtype=jnp.int32),
    sizes=jnp.sort(jnp.where(is_first, sizes, 0), axis=-1)[:, ::-1],
    for_winner=for_winner,
    for_other=answered & ~for_winner,
  )


def majority_share(votes: Votes) -> Array:
  """The share of the responses that agree with the vote, x / G. Float `[P]`."""
  return votes.size.astype(float) / votes.sizes.shape[-1]


def vote_entropy(votes: Votes) -> Array:
  """The entropy of the answers, in nats: 0 where all agree. Float `[P]`.

  H = −Σ_c p_c log p_c,   p_c = size of cluster c / responses with an answer
  """
  sizes = votes.sizes.astype(float)
  answered = jnp.broadcast_to(votes.answered[:, None], sizes.shape)
  p = reductions.divide(sizes, answered.astype(float))
  # 0 and not -0 where there is one answer.
  return jnp.abs(jnp.sum(p * jnp.log(jnp.where(p > 0, p, 1)), axis=-1))


def vote_margin(votes: Votes) -> Array:
  """How far the vote is ahead of the next answer, as a share. Float `[P]`."""
  # A group of one has no next answer.
  ahead = votes.sizes[:, 0] - jnp.sum(votes.sizes[:, 1:2], axis=-1)
  return ahead.astype(float) / votes.sizes.shape[-1]


def vote_features(votes: Votes) -> Array:
  """The shares of answers and of each cluster among `G`: float `[P, 1 + G]`."""
  counts = jnp.concatenate([votes.answered[:, None], votes.sizes], axis=-1)
  return counts.astype(float) / votes.sizes.shape[-1]


def possible_counts(answer_ids: Array) -> Array:
  """How many responses outside the vote may be right. Boolean `[P, G + 1]`.

  True for 0, and for the size of each cluster but the voted one: the right
  answer is that of one of them or of none.
  """
  votes = majority_vote(answer_ids)
  sizes = jnp.sum(_same_answer(answer_ids), axis=-1)
  others = jnp.where(votes.for_other, sizes, 0)
  counts = jnp.arange(others.shape[-1] + 1)
  found = others[:, :, None] == counts[None, None, :]
  return jnp.any(found, axis=1) | (counts == 0)[None, :]


def is_vote_right(answer_ids: Array, correct: Array) -> Array:
  """Whether the ground truth accepts any member of the vote. Boolean `[P]`."""
  for_winner = majority_vote(answer_ids).for_winner
  return jnp.any(for_winner & jnp.asarray(correct, bool), axis=-1)


def correct_outside(answer_ids: Array, correct: Array) -> Array:
  """Counts y, the responses that a wrong vote punishes although they are right.

  0 where the vote is right, else the size of all other clusters of which a
  member is correct: 0 means that the vote is right or nobody is. Integer `[P]`.

  >>> correct = jnp.array([[0, 0, 1], [1, 1, 0]])
  >>> print(correct_outside(jnp.array([[1, 1, 2], [1, 1, 2]]), correct))
  [1 0]
  """
  same, correct = _same_answer(answer_ids), jnp.asarray(correct, bool)
  confirmed = jnp.any(same & correct[:, None, :], axis=-1)
  outside = majority_vote(answer_ids).for_other & confirmed
  count = jnp.sum(outside, axis=-1, dtype=jnp.int32)
  return jnp.where(is_vote_right(answer_ids, correct), 0, count)


def _same_answer(answer_ids: Array) -> Array:
  """Whether two responses gave the same answer: `[P, G, G]`."""
  chex.assert_rank(answer_ids, 2)
  chex.assert_type(answer_ids, int)
  same = answer_ids[:, :, None] == answer_ids[:, None, :]
  return same & (answer_ids >= 0)[:, :, None]
