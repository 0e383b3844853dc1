"""The door for Python: a config, a task, a run, in some ten lines.

  import saw_jax

  def right(completion, row):
    return float(row["answer"] in completion)

  config = saw_jax.config("gdpo+saw", checkpoint="smollm2")
  task = saw_jax.task("problems.jsonl", prompt="question", rewards=[right])
  run = saw_jax.train(config, task, seeds=range(4), directory="runs/a")

Nothing here imports JAX before it is needed.
"""

import contextlib
import dataclasses
import logging
import operator
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from saw_jax import naming
from saw_jax.tasks.rows import rewards as rewards_lib
from saw_jax.tasks.rows import task as rows_task

if TYPE_CHECKING:
  import ml_collections
  import numpy as np

  from saw_jax.reporting.compare import Comparison
  from saw_jax.run.session import Result

reward = rewards_lib.reward

_OF_ALGORITHMS = (
  "advantages step_advantages weights losses aggregates kl_estimators "
  "selections coefficients row_aggregates whitenings normalizations ratios"
)
# By the name of a registry, where its table is.
_REGISTRIES = {
  **{name: f"algorithms:{name.upper()}" for name in _OF_ALGORITHMS.split()},
  "world_model_losses": "algorithms:TOKEN_LOSSES",
  "entropies": "algorithms:MEASURES",
  "methods": "run.methods:METHODS",
  "labels": "labels.selection:STRATEGIES",
  "protocols": "run.groups:PROTOCOLS",
  "lifts": "training.parallel:LIFTS",
  "writers": "run.metrics:WRITERS",
  "tasks": "run.registry:TASKS",
  "tokenizers": "run.registry:TOKENIZERS",
  "checkpoints": "run.registry:CHECKPOINTS",
  "configs": "run.config:names",
}


def config(
  method: str = "grpo", checkpoint: str = "", **sections: Mapping[str, Any]
) -> "ml_collections.ConfigDict":
  """Makes a config for rows of one's own, every key with a value that will do.

  Args:
    method: what it is trained by, of `names("methods")`, joined by `+`, as
      "gdpo+saw".
    checkpoint: the model that is trained: "smollm2", a Hugging Face directory
      or a .gguf file; empty: a small decoder of bytes that knows nothing.
    sections: keys to change, by section: `loop={"num_steps": 200}`.

  Returns:
    The config. Where a name of a function stands, the function may, too. What
    is wrong with it, `train` says.

  Raises:
    KeyError: an unknown part of the method; the message has the nearest.
    ValueError: two parts of the method that do not go together.
    TypeError: an unknown section.
  """
  from saw_jax.run import config as config_lib
  from saw_jax.run import methods

  methods.keys_of(method)
  found = config_lib.own_config(checkpoint)
  methods.set_method(found, method)
  naming.check_options([*found], sections, "a config")
  for section, values in sections.items():
    if isinstance(values, Mapping):
      found[section].update(values)
    else:
      found[section] = values
  return found


def task(rows: Any, **options: Any) -> rows_task.RowsTask:
  """Makes a task of rows, whose prompts are rewarded by functions.

  Args:
    rows: a .jsonl, .json, .csv or .parquet file; or dicts in a list, an
      iterator, or a data set of the library `datasets`.
    prompt: the column of a text or of chat messages, or a text around columns
      such as "Q: {question}"; "prompt" by default.
    rewards: functions `(completion, row)`, or `(completions, rows)` for many at
      a time, also `async`, in a list, or in a dict by their names in metrics. A
      value is a number in the range of its function, or None where there is
      none. They run in worker processes, with a limit of time
      (`config.grading.limit_s`); a completion on which one raises or hangs is
      masked. Files and names, as "my_rewards.py:right,short", do as well.
    ranges: least and greatest value by name of a function, where `reward` does
      not say it; 0 to 1 by default.
    answer: the column of the reference, if there is one.
    answer_key: a function of a completion: the answer in it, or None. With it,
      answers are voted on, and `config.labels` may buy labels.
    system: a message before each prompt.
    test: the held-out rows: a share, chosen by what a prompt says, so that it
      stays as it is when rows are added; or a file or rows. 0.1 by default.

  Raises:
    KeyError: a function that is not in its file.
    TypeError, ValueError: options that are not as above.
  """
  fields = [field.name for field in dataclasses.fields(rows_task.RowsConfig)]
  naming.check_options(fields, options, "a task")
  return rows_task.make_task(rows_task.RowsConfig(rows, **options))


def train(
  config: "ml_collections.ConfigDict",
  task: Any = None,
  seeds: Sequence[int] = (0,),
  directory: str | os.PathLike = "runs/latest",
  *,
  resume_step: int | None = None,
) -> "Run":
  """Trains one policy per seed, all of them as one program.

  Args:
    config: from `config`, or of a table's file.
    task: from `task`, or of a class of one's own; None: the one that
      `config.task` names.
    seeds: each gives its own prompts and samples.
    directory: where metrics and checkpoints go. If it holds this run, it goes
      on from the latest checkpoint; Ctrl-C ends it after a step, saved.
    resume_step: go on from this checkpoint instead.

  Raises:
    ValueError, TypeError, KeyError, FileNotFoundError, ImportError: what is
      wrong with the config or the task, said before anything is trained.
    RunError: the directory holds another run.
    RewardError: a reward function misbehaved; the message names it.
    FloatingPointError: a loss, gradient or result is not finite.
  """
  naming.leave_if_read()  # A file read for its functions trains nothing.
  from saw_jax.run import build, store

  directory = store.local(directory, writes=True)
  if not isinstance(seeds, Iterable):
    raise TypeError(f"seeds are several numbers: range({seeds}) or [{seeds}]")
  seeds = [operator.index(seed) for seed in seeds]
  with _shown_log():
    how = {"directory": directory, "resume_step": resume_step}
    made = [build.build(config, seeds, task=task, **how)]
    task = made[0].task
    # Popped, and no `**how`: whoever calls keeps no parameters while it trains.
    result = build.train(
      made.pop(), seeds, directory=directory, resume_step=resume_step
    )
  return Run(directory, result=result, task=task, config=config)


