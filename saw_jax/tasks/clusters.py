"""Answers of several responses to a prompt, numbered so that they can vote."""

from collections.abc import Sequence

import numpy as np


def answer_ids(answers: Sequence[Sequence[str | None]]) -> np.ndarray:
  """Numbers the answers to each prompt as they appear; None has -1.

  `P` prompts have `G` responses each; the ids are int32 `[P, G]`. Answers are
  in normal form, such as a task's `answer_key` gives.

  >>> answer_ids([["7", None, "5", "7"]]).tolist()
  [[0, -1, 1, 0]]
  """
  ids = []
  for group in answers:
    numbers: dict[str | None, int] = {None: -1}
    ids.append([numbers.setdefault(x, len(numbers) - 1) for x in group])
  return np.array(ids, np.int32)
