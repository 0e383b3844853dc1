"""Tests of the parts of attention: rotation, normalisation and mixing."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from saw_jax.models import attention

# Sizes that no transposition can mistake for one another.
B, S, N, K, H, T = 2, 3, 6, 2, 10, 5


def rotate_at(x_H: np.ndarray, position: int, theta: float = 50.0):
  """One head, rotated as the token at a position."""
  tables = attention.rotary_tables(
    jnp.full((1, 1), position), x_H.shape[-1], theta
  )
  return attention.rotate(jnp.asarray(x_H)[None, None, None], tables)[0, 0, 0]


def attend_inputs():
  """Queries, keys, values, and a mask that shows each query some keys."""
  rng = np.random.default_rng(0)
  shapes = [(B, S, N, H), (B, K, H, T), (B, K, T, H)]
  q, k, v = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
  mask_BST = rng.random((B, S, T)) < 0.5
  mask_BST[..., 0] = True
  mask_BST[..., -1] = False
  return q, k, v, mask_BST


class RotaryTest(chex.TestCase):
  def test_position_0_is_not_rotated(self):
    sin, cos = attention.rotary_tables(jnp.zeros((2, 3), int), 4, 100.0)
    np.testing.assert_array_equal(sin, np.zeros((2, 3, 2)))
    np.testing.assert_array_equal(cos, np.ones((2, 3, 2)))
    x_H = np.array([1.0, 2.0, 3.0, 4.0], np.float32)
    np.testing.assert_array_equal(rotate_at(x_H, 0), x_H)

  def test_position_1_has_the_angles_worked_out_by_hand(self):
    # 100^0 = 1 and 100^(-2/4) = 0.1 radians.
    sin, cos = attention.rotary_tables(jnp.ones((1, 1), int), 4, 100.0)
    np.testing.assert_allclose(sin[0, 0], [0.841471, 0.0998334], rtol=1e-5)
    np.testing.assert_allclose(cos[0, 0], [0.540302, 0.995004], rtol=1e-5)

  def test_factors_divide_the_angles_and_a_scale_multiplies_the_result(self):
    sin, cos = attention.rotary_tables(
      jnp.ones((1, 1), int), 4, 100.0, (2.0, 0.1), 3.0
    )
    np.testing.assert_allclose(sin[0, 0], 3 * np.sin([0.5, 1.0]), rtol=1e-6)
    np.testing.assert_allclose(cos[0, 0], 3 * np.cos([0.5, 1.0]), rtol=1e-6)

  def test_the_rest_of_a_head_stays_as_it_is(self):
    x_H = np.arange(1.0, 8.0, dtype=np.float32)[None, None, None]
    tables = attention.rotary_tables(jnp.ones((1, 1), int), 4, 100.0)
    out_H = attention.rotate(jnp.asarray(x_H), tables)[0, 0, 0]
    np.testing.assert_array_equal(
      out_H[:4], rotate_at(x_H[0, 0, 0, :4], 1, 100.0)
    )
    np.testing.assert_array_equal(out_H[4:], x_H[0, 0, 0, 4:])

  def test_a_head_is_rotated_in_pairs_half_a_head_apart(self):
    # The first pair turns by 1 radian, the second by 0.1.
    out = rotate_at(np.array([1.0, 0.0, 0.0, 1.0], np.float32), 1, 100.0)
    expected = [0.540302, -0.0998334, 0.841471, 0.995004]
    np.testing.assert_allclose(out, expected, rtol=1e-5)

  def test_the_tables_tell_positions_apart_that_bfloat16_does_not(self):
    positions = jnp.array([[256, 257]], jnp.int32)
    sin, cos = attention.rotary_tables(positions, 4, 100.0)
    chex.assert_type([sin, cos], jnp.float32)
    expected = np.sin(np.array([[256.0, 25.6], [257.0, 25.7]]))
    np.testing.assert_allclose(sin[0], expected, atol=1e-4)

  def test_rotating_preserves_norms(self):
    x_H = np.random.default_rng(1).normal(size=H).astype(np.float32)
    for position in (1, 7, 300):
      out = rotate_at(x_H, position)
      assert np.abs(out - x_H).max() > 0.1
      np.testing.assert_allclose(
        np.linalg.norm(out), np.linalg.norm(x_H), rtol=1e-5
      )

  def test_dot_products_depend_on_the_distance_only(self):
    rng = np.random.default_rng(2)
    q_H, k_H = rng.normal(size=(2, H)).astype(np.float32)

    def score(q_position, k_position):
      return float(rotate_at(q_H, q_position) @ rotate_at(k_H, k_position))

    np.testing.assert_allclose(score(3, 0), score(20, 17), atol=1e-4)
    np.testing.assert_allclose(score(5, 5), float(q_H @ k_H), atol=1e-4)
    assert abs(score(3, 0) - score(4, 0)) > 1e-2

  def test_rotating_keeps_the_dtype(self):
    tables = attention.rotary_tables(jnp.ones((B, S), int), H, 50.0)
    out = attention.rotate(jnp.ones((B, S, N, H), jnp.bfloat16), tables)
    chex.assert_shape(out, (B, S, N, H))
    chex.assert_type(out, jnp.bfloat16)


class RMSNormTest(chex.TestCase):
  def test_it_is_what_numpy_computes(self):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(B, S, H)).astype(np.float32)
    scale = rng.normal(size=H).astype(np.float32)
    norm = attention.RMSNorm(0.01, "embed", "float32", "float32")
    out = norm.apply({"params": {"scale": scale}}, x)
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 0.01) * scale
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)

  def test_zeros_stay_zeros(self):
    norm = attention.RMSNorm(1e-6, "embed", "float32", "float32")
    out, _ = norm.init_with_output(jax.random.key(0), jnp.zeros((S, H)))
    np.testing.assert_array_equal(out, np.zeros((S, H)))

  def test_it_is_computed_in_float32_and_given_in_its_dtype(self):
    # The square of 300 is infinite in float16.
    norm = attention.RMSNorm(1e-6, "embed", "float16", "float32")
    x = jnp.full((S, H), 300.0, jnp.float16)
    out, _ = norm.init_with_output(jax.random.key(0), x)
    chex.assert_type(out, jnp.float16)
    np.testing.assert_array_equal(out, np.ones((S, H)))


class AttendTest(chex.TestCase):
  @parameterized.parameters(1, 2, 3, 6)
  def test_it_is_what_a_loop_over_heads_computes(self, num_kv_heads):
    rng = np.random.default_rng(4)
    q = rng.normal(size=(B, S, N, H))
    k = rng.normal(size=(B, num_kv_heads, H, T))
    v = rng.normal(size=(B, num_kv_heads, T, H))
    mask_BST = attend_inputs()[-1]
    expected = np.zeros((B, S, N, H))
    for b, s, n in np.ndindex(B, S, N):
      shared = n * num_kv_heads // N
      seen = mask_BST[b, s]
      weights = np.exp(q[b, s, n] @ k[b, shared][:, seen] / np.sqrt(H))
      weights /= weights.sum()
      expected[b, s, n] = weights @ v[b, shared][seen]
    arrays = (jnp.asarray(x, jnp.float32) for x in (q, k, v))
    out = attention.attend(*arrays, mask_BST)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)

  def test_a_query_that_sees_no_key_gets_the_mean_of_the_values(self):
    q, k, v, mask_BST = attend_inputs()
    mask_BST[1, 2] = False
    out = attention.attend(q, k, v, mask_BST)
    chex.assert_tree_all_finite(out)
    mean_NH = np.repeat(v[1].mean(axis=1), N // K, axis=0)
    np.testing.assert_allclose(out[1, 2], mean_NH, rtol=1e-5, atol=1e-6)

  def test_a_query_that_sees_no_key_has_finite_gradients(self):
    q, k, v, mask_BST = attend_inputs()
    mask_BST[1, 2] = False
    grads = jax.grad(
      lambda *arrays: attention.attend(*arrays, mask_BST).sum(), (0, 1, 2)
    )(q, k, v)
    chex.assert_tree_all_finite(grads)

  def test_what_a_masked_key_holds_changes_nothing(self):
    q, k, v, mask_BST = attend_inputs()
    out = attention.attend(q, k, v, mask_BST)
    # Nobody sees the last key.
    for garbage in (0.0, 1e4, -1e4):
      other_k, other_v = k.copy(), v.copy()
      other_k[..., -1] = garbage
      other_v[:, :, -1] = garbage
      again = attention.attend(q, other_k, other_v, mask_BST)
      np.testing.assert_array_equal(again, out)

  def test_a_masked_key_is_as_good_as_none(self):
    q, k, v, mask_BST = attend_inputs()
    out = attention.attend(q, k, v, mask_BST)
    less = attention.attend(q, k[..., :-1], v[:, :, :-1], mask_BST[..., :-1])
    np.testing.assert_allclose(out, less, rtol=1e-5, atol=1e-6)

  def test_a_query_that_sees_one_key_gets_its_value(self):
    q, k, v, mask_BST = attend_inputs()
    mask_BST[0, 1] = np.arange(T) == 3
    out = attention.attend(q, k, v, mask_BST)
    np.testing.assert_allclose(
      out[0, 1], np.repeat(v[0, :, 3], N // K, axis=0), rtol=1e-6
    )


class AttendCausallyTest(parameterized.TestCase):
  def inputs(self, size):
    rng = np.random.default_rng(size)
    shapes = [(B, size, N, H), (B, K, H, size), (B, K, size, H)]
    q, k, v = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes)
    order = np.arange(size)
    mask_BSS = np.broadcast_to(order[:, None] >= order, (B, size, size)).copy()
    mask_BSS[1, :, : size // 3] = False  # padded on the left
    return q, k, v, jnp.asarray(mask_BSS)

  @parameterized.parameters(1, 63, 128, 130, 259, 700)
  def test_it_is_attention_to_all_keys_under_the_mask(self, size):
    q, k, v, mask = self.inputs(size)
    sees = np.asarray(mask.any(-1))[..., None, None]
    found, plain = (
      np.where(sees, jax.jit(fn)(q, k, v, mask), 0.0)
      for fn in (attention.attend_causally, attention.attend)
    )
    np.testing.assert_allclose(found, plain, atol=2e-6)

  @pytest.mark.slow
  def test_so_are_its_gradients(self):
    q, k, v, mask = self.inputs(200)
    sees = np.asarray(mask.any(-1))[..., None, None]

    def loss(fn, *inputs):
      return jnp.sum(jnp.where(sees, jnp.sin(fn(*inputs, mask)), 0.0))

    ours, plain = (
      jax.grad(lambda *x, fn=fn: loss(fn, *x), (0, 1, 2))(q, k, v)
      for fn in (attention.attend_causally, attention.attend)
    )
    for a, b in zip(ours, plain, strict=True):
      np.testing.assert_allclose(a, b, atol=1e-5)

  def test_a_query_that_sees_no_key_is_finite(self):
    q, k, v, mask = self.inputs(200)
    found = attention.attend_causally(q, k, v, mask & False)
    self.assertTrue(bool(jnp.isfinite(found).all()))

  @parameterized.parameters((63, 1.0), (128, 0.75), (256, 0.625), (512, 0.625))
  def test_scores_above_the_bands_are_not_made(self, size, share):
    q, k, v, mask = self.inputs(size)
    text = jax.jit(attention.attend_causally).lower(q, k, v, mask).as_text()
    made = re.findall(
      rf"dot_general.*-> tensor<{B}x{K}x{N // K}x(\d+)x(\d+)xf32>", text
    )
    # The scores alone: the products with values have the size of a head.
    made = sum(int(s) * int(t) for s, t in made if int(t) != H)
    self.assertAlmostEqual(made / size**2, share)
