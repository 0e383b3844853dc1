"""Tests of checkpoints: names and layouts, opened, refused, loaded, saved."""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import shutil
import weakref

import chex
import jax
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from saw_jax.models import config as config_lib
from saw_jax.models import decoder
from saw_jax.models.hub import files as hub_files
from saw_jax.models.hub import pretrained
from tests import helpers
from tests.models.sizes import ODD

save_file = safetensors.numpy.save_file

# --- the table of names -------------------------------------------------------

PLAIN = dataclasses.replace(ODD, mlp_size=32)
CASES = {
  "plain": ({}, False),
  "untied": ({"tied_head": False}, False),
  "qwen2": ({"qkv_bias": True}, False),
  "qwen3": ({"qk_norm": True}, False),
  "phi3": ({}, True),
  "olmo2": ({"wide_qk_norm": True, "post_norm": True}, False),
  "smollm3": ({"rotated": (True, False, True)}, False),
  "scanned": ({"scan_layers": True}, False),
  "scanned_phi3": ({"scan_layers": True}, True),
}


def published(fused=False, **changes):
  """A decoder, its names, and random tensors under their published names."""
  config = dataclasses.replace(PLAIN, **changes)
  names = pretrained.name_map(config, fused=fused)
  rng = np.random.default_rng(0)
  return (config, names), {
    name: rng.normal(size=shape).astype(np.float32)
    for name, shape in pretrained.tensor_shapes(config, names).items()
  }


def load(layout, tensors, **options):
  read = tensors if callable(tensors) else tensors.__getitem__
  return pretrained.load_params(*layout, read, **options)


@pytest.mark.parametrize("case", CASES)
def test_every_leaf_is_there_and_saving_is_loading_backwards(case):
  changes, fused = CASES[case]
  layout, tensors = published(fused, **changes)
  params = load(layout, tensors)
  expected = decoder.param_shapes(layout[0])
  chex.assert_trees_all_equal_shapes_and_dtypes(params, expected)
  value = pretrained.tensor_values(*layout, params)
  for name, expected in tensors.items():
    np.testing.assert_array_equal(value(name), expected, err_msg=name)


def test_the_layout_of_each_kind_by_hand():
  layout, t = published(qkv_bias=True, tied_head=False)
  params = load(layout, t)
  equal, near = np.testing.assert_array_equal, np.testing.assert_allclose
  near = functools.partial(near, rtol=1e-3)
  D, N, K, H = 22, 6, 2, 10
  layer, prefix = params["layer_1"], "model.layers.1."
  ours, x_D = layer["attention"], np.arange(D, dtype=np.float32)
  # torch: y = W x, heads one after the other.
  q_NH = (t[prefix + "self_attn.q_proj.weight"] @ x_D).reshape(N, H)
  near(np.einsum("d,dnh->nh", x_D, ours["query"]), q_NH)
  bias_KH = t[prefix + "self_attn.v_proj.bias"].reshape(K, H)
  equal(ours["value_bias"], bias_KH)
  mixed_NH = np.arange(N * H, dtype=np.float32).reshape(N, H)
  out_D = t[prefix + "self_attn.o_proj.weight"] @ mixed_NH.reshape(-1)
  near(np.einsum("nh,nhd->d", mixed_NH, ours["out"]), out_D)
  near(x_D @ layer["mlp"]["up"], t[prefix + "mlp.up_proj.weight"] @ x_D)
  equal(params["head"], t["lm_head.weight"].T)
  equal(params["embedding"], t["model.embed_tokens.weight"])


def test_a_fused_tensor_is_its_parts_one_after_the_other():
  layout, apart = published()
  joined = dict(apart)
  for i in range(PLAIN.num_layers):
    for whole, parts in (("self_attn.{}", "qkv"), ("mlp.{}", ("gate", "up"))):
      prefix = f"model.layers.{i}.{whole}_proj.weight"
      values = [joined.pop(prefix.format(part)) for part in parts]
      fused = {"qkv": "qkv"}.get(parts, "gate_up")
      joined[prefix.format(fused)] = np.concatenate(values)
  fused_names = pretrained.name_map(PLAIN, fused=True)
  found = load((PLAIN, fused_names), joined)
  chex.assert_trees_all_equal(found, load(layout, apart))


