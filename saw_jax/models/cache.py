# SPDX-License-Identifier: Apache-2.0
"""What a decoder has read: keys and values of its layers, filled in place."""

import functools

import flax.struct
import jax
import jax.numpy as jnp

from saw_jax.models.config import DecoderConfig
from saw_jax.types import Array

EMPTY = -1  # the position of no token


@flax.struct.dataclass
class KVCache:
  """What attention reads back, and how much of it is filled.

  Every row is written at the same `index`, wherever its tokens stand: a token
  is known by its position, not by its place in the cache. An unrolled decoder
  has an array per layer, updated in place; a scanned one has a stack.
  """

  keys: tuple[Array, ...] | Array  # L of [B, K, H, S], or one stack
  values: tuple[Array, ...] | Array  # L of [B, K, S, H], or one stack
  positions: Array  # int32 [B, S], of the token that is held, or EMPTY
  index: Array  # int32 [], the place that is written next

  @property
  def size(self) -> int:
    return self.positions.shape[-1]


def init_cache(config: DecoderConfig, batch_size: int, size: int) -> KVCache:
  """Makes an empty cache, in the dtype of the decoder."""
  rows = (batch_size, config.num_kv_heads)

  def empty(*shape: int) -> tuple[Array, ...] | Array:
    zeros = functools.partial(jnp.zeros, dtype=config.dtype)
    L = config.num_layers
    if config.scan_layers:
      return zeros((L, *rows, *shape))
    return tuple(zeros((*rows, *shape)) for _ in range(L))

  return KVCache(
    keys=empty(config.head_size, size),
    values=empty(size, config.head_size),
    positions=jnp.full((batch_size, size), EMPTY, jnp.int32),
    index=jnp.zeros((), jnp.int32),
  )


def repeat_rows(cache: KVCache, repeats: int) -> KVCache:
  """Repeats each row: row b is then at b · repeats to (b + 1) · repeats − 1."""
  repeat = functools.partial(jnp.repeat, repeats=repeats)
  return cache.replace(
    keys=jax.tree.map(lambda x_BKHS: repeat(x_BKHS, axis=-4), cache.keys),
    values=jax.tree.map(lambda x_BKSH: repeat(x_BKSH, axis=-4), cache.values),
    positions=repeat(cache.positions, axis=-2),
  )


def grow(cache: KVCache, size: int) -> KVCache:
  """Adds empty places at the end until there are `size` of them."""

  def pad(x: Array, axis: int, filler: int = 0) -> Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, size - cache.size)
    return jnp.pad(x, widths, constant_values=filler)

  return cache.replace(
    keys=jax.tree.map(lambda x_BKHS: pad(x_BKHS, -1), cache.keys),
    values=jax.tree.map(lambda x_BKSH: pad(x_BKSH, -2), cache.values),
    positions=pad(cache.positions, -1, EMPTY),
  )


def insert(
  cache: KVCache, row: Array, source: KVCache, place: Array
) -> KVCache:
  """Puts row `place` of a smaller, unrolled cache over `row` of another."""

  def copy(x: Array, y: Array) -> Array:
    own = jax.lax.dynamic_slice_in_dim(y, place, 1)
    return jax.lax.dynamic_update_slice(x, own, (row,) + (0,) * (x.ndim - 1))

  more = ((0, 0), (0, cache.size - source.size))
  held = jnp.pad(source.positions, more, constant_values=EMPTY)
  return cache.replace(
    keys=jax.tree.map(copy, cache.keys, source.keys),
    values=jax.tree.map(copy, cache.values, source.values),
    positions=copy(cache.positions, held),
  )


def shrink(cache: KVCache, size: int) -> KVCache:
  """Takes places at the end away until there are `size` of them."""
  return cache.replace(
    keys=jax.tree.map(lambda x_BKHS: x_BKHS[..., :size], cache.keys),
    values=jax.tree.map(lambda x_BKSH: x_BKSH[..., :size, :], cache.values),
    positions=cache.positions[..., :size],
  )


def drop_first(cache: KVCache, count: int) -> KVCache:
  """Takes the first places away, which are empty."""
  if not count:
    return cache
  return KVCache(
    keys=jax.tree.map(lambda x_BKHS: x_BKHS[..., count:], cache.keys),
    values=jax.tree.map(lambda x_BKSH: x_BKSH[..., count:, :], cache.values),
    positions=cache.positions[..., count:],
    index=cache.index - count,
  )


def take_rows(
  cache: KVCache, rows_B: Array, firsts_B: Array, size: int
) -> KVCache:
  """Copies `size` places of rows of an unrolled cache, from a first of each.

  What is outside of the cache is 0, and positions are left to the caller.
  """

  def take(x: Array, axis: int) -> Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (size, size)
    x, cut = jnp.pad(x, widths), jax.lax.dynamic_slice_in_dim
    one = lambda row, first: cut(x[row], size + first, size, axis)  # noqa: E731
    return jax.vmap(one)(rows_B, firsts_B)

  return cache.replace(
    keys=jax.tree.map(lambda x_BKHS: take(x_BKHS, -1), cache.keys),
    values=jax.tree.map(lambda x_BKSH: take(x_BKSH, -2), cache.values),
  )
