# SPDX-License-Identifier: Apache-2.0
"""Grouped-query attention with rotary positions."""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from saw_jax.models.config import DecoderConfig
from saw_jax.models.kernels import MIXED
from saw_jax.types import Array

# The score of a hidden key. Finite, so that a query that sees no key at all (a
# left pad) gets the plain mean of the values and not NaN.
MASKED = -1e30

# Bands of queries in `attend_causally`: each is compiled.
_MOST_BANDS, _LEAST_BAND = 4, 64

# Keys [B, K, H, S] and values [B, K, S, H].
LayerCache = tuple[Array, Array]
# Goes from queries, keys and values of new tokens, and what the layer has read
# before, to the mixed values and what has been read now.
Mixer = Callable[
  [Array, Array, Array, LayerCache | None], tuple[Array, LayerCache | None]
]
# Sines and cosines or no rotation, and what the tokens of a layer see.
Place = tuple[tuple[Array, Array] | None, Mixer]


@flax.struct.dataclass
class Adapted:
  """A kernel W and what is added to it, scale · A B, which is never made."""

  kernel: Array  # [D..., F...]
  a: Array  # [D..., r]
  b: Array  # [r, F...]
  scale: float = flax.struct.field(pytree_node=False, default=1.0)


def project(x: Array, kernel: Array | Adapted) -> Array:
  """Multiplies the last axis of `[..., D]` by a kernel, in the dtype of `x`.

  The kernel's leading axes, together, are of that size. The tokens of all rows
  are laid in one axis, and the kernel's gradient is taken as `xᵀ g`. Left to
  differentiation it is the transpose of a sum over two axes, for which XLA
  copies activations on a CPU: the backward pass of an MLP then takes twice as
  long. There is a rule for reverse mode alone.
  """
  if isinstance(kernel, Adapted):
    change = project(project(x, kernel.a), kernel.b)
    return project(x, kernel.kernel) + kernel.scale * change
  kernel_DF = kernel.astype(x.dtype).reshape(x.shape[-1], -1)
  x_ND, kernel_DF = equally_varying(x.reshape(-1, x.shape[-1]), kernel_DF)
  return _matmul(x_ND, kernel_DF).reshape(*x.shape[:-1], kernel_DF.shape[-1])


@jax.custom_vjp
def _matmul(x_ND: Array, kernel_DF: Array) -> Array:
  return x_ND @ kernel_DF


def _forward(x_ND, kernel_DF):
  return x_ND @ kernel_DF, (x_ND, kernel_DF)


def _backward(residuals, g_NF):
  x_ND, kernel_DF = residuals
  contract = lambda a, b, axis: jax.lax.dot_general(  # noqa: E731
    a, b, (((axis,), (axis,)), ((), ()))
  )
  return contract(g_NF, kernel_DF, 1), contract(x_ND, g_NF, 0)


_matmul.defvjp(_forward, _backward)


def equally_varying(*arrays: Array) -> tuple[Array, ...]:
  """Inside `shard_map`, marks all arrays as varying where any of them varies.

  The transpose of the mark is a sum over devices, so that a kernel which is the
  same on all devices gets the gradient of all of them.
  """
  varying = [jax.typeof(x).manual_axis_type.varying for x in arrays]
  everywhere = frozenset().union(*varying)
  return tuple(
    jax.lax.pcast(x, tuple(everywhere - axes), to="varying")
    if everywhere - axes
    else x
    for x, axes in zip(arrays, varying, strict=True)
  )


def declare(
  module: nn.Module, name: str, init: Callable, shape: tuple, axes: tuple
) -> Array:
  """Adds a parameter with named axes to a module that has a config."""
  init = nn.with_logical_partitioning(init, axes)
  return module.param(name, init, shape, module.config.param_dtype)


class RMSNorm(nn.Module):
  """Divides by the root mean square, in float32, and scales."""

  config: DecoderConfig
  axis: str = "embed"  # logical name of the last axis

  @nn.compact
  def __call__(self, x: Array) -> Array:
    ones = nn.initializers.ones
    scale = declare(self, "scale", ones, x.shape[-1:], (self.axis,))
    return _normalize(x, scale, self.config.norm_eps, self.config.dtype)


# The backward pass normalises again, and keeps nothing but the stream for it.
@functools.partial(jax.checkpoint, static_argnums=(2, 3))
def _normalize(x: Array, scale: Array, eps: float, dtype: str) -> Array:
  x = x.astype(jnp.float32)
  x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + eps)
  scale = scale.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))
  return (x * scale).astype(dtype)


