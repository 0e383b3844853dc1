"""Tests of the parts of attention: rotation, normalisation and mixing."""

import dataclasses
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saw_jax.models import attention
from tests.models.sizes import ODD

# Sizes that no transposition can mistake for one another.
B, S, N, K, H, T = 2, 3, 6, 2, 10, 5
ROTARY = dataclasses.replace(ODD, rotary_size=4, rope_theta=100.0)


def rotate_at_1(x_H) -> jax.Array:
  """A head at position 1: the first pair turns by 1 radian, then 0.1."""
  tables = attention.rotary_tables(jnp.ones((1, 1), int), ROTARY)
  x_BSNH = jnp.asarray(x_H)[None, None, None]
  return attention.rotate(x_BSNH, tables)[0, 0, 0]


def attend_inputs():
  """Queries, keys, values, and a mask that shows each query some keys."""
  rng = np.random.default_rng(0)
  shapes = [(B, S, N, H), (B, K, H, T), (B, K, T, H)]
  q, k, v = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
  mask_BST = rng.random((B, S, T)) < 0.5
  mask_BST[..., 0] = True
  mask_BST[..., -1] = False
  return q, k, v, mask_BST


def test_angles_are_those_worked_out_by_hand():
  # 100^0 = 1 and 100^(-2/4) = 0.1 radians a position.
  positions = jnp.array([[0, 1]])
  sin, cos = attention.rotary_tables(positions, ROTARY)
  np.testing.assert_allclose(sin[0], [[0, 0], [0.841471, 0.0998334]], rtol=1e-5)
  np.testing.assert_allclose(cos[0], [[1, 1], [0.540302, 0.995004]], rtol=1e-5)
  # Factors divide the angles, and a scale multiplies the result.
  scaled = dataclasses.replace(ROTARY, rope_factors=(2, 0.1), rope_scale=3.0)
  sin, cos = attention.rotary_tables(positions, scaled)
  np.testing.assert_allclose(sin[0, 1], 3 * np.sin([0.5, 1.0]), rtol=1e-6)
  np.testing.assert_allclose(cos[0, 1], 3 * np.cos([0.5, 1.0]), rtol=1e-6)


def test_a_head_is_rotated_in_pairs_half_a_head_apart():
  x_H = np.array([1.0, 0.0, 0.0, 1.0], np.float32)
  expected = [0.540302, -0.0998334, 0.841471, 0.995004]
  np.testing.assert_allclose(rotate_at_1(x_H), expected, rtol=1e-5)
  # The rest of a head stays as it is, and so does its dtype.
  longer_H = jnp.array([*x_H, 5.0, 6.0, 7.0], jnp.bfloat16)
  out_H = rotate_at_1(longer_H)
  chex.assert_type(out_H, jnp.bfloat16)
  np.testing.assert_array_equal(out_H[:4], rotate_at_1(longer_H[:4]))
  np.testing.assert_array_equal(out_H[4:], longer_H[4:])


def test_a_norm_is_computed_in_float32_and_given_in_its_dtype():
  # The square of 300 is infinite in float16.
  norm = attention.RMSNorm(dataclasses.replace(ODD, dtype="float16"))
  x = jnp.full((S, H), 300.0, jnp.float16)
  out, _ = norm.init_with_output(jax.random.key(0), x)
  chex.assert_type(out, jnp.float16)
  np.testing.assert_array_equal(out, np.ones((S, H)))


def test_a_query_that_sees_no_key_gets_the_mean_of_the_values():
  q, k, v, mask_BST = attend_inputs()
  mask_BST[1, 2] = False
  out = attention.attend(q, k, v, mask_BST)
  mean_NH = np.repeat(v[1].mean(axis=1), N // K, axis=0)
  np.testing.assert_allclose(out[1, 2], mean_NH, rtol=1e-5, atol=1e-6)
  grads = jax.grad(
    lambda *arrays: attention.attend(*arrays, mask_BST).sum(), (0, 1, 2)
  )(q, k, v)
  chex.assert_tree_all_finite((out, grads))


def test_what_a_masked_key_holds_changes_nothing():
  q, k, v, mask_BST = attend_inputs()
  out = attention.attend(q, k, v, mask_BST)
  for garbage in (0.0, 1e4, -1e4):  # in the last key, that nobody sees
    k[..., -1], v[:, :, -1] = garbage, garbage
    again = attention.attend(q, k, v, mask_BST)
    np.testing.assert_array_equal(again, out)


def causal_inputs(size):
  rng = np.random.default_rng(size)
  shapes = [(B, size, N, H), (B, K, H, size), (B, K, size, H)]
  q, k, v = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes)
  order = np.arange(size)
  mask_BSS = np.broadcast_to(order[:, None] >= order, (B, size, size)).copy()
  mask_BSS[1, :, : size // 3] = False  # padded on the left
  return q, k, v, jnp.asarray(mask_BSS)


@pytest.mark.parametrize("size", [1, 63, 128, 130, 259, 700])
def test_bands_are_attention_to_all_keys_under_the_mask(size):
  q, k, v, mask = causal_inputs(size)
  sees = np.asarray(mask.any(-1))[..., None, None]
  found, plain = (
    np.where(sees, jax.jit(fn)(q, k, v, mask), 0.0)
    for fn in (attention.attend_causally, attention.attend)
  )
  np.testing.assert_allclose(found, plain, atol=2e-6)


@pytest.mark.slow
def test_so_are_their_gradients():
  q, k, v, mask = causal_inputs(200)
  sees = np.asarray(mask.any(-1))[..., None, None]

  def loss(fn, *inputs):
    return jnp.sum(jnp.where(sees, jnp.sin(fn(*inputs, mask)), 0.0))

  ours, plain = (
    jax.grad(lambda *x, fn=fn: loss(fn, *x), (0, 1, 2))(q, k, v)
    for fn in (attention.attend_causally, attention.attend)
  )
  chex.assert_trees_all_close(ours, plain, atol=1e-5)
  chex.assert_tree_all_finite(
    attention.attend_causally(q, k, v, mask & False)  # no key is seen
  )


@pytest.mark.parametrize(
  ("size", "share"), [(63, 1.0), (128, 0.75), (256, 0.625), (512, 0.625)]
)
def test_scores_above_the_bands_are_not_made(size, share):
  q, k, v, mask = causal_inputs(size)
  text = jax.jit(attention.attend_causally).lower(q, k, v, mask).as_text()
  made = re.findall(
    rf"dot_general.*-> tensor<{B}x{K}x{N // K}x(\d+)x(\d+)xf32>", text
  )
  # The scores alone: the products with values have the size of a head.
  made = sum(int(s) * int(t) for s, t in made if int(t) != H)
  assert made / size**2 == pytest.approx(share)
