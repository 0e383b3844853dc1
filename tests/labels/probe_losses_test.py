"""Tests of saw_jax/labels/probe_losses.py."""

import functools
import json
import pathlib

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from hypothesis import strategies as st
from jax.test_util import check_grads

from saw_jax.labels import probe_losses

GOLDEN = json.loads(
  (pathlib.Path(__file__).parents[1] / "golden" / "rlavr_care.json").read_text()
)
PROBES = GOLDEN["probe_tiny_training"]
DTYPES = ((np.float64, 1e-9), (np.float32, 1e-5))


class GoldenTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.parameters(*GOLDEN["class_weights"])
  def test_class_weights(self, **case):
    counts = np.array(case["labels_counts"])
    labels = np.repeat(np.arange(len(counts)), counts)

    def weigh(labels):
      found = probe_losses.class_counts(labels, case["num_classes"])
      return found, probe_losses.class_weights(
        found, power=case["power"], minimum=case["min"], maximum=case["max"]
      )

    for dtype, rtol in DTYPES:
      with jax.enable_x64(dtype is np.float64):
        found, weights = self.variant(weigh)(labels)
        assert weights.dtype == dtype
        assert found.tolist() == counts.tolist()
        np.testing.assert_allclose(weights, case["weights"], rtol=rtol)

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.parameters(*GOLDEN["losses"])
  def test_cross_entropies(self, **case):
    mask = case.get("valid_mask")
    if mask is not None:
      mask = np.array(mask, bool)
    for dtype, rtol in DTYPES:
      with jax.enable_x64(dtype is np.float64):
        loss = self.variant(
          lambda logits: probe_losses.weighted_cross_entropy(
            logits,
            np.array(case["target"]),
            np.array(case["class_weight"]),
            class_mask=mask,
          ).value()
        )(np.array(case["logits"], dtype))
        assert loss.dtype == dtype
        np.testing.assert_allclose(loss, case["loss"], rtol=rtol)

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.parameters(0, 1, 2)
  def test_losses_of_the_probes(self, step):
    first, second = (PROBES[s]["steps"][step] for s in ("stage1", "stage2"))
    inputs = {name: np.array(x) for name, x in PROBES["inputs"].items()}
    counts, mask = inputs["stage2_label"], inputs["stage2_class_valid_mask"]
    for dtype, rtol in DTYPES:
      close = functools.partial(np.testing.assert_allclose, rtol=rtol)
      with jax.enable_x64(dtype is np.float64):
        votes = self.variant(probe_losses.vote_loss)(
          np.array(first["train_logits"], dtype), inputs["stage1_label"]
        )
        responses = self.variant(probe_losses.response_loss)(
          np.array(first["train_aux_logits"], dtype), inputs["resp_correct"]
        )
        close(votes, first["main_loss"])
        close(responses, first["aux_loss"])
        loss = self.variant(probe_losses.count_loss)(
          np.array(second["train_logits"], dtype), counts, mask.astype(bool)
        )
        close(loss, second["loss"])
        weights = probe_losses.class_weights(
          probe_losses.class_counts(counts, 4)
        )
        close(weights, second["class_weight"])


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
    np.testing.assert_allclose(loss.value(), want, rtol=1e-6)

  def test_gradients(self):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(4, 3)), np.array([0, 2, 1, 1])
    mask = np.array([[1, 1, 0], [0, 1, 1], [1, 1, 1], [1, 1, 0]], bool)
    with jax.enable_x64(True):
      check_grads(
        lambda x: probe_losses.weighted_cross_entropy(
          x, labels, np.array([1.0, 2.0, 0.5]), class_mask=mask
        ).value(),
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
      ).value()

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
