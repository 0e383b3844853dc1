"""Problems of reasoning-gym's generators, with splits that share none.

Its item `i` of seed `s` is mostly item `i + 1` of seed `s - 1`, so two splits
with neighbouring seeds would be the same but for one item. Here the text of a
problem decides which split it belongs to, as for our own problems.

References:
  Stojanovski et al., "Reasoning Gym: Reasoning Environments for Reinforcement
  Learning with Verifiable Rewards". https://arxiv.org/abs/2505.24760
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from saw_jax.tasks import base
from saw_jax.tasks.math import problems as math_problems

# Items of one data set; some of them are lists of this length inside.
_MAX_SIZE = 2**20


class GymProblem(NamedTuple):
  """A problem of one of the generators."""

  text: str
  answer: str
  generator: str


def draw_problems(
  generators: Sequence[str], *, seed: int, split: str, size: int
) -> list[GymProblem]:
  """Draws problems of a split, the generators in turn.

  Args:
    generators: names of reasoning-gym's data sets.
    seed: of them all.
    split: "train" or "test".
    size: how many.

  Returns:
    The problems; fewer of them are the first of more.

  Raises:
    ImportError: reasoning-gym is missing.
    ValueError: it has no such generator, or too few problems.
  """
  try:
    import reasoning_gym
    from reasoning_gym import factory
  except ImportError as error:
    raise ImportError(
      "problems='reasoning_gym' needs reasoning-gym: "
      "pip install 'saw_jax[math]'"
    ) from error
  for name in generators:
    if name not in factory.DATASETS:
      raise ValueError(
        f"reasoning-gym has no generator {name!r}: "
        f"{base.nearest(name, tuple(factory.DATASETS))}"
      )
  sources = [
    # Seeds so far apart do not meet.
    _problems(
      reasoning_gym.create_dataset(name, size=_MAX_SIZE, seed=seed * _MAX_SIZE),
      name,
      split,
    )
    for name in generators
  ]
  try:
    return [next(sources[index % len(sources)]) for index in range(size)]
  except StopIteration:
    raise ValueError(
      f"reasoning-gym has too few problems for {size} of {split!r}"
    ) from None


def _problems(data, name: str, split: str) -> Iterator[GymProblem]:
  for item in range(_MAX_SIZE):
    entry = data[item]
    if math_problems.split_of(entry["question"]) == split:
      question, answer = entry["question"].strip(), str(entry["answer"]).strip()
      yield GymProblem(question, answer, name)