def rotary_tables(
  positions_BS: Array, config: DecoderConfig
) -> tuple[Array, Array]:
  """Returns scaled float32 sines and cosines of angles, `[B, S, R / 2]`.

  angle(p, i) = p · theta^(−2i / R) / factorᵢ,   i < R / 2 (the rotary size)
  """
  rotary_size, scale = config.rotary_size or config.head_size, config.rope_scale
  # float32 whatever the activations are: bfloat16 rounds position 257 to 256.
  exponents = jnp.arange(0, rotary_size, 2, dtype=jnp.float32) / rotary_size
  frequencies = config.rope_theta ** -exponents.reshape(1, 1, -1)
  if config.rope_factors:
    factors = jnp.array(config.rope_factors, jnp.float32)
    frequencies = frequencies / factors.reshape(1, 1, -1)
  angles = positions_BS.astype(jnp.float32)[..., None] * frequencies
  if angles.shape[1] == 1 or jax.default_backend() != "cpu":
    return scale * jnp.sin(angles), scale * jnp.cos(angles)

  # XLA would compute them again in each layer and for each head, even behind a
  # barrier. What comes out of a loop it keeps.
  def table(is_sin: Array) -> Array:
    sin, cos = scale * jnp.sin(angles), scale * jnp.cos(angles)
    return jnp.where(is_sin, sin, cos)

  return tuple(jax.lax.map(table, jnp.array([True, False])))


def rotate(x_BSNH: Array, rotary: tuple[Array, Array]) -> Array:
  """Rotates each pair `(h, h + R / 2)` of a head, in float32."""
  size = 2 * rotary[0].shape[-1]
  if size < x_BSNH.shape[-1]:
    rotated = rotate(x_BSNH[..., :size], rotary)
    return jnp.concatenate([rotated, x_BSNH[..., size:]], axis=-1)
  sin, cos = (table[:, :, None, :] for table in rotary)
  first, second = jnp.split(x_BSNH.astype(jnp.float32), 2, axis=-1)
  rotated = jnp.concatenate(
    [first * cos - second * sin, second * cos + first * sin], axis=-1
  )
  return rotated.astype(x_BSNH.dtype)


