# SPDX-License-Identifier: Apache-2.0
"""What a decoder has read: keys and values of its layers, filled in place."""

import functools
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from saw_jax.models import attention
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

  def mixers(
    self, config: DecoderConfig, positions_BS: Array, valid_BS: Array
  ) -> tuple[list[attention.Filled], "KVCache"]:
    """What new tokens see in each layer, and the cache that knows of them."""
    S, write = positions_BS.shape[1], jax.lax.dynamic_update_slice
    at_BS = jnp.where(valid_BS, positions_BS, EMPTY)
    at_BT = write(self.positions, at_BS, (0, self.index))
    seen_BST = at_BT[:, None, :] > EMPTY
    if S > 1:  # Nothing in a cache comes after its last token.
      seen_BST = (at_BS[:, :, None] >= at_BT[:, None, :]) & seen_BST
    masks = attention.masks(config, seen_BST, at_BS, at_BT)
    cache = self.replace(positions=at_BT, index=self.index + S)
    return [attention.Filled(mask, self.index) for mask in masks], cache


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
  keys, values = jax.tree.map(
    lambda x: repeat(x, axis=-4), (cache.keys, cache.values)
  )
  positions = repeat(cache.positions, axis=-2)
  return cache.replace(keys=keys, values=values, positions=positions)


def grow(cache: KVCache, size: int) -> KVCache:
  """Adds empty places at the end until there are `size` of them."""

  def pad(x: Array, axis: int) -> Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, size - cache.size)
    filler = EMPTY if x is cache.positions else 0
    return jnp.pad(x, widths, constant_values=filler)

  return _along(cache, pad)


def cut(cache: KVCache, begin: int, end: int) -> KVCache:
  """Keeps the places from `begin` on, and before `end`."""

  def keep(x: Array, axis: int) -> Array:
    return jax.lax.slice_in_dim(x, begin, end, axis=axis)

  return _along(cache, keep).replace(index=cache.index - begin)


def insert(
  cache: KVCache, row: Array, source: KVCache, place: Array
) -> KVCache:
  """Puts row `place` of a smaller, unrolled cache over `row` of another."""

  def copy(x: Array, y: Array) -> Array:
    own = jax.lax.dynamic_slice_in_dim(y, place, 1)
    return jax.lax.dynamic_update_slice(x, own, (row,) + (0,) * (x.ndim - 1))

  more = ((0, 0), (0, cache.size - source.size))
  held = jnp.pad(source.positions, more, constant_values=EMPTY)
  source = source.replace(positions=held, index=None)
  found = jax.tree.map(copy, cache.replace(index=None), source)
  return found.replace(index=cache.index)


def take_rows(
  cache: KVCache, rows_B: Array, firsts_B: Array, size: int
) -> KVCache:
  """Copies `size` places of rows of an unrolled cache, from a first of each.

  What is outside of the cache is 0.
  """

  def take(x: Array, axis: int) -> Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (size, size)
    x, cut = jnp.pad(x, widths), jax.lax.dynamic_slice_in_dim
    one = lambda row, first: cut(x[row], size + first, size, axis)  # noqa: E731
    return jax.vmap(one)(rows_B, firsts_B)

  return _along(cache, take)


def _along(cache: KVCache, change: Callable[[Array, int], Array]) -> KVCache:
  """Changes every array of a cache along its axis of places."""
  return cache.replace(
    keys=jax.tree.map(lambda x_BKHS: change(x_BKHS, -1), cache.keys),
    values=jax.tree.map(lambda x_BKSH: change(x_BKSH, -2), cache.values),
    positions=jax.tree.map(lambda x_BS: change(x_BS, -1), cache.positions),
  )
