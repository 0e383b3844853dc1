# SPDX-License-Identifier: Apache-2.0
"""Sampling with fewer slots than rows: a row that ends leaves its slot.

The rows of a call wait in order. At every few tokens a slot whose row has ended
takes the next one: what its prompt has in a store of prefilled prompts is
copied over the old row's. All slots write at one place of the cache, which runs
round the places behind the prompts: a row needs no more of them than it may
have tokens, so that it never meets its own, and what it sees are the tokens
that it holds. The key of a token is of its place in its row. So the tokens are
those of `generate`, whatever the slots; log-probs are equal up to rounding.
"""

import functools
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from saw_jax.models import cache as cache_lib
from saw_jax.models import decoder
from saw_jax.models.cache import KVCache
from saw_jax.models.config import DecoderConfig
from saw_jax.rollout import generate as generate_lib
from saw_jax.rollout.generate import GenerateConfig
from saw_jax.rollout.transcript import PromptBatch, Transcript
from saw_jax.types import Array

_PERIOD = (
  1  # tokens, after which slots are looked at: fewest on CPUs is fastest
)


@flax.struct.dataclass
class _Store:
  """Prompts that were read, with the first token of each of their rows."""

  start: Array  # int32 [], the first of the W prompts
  cache: KVCache  # of W rows
  token_R: Array  # int32 [W * G]
  drawn_R: dict[str, Array]  # float32


@flax.struct.dataclass
class _Slots:
  """What the `N` slots are at. One that is not live goes on unheard."""

  row_N: Array  # int32, of the B; B is none
  token_N: Array  # int32, drawn last
  count_N: Array  # int32, tokens of the completion so far
  live_N: Array  # bool


@flax.struct.dataclass
class _Loop:
  """What a look at the slots hands to the next."""

  begun: Array  # int32 [], rows that have left the queue
  time: Array  # int32 [], steps of the model
  slots: _Slots
  cache: KVCache
  store: _Store
  counts_B: Array  # int32
  tokens_BT: Array  # int32
  recorded_BT: dict[str, Array]  # float32


