"""Who gets a label, and how well that was chosen."""

import math

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from saw_jax.labels import selection
from tests.labels.golden_test import top, where


def care(scores, p, step, **options):
  scores, p = np.array(scores), np.array(p)
  return selection.care_selection(scores, p, step, **options)


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
    st.sampled_from([1, 4, 11]).flatmap(  # few shapes: each is compiled
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
    voted = set(where(found.gated)) - set(where(found.labelled))
    assert set(where(found.pseudo_labelled)) == voted
    # A gated prompt is bought only where the others are all bought.
    if (found.gated & found.labelled).any():
      assert (found.gated | found.labelled).all()

  def test_the_warm_up_and_nan_which_is_never_preferred(self):
    scores, p = [5.0, 4.0, 3.0, 2.0], [0.9, 0.1, 0.2, 0.3]
    assert not care(scores, p, 20).gated.any()
    assert where(care(scores, p, 21).gated) == [0]
    assert where(care(scores, p, 1, warm_up=0).gated) == [0]
    found = care([np.nan, 0.0, 1.0], [0.1, np.nan, 0.2], 50, label_fraction=0.5)
    assert where(found.gated) == [2] and where(found.labelled) == [1, 2]


@pytest.mark.parametrize(
  ("soft_adv", "want"),
  [(0.0, [1, 1, 1, 1]), (-1.0, [1, 1, 1, 1])]
  + [(1.0, [1, 0.25, 0, 1]), (100.0, [1, 1, 0, 1]), (2.0, [1, 0.5, 0, 1])],
)
def test_the_table_of_multipliers(soft_adv, want):
  labelled, gated = np.array([[1, 0, 0, 1], [0, 1, 0, 1]], bool)
  found = selection.Selection(labelled, gated, np.arange(4))
  fn = selection.advantage_multipliers
  # Scores of others than the gated prompt do not matter.
  for others in ([0.0, 5.0, 0.1], [np.nan, np.inf, np.nan]):
    scores = np.insert(np.float32(others), 1, 0.25)
    assert fn(found, scores, soft_adv).tolist() == want
    assert jax.jit(fn)(found, scores, soft_adv).tolist() == want


class TestScores:
  def test_random_scores_are_a_fair_draw(self):
    draw = jax.vmap(lambda key: top(selection.random_scores(key, 10)).labelled)
    bought = draw(jax.random.split(jax.random.key(0), 2000))
    assert (bought.sum(axis=1) == 2).all()
    # 2000 draws of probability 0.2: three deviations are 0.027.
    np.testing.assert_allclose(bought.mean(axis=0), 0.2, atol=0.03)

  def test_the_methods_rank_what_their_names_say_first(self):
    groups = selection.Groups(
      answer_ids=np.array([[0, 0, 0, 0], [0, 1, 2, 3], [0, 0, 0, 1]]),
      mean_probabilities=np.array([[0.9] * 4, [0.8] * 4, [0.1] * 4]),
      correct=np.array([[False] * 4, [False] * 4, [False] * 3 + [True]]),
      gaps=np.array([1.0, 3.0, 2.0]),
    )
    orders = {
      name: top(selection.STRATEGIES[name].rank(groups, None)).order.tolist()
      for name in ("entropy", "mean_probability", "oracle", "care")
    }
    assert orders == dict(
      entropy=[1, 2, 0],
      mean_probability=[2, 1, 0],
      oracle=[2, 1, 0],
      care=[1, 2, 0],
    )
    rank = selection.STRATEGIES["mean_probability"].rank
    assert (rank(groups, None) >= 0).all()

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
        scores = selection.oracle_scores(*np.array([pseudo, true], dtype))
        assert len(set(scores.tolist())) == 1
        assert top(scores, 0.5).order.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
  ("gated", "right", "want"),
  [
    ([1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [2 / 3, 2 / 3, 2 / 3, 3 / 5]),
    ([1, 1, 0, 0, 0], [1, 0, 1, 1, 1], [1 / 2, 1 / 4, 1 / 3, 1 / 5]),
    ([0, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 1 / 4]),
    ([1, 1], [0, 0], [0, 0, 0, 0]),
  ],
  ids=["by hand", "harmonic mean", "a closed gate", "no vote is right"],
)
def test_the_gate_as_a_classifier(gated, right, want):
  figures = selection.gate_figures(np.array(gated, bool), np.array(right, bool))
  names = [f"gate/{x}" for x in ("precision", "recall", "f1", "accuracy")]
  found = [figures[name] for name in names]
  np.testing.assert_allclose(found, want, rtol=1e-6)


@pytest.mark.parametrize(
  ("chosen", "gaps", "want"),
  [
    # Chosen {2, 1}, best {0, 2}; then {2, 1, 0} and {0, 2, 3}.
    ([0, 1, 1, 0, 0], [5.0, 0.0, 4.0, 3.0, 0.0], 1 / 2),
    ([1, 1, 1, 0, 0], [5.0, 0.0, 4.0, 3.0, 0.0], 2 / 3),
    # Ties are all among the best.
    ([0, 0, 1, 0], [4.0, 4.0, 4.0, 0.0], 1),
    ([0, 0, 0, 1], [4.0, 4.0, 4.0, 0.0], 0),
    ([0, 0], [1.0, 1.0], 0),
  ],
)
def test_overlap(chosen, gaps, want):
  found = selection.overlap(np.array(chosen, bool), np.array(gaps))
  np.testing.assert_allclose(found, want, rtol=1e-6)


@pytest.mark.parametrize(
  ("predicted", "true", "where", "want"),
  [
    # Recalls 1, 1/3 and 1; class 3 does not occur.
    ([0, 0, 0, 1, 2, 2], [0, 0, 1, 1, 1, 2], [1] * 6, (7 / 9, 2 / 3)),
    ([0, 2, 3, 1], [0, 2, 1, 3], [1, 1, 0, 1], (2 / 3, 1 / 2)),
    ([0], [0], [1], (1, 0)),
    ([0], [0], [0], (0, 0)),
  ],
  ids=["by hand", "a gated prompt", "none above 0", "nothing there"],
)
def test_recalls(predicted, true, where, want):
  found = selection.count_figures(
    np.eye(4)[predicted], np.array(true), np.array(where, bool)
  )
  np.testing.assert_allclose(
    [found["count/recall"], found["count/recall_above_0"]], want, rtol=1e-6
  )


def test_where_the_labels_went():
  bought = selection.Selection(
    jnp.array([1, 1, 1, 0], bool), jnp.zeros(4, bool), jnp.arange(4)[::-1]
  )
  figures = selection.label_figures(
    bought,
    np.array([1, 0, 0, 1], bool),
    np.array([0.0, 1.4, 2.0, 1.0]),
    np.array([[1, 0], [0, 0], [0, 1], [0, 0]]),
  )
  names = ["labels/labelled", "labels/wasted", "labels/hopeless"]
  names += ["overlap/labelled", "overlap/5", "overlap/10"]
  assert set(figures) == set(names)
  found = [figures[name] for name in names]
  # The first of the order is prompt 3, and prompt 2 is the best.
  want = [3 / 4, 1 / 3, 1 / 3, 2 / 3, 0, 0]
  np.testing.assert_allclose(found, want, rtol=1e-6)
  # Of a ranking of 20 the first one is the best, and one of the first two.
  gaps, order = np.arange(20.0), np.r_[19, 0, 18, 1:18]
  chosen = selection.Selection(gaps < 0, gaps < 0, order)
  given = chosen, gaps < 0, gaps, np.zeros((20, 3))
  figures = jax.jit(selection.label_figures)(*given)
  found = [figures[name] for name in names]
  np.testing.assert_allclose(found, [0, 0, 0, 0, 1, 0.5])
