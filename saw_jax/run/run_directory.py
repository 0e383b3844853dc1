"""What a run records about itself, and who may continue it."""

import ast
import contextlib
import fcntl
import functools
import hashlib
import itertools
import json
import logging
import os
import pathlib
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any, TextIO

from saw_jax import naming
from saw_jax.run import config as config_lib
from saw_jax.run import metrics, store

if TYPE_CHECKING:
  from saw_jax.run import sections
  from saw_jax.training.optimizer import OptimizerConfig

LOG = logging.getLogger(__name__)
_LENGTH = "loop.num_steps"
# The lock files that this process holds.
_LOCKS: dict[pathlib.Path, TextIO] = {}
# Folders of the package that no run's numbers depend on.
_AROUND = ("reporting", "commands", "contrib", "ahead")
_VECTORS = ("avx", "amx", "fma", "sse4")
# What a run's numbers depend on, for git.
_CODE = ("--", "saw_jax", "configs")
_NO_GIT = (OSError, subprocess.CalledProcessError)
_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")


class RunError(ValueError):
  """A run directory does not hold what was asked for."""


def check_run(
  directory: str | os.PathLike,
  config: Mapping[str, Any],
  optimizer: "OptimizerConfig | None" = None,
) -> None:
  """Raises if a run with this config may not continue in a directory.

  It may if the run there has the same config or saved nothing yet. Its
  functions may have changed since, its files of rows may not. With the config's
  optimizer it may also have more steps, if its schedule does not depend on
  their number.
  """
  if not _has_begun(pathlib.Path(directory)):
    return
  document = read_run(directory)
  for key, (old, new) in differences(document["config"], config).items():
    if key == _LENGTH and optimizer is not None and old < new:
      if not optimizer.follows_length:
        continue
      raise RunError(
        f"{directory} holds a run of {old} steps, over which its learning rate "
        f"falls ({optimizer.schedule}): one of {new} steps would have been "
        "another from the first on; choose another --workdir"
      )
    raise RunError(
      f"{directory} holds a run with {key} = {old!r}, not {new!r}: choose "
      "another --workdir (--runs of saw table), or the same config"
    )
  given = _given(config)
  for key in changes(document, config):
    if os.path.isfile(given[key]):  # and is no function
      raise RunError(
        f"{directory} holds a run on another content of {key}: give it the "
        "file as it was, or choose another --workdir"
      )


def _given(config: Mapping[str, Any]) -> dict[str, Any]:
  """The options of the task and of the algorithm, flat."""
  options = config.get("task", {}).get("options", {})
  return flatten({**config.get("algorithm", {}), **options})


def digests(config: Mapping[str, Any]) -> dict[str, str]:
  """A hash of each file that a config names, and of its functions' code."""
  found = {}
  for key, value in _given(config).items():
    if isinstance(value, str) and (content := naming.content(value)):
      with content as file:
        found[key] = hashlib.file_digest(file, "sha256").hexdigest()[:16]
  return found


def changes(document: Mapping, config: Mapping[str, Any]) -> list[str]:
  """The keys whose file or function has changed since the run began."""
  now, before = digests(config), document.get("files") or {}
  return [key for key, old in before.items() if now.get(key, old) != old]


def tell_changes(directory: str | os.PathLike) -> None:
  """Warns of each of them, since the steps so far are of the old ones."""
  document = read_run(directory)
  for key in changes(document, document["config"]):
    LOG.warning(
      "%s: the file or code of %s has changed since this run began; its steps "
      "so far are of the old one (another directory begins anew)",
      *(directory, key),
    )


