"""Tables as Markdown and CSV: our cells, and the papers' in other columns.

What was measured here is a `statistics.Summary`, what a paper prints is a
`PublishedCell` from `published/`, and nothing takes one for the other.
"""

import functools
import itertools
import json
import math
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from saw_jax.reporting import statistics
from saw_jax.reporting.statistics import PairedDifference, Summary

MISSING = "–"
PUBLISHED = "(published)"  # how the heading of a published column ends
_LEVEL = f"{100 * statistics.CONFIDENCE:g} %"

_FOLDER = pathlib.Path(__file__).parent / "published"


class PublishedCell(NamedTuple):
  """One number of a paper's table. It was not measured here."""

  paper: str
  arxiv: str
  table: str
  model: str
  method: str
  benchmark: str
  metric: str
  value: float | None  # None: printed as text, or not readable; see `note`
  source: str  # "primary": from the paper; "secondary": from somebody's notes
  std: float | None = None
  note: str = ""


def available() -> list[str]:
  """The papers that have a file."""
  return sorted(path.stem for path in _FOLDER.glob("*.json"))


@functools.cache
def read(paper: str) -> tuple[PublishedCell, ...]:
  """All numbers of a paper, in the order of its file."""
  if paper not in available():
    raise ValueError(f"no published numbers of {paper!r}; of {available()}")
  text = (_FOLDER / f"{paper}.json").read_text(encoding="utf-8")
  return tuple(PublishedCell(**record) for record in json.loads(text))


def select(
  cells: tuple[PublishedCell, ...], **fields: str
) -> tuple[PublishedCell, ...]:
  """Keeps the cells with these fields; a KeyError says what else there is."""
  for name, wanted in fields.items():
    kept = tuple(cell for cell in cells if getattr(cell, name) == wanted)
    if not kept:
      choices = sorted({getattr(cell, name) for cell in cells})
      raise KeyError(f"no cell with {name} {wanted!r}; there are {choices}")
    cells = kept
  return cells


def find(fields: Mapping[str, str]) -> PublishedCell:
  """The first cell with these fields, one of which is the paper."""
  return select(read(fields["paper"].lower()), **fields)[0]


Own = Mapping[str, Mapping[str, Summary]]  # by row and heading
Published = Mapping[str, Mapping[str, PublishedCell]]  # likewise


def grid(
  head: Sequence[str], rows: Iterable[Sequence[str]], *, words: int = 1
) -> list[str]:
  """The lines of a Markdown table, of which the first columns hold words."""
  rule = ["---"] * words + ["---:"] * (len(head) - words)
  escaped = (
    [cell.replace("|", "\\|") for cell in cells]
    for cells in (head, rule, *rows)
  )
  return [f"| {' | '.join(cells)} |" for cells in escaped]


def to_markdown(
  title: str, scale: str, own: Own, published: Published
) -> list[str]:
  """The lines of a table for people: own cells are `mean ± half-width (n)`."""
  ours, theirs = (
    list(dict.fromkeys(itertools.chain(*side.values())))
    for side in (own, published)
  )
  head = ["row", *(f"{metric} (here, {scale})" for metric in ours)]
  head += [f"{metric} {PUBLISHED}" for metric in theirs]
  notes: dict[str, int] = {}
  rows = []
  for row in dict.fromkeys([*own, *published]):
    here = [own.get(row, {}).get(metric) for metric in ours]
    printed = [published.get(row, {}).get(metric) for metric in theirs]
    rows.append(
      [row]
      + [f"{mean_and_width(c)} ({c.size})" if c else MISSING for c in here]
      + [_published(c, notes) if c else MISSING for c in printed]
    )
  lines = [
    f"### {title}",
    "",
    *grid(head, rows),
    "",
    f"Here: scale `{scale}`; {meaning(own)}.",
  ]
  if theirs:
    lines += [
      "",
      "Published: printed by the papers for their models, data and scale; not "
      "measured here, and not comparable with the columns to the left.",
      *(f"[{number}] {note}." for note, number in notes.items()),
    ]
  return lines


