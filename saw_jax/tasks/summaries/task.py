"""Summaries, scored by a judge, as in SAW's paper, or rules in its place."""

import collections
import dataclasses
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from saw_jax import naming
from saw_jax.tasks import answer_task, base
from saw_jax.tasks.draws import Draws
from saw_jax.tasks.row_files import field
from saw_jax.tasks.summaries import rewards
from saw_jax.tasks.summaries.judge import Judge, JudgeConfig, Unscored

# A byte-level BPE, made by experiments/make_vocabularies.py.
VOCABULARY = pathlib.Path(__file__).parent / "assets/summaries_bpe.json"
_STAND_IN = "stand-in: rule rewards, not the judge"
_TEMPLATES = {
  "plain": "%s",
  "sentence": "Summarize this text in one short sentence.\n\n%s",
}
_DOCSUM = pathlib.Path(__file__).parent / "assets" / "docsum"
DOCSUM_FILES = {
  "train": (_DOCSUM / "train_apache.jsonl", _DOCSUM / "train_bsd.jsonl"),
  "test": (_DOCSUM / "test.jsonl",),
}

# Columns of texts, docsum's and Reddit TL;DR's, and of their summaries.
_TEXTS = ("text", "post", "prompt", "document")
_SUMMARIES = ("summary", "completion", "label")
_NOTES = ("name", "package", "licence")
_TL_DR = re.compile(r"\s*TL;DR:?\s*$", re.IGNORECASE)
_RUN = 8  # words
_SHARED = 0.2  # of the runs of the shorter text


@dataclasses.dataclass(frozen=True)
class SummariesConfig:
  """Where texts come from, how a summary is asked for, and who scores it."""

  seed: int = 0
  # None: every row. A number takes a random subset of that size, which `seed`
  # chooses.
  num_train: int | None = None
  num_test: int | None = None
  template: str = "sentence"  # or "plain"
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
    base.check_choice("template", self.template, _TEMPLATES)
    base.check_choice("reward", self.reward, ("rules", "judge"))
    if not 0 < self.target_chars < self.limit_chars:
      what = "target_chars and limit_chars do not ascend from 0"
      raise ValueError(f"{what}: {self.target_chars}, {self.limit_chars}.")
    base.check_positive(
      self, "num_train", "num_test", "max_source_chars", "cut_source_chars"
    )
    if bool(self.train_path) != bool(self.test_path):
      raise ValueError("train_path and test_path go together: set both.")
    known = [f"judge.{f.name}" for f in dataclasses.fields(JudgeConfig)]
    given = {f"judge.{name}": value for name, value in self.judge.items()}
    naming.check_options(known, given, "task 'summaries'")


