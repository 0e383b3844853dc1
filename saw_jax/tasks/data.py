"""Which examples a step uses: a function of the step and nothing else.

There is no iterator to save: a run that resumes at step s draws what it would
have drawn.
"""

import functools

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
  start = batch * batch_size
  return _order(num_examples, seed, epoch)[start : start + batch_size].copy()


@functools.lru_cache(maxsize=4)
def _order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
  return np.random.default_rng([seed, epoch]).permutation(num_examples)
