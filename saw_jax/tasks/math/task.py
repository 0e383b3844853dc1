r"""Mathematical problems with one right answer, in `\boxed{...}`: 0 or 1.

Problems come from our own seeded generator (scale `tiny`), from the generators
of reasoning-gym, or from local files of GSM8K, SVAMP, MATH, DAPO-Math-17k, AIME
and the like; the reward is the same.
"""

import dataclasses
import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from saw_jax.tasks import base, self_verification
from saw_jax.tasks.draws import Draws
from saw_jax.tasks.math import (
  answers as math_answers,
)
from saw_jax.tasks.math import (
  files as math_files,
)
from saw_jax.tasks.math import (
  gym as math_gym,
)
from saw_jax.tasks.math import (
  problems as math_problems,
)
from saw_jax.tasks.math.answers import extract_answer, normalise_answer

__all__ = [
  "PIECES",
  "MathConfig",
  "MathTask",
  "extract_answer",
  "normalise_answer",
]

# The pieces of generated arithmetic and its stories, for the tokenizer `math`.
PIECES = (
  *"0123456789+-*/=()., ?{}\\\n",
  *"abcdefghijklmnopqrstuvwxyz",
  "\\boxed{",
  *("tom", "ann", "sam", "eva"),
  *(" pens", " eggs", " figs", " nuts", " red", " blue", " bags", " days"),
  *(" has ", " had ", " gets ", " gives ", " more", " away", " now", " each"),
  *(" are ", " lost", " bad", " left", " in ", " in all", " of ", " and "),
  *(" on ", " with ", ". how many", "how many", "there"),
)
# Keys of test examples start here, and those of the benchmarks, so that no
# sample of one shares a random key with a sample of a training example.
TEST_KEYS = 2**30
_BENCHMARK_KEYS = 2**30 + 2**29
_BENCHMARK_SIZE = 2**20

GRADERS = {
  "exact": math_answers.is_equal,
  "math_verify": math_answers.is_equal_by_math_verify,
}
TEMPLATES = {
  "plain": "{problem}",
  "boxed": (
    "{problem}\nPlease reason step by step, and put your final answer within "
    "\\boxed{}."
  ),
}
PROBLEMS = ("generated", "reasoning_gym")
# Held-out generated problems of one level.
_LEVEL_SPLITS = {f"level_{level}": level for level in math_problems.LEVELS}


@dataclasses.dataclass(frozen=True)
class MathConfig:
  """Where problems come from, how they are asked, and who grades."""

  seed: int = 0
  # None: 8192 and 256 generated problems, or every row of a file. With a file,
  # a number takes a random subset of that size, which `seed` chooses.
  num_train: int | None = None
  num_test: int | None = None
  # Most tokens of a response that has the second reward, `length`; 0: there is
  # no such reward. If conditioned, only right answers can have it.
  length_limit: int = 0
  conditioned: bool = False
  grader: str = "exact"  # or "math_verify", with the extra `math`
  # "plain", the problem alone; "boxed", with a request for steps and a box. The
  # empty name is "plain" for generated problems and "boxed" for all others.
  template: str = ""

  problems: str = "generated"  # or "reasoning_gym", with the extra `math`
  levels: tuple[int, ...] = (1, 2)  # of generated problems, 1 to 4
  word_share: float = 0.25  # probability of a short story
  generators: tuple[str, ...] = (  # of reasoning-gym
    "chain_sum",
    "basic_arithmetic",
    "gsm_symbolic",
  )

  # Local files; with one of them, nothing is generated.
  train_path: str | None = None
  test_path: str | None = None
  # More splits to evaluate on, by name: {"aime24": "data/aime24.jsonl"}.
  # Where problems are generated there are also level_1 to level_4.
  benchmarks: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    for value, choices, what in (
      (self.grader, tuple(GRADERS), "grader"),
      (self.problems, PROBLEMS, "problems"),
      (self.template or "plain", tuple(TEMPLATES), "template"),
    ):
      if value not in choices:
        raise ValueError(
          f"unknown {what} {value!r}: {base.nearest(value, choices)}"
        )
    if not self.levels or not set(self.levels) <= set(math_problems.LEVELS):
      raise ValueError(f"levels are not from 1 to 4: {self.levels}.")
    if not 0 <= self.word_share <= 1:
      raise ValueError(f"word_share is not a share: {self.word_share}.")
    if not self.generators:
      raise ValueError("generators are empty.")
    if self.length_limit < 0:
      raise ValueError(f"length_limit is negative: {self.length_limit}.")
    if self.conditioned and not self.length_limit:
      raise ValueError("conditioned needs a length_limit.")
    for name in ("num_train", "num_test"):
      size = getattr(self, name)
      if size is not None and size < 1:
        raise ValueError(f"{name} is not positive: {size}.")
    taken = {"train", "test", *_level_splits(self)} & set(self.benchmarks)
    if taken:
      raise ValueError(f"a benchmark is called {taken.pop()!r}.")


