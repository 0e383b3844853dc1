# SPDX-License-Identifier: Apache-2.0
"""A published `config.json` as a decoder's sizes, and back.

Keys are those of the transformers library, in the form of its older versions
(`rope_theta`, `rope_scaling`) and of its newer ones (`rope_parameters`).
"""

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any

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


def _windows_by_layer(document: Document, num_layers: int):
  first = document.get("max_window_layers", 28)
  kinds = [_SLIDING if i >= first else _FULL for i in range(num_layers)]
  is_on = document.get("use_sliding_window")
  window = document.get("sliding_window") if is_on else None
  return window, document.get("layer_types") or kinds


def _window_in_all(document: Document, num_layers: int):
  return document.get("sliding_window"), [_SLIDING] * num_layers


@dataclasses.dataclass(frozen=True)
class Family:
  """What sets one architecture's config and tensors apart from another's."""

  model_type: str
  qkv_bias: bool = False
  qk_norm: bool = False
  fused: bool = False  # queries, keys and values in one tensor; gate and up too
  eps: float = 1e-6  # where the document does not say
  head_size: int = 0  # where the document does not say; 0: width / heads
  refused: tuple[str, ...] = ()  # keys that must be absent or false
  # (document, layers) -> window or None, the kind of each layer
  windows: Callable[[Document, int], tuple[int | None, list]] = (
    lambda document, num_layers: (None, [])
  )


FAMILIES = {
  "Qwen2ForCausalLM": Family("qwen2", qkv_bias=True, windows=_windows_by_layer),
  "Qwen3ForCausalLM": Family(
    "qwen3",
    qk_norm=True,
    head_size=128,
    refused=("attention_bias",),
    windows=_windows_by_layer,
  ),
  # SmolLM and SmolLM2 too.
  "LlamaForCausalLM": Family("llama", refused=("attention_bias", "mlp_bias")),
  "Phi3ForCausalLM": Family(
    "phi3",
    fused=True,
    eps=1e-5,
    refused=("attention_bias",),
    windows=_window_in_all,
  ),
}


def find_family(document: Document, where: str) -> Family:
  """Finds the family of a document; `where` is its path, for messages."""
  names = document.get("architectures") or []
  if not (isinstance(names, list) and names and isinstance(names[0], str)):
    raise ValueError(f"{where}: 'architectures' names no architecture")
  if names[0] not in FAMILIES:
    close = difflib.get_close_matches(names[0], FAMILIES, n=1, cutoff=0.0)[0]
    raise ValueError(
      f"{where}: unknown architecture {names[0]!r}: the nearest is {close!r}; "
      f"there are {', '.join(FAMILIES)}"
    )
  return FAMILIES[names[0]]


def read_config(
  document: Document, *, where: str, max_length: int | None = None
) -> DecoderConfig:
  """Reads the sizes of a published model: a decoder, unrolled, in float32.

  Only LongRoPE reads `max_length`, the longest sequence that the model will
  see, by default the published maximum: it chooses a set of frequencies.
  """
  family = find_family(document, where)
  get = _Reader(document, where)
  for key in family.refused:
    if document.get(key):
      raise ValueError(
        f"{where}: {key!r} is {document[key]!r}, which is not supported for "
        f"{family.model_type}"
      )
  if document.get("hidden_act", "silu") not in ("silu", "swish"):
    raise ValueError(
      f"{where}: 'hidden_act' is {document['hidden_act']!r}; there is only silu"
    )
  if document.get("quantization_config"):
    raise ValueError(
      f"{where}: 'quantization_config' is set; only weights in float32, "
      "bfloat16 or float16 can be trained"
    )

  num_heads = get.size("num_attention_heads")
  width = get.size("hidden_size")
  get.defaults = {
    "num_key_value_heads": num_heads,
    "head_dim": family.head_size or width // num_heads,
  }
  sizes = {ours: get.size(theirs) for theirs, ours in _SIZES.items()}
  head_size, num_layers = sizes["head_size"], sizes["num_layers"]
  rope = _rope(document, where)
  # Rounded down, as there.
  rotary_size = int(head_size * (rope.get("partial_rotary_factor") or 1.0))
  factors, scale = rope_factors(rope, rotary_size, where, max_length)
  windows = _windows(document, family, num_layers, where)
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
  rope: dict[str, Any] = {"rope_type": "default"}
  max_length = 32_768  # not a property of the decoder; readers want a number
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
    "rope_scaling": None if rope["rope_type"] == "default" else rope,
    # Newer versions of transformers read this in place of the two above.
    "rope_parameters": {**rope, "rope_theta": config.rope_theta},
  }
  has_windows = any(config.windows)
  if name == "Phi3ForCausalLM":
    share = rotary_size / config.head_size
    document["partial_rotary_factor"] = share
    document["rope_parameters"]["partial_rotary_factor"] = share
    document["original_max_position_embeddings"] = max_length
    document["sliding_window"] = config.windows[0] if has_windows else None
  elif has_windows:
    document["use_sliding_window"] = True
    document["sliding_window"] = max(config.windows)
    document["layer_types"] = [
      _SLIDING if window else _FULL for window in config.windows
    ]
  return document


def _family_with_parts(config: DecoderConfig) -> str:
  is_partial = 0 < config.rotary_size < config.head_size
  # Llama has no windows; Phi-3 has the same one in all layers.
  plain = "Phi3ForCausalLM" if any(config.windows) else "LlamaForCausalLM"
  name = {
    (True, False, False): "Qwen2ForCausalLM",
    (False, True, False): "Qwen3ForCausalLM",
    (False, False, True): "Phi3ForCausalLM",
    (False, False, False): plain,
  }.get((config.qkv_bias, config.qk_norm, is_partial))
  sizes = set(config.windows)
  is_possible = name is not None and len(sizes - {0}) <= 1
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


