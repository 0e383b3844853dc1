"""Which examples a step uses, and which answers to a prompt are one.

There is no iterator to save: a run that resumes at step s draws what it would
have drawn.
"""

import functools
from collections.abc import Sequence

import numpy as np


def batch_indices(
  num_examples: int, batch_size: int, *, seed: int, step: int
) -> np.ndarray:
  """Returns the distinct examples of a step. int64 `[batch_size]`.

  Each epoch goes through the examples in an order of its own, without
  replacement, and drops what does not fill a last batch.

  >>> [batch_indices(4, 2, seed=0, step=s).tolist() for s in range(2)]
  [[2, 0], [1, 3]]
  """
  if not 0 < batch_size <= num_examples:
    what = f"a batch of {batch_size} distinct examples"
    raise ValueError(f"{what} out of {num_examples}.")
  if step < 0:
    raise ValueError(f"step is negative: {step}.")
  epoch, batch = divmod(step, num_examples // batch_size)
  order = _order(num_examples, seed, epoch)
  return order[batch * batch_size : (batch + 1) * batch_size].copy()


@functools.lru_cache(maxsize=64)  # actors ask for each example of each seed
def _order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
  return np.random.default_rng([seed, epoch]).permutation(num_examples)


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
