# SPDX-License-Identifier: Apache-2.0
"""A cache in pages: each row has as many as it fills, in any order."""

import functools
import math

import flax.struct
import jax
import jax.numpy as jnp

from saw_jax.models import attention, sharding
from saw_jax.models.cache import KVCache
from saw_jax.models.config import DecoderConfig
from saw_jax.types import Array

# Pages that the kernel has at a time; a table is padded to a multiple.
_BLOCK = 8


@flax.struct.dataclass
class PagedCache:
  """Pools of pages, one for each layer, and which pages each row has.

  Token t of a row is at place t mod p of page `table[row, t // p]`, and its
  position is t. One token of each row is read at a time.
  """

  keys: tuple[Array, ...]  # L of [K, X, p, H]
  values: tuple[Array, ...]  # L of [K, X, p, H]
  table: Array  # int32 [B, M]; any page where a row has none
  lengths: Array  # int32 [B], with the token that is read; 0: no row

  def mixers(
    self, config: DecoderConfig, *_: Array
  ) -> tuple[list["Pages"], "PagedCache"]:
    """How each layer reads the pages, where this is traced."""
    size = self.keys[0].shape[2]
    windows = config.windows or (0,) * config.num_layers
    readers = [
      Pages(self.table, self.lengths, x, not kernel_lacks(config, size, x))
      for x in windows
    ]
    return readers, self


def init_cache(
  config: DecoderConfig, num_pages: int, page_size: int, table: Array
) -> PagedCache:
  """Makes empty pages, in the dtype of the decoder."""
  shape = (config.num_kv_heads, num_pages, page_size, config.head_size)
  empty = (jnp.zeros(shape, config.dtype),) * config.num_layers
  return PagedCache(empty, empty, table, jnp.zeros(len(table), jnp.int32))


def copy_page(cache: PagedCache, source: Array, target: Array) -> PagedCache:
  """Copies one page of all layers over another; page X over X: nothing."""

  def copy(x: Array) -> Array:
    page = jax.lax.dynamic_slice_in_dim(x, source, 1, axis=1)
    return jax.lax.dynamic_update_slice_in_dim(x, page, target, axis=1)

  keys, values = jax.tree.map(copy, (cache.keys, cache.values))
  return cache.replace(keys=keys, values=values)


def write_prompts(
  cache: PagedCache, prompts: KVCache, lengths_P: Array, pages_PM: Array
) -> PagedCache:
  """Writes prompts, which end the rows of a cache, into pages; X is none.

  The pages of a prompt have room for the longest.
  """
  _, X, p, _ = cache.keys[0].shape
  width = pages_PM.shape[1] * p

  def write(pool_KXpH: Array, x_PKSH: Array) -> Array:
    P, K, S, H = x_PKSH.shape
    turn = jax.vmap(functools.partial(jnp.roll, axis=1))
    x_PKSH = turn(x_PKSH, lengths_P - S)  # A row's first token comes first.
    x_PKSH = jnp.pad(x_PKSH, ((0, 0), (0, 0), (0, width - S), (0, 0)))
    at_PKM = pages_PM[:, None] + (jnp.arange(K) * X)[None, :, None]
    at_PKM = jnp.where(pages_PM[:, None] < X, at_PKM, K * X)
    flat = pool_KXpH.reshape(K * X, p, H)
    flat = flat.at[at_PKM].set(x_PKSH.reshape(P, K, -1, p, H), mode="drop")
    return flat.reshape(pool_KXpH.shape)

  keys = tuple(x_PKHS.swapaxes(2, 3) for x_PKHS in prompts.keys)
  return cache.replace(
    keys=tuple(map(write, cache.keys, keys)),
    values=tuple(map(write, cache.values, prompts.values)),
  )


