"""What sections are made of: tables under a heading, means, and pictures."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from saw_jax.reporting import plots, runs, statistics, tables
from saw_jax.reporting.report import Found
from saw_jax.reporting.runs import Curves

# What a row is called, and its cells by column.
Rows = Iterable[tuple[str, Mapping[str, str]]]


def headed(
  heading: str, table: Sequence[str], intro: str = "", outro: str = ""
) -> list[str]:
  """A table with its heading, and a sentence before or after it."""
  before = [intro, ""] if intro else []
  after = ["", outro] if outro else []
  return ["", f"### {heading}", "", *before, *table, *after]


def lay_out(
  heading: str, rows: Rows, columns: Iterable[str], **said: str
) -> list[str]:
  """A section that is one table; a missing cell is a dash."""
  columns = [*columns]
  lines = [[row, *(of.get(c, "-") for c in columns)] for row, of in rows]
  return headed(heading, tables.grid(["row", *columns], lines), **said)


def averages(
  curves: Curves,
  shown: Mapping[str, str],  # metrics by title
  steps: slice = slice(None),
  form: str = "{}",  # of a title as a column
  digits: str = ".3f",
) -> dict[str, str]:
  """Means over seeds and steps, by column, of the metrics that were logged."""
  found = {}
  for title, metric in shown.items():
    if metric in curves.values:
      values = curves.values[metric][:, steps]
      empty = np.isnan(values).all()
      text = "-" if empty else f"{np.nanmean(values):{digits}}"
      found[form.format(title)] = text
  return found


def mean(values: statistics.Sample) -> str:
  return tables.mean_and_width(statistics.summarise(values))


def ends(found: Found) -> tuple[slice, slice]:
  """The first window of steps, and the last."""
  window = found.table.window
  return slice(None, window), slice(-window, None)


def stand_in(found: Found) -> str:
  told = found.table.stand_ins.get(found.scale)
  return f" ({told})" if told else ""


def keep(
  found: Found, names: Sequence[str], every: int = 1, evals: Sequence[str] = ()
) -> list[str]:
  """Writes evals.csv, and curves.csv, whose lines average `every` steps."""
  curves = {run: runs.averaged(c, every) for run, c in found.curves.items()}
  kinds = ("reward", "weight", "cv", "constant_groups")
  rewards = [f"{k}/{name}" for k in kinds for name in found.table.components]
  kept = tuple(dict.fromkeys((*rewards, *names, *found.table.curves)))
  runs.write_curves(found.folder / "curves.csv", curves, names=kept)
  if evals:
    runs.write_curves(found.folder / "evals.csv", found.evals, names=evals)
  return []


def likely(curves: Curves) -> Curves:
  """The same curves, with likelihoods of no response as NaN and not as 0."""
  values = {
    name: np.where(array == 0, np.nan, array) if name[:4] == "nll/" else array
    for name, array in curves.values.items()
  }
  return curves._replace(values=values)


def draw(
  found: Found,
  file: str,
  metrics: Mapping[str, str],
  panels: Mapping[str, Mapping[str, str]],
  **looks,
) -> None:
  """Draws metrics over steps: runs by panel and row, if they logged them."""
  wanted, chosen = set(metrics.values()), {}
  for heading, of in panels.items():
    has = {
      r: run for r, run in of.items() if wanted <= {*found.curves[run].values}
    }
    # Where some rows were not run, a panel may show no more than another does.
    if not any(has.items() <= one.items() for one in ({}, *chosen.values())):
      more = {h: one for h, one in chosen.items() if one.items() - has.items()}
      chosen = {**more, heading: has}
  if chosen:
    shown = {
      heading: {row: likely(found.curves[run]) for row, run in of.items()}
      for heading, of in chosen.items()
    }
    looks = {"quantity": next(iter(metrics)), **looks, **found.picture(file)}
    plots.metric_panels(shown, metrics, window=found.table.window, **looks)


def draw_main(
  found: Found,
  file: str,
  label: str,
  metric: str,
  panels: Mapping[str, Iterable[str]] | None = None,
) -> None:
  """Draws a metric of the main table's runs, in the table's panels."""
  chosen = {
    heading: {row: found.main[row] for row in rows if row in found.main}
    for heading, rows in (panels or found.table.panels).items()
  }
  draw(found, file, {label: metric}, chosen)
