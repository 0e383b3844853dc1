# SPDX-License-Identifier: Apache-2.0
"""Low-rank adapters: thin matrices that are trained in place of a model.

The adapters are a tree beside the model's, with an entry for each kernel that
they change. `merge` joins both to parameters like the model's own, which are
sampled from and exported; `attach` joins them without a copy, to learn.

  W' = W + (α / r) · A B,   A [in, r], B [r, out]

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1,
https://arxiv.org/abs/2106.09685
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from saw_jax import naming
from saw_jax.models import attention, decoder
from saw_jax.models.config import DecoderConfig
from saw_jax.settings import constant
from saw_jax.types import Array, PyTree

# The kernels of a layer, and how many of their axes are summed over.
_NAMES = ("query", "key", "value", "out", "gate", "up", "down")
TARGETS = {name: 2 if name == "out" else 1 for name in _NAMES}
# What a critic has beside the model: no matrix, and nothing to start from.
_VALUE_HEAD = ("value_kernel", "value_bias")


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """Which kernels get adapters, and how large those are."""

  # r, of each product; 0: no adapters, the whole model is trained
  rank: int = 0
  # α; the product is multiplied by α / r.
  alpha: float = constant(16.0)
  # Kernels, in every layer.
  targets: tuple[str, ...] = constant(tuple(TARGETS))
  seed: int = constant(0)  # of A

  def __post_init__(self):
    naming.check_range(self, "[0, inf)", "lora.rank")
    naming.check_range(self, "(0, inf)", "lora.alpha")
    # A config file holds lists; a config must be hashable.
    object.__setattr__(self, "targets", tuple(self.targets))
    for name in self.targets:
      if name not in TARGETS:
        near = naming.nearest(str(name), list(TARGETS))
        raise ValueError(f"unknown kernel {name!r} in lora.targets: {near}")
    if self.rank and not self.targets:
      raise ValueError("lora.targets is empty: name one, or set lora.rank=0.")


def check_config(config: LoraConfig, decoder_config: DecoderConfig) -> None:
  """Refuses adapters that would be larger than what they adapt."""

  def check(name, lead, inputs, outputs):
    sizes = math.prod(inputs), math.prod(outputs)
    if config.rank > min(sizes):
      raise ValueError(
        f"lora.rank is {config.rank}, and kernel {name!r} is a matrix of "
        f"{sizes[0]} x {sizes[1]}: take a rank of at most {min(sizes)}, or "
        "leave it out of lora.targets."
      )

  _for_kernels(decoder.param_shapes(decoder_config), config, check)


def init_adapters(
  params: PyTree, config: LoraConfig, decoder_config: DecoderConfig
) -> dict:
  """Makes the adapters of a model that has none.

  A is normal of variance 1 / in, and B is 0: the merged model is the model. The
  tree has `{"a": [..., in, r], "b": [..., r, out]}` for a chosen kernel, whose
  axes stay apart, and a value head as the model has it. float32 whatever the
  model is in: updates of 1e-5 vanish in bfloat16.
  """
  check_config(config, decoder_config)
  root, numbers = jax.random.key(config.seed), itertools.count()

  def draw(name, lead, inputs, outputs):
    key = jax.random.fold_in(root, next(numbers))
    a = jax.random.normal(key, (*lead, *inputs, config.rank))
    b = jnp.zeros((*lead, config.rank, *outputs))
    return {"a": a / math.sqrt(math.prod(inputs)), "b": b}

  adapters = _for_kernels(params, config, draw)
  for name in _VALUE_HEAD:
    if name in params:
      adapters[name] = jnp.array(params[name], jnp.float32)
  return adapters


def adapter_axes(config: LoraConfig, decoder_config: DecoderConfig) -> dict:
  """Names the axes of each adapter: the kernel's, and None for the rank."""
  named = decoder.logical_axes(decoder_config)

  def pair(name, lead, inputs, outputs):
    return {"a": (*lead, *inputs, None), "b": (*lead, None, *outputs)}

  axes = _for_kernels(named, config, pair)
  return axes | {name: named[name] for name in _VALUE_HEAD if name in named}


def attach(params: PyTree, adapters: PyTree, config: LoraConfig) -> PyTree:
  """Puts each adapter beside its kernel, for what differentiates.

  The decoder then computes `x W + (α / r) (x A) B`: no merged copy is made, and
  no gradient of a whole kernel.
  """

  def beside(kernel: Array, a: Array, b: Array) -> attention.Adapted:
    return attention.Adapted(kernel, a, b, config.alpha / config.rank)

  return _join(params, adapters, beside)


def merge(params: PyTree, adapters: PyTree, config: LoraConfig) -> PyTree:
  """Adds the product of each adapter to its kernel, in float32."""
  product = functools.partial(jnp.tensordot, axes=1, precision="highest")

  def add(kernel: Array, a: Array, b: Array) -> Array:
    # All axes but the two of the rank: that of the layers is there twice.
    is_stacked = a.ndim + b.ndim - 2 > kernel.ndim
    change = (jax.vmap(product) if is_stacked else product)(a, b)
    change = config.alpha / config.rank * change
    return (kernel.astype(jnp.float32) + change).astype(kernel.dtype)

  return _join(params, adapters, add)


def _join(params: PyTree, adapters: PyTree, join: Callable) -> PyTree:
  joined = dict(params)
  for name, adapter in adapters.items():
    if name in _VALUE_HEAD:
      joined[name] = adapter.astype(params[name].dtype)
    elif name not in TARGETS:
      joined[name] = _join(params[name], adapter, join)
    else:
      joined[name] = join(params[name], adapter["a"], adapter["b"])
  return joined


def _for_kernels(tree: PyTree, config: LoraConfig, make: Callable) -> dict:
  """Makes something of each chosen kernel, in a tree like the model's."""

  def walk(node: dict, lead: int) -> dict:
    made = {}
    for name, leaf in sorted(node.items()):
      if name in config.targets:
        axes = leaf if isinstance(leaf, tuple) else leaf.shape
        middle = lead + TARGETS[name]
        made[name] = make(name, axes[:lead], axes[lead:middle], axes[middle:])
      elif isinstance(leaf, dict):
        made[name] = walk(leaf, lead or int(name == "layers"))
    return {name: x for name, x in made.items() if x != {}}

  return walk(tree, 0)
