# SPDX-License-Identifier: Apache-2.0
"""GGUF files (extra `gguf`), read under the names of a Hugging Face one."""

import contextlib
import functools
import os
import pathlib
from typing import Any

import numpy as np

from saw_jax import naming
from saw_jax.models.hub import files as hub_files
from saw_jax.models.hub.config import FAMILIES

_ARCHITECTURES = ("llama", "qwen2", "qwen3", "phi3")
# Name of a tensor here -> name there. Those of layers have `blk.{}.` and
# `model.layers.{}.` before them.
_GLOBAL = {
  "token_embd.weight": "model.embed_tokens.weight",
  "output_norm.weight": "model.norm.weight",
  "output.weight": "lm_head.weight",
}
_LAYER = {
  **{f"attn_{x}": f"self_attn.{x}_proj" for x in ("q", "k", "v", "qkv")},
  **{f"attn_{x}_norm": f"self_attn.{x}_norm" for x in "qk"},
  **{f"ffn_{x}": f"mlp.{x}_proj" for x in ("gate", "up", "down")},
  **dict(attn_norm="input_layernorm", ffn_norm="post_attention_layernorm"),
  "attn_output": "self_attn.o_proj",
}
# Factors of the frequencies: not weights, but read into the config.
_FREQUENCIES = tuple(
  f"rope_{name}.weight" for name in ("freqs", "factors_long", "factors_short")
)
# Key of a config.json -> key here, after the name of the architecture.
_KEYS = {
  "hidden_size": "embedding_length",
  "num_hidden_layers": "block_count",
  "num_attention_heads": "attention.head_count",
  "num_key_value_heads": "attention.head_count_kv",
  "head_dim": "attention.key_length",
  "intermediate_size": "feed_forward_length",
  "rms_norm_eps": "attention.layer_norm_rms_epsilon",
  "max_position_embeddings": "context_length",
  "rope_theta": "rope.freq_base",
}


def open_reader(path: pathlib.Path) -> Any:
  if not path.is_file():
    raise FileNotFoundError(f"{path}: there is no such file")
  with naming.needs_extra("gguf", "a GGUF file needs the gguf library"):
    import gguf
  try:
    return gguf.GGUFReader(str(path))
  except Exception as error:  # The reader raises whatever it stumbles over.
    said = hub_files.kind_of(path)
    if not said or "GGUF" in said:
      said = "truncated or damaged, or not a GGUF file"
    raise ValueError(f"{path}: {said}") from error


