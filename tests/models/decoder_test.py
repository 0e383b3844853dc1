"""Tests of the decoder, its cache and its config."""

import dataclasses
import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saw_jax.models import cache as cache_lib
from saw_jax.models import config as config_lib
from saw_jax.models import decoder
from tests import helpers
from tests.models.sizes import ODD

CONFIG = dataclasses.replace(ODD, rope_theta=1_234.0)
VARIANTS = {
  "plain": {},
  "untied": {"tied_head": False},
  "qkv_bias": {"qkv_bias": True},
  "qk_norm": {"qk_norm": True},
  "multi_head": {"num_kv_heads": 6},
  "multi_query": {"num_kv_heads": 1},
  "windows": {"windows": (3, 0, 1)},
  "window": {"windows": (2, 2, 2)},
  "olmo2": {"wide_qk_norm": True, "post_norm": True},
  "smollm3": {"rotated": (True, False, True), "windows": (0, 4, 0)},
  "unrotated": {"rotated": (False, False, False)},
  "rope": dict(rotary_size=6, rope_factors=(1.0, 2.5, 7.0), rope_scale=1.25),
}


def but(**changes):
  return dataclasses.replace(CONFIG, **changes)


@functools.cache
def random_params(config: config_lib.DecoderConfig) -> dict:
  """Parameters with nothing at its initial 0 or 1."""
  shapes = decoder.param_shapes(config)
  rng = np.random.default_rng(0)

  def draw(path, x):
    scale = jax.tree_util.keystr(path).endswith("['scale']")
    value = scale + 0.25 * rng.normal(size=x.shape)
    return jnp.asarray(value, x.dtype)

  return jax.tree_util.tree_map_with_path(draw, shapes)