def attend(
  q_BSNH: Array, k_BKHT: Array, v_BKTH: Array, mask_BST: Array
) -> Array:
  """Mixes the values that each query may see, into `[B, S, N, H]`.

  `N / K` query heads share a key. A query that may see no key gets the plain
  mean of the values.
  """
  B, S, N, H = q_BSNH.shape
  K = k_BKHT.shape[1]
  # Keys have positions last: scores are sums of whole lines then, which makes
  # decoding on a CPU up to 1.4 times faster.
  q_BKGSH = q_BSNH.reshape(B, S, K, N // K, H).transpose(0, 2, 3, 1, 4)
  scores = jnp.einsum(
    "bkgsh,bkht->bkgst", q_BKGSH, k_BKHT, preferred_element_type=jnp.float32
  ) / math.sqrt(H)
  scores = jnp.where(mask_BST[:, None, None], scores, MASKED)
  probs = jax.nn.softmax(scores, axis=-1).astype(v_BKTH.dtype)
  mixed_BKGSH = jnp.einsum("bkgst,bkth->bkgsh", probs, v_BKTH)
  return mixed_BKGSH.transpose(0, 3, 1, 2, 4).reshape(B, S, N, H)


def attend_causally(
  q_BSNH: Array, k_BKHS: Array, v_BKSH: Array, mask_BSS: Array
) -> Array:
  """Computes `attend` where no query may see a later key.

  A band of queries is compared with the keys up to its end: with two bands a
  quarter of the scores are never made, with four three eighths. A query that
  may see no key gets the mean of some of the values.
  """
  S = q_BSNH.shape[1]
  bands = max(1, min(_MOST_BANDS, S // _LEAST_BAND))
  ends = [-(-S * (i + 1) // bands) for i in range(bands)]
  return jnp.concatenate(
    [
      attend(
        q_BSNH[:, start:end],
        k_BKHS[..., :end],
        v_BKSH[:, :, :end],
        mask_BSS[:, start:end, :end],
      )
      for start, end in zip([0, *ends], ends, strict=False)
    ],
    axis=1,
  )


def masks(
  config: DecoderConfig, seen_BST: Array, at_BS: Array, at_BT: Array
) -> list[Array]:
  """What queries at some positions see of keys at others, in each layer."""
  return [
    seen_BST & (at_BS[:, :, None] - at_BT[:, None, :] < window)
    if 0 < window < at_BT.shape[1]
    else seen_BST
    for window in config.windows or (0,) * config.num_layers
  ]


@flax.struct.dataclass
class Rows:
  """A `Mixer` of whole rows, under a mask."""

  mask_BSS: Array

  def __call__(self, q_BSNH, k_BSKH, v_BSKH, cache):
    k_BKHS, v_BKSH = _places_inside(k_BSKH, v_BSKH)
    mixed_BSNH = attend_causally(q_BSNH, k_BKHS, v_BKSH, self.mask_BSS)
    return checkpoint_name(mixed_BSNH, MIXED), cache


@flax.struct.dataclass
class Filled:
  """A `Mixer` of tokens that follow those in a cache."""

  mask_BST: Array
  index: Array  # the place that is written next

  def __call__(self, q_BSNH, k_BSKH, v_BSKH, cache):
    k_BKHS, v_BKSH = _places_inside(k_BSKH, v_BSKH)
    write = jax.lax.dynamic_update_slice
    k_BKHT = write(cache[0], k_BKHS, (0, 0, 0, self.index))
    v_BKTH = write(cache[1], v_BKSH, (0, 0, self.index, 0))
    mixed_BSNH = attend(q_BSNH, k_BKHT, v_BKTH, self.mask_BST)
    return mixed_BSNH, (k_BKHT, v_BKTH)


def _places_inside(k_BSKH: Array, v_BSKH: Array) -> LayerCache:
  return k_BSKH.transpose(0, 2, 3, 1), v_BSKH.transpose(0, 2, 1, 3)


class Attention(nn.Module):
  """Queries, keys and values, their mixing, and the way back to the stream."""

  config: DecoderConfig

  @nn.compact
  def __call__(
    self, x_BSD: Array, cache: LayerCache | None, place: Place
  ) -> tuple[Array, LayerCache | None]:
    c, (rotary, mix) = self.config, place
    q_BSNH = self._project(x_BSD, "query", c.num_heads, "heads")
    k_BSKH = self._project(x_BSD, "key", c.num_kv_heads, "kv_heads")
    v_BSKH = self._project(x_BSD, "value", c.num_kv_heads, "kv_heads")
    if c.qk_norm:
      q_BSNH = RMSNorm(c, "head_size", name="query_norm")(q_BSNH)
      k_BSKH = RMSNorm(c, "head_size", name="key_norm")(k_BSKH)
    if rotary is not None:
      q_BSNH, k_BSKH = rotate(q_BSNH, rotary), rotate(k_BSKH, rotary)
    mixed_BSNH, cache = mix(q_BSNH, k_BSKH, v_BSKH, cache)
    mixed_BSNH = nn.with_logical_constraint(
      mixed_BSNH, ("batch", "length", "heads", "head_size")
    )
    # Each layer adds twice to the stream: keep its variance flat in L.
    init = nn.initializers.variance_scaling(
      0.5 / c.num_layers, "fan_in", "normal", in_axis=(0, 1), out_axis=2
    )
    shape = (c.num_heads, c.head_size, c.width)
    axes = ("heads", "head_size", "embed")
    kernel_NHD = declare(self, "out", init, shape, axes)
    mixed_BSF = mixed_BSNH.reshape(*mixed_BSNH.shape[:2], -1)
    return project(mixed_BSF, kernel_NHD), cache

  def _project(
    self, x_BSD: Array, name: str, num_heads: int, axis: str
  ) -> Array:
    c = self.config
    init = nn.initializers.variance_scaling(
      1.0, "fan_in", "normal", in_axis=0, out_axis=(1, 2)
    )
    shape = (c.width, num_heads, c.head_size)
    kernel_DNH = declare(self, name, init, shape, ("embed", axis, "head_size"))
    x_BSF = project(x_BSD, kernel_DNH)
    x_BSNH = x_BSF.reshape(*x_BSD.shape[:2], num_heads, c.head_size)
    if c.qkv_bias:
      zeros, axes = nn.initializers.zeros, (axis, "head_size")
      bias_NH = declare(self, f"{name}_bias", zeros, shape[1:], axes)
      x_BSNH = x_BSNH + bias_NH.astype(c.dtype)[None, None]
    if c.wide_qk_norm and name != "value":
      norm = RMSNorm(c, axis, name=f"{name}_norm")
      x_BSNH = norm(x_BSNH.reshape(*x_BSD.shape[:2], -1)).reshape(x_BSNH.shape)
    return nn.with_logical_constraint(
      x_BSNH, ("batch", "length", axis, "head_size")
    )
