"""The config of a run: every key, from the dataclasses that read them.

A default and what it means stand once, in the dataclass of the section; fields
that are `settings.constant` have no key. Sections of free keys, such as
`task.options`, hold arguments of the function or task named above them, which
checks them.
"""

import ast
import dataclasses
import importlib
import importlib.util
import pathlib
import sys
import types
from collections.abc import Mapping
from typing import Any

import ml_collections

from saw_jax import settings
from saw_jax.algorithms import AlgorithmConfig
from saw_jax.models.config import TINY, DecoderConfig
from saw_jax.models.lora import LoraConfig
from saw_jax.rollout.sampling import SamplingConfig
from saw_jax.run.agents import EpisodeConfig
from saw_jax.run.evaluation import EvaluationConfig
from saw_jax.run.experiment import AsyncConfig, GradingConfig, LoopConfig
from saw_jax.run.labelling import LabelConfig
from saw_jax.run.rollouts import RolloutConfig
from saw_jax.run.warm_start import WarmStartConfig
from saw_jax.tasks.base import nearest
from saw_jax.training.optimizer import OptimizerConfig
from saw_jax.training.parallel import ParallelConfig

_PACKAGE = pathlib.Path(__file__).parents[1]
# The configs of the papers' tables: in the package where it is installed, and
# beside it in a checkout.
IS_INSTALLED = (_PACKAGE / "configs").is_dir()
FOLDER = (_PACKAGE if IS_INSTALLED else _PACKAGE.parent) / "configs"
_FLAGS = ("true", "false")
# Keys of older runs that follow from the others now.
_FOLLOWING = ("model.value_head", "parallel.data")


@dataclasses.dataclass(frozen=True)
class TaskConfig:
  """What is learned."""

  name: str = ""  # of registry.TASKS
  # Arguments of the task, e.g. its seed, sizes, and a path for real files.
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
  """How text becomes tokens."""

  # "bytes"; the name of a task for its short vocabulary at `tiny`; or the path
  # of a tokenizer.json. With a checkpoint, those names stand for the
  # checkpoint's own tokenizer.
  name: str = "bytes"


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """All sections of a config."""

  task: TaskConfig = TaskConfig()
  tokenizer: TokenizerConfig = TokenizerConfig()
  model: DecoderConfig = TINY
  # A pretrained model: a Hugging Face directory, a .gguf file, or "smollm2";
  # empty: start from nothing. Of config.model it leaves how it is computed
  # (scan_layers, remat, dtype, param_dtype); the rest is its own. There is no
  # warm start then. See docs/checkpoints.md.
  checkpoint: str = ""
  lora: LoraConfig = LoraConfig()
  warm_start: WarmStartConfig = WarmStartConfig()
  rollout: RolloutConfig = RolloutConfig()
  sampling: SamplingConfig = SamplingConfig()
  episodes: EpisodeConfig = EpisodeConfig()
  grading: GradingConfig = GradingConfig()
  algorithm: AlgorithmConfig = AlgorithmConfig()
  optimizer: OptimizerConfig = OptimizerConfig()
  loop: LoopConfig = LoopConfig()
  asynchronous: AsyncConfig = AsyncConfig()
  labels: LabelConfig = LabelConfig()
  evaluation: EvaluationConfig = EvaluationConfig()
  parallel: ParallelConfig = ParallelConfig()


def get_config() -> ml_collections.ConfigDict:
  """Every key with its default; the task has yet to be named."""
  return to_config(RunConfig())


def to_config(values: Any) -> ml_collections.ConfigDict:
  """The keys of a `RunConfig`, or of one section, as an unlocked config."""
  section = ml_collections.ConfigDict()
  for field in filter(settings.is_key, dataclasses.fields(values)):
    value = getattr(values, field.name)
    if dataclasses.is_dataclass(value):
      value = to_config(value)
    elif isinstance(value, Mapping):
      value = ml_collections.ConfigDict(value, allow_dotted_keys=False)
    section[field.name] = value
  return section


def typed(
  config: ml_collections.ConfigDict | Mapping[str, Any],
) -> RunConfig:
  """Types a config; an unknown key or a wrong type is a TypeError.

  The config of an older run may have keys that are gone, if they have the value
  that every run has now; otherwise it is a ValueError.
  """
  if isinstance(config, ml_collections.ConfigDict):
    config = config.to_dict()
  return section(RunConfig(), config)


def section(default: Any, values: Mapping[str, Any], path: str = "") -> Any:
  """Replaces the fields of a dataclass that are keys, nested ones likewise."""
  fields = {field.name: field for field in dataclasses.fields(default)}
  keys = [name for name, field in fields.items() if settings.is_key(field)]
  changes, gone = {}, {}
  for name, value in values.items():
    if name in keys:
      changes[name] = _like(getattr(default, name), value, f"{path}{name}")
    elif name in fields:
      gone[name] = tuple(value) if isinstance(value, list) else value
    else:
      raise TypeError(
        f"{type(default).__name__} has no field {name!r}: config.{path}{name} "
        f"does not exist; {nearest(name, keys)}"
      )
  made = dataclasses.replace(default, **changes)
  for name, value in gone.items():
    now = getattr(made, name)
    if value != now and f"{path}{name}" not in _FOLLOWING:
      raise ValueError(
        f"config.{path}{name} = {value!r}: there is no such key any more, and "
        f"every run has {now!r}; only Python can change it"
      )
  return made