def left_padded(lengths: tuple[int, ...], size: int, seed: int = 0):
  """Tokens, positions and validity of rows that end together."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(0, CONFIG.vocab_size, (len(lengths), size))
  starts = size - np.array(lengths)[:, None]
  order = np.arange(size)[None]
  return (
    jnp.asarray(tokens, jnp.int32),
    jnp.asarray(np.maximum(order - starts, 0), jnp.int32),
    jnp.asarray(order >= starts),
  )


@functools.partial(jax.jit, static_argnums=0)
def apply(config, params, *args, **kwargs):
  return decoder.Decoder(config).apply({"params": params}, *args, **kwargs)


def numpy_decoder(config, params, tokens) -> np.ndarray:
  """Logits of one sequence, in float64, a head and a pair of tokens at a time.

  Written from the definitions (RMSNorm, rotary positions, grouped queries,
  SwiGLU), and sharing nothing with the decoder but the names of parameters.
  """
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  c = config

  def norm(x, scale):
    return x / np.sqrt((x * x).mean() + c.norm_eps) * scale

  def rope(x, position):
    out = np.array(x)
    size = c.rotary_size or c.head_size
    for h in range(size // 2):
      angle = position * c.rope_theta ** (-2 * h / size)
      if c.rope_factors:
        angle /= c.rope_factors[h]
      a, b = c.rope_scale * x[h], c.rope_scale * x[h + size // 2]
      out[h] = a * np.cos(angle) - b * np.sin(angle)
      out[h + size // 2] = a * np.sin(angle) + b * np.cos(angle)
    return out

  def heads(p, x, name, position):
    found = np.einsum("d,dnh->nh", x, p[name])
    if c.qkv_bias:
      found = found + p[f"{name}_bias"]
    if name == "value":
      return found
    if c.qk_norm:
      found = [norm(one, p[f"{name}_norm"]["scale"]) for one in found]
    if c.wide_qk_norm:
      found = norm(found, p[f"{name}_norm"]["scale"].reshape(found.shape))
    return found if position is None else [rope(x, position) for x in found]

  def added(x, found, scale):
    return x + (norm(found, scale) if c.post_norm else found)

  stream = [params["embedding"][token] for token in tokens]
  for i in range(c.num_layers):
    layer = params[f"layer_{i}"]
    p = layer["attention"]
    scale, before = layer["attention_norm"]["scale"], stream
    if not c.post_norm:
      before = [norm(x, scale) for x in stream]
    rotates = not c.rotated or c.rotated[i]
    q, k, v = (
      [heads(p, x, name, t if rotates else None) for t, x in enumerate(before)]
      for name in ("query", "key", "value")
    )
    for t in range(len(tokens)):
      found = 0
      for n in range(c.num_heads):
        shared = n // (c.num_heads // c.num_kv_heads)
        window = c.windows[i] if c.windows and c.windows[i] else t + 1
        seen = range(max(0, t + 1 - window), t + 1)
        scores = [q[t][n] @ k[s][shared] / c.head_size**0.5 for s in seen]
        probs = np.exp(scores) / np.exp(scores).sum()
        mixed = probs @ [v[s][shared] for s in seen]
        found = found + mixed @ p["out"][n]
      stream[t] = added(stream[t], found, scale)
    scale = layer["mlp_norm"]["scale"]
    for t, x in enumerate(stream):
      x = x if c.post_norm else norm(x, scale)
      gate, up = x @ layer["mlp"]["gate"], x @ layer["mlp"]["up"]
      silu = gate / (1 + np.exp(-gate))
      found = (silu * up) @ layer["mlp"]["down"]
      stream[t] = added(stream[t], found, scale)
  stream = [norm(x, params["final_norm"]["scale"]) for x in stream]
  last = params["embedding"].T if c.tied_head else params["head"]
  return np.stack([x @ last for x in stream])


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_agree_with_numpy_loops(name):
  config = but(**VARIANTS[name])
  params = random_params(config)
  assert ("head" in params) == (not config.tied_head)
  batch = left_padded((7,), 7)
  expected = numpy_decoder(config, params, np.asarray(batch[0][0]))
  hidden, _ = apply(config, params, *batch)
  logits = hidden[0] @ decoder.head_kernel(params, config)
  np.testing.assert_allclose(logits, expected, atol=2e-5)
  if max(len(set(config.windows)), len(set(config.rotated))) < 2:
    scanned = dataclasses.replace(config, scan_layers=True)
    again, _ = apply(scanned, helpers.stack_layers(params), *batch)
    np.testing.assert_allclose(again, hidden, atol=1e-5)


def test_a_token_depends_on_itself_and_on_those_before_and_on_none_after():
  params = random_params(CONFIG)
  _, positions, valid = left_padded((7,), 7)
  tokens = jnp.arange(7)[None]  # all different: a row of the embedding each

  def scalar(embedding, t):
    # The last norm is untied from the head: only the stream is looked at.
    hidden, _ = apply(
      CONFIG, params | {"embedding": embedding}, tokens, positions, valid
    )
    return jnp.sum(jnp.sin(hidden[0, t]))

  gradient = jax.jit(jax.grad(scalar))
  for t in (0, 3, 6):
    size = np.abs(gradient(params["embedding"], t)).sum(-1)[:7]
    assert (size[: t + 1] > 0).all(), size
    np.testing.assert_array_equal(size[t + 1 :], 0)


@pytest.mark.parametrize("name", ["plain", "olmo2", "smollm3"])
def test_left_padding_changes_no_logit(name):
  config = but(**VARIANTS[name])
  params = random_params(config)
  tokens, positions, valid = left_padded((3, 7, 5), 7)
  hidden, _ = apply(config, params, tokens, positions, valid)
  for row, length in enumerate((3, 7, 5)):
    own = (x[row : row + 1, -length:] for x in (tokens, positions, valid))
    alone, _ = apply(config, params, *own)
    np.testing.assert_allclose(hidden[row, -length:], alone[0], atol=1e-5)


@pytest.mark.parametrize(
  ("scan_layers", "changes"),
  [(True, {}), (False, {"windows": (4, 0, 2)}), (False, VARIANTS["smollm3"])]
  + [(scan, VARIANTS["olmo2"]) for scan in (False, True)]
  + [
    pytest.param(scan, {"windows": windows}, marks=pytest.mark.slow)
    for scan, windows in ((False, ()), (True, (4, 4, 4)))
  ],
)
def test_cached_decoding_equals_the_full_pass(scan_layers, changes):
  config = but(scan_layers=scan_layers, **changes)
  params = random_params(but(**changes))
  if scan_layers:
    params = helpers.stack_layers(params)
  tokens, positions, valid = left_padded((3, 11, 8), 11)
  full, none = apply(config, params, tokens, positions, valid)
  assert none is None
  cache = cache_lib.init_cache(config, 3, 13)
  step = jax.jit(lambda cache, *args: apply(config, params, *args, cache=cache))
  # A prompt, then two tokens at once, then one by one.
  for begin, end in ((0, 6), (6, 8), (8, 9), (9, 10), (10, 11)):
    part = [x[:, begin:end] for x in (tokens, positions, valid)]
    hidden, cache = step(cache, *part)
    np.testing.assert_allclose(
      hidden[part[-1]], full[:, begin:end][part[-1]], atol=1e-5
    )
  assert cache.index == 11
  np.testing.assert_array_equal((cache.positions >= 0).sum(-1), [3, 11, 8])


@pytest.mark.parametrize("name", ["plain", "olmo2", "smollm3"])
def test_packed_segments_equal_separate_rows(name):
  config = but(**VARIANTS[name])
  params = random_params(config)
  tokens, _, valid = left_padded((11,), 11)
  segments = jnp.array([[1, 1, 1, 1, 2, 2, 2, 3, 3, 0, 0]])
  positions = jnp.array([[0, 1, 2, 3, 0, 1, 2, 0, 1, 0, 0]])
  run = functools.partial(apply, config, params)
  packed, _ = run(tokens, positions, None, segment_ids=segments)
  for begin, end in ((0, 4), (4, 7), (7, 9)):
    own = (x[:, begin:end] for x in (tokens, positions, valid))
    np.testing.assert_allclose(packed[:, begin:end], run(*own)[0], atol=1e-5)
  chex.assert_tree_all_finite(packed)
  with pytest.raises(ValueError, match="either"):
    run(tokens, positions, valid, segment_ids=segments)
  with pytest.raises(ValueError, match="either"):
    run(tokens, positions, None)
  cache = cache_lib.init_cache(CONFIG, 1, 13)
  with pytest.raises(ValueError, match="no segment_ids"):
    run(tokens, positions, None, cache, segment_ids=segments)


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("remat", config_lib.REMAT_POLICIES)
@pytest.mark.slow
def test_scans_and_recomputing_change_no_value_or_gradient(scan_layers, remat):
  params = random_params(CONFIG)
  batch = left_padded((3, 7), 7)

  def total(params, config):
    hidden, _ = apply(config, params, *batch)
    return jnp.sum(jnp.where(batch[2][..., None], jnp.sin(hidden), 0))

  gradient = jax.jit(jax.value_and_grad(total), static_argnums=1)
  config = but(scan_layers=scan_layers, remat=remat)
  same = lambda params: params  # noqa: E731
  stack, unstack = same, same
  if scan_layers:
    stack, unstack = helpers.stack_layers, decoder.unstack_layers
  value, actual = gradient(stack(params), config)
  expected_value, expected = gradient(params, CONFIG)
  np.testing.assert_allclose(value, expected_value, rtol=1e-5)
  chex.assert_trees_all_close(unstack(actual), expected, atol=2e-4, rtol=1e-4)


def kept(config):
  """The sizes of what is kept for the backward pass of a row of 7 tokens."""
  batch = left_padded((7,), 7)
  run = lambda params: apply(config, params, *batch)[0]  # noqa: E731
  _, pull = jax.vjp(run, random_params(config))
  return [x.size for x in jax.tree.leaves(pull)]


def test_recomputing_keeps_less_between_the_passes():
  policies = ("full", "attention", "save_weight_products", "dots", "none")
  sizes = [sum(kept(but(remat=x))) for x in policies]
  assert sizes == sorted(set(sizes))


def test_policies_cost_what_they_recompute():
  # Layers alone: of a forward and a backward pass, which is twice it, a second
  # forward pass is a third, and without products next to nothing.
  config = but(num_layers=1, width=64, mlp_size=256)

  def flops(remat):
    chosen = dataclasses.replace(config, remat=remat)
    params = decoder.param_shapes(chosen)
    batch = left_padded((7, 7), 7)
    run = lambda params: jnp.sum(apply(chosen, params, *batch)[0])  # noqa: E731
    compiled = jax.jit(jax.grad(run)).lower(params).compile()
    return compiled.cost_analysis()["flops"]

  least = flops("none")
  assert flops("full") > 1.15 * least
  assert flops("dots") < 1.02 * least


def test_a_layer_keeps_no_norm_and_no_silu():
  # By hand: gate, up and their product alone are of the MLP's size; one number
  # a token is the token, and no norm's factor.
  sizes = kept(but(num_layers=1))
  assert sizes.count(7 * CONFIG.mlp_size) == 3
  assert sizes.count(7) == 1


def test_angles_are_computed_once_for_all_layers_and_heads():
  # In the program as it runs: what is written once may be computed often.
  batch = left_padded((7, 3), 7)

  def total(params):
    return jnp.sum(apply(CONFIG, params, *batch)[0] ** 2)

  for fn in (total, jax.grad(total)):
    program = jax.jit(fn).lower(random_params(CONFIG)).compile().as_text()
    assert program.count(" cosine(") == program.count(" sine(") == 1


def test_norms_and_angles_stay_float32_under_bfloat16():
  tokens, positions, valid = left_padded((7,), 7)
  far = positions + 257  # bfloat16 has no 257
  run = lambda p, c: apply(c, p, tokens, far, valid)[0]  # noqa: E731
  params, config = random_params(CONFIG), but(dtype="bfloat16")
  jaxpr = str(jax.make_jaxpr(run, static_argnums=1)(params, config))
  for line in jaxpr.splitlines():
    if any(name in line for name in (" rsqrt ", " sin ", " cos ", " exp ")):
      assert "bf16" not in line
  low, high = run(params, config), run(params, CONFIG)
  assert low.dtype == jnp.bfloat16
  assert jnp.abs(low.astype(jnp.float32) - high).max() < 0.15


@pytest.mark.parametrize("scan_layers", [False, True])
def test_every_axis_of_every_parameter_has_a_name(scan_layers):
  parts = dict(tied_head=False, qkv_bias=True, qk_norm=True, post_norm=True)
  config = but(scan_layers=scan_layers, **parts)
  sizes = dict(vocab=29, embed=22, heads=6, kv_heads=2, head_size=10, mlp=31)
  sizes["layers"] = 3
  params = decoder.init_params(config, jax.random.key(0))
  axes = decoder.logical_axes(config)

  def check(x, names):
    assert x.shape == tuple(sizes[name] for name in names)

  jax.tree.map(check, params, axes, is_leaf=lambda x: isinstance(x, tuple))


def test_parameters_are_a_function_of_the_key_and_logits_of_unit_scale():
  keys = map(jax.random.key, (0, 0, 1))
  a, b, c = (decoder.init_params(config_lib.TINY, key) for key in keys)
  chex.assert_trees_all_equal(a, b)
  assert (a["embedding"] != c["embedding"]).all()
  hidden, _ = apply(config_lib.TINY, a, *left_padded((16,), 16))
  logits = hidden @ decoder.head_kernel(a, config_lib.TINY)
  assert 0.5 < logits.std() < 2.0


def test_a_value_head_adds_a_vector_and_a_bias_that_are_0():
  critic = but(value_head=True)
  with_head, without = map(random_params, (critic, CONFIG))
  assert set(with_head) - set(without) == {"value_kernel", "value_bias"}
  added = decoder.add_value_head(without, critic)
  chex.assert_trees_all_equal_shapes_and_dtypes(added, with_head)
  hidden = jnp.ones((2, 3, CONFIG.width))
  np.testing.assert_array_equal(decoder.values(added, hidden), 0)
  axes = decoder.logical_axes(critic)
  assert (axes["value_kernel"], axes["value_bias"]) == (("embed",), (None,))
  # A product and a bias.
  params = {"value_kernel": jnp.arange(3.0), "value_bias": jnp.array([0.5])}
  hidden = jnp.array([[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]])
  np.testing.assert_array_equal(decoder.values(params, hidden), [8.5, 1.5])


@pytest.mark.parametrize("name", ["plain", "olmo2"])
def test_a_mesh_with_rules_changes_no_value(name):
  config = but(**VARIANTS[name])
  params = random_params(config)
  batch = left_padded((3, 7, 5, 6), 7)
  expected, _ = apply(config, params, *batch)
  kinds = (jax.sharding.AxisType.Auto,) * 2
  mesh = jax.make_mesh((2, 2), ("data", "tensor"), axis_types=kinds)
  rules = (("batch", "data"), ("kv_heads", "tensor"), ("heads", "tensor"))
  with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
    actual, _ = jax.jit(lambda p: apply(config, p, *batch))(params)
  assert not actual.sharding.is_fully_replicated
  valid = batch[2]
  np.testing.assert_allclose(actual[valid], expected[valid], atol=1e-5)
