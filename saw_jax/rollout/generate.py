# SPDX-License-Identifier: Apache-2.0
"""Sampling completions: one prefill, one jitted loop, one transcript."""

import dataclasses
import functools
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from saw_jax.models import cache as cache_lib
from saw_jax.models import decoder, log_probs
from saw_jax.models.config import DecoderConfig
from saw_jax.rollout import sampling as sampling_lib
from saw_jax.rollout.sampling import SamplingConfig
from saw_jax.rollout.transcript import PromptBatch, Role, Transcript
from saw_jax.types import Array

# (params, prompts, row_keys) -> Transcript
GenerateFn = Callable[[dict, PromptBatch, Array], Transcript]


def row_keys(
  root_key: Array,
  step: int | Array,
  example_ids: Array,
  group_size: int,
) -> Array:
  """Makes a key per row that depends on nothing but what the row is (R9).

  Args:
    root_key: of the run. Shape `[]`.
    step: the rollout step; one, or one a prompt. Shape `[]` or `[P]`.
    example_ids: which example each prompt is, int. Shape `[P]`.
    group_size: samples per prompt, `G`.

  Returns:
    `fold_in(fold_in(fold_in(root, step), example), sample)`. Shape `[P * G]`.
  """
  fold = jax.vmap(jax.random.fold_in, (None, 0))
  ids_P = jnp.asarray(example_ids)
  steps_P = jnp.broadcast_to(jnp.asarray(step), ids_P.shape)
  keys_P = jax.vmap(jax.random.fold_in)(fold(root_key, steps_P), ids_P)
  keys_PG = jax.vmap(fold, (0, None))(keys_P, jnp.arange(group_size))
  return keys_PG.reshape(-1)


def make_generate(
  config: DecoderConfig,
  *,
  sampling: SamplingConfig,
  max_new_tokens: int,
  group_size: int,
  eos_ids: tuple[int, ...],
  pad_id: int = 0,
  lanes: bool = False,
  record_entropies: bool = False,
  record_untempered: bool = False,
) -> GenerateFn:
  """Makes a jitted sampler; it compiles once for each size of prompts.

  Args:
    config: of the decoder. Layers are decoded unrolled even where training
      scans over them: updates of a stacked cache are copies.
    sampling: how a token is chosen.
    max_new_tokens: where a completion is cut, `T`; may be 0.
    group_size: samples per prompt, `G`.
    eos_ids: tokens that end a completion, and belong to it; may be empty.
    pad_id: what is written after the end. Its role says that it is padding, so
      it may be one of `eos_ids` or a token that the policy uses.
    lanes: the arguments have a leading axis of independent seeds, and so has
      the result. Lane n samples what a call with its arguments alone does.
    record_entropies: keep those of the distributions sampled from.
    record_untempered: keep the log-probs at temperature 1 and without
      truncation, beside those of the distributions sampled from.

  Returns:
    `generate(params, prompts, row_keys) -> Transcript`, with parameters as a
    training step has them, prompts `[P]` and row keys `[P * G]`.
  """
  return jax.jit(
    functools.partial(
      generate,
      config,
      sampling=sampling,
      max_new_tokens=max_new_tokens,
      group_size=group_size,
      eos_ids=tuple(eos_ids),
      pad_id=pad_id,
      lanes=lanes,
      record_entropies=record_entropies,
      record_untempered=record_untempered,
    )
  )


@flax.struct.dataclass
class _Loop:
  """What a step of the loop hands to the next. Lanes come first, if any."""

  time: Array  # int32 [], of the token drawn last
  token_B: Array  # int32, drawn last
  lengths_B: Array  # int32, tokens of the completion so far
  ended_B: Array  # bool
  tokens_TB: Array  # int32; time first: a step writes one line
  log_probs_TB: Array  # float32
  entropies_TB: Array | None  # float32; None: not recorded
  untempered_TB: Array | None  # float32; None: not recorded
  cache: cache_lib.KVCache


