"""Rows beside each other, seed by seed."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from saw_jax.reporting import plots, statistics, tables
from saw_jax.reporting.report import Found
from saw_jax.reporting.runs import Curves
from saw_jax.reporting.sections import parts
from saw_jax.reporting.statistics import PairedDifference
from saw_jax.reporting.table import Table


def paired_differences(found: Found) -> list[str]:
  """The differences of `compare` as a table."""
  differences, table = compare(found), found.table
  if not differences:
    return []
  at = "" if table.at is None else f" at {100 * table.at:g} %"
  intro = _primary(found, differences)
  if table.thresholds:
    intro += "\n\nA seed that never got to a threshold counts as the number of "
    intro += "steps."
  heading = f"Paired differences{at}{parts.stand_in(found)}"
  return [*parts.headed(heading, tables.differences(differences), intro), ""]


def _primary(found: Found, differences) -> str:
  """States the primary comparison, and how to read the others."""
  label, heading = found.table.primary
  one = differences.get(label, {}).get(heading)
  told = f"Primary, fixed before the run: {label}, {heading}"
  if one is None:
    told += ", which is not among these runs"
  else:
    p = statistics.p_value(one)
    told += f": {one.mean:+.3f} {tables.interval(one.t)}, p = {p:.2g}"
    for name in found.table.controls:
      if other := differences.get(name, {}).get(heading):
        ends = tables.interval(other.t)
        told += f"; its control, {name}: {other.mean:+.3f} {ends}"
  every = [one for of in differences.values() for one in of.values()]
  count = len(every)
  of_starts = "Intervals are of the means of supervised starts."
  if every[0].starts == 1:
    of_starts = "All seeds begin at the same weights, whose chance is in no "
    of_starts += "interval."
  return (
    f"{told}. All else is exploratory, and shown where Holm's p over these "
    f"{count} comparisons is below 0.05. A true difference of the last "
    f"column's size is found in four of five such tables. {of_starts}"
  )


def interquartile_means(found: Found) -> list[str]:
  """The scores again, as means of the middle half of the seeds."""

  def middle(scores: Mapping[statistics.Seed, float]) -> str:
    return f"{statistics.interquartile_mean([*scores.values()]):.3f}"

  if min(len(final.seeds) for final in found.finals.values()) < 3:
    return []
  heading = "Interquartile means over seeds"
  return parts.lay_out(heading, found.cells(middle).items(), found.headings)


def compare(found: Found) -> dict[str, dict[str, PairedDifference]]:
  """Differences of scores, of means over training, and of steps."""
  table, differences = found.table, {}
  for label, *pair in _pairs(found):
    if len(found.finals[pair[0]].seeds) < 2:
      continue
    curves = [found.curves[run] for run in pair]
    values = {
      heading: [found.scores(run, metric) for run in pair]
      for heading, metric in found.columns.items()
    }
    for metric, heading in table.compared.items():
      values[f"{heading}, mean over training"] = [
        c.by_seed(c.values[metric].mean(-1)) for c in curves
      ]
    for metric, threshold in table.thresholds.items():
      values[f"steps to {metric} ≥ {threshold:g}"] = [
        c.by_seed(np.minimum(steps_to(table, c, metric), c.steps[-1] + 1))
        for c in curves
      ]
    differences[label] = {
      heading: statistics.paired_difference(*both)
      for heading, both in values.items()
    }
  return differences


def _pairs(found: Found) -> Iterator[tuple[str, str, str]]:
  """The label and the two runs of each comparison whose runs are there."""
  for treated, control in found.table.comparisons:
    label = f"{treated} - {control}"
    if found.table.swept:
      first, second = (found.rows.get(row, {}) for row in (treated, control))
      for value in sorted(first.keys() & second.keys()):
        at = f", {found.heading(value)}"
        yield label + at, first[value], second[value]
    elif treated in found.main and control in found.main:
      yield label, found.main[treated], found.main[control]


def steps_to(table: Table, curves: Curves, metric: str) -> list[float]:
  """Steps to a metric's threshold, of each seed; a step counts from 1."""
  at = table.thresholds[metric], table.window, curves.steps + 1
  steps = statistics.steps_to_threshold
  return [steps(values, *at) for values in curves.values[metric]]


def draw_differences(found: Found, columns: Sequence[str], file: str) -> None:
  compared = compare(found).items()
  panels = {
    f"held-out {column}": {x: of[column] for x, of in compared if column in of}
    for column in columns
  }
  if all(panels.values()):
    plots.difference_forest(panels, **found.picture(file))
