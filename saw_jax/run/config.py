"""Configs: made from the dataclasses of `sections`, loaded, changed and typed.

A default and its meaning are written once, in the dataclass of a section; a
field that is `settings.constant` has no key. Free sections such as
`task.options` hold arguments for the function or task named beside them, which
checks them.
"""

import ast
import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import pathlib
import sys
import types
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import ml_collections

from saw_jax import naming, settings
from saw_jax.naming import nearest
from saw_jax.run import metrics
from saw_jax.tasks.base import check_choice

if TYPE_CHECKING:
  from saw_jax.run import sections

_PACKAGE = pathlib.Path(__file__).parents[1]
# The configs of the papers' tables: inside an installed package, and beside the
# package in a checkout.
IS_INSTALLED = (_PACKAGE / "configs").is_dir()
FOLDER = (_PACKAGE if IS_INSTALLED else _PACKAGE.parent) / "configs"
_FLAGS = ("true", "false")
# Keys that older runs have and no field has now, with the value that every run
# has now; None: it follows from the other keys.
_GONE = {
  "model.value_head": None,
  "parallel.data": None,
  "warm_start.seed": 0,
  "labels.probe.activation": "relu",
  "labels.probe.b1": 0.9,
  "labels.probe.b2": 0.999,
  "labels.probe.eps": 1e-8,
  "labels.probe.weight_decay": 0.0,
  "labels.probe.balance_power": 0.5,
  "labels.probe.balance_minimum": 0.25,
  "labels.probe.balance_maximum": 4.0,
}


@functools.cache
def _defaults() -> "sections.RunConfig":
  # Imports JAX: mistakes in a row or a flag are answered before.
  from saw_jax.run import sections

  return sections.RunConfig()


def get_config() -> ml_collections.ConfigDict:
  """Every key with its default; the task has yet to be named."""
  return to_config(_defaults())


def set_pretrained(config: ml_collections.ConfigDict, checkpoint: str) -> None:
  """Starts from a checkpoint, and trains it on all devices together."""
  config.checkpoint = checkpoint
  config.model.update(scan_layers=True, remat="full", dtype="bfloat16")
  config.parallel.update(lift="meshed", fsdp=-1)


def set_lengths(
  config: ml_collections.ConfigDict,
  *,
  prompt: int | tuple[int, int],
  response: int | tuple[int, int],
  is_packed: bool = False,
) -> None:
  """Sets the most tokens and the multiple they are padded to (or one for both).

  Packed rows of an update have room for the longest prompt and response.
  """
  for size, multiple, given in (
    ("max_prompt_tokens", "prompt_multiple", prompt),
    ("max_new_tokens", "completion_multiple", response),
  ):
    pair = given if isinstance(given, tuple) else (given, given)
    config.rollout[size], config.rollout[multiple] = pair
  if is_packed:
    sizes = config.rollout.max_prompt_tokens, config.rollout.max_new_tokens
    config.loop.pack_length = sum(sizes)


def own_config(checkpoint: str = "") -> ml_collections.ConfigDict:
  """Every key, with values that suit rows of one's own."""
  import jax

  config = to_config(_defaults())
  config.optimizer.weight_decay = 0.0
  config.loop.prompts_per_step = 8
  if not checkpoint:
    set_lengths(config, prompt=(256, 32), response=32)
    config.optimizer.learning_rate = 1e-3
    return config
  config.checkpoint = checkpoint
  set_lengths(config, prompt=(512, 64), response=(256, 64))
  config.optimizer.learning_rate = 1e-5
  config.loop.num_microbatches = 8  # of one prompt's responses each
  config.evaluation.update(num_examples=64, batch_size=32, samples=1)
  if jax.default_backend() != "cpu":
    config.model.update(scan_layers=True, remat="full", dtype="bfloat16")
  return config


def to_config(values: Any) -> ml_collections.ConfigDict:
  """The keys of a `RunConfig`, or of one section, as an unlocked config."""
  # A function may stand in place of a name; `typed` checks types.
  section = ml_collections.ConfigDict(type_safe=False)
  for field in filter(settings.is_key, dataclasses.fields(values)):
    value = getattr(values, field.name)
    if dataclasses.is_dataclass(value):
      value = to_config(value)
    elif isinstance(value, Mapping):
      value = ml_collections.ConfigDict(
        value, type_safe=False, allow_dotted_keys=False
      )
    section[field.name] = value
  return section


