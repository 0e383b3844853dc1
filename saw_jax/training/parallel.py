"""Lifts: one pure function over seeds, devices or a mesh.

A lift takes a function and, for each argument and result, what it is:

  STATE  what a step carries: parameters, optimizer, weights
  ROWS   arrays whose first axis is split over devices: prompts or responses
  SAME   small values that every device holds alike: metrics, step numbers

and returns a function of the same arguments, each with a leading axis of `N`
independent seeds. `seeded` maps that axis; `meshed` and `pmapped` run one seed
(`N = 1`) over many devices. So the loop is written once.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from saw_jax.models import decoder
from saw_jax.models import lora as lora_lib
from saw_jax.models.config import DecoderConfig
from saw_jax.settings import constant
from saw_jax.training import hosts
from saw_jax.training.update import TrainState
from saw_jax.types import PyTree

LIFTS = ("seeded", "meshed", "pmapped")
STATE, ROWS, SAME = "state", "rows", "same"
AXIS = "batch"  # the device axis under `pmapped`
MESH_AXES = ("data", "fsdp", "tensor")

# Logical axis of a parameter or activation -> mesh axis. A sampler's rows are a
# device's own, and so are its weights, but for their parts over `tensor`.
_PARTS = tuple((x, "tensor") for x in ("vocab", "heads", "kv_heads", "mlp"))
RULES = (("batch", ("data", "fsdp")), ("embed", "fsdp"), *_PARTS)
SAMPLING_RULES = (("batch", None), ("embed", None), *_PARTS)

# Of a TPU: a kernel that is split over `fsdp` is gathered and then multiplied.
# By itself XLA multiplies part after part as they go round a ring, and reads
# and writes the products with each: twice the traffic to memory in an update,
# four times in a forward pass (1.5B parameters on v5e-8, compiled).
_GATHERED = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": 1 << 20}


@dataclasses.dataclass(frozen=True)
class ParallelConfig:
  """How the step is spread over devices."""

  lift: str = "seeded"  # seeded, meshed or pmapped
  # The axes of a mesh, in devices. -1 takes what the others leave, and is 1
  # where another one takes it.
  data: int = constant(-1)
  fsdp: int = 1  # splits batch and parameters
  tensor: int = 1  # splits heads and widths


@dataclasses.dataclass(frozen=True)
class Lift:
  """One way to run the functions of a step."""

  name: str  # seeded, meshed or pmapped
  # (fn, inputs, outputs, takes_axis_name=False, donate=()) -> fn over arrays
  # with a leading axis of seeds
  wrap: Callable[..., Callable]
  place: Callable[[TrainState], Any]  # puts the stacked state where it is kept
  place_params: Callable[[PyTree], Any]  # and parameters of whole models
  fetch: Callable[[Any], TrainState]  # takes the state back, as host arrays
  # STATE as another lift takes it up: under `pmapped`, of the first device.
  share: Callable[[PyTree], PyTree]
  # Where a sampler wants parameters of these shapes.
  sampling_places: Callable[[PyTree], PyTree]
  mesh: Mesh | None = None  # of several devices
  num_shards: int = 1  # parts that ROWS are split into
  has_own_rows: bool = False  # a device sees its own rows alone


def seeded(devices: Sequence[jax.Device] | None = None) -> Lift:
  """Maps over independent seeds, split over devices: N runs are one program."""
  devices = list(devices or jax.devices()[:1])
  sharding = _one_each(devices, "seed")

  def put(tree):
    _check_splits(tree, len(devices), "seeds")
    return jax.device_put(tree, sharding)

  def wrap(fn, inputs, outputs, *, takes_axis_name=False, donate=()):
    del inputs, outputs, takes_axis_name  # one device holds a whole seed
    if len(devices) == 1 and devices[0].platform == "cpu":
      # One seed after the other: a tenth faster than a vmap on two cores, as
      # the activations of one seed stay in the cache, and a seed's peak memory.
      def each(*args):
        return jax.lax.map(lambda one: fn(*one), args)

      return jax.jit(each, donate_argnums=donate)
    mapped = jax.jit(jax.vmap(fn), donate_argnums=donate)
    return lambda *args: mapped(*map(put, args))

  whole = put, put, jax.device_get, lambda tree: tree, _all_at(sharding)
  mesh = sharding.mesh if len(devices) > 1 else None
  return Lift("seeded", wrap, *whole, mesh)


def compiler_options(mesh: Mesh) -> dict[str, int] | None:
  """How XLA is to compile for a mesh; activations may go round a ring."""
  is_tpu = mesh.devices.flat[0].platform == "tpu"
  return _GATHERED if is_tpu and mesh.shape["tensor"] == 1 else None


def meshed(
  mesh: Mesh,
  config: DecoderConfig,
  optimizer: optax.GradientTransformation,
  *,
  lora: lora_lib.LoraConfig | None = None,
) -> Lift:
  """Runs one seed over a mesh; the compiler adds the collectives.

  Parameters and optimizer state are split by `RULES`; an axis that does not
  divide evenly is kept whole. `lora` is of a state of adapters.
  """
  num_shards = mesh.shape["data"] * mesh.shape["fsdp"]
  same = NamedSharding(mesh, PartitionSpec())
  rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))

  def put(kind, tree):
    if kind == ROWS:
      _check_splits(tree, num_shards, "rows")
    return hosts.spread(tree, rows if kind == ROWS else same)

  def wrap(
    fn, inputs, outputs, *, takes_axis_name=False, donate=(), rules=RULES
  ):
    del takes_axis_name  # statistics of a sharded array are global
    options = compiler_options(mesh)
    jitted = jax.jit(fn, donate_argnums=donate, compiler_options=options)

    def call(*args):
      with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        return jitted(*args)

    return _over_one_seed(call, inputs, outputs, put, lambda kind, tree: tree)

  def place(state: TrainState):
    state = _one_seed(state)
    places = state_shardings(mesh, config, optimizer, state, lora)
    return hosts.spread(state, places)

  def place_params(params: PyTree):
    return hosts.spread(_one_seed(params), param_shardings(mesh, config))

  def fetch(state):
    return _with_seeds(hosts.fetch(state))

  def sampling_places(params):
    del params  # a mesh is of one decoder
    return param_shardings(mesh, config, SAMPLING_RULES)

  whole = place, place_params, fetch, lambda tree: tree, sampling_places
  return Lift("meshed", wrap, *whole, mesh, num_shards)


def pmapped(devices: Sequence[jax.Device] | None = None) -> Lift:
  """Runs one seed data-parallel: every device holds the whole state.

  Functions that take `axis_name` get one. The devices are all by default.
  """
  devices = list(devices or jax.devices())
  num, sharding = len(devices), _one_each(devices, AXIS)

  def put(kind, tree):
    if kind == SAME:
      return tree
    _check_splits(tree, num, "rows")
    # Part of a result of an earlier step may lie on the devices in another way.
    split = jax.tree.map(lambda x: x.reshape(num, -1, *x.shape[1:]), tree)
    return jax.device_put(split, sharding)

  def take(kind, tree):
    if kind == SAME:
      return _one_seed(tree)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)

  def wrap(fn, inputs, outputs, *, takes_axis_name=False, donate=()):
    mapped = jax.pmap(
      functools.partial(fn, axis_name=AXIS) if takes_axis_name else fn,
      axis_name=AXIS,
      devices=devices,
      in_axes=tuple(None if kind == SAME else 0 for kind in inputs),
      donate_argnums=donate,
    )
    return _over_one_seed(mapped, inputs, outputs, put, take)

  def place(tree: PyTree):
    copies = jax.tree.map(
      lambda x: np.broadcast_to(np.asarray(x), (num, *x.shape)), _one_seed(tree)
    )
    return jax.device_put(copies, sharding)

  def fetch(state):
    return jax.tree.map(lambda x: x[:1], jax.device_get(state))

  def share(tree):
    return _one_seed(jax.tree.map(lambda x: x.addressable_shards[0].data, tree))

  whole = place, place, fetch, share, _all_at(sharding)
  return Lift("pmapped", wrap, *whole, sharding.mesh, num, True)


def _over_one_seed(call, inputs, outputs, put, take) -> Callable:
  """Calls a function without the axis of seeds, of which there is one.

  STATE is passed on; `put` and `take` bring all else to the devices and back.
  """

  def run(*args):
    placed = [
      arg if kind == STATE else put(kind, _one_seed(arg))
      for kind, arg in zip(inputs, args, strict=True)
    ]
    results = call(*placed)
    results = results if len(outputs) > 1 else (results,)
    found = tuple(
      result if kind == STATE else _with_seeds(take(kind, result))
      for kind, result in zip(outputs, results, strict=True)
    )
    return found if len(outputs) > 1 else found[0]

  return run


def make_lift(
  config: ParallelConfig,
  decoder_config: DecoderConfig,
  optimizer: optax.GradientTransformation,
  *,
  num_seeds: int,
  lora: lora_lib.LoraConfig | None = None,
  devices: Sequence[jax.Device] | None = None,
) -> Lift:
  """Makes the lift that a config names, over all devices by default."""
  devices = list(devices or jax.devices())
  if jax.process_count() > 1 and config.lift != "meshed":
    raise ValueError(
      f"lift {config.lift!r} runs in one process, and there are "
      f"{jax.process_count()}: set config.parallel.lift='meshed'"
    )
  if config.lift == "seeded":
    return seeded(devices[: math.gcd(num_seeds, len(devices))])
  if num_seeds != 1:
    raise ValueError(
      f"lift {config.lift!r} runs one seed, not {num_seeds}; use 'seeded' to "
      "run several as one program"
    )
  if config.lift == "meshed":
    mesh = make_mesh(config, devices)
    return meshed(mesh, decoder_config, optimizer, lora=lora)
  if config.lift == "pmapped":
    return pmapped(devices)
  raise ValueError(f"unknown lift {config.lift!r}; choose one of {LIFTS}")


def make_mesh(
  config: ParallelConfig, devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """Makes a mesh of axes `data`, `fsdp` and `tensor`, of all devices.

  The axes are automatic: Flax Linen's `Embed` cannot run on explicit ones.
  """
  devices = list(devices or jax.devices())
  sizes, kinds = axis_sizes(config, len(devices)), (AxisType.Auto,) * 3
  return jax.make_mesh(sizes, MESH_AXES, kinds, devices=devices)


def axis_sizes(config: ParallelConfig, count: int) -> tuple[int, int, int]:
  """How many devices each axis of a mesh has, of so many in all."""
  sizes = [config.data, config.fsdp, config.tensor]
  if sizes[0] == -1 and -1 in sizes[1:]:
    sizes[0] = 1
  if sizes.count(-1) > 1:
    raise ValueError(f"only one mesh axis may be -1, got {sizes}")
  if any(size < 1 and size != -1 for size in sizes):
    raise ValueError(f"the axes of a mesh are -1, or 1 and more, not {sizes}")
  said, product = list(sizes), abs(math.prod(sizes))
  if -1 in sizes:
    sizes[sizes.index(-1)] = count // product
  if math.prod(sizes) != count:
    many = "a multiple of " * (-1 in said)
    raise ValueError(
      f"a mesh of data x fsdp x tensor = {said} needs {many}{product} devices; "
      f"there are {count}"
    )
  return tuple(sizes)


def state_shardings(
  mesh: Mesh,
  config: DecoderConfig,
  optimizer: optax.GradientTransformation,
  state: TrainState,
  lora: lora_lib.LoraConfig | None = None,
) -> TrainState:
  """Where a mesh wants a state, which may be one of shapes."""
  same = NamedSharding(mesh, PartitionSpec())
  params = param_shardings(mesh, config)
  if lora is not None:
    params = shardings(mesh, state.params, lora_lib.adapter_axes(lora, config))
  opt_state = optax.tree_map_params(
    optimizer,
    lambda _, sharding: sharding,
    state.opt_state,
    params,
    transform_non_params=lambda _: same,
  )
  last = None if state.gradient is None else params
  return TrainState(params, opt_state, same, same, last)


def param_shardings(
  mesh: Mesh, config: DecoderConfig, rules: tuple = RULES
) -> PyTree:
  axes = decoder.logical_axes(config)
  return shardings(mesh, decoder.param_shapes(config), axes, rules)


def shardings(
  mesh: Mesh, tree: PyTree, axes: PyTree, rules: tuple = RULES
) -> PyTree:
  """Where arrays with named axes live; the names are a tree like the arrays."""

  def part(size: int, axis: str) -> str | None:
    name = dict(rules).get(axis)
    return name if name and size % mesh.shape[name] == 0 else None

  def sharding(array, axes):
    return NamedSharding(mesh, PartitionSpec(*map(part, array.shape, axes)))

  return jax.tree.map(sharding, tree, axes)


def _check_splits(tree: PyTree, num_devices: int, what: str) -> None:
  for x in jax.tree.leaves(tree):
    if x.shape[0] % num_devices:
      raise ValueError(
        f"{x.shape[0]} {what} do not split over {num_devices} devices"
      )


def _one_seed(tree: PyTree) -> PyTree:
  return jax.tree.map(lambda x: x[0], tree)


def _with_seeds(tree: PyTree) -> PyTree:
  return jax.tree.map(lambda x: x[None], tree)


def _all_at(sharding: NamedSharding) -> Callable[[PyTree], PyTree]:
  return lambda tree: jax.tree.map(lambda _: sharding, tree)


def _one_each(devices: Sequence[jax.Device], axis: str) -> NamedSharding:
  """The first axis of an array, a part on each device."""
  mesh = Mesh(np.array(devices), (axis,), axis_types=(AxisType.Auto,))
  return NamedSharding(mesh, PartitionSpec(axis))
