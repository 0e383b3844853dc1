"""Summaries, scored for quality and conciseness: SAW's second task.

Rewards are those of a judge (`reward="judge"`), as in the paper, or rules that
stand in for it (`reward="rules"`). The texts are the documentation that comes
with the library, or local files, such as Reddit TL;DR.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from saw_jax.tasks import base
from saw_jax.tasks.draws import Draws
from saw_jax.tasks.summaries import (
  files as summary_files,
)
from saw_jax.tasks.summaries import (
  rewards as summary_rewards,
)
from saw_jax.tasks.summaries.judge import Judge, JudgeConfig

# A byte-level BPE of the library's texts, see `tasks.make_tokenizer`.
VOCABULARY = pathlib.Path(__file__).parent / "assets/summaries_bpe.json"
# Keys of test examples start here, so that no sample of one shares a random
# key with a sample of a training example.
TEST_KEYS = 2**30

REWARDS = ("rules", "judge")
STAND_IN = "stand-in: rule rewards, not the judge"
TEMPLATES = {
  "plain": "{text}",
  "sentence": "Summarize this text in one short sentence.\n\n{text}",
}


@dataclasses.dataclass(frozen=True)
class SummariesConfig:
  """Where texts come from, how a summary is asked for, and who scores it."""

  seed: int = 0
  # None: every row. A number takes a random subset of that size, which `seed`
  # chooses.
  num_train: int | None = None
  num_test: int | None = None
  template: str = "sentence"  # TEMPLATES
  max_source_chars: int | None = None  # rows with longer texts are left out
  # Texts end at the last space within so many characters: for policies that
  # start from nothing, which cannot read more.
  cut_source_chars: int | None = None

  reward: str = "rules"  # a stand-in; or "judge", with the extra `judge`
  # Of the rule on length: the longest summary with 10, the shortest with 0.
  target_chars: int = 110
  limit_chars: int = 250
  judge: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  # Local files; without them, the documentation that comes along.
  train_path: str | None = None
  test_path: str | None = None

  def __post_init__(self):
    for value, choices, what in (
      (self.template, tuple(TEMPLATES), "template"),
      (self.reward, REWARDS, "reward"),
    ):
      if value not in choices:
        raise ValueError(
          f"unknown {what} {value!r}: {base.nearest(value, choices)}"
        )
    if not 0 < self.target_chars < self.limit_chars:
      raise ValueError(
        "target_chars and limit_chars do not ascend from 0: "
        f"{self.target_chars}, {self.limit_chars}."
      )
    for name in (
      "num_train",
      "num_test",
      "max_source_chars",
      "cut_source_chars",
    ):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise ValueError(f"{name} is not positive: {value}.")
    if bool(self.train_path) != bool(self.test_path):
      raise ValueError(
        "train_path and test_path go together: only one of them is set."
      )
    known = [field.name for field in dataclasses.fields(JudgeConfig)]
    for name in self.judge:
      if name not in known:
        raise TypeError(
          f"task 'summaries' has no option judge.{name}: "
          f"{base.nearest(name, known)}"
        )


class SummariesTask(base.Splits):
  """Summaries, scored for quality and for conciseness.

  Attributes:
    stand_in: what to print beside each number, as the rewards are not those of
      the paper; empty with a judge.
    has_gold: whether the reference is known to score best. A judge may think
      otherwise, and is not asked.
  """

  name = "summaries"
  components = (
    base.Component("quality", 0.0, summary_rewards.BEST),
    base.Component("conciseness", 0.0, summary_rewards.BEST),
  )

  def __init__(self, config: SummariesConfig | None = None):
    self.config = SummariesConfig() if config is None else config
    self.has_gold = self.config.reward == "rules"
    self.stand_in = STAND_IN if self.has_gold else ""
    self.judge = None
    if self.config.reward == "judge":
      names = [component.name for component in self.components]
      self.judge = Judge(JudgeConfig(**self.config.judge), names)

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    if self.judge is None:  # Else the first text would pay for the import.
      summary_rewards.load()

  @property
  def splits(self) -> tuple[str, ...]:
    """Names of the splits."""
    return ("train", "test")

  def score(self, example: base.Example, completion: str) -> base.Score:
    """Returns (quality, conciseness) of a completion; none without a verdict.

    An empty completion scores 0 twice. Where a judge did not answer in time,
    the outcome is `TIMED_OUT`; where it failed or its reply has no numbers,
    `CRASHED`.
    """
    if summary_rewards.is_empty(completion):
      return base.Score((0.0, 0.0), base.Outcome.UNPARSABLE)
    if self.judge is None:
      values = self._rule_values(example, completion)
    else:
      verdict = self.judge.judge(example.meta["source"], completion)
      if verdict.scores is None:
        late, failed = base.Outcome.TIMED_OUT, base.Outcome.CRASHED
        return base.Score((None, None), late if verdict.is_late else failed)
      values = verdict.scores
    is_best = min(values) >= summary_rewards.BEST
    outcome = base.Outcome.RIGHT if is_best else base.Outcome.WRONG
    return base.Score(values, outcome)

  def gold_completion(self, example: base.Example) -> str:
    """Returns the reference."""
    return example.reference

  def best_values(self, example: base.Example) -> tuple[float, float]:
    """Returns what the reference scores by the rules; it may be long."""
    return summary_rewards.BEST, self._conciseness(example.reference)

  def damages(
    self, example: base.Example
  ) -> Iterator[tuple[str, str, tuple[float | None, float]]]:
    """Yields summaries that must score less by the rules.

    Args:
      example: one of the task's.

    Yields:
      What is wrong, the summary, and its values; None is less than the best.
    """
    yield "empty", " ", (0.0, 0.0)
    repeated = " ".join([example.reference] * 4)
    for what, text in (
      ("repeated", repeated),
      ("copied", example.meta["source"]),
    ):
      yield what, text, (None, self._conciseness(text))

  def demonstrations(
    self,
    count: int,
    *,
    seed: int,
    reference_rate: float,
    words: Sequence[int] = (4, 24),
  ) -> list[tuple[base.Example, str]]:
    """Returns training examples with summaries, of which some are good.

    The others are the beginning of the text, up to a random number of words: a
    policy warmed up on them knows what summaries look like, copies, and says
    too much as often as not.

    Args:
      count: how many. The training examples are gone through in order, and
        again with other summaries if they are too few.
      seed: of the summaries.
      reference_rate: probability of the reference.
      words: the least and the largest number of words of a beginning.

    Returns:
      Pairs of an example and a summary.
    """
    if not 0 <= reference_rate <= 1:
      raise ValueError(f"not a probability: {reference_rate}.")
    low, high = words
    if not 1 <= low <= high:
      raise ValueError(f"words are not a range from 1: {low}, {high}.")
    examples = self.examples("train")
    pairs = []
    for index in range(count):
      example = examples[index % len(examples)]
      draws = Draws("summary demonstration", seed, index)
      text = example.reference
      if not draws.chance(reference_rate):
        size = draws.choice(range(low, high + 1))
        text = " ".join(example.meta["source"].split()[:size])
      pairs.append((example, text))
    return pairs

  def _rule_values(
    self, example: base.Example, completion: str
  ) -> tuple[float, float]:
    quality = summary_rewards.quality(
      completion, example.reference, example.meta["source"]
    )
    return quality, self._conciseness(completion)

  def _conciseness(self, text: str) -> float:
    config = self.config
    return summary_rewards.conciseness(
      text, target_chars=config.target_chars, limit_chars=config.limit_chars
    )

  def _make(self, split: str) -> Sequence[base.Example]:
    config = self.config
    paths = summary_files.DOCSUM_FILES
    if config.train_path and config.test_path:
      paths = {"train": (config.train_path,), "test": (config.test_path,)}
    rows = summary_files.read_rows(paths[split])
    if split == "train":
      held_out = summary_files.read_rows(paths["test"])
      rows = summary_files.without_leaks(rows, held_out)
    limit = config.max_source_chars
    if limit is not None:
      rows = [row for row in rows if len(row.text) <= limit]
    if config.cut_source_chars is not None:
      rows = [
        row._replace(text=_cut(row.text, config.cut_source_chars))
        for row in rows
      ]
    if not rows:
      raise ValueError(
        f"no row of split {split!r} is left: each is held out too, or longer "
        f"than max_source_chars = {limit}"
      )
    size = config.num_train if split == "train" else config.num_test
    first_key = TEST_KEYS if split == "test" else 0
    return [
      base.Example(
        key=first_key + row.number,
        messages=(
          {
            "role": "user",
            "content": TEMPLATES[config.template].replace("{text}", row.text),
          },
        ),
        reference=row.summary,
        meta={**row.meta, "source": row.text},
      )
      for row in _subset(rows, size, config.seed)
    ]


def _cut(text: str, size: int) -> str:
  """Ends a text at its last space within a number of characters."""
  if len(text) <= size:
    return text
  return text[: size + 1].rpartition(" ")[0] or text[:size]


def _subset(
  rows: list[summary_files.Row], size: int | None, seed: int
) -> list[summary_files.Row]:
  """Returns a random subset in the files' order, or all if there are fewer."""
  if size is None or size >= len(rows):
    return rows
  chosen = np.random.default_rng(seed).permutation(len(rows))[:size]
  return [rows[index] for index in sorted(chosen)]
