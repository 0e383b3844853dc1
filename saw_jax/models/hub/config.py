# SPDX-License-Identifier: Apache-2.0
"""A published `config.json` as a decoder's sizes, and back."""

import collections
import contextlib
import dataclasses
import math
import re
import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from saw_jax.models.config import DecoderConfig

Document = Mapping[str, Any]
_SIZES = {
  **dict(vocab_size="vocab_size", hidden_size="width", head_dim="head_size"),
  **dict(num_hidden_layers="num_layers", num_attention_heads="num_heads"),
  **dict(num_key_value_heads="num_kv_heads", intermediate_size="mlp_size"),
}
_SLIDING, _FULL = "sliding_attention", "full_attention"
_SWITCH, _INTERVAL = "use_sliding_window", "no_rope_layer_interval"
_LONGEST, _FIRST = (f"{x}max_position_embeddings" for x in ("", "original_"))

# What the value of a key may be; limits are those of a number.
Kind = collections.namedtuple("Kind", "words fits limits", defaults=[""])


def _number(low: float, high: float, types=(int, float), words="a number"):
  fits = lambda x: type(x) in types and low <= x <= high  # noqa: E731
  return Kind(words, fits, f" ({low:.15g} to {high:.15g})")


def _whole(low: int, high: int) -> Kind:
  return _number(low, high, (int,), "a size")


def _list(kind: Kind) -> Kind:
  fits = lambda x: isinstance(x, list) and all(map(kind.fits, x))  # noqa: E731
  return Kind(f"a list, each {kind.words}{kind.limits}", fits)


def _one_of(*known: str) -> Kind:
  return Kind(" or ".join(known), lambda x: isinstance(x, str) and x in known)


_FLAG = Kind("true or false", lambda x: isinstance(x, bool))
_OBJECT = Kind("an object", lambda x: isinstance(x, Mapping))
_FACTOR = _number(1e-6, 1e9)
_FACTORS = "factor low_freq_factor high_freq_factor attention_factor beta_fast "
_FACTORS += "beta_slow mscale mscale_all_dim"
_POSITIONS = {
  "rope_theta": _number(2, 1e30),
  "partial_rotary_factor": _number(1e-3, 1),
  **dict.fromkeys((_LONGEST, _FIRST), _whole(2, 10**9)),
}
# What is read. A field may be absent or null, unless it is needed.
_FIELDS = _POSITIONS | {
  **dict.fromkeys((*_SIZES, "sliding_window"), _whole(1, 10**8)),
  **dict.fromkeys(("num_hidden_layers", _INTERVAL), _whole(1, 10_000)),
  "rms_norm_eps": _number(1e-20, 1),
  "hidden_act": _one_of("silu", "swish"),
  **dict.fromkeys(("tie_word_embeddings", _SWITCH, "truncate"), _FLAG),
  **dict.fromkeys(("rope_scaling", "rope_parameters"), _OBJECT),
  "max_window_layers": _whole(0, 10_000),
  "layer_types": _list(_one_of(_FULL, _SLIDING)),
  "no_rope_layers": _list(_whole(0, 1)),
  **dict.fromkeys(_FACTORS.split(), _FACTOR),
  **dict.fromkeys(("short_factor", "long_factor"), _list(_FACTOR)),
}


def _checked(document: Document, where: str, *needed: str) -> dict[str, Any]:
  """The fields that are there and not null; the `needed` ones must be there."""
  found = {}
  for key, kind in _FIELDS.items():
    value = document.get(key)
    if value is not None or key in needed:
      if not kind.fits(value):
        said, is_number = reprlib.repr(value), type(value) in (int, float)
        words = kind.words if is_number or not kind.limits else "a number"
        said = f"must be {words}, not {said}{kind.limits}"
        raise ValueError(f"{where}: {key!r} {said}")
      found[key] = value
  return found


@dataclasses.dataclass(frozen=True)
class Family:
  """What sets one architecture's config and tensors apart from another's."""

  model_type: str
  # Switches of the decoder; `fused`: queries, keys and values are one tensor,
  # gate and up another; `partial`: less than a head may rotate; `unrotated`:
  # there may be layers that do not.
  parts: tuple[str, ...] = ()
  # What holds where the document says nothing, and whatever it says.
  default: Document = dataclasses.field(default_factory=dict)
  fixed: Document = dataclasses.field(default_factory=dict)
  # Keys that must be absent or false.
  refused: tuple[str, ...] = ("attention_bias", "mlp_bias")


