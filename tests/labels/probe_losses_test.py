"""Tests of saw_jax/labels/probe_losses.py."""

import functools

import jax
import numpy as np
import pytest
from jax.test_util import check_grads

from saw_jax.labels import probe_losses


class TestClassWeights:
  def test_a_hundred_to_one(self):
    weights = probe_losses.class_weights(np.array([100, 1]))
    np.testing.assert_allclose(weights, [0.25, 20 / 11], rtol=1e-6)

  def test_nothing_at_all(self):
    assert not probe_losses.class_weights(np.zeros(3)).any()

  def test_labels_that_are_masked_or_of_no_class(self):
    counts = probe_losses.class_counts(
      np.array([0, 1, 1, -1, 9]), 2, where=np.array([1, 1, 0, 1, 1], bool)
    )
    assert counts.tolist() == [1, 1]


def test_what_is_impossible_may_be_any_number():
  logits = np.array([[0.0, np.nan, 0.0, np.inf]])
  found = probe_losses.class_probabilities(logits, np.isfinite(logits))
  np.testing.assert_allclose(found, [[0.5, 0, 0.5, 0]], rtol=1e-6)


class TestWeightedCrossEntropy:
  def test_gradients(self):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(4, 3)), np.array([0, 2, 1, 1])
    mask = np.array([[1, 1, 0], [0, 1, 1], [1, 1, 1], [1, 1, 0]], bool)
    with jax.enable_x64(True):
      check_grads(
        lambda x: probe_losses.weighted_cross_entropy(
          x, labels, np.array([1.0, 2.0, 0.5]), class_mask=mask
        ),
        (logits,),
        order=1,
        modes=["rev"],
      )

  def test_no_samples(self):
    logits = np.full((2, 3), np.nan, np.float32)
    nothing = np.zeros(2, bool)

    def loss(logits):
      return probe_losses.weighted_cross_entropy(
        logits,
        np.array([0, -5]),
        np.ones(3),
        class_mask=np.zeros((2, 3), bool),
        where=nothing,
      )

    value, gradient = jax.value_and_grad(loss)(logits)
    assert value == 0 and not gradient.any()


def batches(count):
  """The losses of the probes, with logits and labels of some prompts."""
  rng = np.random.default_rng(0)
  logits = functools.partial(rng.normal, size=(count, 4))
  mask = np.arange(4) < np.full((count, 1), 3)
  answers = rng.normal(size=(count, 3, 2)).astype(np.float32)
  return {
    probe_losses.vote_loss: (
      logits()[:, :2].astype(np.float32),
      rng.integers(0, 2, count),
    ),
    probe_losses.response_loss: (answers, rng.integers(0, 2, (count, 3))),
    probe_losses.count_loss: (
      logits().astype(np.float32),
      rng.integers(0, 3, count),
      mask,
    ),
  }


LOSSES = list(batches(1))


class TestProbeLosses:
  @pytest.mark.slow
  @pytest.mark.parametrize("fn", LOSSES)
  def test_padding_changes_nothing(self, fn):
    arrays = batches(5)[fn]

    def pad(x):
      junk = np.nan if x.dtype == np.float32 else 1
      return np.concatenate([x, np.full((3, *x.shape[1:]), junk, x.dtype)])

    loss, gradient = jax.value_and_grad(fn)(*arrays)
    value, padded_gradient = jax.value_and_grad(fn)(
      *map(pad, arrays), where=np.arange(8) < 5
    )
    np.testing.assert_allclose(value, loss, rtol=1e-6)
    np.testing.assert_allclose(padded_gradient[:5], gradient, rtol=1e-5)
    assert not padded_gradient[5:].any()

  def test_the_true_count_is_always_a_class(self):
    # Two clusters of one are both right: 2 is the size of neither.
    mask = np.array([[True, True, False, False]])
    loss = probe_losses.count_loss(np.zeros((1, 4)), np.array([2]), mask)
    np.testing.assert_allclose(loss, np.log(3), rtol=1e-6)
