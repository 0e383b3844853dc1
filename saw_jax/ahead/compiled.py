"""Compiles the programs of a run and measures what each needs of a chip."""

import collections
import dataclasses
import math
import pathlib
import re
import time
from collections.abc import Mapping
from importlib import metadata
from types import MappingProxyType
from typing import Any

import jax

from saw_jax import naming
from saw_jax.ahead import flops, hlo, programs
from saw_jax.ahead import topology as topology_lib
from saw_jax.ahead.topology import Topology
from saw_jax.models import log_probs
from saw_jax.models.hub import config as hub_config
from saw_jax.run import build, checks
from saw_jax.run.sections import Experiment, RunConfig
from saw_jax.tasks import base
from saw_jax.training import parallel
from saw_jax.types import PyTree

# Plans memory and communication alike, in a tenth of the time.
_QUICK = {"exec_time_optimization_effort": -1.0}
if not hasattr(jax.config, "jax_exec_time_optimization_effort"):
  _QUICK = {}  # JAX 0.11 has no such option.
# `config.json` of the models that the tables name, as they were published.
MODELS: Mapping[str, Mapping] = base.asset(__file__, "released_models.json")


def experiment_of(run: RunConfig, count: int) -> Experiment:
  """The experiment of a config; a model that is not here has only its sizes.

  Raises, as the run would, if its rows do not split over `count` devices.
  """
  made = _outline_of(run)
  if made.parallel.lift == "meshed":
    checks.check_rows(made, _shards(made, count))
  return made


def splitting(run: RunConfig, count: int) -> dict[str, int]:
  """The keys with which the rows of a run split over `count` devices."""
  made = _outline_of(run)
  if made.parallel.lift != "meshed" or made.method.per_step:
    return {}
  return checks.splitting(made, _shards(made, count))


def _shards(made: Experiment, count: int) -> int:
  data, fsdp, _ = parallel.axis_sizes(made.parallel, count)
  return data * fsdp


def _outline_of(run: RunConfig) -> Experiment:
  if run.checkpoint and not pathlib.Path(run.checkpoint).exists():
    name = pathlib.Path(run.checkpoint).name
    document = naming.lookup(MODELS, name, "model without its files")
    longest = run.rollout.max_tokens
    model = hub_config.read_config(document, where=name, max_length=longest)
    how = {key: getattr(run.model, key) for key in build.COMPUTED}
    model = dataclasses.replace(model, **how)
    # One of our tokenizers will do: programs only know the vocabulary's size.
    bare = dataclasses.replace(
      run, model=model, checkpoint="", chat_template_options={}
    )
    made, _ = build.outline(bare)
    decoder = dataclasses.replace(made.decoder, vocab_size=model.vocab_size)
    return made._replace(decoder=decoder)
  return build.outline(run)[0]