def is_gone(key: str, value: Any) -> bool:
  """Whether this of an older run's config is what every run has now."""
  *path, last = key.split(".")
  section = RunConfig()
  for name in path:
    section = getattr(section, name, None)
  if not any(
    field.name == last and not settings.is_key(field)
    for field in getattr(section, "__dataclass_fields__", {}).values()
  ):
    return False
  value = tuple(value) if isinstance(value, list) else value
  return key in _FOLLOWING or value == getattr(section, last)


def _like(default: Any, value: Any, key: str) -> Any:
  """The value in the type of a default."""
  if dataclasses.is_dataclass(default):
    default_type, types_ = "a section", Mapping
    if isinstance(value, Mapping):
      return section(default, value, f"{key}.")
  elif isinstance(default, Mapping):
    default_type, types_ = "a section", Mapping
  elif isinstance(default, tuple):
    default_type, types_ = "a list", (list, tuple)
  elif isinstance(default, bool):
    default_type, types_ = "True or False", bool
  elif isinstance(default, int):
    default_type, types_ = "a whole number", int
  elif isinstance(default, float):
    default_type, types_ = "a number", (int, float)
  else:
    default_type, types_ = "text", str
  is_flag = isinstance(value, bool) and not isinstance(default, bool)
  if not isinstance(value, types_) or is_flag:
    raise TypeError(f"config.{key} is {default_type}, not {value!r}")
  if isinstance(default, tuple | float):
    return type(default)(value)
  return value


def replace(values: Any, key: str, value: Any) -> Any:
  """Sets `section.field` of typed settings, whether or not it is a key."""
  name, _, rest = key.partition(".")
  if rest:
    value = replace(_at(values, name), rest, value)
  if isinstance(values, Mapping):
    return {**values, name: value}
  return dataclasses.replace(values, **{name: value})


def override(config: ml_collections.ConfigDict, key: str, text: str) -> None:
  """Sets `section.key` to what a flag says; free sections get new keys, too."""
  *path, last = key.split(".")
  place, default = config, RunConfig()
  for depth, name in enumerate([*path, last]):
    if not isinstance(place, ml_collections.ConfigDict):
      raise ValueError(f"no key {name!r}: nothing is below it")
    is_free = isinstance(default, Mapping)
    if name not in place and not (is_free and depth == len(path)):
      raise ValueError(f"no key {name!r}: {nearest(name, list(place))}")
    section, place = place, place.get(name)
    default = _at(default, name)
  if not isinstance(place, str):
    try:
      value = ast.literal_eval(text.title() if text in _FLAGS else text)
    except (ValueError, SyntaxError):
      value = text
    text = value if place is None else _like(place, value, key)
  with config.unlocked(), section.ignore_type():
    section[last] = text


def _at(values: Any, name: str) -> Any:
  if isinstance(values, Mapping):
    return values.get(name, {})
  return getattr(values, name)


def module(name: str) -> types.ModuleType:
  """The module of a table's config, such as `saw/tool_calling`."""
  package = "saw_jax.configs" if IS_INSTALLED else "configs"
  if package not in sys.modules:
    # By its place, as any folder on the path may be called "configs".
    spec = importlib.util.spec_from_file_location(
      package,
      FOLDER / "__init__.py",
      submodule_search_locations=[str(FOLDER)],
    )
    sys.modules[package] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[package])
  if not (FOLDER / f"{name}.py").is_file():
    raise ValueError(f"there is no config {name!r}: {nearest(name, names())}")
  return importlib.import_module(f"{package}.{name.replace('/', '.')}")


def names() -> list[str]:
  """The tables that have a config, such as `saw/tool_calling`."""
  return sorted(
    path.relative_to(FOLDER).with_suffix("").as_posix()
    for path in FOLDER.glob("*/*.py")
    if path.name != "__init__.py"
  )


def load(name: str) -> ml_collections.ConfigDict:
  """Loads a config: a table's name or a file, a colon, its arguments.

  `saw/tool_calling:row=gdpo_saw,scale=tiny` is a table's;
  `configs/saw/tool_calling.py:...` a file, which has `get_config(arguments)`.
  """
  place, _, argument = name.partition(":")
  path = pathlib.Path(place)
  if path.suffix != ".py":
    found = module(place)
  elif not path.is_file():
    raise FileNotFoundError(f"there is no config file {place!r}; see --help")
  elif path.resolve().is_relative_to(FOLDER.resolve()):
    inside = path.resolve().relative_to(FOLDER.resolve())
    found = module(inside.with_suffix("").as_posix())
  else:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
  if not hasattr(found, "get_config"):
    raise AttributeError(f"{place} has no function get_config")
  return found.get_config(argument)