_SWITCHES = ("qkv_bias", "qk_norm", "wide_qk_norm", "post_norm")
_DEFAULT = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False}
_DEFAULT |= {"rope_theta": 10_000.0, "partial_rotary_factor": 1.0}
_EPS, _WINDOW = {"rms_norm_eps": 1e-5}, {"sliding_window": 4096}
_LATE = {**_WINDOW, "max_window_layers": 28}
_NONE = {_SWITCH: False, "layer_types": None}
_ALL = {_SWITCH: True, "layer_types": None, "max_window_layers": 0}
_SMOLLM3 = {"rope_theta": 2e6, "tie_word_embeddings": True}
# A decoder is written as the first of them that has its parts. SmolLM and
# SmolLM2 are Llama.
FAMILIES = {
  "LlamaForCausalLM": Family("llama", fixed=_NONE),
  "Qwen2ForCausalLM": Family("qwen2", ("qkv_bias",), _LATE, refused=()),
  "Qwen3ForCausalLM": Family("qwen3", ("qk_norm",), {**_LATE, "head_dim": 128}),
  "Phi3ForCausalLM": Family(
    "phi3", ("fused", "partial"), _EPS, {**_ALL, "head_dim": None}
  ),
  "MistralForCausalLM": Family("mistral", default=_WINDOW, fixed=_ALL),
  "Olmo2ForCausalLM": Family(
    "olmo2", ("wide_qk_norm", "post_norm"), _EPS, _NONE
  ),
  "SmolLM3ForCausalLM": Family(
    "smollm3", ("unrotated",), _SMOLLM3, {"max_window_layers": None}
  ),
}
# What other architectures have, by their names and the keys of their configs.
_LACKING = {
  "experts": "moe|mixtral|experts|dbrx|deepseek|gptoss|jamba",
  "keys and values of low rank": "kv_lora_rank|deepseek",
  "recurrent layers": "mamba|rwkv|jamba|zamba|linear_|lfm|falconh1|qwen3next",
  "norms with 1 + scale": "gemma",
  "LayerNorm": "layer_norm|gpt(?!oss)|opt|bloom|falconfor|stable|cohere|phifor"
  "|nemotron|starcoder",
  "a squared ReLU": "nemotron|arcee",
  "rotations of neighbours": "glm|cohere|gptj|ernie",
  "scaled or capped logits": "_multiplier|logits?_|granite|cohere|gemma2",
  "rotations that differ by layer": "olmo3|gemma3|llama4|rope_local",
  "an encoder": "t5|bart|pegasus|marian|whisper|encoder",
  "images or sound": "vision|image|audio|whisper|vlfor"
  "|(?<!t5for)(?<!bartfor)conditional",
  "a head of the next token": r"maskedlm|bertfor|classif|(?<!head)model\b",
}


