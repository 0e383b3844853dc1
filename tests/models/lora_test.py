"""Tests of low-rank adapters."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saw_jax.models import decoder, lora
from saw_jax.models.log_probs import chunked_log_probs
from tests import helpers
from tests.models.sizes import ODD as CONFIG

SCANNED = dataclasses.replace(CONFIG, scan_layers=True)
CRITIC = dataclasses.replace(CONFIG, value_head=True)
LORA = lora.LoraConfig(rank=3, alpha=6.0)
SOME = lora.LoraConfig(rank=3, alpha=6.0, targets=("query", "out", "down"))
TOKENS = np.random.default_rng(0).integers(0, 29, (4, 7)).astype(np.int32)


@functools.cache
def base(config=CONFIG):
  return decoder.init_params(config, jax.random.key(0))


def moved(adapters, seed=0):
  """The adapters in the middle of training: no B is 0 any more."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: x + 0.1 * rng.standard_normal(x.shape).astype(np.float32),
    adapters,
  )


def start(config=CONFIG, adapter_config=LORA):
  return lora.init_adapters(base(config), adapter_config, config)


def matrix(x, rows):
  return np.asarray(x, np.float64).reshape(rows, -1)


@pytest.mark.parametrize(
  ("values", "word"),
  [
    ({"rank": 2, "targets": ("up", "querry")}, "'query'"),
    ({"rank": -1}, "rank"),
    ({"alpha": 0.0}, "alpha"),
    ({"alpha": float("nan")}, "alpha"),
    ({"rank": 2, "targets": ()}, "targets"),
  ],
)
def test_what_makes_no_sense_is_refused(values, word):
  with pytest.raises(ValueError, match=word):
    lora.LoraConfig(**values)


def test_the_targets_are_the_kernels_of_a_layer_and_hashable():
  layer = base()["layer_0"]
  assert sorted([*layer["attention"], *layer["mlp"]]) == sorted(lora.TARGETS)
  hash(lora.LoraConfig(rank=1, targets=["up", "down"]))


def test_a_rank_above_that_of_a_chosen_kernel_names_it():
  with pytest.raises(ValueError, match="'key' is a matrix of 22 x 20"):
    lora.check_config(lora.LoraConfig(rank=21), CONFIG)
  lora.check_config(lora.LoraConfig(rank=22, targets=("query",)), CONFIG)
  lora.check_config(lora.LoraConfig(), CONFIG)


@pytest.mark.parametrize("config", [CONFIG, SCANNED, CRITIC])
def test_the_start_is_the_base_bit_by_bit(config):
  adapters = start(config)
  merged = lora.merge(base(config), adapters, LORA)
  chex.assert_trees_all_equal(merged, base(config))
  axes = lora.adapter_axes(LORA, config)  # a tree like the adapters
  jax.tree.map(lambda x, names: chex.assert_rank(x, len(names)), adapters, axes)


@pytest.mark.parametrize("config", [CONFIG, SCANNED])
def test_every_chosen_kernel_has_a_pair_and_nothing_else_has(config):
  adapters = start(config, SOME)
  layers = ["layer_0", "layer_1", "layer_2"]
  assert sorted(adapters) == (["layers"] if config.scan_layers else layers)
  lead = (3,) if config.scan_layers else ()
  for layer in adapters.values():
    assert jax.tree.map(jnp.shape, layer) == {
      "attention": {
        "query": {"a": (*lead, 22, 3), "b": (*lead, 3, 6, 10)},
        "out": {"a": (*lead, 6, 10, 3), "b": (*lead, 3, 22)},
      },
      "mlp": {"down": {"a": (*lead, 31, 3), "b": (*lead, 3, 22)}},
    }


@pytest.mark.slow
def test_a_is_drawn_with_variance_one_over_the_inputs():
  wide = dataclasses.replace(CONFIG, width=400, mlp_size=900)
  adapters = start(wide, lora.LoraConfig(rank=20))
  for name, inputs in (("gate", 400), ("down", 900)):
    a = np.asarray(adapters["layer_1"]["mlp"][name]["a"])
    np.testing.assert_allclose(a.var() * inputs, 1.0, rtol=0.06)
    assert abs(a.mean()) < 4 * inputs**-0.5 / np.sqrt(a.size)


def test_no_two_kernels_have_the_same_a():
  mlp = [start()[f"layer_{i}"]["mlp"] for i in range(3)]
  seen = [float(mlp[i][k]["a"][0, 0]) for i in range(3) for k in mlp[0]]
  assert len(set(seen)) == 9
  other = start(adapter_config=dataclasses.replace(LORA, seed=1))
  assert float(other["layer_0"]["mlp"]["up"]["a"][0, 0]) not in seen


