"""Tests of saw_jax/labels/diagnostics.py."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from saw_jax.labels import diagnostics, selection


class TestGateFigures:
  def test_by_hand(self):
    figures = diagnostics.gate_figures(
      np.array([1, 1, 1, 0, 0], bool), np.array([1, 1, 0, 1, 0], bool)
    )
    np.testing.assert_allclose(figures, [2 / 3, 2 / 3, 2 / 3, 3 / 5], rtol=1e-6)

  def test_f1_is_the_harmonic_mean(self):
    precision, recall, f1, _ = diagnostics.gate_figures(
      np.array([1, 1, 0, 0, 0], bool), np.array([1, 0, 1, 1, 1], bool)
    )
    np.testing.assert_allclose(f1, 2 / (1 / precision + 1 / recall), rtol=1e-6)

  def test_a_closed_gate(self):
    figures = diagnostics.gate_figures(
      np.zeros(4, bool), np.array([1, 1, 1, 0])
    )
    assert [float(x) for x in figures] == [0, 0, 0, 0.25]

  def test_no_vote_is_right(self):
    figures = diagnostics.gate_figures(np.ones(2, bool), np.zeros(2, bool))
    assert [float(x) for x in figures] == [0, 0, 0, 0]


class TestOverlap:
  def test_by_hand(self):
    gaps = np.array([5.0, 0.0, 4.0, 3.0, 0.0])
    order = np.array([2, 1, 0, 3, 4])
    # First 2 are {2, 1}, best 2 are {0, 2}.
    assert diagnostics.overlap(order, gaps, 0.4) == 0.5
    np.testing.assert_allclose(
      diagnostics.overlap(order, gaps, 0.6), 2 / 3, rtol=1e-6
    )

  def test_ties_are_all_among_the_best(self):
    gaps = np.array([4.0, 4.0, 4.0, 0.0])
    assert diagnostics.overlap(np.array([2, 3, 0, 1]), gaps, 0.25) == 1
    assert diagnostics.overlap(np.array([3, 2, 0, 1]), gaps, 0.25) == 0

  def test_no_share(self):
    assert diagnostics.overlap(np.arange(3), np.ones(3), 0.0) == 0

  @pytest.mark.slow
  @hypothesis.given(st.lists(st.integers(0, 3), min_size=1, max_size=9))
  def test_the_oracle_overlaps_itself(self, gaps):
    gaps = np.array(gaps, np.float32)
    order = selection.top_selection(gaps).order
    for fraction in (0.05, 0.1, 0.5, 1.0):
      assert diagnostics.overlap(order, gaps, fraction) == 1


class TestMacroRecall:
  def test_by_hand(self):
    predicted = np.array([0, 0, 0, 1, 2, 2])
    true = np.array([0, 0, 1, 1, 1, 2])
    # Recalls 1, 1/3 and 1; class 3 does not occur.
    found = diagnostics.macro_recall(predicted, true, 4)
    np.testing.assert_allclose(found, 7 / 9, rtol=1e-6)
    found = diagnostics.macro_recall(predicted, true, 4, minimum=1)
    np.testing.assert_allclose(found, 2 / 3, rtol=1e-6)

  def test_masked_prompts_are_not_there(self):
    found = diagnostics.macro_recall(
      np.array([0, 1, 1]), np.array([0, 1, 2]), 3, where=np.array([1, 1, 0])
    )
    assert found == 1

  def test_nothing_there(self):
    assert (
      diagnostics.macro_recall(np.array([0]), np.array([0]), 2, minimum=1) == 0
    )


class TestFigures:
  def test_where_the_labels_went(self):
    bought = selection.Selection(
      jnp.array([1, 1, 1, 0], bool), jnp.zeros(4, bool), jnp.arange(4)
    )
    figures = diagnostics.label_figures(
      bought,
      np.array([1, 0, 0, 1], bool),
      np.array([[1, 0], [0, 0], [0, 1], [0, 0]]),
    )
    assert figures["labelled"] == 0.75
    np.testing.assert_allclose(figures["wasted"], 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(figures["hopeless"], 1 / 3, rtol=1e-6)

  @pytest.mark.parametrize("step", [20, 21])
  def test_all_of_them(self, step):
    size, group = 20, 3
    rng = np.random.default_rng(0)
    gaps = rng.integers(0, 5, size).astype(np.float32)
    right = gaps == 0
    chosen = selection.care_selection(gaps, right.astype(np.float32), step)
    outside = np.where(right, 0, rng.integers(0, group, size))
    probabilities = np.eye(group + 1, dtype=np.float32)[outside]
    figures = jax.jit(diagnostics.care_figures)(
      chosen,
      probabilities,
      right,
      outside,
      gaps,
      rng.integers(0, 2, (size, group)),
    )
    assert set(figures) == {
      *(f"gate/{name}" for name in ("precision", "recall", "f1", "accuracy")),
      *("count/recall", "count/recall_above_0"),
      *("overlap/5", "overlap/10", "overlap/labelled"),
      *("labels/labelled", "labels/wasted", "labels/hopeless"),
    }
    # The best scores, the best counts, and the gate closed or open.
    for name in ("overlap/5", "overlap/10", "overlap/labelled", "count/recall"):
      assert figures[name] == 1, name
    assert figures["labels/wasted"] == 0
    np.testing.assert_allclose(figures["labels/labelled"], 0.2, rtol=1e-6)
    gated = min(5, right.sum()) if step > 20 else 0
    np.testing.assert_allclose(
      figures["gate/recall"], gated / right.sum(), rtol=1e-6
    )

  def test_the_overlap_at_the_budget_is_that_of_its_share(self):
    gaps = np.array([3.0, 1.0, 2.0, 3.0, 0.0], np.float32)
    scores = np.array([1.0, 5.0, 4.0, 0.0, 0.0], np.float32)
    for fraction in (0.2, 0.4, 0.6, 1.0):
      chosen = selection.top_selection(scores, label_fraction=fraction)
      figures = diagnostics.care_figures(
        chosen, np.eye(5), gaps == 0, np.zeros(5, int), gaps, np.zeros((5, 4))
      )
      want = diagnostics.overlap(chosen.order, gaps, fraction)
      np.testing.assert_allclose(figures["overlap/labelled"], want, rtol=1e-6)
