"""Where the numbers of a run go: JSON lines and CSV, and more on request.

A resumed run first drops the lines of the steps that it repeats, so that the
files of a killed run end up those of one that was not.
"""

import contextlib
import csv
import functools
import io
import json
import logging
import os
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from saw_jax import names

LOG = logging.getLogger(__name__)
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
    row = {"step": step, "seed": seed, **values}
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
  with names.needs_extra("tensorboard", need):
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
  with names.needs_extra("wandb", need):
    import wandb
  run = wandb.init(name=directory.name, dir=str(directory), resume="allow")
  stack.callback(run.finish)

  def write(step: int, seed: int, values: Mapping[str, float]) -> None:
    named = {f"seed_{seed}/{name}": value for name, value in values.items()}
    run.log(named, step=step)

  return write


WRITERS = {"tensorboard": tensorboard_writer, "wandb": wandb_writer}


def make_writers(
  directory: pathlib.Path,
  extra: Sequence[str],
  stack: contextlib.ExitStack,
  first_step: int,
) -> list[Write]:
  for name in extra:
    if name not in WRITERS:
      raise KeyError(f"no writer {name!r}; there are {sorted(WRITERS)}")
  files = FileWriter(directory, "metrics", first_step=first_step)
  return [files.write, *(WRITERS[name](directory, stack) for name in extra)]


def write_json(path: pathlib.Path, document: Any, **options: Any) -> None:
  """Writes a file in one piece: whoever is killed leaves the old one."""
  _replace(path, json.dumps(document, indent=2, **options) + "\n")


class Progress:
  """A bar with the time left on a terminal, a line now and then elsewhere."""

  def __init__(
    self, title: str, total: int, *, start: int = 0, interval_s: float = 20.0
  ):
    self._title, self._total, self._done = title, total, start
    self._interval_s, self._last = interval_s, time.monotonic()
    self._bar = None
    if sys.stderr.isatty():
      from rich import progress as rich_progress
      from rich.console import Console

      self._bar = rich_progress.Progress(
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TimeRemainingColumn(),
        rich_progress.TextColumn("{task.fields[figures]}"),
        console=Console(stderr=True),
      )
      self._bar.start()
      self._task = self._bar.add_task(
        title, total=total, completed=start, figures=""
      )

  def advance(self, **figures: float) -> None:
    self._done += 1
    text = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
    if self._bar is not None:
      self._bar.update(self._task, completed=self._done, figures=text)
      return
    now = time.monotonic()
    if now - self._last >= self._interval_s or self._done == self._total:
      self._last = now
      LOG.info("%s %d/%d  %s", self._title, self._done, self._total, text)

  def __enter__(self) -> "Progress":
    return self

  def __exit__(self, *exc) -> None:
    if self._bar is not None:
      self._bar.stop()


def _line(row: Mapping[str, float]) -> str:
  return json.dumps(row) + "\n"


def _read_lines(path: pathlib.Path) -> list[dict]:
  """Reads the whole lines of a file; a kill may have cut the last one."""
  rows = []
  with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
    for line in path.read_text().splitlines():
      rows.append(json.loads(line))
  return rows


def _replace(path: pathlib.Path, text: str) -> None:
  temporary = path.with_suffix(".tmp")
  temporary.write_text(text)
  temporary.replace(path)
