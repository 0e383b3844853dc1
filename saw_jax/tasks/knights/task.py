"""Knights and knaves: who tells the truth? Four rewards, from -3 to 3.

Puzzles come from our own seeded generator, with 2 to 8 people and exactly one
solution, or from local files of the public sets. Demonstrations can make a
policy that is confidently wrong on the puzzles with certain operators, and
right on the others: there its own majority misleads, and a label is worth most.
"""

import dataclasses
import functools
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from saw_jax.tasks import base, self_verification
from saw_jax.tasks.draws import Draws
from saw_jax.tasks.knights import (
  answers as knights_answers,
)
from saw_jax.tasks.knights import (
  files as knights_files,
)
from saw_jax.tasks.knights import (
  puzzles as knights_puzzles,
)

__all__ = ["PIECES", "KnightsConfig", "KnightsTask"]

# As in the math task: no two splits share a key.
TEST_KEYS = 2**30
_BENCHMARK_KEYS = 2**30 + 2**29
_BENCHMARK_SIZE = 2**20

NAMES = ("ann", "bob", "cat", "dan", "eva", "fay", "gus", "hal")
# The pieces of compact puzzles, for the tokenizer `knights`.
PIECES = (
  *NAMES,
  *("=knight", "=knave", ":", "\n", "|", "<answer>", "</answer>"),
  *(" and ", " or ", " implies ", " iff "),
  # Of a verdict on an answer.
  *("?", "true", "false"),
)

TEMPLATES = {
  "compact": "{puzzle}",
  "sentences": (
    "{puzzle}\nThink step by step. Then say of each person what they are, "
    "between <answer> and </answer>, in the form name=knight|name=knave."
  ),
}


@dataclasses.dataclass(frozen=True)
class KnightsConfig:
  """Where puzzles come from, and how they are asked."""

  seed: int = 0
  # None: 8192 and 256 generated puzzles, or every row of a file. With a file, a
  # number takes a random subset of that size, which `seed` chooses.
  num_train: int | None = None
  num_test: int | None = None
  # "compact", a line of few tokens a person; "sentences", English with a
  # request for a format. The empty name is "compact" for generated puzzles.
  # Files are in English, and always asked as "sentences".
  template: str = ""

  people: tuple[int, ...] = (2, 3)  # of generated puzzles, 2 to 8
  compound_rate: float = 0.5  # of claims with and, or, implies, iff; not 0
  shuffle_names: bool = False  # whether a name can be anybody's

  # Local files; with one of them, nothing is generated.
  train_path: str | None = None
  test_path: str | None = None
  # More splits to evaluate on, by name. Without a file there are also the test
  # puzzles of each number of people: "people_3".
  benchmarks: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    if self.template and self.template not in TEMPLATES:
      raise ValueError(
        f"unknown template {self.template!r}: "
        f"{base.nearest(self.template, tuple(TEMPLATES))}"
      )
    least, most = knights_puzzles.MIN_PEOPLE, knights_puzzles.MAX_PEOPLE
    if not self.people or not all(least <= n <= most for n in self.people):
      raise ValueError(f"people are not from {least} to {most}: {self.people}.")
    if not 0 < self.compound_rate <= 1:
      raise ValueError(
        f"compound_rate is not above 0, up to 1: {self.compound_rate}."
      )
    for name in ("num_train", "num_test"):
      size = getattr(self, name)
      if size is not None and size < 1:
        raise ValueError(f"{name} is not positive: {size}.")
    taken = {"train", "test", *_people_splits(self)} & set(self.benchmarks)
    if taken:
      raise ValueError(f"a benchmark is called {taken.pop()!r}.")


