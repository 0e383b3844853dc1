r"""Arithmetic made from a seed: expressions, short stories, and their working.

No expression of the test split is ever asked for in training, in digits or in
words, whatever the seed.
"""

import ast
import operator
from collections.abc import Iterator, Sequence
from typing import Any

from saw_jax import naming
from saw_jax.tasks import answer_task, base
from saw_jax.tasks.draws import Draws, split_of

_MAX_VALUE = 999
# Items of one data set of reasoning-gym: some are lists of this length inside.
_GYM_SIZE = 2**20

_APPLY = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}
# Names, things, and the stories of an expression whose operands are named a, b,
# c from left to right.
_WORDS = base.asset(__file__, "stories.json")
# Level -> shapes, each with the ranges of its operands: one-digit sums; sums of
# two digits and the multiplication table; two operations; three operations.
_SHAPES = dict(enumerate(_WORDS["levels"], 1))
LEVELS = tuple(_SHAPES)


def draw_problem(
  draws: Draws, split: str, levels: Sequence[int], word_share: float
) -> answer_task.Row:
  """Draws a problem of a split, from one of the levels with equal shares.

  `word_share` is the probability of a story; there are none at level 4. Notes
  have the `expression`, the `level`, and the `working` from what is asked,
  "12+34=" or a story, to the answer.
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
    ends = map(_WORDS["ranges"].get, ranges)
    drawn = [draws.choice(range(low, high + 1)) for low, high in ends]
    operands = dict(zip("abcd", drawn, strict=False))
    expression = "".join(str(operands.get(c, c)) for c in shape)
    parts = ast.walk(_parse(expression))
    values = [_value(p) for p in parts if isinstance(p, ast.BinOp)]
    is_small = all(0 <= value <= _MAX_VALUE for value in values)
    if is_small and split_of(expression) == split:
      break
  steps = work(expression)
  text = f"{expression}="
  if in_words:
    text = draws.choice(_WORDS["stories"][shape]).format(
      name=draws.choice(_WORDS["names"]),
      things=draws.choice(_WORDS["things"]),
      **operands,
    )
    steps = (expression, *steps)
  working = "".join(f"{step}=" for step in steps)
  meta = {"expression": expression, "level": level, "working": working}
  return answer_task.ask(text), str(_value(_parse(expression))), meta


def draw_gym_problems(
  generators: Sequence[str], seed: int, split: str, size: int
) -> list[answer_task.Row]:
  """Draws problems of reasoning-gym's generators, in turn.

  Its item `i` of seed `s` is mostly item `i + 1` of seed `s - 1`, so that two
  splits with neighbouring seeds would be the same but for one item: here the
  text decides on the split. https://arxiv.org/abs/2505.24760
  """
  need = "problems='reasoning_gym' needs reasoning-gym"
  with naming.needs_extra("math", need):
    import reasoning_gym
    from reasoning_gym import factory
  for name in generators:
    base.check_choice("generator", name, tuple(factory.DATASETS))

  def drawn(name: str) -> Iterator[answer_task.Row]:
    # Seeds so far apart do not meet.
    far = {"size": _GYM_SIZE, "seed": seed * _GYM_SIZE}
    data = reasoning_gym.create_dataset(name, **far)
    for item in range(_GYM_SIZE):
      entry = data[item]
      text, answer = entry["question"], str(entry["answer"])
      if split_of(text) == split:
        yield answer_task.ask(text.strip()), answer.strip(), {"generator": name}

  sources = [drawn(name) for name in generators]
  try:
    return [next(sources[index % len(sources)]) for index in range(size)]
  except StopIteration:
    what = f"reasoning-gym has too few problems for {size} of {split!r}"
    raise ValueError(what) from None


def work(expression: str) -> tuple[str, ...]:
  """Returns the steps of a reckoner who can hold one simple sum in mind.

  Operations are done one at a time, the last one in tens and units.

  >>> work("(13+25)*4")
  ('38*4', '120+32')
  """
  steps, tree = [], _parse(expression)
  while isinstance(tree, ast.BinOp):
    tree = _split_tens(tree) or _reduce(tree)
    steps.append(ast.unparse(tree).replace(" ", ""))
  return tuple(steps[:-1])


def mistake(draws: Draws, answer: int) -> int:
  """Returns an answer off by one, two or ten, or with last digits swapped.

  It is never negative unless the right one is.
  """
  size, sign = abs(answer), -1 if answer < 0 else 1
  near = {size - 10, size - 2, size - 1, size + 1, size + 2, size + 10}
  near.add(size // 100 * 100 + size % 10 * 10 + size // 10 % 10)
  return sign * draws.choice(sorted(n for n in near - {size} if n >= 0))


def _parse(expression: str) -> Any:
  return ast.parse(expression, mode="eval").body


def _value(tree: Any) -> int:
  if isinstance(tree, ast.Constant):
    return tree.value
  return _APPLY[type(tree.op)](_value(tree.left), _value(tree.right))


def _reduce(tree: ast.BinOp) -> Any:
  """Does the first operation whose operands are numbers."""
  if isinstance(tree.left, ast.BinOp):
    return ast.BinOp(_reduce(tree.left), tree.op, tree.right)
  if isinstance(tree.right, ast.BinOp):
    return ast.BinOp(tree.left, tree.op, _reduce(tree.right))
  return ast.Constant(_value(tree))


def _split_tens(tree: ast.BinOp) -> Any:
  """Makes one operation on numbers two simpler ones, or returns None."""
  if isinstance(tree.left, ast.BinOp) or isinstance(tree.right, ast.BinOp):
    return None
  left, right = tree.left.value, tree.right.value
  tens, units = right // 10 * 10, right % 10
  if isinstance(tree.op, ast.Mult):
    big, small = max(left, right), min(left, right)
    if big < 10 or small < 2 or big % 10 == 0:
      return None
    return _parse(f"{big // 10 * 10 * small}+{big % 10 * small}")
  if not units or right < 10 or left < 10:
    return None
  if isinstance(tree.op, ast.Sub):
    return _parse(f"{left - tens}-{units}")
  if left % 10 == 0:
    return None
  return _parse(f"{left // 10 * 10 + tens}+{left % 10 + units}")