def test_adapters_of_a_bfloat16_model_are_float32():
  config = dataclasses.replace(CONFIG, param_dtype="bfloat16")
  adapters = start(config)
  assert {x.dtype.name for x in jax.tree.leaves(adapters)} == {"float32"}
  merged = lora.merge(base(config), moved(adapters), LORA)
  chex.assert_trees_all_equal_shapes_and_dtypes(merged, base(config))


def test_axes_are_the_kernels_own():
  attention = lora.adapter_axes(LORA, SCANNED)["layers"]["attention"]
  query, out = ([*attention[name].values()] for name in ("query", "out"))
  heads = ("heads", "head_size")
  assert query == [("layers", "embed", None), ("layers", None, *heads)]
  assert out == [("layers", *heads, None), ("layers", None, "embed")]


def test_merging_agrees_with_matrices_in_numpy():
  before = jax.tree.map(np.array, base())
  adapters = moved(start())
  merged = lora.merge(base(), adapters, LORA)
  for layer in ("layer_0", "layer_2"):
    for part in ("attention", "mlp"):
      for name, pair in adapters[layer][part].items():
        inputs = {"out": 60, "down": 31}.get(name, 22)
        change = matrix(pair["a"], inputs) @ matrix(pair["b"], 3)
        old, new = (x[layer][part][name] for x in (base(), merged))
        expected = matrix(old, inputs) + 2 * change  # alpha / rank = 2
        np.testing.assert_allclose(matrix(new, inputs), expected, atol=1e-6)
  chex.assert_trees_all_equal(base(), before)


def test_what_has_no_adapter_is_passed_on_and_a_value_head_trained_as_it_is():
  after = moved(start(CRITIC, SOME))
  merged = lora.merge(base(CRITIC), after, SOME)
  assert merged["embedding"] is base(CRITIC)["embedding"]
  ours, theirs = (x["layer_1"]["mlp"] for x in (merged, base(CRITIC)))
  assert ours["up"] is theirs["up"]
  assert not np.array_equal(ours["down"], theirs["down"])
  for name in ("value_kernel", "value_bias"):
    np.testing.assert_array_equal(merged[name], after[name])


def test_scanned_and_unrolled_layers_merge_alike():
  adapters = moved(start())
  unrolled = lora.merge(base(), adapters, LORA)
  stacked = map(helpers.stack_layers, (base(), adapters, unrolled))
  params, adapters, expected = stacked
  scanned = lora.merge(params, adapters, LORA)
  chex.assert_trees_all_close(scanned, expected, atol=1e-6)


@pytest.mark.parametrize(
  "config", [SCANNED, pytest.param(CRITIC, marks=pytest.mark.slow)]
)
def test_attached_adapters_are_the_merged_model_and_have_its_gradient(config):
  adapters = moved(start(config))

  @functools.partial(jax.jit, static_argnums=0)
  def run(join):
    def total(adapters):
      joined = join(base(config), adapters, LORA)
      everywhere = jnp.ones(TOKENS.shape, bool)
      positions = jnp.arange(7)[None] + jnp.zeros((4, 1), int)
      fn = decoder.Decoder(config).apply
      hidden, _ = fn({"params": joined}, TOKENS, positions, everywhere)
      values = decoder.values(joined, hidden) if config.value_head else hidden
      return jnp.sum(jnp.sin(values)), hidden

    return jax.value_and_grad(total, has_aux=True)(adapters)

  found, expected = run(lora.attach), run(lora.merge)
  chex.assert_trees_all_close(found, expected, atol=1e-3, rtol=1e-3)


def test_adapters_cost_two_thirds_of_the_whole_model():
  """Forward and back to the activations; no kernel has a gradient."""
  sizes = dict(num_layers=1, width=256, mlp_size=512, vocab_size=512)
  config = dataclasses.replace(CONFIG, **sizes)
  adapter_config = lora.LoraConfig(rank=1)
  params = decoder.param_shapes(config)
  rows = jax.ShapeDtypeStruct((2, 16), jnp.int32)
  adapters = jax.eval_shape(
    lambda x: lora.init_adapters(x, adapter_config, config), params
  )

  def flops(join, *trained):
    def loss(*trained_and_rest):
      *trees, tokens = trained_and_rest
      joined = join(*trees)
      fn = decoder.Decoder(config).apply
      hidden, _ = fn({"params": joined}, tokens, tokens, tokens >= 0)
      head = decoder.head_kernel(joined, config)
      log_probs, _ = chunked_log_probs(hidden, head, tokens)
      return jnp.sum(log_probs)

    last = len(trained) - 1
    program = jax.jit(jax.grad(loss, last)).lower(*trained, rows)
    return program.compile().cost_analysis()["flops"]

  whole = flops(lambda params: params, params)
  attach, merge = (
    functools.partial(fn, config=adapter_config)
    for fn in (lora.attach, lora.merge)
  )
  assert 0.6 < flops(attach, params, adapters) / whole < 0.72
  assert flops(merge, params, adapters) > 0.9 * whole
