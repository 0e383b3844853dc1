"""What the papers print, from the files in `published/`.

Values are in the unit of the paper. Where a paper prints a word in place of a
number, or a number that contradicts others in it, the note says so.
"""

import dataclasses
import json
import pathlib

_FOLDER = pathlib.Path(__file__).parent / "published"


@dataclasses.dataclass(frozen=True)
class PublishedCell:
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

  def __post_init__(self):
    """Refuses what cannot be a cell."""
    if self.source not in ("primary", "secondary"):
      raise ValueError(f"a source is primary or secondary, not {self.source!r}")
    if self.value is None and not self.note:
      raise ValueError("a cell without a value needs a note that says why")

  @property
  def is_inconsistent(self) -> bool:
    """Whether other numbers of the paper contradict it: not one to aim at."""
    return self.note.startswith("inconsistent")


def available() -> list[str]:
  """Names the papers that have a file.

  Returns:
    The names that `read` takes.

  >>> available()
  ['asympo', 'gdpo', 'paw', 'saw']
  """
  return sorted(path.stem for path in _FOLDER.glob("*.json"))


def read(paper: str) -> tuple[PublishedCell, ...]:
  """Reads all numbers of a paper.

  Args:
    paper: one of `available()`.

  Returns:
    Its cells, in the order of the file.
  """
  if paper not in available():
    raise ValueError(f"no published numbers of {paper!r}; of {available()}")
  text = (_FOLDER / f"{paper}.json").read_text(encoding="utf-8")
  return tuple(PublishedCell(**record) for record in json.loads(text))


def select(
  cells: tuple[PublishedCell, ...], **fields: str
) -> tuple[PublishedCell, ...]:
  """Keeps the cells whose fields are the given ones.

  Args:
    cells: to choose from.
    **fields: wanted value by name of the field, as `method="GRPO"`.

  Returns:
    The cells left, at least one.

  Raises:
    KeyError: no cell is left; the message lists what there is.
  """
  for name, wanted in fields.items():
    kept = tuple(cell for cell in cells if getattr(cell, name) == wanted)
    if not kept:
      choices = sorted({getattr(cell, name) for cell in cells})
      raise KeyError(f"no cell with {name} {wanted!r}; there are {choices}")
    cells = kept
  return cells
