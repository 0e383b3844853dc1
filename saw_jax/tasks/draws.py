"""Random draws for generated examples, the same on every machine."""

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

_T = TypeVar("_T")
TEST_PERCENT = 20


class Draws:
  """Random draws that depend on the parts of a key and nothing else.

  Only `random()` is used: Python promises its numbers across versions, and
  not those of `choice` or `shuffle`.
  """

  def __init__(self, *key: object) -> None:
    self._random = random.Random("/".join(map(str, key)))

  def chance(self, probability: float) -> bool:
    return self._random.random() < probability

  def choice(self, items: Sequence[_T]) -> _T:
    return items[int(self._random.random() * len(items))]

  def weighted(self, weights: Sequence[float]) -> int:
    """Returns an index, in proportion to the weights."""
    left = self._random.random() * sum(weights)
    for index, weight in enumerate(weights):
      left -= weight
      if left < 0:
        return index
    return max(i for i, weight in enumerate(weights) if weight > 0)

  def sample(self, items: Sequence[_T], count: int) -> list[_T]:
    """Returns some of the items in random order, none twice."""
    left, draw = list(items), self._random.random
    return [left.pop(int(draw() * len(left))) for _ in range(count)]


def split_of(content: str) -> str:
  """Returns the split of a generated example, by what is in it and no seed.

  A fifth of all contents are of the test split.

  >>> split_of("ann bell"), split_of("leo shaw")
  ('test', 'train')
  """
  digest = hashlib.sha256(content.encode()).digest()
  is_test = int.from_bytes(digest[:4], "big") % 100 < TEST_PERCENT
  return "test" if is_test else "train"
