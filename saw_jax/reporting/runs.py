"""Runs: which of a row are there, what they say, and the files results keep."""

import collections
import csv
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from saw_jax.reporting import tables
from saw_jax.reporting.statistics import Seed
from saw_jax.run import metrics, run_directory

_Path = str | os.PathLike


class DamagedRunError(ValueError):
  """A file of a run cannot be read; the message names it."""


class RowRuns(NamedTuple):
  """Where the seeds of a run lie, and which have yet to be run."""

  directories: tuple[pathlib.Path, ...]  # of finished runs
  seeds: tuple[int, ...] = ()  # those of them that are meant; empty: all
  missing: tuple[int, ...] = ()  # seeds that none of them has
  next: pathlib.Path | None = None  # the directory that these are run in


class Curves(NamedTuple):
  """Metrics of one row over steps, for `N` seeds and `T` steps."""

  steps: np.ndarray  # int [T]
  seeds: tuple[Seed, ...]  # N of them, in increasing order
  values: dict[str, np.ndarray]  # float64 [N, T]; NaN where nothing was logged

  def by_seed(self, values: Iterable[float]) -> dict[Seed, float]:
    return dict(zip(self.seeds, values, strict=True))


class Finals(NamedTuple):
  """Held-out scores of one row at the end, for `N` seeds."""

  step: int  # updates that the policies have had
  seeds: tuple[Seed, ...]  # N of them, in increasing order
  values: dict[str, np.ndarray]  # float64 [N], as "greedy/total"

  def by_seed(self, name: str) -> dict[Seed, float]:
    """One score by seed, as `statistics.paired_difference` takes it."""
    if name not in self.values:
      raise KeyError(f"no score {name!r}; there are {sorted(self.values)}")
    return dict(zip(self.seeds, self.values[name].tolist(), strict=True))

  @property
  def curves(self) -> Curves:
    """The same as curves that have one step."""
    values = {name: of[:, None] for name, of in self.values.items()}
    return Curves(np.array([self.step]), self.seeds, values)


def find(
  folder: pathlib.Path,
  row: str,
  seeds: Sequence[int],
  config: Mapping[str, Any] | None = None,
) -> RowRuns:
  """Finds a row's finished runs, with the given config, and what they lack."""
  directories, found = [], []
  for directory in sorted(folder.glob(f"{row}_seeds_*")):
    if not (directory / "final.json").is_file():
      continue
    document = run_directory.read_run(directory)
    own = [int(seed) for seed in document["config"].get("seeds", ())]
    new = [seed for seed in own if seed in seeds and seed not in found]
    if new and config is not None:
      run_directory.check_run(directory, {**config, "seeds": own})
    # Runs that share a seed are not put together.
    if new and not set(own) & set(found):
      directories.append(directory)
      found += new
  missing = tuple(seed for seed in seeds if seed not in found)
  wanted = list(missing or seeds)
  name = ",".join(map(str, wanted))
  if wanted == list(range(len(wanted))):  # the first five: `5`
    name = str(len(wanted))
  elif wanted == list(range(wanted[0], wanted[-1] + 1)):  # the next: `5-7`
    name = f"{wanted[0]}-{wanted[-1]}"
  place = folder / f"{row}_seeds_{name}"
  return RowRuns(tuple(directories), tuple(sorted(found)), missing, place)


def run_name(row: str, start: int) -> str:
  """What a row is called that begins at one of several starts."""
  return f"{row}_start_{start}" if start else row


def together(runs: Sequence[RowRuns]) -> RowRuns:
  """A row's runs from all of its starts, which have the same seeds."""
  places = tuple(place for one in runs for place in one.directories)
  return RowRuns(places, runs[0].seeds)


def made(rows: Mapping[str, RowRuns]) -> list[dict[str, Any]]:
  """What the runs of a table were made by: an entry for each directory."""
  entries = []
  for row, found in rows.items():
    for directory in found.directories:
      document = run_directory.read_run(directory)
      by, own = run_directory.commits(document), document["config"]
      # All of one program, on which rounding depends.
      seeds = " ".join(map(str, own.get("seeds", found.seeds)))
      entry = {"row": row, "start": _start_of(directory), "seeds": seeds}
      entry["commit"] = "/".join(by)
      entry["code"] = "/".join(dict.fromkeys(by.values()))
      entry["instructions"] = document.get("instructions") or ""
      entry["weights"] = document.get("start") or ""
      entry["panel"] = (document.get("panel") or {}).get("digest", "")
      entries.append(entry)
  return entries


