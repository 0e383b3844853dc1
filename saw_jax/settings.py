"""How a dataclass says which of its fields are keys of a config."""

import dataclasses
from collections.abc import Callable
from typing import Any, get_args


def constant(default: Any) -> Any:
  """A field with a default that no config file or flag can change.

  It is reached from Python alone, as `dataclasses.replace(settings, name=...)`.

  >>> @dataclasses.dataclass(frozen=True)
  ... class Adam:
  ...   learning_rate: float = 1e-3
  ...   eps: float = constant(1e-8)
  >>> is_key(dataclasses.fields(Adam)[0]), is_key(dataclasses.fields(Adam)[1])
  (True, False)
  """
  return dataclasses.field(default=default, metadata={"key": False})


def is_key(field: dataclasses.Field) -> bool:
  """Whether a config has a key for this field."""
  return field.metadata.get("key", True)


def takes_function(field: dataclasses.Field) -> bool:
  """Whether a function may stand where the field has a name or a number."""
  return Callable in get_args(field.type)
