# SPDX-License-Identifier: Apache-2.0
"""Names: those that users type, and those that functions give their arguments.

A formula says what it reads by the names of its arguments, and what a config
may set by those that are keyword-only. Signatures are read here alone.
"""

import contextlib
import difflib
import functools
import importlib
import importlib.util
import inspect
import io
import operator
import os
import pathlib
import sys
import types
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

# Modules that were read by the paths of their files, and these.
FILES: dict[str, str] = {}
SCRIPT = "__mp_main__"  # what a script is called in another process
_reading: list[pathlib.Path] = []


@contextlib.contextmanager
def needs_extra(extra: str, need: str) -> Iterator[None]:
  """Has an import that fails inside name the extra to install."""
  try:
    yield
  except ImportError as error:
    raise ImportError(f"{need}: pip install 'saw_jax[{extra}]'") from error


@contextlib.contextmanager
def standing_in(name: str, module: types.ModuleType | None) -> Iterator[None]:
  """Has imports inside find this module by a name; None: that there is none."""
  before = sys.modules.pop(name, None)
  sys.modules[name] = module
  try:
    yield
  finally:
    del sys.modules[name]
    if before is not None:
      sys.modules[name] = before


def nearest(name: str, choices: Collection[str]) -> str:
  """The end of an error message: the most similar choice, then all of them.

  >>> nearest("GDPO", ["grpo", "gdpo"])
  "did you mean 'gdpo'? Choices: gdpo, grpo"
  """
  if not choices:
    return "there are none"
  alike = {choice.lower(): choice for choice in choices}
  (one,) = difflib.get_close_matches(name.lower(), alike, n=1, cutoff=0.0)
  return f"did you mean {alike[one]!r}? Choices: {', '.join(sorted(choices))}"


def lookup(table: Mapping[str, Any], name: str, what: str) -> Any:
  """The entry of a name; a `KeyError` has the nearest one."""
  if name not in table:
    raise KeyError(f"unknown {what} {name!r}: {nearest(name, list(table))}")
  return table[name]


def check_options(known: Sequence[str], given: Mapping, what: str) -> None:
  """Raises a `TypeError` for an option that `what` does not have."""
  for name in given:
    if name not in known:
      raise TypeError(f"{what} has no option {name!r}: {nearest(name, known)}")


def check_choice(what: str, value: str, choices: Collection[str]) -> None:
  if value not in choices:
    raise ValueError(f"unknown {what} {value!r}: {nearest(value, choices)}")


def check_range(config: Any, interval: str, *names: str) -> None:
  """Raises for a number of a config that is outside; None is no number.

  >>> check_range(types.SimpleNamespace(rate=1.5), "[0, 1)", "loop.rate")
  Traceback (most recent call last):
  ValueError: loop.rate is 1.5; it must be in [0, 1)
  """
  low, high = map(float, interval[1:-1].split(","))
  rises = operator.gt if interval[0] == "(" else operator.ge
  ends = operator.lt if interval[-1] == ")" else operator.le
  for name in names:
    value = getattr(config, name.rpartition(".")[2])
    if value is not None and not (rises(value, low) and ends(value, high)):
      raise ValueError(f"{name} is {value}; it must be in {interval}")


class Read(BaseException):
  """Ends the reading of a file for its names: see `leave_if_read`."""


def load(place: str) -> Any:
  """What `package.module:name` or `folder/file.py:name` stands for."""
  where, _, name = place.rpartition(":")
  found: Any = sys.modules["__main__"]
  if where.endswith(".py"):
    found = load_file(where)
  elif where != "__main__":
    if where.partition(".")[0] not in sys.modules and "" not in sys.path:
      _add_to_path(os.getcwd())  # as `python` itself has it, and not a script
    found = importlib.import_module(where)
  try:
    return functools.reduce(getattr, name.split("."), found)
  except AttributeError:
    if where == "__main__":
      raise ValueError(
        f"{name!r} was made in a notebook, or while a script ran, and is in no "
        "file: move it to one, or pass it again, from Python, as "
        "saw_jax.open_run(directory, task=task, config=config)"
      ) from None
    near = nearest(name, [x for x in vars(found) if not x.startswith("_")])
    raise ValueError(f"{where} has no {name!r}: {near}") from None


