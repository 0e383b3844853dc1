"""A sampler's weights, and its rows, where devices have their own.

The learner splits its weights over `fsdp`: a sampler that read them so would
gather the whole model for every token. Its own copy is made once for each
version, in the dtype that the decoder computes in, and is whole on each device,
or split over `tensor`. Each shard of rows has a loop of its own, which ends
with its rows.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from saw_jax.models.config import DecoderConfig
from saw_jax.rollout.transcript import Transcript
from saw_jax.training import parallel
from saw_jax.types import PyTree

# What the decoder computes in float32, whatever its dtype.
_FLOAT32 = ("scale", "value_kernel", "value_bias")


def layout(
  lift: parallel.Lift, config: DecoderConfig, params: PyTree
) -> PyTree:
  """Shapes of a sampler's parameters, with places where there is a mesh."""

  def like(path, x, place):
    dtype = _dtype(path, x, config)
    return jax.ShapeDtypeStruct(x.shape, dtype, sharding=place)

  if lift.name != "meshed":
    return jax.tree_util.tree_map_with_path(
      lambda path, x: like(path, x, None), params
    )
  rules = parallel.SAMPLING_RULES
  places = parallel.param_shardings(lift.mesh, config, rules)
  return jax.tree_util.tree_map_with_path(like, params, places)


def lay_out(
  lift: parallel.Lift, config: DecoderConfig, params: PyTree
) -> PyTree:
  """Copies what of the learner's parameters is not as a sampler has it."""
  leaves, treedef = jax.tree.flatten(params)
  wanted = treedef.flatten_up_to(layout(lift, config, params))
  chosen = differing(leaves, wanted)
  if chosen:
    copy = copier(tuple((wanted[i].dtype, wanted[i].sharding) for i in chosen))
    copied = copy(tuple(leaves[i] for i in chosen))
    for i, x in zip(chosen, copied, strict=True):
      leaves[i] = x
  return jax.tree.unflatten(treedef, leaves)


def _dtype(path, x: jax.Array, config: DecoderConfig):
  """That of activations, where a parameter is cast to it and is no smaller."""
  dtype = jnp.dtype(config.dtype)
  keeps = path[-1].key in _FLOAT32 or x.dtype.itemsize <= dtype.itemsize
  return x.dtype if keeps else dtype


def differing(leaves: Sequence, wanted: Sequence) -> list[int]:
  """Which of the learner's arrays a sampler does not have as they are."""

  def is_other(x, like) -> bool:
    if x.dtype != like.dtype:
      return True
    place = like.sharding
    return place is not None and not x.sharding.is_equivalent_to(place, x.ndim)

  pairs = enumerate(zip(leaves, wanted, strict=True))
  return [i for i, (x, like) in pairs if is_other(x, like)]


@functools.cache
def copier(wanted: tuple) -> Callable:
  """Makes the program that copies arrays to dtypes and places."""
  dtypes, places = zip(*wanted, strict=True)

  def copy(leaves):
    cast = lambda x, dtype: x.astype(dtype)  # noqa: E731
    return tuple(map(cast, leaves, dtypes))

  return jax.jit(copy, out_shardings=None if None in places else places)


class Weights:
  """Holds the copy of the version that was sampled from last."""

  def __init__(self, lift: parallel.Lift, config: DecoderConfig):
    self._lay_out = functools.partial(lay_out, lift, config)
    self._held: tuple[PyTree, PyTree] = (None, None)  # a copy, and what of

  def of(self, params: PyTree) -> PyTree:
    held = self._held  # Threads of actors have versions of their own.
    if held[1] is not params:
      self._held = held = self._lay_out(params), params
    return held[0]

  def drop(self) -> None:
    self._held = (None, None)


def wrap(lift: parallel.Lift, config: DecoderConfig, fn: Callable) -> Callable:
  """Lifts a sampler of parameters, prompts and keys.

  Under `seeded` it has lanes, of which a device has its own; else it is of one
  seed, of which a device has some prompts with all of their rows.
  """
  kinds = (parallel.STATE, parallel.ROWS, parallel.ROWS), (parallel.ROWS,)
  if lift.name == "seeded":
    own = functools.partial(jax.shard_map, fn, mesh=lift.mesh, check_vma=False)
    by_seed = PartitionSpec("seed")
    return jax.jit(own(in_specs=by_seed, out_specs=by_seed))
  if lift.name == "meshed":
    rules = _rules_that_fit(config, lift.mesh.shape["tensor"])
    return _numbered(lift.wrap(on_shards(fn), *kinds, rules=rules))
  return _numbered(lift.wrap(fn, *kinds))


def _numbered(sample: Callable) -> Callable:
  """Numbers the groups of all devices; each has counted its own from 0."""

  def numbered(params, prompts, row_keys) -> Transcript:
    shape, num_prompts = row_keys.shape, prompts.lengths.shape[1]
    ids = np.arange(shape[1], dtype=np.int32) // (shape[1] // num_prompts)
    found = sample(params, prompts, row_keys)
    return found.replace(group_ids=np.tile(ids, (shape[0], 1)))

  return numbered


def _rules_that_fit(config: DecoderConfig, parts: int) -> tuple:
  """Those of sampling, but that what does not divide evenly is whole.

  Padded parts are sent from neighbour to neighbour over the whole mesh, in
  which loops of shards end at different times.
  """
  sizes = dict(vocab=config.vocab_size, mlp=config.mlp_size)
  sizes |= dict(heads=config.num_heads, kv_heads=config.num_kv_heads)
  return tuple(
    (axis, None if sizes.get(axis, 0) % parts else name)
    for axis, name in parallel.SAMPLING_RULES
  )


def on_shards(fn: Callable) -> Callable:
  """Runs a sampler on each shard's rows, of the mesh that is set."""
  axes = "data", "fsdp"
  rows = PartitionSpec(axes)
  return jax.shard_map(
    fn,
    in_specs=(PartitionSpec(), rows, rows),
    out_specs=rows,
    axis_names={*axes},
    check_vma=False,
  )
