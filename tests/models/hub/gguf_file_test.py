"""Tests of GGUF files, written with the `gguf` library as llama.cpp does."""

import dataclasses

import chex
import jax
import numpy as np
import pytest

from saw_jax.models import config as config_lib
from saw_jax.models.hub import gguf_file, pretrained
from tests import helpers

gguf = pytest.importorskip("gguf")

PLAIN = config_lib.DecoderConfig(
  40, 64, 2, 4, 2, 16, 96, rope_theta=5e4, norm_eps=1e-5
)
ARCHITECTURES = {
  "llama": PLAIN,
  "qwen2": dataclasses.replace(PLAIN, qkv_bias=True, tied_head=False),
  "qwen3": dataclasses.replace(PLAIN, qk_norm=True),
  "phi3": dataclasses.replace(PLAIN, rotary_size=12, windows=(9, 9)),
}
# Their names, written out a second time.
NAMES = (
  ("model.embed_tokens", "token_embd"),
  ("model.norm", "output_norm"),
  ("lm_head", "output"),
  ("model.layers", "blk"),
  ("input_layernorm", "attn_norm"),
  ("post_attention_layernorm", "ffn_norm"),
  ("self_attn.q_proj", "attn_q"),
  ("self_attn.k_proj", "attn_k"),
  ("self_attn.v_proj", "attn_v"),
  ("self_attn.o_proj", "attn_output"),
  ("self_attn.qkv_proj", "attn_qkv"),
  ("self_attn.q_norm", "attn_q_norm"),
  ("self_attn.k_norm", "attn_k_norm"),
  ("mlp.gate_up_proj", "ffn_up"),
  ("mlp.gate_proj", "ffn_gate"),
  ("mlp.up_proj", "ffn_up"),
  ("mlp.down_proj", "ffn_down"),
)


