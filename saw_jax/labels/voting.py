# SPDX-License-Identifier: Apache-2.0
"""The answer that most responses to a prompt gave, and how they split.

Answers come as integers: responses of one prompt with the same id gave the same
answer, and -1 is no answer. Ids of different prompts have nothing to do with
each other. Text is turned into ids by `saw_jax.tasks.clusters`.

A cluster is all responses with one answer. The vote is the answer of the
largest, and of equally large ones that of the cluster whose first member comes
first. Responses without an answer are in no cluster, but count in `G`.

The formulas are those of CARE, https://arxiv.org/abs/2605.25864.
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
  """Counts votes.

  Args:
    answer_ids: of each response, -1 for no answer. Integers, shape `[P, G]`.

  Returns:
    The votes.

  References:
    CARE, https://arxiv.org/abs/2605.25864; voting as a label is from TTRL,
    https://arxiv.org/abs/2504.16084

  >>> votes = majority_vote(jnp.array([[-1, 9, 8, 8, 9]]))  # a tie: 9 was first
  >>> print(votes.winner, votes.size, votes.sizes)
  [9] [2] [[2 2 0 0 0]]
  """
  answer_ids = _ids(answer_ids)
  same = _same_answer(answer_ids)
  answered = answer_ids >= 0
  # Size of the own cluster; the first of the largest is the vote.
  sizes = jnp.sum(same, axis=-1, dtype=jnp.int32)
  voter = jnp.argmax(sizes, axis=-1, keepdims=True)
  winner = jnp.take_along_axis(answer_ids, voter, axis=-1)
  winner = jnp.where(jnp.any(answered, axis=-1, keepdims=True), winner, -1)
  for_winner = answered & (answer_ids == winner)
  return Votes(
    winner=winner[:, 0].astype(jnp.int32),
    size=jnp.sum(for_winner, axis=-1, dtype=jnp.int32),
    answered=jnp.sum(answered, axis=-1, dtype=jnp.int32),
    sizes=jnp.sort(jnp.where(_is_first(same), sizes, 0), axis=-1)[:, ::-1],
    for_winner=for_winner,
    for_other=answered & ~for_winner,
  )


def majority_share(votes: Votes) -> Array:
  """Gives the share of the responses that agree with the vote.

    x / G

  Args:
    votes: of `P` prompts.

  Returns:
    The shares; responses without an answer are in the denominator. Float,
    shape `[P]`.

  References:
    CARE, https://arxiv.org/abs/2605.25864

  >>> print(majority_share(majority_vote(jnp.array([[1, 1, 2, -1]]))))
  [0.5]
  """
  return votes.size.astype(_float()) / votes.sizes.shape[-1]


def vote_entropy(votes: Votes) -> Array:
  """Gives the entropy of the answers, in nats.

    H = −Σ_c p_c log p_c,   p_c = size of cluster c / responses with an answer

  Args:
    votes: of `P` prompts.

  Returns:
    The entropies; 0 where all answers are the same, or there are none. Float,
    shape `[P]`.

  References:
    The baseline "entropy" of CARE, https://arxiv.org/abs/2605.25864

  >>> h = vote_entropy(majority_vote(jnp.array([[1, 2, -1, -1], [3, 3, 3, 3]])))
  >>> print(jnp.array_str(h, precision=3))
  [0.693 0.   ]
  """
  sizes = votes.sizes.astype(_float())
  answered = votes.answered[:, None].astype(_float())
  p = reductions.divide(sizes, jnp.broadcast_to(answered, sizes.shape))
  log_p = jnp.log(jnp.where(p > 0, p, jnp.ones_like(p)))
  # 0 and not -0 where there is one answer.
  return jnp.abs(jnp.sum(p * log_p, axis=-1))


def vote_features(votes: Votes) -> Array:
  """Describes a vote to a probe.

  Args:
    votes: of `P` prompts.

  Returns:
    The share of responses with an answer, then the sizes of all clusters by
    `G`, descending. Float, shape `[P, 1 + G]`.

  References:
    CARE, https://arxiv.org/abs/2605.25864

  >>> print(vote_features(majority_vote(jnp.array([[1, 1, 2, -1]]))))
  [[0.75 0.5  0.25 0.   0.  ]]
  """
  counts = jnp.concatenate([votes.answered[:, None], votes.sizes], axis=-1)
  return counts.astype(_float()) / votes.sizes.shape[-1]


def possible_counts(answer_ids: Array) -> Array:
  """Says how many responses outside of the vote may be right.

  If the vote is wrong, the right answer is that of one other cluster, or of
  none.

  Args:
    answer_ids: of each response, -1 for no answer. Integers, shape `[P, G]`.

  Returns:
    Whether `y` responses can be right: for 0, and for the size of each cluster
    but the voted one. Boolean, shape `[P, G + 1]`.

  References:
    CARE, https://arxiv.org/abs/2605.25864

  >>> print(possible_counts(jnp.array([[1, 1, 2, -1]])).astype(int))
  [[1 1 0 0 0]]
  """
  votes = majority_vote(answer_ids)
  others = jnp.where(
    votes.for_other, jnp.sum(_same_answer(_ids(answer_ids)), axis=-1), 0
  )
  counts = jnp.arange(others.shape[-1] + 1)
  found = others[:, :, None] == counts[None, None, :]
  return jnp.any(found, axis=1) | (counts == 0)[None, :]


def is_vote_right(answer_ids: Array, correct: Array) -> Array:
  """Says whether the ground truth confirms a vote.

  Args:
    answer_ids: of each response, -1 for no answer. Integers, shape `[P, G]`.
    correct: whether the ground truth accepts a response. A grader may accept
      some members of a cluster and not others: one is enough. Shape `[P, G]`.

  Returns:
    Whether a response that gave the voted answer is correct; false where there
    is no answer. Boolean, shape `[P]`.

  References:
    CARE, https://arxiv.org/abs/2605.25864

  >>> correct = jnp.array([[0, 0, 1], [1, 1, 0]])
  >>> print(is_vote_right(jnp.array([[1, 1, 2], [1, 1, 2]]), correct))
  [False  True]
  """
  chex.assert_equal_shape([answer_ids, correct])
  for_winner = majority_vote(answer_ids).for_winner
  return jnp.any(for_winner & jnp.asarray(correct, bool), axis=-1)


def correct_outside(answer_ids: Array, correct: Array) -> Array:
  """Counts the responses that a wrong vote punishes although they are right.

  Args:
    answer_ids: of each response, -1 for no answer. Integers, shape `[P, G]`.
    correct: whether the ground truth accepts a response. Shape `[P, G]`.

  Returns:
    y: 0 where the vote is right, else the size of all other clusters of which a
    member is correct. 0 says that the vote is right or nobody is. Integer,
    shape `[P]`.

  References:
    CARE, https://arxiv.org/abs/2605.25864

  >>> correct = jnp.array([[0, 0, 1], [1, 1, 0]])
  >>> print(correct_outside(jnp.array([[1, 1, 2], [1, 1, 2]]), correct))
  [1 0]
  """
  chex.assert_equal_shape([answer_ids, correct])
  same = _same_answer(_ids(answer_ids))
  confirmed = jnp.any(same & jnp.asarray(correct, bool)[:, None, :], axis=-1)
  outside = majority_vote(answer_ids).for_other & confirmed
  count = jnp.sum(outside, axis=-1, dtype=jnp.int32)
  return jnp.where(is_vote_right(answer_ids, correct), 0, count)


def _ids(answer_ids: Array) -> Array:
  answer_ids = jnp.asarray(answer_ids)
  chex.assert_rank(answer_ids, 2)
  chex.assert_type(answer_ids, int)
  return answer_ids


def _same_answer(answer_ids: Array) -> Array:
  """Whether two responses gave the same answer: `[P, G, G]`."""
  same = answer_ids[:, :, None] == answer_ids[:, None, :]
  return same & (answer_ids >= 0)[:, :, None]


def _is_first(same: Array) -> Array:
  """Whether a response is the first of its cluster: `[P, G]`."""
  group_size = same.shape[-1]
  earlier = jnp.tri(group_size, k=-1, dtype=bool)
  has_earlier = jnp.any(same & earlier[None], axis=-1)
  return jnp.any(same, axis=-1) & ~has_earlier


def _float() -> jnp.dtype:
  """The default float: float32, or float64 where it is enabled."""
  return jnp.result_type(float)
