# SPDX-License-Identifier: Apache-2.0
"""One config-driven decoder, its cache, and log-probs in chunks."""

from saw_jax.models.cache import KVCache, init_cache
from saw_jax.models.config import DecoderConfig
from saw_jax.models.decoder import (
  Decoder,
  head_kernel,
  init_params,
  logical_axes,
  stack_layers,
  unstack_layers,
)
from saw_jax.models.log_probs import chunked_log_probs

__all__ = [
  "Decoder",
  "DecoderConfig",
  "KVCache",
  "chunked_log_probs",
  "head_kernel",
  "init_cache",
  "init_params",
  "logical_axes",
  "stack_layers",
  "unstack_layers",
]
