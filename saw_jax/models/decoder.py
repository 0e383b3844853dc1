# SPDX-License-Identifier: Apache-2.0
"""The decoder: one config-driven transformer, with or without a cache."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from saw_jax.models import attention, kernels
from saw_jax.models.attention import RMSNorm, declare, project
from saw_jax.models.cache import KVCache
from saw_jax.models.config import DecoderConfig
from saw_jax.models.paged import PagedCache
from saw_jax.types import Array

_policies = jax.checkpoint_policies
_products = _policies.dots_with_no_batch_dims_saveable
_attention = _policies.save_only_these_names(kernels.MIXED)
_REMAT = {
  "full": _policies.nothing_saveable,
  "save_weight_products": _products,
  "attention": _attention,
  "dots": _policies.save_from_both_policies(_products, _attention),
  "offload": _policies.save_and_offload_only_these_names(
    names_which_can_be_saved=[],
    names_which_can_be_offloaded=["layer"],
    offload_src="device",
    offload_dst="pinned_host",
  ),
}


# The backward pass makes silu(gate) again: one array of the MLP's width less to
# keep for each layer, and on CPUs the step is no slower for it.
@jax.checkpoint
def _gate(gate_BSF: Array, up_BSF: Array) -> Array:
  return jax.nn.silu(gate_BSF) * up_BSF


class MLP(nn.Module):
  """SwiGLU: `silu(x gate) * (x up)`, then back to the stream."""

  config: DecoderConfig

  @nn.compact
  def __call__(self, x_BSD: Array) -> Array:
    c = self.config

    def kernel(name, shape, axes, scale):
      init = nn.initializers.variance_scaling(scale, "fan_in", "normal")
      return declare(self, name, init, shape, axes)

    shape, axes = (c.width, c.mlp_size), ("embed", "mlp")
    gate_DF = kernel("gate", shape, axes, 1.0)
    up_DF = kernel("up", shape, axes, 1.0)
    down_FD = kernel("down", shape[::-1], axes[::-1], 0.5 / c.num_layers)
    x_BSF = _gate(project(x_BSD, gate_DF), project(x_BSD, up_DF))
    x_BSF = nn.with_logical_constraint(x_BSF, ("batch", "length", "mlp"))
    return project(x_BSF, down_FD)


class Layer(nn.Module):
  """Attention and MLP, each added to the stream, normalised before or after."""

  config: DecoderConfig

  @nn.compact
  def __call__(self, x_BSD, cache, place: attention.Place):
    c = self.config

    def around(name):  # what is called before a part, and after it
      norm, same = RMSNorm(c, name=name), lambda x: x
      return (same, norm) if c.post_norm else (norm, same)

    x_BSD = checkpoint_name(x_BSD, "layer")
    with jax.named_scope("attention"):
      before, after = around("attention_norm")
      out_BSD, cache = attention.Attention(c, name="attention")(
        before(x_BSD), cache, place
      )
      x_BSD = x_BSD + after(out_BSD)
    with jax.named_scope("mlp"):
      before, after = around("mlp_norm")
      x_BSD = x_BSD + after(MLP(c, name="mlp")(before(x_BSD)))
    x_BSD = nn.with_logical_constraint(x_BSD, ("batch", "length", "embed"))
    return x_BSD, cache


class Decoder(nn.Module):
  """Reads tokens, and returns what the head needs to guess each next one."""

  config: DecoderConfig

  @nn.compact
  def __call__(
    self,
    tokens_BS: Array,
    positions_BS: Array,
    valid_BS: Array | None,
    cache: KVCache | PagedCache | None = None,
    *,
    segment_ids: Array | None = None,
  ) -> tuple[Array, KVCache | PagedCache | None]:
    """Runs the stream from the embedding to the last norm, `[B, S, D]`.

    Positions count from 0 at a row's first real token. Padding (`valid_BS`
    False, or segment 0) is never attended to; what is returned there is finite
    and means nothing. Packed rows have `segment_ids` `[B, S]` in place of
    `valid_BS`: tokens see tokens of their own segment. With a cache, the tokens
    follow those in it, and it is returned with them added.
    """
    c = self.config
    if (valid_BS is None) == (segment_ids is None):
      raise ValueError("Pass either valid_BS or segment_ids.")
    if cache is not None and segment_ids is not None:
      raise ValueError("A cache holds one sequence per row: no segment_ids.")

    normal = nn.initializers.normal(c.width**-0.5)
    shape = (c.vocab_size, c.width)
    embedding_VD = declare(self, "embedding", normal, shape, ("vocab", "embed"))
    if not c.tied_head:
      # Declared here and applied by the caller, see `head_kernel`.
      declare(self, "head", normal, shape[::-1], ("embed", "vocab"))
    if c.value_head:  # Applied by the caller, see `values`.
      zeros = nn.initializers.zeros
      declare(self, "value_kernel", zeros, (c.width,), ("embed",))
      declare(self, "value_bias", zeros, (1,), (None,))

    x_BSD = jnp.take(embedding_VD.astype(c.dtype), tokens_BS, axis=0)
    x_BSD = nn.with_logical_constraint(x_BSD, ("batch", "length", "embed"))
    layer_caches = None
    if cache is None:
      mixers = self._mixers(valid_BS, segment_ids)
    else:
      layer_caches = cache.keys, cache.values
      mixers, cache = cache.mixers(c, positions_BS, valid_BS)
    rotary = attention.rotary_tables(positions_BS, c)
    rotated = c.rotated or (True,) * c.num_layers
    places = [
      (rotary if rotates else None, mixer)
      for rotates, mixer in zip(rotated, mixers, strict=True)
    ]
    x_BSD, layer_caches = self._layers(x_BSD, layer_caches, places)
    x_BSD = RMSNorm(c, name="final_norm")(x_BSD)
    if cache is not None:
      cache = cache.replace(keys=layer_caches[0], values=layer_caches[1])
    return x_BSD, cache

  def _mixers(self, valid_BS, segment_ids) -> list[attention.Mixer]:
    """What the tokens of whole rows see in each layer."""
    c = self.config
    if kernel := kernels.choose(c):
      if segment_ids is None:
        segment_ids = valid_BS.astype(jnp.int32)
      windows = c.windows or (0,) * c.num_layers
      return [kernel(segment_ids, window) for window in windows]
    if segment_ids is None:
      seen_BSS = valid_BS[:, None, :]
    else:
      seen_BSS = segment_ids[:, None, :] > 0
      seen_BSS &= segment_ids[:, None, :] == segment_ids[:, :, None]
    order_1S = jnp.arange(seen_BSS.shape[-1])[None]
    seen_BSS = (order_1S[:, :, None] >= order_1S[:, None, :]) & seen_BSS
    masks = attention.masks(c, seen_BSS, order_1S, order_1S)
    return list(map(attention.Rows, masks))

  def _layers(self, x_BSD, layer_caches, places: list[attention.Place]):
    c, layer = self.config, Layer
    if c.remat != "none":
      # A scan keeps the recomputation apart by itself.
      layer = nn.remat(
        Layer, policy=_REMAT[c.remat], prevent_cse=not c.scan_layers
      )
    if c.scan_layers:
      layers = nn.scan(
        layer,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(0, nn.broadcast),
        length=c.num_layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
      )(c, name="layers")
      return layers(x_BSD, layer_caches, places[0])
    caches = [None] * c.num_layers
    if layer_caches is not None:
      caches = list(zip(*layer_caches, strict=True))
    for i, place in enumerate(places):
      x_BSD, caches[i] = layer(c, name=f"layer_{i}")(x_BSD, caches[i], place)
    return x_BSD, layer_caches and tuple(zip(*caches, strict=True))


def init_params(config: DecoderConfig, key: Array) -> dict:
  """Draws a plain tree of arrays; a scanned decoder has its layers stacked."""
  return nn.meta.unbox(_init(config, key))


@functools.partial(jax.jit, static_argnums=0)
def _init(config: DecoderConfig, key: Array) -> dict:
  tokens_BS = jnp.zeros((1, 1), jnp.int32)
  made = Decoder(config).init(key, tokens_BS, tokens_BS, tokens_BS == 0)
  return made["params"]


def param_shapes(config: DecoderConfig) -> dict:
  """Returns the tree of `init_params` with shapes and dtypes alone."""
  return nn.meta.unbox(_shapes(config))


@functools.cache
def _shapes(config: DecoderConfig) -> dict:
  return jax.eval_shape(functools.partial(_init, config), jax.random.key(0))


def logical_axes(config: DecoderConfig) -> dict:
  """Names the axes of each parameter, in the tree of `init_params`."""
  names = lambda box: tuple(box.names)  # noqa: E731
  is_box = lambda x: isinstance(x, nn.meta.AxisMetadata)  # noqa: E731
  return jax.tree.map(names, _shapes(config), is_leaf=is_box)


def head_kernel(params: dict, config: DecoderConfig) -> Array:
  """Returns the matrix `[D, V]` from the stream to the logits."""
  return params["embedding"].T if config.tied_head else params["head"]


def values(params: dict, hidden: Array) -> Array:
  """Returns v · x + b of the last stream, float32; 0 before training."""
  hidden = hidden.astype(jnp.float32)
  kernel = params["value_kernel"].astype(jnp.float32)
  return jnp.matmul(hidden, kernel) + params["value_bias"][0]


def add_value_head(params: dict, config: DecoderConfig) -> dict:
  """Gives parameters without a value head one that is 0 everywhere."""
  kernel = jnp.zeros((config.width,), config.param_dtype)
  bias = jnp.zeros((1,), config.param_dtype)
  return params | {"value_kernel": kernel, "value_bias": bias}


def unstack_layers(params: dict) -> dict:
  """Turns the entry `layers` of a scanned decoder into one for each layer."""
  rest = dict(params)
  stacked = rest.pop("layers")
  layers = {
    f"layer_{i}": jax.tree.map(lambda x, i=i: x[i], stacked)
    for i in range(len(jax.tree.leaves(stacked)[0]))
  }
  return rest | layers
