"""Tests of the cache of keys and values."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from saw_jax.models import cache as cache_lib
from saw_jax.models import config as config_lib

# Sizes that no transposition can mistake for one another.
CONFIG = config_lib.DecoderConfig(
  vocab_size=29,
  width=22,
  num_layers=3,
  num_heads=6,
  num_kv_heads=2,
  head_size=10,
  mlp_size=31,
)
SCANNED = dataclasses.replace(CONFIG, scan_layers=True)
B, S = 4, 7


def filled_cache(config: config_lib.DecoderConfig) -> cache_lib.KVCache:
  """A cache in which no two numbers are alike."""
  cache = cache_lib.init_cache(config, B, S)
  rng = np.random.default_rng(0)

  def draw(x):
    return jnp.asarray(rng.normal(size=x.shape), x.dtype)

  return cache.replace(
    keys=jax.tree.map(draw, cache.keys),
    values=jax.tree.map(draw, cache.values),
    valid=jnp.arange(S)[None] >= jnp.arange(B)[:, None],
    index=jnp.asarray(5, jnp.int32),
  )


def layers_of(x: tuple | jax.Array) -> list[np.ndarray]:
  """The arrays of the layers, however they are held."""
  return [np.asarray(layer) for layer in x]


class InitCacheTest(chex.TestCase):
  def test_an_unrolled_cache_has_an_array_per_layer(self):
    cache = cache_lib.init_cache(CONFIG, B, S)
    assert isinstance(cache.keys, tuple) and isinstance(cache.values, tuple)
    assert [x.shape for x in cache.keys] == [(B, 2, 10, S)] * 3
    assert [x.shape for x in cache.values] == [(B, 2, S, 10)] * 3

  def test_a_scanned_cache_has_one_stack(self):
    cache = cache_lib.init_cache(SCANNED, B, S)
    chex.assert_shape(cache.keys, (3, B, 2, 10, S))
    chex.assert_shape(cache.values, (3, B, 2, S, 10))

  def test_nothing_is_valid_and_slot_0_is_next(self):
    cache = cache_lib.init_cache(CONFIG, B, S)
    chex.assert_shape(cache.valid, (B, S))
    chex.assert_type(cache.valid, bool)
    assert not cache.valid.any()
    chex.assert_shape(cache.index, ())
    chex.assert_type(cache.index, jnp.int32)
    assert cache.index == 0
    assert cache.size == S

  def test_the_dtype_is_the_decoders_unless_another_is_asked_for(self):
    half = dataclasses.replace(CONFIG, dtype="bfloat16")
    kept = cache_lib.init_cache(half, B, S)
    chex.assert_type([*kept.keys, *kept.values], jnp.bfloat16)
    asked = cache_lib.init_cache(half, B, S, "float32")
    chex.assert_type([*asked.keys, *asked.values], jnp.float32)


class RepeatRowsTest(chex.TestCase):
  @parameterized.named_parameters(("unrolled", CONFIG), ("scanned", SCANNED))
  def test_copies_of_a_row_are_neighbours(self, config):
    cache = filled_cache(config)
    repeated = cache_lib.repeat_rows(cache, 3)
    rows = [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    for name in ("keys", "values"):
      before = layers_of(getattr(cache, name))
      after = layers_of(getattr(repeated, name))
      assert len(after) == 3
      for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(new, old[rows])
    np.testing.assert_array_equal(repeated.valid, np.asarray(cache.valid)[rows])

  def test_slots_and_the_index_stay(self):
    repeated = cache_lib.repeat_rows(filled_cache(CONFIG), 3)
    assert repeated.size == S
    assert repeated.index == 5

  def test_one_copy_is_the_cache_itself(self):
    cache = filled_cache(CONFIG)
    chex.assert_trees_all_equal(cache_lib.repeat_rows(cache, 1), cache)


class GrowTest(chex.TestCase):
  @parameterized.named_parameters(("unrolled", CONFIG), ("scanned", SCANNED))
  def test_the_content_is_kept(self, config):
    cache = filled_cache(config)
    grown = cache_lib.grow(cache, S + 4)
    assert grown.size == S + 4
    for old, new in zip(
      layers_of(cache.keys), layers_of(grown.keys), strict=True
    ):
      assert new.shape == (B, 2, 10, S + 4)
      np.testing.assert_array_equal(new[..., :S], old)
    for old, new in zip(
      layers_of(cache.values), layers_of(grown.values), strict=True
    ):
      assert new.shape == (B, 2, S + 4, 10)
      np.testing.assert_array_equal(new[:, :, :S], old)
    np.testing.assert_array_equal(grown.valid[:, :S], cache.valid)
    assert grown.index == cache.index

  def test_new_slots_are_not_valid(self):
    grown = cache_lib.grow(filled_cache(CONFIG), S + 4)
    chex.assert_type(grown.valid, bool)
    assert not grown.valid[:, S:].any()

  def test_the_same_size_changes_nothing(self):
    cache = filled_cache(CONFIG)
    chex.assert_trees_all_equal(cache_lib.grow(cache, S), cache)

  def test_a_cache_does_not_shrink(self):
    with pytest.raises(ValueError, match="of 7 slots cannot grow to 6"):
      cache_lib.grow(filled_cache(CONFIG), S - 1)
