"""Sections of PaW's tables: kinds of task, seconds, and curves one by one."""

from collections.abc import Iterable

import numpy as np

from saw_jax.reporting.report import Found
from saw_jax.reporting.sections import comparisons, parts

_COMPILING = 5  # steps at the start whose times are not counted
_SECONDS = ("generate", "score", "choose", "lay out", "estimate", "update")
_SECONDS += ("probes", "step")
_KIND = "sampled/right_"  # how the success at a kind of task is called


def by_kind(found: Found) -> list[str]:
  """Success by kind of task, where there are kinds."""
  cells = {
    run: {
      name.removeprefix(_KIND): parts.mean(final.by_seed(name))
      for name in final.values
      if name.startswith(_KIND)
    }
    for run, final in found.finals.items()
  }
  kinds = sorted({kind for of in cells.values() for kind in of})
  heading = "Held-out success by kind, sampled"
  return parts.lay_out(heading, cells.items(), kinds) if kinds else []


def first_and_last(found: Found) -> list[str]:
  """The curves of each row at both ends, as means over seeds."""
  shown = {heading: metric for metric, heading in found.table.curves.items()}
  cells = {}
  for run, curves in found.curves.items():
    both = [parts.averages(curves, shown, at) for at in parts.ends(found)]
    cells[run] = {k: " → ".join(of[k] for of in both) for k in both[0]}
  window = found.table.window
  heading = f"First and last {window} steps of training, mean over seeds"
  return parts.lay_out(heading, cells.items(), shown)


def seconds(found: Found) -> list[str]:
  cells = {}
  for run, curves in found.curves.items():
    cells[run] = {}
    for part in _SECONDS:
      if f"seconds/{part}" in curves.values:
        # Timings are of the program, not of a seed; the first steps compile.
        values = curves.values[f"seconds/{part}"][0, _COMPILING:]
        cells[run][part] = f"{np.median(values):.3f}" if values.size else "-"
  return parts.lay_out(
    "Seconds of a step, median",
    cells.items(),
    [part for part in _SECONDS if any(part in of for of in cells.values())],
    outro="A step trains all seeds at once. Rows ran one after another on a "
    "shared machine: for ratios see `benchmarks/world_model_cost.py`.",
  )


def draw(found: Found) -> list[str]:
  curves, columns = found.table.curves, [*found.columns]
  for metric, label in curves.items():
    file = f"{_picture_name(metric, curves)}.png"
    parts.draw_main(found, file, label, metric)
  drawn = [column for column in found.table.drawn if column in columns]
  comparisons.draw_differences(found, drawn or columns[:1], "differences.png")
  return []


def _picture_name(metric: str, metrics: Iterable[str]) -> str:
  """The metric's last part, or all of it where two end alike."""
  last = metric.rpartition("/")[2]
  alike = [name for name in metrics if name.rpartition("/")[2] == last]
  return last if len(alike) == 1 else metric.replace("/", "_")