class SummariesTask(answer_task.AnswerTask):
  """Summaries, scored for quality and for conciseness."""

  name = "summaries"
  components = (
    base.Component("quality", 0.0, rewards.BEST),
    base.Component("conciseness", 0.0, rewards.BEST),
  )
  splits = ("train", "test")
  Config = SummariesConfig
  _shows = "summary demonstration"

  def __init__(self, config: SummariesConfig | None = None):
    super().__init__(config)
    # Whether the reference is known to score best: a judge may think otherwise.
    self.has_gold = self.config.reward == "rules"
    # Printed beside each number, as these rewards are not those of the paper.
    self.stand_in = _STAND_IN if self.has_gold else ""
    self.judge = None
    if not self.has_gold:
      scored = [component.name for component in self.components]
      self.judge = Judge(JudgeConfig(**self.config.judge), scored)

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    if self.judge is None:  # Else the first text would pay for the import.
      rewards.load()

  def score(self, example: base.Example, completion: str) -> base.Score:
    """Returns (quality, conciseness); None of each without a verdict."""
    if rewards.is_empty(completion):
      return base.Score((0.0, 0.0), base.Outcome.UNPARSABLE)
    source = example.meta["source"]
    if self.judge is None:
      quality = rewards.quality(completion, example.reference, source)
      values = (quality, self._conciseness(completion))
    else:
      try:
        values = self.judge.judge(source, completion)
      except Unscored as error:
        is_late = error.kind == "late"
        outcome = base.Outcome.TIMED_OUT if is_late else base.Outcome.CRASHED
        return base.Score((None, None), outcome)
    is_best = min(values) >= rewards.BEST
    outcome = base.Outcome.RIGHT if is_best else base.Outcome.WRONG
    return base.Score(values, outcome)

  def best_values(self, example: base.Example) -> tuple[float, float]:
    return rewards.BEST, self._conciseness(example.reference)

  def damages(self, example: base.Example) -> Iterator[answer_task.Damage]:
    yield "empty", " ", (0.0, 0.0)
    repeated = " ".join([example.reference] * 4)
    texts = {"repeated": repeated, "copied": example.meta["source"]}
    for what, text in texts.items():
      yield what, text, (None, self._conciseness(text))

  def demonstrate(
    self,
    example: base.Example,
    draws: Draws,
    *,
    reference_rate: float,
    words: Sequence[int] = (4, 24),
  ) -> tuple[base.Example, str]:
    """Returns a good summary at a rate, or else so many words of the text."""
    low, high = words
    if not 1 <= low <= high:
      raise ValueError(f"words are not a range from 1: {low}, {high}.")
    if draws.chance(reference_rate):
      return example, example.reference
    size = draws.choice(range(low, high + 1))
    return example, " ".join(example.meta["source"].split()[:size])

  def _conciseness(self, text: str) -> float:
    config = self.config
    return rewards.conciseness(text, config.target_chars, config.limit_chars)

  def _make(self, split: str) -> Sequence[base.Example]:
    config = self.config
    paths = DOCSUM_FILES
    if config.train_path:
      paths = {"train": (config.train_path,), "test": (config.test_path,)}
    rows = read_examples(paths[split])
    if split == "train":
      rows = without_leaks(rows, read_examples(paths["test"]))
    limit, cut = config.max_source_chars, config.cut_source_chars
    if limit is not None:
      rows = [row for row in rows if len(row.meta["source"]) <= limit]
    if not rows:
      raise ValueError(
        f"no row of split {split!r} is left: each is held out too, or longer "
        f"than max_source_chars = {limit}"
      )
    key = answer_task.TEST_KEYS if split == "test" else 0
    size = config.num_test if split == "test" else config.num_train
    examples, template = [], _TEMPLATES[config.template]
    for row in answer_task.subset(rows, size, config.seed):
      text = row.meta["source"]
      if cut is not None and len(text) > cut:
        text = text[: cut + 1].rpartition(" ")[0] or text[:cut]
      parts = answer_task.ask(text), row.reference, row.meta | {"source": text}
      examples.append(answer_task.make_example(key + row.key, parts, template))
    return examples


def read_examples(paths: Sequence[str | pathlib.Path]) -> list[base.Example]:
  """Reads texts with summaries, with keys that count over all files."""
  examples: list[base.Example] = []
  for path in paths:
    examples += answer_task.read_examples(path, _read, len(examples))
  return examples


def without_leaks(
  train: Sequence[base.Example], test: Sequence[base.Example]
) -> list[base.Example]:
  """Leaves out the training rows that tell about a held-out one.

  A row leaks if its summary has the same words as a held-out one, or if the two
  texts share a fifth of the runs of eight words of the shorter one.
  """
  summaries = {tuple(rewards.words(row.reference)) for row in test}
  sizes, owners = [], collections.defaultdict(set)
  for index, row in enumerate(test):
    runs = _runs(row.meta["source"])
    sizes.append(len(runs))
    for run in runs:
      owners[run].add(index)

  def leaks(row: base.Example) -> bool:
    if tuple(rewards.words(row.reference)) in summaries:
      return True
    runs = _runs(row.meta["source"])
    shared = collections.Counter(i for run in runs for i in owners.get(run, ()))
    return any(
      count >= _SHARED * min(len(runs), sizes[index])
      for index, count in shared.items()
    )

  return [row for row in train if not leaks(row)]


def _read(row: Any) -> answer_task.Row:
  if not isinstance(row, Mapping):
    raise ValueError("not an object with named fields")
  chosen = [
    [name for name in choices if row.get(name) is not None]
    for choices in (_TEXTS, _SUMMARIES)
  ]
  if not all(chosen):
    texts, summaries = ", ".join(_TEXTS), ", ".join(_SUMMARIES)
    what = f"it has no text ({texts}) or no summary ({summaries})"
    known = ", ".join(sorted(map(str, row))) or "none"
    raise ValueError(f"{what}; its columns are {known}")
  text, summary = (field(row, names[0], str).strip() for names in chosen)
  text = _TL_DR.sub("", text)
  title = row.get("title")
  if isinstance(title, str) and title.strip():
    text = f"{title.strip()}\n\n{text}"
  for what, words in (("text", text), ("summary", summary)):
    if not any(map(str.isalnum, words)):
      raise ValueError(f"the {what} has no letter and no digit")
  meta = {"source": text} | {k: row[k] for k in _NOTES if k in row}
  return answer_task.ask(text), summary, meta


def _runs(text: str) -> set[tuple[str, ...]]:
  """Runs of words; a text that is shorter than one is a run itself."""
  words = rewards.words(text)
  return set(rewards.runs(words, _RUN)) or {tuple(words)}
