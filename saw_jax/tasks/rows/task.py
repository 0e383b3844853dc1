"""Prompts from rows of one's own, rewarded by functions of one's own."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from saw_jax import naming
from saw_jax.tasks import base, row_files
from saw_jax.tasks.answer_task import TEST_KEYS
from saw_jax.tasks.rows import rewards as rewards_lib
from saw_jax.tasks.rows.rewards import Row
from saw_jax.tasks.workers.pool import RewardError


@dataclasses.dataclass(frozen=True)
class RowsConfig:
  """Where rows come from, and what is done with them: see `saw_jax.task`."""

  rows: Any = ()
  prompt: str = "prompt"
  rewards: Any = ()
  ranges: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  answer: str = ""
  answer_key: Any = None
  system: str = ""
  test: Any = 0.1

  def __post_init__(self):
    if isinstance(self.test, (int, float)) and not 0 < self.test < 1:
      said = "a share between 0 and 1, a file, or rows"
      raise ValueError(f"test is {said}, not {self.test}")


class RowsTask:
  """Rows as examples; each reward function is a component of the reward."""

  name = "rows"
  has_gold = False  # no row says which completion is best

  def __init__(self, config: RowsConfig):
    self._rewards = rewards_lib.make_rewards(config.rewards, config.ranges)
    parts = [(x.name, x.minimum, x.maximum) for x in self._rewards]
    self.components = tuple(base.Component(*part) for part in parts)
    if not _is_path(config.rows):
      config = dataclasses.replace(config, rows=_listed(config.rows))
    if not isinstance(config.test, float | str | os.PathLike):
      config = dataclasses.replace(config, test=_listed(config.test))
    self.config = config

  def __getstate__(self) -> dict[str, Any]:
    """What worker processes get: no row, as each comes with its example."""
    bare = dataclasses.replace(
      self.config, rows=(), rewards=(), test=0.5, answer_key=None
    )
    state = {**self.__dict__, "config": bare}
    state.pop("_splits", None)
    return state

  @functools.cached_property
  def _splits(self) -> dict[str, list[base.Example]]:
    config, test = self.config, self.config.test
    found = self._read(config.rows, 0)
    if not isinstance(test, float):
      return {"train": found, "test": self._read(test, TEST_KEYS)}
    digests = [_digest(one.messages) for one in found]
    # Of few rows there may be none below: the first in order is taken then.
    cut = max(test, min(digests, default=0.0))
    split: dict[str, list[base.Example]] = {"train": [], "test": []}
    for one, digest in zip(found, digests, strict=True):
      if digest <= cut:
        split["test"].append(dataclasses.replace(one, key=TEST_KEYS + one.key))
      else:
        split["train"].append(one)
    if not split["train"]:
      raise ValueError(
        f"{_place(config.rows)}: of {len(found)} rows with {len(set(digests))} "
        f"prompts none is left to train on, with test={test}: pass a test set"
      )
    return split

  def examples(self, split: str) -> Sequence[base.Example]:
    base.check_split(split, ("train", "test"))
    return self._splits[split]

  def score(self, example: base.Example, completion: str) -> base.Score:
    return self._score([(example, completion)])[0]

  @property
  def score_many(self) -> Callable | None:
    """Scores pairs of an example and a completion, if that is of use."""
    gains = any(one.is_batched or one.is_async for one in self._rewards)
    return self._score if gains else None

  def remember(self, directory: str | os.PathLike) -> dict[str, Any]:
    """Writes down rows that are in no file; gives what makes the task again."""
    config, folder = self.config, pathlib.Path(directory)
    given, places = self._rewards, ("rows", "test")
    written = {name: _kept(folder, getattr(config, name)) for name in places}
    written["rewards"] = {one.name: naming.place_of(one.fn) for one in given}
    written |= {k: getattr(config, k) for k in ("prompt", "answer", "system")}
    if config.answer_key is not None:
      written["answer_key"] = naming.place_of(config.answer_key)
    ranges = {one.name: (one.minimum, one.maximum) for one in given}
    return {**written, "ranges": ranges}

  def _score(self, pairs: Sequence[tuple[base.Example, str]]):
    texts = [text for _, text in pairs]
    rows = [example.meta["row"] for example, _ in pairs]
    best = tuple(one.maximum for one in self._rewards)
    outcomes = base.Outcome.WRONG, base.Outcome.RIGHT
    return [
      base.Score(values, outcomes[values == best])
      for values in rewards_lib.columns(self._rewards, texts, rows)
    ]

  def _read(self, source: Any, first_key: int) -> list[base.Example]:
    where = _place(source)
    rows = row_files.read_rows(source) if _is_path(source) else source
    found = []
    for number, row in enumerate(rows):
      try:
        found.append(self._example(row, first_key + number))
      except (TypeError, ValueError) as error:
        raise ValueError(f"{where}, row {number}: {error}") from error
    if not found:
      raise ValueError(f"{where}: no rows.")
    return found

  def _example(self, row: Any, key: int) -> base.Example:
    config = self.config
    if not isinstance(row, Mapping):
      raise ValueError(f"not a dict with columns, but a {type(row).__name__}")
    if "{" in config.prompt:
      names = [x for _, x, _, _ in string.Formatter().parse(config.prompt) if x]
      for name in names:
        _column(row, name)
      try:
        asked: Any = config.prompt.format_map(row)
      except (LookupError, AttributeError) as error:
        raise ValueError(f"prompt {config.prompt!r}: no {error}") from error
    else:
      asked = _column(row, config.prompt)
    messages = _messages(asked)
    if config.system:
      messages = ({"role": "system", "content": config.system}, *messages)
    reference = str(_column(row, config.answer)) if config.answer else ""
    return base.Example(key, messages, reference, {"row": row})


class VotedRowsTask(RowsTask):
  """Rows whose completions have an answer that can be voted on, or bought."""

  def answer_key(
    self, completion: str, example: base.Example | None = None
  ) -> str | None:
    try:
      found = self.config.answer_key(completion)
    except Exception as error:
      said = f"answer_key on completion {completion[:80]!r}: {error!r}"
      raise RewardError(
        f"{said}; it is None where there is no answer"
      ) from error
    return None if found is None else str(found)

  def gold_completion(self, example: base.Example) -> str:
    return example.reference

  def label_form(self, example: base.Example) -> str:
    return "text"

  def with_label(self, example: base.Example, label: str) -> base.Example:
    """Also in the row, as a number if it had one, where functions look."""
    row, value = example.meta["row"], label
    if (kind := type(row[self.config.answer])) in (int, float):
      with contextlib.suppress(ValueError):
        value = kind(label)
    row = {**row, self.config.answer: value}
    return dataclasses.replace(example, reference=label, meta={"row": row})


def make_task(config: RowsConfig) -> RowsTask:
  """Makes the task; with an `answer_key`, one that can be voted on."""
  if not config.answer_key:
    return RowsTask(config)
  if not config.answer:
    raise ValueError("answer_key needs answer, the column of the reference")
  if isinstance(config.answer_key, str):
    key = naming.load(config.answer_key)
    config = dataclasses.replace(config, answer_key=key)
  return VotedRowsTask(config)


def _is_path(given: Any) -> bool:
  return isinstance(given, str | os.PathLike)


def _place(source: Any) -> str:
  return str(source) if _is_path(source) else "rows"


def _listed(rows: Any) -> list[Row]:
  """Rows of a list, an iterator or a data set, as plain dicts."""
  if isinstance(rows, Mapping):
    raise ValueError(
      "rows are a list of dicts, not one mapping: of a data set with splits "
      f"({', '.join(map(str, rows))}), pass one"
    )
  if not isinstance(rows, Iterable):
    raise TypeError(f"rows are a file or a list of dicts, not {rows!r}")
  return [dict(row) if isinstance(row, Mapping) else row for row in rows]


def _column(row: Row, name: str) -> Any:
  if name not in row:
    raise ValueError(f"no column {name!r}: {naming.nearest(name, [*row])}")
  return row[name]


def _messages(asked: Any) -> tuple[Mapping[str, str], ...]:
  if isinstance(asked, str):
    return ({"role": "user", "content": asked},)
  if not isinstance(asked, list | tuple) or not asked:
    raise ValueError(f"a prompt is a text or a list of messages, not {asked!r}")
  return row_files.messages({"prompt": list(asked)})


def _digest(messages: Sequence[Mapping[str, str]]) -> float:
  """A number from 0 to 1 that is of the prompt alone."""
  text = json.dumps(messages, sort_keys=True)
  digest = hashlib.sha256(text.encode()).digest()
  return int.from_bytes(digest[:6], "big") / 2**48


def _kept(folder: pathlib.Path, rows: Any) -> str | float:
  """A share, or a file; rows in memory go into one, named by what they say."""
  if isinstance(rows, float):
    return rows
  if _is_path(rows):
    return str(pathlib.Path(rows).resolve())

  def plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)

  text = "".join(json.dumps(row, default=plain) + "\n" for row in rows)
  # Other rows have another name: those of a run are never overwritten, and a
  # run with others is another run.
  digest = hashlib.sha256(text.encode()).hexdigest()[:8]
  path = folder.resolve() / f"rows_{digest}.jsonl"
  if not path.exists():
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
  return str(path)
