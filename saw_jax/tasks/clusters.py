"""Answers of several responses to a prompt, numbered so that they can vote."""

from collections.abc import Callable, Sequence

import numpy as np

Equality = Callable[[str, str], bool]


def answer_ids(
  answers: Sequence[Sequence[str | None]], *, is_equal: Equality | None = None
) -> np.ndarray:
  """Numbers the answers to each prompt as they appear; None has -1.

  `P` prompts have `G` responses each; the ids are int32 `[P, G]`. Normal forms,
  such as a task's `answer_key` gives, need no `is_equal`. If that is no
  equivalence, an answer joins the first cluster whose first member it equals.

  References:
    The clusters of CARE, https://arxiv.org/abs/2605.25864

  >>> answer_ids([["7", None, "5", "7"]]).tolist()
  [[0, -1, 1, 0]]
  """
  sizes = {len(group) for group in answers}
  if len(sizes) > 1:
    raise ValueError(f"groups of different sizes: {sorted(sizes)}.")
  ids = np.full((len(answers), max(sizes, default=0)), -1, np.int32)
  for row, group in zip(ids, answers, strict=True):
    heads: list[str] = []
    for index, answer in enumerate(group):
      if answer is None:
        continue
      equal = (_are_equal(answer, head, is_equal) for head in heads)
      row[index] = next((n for n, same in enumerate(equal) if same), len(heads))
      if row[index] == len(heads):
        heads.append(answer)
  return ids


def _are_equal(answer: str, head: str, is_equal: Equality | None) -> bool:
  if answer == head or is_equal is None:
    return answer == head
  for pair in ((answer, head), (head, answer)):
    try:
      if is_equal(*pair):
        return True
    except Exception:  # A grader that fails does not see them equal.
      continue
  return False
