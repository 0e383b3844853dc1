# SPDX-License-Identifier: Apache-2.0
"""Names: those that users type, and those that functions give their arguments.

A formula says what it reads by the names of its arguments, and what a config
may set by those that are keyword-only. Signatures are read here alone.
"""

import contextlib
import difflib
import functools
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any


@contextlib.contextmanager
def needs_extra(extra: str, need: str) -> Iterator[None]:
  """Has an import that fails inside name the extra to install."""
  try:
    yield
  except ImportError as error:
    raise ImportError(f"{need}: pip install 'saw_jax[{extra}]'") from error


def nearest(name: str, choices: Sequence[str]) -> str:
  """The end of an error message: the most similar choice, then all of them.

  >>> nearest("gdop", ["grpo", "gdpo"])
  "did you mean 'gdpo'? Choices: gdpo, grpo"
  """
  if not choices:
    return "there are none"
  close = difflib.get_close_matches(name, choices, n=1, cutoff=0.0)
  return f"did you mean {close[0]!r}? Choices: {', '.join(sorted(choices))}"


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


def load(path: str) -> Any:
  module, _, name = path.partition(":")
  return getattr(importlib.import_module(module), name)


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
  return fn.__name__
