r"""Arithmetic made from a seed: expressions, short stories, and their working.

A tree is an integer or `(operation, left, right)`. Every intermediate result is
an integer from 0 to 999, so that a problem and its working stay short. Which
split a problem belongs to depends on its expression alone: no expression of the
test split is ever asked for in training, in digits or in words, whatever the
seed.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from saw_jax.tasks.draws import Draws

Tree = int | tuple[str, "Tree", "Tree"]

TEST_PERCENT = 20
MAX_VALUE = 999
LEVELS = (1, 2, 3, 4)

_APPLY: dict[str, Callable[[int, int], int]] = {
  "+": lambda a, b: a + b,
  "-": lambda a, b: a - b,
  "*": lambda a, b: a * b,
}
_RANK = {"+": 1, "-": 1, "*": 2}

NAMES = ("tom", "ann", "sam", "eva")
THINGS = ("pens", "eggs", "figs", "nuts")
# Stories of an expression whose operands are named a, b, c from left to right.
STORIES: dict[str, tuple[str, ...]] = {
  "a+b": (
    "{name} has {a} {things} and gets {b} more. how many now?",
    "{a} {things} and {b} more. how many in all?",
    "there are {a} red and {b} blue {things}. how many in all?",
  ),
  "a-b": (
    "{name} has {a} {things} and gives {b} away. how many are left?",
    "{b} of {a} {things} are lost. how many are left?",
    "{name} had {a} {things} and has {b} now. how many are lost?",
  ),
  "a*b": (
    "{a} bags of {b} {things}. how many in all?",
    "{name} gets {a} bags with {b} {things} in each. how many in all?",
    "how many {things} are in {a} bags of {b}?",
  ),
  "(a+b)*c": (
    "{name} gets {a} red and {b} blue {things} on {c} days. how many in all?",
    "{c} bags with {a} red and {b} blue {things} in each. how many in all?",
  ),
  "(a-b)*c": (
    "{c} bags of {a} {things}, {b} in each are lost. how many are left?",
  ),
  "a*b+c": ("{a} bags of {b} {things} and {c} more. how many in all?",),
  "a*b-c": ("of {a} bags of {b} {things} {c} are lost. how many are left?",),
  "a+b-c": (
    "{name} has {a} {things}, gets {b} and gives {c} away. how many now?",
  ),
  "a-(b+c)": (
    "{name} has {a} {things}, {b} are lost and {c} are bad. how many are left?",
  ),
}

_A, _B, _C, _D = 0, 1, 2, 3  # Places of operands in a shape.
# Level -> shapes over places, and the range of each operand.
_TENS, _UNITS, _TEENS = (10, 99), (2, 9), (2, 19)
_SHAPES: dict[int, tuple[tuple[Tree, tuple[tuple[int, int], ...]], ...]] = {
  1: (
    (("+", _A, _B), ((1, 9),) * 2),
    (("-", _A, _B), ((1, 9),) * 2),
  ),
  2: (
    (("+", _A, _B), (_TENS, _TENS)),
    (("-", _A, _B), (_TENS, _TENS)),
    (("*", _A, _B), (_UNITS, _UNITS)),
  ),
  3: (
    (("*", ("+", _A, _B), _C), (_TEENS, _TEENS, _UNITS)),
    (("*", ("-", _A, _B), _C), (_TEENS, _TEENS, _UNITS)),
    (("+", ("*", _A, _B), _C), (_UNITS, _TEENS, _UNITS)),
    (("-", ("*", _A, _B), _C), (_UNITS, _TEENS, _UNITS)),
    (("-", ("+", _A, _B), _C), (_TEENS, _TEENS, _TEENS)),
    (("-", _A, ("+", _B, _C)), (_TENS, _TEENS, _TEENS)),
    (("-", _A, ("-", _B, _C)), (_TENS, _TEENS, _TEENS)),
  ),
  4: (
    (("*", ("+", _A, _B), ("-", _C, _D)), (_TEENS, _TEENS, _TEENS, _TEENS)),
    (("+", ("*", _A, _B), ("*", _C, _D)), (_UNITS, _TEENS, _UNITS, _TEENS)),
    (("-", ("*", ("+", _A, _B), _C), _D), (_TEENS, _TEENS, _UNITS, _TEENS)),
    (("*", ("-", ("+", _A, _B), _C), _D), (_TEENS, _TEENS, _TEENS, _UNITS)),
  ),
}


class Problem(NamedTuple):
  """A problem with all there is to know about it."""

  text: str  # what is asked, "12+34=" or a story
  expression: str  # "12+34"
  answer: int
  working: tuple[str, ...]  # steps from the text to the answer: "40+6"
  level: int


def draw_problem(
  draws: Draws, split: str, *, levels: Sequence[int], word_share: float
) -> Problem:
  """Draws a problem of a split.

  Args:
    draws: of this problem.
    split: "train" or "test".
    levels: drawn from with equal shares. 1 is one-digit sums, 2 two-digit sums
      and the multiplication table, 3 two operations, 4 three operations.
    word_share: probability of a story; there are none at level 4.

  Returns:
    The problem.
  """
  level = draws.choice(levels)
  in_words = draws.chance(word_share) and level < 4
  shapes = [
    entry
    for entry in _SHAPES[level]
    if not in_words or _places(entry[0]) in STORIES
  ]
  while True:
    shape, ranges = draws.choice(shapes)
    operands = [draws.choice(range(low, high + 1)) for low, high in ranges]
    tree = _fill(shape, operands)
    if _is_small(tree) and split_of(write(tree)) == split:
      break
  expression = write(tree)
  working = work(tree)
  text = f"{expression}="
  if in_words:
    text = draws.choice(STORIES[_places(shape)]).format(
      name=draws.choice(NAMES),
      things=draws.choice(THINGS),
      **dict(zip("abcd", operands, strict=False)),
    )
    working = (expression, *working)
  return Problem(text, expression, evaluate(tree), working, level)


def split_of(expression: str) -> str:
  """Returns the split that an expression belongs to.

  Args:
    expression: as `write` has it.

  Returns:
    "test" for a fifth of all expressions, "train" for the others.
  """
  digest = hashlib.sha256(expression.encode()).digest()
  is_test = int.from_bytes(digest[:4], "big") % 100 < TEST_PERCENT
  return "test" if is_test else "train"


def evaluate(tree: Tree) -> int:
  """Returns the value of a tree.

  Args:
    tree: of any depth.

  Returns:
    Its value.

  >>> evaluate(("-", 20, ("+", 3, 4)))
  13
  """
  if isinstance(tree, int):
    return tree
  operation, left, right = tree
  return _APPLY[operation](evaluate(left), evaluate(right))


def write(tree: Tree) -> str:
  """Writes a tree with the parentheses that it needs.

  Args:
    tree: of any depth.

  Returns:
    The expression, without spaces.

  >>> write(("-", 20, ("+", ("*", 3, 2), 4)))
  '20-(3*2+4)'
  """
  if isinstance(tree, int):
    return str(tree)
  operation, left, right = tree
  first, second = write(left), write(right)
  if not isinstance(left, int) and _RANK[left[0]] < _RANK[operation]:
    first = f"({first})"
  if not isinstance(right, int) and _RANK[right[0]] <= _RANK[operation]:
    second = f"({second})"
  return f"{first}{operation}{second}"


def work(tree: Tree) -> tuple[str, ...]:
  """Returns the steps of a reckoner who can hold one simple sum in mind.

  The first operation whose operands are numbers is done, one at a time; the
  last one is split into tens and units where it is not simple.

  Args:
    tree: of any depth.

  Returns:
    Expressions of the same value, each simpler than the one before; neither the
    tree itself nor its value is among them.

  >>> work(("*", ("+", 13, 25), 4))
  ('38*4', '120+32')
  >>> work(("-", 52, 38)), work(("+", 2, 3))
  (('22-8',), ())
  """
  steps = []
  while not isinstance(tree, int):
    tree = _split_tens(tree) or _reduce(tree)
    if not isinstance(tree, int):
      steps.append(write(tree))
  return tuple(steps)


def mistake(draws: Draws, answer: int) -> int:
  """Returns a wrong answer that is near the right one.

  Args:
    draws: which mistake.
    answer: the right one.

  Returns:
    Off by one, two or ten, or with its last digits swapped; never negative
    unless the answer is.
  """
  size, sign = abs(answer), -1 if answer < 0 else 1
  near = {size - 10, size - 2, size - 1, size + 1, size + 2, size + 10}
  near.add(size // 100 * 100 + size % 10 * 10 + size // 10 % 10)
  return sign * draws.choice(sorted(n for n in near - {size} if n >= 0))


def _places(shape: Tree) -> str:
  """Returns a shape with letters for its operands, left to right."""
  if isinstance(shape, int):
    return "abcd"[shape]
  text = write(shape)
  return "".join("abcd"[int(c)] if c.isdigit() else c for c in text)


def _fill(shape: Tree, operands: Sequence[int]) -> Tree:
  if isinstance(shape, int):
    return operands[shape]
  operation, left, right = shape
  return operation, _fill(left, operands), _fill(right, operands)


def _is_small(tree: Tree) -> bool:
  if isinstance(tree, int):
    return True
  return 0 <= evaluate(tree) <= MAX_VALUE and all(map(_is_small, tree[1:]))


def _reduce(tree: Tree) -> Tree:
  """Does the first operation whose operands are numbers."""
  operation, left, right = tree
  if not isinstance(left, int):
    return operation, _reduce(left), right
  if not isinstance(right, int):
    return operation, left, _reduce(right)
  return _APPLY[operation](left, right)


def _split_tens(tree: Tree) -> Tree | None:
  """Makes one operation on numbers two simpler ones, or returns None."""
  operation, left, right = tree
  if not (isinstance(left, int) and isinstance(right, int)):
    return None
  tens, units = right // 10 * 10, right % 10
  if operation == "*":
    big, small = max(left, right), min(left, right)
    if big < 10 or small < 2 or big % 10 == 0:
      return None
    return "+", big // 10 * 10 * small, big % 10 * small
  if not units or right < 10 or left < 10:
    return None
  if operation == "-":
    return "-", left - tens, units
  if left % 10 == 0:
    return None
  return "+", left // 10 * 10 + tens, left % 10 + units
