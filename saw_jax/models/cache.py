# SPDX-License-Identifier: Apache-2.0
"""Keys and values of the tokens that a decoder has read."""

import flax.struct
import jax
import jax.numpy as jnp

from saw_jax.models.config import DecoderConfig
from saw_jax.types import Array


@flax.struct.dataclass
class KVCache:
  """What attention reads back, and how much of it is filled.

  Every row is written at the same `index`: prompts are padded on the left, so
  that they end together. An unrolled decoder has one array per layer, which a
  loop over time updates in place; a scanned one has a stack of them.
  """

  keys: tuple[Array, ...] | Array  # L of [B, K, H, S], or one stack
  values: tuple[Array, ...] | Array  # L of [B, K, S, H], or one stack
  valid: Array  # bool [B, S], the slots that hold a real token
  index: Array  # int32 [], the slot that is written next

  @property
  def size(self) -> int:
    """The number of slots, `S`."""
    return self.valid.shape[-1]


def init_cache(
  config: DecoderConfig, batch_size: int, size: int, dtype: str | None = None
) -> KVCache:
  """Makes an empty cache.

  Args:
    config: of the decoder, which says how layers are held.
    batch_size: the number of rows, B.
    size: the number of slots, S; may be 0.
    dtype: of the keys and values; `None` for that of the decoder.

  Returns:
    A cache with no valid slot, to be written from slot 0. Keys of shape
    `[B, K, H, S]` and values of shape `[B, K, S, H]` for each layer, or stacks
    with a leading axis of size L where layers are scanned.
  """
  dtype = config.dtype if dtype is None else dtype
  rows = (batch_size, config.num_kv_heads)

  def empty(*shape: int) -> tuple[Array, ...] | Array:
    if config.scan_layers:
      return jnp.zeros((config.num_layers, *rows, *shape), dtype)
    return tuple(
      jnp.zeros((*rows, *shape), dtype) for _ in range(config.num_layers)
    )

  return KVCache(
    keys=empty(config.head_size, size),
    values=empty(size, config.head_size),
    valid=jnp.zeros((batch_size, size), bool),
    index=jnp.zeros((), jnp.int32),
  )


def repeat_rows(cache: KVCache, repeats: int) -> KVCache:
  """Puts `repeats` copies of each row next to each other, in its place.

  Args:
    cache: with B rows.
    repeats: how often a row is there afterwards, G.

  Returns:
    A cache with B · G rows: row b is now at b · G to b · G + G − 1.
  """

  def repeat(x_BK: Array) -> Array:
    return jnp.repeat(x_BK, repeats, axis=-4)

  return cache.replace(
    keys=jax.tree.map(repeat, cache.keys),
    values=jax.tree.map(repeat, cache.values),
    valid=jnp.repeat(cache.valid, repeats, axis=-2),
  )


def grow(cache: KVCache, size: int) -> KVCache:
  """Adds empty slots at the end until there are `size` of them.

  Args:
    cache: with `size` slots at most.
    size: the number of slots wanted, S.

  Returns:
    A cache with the same content and `index`, whose new slots are not valid.

  Raises:
    ValueError: the cache has more than `size` slots.
  """
  extra = size - cache.size
  if extra < 0:
    raise ValueError(f"A cache of {cache.size} slots cannot grow to {size}.")

  def pad(x: Array, axis: int) -> Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, extra)
    return jnp.pad(x, widths)

  return cache.replace(
    keys=jax.tree.map(lambda x_BKHS: pad(x_BKHS, -1), cache.keys),
    values=jax.tree.map(lambda x_BKSH: pad(x_BKSH, -2), cache.values),
    valid=pad(cache.valid, -1),
  )
