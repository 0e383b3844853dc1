"""Writes down a table of runs that bought labels, at one budget or several.

`reproduce.py` calls it for a config whose REPORT names it.
"""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from saw_jax.reporting import catalogue, reports
from saw_jax.reporting.run_plan import RowRuns

_KEPT = (
  "reward/total",
  "audit/correct",
  "audit/vote_right",
  "audit/majority",
  "overlap/labelled",
  "labels/wasted",
  "entropy",
)
_PARTS = ("choose", "probes")  # what CARE adds to a step


def check(module, names: Sequence[str]) -> None:
  """Refuses runs of which no table can be made, before they run.

  Args:
    module: the config, with what its table shows.
    names: of the runs.

  Raises:
    ValueError: none of them has the budget of the main table.
  """
  at = module.FRACTION
  if not any(module.RUNS[name][1] in (None, at) for name in names):
    raise ValueError(
      f"none of {', '.join(names)} has labels for {100 * at:g} % of the "
      "prompts, of which the table is made: add a run that has"
    )


def write(
  module, directories: Mapping, out: pathlib.Path, *, scale: str, command: str
) -> None:
  """Writes table.md, table.csv, runs.csv, curves.csv and pictures.

  Args:
    module: the config, with what its table shows.
    directories: `run_plan.RowRuns` by name of the run.
    out: where to.
    scale: of the runs.
    command: that makes it again.
  """
  from saw_jax.reporting import plots, statistics, tables

  out.mkdir(parents=True, exist_ok=True)
  found = reports.read(directories)
  finals, curves = found.finals, found.curves

  # [row][budget] -> name of the run; rows without a budget have None
  names: dict[str, dict[float | None, str]] = {}
  for name in directories:
    row, fraction, _ = module.RUNS[name]
    names.setdefault(row, {})[fraction] = name
  names = {row: names[row] for row in module.ROWS if row in names}
  at = module.FRACTION
  main = {
    row: found.get(None, found.get(at))
    for row, found in names.items()
    if None in found or at in found
  }
  metrics = catalogue.metrics(module, scale)
  own = tables.own_cells(
    {row: finals[name] for row, name in main.items()}, metrics
  )
  start = [_before(directories[name]) for name in main.values()][:1]
  table = tables.Table(
    f"{module.TITLE}: held out, labels for {100 * at:g} % of the "
    "prompts of a step",
    scale,
    own,
    {},
  )
  tables.write(table, out)
  reports.save_runs(found, out, names=_KEPT, thinned=True)

  lines = [""]
  lines += [
    f"Before training: {100 * value:.1f} % right, greedy." for value in start
  ]
  lines += ["", module.NOTE, "", *_budgets(names, finals)]
  lines += ["", *_training(module, main, curves)]
  lines += ["", *_bought(module, names, curves)]
  differences = {
    f"{a} - {b}": {
      title: statistics.paired_difference(
        finals[main[a]].by_seed(metric), finals[main[b]].by_seed(metric)
      )
      for title, metric in metrics.items()
    }
    for a, b in module.COMPARISONS
    if a in main and b in main and len(finals[main[a]].seeds) > 1
  }
  if differences:
    lines += ["", f"### Paired differences at {100 * at:g} %", ""]
    lines += [tables.differences_to_markdown(differences)]
  reports.append(lines, found, out, command=command)
  _draw(module, names, main, finals, curves, out, scale, plots)


def _draw(module, names, main, finals, curves, out, scale, plots) -> None:
  title = f"{module.TITLE}, scale {scale}"
  swept = {
    row: {
      100 * fraction: list(finals[name].by_seed("sampled/right").values())
      for fraction, name in sorted(found.items())
    }
    for row, found in names.items()
    if None not in found and len(found) > 1
  }
  if swept:
    plots.sweep(
      swept,
      swept="labels, % of the prompts of a step",
      quantity="held-out right, sampled",
      title=title,
      path=out / "accuracy_by_budget.png",
    )
  panels = {
    heading: {row: curves[main[row]] for row in rows if row in main}
    for heading, rows in module.PANELS.items()
  }
  for metric, quantity, file in (
    ("audit/correct", "right answers in training", "curves.png"),
    ("audit/majority", "share of the majority", "majorities.png"),
  ):
    there = _with(panels, metric)
    if there:
      plots.metric_panels(
        there,
        {quantity: metric},
        quantity=quantity,
        title=title,
        window=module.WINDOW,
        path=out / file,
      )
  buyers = {
    f"at {100 * module.FRACTION:g} %": {
      row: curves[main[row]] for row in module.BUYERS if row in main
    }
  }
  for metric, quantity, file in (
    ("overlap/labelled", "share of the oracle's choice", "overlaps.png"),
    ("labels/wasted", "labels on right votes", "wasted.png"),
  ):
    there = _with(buyers, metric)
    if there:
      plots.metric_panels(
        there,
        {quantity: metric},
        quantity=quantity,
        title=title,
        window=module.WINDOW,
        path=out / file,
      )


