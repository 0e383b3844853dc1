"""Tests of the parts of attention: projection, rotation and mixing."""

import dataclasses
import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from saw_jax.models import attention
from saw_jax.models.attention import attend_causally
from tests.models.sizes import ODD

# Sizes that no transposition can mistake for one another.
B, S, N, K, H, T = 2, 3, 6, 2, 10, 5
ROTARY = dataclasses.replace(ODD, rotary_size=4, rope_theta=100.0)
near = functools.partial(np.testing.assert_allclose, rtol=1e-5)
attend, project = jax.jit(attention.attend), jax.jit(attention.project)


def draw(*shape, dtype=jnp.float32, seed=0):
  rng = np.random.default_rng(seed + sum(shape))
  return jnp.asarray(rng.standard_normal(shape), dtype)


# --- the projection: a matrix product, whoever differentiates it --------------


def loss(fn, x, kernel, weights):
  return jnp.sum(weights * jnp.sin(fn(x, kernel)))


def gradient(fn):
  return jax.jit(jax.grad(functools.partial(loss, fn), (0, 1)))


@pytest.mark.parametrize("lead", [(), (3,), (2, 5), (2, 1, 4), (0,)])
def test_a_projection_is_the_product_and_has_its_gradients(lead):
  x, kernel, weights = draw(*lead, 6), draw(6, 4), draw(*lead, 4)
  product = np.asarray(x) @ np.asarray(kernel)
  np.testing.assert_allclose(project(x, kernel), product, atol=1e-6)
  expected = gradient(jnp.matmul)(x, kernel, weights)
  found = gradient(project)(x, kernel, weights)
  chex.assert_trees_all_close(found, expected, atol=1e-5)
  # Several kernels at once, and the dtypes of the inputs.
  several = [np.stack([a, 2 * np.array(a)]) for a in (x, kernel, weights)]
  found, expected = (
    jax.jit(jax.vmap(gradient(fn)))(*several) for fn in (project, jnp.matmul)
  )
  chex.assert_trees_all_close(found, expected, atol=1e-5)
  halves = [np.array(a).astype(jnp.bfloat16) for a in (x, kernel, weights)]
  assert project(*halves[:2]).dtype == jnp.bfloat16
  chex.assert_type(gradient(project)(*halves), jnp.bfloat16)


def test_a_kernel_that_devices_share_gets_the_gradient_of_all():
  args = draw(8, 3, 6), draw(6, 4), draw(8, 3, 4)
  kinds = (jax.sharding.AxisType.Auto,)
  mesh = jax.make_mesh((4,), ("data",), axis_types=kinds)
  of_kernel = lambda *args: gradient(project)(*args)[1]  # noqa: E731
  specs = dict(in_specs=(P("data"), P(), P("data")), out_specs=P())
  spread = jax.jit(jax.shard_map(of_kernel, mesh=mesh, **specs))
  np.testing.assert_allclose(spread(*args), of_kernel(*args), atol=1e-4)


def test_no_activation_is_copied_for_the_kernels_gradient():
  """What it is there for: the transposed copies of a plain product."""
  of_kernel = jax.jit(lambda *args: gradient(project)(*args)[1])
  args = draw(4, 8, 16), draw(16, 32), draw(4, 8, 32)
  text = of_kernel.lower(*args).compile().as_text()
  assert " transpose(" not in text and " copy(" not in text


# --- rotation and norms -------------------------------------------------------


@jax.jit
def rotate_at_1(x_H) -> jax.Array:
  """A head at position 1: the first pair turns by 1 radian, then 0.1."""
  tables = attention.rotary_tables(jnp.ones((1, 1), int), ROTARY)
  return attention.rotate(jnp.asarray(x_H)[None, None, None], tables)[0, 0, 0]


def test_angles_are_those_worked_out_by_hand():
  # 100^0 = 1 and 100^(-2/4) = 0.1 radians a position.
  positions = jnp.array([[0, 1]])
  sin, cos = attention.rotary_tables(positions, ROTARY)
  near(sin[0], [[0, 0], [0.841471, 0.0998334]])
  near(cos[0], [[1, 1], [0.540302, 0.995004]])
  # Factors divide the angles, and a scale multiplies the result.
  scaled = dataclasses.replace(ROTARY, rope_factors=(2, 0.1), rope_scale=3.0)
  sin, cos = attention.rotary_tables(positions, scaled)
  near(sin[0, 1], 3 * np.sin([0.5, 1.0]))
  near(cos[0, 1], 3 * np.cos([0.5, 1.0]))


