"""Group-relative RL post-training of language models in JAX.

Importing the package imports nothing else: a module is loaded when it is first
asked for, as `saw_jax.losses` or `from saw_jax import losses`.
"""

import importlib
import pkgutil
import types as _types

__version__ = "0.1.0"

__all__ = [
  module.name
  for module in pkgutil.iter_modules(__path__)
  if module.name != "__main__"
]


def __getattr__(name: str) -> _types.ModuleType:
  if name not in __all__:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return importlib.import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
  return sorted([*globals(), *__all__])