class KnightsTask(base.Splits):
  """Puzzles whose reward is 3 for all roles right, and less for the rest."""

  name = "knights"
  components = (
    base.Component("roles", knights_answers.NO_BLOCK, knights_answers.RIGHT),
  )

  def __init__(self, config: KnightsConfig | None = None):
    self.config = KnightsConfig() if config is None else config

  @property
  def splits(self) -> tuple[str, ...]:
    """Names of the splits: train, test, and more to evaluate on."""
    others = (*self.config.benchmarks, *_people_splits(self.config))
    return ("train", "test", *others)

  def score(self, example: base.Example, completion: str) -> base.Score:
    """Returns one of the four rewards."""
    value = knights_answers.reward(completion, example.reference)
    outcome = {
      knights_answers.RIGHT: base.Outcome.RIGHT,
      knights_answers.WRONG: base.Outcome.WRONG,
    }.get(value, base.Outcome.UNPARSABLE)
    return base.Score((value,), outcome)

  def answer_key(
    self, completion: str, example: base.Example | None = None
  ) -> str | None:
    """Returns what a completion votes for; None if it has no answer.

    With an example it is about the people of that puzzle and no others, and
    there is none if somebody has no role.
    """
    answer = knights_answers.extract_answer(completion)
    if answer is None:
      return None
    names = None
    if example is not None:
      names = knights_answers.read_roles(example.reference)
    return knights_answers.canonical(knights_answers.read_roles(answer), names)

  def label_form(self, example: base.Example) -> str:
    """Returns the form of a label: a role for each person of the puzzle."""
    names = sorted(knights_answers.read_roles(example.reference))
    return " ".join(("roles", *names))

  def with_label(self, example: base.Example, label: str) -> base.Example:
    """Returns the example with a label in place of its reference.

    Args:
      example: one of the task's.
      label: who is what, in any form that `knights_answers.read_roles` reads.

    Returns:
      The example, with all else as it was.

    Raises:
      ValueError: the label says nothing of somebody in the puzzle.
    """
    names = knights_answers.read_roles(example.reference)
    roles = knights_answers.read_roles(label)
    reference = knights_answers.canonical(roles, names)
    if reference is None:
      raise ValueError(
        f"the label of example {example.key} has no role for each of "
        f"{', '.join(sorted(names))}: {label!r}."
      )
    return dataclasses.replace(example, reference=reference)

  def verification(
    self, example: base.Example, completion: str
  ) -> tuple[Mapping[str, str], ...]:
    """Asks a policy whether a completion is right.

    Args:
      example: the puzzle.
      completion: what is judged.

    Returns:
      Chat messages, for `self_verification.read_verdict`. A compact puzzle is
      asked about in few tokens: the puzzle, the completion and "?".
    """
    question = example.messages[-1]["content"]
    asked = f"{question}\n{completion}?"
    if not self._is_compact:
      asked = self_verification.verification_prompt(
        "knights", question, completion
      )
    return ({"role": "user", "content": asked},)

  @property
  def _is_compact(self) -> bool:
    config = self.config
    has_files = config.train_path or config.test_path
    return not has_files and (config.template or "compact") == "compact"

  def gold_completion(self, example: base.Example) -> str:
    """Returns the shortest completion that is right."""
    return _block(example.reference)

  def best_values(self, example: base.Example) -> tuple[float]:
    """Returns what the right answer scores."""
    del example  # The same for each.
    return (knights_answers.RIGHT,)

  def damages(
    self, example: base.Example
  ) -> Iterator[tuple[str, str, tuple[float, ...]]]:
    """Yields wrong completions by name, with what they have to score."""
    gold, reference = self.gold_completion(example), example.reference
    draws = Draws("damage", example.key)
    roles = knights_answers.read_roles(reference)
    wrong = _block(_write(_flip_some(draws, roles)))
    no_block, no_roles, bad, right = (
      (value,)
      for value in (
        knights_answers.NO_BLOCK,
        knights_answers.NO_ROLES,
        knights_answers.WRONG,
        knights_answers.RIGHT,
      )
    )
    yield "wrong_role", wrong, bad
    if len(roles) > 1:
      yield "somebody_missing", _block(_without_one(draws, roles)), no_roles
    yield "no_roles", _block("nobody knows"), no_roles
    yield "negated", _block(reference.replace("=", " is not a ")), no_roles
    yield "no_tags", reference, no_block
    yield "unclosed", gold.removesuffix("</answer>"), no_block
    yield "empty_block", _block(""), no_block
    yield "nothing", "", no_block
    yield "wrong_answer_last", f"{gold} {wrong}", bad
    yield "wrong_answer_first", f"{wrong} {gold}", right

  def demonstrations(
    self,
    count: int,
    *,
    seed: int,
    right_rate: float = 1.0,
    format_rate: float = 1.0,
    misleading: Collection[str] = (),
    misled_rate: float = 0.8,
    verdict_rate: float = 0.0,
    verdict_accuracy: float = 0.8,
  ) -> list[tuple[base.Example, str]]:
    """Returns training examples with answers that are right at given rates.

    With `misleading` operators the policy comes to believe a mistake: whoever
    claims something with one of them is given the other role. It is one wrong
    answer to each such puzzle, so that with a `misled_rate` above a half the
    majority of samples agrees on it, in training and in test puzzles alike.

    Args:
      count: how many. The training examples are gone through in order, and
        again with other answers if they are too few.
      seed: of the answers.
      right_rate: probability of the right answer where nothing misleads, and
        where it might but did not; other answers have any roles wrong.
      format_rate: probability of a complete answer block.
      misleading: names of operators, from `knights_puzzles.OPERATORS`. Puzzles
        from files have none.
      misled_rate: probability of the mistake, in puzzles that have them.
      verdict_rate: share of the demonstrations that judge the answer that they
        would have given, rather than give it.
      verdict_accuracy: probability that a verdict is right.

    Returns:
      Pairs of an example and an answer.

    Raises:
      ValueError: no probability, or no operator.
    """
    for rate in (
      right_rate, format_rate, misled_rate, verdict_rate, verdict_accuracy,
    ):  # fmt: skip
      if not 0 <= rate <= 1:
        raise ValueError(f"not a probability: {rate}.")
    for operator in misleading:
      if operator not in knights_puzzles.OPERATORS:
        raise ValueError(
          f"unknown operator {operator!r}: "
          f"{base.nearest(operator, knights_puzzles.OPERATORS)}"
        )
    examples = self.examples("train")
    pairs = []
    for index in range(count):
      example = examples[index % len(examples)]
      draws = Draws("knights demonstration", seed, index)
      is_right, is_complete, is_misled = map(
        draws.chance, (right_rate, format_rate, misled_rate)
      )
      roles = knights_answers.read_roles(example.reference)
      belief = self.misbelief(example, misleading)
      if belief is not None and is_misled:
        roles = knights_answers.read_roles(belief)
      elif not is_right:
        roles = _flip_some(draws, roles)
      text = _block(_write(roles))
      if not is_complete:
        text = draws.choice(
          (
            _write(roles),
            text.removesuffix("</answer>"),
            _block(_without_one(draws, roles)),
          )
        )
      if verdict_rate and draws.chance(verdict_rate):
        is_true = self.score(example, text).outcome is base.Outcome.RIGHT
        is_true ^= not draws.chance(verdict_accuracy)
        example = dataclasses.replace(
          example, messages=self.verification(example, text)
        )
        text = str(is_true).lower()
      pairs.append((example, text))
    return pairs

  def misbelief(
    self, example: base.Example, misleading: Collection[str]
  ) -> str | None:
    """Returns the wrong answer that misleading operators suggest.

    Args:
      example: of a generated puzzle; others mislead nobody.
      misleading: names of operators.

    Returns:
      The reference with the roles of those changed who use one of them, or None
      where nobody does.
    """
    wrong = set(example.meta.get("operators", {})) & set(misleading)
    who = {
      name for operator in wrong for name in example.meta["operators"][operator]
    }
    if not who:
      return None
    return _write(_flip(knights_answers.read_roles(example.reference), who))

  def _make(self, split: str) -> Sequence[base.Example]:
    config = self.config
    first_key = {"train": 0, "test": TEST_KEYS}.get(split)
    path = {"train": config.train_path, "test": config.test_path}.get(split)
    size = {"train": config.num_train}.get(split, config.num_test)
    others = (*config.benchmarks, *_people_splits(config))
    if split in others:
      place = others.index(split)
      first_key = _BENCHMARK_KEYS + place * _BENCHMARK_SIZE
    if split in config.benchmarks:
      path, size = config.benchmarks[split], None
    if path is not None:
      examples = knights_files.read_examples(
        path, first_key=first_key, template=TEMPLATES["sentences"]
      )
      return _subset(examples, size, config.seed)
    if config.train_path or config.test_path:
      raise ValueError(f"{split}_path is not set, and the other path is.")
    if size is None:
      size = 8192 if split == "train" else 256
    people = config.people
    if split in _people_splits(config):
      people = (int(split.rpartition("_")[2]),)
    make = functools.partial(_generate, config, split, people, first_key)
    return base.LazyExamples(make, size)


