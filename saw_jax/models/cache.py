# SPDX-License-Identifier: Apache-2.0
"""What a decoder has read: keys and values of its layers, filled in place."""

import functools

import flax.struct
import jax
import jax.numpy as jnp

from saw_jax.models.config import DecoderConfig
from saw_jax.types import Array


@flax.struct.dataclass
class KVCache:
  """What attention reads back, and how much of it is filled.

  Every row is written at the same `index`: prompts end together. An unrolled
  decoder has an array per layer, updated in place; a scanned one has a stack.
  """

  keys: tuple[Array, ...] | Array  # L of [B, K, H, S], or one stack
  values: tuple[Array, ...] | Array  # L of [B, K, S, H], or one stack
  valid: Array  # bool [B, S], the slots that hold a real token
  index: Array  # int32 [], the slot that is written next

  @property
  def size(self) -> int:
    return self.valid.shape[-1]


def init_cache(config: DecoderConfig, batch_size: int, size: int) -> KVCache:
  """Makes an empty cache, in the dtype of the decoder."""
  rows = (batch_size, config.num_kv_heads)

  def empty(*shape: int) -> tuple[Array, ...] | Array:
    zeros, L = (
      functools.partial(jnp.zeros, dtype=config.dtype),
      config.num_layers,
    )
    if config.scan_layers:
      return zeros((L, *rows, *shape))
    return tuple(zeros((*rows, *shape)) for _ in range(L))

  return KVCache(
    keys=empty(config.head_size, size),
    values=empty(size, config.head_size),
    valid=jnp.zeros((batch_size, size), bool),
    index=jnp.zeros((), jnp.int32),
  )


def repeat_rows(cache: KVCache, repeats: int) -> KVCache:
  """Repeats each row: row b is then at b · repeats to (b + 1) · repeats − 1."""
  repeat = functools.partial(jnp.repeat, repeats=repeats)
  return cache.replace(
    keys=jax.tree.map(lambda x_BKHS: repeat(x_BKHS, axis=-4), cache.keys),
    values=jax.tree.map(lambda x_BKSH: repeat(x_BKSH, axis=-4), cache.values),
    valid=repeat(cache.valid, axis=-2),
  )


def grow(cache: KVCache, size: int) -> KVCache:
  """Adds empty slots at the end until there are `size` of them."""

  def pad(x: Array, axis: int) -> Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, size - cache.size)
    return jnp.pad(x, widths)

  return cache.replace(
    keys=jax.tree.map(lambda x_BKHS: pad(x_BKHS, -1), cache.keys),
    values=jax.tree.map(lambda x_BKSH: pad(x_BKSH, -2), cache.values),
    valid=pad(cache.valid, -1),
  )
