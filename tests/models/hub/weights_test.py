"""Tests of the table of names, and of loading shard by shard."""

import dataclasses
import weakref

import chex
import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from saw_jax.models import decoder
from saw_jax.models.hub import pretrained
from tests.models.sizes import ODD

PLAIN = dataclasses.replace(ODD, mlp_size=32)
CONFIGS = {
  "plain": (PLAIN, False),
  "untied": (dataclasses.replace(PLAIN, tied_head=False), False),
  "qwen2": (dataclasses.replace(PLAIN, qkv_bias=True), False),
  "qwen3": (dataclasses.replace(PLAIN, qk_norm=True), False),
  "phi3": (PLAIN, True),
  "scanned": (dataclasses.replace(PLAIN, scan_layers=True), False),
  "scanned_phi3": (dataclasses.replace(PLAIN, scan_layers=True), True),
}


def published(config, fused, seed=0):
  """Random tensors under their published names."""
  names = pretrained.name_map(config, fused=fused)
  rng = np.random.default_rng(seed)
  return names, {
    name: rng.normal(size=shape).astype(np.float32)
    for name, shape in pretrained.tensor_shapes(config, names).items()
  }


@pytest.mark.parametrize("case", CONFIGS)
def test_every_leaf_is_there_and_saving_is_loading_backwards(case):
  config, fused = CONFIGS[case]
  names, tensors = published(config, fused)
  params = pretrained.load_params(config, names, tensors.__getitem__)
  expected = decoder.param_shapes(config)
  chex.assert_trees_all_equal_shapes_and_dtypes(params, expected)
  value = pretrained.tensor_values(config, names, params)
  for name, expected in tensors.items():
    np.testing.assert_array_equal(value(name), expected, err_msg=name)


def test_the_layout_of_each_kind_by_hand():
  config = dataclasses.replace(PLAIN, qkv_bias=True, tied_head=False)
  names, t = published(config, False)
  params = pretrained.load_params(config, names, t.__getitem__)
  D, N, K, H = 22, 6, 2, 10
  layer, prefix = params["layer_1"], "model.layers.1."
  x_D = np.arange(D, dtype=np.float32)
  # torch: y = W x, heads one after the other.
  q_NH = (t[prefix + "self_attn.q_proj.weight"] @ x_D).reshape(N, H)
  np.testing.assert_allclose(
    np.einsum("d,dnh->nh", x_D, layer["attention"]["query"]), q_NH, rtol=1e-4
  )
  bias_KH = t[prefix + "self_attn.v_proj.bias"].reshape(K, H)
  np.testing.assert_array_equal(layer["attention"]["value_bias"], bias_KH)
  mixed_NH = np.arange(N * H, dtype=np.float32).reshape(N, H)
  out_D = t[prefix + "self_attn.o_proj.weight"] @ mixed_NH.reshape(-1)
  np.testing.assert_allclose(
    np.einsum("nh,nhd->d", mixed_NH, layer["attention"]["out"]),
    out_D,
    rtol=1e-4,
  )
  up_F = t[prefix + "mlp.up_proj.weight"] @ x_D
  np.testing.assert_allclose(x_D @ layer["mlp"]["up"], up_F, rtol=1e-3)
  np.testing.assert_array_equal(params["head"], t["lm_head.weight"].T)
  np.testing.assert_array_equal(
    params["embedding"], t["model.embed_tokens.weight"]
  )


def test_a_fused_tensor_is_its_parts_one_after_the_other():
  names, apart = published(PLAIN, False)
  fused_names = pretrained.name_map(PLAIN, fused=True)
  layer = "model.layers.{}."
  joined = dict(apart)
  for i in range(PLAIN.num_layers):
    prefix = layer.format(i)
    joined[prefix + "self_attn.qkv_proj.weight"] = np.concatenate(
      [joined.pop(f"{prefix}self_attn.{x}_proj.weight") for x in "qkv"]
    )
    joined[prefix + "mlp.gate_up_proj.weight"] = np.concatenate(
      [joined.pop(f"{prefix}mlp.{x}_proj.weight") for x in ("gate", "up")]
    )
  jax.tree.map(
    np.testing.assert_array_equal,
    pretrained.load_params(PLAIN, fused_names, joined.__getitem__),
    pretrained.load_params(PLAIN, names, apart.__getitem__),
  )


