"""A dry run of a task's rewards: do right answers win, do mistakes cost?

Such a task has `gold_completion(example)`, a completion that is right,
`best_values(example)`, what it scores, and `damages(example)`, wrong ones.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

from saw_jax.tasks import base

# What is wrong, the completion, and its values; None: less than the best.
Damage = tuple[str, str, tuple[float | None, ...]]


class Failure(NamedTuple):
  """An answer that did not score what it should."""

  key: int
  what: str
  expected: tuple[float | None, ...]  # None: less than the right answer's.
  values: tuple[float | None, ...]
  completion: str


def gold_failures(task: Any, examples: Iterable[base.Example]) -> list[Failure]:
  """Finds the examples whose own right answer does not score the most."""
  cases = (
    (one, ("gold", task.gold_completion(one), task.best_values(one)))
    for one in examples
  )
  return _failures(task, cases)


def damage_failures(
  task: Any, examples: Iterable[base.Example]
) -> list[Failure]:
  """Damages right answers in every way, and finds what scored otherwise."""
  cases = ((one, damage) for one in examples for damage in task.damages(one))
  return _failures(task, cases)


def keyless_failures(
  task: Any, examples: Iterable[base.Example]
) -> list[Failure]:
  """Finds the examples whose right answer no vote and no label can be."""
  return [
    Failure(one.key, "answer_key finds nothing", (), (), gold)
    for one in examples
    if task.answer_key(gold := task.gold_completion(one), one) is None
  ]


def _failures(
  task: Any, cases: Iterable[tuple[base.Example, Damage]]
) -> list[Failure]:
  found = []
  for example, (what, text, expected) in cases:
    values, best = task.score(example, text).values, task.best_values(example)
    if any(
      got is None or (got >= most if want is None else abs(got - want) > 1e-9)
      for got, want, most in zip(values, expected, best, strict=True)
    ):
      found.append(Failure(example.key, what, expected, values, text))
  return found