def find_family(document: Document, where: str) -> Family:
  """Finds the family of a document; `where` is its path, for messages."""
  found = document.get("architectures") or []
  if not (isinstance(found, list) and found and isinstance(found[0], str)):
    raise ValueError(f"{where}: 'architectures' names no architecture")
  if found[0] not in FAMILIES:
    keys = [key for key, value in document.items() if value]
    said = " ".join([found[0], *keys]).lower()
    lacking = [what for what, x in _LACKING.items() if re.search(x, said)]
    raise ValueError(
      f"{where}: architecture {found[0]!r} is not supported: it needs "
      f"{', '.join(lacking) or 'what is not known here'}; there are "
      f"{', '.join(FAMILIES)}"
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
  for key in (*family.refused, "quantization_config"):
    if document.get(key):
      said = f"{where}: {key!r} is {reprlib.repr(document[key])}"
      raise ValueError(f"{said}, not supported for {family.model_type}")
  needed = set(_SIZES) - {"num_key_value_heads", "head_dim"}
  given = _checked(document, where, *needed)
  width, num_heads = given["hidden_size"], given["num_attention_heads"]
  given = {**_DEFAULT, **family.default, **given, **family.fixed}
  given["num_key_value_heads"] = given.get("num_key_value_heads") or num_heads
  head_size = given.get("head_dim") or width / num_heads
  if head_size % 2:
    raise ValueError(f"{where}: 'head_dim' must be even, not {head_size:g}")
  given["head_dim"] = head_size = int(head_size)
  rope = _rope(document, given, where)
  # Rounded down, as in transformers.
  rotary_size = int(head_size * rope["partial_rotary_factor"])
  is_known = rotary_size and "partial" in family.parts
  if not (is_known or rotary_size == head_size):
    raise ValueError(
      f"{where}: 'partial_rotary_factor' would rotate {rotary_size} of "
      f"{head_size} entries, which is not supported for {family.model_type}"
    )
  factors, scale = rope_factors(rope, rotary_size, where, max_length)
  rotated = _rotated(given, family, where)
  try:
    return DecoderConfig(
      **{ours: given[key] for key, ours in _SIZES.items()},
      **{part: part in family.parts for part in _SWITCHES},
      rope_theta=float(rope["rope_theta"]),
      norm_eps=float(given["rms_norm_eps"]),
      tied_head=given["tie_word_embeddings"],
      rotary_size=0 if rotary_size == head_size else rotary_size,
      rope_factors=factors,
      rope_scale=scale,
      windows=_windows(document, given, rotated, where),
      rotated=rotated,
    )
  except ValueError as error:
    raise ValueError(f"{where}: {error}") from error


def write_config(config: DecoderConfig) -> dict[str, Any]:
  """Writes a decoder's sizes as a `config.json` that transformers reads.

  It is of the first family whose document is read as the same decoder.
  """
  rotary_size = config.rotary_size or config.head_size
  factors = config.rope_factors or (1.0,) * (rotary_size // 2)
  if config.rope_scale == 1.0:
    factors = config.rope_factors
  how = dict(scan_layers=False, remat="none", value_head=False)
  how |= dict(dtype="float32", param_dtype="float32", rope_factors=factors)
  how["rotary_size"] = rotary_size % config.head_size
  wanted = dataclasses.replace(config, **how)
  for name in FAMILIES:
    document = _document(wanted, name)
    with contextlib.suppress(ValueError):
      if read_config(document, where=name) == wanted:
        return document
  raise ValueError(
    f"no published family has the parts of this decoder together: {config}"
  )


def _document(config: DecoderConfig, name: str) -> dict[str, Any]:
  """The decoder as a document of one family, which may not have all of it.

  Scaled frequencies become `longrope` with two equal sets of factors: the kind
  that lists them one by one. The document has no token ids and no dtype.
  """
  family, rope = FAMILIES[name], None
  max_length = 32_768  # not a property of the decoder; readers want a number
  if config.rope_factors:
    factors = list(config.rope_factors)
    rope = dict(short_factor=factors, long_factor=factors, rope_type="longrope")
    rope |= {"attention_factor": config.rope_scale, "factor": 1.0}
    rope[_FIRST] = max_length
  newer = dict(rope or {"rope_type": "default"}, rope_theta=config.rope_theta)
  document = {
    **dict(architectures=[name], model_type=family.model_type),
    "hidden_act": "silu",
    **{theirs: getattr(config, ours) for theirs, ours in _SIZES.items()},
    _LONGEST: max_length,
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
  if "partial" in family.parts:
    share = (config.rotary_size or config.head_size) / config.head_size
    document["partial_rotary_factor"] = newer["partial_rotary_factor"] = share
    document |= {_FIRST: max_length, "sliding_window": window}
  if "unrotated" in family.parts:
    document["no_rope_layers"] = list(map(int, config.rotated))
  if window:
    kinds = [_SLIDING if size else _FULL for size in config.windows]
    said = {"sliding_window": window, _SWITCH: True, "layer_types": kinds}
    document |= {k: x for k, x in said.items() if k not in family.fixed}
  return document


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
  kind, said = rope["rope_type"], reprlib.repr(rope["rope_type"])
  if not isinstance(kind, str) or kind not in _ROPES:
    raise ValueError(
      f"{where}: rope scaling {said} is not supported; there are "
      f"{', '.join(_ROPES)}"
    )
  make, needed = _ROPES[kind]
  where = f"{where}, rope scaling {kind!r}"
  rope = _checked(rope, where, *needed)
  factors, scale = make(rope, where, rotary_size, max_length)
  return tuple(map(float, factors)), float(scale)


def _llama3(rope: Document, where: str, rotary_size: int, max_length):
  length, theta = rope[_FIRST], rope["rope_theta"]
  low, high = rope["low_freq_factor"], rope["high_freq_factor"]
  if low >= high:
    raise ValueError(f"{where}: low_freq_factor is not below high_freq_factor")
  powers = [-2 * i / rotary_size for i in range(rotary_size // 2)]
  turns = [length * theta**power / (2 * math.pi) for power in powers]
  shares = np.clip([(turn - low) / (high - low) for turn in turns], 0.0, 1.0)
  return [1 / ((1 - s) / rope["factor"] + s) for s in shares], 1.0


def _yarn(rope: Document, where: str, rotary_size: int, max_length):
  factor = rope["factor"]

  def index(rotations: float) -> float:
    turned = math.log(rope[_FIRST] / (rotations * 2 * math.pi))
    return rotary_size * turned / (2 * math.log(rope["rope_theta"]))

  def scaled(multiplier: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * multiplier * math.log(factor) + 1.0

  first = index(rope.get("beta_fast", 32))
  last = index(rope.get("beta_slow", 1))
  if rope.get("truncate", True):
    first, last = math.floor(first), math.ceil(last)
  first, last = max(first, 0), min(last, rotary_size - 1)
  if first == last:
    last += 0.001
  ramps = [(i - first) / (last - first) for i in range(rotary_size // 2)]
  one, every = rope.get("mscale"), rope.get("mscale_all_dim")
  scale = scaled(one) / scaled(every) if one and every else scaled(1.0)
  ramps = np.clip(ramps, 0.0, 1.0)
  factors = [1 / ((1 - r) + r / factor) for r in ramps]
  return factors, rope.get("attention_factor", scale)


def _longrope(rope: Document, where: str, rotary_size: int, max_length):
  length = rope[_FIRST]
  published = rope.get("max_position_embeddings", length)
  key = "long_factor" if (max_length or published) > length else "short_factor"
  factors = rope.get(key, ())
  if len(factors) != rotary_size // 2:
    raise ValueError(
      f"{where}: {key!r} must be a list of {rotary_size // 2} numbers"
    )
  extension = rope.get("factor", published / length)
  growth = math.log(max(extension, 1)) / math.log(length)
  return factors, rope.get("attention_factor", math.sqrt(1 + growth))


# What makes the factors, and the keys that it needs.
_ROPES = {
  "default": (lambda *_: ((), 1.0), ()),
  "linear": (lambda x, _, n, __: ([x["factor"]] * (n // 2), 1), ("factor",)),
  "llama3": (_llama3, ("rope_theta", _FIRST, *_FACTORS.split()[:3])),
  "yarn": (_yarn, ("rope_theta", _FIRST, "factor")),
  "longrope": (_longrope, (_FIRST,)),
}


def _rope(document: Document, given: Document, where: str) -> dict[str, Any]:
  """Brings the keys about positions into one place."""
  rope = {**given.get("rope_scaling", {}), **given.get("rope_parameters", {})}
  if any(isinstance(value, Mapping) for value in rope.values()):
    raise ValueError(
      f"{where}: rope parameters that differ from layer to layer are not "
      "supported"
    )
  outside = {key: given[key] for key in _POSITIONS if key in given}
  rope = {**outside, **{k: x for k, x in rope.items() if x is not None}}
  kind = rope.get("rope_type") or rope.get("type", "default")
  # Phi-3 called LongRoPE "su" and "yarn" before it had its name.
  is_phi3 = document.get("model_type") == "phi3"
  kind = "longrope" if is_phi3 and kind in ("su", "yarn") else kind
  # The document's own first length has precedence, as in transformers.
  lengths = (outside.get(_FIRST), rope.get(_FIRST), rope.get(_LONGEST))
  rope[_FIRST] = next((x for x in lengths if x is not None), None)
  return {**rope, **_checked(rope, where), "rope_type": kind}


def _rotated(given: Document, family: Family, where: str) -> tuple[bool, ...]:
  """Whether each layer rotates its queries and keys."""
  count = given["num_hidden_layers"]
  if "unrotated" not in family.parts:
    return (True,) * count
  every = given.get(_INTERVAL, 4)
  found = given.get("no_rope_layers", [i % every for i in range(1, count + 1)])
  if len(found) < count:
    raise ValueError(f"{where}: 'no_rope_layers' must have {count} entries")
  return tuple(map(bool, found[:count]))


def _windows(
  document: Document, given: Document, rotated: tuple[bool, ...], where: str
) -> tuple[int, ...]:
  """The sliding window of each layer; empty where no layer has one."""
  kinds, count = given.get("layer_types"), len(rotated)
  if kinds is not None and len(kinds) != count:
    raise ValueError(f"{where}: 'layer_types' must have {count} entries")
  window = document.get("sliding_window", given.get("sliding_window"))
  if not (given.get(_SWITCH) and window):
    if _SLIDING in (kinds or ()):
      raise ValueError(f"{where}: 'layer_types' slide, and no window is on")
    return ()
  # Where nothing says which layers have one, late ones or unrotated ones do.
  first = given.get("max_window_layers")
  full = rotated if first is None else [i < first for i in range(count)]
  kinds = kinds or [_FULL if is_full else _SLIDING for is_full in full]
  return tuple(window if kind == _SLIDING else 0 for kind in kinds)
