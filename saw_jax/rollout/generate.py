# SPDX-License-Identifier: Apache-2.0
"""Sampling completions: one prefill, one jitted loop, one transcript."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from saw_jax.models import cache as cache_lib
from saw_jax.models import decoder, log_probs
from saw_jax.models.config import DecoderConfig
from saw_jax.rollout import sampling as sampling_lib
from saw_jax.rollout import transcript, turns
from saw_jax.rollout.sampling import SamplingConfig
from saw_jax.rollout.transcript import PromptBatch, Transcript
from saw_jax.types import Array

_MOST_READ = 512  # tokens of prompts that are read at one time

# Tokens, their positions, and which of them are real; each `[B, S]`.
Asked = tuple[Array, Array, Array]


@dataclasses.dataclass(frozen=True)
class GenerateConfig:
  """How completions are sampled, and what is recorded about them."""

  max_new_tokens: int  # T, where a completion is cut; may be 0
  group_size: int  # G, samples per prompt
  eos_ids: tuple[int, ...]  # end a completion, and belong to it; may be empty
  # Written after the end. Roles say what is padding: the policy may use it.
  pad_id: int = 0
  sampling: SamplingConfig = SamplingConfig()  # how a token is chosen
  record_entropies: bool = False  # of the distributions sampled from
  # Tokens that the cache of a call may hold, see `refill`; 0: all of them.
  cache_tokens: int = 0
  page_size: int = 0  # tokens of a page of that cache, see `paged`; 0: no pages

  def __post_init__(self):
    object.__setattr__(self, "eos_ids", tuple(self.eos_ids))
    sizes = dict(max_new_tokens=0, group_size=1, cache_tokens=0, page_size=0)
    for name, least in sizes.items():
      if (value := getattr(self, name)) < least:
        raise ValueError(f"{name} must be {least} or more, not {value}.")


def row_keys(
  root_key: Array, step: int | Array, example_ids: Array, group_size: int
) -> Array:
  """Folds step, one or `[P]`, example and sample into a key: `[P * G]` keys."""
  fold = jax.vmap(jax.random.fold_in, (None, 0))
  ids_P = jnp.asarray(example_ids)
  steps_P = jnp.broadcast_to(jnp.asarray(step), ids_P.shape)
  keys_P = jax.vmap(jax.random.fold_in)(fold(root_key, steps_P), ids_P)
  keys_PG = jax.vmap(fold, (0, None))(keys_P, jnp.arange(group_size))
  return keys_PG.reshape(-1)


@flax.struct.dataclass
class _Loop:
  """What a step of the loop hands to the next. Lanes come first, if any."""

  time: Array  # int32 [], of the token drawn last
  token_B: Array  # int32, drawn last
  lengths_B: Array  # int32, tokens of the completion so far
  ended_B: Array  # bool
  tokens_TB: Array  # int32; time first: a step writes one line
  recorded_TB: dict[str, Array]  # float32, by field of the transcript
  cache: cache_lib.KVCache | None


def make_generate(
  decoder_config: DecoderConfig, config: GenerateConfig, *, lanes: bool = False
) -> Callable[[dict, PromptBatch, Array], Transcript]:
  """Makes a jitted sampler from parameters, prompts `[P]` and keys `[P * G]`.

  With `lanes`, these and the transcript have a leading axis of independent
  seeds; each lane samples what a call of its own would.
  """
  turn = make_turn(decoder_config, config, lanes=lanes)

  @jax.jit
  def generate(params, prompts, row_keys):
    return turn(params, prompts, row_keys)[0]

  return generate


def make_turn(
  decoder_config: DecoderConfig, config: GenerateConfig, *, lanes: bool = False
) -> Callable[..., tuple[Transcript, cache_lib.KVCache | None]]:
  """Makes a sampler that gives what it has read, and goes on from it.

  `(params, prompts, keys, cache=None, shared=None) -> (transcript, cache)`.
  Given the cache of an earlier call by the same parameters, and what its rows
  share with these prompts, it begins to read at the first part that some row
  lacks. Groups have one row each then.
  """
  part, decoder_config = turns.PART, unrolled(decoder_config)
  # Only the model and the sampler are mapped. A `vmap` of the whole, in which
  # the cache's index is no longer shared, would copy the cache at each step.
  over_lanes = jax.vmap if lanes else lambda fn, *axes: fn
  unstack = over_lanes(decoder.unstack_layers)
  # A cache's index is shared by all lanes.
  cached = cache_lib.KVCache(keys=0, values=0, positions=0, index=None)

  def mapped(fn, given, *bound):
    fn = functools.partial(fn, decoder_config, *bound)
    return over_lanes(fn, (0, 0, *given), (0, cached))

  model, read_all = mapped(read, (cached,)), mapped(prefill, ())
  read_rest = mapped(read_parts, (cached, None), part)
  draw = over_lanes(functools.partial(draw_tokens, config))
  each = functools.partial(jnp.repeat, repeats=config.group_size)
  eos_ids = np.array(config.eos_ids, np.int32)

  def begin(prompts, asked, kept, shared):
    """What is shared, at the places of prompts of which the rest is read."""
    S = prompts.tokens.shape[-1]
    width, one = whole_parts(S, part)
    take = functools.partial(cache_lib.take_rows, size=width)
    cache = over_lanes(take)(kept, shared.sources, shared.shifts + S - width)
    order = jnp.where(asked[2], asked[1], cache_lib.EMPTY)
    wider = [(0, 0)] * (order.ndim - 1) + [(width - S, 0)]
    order = jnp.pad(order, wider, constant_values=cache_lib.EMPTY)
    first = (width - shared.unread(prompts.lengths)) // one
    return cache.replace(positions=order, index=first * one), first

  def turn(params, prompts, row_keys, kept=None, shared=None):
    if "layers" in params:
      params = unstack(params)
    S, T = prompts.tokens.shape[-1], config.max_new_tokens
    lengths_B = each(prompts.lengths, axis=-1)
    zeros_B = jnp.zeros_like(lengths_B)
    first_B = each(prompts.first_times, axis=-1)

    def append(loop: _Loop, logits_BV: Array, cache) -> _Loop:
      time = loop.time + 1
      token_B, drawn_B = draw(row_keys, first_B + time, logits_BV)
      token_B = jnp.where(loop.ended_B, config.pad_id, token_B)

      def record(line_TB, value_B):
        return line_TB.at[time].set(jnp.where(loop.ended_B, 0.0, value_B))

      return _Loop(
        time=time,
        token_B=token_B,
        lengths_B=loop.lengths_B + ~loop.ended_B,
        ended_B=loop.ended_B | jnp.isin(token_B, eos_ids),
        tokens_TB=loop.tokens_TB.at[time].set(token_B),
        recorded_TB=jax.tree.map(record, loop.recorded_TB, drawn_B),
        cache=cache,
      )

    def step(loop: _Loop) -> _Loop:
      asked = one_each(loop.token_B, lengths_B + loop.time)
      return append(loop, *model(params, asked, loop.cache))

    shape = (T, *lengths_B.shape)
    loop = _Loop(
      time=jnp.int32(-1),
      token_B=zeros_B,
      lengths_B=zeros_B,
      ended_B=zeros_B.astype(bool),
      tokens_TB=jnp.full(shape, config.pad_id, jnp.int32),
      recorded_TB=nothing_recorded(config, shape),
      cache=None,
    )
    if T:
      asked = ask(prompts)
      if kept is None:
        logits_PV, cache = read_all(params, asked)
      else:
        begun = begin(prompts, asked, kept, shared)
        logits_PV, cache = read_rest(params, asked, *begun)
      cache = cache_lib.repeat_rows(cache, config.group_size)
      loop = append(loop, each(logits_PV, axis=-2), cache)

    def goes_on(bound, loop):
      return (loop.time < bound) & ~loop.ended_B.all()

    for bound in stages(S, T):
      # Attention reads the whole cache: let it be little more than is filled.
      loop = loop.replace(cache=cache_lib.grow(loop.cache, S + bound))
      loop = jax.lax.while_loop(functools.partial(goes_on, bound), step, loop)
    by_row = functools.partial(jnp.moveaxis, source=0, destination=-1)
    drawn = jax.tree.map(by_row, (loop.tokens_TB, loop.recorded_TB))
    read = loop.cache and loop.cache.replace(positions=None, index=None)
    return to_transcript(prompts, loop.lengths_B, *drawn), read

  return turn


def stream(
  decoder_config: DecoderConfig,
  config: GenerateConfig,
  params: dict,
  prompt: Sequence[int],
  row_key: Array,
  *,
  multiple: int = 64,
) -> Iterator[int]:
  """Yields the tokens of one row as they are drawn, for whoever reads along."""
  if decoder_config.scan_layers:
    params = decoder.unstack_layers(params)
  decoder_config = unrolled(decoder_config)
  tokens_S = transcript.pad_prompts([prompt], multiple=multiple).tokens[0]
  most = -(-config.max_new_tokens // multiple) * multiple
  cache = cache_lib.init_cache(decoder_config, 1, len(tokens_S) + most)
  for time in range(config.max_new_tokens):
    counts = np.int32([len(prompt) + time, time])
    token, cache = _go_on(
      decoder_config, config, params, tokens_S, cache, row_key, counts
    )
    yield int(token)
    if int(token) in config.eos_ids:
      return
    tokens_S = np.array([token], np.int32)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=4)
def _go_on(decoder_config, config, params, tokens_S, cache, row_key, counts):
  """Reads tokens, of which the last is number `length`, and draws the next."""
  length, time = counts
  order_1S = jnp.arange(tokens_S.size)[None] + length - tokens_S.size
  asked = tokens_S[None], jnp.maximum(order_1S, 0), order_1S >= 0
  logits_1V, cache = read(decoder_config, params, asked, cache)
  token_1, _ = draw_tokens(config, row_key[None], time[None], logits_1V)
  return token_1[0], cache


def unrolled(config: DecoderConfig) -> DecoderConfig:
  """For sampling: updates of a stacked cache are copies, and remat is idle."""
  return dataclasses.replace(config, scan_layers=False, remat="none")


def ask(prompts: PromptBatch) -> Asked:
  S = prompts.tokens.shape[-1]
  order_PS = _order(S, prompts.lengths) - (S - prompts.lengths)[..., None]
  return prompts.tokens, jnp.maximum(order_PS, 0), order_PS >= 0


def one_each(token_B: Array, position_B: Array) -> Asked:
  """A token of each row, all of them real."""
  token_B1 = token_B[..., None]
  return token_B1, position_B[..., None], jnp.ones(token_B1.shape, bool)


@jax.named_scope("prefill")
def prefill(
  config: DecoderConfig, params: dict, asked: Asked
) -> tuple[Array, cache_lib.KVCache]:
  """Reads prompts in parts, so that scores are of a part by the whole."""
  B, S = asked[0].shape
  width = whole_parts(S, _MOST_READ)[0]
  cache = cache_lib.init_cache(config, B, width)
  if S <= _MOST_READ:
    return read(config, params, asked, cache)
  return read_parts(config, _MOST_READ, params, asked, cache)


def whole_parts(size: int, most: int) -> tuple[int, int]:
  """How many tokens equal parts of `most` or fewer have, together and each."""
  parts = -(-size // most)
  each = -(-size // parts)
  return parts * each, each


def read_parts(
  config: DecoderConfig,
  most: int,
  params: dict,
  asked: Asked,
  cache: cache_lib.KVCache,
  first: Array | int = 0,
) -> tuple[Array, cache_lib.KVCache]:
  """Reads prompts in equal parts, from part `first` on.

  That part begins at the cache's index. The cache is as long as all parts, and
  what it has more than the prompts is in front, where part 0 is padded.
  """
  lack = cache.size - asked[0].shape[1]
  width, each = whole_parts(cache.size, most)

  def split(x_BS: Array) -> Array:
    x_BS = jnp.pad(x_BS, ((0, 0), (lack, 0)))  # which are not valid
    return x_BS.reshape(len(x_BS), -1, each).swapaxes(0, 1)

  def go_on(number, carry):
    part = tuple(x[number] for x in split_up)
    hidden_BSD, cache = _pass(config, params, part, carry[1])
    return hidden_BSD[:, -1], cache

  split_up = tuple(map(split, asked))
  none_BD = jnp.zeros((len(asked[0]), config.width), config.dtype)
  last_BD, cache = jax.lax.fori_loop(
    first, width // each, go_on, (none_BD, cache)
  )
  cache = cache_lib.cut(cache, lack, cache.size)
  return _logits(config, params, last_BD), cache


def read(
  config: DecoderConfig, params: dict, asked: Asked, cache: cache_lib.KVCache
) -> tuple[Array, cache_lib.KVCache]:
  """Reads tokens after those in the cache, and gives logits of the next."""
  hidden_BSD, cache = _pass(config, params, asked, cache)
  return _logits(config, params, hidden_BSD[:, -1]), cache


def _pass(config, params, asked: Asked, cache):
  return decoder.Decoder(config).apply({"params": params}, *asked, cache)


def _logits(config, params, hidden_BD: Array) -> Array:
  head_DV = decoder.head_kernel(params, config)
  logits_BV = log_probs.head_logits(hidden_BD, head_DV)
  # Whole on each device: drawing from parts would send far more messages.
  return nn.with_logical_constraint(logits_BV, ("batch", None))


def draw_tokens(
  config: GenerateConfig, keys_B: Array, times_B: Array, logits_BV: Array
) -> tuple[Array, dict[str, Array]]:
  """Draws a token per row, and takes what is recorded of it."""
  keys_B = jax.vmap(jax.random.fold_in)(keys_B, times_B)
  tokens_B, drawn_B = sampling_lib.sample(keys_B, logits_BV, config.sampling)
  found = {"behave_log_probs": drawn_B}
  if config.record_entropies:
    found["entropies"] = sampling_lib.entropies(logits_BV, config.sampling)
  return tokens_B, found


def nothing_recorded(
  config: GenerateConfig, shape: tuple[int, ...]
) -> dict[str, Array]:
  """Zeros for what is recorded of each token, by field of the transcript."""
  names = ["behave_log_probs"] + ["entropies"] * config.record_entropies
  return {name: jnp.zeros(shape, jnp.float32) for name in names}


def to_transcript(
  prompts: PromptBatch, counts_B: Array, tokens_BT: Array, recorded_BT: dict
) -> Transcript:
  """Puts completions of `counts_B` tokens behind their prompts."""
  *_, P, S = prompts.tokens.shape
  G, T = counts_B.shape[-1] // P, tokens_BT.shape[-1]
  lengths_B = jnp.repeat(prompts.lengths, G, axis=-1)
  order_BS = _order(S + T, lengths_B)
  starts_B, ends_B = S - lengths_B, S + counts_B
  is_out = (order_BS < starts_B[..., None]) | (order_BS >= ends_B[..., None])
  roles_BS = jnp.where(order_BS < S, transcript.PROMPT, transcript.POLICY)
  roles_BS = jnp.where(is_out, transcript.PAD, roles_BS).astype(jnp.int8)
  asked_BS = jnp.repeat(prompts.tokens, G, axis=-2)
  group_ids = np.repeat(np.arange(P, dtype=np.int32), G)
  return Transcript(
    tokens=jnp.concatenate([asked_BS, tokens_BT], axis=-1),
    roles=roles_BS,
    starts=starts_B,
    ends=ends_B,
    group_ids=jnp.broadcast_to(group_ids, lengths_B.shape),
    prompt_size=S,
    **recorded_BT,
  )


def _order(size: int, rows_B: Array) -> Array:
  return jnp.arange(size).reshape((1,) * rows_B.ndim + (-1,))


def stages(prompt_size: int, max_new_tokens: int) -> list[int]:
  """The times at which the loop stops to grow its cache, and ends.

  Each stage is compiled: at most four, which decode 256 tokens 1.15 to 1.37
  times as fast as one (two layers, width 64, two cores).
  """
  if not max_new_tokens:
    return []
  reads = max_new_tokens - 1
  share = 4 * max_new_tokens // (prompt_size + max_new_tokens)
  stages = max(1, min(4, max_new_tokens // 64, share))
  return [-(-reads * (i + 1) // stages) for i in range(stages)]
