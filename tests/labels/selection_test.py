"""Tests of saw_jax/labels/selection.py."""

import math

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from saw_jax.labels import selection
from tests.labels.golden_test import top, where


def care(scores, p, step, **options):
  return selection.care_selection(
    np.array(scores), np.array(p), step, **options
  )


def by_loops(scores, p, step, label_fraction, gate_fraction):
  """Labelled and gated prompts as the reference code takes them."""
  size = len(scores)
  open_share = gate_fraction if step > 20 else 0.0
  trusted = sorted(range(size), key=lambda i: (-p[i], i))
  gated = set(trusted[: min(size, math.ceil(size * open_share))])
  rank = [-1.0 if i in gated else scores[i] for i in range(size)]
  bought = sorted(range(size), key=lambda i: (-rank[i], i))
  return bought[: min(size, math.ceil(size * label_fraction))], gated


@hypothesis.given(st.integers(0, 300), st.floats(-1, 3))
def test_a_budget_is_within_the_batch(size, fraction):
  assert 0 <= selection.budget(size, fraction) <= size
  assert selection.budget(100, 0.07) == 8  # rounded up as floats have it


class TestCare:
  @hypothesis.given(
    st.integers(1, 12).flatmap(
      lambda n: st.tuples(
        *[st.lists(st.sampled_from([0, 1, 2.5, 4]), min_size=n, max_size=n)] * 2
      )
    ),
    st.sampled_from([0.0, 0.2, 0.7, 1.0, 1.5]),
    st.sampled_from([0.0, 0.25, 1.0]),
    st.sampled_from([1, 20, 21]),
  )
  def test_it_selects_as_loops_do(self, prompts, share, gate, step):
    scores, p = prompts
    found = care(scores, p, step, label_fraction=share, gate_fraction=gate)
    bought, gated = by_loops(scores, p, step, share, gate)
    assert found.order[: len(bought)].tolist() == bought
    assert where(found.labelled) == sorted(bought)
    assert set(where(found.gated)) == gated
    parts = [found.labelled, found.pseudo_labelled, found.dropped]
    assert (sum(np.asarray(part, int) for part in parts) == 1).all()
    # A gated prompt is bought only where the others are all bought.
    if (found.gated & found.labelled).any():
      assert (found.gated | found.labelled).all()

  def test_the_gate_opens_after_the_warm_up(self):
    scores, p = [5.0, 4.0, 3.0, 2.0], [0.9, 0.1, 0.2, 0.3]
    assert not care(scores, p, 20).gated.any()
    assert where(care(scores, p, 21).gated) == [0]
    assert where(care(scores, p, 1, warm_up=0).gated) == [0]

  def test_nan_is_never_preferred(self):
    found = care([np.nan, 0.0, 1.0], [0.1, np.nan, 0.2], 50, label_fraction=0.5)
    assert where(found.gated) == [2] and where(found.labelled) == [1, 2]


class TestMultipliers:
  FOUND = selection.Selection(
    np.array([1, 0, 0, 1], bool), np.array([0, 1, 0, 1], bool), np.arange(4)
  )

  @pytest.mark.parametrize(
    ("soft_adv", "want"),
    [(0.0, [1, 1, 1, 1]), (-1.0, [1, 1, 1, 1])]
    + [(1.0, [1, 0.25, 0, 1]), (100.0, [1, 1, 0, 1]), (2.0, [1, 0.5, 0, 1])],
  )
  def test_the_table(self, soft_adv, want):
    scores = np.array([0.0, 0.25, 5.0, 0.1], np.float32)
    fn = jax.jit(selection.advantage_multipliers)
    for value in (
      fn(self.FOUND, scores, soft_adv=soft_adv),
      selection.advantage_multipliers(self.FOUND, scores, soft_adv=soft_adv),
    ):
      assert value.tolist() == want

  def test_scores_of_others_do_not_matter(self):
    scores = np.array([np.nan, 0.25, np.inf, np.nan], np.float32)
    value = selection.advantage_multipliers(self.FOUND, scores)
    assert value.tolist() == [1, 0.25, 0, 1]


class TestScores:
  def test_random_scores_are_a_fair_draw(self):
    def draw(key):
      scores = selection.random_scores(key, 10)
      return top(scores).labelled

    bought = jax.vmap(draw)(jax.random.split(jax.random.key(0), 2000))
    assert (bought.sum(axis=1) == 2).all()
    # 2000 draws of probability 0.2: three deviations are 0.027.
    np.testing.assert_allclose(bought.mean(axis=0), 0.2, atol=0.03)

  def test_a_mean_that_is_not_finite_counts_as_nothing(self):
    p = np.array([[0.5, 0.7], [np.nan, 0.9], [np.inf, 0.1]], np.float32)
    scores = selection.unlikeliness_scores(p)
    np.testing.assert_allclose(scores, [-0.6, 0, 0], rtol=1e-6)

  def test_oracle_ties_go_to_the_lower_index(self):
    # 4 + 4, 5 + 3 and 7 + 1 all have 2 sqrt(8), up to the last digits.
    pseudo = np.array([np.arange(8) < x for x in (7, 5, 4, 6)], np.float32)
    true = 1 - pseudo
    for dtype in (np.float32, np.float64):
      with jax.enable_x64(dtype is np.float64):
        scores = selection.oracle_scores(
          pseudo.astype(dtype), true.astype(dtype)
        )
        assert len(set(scores.tolist())) == 1
        found = top(scores, label_fraction=0.5)
        assert found.order.tolist() == [0, 1, 2, 3]
