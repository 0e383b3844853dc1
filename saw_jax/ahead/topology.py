"""Slices by name, and what their chips can do; imports JAX only when asked."""

import importlib.util
import math
import os
import re
import sys
from collections.abc import Mapping
from typing import NamedTuple

from saw_jax import naming
from saw_jax.tasks import base

# What a chip can do, with the source. Links: what it can receive.
CHIPS: Mapping[str, Mapping] = base.asset(__file__, "chips.json")
_SET = "SAW_JAX_FIT"
_FORM = "a topology is v5e:2x4 or v5e-8 (chips), gpu:h100x8, or cpu:8, not {!r}"


class Topology(NamedTuple):
  """A number of chips of one kind."""

  name: str  # as v5e:2x4
  kind: str  # tpu, gpu or cpu
  chip: Mapping | None  # a row of CHIPS; None: unknown
  count: int

  @property
  def compiles(self) -> bool:
    """Whether its compiler is here; otherwise XLA's partitioner stands in."""
    return self.kind == "tpu" and importlib.util.find_spec("libtpu") is not None


def read(name: str) -> Topology:
  """Reads the name of a topology."""
  if found := re.fullmatch(r"cpu:(\d+)", name):
    return Topology(name, "cpu", None, _positive(name, int(found[1])))
  if found := re.fullmatch(r"gpu:(\w+?)x(\d+)", name):
    gpus = {x: chip for x, chip in CHIPS.items() if not chip["shapes"]}
    chip = naming.lookup(gpus, found[1], "GPU")
    return Topology(name, "gpu", chip, _positive(name, int(found[2])))
  found = re.fullmatch(r"(\w+)(?::(\d+(?:x\d+)+)|-(\d+))", name)
  if not found:
    raise ValueError(_FORM.format(name))
  tpus = {x: chip for x, chip in CHIPS.items() if chip["shapes"]}
  chip = naming.lookup(tpus, found[1], "TPU")
  sizes = {x: math.prod(map(int, x.split("x"))) for x in chip["shapes"].split()}
  shape = found[2] or next(
    (x for x, size in sizes.items() if size == int(found[3])), None
  )
  if shape not in sizes:
    raise ValueError(
      f"{name}: slices of {found[1]} are {', '.join(sizes)}, which have "
      f"{', '.join(map(str, sizes.values()))} chips"
    )
  return Topology(f"{found[1]}:{shape}", "tpu", chip, sizes[shape])


def _positive(name: str, count: int) -> int:
  if count < 1:
    raise ValueError(_FORM.format(name))
  return count


def environment(topology: Topology) -> dict[str, str]:
  """The environment of a process that compiles for a topology."""
  count = 1 if topology.compiles else topology.count
  return os.environ | {
    _SET: topology.name,
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": str(count),
    # There is no TPU to ask, and several processes may compile at once.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    # Scopes are read as well: programs that differ in them are not the same.
    "JAX_COMPILATION_CACHE_INCLUDE_METADATA_IN_KEY": "true",
    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
  }


def is_set() -> bool:
  """Whether this is such a process."""
  return _SET in os.environ


def devices_of(topology: Topology) -> list:
  """The devices to compile for, in a process with that environment."""
  import jax

  if not topology.compiles:
    return jax.devices()[: topology.count]
  from jax.experimental import topologies

  # The library asks where a program will run.
  jax.default_backend = lambda: topology.kind
  found = topologies.get_topology_desc(topology.name, platform="tpu")
  return list(found.devices)
