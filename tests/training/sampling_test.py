"""Tests of a sampler's own weights and rows, on four devices."""

import dataclasses
import functools
import re

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saw_jax.models import decoder
from saw_jax.rollout import generate, paged, refill, transcript
from saw_jax.rollout.generate import GenerateConfig
from saw_jax.run import rollouts
from saw_jax.training import parallel, sampling
from tests import helpers
from tests.rollout.refill_test import assert_same

# Sizes that two devices split, and that no other array has.
CONFIG = dataclasses.replace(
  helpers.CONFIG,
  **dict(vocab_size=46, width=24, num_heads=4, num_kv_heads=2, head_size=6),
  **dict(mlp_size=38, tied_head=False, scan_layers=False),
)
SETTINGS = GenerateConfig(max_new_tokens=9, group_size=3, eos_ids=(2, 11))
FEW = dataclasses.replace(SETTINGS, cache_tokens=60)
PAGED = dataclasses.replace(SETTINGS, cache_tokens=90, page_size=4)


def mesh_lift(fsdp=2, tensor=2, config=CONFIG):
  sizes = parallel.ParallelConfig("meshed", fsdp=fsdp, tensor=tensor)
  return parallel.meshed(parallel.make_mesh(sizes), config, None)


@functools.cache
def seeds_of(count):
  """Parameters, prompts and keys, with an axis of seeds."""
  stack = lambda *rows: jax.tree.map(lambda *x: np.stack(x), *rows)  # noqa: E731
  params, batches, keys = [], [], []
  for seed in range(count):
    drawn = decoder.init_params(CONFIG, jax.random.key(seed))
    params.append(drawn | {"head": 3.0 * drawn["head"]})
    rng = np.random.default_rng(seed)
    asked = [rng.integers(3, 40, size) for size in (3, 5, 2, 4, 5, 1, 4, 3)]
    batches.append(transcript.pad_prompts(asked))
    key = jax.random.key(seed)
    keys.append(generate.row_keys(key, 0, batches[-1].ids, 3))
  return stack(*params), stack(*batches), jnp.stack(keys)


@functools.cache
def expected(count):
  params, prompts, keys = seeds_of(count)
  sample = generate.make_generate(CONFIG, SETTINGS, lanes=True)
  return jax.device_get(sample(params, prompts, keys))


@pytest.mark.parametrize(
  ("make", "count", "settings"),
  [
    (mesh_lift, 1, FEW),
    # Heads that the devices cannot share.
    pytest.param(lambda: mesh_lift(1, 4), 1, FEW, marks=pytest.mark.slow),
    pytest.param(mesh_lift, 1, SETTINGS, marks=pytest.mark.slow),
    # Each device has the pages of its heads.
    (mesh_lift, 1, PAGED),
    pytest.param(lambda: mesh_lift(1, 4), 1, PAGED, marks=pytest.mark.slow),
    (lambda: parallel.seeded(jax.devices()[:2]), 2, FEW),
    pytest.param(parallel.pmapped, 1, FEW, marks=pytest.mark.slow),
  ],
)
def test_devices_sample_their_own_rows(make, count, settings):
  lift, (params, prompts, keys) = make(), seeds_of(count)
  engine = rollouts.Native(lift, CONFIG)
  params = lift.place_params(params)
  if settings is PAGED:
    assert paged.room(PAGED, 4, 5)[0] < 12
  found = engine.sample(params, prompts, keys, settings)
  assert_same(found, expected(count))


def gathered(text):
  """Shapes that are gathered in a compiled program, without ones."""
  made = r"= \(?\w+\[([\d,]*)\][^=]* all-gather(?:-start)?\("
  shapes = re.findall(made, text)
  sizes = [map(int, filter(None, shape.split(","))) for shape in shapes]
  return {tuple(sorted(size for size in own if size > 1)) for own in sizes}


def compiled(lift, fn, rules, params):
  _, prompts, keys = seeds_of(1)
  batch, keys = jax.tree.map(lambda x: x[0], (prompts, keys))
  with jax.set_mesh(lift.mesh), nn.logical_axis_rules(rules):
    return jax.jit(fn).lower(params, batch, keys).compile().as_text()


@pytest.mark.parametrize("settings", [FEW, PAGED])
def test_no_weight_is_gathered_while_tokens_are_drawn(settings):
  lift = mesh_lift()
  learned = lift.place_params(seeds_of(1)[0])
  shapes = {
    tuple(sorted(size for size in x.shape if size > 1))
    for x in jax.tree.leaves(learned)
    if x.ndim > 1
  }
  fn = refill.make_generate(CONFIG, settings)
  before = compiled(lift, fn, parallel.RULES, learned)
  assert gathered(before) & shapes  # So the learner's layout would have it.
  own = sampling.lay_out(lift, CONFIG, learned)
  text = compiled(lift, sampling.on_shards(fn), parallel.SAMPLING_RULES, own)
  assert "while(" in text
  assert not gathered(text) & shapes


