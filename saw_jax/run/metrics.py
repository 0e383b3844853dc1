"""Where the numbers of a run go: JSON lines and CSV, and more on request.

A resumed run first drops the lines of the steps that it repeats, so that the
files of a killed run end up those of one that was not.
"""

import contextlib
import csv
import functools
import importlib
import io
import json
import logging
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from saw_jax import naming

LOG = logging.getLogger(__name__)
LINE_S = 20.0  # between two lines of progress
Write = Callable[[int, int, Mapping[str, float]], None]  # step, seed, values


class FileWriter:
  """Writes `<name>.jsonl` and `<name>.csv` in a run directory."""

  def __init__(
    self, directory: str | os.PathLike, name: str, *, first_step: int = 0
  ):
    self._json = pathlib.Path(directory) / f"{name}.jsonl"
    self._csv = self._json.with_suffix(".csv")
    self._json.parent.mkdir(parents=True, exist_ok=True)
    rows = _read_lines(self._json)
    self._rows = [row for row in rows if row["step"] < first_step]
    _replace(self._json, "".join(map(_line, self._rows)))
    self._rewrite_csv()

  def write(self, step: int, seed: int, values: Mapping[str, float]) -> None:
    # As the lines will be read back: what a resumed run writes is the same.
    row = from_json(to_json({"step": step, "seed": seed, **values}))
    self._rows.append(row)
    with self._json.open("a") as file:
      file.write(_line(row))
    if not set(row) <= set(self._columns):
      return self._rewrite_csv()  # once or twice a run
    with self._csv.open("a", newline="") as file:
      csv.DictWriter(file, self._columns).writerow(row)

  def _rewrite_csv(self) -> None:
    self._columns = list(dict.fromkeys(k for row in self._rows for k in row))
    text = io.StringIO(newline="")
    if self._columns:
      writer = csv.DictWriter(text, self._columns)
      writer.writeheader()
      writer.writerows(self._rows)
    _replace(self._csv, text.getvalue())


def tensorboard_writer(
  directory: pathlib.Path, stack: contextlib.ExitStack
) -> Write:
  """Writes event files (extra `[tensorboard]`)."""
  need = "the TensorBoard writer needs the extra"
  with naming.needs_extra("tensorboard", need):
    import tensorboardX

  @functools.cache
  def of_seed(seed: int):
    folder = directory / "tensorboard" / f"seed_{seed}"
    writer = tensorboardX.SummaryWriter(str(folder))
    stack.callback(writer.close)
    return writer

  def write(step: int, seed: int, values: Mapping[str, float]) -> None:
    for name, value in values.items():
      of_seed(seed).add_scalar(name, value, step)

  return write


def wandb_writer(directory: pathlib.Path, stack: contextlib.ExitStack) -> Write:
  """Writes to Weights & Biases (extra `[wandb]`)."""
  need = "the Weights & Biases writer needs the extra"
  with naming.needs_extra("wandb", need):
    import wandb
  run = wandb.init(name=directory.name, dir=str(directory), resume="allow")
  stack.callback(run.finish)

  def write(step: int, seed: int, values: Mapping[str, float]) -> None:
    named = {f"seed_{seed}/{name}": value for name, value in values.items()}
    run.log(named, step=step)

  return write


WRITERS = {"tensorboard": tensorboard_writer, "wandb": wandb_writer}
_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}


def check_writers(names: Sequence[str]) -> None:
  """Says which writer there is not, or whose package."""
  for name in names:
    naming.lookup(WRITERS, name, "writer (loop.writers)")
    with naming.needs_extra(name, f"the writer {name!r} needs the extra"):
      importlib.import_module(_PACKAGES[name])


def make_writers(
  directory: pathlib.Path,
  extra: Sequence[str],
  stack: contextlib.ExitStack,
  first_step: int,
) -> list[Write]:
  files = FileWriter(directory, "metrics", first_step=first_step)
  return [files.write, *(WRITERS[name](directory, stack) for name in extra)]


def to_json(document: Any, **options: Any) -> str:
  """Writes JSON, which has no NaN and no infinity: they become null."""

  def is_odd(x: Any) -> bool:
    return isinstance(x, float) and not math.isfinite(x)

  document = _each_leaf(lambda x: None if is_odd(x) else x, document)
  return json.dumps(document, allow_nan=False, **options)


def from_json(text: str) -> Any:
  """Reads JSON whose leaves are figures: null is NaN."""
  return _each_leaf(lambda x: math.nan if x is None else x, json.loads(text))


def write_json(path: pathlib.Path, document: Any, **options: Any) -> None:
  """Writes a file in one piece: whoever is killed leaves the old one."""
  _replace(path, to_json(document, indent=2, **options) + "\n")


def _each_leaf(fn: Callable[[Any], Any], tree: Any) -> Any:
  if isinstance(tree, Mapping):
    return {key: _each_leaf(fn, value) for key, value in tree.items()}
  if isinstance(tree, list | tuple):
    return [_each_leaf(fn, value) for value in tree]
  return fn(tree)


@contextlib.contextmanager
def progress(title: str, total: int, done: int = 0) -> Iterator[Callable]:
  """A bar with the time left on a terminal, a line now and then elsewhere."""

  def text(figures: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in figures.items())

  if sys.stderr.isatty():
    from rich import progress as bars
    from rich.console import Console

    columns = (
      *(bars.TextColumn("{task.description}"), bars.BarColumn()),
      *(bars.MofNCompleteColumn(), bars.TimeRemainingColumn()),
      bars.TextColumn("{task.fields[figures]}"),
    )
    with bars.Progress(*columns, console=Console(stderr=True)) as bar:
      task = bar.add_task(title, total=total, completed=done, figures="")
      yield lambda **found: bar.update(task, advance=1, figures=text(found))
    return
  last, before, first = time.monotonic(), done, 0.0

  def advance(**figures: float) -> None:
    nonlocal done, last, first
    done, now = done + 1, time.monotonic()
    if done == before + 1:  # This one was compiled, and says nothing of others.
      first = now
    if now - last >= LINE_S or done == total:
      last, left = now, ""
      if before + 1 < done < total:
        each = (now - first) / (done - before - 1)
        left = f"  {each * (total - done):.0f} s left"
      LOG.info("%s %d/%d%s  %s", title, done, total, left, text(figures))

  yield advance


def _line(row: Mapping[str, float]) -> str:
  return to_json(row) + "\n"


def _read_lines(path: pathlib.Path) -> list[dict]:
  """Reads the whole lines of a file; a kill may have cut the last one."""
  rows = []
  with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
    for line in path.read_text().splitlines():
      rows.append(from_json(line))
  return rows


def _replace(path: pathlib.Path, text: str) -> None:
  temporary = path.with_suffix(".tmp")
  temporary.write_text(text)
  temporary.replace(path)
