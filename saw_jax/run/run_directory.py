"""What a run writes down about itself, and whether it may go on there."""

import contextlib
import json
import os
import pathlib
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any

from saw_jax.run import config as config_lib
from saw_jax.run import metrics

if TYPE_CHECKING:
  from saw_jax.run import sections

# What makes a run's numbers, for git.
_CODE = ("--", "saw_jax", "configs")
_NO_GIT = (OSError, subprocess.CalledProcessError)
_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")


class RunError(ValueError):
  """A run directory holds something else than what was asked for."""


def check_run(directory: str | os.PathLike, config: Mapping[str, Any]) -> None:
  """Says whether a run with this config may go on in a directory."""
  if not (pathlib.Path(directory) / "run.json").exists():
    return
  before = read_run(directory)["config"]
  for key, (old, new) in differences(before, config).items():
    raise RunError(
      f"{directory} holds a run with {key} = {old!r}, not {new!r}: choose "
      "another --workdir (--runs of reproduce.py), or the same config"
    )


def differences(
  before: Mapping[str, Any], now: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
  """Keys of two configs that differ, but for those that every run has now."""
  old, new = _flat(before), _flat(json.loads(metrics.to_json(now)))
  return {
    key: (old.get(key), new.get(key))
    for key in sorted(old.keys() | new.keys())
    if old.get(key) != new.get(key)
    and not (key not in new and config_lib.is_gone(key, old[key]))
  }


def open_run(
  directory: str | os.PathLike, config: Mapping[str, Any]
) -> dict[str, Any]:
  """Writes `run.json`, or notes in it that the run goes on."""
  check_run(directory, config)
  path = pathlib.Path(directory) / "run.json"
  if path.exists():
    document = read_run(directory)
    again = {"at": _now(), "commit": commit()}
    document["resumed"] = [*document.get("resumed", []), again]
  else:
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {
      "config": json.loads(metrics.to_json(config)),
      "command": " ".join([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]),
      **environment(),
      "started": _now(),
    }
  metrics.write_json(path, document, sort_keys=True)
  return document


def read_run(directory: str | os.PathLike) -> dict[str, Any]:
  path = pathlib.Path(directory) / "run.json"
  try:
    document = json.loads(path.read_text())
  except (FileNotFoundError, NotADirectoryError):
    raise RunError(f"{directory} is no run directory: no run.json") from None
  except ValueError as error:  # neither text nor JSON
    raise RunError(f"{path} is damaged: {error}") from None
  config = document.get("config") if isinstance(document, dict) else None
  if not isinstance(config, dict):
    raise RunError(f"{path} is damaged: it holds no config")
  return document


def read_config(
  directory: str | os.PathLike,
) -> tuple["sections.RunConfig", list[int]]:
  """The settings of a run, of an older one too, and its seeds."""
  values = dict(read_run(directory)["config"])
  seeds = values.pop("seeds")
  return config_lib.typed(values), seeds


def commits(document: Mapping[str, Any]) -> list[str]:
  later = [entry["commit"] for entry in document.get("resumed", ())]
  return list(dict.fromkeys([document["commit"], *later]))


def environment() -> dict[str, Any]:
  import jax

  devices, cores = jax.devices(), os.cpu_count()
  kind = f"{len(devices)} x {devices[0].device_kind}"
  return {
    "commit": commit(),
    "python": platform.python_version(),
    "packages": {name: metadata.version(name) for name in _PACKAGES},
    "machine": f"{kind}, {cores} cores, {platform.machine()}",
  }


def commit() -> str:
  """A hash, with `+` if library or configs differ; `unknown` outside git."""
  if config_lib.IS_INSTALLED:
    return "unknown"
  with contextlib.suppress(*_NO_GIT):
    dirty = _git("status", "--porcelain", "--untracked-files=no", *_CODE)
    return _git("rev-parse", "--short=10", "HEAD") + ("+" if dirty else "")
  return "unknown"


def is_same_code(a: str, b: str) -> bool:
  """Whether two commits have the same library and the same configs."""
  if a != b and a.isalnum() and b.isalnum() and "unknown" not in (a, b):
    with contextlib.suppress(*_NO_GIT):
      _git("diff", "--quiet", a, b, *_CODE)
      return True
  return a == b


def _git(*words: str) -> str:
  root = pathlib.Path(__file__).parents[2]
  return subprocess.run(
    ["git", "-C", str(root), *words], capture_output=True, text=True, check=True
  ).stdout.strip()


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  flat = {}
  for key, value in tree.items():
    inside = isinstance(value, Mapping) and _flat(value, f"{prefix}{key}.")
    flat |= inside or {prefix + key: value}
  return flat


def _now() -> str:
  return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