class _Reader:
  """Reads numbers of a document, and names the one that is not there."""

  def __init__(self, document: Document, where: str):
    self.get, self.where = document.get, where
    self.defaults: dict[str, int] = {}

  def number(self, key: str) -> float:
    value = self.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
      raise ValueError(f"{self.where}: {key!r} must be a number, not {value!r}")
    return float(value)

  def size(self, key: str) -> int:
    if self.get(key) is None and key in self.defaults:
      return self.defaults[key]
    value = self.number(key)
    if value < 1 or value != int(value):
      raise ValueError(f"{self.where}: {key!r} must be a size, not {value:g}")
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

  References:
    YaRN, https://arxiv.org/abs/2309.00071
    LongRoPE, https://arxiv.org/abs/2402.13753
    Llama 3, https://arxiv.org/abs/2407.21783
  """
  kind = rope["rope_type"]
  if kind not in _ROPES:
    raise ValueError(
      f"{where}: rope scaling {kind!r} is not supported; there are default, "
      "linear, llama3, yarn and longrope"
    )
  rope = {**rope, "max_length": max_length}
  reader = _Reader(rope, f"{where}, rope scaling {kind!r}")
  return _ROPES[kind](reader, rotary_size)


def _llama3(get: _Reader, rotary_size: int):
  length = get.number("original_max_position_embeddings")
  theta, factor = get.number("rope_theta"), get.number("factor")
  low, high = get.number("low_freq_factor"), get.number("high_freq_factor")
  turns = [
    length * theta ** (-2 * i / rotary_size) / (2 * math.pi)
    for i in range(rotary_size // 2)
  ]
  shares = [min(max((turn - low) / (high - low), 0.0), 1.0) for turn in turns]
  return tuple(1 / ((1 - s) / factor + s) for s in shares), 1.0


def _yarn(get: _Reader, rotary_size: int):
  length = get.number("original_max_position_embeddings")
  theta, factor = get.number("rope_theta"), get.number("factor")

  def index(rotations: float) -> float:
    turned = math.log(length / (rotations * 2 * math.pi))
    return rotary_size * turned / (2 * math.log(theta))

  def scaled(multiplier: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * multiplier * math.log(factor) + 1.0

  first = index(get.get("beta_fast") or 32)
  last = index(get.get("beta_slow") or 1)
  if get.get("truncate", True):
    first, last = math.floor(first), math.ceil(last)
  first, last = max(first, 0), min(last, rotary_size - 1)
  if first == last:
    last += 0.001
  ramps = [
    min(max((i - first) / (last - first), 0.0), 1.0)
    for i in range(rotary_size // 2)
  ]
  scale = get.get("attention_factor")
  if scale is None:
    one, every = get.get("mscale"), get.get("mscale_all_dim")
    scale = scaled(one) / scaled(every) if one and every else scaled(1.0)
  return tuple(1 / ((1 - r) + r / factor) for r in ramps), float(scale)


def _longrope(get: _Reader, rotary_size: int):
  length = get.number("original_max_position_embeddings")
  get.number("rope_theta")
  published = get.get("max_position_embeddings") or length
  longest = get.get("max_length") or published
  key = "long_factor" if longest > length else "short_factor"
  factors = get.get(key)
  if not isinstance(factors, list) or len(factors) != rotary_size // 2:
    raise ValueError(
      f"{get.where}: {key!r} must be a list of {rotary_size // 2} numbers"
    )
  scale = get.get("attention_factor")
  if scale is None:
    extension = get.get("factor")
    if extension is None:
      extension = published / length
    growth = math.log(max(extension, 1)) / math.log(length)
    scale = math.sqrt(1 + growth)
  return tuple(float(factor) for factor in factors), float(scale)


_ROPES = {
  "default": lambda get, size: ((), 1.0),
  "linear": lambda get, size: ((get.number("factor"),) * (size // 2), 1.0),
  "llama3": _llama3,
  "yarn": _yarn,
  "longrope": _longrope,
}


def _rope(document: Document, where: str) -> dict[str, Any]:
  """Brings the keys about positions into one place."""
  rope = {
    **(document.get("rope_scaling") or {}),
    **(document.get("rope_parameters") or {}),
  }
  if any(isinstance(value, Mapping) for value in rope.values()):
    raise ValueError(
      f"{where}: rope parameters that differ from layer to layer are not "
      "supported"
    )
  names = ("rope_theta", "partial_rotary_factor", "max_position_embeddings")
  for key, default in zip(names, (10_000.0, 1.0, None), strict=True):
    rope.setdefault(key, document.get(key, default))
  kind = rope.get("rope_type") or rope.pop("type", "default")
  rope["rope_type"] = kind
  # Phi-3 called LongRoPE "su" and "yarn" before it had its name.
  if document.get("model_type") == "phi3" and kind in ("su", "yarn"):
    rope["rope_type"] = "longrope"
  # In the document itself it has precedence, as there.
  first = "original_max_position_embeddings"
  if document.get(first) is not None:
    rope[first] = document[first]
  rope.setdefault(first, rope["max_position_embeddings"])
  return rope


def _windows(document: Document, family: Family, num_layers: int, where: str):
  """The sliding window of each layer; empty where no layer has one."""
  window, kinds = family.windows(document, num_layers)
  if not set(kinds) <= {_SLIDING, _FULL} or len(kinds) not in (0, num_layers):
    raise ValueError(
      f"{where}: 'layer_types' must say full_attention or sliding_attention "
      f"for each of {num_layers} layers"
    )
  if not window or _SLIDING not in kinds:
    return ()
  return tuple(window if kind == _SLIDING else 0 for kind in kinds)
