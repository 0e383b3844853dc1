# SPDX-License-Identifier: Apache-2.0
"""Rows of a call in slots, as `refill` and `paged` give them to rows."""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from saw_jax.models import decoder
from saw_jax.models.cache import KVCache
from saw_jax.models.paged import PagedCache
from saw_jax.rollout import generate as generate_lib
from saw_jax.rollout.transcript import PromptBatch, Transcript
from saw_jax.types import Array


@flax.struct.dataclass
class Slots:
  """What the `N` slots are at. What one that is not live draws is dropped."""

  row_N: Array  # int32, of the B; B is none
  token_N: Array  # int32, drawn last
  count_N: Array  # int32, tokens of the completion so far
  live_N: Array  # bool


@flax.struct.dataclass
class Loop:
  """What a look at the slots hands to the next."""

  slots: Slots
  cache: KVCache | PagedCache
  counts_B: Array  # int32
  tokens_BT: Array  # int32
  recorded_BT: dict[str, Array]  # float32


class Sampler:
  """Traces the program of one lane."""

  def __init__(self, decoder_config, config, num_slots, num_held, num_pages=0):
    self._decoder = generate_lib.unrolled(decoder_config)
    self._config, self._num_pages = config, num_pages
    self._num_slots, self._num_held = num_slots, num_held
    self._eos_ids = np.array(config.eos_ids, np.int32)

  def __call__(self, params, prompts: PromptBatch, row_keys) -> Transcript:
    if "layers" in params:
      params = decoder.unstack_layers(params)
    T, G = self._config.max_new_tokens, self._config.group_size
    P, S = prompts.tokens.shape
    self._params, self._prompts, self._row_keys = params, prompts, row_keys
    self._sizes = P * G, S, T, G
    loop = self._run()
    found = loop.counts_B, loop.tokens_BT, loop.recorded_BT
    return generate_lib.to_transcript(prompts, *found)

  def _run(self) -> Loop:
    raise NotImplementedError

  def _nothing(self, cache: KVCache | PagedCache) -> dict:
    """What a loop begins with: no row, and no token."""
    (B, _, T, _), N = self._sizes, self._num_slots
    zeros_N = jnp.zeros(N, jnp.int32)
    return dict(
      slots=Slots(B + zeros_N, zeros_N, zeros_N, jnp.zeros(N, bool)),
      cache=cache,
      counts_B=jnp.zeros(B, jnp.int32),
      tokens_BT=jnp.full((B, T), self._config.pad_id, jnp.int32),
      recorded_BT=generate_lib.nothing_recorded(self._config, (B, T)),
    )

  def _read(
    self, loop: Loop, start: Array, begun: Array | int = 0
  ) -> tuple[Loop, KVCache]:
    """Prefills as many prompts as are held, and draws all first tokens.

    Rows before `begun` have one, which they keep.
    """
    (B, _, _, G), config = self._sizes, self._config
    cut = functools.partial(
      jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=self._num_held
    )
    own = jax.tree.map(cut, self._prompts)
    asked = generate_lib.ask(own)
    logits_WV, cache = generate_lib.prefill(self._decoder, self._params, asked)
    each = functools.partial(jnp.repeat, repeats=G, axis=0)
    rows_R = start * G + jnp.arange(self._num_held * G)
    keys_R, times_R = self._row_keys[rows_R], each(own.first_times)
    drawn = generate_lib.draw_tokens(config, keys_R, times_R, each(logits_WV))
    rows_R = jnp.where(rows_R < begun, B, rows_R)

    def put(x_BT, x_R):
      return x_BT.at[rows_R, 0].set(x_R, mode="drop")

    tokens_BT, recorded_BT = jax.tree.map(
      put, (loop.tokens_BT, loop.recorded_BT), drawn
    )
    return loop.replace(tokens_BT=tokens_BT, recorded_BT=recorded_BT), cache

  def _decode(self, loop: Loop, cache: KVCache | PagedCache) -> Loop:
    """Draws a token in each slot; `cache` is set to where the last one goes."""
    (_, _, T, G), config, slots = self._sizes, self._config, loop.slots
    prompts_N = slots.row_N // G
    lengths_N = self._prompts.lengths[prompts_N] + slots.count_N
    asked = generate_lib.one_each(slots.token_N, lengths_N - 1)
    read = generate_lib.read(self._decoder, self._params, asked, cache)
    logits_NV, cache = read
    keys_N = self._row_keys[slots.row_N]
    times_N = self._prompts.first_times[prompts_N] + slots.count_N
    token_N, drawn_N = generate_lib.draw_tokens(
      config, keys_N, times_N, logits_NV
    )
    at_N = jnp.where(slots.live_N, slots.count_N, T)  # T is no place.
    count_N = slots.count_N + slots.live_N
    live_N = slots.live_N & (count_N < T) & ~jnp.isin(token_N, self._eos_ids)

    def write(x_BT, x_N):
      return x_BT.at[slots.row_N, at_N].set(x_N, mode="drop")

    return loop.replace(
      slots=Slots(slots.row_N, token_N, count_N, live_N),
      cache=cache,
      counts_B=loop.counts_B.at[slots.row_N].set(count_N),
      tokens_BT=write(loop.tokens_BT, token_N),
      recorded_BT=jax.tree.map(write, loop.recorded_BT, drawn_N),
    )
