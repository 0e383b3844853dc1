"""Tests of saw_jax/labels/certainty.py."""

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from saw_jax.labels import certainty

EVERY = (certainty.self_certainty, certainty.token_entropy)
EVERY += (certainty.trajectory_entropy, certainty.probability)
EVERY += (certainty.mean_probability,)


@pytest.mark.parametrize("fn", EVERY)
def test_what_is_masked_is_not_there_and_no_gradient_flows(fn):
  x = -np.random.default_rng(0).uniform(0.1, 3, (4, 5)).astype(np.float32)
  sizes = np.array([5, 2, 3, 0])
  mask = np.arange(5)[None] < sizes[:, None]
  for junk in (np.nan, np.inf, -np.inf, 1e30):
    value = fn(np.where(mask, x, junk).astype(np.float32), mask)
    for row, size in enumerate(sizes[:3]):
      want = fn(x[row : row + 1, :size], np.ones((1, size), bool))
      np.testing.assert_allclose(value[row], want[0], rtol=1e-6)
    assert value[3] == (fn is certainty.probability)
  assert not jax.grad(lambda x: fn(x, mask).sum())(x).any()


def test_long_responses_are_improbable_but_not_unlikely():
  x, mask = np.full((2, 4), -1.0), np.array([[1, 0, 0, 0], [1] * 4], bool)
  short, long = certainty.probability(x, mask)
  assert short > long
  short, long = certainty.trajectory_entropy(x, mask)
  np.testing.assert_allclose(short, long, rtol=1e-6)


@hypothesis.given(st.integers(0, 2**31))
def test_a_tokens_certainty_is_a_divergence_from_uniform(seed):
  logits = np.random.default_rng(seed).normal(size=(3, 7)) * 3
  p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  divergence = (np.log(1 / 7) - np.log(p)).mean(-1)
  with jax.enable_x64(True):
    value = certainty.token_self_certainty(logits)
  np.testing.assert_allclose(value, divergence + np.log(7), rtol=1e-9)
