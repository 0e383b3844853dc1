# SPDX-License-Identifier: Apache-2.0
"""GGUF files: sizes from their metadata, tensors dequantised one at a time.

Needs the `gguf` library, which is in the extra `gguf`. A tensor is read under
the name that it has in a Hugging Face directory, so that one table of names
serves both.
"""

import functools
import os
import pathlib
from typing import Any

import numpy as np

# general.architecture -> architecture of a config.json
ARCHITECTURES = {
  "llama": "LlamaForCausalLM",
  "qwen2": "Qwen2ForCausalLM",
  "qwen3": "Qwen3ForCausalLM",
  "phi3": "Phi3ForCausalLM",
}
# Name of a tensor here -> name there. Those of layers have `blk.{}.` and
# `model.layers.{}.` before them.
_GLOBAL = {
  "token_embd.weight": "model.embed_tokens.weight",
  "output_norm.weight": "model.norm.weight",
  "output.weight": "lm_head.weight",
}
_LAYER = {
  "attn_norm": "input_layernorm",
  "attn_q": "self_attn.q_proj",
  "attn_k": "self_attn.k_proj",
  "attn_v": "self_attn.v_proj",
  "attn_qkv": "self_attn.qkv_proj",
  "attn_output": "self_attn.o_proj",
  "attn_q_norm": "self_attn.q_norm",
  "attn_k_norm": "self_attn.k_norm",
  "ffn_norm": "post_attention_layernorm",
  "ffn_gate": "mlp.gate_proj",
  "ffn_up": "mlp.up_proj",
  "ffn_down": "mlp.down_proj",
}
# Factors of the frequencies: not weights, but read into the config.
_FREQUENCIES = (
  "rope_freqs.weight",
  "rope_factors_long.weight",
  "rope_factors_short.weight",
)


