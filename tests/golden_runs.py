"""Short training runs, and what is kept of them in tests/golden/runs.

  python -m tests.golden_runs [case ...]

writes the files of the cases, of all by default. `golden_runs_test.py` runs the
same cases and compares.
"""

import dataclasses
import functools
import hashlib
import json
import math
import os
import pathlib
import platform
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib import metadata
from typing import Any

FOLDER = pathlib.Path(__file__).parent / "golden" / "runs"
# Where the machine or the versions differ from those recorded.
RTOL, ATOL = 1e-3, 1e-4
# Figures of the clock or of a process, by how they begin.
_OF_THE_CLOCK = ("seconds/", "tokens_per_second", "compilations")
_CPU_FLAGS = ("avx", "amx", "fma", "sse4")


@dataclasses.dataclass(frozen=True)
class Case:
  """One run.

  Attributes:
    config: below configs/, without `.py`.
    argument: of its `get_config`.
    overrides: values by dotted keys, set after `SMALL`.
    seeds: trained in one program.
    is_slow: takes more than some seconds.
  """

  config: str
  argument: str
  overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  seeds: tuple[int, ...] = (0, 1)
  is_slow: bool = True


# What all cases set: a decoder, a start and a loop of seconds. The start is
# short and steep, so that rewards differ between answers.
SMALL = {
  "model.width": 32,
  "model.num_layers": 1,
  "model.num_heads": 2,
  "model.num_kv_heads": 2,
  "model.mlp_size": 64,
  "warm_start.num_steps": 80,
  "warm_start.batch_size": 32,
  "warm_start.num_demonstrations": 512,
  "warm_start.learning_rate": 0.02,
  "grading.num_workers": 0,
  "optimizer.learning_rate": 0.003,
  "loop.num_steps": 3,
  "loop.prompts_per_step": 4,
  "loop.group_size": 4,
  "loop.num_microbatches": 1,
  "loop.checkpoint_interval": 0,
  "evaluation.interval": 2,
  "evaluation.num_examples": 8,
  "evaluation.batch_size": 8,
  "evaluation.samples": 2,
}
_TOOLS = {
  "rollout.max_new_tokens": 24,
  "rollout.completion_multiple": 24,
}
_EASY = {"task.options.levels": (1,)}
_LABELS = {
  "loop.prompts_per_step": 5,
  "labels.warm_up": 1,
  "labels.probe.learning_rate": 0.003,
  "labels.probe.replay_batch": 4,
  "labels.probe.prompt_width": 16,
  "labels.probe.joint_width": 16,
  "labels.probe.response_hidden_width": 16,
  "labels.probe.response_width": 16,
}
_EPISODES = {
  "loop.prompts_per_step": 2,
  "loop.chunk_size": 1024,
  "episodes.rows_per_call": 16,
  "episodes.row_parts": 1,
  "episodes.num_transitions": 8,
  "warm_start.num_steps": 250,
  "warm_start.options.wrong_rate": 0.0,
}
_ROOM = {
  "task.options.kinds": ("look",),
  "task.options.receptacles": 2,
  "task.options.objects": 2,
  "task.options.max_steps": 6,
}