def generate(
  config: DecoderConfig,
  params: dict,
  prompts: PromptBatch,
  row_keys: Array,
  *,
  sampling: SamplingConfig,
  max_new_tokens: int,
  group_size: int,
  eos_ids: tuple[int, ...],
  pad_id: int = 0,
  lanes: bool = False,
  record_entropies: bool = False,
  record_untempered: bool = False,
) -> Transcript:
  """Samples `group_size` completions of each prompt; see `make_generate`.

  The loop ends when every row has. It is not differentiable and is not to be
  put under `vmap`, which would copy the cache at each step: that is what
  `lanes` is for, where only the model and the sampler are mapped, and time and
  the cache's index stay shared.

  Args:
    config: of the decoder.
    params: as a training step has them, stacked if `config` scans its layers.
    prompts: padded on the left. Tokens of shape `[P, S]`.
    row_keys: a key per completion. Shape `[P * G]`.
    sampling: how a token is chosen.
    max_new_tokens: where a completion is cut, `T`; may be 0.
    group_size: samples per prompt, `G`.
    eos_ids: tokens that end a completion, and belong to it; may be empty.
    pad_id: what is written after the end.
    lanes: each leaf of `params`, `prompts` and `row_keys` has a leading axis of
      independent seeds, and so has the result.
    record_entropies: keep those of the distributions sampled from.
    record_untempered: keep the log-probs at temperature 1 and without
      truncation, beside those of the distributions sampled from.

  Returns:
    The transcript, in which the G completions of a prompt are neighbours.
    Tokens and roles of shape `[P * G, S + T]`, log-probs of the completions of
    shape `[P * G, T]`.

  Raises:
    ValueError: `max_new_tokens` is below 0 or `group_size` is below 1.
  """
  if max_new_tokens < 0:
    raise ValueError(f"max_new_tokens must be 0 or more, not {max_new_tokens}.")
  if group_size < 1:
    raise ValueError(f"group_size must be at least 1, not {group_size}.")
  T = max_new_tokens
  S = prompts.tokens.shape[-1]
  prompts = jax.tree.map(jnp.asarray, prompts)
  if config.scan_layers:
    unstack = decoder.unstack_layers
    params = jax.vmap(unstack)(params) if lanes else unstack(params)
  # Recomputation is for backward passes.
  config = dataclasses.replace(config, scan_layers=False, remat="none")
  model = decoder.Decoder(config)

  # A cache's index is shared by all lanes.
  cache_axes = cache_lib.KVCache(keys=0, values=0, valid=0, index=None)

  def over_lanes(fn, in_axes=0, out_axes=0):
    return jax.vmap(fn, in_axes, out_axes) if lanes else fn

  def read_prompts(params, tokens_PS, lengths_P):
    starts_P1 = S - lengths_P[:, None]
    order_1S = jnp.arange(S)[None]
    hidden_PSD, cache = model.apply(
      {"params": params},
      tokens_PS,
      jnp.maximum(order_1S - starts_P1, 0),
      order_1S >= starts_P1,
      # The last token drawn is not read back.
      cache_lib.init_cache(config, tokens_PS.shape[0], S),
    )
    logits_PV = head_logits(params, hidden_PSD[:, -1])
    cache = cache_lib.repeat_rows(cache, group_size)
    return jnp.repeat(logits_PV, group_size, axis=0), cache

  def read_token(params, token_B, positions_B, cache):
    hidden_BSD, cache = model.apply(
      {"params": params},
      token_B[:, None],
      positions_B[:, None],
      jnp.ones((token_B.shape[0], 1), bool),
      cache,
    )
    return head_logits(params, hidden_BSD[:, 0]), cache

  def head_logits(params, hidden_BD):
    head_DV = decoder.head_kernel(params, config)
    return log_probs.head_logits(hidden_BD, head_DV)

  def draw(keys_B, times_B, logits_BV):
    fold = jax.vmap(jax.random.fold_in)
    drawn = sampling_lib.sample(fold(keys_B, times_B), logits_BV, sampling)
    entropies_B = untempered_B = None
    if record_entropies:
      entropies_B = sampling_lib.entropies(logits_BV, sampling)
    if record_untempered:
      untempered_B = sampling_lib.untempered_log_probs(logits_BV, drawn[0])
    return (*drawn, entropies_B, untempered_B)

  draw = over_lanes(draw)
  read_token = over_lanes(read_token, (0, 0, 0, cache_axes), (0, cache_axes))
  read_prompts = over_lanes(read_prompts, out_axes=(0, cache_axes))

  def is_eos(token_B):
    return functools.reduce(
      jnp.logical_or,
      [token_B == eos for eos in eos_ids],
      jnp.zeros(token_B.shape, bool),
    )

  lengths_B = jnp.repeat(prompts.lengths, group_size, axis=-1)
  sampled_B = jnp.zeros_like(lengths_B)
  if prompts.sampled is not None:
    sampled_B = jnp.repeat(prompts.sampled, group_size, axis=-1)

  def step(loop: _Loop) -> _Loop:
    logits_BV, cache = read_token(
      params, loop.token_B, lengths_B + loop.time, loop.cache
    )
    time = loop.time + 1
    token_B, log_prob_B, entropy_B, untempered_B = draw(
      row_keys, sampled_B + time, logits_BV
    )
    token_B = jnp.where(loop.ended_B, pad_id, token_B)

    def write(line_TB, value_B):
      if line_TB is None:
        return None
      return line_TB.at[time].set(jnp.where(loop.ended_B, 0.0, value_B))

    return _Loop(
      time=time,
      token_B=token_B,
      lengths_B=loop.lengths_B + ~loop.ended_B,
      ended_B=loop.ended_B | is_eos(token_B),
      tokens_TB=loop.tokens_TB.at[time].set(token_B),
      log_probs_TB=write(loop.log_probs_TB, log_prob_B),
      entropies_TB=write(loop.entropies_TB, entropy_B),
      untempered_TB=write(loop.untempered_TB, untempered_B),
      cache=cache,
    )

  if T == 0:
    completion_lengths_B = jnp.zeros_like(lengths_B)
    tokens_TB = jnp.zeros((0, *lengths_B.shape), jnp.int32)
    log_probs_TB = jnp.zeros((0, *lengths_B.shape), jnp.float32)
    entropies_TB = log_probs_TB if record_entropies else None
    untempered_TB = log_probs_TB if record_untempered else None
  else:
    logits_BV, cache = read_prompts(params, prompts.tokens, prompts.lengths)
    token_B, log_prob_B, entropy_B, untempered_B = draw(
      row_keys, sampled_B, logits_BV
    )
    zeros_TB = jnp.zeros((T, *token_B.shape), jnp.float32)

    def first(value_B):
      return None if value_B is None else zeros_TB.at[0].set(value_B)

    loop = _Loop(
      time=jnp.zeros((), jnp.int32),
      token_B=token_B,
      lengths_B=jnp.ones_like(lengths_B),
      ended_B=is_eos(token_B),
      tokens_TB=jnp.full((T, *token_B.shape), pad_id, jnp.int32)
      .at[0]
      .set(token_B),
      log_probs_TB=first(log_prob_B),
      entropies_TB=first(entropy_B),
      untempered_TB=first(untempered_B),
      cache=cache,
    )
    for bound in _stages(S, T):
      # Attention reads the whole cache: let it be little more than is filled.
      loop = loop.replace(cache=cache_lib.grow(loop.cache, S + bound))
      loop = jax.lax.while_loop(
        lambda loop, bound=bound: (loop.time < bound) & ~loop.ended_B.all(),
        step,
        loop,
      )
    completion_lengths_B = loop.lengths_B
    tokens_TB, log_probs_TB = loop.tokens_TB, loop.log_probs_TB
    entropies_TB, untempered_TB = loop.entropies_TB, loop.untempered_TB

  def rows_first(values_TB):
    return None if values_TB is None else jnp.moveaxis(values_TB, 0, -1)

  tokens_BT = jnp.moveaxis(tokens_TB, 0, -1)
  order = jnp.arange(S + T).reshape((1,) * lengths_B.ndim + (-1,))
  starts_B = S - lengths_B
  ends_B = S + completion_lengths_B
  within = (order >= starts_B[..., None]) & (order < ends_B[..., None])
  roles_BS = jnp.where(order < S, Role.PROMPT, Role.POLICY)
  P = prompts.tokens.shape[-2]
  group_ids_B = jnp.repeat(jnp.arange(P, dtype=jnp.int32), group_size)
  group_ids_B = group_ids_B.reshape((1,) * (lengths_B.ndim - 1) + (-1,))
  return Transcript(
    tokens=jnp.concatenate(
      [jnp.repeat(prompts.tokens, group_size, axis=-2), tokens_BT], axis=-1
    ),
    roles=jnp.where(within, roles_BS, Role.PAD).astype(jnp.int8),
    starts=starts_B,
    ends=ends_B,
    behave_log_probs=rows_first(log_probs_TB),
    group_ids=jnp.broadcast_to(group_ids_B, lengths_B.shape),
    policy_versions=jnp.zeros_like(lengths_B),
    prompt_size=S,
    entropies=rows_first(entropies_TB),
    untempered_log_probs=rows_first(untempered_TB),
  )


def _stages(prompt_size: int, max_new_tokens: int) -> list[int]:
  """The times at which the loop stops to grow its cache, and ends.

  Each stage is compiled, so there are at most four, of 64 tokens or more, and
  fewer where the prompt is what fills the cache. Four stages were measured to
  decode 256 tokens 1.15 to 1.37 times as fast as one, a noisy measurement (two
  layers, width 64, two cores).
  """
  reads = max_new_tokens - 1  # the last token drawn is not read back
  stages = min(
    4,
    max_new_tokens // 64,
    4 * max_new_tokens // (prompt_size + max_new_tokens),
  )
  stages = max(stages, 1)
  return [-(-reads * (i + 1) // stages) for i in range(stages)]
