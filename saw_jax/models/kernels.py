# SPDX-License-Identifier: Apache-2.0
"""Attention of whole rows on accelerators, which never holds its scores.

Both kernels compute `attention.attend_causally` of tokens that see the earlier
ones of their own segment: padding is segment 0 and sees itself, so that no
query is without a key. Softmax and sums are float32.
"""

import math

import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from saw_jax.models import sharding
from saw_jax.models.config import DecoderConfig
from saw_jax.types import Array

# Queries and keys of a tile; a row is padded to a multiple.
_TILE, _LANES = 512, 128
# What a policy of `DecoderConfig.remat` may keep: what attention gives.
MIXED = "attention"


@flax.struct.dataclass
class Kernel:
  """What the tokens of a row see, and how it is computed.

  `window` is of tokens, itself included; 0: all.
  """

  segments: Array  # int32 [B, S], 0 is padding
  window: int = flax.struct.field(pytree_node=False, default=0)

  def __call__(
    self, q_BSNH: Array, k_BSKH: Array, v_BSKH: Array, cache: None = None
  ) -> tuple[Array, None]:
    """Mixes values into `[B, S, N, H]`; each device has its rows and heads."""
    heads = sharding.head_names(k_BSKH.shape[2])
    q, kv = (("batch", None, name, None) for name in heads)
    mixed_BSNH = sharding.on_each_device(
      self._attend,
      (q_BSNH, k_BSKH, v_BSKH, self.segments),
      (q, kv, kv, ("batch", None)),
      q,
      check_vma=False,
      is_kernel=True,
    )
    return mixed_BSNH, cache


@flax.struct.dataclass
class Splash(Kernel):
  """Splash attention of JAX, in Pallas, for TPU; on a CPU interpreted."""

  def _attend(self, q_BSNH, k_BSKH, v_BSKH, segments_BS):
    from jax.experimental.pallas.ops.tpu.splash_attention import (
      splash_attention_kernel as splash,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import (
      splash_attention_mask as masks,
    )

    S, N, H = q_BSNH.shape[1:]
    tile = min(_TILE, S + -S % _LANES)
    L = S + -S % tile

    def by_head(x_BSNH: Array) -> Array:
      widths = [(0, 0), (0, L - S), (0, 0), (0, 0)]
      return jnp.pad(x_BSNH, widths).transpose(0, 2, 1, 3)

    if 0 < self.window < S:
      mask = masks.LocalMask((L, L), (self.window - 1, 0), 0)
    else:
      mask = masks.CausalMask((L, L))
    names = "q kv kv_compute q_dkv kv_dkv kv_dkv_compute".split()
    kernel = splash.make_splash_mha(
      masks.MultiHeadMask([mask] * N),
      # Scores are made again once in the backward pass, and not twice.
      block_sizes=splash.BlockSizes(
        **{f"block_{x}": tile for x in names}, use_fused_bwd_kernel=True
      ),
      head_shards=1,
      q_seq_shards=1,
      residual_checkpoint_name=MIXED,
      interpret=jax.default_backend() == "cpu",
    )
    q_BSNH = (q_BSNH / math.sqrt(H)).astype(q_BSNH.dtype)
    ids_BL = jnp.pad(segments_BS, [(0, 0), (0, L - S)])
    mixed_BNLH = jax.vmap(
      lambda q, k, v, ids: kernel(
        q, k, v, segment_ids=splash.SegmentIds(ids, ids)
      )
    )(by_head(q_BSNH), by_head(k_BSKH), by_head(v_BSKH), ids_BL)
    return mixed_BNLH[:, :, :S].transpose(0, 2, 1, 3)


@flax.struct.dataclass
class Cudnn(Kernel):
  """Flash attention of cuDNN, for GPU.

  Segments and windows are a mask `[B, 1, S, S]`, the one array of that size.
  """

  def _attend(self, q_BSNH, k_BSKH, v_BSKH, segments_BS):
    is_gpu = jax.default_backend() == "gpu"
    mask_BSS = segments_BS[:, :, None] == segments_BS[:, None, :]
    steps = jnp.arange(segments_BS.shape[1])
    far_SS = steps[:, None] - steps[None, :]
    if self.window:
      mask_BSS &= (far_SS < self.window)[None]
    mixed_BSNH = jax.nn.dot_product_attention(
      *(q_BSNH, k_BSKH, v_BSKH),
      mask=mask_BSS[:, None],
      is_causal=True,
      implementation="cudnn" if is_gpu else "xla",
    )
    return checkpoint_name(mixed_BSNH, MIXED)


KERNELS = {"splash": Splash, "cudnn": Cudnn}


def choose(config: DecoderConfig) -> type[Kernel] | None:
  """The kernel for whole rows, where this is traced; `None`: bands."""
  name = config.attention
  if name == "auto":
    name = {"tpu": "splash", "gpu": "cudnn"}.get(jax.default_backend())
    name = None if name == "cudnn" and not config.fits_cudnn else name
  return KERNELS.get(name)
