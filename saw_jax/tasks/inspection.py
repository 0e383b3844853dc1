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


def mean_rewards(
  task: base.Task, pairs: Iterable[tuple[base.Example, str]]
) -> dict[str, float]:
  """Averages each component over (example, completion) pairs.

  Args:
    task: what scores.
    pairs: examples, each with an answer.

  Returns:
    The mean of each component over what was scored; NaN if nothing was.
  """
  rows = [task.score(example, text).values for example, text in pairs]
  means = {}
  for index, component in enumerate(task.components):
    known = [row[index] for row in rows if row[index] is not None]
    means[component.name] = sum(known) / len(known) if known else float("nan")
  return means


def gold_failures(
  task: Inspectable, examples: Iterable[base.Example]
) -> list[Failure]:
  """Finds the examples whose own right answer does not score the most.

  Args:
    task: the task.
    examples: with references.

  Returns:
    What scored otherwise.
  """
  return [
    failure
    for example in examples
    for failure in _compare(
      task,
      example,
      "gold",
      task.gold_completion(example),
      task.best_values(example),
    )
  ]


def damage_failures(
  task: Inspectable, examples: Iterable[base.Example]
) -> list[Failure]:
  """Damages right answers in every way that applies, and compares the rewards.

  Args:
    task: the task.
    examples: with references in the rewarded format.

  Returns:
    What scored otherwise.
  """
  return [
    failure
    for example in examples
    for what, text, expected in task.damages(example)
    for failure in _compare(task, example, what, text, expected)
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
