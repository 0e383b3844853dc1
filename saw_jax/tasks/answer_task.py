"""What tasks with one answer to a prompt share."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from saw_jax.tasks import base, self_verification
from saw_jax.tasks.draws import Draws

_T = TypeVar("_T")
Messages = tuple[Mapping[str, str], ...]
# What is wrong with a completion, the completion, and its values; None: less
# than the best.
Damage = tuple[str, str, tuple[float | None, ...]]

# Test examples count their keys from here, and each further split from a place
# of its own: no sample of one shares a random key with a training sample.
TEST_KEYS = 2**30
_OTHER_KEYS = 2**30 + 2**29
_OTHER_SIZE = 2**20


@dataclasses.dataclass(frozen=True)
class AnswerConfig:
  """Where the prompts of a task come from: a generator, or local files."""

  seed: int = 0
  # None: 8192 and 256 generated examples, or every row of a file. With a file,
  # a number takes a random subset of that size, which `seed` chooses.
  num_train: int | None = None
  num_test: int | None = None
  # Local files; with one of them, nothing is generated.
  train_path: str | None = None
  test_path: str | None = None
  # More splits to evaluate on, by name: {"aime24": "data/aime24.jsonl"}.
  benchmarks: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    base.check_positive(self, "num_train", "num_test")
    taken = {"train", "test", *self.generated_splits} & set(self.benchmarks)
    if taken:
      raise ValueError(f"a benchmark is called {taken.pop()!r}.")

  @property
  def has_files(self) -> bool:
    return bool(self.train_path or self.test_path)

  @property
  def generated_splits(self) -> tuple[str, ...]:
    return ()


class AnswerTask(base.Splits):
  """Splits from a generator or from files, as an `AnswerConfig` says.

  A task has the class of its config as `Config`, writes an answer with
  `_block(answer)`, and makes the examples of a split by `_read(path, key)` and
  `_generate(split, key, size)`, where `key` is that of the first one.
  """

  name: str
  components: tuple[base.Component, ...]
  Config: type[AnswerConfig]
  # Places left free between the keys of benchmarks and of generated splits.
  _key_gap = 0

  def __init__(self, config: Any = None):
    self.config = self.Config() if config is None else config

  @property
  def splits(self) -> tuple[str, ...]:
    config = self.config
    return ("train", "test", *config.benchmarks, *config.generated_splits)

  def gold_completion(self, example: base.Example) -> str:
    return self._block(example.reference)

  def best_values(self, example: base.Example) -> tuple[float]:
    return (self.components[0].maximum,)

  def verification(self, example: base.Example, completion: str) -> Messages:
    asked = self_verification.verification_prompt
    return ask(asked(self.name, example.messages[-1]["content"], completion))

  def _make(self, split: str) -> Sequence[base.Example]:
    config = self.config
    key = TEST_KEYS if split == "test" else 0
    if split not in ("train", "test"):
      place = self.splits.index(split) - 2
      place += 0 if split in config.benchmarks else self._key_gap
      key = _OTHER_KEYS + place * _OTHER_SIZE
    paths = {"train": config.train_path, "test": config.test_path}
    if path := {**paths, **config.benchmarks}.get(split):
      sizes = {"train": config.num_train, "test": config.num_test}
      return subset(self._read(path, key), sizes.get(split), config.seed)
    if config.has_files:
      raise ValueError(f"{split}_path is not set, and the other path is.")
    size = config.num_train if split == "train" else config.num_test
    default = 8192 if split == "train" else 256
    return self._generate(split, key, default if size is None else size)


def ask(text: str) -> Messages:
  return ({"role": "user", "content": text},)


def subset(rows: list[_T], size: int | None, seed: int) -> list[_T]:
  """Returns a random subset in its old order, or all if there are fewer."""
  if size is None or size >= len(rows):
    return rows
  chosen = np.random.default_rng(seed).permutation(len(rows))[:size]
  return [rows[index] for index in sorted(chosen)]


def demonstration_draws(
  task: base.Task, name: str, count: int, seed: int
) -> Iterator[tuple[base.Example, Draws]]:
  """Goes through the training examples, again where they are too few."""
  examples = task.examples("train")
  for index in range(count):
    yield examples[index % len(examples)], Draws(name, seed, index)


def check_rates(*rates: float) -> None:
  for rate in rates:
    if not 0 <= rate <= 1:
      raise ValueError(f"not a probability: {rate}.")