def to_document(values: "sections.RunConfig") -> dict[str, Any]:
  """The keys as JSON: functions by the places where they are found again."""
  return metrics.each_leaf(
    lambda x: naming.place_of(x) if callable(x) else x,
    to_config(values).to_dict(),
  )


def typed(
  config: ml_collections.ConfigDict | Mapping[str, Any],
) -> "sections.RunConfig":
  """Types a config; an unknown key or a wrong type is a TypeError.

  The config of an older run may have keys that are gone if they have the value
  that every run has now; any other value is a ValueError.
  """
  if isinstance(config, ml_collections.ConfigDict):
    config = config.to_dict()
  return _like(_defaults(), config, "")


def is_gone(key: str, value: Any) -> bool:
  """Whether a key of an older run is gone, with the value all runs have now."""
  value = tuple(value) if isinstance(value, list) else value
  return key in _fixed() and _fixed()[key] in (None, value)


def is_default(key: str, value: Any) -> bool:
  """Whether a value is the default, which runs before the key had, too."""
  default: Any = None
  with contextlib.suppress(AttributeError):  # such as `seeds`, which is no key
    default = functools.reduce(_at, key.split("."), _defaults())
  return value == (list(default) if isinstance(default, tuple) else default)


@functools.cache
def _fixed() -> dict[str, Any]:
  """What has no key, with its value in every run; None where it follows."""
  found = {}

  def walk(values, path):
    for field in dataclasses.fields(values):
      value, key = getattr(values, field.name), f"{path}{field.name}"
      if not settings.is_key(field):
        found[key] = value
      elif dataclasses.is_dataclass(value):
        walk(value, f"{key}.")

  walk(_defaults(), "")
  return found | _GONE


# The type of a default, what values of it are called, and their types.
_KINDS = (
  (bool, "True or False", bool),
  (int, "a whole number", int),
  (float, "a number", (int, float)),
  (tuple, "a list", (list, tuple)),
  (str, "text", str),
  (object, "a section", Mapping),
)


def _like(default: Any, value: Any, key: str) -> Any:
  """Types a value by the default of its field; sections key by key."""
  if not (dataclasses.is_dataclass(default) and isinstance(value, Mapping)):
    _, called, allowed = next(k for k in _KINDS if isinstance(default, k[0]))
    is_flag = isinstance(value, bool) and not isinstance(default, bool)
    if not isinstance(value, allowed) or is_flag:
      raise TypeError(f"config.{key} is {called}, not {value!r}")
    return type(default)(value) if isinstance(default, tuple | float) else value
  fields = filter(settings.is_key, dataclasses.fields(default))
  keys, changes = {field.name: field for field in fields}, {}
  for name, one in value.items():
    path = f"{key}.{name}" if key else name
    if name in keys:
      is_function = callable(one) or (isinstance(one, str) and ":" in one)
      if is_function and settings.takes_function(keys[name]):
        changes[name] = one
      else:
        changes[name] = _like(getattr(default, name), one, path)
    elif path not in _fixed():
      raise TypeError(f"there is no config.{path}: {nearest(name, [*keys])}")
    elif not is_gone(path, one):
      raise ValueError(
        f"config.{path} = {one!r}: there is no such key any more, and every "
        f"run has {_fixed()[path]!r}"
      )
  return dataclasses.replace(default, **changes)


def replace(values: Any, key: str, value: Any) -> Any:
  """Sets `section.field` of typed settings, also a field without a key."""
  name, _, rest = key.partition(".")
  if rest:
    value = replace(_at(values, name), rest, value)
  if isinstance(values, Mapping):
    return {**values, name: value}
  return dataclasses.replace(values, **{name: value})