def check(found, config=PLAIN):
  names = pretrained.name_map(config, fused=False)
  pretrained.check_tensors(config, names, found, lambda name: "FILE")


def shapes():
  _, tensors = published(PLAIN, False)
  return {name: value.shape for name, value in tensors.items()}


@pytest.mark.parametrize("name", sorted(published(PLAIN, False)[1]))
def test_each_missing_tensor_and_each_wrong_shape_is_named(name):
  found = shapes()
  found[name] = (*reversed(found[name]), 1)
  with pytest.raises(ValueError, match=f"FILE: tensor '{name}'"):
    check(found)
  del found[name]
  with pytest.raises(ValueError, match=f"FILE: no tensor '{name}'"):
    check(found)


def test_a_tensor_that_would_be_left_out_is_refused():
  name = "model.layers.0.self_attn.q_proj.bias"
  with pytest.raises(ValueError, match=name):
    check(shapes() | {name: (60,)})


def test_what_others_store_twice_is_accepted():
  check(shapes())
  check(
    shapes()
    | {"lm_head.weight": (29, 22)}
    | {"model.layers.0.self_attn.rotary_emb.inv_freq": (5,)}
  )
  untied = dataclasses.replace(PLAIN, tied_head=False)
  with pytest.raises(ValueError, match=r"no tensor 'lm_head\.weight'"):
    check(shapes(), untied)


def test_a_value_that_is_not_finite_is_named():
  names, tensors = published(PLAIN, False)
  name = "model.layers.2.mlp.down_proj.weight"
  tensors[name][3, 4] = np.inf
  with pytest.raises(ValueError, match=f"FILE: damaged: tensor '{name}' has"):
    pretrained.load_params(
      PLAIN, names, tensors.__getitem__, where=lambda name: "FILE"
    )


@pytest.mark.parametrize("scan", [False, True])
def test_shards_hold_their_own_part_alone(scan):
  config = dataclasses.replace(PLAIN, scan_layers=scan)
  names, tensors = published(config, False)
  mesh = jax.make_mesh(
    (2, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2
  )
  rules = {"embed": "fsdp", "mlp": "tensor", "heads": "tensor"}
  shardings = jax.tree.map(
    lambda axes: NamedSharding(
      mesh, PartitionSpec(*(rules.get(axis) for axis in axes))
    ),
    decoder.logical_axes(config),
    is_leaf=lambda x: isinstance(x, tuple),
  )
  params = pretrained.load_params(
    config, names, tensors.__getitem__, shardings=shardings
  )
  whole = pretrained.load_params(config, names, tensors.__getitem__)
  jax.tree.map(np.testing.assert_array_equal, params, whole)
  tree = params["layers"] if scan else params["layer_0"]
  up = tree["mlp"]["up"]
  assert up.addressable_shards[0].data.shape[-2:] == (11, 16)
  assert (
    up.sharding == (shardings["layers" if scan else "layer_0"]["mlp"]["up"])
  )


def test_the_parameters_do_not_share_memory_with_what_was_read():
  # A mapped file may change under them.
  names, tensors = published(PLAIN, False)
  params = pretrained.load_params(PLAIN, names, tensors.__getitem__)
  before = np.array(params["embedding"])
  tensors["model.embed_tokens.weight"][:] = 0
  np.testing.assert_array_equal(params["embedding"], before)


def test_no_more_than_one_tensor_is_asked_for_at_a_time():
  # A tensor is dropped before the next is read: the model is never there
  # twice.
  names, tensors = published(PLAIN, False)
  alive, most = 0, 0

  def drop():
    nonlocal alive
    alive -= 1

  def read(name):
    nonlocal alive, most
    value = tensors[name].copy()
    alive += 1
    most = max(most, alive)
    weakref.finalize(value, drop)
    return value

  pretrained.load_params(PLAIN, names, read)
  assert most <= 2  # the one that is copied, and the next as it is made
