"""Compares runs seed by seed, each with the first: a table and one picture.

The numbers are those of the papers' tables: means over training, scores held
out at the end, and what `statistics.paired_difference` says of two runs.
"""

import csv
import dataclasses
import itertools
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from saw_jax import naming
from saw_jax.reporting import plots, runs, statistics, tables
from saw_jax.reporting.runs import Curves, Finals
from saw_jax.reporting.statistics import PairedDifference, Summary
from saw_jax.run import run_directory

if TYPE_CHECKING:
  from matplotlib.figure import Figure

TRAINING, HELD_OUT = "training", "held out"
# Metrics of a step whose means are compared if none are named.
_SHOWN = ("reward/", "entropy", "length", "kl")
_Values = dict[str, dict[int, float]]  # by metric and seed


class Row(NamedTuple):
  """One metric of two runs, over the seeds that both have."""

  run: str
  control: str
  part: str  # "training": mean over the steps; or "held out"
  metric: str
  value: Summary
  control_value: Summary
  difference: PairedDifference  # run - control


@dataclasses.dataclass(frozen=True)
class Comparison:
  """What `compare` finds; prints as a table for each pair."""

  rows: tuple[Row, ...]
  notes: tuple[str, ...]  # how the runs differ, and what was left out

  def __str__(self) -> str:
    lines = []
    ends = ["difference", f"{100 * statistics.CONFIDENCE:g} %, t", "seeds"]
    for pair, rows in itertools.groupby(self.rows, lambda row: row[:2]):
      cells = [["", "metric", *pair, *ends]]
      for row in rows:
        mean, count, t, _ = row.difference
        values = (row.value, row.control_value)
        cells.append(
          [row.part, row.metric, *map(tables.mean_and_width, values)]
          + [f"{mean:+.3f}", tables.interval(t), str(count)]
        )
      lines += [*tables.aligned(cells), ""]
    return "\n".join([*lines, *self.notes])

  def write(self, path: str | os.PathLike) -> None:
    """Writes the rows as CSV, numbers in full; an unknown one is empty."""
    head = "run control part metric mean control_mean difference t_low t_high "
    head += "bootstrap_low bootstrap_high seeds"
    lines: list[Sequence[object]] = [head.split()]
    for *names, value, control, (mean, count, t, bootstrap) in self.rows:
      numbers = (value.mean, control.mean, mean, *t, *bootstrap)
      lines.append([*names, *map(tables.number, numbers), count])
    with pathlib.Path(path).open("w", newline="", encoding="utf-8") as file:
      csv.writer(file, lineterminator="\n").writerows(lines)

  def plot(self, path: str | os.PathLike | None = None) -> "Figure":
    """Draws the differences; a PNG, or what the path's suffix says."""
    panels: dict[str, dict[str, PairedDifference]] = {}
    for row in self.rows:
      panel = panels.setdefault(f"{row.metric}, {row.part}", {})
      panel[f"{row.run} - {row.control}"] = row.difference
    return plots.difference_panels(panels, path=path)


class _Run(NamedTuple):
  """What a run directory holds."""

  label: str
  config: Mapping[str, Any]
  curves: Curves
  evals: Curves  # greedy scores during training
  finals: Finals | None

  @classmethod
  def read(cls, directory: pathlib.Path, label: str) -> "_Run":
    config = run_directory.read_run(directory)["config"]
    curves, evals = (
      runs.read_curves([directory], name=name) for name in ("metrics", "evals")
    )
    is_done = (directory / "final.json").exists()
    finals = runs.read_finals([directory]) if is_done else None
    return cls(label, config, curves, evals, finals)


