"""Tests of the sizes and switches of a decoder."""

import dataclasses

import jax
import pytest

from saw_jax.models import config as config_lib
from saw_jax.models import decoder

SIZES = config_lib._SIZES
TINY = config_lib.TINY  # 2 layers of 4 heads of 16 entries


@pytest.mark.parametrize(
  "change",
  [
    *({name: size} for name in SIZES for size in (0, -3)),
    {"num_kv_heads": 3},
    {"num_kv_heads": 8},
    {"head_size": 15},
    {"remat": "some"},
    {"attention": "flash"},
    {"attention": "cudnn"},
    {"attention": "cudnn", "dtype": "float16", "head_size": 20},
    {"dtype": "float8"},
    {"param_dtype": "int8"},
    {"rotary_size": 3},
    {"rotary_size": 18},
    {"rope_factors": (1.0,) * 7},
    {"rope_factors": (1.0,) * 8, "rotary_size": 12},
    {"rope_factors": (1.0,) * 7 + (0.0,)},
    {"windows": (3,)},
    {"windows": (3, -1)},
    {"windows": (3, 0), "scan_layers": True},
    {"rotated": (True, False), "scan_layers": True},
    {"rotated": (True,)},
    {"wide_qk_norm": True, "qk_norm": True},
  ],
)
def test_a_config_that_cannot_be_is_refused(change):
  with pytest.raises(ValueError, match=next(iter(change))):
    dataclasses.replace(TINY, **change)


def test_a_config_does_not_change_and_can_be_a_key():
  # Files have lists.
  lists = {"rope_factors": [1.0] * 8, "windows": [5, 0]}
  config = dataclasses.replace(TINY, **lists)
  assert (config.rope_factors, config.windows) == ((1.0,) * 8, (5, 0))
  # A list that says nothing is as none.
  same = dataclasses.replace(TINY, windows=[0, 0], rotated=[True, True])
  assert same == TINY
  assert len({config, dataclasses.replace(config)}) == 1


def test_tiny_is_as_large_as_counted_by_hand():
  # Embedding V·D; per layer queries and the way back 2·D·N·H, keys and values
  # 2·D·K·H, MLP 3·D·F, norms 2·D; D.
  shapes = decoder.param_shapes(TINY)
  assert sum(x.size for x in jax.tree.leaves(shapes)) == 131_392
