"""Writes down a table of runs that bought labels, at one budget or several.

`reproduce.py` calls it for a config whose REPORT names it.
"""

import json
import pathlib
from collections.abc import Mapping

import numpy as np

_KEPT = (
  "reward/total",
  "audit/correct",
  "audit/vote_right",
  "audit/majority",
  "overlap/labelled",
  "labels/wasted",
  "entropy",
)
_EVERY = 5  # steps that a line of curves.csv averages: it stays small
_PARTS = ("choose", "probes")  # what CARE adds to a step
_SCORES = {
  "right, greedy": "greedy/right",
  "right, sampled": "sampled/right",
  "maj@8": "sampled/maj@8",
}


def write(
  module, directories: Mapping, out: pathlib.Path, *, scale: str, command: str
) -> None:
  """Writes table.md, table.csv, runs.csv, curves.csv and pictures.

  Args:
    module: the config, with what its table shows.
    directories: run directory by name of the run.
    out: where to.
    scale: of the runs.
    command: that makes it again.
  """
  from saw_jax.reporting import plots, runs, statistics, tables
  from saw_jax.training import run_directory

  out.mkdir(parents=True, exist_ok=True)
  finals = {
    name: runs.read_finals([path]) for name, path in directories.items()
  }
  curves = {
    name: runs.read_curves([path]) for name, path in directories.items()
  }
  documents = [run_directory.read_run(path) for path in directories.values()]
  commits = sorted({document["commit"] for document in documents})

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
  own = {
    row: {
      title: tables.OwnCell.from_seeds(finals[name].by_seed(metric))
      for title, metric in _SCORES.items()
    }
    for row, name in main.items()
  }
  start = [_before(directories[name]) for name in main.values()][:1]
  table = tables.Table(
    f"{module.TITLE}: held-out puzzles, labels for {100 * at:g} % of the "
    "prompts of a step",
    scale,
    own,
    {},
  )
  tables.write(table, out)
  runs.write_results(out / "runs.csv", finals, commit="/".join(commits))
  runs.write_curves(
    out / "curves.csv",
    {name: _thin(found) for name, found in curves.items()},
    names=_KEPT,
  )

  lines = [""]
  lines += [
    f"Before training: {100 * value:.1f} % right, greedy." for value in start
  ]
  lines += ["", module.NOTE, "", *_budgets(module, names, finals, statistics)]
  lines += ["", *_training(module, main, curves)]
  lines += ["", *_bought(module, names, curves)]
  differences = {
    f"{a} - {b}": {
      title: statistics.paired_difference(
        finals[main[a]].by_seed(metric), finals[main[b]].by_seed(metric)
      )
      for title, metric in _SCORES.items()
    }
    for a, b in module.COMPARISONS
    if a in main and b in main and len(finals[main[a]].seeds) > 1
  }
  if differences:
    lines += ["", f"### Paired differences at {100 * at:g} %", ""]
    lines += [tables.differences_to_markdown(differences)]
  seeds = next(iter(finals.values())).seeds
  steps = next(iter(finals.values())).step
  lines += [
    f"{steps} steps a run. Made by `python {command}` at commit "
    f"{', '.join(commits)}; seeds {', '.join(map(str, seeds))}; "
    f"{documents[0]['machine']}.",
    "",
  ]
  with (out / "table.md").open("a", encoding="utf-8") as file:
    file.write("\n".join(lines))
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
  bought = {
    heading: {
      row: curves[main[row]]
      for row in module.BUYERS
      if row in main and metric in curves[main[row]].values
    }
    for heading, metric in (("choice", "overlap/labelled"),)
  }
  for metric, quantity, file in (
    ("overlap/labelled", "share of the oracle's choice", "overlaps.png"),
    ("labels/wasted", "labels on right votes", "wasted.png"),
  ):
    if bought["choice"]:
      plots.metric_panels(
        {f"at {100 * module.FRACTION:g} %": bought["choice"]},
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


def _budgets(module, names, finals, statistics) -> list[str]:
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
    found = statistics.summarise(
      list(finals[name].by_seed("sampled/right").values())
    )
    return f"{found.mean:.3f} ± {(found.high - found.low) / 2:.3f}"

  return [
    "### Held-out right, sampled, by budget",
    "",
    "| row | " + " | ".join(f"{100 * f:g} %" for f in fractions) + " |",
    "| --- |" + " ---: |" * len(fractions),
    *(
      f"| {row} | " + " | ".join(cell(found.get(f)) for f in fractions) + " |"
      for row, found in swept.items()
    ),
  ]


def _training(module, main, curves) -> list[str]:
  """What training did to the policy's own answers."""
  window = module.WINDOW
  lines = [
    f"### Training, mean over seeds; first and last {window} steps",
    "",
    "| row | right, first | right, last | votes right, first | votes right, "
    "last | majority, first | majority, last | entropy, last |",
    "| --- |" + " ---: |" * 7,
  ]
  for row, name in main.items():
    values = curves[name].values
    cells = []
    for metric in ("audit/correct", "audit/vote_right", "audit/majority"):
      for part in (slice(None, window), slice(-window, None)):
        found = values.get(metric)
        cells.append("-" if found is None else f"{found[:, part].mean():.3f}")
    cells.append(f"{values['entropy'][:, -window:].mean():.3f}")
    lines.append(f"| {row} | {' | '.join(cells)} |")
  return lines


def _bought(module, names, curves) -> list[str]:
  """What the labels were spent on, and what choosing cost."""
  shown = {
    "oracle's choice": "overlap/labelled",
    "on right votes": "labels/wasted",
    "nobody right": "labels/hopeless",
    "gate precision": "gate/precision",
  }
  lines = [
    "### Labels, mean over the run and seeds",
    "",
    f"| row | budget | labels | prompts | {' | '.join(shown)} | "
    "choosing, % of a step |",
    "| --- |" + " ---: |" * (4 + len(shown)),
  ]
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
  return lines


def _before(directory: pathlib.Path) -> float:
  """Held-out accuracy of the policy before the first step."""
  scores = []
  for line in (directory / "evals.jsonl").read_text().splitlines():
    values = json.loads(line)
    if values["step"] == 0:
      scores.append(values["right"])
  return float(np.mean(scores))


def _thin(curves):
  """Averages blocks of steps; a line is named by its first step."""
  size = len(curves.steps) // _EVERY * _EVERY
  return curves._replace(
    steps=curves.steps[:size:_EVERY],
    values={
      name: values[:, :size].reshape(len(values), -1, _EVERY).mean(-1)
      for name, values in curves.values.items()
    },
  )
