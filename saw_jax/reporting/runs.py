"""Runs as arrays: what a run directory says, and the files results keep.

A run directory holds `metrics.csv` and `evals.csv` (step, seed, then metrics;
one line per step and seed) and, once the run has finished, `final.json`. What
is kept under `results/` has one more column in front, the row of the table.
"""

import csv
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

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
    """Gives one score by seed, as `statistics.paired_difference` takes it.

    Args:
      name: of the score, as "greedy/total".

    Returns:
      The score of each seed.
    """
    if name not in self.values:
      raise KeyError(f"no score {name!r}; there are {sorted(self.values)}")
    return dict(zip(self.seeds, self.values[name].tolist(), strict=True))


def read_curves(
  directories: Sequence[_Path],
  *,
  name: str = "metrics",
  seeds: Sequence[int] = (),
) -> Curves:
  """Reads one row of a table, whose seeds may lie in several runs.

  Args:
    directories: of the runs; no seed may be in two of them.
    name: "metrics" for training, "evals" for the held-out set.
    seeds: to read; all by default.

  Returns:
    The curves of the seeds.

  Raises:
    FileNotFoundError: a run has no such file.
    ValueError: a seed or a line is there twice.
    DamagedRunError: a file is damaged.
  """
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
  """Reads the last scores of one row.

  Args:
    directories: of the runs; no seed may be in two of them.
    seeds: to read; all by default.

  Returns:
    The scores of the seeds.

  Raises:
    FileNotFoundError: a run has not finished.
    ValueError: a seed is there twice, or runs differ in length or in scores.
    DamagedRunError: a file is damaged.
  """
  records = []
  for directory in directories:
    path = pathlib.Path(directory) / "final.json"
    if not path.is_file():
      raise FileNotFoundError(f"{path} is not there: the run has not finished")
    try:
      found = json.loads(path.read_text(encoding="utf-8"))
      records += _chosen(found, seeds)
    except (ValueError, TypeError, KeyError) as error:
      raise DamagedRunError(
        f"{path} is damaged ({error}): delete it, and the same command scores "
        "the last checkpoint again"
      ) from None
  return _finals(
    [
      {
        "seed": record["seed"],
        "step": record["step"],
        **{
          f"{how}/{name}": value
          for how, scores in record.items()
          if isinstance(scores, Mapping)
          for name, value in scores.items()
        },
      }
      for record in records
    ]
  )


def write_results(
  path: _Path, rows: Mapping[str, Finals], *, commit: str
) -> None:
  """Writes `runs.csv`, one line per row of the table and seed.

  Args:
    path: of the file.
    rows: scores by row.
    commit: of the code that made them.
  """
  names = dict.fromkeys(name for finals in rows.values() for name in finals[2])
  with pathlib.Path(path).open("w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["row", "seed", "commit", "step", *names])
    for row, finals in rows.items():
      for n, seed in enumerate(finals.seeds):
        values = [_cell(finals.values, name, n) for name in names]
        writer.writerow([row, seed, commit, finals.step, *values])


def read_results(path: _Path) -> dict[str, Finals]:
  """Reads back what `write_results` wrote.

  Args:
    path: of the file.

  Returns:
    Scores by row, in the order of the file.
  """
  rows: dict[str, list[dict[str, str]]] = {}
  for line in _read_csv(pathlib.Path(path)):
    line.pop("commit")
    rows.setdefault(line.pop("row"), []).append(line)
  return {row: _finals(lines) for row, lines in rows.items()}


def write_curves(
  path: _Path, rows: Mapping[str, Curves], *, names: Sequence[str]
) -> None:
  """Writes `curves.csv`, one line per row of the table, seed and step.

  Args:
    path: of the file.
    rows: curves by row.
    names: metrics to keep.
  """
  with pathlib.Path(path).open("w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["row", "seed", "step", *names])
    for row, curves in rows.items():
      for n, seed in enumerate(curves.seeds):
        for t, step in enumerate(curves.steps):
          values = [_cell(curves.values, name, (n, t)) for name in names]
          if any(values):
            writer.writerow([row, seed, step, *values])


def read_kept_curves(path: _Path) -> dict[str, Curves]:
  """Reads back what `write_curves` wrote.

  Args:
    path: of the file.

  Returns:
    Curves by row, in the order of the file.
  """
  rows: dict[str, list[dict[str, str]]] = {}
  for line in _read_csv(pathlib.Path(path)):
    rows.setdefault(line.pop("row"), []).append(line)
  return {row: _curves(lines) for row, lines in rows.items()}


def _read_csv(path: pathlib.Path) -> list[dict[str, str]]:
  with path.open(newline="", encoding="utf-8") as file:
    lines = list(csv.DictReader(file))
  for number, line in enumerate(lines, start=2):
    if None in line or None in line.values():
      raise DamagedRunError(f"{path}, line {number}: not as long as the header")
  return lines


def _chosen(
  lines: Sequence[Mapping[str, object]], seeds: Sequence[int]
) -> list[Mapping[str, object]]:
  """Lines of some seeds, or all."""
  return [line for line in lines if not seeds or int(line["seed"]) in seeds]


def _curves(lines: Sequence[Mapping[str, str]]) -> Curves:
  places = [(int(line["seed"]), int(line["step"])) for line in lines]
  seeds = sorted({seed for seed, _ in places})
  steps = sorted({step for _, step in places})
  if len(set(places)) < len(places):
    raise ValueError("a step of a seed is there twice")
  names = dict.fromkeys(
    name for line in lines for name in line if name not in ("seed", "step")
  )
  values = {name: np.full((len(seeds), len(steps)), np.nan) for name in names}
  for (seed, step), line in zip(places, lines, strict=True):
    for name in names:
      if line.get(name):
        values[name][seeds.index(seed), steps.index(step)] = float(line[name])
  return Curves(np.array(steps, np.int64), tuple(seeds), values)


def _finals(records: Sequence[Mapping[str, object]]) -> Finals:
  if not records:
    raise ValueError("no finished seeds")
  records = sorted(records, key=lambda record: int(record["seed"]))
  seeds = tuple(int(record["seed"]) for record in records)
  steps = {int(record["step"]) for record in records}
  names = [name for name in records[0] if name not in ("seed", "step")]
  if len(set(seeds)) < len(seeds):
    raise ValueError(f"a seed is there twice: {seeds}")
  if len(steps) > 1:
    raise ValueError(f"runs of different lengths: {sorted(steps)} steps")
  if any(set(record) != set(records[0]) for record in records):
    raise ValueError("the seeds do not have the same scores")
  return Finals(
    step=steps.pop(),
    seeds=seeds,
    values={
      name: np.array([_number(record[name]) for record in records])
      for name in names
    },
  )


def _cell(values: Mapping[str, np.ndarray], name: str, index) -> str:
  """A number in full, so that it can be read back; empty for a missing one."""
  if name not in values or np.isnan(values[name][index]):
    return ""
  return repr(float(values[name][index]))


def _number(value: object) -> float:
  return float("nan") if value in ("", None) else float(value)