class GGUFFile:
  """One file, whose metadata has been read and whose tensors are mapped."""

  def __init__(self, path: str | os.PathLike):
    self._path = path = pathlib.Path(path)
    reader = open_reader(path)
    self._fields = reader.fields
    self._tensors = {tensor.name: tensor for tensor in reader.tensors}
    for tensor in reader.tensors:
      self._check(tensor)
    self._kind = self._value("general.architecture")
    # An architecture has the name that a config.json has for its model type.
    families = {family.model_type: name for name, family in FAMILIES.items()}
    families = {kind: families[kind] for kind in _ARCHITECTURES}
    if self._kind not in families:
      raise ValueError(
        f"{path}: unknown architecture {self._kind!r}; there are "
        f"{', '.join(families)}"
      )
    self._weights = {
      self._published(name): tensor
      for name, tensor in self._tensors.items()
      if name not in _FREQUENCIES
    }
    self.shapes = {
      name: tuple(map(int, reversed(tensor.shape)))
      for name, tensor in self._weights.items()
    }
    self.document = self._document(families[self._kind])
    # The next reads are often of other rows of the same tensor.
    self.read = functools.lru_cache(maxsize=1)(self._read)

  def _value(self, key: str, default: Any = None) -> Any:
    field = self._fields.get(key)
    return default if field is None else field.contents()

  def _of(self, key: str, default: Any = None) -> Any:
    return self._value(f"{self._kind}.{key}", default)

  def _check(self, tensor: Any) -> None:
    size = self._path.stat().st_size
    end = int(tensor.data_offset) + int(tensor.n_bytes)
    if end > size:
      raise ValueError(
        f"{self._path}: truncated: tensor {tensor.name!r} ends at byte {end}, "
        f"the file at {size}"
      )
    try:
      _dequantize(tensor, 1)
    except (NotImplementedError, KeyError, ValueError) as error:
      raise ValueError(
        f"{self._path}: tensor {tensor.name!r} is quantised as "
        f"{tensor.tensor_type.name}, which cannot be read; F32, F16, BF16, "
        "Q8_0, Q4_0 to Q6_K and the like can"
      ) from error

  def _published(self, name: str) -> str:
    """The name of a tensor in a Hugging Face directory."""
    parts = name.split(".")
    if len(parts) != 4 or parts[0] != "blk" or parts[2] not in _LAYER:
      return _GLOBAL.get(name, name)
    theirs = _LAYER[parts[2]]
    if self._kind == "phi3" and parts[2] == "ffn_up":
      theirs = "mlp.gate_up_proj"
    return f"model.layers.{parts[1]}.{theirs}.{parts[3]}"

  def _document(self, architecture: str) -> dict[str, Any]:
    embedding = self._tensors.get("token_embd.weight")
    document = {
      "architectures": [architecture],
      "model_type": self._kind,
      "vocab_size": None if embedding is None else int(embedding.shape[-1]),
      **{theirs: self._of(key) for theirs, key in _KEYS.items()},
      "tie_word_embeddings": "output.weight" not in self._tensors,
      "bos_token_id": self._value("tokenizer.ggml.bos_token_id"),
      "eos_token_id": self._value("tokenizer.ggml.eos_token_id"),
      "rope_scaling": self._rope_scaling(),
    }
    document = {key: x for key, x in document.items() if x is not None}
    # Impossible sizes are refused where the config is read.
    with contextlib.suppress(KeyError, TypeError, ZeroDivisionError):
      width, heads = document["hidden_size"], document["num_attention_heads"]
      head_size = document.setdefault("head_dim", width // heads)
      rotary_size = self._of("rope.dimension_count", head_size)
      document["partial_rotary_factor"] = rotary_size / head_size
    if self._kind == "phi3":  # 0: none
      document["sliding_window"] = self._of("attention.sliding_window") or None
    return document

  def _rope_scaling(self) -> dict[str, Any] | None:
    length = self._of("context_length")
    length = self._of("rope.scaling.original_context_length", length)
    scaling = {"original_max_position_embeddings": length}
    once, long, short = map(self._floats, _FREQUENCIES)
    if once or short or long:
      # One set is what Llama 3 does to its frequencies; two are LongRoPE.
      scale = 1.0 if once else self._of("rope.scaling.attn_factor")
      if scale is not None:
        scaling["attention_factor"] = scale
      sets = {"short_factor": short or once, "long_factor": long or once}
      return {"rope_type": "longrope", **sets, **scaling}
    kind = self._of("rope.scaling.type", "none")
    factor = self._of("rope.scaling.factor")
    rope = {"rope_type": kind, "factor": factor, **scaling}
    return None if kind == "none" else rope

  def _floats(self, name: str) -> list[float] | None:
    if name not in self._tensors:
      return None
    return _dequantize(self._tensors[name]).ravel().astype(float).tolist()

  def _read(self, name: str) -> np.ndarray:
    values = _dequantize(self._weights[name]).reshape(self.shapes[name])
    is_key = name.endswith("k_proj.weight")
    if self._kind != "llama" or not (is_key or name.endswith("q_proj.weight")):
      return values
    # Rows of a head are stored for rotating neighbours; here, halves rotate.
    heads = self.document["num_attention_heads"]
    if is_key:
      heads = self.document.get("num_key_value_heads", heads)
    pairs = values.reshape(heads, -1, 2, values.shape[-1])
    return pairs.swapaxes(1, 2).reshape(values.shape)


def _dequantize(tensor: Any, num_rows: int | None = None) -> np.ndarray:
  import gguf

  return gguf.quants.dequantize(tensor.data[:num_rows], tensor.tensor_type)
