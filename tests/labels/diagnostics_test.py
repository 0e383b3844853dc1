"""Tests of saw_jax/labels/diagnostics.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saw_jax.labels import diagnostics, selection


class TestGateFigures:
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
  def test_by_hand(self, gated, right, want):
    figures = diagnostics.gate_figures(
      np.array(gated, bool), np.array(right, bool)
    )
    names = [f"gate/{x}" for x in ("precision", "recall", "f1", "accuracy")]
    found = [figures[name] for name in names]
    np.testing.assert_allclose(found, want, rtol=1e-6)


class TestOverlap:
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
  def test_by_hand(self, chosen, gaps, want):
    found = diagnostics.overlap(np.array(chosen, bool), np.array(gaps))
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
  found = diagnostics.count_figures(
    np.eye(4)[predicted], np.array(true), np.array(where, bool)
  )
  np.testing.assert_allclose(
    [found["count/recall"], found["count/recall_above_0"]], want, rtol=1e-6
  )


class TestLabelFigures:
  def test_where_the_labels_went(self):
    bought = selection.Selection(
      jnp.array([1, 1, 1, 0], bool), jnp.zeros(4, bool), jnp.arange(4)[::-1]
    )
    figures = diagnostics.label_figures(
      bought,
      np.array([1, 0, 0, 1], bool),
      np.array([0.0, 1.4, 2.0, 1.0]),
      np.array([[1, 0], [0, 0], [0, 1], [0, 0]]),
    )
    want = {
      "labels/labelled": 3 / 4,
      "labels/wasted": 1 / 3,
      "labels/hopeless": 1 / 3,
      "overlap/labelled": 2 / 3,
      # The first of the order is prompt 3, and prompt 2 is the best.
      "overlap/5": 0,
      "overlap/10": 0,
    }
    assert figures.keys() == want.keys()
    for name, value in want.items():
      np.testing.assert_allclose(figures[name], value, rtol=1e-6, err_msg=name)

  def test_shares_of_a_ranking(self):
    gaps = np.arange(20.0)
    order = np.r_[19, 0, 18, 1:18]
    chosen = selection.Selection(gaps < 0, gaps < 0, order)
    figures = jax.jit(diagnostics.label_figures)(
      chosen, gaps < 0, gaps, np.zeros((20, 3))
    )
    assert figures["overlap/5"] == 1 and figures["overlap/10"] == 0.5
    assert figures["labels/labelled"] == figures["overlap/labelled"] == 0
