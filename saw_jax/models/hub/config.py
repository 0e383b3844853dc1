# SPDX-License-Identifier: Apache-2.0
"""A published `config.json` as a decoder's sizes, and back.

Keys are those of the transformers library, in the form of its older versions
(`rope_theta`, `rope_scaling`) and of its newer ones (`rope_parameters`).
"""

import dataclasses
import difflib
import math
from collections.abc import Mapping
from typing import Any

from saw_jax.models.config import DecoderConfig


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


FAMILIES = {
  "Qwen2ForCausalLM": Family("qwen2", qkv_bias=True),
  "Qwen3ForCausalLM": Family(
    "qwen3", qk_norm=True, head_size=128, refused=("attention_bias",)
  ),
  # SmolLM and SmolLM2 too.
  "LlamaForCausalLM": Family("llama", refused=("attention_bias", "mlp_bias")),
  "Phi3ForCausalLM": Family(
    "phi3", fused=True, eps=1e-5, refused=("attention_bias",)
  ),
}


def find_family(document: Mapping[str, Any], where: str) -> Family:
  """Finds the family that a document is of.

  Args:
    document: the content of a `config.json`.
    where: its path, for messages.

  Returns:
    The family.

  Raises:
    ValueError: no architecture, or one that is not known; the message has the
      nearest one.
  """
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
  document: Mapping[str, Any], *, where: str, max_length: int | None = None
) -> DecoderConfig:
  """Reads the sizes of a published model.

  Args:
    document: the content of a `config.json`.
    where: its path, for messages.
    max_length: the longest sequence that the model will see; the published
      maximum by default. LongRoPE alone reads it: up to the length that the
      model was first trained with it has one set of frequencies, and beyond it
      another.

  Returns:
    The decoder's config, unrolled, in float32.

  Raises:
    ValueError: an unknown architecture, a key that is missing or makes no
      sense, or one that asks for what the decoder cannot do.
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

  width = get.size("hidden_size")
  num_heads = get.size("num_attention_heads")
  num_layers = get.size("num_hidden_layers")
  head_size = family.head_size or width // num_heads
  if document.get("head_dim") is not None:
    head_size = get.size("head_dim")
  num_kv_heads = num_heads
  if document.get("num_key_value_heads") is not None:
    num_kv_heads = get.size("num_key_value_heads")
  rope = _rope(document, where)
  # Rounded down, as there.
  rotary_size = int(head_size * (rope.get("partial_rotary_factor") or 1.0))
  factors, scale = rope_factors(
    rope, rotary_size, where=where, max_length=max_length
  )
  try:
    return DecoderConfig(
      vocab_size=get.size("vocab_size"),
      width=width,
      num_layers=num_layers,
      num_heads=num_heads,
      num_kv_heads=num_kv_heads,
      head_size=head_size,
      mlp_size=get.size("intermediate_size"),
      rope_theta=float(rope["rope_theta"]),
      norm_eps=float(document.get("rms_norm_eps", family.eps)),
      tied_head=bool(document.get("tie_word_embeddings", False)),
      qkv_bias=family.qkv_bias,
      qk_norm=family.qk_norm,
      rotary_size=0 if rotary_size == head_size else rotary_size,
      rope_factors=factors,
      rope_scale=scale,
      windows=_windows(document, family, num_layers, where),
    )
  except (ValueError, TypeError) as error:
    raise ValueError(f"{where}: {error}") from error


def write_config(config: DecoderConfig) -> dict[str, Any]:
  """Writes a decoder's sizes as a `config.json` that transformers reads.

  The family is the one that has the decoder's parts. Scaled frequencies become
  `longrope` with two equal sets of factors: the kind that says them one by one.

  Args:
    config: the decoder.

  Returns:
    The document, without token ids and dtype.

  Raises:
    ValueError: no family has all of the decoder's parts.
  """
  rotary_size = config.rotary_size or config.head_size
  is_partial = rotary_size < config.head_size
  has_windows = any(config.windows)
  parts = (config.qkv_bias, config.qk_norm, is_partial)
  names = {
    (True, False, False): "Qwen2ForCausalLM",
    (False, True, False): "Qwen3ForCausalLM",
    (False, False, True): "Phi3ForCausalLM",
    (False, False, False): "LlamaForCausalLM",
  }
  if has_windows:
    # Llama has no windows; Phi-3 has the same one in all layers.
    names[(False, False, False)] = "Phi3ForCausalLM"
  name = names.get(parts)
  is_phi3 = name == "Phi3ForCausalLM"
  if (
    name is None
    or len(set(config.windows) - {0}) > 1
    or (is_phi3 and len(set(config.windows)) > 1)
    or (is_phi3 and config.head_size * config.num_heads != config.width)
  ):
    raise ValueError(
      "no published family has the parts of this decoder together: qkv_bias="
      f"{config.qkv_bias}, qk_norm={config.qk_norm}, rotary_size="
      f"{config.rotary_size}, windows={config.windows}"
    )
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
    "vocab_size": config.vocab_size,
    "hidden_size": config.width,
    "num_hidden_layers": config.num_layers,
    "num_attention_heads": config.num_heads,
    "num_key_value_heads": config.num_kv_heads,
    "head_dim": config.head_size,
    "intermediate_size": config.mlp_size,
    "max_position_embeddings": max_length,
    "rms_norm_eps": config.norm_eps,
    "tie_word_embeddings": config.tied_head,
    # The tokenizer's. Absent, they would be numbers of the family's own.
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "rope_theta": config.rope_theta,
    "rope_scaling": None if rope["rope_type"] == "default" else rope,
    # Newer versions of transformers read this in place of the two above.
    "rope_parameters": {**rope, "rope_theta": config.rope_theta},
  }
  if is_phi3:
    share = rotary_size / config.head_size
    document["partial_rotary_factor"] = share
    document["rope_parameters"]["partial_rotary_factor"] = share
    document["original_max_position_embeddings"] = max_length
    document["sliding_window"] = config.windows[0] if has_windows else None
  elif has_windows:
    document["use_sliding_window"] = True
    document["sliding_window"] = max(config.windows)
    document["layer_types"] = [
      "sliding_attention" if window else "full_attention"
      for window in config.windows
    ]
  return document


def rope_factors(
  rope: Mapping[str, Any],
  rotary_size: int,
  *,
  where: str,
  max_length: int | None = None,
) -> tuple[tuple[float, ...], float]:
  """Turns a kind of rope scaling into what each frequency is divided by.

  With frequencies fᵢ = theta^(−2i / R):

    linear     factor
    llama3     1 where the wavelength 2π / fᵢ is below C / high, factor where it
               is above C / low, between them 1 / ((1 − s) / factor + s) with
               s = (C fᵢ / 2π − low) / (high − low)
    yarn       1 / ((1 − r) + r / factor), r a ramp over i between the indices
               that turn `beta_fast` and `beta_slow` times in C positions
    longrope   the listed factors: short ones up to C positions, then long ones

  where C is the length of the first training.

  Args:
    rope: the kind and its numbers, with `rope_theta` and, where a kind needs
      it, `original_max_position_embeddings`.
    rotary_size: entries of a head that rotate, R.
    where: the document's path, for messages.
    max_length: the longest sequence that the model will see.

  Returns:
    The factors, R / 2 of them or none, and what multiplies sines and cosines.

  Raises:
    ValueError: an unknown kind, or a number that is missing.

  References:
    Peng et al., "YaRN". https://arxiv.org/abs/2309.00071
    Ding et al., "LongRoPE". https://arxiv.org/abs/2402.13753
    Grattafiori et al., "The Llama 3 Herd of Models".
    https://arxiv.org/abs/2407.21783
  """
  kind = rope["rope_type"]
  number = _Reader(rope, f"{where}, rope scaling {kind!r}").number
  if kind == "default":
    return (), 1.0
  if kind == "linear":
    return (number("factor"),) * (rotary_size // 2), 1.0
  if kind not in ("llama3", "yarn", "longrope"):
    raise ValueError(
      f"{where}: rope scaling {kind!r} is not supported; there are default, "
      "linear, llama3, yarn and longrope"
    )

  length = number("original_max_position_embeddings")
  theta = number("rope_theta")
  if kind == "longrope":
    longest = max_length or rope.get("max_position_embeddings") or length
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
        extension = (rope.get("max_position_embeddings") or length) / length
      scale = 1.0
      if extension > 1:
        scale = math.sqrt(1 + math.log(extension) / math.log(length))
    return tuple(float(factor) for factor in factors), float(scale)

  factor = number("factor")
  turns = [
    length * theta ** (-2 * i / rotary_size) / (2 * math.pi)
    for i in range(rotary_size // 2)
  ]
  if kind == "llama3":
    low, high = number("low_freq_factor"), number("high_freq_factor")
    shares = [min(max((turn - low) / (high - low), 0.0), 1.0) for turn in turns]
    return tuple(1 / ((1 - s) / factor + s) for s in shares), 1.0

  def index(rotations: float) -> float:
    return (
      rotary_size
      * math.log(length / (rotations * 2 * math.pi))
      / (2 * math.log(theta))
    )

  first = index(rope.get("beta_fast") or 32)
  last = index(rope.get("beta_slow") or 1)
  if rope.get("truncate", True):
    first, last = math.floor(first), math.ceil(last)
  first, last = max(first, 0), min(last, rotary_size - 1)
  if first == last:
    last += 0.001
  ramps = [
    min(max((i - first) / (last - first), 0.0), 1.0)
    for i in range(rotary_size // 2)
  ]
  scale = rope.get("attention_factor")
  if scale is None:
    one, every = rope.get("mscale"), rope.get("mscale_all_dim")
    scale = _yarn_scale(factor)
    if one and every:
      scale = _yarn_scale(factor, one) / _yarn_scale(factor, every)
  return tuple(1 / ((1 - r) + r / factor) for r in ramps), float(scale)


def _yarn_scale(factor: float, multiplier: float = 1.0) -> float:
  return 1.0 if factor <= 1 else 0.1 * multiplier * math.log(factor) + 1.0


def _rope(document: Mapping[str, Any], where: str) -> dict[str, Any]:
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
  for key, default in (
    ("rope_theta", 10_000.0),
    ("partial_rotary_factor", 1.0),
    ("max_position_embeddings", None),
  ):
    rope.setdefault(key, document.get(key, default))
  rope["rope_type"] = rope.get("rope_type") or rope.pop("type", "default")
  # Phi-3 called LongRoPE "su" and "yarn" before it had its name.
  if document.get("model_type") == "phi3" and rope["rope_type"] in (
    "su",
    "yarn",
  ):
    rope["rope_type"] = "longrope"
  # In the document itself it has precedence, as there.
  length = document.get("original_max_position_embeddings")
  if length is not None:
    rope["original_max_position_embeddings"] = length
  rope.setdefault(
    "original_max_position_embeddings", rope["max_position_embeddings"]
  )
  return rope


def _windows(
  document: Mapping[str, Any], family: Family, num_layers: int, where: str
) -> tuple[int, ...]:
  """The sliding window of each layer; empty where no layer has one."""
  window = document.get("sliding_window")
  if family.model_type in ("qwen2", "qwen3"):
    if not document.get("use_sliding_window"):
      window = None
    kinds = document.get("layer_types") or [
      "sliding_attention"
      if i >= document.get("max_window_layers", 28)
      else "full_attention"
      for i in range(num_layers)
    ]
  elif family.model_type == "phi3":
    kinds = ["sliding_attention"] * num_layers
  else:
    window, kinds = None, []
  if not set(kinds) <= {"sliding_attention", "full_attention"} or (
    kinds and len(kinds) != num_layers
  ):
    raise ValueError(
      f"{where}: 'layer_types' must say full_attention or sliding_attention "
      f"for each of {num_layers} layers"
    )
  if not window or "sliding_attention" not in kinds:
    return ()
  return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)


class _Reader:
  """Reads numbers of a document, and names the one that is not there."""

  def __init__(self, document: Mapping[str, Any], where: str):
    self._document, self._where = document, where

  def number(self, key: str) -> float:
    value = self._document.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
      raise ValueError(
        f"{self._where}: {key!r} must be a number, not {value!r}"
      )
    return float(value)

  def size(self, key: str) -> int:
    value = self.number(key)
    if value < 1 or value != int(value):
      raise ValueError(f"{self._where}: {key!r} must be a size, not {value:g}")
    return int(value)