def meaning(own: Own) -> str:
  """Says what a cell of ours means."""
  told = f"mean ± half-width of the {_LEVEL} t interval over "
  if any(cell.starts > 1 for _, _, cell in _cells(own)):
    return told + "the means of supervised starts (starts × seeds)"
  return told + "seeds (number of seeds)"


def to_text(own: Own, *, most: int = 3) -> list[str]:
  """The lines of a table for a terminal, of the first columns."""
  names = list(dict.fromkeys(itertools.chain(*own.values())))[:most]
  lines = [["", *names]] + [
    [row, *(mean_and_width(of[n]) if n in of else MISSING for n in names)]
    for row, of in own.items()
  ]
  return aligned(lines)


def aligned(cells: Sequence[Sequence[str]]) -> list[str]:
  """The lines of a table for a terminal."""
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]


def to_lines(scale: str, own: Own, published: Published) -> list[list]:
  """A table for programs, a line per cell; `origin` says whose it is."""
  lines = [
    ["row", "metric", "origin", "scale", "mean", "std", "low", "high", "n"]
    + ["starts"]
    + ["published_value", "published_std", "model", "source", "note"]
  ]
  for row, metric, cell in _cells(own):
    numbers = [number(value) for value in cell[:4]]
    sizes = [cell.count, cell.starts]
    lines.append([row, metric, "here", scale, *numbers, *sizes, *[""] * 5])
  for row, metric, cell in _cells(published):
    numbers = [number(cell.value), number(cell.std)]
    about = [cell.model, cell.source, cell.note]
    lines.append([row, metric, "published", *[""] * 7, *numbers, *about])
  return lines


def differences(
  found: Mapping[str, Mapping[str, PairedDifference]],
) -> list[str]:
  """The lines of a table of paired differences, by comparison and metric.

  p is Holm's over all of them.
  """
  cells = list(_cells(found))
  corrected = statistics.holm([statistics.p_value(x) for *_, x in cells])
  lines = []
  for (label, metric, one), p in zip(cells, corrected, strict=True):
    ends = [interval(one.t), interval(one.bootstrap), one.size]
    least = statistics.smallest_detectable(one)
    told = ["–", "–"] if math.isnan(p) else [f"{p:.2g}", f"{least:.3f}"]
    lines.append([label, metric, f"{one.mean:+.3f}", *ends, *told])
  return grid(
    ["comparison", "metric", "mean difference", f"{_LEVEL}, t"]
    + [f"{_LEVEL}, bootstrap", "seeds", "p, Holm", "detectable"],
    lines,
  )


def mean_and_width(summary: Summary) -> str:
  """As `0.912 ± 0.019`; `0.912` of a single seed."""
  text = f"{summary.mean:.3f}"
  if not math.isnan(summary.half_width):
    text += f" ± {summary.half_width:.3f}"
  return text


def _cells(rows: Mapping[str, Mapping]) -> Iterator[tuple]:
  return ((row, name, x) for row, of in rows.items() for name, x in of.items())


def _published(cell: PublishedCell, notes: dict[str, int]) -> str:
  """A cell and the numbers of its notes, which are collected in `notes`."""
  text = MISSING if cell.value is None else f"{cell.value:g}"
  if cell.std is not None:
    text += f" (std {cell.std:g})"
  said = [f"{cell.paper}, arXiv:{cell.arxiv}, {cell.table}, {cell.model}"]
  if cell.source == "secondary":
    said[0] += "; taken from a secondary source"
  said += [cell.note] if cell.note else []
  numbers = [str(notes.setdefault(note, len(notes) + 1)) for note in said]
  return f"{text} [{', '.join(numbers)}]"


def interval(ends: statistics.Interval) -> str:
  low, high = ends
  return MISSING if math.isnan(low) else f"[{low:+.3f}, {high:+.3f}]"


def number(value: float | None) -> str:
  """A number in full, so that it can be read back; empty for a missing one."""
  return "" if value is None or math.isnan(value) else repr(float(value))