def open_run(
  directory: str | os.PathLike, *, task: Any = None, config: Any = None
) -> "Run":
  """Opens the run in a directory, of any process, finished or not.

  Its task and functions are found in their files again. Those of a notebook are
  in none: pass the `task`, or the `config` with the functions, as it was
  trained.
  """
  from saw_jax.run import run_directory, store

  directory = store.local(directory)
  run_directory.read_run(directory)
  return Run(directory, task=task, config=config)


def names(registry: str | None = None) -> list[str]:
  """The names in a registry, or the names of the registries.

  >>> names("kl_estimators")
  ['k1', 'k2', 'k3']
  """
  if registry is None:
    return sorted(_REGISTRIES)
  place = naming.lookup(_REGISTRIES, registry, "registry")
  table = naming.load(f"saw_jax.{place}")
  return sorted(table() if callable(table) else table)


class Picture:
  """A picture in a file, which a notebook shows."""

  def __init__(self, path: pathlib.Path):
    self.path = path

  def __repr__(self) -> str:
    return str(self.path)

  def _repr_png_(self) -> bytes:
    return self.path.read_bytes()


class Run:
  """A run in its directory: what it says, and what is made of its policies.

  `result` is how it ended, a `session.Result`; None if it was opened only.
  """

  def __init__(
    self,
    directory: str | os.PathLike,
    *,
    result: "Result | None" = None,
    task: Any = None,
    config: Any = None,
  ):
    self.directory, self.result = pathlib.Path(directory).absolute(), result
    self._task, self._config = task, config

  def __repr__(self) -> str:
    return f"Run({str(self.directory)!r})"

  def metrics(self, name: str, *, held_out: bool = False) -> "np.ndarray":
    """A metric of every seed and step, float64 `[seeds, steps]`.

    With `held_out`, of the greedy evaluations during the run. A `KeyError` has
    the nearest name.
    """
    return naming.lookup(self._curves(held_out).values, name, "metric")

  def plot(
    self, *metrics: str, path: str | os.PathLike | None = None, window: int = 1
  ) -> Picture:
    """Draws metrics over steps; a PNG in the directory unless `path` is given.

    Lines are means over seeds, in moving averages over `window` steps.
    """
    from saw_jax.reporting import plots

    curves = self._curves()
    for name in metrics:
      naming.lookup(curves.values, name, "metric")
    if path is None:
      stem = "_".join(metrics).replace("/", "_")
      path = self.directory / "plots" / f"{stem}.png"
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    label = self.directory.name
    plots.metric_panels(
      {label: {label: curves}},
      {name: name for name in metrics},
      quantity=metrics[0] if len(metrics) == 1 else "",
      window=window,
      path=path,
    )
    return Picture(path)

  def compare(
    self, *others: "str | os.PathLike | Run", metrics: Any = None
  ) -> "Comparison":
    """Paired differences of other runs from this one, seed by seed.

    Prints as a table with intervals; it has `rows`, `plot(path)` and
    `write(path)`.
    """
    from saw_jax.reporting import compare

    places = [getattr(one, "directory", one) for one in (self, *others)]
    return compare.compare(places, metrics)

  def evaluate(self, **options: Any) -> dict[str, Any]:
    """Scores the policies on held-out rows, with intervals; see `saw evaluate`.

    `checkpoint` is "last", "best", "start" or a step; `examples`, `samples` and
    `split` are the config's by default.
    """
    from saw_jax.commands import evaluate

    return evaluate.evaluate(self.directory, **self._known(), **options)

  def export(self, path: str | os.PathLike, **options: Any) -> pathlib.Path:
    """Writes a policy as a Hugging Face directory; see `saw export`.

    `checkpoint` is "last", "best" or a step; `seed` one of the run's; `dtype`
    what the weights are rounded to.
    """
    from saw_jax.commands import export

    export.export(self.directory, path, **self._known(), **options)
    return pathlib.Path(path)

  def _known(self) -> dict[str, Any]:
    return {"task": self._task, "config": self._config}

  def _curves(self, held_out: bool = False):
    from saw_jax.reporting import runs

    name = "evals" if held_out else "metrics"
    return runs.read_curves([self.directory], name=name)


@contextlib.contextmanager
def _shown_log() -> Iterator[None]:
  """Shows what a run says, where nobody has set up a log."""
  log = logging.getLogger("saw_jax")
  if log.isEnabledFor(logging.INFO):
    yield
    return
  handler, before = logging.StreamHandler(), (log.level, log.propagate)
  handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
  log.addHandler(handler)
  log.setLevel(logging.INFO)
  log.propagate = False
  try:
    yield
  finally:
    log.removeHandler(handler)
    log.setLevel(before[0])
    log.propagate = before[1]
