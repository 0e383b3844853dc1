"""Group-relative RL post-training of language models in JAX.

Importing the package imports nothing else: a module is loaded when it is first
asked for, as `saw_jax.losses` or `from saw_jax import losses`.
"""

import importlib
import types as _types

__version__ = "0.1.0"

__all__ = [
  "advantages",
  "algorithms",
  "annotate",
  "contrib",
  "diagnostics",
  "labels",
  "losses",
  "models",
  "names",
  "reductions",
  "reporting",
  "rollout",
  "run",
  "settings",
  "stale_losses",
  "step_advantages",
  "tasks",
  "tokenizer",
  "training",
  "types",
  "weighting",
  "world_model",
]


def __getattr__(name: str) -> _types.ModuleType:
  if name not in __all__:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return importlib.import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
  return sorted([*globals(), *__all__])
