"""Writes down a table of rows by figures: scores, curves and differences.

`reproduce.py` calls it for a config that says which `CURVES` it draws: tables
of episodes, of benchmarks, and of all methods in one run.
"""

import pathlib
from collections.abc import Mapping

import numpy as np

from saw_jax.reporting import catalogue, reports

# Kept of every step; loss/world_model and its like where a row has them.
_KEPT = (
  "success",
  "reward/return",
  "steps",
  "invalid",
  "failed",
  "entropy",
  "lambda",
  "loss/world_model",
  "clipped_tokens",
  "observation_nll",
)
_SECONDS = (
  "generate",
  "score",
  "choose",
  "lay out",
  "estimate",
  "update",
  "probes",
  "step",
)
_CATEGORY = "right_"  # how the figure of a category begins
_COMPILING = 5  # steps at the start whose times are not counted


def write(
  module, directories: Mapping, out: pathlib.Path, *, scale: str, command: str
) -> None:
  """Writes table.md, table.csv, runs.csv, curves.csv, evals.csv and pictures.

  Args:
    module: the config, with what its table shows.
    directories: `run_plan.RowRuns` by row.
    out: where to.
    scale: of the runs.
    command: that makes it again.
  """
  from saw_jax.reporting import plots, runs, statistics, tables

  out.mkdir(parents=True, exist_ok=True)
  found = reports.read(directories)
  finals, curves = found.finals, found.curves
  evals = {
    row: runs.read_curves(own.directories, name="evals", seeds=own.seeds)
    for row, own in directories.items()
  }

  published = reports.read_published(module, directories, scale)
  metrics = catalogue.metrics(module, scale)
  table = tables.Table(
    f"{module.TITLE}, held out",
    scale,
    tables.own_cells(finals, metrics),
    published,
  )
  tables.write(table, out)
  names = dict.fromkeys((*_KEPT, *module.CURVES))
  reports.save_runs(found, out, names=tuple(names), thinned=False)
  runs.write_curves(
    out / "evals.csv", evals, names=("right", "observation_accuracy")
  )

  lines = ["", *_by_category(finals), *_over_time(module, curves)]
  lines += ["", *_costs(curves)]
  differences = _differences(module, metrics, finals, curves, statistics)
  if differences:
    lines += ["", "### Paired differences", ""]
    lines += [tables.differences_to_markdown(differences)]
  reports.append(lines, found, out, command=command)

  title = f"{module.TITLE}, scale {scale}"
  for metric, heading in module.CURVES.items():
    panels = {
      kind: {
        row: curves[row]
        for row in rows
        if row in curves and metric in curves[row].values
      }
      for kind, rows in module.PANELS.items()
    }
    panels = {kind: rows for kind, rows in panels.items() if rows}
    if panels:
      plots.metric_panels(
        panels,
        {heading: metric},
        quantity=heading,
        title=title,
        window=module.WINDOW,
        path=out / f"{_stem(metric, module.CURVES)}.png",
      )
  heading = next(iter(metrics))
  found = {
    label: cells[heading]
    for label, cells in differences.items()
    if heading in cells
  }
  if found:
    plots.difference_forest(
      found,
      quantity=f"held-out {heading}",
      title=title,
      path=out / "differences.png",
    )


def _stem(metric: str, metrics) -> str:
  """A picture's name: the metric's last part, or all where two end alike."""
  last = metric.rpartition("/")[2]
  alike = [name for name in metrics if name.rpartition("/")[2] == last]
  return last if len(alike) == 1 else metric.replace("/", "_")


def _by_category(finals) -> list[str]:
  """Success by kind of task, where there are kinds."""
  head = f"sampled/{_CATEGORY}"
  names = sorted(
    {
      name.removeprefix(head)
      for found in finals.values()
      for name in found.values
      if name.startswith(head)
    }
  )
  if not names:
    return []
  rows = {
    row: [
      reports.write_mean(found.values[head + name])
      if head + name in found.values
      else "-"
      for name in names
    ]
    for row, found in finals.items()
  }
  return [
    "### Held-out success by kind, sampled",
    "",
    *reports.grid(names, rows),
  ] + [""]


def _over_time(module, curves) -> list[str]:
  """The first and the last steps of each row, as means over seeds."""
  window = module.WINDOW
  rows = {}
  for row, found in curves.items():
    cells = []
    for metric in module.CURVES:
      values = found.values.get(metric)
      cells.append(
        "-"
        if values is None
        else f"{np.nanmean(values[:, :window]):.3f} → "
        f"{np.nanmean(values[:, -window:]):.3f}"
      )
    rows[row] = cells
  return [
    f"### First and last {window} steps of training, mean over seeds",
    "",
    *reports.grid(list(module.CURVES.values()), rows),
  ]


def _costs(curves) -> list[str]:
  """Seconds of the parts of a step; rows ran one after another."""
  names = [
    name
    for name in _SECONDS
    if any(f"seconds/{name}" in found.values for found in curves.values())
  ]
  rows = {
    row: [_median(found.values.get(f"seconds/{name}")) for name in names]
    for row, found in curves.items()
  }
  return [
    "### Seconds of a step, median",
    "",
    *reports.grid(names, rows),
    "",
    "A step trains all seeds at once. Rows ran one after another on a shared "
    "machine: for ratios see `benchmarks/world_model_cost.py`.",
  ]


def _median(seconds) -> str:
  """Timings are of the program, not of a seed; the first steps compile."""
  if seconds is None or seconds.shape[1] <= _COMPILING:
    return "-"
  return f"{np.median(seconds[0, _COMPILING:]):.3f}"


def _differences(module, metrics, finals, curves, statistics) -> dict:
  differences = {}
  for treated, control in module.COMPARISONS:
    if treated not in finals or control not in finals:
      continue
    if len(finals[treated].seeds) < 2:
      continue
    cells = differences[f"{treated} - {control}"] = {}
    for heading, name in metrics.items():
      cells[heading] = statistics.paired_difference(
        finals[treated].by_seed(name), finals[control].by_seed(name)
      )
    metric, heading = next(iter(module.CURVES.items()))
    cells[f"{heading}, mean over training"] = statistics.paired_difference(
      *(reports.by_seed(curves[row], metric) for row in (treated, control))
    )
  return differences
