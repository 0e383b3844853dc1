"""Writes a table as Markdown and CSV, with its sections below."""

import contextlib
import dataclasses
import functools
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from saw_jax.reporting import runs, statistics, tables
from saw_jax.reporting.runs import Curves, Finals, RowRuns
from saw_jax.reporting.statistics import Seed
from saw_jax.reporting.table import Table
from saw_jax.run import run_directory


@dataclasses.dataclass(frozen=True)
class Found:
  """The runs of a table as sections read them, and where pictures go."""

  table: Table
  scale: str
  folder: pathlib.Path
  directories: Mapping[str, RowRuns]  # by name of the run, as all that follows
  figures: Sequence[str] = ("png",)  # formats of pictures

  @functools.cached_property
  def finals(self) -> dict[str, Finals]:
    return self._read(runs.read_finals)

  @functools.cached_property
  def curves(self) -> dict[str, Curves]:
    return self._read(runs.read_curves)

  @functools.cached_property
  def evals(self) -> dict[str, Curves]:
    """The held-out scores during training."""
    return self._read(functools.partial(runs.read_curves, name="evals"))

  def _read(self, read: Callable[..., Any]) -> dict[str, Any]:
    return {
      run: read(found.directories, seeds=found.seeds)
      for run, found in self.directories.items()
    }

  @functools.cached_property
  def rows(self) -> dict[str, dict[float | None, str]]:
    """Name of the run by row and swept value."""
    found: dict[str, dict[float | None, str]] = {}
    for name in self.directories:
      run = self.table.runs[name]
      found.setdefault(run.row, {})[run.value] = name
    order = self.table.rows if self.table.several else found
    return {
      row: dict(sorted(found[row].items(), key=lambda item: item[0] or 0))
      for row in order
      if row in found
    }

  @property
  def values(self) -> list[float]:
    return sorted({value for of in self.rows.values() for value in of})

  @functools.cached_property
  def main(self) -> dict[str, str]:
    """Row -> its run in the main table; empty if it has several of a row."""
    at = self.table.at
    found = {row: of.get(None, of.get(at)) for row, of in self.rows.items()}
    return {row: run for row, run in found.items() if run is not None}

  @property
  def label(self) -> str:
    """The scale, and what stands in for the paper's at it."""
    return self.table.label(self.scale)

  @property
  def columns(self) -> dict[str, str]:
    """Heading -> name in `finals`."""
    return self.table.columns(self.scale)

  def scores(self, run: str, metric: str) -> dict[Seed, float]:
    return self.finals[run].by_seed(metric)

  def heading(self, value: float) -> str:
    """The column of a value of what is swept."""
    return f"{self.table.swept} {value:g}"

  @property
  def headings(self) -> list[str]:
    """The columns of the main table."""
    swept = self.table.swept
    return [*map(self.heading, self.values)] if swept else [*self.columns]

  def by_value(self, told: Callable[[str], Any]) -> dict[str, dict[str, Any]]:
    """Calls `told` with each run; the results by row and swept heading."""
    return {
      row: {self.heading(value): told(run) for value, run in of.items()}
      for row, of in self.rows.items()
    }

  def cells(self, told: Callable[[dict[Seed, float]], Any]) -> dict[str, dict]:
    """Calls `told` with scores by seed; the cells of the main table."""
    columns = self.columns
    if self.table.swept:
      (metric,) = columns.values()
      return self.by_value(lambda run: told(self.scores(run, metric)))
    return {
      row: {name: told(self.scores(run, m)) for name, m in columns.items()}
      for row, run in self.main.items()
    }

  def best_and_last(self, run: str) -> list[tuple[float, float]]:
    """Each seed's best and last mean reward over a window of steps."""
    rewards, window = self.curves[run].values["reward/total"], self.table.window
    return [statistics.best_and_last(of, window) for of in rewards]

  def picture(self, file: str) -> dict[str, Any]:
    """The title and the paths that every function of `plots` takes."""
    path = self.folder / file
    paths = [path.with_suffix(f".{ending}") for ending in self.figures]
    return {"title": f"{self.table.title}, scale {self.label}", "path": paths}


def write(
  table: Table,
  directories: Mapping[str, RowRuns],
  folder: pathlib.Path,
  *,
  scale: str,
  command: str,
  figures: Sequence[str] = ("png",),
) -> list[str]:
  """Writes all of a table; gives the lines of a short one for a terminal."""
  found = Found(table, scale, folder, directories, figures)
  folder.mkdir(parents=True, exist_ok=True)
  documents = [
    run_directory.read_run(directory)
    for run in directories.values()
    for directory in run.directories
  ]
  commits = sorted({c for d in documents for c in run_directory.commits(d)})
  own = found.cells(statistics.summarise)
  # The papers' cells by row and heading, of the rows that were run.
  printed = {
    row: {
      f"{fields['metric']}, {fields['benchmark']}": tables.find(fields)
      for fields in cells
    }
    for row, cells in table.cells(scale).items()
    if row in found.rows
  }
  head, *lines = tables.to_lines(found.label, own, printed)
  runs.write_csv(folder / "table.csv", head, lines)
  finals = {run: _with_ends(found, run) for run in found.finals}
  runs.write_results(folder / "runs.csv", finals, commit="/".join(commits))
  made = runs.made(directories)
  lines = [[*entry.values()] for entry in made]
  runs.write_csv(folder / "made.csv", [*made[0]], lines)
  heading = f"{table.title}{table.caption}"
  lines = tables.to_markdown(heading, found.label, own, printed)
  for section in table.sections:
    lines += section(found)
  final = next(iter(found.finals.values()))
  # A table with thresholds has said already how long a run is.
  steps = "" if table.thresholds else f"{final.step} steps a run. "
  lines += [
    f"{steps}Made by `{command}` at commit {', '.join(commits)}; "
    f"{_named(final.seeds)}; {documents[0]['machine']}.",
    "",
  ]
  (folder / "table.md").write_text("\n".join(lines), encoding="utf-8")
  told = f"{heading} ({found.label}): {tables.meaning(own)}"
  return [told, *tables.to_text(own)]


def _with_ends(found: Found, run: str) -> Finals:
  """A row's scores, in a sweep with the numbers that show a collapse."""
  finals, table = found.finals[run], found.table
  if not table.swept or "reward/total" not in found.curves[run].values:
    return finals
  names = (f"training/{end} {table.window} steps" for end in ("best", "last"))
  ends = np.array(found.best_and_last(run)).T
  more = dict(zip(names, ends, strict=True))
  return finals._replace(values=finals.values | more)


def _named(seeds: Sequence[Seed]) -> str:
  starts, of = ({*map(str, found)} for found in zip(*seeds, strict=True))
  told = f"seeds {', '.join(sorted(of, key=int))}"
  if len(starts) > 1:
    several = ", ".join(sorted(starts, key=int))
    return f"supervised starts {several}, each {told}"
  return told


@contextlib.contextmanager
def replacing(out: pathlib.Path) -> Iterator[pathlib.Path]:
  """Gives a folder whose files replace those of `out`, `table.md` last."""
  out.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(
    dir=out.parent, prefix=f".{out.name}_"
  ) as folder:
    yield pathlib.Path(folder)
    out.mkdir(exist_ok=True)
    files = pathlib.Path(folder).iterdir()
    for file in sorted(files, key=lambda file: file.name == "table.md"):
      shutil.move(file, out / file.name)
