"""Sections of CARE's tables: what labels were spent on, and what they did."""

import numpy as np

from saw_jax.reporting import plots
from saw_jax.reporting.report import Found
from saw_jax.reporting.runs import Curves
from saw_jax.reporting.sections import parts


def before(found: Found) -> list[str]:
  evals = found.evals[next(iter(found.main.values()))]
  right, told = evals.values["right"][:, evals.steps == 0], []
  if right.size:
    share = 100 * float(right.mean())
    told = [f"Before training: {share:.1f} % right, greedy.", ""]
  return ["", *told, found.table.note]


def by_budget(found: Found) -> list[str]:
  """Accuracy of the rows that were run at several budgets."""
  scores = {
    row: {100 * v: found.scores(run, "sampled/right") for v, run in of.items()}
    for row, of in found.rows.items()
    if None not in of and len(of) > 1
  }
  if not scores:
    return [""]
  plots.sweep(
    scores,
    swept="labels, % of the prompts of a step",
    quantity="held-out right, sampled",
    **found.picture("accuracy_by_budget.png"),
  )
  cells = {
    row: {f"{budget:g} %": parts.mean(values) for budget, values in of.items()}
    for row, of in scores.items()
  }
  budgets = sorted({budget for of in scores.values() for budget in of})
  columns = [f"{budget:g} %" for budget in budgets]
  return parts.lay_out(
    "Held-out right, sampled, by budget", cells.items(), columns
  )


def training(found: Found) -> list[str]:
  """What training did to the policy's own answers."""
  right, same = "right answers in training", "share of the majority"
  parts.draw_main(found, "curves.png", right, "audit/correct")
  parts.draw_main(found, "majorities.png", same, "audit/majority")
  shown = {
    "right": "audit/correct",
    "votes right": "audit/vote_right",
    "majority": "audit/majority",
    "entropy": "entropy",
  }
  first, last = parts.ends(found)
  cells = {
    row: parts.averages(found.curves[run], shown, first, "{}, first")
    | parts.averages(found.curves[run], shown, last, "{}, last")
    for row, run in found.main.items()
  }
  columns = [f"{title}, {end}" for title in shown for end in ("first", "last")]
  columns.remove("entropy, first")
  window = found.table.window
  heading = f"Training, mean over seeds; first and last {window} steps"
  return parts.lay_out(heading, cells.items(), columns)


def bought(found: Found) -> list[str]:
  """What the labels were spent on, and what choosing cost."""
  counts = {"labels": "labels/bought", "prompts": "labels/prompts"}
  shown = {
    "on right votes": "labels/wasted",
    "nobody right": "labels/hopeless",
    "gate precision": "gate/precision",
  }
  rows = []
  for row, of in found.rows.items():
    for budget, run in of.items():
      curves = found.curves[run]
      if budget is None or "labels/bought" not in curves.values:
        continue
      choose, probes, step = (
        np.median(curves.values.get(f"seconds/{part}", 0))
        for part in ("choose", "probes", "step")
      )
      cells = parts.averages(curves, counts, slice(-1, None), digits=".0f")
      cells |= parts.averages(curves, shown)
      cells["recall"] = _recall(curves)
      cells["choosing, % of a step"] = f"{100 * (choose + probes) / step:.1f}"
      rows.append((row, {"budget": f"{100 * budget:g} %", **cells}))
  columns = ["budget", *counts, "recall", *shown, "choosing, % of a step"]
  heading = "Labels, mean over the run and seeds"
  told = "Recall: of the prompts whose label would have changed something, in "
  told += "all steps, the share that was bought."
  return parts.lay_out(heading, rows, columns, intro=told) if rows else [""]


def _recall(curves: Curves) -> str:
  """The share of the prompts with a gap that the labels went to."""
  names = ("labelled", "wasted", "hopeless")
  found = [curves.values.get(f"labels/{name}") for name in names]
  found.append(curves.values.get("audit/with_gap"))
  if any(values is None for values in found):
    return "-"
  # A label changes nothing if the vote is right, or if no response is.
  share, wasted, hopeless, with_gap = found
  hits = np.nansum(share * (1 - wasted - hopeless))
  return f"{hits / max(np.nansum(with_gap), 1e-9):.3f}"


def draw_choices(found: Found, buyers: tuple[str, ...]) -> list[str]:
  """Draws what the labels of some rows were spent on."""
  panels = {f"at {100 * found.table.at:g} %": buyers}
  wasted, hopeless = "labels on right votes", "labels where nobody is right"
  parts.draw_main(found, "wasted.png", wasted, "labels/wasted", panels)
  parts.draw_main(found, "hopeless.png", hopeless, "labels/hopeless", panels)
  return []