def differences(
  before: Mapping[str, Any], now: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
  """The keys in which two configs differ, with both values.

  Keys that change no figure are left out: trackers, where the servers of an
  engine are and how they are asked, and keys of older or newer versions with
  the value that every run has. An empty section is none.
  """
  old, new = (
    {key: value for key, value in flatten(config).items() if value != {}}
    for config in (before, json.loads(metrics.to_json(now)))
  )
  return {
    key: (old.get(key), new.get(key))
    for key in sorted(old.keys() | new.keys())
    if old.get(key) != new.get(key)
    and key != "loop.writers"
    and not key.startswith("rollout.engine_options")
    and not (key == "rollout.engine" and old.get(key) and new.get(key))
    and not (key not in new and config_lib.is_gone(key, old[key]))
    and not (key not in old and config_lib.is_default(key, new[key]))
  }


def _has_begun(folder: pathlib.Path) -> bool:
  """Whether a run here has saved a step."""
  saved = (path.name.isdigit() for path in folder.glob("checkpoints/*"))
  is_saved = (folder / "final.json").exists() or any(saved)
  return is_saved and (folder / "run.json").exists()


def document_of(run: "sections.RunConfig", seeds: Iterable[int]) -> dict:
  """The config and the seeds as a run directory records them."""
  return {**config_lib.to_document(run), "seeds": list(seeds)}


def open_run(
  directory: str | os.PathLike,
  config: Mapping[str, Any],
  optimizer: "OptimizerConfig | None" = None,
  start: str | None = None,  # a digest of the initial weights
  panel: Mapping[str, Any] | None = None,  # the episodes it is scored on
) -> dict[str, Any]:
  """Writes `run.json`, or notes in it that the run continues.

  Replaces a run that saved nothing. Deletes the final scores of a run that gets
  longer: they are made again at its end.
  """
  check_run(directory, config, optimizer)
  path = pathlib.Path(directory) / "run.json"
  config = json.loads(metrics.to_json(config))
  if _has_begun(path.parent):
    tell_changes(directory)
    document = read_run(directory)
    again = {"at": _now(), "commit": commit(), "code": code()}
    for old, _ in differences(document["config"], config).values():
      again["steps_before"] = old  # Nothing else may differ.
      (path.parent / "final.json").unlink(missing_ok=True)
      document["config"]["loop"]["num_steps"] = config["loop"]["num_steps"]
    document["resumed"] = [*document.get("resumed", []), again]
  else:
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {
      "config": config,
      "command": " ".join([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]),
      **environment(),
      "start": start,
      "panel": panel,
      "files": digests(config),
      "started": _now(),
    }
    _set_labels_aside(path, config)
  metrics.write_json(path, document, sort_keys=True)
  return document


def note_engine(directory: str | os.PathLike, traits: Mapping) -> None:
  """Adds the engine that samples to what a run records."""
  path = pathlib.Path(directory) / "run.json"
  if not path.exists():  # The run was not made by `build`.
    return
  document = read_run(directory)
  if dict(traits) not in (found := document.setdefault("engines", [])):
    found.append(dict(traits))
    metrics.write_json(path, document, sort_keys=True)


def _set_labels_aside(path: pathlib.Path, config: Mapping[str, Any]) -> None:
  """Renames the labels of a failed run that this one replaces.

  Labels are named by step and prompt, so that this run would take them for its
  own; and they may have cost a person's time.
  """
  from saw_jax.annotate.ledger import LEDGER_NAME

  ledger = path.with_name(LEDGER_NAME)
  with contextlib.suppress(RunError):
    if read_run(path.parent)["config"] == config or not ledger.exists():
      return
    said = "the labels of the start that is replaced are in %s"
    LOG.warning(said, set_aside(ledger))


def set_aside(path: pathlib.Path) -> pathlib.Path:
  """Renames a file to the first of `<stem>_1`, `<stem>_2` ... that is free."""
  places = (path.with_stem(f"{path.stem}_{n}") for n in itertools.count(1))
  return path.rename(next(one for one in places if not one.exists()))


def lock(directory: str | os.PathLike) -> None:
  """Keeps other processes from training in a directory.

  Holds until `unlock` or until this process ends, however that happens. Reading
  needs no lock.
  """
  path = pathlib.Path(directory).resolve() / "lock"
  if path in _LOCKS:
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  file = path.open("a+")
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    with file:
      file.seek(0)
      who = file.read().strip() or "another process"
    raise RunError(
      f"{directory} is in use: {who} trains there; wait for it, stop it, or "
      "choose another --workdir"
    ) from None
  except OSError as error:
    LOG.warning("%s cannot be locked (%s): start one run there", path, error)
  file.truncate(0)
  file.write(f"process {os.getpid()} on {platform.node()}\n")
  file.flush()
  _LOCKS[path] = file
  store.of(path.parent).take()


def unlock(directory: str | os.PathLike) -> None:
  path = pathlib.Path(directory).resolve() / "lock"
  if path in _LOCKS:
    _LOCKS.pop(path).close()
    store.of(path.parent).release()


def read_run(directory: str | os.PathLike) -> dict[str, Any]:
  path = pathlib.Path(directory) / "run.json"
  try:
    document = json.loads(path.read_text())
  except (FileNotFoundError, NotADirectoryError):
    raise RunError(f"{directory} is no run directory: no run.json") from None
  except (ValueError, RecursionError) as error:  # neither text nor JSON
    raise RunError(f"{path} is damaged: {error}") from None
  config = document.get("config") if isinstance(document, dict) else None
  sections = [config]
  if isinstance(config, dict):
    sections += [config.get(x) or {} for x in ("task", "algorithm", "loop")]
  if not all(isinstance(x, dict) for x in sections):
    raise RunError(f"{path} is damaged: it holds no config")
  # Rows kept in the directory are found wherever it was moved to: their names
  # are hashes of their content (tasks/rows).
  options = (config.get("task") or {}).get("options") or {}
  for name, place in options.items():
    here = path.resolve().parent / pathlib.Path(str(place)).name
    if here.name.startswith("rows_") and here.is_file():
      options[name] = str(here)
  return document


def read_config(
  directory: str | os.PathLike, given: Mapping[str, Any] | None = None
) -> tuple["sections.RunConfig", list[int]]:
  """The settings and the seeds of a run, also of an older one.

  Functions that are in no file come from a `given` config, or else are
  replaced by defaults: reading a run calls none of them.
  """
  values = dict(read_run(directory)["config"])
  seeds = values.pop("seeds", None)
  if not isinstance(seeds, list):
    raise RunError(f"{directory}/run.json is damaged: it holds no seeds")
  section = values.get("algorithm", {})
  lost = {
    name
    for name, value in section.items()
    if any(map(naming.is_lost, flatten({"": value}).values()))
  } - {"advantage"}  # says what kind of task a run has
  lost |= {f"{name}_options" for name in lost}
  values["algorithm"] = {k: x for k, x in section.items() if k not in lost}
  if given is not None:
    values["algorithm"] = given["algorithm"].to_dict()
  return config_lib.typed(values), seeds


def commits(document: Mapping[str, Any]) -> dict[str, str]:
  """The hash of the code by commit; older runs only have the commit."""
  entries = (document, *document.get("resumed", ()))
  return {e["commit"]: e.get("code", e["commit"]) for e in entries}


def environment() -> dict[str, Any]:
  import jax

  devices, cores = jax.devices(), os.cpu_count()
  kind = f"{len(devices)} x {devices[0].device_kind}"
  return {
    "commit": commit(),
    "code": code(),
    **processor(),
    "python": platform.python_version(),
    "packages": {name: metadata.version(name) for name in _PACKAGES},
    "machine": f"{kind}, {cores} cores, {platform.machine()}",
  }


def commit() -> str:
  """The commit, with `+` if the code was changed; `unknown` outside git."""
  if config_lib.IS_INSTALLED:
    return "unknown"
  with contextlib.suppress(*_NO_GIT):
    dirty = _git("status", "--porcelain", "--untracked-files=no", *_CODE)
    return _git("rev-parse", "--short=10", "HEAD") + ("+" if dirty else "")
  return "unknown"


@functools.cache
def code() -> str:
  """A hash of the part of the package that a run's numbers depend on.

  Ignores comments and layout, and configs, which runs record.
  """
  digest, package = hashlib.sha256(), pathlib.Path(__file__).parents[1]
  for path in sorted(package.rglob("*")):
    name = path.relative_to(package)
    if name.parts[0] in _AROUND or path.suffix == ".pyc" or path.is_dir():
      continue
    content = path.read_bytes()
    if path.suffix == ".py":
      content = ast.dump(ast.parse(content)).encode()
    digest.update(f"{name.as_posix()} {len(content)}\n".encode() + content)
  return digest.hexdigest()[:10]


def processor() -> dict[str, str]:
  """What rounding depends on: the processor and its vector instructions."""
  text = ""
  with contextlib.suppress(OSError):
    text = pathlib.Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
  lines = (line.partition(":") for line in text.splitlines())
  about = {key.strip(): value.strip() for key, _, value in lines}
  flags = about.get("flags", about.get("Features", "")).split()
  names = ("vendor_id", "cpu family", "model", "cache size")
  found = sorted(flag for flag in flags if flag.startswith(_VECTORS))
  return {
    "processor": " ".join(about.get(name, "?") for name in names),
    "instructions": " ".join(found),
  }


def _git(*words: str) -> str:
  root = pathlib.Path(__file__).parents[2]
  return subprocess.run(
    ["git", "-C", str(root), *words], capture_output=True, text=True, check=True
  ).stdout.strip()


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  flat = {}
  for key, value in tree.items():
    inside = isinstance(value, Mapping) and flatten(value, f"{prefix}{key}.")
    flat |= inside or {prefix + key: value}
  return flat


def _now() -> str:
  return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