def write(path, architecture, *, kind="F32", extra=(), scaling=None):
  """A file with random tensors; returns them under their Hugging Face names."""
  config = ARCHITECTURES[architecture]
  names = pretrained.name_map(config, fused=architecture == "phi3")
  rng = np.random.default_rng(0)
  tensors = {
    name: rng.normal(size=shape).astype(np.float32)
    for name, shape in pretrained.tensor_shapes(config, names).items()
  }
  writer = gguf.GGUFWriter(str(path), architecture)
  said = {
    "block_count": config.num_layers,
    "context_length": 4096,
    "embedding_length": config.width,
    "feed_forward_length": config.mlp_size,
    "head_count": config.num_heads,
    "head_count_kv": config.num_kv_heads,
    "layer_norm_rms_eps": config.norm_eps,
    "rope_freq_base": config.rope_theta,
    "rope_dimension_count": config.rotary_size or config.head_size,
    **({"sliding_window": config.windows[0]} if config.windows else {}),
    **(scaling or {}),
  }
  for name, value in said.items():
    getattr(writer, f"add_{name}")(value)
  for name, value in tensors.items():
    for ours, theirs in NAMES:
      name = name.replace(ours, theirs)
    for heads, part in (
      (config.num_heads, "attn_q.weight"),
      (config.num_kv_heads, "attn_k.weight"),
    ):
      if architecture == "llama" and name.endswith(part):
        # llama.cpp's converter, row by row: half 0 of a head, then half 1,
        # become neighbours.
        H = config.head_size
        order = [
          head * H + half * (H // 2) + i
          for head, i, half in np.ndindex(heads, H // 2, 2)
        ]
        value = value[order]
    if value.ndim == 1 or kind == "F32":
      writer.add_tensor(name, value)
    else:
      stored = gguf.GGMLQuantizationType[kind]
      data = gguf.quants.quantize(value, stored)
      writer.add_tensor(name, data, raw_dtype=stored)
  for name, value in extra:
    writer.add_tensor(name, value)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return tensors


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_file_is_the_tensors_that_it_was_made_of(architecture, tmp_path):
  path = tmp_path / "x.gguf"
  tensors = write(path, architecture)
  found = pretrained.open_checkpoint(path)
  config = ARCHITECTURES[architecture]
  assert found.config.norm_eps == pytest.approx(config.norm_eps, rel=1e-6)
  assert dataclasses.replace(found.config, norm_eps=config.norm_eps) == config
  names = pretrained.name_map(config, fused=architecture == "phi3")
  chex.assert_trees_all_equal(
    found.load(), pretrained.load_params(config, names, tensors.__getitem__)
  )


@pytest.mark.parametrize(
  ("kind", "error"), [("F16", 2e-3), ("BF16", 2e-2), ("Q8_0", 3e-2)]
)
def test_quantised_tensors_are_near(kind, error, tmp_path):
  tensors = write(tmp_path / "x.gguf", "llama", kind=kind)
  file = gguf_file.GGUFFile(tmp_path / "x.gguf")
  assert set(file.shapes) == set(tensors)
  for name, value in tensors.items():
    np.testing.assert_allclose(file.read(name), value, rtol=0, atol=error)


def config(path, architecture, max_length=None, **options):
  write(path, architecture, **options)
  return pretrained.open_checkpoint(path, max_length=max_length).config


def test_the_frequencies_of_llama_3_are_a_tensor(tmp_path):
  factors = np.array([1, 1, 1, 2, 4, 8, 8, 8], np.float32)
  extra = [("rope_freqs.weight", factors)]
  found = config(tmp_path / "x.gguf", "llama", extra=extra)
  assert (found.rope_factors, found.rope_scale) == (tuple(factors), 1.0)


def test_those_of_phi_3_are_two(tmp_path):
  sets = [
    ("rope_factors_short.weight", np.arange(1, 7, dtype=np.float32)),
    ("rope_factors_long.weight", np.arange(11, 17, dtype=np.float32)),
  ]
  scaling = {
    "rope_scaling_orig_ctx_len": 512,
    "rope_scaling_attn_factors": 1.25,
  }
  options = {"extra": sets, "scaling": scaling}
  for length, first in ((512, 1), (513, 11)):
    found = config(tmp_path / "x.gguf", "phi3", length, **options)
    assert found.rope_factors == tuple(range(first, first + 6))
    assert found.rope_scale == 1.25


def test_linear(tmp_path):
  kind = gguf.RopeScalingType.LINEAR
  scaling = {"rope_scaling_type": kind, "rope_scaling_factor": 4.0}
  found = config(tmp_path / "x.gguf", "qwen2", scaling=scaling)
  assert found.rope_factors == (4.0,) * 8


def refusal(path, kind=ValueError) -> str:
  with pytest.raises(kind) as error:
    pretrained.open_checkpoint(path)
  assert str(path) in str(error.value)
  return str(error.value)


def test_sizes_that_are_none(tmp_path):
  for key, value, words in (
    ("head_count", 0, "'num_attention_heads' must be a size, not 0"),
    ("head_count", 65, "'head_dim' must be a size, not 0"),
    ("block_count", 10**9, "'num_hidden_layers' must be a size"),
    ("rope_freq_base", float("nan"), "'rope_theta' must be a number, not nan"),
    ("rope_dimension_count", 8, "8 of 16 entries"),
  ):
    write(tmp_path / "x.gguf", "llama", scaling={key: value})
    assert words in refusal(tmp_path / "x.gguf")
  # What a converter writes for none.
  found = config(tmp_path / "x.gguf", "phi3", scaling={"sliding_window": 0})
  assert found.windows == ()


def test_a_truncated_file(tmp_path):
  path = tmp_path / "x.gguf"
  refusal(path, FileNotFoundError)
  write(path, "llama")
  whole = path.read_bytes()
  for size in (0, 3, 20, 300, len(whole) // 2, len(whole) - 64):
    path.write_bytes(whole[:size])
    assert "truncated" in refusal(path)
  path.write_bytes(b"PK" + bytes(1000))
  assert "not a GGUF file" in refusal(path)


def test_what_the_decoder_cannot_use(tmp_path):
  path = tmp_path / "x.gguf"
  write(path, "llama")
  whole = path.read_bytes()
  path.write_bytes(whole.replace(b"llama", b"mamba", 1))
  assert "architecture 'mamba'" in refusal(path)
  path.write_bytes(whole.replace(b"blk.1.ffn_up", b"blk.1.ffn_xx"))
  assert "'model.layers.1.mlp.up_proj.weight'" in refusal(path)
  write(path, "llama", extra=[("blk.0.other", np.zeros((2, 2), np.int32))])
  assert "'blk.0.other' is quantised as I32" in refusal(path)


def test_the_library_is_named(tmp_path):
  write(tmp_path / "x.gguf", "llama")
  with helpers.lacking("gguf", "gguf"):
    pretrained.open_checkpoint(tmp_path / "x.gguf")


def test_a_model_from_a_file_is_saved_as_a_directory(tmp_path):
  write(tmp_path / "x.gguf", "llama")
  found = pretrained.open_checkpoint(tmp_path / "x.gguf")
  params = found.load()
  target = tmp_path / "saved"
  pretrained.save_checkpoint(
    target, params, found.config, document=found.document, dtype="float32"
  )
  again = pretrained.open_checkpoint(target)
  assert again.config == found.config
  jax.tree.map(np.testing.assert_array_equal, again.load(), params)
