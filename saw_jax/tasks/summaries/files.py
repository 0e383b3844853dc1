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
from typing import Any

from saw_jax.tasks import answer_task
from saw_jax.tasks.base import Example
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


def read_examples(paths: Sequence[str | pathlib.Path]) -> list[Example]:
  """Reads files of texts with summaries, with keys that count over all of them.

  A title is put before its text, and a "TL;DR:" that ends a text is cut.
  """
  examples: list[Example] = []
  for path in paths:
    examples += answer_task.read_examples(path, _read, len(examples))
  return examples


def without_leaks(
  train: Sequence[Example], test: Sequence[Example]
) -> list[Example]:
  """Leaves out the training rows that tell about a held-out one.

  A row leaks if its summary has the words of a held-out summary, or if its text
  shares at least a fifth of the runs of eight words that the shorter of it and
  one held-out text has.
  """
  summaries = {tuple(rewards.words(row.reference)) for row in test}
  sizes, owners = [], collections.defaultdict(set)
  for index, row in enumerate(test):
    runs = _runs(row.meta["source"])
    sizes.append(len(runs))
    for run in runs:
      owners[run].add(index)

  def leaks(row: Example) -> bool:
    if tuple(rewards.words(row.reference)) in summaries:
      return True
    runs = _runs(row.meta["source"])
    shared = collections.Counter(i for run in runs for i in owners.get(run, ()))
    return any(
      count >= _SHARED * min(len(runs), sizes[index])
      for index, count in shared.items()
    )

  return [row for row in train if not leaks(row)]


def _read(row: Any) -> answer_task.Row:
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
  meta = {"source": text} | {k: row[k] for k in _NOTES if k in row}
  return answer_task.ask(text), summary, meta


def _runs(text: str) -> set[tuple[str, ...]]:
  """Runs of words; a text that is shorter than one is a run itself."""
  words = rewards.words(text)
  return set(rewards.runs(words, _RUN)) or {tuple(words)}
