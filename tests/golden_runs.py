"""Short training runs, and what is kept of them in tests/golden/runs.

  python -m tests.golden_runs [case ...]

writes the files of the cases, of all by default. `golden_runs_test.py` runs the
same cases and compares.
"""

import contextlib
import functools
import hashlib
import json
import os
import pathlib
import platform
import re
import shutil
import sqlite3
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any, NamedTuple

FOLDER = pathlib.Path(__file__).parent / "golden" / "runs"
# Figures of the clock, a process or the layout of rows, by how they begin.
_LEFT_OUT = ("seconds/", "tokens_per_second", "compilations", "padding")
# Whether a group still waits or is at work when a step is logged is the race of
# two threads.
_LEFT_OUT += ("groups/queued", "groups/running")
# Younger than the files of machines that are not here.
_LEFT_OUT += ("audit/with_gap",)
# And of rounding alone, where a sampler's weights lie in another way.
_ROUNDED = ("behave_kl", "sampler_mismatch")

# A processor that was seen to compute the bits of another one's folder.
_ALIKE = {"AuthenticAMD 25 17 1024 KB": "avx512_amd"}


class Case(NamedTuple):
  """One run: a config below configs/, and what is set in it after `SMALL`."""

  config: str
  argument: str
  overrides: Mapping[str, Any]
  seeds: tuple[int, ...]  # trained in one program
  is_slow: bool


_DATA = tomllib.loads((FOLDER.parent / "cases.toml").read_text())
SMALL = _DATA["small"]


def _read_case(config: str, argument: str, *words: str) -> Case:
  sets = (_DATA["sets"][word] for word in words if word != "quick")
  overrides = {
    key: tuple(value) if isinstance(value, list) else value
    for found in sets
    for key, value in found.items()
  }
  is_alone = {"pmapped", "meshed"} & {*words}
  seeds = (0,) if is_alone else (0, 1)
  return Case(config, argument, overrides, seeds, "quick" not in words)


CASES = {
  name: _read_case(*text.split()) for name, text in _DATA["cases"].items()
}


def train(case: Case, directory: pathlib.Path, starts: pathlib.Path) -> None:
  """Trains a case: all that is known here of how a run is made."""
  from unittest import mock

  from saw_jax.run import build, config

  run = config.typed(config.load(f"{case.config}:{case.argument}"))
  for key, value in {**SMALL, **case.overrides}.items():
    run = config.replace(run, key, value)
  with mock.patch.object(build, "cache_folder", lambda: starts):
    build.train(build.build(run), case.seeds, directory=directory)


# Most starts are kept, since to make them is half of the time: those that are
# not, of an answer's and of an episode's demonstrations, are made each time.
_KEPT = FOLDER.parent / "starts"


@functools.cache
def _starts() -> tempfile.TemporaryDirectory:
  """A folder of this process: a start that another one made is not tested."""
  folder = tempfile.TemporaryDirectory()
  if _KEPT.exists():
    shutil.copytree(_KEPT, pathlib.Path(folder.name, "warm_start"))
  return folder


# How many parts a program is generated in, which bits depend on.
_PARTS = " --xla_flags_reset=true --xla_cpu_parallel_codegen_split_count="


@contextlib.contextmanager
def recorded_flags() -> Iterator[None]:
  """Compiles as where the files were written, and nothing from before.

  Cases that are run inside share what they compile.
  """
  import jax

  flags = os.environ["XLA_FLAGS"]
  jax.clear_caches()
  os.environ["XLA_FLAGS"] = flags.replace(f"{_PARTS}1", f"{_PARTS}32")
  try:
    yield
  finally:
    os.environ["XLA_FLAGS"] = flags


def run(case: Case) -> dict[str, Any]:
  """Runs a case; returns its numbers by what they are, and checksums."""
  with tempfile.TemporaryDirectory() as folder:
    directory = pathlib.Path(folder, "run")
    train(case, directory, pathlib.Path(_starts().name))
    sums = {"params": _sum_of_params(directory)}
    if (directory / "labels.sqlite").exists():
      sums["labels"] = _sum_of_labels(directory / "labels.sqlite")
    numbers = _numbers(directory)
    if case.overrides.get("parallel.lift") == "meshed":
      numbers = {k: x for k, x in numbers.items() if not k.endswith(_ROUNDED)}
    return {"numbers": numbers, "checksums": sums}


def _numbers(directory: pathlib.Path) -> dict[str, float]:
  """All numbers that the files of a run have, by `file seed step metric`."""
  rows = [
    (name, json.loads(line))
    for name in ("metrics", "evals")
    for line in (directory / f"{name}.jsonl").read_text().splitlines()
  ]
  final = json.loads((directory / "final.json").read_text())
  return {
    f"{name} seed={row['seed']} step={row['step']} {metric}": value
    for name, row in (*rows, *(("final", row) for row in final))
    for metric, value in _flat(row)
    if not metric.startswith(_LEFT_OUT)
  }


def _flat(tree: Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
  for key, value in tree.items():
    if isinstance(value, Mapping):
      yield from _flat(value, f"{prefix}{key}/")
    elif prefix + key not in ("seed", "step"):
      yield prefix + key, value


def _sum_of_params(directory: pathlib.Path) -> str:
  """Of the last checkpoint: paths, dtypes, shapes and bytes."""
  import jax
  import numpy as np
  import orbax.checkpoint as ocp

  steps = [p for p in (directory / "checkpoints").iterdir() if p.name.isdigit()]
  last = max(steps, key=lambda path: int(path.name)).absolute() / "state"
  with ocp.StandardCheckpointer() as store:
    meta = store.metadata(last).item_metadata
    # Wherever they lay, they are read onto one device.
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    template = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=one),
      dict(meta.tree if hasattr(meta, "tree") else meta),
    )
    params = store.restore(last, template)["params"]
  digest = hashlib.sha256()
  leaves = {
    jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }
  for path, leaf in sorted(leaves.items()):
    digest.update(f"{path} {leaf.dtype} {leaf.shape}\n".encode())
    digest.update(np.ascontiguousarray(leaf).tobytes())
  return digest.hexdigest()