def check(found, **changes):
  layout, _ = published(**changes)
  pretrained.check_tensors(*layout, found, lambda name: "FILE")


SHAPES = {name: value.shape for name, value in published()[1].items()}


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_each_missing_tensor_and_each_wrong_shape_is_named(name):
  with pytest.raises(ValueError, match=f"FILE: tensor '{name}'"):
    check({**SHAPES, name: (*reversed(SHAPES[name]), 1)})
  with pytest.raises(ValueError, match=f"FILE: no tensor '{name}'"):
    check({other: x for other, x in SHAPES.items() if other != name})


def test_what_others_store_twice_is_accepted_and_nothing_else():
  check(SHAPES)
  twice = {"model.layers.0.self_attn.rotary_emb.inv_freq": (5,)}
  check(SHAPES | {"lm_head.weight": (29, 22)} | twice)
  with pytest.raises(ValueError, match=r"no tensor 'lm_head\.weight'"):
    check(SHAPES, tied_head=False)
  name = "model.layers.0.self_attn.q_proj.bias"
  with pytest.raises(ValueError, match=name):
    check(SHAPES | {name: (60,)})


@pytest.mark.parametrize("scan", [False, True])
def test_shards_hold_their_own_part_alone(scan):
  layout, tensors = published(scan_layers=scan)
  kinds = (AxisType.Auto,) * 2
  mesh = jax.make_mesh((2, 2), ("fsdp", "tensor"), axis_types=kinds)
  rules = {"embed": "fsdp", "mlp": "tensor", "heads": "tensor"}
  shardings = jax.tree.map(
    lambda axes: NamedSharding(mesh, PartitionSpec(*map(rules.get, axes))),
    decoder.logical_axes(layout[0]),
    is_leaf=lambda x: isinstance(x, tuple),
  )
  params = load(layout, tensors, shardings=shardings)
  chex.assert_trees_all_equal(params, load(layout, tensors))
  up, sharding = (
    tree["layers" if scan else "layer_0"]["mlp"]["up"]
    for tree in (params, shardings)
  )
  assert up.addressable_shards[0].data.shape[-2:] == (11, 16)
  assert up.sharding == sharding


def test_one_tensor_is_asked_for_at_a_time_and_shares_no_memory():
  # A mapped file may change under the parameters; and a tensor is dropped
  # before the next is read: the model is never there twice.
  layout, tensors = published()
  alive, most = [], 0

  def read(name):
    nonlocal most
    value = tensors[name].copy()
    alive.append(name)
    most = max(most, len(alive))
    weakref.finalize(value, alive.pop)
    return value

  params = load(layout, read)
  assert most <= 2  # the one that is copied, and the next as it is made
  params = load(layout, tensors)
  before = np.array(params["embedding"])
  tensors["model.embed_tokens.weight"][:] = 0
  np.testing.assert_array_equal(params["embedding"], before)


# --- files --------------------------------------------------------------------

CONFIG = dataclasses.replace(config_lib.TINY, vocab_size=60, qkv_bias=True)
save = functools.partial(pretrained.save_checkpoint, dtype="float32")


@pytest.fixture(scope="module")
def params():
  return decoder.init_params(CONFIG, jax.random.key(0))


@pytest.fixture
def folder(params, tmp_path):
  """A checkpoint in three shards."""
  save(tmp_path, params, CONFIG, max_bytes=150_000)
  assert len(list(tmp_path.glob("*.safetensors"))) == 3
  return tmp_path


def change_config(folder, **changes):
  path = folder / "config.json"
  path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("scan", [False, True])
def test_layers_are_scanned_or_not_on_either_side(scan, params, tmp_path):
  scanned = dataclasses.replace(CONFIG, scan_layers=True)
  stacked = helpers.stack_layers(params)
  save(tmp_path, *((stacked, scanned) if scan else (params, CONFIG)))
  found = pretrained.open_checkpoint(tmp_path)
  assert found.config == CONFIG
  chex.assert_trees_all_equal(found.load(), params)
  chex.assert_trees_all_equal(found.load(scanned), stacked)


