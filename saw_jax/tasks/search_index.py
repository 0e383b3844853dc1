"""Which texts a query is about: BM25, by the extra `search`."""

import logging
import re
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

_WORD = re.compile(r"\w+")
# Words that are in most texts and tell nothing; Lucene's list for English.
STOP_WORDS = frozenset(
  "a an and are as at be but by for if in into is it no not of on or such that"
  " the their then there these they this to was will with".split()
)


class SearchIndex:
  """Texts that are searched with BM25 (k1 1.5, b 0.75, Lucene's form).

  References:
    Lu, 2024. BM25S. https://arxiv.org/abs/2407.03618
  """

  def __init__(self, texts: Sequence[str]):
    words = [split_words(text) for text in texts]
    if not any(words):
      raise ValueError("there is nothing to search: no text has a word in it.")
    self._index = _import_bm25s().BM25(backend="numpy", auto_compile=False)
    self._index.index(words, show_progress=False)

  def find(self, query: str, count: int) -> list[int]:
    """Returns the numbers of at most `count` texts with a word of a query.

    The best come first, and of equal ones the lower.
    """
    known = self._index.vocab_dict
    words = [word for word in split_words(query) if word in known]
    if not words:
      return []
    scores = self._index.get_scores(words)
    order = np.argsort(-scores, kind="stable")[:count]
    return [int(i) for i in order if scores[i] > 0]


def split_words(text: str) -> list[str]:
  """Splits a text into the words that are searched for.

  >>> split_words("The Glass River, by Ann")
  ['glass', 'river', 'ann']
  """
  return [w for w in _WORD.findall(text.lower()) if w not in STOP_WORDS]


def _import_bm25s() -> Any:
  """Imports bm25s as if there were no JAX, which it would start a device of.

  In a worker process on an accelerator that would take the device's memory.
  """
  if "bm25s" in sys.modules:
    return sys.modules["bm25s"]
  # None in the table of modules is how Python says that there is none.
  hidden = sys.modules.get("jax")
  sys.modules["jax"] = None
  try:
    import bm25s
  except ImportError as error:
    raise ImportError(
      "searching needs bm25s: pip install 'saw_jax[search]'"
    ) from error
  finally:
    if hidden is None:
      del sys.modules["jax"]
    else:
      sys.modules["jax"] = hidden
  # It would tell of each index in the log of a run.
  logging.getLogger("bm25s").setLevel(logging.WARNING)
  return bm25s
