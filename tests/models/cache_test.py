"""Tests of the cache of keys and values."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saw_jax.models import attention
from saw_jax.models import config as config_lib
from tests.models.sizes import ODD as CONFIG

SCANNED = dataclasses.replace(CONFIG, scan_layers=True)
B, S = 4, 7
both = pytest.mark.parametrize("config", [CONFIG, SCANNED])


def filled_cache(config: config_lib.DecoderConfig) -> attention.KVCache:
  """A cache in which no two numbers are alike."""
  cache = attention.init_cache(config, B, S)
  rng = np.random.default_rng(0)

  def draw(x):
    return jnp.asarray(rng.normal(size=x.shape), x.dtype)

  return cache.replace(
    keys=jax.tree.map(draw, cache.keys),
    values=jax.tree.map(draw, cache.values),
    valid=jnp.arange(S)[None] >= jnp.arange(B)[:, None],
    index=jnp.asarray(5, jnp.int32),
  )


def test_the_dtype_is_the_decoders():
  half = dataclasses.replace(CONFIG, dtype="bfloat16")
  kept = attention.init_cache(half, B, S)
  chex.assert_type([*kept.keys, *kept.values], jnp.bfloat16)
  assert not kept.valid.any()


@both
def test_copies_of_a_row_are_neighbours(config):
  cache = filled_cache(config)
  repeated = attention.repeat_rows(cache, 3)
  rows = np.repeat(np.arange(B), 3)
  for old, new in (
    (cache.keys, repeated.keys),
    (cache.values, repeated.values),
  ):
    for before, after in zip(old, new, strict=True):  # layer by layer
      np.testing.assert_array_equal(after, np.asarray(before)[rows])
  np.testing.assert_array_equal(repeated.valid, np.asarray(cache.valid)[rows])
  assert (repeated.size, repeated.index) == (S, 5)
  chex.assert_trees_all_equal(attention.repeat_rows(cache, 1), cache)


@both
def test_growing_keeps_the_content_and_adds_slots_that_are_not_valid(config):
  cache = filled_cache(config)
  grown = attention.grow(cache, S + 4)
  assert (grown.size, grown.index) == (S + 4, 5)
  for old, new in zip(cache.keys, grown.keys, strict=True):
    np.testing.assert_array_equal(new, np.pad(old, [(0, 0)] * 3 + [(0, 4)]))
  for old, new in zip(cache.values, grown.values, strict=True):
    wider = [(0, 0), (0, 0), (0, 4), (0, 0)]
    np.testing.assert_array_equal(new, np.pad(old, wider))
  valid = np.pad(cache.valid, [(0, 0), (0, 4)])
  np.testing.assert_array_equal(grown.valid, valid)
  chex.assert_trees_all_equal(attention.grow(cache, S), cache)
