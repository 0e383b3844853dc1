"""Tests of published configs: read, written, refused."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from saw_jax.models import config as config_lib
from saw_jax.models import decoder
from saw_jax.models.hub import config as hub_config

# As published with Qwen2.5-1.5B-Instruct.
QWEN2_5_1_5B = {
  "architectures": ["Qwen2ForCausalLM"],
  "hidden_act": "silu",
  "hidden_size": 1536,
  "intermediate_size": 8960,
  "max_position_embeddings": 32768,
  "max_window_layers": 21,
  "model_type": "qwen2",
  "num_attention_heads": 12,
  "num_hidden_layers": 28,
  "num_key_value_heads": 2,
  "rms_norm_eps": 1e-06,
  "rope_theta": 1000000.0,
  "sliding_window": 32768,
  "tie_word_embeddings": True,
  "use_sliding_window": False,
  "vocab_size": 151936,
}


SMALL = {
  "architectures": ["LlamaForCausalLM"],
  "vocab_size": 29,
  "hidden_size": 32,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "intermediate_size": 31,
  "max_position_embeddings": 4096,
}


LLAMA3 = dict.fromkeys(("factor", "low_freq_factor", "high_freq_factor"), 4.0)
LLAMA3["rope_type"] = "llama3"
QWEN2, QWEN3, PHI3, MISTRAL, SMOLLM3 = (
  {"architectures": [f"{name}ForCausalLM"]}
  for name in ("Qwen2", "Qwen3", "Phi3", "Mistral", "SmolLM3")
)


def read(max_length=None, **changes):
  document, where = {**SMALL, **changes}, "x/config.json"
  return hub_config.read_config(document, where=where, max_length=max_length)


def test_a_published_model_has_its_number_of_parameters():
  found = hub_config.read_config(QWEN2_5_1_5B, where="config.json")
  sizes = (151_936, 1536, 28, 12, 2, 128, 8960)
  assert found == config_lib.DecoderConfig(
    *sizes, rope_theta=1e6, qkv_bias=True
  )
  shapes = jax.tree.leaves(decoder.param_shapes(found))
  assert sum(x.size for x in shapes) == 1_543_714_304


@pytest.mark.parametrize(
  ("name", "sizes", "count"),
  [  # Of Mistral-7B-v0.1, OLMo-2-1124-7B and SmolLM3-3B.
    ("Mistral", (32000, 4096, 32, 32, 8, 14336), 7_241_732_096),
    ("Olmo2", (100352, 4096, 32, 32, 32, 11008), 7_298_617_344),
    ("SmolLM3", (128256, 2048, 36, 16, 4, 11008), 3_075_098_624),
  ],
)
def test_other_families_have_theirs(name, sizes, count):
  changes = zip([*SMALL][1:7], sizes, strict=True)
  found = read(architectures=[f"{name}ForCausalLM"], **dict(changes))
  shapes = jax.tree.leaves(decoder.param_shapes(found))
  assert sum(x.size for x in shapes) == count


def test_defaults_are_those_of_the_families():
  document = {k: v for k, v in SMALL.items() if k != "num_key_value_heads"}
  found = hub_config.read_config(document, where="")
  assert (found.num_kv_heads, found.head_size) == (4, 8)
  assert (found.rope_theta, found.norm_eps) == (10_000.0, 1e-6)
  assert not found.tied_head and found.windows == ()
  assert read(**PHI3).norm_eps == 1e-5 and read(**QWEN3).head_size == 128
  smollm3 = read(**SMOLLM3)
  assert smollm3.tied_head and smollm3.rope_theta == 2e6


def test_windows():
  qwen = dict(QWEN2, sliding_window=9, max_window_layers=1)
  on = {**qwen, "use_sliding_window": True}
  kinds = ["sliding_attention", "full_attention"]
  for document, windows in (
    (qwen, ()),
    (on, (0, 9)),
    ({**on, "layer_types": kinds}, (9, 0)),
    ({**PHI3, "sliding_window": 7}, (7, 7)),
    ({**PHI3, "sliding_window": None}, ()),
    ({"sliding_window": 7}, ()),
    ({**MISTRAL, "sliding_window": 7}, (7, 7)),
    ({**MISTRAL, "sliding_window": None}, ()),
    ({**MISTRAL, "layer_types": kinds}, (4096,) * 2),  # of which it knows none
    ({**on, **SMOLLM3, "no_rope_layers": [0, 1]}, (9, 0)),
    ({**on, **SMOLLM3, "no_rope_layers": [1, 0], "layer_types": kinds}, (9, 0)),
  ):
    assert read(**document).windows == windows


def test_layers_that_do_not_rotate():
  for changes, rotated in (
    ({}, ()),
    ({"no_rope_layer_interval": 2}, (True, False)),
    ({"no_rope_layers": [0, 1, 0]}, (False, True)),
  ):
    assert read(**SMOLLM3, **changes).rotated == rotated
    assert read(**changes).rotated == ()


# What a field takes of these values, if it is not 2.5; all else is refused.
VALUES = (math.nan, math.inf, -1, 0, 2.5, 10**400, "1", True, [1], {}, [True])
FITS = {
  **dict.fromkeys(("tie_word_embeddings", "use_sliding_window"), True),
  **dict.fromkeys(("rope_scaling", "rope_parameters"), {}),
  **dict.fromkeys(("no_rope_layers", "short_factor", "long_factor"), [1]),
  **{"max_window_layers": 0, "truncate": True},
}


@pytest.mark.parametrize("key", hub_config._FIELDS)
def test_a_field_takes_what_it_can_be_and_nothing_else(key):
  for value in VALUES:
    if value is FITS.get(key) or value == FITS.get(key, 2.5):
      continue
    rope = {"rope_scaling": {"type": "default", key: value}}
    for changes in ({key: value}, rope if value != {} else {key: -1}):
      with pytest.raises(ValueError, match=f"^x/config.json.*'{key}' must be"):
        read(**{**SMOLLM3, **changes})


def test_another_architecture_is_told_what_is_missing():
  for name, words in (
    ("Qwen2MoeForCausalLM", "experts"),
    ("Gemma2ForCausalLM", "1 [+] scale.*capped"),
    ("GPT2LMHeadModel", "LayerNorm;"),
    ("FalconH1ForCausalLM", "recurrent layers;"),
    ("Qwen3NextForCausalLM", "recurrent layers"),
    ("LlamaForSequenceClassification", "head of the next token"),
    ("NewForCausalLM", "experts"),
    ("T5ForConditionalGeneration", "an encoder;"),
    ("Glm4ForCausalLM", "rotations of neighbours;"),
    ("NemotronForCausalLM", "LayerNorm, a squared ReLU;"),
  ):
    with pytest.raises(ValueError, match=f"'{name}' is not .*needs.*{words}"):
      read(architectures=[name], num_local_experts=8 * name.startswith("New"))


@pytest.mark.parametrize(
  ("changes", "word"),
  [
    ({"architectures": None}, "architectures"),
    ({"architectures": []}, "architectures"),
    ({"hidden_size": 30}, "'head_dim' must be even, not 7.5"),
    ({"head_dim": 7}, "'head_dim' must be even, not 7"),
    ({"partial_rotary_factor": 0.5}, "4 of 8 entries"),
    ({**PHI3, "partial_rotary_factor": 0.01}, "0 of 8 entries"),
    ({"rope_scaling": {"type": ["yarn"]}}, "rope scaling"),
    ({"rope_scaling": LLAMA3}, "low_freq_factor is not below"),
    ({"rope_scaling": {"type": "yarn"}}, "'yarn': 'factor' must be a number"),
    ({**SMOLLM3, "no_rope_layers": [1]}, "no_rope_layers' must have 2"),
    ({"hidden_size": None}, "'hidden_size' must be a number, not None"),
    ({"num_key_value_heads": 3}, "num_kv_heads"),
    ({"hidden_act": "gelu"}, "gelu"),
    ({"attention_bias": True}, "attention_bias"),
    ({"mlp_bias": True}, "mlp_bias"),
    ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ({"rope_scaling": {"type": "dynamic"}}, "dynamic"),
    ({"rope_scaling": {"type": "linear"}}, "'linear': 'factor'"),
    (
      {
        "rope_scaling": {"type": "longrope", "long_factor": [1.0]},
        "original_max_position_embeddings": 4096,
      },
      "'short_factor' must be a list of 4",
    ),
    ({"rope_parameters": {"full_attention": {}}}, "layer to layer"),
    ({**QWEN2, "layer_types": ["chunked"] * 2}, "layer_types"),
    ({**QWEN2, "layer_types": ["full_attention"]}, "layer_types"),
    ({**SMOLLM3, "layer_types": ["sliding_attention"] * 2}, "no window is on"),
  ],
)
def test_what_cannot_be_read_is_a_sentence(changes, word):
  with pytest.raises(ValueError, match=f"^x/config.json[:,].*{word}"):
    read(**changes)


def factors(max_length=None, size=8, **rope):
  rope = {"rope_theta": 100.0, **rope}
  return hub_config.rope_factors(rope, size, "", max_length)


def test_linear():
  assert factors(rope_type="linear", factor=3) == ((3.0,) * 4, 1.0)


def test_llama3_by_hand():
  # Wavelengths 2π · 100^(i/4) = 6.3, 19.9, 62.8, 198.7 of C = 64 positions:
  # below 64/4 = 16 nothing, above 64/1 the factor, between them the share
  # s = (64 / wavelength - 1) / 3.
  found, scale = factors(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
  )
  shares = [(64 / (2 * math.pi * 100 ** (i / 4)) - 1) / 3 for i in (1, 2)]
  middle = [1 / ((1 - s) / 8 + s) for s in shares]
  np.testing.assert_allclose(found, [1.0, *middle, 8.0], rtol=1e-12)
  assert 1 < found[1] < found[2] < 8 and scale == 1.0


def test_yarn_by_hand():
  # index(r) = 8 ln(64 / 2πr) / (2 ln 100): it turns once at 2.016, 4 times at
  # 0.812, 32 times at -0.998. The ramp goes from one to another of them,
  # rounded outwards, and within 0 to 3.
  yarn = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)
  for options, first, last in (
    ({}, 0, 3),
    ({"beta_fast": 4}, 0, 3),
    ({"beta_fast": 4, "beta_slow": 2}, 0, 2),
    ({"beta_fast": 4, "truncate": False}, 0.8119, 2.0160),
  ):
    found, scale = factors(**yarn, **options)
    ramps = np.clip((np.arange(4) - first) / (last - first), 0, 1)
    np.testing.assert_allclose(found, 1 / (1 - ramps + ramps / 4), rtol=1e-4)
    assert scale == pytest.approx(0.1 * math.log(4) + 1)
  assert factors(attention_factor=1.5, **yarn)[1] == 1.5
  assert factors(mscale=1, mscale_all_dim=1, **yarn)[1] == 1.0


def test_longrope_takes_its_set_by_the_longest_sequence():
  rope = {
    "rope_type": "longrope",
    "short_factor": [1, 1, 1, 2],
    "long_factor": [1, 4, 9, 16],
    "original_max_position_embeddings": 64,
    "max_position_embeddings": 4096,
  }
  scale = math.sqrt(1 + math.log(64) / math.log(64))
  assert factors(64, **rope) == ((1.0, 1.0, 1.0, 2.0), scale)
  assert factors(65, **rope) == ((1.0, 4.0, 9.0, 16.0), scale)
  assert factors(**rope)[0] == (1.0, 4.0, 9.0, 16.0)


def test_phi3_called_it_otherwise():
  rope = {"type": "su", "short_factor": [2] * 4, "long_factor": [3] * 4}
  phi = dict(PHI3, model_type="phi3", original_max_position_embeddings=512)
  found = read(max_length=512, rope_scaling=rope, **phi)
  assert found.rope_factors == (2.0,) * 4
  assert found.rope_scale == math.sqrt(1 + math.log(8) / math.log(512))


def test_the_older_and_the_newer_form_say_the_same():
  kind = {"rope_type": "linear", "factor": 2.0}
  older = read(rope_theta=5e4, rope_scaling=kind)
  newer = read(rope_parameters={**kind, "rope_theta": 5e4})
  assert older == newer and older.rope_theta == 5e4


@pytest.mark.parametrize(
  "changes",
  [
    {},
    {"tied_head": False, "rope_theta": 7e4},
    {"qkv_bias": True, "windows": (0, 5)},
    {"qk_norm": True, "head_size": 24},
    {"rotary_size": 12, "windows": (5, 5)},
    {"windows": (5, 5)},
    {"rope_factors": (1, 2, 3, 4, 5, 6, 7, 8), "rope_scale": 1.25},
    {"rope_scale": 1.25},
    {"wide_qk_norm": True, "post_norm": True, "head_size": 24},
    {"rotated": (True, False), "windows": (0, 5)},
    {"rotated": (False, False), "windows": (5, 5), "tied_head": False},
  ],
)
def test_what_is_written_is_read(changes):
  config = dataclasses.replace(config_lib.TINY, **changes)
  found = hub_config.read_config(hub_config.write_config(config), where="")
  if [*changes] == ["rope_scale"]:
    config = dataclasses.replace(config, rope_factors=(1.0,) * 8)
  assert found == config


@pytest.mark.parametrize(
  "changes",
  [
    {"qkv_bias": True, "qk_norm": True},
    {"qkv_bias": True, "rotary_size": 8},
    {"windows": (5, 0)},
    {"qk_norm": True, "windows": (5, 6)},
    {"rotary_size": 8, "head_size": 24},
    {"post_norm": True},
    {"wide_qk_norm": True},
    {"rotated": (True, False), "qk_norm": True},
  ],
)
def test_parts_that_no_family_has_together_are_refused(changes):
  config = dataclasses.replace(config_lib.TINY, **changes)
  with pytest.raises(ValueError, match="no published family"):
    hub_config.write_config(config)