def test_the_document_that_it_came_with_is_kept(folder, params):
  change_config(folder, max_position_embeddings=77, transformers_version="4")
  found = pretrained.open_checkpoint(folder)
  chex.assert_trees_all_equal(found.load(), params)
  target = folder / "saved"
  document, kind = found.document, {"dtype": "bfloat16"}
  save(target, params, CONFIG, document=document, **kind)
  again = json.loads((target / "config.json").read_text())
  assert again == {**document, "torch_dtype": "bfloat16", **kind}
  # That of another decoder is refused.
  other = {**document, "vocab_size": 61}
  with pytest.raises(ValueError, match=r"'model\.embed_tokens\.weight' would"):
    save(folder / "other", params, CONFIG, document=other)
  assert not (folder / "other").exists()


def refusal(folder, kind=ValueError) -> str:
  with pytest.raises(kind) as error:
    pretrained.open_checkpoint(folder)
  said = str(error.value)
  assert str(folder) in said and "\n" not in said
  return said


def test_what_is_missing_or_cut(folder):
  refusal(folder / "nowhere", FileNotFoundError)
  one, path, two = sorted(folder.glob("*.safetensors"))
  path.write_bytes(path.read_bytes()[:-100])
  said = refusal(folder)
  assert path.name in said and "damaged" in said
  path.unlink()
  assert path.name in refusal(folder, FileNotFoundError)
  # An unknown architecture comes before the weights.
  change_config(folder, architectures=["GPT2LMHeadModel"])
  for path in folder.glob("*.safetensors*"):
    path.unlink()
  assert "architecture 'GPT2LMHeadModel'" in refusal(folder)
  (folder / "config.json").unlink()
  assert "config.json" in refusal(folder, FileNotFoundError)


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


EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def rewrite(folder, change):
  """One whole file with the tensors as `change` leaves them."""
  found = hub_files.read_headers(folder)
  tensors = {name: tensor[:] for name, tensor in found.items()}
  for path in folder.glob("*.safetensors*"):
    path.unlink()
  change(tensors)
  save_file(tensors, folder / "model.safetensors")


def test_a_head_that_is_not_the_embedding_it_is_tied_to_is_used(folder, params):
  for change, is_tied in (
    (lambda t: t.update({HEAD: t[EMBED].astype(np.float64)}), True),
    (lambda t: t.update({HEAD: t.pop(EMBED)}), True),
    (lambda t: t.update({EMBED: t[HEAD], HEAD: t[HEAD] + 1}), False),
  ):
    rewrite(folder, change)
    found = pretrained.open_checkpoint(folder)
    loaded = found.load()
    head = params["embedding"].T + (not is_tied)
    assert ("head" in loaded) == (not found.config.tied_head) == (not is_tied)
    chex.assert_trees_all_equal(decoder.head_kernel(loaded, found.config), head)
    # What is saved with the document that it came with says so, too.
    save(folder / "again", loaded, found.config, document=found.document)
    again = pretrained.open_checkpoint(folder / "again").load()
    chex.assert_trees_all_equal(again, loaded)
  document = {**found.document, "tie_word_embeddings": True}
  with pytest.raises(ValueError, match=r"'lm_head\.weight' would"):
    save(folder / "lost", loaded, found.config, document=document)
  rewrite(folder, lambda t: t.update({HEAD: t[HEAD][:3]}))
  assert "'lm_head.weight' has shape [3, 64]" in refusal(folder)


