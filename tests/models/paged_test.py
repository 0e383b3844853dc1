"""Tests of pages: each row reads its own, whatever their order."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saw_jax.models import attention, paged
from saw_jax.models import cache as cache_lib
from saw_jax.models import config as config_lib

K, N, H, X, p = 2, 6, 128, 40, 16
LENGTHS = np.array([1, 0, 2 * p, 37, 0, 3 * p + 1], np.int32)
CONFIG = dataclasses.replace(
  config_lib.TINY, num_heads=N, num_kv_heads=K, head_size=H, dtype="bfloat16"
)


def case(dtype="float32"):
  rng = np.random.default_rng(0)
  table = rng.permutation(X)[: len(LENGTHS) * 4].reshape(len(LENGTHS), 4)
  draw = lambda *shape: jnp.array(rng.normal(size=shape), dtype)  # noqa: E731
  pools = draw(K, X, p, H), draw(K, X, p, H)
  token = [draw(len(LENGTHS), 1, heads, H) for heads in (N, K, K)]
  return jnp.array(table, jnp.int32), pools, token


def in_order(pool, table):
  """The tokens of rows, `[B, K, T, H]`."""
  found = np.asarray(pool)[:, np.asarray(table)]
  return found.reshape(K, len(table), -1, H).swapaxes(0, 1)


@pytest.mark.parametrize("window", [0, 5])
def test_a_token_is_written_and_sees_what_its_row_holds(window):
  table, pools, token = case()
  fn = paged.Pages(table, jnp.array(LENGTHS), window)
  mixed, new = jax.jit(fn.__call__)(*token, pools)
  k, v = (in_order(pool, table) for pool in pools)
  for row, length in enumerate(LENGTHS):
    if length:
      k[row, :, length - 1], v[row, :, length - 1] = (
        np.asarray(x)[row, 0] for x in token[1:]
      )
  for pool, x in zip(new, (k, v), strict=True):
    np.testing.assert_array_equal(in_order(pool, table), x)
  order, ends = np.arange(k.shape[2])[None], LENGTHS[:, None]
  seen = (order < ends) & (order >= ends - (window or 99))
  expected = attention.attend(
    token[0],
    jnp.array(k.swapaxes(2, 3)),
    jnp.array(v),
    jnp.array(seen)[:, None],
  )
  live = LENGTHS > 0
  np.testing.assert_allclose(
    np.asarray(mixed)[live], np.asarray(expected)[live], atol=1e-5
  )


def test_the_kernel_is_the_gather_up_to_bfloat16():
  table, pools, token = case("bfloat16")
  known = table, jnp.array(LENGTHS)
  (by_gather, _), (by_kernel, _) = (
    jax.jit(paged.Pages(*known, kernel=kernel).__call__)(*token, pools)
    for kernel in (False, True)
  )
  live = LENGTHS > 0
  found, expected = (
    np.asarray(x, np.float32)[live] for x in (by_kernel, by_gather)
  )
  assert np.abs(expected).max() > 1
  # The gather rounds probabilities, too, and both what they return.
  np.testing.assert_allclose(found, expected, rtol=0, atol=0.02)


@pytest.mark.parametrize(
  ("changes", "size", "kernels"),
  [
    ({"attention": "splash"}, p, [True, True]),
    ({"attention": "splash", "windows": (7, 0)}, p, [False, True]),
    ({}, p, [False, False]),  # here is no TPU
    ({"attention": "splash"}, 8, [False, False]),
    ({"attention": "splash", "dtype": "float32"}, p, [False, False]),
    ({"attention": "splash", "head_size": 64}, p, [False, False]),
  ],
)
def test_the_kernel_is_used_where_it_can_be(changes, size, kernels):
  config = dataclasses.replace(CONFIG, **changes)
  cache = paged.init_cache(config, 3, size, jnp.zeros((2, 2), jnp.int32))
  assert [x.kernel for x in cache.mixers(config)[0]] == kernels


def test_prompts_are_written_from_their_first_token_on():
  config = dataclasses.replace(CONFIG, dtype="float32", head_size=4)
  S, lengths = 7, np.array([7, 2], np.int32)
  rng = np.random.default_rng(0)
  rows = cache_lib.init_cache(config, 2, S)
  rows = jax.tree.map(lambda x: jnp.array(rng.normal(size=x.shape)), rows)
  cache = paged.init_cache(config, 5, 3, jnp.zeros((1, 1), jnp.int32))
  pages = jnp.array([[4, 0, 2], [1, 5, 5]], jnp.int32)
  found = paged.write_prompts(cache, rows, jnp.array(lengths), pages)
  for pool, own in zip(found.values, rows.values, strict=True):
    whole = np.asarray(pool)[:, [4, 0, 2]].reshape(K, 9, 4)[:, :7]
    np.testing.assert_array_equal(whole, own[0])
    np.testing.assert_array_equal(pool[:, 1, :2], own[1][:, 5:])
    assert not np.asarray(pool)[:, 3].any()
  (key, *_), (own, *_) = found.keys, rows.keys
  np.testing.assert_array_equal(key[:, 1, :2], own[1].swapaxes(1, 2)[:, 5:])
