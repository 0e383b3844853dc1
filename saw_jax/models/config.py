# SPDX-License-Identifier: Apache-2.0
"""The sizes of a decoder, and the switches that change how it is computed."""

import dataclasses

from saw_jax import naming
from saw_jax.settings import constant

# What the backward pass recomputes of a layer.
REMAT_POLICIES = (
  "none",
  "full",  # everything
  "offload",  # everything, from inputs that are kept in the host's memory
  "attention",  # all but what attention gives
  "save_weight_products",  # all but the products with weights
  "dots",  # all but both of these
)
# How whole rows attend: in bands of scores on any machine, or by the kernel of
# a TPU (splash) or a GPU (cudnn).
ATTENTION = ("auto", "bands", "splash", "cudnn")

_DTYPES = ("float32", "bfloat16", "float16")
_SIZES = (
  *("vocab_size", "width", "num_layers", "num_heads", "num_kv_heads"),
  *("head_size", "mlp_size"),
)


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """A decoder-only transformer: RMSNorm, rotary positions, GQA and SwiGLU."""

  # V, the tokenizer's.
  vocab_size: int = dataclasses.field(metadata={"key": False})
  width: int  # D, of the residual stream
  num_layers: int  # L
  num_heads: int  # N, query heads
  num_kv_heads: int  # K, divides N; K = N is multi-head, K = 1 multi-query
  head_size: int  # H, even; N * H need not be D
  mlp_size: int  # F, of each half of the gated MLP
  rope_theta: float = constant(10_000.0)  # base of the rotary wavelengths
  norm_eps: float = constant(1e-6)  # added to the mean square inside RMSNorm
  tied_head: bool = constant(True)  # the head is the embedding, transposed
  # A vector and a bias beside the head: a critic.
  value_head: bool = constant(False)
  qkv_bias: bool = constant(False)  # biases on queries, keys and values (Qwen2)
  qk_norm: bool = constant(False)  # RMSNorm of each query and key head (Qwen3)
  wide_qk_norm: bool = constant(False)  # ... of all heads together (OLMo 2)
  # RMSNorm of what a block adds to the stream, in place of what it reads.
  post_norm: bool = constant(False)
  # Entries of a head that rotate, the first ones; 0: all.
  rotary_size: int = constant(0)
  # What each frequency is divided by, [rotary size / 2]; empty: by nothing.
  rope_factors: tuple[float, ...] = constant(())
  rope_scale: float = constant(1.0)  # of sines and cosines (YaRN, LongRoPE)
  # How many tokens a query of each layer sees, itself included, [L]; 0: all of
  # them; empty: all of them in all layers.
  windows: tuple[int, ...] = constant(())
  # Whether each layer rotates at all, [L]; empty: all do (SmolLM3: not all).
  rotated: tuple[bool, ...] = constant(())
  scan_layers: bool = False  # one stacked layer, or `layer_0`, `layer_1`, ...
  remat: str = "none"  # one of REMAT_POLICIES
  # auto: splash on a TPU, cudnn on a GPU where it can; else bands.
  attention: str = "auto"
  dtype: str = "float32"  # of activations; norms, softmax, logits are float32
  param_dtype: str = "float32"  # of the stored parameters

  def __post_init__(self):
    naming.check_range(self, "[1, inf)", *_SIZES)
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads "
        f"({self.num_kv_heads})."
      )
    if self.head_size % 2:
      raise ValueError(
        f"head_size must be even for rotary positions, not {self.head_size}."
      )
    if self.rotary_size % 2 or not 0 <= self.rotary_size <= self.head_size:
      raise ValueError(
        f"rotary_size must be even and at most head_size ({self.head_size}), "
        f"not {self.rotary_size}."
      )
    for name, size, same in (
      ("rope_factors", (self.rotary_size or self.head_size) // 2, None),
      ("windows", self.num_layers, 0),
      ("rotated", self.num_layers, True),
    ):
      values = tuple(getattr(self, name))
      if values and len(values) != size:
        raise ValueError(f"{name} must have {size} entries, not {len(values)}.")
      # A config file holds lists; a config must be hashable.
      values = () if set(values) == {same} else values
      object.__setattr__(self, name, values)
    if min(self.rope_factors, default=1) <= 0:
      raise ValueError("rope_factors must be above 0.")
    if min(self.windows, default=0) < 0:
      raise ValueError("windows must not be below 0.")
    if self.qk_norm and self.wide_qk_norm:
      raise ValueError("qk_norm and wide_qk_norm are one or the other.")
    for name in ("windows", "rotated"):
      if self.scan_layers and len(set(getattr(self, name))) > 1:
        raise ValueError(
          f"Layers that differ in {name} cannot be scanned over: set "
          "scan_layers=False."
        )
    if self.attention == "cudnn" and not self.fits_cudnn:
      raise ValueError(
        "attention='cudnn' needs dtype bfloat16 or float16 and a head_size "
        f"that 8 divides, up to 128, not {self.dtype} and {self.head_size}."
      )
    naming.check_choice("remat", self.remat, REMAT_POLICIES)
    naming.check_choice("attention", self.attention, ATTENTION)
    for name in ("dtype", "param_dtype"):
      naming.check_choice(name, getattr(self, name), _DTYPES)

  @property
  def fits_cudnn(self) -> bool:
    """Whether cuDNN's flash attention, of any recent GPU, takes these sizes."""
    is_half = self.dtype in ("bfloat16", "float16")
    return is_half and self.head_size % 8 == 0 and self.head_size <= 128


# 0.13 M parameters: thousands of updates an hour on two cores.
TINY = DecoderConfig(512, 64, 2, 4, 2, 16, 192)
