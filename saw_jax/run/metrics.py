"""Where the numbers of a run go: JSON lines, CSV, and trackers on request.

A resumed run first drops the lines of the steps that it repeats, so that its
files end up as if it had never been killed.
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
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any, Protocol

from saw_jax import naming

LOG = logging.getLogger(__name__)
LINE_S = 20.0  # between two lines of progress
TEXTS = ("prompt", "completion")  # the rest of a sample's row is figures
Samples = Sequence[Mapping[str, Any]]


class Writer(Protocol):
  """A place for the numbers and the completions of a run."""

  def write(self, step: int, seed: int, values: Mapping[str, float]) -> None:
    """Takes the figures of a seed by name, once or more a step."""

  def write_samples(self, step: int, seed: int, rows: Samples) -> None:
    """Takes some completions of a step, see `completions`."""


class LineFile:
  """Rows as JSON lines; drops those from `first_step` on."""

  def __init__(self, path: pathlib.Path, first_step: int = 0):
    self.path = path
    path.parent.mkdir(parents=True, exist_ok=True)
    if first_step and not path.exists():
      LOG.warning("%s is gone, with the rows before %d", path, first_step)
    kept = (row for row in read_lines(path) if row["step"] < first_step)
    write_text(path, "".join(map(_line, kept)))

  def write(self, row: Mapping[str, Any]) -> None:
    with self.path.open("a", encoding="utf-8") as file:
      file.write(_line(row))


class FileWriter:
  """Writes `<name>.jsonl` and `<name>.csv` in a run directory."""

  def __init__(
    self, directory: str | os.PathLike, name: str, *, first_step: int = 0
  ):
    self._csv = path = pathlib.Path(directory) / f"{name}.csv"
    self._lines = LineFile(path.with_suffix(".jsonl"), first_step)
    # Rows are not kept in memory: a run may have a million steps.
    count = sum(1 for _ in read_lines(self._lines.path))
    if count < (had := sum(1 for _ in _rows_before(path, first_step))):
      LOG.warning(
        "%s is damaged: of %d rows before step %d it has %d; %s has the others",
        *(self._lines.path, had, first_step, count, path.name),
      )
      self._take_back(first_step)
    self._rewrite_csv()

  def write(self, step: int, seed: int, values: Mapping[str, float]) -> None:
    # As the line will be read back, so that a resumed run writes the same.
    row = from_json(to_json({"step": step, "seed": seed, **values}))
    self._lines.write(row)
    if not row.keys() <= self._columns.keys():
      return self._rewrite_csv()  # once or twice a run
    with self._csv.open("a", newline="") as file:
      csv.DictWriter(file, self._columns).writerow(row)

  def _take_back(self, first_step: int) -> None:
    """Restores lines from the rows that only the CSV has."""
    found, no_row = {}, (ValueError, TypeError, KeyError, AttributeError)
    for cells in _rows_before(self._csv, first_step):
      with contextlib.suppress(*no_row):
        place = int(cells["step"]), int(cells["seed"])
        given = {k: x.replace("nan", "null") for k, x in cells.items()}
        found[place] = {k: from_json(x) for k, x in given.items() if x}
    for row in read_lines(self._lines.path):
      found[row["step"], row["seed"]] = row
    rows = (found[place] for place in sorted(found))
    write_text(self._lines.path, "".join(map(_line, rows)))

  def _rewrite_csv(self) -> None:
    text, self._columns = io.StringIO(newline=""), {}
    for row in read_lines(self._lines.path):
      self._columns |= dict.fromkeys(row)
    if self._columns:
      writer = csv.DictWriter(text, list(self._columns))
      writer.writeheader()
      writer.writerows(read_lines(self._lines.path))
    write_text(self._csv, text.getvalue())


def _rows_before(path: pathlib.Path, step: int) -> Iterator[dict[str, str]]:
  """Yields the rows of earlier steps of a CSV, which may be damaged, too."""
  with (
    contextlib.suppress(OSError, csv.Error),
    path.open(errors="replace", newline="") as file,
  ):
    for row in csv.DictReader(file):
      first = row.get("step") or ""
      if first.isdecimal() and int(first) < step:
        yield row


class TensorBoard:
  """Writes event files (extra `[tensorboard]`)."""

  package = "tensorboardX"

  def __init__(
    self, folder: pathlib.Path, stack: contextlib.ExitStack, first_step: int
  ):
    import tensorboardX

    @functools.cache
    def of_seed(seed: int):
      path = folder / "tensorboard" / f"seed_{seed}"
      again = {"purge_step": first_step} if first_step else {}
      return stack.enter_context(tensorboardX.SummaryWriter(str(path), **again))

    self._of_seed = of_seed

  def write(self, step: int, seed: int, values: Mapping[str, float]) -> None:
    for name, value in values.items():
      if math.isfinite(value):
        self._of_seed(seed).add_scalar(name, value, step)

  def write_samples(self, step: int, seed: int, rows: Samples) -> None:
    text = "\n\n".join(map(_markdown, rows))
    self._of_seed(seed).add_text("completions", text, step)


class _Tracker:
  """A tracker with wandb's interface."""

  package: str
  _held: Set[tuple[int, str]] = frozenset()  # steps and names it has already

  def write(self, step: int, seed: int, values: Mapping[str, float]) -> None:
    self._log(step, {f"seed_{seed}/{name}": x for name, x in values.items()})

  def _log(self, step: int, named: Mapping[str, Any]) -> None:
    if new := {k: x for k, x in named.items() if (step, k) not in self._held}:
      self._run.log(new, step=step)

  def write_samples(self, step: int, seed: int, rows: Samples) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[row.get(name) for name in columns] for row in rows]
    table = self._module.Table(columns=columns, data=cells)
    self._log(step, {f"seed_{seed}/completions": table})


