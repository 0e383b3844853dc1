"""Readers of mathematical problems in local files, recognised by their columns.

  columns                                read as
  prompt (messages), reward_model        verl: DAPO-Math-17k and its like
  question, answer with `####`           GSM8K
  Body, Question, Answer                 SVAMP
  problem or question, with an answer    MATH, AIME, AMC, Minerva and others
  or a solution that ends in a box

Names of columns are compared without their case.
"""

import logging
import math
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from saw_jax.tasks import answer_task, base, row_files
from saw_jax.tasks.math import answers
from saw_jax.tasks.row_files import field

_PROBLEMS = ("problem", "question")
_ANSWERS = ("answer", "final_answer", "expected_answer")
# DAPO's prompts ask for a last line "Answer: ...", which no box answers.
_DAPO_START = "Solve the following math problem step by step."
_DAPO_END = "Remember to put your answer on its own line"
_CALCULATOR = re.compile(r"<<[^<>]*>>")  # GSM8K's annotations

_LOG = logging.getLogger(__name__)
_MOST_UNREAD = 0.01  # of the rows of a file

# What a reader makes of a row: messages, the answer, and the working.
_Found = tuple[answer_task.Messages, Any, str]


def read_examples(
  path: str | pathlib.Path, key: int = 0, template: str = "%s"
) -> list[base.Example]:
  """Reads a file of problems, of equal rows the first.

  Rows that cannot be read are left out, and named in a warning; the file is
  refused where they are many. `meta["working"]` is a solution, if there is one.
  """
  reader, number = None, -1
  found: dict[tuple, base.Example] = {}
  bad: dict[int, ValueError] = {}
  for number, raw in enumerate(row_files.read_rows(path)):
    try:
      if not isinstance(raw, Mapping):
        raise ValueError("not an object with named fields")
      row = {str(name).lower(): value for name, value in raw.items()}
      reader = reader or _recognise(row)
      messages, answer, working = reader(row)
      notes = {"working": working and f"{working.strip()}\n"}
      parts = messages, _reference(answer), notes
    except ValueError as error:
      bad[number] = error
      continue
    example = answer_task.make_example(key + number, parts, template)
    texts = (*(m["content"] for m in example.messages), example.reference)
    found.setdefault(texts, example)
  if bad:
    first, error = next(iter(bad.items()))
    said, count = f"{path}, row {first}: {error}", number + 1
    if len(bad) > _MOST_UNREAD * count:
      raise ValueError(f"{said} ({len(bad)} of {count} rows are unread)")
    _LOG.warning("%s. Left out: rows %s", said, ", ".join(map(str, bad)))
  if not found:
    raise ValueError(f"{path}: no rows.")
  return list(found.values())


def _recognise(row: dict[str, Any]) -> Callable[[dict[str, Any]], _Found]:
  if "prompt" in row and "reward_model" in row:
    return _read_verl
  if {"body", "question", "answer"} <= set(row):
    return _read_svamp
  if "question" in row and "####" in str(row.get("answer")):
    return _read_gsm8k
  if _first(row, _PROBLEMS) and (_first(row, _ANSWERS) or "solution" in row):
    return _read_contest
  known = ", ".join(sorted(row)) or "there are none"
  raise ValueError(f"its columns are none of those that are known: {known}")


def _read_verl(row: dict[str, Any]) -> _Found:
  messages = row_files.messages(row)
  if not messages or messages[-1]["role"] != "user":
    raise ValueError("field 'prompt' does not end with a message of the user")
  *others, last = messages
  parts = last["content"].strip().split("\n\n")
  if parts[0].startswith(_DAPO_START) and parts[-1].startswith(_DAPO_END):
    last = {**last, "content": "\n\n".join(parts[1:-1])}
  model = field(row, "reward_model", dict)
  return (*others, last), field(model, "ground_truth", (str, int, float)), ""


def _read_gsm8k(row: dict[str, Any]) -> _Found:
  working, mark, answer = field(row, "answer", str).rpartition("####")
  if not mark:
    raise ValueError("field 'answer' has no ####")
  working = _CALCULATOR.sub("", working)
  return _asked(field(row, "question", str)), answer, working


def _read_svamp(row: dict[str, Any]) -> _Found:
  body, question = (field(row, n, str).strip() for n in ("body", "question"))
  stop = "" if body.endswith((".", "!", "?", ",")) else "."
  answer = field(row, "answer", (int, float, str))
  return _asked(f"{body}{stop} {question}"), answer, ""


def _read_contest(row: dict[str, Any]) -> _Found:
  problem = field(row, _first(row, _PROBLEMS) or _PROBLEMS[0], str)
  name = _first(row, _ANSWERS)
  answer = field(row, name or "solution", (str, int, float, list))
  if name is None and answers.extract_reference(str(answer)) is None:
    raise ValueError(r"field 'solution' has no complete \boxed{...}")
  if isinstance(answer, list):
    if len(answer) != 1:
      raise ValueError(f"field {name!r} has {len(answer)} answers, not one")
    (answer,) = answer
  working = row.get("solution")
  return _asked(problem), answer, working if isinstance(working, str) else ""


def _first(row: dict[str, Any], names: tuple[str, ...]) -> str | None:
  return next((n for n in names if row.get(n) is not None), None)


def _asked(problem: str) -> answer_task.Messages:
  if not problem.strip():
    raise ValueError("the problem is empty")
  return answer_task.ask(problem.strip())


def _reference(answer: Any) -> str:
  if isinstance(answer, bool) or not isinstance(answer, str | int | float):
    raise ValueError(f"the answer is no text and no number: {answer!r}")
  if isinstance(answer, float):
    if not math.isfinite(answer):
      raise ValueError(f"the answer is not finite: {answer!r}")
    answer = f"{answer:.15g}"
  text = str(answer).strip()
  inside = answers.extract_reference(text)
  text = text if inside is None else inside
  if not answers.normalise_answer(text):
    raise ValueError("the answer is empty")
  return text
