"""Reader of public knights-and-knaves puzzles in local files.

  field                                 what it is
  quiz                                  the puzzle in English
  solution_text_format                  "(1) Zoey is a knave ...", or
  reward_model.ground_truth             verl: the same in an object or as text

Where a row has no `quiz`, the last message of its `prompt` is the puzzle: those
of some files are wrapped in chat markers already, which would come twice. No
data comes with the library.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from saw_jax.tasks import base, row_files
from saw_jax.tasks.knights import answers as knights_answers

_TRUTHS = ("solution_text_format", "answer", "ground_truth", "target")


def read_examples(
  path: str | pathlib.Path, *, first_key: int = 0, template: str = "{puzzle}"
) -> list[base.Example]:
  """Reads a file of puzzles.

  Args:
    path: a `.jsonl`, `.json` or `.parquet` file.
    first_key: key of the row number 0.
    template: what is asked, with `{puzzle}` for the puzzle.

  Returns:
    The examples in the file's order, their keys counted by row.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: a row is broken; file and row number (from 0) are named.
    ImportError: pyarrow is missing, for a parquet file.
  """
  path = pathlib.Path(path)
  examples = []
  for number, row in enumerate(row_files.read_rows(path)):
    try:
      puzzle, truth = _puzzle(row), _truth(row)
    except ValueError as error:
      raise ValueError(f"{path}, row {number}: {error}") from error
    asked = template.replace("{puzzle}", puzzle)
    examples.append(
      base.Example(
        first_key + number, ({"role": "user", "content": asked},), truth
      )
    )
  if not examples:
    raise ValueError(f"{path}: no rows.")
  return examples


def _puzzle(row: Any) -> str:
  if isinstance(row, Mapping) and "quiz" not in row and "prompt" in row:
    messages = row_files.field(row, "prompt", list)
    text = row_files.field(messages[-1] if messages else None, "content", str)
    if "<|" in text:
      raise ValueError(
        "field 'prompt' has chat markers, and there is no 'quiz'"
      )
  else:
    text = row_files.field(row, "quiz", str)
  if not text.strip():
    raise ValueError("the puzzle is empty")
  return text.strip()


def _truth(row: Mapping[str, Any]) -> str:
  holder: Any = row
  if not any(name in row for name in _TRUTHS):
    model = row_files.field(row, "reward_model", Mapping)
    holder = row_files.field(model, "ground_truth", (Mapping, str))
  if isinstance(holder, Mapping):
    name = next((name for name in _TRUTHS if name in holder), _TRUTHS[0])
    holder = row_files.field(holder, name, str)
  truth = knights_answers.canonical(knights_answers.read_roles(holder))
  if truth is None:
    raise ValueError(f"no roles in the solution {holder!r}")
  return truth