def _generate(
  config: KnightsConfig,
  split: str,
  people: tuple[int, ...],
  first_key: int,
  index: int,
) -> base.Example:
  draws = Draws("knights", config.seed, split, index)
  count = draws.choice(people)
  puzzle = knights_puzzles.draw_puzzle(
    draws,
    "train" if split == "train" else "test",
    people=count,
    compound_rate=config.compound_rate,
  )
  names = NAMES[:count]
  if config.shuffle_names:
    names = tuple(draws.sample(NAMES, count))
  template = config.template or "compact"
  write = {
    "compact": knights_puzzles.write_compact,
    "sentences": knights_puzzles.write_sentences,
  }[template]
  asked = TEMPLATES[template].replace("{puzzle}", write(puzzle.claims, names))
  roles = {
    name: knights_puzzles.KNIGHT if is_knight else knights_puzzles.KNAVE
    for name, is_knight in zip(names, puzzle.is_knight, strict=True)
  }
  users: dict[str, list[str]] = {}
  for name, claim in zip(names, puzzle.claims, strict=True):
    for operator in sorted(knights_puzzles.operators_of(claim)):
      users.setdefault(operator, []).append(name)
  return base.Example(
    first_key + index,
    ({"role": "user", "content": asked},),
    _write(roles),
    {"people": count, "claims": puzzle.claims, "operators": users},
  )


