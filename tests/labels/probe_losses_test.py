"""Tests of saw_jax/labels/probe_losses.py."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.test_util import check_grads

from saw_jax.labels import probe_losses


class TestClassWeights:
  def test_a_hundred_to_one(self):
    weights = probe_losses.class_weights(np.array([100, 1]))
    np.testing.assert_allclose(weights, [0.25, 20 / 11], rtol=1e-6)

  def test_one_class(self):
    weights = probe_losses.class_weights(np.array([0, 7, 0]))
    np.testing.assert_allclose(weights, [0, 1, 0], rtol=1e-6)

  def test_nothing_at_all(self):
    assert not probe_losses.class_weights(np.zeros(3)).any()

  def test_power_zero_is_no_balance(self):
    weights = probe_losses.class_weights(np.array([5, 1, 0]), power=0.0)
    assert weights.tolist() == [1, 1, 0]

  def test_labels_that_are_masked_or_of_no_class(self):
    counts = probe_losses.class_counts(
      np.array([0, 1, 1, -1, 9]), 2, where=np.array([1, 1, 0, 1, 1], bool)
    )
    assert counts.tolist() == [1, 1]


class TestClassProbabilities:
  @pytest.mark.slow
  @hypothesis.given(st.integers(0, 2**31))
  def test_they_are_a_softmax_over_what_is_possible(self, seed):
    rng = np.random.default_rng(seed)
    logits, mask = rng.normal(size=(3, 5)) * 20, rng.random((3, 5)) < 0.5
    mask[:, 0] = True
    found = probe_losses.class_probabilities(
      np.where(mask, logits, np.nan), mask
    )
    assert not found[~mask].any()
    for row in range(3):
      kept = logits[row, mask[row]]
      want = jax.nn.softmax(kept)
      np.testing.assert_allclose(found[row, mask[row]], want, rtol=1e-4)

  def test_without_a_mask(self):
    found = probe_losses.class_probabilities(np.zeros((2, 4)))
    np.testing.assert_allclose(found, 0.25, rtol=1e-6)


class TestWeightedCrossEntropy:
  def test_by_hand(self):
    # p = 1/2 with weight 1, p = 3/4 with weight 3: (log 2 + 3 log 4/3) / 4.
    logits = np.log(np.array([[0.5, 0.5], [0.25, 0.75]]))
    loss = probe_losses.weighted_cross_entropy(
      logits, np.array([0, 1]), np.array([1.0, 3.0])
    )
    want = (np.log(2) + 3 * np.log(4 / 3)) / 4
    np.testing.assert_allclose(loss, want, rtol=1e-6)

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

  @pytest.mark.parametrize("fn", LOSSES)
  def test_classes_weigh_by_how_rare_they_are(self, fn):
    logits, labels, *_ = batches(7)[fn]
    shape = logits.shape[-1]
    nll = -jax.nn.log_softmax(logits.reshape(-1, shape))
    nll = nll[jnp.arange(labels.size), labels.ravel()]
    counts = np.bincount(labels.ravel(), minlength=shape)
    weights = np.ones(shape)
    if fn is not probe_losses.response_loss:
      weights = probe_losses.class_weights(counts)
      assert len(set(weights[counts > 0].tolist())) > 1
    arrays = logits, labels
    if fn is probe_losses.count_loss:
      arrays = *arrays, np.ones((7, 4), bool)
    want = np.average(nll, weights=weights[labels.ravel()])
    np.testing.assert_allclose(fn(*arrays), want, rtol=1e-5)

  def test_the_true_count_is_always_a_class(self):
    # Two clusters of one are both right: 2 is the size of neither.
    mask = np.array([[True, True, False, False]])
    loss = probe_losses.count_loss(np.zeros((1, 4)), np.array([2]), mask)
    np.testing.assert_allclose(loss, np.log(3), rtol=1e-6)