CASES = {
  # --- saw ------------------------------------------------------------------
  "saw_tools_gdpo_saw": Case(
    "saw/tool_calling", "row=gdpo_saw,scale=tiny", _TOOLS, is_slow=False
  ),
  "saw_tools_grpo_kl_in_reward": Case(
    "saw/tool_calling",
    "row=grpo,scale=tiny,kl=released",
    {**_TOOLS, "algorithm.kl.coefficient": 0.1},
  ),
  "saw_tools_gdpo_gradient": Case(
    "saw/tool_calling", "row=gdpo_gradient,scale=tiny", _TOOLS
  ),
  "saw_summaries_grpo_saw": Case("saw/summaries", "row=grpo_saw,scale=tiny"),
  "saw_summaries_gdpo_static": Case(
    "saw/summaries",
    "row=gdpo_static,scale=tiny",
    {"loop.num_minibatches": 2, "loop.num_microbatches": 2},
  ),
  # --- gdpo -----------------------------------------------------------------
  "gdpo_math_conditioned_kl_in_loss": Case(
    "gdpo/math",
    "row=gdpo_conditioned,scale=tiny",
    {
      **_EASY,
      "grading.num_workers": 2,
      "algorithm.kl.placement": "loss",
      "algorithm.kl.coefficient": 0.1,
    },
  ),
  "gdpo_math_gdpo_minibatches": Case(
    "gdpo/math",
    "row=gdpo,scale=tiny",
    {**_EASY, "loop.num_minibatches": 2, "loop.num_microbatches": 2},
    is_slow=False,
  ),
  "gdpo_math_grpo_saw_packed": Case(
    "gdpo/math",
    "row=grpo_saw,scale=tiny",
    {**_EASY, "loop.pack_length": 64, "rollout.length_groups": 2},
  ),
  "gdpo_math_gdpo_saw_adapters": Case(
    "gdpo/math",
    "row=gdpo_saw,scale=tiny",
    {**_EASY, "lora.rank": 2, "optimizer.learning_rate": 0.02},
  ),
  "gdpo_math_gdpo_pmapped": Case(
    "gdpo/math",
    "row=gdpo,scale=tiny",
    {**_EASY, "parallel.lift": "pmapped"},
    seeds=(0,),
  ),
  "gdpo_math_gdpo_saw_meshed": Case(
    "gdpo/math",
    "row=gdpo_saw,scale=tiny",
    {
      **_EASY,
      "parallel.lift": "meshed",
      "parallel.data": 1,
      "parallel.fsdp": 2,
      "parallel.tensor": 2,
    },
    seeds=(0,),
  ),
  # --- asympo ---------------------------------------------------------------
  "asympo_math_asympo_fixed_lag": Case(
    "asympo/math",
    "row=asympo,lag=1,scale=tiny,protocol=fixed_lag",
    _EASY,
    is_slow=False,
  ),
  "asympo_math_asympo_actors": Case(
    "asympo/math",
    "row=asympo_stable,lag=1,scale=tiny,protocol=fixed_lag",
    {**_EASY, "asynchronous.actors": 2},
  ),
  "asympo_math_spo_max_lag": Case(
    "asympo/math", "row=spo,lag=2,scale=tiny,protocol=max_lag", _EASY
  ),
  "asympo_math_gpg_quota": Case(
    "asympo/math",
    "row=gpg,lag=0,scale=tiny,protocol=quota",
    {**_EASY, "asynchronous.require": 1, "asynchronous.trigger": 2},
  ),
  "asympo_math_topr": Case("asympo/math", "row=topr,lag=2,scale=tiny", _EASY),
  "asympo_math_tis": Case("asympo/math", "row=tis,lag=2,scale=tiny", _EASY),
  "asympo_math_cispo": Case("asympo/math", "row=cispo,lag=2,scale=tiny", _EASY),
  "asympo_math_gspo": Case("asympo/math", "row=gspo,lag=2,scale=tiny", _EASY),
  "asympo_math_dapo": Case(
    "asympo/math",
    "row=dapo,lag=1,scale=tiny",
    {**_EASY, "asynchronous.max_attempts": 3},
  ),
  "asympo_benchmarks_asympo_batch": Case(
    "asympo/benchmarks",
    "row=asympo_dapo,scale=tiny",
    {**_EASY, "asynchronous.lag": 2, "algorithm.loss": "batch_asympo"},
  ),
  # --- care -----------------------------------------------------------------
  "care_math_care": Case(
    "care/math",
    "row=care,fraction=0.4,scale=tiny",
    {**_EASY, **_LABELS},
    is_slow=False,
  ),
  "care_math_vote": Case(
    "care/math", "row=vote,fraction=0.4,scale=tiny", {**_EASY, **_LABELS}
  ),
  "care_knights_care_votes": Case(
    "care/knights", "row=care_votes,fraction=0.2,scale=tiny", _LABELS
  ),
  "care_knights_certainty": Case(
    "care/knights", "row=certainty,fraction=0.2,scale=tiny", _LABELS
  ),
  "care_knights_self_verification": Case(
    "care/knights", "row=self_verification,fraction=0.2,scale=tiny", _LABELS
  ),
  # --- paw ------------------------------------------------------------------
  "paw_household_gigpo_paw": Case(
    "paw/household",
    "row=gigpo_paw,scale=tiny",
    {**_EPISODES, **_ROOM},
  ),
  "paw_household_ppo_paw": Case(
    "paw/household",
    "row=ppo_paw,scale=tiny",
    {**_EPISODES, **_ROOM, "grading.num_workers": 2},
  ),
  "paw_shop_grpo_paw": Case(
    "paw/shop",
    "row=grpo_paw,scale=tiny",
    {**_EPISODES, "task.options.max_steps": 4},
  ),
  "paw_search_rloo_paw": Case(
    "paw/search",
    "row=rloo_paw,scale=tiny",
    {**_EPISODES, "task.options.max_steps": 4, "loop.num_minibatches": 2},
  ),
  # --- composed -------------------------------------------------------------
  "composed_tools_all": Case(
    "composed/tool_calling",
    "row=all,scale=tiny",
    {**_TOOLS, **_LABELS, "asynchronous.lag": 1},
    is_slow=False,
  ),
}


