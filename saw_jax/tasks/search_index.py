"""Which of several things a query is about: BM25 of their texts."""

import array
import collections
import math
import re
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
  """Things that are found by their texts with BM25 in Lucene's form.

  A text of `l` words, `m` on average, in which a word stands `f` times, scores
  `idf f / (f + k1 (1 - b + b l / m))` for it, with k1 1.5 and b 0.75, and
  `idf = log(1 + (N - n + 0.5) / (n + 0.5))` if `n` of `N` texts have the word.

  References:
    Lu, 2024. BM25S, whose scores these are. https://arxiv.org/abs/2407.03618
  """

  def __init__(self, items: Sequence[Any], texts: Sequence[str]):
    self._items = items
    lengths = np.zeros(len(texts))
    places = collections.defaultdict(lambda: array.array("l"))
    for number, text in enumerate(texts):
      words = split_words(text)
      lengths[number] = len(words)
      for word in words:
        places[word].append(number)
    if not places:
      raise ValueError("there is nothing to search: no text has a word in it.")
    damping = 1.5 * (0.25 + 0.75 * lengths / lengths.mean())
    self._scores = {}  # by word: numbers of texts, and what it adds to theirs
    for word, numbers in places.items():
      found, times = np.unique(numbers, return_counts=True)
      odds = (len(texts) - len(found) + 0.5) / (len(found) + 0.5)
      idf = np.float32(math.log(1 + odds))
      score = (idf * (times / (damping[found] + times))).astype(np.float32)
      self._scores[word] = found, score

  def find(self, query: str, count: int) -> list[Any]:
    """Returns at most `count` things whose text has a word of a query.

    The best come first, and of equal ones the first.
    """
    total = np.zeros(len(self._items), np.float32)
    for word in split_words(query):
      if word in self._scores:
        found, score = self._scores[word]
        total[found] += score
    order = np.argsort(-total, kind="stable")[:count]
    return [self._items[i] for i in order if total[i] > 0]


def split_words(text: str) -> list[str]:
  """Splits a text into the words that are searched for.

  >>> split_words("The Glass River, by Ann")
  ['glass', 'river', 'ann']
  """
  return [w for w in _WORD.findall(text.lower()) if w not in STOP_WORDS]
