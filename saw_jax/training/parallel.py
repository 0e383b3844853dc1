"""Lifts: one pure function over seeds, devices or a mesh (R11).

A lift takes a function and, for each argument and result, what it is:

  STATE  what a step carries: parameters, optimizer, weights
  ROWS   arrays whose first axis is split over devices: prompts or responses
  SAME   small values that every device holds alike: metrics, step numbers

and returns a function of the same arguments, each with a leading axis of `N`
independent seeds. `seeded` maps that axis; `meshed` and `pmapped` run one seed
(`N = 1`) over many devices. So the loop is written once.
"""

import dataclasses
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
from saw_jax.training.state import TrainState
from saw_jax.types import PyTree

LIFTS = ("seeded", "meshed", "pmapped")
STATE, ROWS, SAME = "state", "rows", "same"
AXIS = "batch"  # the device axis under `pmapped`

# Logical axis of a parameter or activation -> mesh axis.
RULES = (
  ("batch", ("data", "fsdp")),
  ("embed", "fsdp"),
  ("vocab", "tensor"),
  ("heads", "tensor"),
  ("kv_heads", "tensor"),
  ("mlp", "tensor"),
)


@dataclasses.dataclass(frozen=True)
class ParallelConfig:
  """How the step is spread over devices."""

  lift: str = "seeded"  # seeded, meshed or pmapped
  # The axes of a mesh, in devices. -1 takes what the others leave, and is 1
  # where another one takes it.
  data: int = constant(-1)
  fsdp: int = 1
  tensor: int = 1


@dataclasses.dataclass(frozen=True)
class Lift:
  """One way to run the functions of a step.

  Attributes:
    name: `seeded`, `meshed` or `pmapped`.
    wrap: `(fn, inputs, outputs, takes_axis_name=False, donate=()) -> fn` over
      arrays with a leading axis of seeds.
    place: puts the stacked state of all seeds where it is kept.
    place_params: puts the stacked parameters of whole models there.
    fetch: takes the stacked state back, as host arrays.
    num_shards: parts that ROWS are split into.
    share: brings STATE, e.g. parameters, to one device, with the leading axis
      of seeds; the host is not on the way.
  """

  name: str
  wrap: Callable[..., Callable]
  place: Callable[[TrainState], Any]
  place_params: Callable[[PyTree], Any]
  fetch: Callable[[Any], TrainState]
  num_shards: int
  share: Callable[[PyTree], PyTree]


def seeded(devices: Sequence[jax.Device] | None = None) -> Lift:
  """Maps the functions over independent seeds: N runs are one program.

  Args:
    devices: where the seed axis is split over; the first device by default.

  Returns:
    The lift.
  """
  devices = list(devices or jax.devices()[:1])
  mesh = Mesh(np.array(devices), ("seed",), axis_types=(AxisType.Auto,))
  sharding = NamedSharding(mesh, PartitionSpec("seed"))

  def put(tree):
    def leaf(x):
      if x.shape[0] % len(devices):
        raise ValueError(
          f"{x.shape[0]} seeds do not split over {len(devices)} devices"
        )
      return jax.device_put(x, sharding)

    return jax.tree.map(leaf, tree)

  def wrap(fn, inputs, outputs, *, takes_axis_name=False, donate=()):
    del inputs, outputs, takes_axis_name  # one device holds a whole seed
    if len(devices) == 1 and devices[0].platform == "cpu":
      # One seed after the other: a tenth faster than a vmap on two cores, as
      # the activations of one seed stay in the cache, and a seed's peak memory.
      def each(*args):
        return jax.lax.map(lambda one: fn(*one), args)

      return jax.jit(each, donate_argnums=donate)
    mapped = jax.jit(jax.vmap(fn), donate_argnums=donate)
    return lambda *args: mapped(*[put(arg) for arg in args])

  return Lift(
    "seeded",
    wrap,
    put,
    put,
    jax.device_get,
    num_shards=1,
    share=lambda tree: jax.device_put(tree, devices[0]),
  )