def train(case: Case, directory: pathlib.Path, starts: pathlib.Path) -> None:
  """Trains a case: all that is known here of how a run is made.

  Args:
    case: the run.
    directory: where its files go: metrics.jsonl, evals.jsonl, final.json,
      checkpoints and, where labels are bought, labels.sqlite.
    starts: where supervised starts are kept for other cases.
  """
  from unittest import mock

  from saw_jax.run import build, config

  run = config.typed(config.load(f"{case.config}:{case.argument}"))
  for key, value in {**SMALL, **case.overrides}.items():
    run = config.replace(run, key, value)
  with mock.patch.object(build, "cache_folder", lambda: starts):
    build.train(build.build(run), case.seeds, directory=directory)


def run(case: Case) -> dict[str, Any]:
  """Runs a case.

  Args:
    case: the run.

  Returns:
    Its numbers by what they are, as `numbers`, and checksums.
  """
  with tempfile.TemporaryDirectory() as folder:
    directory = pathlib.Path(folder, "run")
    train(case, directory, _starts())
    sums = {"params": _sum_of_params(directory)}
    if (directory / "labels.sqlite").exists():
      sums["labels"] = _sum_of_labels(directory / "labels.sqlite")
    return {"numbers": _numbers(directory), "checksums": sums}


@functools.cache
def _starts() -> pathlib.Path:
  """Of this process: a start that another one made is not tested."""
  kept = tempfile.TemporaryDirectory()
  _KEPT.append(kept)
  return pathlib.Path(kept.name)


_KEPT = []


def _numbers(directory: pathlib.Path) -> dict[str, float]:
  """All numbers that the files of a run have, by `file seed step metric`."""
  found = {}
  for name in ("metrics", "evals"):
    for line in (directory / f"{name}.jsonl").read_text().splitlines():
      _collect(found, name, json.loads(line))
  for row in json.loads((directory / "final.json").read_text()):
    _collect(found, "final", row)
  return found


def _collect(found: dict[str, float], name: str, row: dict) -> None:
  seed, step = row.pop("seed"), row.pop("step")
  for metric, value in _flat(row):
    if not metric.startswith(_OF_THE_CLOCK):
      found[f"{name} seed={seed} step={step} {metric}"] = value


def _flat(tree: Mapping, prefix: str = ""):
  for key, value in tree.items():
    if isinstance(value, Mapping):
      yield from _flat(value, f"{prefix}{key}/")
    else:
      yield prefix + key, value


def _sum_of_params(directory: pathlib.Path) -> str:
  """Of the last checkpoint: paths, dtypes, shapes and bytes."""
  import jax
  import numpy as np
  import orbax.checkpoint as ocp

  steps = [p for p in (directory / "checkpoints").iterdir() if p.name.isdigit()]
  last = max(steps, key=lambda path: int(path.name))
  with ocp.StandardCheckpointer() as store:
    meta = store.metadata((last / "state").absolute()).item_metadata
    # Wherever they lay, they are read onto one device.
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    template = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=one),
      dict(meta.tree if hasattr(meta, "tree") else meta),
    )
    params = store.restore((last / "state").absolute(), template)["params"]
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
  import contextlib
  import sqlite3

  columns = "seed, step, prompt_id, label, who, price, standing"
  with contextlib.closing(sqlite3.connect(path)) as connection:
    rows = connection.execute(
      f"SELECT {columns} FROM purchases ORDER BY seed, step, prompt_id"
    ).fetchall()
  return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def fingerprint() -> dict[str, Any]:
  """Describes what bits depend on beside the code.

  Returns:
    Processor, cores, versions and flags of the compiler.
  """
  about = {}
  try:
    text = pathlib.Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    about = {
      key.strip(): value.strip()
      for key, _, value in (line.partition(":") for line in text.splitlines())
    }
  except OSError:
    pass
  flags = about.get("flags", about.get("Features", "")).split()
  return {
    "machine": platform.machine(),
    "processor": " ".join(
      about.get(key, "?")
      for key in ("vendor_id", "cpu family", "model", "cache size")
    ),
    "instructions": " ".join(
      sorted(flag for flag in flags if flag.startswith(_CPU_FLAGS))
    ),
    "cores": os.cpu_count(),
    "xla_flags": os.environ.get("XLA_FLAGS", ""),
    **{name: metadata.version(name) for name in ("jax", "jaxlib", "numpy")},
  }