def _sum_of_labels(path: pathlib.Path) -> str:
  """Of all purchases, without the time of day."""
  with contextlib.closing(sqlite3.connect(path)) as connection:
    rows = connection.execute(
      "SELECT seed, step, prompt_id, label, who, price, standing "
      "FROM purchases ORDER BY seed, step, prompt_id"
    ).fetchall()
  return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def fingerprint() -> dict[str, Any]:
  """What bits depend on beside the code: processor, versions, XLA's flags."""
  from saw_jax.run import run_directory

  return {
    "machine": platform.machine(),
    **run_directory.processor(),
    "cores": os.cpu_count(),
    "xla_flags": re.sub(rf"{_PARTS}\d+", "", os.environ.get("XLA_FLAGS", "")),
    **{name: metadata.version(name) for name in ("jax", "jaxlib", "numpy")},
  }


def describe(case: Case) -> dict[str, Any]:
  """Says what was run, as a file of it does."""
  overrides = dict(sorted({**SMALL, **case.overrides}.items()))
  document = {**case._asdict(), "overrides": overrides}
  del document["is_slow"]
  return json.loads(json.dumps(document))


def differences(
  expected: Mapping[str, Any], found: Mapping[str, Any], *, names: bool = False
) -> list[str]:
  """Compares two runs bit by bit, or their names alone: lines to read."""
  lines = []
  before, now = expected["numbers"], found["numbers"]
  for name in sorted(before.keys() | now.keys(), key=_order):
    if name not in now:
      lines.append(f"{name}: expected {before[name]!r}, but it is missing")
    elif name not in before:
      lines.append(f"{name}: not expected, got {now[name]!r}")
    # NaN is NaN, and -0.0 is not 0.0.
    elif not names and repr(before[name]) != repr(now[name]):
      lines.append(f"{name}: expected {before[name]!r}, got {now[name]!r}")
  before, now = expected["checksums"], found["checksums"]
  if before.keys() != now.keys() or (not names and before != now):
    lines.append(f"checksums: expected {before}, got {now}")
  return lines


def _order(name: str) -> tuple:
  """Early steps first: what differs there made the rest differ."""
  part, seed, step, metric = name.split(" ", 3)
  number = int(step.removeprefix("step="))
  return part == "final", number, part == "metrics", seed, metric


def read(name: str) -> dict[str, Any]:
  """Reads a case as this kind of machine computed it, or as another did."""
  paths = sorted(FOLDER.glob(f"*/{name}.json"))
  documents = {path.parent: json.loads(path.read_text()) for path in paths}
  folder = own_folder() if own_folder() in documents else next(iter(documents))
  document = documents[folder]
  document["is_own"] = is_own(document["made_with"], folder)
  document["numbers"] = {
    f"{part} seed={seed} step={step} {metric}": value
    for part, metrics in document["numbers"].items()
    for metric, seeds in metrics.items()
    if not metric.startswith(_LEFT_OUT)
    for seed, steps in seeds.items()
    for step, value in steps.items()
  }
  return document


@functools.cache
def own_folder() -> pathlib.Path:
  """What this kind of machine computed, or where it would be written."""
  for path in sorted(FOLDER.glob("*/*.json")):
    if is_own(json.loads(path.read_text())["made_with"], path.parent):
      return path.parent
  return FOLDER / "here"


def is_own(made_with: Mapping[str, Any], folder: pathlib.Path) -> bool:
  """Whether this machine computes the bits that another one has written."""
  own = fingerprint()
  if _ALIKE.get(own["processor"]) == folder.name:
    own |= {name: made_with[name] for name in ("processor", "instructions")}
  return own == made_with


def write(name: str) -> None:
  """Runs a case and writes its file."""
  found, tree = run(CASES[name]), {}
  for key, value in sorted(found["numbers"].items()):
    part, seed, step, metric = key.split(" ", 3)
    seed, step = seed.removeprefix("seed="), step.removeprefix("step=")
    metrics = tree.setdefault(part, {}).setdefault(metric, {})
    metrics.setdefault(seed, {})[step] = value
  document = {
    "case": describe(CASES[name]),
    "made_with": fingerprint(),
    "checksums": found["checksums"],
    "numbers": tree,
  }
  own_folder().mkdir(parents=True, exist_ok=True)
  (own_folder() / f"{name}.json").write_text(_lay_out(document) + "\n")


def _lay_out(tree: Any, depth: int = 0, deepest: int = 3) -> str:
  """JSON with a line for a metric, which people can read and diff."""
  if not isinstance(tree, dict) or not tree or depth == deepest:
    return json.dumps(tree)
  space = "  " * (depth + 1)
  lines = [
    f"{space}{json.dumps(key)}: {_lay_out(value, depth + 1, deepest)}"
    for key, value in tree.items()
  ]
  return "{\n" + ",\n".join(lines) + "\n" + "  " * depth + "}"


if __name__ == "__main__":
  from tests import conftest  # noqa: F401  the settings under which tests run

  with recorded_flags():
    for name in sys.argv[1:] or CASES:
      start = time.perf_counter()
      write(name)
      print(f"{name}: {time.perf_counter() - start:.1f} s", flush=True)
