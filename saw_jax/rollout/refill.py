# SPDX-License-Identifier: Apache-2.0
"""Sampling with fewer slots than rows: a row that ends leaves its slot.

The rows of a call wait in order. Before each token a slot whose row has ended
takes the next one: what its prompt has in a store of prefilled prompts is
copied over the old row's. All slots write at the same place of the cache, which
goes round the part behind the prompts. That part is as long as the longest
response, so that a row never overwrites its own tokens; those of the row before
are told apart by their positions. The key of a token depends on its row and its
place in it. So the tokens are those of `generate`, whatever the slots;
log-probs are equal up to rounding.
"""

import functools
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from saw_jax.models import cache as cache_lib
from saw_jax.models.cache import KVCache
from saw_jax.models.config import DecoderConfig
from saw_jax.rollout import generate as generate_lib
from saw_jax.rollout import paged
from saw_jax.rollout.generate import GenerateConfig
from saw_jax.rollout.slots import Loop, Sampler, Slots
from saw_jax.rollout.transcript import PromptBatch, Transcript
from saw_jax.types import Array


@flax.struct.dataclass
class _Loop(Loop):
  time: Array  # int32 [], tokens drawn since all slots were free
  begun: Array  # int32 [], rows that have left the queue
  store: KVCache  # of the W prompts that are held
  first: Array  # int32 [], the first of them


def make_generate(
  decoder_config: DecoderConfig,
  config: GenerateConfig,
  *,
  lanes: bool = False,
) -> Callable[[dict, PromptBatch, Array], Transcript]:
  """Makes `generate.make_generate`, within `cache_tokens` if there are any.

  Lanes then run one after the other, each with slots of its own.
  """
  at_once = generate_lib.make_generate(decoder_config, config, lanes=lanes)
  if not config.cache_tokens:
    return at_once

  @jax.jit
  def generate(params, prompts, row_keys):
    *_, P, S = prompts.tokens.shape
    if fits(config, P, S):
      return at_once(params, prompts, row_keys)
    *sizes, num_pages = slots(config, P, S)
    kind = paged.Paged if num_pages else _Ring
    sampler = kind(decoder_config, config, *sizes, num_pages)
    if not lanes:
      return sampler(params, prompts, row_keys)
    return jax.lax.map(lambda own: sampler(*own), (params, prompts, row_keys))

  return generate


def fits(config: GenerateConfig, num_prompts: int, size: int) -> bool:
  """Whether there is room for all rows at once, each as long as the longest."""
  width = size + max(1, config.max_new_tokens - 1)
  is_free = not (config.cache_tokens and config.max_new_tokens)
  rows = num_prompts * config.group_size
  return is_free or rows * width <= config.cache_tokens


def slots(
  config: GenerateConfig, num_prompts: int, size: int
) -> tuple[int, int, int]:
  """How many rows are sampled and prompts held at one time, and the pages.

  The prompts are all held where they take a quarter of the cache at most;
  else as many as the slots hold groups.
  """
  rows, budget = num_prompts * config.group_size, config.cache_tokens
  width = size + max(1, config.max_new_tokens - 1)
  if fits(config, num_prompts, size):
    return rows, num_prompts, 0
  if found := paged.room(config, num_prompts, size):
    return found
  held = num_prompts
  if 4 * num_prompts * size > budget:
    found = int(budget / (width + size / config.group_size))
    held = max(1, found // config.group_size)
  if (found := (budget - held * size) // width) < 1:
    raise ValueError(
      f"rollout.cache_tokens is {budget:,}: a prompt of {size:,} tokens and "
      f"its response of {config.max_new_tokens:,} take {width + size:,}"
    )
  return min(found, rows), min(held, num_prompts), 0


class _Ring(Sampler):
  """Slots with the longest row's room each, which are written at one place."""

  def _run(self) -> _Loop:
    (_, S, T, _), P = self._sizes, len(self._prompts.tokens)
    # A store that is changed is part of the loop: one stage is compiled then.
    bounds = [max(1, T - 1)]
    if self._num_held == P and T > 1:
      bounds = generate_lib.stages(S, T)
    empty = functools.partial(cache_lib.init_cache, self._decoder)
    loop = _Loop(
      **self._nothing(empty(self._num_slots, S + bounds[0])),
      time=jnp.int32(0),
      begun=jnp.int32(0),
      store=empty(self._num_held, S),
      first=jnp.int32(-self._num_held),  # No prompt is held.
    )
    if self._num_held == P:
      loop = self._hold(loop, jnp.int32(0))

    def round_of_stages(loop):
      loop = loop.replace(time=jnp.int32(0))  # Nobody is alive.
      for i, bound in enumerate(bounds):
        loop = loop.replace(cache=cache_lib.grow(loop.cache, S + bound))
        is_first, is_last = i == 0, bound == bounds[-1]
        most = None if is_last else bound
        goes_on = functools.partial(self._goes_on, is_first=is_first, most=most)
        step = functools.partial(self._go_on, is_first, bounds[-1])
        loop = jax.lax.while_loop(goes_on, step, loop)
      return loop.replace(cache=cache_lib.cut(loop.cache, 0, S + bounds[0]))

    return jax.lax.while_loop(self._has_work, round_of_stages, loop)

  def _has_work(self, loop: _Loop) -> Array:
    return loop.slots.live_N.any() | (loop.begun < self._sizes[0])

  def _goes_on(self, loop, is_first, most) -> Array:
    """Whether a stage does: if no row is alive, the first one begins anew."""
    goes_on = self._has_work(loop) if is_first else loop.slots.live_N.any()
    return goes_on if most is None else goes_on & (loop.time < most)

  def _go_on(self, is_first, ring, loop) -> _Loop:
    if is_first:
      is_new = ~loop.slots.live_N.any()
      loop = loop.replace(time=jnp.where(is_new, 0, loop.time))
    loop = self._fill(loop)
    index = self._sizes[1] + loop.time % ring
    loop = self._decode(loop, loop.cache.replace(index=index))
    return loop.replace(time=loop.time + 1)

  def _hold(self, loop: _Loop, first: Array) -> _Loop:
    loop, store = self._read(loop, first, loop.begun)
    return loop.replace(store=store, first=first)

  def _fill(self, loop: _Loop) -> _Loop:
    """Gives free slots to the next rows, one after the other."""
    (B, _, T, G), P = self._sizes, len(self._prompts.tokens)

    def goes_on(loop):
      return (loop.begun < B) & ~loop.slots.live_N.all()

    def begin(loop):
      row, prompt = loop.begun, loop.begun // G
      if self._num_held < P:
        # A loop of no round or one: a condition would copy the store. What it
        # reads follows from the store, which XLA takes out of the loop else.
        end = lambda loop: loop.first + self._num_held  # noqa: E731
        most = P - self._num_held
        loop = jax.lax.while_loop(
          lambda loop: prompt >= end(loop),
          lambda loop: self._hold(loop, jnp.minimum(end(loop), most)),
          loop,
        )
      slot, token = jnp.argmin(loop.slots.live_N), loop.tokens_BT[row, 0]
      is_live = (T > 1) & ~jnp.isin(token, self._eos_ids)
      own, place = Slots(row, token, jnp.int32(1), is_live), prompt - loop.first
      return loop.replace(
        begun=row + 1,
        slots=jax.tree.map(lambda x, new: x.at[slot].set(new), loop.slots, own),
        cache=cache_lib.insert(loop.cache, slot, loop.store, place),
        counts_B=loop.counts_B.at[row].set(1),
      )

    return jax.lax.while_loop(goes_on, begin, loop)