def _people_splits(config: KnightsConfig) -> tuple[str, ...]:
  if config.train_path or config.test_path:
    return ()
  return tuple(f"people_{count}" for count in sorted(set(config.people)))


def _subset(
  examples: list[base.Example], size: int | None, seed: int
) -> list[base.Example]:
  """Returns a random subset in the file's order, or all if there are fewer."""
  if size is None or size >= len(examples):
    return examples
  chosen = np.random.default_rng(seed).permutation(len(examples))[:size]
  return [examples[index] for index in sorted(chosen)]


def _block(answer: str) -> str:
  return f"<answer>{answer}</answer>"


def _write(roles: Mapping[str, str]) -> str:
  return knights_answers.canonical(roles) or ""


def _flip(roles: Mapping[str, str], who: Collection[str]) -> dict[str, str]:
  """Gives some people the other role."""
  first, second = knights_puzzles.ROLES
  other = {first: second, second: first}
  return {
    name: other[role] if name in who else role for name, role in roles.items()
  }


def _flip_some(draws: Draws, roles: Mapping[str, str]) -> dict[str, str]:
  """Makes one of all wrong answers, each as likely."""
  names = sorted(roles)
  number = 1 + draws.choice(range(2 ** len(names) - 1))
  who = {name for i, name in enumerate(names) if number >> i & 1}
  return _flip(roles, who)


def _without_one(draws: Draws, roles: Mapping[str, str]) -> str:
  """Writes an answer that leaves somebody out."""
  missing = draws.choice(sorted(roles))
  return _write({n: role for n, role in roles.items() if n != missing})