class Wandb(_Tracker):
  """Writes to Weights & Biases (extra `[wandb]`); a resumed run goes on."""

  package = "wandb"

  @staticmethod
  def check() -> None:
    import wandb

    try:
      is_local = wandb.setup().settings.mode != "online"
      if is_local or wandb.login(prompt=False):
        return
      said = "nobody is logged in"
    except wandb.Error as error:
      said = str(error)
    raise ValueError(
      f"the writer 'wandb': {said}; run `wandb login`, or set "
      "WANDB_MODE=offline"
    )

  def __init__(
    self, folder: pathlib.Path, stack: contextlib.ExitStack, first_step: int
  ):
    import wandb

    path = folder / "wandb_id.txt"
    if not first_step or not path.exists():
      write_text(path, uuid.uuid4().hex[:12])
    how = {"name": folder.name, "id": path.read_text(), "resume": "allow"}
    self._module, self._run = wandb, wandb.init(dir=str(folder), **how)
    stack.callback(self._run.finish)


class Trackio(_Tracker):
  """Writes to trackio's local store (extra `[trackio]`): see `trackio show`."""

  package = "trackio"

  def __init__(
    self, folder: pathlib.Path, stack: contextlib.ExitStack, first_step: int
  ):
    import trackio

    project = os.environ.get("TRACKIO_PROJECT", "saw_jax")
    how = {"name": folder.name, "resume": "allow" if first_step else "never"}
    self._module, self._run = trackio, trackio.init(project, embed=False, **how)
    stack.callback(trackio.finish)
    if first_step:  # It would keep what is repeated beside what it has.
      from trackio.sqlite_storage import SQLiteStorage

      logs = SQLiteStorage.get_logs(project, folder.name, run_id=self._run.id)
      self._held = {(row["step"], name) for row in logs for name in row}


WRITERS = {"tensorboard": TensorBoard, "trackio": Trackio, "wandb": Wandb}


def check_writers(names: Sequence[str]) -> None:
  """Raises for an unknown writer, or one whose package is missing."""
  for name in names:
    kind = naming.lookup(WRITERS, name, "writer (loop.writers)")
    with naming.needs_extra(name, f"the writer {name!r} needs the extra"):
      importlib.import_module(kind.package)
    getattr(kind, "check", lambda: None)()


def make_writers(
  directory: pathlib.Path,
  names: Sequence[str],
  stack: contextlib.ExitStack,
  first_step: int,
) -> list[Writer]:
  """Opens the writers of these names, which go on from `first_step`."""
  check_writers(names)
  return [WRITERS[name](directory, stack, first_step) for name in names]


def _markdown(row: Mapping[str, Any]) -> str:
  """A completion and its figures; indented text is shown as it is."""
  figures = (f"{k} **{x}**" for k, x in row.items() if k not in TEXTS)
  texts = (f"{name}:\n\n{textwrap.indent(row[name], '    ')}" for name in TEXTS)
  return "\n\n".join([", ".join(figures), *texts])


def to_json(document: Any, **options: Any) -> str:
  """Writes JSON; NaN and infinity, which it lacks, become null."""

  def plain(x: Any) -> Any:
    return None if isinstance(x, float) and not math.isfinite(x) else x

  return json.dumps(each_leaf(plain, document), allow_nan=False, **options)


def from_json(text: str) -> Any:
  """Reads JSON of figures; null becomes NaN."""
  return each_leaf(lambda x: math.nan if x is None else x, json.loads(text))


def write_json(path: pathlib.Path, document: Any, **options: Any) -> None:
  """Writes a JSON file in one piece, see `write_text`."""
  write_text(path, to_json(document, indent=2, **options) + "\n")


def each_leaf(fn: Callable[[Any], Any], tree: Any) -> Any:
  if isinstance(tree, Mapping):
    return {key: each_leaf(fn, value) for key, value in tree.items()}
  if isinstance(tree, list | tuple):
    return [each_leaf(fn, value) for value in tree]
  return fn(tree)


@contextlib.contextmanager
def progress(title: str, total: int, done: int = 0) -> Iterator[Callable]:
  """A bar with the time left on a terminal, occasional lines elsewhere."""

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
    if done == before + 1:  # The first compiles: it says nothing of the others.
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


def read_lines(path: pathlib.Path) -> Iterator[dict]:
  """Yields rows; warns of damaged lines, but for a last one cut short."""
  with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
    for number, line in enumerate(file, 1):
      try:
        row = from_json(line.decode())
        if {type(row["step"]), type(row["seed"])} != {int}:  # null is NaN
          raise ValueError
      except (ValueError, KeyError, TypeError, RecursionError):
        if line.endswith(b"\n"):
          what = "is damaged and left out"
          LOG.warning("%s, line %d, %s: %.60r", path, number, what, line)
      else:
        yield row


def write_text(path: pathlib.Path, text: str) -> None:
  """Replaces a file in one piece: a kill leaves the old one whole."""
  temporary = path.with_suffix(".tmp")
  temporary.write_text(text, encoding="utf-8")
  temporary.replace(path)
