"""Tests of saw_jax/labels/voting.py."""

import collections
import itertools

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from saw_jax.labels import voting

# Few shapes, as each is compiled anew.
groups = st.sampled_from([1, 4, 7]).flatmap(
  lambda size: st.lists(
    st.lists(st.integers(-1, 4), min_size=size, max_size=size),
    min_size=3,
    max_size=3,
  )
)


def count(group):
  """(answer, members) of each cluster, the vote first: loops, no arrays."""
  members = collections.defaultdict(list)
  for index, answer in enumerate(group):
    if answer >= 0:
      members[answer].append(index)
  return sorted(members.items(), key=lambda item: (-len(item[1]), item[1][0]))


class TestVotes:
  @pytest.mark.slow
  @hypothesis.given(groups)
  def test_it_counts_as_loops_do(self, ids):
    votes = voting.majority_vote(np.array(ids))
    possible = voting.possible_counts(np.array(ids))
    for row, group in enumerate(ids):
      ranked, size = count(group), len(group)
      sizes = [len(members) for _, members in ranked]
      assert votes.winner[row] == (ranked[0][0] if ranked else -1)
      assert votes.size[row] == (sizes[0] if ranked else 0)
      assert votes.answered[row] == sum(sizes)
      assert votes.sizes[row].tolist() == sizes + [0] * (size - len(sizes))
      assert set(np.flatnonzero(possible[row])) == {0, *sizes[1:]}

  def test_ties_go_to_the_answer_that_came_first(self):
    ids = np.array([[-1, 9, 8, 8, 9], [3, 1, 1, 3, -1], [5, 4, 3, 2, 1]])
    assert voting.majority_vote(ids).winner.tolist() == [9, 3, 5]

  def test_nothing_parses(self):
    ids = np.full((2, 3), -1)
    votes = voting.majority_vote(ids)
    assert votes.winner.tolist() == [-1, -1]
    assert not votes.size.any() and not votes.for_other.any()
    assert not voting.vote_features(votes).any()
    assert voting.vote_entropy(votes).tolist() == [0, 0]
    assert voting.possible_counts(ids).tolist() == [[True] + [False] * 3] * 2
    everything = np.ones((2, 3), bool)  # a grader that accepts nothing at all
    assert not voting.is_vote_right(ids, everything).any()
    assert not voting.correct_outside(ids, everything).any()


class TestLabels:
  @pytest.mark.slow
  def test_every_small_group(self):
    ids = np.array(list(itertools.product(range(-1, 3), repeat=4)))
    for truth in range(3):
      correct = ids == truth
      right = voting.is_vote_right(ids, correct)
      outside = voting.correct_outside(ids, correct)
      for row, group in enumerate(ids):
        ranked = count(group)
        is_right = bool(ranked) and ranked[0][0] == truth
        assert right[row] == is_right
        expected = 0 if is_right else int((group == truth).sum())
        assert outside[row] == expected

  def test_one_correct_member_confirms_a_whole_cluster(self):
    # A grader split the clusters: 2 of the vote are right, or 1 of another.
    ids = np.array([[1, 1, 1, 2, 2], [1, 1, 1, 2, 2]])
    correct = np.array([[0, 1, 0, 1, 0], [0, 0, 0, 0, 1]])
    assert voting.is_vote_right(ids, correct).tolist() == [True, False]
    assert voting.correct_outside(ids, correct).tolist() == [0, 2]

  def test_several_clusters_may_be_right(self):
    ids, correct = np.array([[1, 1, 2, 3]]), np.array([[0, 0, 1, 1]])
    assert voting.correct_outside(ids, correct).tolist() == [2]
    # ... which the classes do not foresee.
    assert not voting.possible_counts(ids)[0, 2]