@pytest.mark.parametrize("old", [150_000, 10**9])
@pytest.mark.parametrize("new", [80_000, 10**9])
def test_replacing_a_model_is_one_act(params, tmp_path, monkeypatch, old, new):
  first = functools.partial(save, params=params, config=CONFIG, max_bytes=old)
  config = dataclasses.replace(CONFIG, rope_theta=5e5)
  more = jax.tree.map(lambda x: x + 1, params)
  left = 0

  def cut(step, *args, **kwargs):
    nonlocal left
    left -= 1
    if left == 0:
      raise KeyboardInterrupt
    return step(*args, **kwargs)

  first(tmp_path / "0")
  names = ("rename", "replace", "unlink", "rmdir", "write_text")
  for place, name in (
    (safetensors.numpy, "save_file"),
    *((pathlib.Path, name) for name in names),
  ):
    step = getattr(place, name)
    monkeypatch.setattr(place, name, lambda *a, s=step, **k: cut(s, *a, **k))
  read = [False]
  while left <= 0:
    folder = tmp_path / str(len(read))
    shutil.copytree(tmp_path / "0", folder)
    left = len(read)
    with contextlib.suppress(KeyboardInterrupt):
      save(folder, more, config, max_bytes=new)
    found = pretrained.open_checkpoint(folder)
    read.append(found.config == config)
    chex.assert_trees_all_equal(found.load(), more if read[-1] else params)
    if left <= 0:  # The next one ends what this one began.
      first(folder)
      assert set(os.listdir(folder)) == set(os.listdir(tmp_path / "0"))
  assert read == sorted(read) and read.count(True) > 5


def test_two_models_in_a_directory_and_what_is_left_of_one(folder, params):
  more = jax.tree.map(lambda x: x + 1, params)
  save(folder / "one", more, CONFIG)
  shutil.copy(folder / "one" / "model.safetensors", folder)
  said = refusal(folder)
  assert "model.safetensors and that of model.safetensors.index.json" in said
  next(folder.glob("model-00002*")).unlink()
  chex.assert_trees_all_equal(pretrained.open_checkpoint(folder).load(), more)


def test_what_float16_cannot_hold_is_named_and_nothing_is_lost(folder, params):
  for value, words in ((1e5, "too large for float16"), (np.nan, "not finite")):
    big = params | {"embedding": params["embedding"].at[3, 4].set(value)}
    with pytest.raises(ValueError, match=f"tensor '{EMBED}' has .*{words}"):
      save(folder, big, CONFIG, dtype="float16")
  chex.assert_trees_all_equal(pretrained.open_checkpoint(folder).load(), params)
  rewrite(folder, lambda t: t.update({EMBED: t[EMBED] * 1e6}))
  half = dataclasses.replace(CONFIG, param_dtype="float16")
  with pytest.raises(ValueError, match=f"'{EMBED}' has values too large"):
    pretrained.open_checkpoint(folder).load(half)


@pytest.mark.parametrize(
  ("begin", "words"),
  [
    (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer"),
    (b"GGUF\3\0\0\0", "a GGUF file"),
    (b"\x80\2\x8a\nl\xfc\x9cF", "a pickle"),
    (b"PK\3\4\0\0\0\0", "a ZIP archive"),
  ],
)
def test_a_file_of_another_kind_says_what_it_is(folder, begin, words):
  for name in (
    "model-00001-of-00003.safetensors",
    hub_files.INDEX,
    "config.json",
  ):
    (folder / name).write_bytes(begin)
    assert words in refusal(folder) and name in refusal(folder)
    assert words in refusal(folder / name)


def test_a_directory_that_is_no_checkpoint_says_what_is_there(folder):
  (folder / "config.json").unlink()
  for name, words in (
    ("x.bin", "pickle"),
    ("x.gguf", "GGUF"),
    ("adapter_config.json", "PEFT"),
  ):
    (folder / name).touch()
    assert words in refusal(folder, FileNotFoundError)
  assert "name its directory" in refusal(next(folder.glob("*-00001-*")))


def test_a_value_that_is_not_finite_is_named_when_it_is_read(folder):
  path = sorted(folder.glob("*.safetensors"))[2]
  data = path.read_bytes()
  path.write_bytes(data[:-4] + np.float32(np.nan).tobytes())
  found = pretrained.open_checkpoint(folder)
  with pytest.raises(ValueError, match=rf"{path.name}: damaged: tensor 'model"):
    found.load()