def meshed(
  mesh: Mesh,
  config: DecoderConfig,
  optimizer: optax.GradientTransformation,
  *,
  lora: lora_lib.LoraConfig | None = None,
) -> Lift:
  """Runs one seed over a mesh; the compiler adds the collectives.

  Args:
    mesh: axes `data`, `fsdp` and `tensor`; see `make_mesh`.
    config: the decoder, for the logical axes of its parameters.
    optimizer: the optimizer, for the shape of its state.
    lora: of a state whose parameters are adapters.

  Returns:
    The lift. Parameters and optimizer state are split by `RULES`; an axis that
    does not divide evenly is kept whole.
  """
  rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
  same = NamedSharding(mesh, PartitionSpec())
  num_shards = mesh.shape["data"] * mesh.shape["fsdp"]

  def put(kind, tree):
    if kind == STATE:
      return tree  # already placed
    if kind == SAME:
      return hosts.spread(tree, same)
    tree = _one_seed(tree)
    jax.tree.map(lambda x: _check_rows(x.shape[0], num_shards), tree)
    return hosts.spread(tree, rows)

  def wrap(fn, inputs, outputs, *, takes_axis_name=False, donate=()):
    del takes_axis_name  # statistics of a sharded array are global
    jitted = jax.jit(fn, donate_argnums=donate)

    def run(*args):
      placed = [
        put(kind, arg if kind == ROWS else _unstack(kind, arg))
        for kind, arg in zip(inputs, args, strict=True)
      ]
      with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        results = jitted(*placed)
      return _stack_results(results, outputs)

    return run

  def place(state: TrainState):
    state = _one_seed(state)
    return hosts.spread(
      state, state_shardings(state, mesh, config, optimizer, lora=lora)
    )

  def place_params(params: PyTree):
    return hosts.spread(_one_seed(params), param_shardings(mesh, config))

  return Lift(
    "meshed",
    wrap,
    place,
    place_params,
    lambda state: jax.tree.map(lambda x: x[None], hosts.fetch(state)),
    num_shards,
    share=lambda tree: jax.tree.map(
      lambda x: jax.device_put(x, mesh.devices.flat[0])[None], tree
    ),
  )


