# SPDX-License-Identifier: Apache-2.0
"""A published `config.json` as a decoder's sizes, and back."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from saw_jax import naming
from saw_jax.models.config import DecoderConfig

Document = Mapping[str, Any]
_SIZES = {
  "vocab_size": "vocab_size",
  "hidden_size": "width",
  "num_hidden_layers": "num_layers",
  "num_attention_heads": "num_heads",
  "num_key_value_heads": "num_kv_heads",
  "head_dim": "head_size",
  "intermediate_size": "mlp_size",
}
_SLIDING, _FULL = "sliding_attention", "full_attention"


@dataclasses.dataclass(frozen=True)
class Family:
  """What sets one architecture's config and tensors apart from another's."""

  model_type: str
  qkv_bias: bool = False
  qk_norm: bool = False
  fused: bool = False  # queries, keys and values in one tensor; gate and up too
  refused: tuple[str, ...] = ()  # keys that must be absent or false
  # Where the document does not say:
  eps: float = 1e-6
  head_size: int = 0  # 0: width / heads
  # Whether windows are on, and the first layer with one; None: it has none.
  windows: tuple[bool, int] | None = None


_LATE, _NO_BIAS = (False, 28), ("attention_bias",)
FAMILIES = {
  "Qwen2ForCausalLM": Family("qwen2", qkv_bias=True, windows=_LATE),
  "Qwen3ForCausalLM": Family(
    "qwen3", qk_norm=True, head_size=128, refused=_NO_BIAS, windows=_LATE
  ),
  # SmolLM and SmolLM2 too.
  "LlamaForCausalLM": Family("llama", refused=("attention_bias", "mlp_bias")),
  "Phi3ForCausalLM": Family(
    "phi3", fused=True, eps=1e-5, refused=_NO_BIAS, windows=(True, 0)
  ),
}


def find_family(document: Document, where: str) -> Family:
  """Finds the family of a document; `where` is its path, for messages."""
  found = document.get("architectures") or []
  if not (isinstance(found, list) and found and isinstance(found[0], str)):
    raise ValueError(f"{where}: 'architectures' names no architecture")
  if found[0] not in FAMILIES:
    raise ValueError(
      f"{where}: unknown architecture {found[0]!r}: "
      f"{naming.nearest(found[0], list(FAMILIES))}"
    )
  return FAMILIES[found[0]]


def read_config(
  document: Document, *, where: str, max_length: int | None = None
) -> DecoderConfig:
  """Reads the sizes of a published model: a decoder, unrolled, in float32.

  Only LongRoPE reads `max_length`, the longest sequence that the model will
  see, by default the published maximum: it chooses a set of frequencies.
  """
  family = find_family(document, where)
  refused = dict.fromkeys(
    family.refused, f"not supported for {family.model_type}"
  )
  refused["quantization_config"] = "weights must be float32 or of 16 bits"
  if document.get("hidden_act") not in ("silu", "swish"):
    refused["hidden_act"] = "there is only silu"
  for key, why in refused.items():
    if document.get(key):
      raise ValueError(f"{where}: {key!r} is {document[key]!r}; {why}")

  size = functools.partial(_size, document, where)
  num_heads, width = size("num_attention_heads"), size("hidden_size")
  head_size = family.head_size or width // num_heads
  defaults = {"num_key_value_heads": num_heads, "head_dim": head_size}
  sizes = {ours: size(key, defaults.get(key)) for key, ours in _SIZES.items()}
  head_size, rope = sizes["head_size"], _rope(document, where)
  # Rounded down, as there.
  rotary_size = int(head_size * (rope.get("partial_rotary_factor") or 1.0))
  factors, scale = rope_factors(rope, rotary_size, where, max_length)
  windows = _windows(document, family, sizes["num_layers"], where)
  try:
    return DecoderConfig(
      **sizes,
      rope_theta=float(rope["rope_theta"]),
      norm_eps=float(document.get("rms_norm_eps", family.eps)),
      tied_head=bool(document.get("tie_word_embeddings", False)),
      qkv_bias=family.qkv_bias,
      qk_norm=family.qk_norm,
      rotary_size=0 if rotary_size == head_size else rotary_size,
      rope_factors=factors,
      rope_scale=scale,
      windows=windows,
    )
  except (ValueError, TypeError) as error:
    raise ValueError(f"{where}: {error}") from error


def write_config(config: DecoderConfig) -> dict[str, Any]:
  """Writes a decoder's sizes as a `config.json` that transformers reads.

  Scaled frequencies become `longrope` with two equal sets of factors: the kind
  that lists them one by one. The document has no token ids and no dtype.
  """
  name = _family_with_parts(config)
  rotary_size = config.rotary_size or config.head_size
  max_length = 32_768  # not a property of the decoder; readers want a number
  rope = None
  if config.rope_factors or config.rope_scale != 1.0:
    factors = list(config.rope_factors or [1.0] * (rotary_size // 2))
    rope = {
      "rope_type": "longrope",
      "short_factor": factors,
      "long_factor": factors,
      "attention_factor": config.rope_scale,
      "factor": 1.0,
      "original_max_position_embeddings": max_length,
    }
  newer = dict(rope or {"rope_type": "default"}, rope_theta=config.rope_theta)
  document = {
    "architectures": [name],
    "model_type": FAMILIES[name].model_type,
    "hidden_act": "silu",
    **{theirs: getattr(config, ours) for theirs, ours in _SIZES.items()},
    "max_position_embeddings": max_length,
    "rms_norm_eps": config.norm_eps,
    "tie_word_embeddings": config.tied_head,
    # The tokenizer's. Absent, they would be numbers of the family's own.
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
    "rope_theta": config.rope_theta,
    "rope_scaling": rope,
    # Newer versions of transformers read this in place of the two above.
    "rope_parameters": newer,
  }
  window = max(config.windows, default=0) or None
  if name == "Phi3ForCausalLM":
    share = rotary_size / config.head_size
    document["partial_rotary_factor"] = newer["partial_rotary_factor"] = share
    document["original_max_position_embeddings"] = max_length
    document["sliding_window"] = window
  elif window:
    kinds = [_SLIDING if size else _FULL for size in config.windows]
    document |= {"use_sliding_window": True, "sliding_window": window}
    document["layer_types"] = kinds
  return document


def _family_with_parts(config: DecoderConfig) -> str:
  sizes = set(config.windows)
  parts = {
    "Qwen2ForCausalLM": config.qkv_bias,
    "Qwen3ForCausalLM": config.qk_norm,
    "Phi3ForCausalLM": 0 < config.rotary_size < config.head_size,
  }
  # Llama has no windows; Phi-3 has the same one in all layers.
  plain = "Phi3ForCausalLM" if any(sizes) else "LlamaForCausalLM"
  name, *others = [name for name, has in parts.items() if has] or [plain]
  is_possible = not others and len(sizes - {0}) <= 1
  if name == "Phi3ForCausalLM":
    fits = config.head_size * config.num_heads == config.width
    is_possible = is_possible and len(sizes) <= 1 and fits
  if not is_possible:
    raise ValueError(
      "no published family has the parts of this decoder together: qkv_bias="
      f"{config.qkv_bias}, qk_norm={config.qk_norm}, rotary_size="
      f"{config.rotary_size}, windows={config.windows}"
    )
  return name


def _number(document: Document, where: str, key: str) -> float:
  value = document.get(key)
  if isinstance(value, bool) or not isinstance(value, int | float):
    raise ValueError(f"{where}: {key!r} must be a number, not {value!r}")
  return float(value)


def _size(
  document: Document, where: str, key: str, default: int | None = None
) -> int:
  if default is not None and document.get(key) is None:
    return default
  value = _number(document, where, key)
  if value < 1 or value != int(value):
    raise ValueError(f"{where}: {key!r} must be a size, not {value:g}")
  return int(value)


def rope_factors(
  rope: Document, rotary_size: int, where: str, max_length: int | None = None
) -> tuple[tuple[float, ...], float]:
  """Turns a kind of rope scaling into what each frequency is divided by.

  With frequencies fᵢ = theta^(−2i / R), and C the length of the first training:

    linear     factor
    llama3     1 where the wavelength 2π / fᵢ is below C / high, factor where it
               is above C / low, between them 1 / ((1 − s) / factor + s) with
               s = (C fᵢ / 2π − low) / (high − low)
    yarn       1 / ((1 − r) + r / factor), r a ramp over i between the indices
               that turn `beta_fast` and `beta_slow` times in C positions
    longrope   the listed factors: short ones up to C positions, then long ones

  Returns R / 2 factors or none, and what multiplies sines and cosines.

  arXiv 2407.21783 (Llama 3), 2309.00071 (YaRN), 2402.13753 (LongRoPE).
  """
  kind = rope["rope_type"]
  if kind not in _ROPES:
    raise ValueError(
      f"{where}: rope scaling {kind!r} is not supported; there are "
      f"{', '.join(_ROPES)}"
    )
  factors, scale = _ROPES[kind](
    {**rope, "max_length": max_length},
    f"{where}, rope scaling {kind!r}",
    rotary_size,
  )
  return tuple(map(float, factors)), float(scale)


def _linear(rope: Document, where: str, rotary_size: int):
  return [_number(rope, where, "factor")] * (rotary_size // 2), 1.0


def _llama3(rope: Document, where: str, rotary_size: int):
  number = functools.partial(_number, rope, where)
  length = number("original_max_position_embeddings")
  theta, factor = number("rope_theta"), number("factor")
  low, high = number("low_freq_factor"), number("high_freq_factor")
  turns = [
    length * theta ** (-2 * i / rotary_size) / (2 * math.pi)
    for i in range(rotary_size // 2)
  ]
  shares = np.clip([(turn - low) / (high - low) for turn in turns], 0.0, 1.0)
  return [1 / ((1 - s) / factor + s) for s in shares], 1.0


def _yarn(rope: Document, where: str, rotary_size: int):
  number = functools.partial(_number, rope, where)
  length = number("original_max_position_embeddings")
  theta, factor = number("rope_theta"), number("factor")

  def index(rotations: float) -> float:
    turned = math.log(length / (rotations * 2 * math.pi))
    return rotary_size * turned / (2 * math.log(theta))

  def scaled(multiplier: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * multiplier * math.log(factor) + 1.0

  first = index(rope.get("beta_fast") or 32)
  last = index(rope.get("beta_slow") or 1)
  if rope.get("truncate", True):
    first, last = math.floor(first), math.ceil(last)
  first, last = max(first, 0), min(last, rotary_size - 1)
  if first == last:
    last += 0.001
  ramps = [(i - first) / (last - first) for i in range(rotary_size // 2)]
  scale = rope.get("attention_factor")
  if scale is None:
    one, every = rope.get("mscale"), rope.get("mscale_all_dim")
    scale = scaled(one) / scaled(every) if one and every else scaled(1.0)
  ramps = np.clip(ramps, 0.0, 1.0)
  return [1 / ((1 - r) + r / factor) for r in ramps], scale


def _longrope(rope: Document, where: str, rotary_size: int):
  number = functools.partial(_number, rope, where)
  length = number("original_max_position_embeddings")
  number("rope_theta")
  published = rope.get("max_position_embeddings") or length
  longest = rope["max_length"] or published
  key = "long_factor" if longest > length else "short_factor"
  factors = rope.get(key)
  if not isinstance(factors, list) or len(factors) != rotary_size // 2:
    raise ValueError(
      f"{where}: {key!r} must be a list of {rotary_size // 2} numbers"
    )
  scale = rope.get("attention_factor")
  if scale is None:
    extension = rope.get("factor")
    if extension is None:
      extension = published / length
    growth = math.log(max(extension, 1)) / math.log(length)
    scale = math.sqrt(1 + growth)
  return factors, scale


_ROPES = {
  "default": lambda rope, where, rotary_size: ((), 1.0),
  "linear": _linear,
  "llama3": _llama3,
  "yarn": _yarn,
  "longrope": _longrope,
}


def _rope(document: Document, where: str) -> dict[str, Any]:
  """Brings the keys about positions into one place."""
  older, newer = document.get("rope_scaling"), document.get("rope_parameters")
  rope = {**(older or {}), **(newer or {})}
  if any(isinstance(value, Mapping) for value in rope.values()):
    raise ValueError(
      f"{where}: rope parameters that differ from layer to layer are not "
      "supported"
    )
  defaults = {"rope_theta": 10_000.0, "partial_rotary_factor": 1.0}
  for key in (*defaults, "max_position_embeddings"):
    rope.setdefault(key, document.get(key, defaults.get(key)))
  kind = rope.get("rope_type") or rope.pop("type", "default")
  # Phi-3 called LongRoPE "su" and "yarn" before it had its name.
  is_phi3 = document.get("model_type") == "phi3"
  rope["rope_type"] = "longrope" if is_phi3 and kind in ("su", "yarn") else kind
  # In the document itself it has precedence, as there.
  first = "original_max_position_embeddings"
  rope.setdefault(first, rope["max_position_embeddings"])
  rope[first] = document.get(first) or rope[first]
  return rope


def _windows(document: Document, family: Family, num_layers: int, where: str):
  """The sliding window of each layer; empty where no layer has one."""
  if family.windows is None:
    return ()
  is_on, first = family.windows
  first = document.get("max_window_layers", first)
  kinds = [_SLIDING if i >= first else _FULL for i in range(num_layers)]
  kinds = document.get("layer_types") or kinds
  if not set(kinds) <= {_SLIDING, _FULL} or len(kinds) != num_layers:
    raise ValueError(
      f"{where}: 'layer_types' must say full_attention or sliding_attention "
      f"for each of {num_layers} layers"
    )
  window = document.get("sliding_window")
  is_on = document.get("use_sliding_window", is_on) and window
  if not is_on or _SLIDING not in kinds:
    return ()
  return tuple(window if kind == _SLIDING else 0 for kind in kinds)
