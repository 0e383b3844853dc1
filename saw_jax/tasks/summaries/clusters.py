"""Answers of several responses to a prompt, numbered so that they can vote."""

from collections.abc import Callable, Sequence

import numpy as np


def answer_ids(
  answers: Sequence[Sequence[str | None]],
  *,
  is_equal: Callable[[str, str], bool] | None = None,
) -> np.ndarray:
  """Numbers the answers to each prompt, in the order in which they appear.

  Args:
    answers: of `P` prompts with `G` responses each; None for no answer. Normal
      forms, such as a task's `answer_key` gives, need no `is_equal`.
    is_equal: whether two answers are the same; asked in both directions. If it
      is no equivalence, an answer joins the first cluster whose first member it
      equals. An exception counts as no.

  Returns:
    The ids, from 0 for each prompt; -1 for no answer. Int32, shape `[P, G]`.

  Raises:
    ValueError: prompts with different numbers of responses.

  References:
    The clusters of CARE, https://arxiv.org/abs/2605.25864

  >>> answer_ids([["7", None, "5", "7"]]).tolist()
  [[0, -1, 1, 0]]
  """
  sizes = {len(group) for group in answers}
  if len(sizes) > 1:
    raise ValueError(f"groups of different sizes: {sorted(sizes)}.")
  ids = np.full((len(answers), *sizes, *([0] * (not sizes))), -1, np.int32)
  for row, group in zip(ids, answers, strict=True):
    heads: list[str] = []
    for index, answer in enumerate(group):
      if answer is None:
        continue
      row[index] = _place(answer, heads, is_equal)
      if row[index] == len(heads):
        heads.append(answer)
  return ids


def _place(
  answer: str,
  heads: list[str],
  is_equal: Callable[[str, str], bool] | None,
) -> int:
  """The number of the first cluster that an answer belongs to."""
  for number, head in enumerate(heads):
    if answer == head:
      return number
    if is_equal is not None:
      for pair in ((answer, head), (head, answer)):
        try:
          if is_equal(*pair):
            return number
        except Exception:  # A grader that fails does not see them equal.
          continue
  return len(heads)
