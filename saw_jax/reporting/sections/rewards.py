"""Sections of SAW's tables: each reward at both ends, and when it arrives."""

import logging
import pathlib
from collections.abc import Iterable

import numpy as np

from saw_jax.reporting import plots, statistics, tables
from saw_jax.reporting.report import Found
from saw_jax.reporting.runs import Curves
from saw_jax.reporting.sections import comparisons, parts
from saw_jax.reporting.statistics import Summary
from saw_jax.run.metrics import from_json

LOG = logging.getLogger(__name__)
_COMPILING = 3  # steps at the start whose times are not counted
_NO_TIMES = np.zeros((1, _COMPILING + 1))


def before_and_after(found: Found) -> list[str]:
  """Greedy scores at both ends, over seeds, and over examples if evaluated."""
  rows = []

  def add(label: str, reward: str, *ends: Summary) -> None:
    rows.append([label, reward, *map(_interval, ends)])

  for run, (paths, seeds, *_) in found.directories.items():
    evals = found.evals[run]
    for name in found.table.components if evals.steps[0] == 0 else ():
      ends = map(evals.by_seed, evals.values[name].T[[0, -1]])
      add(run, name, *map(statistics.summarise, ends))
    last = found.finals[run].step
    scored = (pair for path in paths for pair in _scored(path, last))
    for before, after in scored:
      if not seeds or before["seed"] in seeds:
        label = f"{run}, seed {before['seed']}, over examples"
        for name in found.table.components:
          ends = (entry["greedy"][name] for entry in (before, after))
          add(label, name, *(Summary(**end) for end in ends))
  return parts.headed(
    f"Before and after training, greedy, held out (here, {found.label})",
    tables.grid(["row", "reward", "before", "after"], rows, words=2),
    "95 % t intervals over seeds, or over examples where it says so.",
  )


def _scored(path: pathlib.Path, last: int) -> Iterable[tuple[dict, dict]]:
  """What `saw evaluate` found of a run's seeds at the start and at the end."""
  files = [path / name for name in ("evaluation_start.json", "evaluation.json")]
  if not all(file.exists() for file in files):
    return []
  start, end = (from_json(file.read_text()) for file in files)
  if end["step"] != last:  # of another checkpoint
    told = "%s is of step %d, not %d: the table has no scores over examples"
    LOG.warning(told, files[1], end["step"], last)
    return []
  return zip(start["seeds"], end["seeds"], strict=True)


def _interval(summary: Summary) -> str:
  text = f"{summary.mean:.3f}"
  if summary.count > 1:
    text += f" [{summary.low:.3f}, {summary.high:.3f}]"
  return f"{text} ({summary.size})"


def steps_to_thresholds(found: Found) -> list[str]:
  """How soon rewards arrive, and what a step takes."""
  table, cells = found.table, {}
  for run, curves in found.curves.items():
    cells[run] = {
      f"{metric} ≥ {threshold:g}": statistics.median_steps(
        comparisons.steps_to(table, curves, metric),
        limit=curves.steps[-1] + 1,
      )
      for metric, threshold in table.thresholds.items()
    }
    names = "seconds a step", "estimate, share of step"
    cells[run] |= dict(zip(names, _times(curves), strict=True))
  seeds = next(iter(found.finals.values())).seeds
  return parts.lay_out(
    f"Steps until a reward's mean over {table.window} steps passes a "
    f"threshold{parts.stand_in(found)}",
    cells.items(),
    next(iter(cells.values())),
    intro="Median over seeds (seeds that got there).",
    outro=f"A step trains {len(seeds)} seeds at once. The estimate is weights "
    "and advantages together. Rows ran one after another on a shared machine: "
    "compare shares, not seconds.",
  )


def _times(curves: Curves) -> tuple[str, str]:
  """What a step takes, and the share of its estimate."""
  if len(curves.steps) <= _COMPILING:
    return "-", "-"
  # Timings are of the program, not of a seed.
  step, estimate, weigh = (
    np.median(curves.values.get(f"seconds/{key}", _NO_TIMES)[0, _COMPILING:])
    for key in ("step", "estimate", "weigh")
  )
  estimate += weigh  # by gradients, with the passes that these cost
  return f"{step:.2f}", f"{100 * estimate / step:.2f} %"


def draw(found: Found) -> list[str]:
  names, looks = found.table.components, found.picture("curves.png")
  plots.reward_curves(found.curves, names, window=found.table.window, **looks)
  for name in names:
    columns, file = [f"{name}, greedy"], f"difference_{name}.png"
    comparisons.draw_differences(found, columns, file)
  return []
