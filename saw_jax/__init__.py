"""Group-relative RL post-training of language models in JAX.

Importing the package imports nothing else: a module is loaded when it is first
asked for, as `saw_jax.losses` or `from saw_jax import losses`, and so are the
few names of `saw_jax.api`: `saw_jax.config`, `task`, `train` and the others.
"""

import importlib
import pkgutil

__version__ = "0.1.0"

__all__ = [
  module.name
  for module in pkgutil.iter_modules(__path__)
  if module.name != "__main__"
]
_API = ("config", "task", "train", "open_run", "names", "reward", "Run")
__all__ += _API


def __getattr__(name: str) -> object:
  if name in _API:
    return getattr(importlib.import_module(f"{__name__}.api"), name)
  if name not in __all__:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return importlib.import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
  return sorted([*globals(), *__all__])
