"""Sections of SAW's tables: how soon each reward arrives, and their curves."""

import numpy as np

from saw_jax.reporting import plots, statistics
from saw_jax.reporting.report import Found
from saw_jax.reporting.sections import comparisons, parts


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
    # The first steps compile. Timings are of the program, not of a seed.
    step, estimate, weigh = (
      np.median(curves.values.get(f"seconds/{key}", np.zeros((1, 4)))[0, 3:])
      for key in ("step", "estimate", "weigh")
    )
    estimate += weigh  # by gradients, with the passes that these cost
    cells[run]["seconds a step"] = f"{step:.2f}"
    share = f"{100 * estimate / step:.2f} %"
    cells[run]["estimate, share of step"] = share
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


def draw(found: Found) -> list[str]:
  names, looks = found.table.components, found.picture("curves.png")
  plots.reward_curves(found.curves, names, window=found.table.window, **looks)
  for name in names:
    columns, file = [f"{name}, greedy"], f"difference_{name}.png"
    comparisons.draw_differences(found, columns, file)
  return []
