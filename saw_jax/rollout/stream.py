# SPDX-License-Identifier: Apache-2.0
"""Sampling one completion a token at a time, for whoever reads along."""

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from saw_jax.models import attention, decoder
from saw_jax.models.config import DecoderConfig
from saw_jax.rollout import generate, transcript
from saw_jax.rollout import sampling as sampling_lib
from saw_jax.rollout.sampling import SamplingConfig
from saw_jax.types import Array


def stream(
  config: DecoderConfig,
  params: dict,
  prompt: Sequence[int],
  row_key: Array,
  *,
  sampling: SamplingConfig,
  max_new_tokens: int,
  eos_ids: Sequence[int],
  multiple: int = 64,
) -> Iterator[int]:
  """Yields the tokens that `generate` draws with the same key, its end too.

  Sizes are rounded up to `multiple`, so that few are compiled.
  """
  if config.scan_layers:
    params = decoder.unstack_layers(params)
  config = generate.unrolled(config)
  tokens_S = transcript.pad_prompts([prompt], multiple=multiple).tokens[0]
  size = len(tokens_S) + -(-max_new_tokens // multiple) * multiple
  cache, length = attention.init_cache(config, 1, size), len(prompt)
  for time in range(max_new_tokens):
    counts = np.int32([length, time])
    token, cache = _step(
      config, sampling, params, jnp.asarray(tokens_S), cache, row_key, counts
    )
    yield int(token)
    if int(token) in eos_ids:
      return
    tokens_S, length = np.array([token], np.int32), length + 1


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=4)
def _step(config, sampling, params, tokens_S, cache, row_key, counts):
  """Reads tokens, of which the last is number `length`, and draws the next."""
  length, time = counts
  order_1S = jnp.arange(tokens_S.shape[0])[None]
  positions_1S = order_1S + length - tokens_S.shape[0]
  is_real_1S = positions_1S >= 0
  positions_1S = jnp.maximum(positions_1S, 0)
  logits_1V, cache = generate.read(
    config, params, tokens_S[None], positions_1S, is_real_1S, cache
  )
  keys_1 = jax.random.fold_in(row_key, time)[None]
  token_1, _ = sampling_lib.sample(keys_1, logits_1V, sampling)
  return token_1[0], cache