def check_same(rows: Mapping[str, RowRuns], *, is_whole: bool = True) -> None:
  """Refuses runs of different code, starts, panels or kinds of processors.

  If they are not the `whole` table, what is missing would be run here.
  """
  entries = made(rows)
  if not is_whole:
    here = {"row": "what is missing", "code": run_directory.code()}
    entries.append(here | run_directory.processor())
  # What has to be one -> its values -> what was made by each.
  found: dict[str, dict[str, dict[str, None]]] = {}
  for entry in entries:
    told = [("version of the code", code) for code in entry["code"].split("/")]
    told.append(("instruction set", entry["instructions"]))
    told.append((f"start {entry.get('start')}", entry.get("weights")))
    told.append(("panel of episodes", entry.get("panel")))
    for what, value in told:
      if value:
        found.setdefault(what, {}).setdefault(value, {})[entry["row"]] = None
  for what, names in found.items():
    if len(names) > 1:
      said = [f"{value}: {', '.join(of)}" for value, of in names.items()]
      raise ValueError(
        f"a table is made by one {what}, and its runs are of {len(names)} "
        f"({'; '.join(said)}): run the others again, name another folder with "
        "--runs, or say --mixed to have the table name them all"
      )


def read_curves(
  directories: Sequence[_Path],
  *,
  name: str = "metrics",  # or "evals", of the held-out set
  seeds: Sequence[int] = (),
) -> Curves:
  """Reads one row of a table, whose seeds may lie in several runs."""
  lines, owners = [], {}
  for directory in directories:
    path = pathlib.Path(directory) / f"{name}.csv"
    if not path.is_file():
      raise FileNotFoundError(f"{path} is not there: has the run started?")
    own = _read_csv(path)
    if not own:
      _check_empty(path)
    found = _chosen(own, seeds, _start_of(directory))
    for seed in {_seed(line) for line in found}:
      if seed in owners:
        raise ValueError(f"seed {seed} is in {owners[seed]} and in {directory}")
      owners[seed] = directory
    lines += found
  return _curves(lines)


def read_finals(
  directories: Sequence[_Path], *, seeds: Sequence[int] = ()
) -> Finals:
  """Reads the last scores of one row, whose seeds may lie in several runs."""
  records = []
  for directory in directories:
    path = pathlib.Path(directory) / "final.json"
    if not path.is_file():
      raise FileNotFoundError(f"{path} is not there: the run has not finished")
    try:
      text = path.read_text("utf-8")
      start = _start_of(directory)
      for record in _chosen(metrics.from_json(text), seeds, start):
        scores = {
          f"{how}/{name}": value
          for how, values in record.items()
          if isinstance(values, Mapping)
          for name, value in values.items()
        }
        ends = {name: record[name] for name in ("start", "seed", "step")}
        records.append(ends | scores)
    except (ValueError, TypeError, KeyError) as error:
      raise DamagedRunError(
        f"{path} is damaged ({error}): delete it, and the same command scores "
        "the last checkpoint again"
      ) from None
  return _finals(records)


def write_results(
  path: _Path, rows: Mapping[str, Finals], *, commit: str
) -> None:
  """Writes `runs.csv`, one line per row of the table and seed."""
  names = dict.fromkeys(n for finals in rows.values() for n in finals.values)
  curves = {row: finals.curves for row, finals in rows.items()}
  _write(path, curves, names, {"commit": commit})


def write_curves(
  path: _Path, rows: Mapping[str, Curves], *, names: Iterable[str]
) -> None:
  """Writes `curves.csv`, one line per row of the table, seed and step."""
  _write(path, rows, names, {})


def _write(
  path: _Path,
  rows: Mapping[str, Curves],
  names: Iterable[str],
  told: Mapping[str, str],  # in all lines
) -> None:
  lines = []
  for row, (steps, seeds, values) in rows.items():
    for n, t in np.ndindex(len(seeds), len(steps)):
      found = (values[name][n, t] if name in values else None for name in names)
      cells = [*map(tables.number, found)]
      if any(cells):
        lines.append([row, *seeds[n], *told.values(), steps[t], *cells])
  write_csv(path, ["row", "start", "seed", *told, "step", *names], lines)


