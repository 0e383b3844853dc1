"""Tests of the sizes and switches of a decoder."""

import dataclasses
import re

import jax
import pytest

from saw_jax.models import config as config_lib
from saw_jax.models import decoder

SIZES = (
  "vocab_size",
  "width",
  "num_layers",
  "num_heads",
  "num_kv_heads",
  "head_size",
  "mlp_size",
)
# Parameters by hand: embedding V·D; per layer queries and the way back 2·D·N·H,
# keys and values 2·D·K·H (with biases N·H + 2·K·H), MLP 3·D·F, norms 2·D; D.
PRESETS = {
  "TINY": 131_392,
  "SMALL": 853_120,
  "MEDIUM": 4_852_992,
  "QWEN2_5_1_5B": 1_543_714_304,
  "QWEN2_5_3B": 3_085_938_688,
}


def refusal(**changes) -> str:
  """What is said when the smallest preset is changed to something invalid."""
  with pytest.raises(ValueError) as error:
    dataclasses.replace(config_lib.TINY, **changes)
  return str(error.value)


class TestValidation:
  @pytest.mark.parametrize("name", SIZES)
  @pytest.mark.parametrize("size", [0, -3])
  def test_a_size_below_1_is_refused(self, name, size):
    said = refusal(**{name: size})
    assert said == f"{name} must be at least 1, not {size}."

  def test_every_size_of_1_that_can_be_is_accepted(self):
    ones = dict.fromkeys(SIZES, 1) | {"head_size": 2}
    config = config_lib.DecoderConfig(**ones)
    assert config.num_heads == config.num_kv_heads == 1

  def test_key_heads_that_do_not_divide_the_query_heads_are_refused(self):
    assert refusal(num_heads=6, num_kv_heads=4) == (
      "num_heads (6) must be a multiple of num_kv_heads (4)."
    )

  def test_more_key_heads_than_query_heads_are_refused(self):
    assert refusal(num_heads=2, num_kv_heads=4) == (
      "num_heads (2) must be a multiple of num_kv_heads (4)."
    )

  def test_an_odd_head_is_refused(self):
    assert refusal(head_size=15) == (
      "head_size must be even for rotary positions, not 15."
    )

  def test_an_unknown_recomputation_is_refused(self):
    assert refusal(remat="some") == (
      "remat must be one of none, full, save_weight_products, not 'some'."
    )

  @pytest.mark.parametrize("name", ["dtype", "param_dtype"])
  def test_an_unknown_dtype_is_refused(self, name):
    assert refusal(**{name: "int8"}) == (
      f"{name} must be one of float32, bfloat16, float16, not 'int8'."
    )

  @pytest.mark.parametrize("remat", config_lib.REMAT_POLICIES)
  def test_every_named_recomputation_is_accepted(self, remat):
    assert dataclasses.replace(config_lib.TINY, remat=remat).remat == remat

  def test_a_config_does_not_change_and_can_be_a_key(self):
    with pytest.raises(dataclasses.FrozenInstanceError):
      config_lib.TINY.width = 65
    assert hash(config_lib.TINY) == hash(dataclasses.replace(config_lib.TINY))

  def test_lists_of_a_file_become_what_can_be_a_key(self):
    changes = {"rope_factors": [1.0] * 8, "windows": [5, 0]}
    config = dataclasses.replace(config_lib.TINY, **changes)
    assert (config.rope_factors, config.windows) == ((1.0,) * 8, (5, 0))
    assert len({config, dataclasses.replace(config)}) == 1


class TestPresets:
  def test_every_preset_is_known_here(self):
    found = {
      name
      for name, value in vars(config_lib).items()
      if isinstance(value, config_lib.DecoderConfig)
    }
    assert found == set(PRESETS)
    assert all(re.fullmatch("[A-Z0-9_]+", name) for name in found)

  @pytest.mark.parametrize("name", PRESETS)
  def test_a_preset_is_valid_and_as_large_as_counted_by_hand(self, name):
    config = getattr(config_lib, name)
    shapes = jax.eval_shape(
      lambda key: decoder.init_params(config, key), jax.random.key(0)
    )
    count = sum(x.size for x in jax.tree.leaves(shapes))
    assert count == PRESETS[name]