def _with(panels, metric):
  """The panels, with the rows that logged a metric."""
  found = {
    heading: {
      row: curve for row, curve in rows.items() if metric in curve.values
    }
    for heading, rows in panels.items()
  }
  return {heading: rows for heading, rows in found.items() if rows}


def _budgets(names, finals) -> list[str]:
  """Accuracy by budget, of the rows that were run at several."""
  swept = {
    row: found
    for row, found in names.items()
    if None not in found and len(found) > 1
  }
  if not swept:
    return []
  fractions = sorted({f for found in swept.values() for f in found})

  def cell(name):
    if name is None:
      return "-"
    return reports.write_mean(
      list(finals[name].by_seed("sampled/right").values())
    )

  return [
    "### Held-out right, sampled, by budget",
    "",
    *reports.grid(
      [f"{100 * f:g} %" for f in fractions],
      {
        row: [cell(found.get(f)) for f in fractions]
        for row, found in swept.items()
      },
    ),
  ]


def _training(module, main, curves) -> list[str]:
  """What training did to the policy's own answers."""
  window = module.WINDOW
  shown = {
    "right": "audit/correct",
    "votes right": "audit/vote_right",
    "majority": "audit/majority",
  }
  rows = {}
  for row, name in main.items():
    values = curves[name].values
    cells = []
    for metric in shown.values():
      for part in (slice(None, window), slice(-window, None)):
        found = values.get(metric)
        cells.append("-" if found is None else f"{found[:, part].mean():.3f}")
    cells.append(f"{values['entropy'][:, -window:].mean():.3f}")
    rows[row] = cells
  head = [f"{title}, {end}" for title in shown for end in ("first", "last")]
  return [
    f"### Training, mean over seeds; first and last {window} steps",
    "",
    *reports.grid([*head, "entropy, last"], rows),
  ]


def _bought(module, names, curves) -> list[str]:
  """What the labels were spent on, and what choosing cost."""
  shown = {
    "oracle's choice": "overlap/labelled",
    "on right votes": "labels/wasted",
    "nobody right": "labels/hopeless",
    "gate precision": "gate/precision",
  }
  lines = []
  for row, found in names.items():
    for fraction, name in sorted(found.items(), key=lambda x: x[0] or 0):
      values = curves[name].values
      if fraction is None or "labels/bought" not in values:
        continue
      cells = [f"{100 * fraction:g} %"]
      for metric in ("labels/bought", "labels/prompts"):
        cells.append(f"{values[metric][:, -1].mean():.0f}")
      for metric in shown.values():
        cells.append(
          f"{values[metric].mean():.3f}" if metric in values else "-"
        )
      step = np.median(values["seconds/step"])
      parts = [
        np.median(values[f"seconds/{part}"])
        for part in _PARTS
        if f"seconds/{part}" in values
      ]
      cells.append(f"{100 * sum(parts) / step:.1f}")
      lines.append(f"| {row} | {' | '.join(cells)} |")
  if not lines:
    return []
  return [
    "### Labels, mean over the run and seeds",
    "",
    f"| row | budget | labels | prompts | {' | '.join(shown)} | "
    "choosing, % of a step |",
    "| --- |" + " ---: |" * (4 + len(shown)),
    *lines,
  ]


def _before(row: RowRuns) -> float:
  """Held-out accuracy of the policy before the first step."""
  from saw_jax.reporting import runs

  evals = runs.read_curves(row.directories, name="evals", seeds=row.seeds)
  return float(evals.values["right"][:, evals.steps == 0].mean())
