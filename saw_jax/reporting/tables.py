"""Tables of rows by metrics, ours beside the paper's, as Markdown and CSV."""

import csv
import dataclasses
import io
import math
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

from saw_jax.reporting import statistics
from saw_jax.reporting.papers import PublishedCell
from saw_jax.reporting.runs import Finals

MISSING = "–"

PUBLISHED = "(published)"  # how the heading of a published column ends


@dataclasses.dataclass(frozen=True)
class OwnCell:
  """One number that was measured here, over seeds."""

  summary: statistics.Summary
  confidence: float = 0.95  # of the summary's interval

  @classmethod
  def from_seeds(
    cls, values: Mapping[int, float], *, confidence: float = 0.95
  ) -> "OwnCell":
    """Summarises one value per seed.

    Args:
      values: by seed.
      confidence: of the interval.

    Returns:
      The cell.
    """
    sample = [values[seed] for seed in sorted(values)]
    return cls(statistics.summarise(sample, confidence=confidence), confidence)


@dataclasses.dataclass(frozen=True)
class Table:
  """Own cells of one scale, and published cells in columns of their own."""

  title: str
  scale: str  # of every own cell: a table never mixes scales
  own: Mapping[str, Mapping[str, OwnCell]]  # row -> metric -> cell
  published: Mapping[str, Mapping[str, PublishedCell]] = dataclasses.field(
    default_factory=dict
  )  # row -> metric -> cell

  def __post_init__(self):
    """Refuses a cell on the wrong side."""
    sides = ((self.own, OwnCell), (self.published, PublishedCell))
    for rows, kind in sides:
      for row, cells in rows.items():
        for metric, cell in cells.items():
          if not isinstance(cell, kind):
            raise TypeError(
              f"row {row!r}, {metric!r}: expected {kind.__name__}, "
              f"got {type(cell).__name__}"
            )

  @property
  def rows(self) -> list[str]:
    """The rows, ours first, then those that only the paper has."""
    return list(dict.fromkeys([*self.own, *self.published]))


def own_cells(
  rows: Mapping[str, Finals],
  metrics: Mapping[str, str],
  *,
  confidence: float = 0.95,
) -> dict[str, dict[str, OwnCell]]:
  """Summarises what runs have reached.

  Args:
    rows: scores by row.
    metrics: name in the scores, as "greedy/total", by heading of the column.
    confidence: of the intervals.

  Returns:
    Cells by row and heading, as `Table.own`.
  """
  return {
    row: {
      heading: OwnCell.from_seeds(finals.by_seed(name), confidence=confidence)
      for heading, name in metrics.items()
    }
    for row, finals in rows.items()
  }


def to_markdown(table: Table, *, digits: int = 3) -> str:
  """Writes a table for people.

  An own cell is `mean ± half-width (n)`; with one seed the width is unknown and
  is left out. Published numbers stand to the right in columns that say so, in
  the paper's unit, with what has to be known about them below.

  Args:
    table: to write.
    digits: after the point, of own cells.

  Returns:
    Markdown, ending in a line break.
  """
  own_metrics = _metrics(table.own)
  published_metrics = _metrics(table.published)
  level = _level(
    cell.confidence for cells in table.own.values() for cell in cells.values()
  )
  notes: dict[str, int] = {}
  lines = [f"### {table.title}", ""]
  lines += _markdown_table(
    [
      "row",
      *(f"{metric} (here, {table.scale})" for metric in own_metrics),
      *(f"{metric} {PUBLISHED}" for metric in published_metrics),
    ],
    [
      [
        row,
        *(
          _own_text(table.own.get(row, {}).get(metric), digits)
          for metric in own_metrics
        ),
        *(
          _published_text(table.published.get(row, {}).get(metric), notes)
          for metric in published_metrics
        ),
      ]
      for row in table.rows
    ],
  )
  lines += [
    "",
    f"Here: scale `{table.scale}`; mean ± half-width of the {level} t interval "
    "over seeds (number of seeds).",
  ]
  if published_metrics:
    lines += [
      "",
      "Published: printed by the papers for their models, data and scale; not "
      "measured here, and not comparable with the columns to the left.",
      *(f"[{number}] {note}." for note, number in notes.items()),
    ]
  return "\n".join(lines) + "\n"


