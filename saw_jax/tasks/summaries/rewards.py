"""Rule rewards of a summary: quality and conciseness, each from 0 to 10.

They stand in for a judge where there is none. Quality compares the words of a
summary with those of a reference and takes off for copying and for repetition;
conciseness is a matter of length alone. Neither knows what a text means.

Each is a pure function of texts, defined for any text at all. Texts are cut
before anything that takes more than linear time, so that no text is expensive.

References:
  Lin, 2004. ROUGE: A Package for Automatic Evaluation of Summaries.
  https://aclanthology.org/W04-1013/
"""

import collections
import functools
import re
from collections.abc import Sequence
from typing import Any

BEST = 10.0

# A run of so many words of the source is copied; shorter ones are its terms.
_COPIED_RUN = 6
_REPEATED_RUN = 3
_COPY_COST = 0.5  # share of the quality of a summary that is copied throughout
# Words are a letter or digit at least, so that this also bounds their number.
_MOST_SUMMARY_CHARS = 2_000
_MOST_SOURCE_CHARS = 20_000
_WORD = re.compile(r"\w+")
# The stemmer recurses along a word, and nobody's word is that long.
_LONG_WORD = re.compile(r"(\w{40})\w+")


def is_empty(summary: str) -> bool:
  """Returns whether a text has no letter and no digit.

  Args:
    summary: any text.

  Returns:
    True for one of spaces and signs alone.
  """
  return not any(map(str.isalnum, summary))


def quality(summary: str, reference: str, source: str) -> float:
  """Scores what a summary says, by the words that it shares with a reference.

    quality = 10 · F · (1 − c / 2) · (1 − r)

  with F of `rouge_l`, c of `copied_share` and r of `repeated_share`.

  Args:
    summary: any text; only its first 2,000 characters count.
    reference: what somebody wrote; only its first 2,000 characters count.
    source: what was summarised; only its first 20,000 characters count.

  Returns:
    From 0, for an empty summary or one without a word of the reference, to 10,
    for the reference itself.

  Raises:
    ImportError: rouge-score is missing.
  """
  copied = copied_share(summary, reference, source)
  repeated = repeated_share(summary, reference)
  return (
    BEST
    * rouge_l(summary, reference)
    * (1.0 - _COPY_COST * copied)
    * (1.0 - repeated)
  )


def conciseness(summary: str, *, target_chars: int, limit_chars: int) -> float:
  """Scores how short a summary is.

    conciseness = 10 · clip((limit − n) / (limit − target), 0, 1)

  for n characters without the white space around them. Characters are counted,
  since the number of words can be lowered by writing them together.

  Args:
    summary: any text.
    target_chars: longest summary that scores 10.
    limit_chars: shortest summary that scores 0, above the target.

  Returns:
    From 0 to 10; 0 for an empty summary.
  """
  if is_empty(summary):
    return 0.0
  left = limit_chars - len(summary.strip())
  return BEST * min(max(left / (limit_chars - target_chars), 0.0), 1.0)


def rouge_l(summary: str, reference: str) -> float:
  """Measures the longest common subsequence of words, ROUGE-L.

    F = 2 P R / (P + R),   P = LCS / |summary|,   R = LCS / |reference|

  in words of ASCII letters and digits, of which `rouge-score` takes the stems.

  Args:
    summary: any text; only its first 2,000 characters count.
    reference: likewise.

  Returns:
    F, from 0 to 1; 0 where either has no such word.

  Raises:
    ImportError: rouge-score is missing.
  """
  found = _scorer().score(
    *(
      _LONG_WORD.sub(r"\1", text[:_MOST_SUMMARY_CHARS])
      for text in (reference, summary)
    )
  )
  return float(found["rougeL"].fmeasure)


def copied_share(summary: str, reference: str, source: str) -> float:
  """Measures how much of a summary is copied from its source.

  A word is copied if it stands in a run of six words that is in the source, and
  not in the reference, whose writer may quote.

  Args:
    summary: any text; only its first 2,000 characters count.
    reference: likewise.
    source: any text; only its first 20,000 characters count.

  Returns:
    Copied words over all words, from 0 to 1; 0 without words.

  >>> copied_share("Gives a b c d e f back", "", "x a b c d e f y")
  0.75
  """
  words = _words(summary[:_MOST_SUMMARY_CHARS])
  theirs = set(_runs(_words(source[:_MOST_SOURCE_CHARS]), _COPIED_RUN))
  theirs -= set(_runs(_words(reference[:_MOST_SUMMARY_CHARS]), _COPIED_RUN))
  copied = {
    start + i
    for start, run in enumerate(_runs(words, _COPIED_RUN))
    if run in theirs
    for i in range(_COPIED_RUN)
  }
  return len(copied) / len(words) if words else 0.0


def repeated_share(summary: str, reference: str) -> float:
  """Measures how much of a summary repeats what it has said before.

  Args:
    summary: any text; only its first 2,000 characters count.
    reference: likewise.

  Returns:
    Of the runs of three words, the share that came before, from 0 to below 1.
    A run may come as often as it does in the reference.

  >>> repeated_share("a b c a b c", "")
  0.25
  """
  runs = _runs(_words(summary[:_MOST_SUMMARY_CHARS]), _REPEATED_RUN)
  allowed = collections.Counter(
    _runs(_words(reference[:_MOST_SUMMARY_CHARS]), _REPEATED_RUN)
  )
  repeated = sum(
    max(count - max(allowed[run], 1), 0)
    for run, count in collections.Counter(runs).items()
  )
  return repeated / len(runs) if runs else 0.0


def load() -> None:
  """Imports the library that scores, which takes seconds.

  Raises:
    ImportError: rouge-score is missing.
  """
  _scorer()


@functools.cache
def _scorer() -> Any:
  try:
    from rouge_score import rouge_scorer
  except ImportError as error:
    raise ImportError(
      "rule rewards of summaries need rouge-score: pip install "
      "'saw_jax[summaries]'"
    ) from error
  return rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)


def _words(text: str) -> list[str]:
  return _WORD.findall(text.lower())


def _runs(words: Sequence[str], size: int) -> list[tuple[str, ...]]:
  return [
    tuple(words[start : start + size]) for start in range(len(words) - size + 1)
  ]
