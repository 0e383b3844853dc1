r"""Arithmetic made from a seed: expressions, short stories, and their working.

A tree is an integer or `(operation, left, right)`. No expression of the test
split is ever asked for in training, in digits or in words, whatever the seed.
"""

import ast
import json
import operator
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from saw_jax import names
from saw_jax.tasks import base
from saw_jax.tasks.draws import Draws, split_of

Tree = int | tuple[str, "Tree", "Tree"]

_MAX_VALUE = 999
LEVELS = (1, 2, 3, 4)
# Items of one data set of reasoning-gym: some are lists of this length inside.
_GYM_SIZE = 2**20

_APPLY: dict[str, Callable[[int, int], int]] = {
  "+": operator.add,
  "-": operator.sub,
  "*": operator.mul,
}
_SIGNS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*"}
_RANK = {"+": 1, "-": 1, "*": 2}

# Names, things, and the stories of an expression whose operands are named a, b,
# c from left to right.
_WORDS = json.loads(
  (pathlib.Path(__file__).parent / "assets/stories.json").read_text()
)
# Level -> shapes, each with the range of its operands: one-digit sums; sums of
# two digits and the multiplication table; two operations; three operations.
_DIGITS, _TENS, _UNITS, _TEENS = (1, 9), (10, 99), (2, 9), (2, 19)
_SHAPES = {
  1: {"a+b": (_DIGITS, _DIGITS), "a-b": (_DIGITS, _DIGITS)},
  2: {"a+b": (_TENS, _TENS), "a-b": (_TENS, _TENS), "a*b": (_UNITS, _UNITS)},
  3: {
    "(a+b)*c": (_TEENS, _TEENS, _UNITS),
    "(a-b)*c": (_TEENS, _TEENS, _UNITS),
    "a*b+c": (_UNITS, _TEENS, _UNITS),
    "a*b-c": (_UNITS, _TEENS, _UNITS),
    "a+b-c": (_TEENS, _TEENS, _TEENS),
    "a-(b+c)": (_TENS, _TEENS, _TEENS),
    "a-(b-c)": (_TENS, _TEENS, _TEENS),
  },
  4: {
    "(a+b)*(c-d)": (_TEENS, _TEENS, _TEENS, _TEENS),
    "a*b+c*d": (_UNITS, _TEENS, _UNITS, _TEENS),
    "(a+b)*c-d": (_TEENS, _TEENS, _UNITS, _TEENS),
    "(a+b-c)*d": (_TEENS, _TEENS, _TEENS, _UNITS),
  },
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
  """Draws a problem of a split, from one of the levels with equal shares.

  `word_share` is the probability of a story; there are none at level 4.
  """
  level = draws.choice(levels)
  in_words = draws.chance(word_share) and level < 4
  shapes = [
    (shape, ranges)
    for shape, ranges in _SHAPES[level].items()
    if not in_words or shape in _WORDS["stories"]
  ]
  while True:
    shape, ranges = draws.choice(shapes)
    operands = {
      letter: draws.choice(range(low, high + 1))
      for letter, (low, high) in zip("abcd", ranges, strict=False)
    }
    expression = "".join(str(operands.get(c, c)) for c in shape)
    tree = _parse(expression)
    if _is_small(tree) and split_of(expression) == split:
      break
  working = work(tree)
  text = f"{expression}="
  if in_words:
    text = draws.choice(_WORDS["stories"][shape]).format(
      name=draws.choice(_WORDS["names"]),
      things=draws.choice(_WORDS["things"]),
      **operands,
    )
    working = (expression, *working)
  return Problem(text, expression, evaluate(tree), working, level)


def draw_gym_problems(
  generators: Sequence[str], *, seed: int, split: str, size: int
) -> list[tuple[str, str, str]]:
  """Draws (text, answer, generator) of reasoning-gym's generators, in turn.

  Its item `i` of seed `s` is mostly item `i + 1` of seed `s - 1`, so that two
  splits with neighbouring seeds would be the same but for one item: here the
  text decides on the split. https://arxiv.org/abs/2505.24760
  """
  need = "problems='reasoning_gym' needs reasoning-gym"
  with names.needs_extra("math", need):
    import reasoning_gym
    from reasoning_gym import factory
  for name in generators:
    if name not in factory.DATASETS:
      raise ValueError(
        f"reasoning-gym has no generator {name!r}: "
        f"{base.nearest(name, tuple(factory.DATASETS))}"
      )

  def drawn(name: str) -> Iterator[tuple[str, str, str]]:
    # Seeds so far apart do not meet.
    far = {"size": _GYM_SIZE, "seed": seed * _GYM_SIZE}
    data = reasoning_gym.create_dataset(name, **far)
    for item in range(_GYM_SIZE):
      entry = data[item]
      if split_of(entry["question"]) == split:
        yield entry["question"].strip(), str(entry["answer"]).strip(), name

  sources = [drawn(name) for name in generators]
  try:
    return [next(sources[index % len(sources)]) for index in range(size)]
  except StopIteration:
    raise ValueError(
      f"reasoning-gym has too few problems for {size} of {split!r}"
    ) from None


def evaluate(tree: Tree) -> int:
  """Returns the value of a tree.

  >>> evaluate(("-", 20, ("+", 3, 4)))
  13
  """
  if isinstance(tree, int):
    return tree
  operation, left, right = tree
  return _APPLY[operation](evaluate(left), evaluate(right))


def write(tree: Tree) -> str:
  """Writes a tree with the parentheses that it needs, without spaces.

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

  Operations are done one at a time, the last one in tens and units.

  >>> work(("*", ("+", 13, 25), 4))
  ('38*4', '120+32')
  """
  steps = []
  while not isinstance(tree, int):
    tree = _split_tens(tree) or _reduce(tree)
    if not isinstance(tree, int):
      steps.append(write(tree))
  return tuple(steps)


def mistake(draws: Draws, answer: int) -> int:
  """Returns an answer off by one, two or ten, or with last digits swapped.

  It is never negative unless the right one is.
  """
  size, sign = abs(answer), -1 if answer < 0 else 1
  near = {size - 10, size - 2, size - 1, size + 1, size + 2, size + 10}
  near.add(size // 100 * 100 + size % 10 * 10 + size // 10 % 10)
  return sign * draws.choice(sorted(n for n in near - {size} if n >= 0))


def _parse(expression: str) -> Tree:
  def tree(node: ast.expr) -> Tree:
    if isinstance(node, ast.BinOp):
      return _SIGNS[type(node.op)], tree(node.left), tree(node.right)
    return ast.literal_eval(node)

  return tree(ast.parse(expression, mode="eval").body)


def _is_small(tree: Tree) -> bool:
  if isinstance(tree, int):
    return True
  return 0 <= evaluate(tree) <= _MAX_VALUE and all(map(_is_small, tree[1:]))


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