def to_csv(table: Table) -> str:
  """Writes a table for programs, one line per cell.

  Args:
    table: to write.

  Returns:
    CSV with a header. `origin` is "here" or "published", and a line has only
    the columns of its origin filled.
  """
  file = io.StringIO()
  writer = csv.writer(file, lineterminator="\n")
  writer.writerow(
    ["row", "metric", "origin", "scale", "mean", "std", "low", "high", "n"]
    + ["published_value", "published_std", "model", "source", "note"]
  )
  for row, cells in table.own.items():
    for metric, cell in cells.items():
      numbers = [_csv_number(value) for value in cell.summary[:4]]
      writer.writerow(
        [row, metric, "here", table.scale, *numbers, cell.summary.count]
        + [""] * 5
      )
  for row, cells in table.published.items():
    for metric, cell in cells.items():
      writer.writerow(
        [row, metric, "published", *[""] * 6]
        + [_csv_number(cell.value), _csv_number(cell.std)]
        + [cell.model, cell.source, cell.note]
      )
  return file.getvalue()


def differences_to_markdown(
  differences: Mapping[str, Mapping[str, statistics.PairedDifference]],
  *,
  digits: int = 3,
) -> str:
  """Writes paired differences.

  Args:
    differences: by comparison, as "gdpo_saw - gdpo", and metric.
    digits: after the point.

  Returns:
    Markdown, ending in a line break.
  """
  found = [
    difference
    for cells in differences.values()
    for difference in cells.values()
  ]
  level = _level(difference.confidence for difference in found)
  lines = _markdown_table(
    ["comparison", "metric", "mean difference"]
    + [f"{level}, t", f"{level}, bootstrap", "seeds"],
    [
      [
        comparison,
        metric,
        f"{difference.mean:+.{digits}f}",
        _interval_text(difference.t, digits),
        _interval_text(difference.bootstrap, digits),
        str(difference.count),
      ]
      for comparison, cells in differences.items()
      for metric, difference in cells.items()
    ],
  )
  return "\n".join(lines) + "\n"


def write(
  table: Table, directory: str | os.PathLike, *, name: str = "table"
) -> None:
  """Writes `<name>.md` and `<name>.csv`.

  Args:
    table: to write.
    directory: made if absent.
    name: stem of both files.
  """
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  for suffix, text in ((".md", to_markdown(table)), (".csv", to_csv(table))):
    (directory / f"{name}{suffix}").write_text(text, encoding="utf-8")


def _metrics(rows: Mapping[str, Mapping[str, object]]) -> list[str]:
  return list(
    dict.fromkeys(metric for cells in rows.values() for metric in cells)
  )


def _own_text(cell: OwnCell | None, digits: int) -> str:
  if cell is None:
    return MISSING
  summary = cell.summary
  if math.isnan(summary.half_width):
    return f"{summary.mean:.{digits}f} ({summary.count})"
  return (
    f"{summary.mean:.{digits}f} ± {summary.half_width:.{digits}f} "
    f"({summary.count})"
  )


def _published_text(cell: PublishedCell | None, notes: dict[str, int]) -> str:
  """A cell and the numbers of its notes, which are collected in `notes`."""
  if cell is None:
    return MISSING
  text = MISSING if cell.value is None else f"{cell.value:g}"
  if cell.std is not None:
    text += f" (std {cell.std:g})"
  said = [f"{cell.paper}, arXiv:{cell.arxiv}, {cell.table}, {cell.model}"]
  if cell.source == "secondary":
    said[0] += "; taken from a secondary source"
  if cell.note:
    said.append(cell.note)
  numbers = [str(notes.setdefault(note, len(notes) + 1)) for note in said]
  return f"{text} [{', '.join(numbers)}]"


def _level(confidences: Iterable[float]) -> str:
  levels = sorted(set(confidences))
  if len(levels) != 1:
    raise ValueError(f"intervals of one confidence are needed, got {levels}")
  return f"{100 * levels[0]:g} %"


def _interval_text(interval: statistics.Interval, digits: int) -> str:
  if math.isnan(interval.low):
    return MISSING
  return f"[{interval.low:+.{digits}f}, {interval.high:+.{digits}f}]"


def _csv_number(value: float | None) -> str:
  return "" if value is None or math.isnan(value) else repr(float(value))


def _markdown_table(
  header: Sequence[str], rows: Sequence[Sequence[str]]
) -> list[str]:
  def line(cells):
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

  rule = ["---", *["---:"] * (len(header) - 1)]
  return [line(header), line(rule), *(line(row) for row in rows)]
