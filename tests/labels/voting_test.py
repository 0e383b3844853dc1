"""Votes and gaps: by loops, by definition, by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from saw_jax.labels import gap, voting
from tests.labels.golden_test import rewards_of, where


def ranked(group):
  """(answer, members) of each cluster, the vote first: loops, no arrays."""
  members = {x: where(group == x) for x in set(group.tolist()) - {-1}}
  return sorted(members.items(), key=lambda item: (-len(item[1]), item[1][0]))


class TestVotes:
  def test_it_counts_as_loops_do(self):
    @jax.jit
    def count(ids):
      truths = [ids == truth for truth in range(3)]
      return (
        voting.majority_vote(ids),
        voting.possible_counts(ids),
        jnp.stack([voting.is_vote_right(ids, x) for x in truths]),
        jnp.stack([voting.correct_outside(ids, x) for x in truths]),
      )

    rng = np.random.default_rng(0)
    for ids in (
      np.array(list(itertools.product(range(-1, 3), repeat=4))),
      rng.integers(-1, 5, (200, 7)),
      np.array([[-1], [0]]),
    ):
      votes, possible, rights, outside = jax.tree.map(np.array, count(ids))
      for row, group in enumerate(ids):
        found = ranked(group)
        sizes = [len(members) for _, members in found]
        winner = found[0][0] if found else -1
        assert votes.winner[row] == winner
        assert votes.size[row] == sum(sizes[:1])
        assert votes.answered[row] == sum(sizes)
        rest = [0] * (len(group) - len(sizes))
        assert votes.sizes[row].tolist() == sizes + rest
        assert set(where(possible[row])) == {0, *sizes[1:]}
        for truth in range(3):
          right = winner == truth
          assert rights[truth, row] == right
          assert outside[truth, row] == (not right) * (group == truth).sum()

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

  def test_the_margin_is_to_the_next_answer(self):
    ids = np.array([[1, 1, 1, 2], [1, 1, 2, 2], [3, 3, 3, 3], [-1] * 4])
    margins = voting.vote_margin(voting.majority_vote(ids))
    assert margins.tolist() == [0.5, 0.0, 1.0, 0.0]
    alone = voting.vote_margin(voting.majority_vote(ids[:, :1]))
    assert alone.tolist() == [1.0, 1.0, 1.0, 0.0]

  def test_graders_that_split_or_join_clusters(self):
    # 2 of the vote are right, or 1 of another: one confirms its cluster.
    ids = np.array([[1, 1, 1, 2, 2], [1, 1, 1, 2, 2]])
    correct = np.array([[0, 1, 0, 1, 0], [0, 0, 0, 0, 1]])
    assert voting.is_vote_right(ids, correct).tolist() == [True, False]
    assert voting.correct_outside(ids, correct).tolist() == [0, 2]
    ids, correct = np.array([[1, 1, 2, 3]]), np.array([[0, 0, 1, 1]])
    assert voting.correct_outside(ids, correct).tolist() == [2]
    # ... which the classes do not foresee.
    assert not voting.possible_counts(ids)[0, 2]


def by_definition(pseudo, true):
  """The gap in NumPy, one group at a time."""

  def standardise(r):
    r = np.asarray(r, np.float64)
    return np.zeros_like(r) if r.std() < 1e-8 else (r - r.mean()) / r.std()

  return np.linalg.norm(standardise(true) - standardise(pseudo))


class TestGap:
  @pytest.mark.parametrize("group_size", [1, 2, 3, 4, 5, 8, 15, 16, 64])
  def test_every_pair_of_counts(self, group_size):
    counts = range(group_size + 1)
    pairs = [
      (x, y) for x in counts for y in counts[: x + 1] if x + y <= group_size
    ]
    rewards = [rewards_of(*pair, group_size) for pair in pairs]
    pseudo, true = np.array(rewards, float).swapaxes(0, 1)
    want = [by_definition(p, t) for p, t in zip(pseudo, true, strict=True)]
    closed_form = jax.jit(gap.gap_from_counts, static_argnums=2)
    with jax.enable_x64(True):
      closed = closed_form(*np.array(pairs).T, group_size)
      vectors = jax.jit(gap.corrective_advantage_gap)(pseudo, true)
    np.testing.assert_allclose(closed, want, rtol=1e-12)
    np.testing.assert_allclose(vectors, want, rtol=1e-12)

  @pytest.mark.parametrize("group_size", [1, 2, 3, 4, 5])
  def test_every_group_of_answers(self, group_size):
    # Answers 0 to 2 or none, in every order; every ground truth.
    ids = np.array(list(itertools.product(range(-1, 3), repeat=group_size)))

    @jax.jit
    def both(ids, correct):
      votes = voting.majority_vote(ids)
      pseudo, true = votes.for_winner.astype(float), correct.astype(float)
      outside = voting.correct_outside(ids, correct)
      counted = gap.gap_from_counts(votes.size, outside, group_size)
      return (
        gap.corrective_advantage_gap(pseudo, true),
        jnp.where(voting.is_vote_right(ids, correct), 0, counted),
        gap.is_possible(votes.size, outside, group_size),
      )

    with jax.enable_x64(True):
      for truth in range(3):
        measured, want, possible = both(ids, ids == truth)
        np.testing.assert_allclose(measured, want, rtol=1e-12, atol=1e-12)
        assert possible.all()

  def test_edges(self):
    # A group of one has no gap.
    assert gap.corrective_advantage_gap(np.array([1.0]), np.array([0.0])) == 0
    assert not gap.gap_table(1).any()
    # Equal rewards that float32 cannot average.
    assert not gap.gap_advantages(np.full((1, 7), 1.8, np.float32)).any()
    # What cannot occur costs nothing.
    p = np.array([[0.5, np.nan, np.inf]], np.float32)
    assert gap.expected_gap(p, np.array([0])).tolist() == [0]

  def test_gradients(self):
    p = np.array([[0.2, 0.3, 0.4, 0.1], [0.1, 0.6, 0.1, 0.2]])
    expected = lambda p: gap.expected_gap(p, np.array([1, 2]))  # noqa: E731
    with jax.enable_x64(True):
      check_grads(expected, (p,), order=1)
