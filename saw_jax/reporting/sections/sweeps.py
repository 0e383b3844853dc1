"""Sections of tables that sweep a value: what fell, and where it ended."""

from saw_jax.reporting import plots
from saw_jax.reporting.report import Found
from saw_jax.reporting.sections import parts

# A seed has collapsed if it ends below this share of its best mean reward;
# counts at two other shares stand beside that.
_COLLAPSED, _BESIDE = 0.5, (0.4, 0.6)
_LIKELIHOODS = {"S of positives": "nll/positive"}
_LIKELIHOODS |= {"S of negatives": "nll/negative"}


def rewards(found: Found) -> list[str]:
  """How many seeds collapsed in training, and where all of them ended."""
  table, (_, ending) = found.table, parts.ends(found)

  def collapsed(run: str) -> str:
    ends = found.best_and_last(run)
    count, *beside = (
      sum(last < share * best for best, last in ends)
      for share in (_COLLAPSED, *_BESIDE)
    )
    told = " to ".join(map(str, beside))
    return f"{count}/{len(ends)}" + f" ({told})" * (beside != [count] * 2)

  def last(run: str) -> str:
    curves = found.curves[run]
    rewards = curves.values["reward/total"][:, ending]
    return parts.mean(curves.by_seed(rewards.mean(-1)))

  intro = (
    f"A seed has collapsed if the mean reward of its last {table.window} steps "
    f"is below {100 * _COLLAPSED:g} % of the best such mean that it had; in "
    f"brackets, where others are counted, at {100 * _BESIDE[0]:g} and at "
    f"{100 * _BESIDE[1]:g} %. Both means are in runs.csv."
  )
  columns, ends = found.headings, f"Training reward, last {table.window} steps"
  fallen, ended = (found.by_value(told).items() for told in (collapsed, last))
  return [
    *("", table.note),
    *parts.lay_out("Seeds that collapsed", fallen, columns, intro=intro),
    *parts.lay_out(ends, ended, columns),
  ]


def at_the_end(found: Found) -> list[str]:
  """The diagnostics at the end of the runs at the greatest value."""
  value, (_, ending) = found.values[-1], parts.ends(found)
  shown = _LIKELIHOODS | {
    "entropy": "entropy",
    "length": "length",
    "zero-advantage share": "zero_advantage",
    "gradient norm": "gradient_norm",
    "skipped updates": "skipped",
  }
  cells = {}
  for row, of in found.rows.items():
    if value in of:
      curves = parts.likely(found.curves[of[value]])
      cells[row] = parts.averages(curves, shown, ending, digits=".3g")
  at = f"{found.heading(value)}, mean over seeds"
  heading = f"The last {found.table.window} steps at {at}"
  return parts.lay_out(heading, cells.items(), shown)


def draw(found: Found) -> list[str]:
  """Draws scores by value, and the curves of the rows in the first panel."""
  table = found.table
  ((heading, metric),) = found.columns.items()
  looks = {"swept": f"{table.swept}, optimizer steps", "quantity": heading}
  for kind, rows in table.panels.items():
    scores = {
      row: {v: found.scores(run, metric) for v, run in found.rows[row].items()}
      for row in rows
      if row in found.rows
    }
    if scores:
      picture = found.picture(f"final_by_{table.swept}_{kind}.png")
      plots.sweep(scores, **looks, **picture)
  first = next(iter(table.panels.values()))
  rows = {row: found.rows[row] for row in first if row in found.rows}
  panels = {
    found.heading(value): {
      row: of[value] for row, of in rows.items() if value in of
    }
    for value in found.values
  }
  parts.draw(found, "curves.png", {"training reward": "reward/total"}, panels)
  at, last = list(panels.items())[-1]
  by_row = {f"{row}, {at}": {row: run} for row, run in last.items()}
  looks = {"quantity": "mean token NLL", "log": True}
  parts.draw(found, "likelihoods.png", _LIKELIHOODS, by_row, **looks)
  return []