class GGUFFile:
  """One file, whose metadata has been read and whose tensors are mapped.

  Attributes:
    document: what a `config.json` would say of it.
    shapes: of each tensor, under its Hugging Face name.
  """

  def __init__(self, path: str | os.PathLike):
    """Reads the metadata, and checks that each tensor can be dequantised.

    Args:
      path: the file.

    Raises:
      ImportError: the `gguf` library is missing.
      FileNotFoundError: there is no such file.
      ValueError: it is damaged, of an unknown architecture, or has a tensor of
        a quantisation that cannot be read.
    """
    self.path = path = pathlib.Path(path)
    if not path.is_file():
      raise FileNotFoundError(f"{path}: there is no such file")
    self._gguf = gguf = _library()
    try:
      reader = gguf.GGUFReader(str(path))
    except Exception as error:  # The reader raises whatever it stumbles over.
      raise ValueError(
        f"{path}: truncated or damaged, or not a GGUF file"
      ) from error
    self._fields = reader.fields
    self._tensors = {tensor.name: tensor for tensor in reader.tensors}
    self._check()
    architecture = self._value("general.architecture")
    if architecture not in ARCHITECTURES:
      raise ValueError(
        f"{path}: unknown architecture {architecture!r}; there are "
        f"{', '.join(ARCHITECTURES)}"
      )
    self._is_fused = architecture == "phi3"
    self._is_permuted = architecture == "llama"
    self._names = {
      self._published(name): name
      for name in self._tensors
      if name not in _FREQUENCIES
    }
    self.shapes = {
      ours: tuple(int(size) for size in reversed(self._tensors[name].shape))
      for ours, name in self._names.items()
    }
    self.document = self._document(architecture)
    # The next reads are often of other rows of the same tensor.
    self.read = functools.lru_cache(maxsize=1)(self._read)

  def _value(self, key: str, default: Any = None) -> Any:
    field = self._fields.get(key)
    return default if field is None else field.contents()

  def _check(self) -> None:
    size = self.path.stat().st_size
    readable = set()
    for name, tensor in self._tensors.items():
      end = int(tensor.data_offset) + int(tensor.n_bytes)
      if end > size:
        raise ValueError(
          f"{self.path}: truncated: tensor {name!r} ends at byte {end}, the "
          f"file at {size}"
        )
      kind = tensor.tensor_type
      if kind in readable:
        continue
      try:
        self._gguf.quants.dequantize(tensor.data[:1], kind)
      except (NotImplementedError, KeyError, ValueError) as error:
        raise ValueError(
          f"{self.path}: tensor {name!r} is quantised as {kind.name}, which "
          "cannot be read; F32, F16, BF16, Q8_0, Q4_0 to Q6_K and the like can"
        ) from error
      readable.add(kind)

  def _published(self, name: str) -> str:
    """The name of a tensor in a Hugging Face directory."""
    if name in _GLOBAL:
      return _GLOBAL[name]
    parts = name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in _LAYER:
      theirs = _LAYER[parts[2]]
      if self._is_fused and parts[2] == "ffn_up":
        theirs = "mlp.gate_up_proj"
      return f"model.layers.{parts[1]}.{theirs}.{parts[3]}"
    return name

  def _document(self, architecture: str) -> dict[str, Any]:
    def of(key: str, default: Any = None) -> Any:
      return self._value(f"{architecture}.{key}", default)

    heads = of("attention.head_count")
    width = of("embedding_length")
    head_size = of("attention.key_length")
    if head_size is None and heads and width:
      head_size = width // heads
    rotary_size = of("rope.dimension_count", head_size)
    embedding = self._tensors.get("token_embd.weight")
    document = {
      "architectures": [ARCHITECTURES[architecture]],
      "model_type": architecture,
      "vocab_size": None if embedding is None else int(embedding.shape[-1]),
      "hidden_size": width,
      "num_hidden_layers": of("block_count"),
      "num_attention_heads": heads,
      "num_key_value_heads": of("attention.head_count_kv"),
      "head_dim": head_size,
      "intermediate_size": of("feed_forward_length"),
      "rms_norm_eps": of("attention.layer_norm_rms_epsilon", 1e-6),
      "max_position_embeddings": of("context_length"),
      "rope_theta": of("rope.freq_base", 10_000.0),
      "tie_word_embeddings": "output.weight" not in self._tensors,
      "bos_token_id": self._value("tokenizer.ggml.bos_token_id"),
      "eos_token_id": self._value("tokenizer.ggml.eos_token_id"),
    }
    if rotary_size and head_size:
      document["partial_rotary_factor"] = rotary_size / head_size
    if architecture == "phi3":
      document["sliding_window"] = of("attention.sliding_window")
    document["rope_scaling"] = self._rope_scaling(of)
    return document

  def _rope_scaling(self, of) -> dict[str, Any] | None:
    first = of("rope.scaling.original_context_length", of("context_length"))
    factors = {
      name: self._floats(name) for name in _FREQUENCIES if name in self._tensors
    }
    if factors:
      # One set says what Llama 3 does to its frequencies; two are LongRoPE.
      once = factors.get("rope_freqs.weight")
      scaling = {
        "rope_type": "longrope",
        "short_factor": factors.get("rope_factors_short.weight", once),
        "long_factor": factors.get("rope_factors_long.weight", once),
        "original_max_position_embeddings": first,
      }
      scale = 1.0 if once else of("rope.scaling.attn_factor")
      return scaling if scale is None else scaling | {"attention_factor": scale}
    kind = of("rope.scaling.type", "none")
    if kind == "none":
      return None
    return {
      "rope_type": kind,
      "factor": of("rope.scaling.factor"),
      "original_max_position_embeddings": first,
    }

  def _floats(self, name: str) -> list[float]:
    tensor = self._tensors[name]
    values = self._gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    return [float(value) for value in values.reshape(-1)]

  def _read(self, name: str) -> np.ndarray:
    tensor = self._tensors[self._names[name]]
    values = self._gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    values = values.reshape(self.shapes[name])
    count = {
      "q_proj.weight": "num_attention_heads",
      "k_proj.weight": "num_key_value_heads",
    }.get(".".join(name.split(".")[-2:]))
    if not self._is_permuted or count is None:
      return values
    # Rows of a head are stored for rotating neighbours; here, halves rotate.
    heads = self.document[count] or self.document["num_attention_heads"]
    pairs = values.reshape(heads, -1, 2, values.shape[-1])
    return pairs.swapaxes(1, 2).reshape(values.shape)


def _library() -> Any:
  try:
    import gguf
  except ImportError as error:
    raise ImportError(
      "a GGUF file needs the `gguf` library: pip install 'saw_jax[gguf]'"
    ) from error
  return gguf