def make_generate(
  decoder_config: DecoderConfig,
  config: GenerateConfig,
  *,
  lanes: bool = False,
  period: int = _PERIOD,
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
    num_slots, num_held = slots(config, P, S)
    if num_slots >= P * config.group_size:
      return at_once(params, prompts, row_keys)
    sampler = _Sampler(decoder_config, config, num_slots, num_held, period)
    if not lanes:
      return sampler(params, prompts, row_keys)
    each = (params, prompts, row_keys)
    return jax.lax.map(lambda own: sampler(*own), each)

  return generate


def slots(
  config: GenerateConfig, num_prompts: int, size: int
) -> tuple[int, int]:
  """How many rows are sampled, and prompts held, at one time.

  The prompts are all held where they take a quarter of the cache at most;
  else as many as the slots hold groups.
  """
  rows, budget = num_prompts * config.group_size, config.cache_tokens
  width = size + max(1, config.max_new_tokens - 1)
  is_free = not (budget and config.max_new_tokens)
  if is_free or rows * width <= budget:
    return rows, num_prompts
  held = num_prompts
  if 4 * num_prompts * size > budget:
    found = int(budget / (width + size / config.group_size))
    held = max(1, found // config.group_size)
  if (found := (budget - held * size) // width) < 1:
    raise ValueError(
      f"rollout.cache_tokens is {budget:,}: a prompt of {size:,} tokens and "
      f"its response of {config.max_new_tokens:,} take {width + size:,}"
    )
  return min(found, rows), min(held, num_prompts)


class _Sampler:
  """Traces the program of one lane."""

  def __init__(self, decoder_config, config, num_slots, num_held, period):
    self._decoder, self._config = decoder_config, config
    self._num_slots, self._num_held = num_slots, num_held
    self._period = period
    self._eos_ids = np.array(config.eos_ids, np.int32)

  def __call__(self, params, prompts: PromptBatch, row_keys) -> Transcript:
    if "layers" in params:
      params = decoder.unstack_layers(params)
    self._decoder = generate_lib.unrolled(self._decoder)
    T, G = self._config.max_new_tokens, self._config.group_size
    P, S = prompts.tokens.shape
    self._params, self._prompts, self._row_keys = params, prompts, row_keys
    self._sizes = P * G, S, T, G
    self._sampled_P = prompts.sampled
    if self._sampled_P is None:
      self._sampled_P = jnp.zeros_like(prompts.lengths)
    # A store that is changed is part of the loop: one stage is compiled then.
    bounds = [max(1, T - 1)]
    if self._num_held == P and T > 1:
      bounds = generate_lib.stages(S, T)
    loop = self._start(S + bounds[0])
    if self._num_held == P:
      loop = loop.replace(store=self._read_prompts(0))

    def round_of_stages(loop):
      loop = loop.replace(time=jnp.int32(0))  # Nobody is alive.
      for i, bound in enumerate(bounds):
        loop = loop.replace(cache=cache_lib.grow(loop.cache, S + bound))
        how = dict(bound=bound, is_first=i == 0, is_last=bound == bounds[-1])
        goes_on = functools.partial(self._goes_on, **how)
        step = functools.partial(self._go_on, **how, ring=bounds[-1])
        loop = jax.lax.while_loop(goes_on, step, loop)
      return loop.replace(cache=cache_lib.shrink(loop.cache, S + bounds[0]))

    loop = jax.lax.while_loop(self._has_work, round_of_stages, loop)
    found = loop.counts_B, loop.tokens_BT, loop.recorded_BT
    return generate_lib.to_transcript(prompts, *found)

  def _start(self, size: int) -> _Loop:
    (B, S, T, G), N = self._sizes, self._num_slots
    held, zeros = (
      self._num_held * G,
      functools.partial(jnp.zeros, dtype="int32"),
    )
    none = functools.partial(generate_lib.nothing_recorded, self._config)
    empty = functools.partial(cache_lib.init_cache, self._decoder)
    return _Loop(
      begun=zeros(()),
      time=zeros(()),
      slots=_Slots(B + zeros(N), zeros(N), zeros(N), jnp.zeros(N, bool)),
      cache=empty(N, size),
      store=_Store(
        # Before the first prompt: there is none in it.
        start=jnp.int32(-self._num_held),
        cache=empty(self._num_held, S),
        token_R=zeros(held),
        drawn_R=none((held,)),
      ),
      counts_B=zeros(B),
      tokens_BT=jnp.full((B, T), self._config.pad_id, jnp.int32),
      recorded_BT=none((B, T)),
    )

  def _has_work(self, loop: _Loop) -> Array:
    return loop.slots.live_N.any() | (loop.begun < self._sizes[0])

  def _goes_on(self, loop, *, bound, is_first, is_last) -> Array:
    """Whether a stage does: if no row is alive, the first one begins anew."""
    goes_on = loop.slots.live_N.any()
    if is_first:
      goes_on = self._has_work(loop)
    return goes_on if is_last else goes_on & (loop.time < bound)

  def _go_on(self, loop, *, bound, is_first, is_last, ring) -> _Loop:
    if is_first:
      is_new = ~loop.slots.live_N.any()
      loop = loop.replace(time=jnp.where(is_new, 0, loop.time))
    return self._decode(self._fill(loop), ring, most=None if is_last else bound)

  def _read_prompts(self, start) -> _Store:
    """Prefills as many prompts as are held, and draws all first tokens."""
    G, config = self._config.group_size, self._config
    cut = functools.partial(
      jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=self._num_held
    )
    own = jax.tree.map(cut, self._prompts)
    logits_WV, cache = generate_lib.prefill(
      self._decoder, self._params, own.tokens, *generate_lib.places(own)
    )
    each = functools.partial(jnp.repeat, repeats=G, axis=0)
    keys_R = jax.lax.dynamic_slice_in_dim(
      self._row_keys, start * G, self._num_held * G
    )
    times_R = each(cut(self._sampled_P))
    drawn = generate_lib.draw_tokens(config, keys_R, times_R, each(logits_WV))
    return _Store(jnp.int32(start), cache, *drawn)

  def _fill(self, loop: _Loop) -> _Loop:
    """Gives free slots to the next rows, one after the other."""
    (B, _, T, G), P = self._sizes, len(self._prompts.tokens)

    def goes_on(loop):
      return (loop.begun < B) & ~loop.slots.live_N.all()

    def begin(loop):
      row, store = loop.begun, loop.store
      prompt = row // G
      if self._num_held < P:
        # A loop of no round or one: a condition would copy the store.
        store = jax.lax.while_loop(
          lambda store: prompt >= store.start + self._num_held,
          lambda _: self._read_prompts(jnp.minimum(prompt, P - self._num_held)),
          store,
        )
      slot, place = jnp.argmin(loop.slots.live_N), prompt - store.start
      token = store.token_R[place * G + row % G]
      drawn = {k: x[place * G + row % G] for k, x in store.drawn_R.items()}
      is_live = (T > 1) & ~jnp.isin(token, self._eos_ids)
      own = _Slots(row, token, jnp.int32(1), is_live)
      return loop.replace(
        begun=row + 1,
        slots=jax.tree.map(lambda x, new: x.at[slot].set(new), loop.slots, own),
        cache=cache_lib.insert(loop.cache, slot, store.cache, place),
        store=store,
        counts_B=loop.counts_B.at[row].set(1),
        tokens_BT=loop.tokens_BT.at[row, 0].set(token),
        recorded_BT={
          name: x.at[row, 0].set(drawn[name])
          for name, x in loop.recorded_BT.items()
        },
      )

    return jax.lax.while_loop(goes_on, begin, loop)

  def _decode(self, loop: _Loop, ring: int, most: int | None) -> _Loop:
    """Draws up to `period` tokens in each slot."""
    (_, S, T, G), config, K = self._sizes, self._config, self._period
    before, prompts_N = loop.slots, loop.slots.row_N // G
    keys_N, lengths_N, sampled_N = (
      self._row_keys[before.row_N],
      self._prompts.lengths[prompts_N],
      self._sampled_P[prompts_N],
    )
    shape = (K, self._num_slots)

    def goes_on(carry):
      k, slots, *_ = carry
      goes_on = (k < K) & slots.live_N.any()
      return goes_on if most is None else goes_on & (loop.time + k < most)

    def step(carry):
      k, slots, cache, tokens_KN, drawn_KN = carry
      cache = cache.replace(index=S + (loop.time + k) % ring)
      logits_NV, cache = generate_lib.read(
        self._decoder,
        self._params,
        slots.token_N[:, None],
        (lengths_N + slots.count_N - 1)[:, None],
        jnp.ones((self._num_slots, 1), bool),
        cache,
      )
      token_N, drawn_N = generate_lib.draw_tokens(
        config, keys_N, sampled_N + slots.count_N, logits_NV
      )
      count_N = slots.count_N + slots.live_N
      live_N = slots.live_N & (count_N < T) & ~jnp.isin(token_N, self._eos_ids)
      put = lambda x_KN, x_N: x_KN.at[k].set(x_N)  # noqa: E731
      return (
        k + 1,
        _Slots(slots.row_N, token_N, count_N, live_N),
        cache,
        put(tokens_KN, token_N),
        jax.tree.map(put, drawn_KN, drawn_N),
      )

    drawn = generate_lib.nothing_recorded(config, shape)
    carry = (
      jnp.int32(0), before, loop.cache, jnp.zeros(shape, jnp.int32), drawn
    )  # fmt: skip
    steps, after, cache, *drawn = jax.lax.while_loop(goes_on, step, carry)
    # A slot's own tokens are its first ones; the others have no place.
    order_KN = jnp.arange(K)[:, None]
    is_own_KN = order_KN < (after.count_N - before.count_N)[None]
    times_KN = jnp.where(is_own_KN, before.count_N[None] + order_KN, T)
    rows_KN = jnp.broadcast_to(before.row_N, shape)

    def write(x_BT, x_KN):
      return x_BT.at[rows_KN, times_KN].set(x_KN, mode="drop")

    tokens_BT, recorded_BT = jax.tree.map(
      write, [loop.tokens_BT, loop.recorded_BT], list(drawn)
    )
    return loop.replace(
      time=loop.time + steps,
      slots=after,
      cache=cache.replace(index=loop.cache.index),
      counts_B=loop.counts_B.at[before.row_N].set(after.count_N),
      tokens_BT=tokens_BT,
      recorded_BT=recorded_BT,
    )
