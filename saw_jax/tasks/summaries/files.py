"""Readers of texts with their summaries, without leaks from train to test.

columns                           read as
text, summary                     docsum, which comes with the library
post, summary; with title or not  Reddit TL;DR
prompt, completion or label       Reddit TL;DR with the title in the prompt
"""

import collections
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from saw_jax.tasks import row_files
from saw_jax.tasks.row_files import field
from saw_jax.tasks.summaries import rewards

_DOCSUM = pathlib.Path(__file__).parent / "assets" / "docsum"
DOCSUM_FILES = {
  "train": (_DOCSUM / "train_apache.jsonl", _DOCSUM / "train_bsd.jsonl"),
  "test": (_DOCSUM / "test.jsonl",),
}

_TEXTS = ("text", "post", "prompt", "document")
_SUMMARIES = ("summary", "completion", "label")
_NOTES = ("name", "package", "licence")
_TL_DR = re.compile(r"\s*TL;DR:?\s*$", re.IGNORECASE)
_RUN = 8  # words
_SHARED = 0.2  # of the runs of the shorter text


class Row(NamedTuple):
  """A text and what somebody wrote about it, numbered over all files."""

  number: int
  text: str
  summary: str
  meta: Mapping[str, Any]


def read_rows(paths: Sequence[str | pathlib.Path]) -> list[Row]:
  """Reads files of texts with summaries.

  A title is put before its text, and a "TL;DR:" that ends a text is cut.
  """
  found = (row for path in paths for row in row_files.parse_rows(path, _read))
  rows = [Row(number, *row) for number, row in enumerate(found)]
  if not rows:
    raise ValueError(f"{', '.join(map(str, paths))}: no rows.")
  return rows


def without_leaks(train: Sequence[Row], test: Sequence[Row]) -> list[Row]:
  """Leaves out the training rows that tell about a held-out one.

  A row leaks if its summary has the words of a held-out summary, or if its text
  shares at least a fifth of the runs of eight words that the shorter of it and
  one held-out text has.
  """
  summaries = {tuple(rewards.words(row.summary)) for row in test}
  sizes, owners = [], collections.defaultdict(set)
  for index, row in enumerate(test):
    runs = _runs(row.text)
    sizes.append(len(runs))
    for run in runs:
      owners[run].add(index)

  def leaks(row: Row) -> bool:
    if tuple(rewards.words(row.summary)) in summaries:
      return True
    runs = _runs(row.text)
    shared = collections.Counter(i for run in runs for i in owners.get(run, ()))
    return any(
      count >= _SHARED * min(len(runs), sizes[index])
      for index, count in shared.items()
    )

  return [row for row in train if not leaks(row)]


def _read(row: Any) -> tuple[str, str, dict[str, Any]]:
  if not isinstance(row, Mapping):
    raise ValueError("not an object with named fields")
  chosen = [
    [name for name in choices if row.get(name) is not None]
    for choices in (_TEXTS, _SUMMARIES)
  ]
  if not all(chosen):
    raise ValueError(
      f"it has no text ({', '.join(_TEXTS)}) or no summary "
      f"({', '.join(_SUMMARIES)}); its columns are "
      f"{', '.join(sorted(map(str, row))) or 'none'}"
    )
  text, summary = (field(row, names[0], str).strip() for names in chosen)
  text = _TL_DR.sub("", text)
  title = row.get("title")
  if isinstance(title, str) and title.strip():
    text = f"{title.strip()}\n\n{text}"
  for what, words in (("text", text), ("summary", summary)):
    if not any(map(str.isalnum, words)):
      raise ValueError(f"the {what} has no letter and no digit")
  return text, summary, {k: row[k] for k in _NOTES if k in row}


def _runs(text: str) -> set[tuple[str, ...]]:
  """Runs of words; a text that is shorter than one is a run itself."""
  words = rewards.words(text)
  return set(rewards.runs(words, _RUN)) or {tuple(words)}
