"""A dry run of a task's rewards: do right answers win, do mistakes cost?

`experiments/doctor.py` prints what comes out; an empty list is a healthy task.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from saw_jax.tasks import base, tool_answers, tool_calling, tool_catalogue


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
  task: tool_calling.ToolCallingTask, examples: Iterable[base.Example]
) -> list[Failure]:
  """Finds the examples whose own reference does not score the most.

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
      task, example, "gold", example.reference, task.best_values(example)
    )
  ]


def damage_failures(
  task: tool_calling.ToolCallingTask, examples: Iterable[base.Example]
) -> list[Failure]:
  """Damages references in every way that applies, and compares the rewards.

  A mistake in the format must cost the format alone, and one in a call the
  correctness alone: for a reference with one call by the amount that
  `expected_correctness` says, for one with more by any amount.

  Args:
    task: the task.
    examples: with references in the rewarded format.

  Returns:
    What scored otherwise.
  """
  failures = []
  for example in examples:
    answer = tool_answers.read(example.reference)
    best, _ = task.best_values(example)
    for what, damage in tool_answers.FORMAT_DAMAGES.items():
      text = damage(example.reference)
      if text != example.reference:
        failures += _compare(task, example, what, text, (best, 0.0))
    if not answer.calls:
      continue
    unclosed = example.reference.replace("</tool_call>", "")
    failures += _compare(task, example, "unclosed_call", unclosed, (-3.0, 0.0))
    swapped = tool_answers.write_calls(answer.calls[::-1])
    text = tool_answers.write(answer, swapped)
    failures += _compare(task, example, "swapped_calls", text, (3.0, 1.0))
    for damage in tool_answers.CALL_DAMAGES:
      if not tool_answers.applies(damage, answer.calls):
        continue
      what = damage.__name__
      draws = tool_catalogue.Draws("inspection", example.key, what)
      body = damage(draws, answer.calls, example.meta.get("offered", ()))
      expected = expected_correctness(what, answer.calls)
      text = tool_answers.write(answer, body)
      failures += _compare(task, example, what, text, (expected, 1.0))
  return failures


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
  task: tool_calling.ToolCallingTask,
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