def pmapped(devices: Sequence[jax.Device] | None = None) -> Lift:
  """Runs one seed data-parallel: every device holds the whole state.

  Args:
    devices: the devices; all by default.

  Returns:
    The lift. Functions that take `axis_name` get one.
  """
  devices = list(devices or jax.devices())
  num = len(devices)
  sharding = _one_each(devices)

  def split(x):
    _check_rows(x.shape[0], num)
    # Part of a result of an earlier step may lie on the devices in another way.
    return jax.device_put(
      x.reshape(num, x.shape[0] // num, *x.shape[1:]), sharding
    )

  def wrap(fn, inputs, outputs, *, takes_axis_name=False, donate=()):
    def body(*args):
      return fn(*args, axis_name=AXIS) if takes_axis_name else fn(*args)

    mapped = jax.pmap(
      body,
      axis_name=AXIS,
      devices=devices,
      in_axes=tuple(None if kind == SAME else 0 for kind in inputs),
      donate_argnums=donate,
    )

    def run(*args):
      placed = [
        jax.tree.map(split, _one_seed(arg))
        if kind == ROWS
        else _unstack(kind, arg)
        for kind, arg in zip(inputs, args, strict=True)
      ]
      results = mapped(*placed)
      joined = [
        _join(kind, result)
        for kind, result in zip(
          outputs, _as_tuple(results, outputs), strict=True
        )
      ]
      return _stack_results(
        joined[0] if len(outputs) == 1 else tuple(joined), outputs
      )

    return run

  def place(tree: PyTree):
    return _replicate(_one_seed(tree), devices)

  return Lift(
    "pmapped",
    wrap,
    place,
    place,
    lambda state: jax.tree.map(lambda x: x[:1], jax.device_get(state)),
    num,
    share=lambda tree: jax.tree.map(
      lambda x: x.addressable_shards[0].data, tree
    ),
  )


def make_lift(
  config: ParallelConfig,
  decoder_config: DecoderConfig,
  optimizer: optax.GradientTransformation,
  *,
  num_seeds: int,
  lora: lora_lib.LoraConfig | None = None,
  devices: Sequence[jax.Device] | None = None,
) -> Lift:
  """Makes the lift that a config names.

  Args:
    config: the lift and the mesh's axes.
    decoder_config: the decoder.
    optimizer: the optimizer.
    num_seeds: seeds that run as one program.
    lora: of a state whose parameters are adapters.
    devices: that it may use; all by default.

  Returns:
    The lift.

  Raises:
    ValueError: an unknown lift, several seeds over a mesh of one run, or
      several processes without a mesh.
  """
  devices = list(devices or jax.devices())
  if jax.process_count() > 1 and config.lift != "meshed":
    raise ValueError(
      f"lift {config.lift!r} runs in one process, and there are "
      f"{jax.process_count()}: set config.parallel.lift='meshed'"
    )
  if config.lift == "seeded":
    num = int(np.gcd(num_seeds, len(devices)))
    return seeded(devices[:num])
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
  raise ValueError(
    f"unknown lift {config.lift!r}; choose seeded, meshed or pmapped"
  )


def make_mesh(
  config: ParallelConfig, devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """Makes the mesh of all devices.

  Args:
    config: sizes of the axes; one of them may be -1.
    devices: in the mesh; all by default.

  Returns:
    A mesh with axes `data`, `fsdp` and `tensor`, all of them automatic: Flax
    Linen's `Embed` cannot run on explicit ones.

  Raises:
    ValueError: the sizes do not multiply to the number of devices.
  """
  devices = list(devices or jax.devices())
  count = len(devices)
  sizes = [config.data, config.fsdp, config.tensor]
  if sizes[0] == -1 and -1 in sizes[1:]:
    sizes[0] = 1
  if sizes.count(-1) > 1:
    raise ValueError(f"only one mesh axis may be -1, got {sizes}")
  if -1 in sizes:
    sizes[sizes.index(-1)] = count // -int(np.prod(sizes))
  if int(np.prod(sizes)) != count:
    raise ValueError(
      f"a mesh of data x fsdp x tensor = {sizes} needs "
      f"{int(np.prod(sizes))} devices; there are {count}"
    )
  return jax.make_mesh(
    tuple(sizes),
    ("data", "fsdp", "tensor"),
    axis_types=(AxisType.Auto,) * 3,
    devices=devices,
  )


def state_shardings(
  state: TrainState,
  mesh: Mesh,
  config: DecoderConfig,
  optimizer: optax.GradientTransformation,
  *,
  lora: lora_lib.LoraConfig | None = None,
) -> TrainState:
  """Says where each array of a state lives on a mesh.

  Args:
    state: the state of one seed, or its shapes.
    mesh: axes `data`, `fsdp` and `tensor`.
    config: the decoder, for its logical axes.
    optimizer: the optimizer, for which of its arrays mirror parameters.
    lora: of a state whose parameters are adapters.

  Returns:
    The same tree, of shardings.
  """
  same = NamedSharding(mesh, PartitionSpec())
  if lora is None:
    params = param_shardings(mesh, config)
  else:
    axes = lora_lib.adapter_axes(lora, config)
    params = _shardings(mesh, state.params, axes)
  opt_state = optax.tree_map_params(
    optimizer,
    lambda _, sharding: sharding,
    state.opt_state,
    params,
    transform_non_params=lambda _: same,
  )
  return state.replace(
    params=params, opt_state=opt_state, step=same, weights=same
  )


def param_shardings(mesh: Mesh, config: DecoderConfig) -> PyTree:
  """Says where each parameter lives on a mesh.

  Args:
    mesh: axes `data`, `fsdp` and `tensor`.
    config: the decoder.

  Returns:
    A tree like the parameters, of shardings by `RULES`; an axis that does not
    divide evenly is kept whole.
  """
  params = jax.eval_shape(
    lambda key: decoder.init_params(config, key), jax.random.key(0)
  )
  return _shardings(mesh, params, decoder.logical_axes(config))


def _shardings(mesh: Mesh, tree: PyTree, axes: PyTree) -> PyTree:
  """Where arrays with named axes live; the names are a tree like the arrays."""
  rules = dict(RULES)

  def sharding(array, axes):
    spec = []
    for size, axis in zip(array.shape, axes, strict=True):
      name = rules.get(axis)
      fits = isinstance(name, str) and size % mesh.shape[name] == 0
      spec.append(name if fits else None)
    return NamedSharding(mesh, PartitionSpec(*spec))

  return jax.tree.map(sharding, tree, axes)


def _check_rows(rows: int, shards: int) -> None:
  if rows % shards:
    raise ValueError(f"{rows} rows do not split over {shards} devices")


def _one_seed(tree: PyTree) -> PyTree:
  """Drops the leading axis of one seed."""
  return jax.tree.map(lambda x: x[0], tree)


def _unstack(kind: str, tree: PyTree) -> PyTree:
  return tree if kind == STATE else _one_seed(tree)


def _as_tuple(results, outputs) -> tuple:
  return (results,) if len(outputs) == 1 else results


def _join(kind: str, tree: PyTree) -> PyTree:
  if kind == STATE:
    return tree
  if kind == SAME:
    return _one_seed(tree)
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def _stack_results(results, outputs):
  """Gives the results the leading axis of one seed; the state has none."""
  stacked = tuple(
    result if kind == STATE else jax.tree.map(lambda x: x[None], result)
    for kind, result in zip(outputs, _as_tuple(results, outputs), strict=True)
  )
  return stacked[0] if len(outputs) == 1 else stacked


def _one_each(devices: Sequence[jax.Device]) -> NamedSharding:
  """The first axis, one entry on each device: what `pmap` expects."""
  mesh = Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))
  return NamedSharding(mesh, PartitionSpec(AXIS))


def _replicate(tree: PyTree, devices) -> PyTree:
  sharding = _one_each(devices)
  return jax.tree.map(
    lambda x: jax.device_put(
      np.broadcast_to(np.asarray(x), (len(devices), *x.shape)), sharding
    ),
    tree,
  )
