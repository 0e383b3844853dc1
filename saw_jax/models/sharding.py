# SPDX-License-Identifier: Apache-2.0
"""Functions that each device of a mesh runs on its own part of the arrays."""

import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from saw_jax.types import Array, PyTree

# Logical names of an array's axes, `None` for one without.
Names = Sequence[str | None]


def split(
  names: Names, shape: Sequence[int]
) -> tuple[tuple[str, ...] | None, ...]:
  """The mesh axes that split an array, a tuple or `None` for each of its axes.

  They are of the mesh and of Flax's logical rules that are set where it is
  called. An axis that does not divide evenly is kept whole, but for "batch".
  """
  mesh = jax.sharding.get_abstract_mesh()
  kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))

  def part(name: str | None, size: int, axes) -> tuple[str, ...] | None:
    axes = (axes,) if isinstance(axes, str) else axes or ()
    axes = tuple(
      axis
      for axis in axes
      if kinds.get(axis) == AxisType.Auto and mesh.shape[axis] > 1
    )
    fits = name == "batch" or size % _count(axes) == 0
    return axes if axes and fits else None

  found = nn.logical_to_mesh_axes(tuple(names)) or [None] * len(names)
  return tuple(map(part, names, shape, found))


def head_names(num_kv_heads: int) -> tuple[str | None, str | None]:
  """Names of query and key heads; none where all are on all devices."""
  is_split = split(("kv_heads",), (num_kv_heads,))[0]
  return ("heads", "kv_heads") if is_split else (None, None)


def on_each_device(
  fn: Callable[..., PyTree],
  args: Sequence[Array],
  names: Sequence[Names],
  out_names: Names,
  *,
  check_vma: bool = True,
  is_kernel: bool = False,
) -> PyTree:
  """Calls `fn` by `shard_map` where arrays are split, else as it is.

  Kernels are always, on a mesh: XLA has none in a program that it splits. Where
  rows do not divide evenly there are more of them, of zeros, meanwhile;
  results have the first argument's first axis.
  """
  shapes = [x.shape for x in args]
  specs = list(map(split, names, shapes))
  kinds = jax.sharding.get_abstract_mesh().axis_types
  is_split = any(axes for spec in specs for axes in spec)
  if not (is_split or (is_kernel and AxisType.Auto in kinds)):
    return fn(*args)
  rows = len(args[0])
  lack = -rows % _count(specs[0][0] or ())

  def pad(x: Array, names: Names) -> Array:
    if not lack or names[0] != "batch":
      return x
    return jnp.pad(x, [(0, lack)] + [(0, 0)] * (x.ndim - 1))

  lifted = jax.shard_map(
    fn,
    in_specs=tuple(PartitionSpec(*spec) for spec in specs),
    out_specs=PartitionSpec(*split(out_names, shapes[0])),
    check_vma=check_vma,
  )
  found = lifted(*map(pad, args, names))
  return jax.tree.map(lambda x: x[:rows], found) if lack else found


def _count(axes: Sequence[str]) -> int:
  mesh = jax.sharding.get_abstract_mesh()
  return math.prod(mesh.shape[axis] for axis in axes)
