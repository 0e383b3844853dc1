"""Readers of mathematical problems in local files, recognised by their columns.

  columns                                read as
  prompt (messages), reward_model        verl: DAPO-Math-17k and its like
  question, answer with `####`           GSM8K
  Body, Question, Answer                 SVAMP
  problem or question, with an answer    MATH, AIME, AMC, Minerva and others
  or a solution that ends in a box

Names of columns are compared without their case.
"""

import math
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from saw_jax.tasks import answer_task, base, row_files
from saw_jax.tasks.math import answers

_PROBLEMS = ("problem", "question")
_ANSWERS = ("answer", "final_answer", "expected_answer")
# DAPO's prompts ask for a last line "Answer: ...", which no box answers.
_DAPO_START = "Solve the following math problem step by step."
_DAPO_END = "Remember to put your answer on its own line"
_CALCULATOR = re.compile(r"<<[^<>]*>>")  # GSM8K's annotations


# What a reader makes of a row: messages, the answer, and the working.
_Row = tuple[tuple[dict[str, str], ...], Any, str]


def read_examples(
  path: str | pathlib.Path, *, first_key: int = 0, template: str = "{problem}"
) -> list[base.Example]:
  """Reads a file of problems, counting keys by row; of equal rows the first.

  `{problem}` in the template is the last message, `meta["working"]` a solution.
  """
  examples: dict[tuple, base.Example] = {}
  reader = None

  def read(raw: Any) -> _Row:
    nonlocal reader
    if not isinstance(raw, Mapping):
      raise ValueError("not an object with named fields")
    row = {str(name).lower(): value for name, value in raw.items()}
    reader = reader or _recognise(row)
    messages, answer, working = reader(row)
    return messages, _reference(answer), working and f"{working}\n"

  rows = row_files.parse_rows(path, read)
  for number, (messages, answer, working) in enumerate(rows):
    *others, last = messages
    asked = {**last, "content": template.replace("{problem}", last["content"])}
    meta = {"working": working}
    example = base.Example(first_key + number, (*others, asked), answer, meta)
    name = (*(m["content"] for m in messages), answer)
    examples.setdefault(name, example)
  if not examples:
    raise ValueError(f"{path}: no rows.")
  return list(examples.values())


def _recognise(row: dict[str, Any]) -> Callable[[dict[str, Any]], _Row]:
  if "prompt" in row and "reward_model" in row:
    return _read_verl
  if {"body", "question", "answer"} <= set(row):
    return _read_svamp
  if "question" in row and "####" in str(row.get("answer")):
    return _read_gsm8k
  problem = _first(row, _PROBLEMS)
  if problem and (_first(row, _ANSWERS) or "solution" in row):
    return _read_contest
  raise ValueError(
    "its columns are none of those that are known: "
    f"{', '.join(sorted(row)) or 'there are none'}"
  )


def _read_verl(row: dict[str, Any]) -> _Row:
  messages = row_files.messages(row)
  if not messages or messages[-1]["role"] != "user":
    raise ValueError("field 'prompt' does not end with a message of the user")
  *others, last = messages
  parts = last["content"].strip().split("\n\n")
  if parts[0].startswith(_DAPO_START) and parts[-1].startswith(_DAPO_END):
    last = {**last, "content": "\n\n".join(parts[1:-1])}
  model = row_files.field(row, "reward_model", dict)
  answer = row_files.field(model, "ground_truth", (str, int, float))
  return (*others, last), answer, ""


def _read_gsm8k(row: dict[str, Any]) -> _Row:
  text = row_files.field(row, "answer", str)
  working, mark, answer = text.rpartition("####")
  if not mark:
    raise ValueError("field 'answer' has no ####")
  question = row_files.field(row, "question", str)
  return _asked(question), answer, _CALCULATOR.sub("", working).strip()


def _read_svamp(row: dict[str, Any]) -> _Row:
  body = row_files.field(row, "body", str).strip()
  question = row_files.field(row, "question", str).strip()
  stop = "" if body.endswith((".", "!", "?", ",")) else "."
  answer = row_files.field(row, "answer", (int, float, str))
  return _asked(f"{body}{stop} {question}"), answer, ""


def _read_contest(row: dict[str, Any]) -> _Row:
  name = _first(row, _PROBLEMS)
  problem = row_files.field(row, name or _PROBLEMS[0], str)
  working = row.get("solution")
  working = working if isinstance(working, str) else ""
  name = _first(row, _ANSWERS)
  if name is None:
    answer = row_files.field(row, "solution", str)
    if answers.extract_answer(answer) is None:
      raise ValueError(r"field 'solution' has no complete \boxed{...}")
  else:
    answer = row_files.field(row, name, (str, int, float, list))
    if isinstance(answer, list):
      if len(answer) != 1:
        raise ValueError(f"field {name!r} has {len(answer)} answers, not one")
      (answer,) = answer
  return _asked(problem), answer, working.strip()


def _first(row: dict[str, Any], names: tuple[str, ...]) -> str | None:
  return next((n for n in names if row.get(n) is not None), None)


def _asked(problem: str) -> tuple[dict[str, str], ...]:
  if not problem.strip():
    raise ValueError("the problem is empty")
  return answer_task.ask(problem.strip())


def _reference(answer: Any) -> str:
  if isinstance(answer, bool) or not isinstance(answer, str | int | float):
    raise ValueError(f"the answer is no text and no number: {answer!r}")
  if isinstance(answer, float):
    if not math.isfinite(answer):
      raise ValueError(f"the answer is not finite: {answer!r}")
    answer = f"{answer:.12f}".rstrip("0").rstrip(".")
  text = str(answer).strip()
  if (inside := answers.extract_answer(text)) is not None:
    text = inside
  if not answers.normalise_answer(text):
    raise ValueError("the answer is empty")
  return text
