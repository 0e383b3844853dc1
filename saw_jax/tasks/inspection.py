"""A dry run of a task's rewards: do right answers win, do mistakes cost?

`experiments/doctor.py` prints what comes out; an empty list is a healthy task.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from saw_jax.tasks import base
from saw_jax.tasks.tool_calling import (
  answers as tool_answers,
)
from saw_jax.tasks.tool_calling import (
  catalogue as tool_catalogue,
)

# What is wrong, the completion, and its values; None: less than the best.
Damage = tuple[str, str, tuple[float | None, ...]]


class Inspectable(base.Task, Protocol):
  """A task that knows its right answers.

  It may also have `damages(example)`, which yields a `Damage` for each way to
  be wrong; without it, references are taken to be tool calls.
  """

  def gold_completion(self, example: base.Example) -> str:
    """Returns a completion that is right."""
    ...

  def best_values(self, example: base.Example) -> tuple[float, ...]:
    """Returns what that completion scores."""
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
    for what, text, expected in _damages(task, example)
    for failure in _compare(task, example, what, text, expected)
  ]


def _damages(task: Inspectable, example: base.Example) -> Iterator[Damage]:
  """Yields a task's own damages, or those of a tool call."""
  own = getattr(task, "damages", None)
  yield from _tool_damages(task, example) if own is None else own(example)


def _tool_damages(task: Inspectable, example: base.Example) -> Iterator[Damage]:
  """Damages a reference in the format that ToolRL rewards.

  A mistake in the format must cost the format alone, and one in a call the
  correctness alone: for a reference with one call by the amount that
  `expected_correctness` says, for one with more by any amount.
  """
  best, _ = task.best_values(example)
  answer = tool_answers.read(example.reference)
  for what, damage in tool_answers.FORMAT_DAMAGES.items():
    text = damage(example.reference)
    if text != example.reference:
      yield what, text, (best, 0.0)
  if not answer.calls:
    return
  unclosed = example.reference.replace("</tool_call>", "")
  yield "unclosed_call", unclosed, (-3.0, 0.0)
  swapped = tool_answers.write_calls(answer.calls[::-1])
  yield "swapped_calls", tool_answers.write(answer, swapped), (3.0, 1.0)
  for damage in tool_answers.CALL_DAMAGES:
    if not tool_answers.applies(damage, answer.calls):
      continue
    what = damage.__name__
    draws = tool_catalogue.Draws("inspection", example.key, what)
    body = damage(draws, answer.calls, example.meta.get("offered", ()))
    expected = expected_correctness(what, answer.calls)
    yield what, tool_answers.write(answer, body), (expected, 1.0)


def expected_correctness(
  what: str, calls: Sequence[tool_answers.Call]
) -> float | None:
  """Returns the correctness of a gold answer with one named mistake.

  With one gold call of p parameters, S_max = p + 2, and a mistake loses that
  part of S which it touches.

  Args:
    what: name of a call damage.
    calls: the gold calls.

  Returns:
    The reward, or None for several calls, where it depends on which is hit.
  """
  if what == "broken_json":
    return -3.0
  if len(calls) != 1:
    return None
  p = len(calls[0]["parameters"])
  lost = {
    "wrong_value": 1.0,
    "wrong_type": 1.0,
    "missing_parameter": 1.0 + 1.0 / max(p, 1),
    "extra_parameter": 1.0 / (p + 1),
    "extra_call": 0.5,
    "wrong_tool": p + 2.0,
  }[what]
  return 3.0 - 6.0 * lost / (p + 2)


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
