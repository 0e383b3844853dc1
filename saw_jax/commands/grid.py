"""The cells of a sweep: all combinations of the values of some config keys."""

import ast
import contextlib
import itertools
import pathlib
import re
import shlex
from collections.abc import Sequence
from typing import Any

from saw_jax import naming
from saw_jax.run import children

# A comma outside of brackets.
_COMMA = re.compile(r",(?![^\[(]*[\])])")


def cells(texts: Sequence[str]) -> dict[str, dict[str, str]]:
  """Reads `key=value,value` for each key; a value may be a list in brackets.

  Returns each cell's values by key, under a name that can be a directory:

  >>> list(cells(["optimizer.b1=0.8,0.9", "rollout.stops=['a','b']"]))
  ['b1=0.8,stops=-a-,-b-', 'b1=0.9,stops=-a-,-b-']
  """
  grid: dict[str, list[str]] = {}
  for text in texts:
    key, _, values = text.partition("=")
    found = _COMMA.split(values)
    if not all(found) or len(set(found)) < len(found) or key in grid:
      raise ValueError(
        f"--grid {text}: say section.key=value,value; a key or a value is "
        "there once"
      )
    grid[key] = found
  short = [key.rpartition(".")[2] for key in grid]
  names = short if len(set(short)) == len(short) else list(grid)
  made = {}
  for values in itertools.product(*grid.values()):
    pairs = zip(names, values, strict=True)
    name = ",".join(f"{key}={value}" for key, value in pairs)
    name = re.sub(r"[^\w.,=+-]+", "-", name)  # safe in a shell and a path
    if name in made:
      raise ValueError(f"--grid: two cells would be called {name}")
    made[name] = dict(zip(grid, values, strict=True))
  return made


def without(words: Sequence[str], flags: Sequence[str]) -> list[str]:
  """The words of a command without some flags and their values."""
  kept, rest = [], iter(words)
  for word in rest:
    name, equals, _ = word.lstrip("-").partition("=")
    if not (word.startswith("-") and name in flags):
      kept.append(word)
    elif not equals:
      next(rest, None)
  return kept


def open_executor(folder: pathlib.Path, given: Sequence[str]) -> Any:
  """Opens submitit's executor: the name of a cluster, then parameters."""
  with naming.needs_extra("submitit", "--submit needs its library"):
    import submitit
  cluster, *parameters = given
  named: dict[str, Any] = {"name": folder.name}
  for name, _, text in (one.partition("=") for one in parameters):
    with contextlib.suppress(ValueError, SyntaxError):
      text = ast.literal_eval(text)
    named[name] = text
  try:
    executor = submitit.AutoExecutor(folder / "jobs", cluster=cluster)
    executor.update_parameters(**named)
  except Exception as error:  # an AssertionError, for example
    raise ValueError(f"--submit={','.join(given)}: {error}") from error
  return executor


def job_array(folder: pathlib.Path, commands: Sequence[Sequence[str]]) -> str:
  """A job array with a line for each cell; resources are flags of `sbatch`."""
  lines = [
    "#!/bin/bash",
    f"#SBATCH --job-name={folder.name}",
    f"#SBATCH --array=0-{len(commands) - 1}",
    f"#SBATCH --chdir={pathlib.Path.cwd()}",
    f"#SBATCH --output={folder}/slurm_%A_%a.log",
    'case "$SLURM_ARRAY_TASK_ID" in',
    *(
      f"{number}) exec {shlex.join(children.saw(*words))} ;;"
      for number, words in enumerate(commands)
    ),
    "esac",
  ]
  return "\n".join([*lines, ""])
