"""A sampler's weights, and its rows, where devices have their own.

The learner splits its weights over `fsdp`: a sampler that read them so would
gather the whole model for every token. Its own copy is made once for each
version, in the dtype that the decoder computes in, and is whole on each device,
or split over `tensor`. It may be on other devices than the learner's, each of
which gets its own part. Each shard of rows has a loop of its own, which ends
with its rows.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from saw_jax.models.config import DecoderConfig
from saw_jax.rollout.transcript import Transcript
from saw_jax.training import parallel
from saw_jax.types import PyTree

# What the decoder computes in float32, whatever its dtype.
_FLOAT32 = ("scale", "value_kernel", "value_bias")


def layout(
  lift: parallel.Lift, config: DecoderConfig, params: PyTree
) -> PyTree:
  """Shapes of a sampler's parameters, with their places.

  In place of a stack of layers a mesh's sampler has one layer: its layers come
  one by one, as one that took them out of the stack would have them twice
  while it runs.
  """

  def like(path, x, place):
    # That of activations, where a parameter is cast to it and is no smaller.
    dtype, shape = jnp.dtype(config.dtype), x.shape
    if path[-1].key in _FLOAT32 or x.dtype.itemsize <= dtype.itemsize:
      dtype = x.dtype
    if path[0].key == "layers" and lift.name == "meshed":
      shape = shape[1:]
      place = NamedSharding(place.mesh, PartitionSpec(*place.spec[1:]))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

  places = lift.sampling_places(params)
  return jax.tree_util.tree_map_with_path(like, params, places)


def lay_out(
  lift: parallel.Lift,
  config: DecoderConfig,
  params: PyTree,
  copy: Callable[..., Sequence] = lambda likes, *args: copier(likes)(*args),
) -> PyTree:
  """Copies those of the learner's parameters that a sampler has otherwise.

  `copy` is given what arrays are to be like, them, and of stacks which layer.
  """
  wanted = layout(lift, config, params)
  params = jax.tree.map(_bring, params, wanted)
  own = dict(params)
  stack = own.pop("layers", None) if lift.name == "meshed" else None
  leaves, treedef = jax.tree.flatten(own)
  likes = treedef.flatten_up_to({name: wanted[name] for name in own})
  if chosen := differing(leaves, likes):
    wants, has = (tuple(x[i] for i in chosen) for x in (likes, leaves))
    for i, x in zip(chosen, copy(wants, has), strict=True):
      leaves[i] = x
  own = jax.tree.unflatten(treedef, leaves)
  if stack:
    leaves, treedef = jax.tree.flatten(stack)
    wants = tuple(treedef.flatten_up_to(wanted["layers"]))
    for i in range(len(leaves[0])):
      own[f"layer_{i}"] = treedef.unflatten(copy(wants, tuple(leaves), i))
  return own


def _bring(x: jax.Array, like: jax.ShapeDtypeStruct) -> jax.Array:
  """Copies an array to other devices, if it belongs there."""
  place = like.sharding
  if x.sharding.device_set == place.device_set:
    return x
  axes = (None,) * (x.ndim - len(like.shape))  # of a stack
  place = NamedSharding(place.mesh, PartitionSpec(*axes, *place.spec))
  return reshard(x.astype(like.dtype), place)


def reshard(x: jax.Array, place: NamedSharding) -> jax.Array:
  """Copies an array to other devices: to each of them its own part alone.

  A part is put together there, of pieces from the devices that have them.
  Neither the host nor any device has the whole array on the way, and no
  program runs on several devices, so that any thread may do this.
  """

  def box(index):  # its first and last corners [2, ndim]
    spans = [cut.indices(n)[:2] for cut, n in zip(index, x.shape, strict=True)]
    return np.array(spans, int).reshape(-1, 2).T

  held = {str(one.index): one for one in x.addressable_shards}.values()

  def part(device, wanted):
    pieces = {}
    for shard in held:
      begin, end = box(shard.index)
      low, high = np.maximum(begin, wanted[0]), np.minimum(end, wanted[1])
      if (low < high).all():
        cut = tuple(map(slice, low - begin, high - begin))
        is_all = ((low == begin) & (high == end)).all()
        piece = shard.data if is_all else shard.data[cut]
        pieces[tuple(low)] = jax.device_put(piece, device)
    for axis in reversed(range(x.ndim)):
      rows = {}
      for at in sorted(pieces):
        rows.setdefault(at[:axis], []).append(pieces[at])
      join = functools.partial(jnp.concatenate, axis=axis)
      pieces = {
        at: join(row) if row[1:] else row[0] for at, row in rows.items()
      }
    return pieces[()]

  places = place.addressable_devices_indices_map(x.shape)
  parts = [part(device, box(index)) for device, index in places.items()]
  return jax.make_array_from_single_device_arrays(x.shape, place, parts)


def differing(leaves: Sequence, wanted: Sequence) -> list[int]:
  """Which arrays have another dtype or place than a sampler wants."""

  def is_other(x, like) -> bool:
    if x.dtype != like.dtype:
      return True
    return not x.sharding.is_equivalent_to(like.sharding, x.ndim)

  pairs = enumerate(zip(leaves, wanted, strict=True))
  return [i for i, (x, like) in pairs if is_other(x, like)]


@functools.cache
def copier(wanted: tuple[jax.ShapeDtypeStruct, ...]) -> Callable:
  """Makes the program that copies arrays to dtypes and places.

  With a number, it copies that layer of stacks.
  """

  def copy(leaves, layer=None):
    return tuple(
      (x if layer is None else x[layer]).astype(like.dtype)
      for x, like in zip(leaves, wanted, strict=True)
    )

  return jax.jit(copy, out_shardings=tuple(like.sharding for like in wanted))


class Latest:
  """Keeps what was made of the parameters that were asked of last."""

  def __init__(self, make: Callable[[PyTree], PyTree]):
    self._make = make
    self._held: tuple[PyTree, PyTree] = (None, None)  # and what it is made of

  def of(self, params: PyTree) -> PyTree:
    held = self._held  # Threads of actors have versions of their own.
    if held[1] is not params:
      self._held = held = self._make(params), params
    return held[0]

  def drop(self) -> None:
    self._held = (None, None)


class Weights(Latest):
  """Holds the copy of the version that was sampled from last.

  Parameters are those of `learner`, which by default is the sampler's own lift.
  """

  def __init__(
    self,
    lift: parallel.Lift,
    config: DecoderConfig,
    learner: parallel.Lift | None = None,
  ):
    share = learner.share if learner else lambda params: params
    super().__init__(lambda params: lay_out(lift, config, share(params)))


def wrap(
  lift: parallel.Lift,
  config: DecoderConfig,
  fn: Callable,
  takes: tuple[str, ...] = (),
  gives: tuple[str, ...] = (),
) -> Callable:
  """Lifts a sampler of parameters, prompts, keys, and arrays of more kinds.

  Under `seeded` it has lanes, of which a device has its own; else it is of one
  seed, of which a device has some prompts with all of their rows.
  """
  kinds = (parallel.STATE, parallel.ROWS, parallel.ROWS, *takes)
  kinds = kinds, (parallel.ROWS, *gives)
  if lift.name == "seeded":
    own = functools.partial(jax.shard_map, fn, mesh=lift.mesh, check_vma=False)
    by_seed = PartitionSpec("seed")
    return jax.jit(own(in_specs=by_seed, out_specs=by_seed))
  if lift.name == "meshed":
    rules = _rules_that_fit(config, lift.mesh.shape["tensor"])
    lifted = lift.wrap(on_shards(fn, 2 + len(takes)), *kinds, rules=rules)
  else:
    lifted = lift.wrap(fn, *kinds)
  return lifted if takes else _numbered(lifted)  # Episodes number their own.


def _numbered(sample: Callable) -> Callable:
  """Numbers the groups of all devices; each has counted its own from 0."""

  def numbered(params, prompts, row_keys) -> Transcript:
    shape, num_prompts = row_keys.shape, prompts.lengths.shape[1]
    ids = np.arange(shape[1], dtype=np.int32) // (shape[1] // num_prompts)
    found = sample(params, prompts, row_keys)
    return found.replace(group_ids=np.tile(ids, (shape[0], 1)))

  return numbered


def _rules_that_fit(config: DecoderConfig, parts: int) -> tuple:
  """The rules of sampling; what does not divide evenly is whole.

  Padded parts are sent from neighbour to neighbour over the whole mesh, in
  which loops of shards end at different times.
  """
  sizes = dict(vocab=config.vocab_size, mlp=config.mlp_size)
  sizes |= dict(heads=config.num_heads, kv_heads=config.num_kv_heads)
  return tuple(
    (axis, None if sizes.get(axis, 0) % parts else name)
    for axis, name in parallel.SAMPLING_RULES
  )


def on_shards(fn: Callable, count: int = 2) -> Callable:
  """Runs a sampler, `count` of whose arguments are rows, on each shard."""
  axes = "data", "fsdp"
  rows = PartitionSpec(axes)
  return jax.shard_map(
    fn,
    in_specs=(PartitionSpec(), *[rows] * count),
    out_specs=rows,
    axis_names={*axes},
    check_vma=False,
  )
