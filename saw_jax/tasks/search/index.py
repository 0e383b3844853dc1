"""Which texts a query is about: BM25, by the extra `search`.

`bm25s` runs a computation of JAX when it is imported, where there is JAX. A
worker process would start a device for it, and on an accelerator take its
memory; so it is imported here as if there were none.
"""

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
    """Indexes the texts.

    Args:
      texts: what can be found, at least one with a word in it.

    Raises:
      ValueError: there is no word in any text.
      ImportError: bm25s is missing.
    """
    words = [split_words(text) for text in texts]
    if not any(words):
      raise ValueError("there is nothing to search: no text has a word in it.")
    self._index = _import_bm25s().BM25(backend="numpy", auto_compile=False)
    self._index.index(words, show_progress=False)

  def find(self, query: str, count: int) -> list[int]:
    """Finds texts.

    Args:
      query: any text.
      count: how many are wanted at most.

    Returns:
      Numbers of the texts, the best first and of equal ones the lower; only
      those that have a word of the query.
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

  Args:
    text: any text.

  Returns:
    Its words in lower case, without stop words.

  >>> split_words("The Glass River, by Ann")
  ['glass', 'river', 'ann']
  """
  return [w for w in _WORD.findall(text.lower()) if w not in STOP_WORDS]


def _import_bm25s() -> Any:
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
