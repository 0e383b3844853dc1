"""Tests of saw_jax/reductions.py."""

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads
from numpy.testing import assert_allclose, assert_array_equal

from saw_jax import reductions

REDUCTIONS = (
  (reductions.all_sum, np.sum),
  (reductions.all_mean, np.mean),
  (reductions.all_var, np.var),
  (reductions.all_std, np.std),
  (reductions.all_min, np.min),
  (reductions.all_max, np.max),
)


def masked(shape=(5, 7), seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=shape).astype(np.float32), rng.random(shape) < 0.6


class RatioTest(chex.TestCase):
  def test_a_ratio_of_nothing_is_zero_with_gradient_zero(self):
    value, gradient = jax.value_and_grad(
      lambda n: reductions.Ratio(n, jnp.zeros(())).value()
    )(1.0)
    assert value == 0 and gradient == 0

  def test_merged_halves_are_the_whole(self):
    x, _ = masked()

    def ratio(rows):
      return reductions.Ratio(rows.sum(), jnp.asarray(rows.size))

    both = ratio(x[:2]).merge(ratio(x[2:])).value()
    assert_allclose(both, x.mean(), rtol=1e-6)


class MaximumTest(chex.TestCase):
  def test_the_greater_of_two_whatever_their_order(self):
    one, other = (reductions.Maximum(jnp.array(x)) for x in (-2.0, -5.0))
    assert one.merge(other).value() == other.merge(one).value() == -2

  def test_a_maximum_of_nothing_is_zero_and_no_part_of_another(self):
    nothing = reductions.Maximum(jnp.array(-jnp.inf))
    assert nothing.value() == 0
    some = reductions.Maximum(jnp.array(-2.0))
    assert nothing.merge(some).value() == -2

  def test_a_nan_stays_one(self):
    some = reductions.Maximum(jnp.array(3.0))
    assert jnp.isnan(some.merge(reductions.Maximum(jnp.nan)).value())


class MaskedReductionsTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  def test_agree_with_numpy_on_the_selected_entries(self):
    x, mask = masked()
    for ours, theirs in REDUCTIONS:
      result = self.variant(lambda x, m, f=ours: f(x, where=m))(x, mask)
      assert_allclose(result, theirs(x[mask]), rtol=1e-5)

  def test_rows_agree_with_numpy_and_keep_their_axis(self):
    x, mask = masked()
    for ours, theirs in REDUCTIONS:
      expected = [theirs(row[m]) for row, m in zip(x, mask, strict=True)]
      result = ours(x, axis=1, where=mask, keepdims=True)
      assert_allclose(result[:, 0], expected, rtol=1e-5)

  def test_garbage_under_the_mask_reaches_no_value_and_no_gradient(self):
    x, mask = masked()
    for garbage in (np.nan, np.inf, -np.inf):
      dirty = np.where(mask, x, garbage).astype(np.float32)
      for ours, _ in REDUCTIONS:
        run = jax.value_and_grad(lambda x, f=ours: f(x, where=mask))
        value, gradient = run(dirty)
        clean_value, clean_gradient = run(x)
        assert value == clean_value, ours.__name__
        assert_array_equal(gradient, clean_gradient)
        assert_array_equal(np.where(mask, 0, gradient), 0)

  def test_nothing_selected_is_zero(self):
    x = jnp.ones(3)
    off = jnp.zeros(3, bool)
    for f in (reductions.all_sum, reductions.all_mean, reductions.all_std):
      assert f(x, where=off) == 0
      assert_array_equal(jax.grad(lambda x, f=f: f(x, where=off))(x), 0)

  def test_bfloat16_is_counted_in_float32(self):
    ones = jnp.ones(1025, jnp.bfloat16)
    assert reductions.all_sum(ones) == 1025
    assert reductions.all_mean(ones).dtype == jnp.float32

  def test_weights_are_repetitions(self):
    x = np.array([1.0, 4.0, -2.0], np.float32)
    n = np.array([3, 1, 2])
    repeated = np.repeat(x, n)
    assert_allclose(
      reductions.all_mean(x, weights=n), repeated.mean(), rtol=1e-6
    )
    assert_allclose(
      reductions.all_var(x, weights=n, ddof=1), repeated.var(ddof=1), rtol=1e-6
    )

  def test_the_sample_deviation_is_torchs(self):
    x = jnp.array([0.0, 1.0, 0.0, 1.0])
    assert_allclose(reductions.all_std(x), 0.5)
    assert_allclose(reductions.all_std(x, ddof=1), 0.5773503, rtol=1e-6)
    assert reductions.all_var(x[:1], ddof=1) == 0

  def test_gradients_are_those_of_finite_differences(self):
    x, mask = masked((2, 3))
    with jax.enable_x64(True):
      x = x.astype(np.float64)
      for f in (reductions.all_mean, reductions.all_var, reductions.all_std):
        check_grads(lambda x, f=f: f(x, where=mask), (x,), order=1)
      check_grads(
        lambda x: reductions.all_deviations(x, where=mask), (x,), order=1
      )

  def test_the_deviation_of_equal_numbers_has_gradient_zero(self):
    gradient = jax.grad(lambda x: reductions.all_std(x))(jnp.full(7, 1.8))
    assert_array_equal(gradient, 0)


class DeviationsTest(chex.TestCase):
  @hypothesis.given(
    st.floats(-100, 100, width=32), st.sampled_from((2, 3, 7, 64))
  )
  @pytest.mark.slow
  def test_equal_numbers_deviate_by_exactly_zero(self, value, size):
    x = np.full(size, value, np.float32)
    assert_array_equal(reductions.all_deviations(x), 0)
    assert reductions.all_var(x) == 0

  def test_what_counts_zero_times_has_no_say_in_what_is_constant(self):
    deviations = reductions.all_deviations(
      jnp.array([2.0, 2.0, 5.0]), weights=jnp.array([1, 1, 0])
    )
    assert_array_equal(deviations, 0)

  def test_a_selected_nan_is_not_hidden(self):
    assert jnp.isnan(reductions.all_deviations(jnp.array([1.0, jnp.nan]))).all()


class DevicesTest(chex.TestCase):
  def test_a_batch_split_over_devices_has_the_same_statistics(self):
    x, mask = masked((8, 3))
    mask[:2] = False  # one device has nothing
    mesh = jax.make_mesh(
      (4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
    )
    for ours, _ in REDUCTIONS:

      def split(x, m, f=ours):
        return f(x, where=m, axis_name="data")

      lifted = jax.jit(
        jax.shard_map(
          split, mesh=mesh, in_specs=(P("data"), P("data")), out_specs=P()
        )
      )
      assert_allclose(lifted(x, mask), ours(x, where=mask), rtol=1e-6)