@flax.struct.dataclass
class Pages:
  """How a layer writes the token that is read, and reads its pages.

  `window` is of tokens, itself included; 0: all. `kernel`: JAX's reads them.
  """

  table: Array  # int32 [B, M]
  lengths: Array  # int32 [B]
  window: int = flax.struct.field(pytree_node=False, default=0)
  kernel: bool = flax.struct.field(pytree_node=False, default=False)

  def __call__(
    self, q_B1NH: Array, k_B1KH: Array, v_B1KH: Array, pools
  ) -> tuple[Array, tuple[Array, Array]]:
    """Mixes values into `[B, 1, N, H]`; each device has its heads of a pool."""
    heads = sharding.head_names(k_B1KH.shape[2])
    q, row = (None, heads[0], None), (None, heads[1], None)
    pool, rows = (heads[1], None, None, None), ((None, None), (None,))
    each = functools.partial(sharding.on_each_device, check_vma=False)
    known = self.table, self.lengths
    pools = tuple(
      each(_write, (old, x_B1KH[:, 0], *known), (pool, row, *rows), pool)
      for old, x_B1KH in zip(pools, (k_B1KH, v_B1KH), strict=True)
    )
    attend = _kernel if self.kernel else self._gather
    args = (q_B1NH[:, 0], *pools, *known)
    names = q, pool, pool, *rows
    mixed = each(attend, args, names, q, is_kernel=self.kernel)
    return mixed[:, None], pools

  def _gather(self, q_BNH, k_KXpH, v_KXpH, table_BM, lengths_B):
    (B, N, H), K = q_BNH.shape, len(k_KXpH)
    k_KBTH, v_KBTH = (
      pool[:, table_BM].reshape(K, B, -1, H) for pool in (k_KXpH, v_KXpH)
    )
    place_BT = jnp.arange(k_KBTH.shape[2])[None]
    seen_BT = place_BT < lengths_B[:, None]
    if self.window:
      seen_BT &= place_BT >= lengths_B[:, None] - self.window
    scores = jnp.einsum(
      *("bkgh,kbth->kbgt", q_BNH.reshape(B, K, N // K, H), k_KBTH),
      preferred_element_type=jnp.float32,
    ) / math.sqrt(H)
    scores = jnp.where(seen_BT[None, :, None], scores, attention.MASKED)
    probs = jax.nn.softmax(scores, axis=-1).astype(v_KBTH.dtype)
    return jnp.einsum("kbgt,kbth->bkgh", probs, v_KBTH).reshape(B, N, H)


def _write(pool_KXpH: Array, x_BKH: Array, table_BM, lengths_B) -> Array:
  K, X, p, H = pool_KXpH.shape
  place_B1 = lengths_B[:, None] - 1
  page_B1 = jnp.take_along_axis(table_BM, place_B1 // p, axis=1)
  # By one index for all heads: of any other scatter a TPU wants the pool in
  # another order than attention does, and copies it twice for each token.
  at_BK = jnp.arange(K)[None] * X * p + page_B1 * p + place_B1 % p
  at_BK = jnp.where(place_B1 < 0, K * X * p, at_BK)
  flat = pool_KXpH.reshape(-1, H).at[at_BK].set(x_BKH, mode="drop")
  return flat.reshape(pool_KXpH.shape)


def _kernel(q_BNH, k_KXpH, v_KXpH, table_BM, lengths_B):
  """Paged attention of JAX, in Pallas, for TPU; on a CPU interpreted.

  It rounds keys and values to bfloat16.
  """
  from jax.experimental.pallas import tpu
  from jax.experimental.pallas.ops.tpu import paged_attention

  attend = functools.partial(
    paged_attention.paged_attention,
    *((q_BNH / math.sqrt(q_BNH.shape[-1])).astype(q_BNH.dtype), k_KXpH, v_KXpH),
    *(lengths_B, jnp.pad(table_BM, ((0, 0), (0, -table_BM.shape[1] % _BLOCK)))),
    pages_per_compute_block=_BLOCK,
  )
  if jax.default_backend() != "cpu":
    return attend()
  with tpu.force_tpu_interpret_mode():
    return attend()


def kernel_lacks(config: DecoderConfig, page_size: int, window: int) -> str:
  """Why JAX's kernel does not read a layer's pages, where this is traced.

  Empty if it does.
  """
  is_auto = config.attention == "auto" and jax.default_backend() == "tpu"
  reasons = {
    "model.attention is not splash, nor auto on a TPU": not (
      is_auto or config.attention == "splash"
    ),
    f"activations are {config.dtype}": config.dtype != "bfloat16",
    f"heads have {config.head_size} entries, no multiple of 128": (
      config.head_size % 128 > 0
    ),
    f"pages have {page_size} tokens, no multiple of 16": page_size % 16 > 0,
    "layers have windows": window > 0,
  }
  return next((reason for reason, is_so in reasons.items() if is_so), "")
