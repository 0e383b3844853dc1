"""Runs as arrays: what a run directory says, and the files results keep.

A run directory holds `metrics.csv` and `evals.csv` (step, seed, then metrics;
one line per step and seed) and, once the run has finished, `final.json`. What
is kept under `results/` has one more column in front, the row of the table.
"""

import csv
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

_Path = str | os.PathLike


class DamagedRunError(ValueError):
  """A file of a run cannot be read; the message names it."""


class Curves(NamedTuple):
  """Metrics of one row over steps, for `N` seeds and `T` steps."""

  steps: np.ndarray  # int [T]
  seeds: tuple[int, ...]  # N of them, in increasing order
  values: dict[str, np.ndarray]  # float64 [N, T]; NaN where nothing was logged


class Finals(NamedTuple):
  """Held-out scores of one row at the end, for `N` seeds."""

  step: int  # updates that the policies have had
  seeds: tuple[int, ...]  # N of them, in increasing order
  values: dict[str, np.ndarray]  # float64 [N], as "greedy/total"

  def by_seed(self, name: str) -> dict[int, float]:
    """One score by seed, as `statistics.paired_difference` takes it."""
    if name not in self.values:
      raise KeyError(f"no score {name!r}; there are {sorted(self.values)}")
    return dict(zip(self.seeds, self.values[name].tolist(), strict=True))


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
    found = _chosen(_read_csv(path), seeds)
    for seed in {int(line["seed"]) for line in found}:
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
      found = json.loads(path.read_text(encoding="utf-8"))
      records += map(_flat, _chosen(found, seeds))
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
  names = dict.fromkeys(name for finals in rows.values() for name in finals[2])
  _write(
    path,
    ["row", "seed", "commit", "step", *names],
    (
      [row, seed, commit, finals.step]
      + [_cell(finals.values, name, n) for name in names]
      for row, finals in rows.items()
      for n, seed in enumerate(finals.seeds)
    ),
  )


def read_results(path: _Path) -> dict[str, Finals]:
  """Reads back what `write_results` wrote, by row."""
  return _by_row(path, _finals)


def write_curves(
  path: _Path, rows: Mapping[str, Curves], *, names: Sequence[str]
) -> None:
  """Writes `curves.csv`, one line per row of the table, seed and step."""

  def lines() -> Iterator[list[Any]]:
    for row, curves in rows.items():
      for n, seed in enumerate(curves.seeds):
        for t, step in enumerate(curves.steps):
          values = [_cell(curves.values, name, (n, t)) for name in names]
          if any(values):
            yield [row, seed, step, *values]

  _write(path, ["row", "seed", "step", *names], lines())


def read_kept_curves(path: _Path) -> dict[str, Curves]:
  """Reads back what `write_curves` wrote, by row."""
  return _by_row(path, _curves)


def _write(path: _Path, head: list[str], lines: Iterator[list[Any]]) -> None:
  with pathlib.Path(path).open("w", newline="", encoding="utf-8") as file:
    csv.writer(file, lineterminator="\n").writerows([head, *lines])


def _read_csv(path: pathlib.Path) -> list[dict[str, str]]:
  with path.open(newline="", encoding="utf-8") as file:
    lines = list(csv.DictReader(file))
  for number, line in enumerate(lines, start=2):
    if None in line or None in line.values():
      raise DamagedRunError(f"{path}, line {number}: not as long as the header")
  return lines


def _by_row(path: _Path, read: Callable[[list], Any]) -> dict[str, Any]:
  rows: dict[str, list[dict[str, str]]] = {}
  for line in _read_csv(pathlib.Path(path)):
    line.pop("commit", None)
    rows.setdefault(line.pop("row"), []).append(line)
  return {row: read(lines) for row, lines in rows.items()}


def _chosen(
  lines: Sequence[Mapping[str, Any]], seeds: Sequence[int]
) -> list[Mapping[str, Any]]:
  return [line for line in lines if not seeds or int(line["seed"]) in seeds]


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
  """Scores by a name such as "greedy/total", beside seed and step."""
  scores = {
    f"{how}/{name}": value
    for how, values in record.items()
    if isinstance(values, Mapping)
    for name, value in values.items()
  }
  return {"seed": record["seed"], "step": record["step"], **scores}


def _curves(lines: Sequence[Mapping[str, str]]) -> Curves:
  places = [(int(line["seed"]), int(line["step"])) for line in lines]
  if len(set(places)) < len(places):
    raise ValueError("a step of a seed is there twice")
  seeds = sorted({seed for seed, _ in places})
  steps = sorted({step for _, step in places})
  names = dict.fromkeys(name for line in lines for name in line)
  values = {
    name: np.full((len(seeds), len(steps)), np.nan)
    for name in names
    if name not in ("seed", "step")
  }
  for (seed, step), line in zip(places, lines, strict=True):
    at = seeds.index(seed), steps.index(step)
    for name, array in values.items():
      array[at] = _number(line.get(name))
  return Curves(np.array(steps, np.int64), tuple(seeds), values)


def _finals(records: Sequence[Mapping[str, Any]]) -> Finals:
  if not records:
    raise ValueError("no finished seeds")
  records = sorted(records, key=lambda record: int(record["seed"]))
  seeds = tuple(int(record["seed"]) for record in records)
  steps = {int(record["step"]) for record in records}
  if len(set(seeds)) < len(seeds):
    raise ValueError(f"a seed is there twice: {seeds}")
  if len(steps) > 1:
    raise ValueError(f"runs of different lengths: {sorted(steps)} steps")
  if any(set(record) != set(records[0]) for record in records):
    raise ValueError("the seeds do not have the same scores")
  values = {
    name: np.array([_number(record[name]) for record in records])
    for name in records[0]
    if name not in ("seed", "step")
  }
  return Finals(steps.pop(), seeds, values)


def _cell(values: Mapping[str, np.ndarray], name: str, index) -> str:
  """A number in full, so that it can be read back; empty for a missing one."""
  if name not in values or np.isnan(values[name][index]):
    return ""
  return repr(float(values[name][index]))


def _number(value: object) -> float:
  return float("nan") if value in ("", None) else float(value)