def test_a_copy_is_whole_over_fsdp_and_in_the_dtype_of_activations():
  config = dataclasses.replace(CONFIG, dtype="bfloat16")
  lift = mesh_lift(config=config)
  learned = lift.place_params(seeds_of(1)[0])
  assert "fsdp" in learned["embedding"].sharding.spec
  copy = sampling.lay_out(lift, config, learned)
  for path, x in jax.tree.leaves_with_path(copy):
    is_scale = path[-1].key == "scale"
    assert x.dtype == (jnp.float32 if is_scale else jnp.bfloat16)
    assert not {"fsdp", "data"} & {*x.sharding.spec}, path
  up = copy["layer_0"]["mlp"]["up"]
  assert up.sharding.shard_shape(up.shape) == (24, 19)
  cast = jax.tree.map(lambda x, y: x.astype(y.dtype), learned, copy)
  chex.assert_trees_all_equal(*map(jax.device_get, (copy, cast)))


@pytest.mark.parametrize(
  ("grid", "by", "own_grid", "to"),
  [
    ((1, 1), ("x", "y"), (3, 1), (None, None)),
    ((2, 1), ("x", "y"), (1, 2), (None, None)),
    ((2, 1), ("x", None), (1, 2), (None, "y")),
    ((1, 2), (None, "y"), (2, 1), ("x", None)),
    ((3, 1), ("x", None), (1, 1), ("x", None)),
    ((2, 1), ("x", None), (1, 2), ("y", None)),
    ((1, 1), ("x", None), (3, 1), ("x", None)),
  ],
)
def test_each_device_is_sent_its_own_part(grid, by, own_grid, to):
  def place(devices, grid, spec):
    mesh = jax.sharding.Mesh(np.reshape(devices, grid), ("x", "y"))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))

  devices, values = jax.devices(), np.arange(24.0 * 12).reshape(24, 12)
  x = jax.device_put(values, place(devices[: np.prod(grid)], grid, by))
  there = place(devices[-np.prod(own_grid) :], own_grid, to)
  found = sampling.reshard(x, there)
  assert found.sharding == there
  for part in found.addressable_shards:
    np.testing.assert_array_equal(part.data, values[part.index])
    assert part.data.devices() == {part.device}
  assert x._npy_value is None  # The host was not on the way.


def test_a_mesh_samples_from_layers_that_are_in_no_stack():
  params, prompts, keys = seeds_of(1)
  config = dataclasses.replace(CONFIG, scan_layers=True)
  one = jax.tree.map(lambda x: x[0], params)
  stacked = jax.tree.map(lambda x: x[None], helpers.stack_layers(one))
  lift = mesh_lift(config=config)
  learned = lift.place_params(stacked)
  own = sampling.Weights(lift, config).of(learned)
  chex.assert_trees_all_equal(*map(jax.device_get, (own, one)))
  wanted = jax.tree.leaves(sampling.layout(mesh_lift(), CONFIG, own))
  assert not sampling.differing(jax.tree.leaves(own), wanted)
  native = rollouts.Native(lift, config)
  found = native.sample(learned, prompts, keys, FEW)
  assert_same(found, expected(1))


def test_a_stack_on_other_devices_is_brought_there_and_taken_apart():
  config = dataclasses.replace(CONFIG, scan_layers=True, dtype="bfloat16")
  one = jax.tree.map(lambda x: x[0], seeds_of(1)[0])
  stacked = jax.tree.map(lambda x: x[None], helpers.stack_layers(one))
  devices = jax.devices()

  def lift(own, **axes):
    how = parallel.ParallelConfig("meshed", **axes)
    return parallel.meshed(parallel.make_mesh(how, own), config, None)

  learned = lift(devices[:2], fsdp=2).place_params(stacked)
  own = sampling.lay_out(lift(devices[2:4], tensor=2), config, learned)
  cast = jax.tree.map(lambda x, y: x.astype(y.dtype), one, own)
  chex.assert_trees_all_equal(*map(jax.device_get, (own, cast)))
  for x in jax.tree.leaves(own):
    assert x.sharding.device_set == {*devices[2:4]}


def test_what_lies_right_is_not_copied():
  params = jax.device_put(seeds_of(1)[0])
  lift = parallel.seeded()
  same = sampling.lay_out(lift, CONFIG, params)
  pairs = zip(*map(jax.tree.leaves, (same, params)), strict=True)
  assert all(one is other for one, other in pairs)
  # Of a smaller dtype, a copy would be larger.
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  kept = sampling.lay_out(lift, CONFIG, half)
  chex.assert_trees_all_equal_dtypes(kept, half)
  weights = sampling.Weights(mesh_lift(), CONFIG)
  learned = mesh_lift().place_params(params)
  first = weights.of(learned)
  assert weights.of(learned) is first
  weights.drop()
  assert weights.of(learned) is not first