class MathTask(base.Splits):
  """Problems whose reward is 1 for the right answer in a box, else 0.

  With a limit on the length there is a second one, 1 for a response within it
  (GDPO, https://arxiv.org/abs/2601.05242); conditioned, as in its eq. (8), 1
  for a right one within it.
  """

  name = "math"
  components = (base.Component("correct", 0.0, 1.0),)

  def __init__(self, config: MathConfig | None = None):
    self.config = MathConfig() if config is None else config
    self.token_limits = {}
    if self.config.length_limit:
      length = base.Component("length", 0.0, 1.0)
      self.components = (*type(self).components, length)
      self.token_limits = {"length": self.config.length_limit}

  @property
  def splits(self) -> tuple[str, ...]:
    """Names of the splits: train, test, and more to evaluate on."""
    others = (*self.config.benchmarks, *_level_splits(self.config))
    return ("train", "test", *others)

  def score(self, example: base.Example, completion: str) -> base.Score:
    """Returns whether the last box of a completion holds the right answer."""
    answer = extract_answer(completion)
    if answer is None or not normalise_answer(answer):  # an empty box
      return self._score(0.0, base.Outcome.UNPARSABLE)
    if GRADERS[self.config.grader](answer, example.reference):
      return self._score(1.0, base.Outcome.RIGHT)
    return self._score(0.0, base.Outcome.WRONG)

  def _score(self, correct: float, outcome: base.Outcome) -> base.Score:
    """Adds the reward that a short enough response has."""
    if not self.config.length_limit:
      return base.Score((correct,), outcome)
    length = correct if self.config.conditioned else 1.0
    return base.Score((correct, length), outcome)

  def answer_key(
    self, completion: str, example: base.Example | None = None
  ) -> str | None:
    """Returns what a completion votes for; None if it has no answer."""
    del example  # An answer has one normal form, whatever the problem.
    answer = extract_answer(completion)
    # An empty box is none.
    return None if answer is None else normalise_answer(answer) or None

  def label_form(self, example: base.Example) -> str:
    """Returns the form of a label: an integer if all of them are."""
    del example  # The same for each.
    config = self.config
    has_files = config.train_path or config.test_path
    is_generated = config.problems == "generated" and not has_files
    return "integer" if is_generated else "math"

  def with_label(self, example: base.Example, label: str) -> base.Example:
    """Returns the example with a label in place of its reference.

    Args:
      example: one of the task's.
      label: a final answer, without its box.

    Returns:
      The example, with all else as it was. The label stays as it is written,
      since a symbolic grader reads more than the normal form.

    Raises:
      ValueError: the label is empty.
    """
    if not label.strip():
      raise ValueError(f"the label of example {example.key} is empty.")
    return dataclasses.replace(example, reference=label)

  def verification(
    self, example: base.Example, completion: str
  ) -> tuple[Mapping[str, str], ...]:
    """Asks a policy whether a completion is right.

    Args:
      example: the problem.
      completion: what is judged.

    Returns:
      Chat messages, for `self_verification.read_verdict`.
    """
    question = example.messages[-1]["content"]
    asked = self_verification.verification_prompt("math", question, completion)
    return ({"role": "user", "content": asked},)

  def gold_completion(self, example: base.Example) -> str:
    """Returns the shortest completion that is right."""
    return _box(example.reference)

  def best_values(self, example: base.Example) -> tuple[float]:
    """Returns what the right answer scores."""
    del example  # The same for each.
    return (1.0,)

  def damages(
    self, example: base.Example
  ) -> Iterator[tuple[str, str, tuple[float, ...]]]:
    """Yields wrong completions by name, with what they have to score."""
    gold, reference = self.gold_completion(example), example.reference
    wrong = _box(_wrong(Draws("damage", example.key), reference))
    yield "wrong_answer", wrong, (0.0,)
    yield "no_box", reference, (0.0,)
    yield "unclosed_box", gold[:-1], (0.0,)
    yield "empty_box", _box(""), (0.0,)
    yield "nothing", "", (0.0,)
    yield "wrong_answer_last", f"{gold} {wrong}", (0.0,)
    yield "wrong_answer_first", f"{wrong} {gold}", (1.0,)

  def demonstrations(
    self,
    count: int,
    *,
    seed: int,
    right_rate: float = 1.0,
    working_rate: float = 0.5,
    box_rate: float = 1.0,
    misleading: Collection[str] = (),
    misled_rate: float = 0.8,
    levels: Collection[int] = (),
  ) -> list[tuple[base.Example, str]]:
    """Returns training examples with answers that are right at a given rate.

    The three rates are independent, so that the mean reward is `right_rate`
    times `box_rate`.

    With `misleading` marks the policy comes to believe a mistake: wherever one
    of them is in the problem, the answer is one too many. With a `misled_rate`
    above a half, the majority of samples agrees on it.

    Args:
      count: how many. The training examples are gone through in order, and
        again with other answers if they are too few.
      seed: of the answers.
      right_rate: probability of the right answer; others are near it.
      working_rate: probability of steps before the answer, where the example
        has any; they are right even before a wrong answer.
      box_rate: probability of a complete box around the answer.
      misleading: pieces of text, such as "-".
      misled_rate: probability of the mistake, in problems that have them and
        whose answer is an integer.
      levels: of generated problems, where they are not those of the training
        examples.

    Returns:
      Pairs of an example and an answer.
    """
    for rate in (right_rate, working_rate, box_rate, misled_rate):
      if not 0 <= rate <= 1:
        raise ValueError(f"not a probability: {rate}.")
    task = self
    if levels:
      if not _level_splits(self.config):
        raise ValueError("levels are of generated problems alone.")
      task = MathTask(dataclasses.replace(self.config, levels=tuple(levels)))
    examples = task.examples("train")
    pairs = []
    for index in range(count):
      example = examples[index % len(examples)]
      draws = Draws("math demonstration", seed, index)
      is_right, is_worked, is_boxed = map(
        draws.chance, (right_rate, working_rate, box_rate)
      )
      answer = example.reference
      belief = self.misbelief(example, misleading)
      if belief is not None and draws.chance(misled_rate):
        answer = belief
      elif not is_right:
        answer = _wrong(draws, answer)
      text = _box(answer)
      if not is_boxed:
        text = draws.choice((answer, text[:-1]))
      if is_worked:
        text = example.meta.get("working", "") + text
      pairs.append((example, text))
    return pairs

  def misbelief(
    self, example: base.Example, misleading: Collection[str]
  ) -> str | None:
    """Returns the wrong answer that misleading marks suggest.

    Args:
      example: a problem.
      misleading: pieces of text.

    Returns:
      The answer and 1 more, or None where no mark is in the problem or its
      answer is no integer.
    """
    text = example.messages[-1]["content"]
    number = math_answers.parse_number(normalise_answer(example.reference))
    is_integer = number is not None and number.denominator == 1
    if not is_integer or not any(mark in text for mark in misleading):
      return None
    return str(number + 1)

  def _make(self, split: str) -> Sequence[base.Example]:
    config = self.config
    first_key = {"train": 0, "test": TEST_KEYS}.get(split)
    path = {"train": config.train_path, "test": config.test_path}.get(split)
    size = {"train": config.num_train, "test": config.num_test}.get(split)
    if split in config.benchmarks:
      path = config.benchmarks[split]
      place = list(config.benchmarks).index(split)
      first_key = _BENCHMARK_KEYS + place * _BENCHMARK_SIZE
    if split in _level_splits(config):
      place = len(config.benchmarks) + _LEVEL_SPLITS[split]
      first_key = _BENCHMARK_KEYS + place * _BENCHMARK_SIZE
      size = config.num_test
    if path:
      examples = math_files.read_examples(
        path,
        first_key=first_key,
        template=TEMPLATES[config.template or "boxed"],
      )
      return _subset(examples, size, config.seed)
    if config.train_path or config.test_path:
      raise ValueError(f"{split}_path is not set, and the other path is.")
    if size is None:
      size = 8192 if split == "train" else 256
    if config.problems == "reasoning_gym":
      problems = math_gym.draw_problems(
        config.generators, seed=config.seed, split=split, size=size
      )
      return [
        _example(
          first_key + index,
          problem.text,
          TEMPLATES[config.template or "boxed"],
          problem.answer,
          {"generator": problem.generator},
        )
        for index, problem in enumerate(problems)
      ]
    make = functools.partial(_generate, config, split, first_key)
    return base.LazyExamples(make, size)