def load_file(path: str, name: str = "") -> types.ModuleType:
  """The module in a file, read once; `name` is what other processes call it."""
  file = pathlib.Path(path).resolve()
  for module in ("__main__", *(x for x, y in FILES.items() if y == str(file))):
    its = getattr(sys.modules[module], "__file__", None)
    if its and pathlib.Path(its).resolve() == file:
      return sys.modules[module]
  if not file.is_file():
    raise FileNotFoundError(f"there is no file {file}: was it moved?")
  _add_to_path(str(file.parent))  # for what it imports itself
  if not name:
    name, taken = file.stem, None
    with contextlib.suppress(ImportError, ValueError):
      taken = importlib.util.find_spec(name)
    if name in sys.modules or (taken and taken.origin != str(file)):
      name += f"_{zlib.crc32(str(file).encode()):08x}"
  spec = importlib.util.spec_from_file_location(name, file)
  module = importlib.util.module_from_spec(spec)
  previous = sys.modules.get(name)
  sys.modules[name], FILES[name] = module, str(file)
  _reading.append(file)
  try:
    with contextlib.suppress(Read):
      spec.loader.exec_module(module)
  except BaseException as error:
    del sys.modules[name], FILES[name]
    if previous is not None:
      sys.modules[name] = previous
    if isinstance(error, Exception):  # whose words alone say no place
      raise ImportError(f"{file}: {type(error).__name__}: {error}") from error
    raise
  finally:
    _reading.pop()
  return module


def leave_if_read() -> None:
  """Ends the reading of a script here, where a run looks for its functions."""
  if _reading:
    raise Read


def place_of(found: Any) -> str:
  """Where a function, class or object is found again, as `load` takes it."""
  own = getattr(found, "__qualname__", type(found).__name__)
  for where in (getattr(found, "__module__", ""), *FILES):
    module = sys.modules.get(where)
    file = getattr(module, "__file__", None) or ""
    if not file.endswith(".py"):
      continue  # a notebook's
    place = where if "." in where else pathlib.Path(file).resolve()
    # What a script's own variables are may change.
    for name in (own, *(vars(module) if where != "__main__" else ())):
      with contextlib.suppress(AttributeError):
        one = functools.reduce(getattr, name.split("."), module)
        if callable(one) and one == found:
          return f"{place}:{name}"
  return f"__main__:{own}"  # made while it ran, as a partial is, or an object


def is_lost(place: Any) -> bool:
  """Whether this is the place of a function that is in no file here."""
  where = place.rpartition(":")[0] if isinstance(place, str) else ""
  is_gone = where.endswith(".py") and not os.path.isfile(where)
  return where == "__main__" or is_gone


def content(place: str) -> BinaryIO | None:
  """Opens a file, or that of a function; of a notebook's function, its code."""
  where = place.rpartition(":")[0]
  with contextlib.suppress(OSError, TypeError, ValueError):
    if where == "__main__":
      return io.BytesIO(inspect.getsource(load(place)).encode())
    return open(where if where.endswith(".py") else place, "rb")
  return None


def _add_to_path(folder: str) -> None:
  if folder not in sys.path:
    sys.path.append(folder)


def arguments(fn: Callable) -> tuple[str, ...]:
  return tuple(inspect.signature(fn).parameters)


def _defaults(fn: Callable, kind: int) -> dict[str, Any]:
  found = inspect.signature(fn).parameters.items()
  return {name: one.default for name, one in found if one.kind is kind}


def positional(fn: Callable) -> tuple[str, ...]:
  """The names of the arguments that a function cannot do without."""
  return tuple(_defaults(fn, inspect.Parameter.POSITIONAL_OR_KEYWORD))


def options(fn: Callable) -> dict[str, Any]:
  """The keyword-only arguments of a function, with their defaults."""
  return _defaults(fn, inspect.Parameter.KEYWORD_ONLY)


def needed(fn: Callable) -> list[str]:
  """Those of them that have no default."""
  return [k for k, x in options(fn).items() if x is inspect.Parameter.empty]


def supply(fn: Callable, *given: Any, **values: Any) -> Any:
  """Calls a function with those of the values that its arguments name.

  >>> supply(lambda a, b: a + b, 1, b=2, c=3)
  3
  """
  known = arguments(fn)
  return fn(*given, **{name: x for name, x in values.items() if name in known})


def name_of(fn: Callable) -> str:
  """The name of a function, also of one with bound options."""
  while isinstance(fn, functools.partial):
    fn = fn.func
  return getattr(fn, "__name__", type(fn).__name__)
