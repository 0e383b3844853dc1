"""Compares runs seed by seed, each with the first: a table and one picture."""

import dataclasses
import itertools
import math
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from saw_jax import naming
from saw_jax.reporting import plots, runs, statistics, tables
from saw_jax.reporting.runs import Curves
from saw_jax.reporting.statistics import PairedDifference, Seed, Summary
from saw_jax.run import run_directory, store

if TYPE_CHECKING:
  from matplotlib.figure import Figure

TRAINING, HELD_OUT = "training", "held out"
# Metrics of a step whose means are compared if none are named.
_SHOWN = ("reward/", "entropy", "length", "kl")
_Key = tuple[str, str]  # part and metric


class Row(NamedTuple):
  """One metric of two runs, over the seeds that both have."""

  run: str
  control: str
  part: str  # "training": mean over the steps; or "held out"
  metric: str
  value: Summary
  control_value: Summary
  difference: PairedDifference  # run - control


@dataclasses.dataclass(frozen=True, repr=False)
class Comparison:
  """What `compare` finds; shown as a table for each pair."""

  rows: tuple[Row, ...]
  notes: tuple[str, ...]  # how the runs differ, and what was left out

  def __repr__(self) -> str:
    lines = []
    for pair, rows in itertools.groupby(self.rows, lambda row: row[:2]):
      cells = [["", "metric", *pair, "difference", "95 %, t", "seeds"]]
      for _, _, part, metric, *values, found in rows:
        told = [*map(tables.mean_and_width, values), f"{found.mean:+.3f}"]
        told += [tables.interval(found.t), found.size]
        cells.append([part, metric, *told])
      lines += [*tables.aligned(cells), ""]
    return "\n".join([*lines, *self.notes])

  def write(self, path: str | os.PathLike) -> None:
    """Writes the rows as CSV with all digits; an unknown number is empty."""
    head = "run control part metric mean control_mean difference t_low t_high "
    head += "bootstrap_low bootstrap_high seeds"
    lines = []
    for *names, value, control, found in self.rows:
      numbers = (value.mean, control.mean, found.mean, *found.t)
      numbers += found.bootstrap
      lines.append([*names, *map(tables.number, numbers), found.count])
    runs.write_csv(path, head.split(), lines)

  def plot(self, path: str | os.PathLike | None = None) -> "Figure":
    """Draws the differences, in the format that the path's suffix names."""
    panels: dict[str, dict[str, PairedDifference]] = {}
    for row in self.rows:
      panel = panels.setdefault(f"{row.metric}, {row.part}", {})
      panel[f"{row.run} - {row.control}"] = row.difference
    return plots.difference_forest(panels, path=path)


class _Run:
  def __init__(self, directory: pathlib.Path, label: str):
    self.label, places = label, [directory]
    document = run_directory.read_run(directory)
    self.config, self.files = document["config"], document.get("files") or {}
    self.curves = runs.read_curves(places)
    self.evals = runs.read_curves(places, name="evals")  # greedy, on the way
    is_done = (directory / "final.json").exists()
    self.finals = runs.read_finals(places) if is_done else None

  def values(
    self, steps: list[int], at: int | None
  ) -> dict[_Key, dict[Seed, float]]:
    """Means over steps, and scores after `at` steps, or at the end."""
    if at is not None:
      scores = {f"greedy/{n}": x for n, x in _means(self.evals, [at]).items()}
    else:
      scores = {name: self.finals.by_seed(name) for name in self.finals.values}
    parts = {TRAINING: _means(self.curves, steps), HELD_OUT: scores}
    return {(part, n): x for part, of in parts.items() for n, x in of.items()}


def compare(
  directories: Sequence[str | os.PathLike], metrics: Sequence[str] | None = None
) -> Comparison:
  """Compares each run with the first, seed by seed; they have one task.

  `metrics` are names of `metrics.csv`, whose means over the steps that both
  have are compared, and of held-out scores, as `greedy/total`; by default
  rewards, entropy, length, KL, and every score.
  """
  paths = [store.local(directory) for directory in directories]
  if len(set(map(str, directories))) != len(paths) or len(paths) < 2:
    raise ValueError("name two or more run directories that differ")
  names = [path.name for path in paths]
  labels = (
    names if len(set(names)) == len(names) else list(map(store.named, paths))
  )
  control, *others = map(_Run, paths, labels)
  rows, notes = [], []
  for run in others:
    rows += _pair(run, control, metrics, notes)
  if any(row.difference.count == 1 for row in rows):
    notes.append("With one seed there is no interval.")
  return Comparison(tuple(rows), tuple(notes))


def _pair(
  run: _Run, control: _Run, metrics: Sequence[str] | None, notes: list[str]
) -> Iterator[Row]:
  """Compares two runs over the seeds, steps and metrics that both have."""
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
  said += [
    f"another content of {key}"
    for key, content in control.files.items()
    if run.files.get(key, content) != content
  ]
  notes.append(f"{label}: {'; '.join(said) or 'the same config'}.")
  seeds = _common("seeds", label, [one.curves.seeds for one in both], notes)
  steps = _common("steps", label, [one.curves.steps for one in both], notes)
  at = None  # the end, if it is that of both
  ends = [one.finals and one.finals.step for one in both]
  if ends[0] != ends[1] or None in ends:
    at = max({*run.evals.steps} & {*control.evals.steps}, default=-1)
    told = f"held out, after the {at} steps that both had"
    told = told if at >= 0 else "nothing held out after as many steps"
    notes.append(f"{label}: {told}.")
  new, old = (one.values(steps, at) for one in both)
  pairs = {
    key: [{seed: of[key][seed] for seed in seeds} for of in (new, old)]
    for key in new
    if key in old
  }
  unknown = [k for k, of in pairs.items() if not all(map(_is_known, of))]
  if unknown:
    names = ", ".join(name for _, name in unknown)
    notes.append(f"{label}: without {names}, not a number for each.")
  for key in _chosen([key for key in pairs if key not in unknown], metrics):
    pair = pairs[key]
    ends = map(statistics.summarise, pair)
    difference = statistics.paired_difference(*pair)
    yield Row(run.label, control.label, *key, *ends, difference)


def _is_known(values: Mapping[Seed, float]) -> bool:
  return all(map(math.isfinite, values.values()))


def _chosen(keys: list[_Key], metrics: Sequence[str] | None) -> list[_Key]:
  if metrics is None:
    return [k for k in keys if k[0] == HELD_OUT or k[1].startswith(_SHOWN)]
  metrics = [metrics] if isinstance(metrics, str) else metrics
  named = {key[1]: key for key in keys}
  return [naming.lookup(named, m, "metric of both runs") for m in metrics]


def _means(
  curves: Curves, steps: Iterable[int]
) -> dict[str, dict[Seed, float]]:
  """Means over some steps, by metric and seed, of metrics logged at each."""
  chosen = np.isin(curves.steps, list(steps))
  return {
    name: curves.by_seed(values[:, chosen].mean(-1))
    for name, values in curves.values.items()
    if chosen.any() and np.isfinite(values[:, chosen]).all()
  }


def _common(
  what: str, label: str, both: list[Sequence[int]], notes: list[str]
) -> list[int]:
  """What both runs have; adds a note if one of them has more."""
  found, sizes = sorted(set(both[0]) & set(both[1])), list(map(len, both))
  if not found:
    raise ValueError(f"{label}: they have no {what} in common")
  if len(found) < max(sizes):
    notes.append(
      f"{label}: of {sizes[0]} and {sizes[1]} {what} the {len(found)} that "
      f"both have, {found[0]} to {found[-1]}."
    )
  return found
