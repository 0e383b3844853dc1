"""A dry run of a task's rewards: do right answers win, do mistakes cost?

`experiments/doctor.py` prints what comes out; an empty list is a healthy task.
"""

from collections.abc import Iterable
from typing import NamedTuple, Protocol

from saw_jax.tasks import base

# What is wrong, the completion, and its values; None: less than the best.
Damage = tuple[str, str, tuple[float | None, ...]]


class Inspectable(base.Task, Protocol):
  """A task that knows its right answers, and ways to be wrong."""

  def gold_completion(self, example: base.Example) -> str:
    """Returns a completion that is right."""
    ...

  def best_values(self, example: base.Example) -> tuple[float, ...]:
    """Returns what that completion scores."""
    ...

  def damages(self, example: base.Example) -> Iterable[Damage]:
    """Yields wrong completions."""
    ...


class Failure(NamedTuple):
  """An answer that did not score what it should."""

  key: int
  what: str
  expected: tuple[float | None, ...]  # None: less than the right answer's.
  values: tuple[float | None, ...]
  completion: str


def gold_failures(
  task: Inspectable, examples: Iterable[base.Example]
) -> list[Failure]:
  """Finds the examples whose own right answer does not score the most."""
  return [
    failure
    for one in examples
    for failure in _compare(
      task, one, "gold", task.gold_completion(one), task.best_values(one)
    )
  ]


def damage_failures(
  task: Inspectable, examples: Iterable[base.Example]
) -> list[Failure]:
  """Damages right answers in every way, and finds what scored otherwise."""
  return [
    failure
    for one in examples
    for damage in task.damages(one)
    for failure in _compare(task, one, *damage)
  ]


def _compare(
  task: Inspectable,
  example: base.Example,
  what: str,
  text: str,
  expected: tuple[float | None, ...],
) -> list[Failure]:
  values = task.score(example, text).values
  for got, want, best in zip(
    values, expected, task.best_values(example), strict=True
  ):
    if got is None or (got >= best if want is None else abs(got - want) > 1e-9):
      return [Failure(example.key, what, expected, values, text)]
  return []
