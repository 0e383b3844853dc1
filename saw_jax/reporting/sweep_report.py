"""Writes down a table whose rows were run at several values of one thing.

`reproduce.py` calls it for a config that says what it swept.
"""

import pathlib
from collections.abc import Mapping

import numpy as np

from saw_jax.reporting import reports

_KEPT = ("reward/total", "nll/positive", "nll/negative", "entropy", "length")


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
  heading, metric = module.METRIC

  # [row][value] -> name of the run
  names: dict[str, dict[float, str]] = {}
  for name in directories:
    row, value, _ = module.RUNS[name]
    names.setdefault(row, {})[value] = name
  order = [row for row in module.ROWS if row in names]
  names = {row: dict(sorted(names[row].items())) for row in order}
  values = sorted({value for cells in names.values() for value in cells})

  published = reports.read_published(module, names, scale)
  own = {
    row: {
      f"{module.SWEPT} {value:g}": tables.OwnCell.from_seeds(
        finals[name].by_seed(metric)
      )
      for value, name in cells.items()
    }
    for row, cells in names.items()
  }
  table = tables.Table(
    f"{module.TITLE}: {heading} by {module.SWEPT}", scale, own, published
  )
  tables.write(table, out)
  reports.save_runs(found, out, names=_KEPT, thinned=True)

  lines = [
    "",
    module.NOTE,
    "",
    *_collapse(module, names, curves, values, statistics),
  ]
  lines += ["", *_means(module, names, curves, values)]
  lines += ["", *_ends(module, names, curves, max(values))]
  differences = _differences(module, names, finals, curves, metric, statistics)
  if differences:
    lines += ["", "### Paired differences", ""]
    lines += [tables.differences_to_markdown(differences)]
  reports.append(lines, found, out, command=command)

  title = f"{module.TITLE}, scale {scale}"
  main = [row for row in module.PAPER_ROWS if row in names]
  scores = {
    row: {
      value: list(finals[name].by_seed(metric).values())
      for value, name in names[row].items()
    }
    for row in order
  }
  for kind, rows in (
    ("paper", main),
    ("others", [row for row in order if row not in main]),
  ):
    if rows:
      plots.sweep(
        {row: scores[row] for row in rows},
        swept=f"{module.SWEPT}, optimizer steps",
        quantity=heading,
        title=title,
        path=out / f"final_by_{module.SWEPT}_{kind}.png",
      )
  if main:
    plots.metric_panels(
      {
        f"{module.SWEPT} {value:g}": {
          row: curves[names[row][value]] for row in main if value in names[row]
        }
        for value in values
      },
      {"reward": "reward/total"},
      quantity="training reward",
      title=title,
      window=module.WINDOW,
      path=out / "curves.png",
    )
    latest = max(values)
    plots.metric_panels(
      {
        f"{row}, {module.SWEPT} {latest:g}": {row: curves[names[row][latest]]}
        for row in main
        if latest in names[row]
      },
      {"S of positives": "nll/positive", "S of negatives": "nll/negative"},
      quantity="mean token NLL",
      title=title,
      window=module.WINDOW,
      log=True,
      path=out / "likelihoods.png",
    )


def _collapse(module, names, curves, values, statistics) -> list[str]:
  def cell(name: str | None) -> str:
    if name is None:
      return "-"
    found = [
      statistics.has_collapsed(
        rewards, window=module.WINDOW, share=module.COLLAPSE
      )
      for rewards in curves[name].values["reward/total"]
    ]
    return f"{sum(found)}/{len(found)}"

  return [
    "### Seeds that collapsed",
    "",
    f"A seed has collapsed if the mean reward of its last {module.WINDOW} "
    f"steps is below {100 * module.COLLAPSE:g} % of the best such mean that it "
    "had.",
    "",
    *_grid(module, names, values, cell),
  ]


def _means(module, names, curves, values) -> list[str]:
  def cell(name: str | None) -> str:
    if name is None:
      return "-"
    rewards = curves[name].values["reward/total"]
    return reports.write_mean(rewards[:, -module.WINDOW :].mean(-1))

  return [
    f"### Training reward, last {module.WINDOW} steps",
    "",
    *_grid(module, names, values, cell),
  ]


def _grid(module, names, values, cell) -> list[str]:
  return reports.grid(
    [f"{module.SWEPT} {value:g}" for value in values],
    {
      row: [cell(found.get(value)) for value in values]
      for row, found in names.items()
    },
  )


def _ends(module, names, curves, value) -> list[str]:
  """What the diagnostics say at the end of the runs at one value."""
  shown = {
    "S of positives": "nll/positive",
    "S of negatives": "nll/negative",
    "entropy": "entropy",
    "length": "length",
    "zero-advantage share": "zero_advantage",
    "gradient norm": "gradient_norm",
    "skipped updates": "skipped",
  }
  rows = {}
  for row, found in names.items():
    if value not in found:
      continue
    metrics = curves[found[value]].values
    cells = []
    for metric in shown.values():
      last = metrics.get(metric)
      number = np.nan if last is None else np.nanmean(last[:, -module.WINDOW :])
      cells.append("-" if np.isnan(number) else f"{number:.3g}")
    rows[row] = cells
  return [
    f"### The last {module.WINDOW} steps at {module.SWEPT} {value:g}, "
    "mean over seeds",
    "",
    *reports.grid(list(shown), rows),
  ]


def _differences(module, names, finals, curves, metric, statistics) -> dict:
  differences = {}
  for treated, control in module.COMPARISONS:
    both = set(names.get(treated, ())) & set(names.get(control, ()))
    for value in sorted(both):
      a, b = names[treated][value], names[control][value]
      if len(finals[a].seeds) < 2:
        continue
      label = f"{treated} - {control}, {module.SWEPT} {value:g}"
      rewards = [
        reports.by_seed(curves[name], "reward/total") for name in (a, b)
      ]
      differences[label] = {
        module.METRIC[0]: statistics.paired_difference(
          finals[a].by_seed(metric), finals[b].by_seed(metric)
        ),
        "reward, mean over training": statistics.paired_difference(*rewards),
      }
  return differences
