"""What tasks with one answer to a prompt share."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from saw_jax.tasks import base, inspection, row_files
from saw_jax.tasks.draws import Draws

_T = TypeVar("_T")
Messages = tuple[Mapping[str, str], ...]
Damage = inspection.Damage
# What a row says: its messages, the reference, and notes.
Row = tuple[Messages, str, Mapping[str, Any]]

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


class LazyExamples(Sequence[base.Example]):
  """`size` examples, each made by its index when it is asked for."""

  def __init__(self, make: Callable[[int], base.Example], size: int):
    self._make, self._indices = make, range(size)

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index):
    if isinstance(index, slice):
      return [self._make(i) for i in self._indices[index]]
    return self._make(self._indices[index])


class AnswerTask:
  """Splits from a generator or from files, each made once, when asked for.

  A task has the class of its config as `Config` and writes an answer between
  its `_tags`. It makes an example by `_parse(row)` of a file, or by
  `_draw(split, index)`, and answers one, rightly or not, by
  `demonstrate(example, draws, ...)`. Worker processes get it without examples.
  """

  name: str
  components: tuple[base.Component, ...]
  Config: type
  _shows: str  # begins the key of its demonstrations' draws
  _template = "%s"  # around what is asked
  _tags = ("", "")
  # What a right answer, a wrong one and none are worth.
  _scores: tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]
  # Places left free before the keys of benchmarks, and of generated splits.
  _key_gaps = (0, 0)
  _examples: Mapping[str, Sequence[base.Example]] = {}

  def __init__(self, config: Any = None):
    self.config = self.Config() if config is None else config

  def __getstate__(self) -> dict[str, Any]:
    return {k: v for k, v in self.__dict__.items() if k != "_examples"}

  @property
  def splits(self) -> tuple[str, ...]:
    config = self.config
    return ("train", "test", *config.benchmarks, *config.generated_splits)

  def examples(self, split: str) -> Sequence[base.Example]:
    base.check_split(split, self.splits)
    if split not in self._examples:
      self._examples = {**self._examples, split: self._make(split)}
    return self._examples[split]

  def gold_completion(self, example: base.Example) -> str:
    return self._block(example.reference)

  def best_values(self, example: base.Example) -> tuple[float, ...]:
    return tuple(component.maximum for component in self.components)

  def damages(self, example: base.Example) -> Iterator[Damage]:
    """Yields answers with a mistake, and what they score."""
    gold, reference = self.gold_completion(example), example.reference
    wrong = self._block(self._wrong(Draws("damage", example.key), reference))
    right, false, none = self._scores
    yield "wrong_answer", wrong, false
    yield "no_tags", reference, none
    yield "unclosed", gold.removesuffix(self._tags[1]), none
    yield "empty", self._block(""), none
    yield "nothing", "", none
    yield "wrong_answer_last", f"{gold} {wrong}", false
    yield "wrong_answer_first", f"{wrong} {gold}", right

  def demonstrations(
    self, count: int, *, seed: int, **options: Any
  ) -> list[tuple[base.Example, str]]:
    """Returns training examples with answers that are right at given rates.

    The options are those of `demonstrate`. Examples come again where they are
    too few.
    """
    for name, rate in options.items():
      if name.endswith(("_rate", "_accuracy")) and not 0 <= rate <= 1:
        raise ValueError(f"{name} is not a probability: {rate}.")
    found, examples = [], self.examples("train")
    for index in range(count):
      draws = Draws(self._shows, seed, index)
      example = examples[index % len(examples)]
      found.append(self.demonstrate(example, draws, **options))
    return found

  def _block(self, answer: str) -> str:
    return answer.join(self._tags)

  def _make(self, split: str) -> Sequence[base.Example]:
    config = self.config
    key = TEST_KEYS if split == "test" else 0
    if split not in ("train", "test"):
      gap = self._key_gaps[split not in config.benchmarks]
      key = _OTHER_KEYS + (self.splits.index(split) - 2 + gap) * _OTHER_SIZE
    sizes = {"train": config.num_train, "test": config.num_test}
    paths = {"train": config.train_path, "test": config.test_path}
    if path := {**paths, **config.benchmarks}.get(split):
      return subset(self._read(path, key), sizes.get(split), config.seed)
    if config.has_files:
      raise ValueError(f"{split}_path is not set, and the other path is.")
    size = sizes.get(split, config.num_test)
    size = size or (8192 if split == "train" else 256)
    draw, frame = self._generator(split, size), self._template
    return LazyExamples(lambda i: make_example(key + i, draw(i), frame), size)

  def _read(self, path: str, key: int) -> list[base.Example]:
    return read_examples(path, self._parse, key, self._template)

  def _generator(self, split: str, size: int) -> Callable[[int], Row]:
    return functools.partial(self._draw, split)


def ask(text: str) -> Messages:
  return ({"role": "user", "content": text},)


def make_example(key: int, row: Row, template: str = "%s") -> base.Example:
  """Makes an example of a row, with the template around its last message."""
  (*others, last), reference, meta = row
  asked = {**last, "content": template % last["content"]}
  return base.Example(key, (*others, asked), reference, meta)


def read_examples(
  path: str | pathlib.Path,
  parse: Callable[[Any], Row],
  key: int = 0,
  template: str = "%s",
) -> list[base.Example]:
  """Reads a file, counting keys by row."""
  rows = enumerate(row_files.parse_rows(path, parse), key)
  examples = [make_example(number, row, template) for number, row in rows]
  if not examples:
    raise ValueError(f"{path}: no rows.")
  return examples


def subset(rows: list[_T], size: int | None, seed: int) -> list[_T]:
  """Returns a random subset in its old order, or all if there are fewer."""
  if size is None or size >= len(rows):
    return rows
  chosen = np.random.default_rng(seed).permutation(len(rows))[:size]
  return [rows[index] for index in sorted(chosen)]