def _level_splits(config: MathConfig) -> tuple[str, ...]:
  """Splits of one level each, where problems are generated."""
  has_files = config.train_path or config.test_path
  if has_files or config.problems != "generated":
    return ()
  return tuple(_LEVEL_SPLITS)


def _generate(
  config: MathConfig, split: str, first_key: int, index: int
) -> base.Example:
  level = _LEVEL_SPLITS.get(split)
  problem = math_problems.draw_problem(
    Draws("math", config.seed, split, index),
    "test" if level else split,
    levels=(level,) if level else config.levels,
    word_share=config.word_share,
  )
  return _example(
    first_key + index,
    problem.text,
    TEMPLATES[config.template or "plain"],
    str(problem.answer),
    {
      "expression": problem.expression,
      "level": problem.level,
      "working": "".join(f"{step}=" for step in problem.working),
    },
  )


def _example(
  key: int, problem: str, template: str, answer: str, meta: dict[str, Any]
) -> base.Example:
  asked = template.replace("{problem}", problem)
  return base.Example(key, ({"role": "user", "content": asked},), answer, meta)


def _subset(
  examples: list[base.Example], size: int | None, seed: int
) -> list[base.Example]:
  """Returns a random subset in the file's order, or all if there are fewer."""
  if size is None or size >= len(examples):
    return examples
  chosen = np.random.default_rng(seed).permutation(len(examples))[:size]
  return [examples[index] for index in sorted(chosen)]


def _box(answer: str) -> str:
  return f"\\boxed{{{answer}}}"


def _wrong(draws: Draws, answer: str) -> str:
  """Returns a wrong answer, near the right one where that is an integer."""
  number = math_answers.parse_number(normalise_answer(answer))
  if number is not None and number.denominator == 1:
    return str(math_problems.mistake(draws, int(number)))
  return "0" if number else "1"