def share(tree: PyTree) -> int:
  """Bytes of a tree of arrays on one device."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
    if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
  )


class Compiler:
  """Compiles for a topology, in a process that was set up for it."""

  def __init__(self, topology: Topology):
    self.topology, self.devices = topology, topology_lib.devices_of(topology)

  @property
  def name(self) -> str:
    if self.topology.compiles:
      return f"libtpu {metadata.version('libtpu')}"
    return "XLA's partitioner on virtual CPU devices, which overstates"

  def outline(self, made: Experiment) -> programs.Outline:
    """The run's policy over shapes, on the devices of the topology."""
    lift, devices = made.parallel.lift, self.devices
    if lift == "pmapped":
      raise ValueError(
        "programs of parallel.lift=pmapped are not compiled ahead: say "
        "parallel.lift=meshed, or --devices and --memory for arithmetic"
      )
    if lift == "seeded":  # A device has a seed, and its neighbours another.
      made = made._replace(parallel=parallel.ParallelConfig("meshed"))
      devices = devices[:1]
    return programs.Outline(made, devices)

  def measure(self, made: Experiment, name: str) -> dict[str, Any]:
    """The figures of a program of a run: bytes and FLOPs per chip."""
    policy = self.outline(made)
    every = programs.programs_of(policy)
    program = next(one for one in every if one.name == name)
    sizes: dict[int, str] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(policy.params):
      root, *inside = (key.key for key in path)
      # Kernels of a module may have one size: they share the module's name.
      what = inside[0] if len(inside) > 1 else root
      sizes[math.prod(leaf.shape)] = what
      if made.decoder.scan_layers and root == "layers":
        sizes[math.prod(leaf.shape[1:])] = what
      if root in ("embedding", "head"):  # gathered in bands
        vocab_size = made.decoder.vocab_size
        bands = log_probs.choose_bands(vocab_size)
        sizes[math.prod(leaf.shape) // bands] = what
    return self.compile(program, policy.held(name), sizes)

  def compile(
    self,
    program: programs.Program,
    held: PyTree = (),
    sizes: Mapping[int, str] = MappingProxyType({}),
  ) -> dict[str, Any]:
    """The figures of a program that runs beside the arrays `held`.

    `sizes` are the names of weights by their numbers of elements.
    """
    kept, begun = program.kept, time.time()
    traced, count = kept.trace(), kept.mesh.size
    products = flops.count(traced)
    if math.isnan(products):  # Loops of unknown length: take the model's.
      products = program.model_flops
    arguments = {id(x) for x in jax.tree.leaves(kept.args)}
    beside = [x for x in jax.tree.leaves(held) if id(x) not in arguments]
    found = {
      "program": program.name,
      "runs": program.runs,
      "model_flops": program.model_flops / count,
      "flops": products / count,
      "arguments": share(kept.args),
      "beside": share(beside),
    }
    if program.cache:
      found["cache"] = program.cache
    if program.slots:
      found["slots"] = dict(program.slots)
    lowered = traced.lower()
    found["trace_s"], begun = time.time() - begun, time.time()
    try:
      compiled = lowered.compile(_QUICK if self.topology.compiles else None)
    except jax.errors.JaxRuntimeError as error:
      found["compile_s"] = time.time() - begun
      return found | {"needs": found["beside"] + asked(error)}
    found["compile_s"] = time.time() - begun
    memory = compiled.memory_analysis()
    most = at_most(memory, self.topology.compiles)
    found["temporaries"] = most - memory.argument_size_in_bytes
    found["needs"] = most + found["beside"]
    module = hlo.Module(compiled.as_text(), count, *program.loops)
    read = module.read()
    found |= {"memory": read.memory, "unknown_loops": read.unknown}
    moved = collections.defaultdict(lambda: [0, 0.0])
    for one in read.moved:
      entry = moved[one.kind, _what(one, sizes)]
      entry[0] += one.times
      entry[1] += one.size * one.times
    lines = [[*key, *value] for key, value in moved.items()]
    found["moved"] = sorted(lines, key=lambda line: -line[-1])
    if program.prefill_flops:
      whole, part = _work(found["flops"], read, sizes), module.read("prefill")
      first = _work(program.prefill_flops / count, part, sizes)
      rest = {key: size - first[key] for key, size in whole.items()}
      found["parts"] = {"prefill": first, "decode": rest}
    return found


def _work(products: float, read: hlo.Found, sizes: Mapping) -> dict[str, float]:
  sent = [(one.size * one.times, one.elements in sizes) for one in read.moved]
  found = {"flops": products, "memory": read.memory}
  found["sent"] = sum(size for size, _ in sent)
  return found | {"weights": sum(size for size, is_weight in sent if is_weight)}


def at_most(memory: Any, exact: bool) -> int:
  """The most bytes of a device that a program holds at once.

  With `exact`, libtpu's own peak, which is the figure by which it refuses a
  program; its temporaries add up to more than ever exist together. Otherwise
  the sum of everything, less results that reuse an argument's memory.
  """
  if exact:
    return memory.peak_memory_in_bytes
  sizes = memory.argument_size_in_bytes + memory.temp_size_in_bytes
  return sizes + memory.output_size_in_bytes - memory.alias_size_in_bytes


def asked(error: Exception) -> float:
  """The bytes that a program without room asked for, arguments included."""
  said = re.search(r"(Used|temporaries) \(?([\d.]+)([KMGT])", str(error))
  if not said:
    raise error
  return float(said[2]) * 1024 ** " KMGT".index(said[3])


def _what(one: hlo.Moved, sizes: Mapping[int, str]) -> str:
  """What a collective moves; sizes tell weights and gradients apart."""
  # A chip may send whole tiles, which are a little more.
  near = (x for x in sizes if x <= one.elements <= 1.02 * x)
  name = sizes.get(one.elements, sizes.get(next(near, None)))
  if name is None:
    return "activations and statistics"
  if one.kind == "collective-permute":
    # Both travel round a ring, part by part, while they are multiplied.
    return f"weights and gradients {name}"
  sums = one.kind in ("all-reduce", "reduce-scatter")
  return f"{'gradient' if sums else 'weights'} {name}"