def compare(
  directories: Sequence[str | os.PathLike],
  metrics: Sequence[str] | None = None,
) -> Comparison:
  """Compares each run with the first, seed by seed.

  Args:
    directories: two or more run directories, of one task; a run that still goes
      on may be among them.
    metrics: names of `metrics.csv`, whose means over the steps that both runs
      have are compared, and of held-out scores, as `greedy/total`. By default
      rewards, entropy, length and KL, and every score.

  Raises:
    ValueError: runs of different tasks, or without a seed or a step in common.
    KeyError: a metric that two runs do not both have.
    FileNotFoundError: a run that has not begun.
  """
  paths = [pathlib.Path(directory) for directory in directories]
  if len(set(paths)) != len(paths) or len(paths) < 2:
    raise ValueError("name two or more run directories that differ")
  names = [path.name for path in paths]
  labels = names if len(set(names)) == len(names) else list(map(str, paths))
  control, *others = map(_Run.read, paths, labels)
  rows, notes = [], []
  for run in others:
    found = _parts(run, control, notes)
    for part, metric in _chosen(found, metrics):
      new, old = (values[metric] for values in found[part])
      ends = (statistics.summarise(list(x.values())) for x in (new, old))
      difference = statistics.paired_difference(new, old)
      rows.append(
        Row(run.label, control.label, part, metric, *ends, difference)
      )
  if any(row.difference.count == 1 for row in rows):
    notes.append("With one seed there is no interval.")
  return Comparison(tuple(rows), tuple(notes))


def _chosen(
  found: Mapping[str, tuple[_Values, _Values]], metrics: Sequence[str] | None
) -> Iterator[tuple[str, str]]:
  """The parts and names of the metrics that are compared."""
  both = [
    (part, name)
    for part, (new, old) in found.items()
    for name in new
    if name in old
  ]
  if metrics is None:
    for part, name in both:
      if part == HELD_OUT or name.startswith(_SHOWN):
        yield part, name
    return
  parts = {name: part for part, name in both}
  for name in metrics:
    yield naming.lookup(parts, name, "metric of both runs"), name


def _parts(
  run: _Run, control: _Run, notes: list[str]
) -> dict[str, tuple[_Values, _Values]]:
  """What two runs say of the seeds and steps that both have."""
  both, label = (run, control), f"{run.label} - {control.label}"
  tasks = [one.config["task"]["name"] for one in both]
  if tasks[0] != tasks[1]:
    raise ValueError(
      f"{run.label} learns {tasks[0]!r} and {control.label} {tasks[1]!r}: "
      "scores of different tasks cannot be compared"
    )
  changed = run_directory.differences(control.config, run.config)
  changed.pop("seeds", None)
  said = [f"{key} {a!r} -> {b!r}" for key, (a, b) in changed.items()]
  notes.append(f"{label}: {'; '.join(said) or 'the same config'}.")
  seeds = _common("seeds", label, *(one.curves.seeds for one in both), notes)
  steps = _common("steps", label, *(one.curves.steps for one in both), notes)
  training = tuple(
    _means(one.curves, np.isin(one.curves.steps, steps)) for one in both
  )
  if (
    all(one.finals for one in both) and len({x.finals.step for x in both}) == 1
  ):
    held_out = tuple(
      {name: one.finals.by_seed(name) for name in one.finals.values}
      for one in both
    )
  else:
    ends = set(run.evals.steps.tolist()) & set(control.evals.steps.tolist())
    at = max(ends, default=-1)  # -1: of no step
    if ends:
      notes.append(f"{label}: held out, after the {at} steps that both had.")
    held_out = tuple(
      _means(one.evals, one.evals.steps == at, "greedy/") for one in both
    )
  return {
    part: tuple(
      {name: {s: of[s] for s in seeds} for name, of in values.items()}
      for values in pair
    )
    for part, pair in ((TRAINING, training), (HELD_OUT, held_out))
  }


def _means(curves: Curves, chosen: np.ndarray, prefix: str = "") -> _Values:
  """Means over the chosen steps, of what was logged at each."""
  return {
    prefix + name: curves.by_seed(values[:, chosen].mean(-1))
    for name, values in curves.values.items()
    if chosen.any() and np.isfinite(values[:, chosen]).all()
  }


def _common(
  what: str, label: str, a: Sequence[int], b: Sequence[int], notes: list[str]
) -> list[int]:
  """What is in both; a note where that is not all."""
  found = sorted(set(map(int, a)) & set(map(int, b)))
  if not found:
    raise ValueError(f"{label}: they have no {what} in common")
  if len(found) < max(len(a), len(b)):
    ends = f"{found[0]} to {found[-1]}" if len(found) > 1 else f"{found[0]}"
    notes.append(
      f"{label}: {what} {ends}, the {len(found)} that both have, of {len(a)} "
      f"and {len(b)}."
    )
  return found
