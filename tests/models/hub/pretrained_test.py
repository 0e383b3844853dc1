"""Tests of checkpoints as a whole: opened, refused, loaded and saved."""

import dataclasses
import json

import chex
import jax
import numpy as np
import pytest

from saw_jax.models import config as config_lib
from saw_jax.models import decoder
from saw_jax.models.hub import pretrained
from tests import helpers

CONFIG = dataclasses.replace(config_lib.TINY, vocab_size=60, qkv_bias=True)


@pytest.fixture(scope="module")
def params():
  return decoder.init_params(CONFIG, jax.random.key(0))


@pytest.fixture
def folder(params, tmp_path):
  """A checkpoint in three shards."""
  pretrained.save_checkpoint(
    tmp_path, params, CONFIG, dtype="float32", max_bytes=150_000
  )
  assert len(list(tmp_path.glob("*.safetensors"))) == 3
  return tmp_path


def change_config(folder, **changes):
  path = folder / "config.json"
  path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_parameters_come_back(folder, params):
  found = pretrained.open_checkpoint(folder)
  assert found.config == CONFIG
  chex.assert_trees_all_equal(found.load(), params)


@pytest.mark.parametrize("scan", [False, True])
def test_layers_are_scanned_or_not_on_either_side(scan, params, tmp_path):
  scanned = dataclasses.replace(CONFIG, scan_layers=True)
  stacked = helpers.stack_layers(params)
  if scan:
    pretrained.save_checkpoint(tmp_path, stacked, scanned, dtype="float32")
  else:
    pretrained.save_checkpoint(tmp_path, params, CONFIG, dtype="float32")
  found = pretrained.open_checkpoint(tmp_path)
  chex.assert_trees_all_equal(found.load(), params)
  chex.assert_trees_all_equal(found.load(scanned), stacked)


def test_the_document_that_it_came_with_is_kept(folder, params):
  change_config(folder, max_position_embeddings=77, transformers_version="4")
  found = pretrained.open_checkpoint(folder)
  target = folder / "saved"
  pretrained.save_checkpoint(
    target, params, CONFIG, document=found.document, dtype="bfloat16"
  )
  again = json.loads((target / "config.json").read_text())
  changed = {"torch_dtype": "bfloat16", "dtype": "bfloat16"}
  assert again == {**found.document, **changed}


def test_a_document_of_another_decoder_is_refused(folder, params):
  document = pretrained.open_checkpoint(folder).document
  target = folder / "saved"
  with pytest.raises(ValueError, match=r"'model\.embed_tokens\.weight' would"):
    pretrained.save_checkpoint(
      target, params, CONFIG, document={**document, "vocab_size": 61}
    )
  assert not target.exists()


def refusal(folder, kind=ValueError) -> str:
  with pytest.raises(kind) as error:
    pretrained.open_checkpoint(folder)
  said = str(error.value)
  assert str(folder) in said and "\n" not in said
  return said


def test_no_directory_and_no_config(folder, tmp_path):
  refusal(tmp_path / "nowhere", FileNotFoundError)
  (folder / "config.json").unlink()
  assert "config.json" in refusal(folder, FileNotFoundError)


def test_an_unknown_architecture_comes_before_the_weights(folder):
  change_config(folder, architectures=["GPT2LMHeadModel"])
  for path in folder.glob("*.safetensors*"):
    path.unlink()
  assert "architecture 'GPT2LMHeadModel'" in refusal(folder)


def test_a_shard_that_is_truncated_or_missing(folder):
  path = sorted(folder.glob("*.safetensors"))[1]
  path.write_bytes(path.read_bytes()[:-100])
  said = refusal(folder)
  assert path.name in said and "at tensor 'model.layers." in said
  path.unlink()
  assert path.name in refusal(folder, FileNotFoundError)


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"vocab_size": 61}, "model.embed_tokens.weight' has shape [60, 64]"),
    ({"intermediate_size": 191}, "mlp.gate_proj.weight' has shape [192, 64]"),
    ({"num_key_value_heads": 4}, "k_proj.weight' has shape [32, 64]"),
    ({"num_hidden_layers": 3}, "no tensor 'model.layers.2."),
    ({"num_hidden_layers": 1}, "'model.layers.1."),
    ({"tie_word_embeddings": False}, "no tensor 'lm_head.weight'"),
  ],
)
def test_tensors_that_are_not_the_configs(folder, change, words):
  change_config(folder, **change)
  said = refusal(folder)
  assert words in said and (".safetensors" in said or "no tensor" in said)


def test_a_value_that_is_not_finite_is_named_when_it_is_read(folder):
  path = sorted(folder.glob("*.safetensors"))[2]
  data = path.read_bytes()
  path.write_bytes(data[:-4] + np.float32(np.nan).tobytes())
  found = pretrained.open_checkpoint(folder)
  with pytest.raises(ValueError, match=rf"{path.name}: damaged: tensor 'model"):
    found.load()
