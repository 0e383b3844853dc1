"""Kernels of attention against bands of scores, which are the definition."""

import dataclasses
import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saw_jax.models import attention, decoder, kernels, paged
from saw_jax.training import parallel, sampling
from tests.models.sizes import ODD

B, S, N, K, H = 2, 150, 4, 2, 16
# Two packed responses and padding at both ends; a row that is full.
SEGMENTS = np.zeros((B, S), np.int32)
SEGMENTS[0, 5:60], SEGMENTS[0, 60:140], SEGMENTS[1] = 1, 2, 1


def draw(dtype):
  rng = np.random.default_rng(0)
  sizes = (B, S, N, H), (B, S, K, H), (B, S, K, H)
  return [jnp.asarray(rng.standard_normal(size), dtype) for size in sizes]


def bands(q_BSNH, k_BSKH, v_BSKH, window):
  far = np.arange(S)[:, None] - np.arange(S)
  mask = SEGMENTS[:, :, None] == SEGMENTS[:, None]
  mask &= (far >= 0) & (far < (window or S)) & (SEGMENTS[:, None] > 0)
  keys, values = k_BSKH.transpose(0, 2, 3, 1), v_BSKH.transpose(0, 2, 1, 3)
  return attention.attend_causally(q_BSNH, keys, values, mask)


@functools.partial(jax.jit, static_argnums=(0, 1))
def both(fn, window, *args):
  """What is mixed, but for padding, and the gradients, all in float32."""

  def total(*args):
    mixed = fn(*args, window).astype(jnp.float32)
    mixed = jnp.where((SEGMENTS > 0)[..., None, None], mixed, 0.0)
    return jnp.sum(jnp.sin(mixed)), mixed

  gradients, mixed = jax.grad(total, (0, 1, 2), has_aux=True)(*args)
  return jax.tree.map(lambda x: x.astype(jnp.float32), (mixed, gradients))


def kernel(name, *args):
  return kernels.KERNELS[name](jnp.asarray(SEGMENTS), args[-1])(*args[:-1])[0]


# Off a TPU splash is interpreted, and off a GPU XLA stands for cuDNN.
@pytest.mark.parametrize("name", kernels.KERNELS)
@pytest.mark.parametrize(
  ("window", "dtype", "atol"),
  [(0, "float32", 1e-5), (40, "float32", 1e-5), (40, "bfloat16", 2e-2)],
)
def test_kernels_compute_what_bands_do(name, window, dtype, atol, monkeypatch):
  monkeypatch.setattr(kernels, "_TILE", 128)  # two tiles
  args = draw(dtype)
  found = both(functools.partial(kernel, name), window, *args)
  expected = both(bands, window, *args)
  chex.assert_trees_all_close(found, expected, atol=atol, rtol=atol)


@pytest.mark.parametrize(
  "sizes", [(1, 2, 2), pytest.param((1, 1, 4), marks=pytest.mark.slow)]
)
def test_devices_have_rows_and_heads_of_their_own(sizes):
  # Two heads of keys do not split over four devices: those have all heads.
  args = draw("float32")
  expected = both(bands, 0, *args)
  config = parallel.ParallelConfig("meshed", *sizes)
  with jax.set_mesh(parallel.make_mesh(config)):
    with nn.logical_axis_rules(parallel.RULES):
      found = both(functools.partial(kernel, "splash"), 0, *args)
  chex.assert_trees_all_close(found, expected, atol=1e-5)


@pytest.mark.parametrize("sizes", [(1, 4, 1), (1, 1, 4), (1, 2, 2)])
def test_kernels_are_lowered_for_a_mesh_of_tpus(sizes, monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
  pools = [jnp.zeros((K, 8, 16, 128), "bfloat16")] * 2

  def paged_rows(_, table, lengths, *token):  # on a sampler's shard of rows
    return paged.Pages(table, lengths, kernel=True)(*token, pools)[0]

  token = [jnp.zeros((4, 1, n, 128), "bfloat16") for n in (N, K, K)]
  rows = np.zeros((4, 8), np.int32), np.ones(4, np.int32), *token
  sample, splash = sampling.on_shards(paged_rows, 5), kernels.KERNELS["splash"]
  mesh = parallel.make_mesh(parallel.ParallelConfig("meshed", *sizes))
  for rules, fn, args in (
    (parallel.RULES, splash(jnp.asarray(SEGMENTS)).__call__, draw("bfloat16")),
    (parallel.SAMPLING_RULES, sample, (0, *rows)),
  ):
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
      traced = jax.jit(fn).trace(*args)
      text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert "tpu_custom_call" in text


@pytest.mark.parametrize("is_packed", [False, True])
def test_a_decoder_by_kernels_is_the_decoder(is_packed):
  sizes = dict(scan_layers=True, remat="full")
  if is_packed:
    sizes = dict(num_layers=2, windows=(0, 3))
  config = dataclasses.replace(ODD, **sizes)
  params = decoder.init_params(config, jax.random.key(0))
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, 29, (2, 9))
  positions = np.arange(9)[None] + np.zeros((2, 1), np.int32)
  segments = jnp.array([[1] * 4 + [2] * 5, [0] * 2 + [1] * 4 + [0] * 3])

  @functools.partial(jax.jit, static_argnums=0)
  def gradient(attention):
    def total(params):
      chosen = dataclasses.replace(config, attention=attention)
      fn = decoder.Decoder(chosen).apply
      valid = None if is_packed else segments > 0
      ids = {"segment_ids": segments if is_packed else None}
      hidden, _ = fn({"params": params}, tokens, positions, valid, **ids)
      real = (segments > 0)[..., None]
      return jnp.sum(jnp.where(real, jnp.sin(hidden), 0.0))

    return jax.value_and_grad(total)(params)

  found, expected = gradient("splash"), gradient("bands")
  chex.assert_trees_all_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
  ("platform", "dtype", "name"),
  [
    ("cpu", "bfloat16", None),
    ("tpu", "float32", "splash"),
    ("gpu", "bfloat16", "cudnn"),
    ("gpu", "float32", None),
  ],
)
def test_auto_takes_the_machines_kernel(platform, dtype, name, monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: platform)
  sizes = dict(attention="auto", dtype=dtype, head_size=16)
  chosen = kernels.choose(dataclasses.replace(ODD, **sizes))
  assert chosen is kernels.KERNELS.get(name)
