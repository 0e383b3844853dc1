"""Tests of the cache: what it holds, copies and makes room for."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saw_jax.models import cache as cache_lib
from tests.models.attention_test import draw
from tests.models.sizes import ODD

SCANNED = dataclasses.replace(ODD, scan_layers=True)
both = pytest.mark.parametrize("config", [ODD, SCANNED])


def filled_cache(config) -> cache_lib.KVCache:
  """Four rows of seven slots, in which no two numbers are alike."""
  cache = cache_lib.init_cache(config, 4, 7)
  seeds = iter(range(100))
  keys, values = jax.tree.map(
    lambda x: draw(*x.shape, seed=next(seeds)), (cache.keys, cache.values)
  )
  held = np.arange(7, dtype=np.int32)[None] - np.arange(4)[:, None]
  held = np.maximum(held, cache_lib.EMPTY).astype(np.int32)
  return cache_lib.KVCache(keys, values, held, np.array(5, np.int32))


def test_the_dtype_is_the_decoders():
  half = dataclasses.replace(ODD, dtype="bfloat16")
  kept = cache_lib.init_cache(half, 4, 7)
  chex.assert_type([*kept.keys, *kept.values], jnp.bfloat16)
  assert (kept.positions == cache_lib.EMPTY).all()


@both
def test_copies_of_a_row_are_neighbours(config):
  cache = filled_cache(config)
  repeat = jax.jit(cache_lib.repeat_rows, static_argnums=1)
  repeated = repeat(cache, 3)
  rows = np.repeat(np.arange(4), 3)
  for old, new in (
    *zip(cache.keys, repeated.keys, strict=True),  # layer by layer
    *zip(cache.values, repeated.values, strict=True),
    (cache.positions, repeated.positions),
  ):
    np.testing.assert_array_equal(new, np.asarray(old)[rows])
  assert (repeated.size, repeated.index) == (7, 5)
  chex.assert_trees_all_equal(cache_lib.repeat_rows(cache, 1), cache)


@both
def test_growing_keeps_the_content_and_adds_places_that_are_empty(config):
  cache = filled_cache(config)
  grown = jax.jit(cache_lib.grow, static_argnums=1)(cache, 11)
  assert (grown.size, grown.index) == (11, 5)
  none, more = (0, 0), (0, 4)
  for old, new, widths in (
    (cache.keys, grown.keys, (none, none, none, more)),
    (cache.values, grown.values, (none, none, more, none)),
  ):
    for before, after in zip(old, new, strict=True):  # layer by layer
      np.testing.assert_array_equal(after, np.pad(before, widths))
  held = np.pad(cache.positions, (none, more), constant_values=cache_lib.EMPTY)
  np.testing.assert_array_equal(grown.positions, held)
  chex.assert_trees_all_equal(cache_lib.grow(cache, 7), cache)