def override(config: ml_collections.ConfigDict, key: str, text: str) -> None:
  """Sets `section.key` to the text of a flag; free sections take new keys."""
  place, default = config, _defaults()
  for name in key.split("."):
    if not isinstance(place, ml_collections.ConfigDict):
      raise ValueError(f"no key {name!r}: nothing is below it")
    if name not in place and not isinstance(default, Mapping):
      raise ValueError(f"no key {name!r}: {nearest(name, list(place))}")
    section, place, default = place, place.get(name), _at(default, name)
  if not isinstance(place, str):
    with contextlib.suppress(ValueError, SyntaxError):
      text = ast.literal_eval(text.title() if text in _FLAGS else text)
    # `typed` checks whether a function may stand here.
    is_place = isinstance(text, str) and ":" in text
    text = text if place is None or is_place else _like(place, text, key)
  with config.unlocked():
    section[name] = text


def _at(values: Any, name: str) -> Any:
  if isinstance(values, Mapping):
    return values.get(name, {})
  return getattr(values, name)


def arguments(
  argument: str | None, **choices: tuple[str, ...]
) -> dict[str, str]:
  """Reads `row=gdpo_saw,scale=tiny`, or bare words of one key's choices.

  The first choice of a key is its default, and may be there again.
  """
  choices = {key: tuple(dict.fromkeys(x)) for key, x in choices.items()}
  values = {key: allowed[0] for key, allowed in choices.items()}
  for part in filter(None, (p.strip() for p in (argument or "").split(","))):
    key, sign, value = part.partition("=")
    if not sign:
      owners = [k for k, allowed in choices.items() if part in allowed]
      if len(owners) != 1:
        known = sum(choices.values(), tuple(choices))
        raise ValueError(f"unknown argument {part!r}: {nearest(part, known)}")
      key, value = owners[0], part
    if key not in choices:
      raise ValueError(f"unknown argument {key!r}: {nearest(key, [*choices])}")
    check_choice(key, value, choices[key])
    values[key] = value
  return values


def start(
  task: str,
  argument: str | None,
  scales: Mapping[str, Callable[[ml_collections.ConfigDict], None]],
  **choices: tuple[str, ...],
) -> tuple[ml_collections.ConfigDict, dict[str, str]]:
  """A task's config at the scale that an argument names, and all it names."""
  chosen = arguments(argument, scale=tuple(scales), **choices)
  config = get_config()
  config.task.name = task
  scales[chosen["scale"]](config)
  return config, chosen


def module(name: str) -> types.ModuleType:
  """The module of a table's config, such as `saw/tool_calling`."""
  package = "saw_jax.configs" if IS_INSTALLED else "configs"
  if package not in sys.modules:
    # By its place, as any folder on the path may be called "configs".
    spec = importlib.util.spec_from_file_location(
      package, FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
    )
    sys.modules[package] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[package])
  if not (FOLDER / f"{name}.py").is_file():
    raise ValueError(f"there is no config {name!r}: {nearest(name, names())}")
  return importlib.import_module(f"{package}.{name.replace('/', '.')}")


def names() -> list[str]:
  return sorted(
    path.relative_to(FOLDER).with_suffix("").as_posix()
    for path in FOLDER.glob("*/*.py")
    if path.name != "__init__.py"
  )


def load(name: str) -> ml_collections.ConfigDict:
  """Loads `saw/tool_calling:arguments`, or a file with `get_config`."""
  place, _, argument = name.partition(":")
  path, folder = pathlib.Path(place).resolve(), FOLDER.resolve()
  if path.is_file() and path.is_relative_to(folder):  # a table's, by its path
    place = path.relative_to(folder).with_suffix("").as_posix()
  is_own = place.endswith(".py")
  if is_own and not path.is_file():
    raise FileNotFoundError(f"there is no config file {place!r}; see --help")
  found = vars(naming.load_file(place) if is_own else module(place))
  make = found.get("get_config", lambda: None)
  try:
    takes = argument or naming.arguments(make)
    made = make(argument) if takes else make()
  except Exception as error:
    if not is_own:
      raise
    said = f"{place}: get_config: {type(error).__name__}: {error}"
    raise ValueError(said) from error
  if not isinstance(made, ml_collections.ConfigDict):
    raise TypeError(f"{place} has no function get_config that gives a config")
  return made
