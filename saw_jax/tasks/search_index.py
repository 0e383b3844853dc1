"""Which of several things a query is about: BM25 of texts (extra `search`)."""

import logging
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from saw_jax import naming

_WORD = re.compile(r"\w+")
# Words that are in most texts and tell nothing; Lucene's list for English.
STOP_WORDS = frozenset(
  "a an and are as at be but by for if in into is it no not of on or such that"
  " the their then there these they this to was will with".split()
)


class SearchIndex:
  """Things that are found by their texts (k1 1.5, b 0.75, Lucene's form).

  BM25S: Lu, 2024. https://arxiv.org/abs/2407.03618
  """

  def __init__(self, items: Sequence[Any], texts: Sequence[str]):
    self._items, words = items, [split_words(text) for text in texts]
    if not any(words):
      raise ValueError("there is nothing to search: no text has a word in it.")
    self._index = _import_bm25s().BM25(backend="numpy", auto_compile=False)
    self._index.index(words, show_progress=False)

  def find(self, query: str, count: int) -> list[Any]:
    """Returns at most `count` things whose text has a word of a query."""
    known = self._index.vocab_dict
    words = [word for word in split_words(query) if word in known]
    scores = self._index.get_scores(words) if words else np.zeros(0)
    order = np.argsort(-scores, kind="stable")[:count]
    return [self._items[i] for i in order if scores[i] > 0]


def split_words(text: str) -> list[str]:
  """Splits a text into the words that are searched for.

  >>> split_words("The Glass River, by Ann")
  ['glass', 'river', 'ann']
  """
  return [w for w in _WORD.findall(text.lower()) if w not in STOP_WORDS]


def _import_bm25s() -> Any:
  """Imports bm25s without JAX, with which it would take a device's memory."""
  need = "searching needs bm25s"
  with naming.standing_in("jax", None), naming.needs_extra("search", need):
    import bm25s
  # It would tell of each index in the log of a run.
  logging.getLogger("bm25s").setLevel(logging.WARNING)
  return bm25s
