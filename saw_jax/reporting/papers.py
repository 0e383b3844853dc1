"""What the papers print, from the files in `published/`.

Values are in the unit of the paper. Where a paper prints a word in place of a
number, or a number that contradicts others in it, the note says so.
"""

import functools
import json
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

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
  """The papers that have a file.

  >>> available()
  ['asympo', 'gdpo', 'paw', 'saw']
  """
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
