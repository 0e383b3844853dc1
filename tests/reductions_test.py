"""Masked reductions: NumPy's on what is selected, in value and gradient."""

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.test_util import check_grads
from numpy.testing import assert_allclose, assert_array_equal

from saw_jax import reductions
from tests import helpers

REDUCTIONS = (
  (reductions.all_sum, np.sum),
  (reductions.all_mean, np.mean),
  (reductions.all_var, np.var),
  (reductions.all_std, np.std),
  (reductions.all_min, np.min),
  (reductions.all_max, np.max),
)
Ratio, Maximum = reductions.Ratio, reductions.Maximum


def masked(shape=(5, 7), seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=shape).astype(np.float32), rng.random(shape) < 0.6


class MergingTest(chex.TestCase):
  def test_ratios(self):
    one, other = Ratio(jnp.ones(()), 2), Ratio(jnp.ones(()), 3)
    assert_allclose(one.merge(other).value(), 2 / 5)
    # Of nothing it is 0, and so is its gradient.
    nothing = jax.value_and_grad(lambda n: Ratio(n, jnp.zeros(())).value())
    assert nothing(1.0) == (0, 0)

  def test_maxima(self):
    some, other, nothing = (
      Maximum(jnp.array(x)) for x in (-2.0, -5.0, -jnp.inf)
    )
    assert nothing.value() == 0
    for one, another in ((some, other), (other, some), (nothing, some)):
      assert one.merge(another).value() == -2
    assert jnp.isnan(some.merge(Maximum(jnp.nan)).value())


class MaskedReductionsTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  def test_agree_with_numpy_on_the_selected_entries(self):
    x, mask = masked()

    @self.variant
    def every(x, m):
      return [
        (f(x, where=m), f(x, axis=1, where=m, keepdims=True)[:, 0])
        for f, _ in REDUCTIONS
      ]

    for found, (_, theirs) in zip(every(x, mask), REDUCTIONS, strict=True):
      assert_allclose(found[0], theirs(x[mask]), rtol=1e-5)
      expected = [theirs(row[m]) for row, m in zip(x, mask, strict=True)]
      assert_allclose(found[1], expected, rtol=1e-5)

  def test_garbage_under_the_mask_reaches_no_value_and_no_gradient(self):
    x, mask = masked()

    @jax.jit
    def every(x):
      return [
        jax.value_and_grad(lambda x, f=f: f(x, where=mask))(x)
        for f, _ in REDUCTIONS
      ]

    clean = every(x)
    assert not any(np.array(gradient)[~mask].any() for _, gradient in clean)
    for garbage in (np.nan, np.inf, -np.inf):
      found = every(np.where(mask, x, garbage).astype(np.float32))
      chex.assert_trees_all_equal(found, clean)

  def test_nothing_selected_is_zero(self):
    for f in (reductions.all_sum, reductions.all_mean, reductions.all_std):
      value, gradient = jax.value_and_grad(
        lambda x, f=f: f(x, where=jnp.zeros(3, bool))
      )(jnp.ones(3))
      assert value == 0 and not gradient.any()

  def test_bfloat16_is_counted_in_float32(self):
    ones = jnp.ones(1025, jnp.bfloat16)
    assert reductions.all_sum(ones) == 1025
    assert reductions.all_mean(ones).dtype == jnp.float32

  def test_weights_are_repetitions(self):
    x, n = np.array([1.0, 4.0, -2.0], np.float32), np.array([3, 1, 2])
    repeated = np.repeat(x, n)
    found = reductions.all_mean(x, weights=n)
    assert_allclose(found, repeated.mean(), rtol=1e-6)
    found = reductions.all_var(x, weights=n, ddof=1)
    assert_allclose(found, repeated.var(ddof=1), rtol=1e-6)

  def test_the_sample_deviation_is_torchs(self):
    x = jnp.array([0.0, 1.0, 0.0, 1.0])
    assert_allclose(reductions.all_std(x), 0.5)
    assert_allclose(reductions.all_std(x, ddof=1), 0.5773503, rtol=1e-6)
    assert reductions.all_var(x[:1], ddof=1) == 0

  def test_gradients_are_those_of_finite_differences(self):
    x, mask = masked((2, 3))
    with jax.enable_x64(True):
      for f in ("all_mean", "all_var", "all_std", "all_deviations"):
        f, x = getattr(reductions, f), x.astype(np.float64)
        check_grads(jax.jit(lambda x, f=f: f(x, where=mask)), (x,), order=1)
    # Of equal numbers it is 0.
    assert not jax.grad(reductions.all_std)(jnp.full(7, 1.8)).any()
    assert jax.value_and_grad(reductions.square_root)(0.0) == (0, 0)


class DeviationsTest(chex.TestCase):
  @hypothesis.given(
    st.floats(-100, 100, width=32), st.sampled_from((2, 3, 7, 64))
  )
  @pytest.mark.slow
  def test_equal_numbers_deviate_by_exactly_zero(self, value, size):
    x = np.full(size, value, np.float32)
    assert_array_equal(reductions.all_deviations(x), 0)
    assert reductions.all_var(x) == 0

  def test_what_counts_zero_times_has_no_say_and_a_nan_is_not_hidden(self):
    x, counts = jnp.array([2.0, 2.0, 5.0]), jnp.array([1, 1, 0])
    assert not reductions.all_deviations(x, weights=counts).any()
    assert jnp.isnan(reductions.all_deviations(jnp.array([1.0, jnp.nan]))).all()


def test_a_batch_split_over_devices_has_the_same_statistics():
  x, mask = masked((8, 3))
  mask[:2] = False  # one device has nothing

  def every(x, m, axis_name=None):
    return [f(x, where=m, axis_name=axis_name) for f, _ in REDUCTIONS]

  found = helpers.over_devices(every, x, mask, joined=False)
  assert_allclose(found, jax.jit(every)(x, mask), rtol=1e-6)