def test_a_head_is_rotated_in_pairs_half_a_head_apart():
  x_H = np.array([1.0, 0.0, 0.0, 1.0], np.float32)
  near(rotate_at_1(x_H), [0.540302, -0.0998334, 0.841471, 0.995004])
  # The rest of a head stays as it is, and so does its dtype.
  longer_H = np.array([*x_H, 5.0, 6.0, 7.0], jnp.bfloat16)
  out_H = np.array(rotate_at_1(longer_H))
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


# --- mixing -------------------------------------------------------------------


def inputs(queries, keys):
  shapes = (B, queries, N, H), (B, K, H, keys), (B, K, keys, H)
  return [np.array(draw(*shape)) for shape in shapes]


def masked_inputs():
  """Each query sees some keys, all the first and none the last."""
  mask_BST = np.random.default_rng(0).random((B, S, T)) < 0.5
  mask_BST[..., 0], mask_BST[..., -1] = True, False
  return *inputs(S, T), mask_BST


def test_a_query_that_sees_no_key_gets_the_mean_of_the_values():
  q, k, v, mask_BST = masked_inputs()
  mask_BST[1, 2] = False
  out = attend(q, k, v, mask_BST)
  near(out[1, 2], np.repeat(v[1].mean(axis=1), N // K, axis=0), atol=1e-6)
  total = lambda *arrays: attend(*arrays, mask_BST).sum()  # noqa: E731
  gradient = jax.jit(jax.grad(total, (0, 1, 2)))(q, k, v)
  chex.assert_tree_all_finite((out, gradient))


def test_what_a_masked_key_holds_changes_nothing():
  q, k, v, mask_BST = masked_inputs()
  out = attend(q, k, v, mask_BST)
  for garbage in (0.0, 1e4, -1e4):  # in the last key, that nobody sees
    k[..., -1], v[:, :, -1] = garbage, garbage
    np.testing.assert_array_equal(attend(q, k, v, mask_BST), out)


def causal_inputs(size):
  order = np.arange(size)
  mask_BSS = np.broadcast_to(order[:, None] >= order, (B, size, size)).copy()
  mask_BSS[1, :, : size // 3] = False  # padded on the left
  return *inputs(size, size), mask_BSS


@pytest.mark.parametrize("size", [1, 63, 128, 130, 259, 700])
def test_bands_are_attention_to_all_keys_under_the_mask(size):
  *args, mask = causal_inputs(size)
  sees = mask.any(-1)[..., None, None]
  found, plain = (
    np.where(sees, jax.jit(fn)(*args, mask), 0.0)
    for fn in (attend_causally, attend)
  )
  np.testing.assert_allclose(found, plain, atol=2e-6)


@pytest.mark.slow
def test_so_are_their_gradients():
  *args, mask = causal_inputs(200)
  sees = mask.any(-1)[..., None, None]

  def total(fn, *args):
    return jnp.sum(jnp.where(sees, jnp.sin(fn(*args, mask)), 0.0))

  ours, plain = (
    jax.jit(jax.grad(functools.partial(total, fn), (0, 1, 2)))(*args)
    for fn in (attend_causally, attend)
  )
  chex.assert_trees_all_close(ours, plain, atol=1e-5)
  # No key is seen.
  nobody = np.zeros_like(mask)
  chex.assert_tree_all_finite(jax.jit(attend_causally)(*args, nobody))


@pytest.mark.parametrize(
  ("size", "share"), [(63, 1.0), (128, 0.75), (256, 0.625), (512, 0.625)]
)
def test_scores_above_the_bands_are_not_made(size, share):
  text = jax.jit(attend_causally).lower(*causal_inputs(size)).as_text()
  shape = rf"{B}x{K}x{N // K}x(\d+)x(\d+)xf32"
  made = re.findall(rf"dot_general.*-> tensor<{shape}>", text)
  # The scores alone: the products with values have the size of a head.
  made = sum(int(s) * int(t) for s, t in made if int(t) != H)
  assert made / size**2 == pytest.approx(share)
