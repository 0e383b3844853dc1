"""Rule rewards of a summary, which stand in for a judge: each from 0 to 10."""

import collections
import functools
import re
from collections.abc import Sequence
from typing import Any

from saw_jax import naming

BEST = 10.0

# A run of so many words of the source is copied; shorter ones are its terms.
_COPIED_RUN = 6
_REPEATED_RUN = 3
_COPY_COST = 0.5  # share of the quality of a summary that is copied throughout
# Words are a letter or digit at least, so that this also bounds their number.
_MOST_SUMMARY_CHARS = 2_000
_MOST_SOURCE_CHARS = 20_000
_WORD = re.compile(r"\w+")
# What a copy or a repetition is looked for in: words, and what ROUGE takes for
# words. It passes over "_" and "é", which would hide one.
_READINGS = (_WORD, re.compile("[a-z0-9]+"))
# The stemmer recurses along a word, and nobody's word is that long.
_LONG_WORD = re.compile(r"(\w{40})\w+")


def is_empty(summary: str) -> bool:
  return not any(map(str.isalnum, summary))


def quality(summary: str, reference: str, source: str) -> float:
  """Scores what a summary says, by the words that it shares with a reference.

    quality = 10 · F · (1 − c / 2) · (1 − r)

  with F of `rouge_l`, c of `copied_share` and r of `repeated_share`. Only the
  first 2,000 characters of summary and reference count, and 20,000 of a source.
  """
  new = 1.0 - _COPY_COST * copied_share(summary, reference, source)
  once = 1.0 - repeated_share(summary, reference)
  return BEST * rouge_l(summary, reference) * new * once


def conciseness(summary: str, target_chars: int, limit_chars: int) -> float:
  """Scores how short a summary is, from 0 to 10.

    conciseness = 10 · clip((limit − n) / (limit − target), 0, 1)

  for n characters without the white space around them; 0 for an empty summary.
  """
  if is_empty(summary):
    return 0.0
  left = limit_chars - len(summary.strip())
  return BEST * min(max(left / (limit_chars - target_chars), 0.0), 1.0)


def rouge_l(summary: str, reference: str) -> float:
  """Returns ROUGE-L, of the longest common subsequence of words.

    F = 2 P R / (P + R),   P = LCS / |summary|,   R = LCS / |reference|

  in stems of words of ASCII letters and digits; 0 where either has none.
  """
  cut = (text[:_MOST_SUMMARY_CHARS] for text in (reference, summary))
  texts = (_LONG_WORD.sub(r"\1", text) for text in cut)
  return float(load().score(*texts)["rougeL"].fmeasure)


def copied_share(summary: str, reference: str, source: str) -> float:
  """Returns the share of a summary's words that are copied from its source.

  A word is copied if it stands in a run of six words that is in the source, and
  not in the reference, whose writer may quote.

  >>> copied_share("Gives a b c d e f back", "", "x a b c d e f y")
  0.75
  """
  return max(_copied(word, summary, reference, source) for word in _READINGS)


def _copied(
  word: re.Pattern, summary: str, reference: str, source: str
) -> float:
  said = words(summary, _MOST_SUMMARY_CHARS, word)
  theirs = set(runs(words(source, _MOST_SOURCE_CHARS, word), _COPIED_RUN))
  theirs -= set(runs(words(reference, _MOST_SUMMARY_CHARS, word), _COPIED_RUN))
  copied = {
    start + i
    for start, run in enumerate(runs(said, _COPIED_RUN))
    if run in theirs
    for i in range(_COPIED_RUN)
  }
  return len(copied) / len(said) if said else 0.0


def repeated_share(summary: str, reference: str) -> float:
  """Returns the share of a summary's runs of three words that came before.

  A run may come as often as it does in the reference.

  >>> repeated_share("a b c a b c", "")
  0.25
  """
  return max(_repeated(word, summary, reference) for word in _READINGS)


def _repeated(word: re.Pattern, summary: str, reference: str) -> float:
  found = (words(x, _MOST_SUMMARY_CHARS, word) for x in (summary, reference))
  said, allowed = (collections.Counter(runs(x, _REPEATED_RUN)) for x in found)
  repeated = sum(max(n - max(allowed[run], 1), 0) for run, n in said.items())
  return repeated / said.total() if said else 0.0


@functools.cache
def load() -> Any:
  """Imports the library that scores, which takes seconds."""
  need = "rule rewards of summaries need rouge-score"
  with naming.needs_extra("summaries", need):
    from rouge_score import rouge_scorer
  return rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)


def words(
  text: str, most_chars: int | None = None, word: re.Pattern = _WORD
) -> list[str]:
  return word.findall(text[:most_chars].lower())


def runs(words: Sequence[str], size: int) -> list[tuple[str, ...]]:
  return [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