def describe(case: Case) -> dict[str, Any]:
  """Says what was run, as a file of it does.

  Args:
    case: the run.

  Returns:
    As JSON can hold it.
  """
  overrides = {**SMALL, **case.overrides}
  document = {
    "config": case.config,
    "argument": case.argument,
    "overrides": dict(sorted(overrides.items())),
    "seeds": case.seeds,
  }
  return json.loads(json.dumps(document))


def differences(
  expected: Mapping[str, Any], found: Mapping[str, Any], *, exact: bool
) -> list[str]:
  """Compares two runs.

  Args:
    expected: as `run` returns it.
    found: likewise.
    exact: bit by bit, and checksums too.

  Returns:
    A line for each difference.
  """
  lines = []
  before, now = expected["numbers"], found["numbers"]
  for name in sorted(before.keys() | now.keys(), key=_order):
    if name not in now:
      lines.append(f"{name}: expected {before[name]!r}, but it is missing")
    elif name not in before:
      lines.append(f"{name}: not expected, got {now[name]!r}")
    elif not _agree(before[name], now[name], exact):
      lines.append(f"{name}: expected {before[name]!r}, got {now[name]!r}")
  before, now = expected["checksums"], found["checksums"]
  if before.keys() != now.keys():
    lines.append(f"checksums: expected {list(before)}, got {list(now)}")
  elif exact:
    lines += [
      f"checksum of {name}: expected {before[name]}, got {now[name]}"
      for name in before
      if before[name] != now[name]
    ]
  return lines


def _order(name: str) -> tuple:
  """Early steps first: what differs there made the rest differ."""
  part, seed, step, metric = name.split(" ", 3)
  number = int(step.removeprefix("step="))
  return part == "final", number, part == "metrics", seed, metric


def _agree(a: Any, b: Any, exact: bool) -> bool:
  if exact or isinstance(a, str) or isinstance(b, str) or None in (a, b):
    return repr(a) == repr(b)  # NaN is NaN, and -0.0 is not 0.0
  if math.isnan(a) or math.isnan(b):
    return math.isnan(a) and math.isnan(b)
  return a == b or abs(a - b) <= ATOL + RTOL * abs(a)


def path_of(name: str) -> pathlib.Path:
  """Returns where a case's file lies.

  Args:
    name: of the case.

  Returns:
    The path.
  """
  return FOLDER / f"{name}.json"


def read(name: str) -> dict[str, Any]:
  """Reads the file of a case.

  Args:
    name: of the case.

  Returns:
    The document, its numbers as `run` returns them.
  """
  document = json.loads(path_of(name).read_text())
  document["numbers"] = {
    f"{part} seed={seed} step={step} {metric}": value
    for part, metrics in document["numbers"].items()
    for metric, seeds in metrics.items()
    for seed, steps in seeds.items()
    for step, value in steps.items()
  }
  return document


def write(name: str) -> None:
  """Runs a case and writes its file.

  Args:
    name: of the case.
  """
  found = run(CASES[name])
  tree = {}
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
  FOLDER.mkdir(parents=True, exist_ok=True)
  path_of(name).write_text(_lay_out(document) + "\n")


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


def main(names: list[str]) -> None:
  # The settings under which the tests run.
  from tests import conftest  # noqa: F401

  for name in names or CASES:
    start = time.perf_counter()
    write(name)
    print(f"{name}: {time.perf_counter() - start:.1f} s", flush=True)


if __name__ == "__main__":
  main(sys.argv[1:])