def averaged(curves: Curves, every: int) -> Curves:
  """Means of as many steps, by the first of them; a rest is left out."""
  steps, seeds, values = curves
  size = len(steps) // every * every
  blocks = {
    name: array[:, :size].reshape(len(seeds), -1, every).mean(-1)
    for name, array in values.items()
  }
  return Curves(steps[:size:every], seeds, blocks)


def read_kept(path: _Path) -> dict[str, Curves]:
  """Reads back `runs.csv` or `curves.csv`, by row; scores have one step."""
  rows: dict[str, list[dict[str, str]]] = {}
  for line in _read_csv(pathlib.Path(path)):
    line.pop("commit", None)
    rows.setdefault(line.pop("row"), []).append(line)
  return {row: _curves(lines) for row, lines in rows.items()}


def write_csv(path: _Path, head: list[str], lines: list[list[Any]]) -> None:
  with pathlib.Path(path).open("w", newline="", encoding="utf-8") as file:
    csv.writer(file, lineterminator="\n").writerows([head, *lines])


def _read_csv(path: pathlib.Path) -> list[dict[str, str]]:
  lines = []
  with path.open(newline="", encoding="utf-8") as file:
    try:
      for line in csv.DictReader(file):
        lines.append(line)
        if None in line or None in line.values():
          raise ValueError("not as long as the header")
        _ = int(line["seed"]), int(line["step"])
    except (ValueError, KeyError, csv.Error) as error:
      where = f"{path}, line {len(lines) + 1}"
      raise DamagedRunError(f"{where}: {error}") from None
  return lines


def _check_empty(path: pathlib.Path) -> None:
  """Refuses a CSV whose rows are gone: those of the JSON lines beside it."""
  lines = path.with_suffix(".jsonl")
  count = sum(1 for _ in metrics.read_lines(lines))
  if count > 1:  # A run that goes on writes the other file first.
    raise DamagedRunError(
      f"{path} is damaged: it has none of the {count} rows of {lines.name}; "
      "delete final.json beside it, and the same command writes it again"
    )


def _chosen(
  lines: Sequence[Mapping], seeds: Sequence[int], start: int
) -> list[Mapping]:
  chosen = (x for x in lines if not seeds or int(x["seed"]) in seeds)
  return [{**line, "start": start} for line in chosen]


def _start_of(directory: _Path) -> int:
  """Which supervised start a run began at: the first, where nothing says so."""
  if not (pathlib.Path(directory) / "run.json").exists():
    return 0
  section = run_directory.read_run(directory)["config"].get("warm_start", {})
  return section.get("options", {}).get("seed", 0)


def _seed(line: Mapping[str, Any]) -> Seed:
  # Results that are older than starts have none.
  return Seed(int(line.get("start", 0)), int(line["seed"]))


def _curves(lines: Sequence[Mapping[str, Any]]) -> Curves:
  places = [(_seed(line), int(line["step"])) for line in lines]
  for (seed, step), count in collections.Counter(places).items():
    if count > 1:
      raise ValueError(f"step {step} of seed {seed} is there twice")
  seeds = sorted({seed for seed, _ in places})
  steps = sorted({step for _, step in places})
  names = dict.fromkeys(name for line in lines for name in line)
  values = {
    name: np.full((len(seeds), len(steps)), np.nan)
    for name in names
    if name not in ("start", "seed", "step")
  }
  for (seed, step), line in zip(places, lines, strict=True):
    at = seeds.index(seed), steps.index(step)
    for name, array in values.items():
      if line.get(name) not in ("", None):
        array[at] = float(line[name])
  return Curves(np.array(steps, np.int64), tuple(seeds), values)


def _finals(records: Sequence[Mapping[str, Any]]) -> Finals:
  if not records:
    raise ValueError("no finished seeds")
  if any(set(record) != set(records[0]) for record in records):
    raise ValueError("the seeds do not have the same scores")
  steps, seeds, values = _curves(records)
  if len(steps) > 1:
    raise ValueError(f"runs of different lengths: {steps.tolist()} steps")
  scores = {name: array[:, 0] for name, array in values.items()}
  return Finals(int(steps[0]), seeds, scores)
