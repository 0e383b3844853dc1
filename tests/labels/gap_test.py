"""Tests of saw_jax/labels/gap.py."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from saw_jax.labels import gap, voting
from tests.labels.golden_test import rewards_of


def possible_pairs(group_size):
  return [
    (x, y)
    for x in range(group_size + 1)
    for y in range(x + 1)
    if x + y <= group_size
  ]


def by_definition(pseudo, true):
  """The gap in NumPy, one group at a time."""

  def standardise(r):
    r = np.asarray(r, np.float64)
    return np.zeros_like(r) if r.std() < 1e-8 else (r - r.mean()) / r.std()

  return np.linalg.norm(standardise(true) - standardise(pseudo))


class TestAgainstTheDefinition:
  @pytest.mark.parametrize("group_size", [1, 2, 3, 4, 5, 8, 15, 16, 64])
  def test_every_pair_of_counts(self, group_size):
    pairs = possible_pairs(group_size)
    x, y = np.array(pairs).T
    pseudo, true = np.array(
      [rewards_of(*pair, group_size) for pair in pairs], float
    ).swapaxes(0, 1)
    want = [by_definition(p, t) for p, t in zip(pseudo, true, strict=True)]
    with jax.enable_x64(True):
      closed = gap.gap_from_counts(x, y, group_size)
      vectors = gap.corrective_advantage_gap(pseudo, true)
    np.testing.assert_allclose(closed, want, rtol=1e-12)
    np.testing.assert_allclose(vectors, want, rtol=1e-12)

  @pytest.mark.slow
  @pytest.mark.parametrize("group_size", [1, 2, 3, 4, 5])
  def test_every_group_of_answers(self, group_size):
    # Answers 0 to 2 or none, in every order; every ground truth.
    ids = np.array(list(itertools.product(range(-1, 3), repeat=group_size)))
    with jax.enable_x64(True):
      votes = voting.majority_vote(ids)
      pseudo = np.asarray(votes.for_winner, float)
      for truth in range(3):
        correct = ids == truth
        measured = gap.corrective_advantage_gap(pseudo, correct.astype(float))
        outside = voting.correct_outside(ids, correct)
        assert gap.is_possible(votes.size, outside, group_size).all()
        counted = gap.gap_from_counts(votes.size, outside, group_size)
        right = voting.is_vote_right(ids, correct)
        want = jnp.where(right, 0, counted)
        np.testing.assert_allclose(measured, want, rtol=1e-12, atol=1e-12)


class TestEdges:
  def test_a_group_of_one_has_no_gap(self):
    assert gap.corrective_advantage_gap(np.array([1.0]), np.array([0.0])) == 0
    assert not gap.gap_table(1).any()

  def test_equal_rewards_that_float32_cannot_average(self):
    alike = np.full((1, 7), 1.8, np.float32)
    assert not gap.gap_advantages(alike).any()


class TestExpectedGap:
  def test_what_cannot_occur_costs_nothing(self):
    p = np.array([[0.5, np.nan, np.inf]], np.float32)
    assert gap.expected_gap(p, np.array([0])).tolist() == [0]

  def test_gradients(self):
    p = np.array([[0.2, 0.3, 0.4, 0.1], [0.1, 0.6, 0.1, 0.2]])
    with jax.enable_x64(True):
      check_grads(
        lambda p: gap.expected_gap(p, np.array([1, 2])), (p,), order=1
      )
