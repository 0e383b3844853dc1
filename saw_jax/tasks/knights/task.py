"""Knights and knaves: who tells the truth? Four rewards, from -3 to 3."""

import dataclasses
import functools
from collections.abc import Collection, Iterator, Mapping, Sequence

from saw_jax.tasks import answer_task, base
from saw_jax.tasks.draws import Draws
from saw_jax.tasks.knights import answers, puzzles

_NAMES = ("ann", "bob", "cat", "dan", "eva", "fay", "gus", "hal")
# The pieces of compact puzzles, for the tokenizer `knights`.
PIECES = (
  *_NAMES,
  *("=knight", "=knave", ":", "\n", "|", "<answer>", "</answer>"),
  *(" and ", " or ", " implies ", " iff "),
  # Of a verdict on an answer.
  *("?", "true", "false"),
)

_TEMPLATES = {
  "compact": "{puzzle}",
  "sentences": (
    "{puzzle}\nThink step by step. Then say of each person what they are, "
    "between <answer> and </answer>, in the form name=knight|name=knave."
  ),
}
_WRITERS = {
  "compact": puzzles.write_compact,
  "sentences": puzzles.write_sentences,
}


@dataclasses.dataclass(frozen=True)
class KnightsConfig(answer_task.AnswerConfig):
  """Where puzzles come from, and how they are asked.

  Without a file there are also splits with the test puzzles of each number of
  people, such as people_3.
  """

  # "compact", a line of few tokens a person; "sentences", English with a
  # request for a format. The empty name is "compact" for generated puzzles.
  # Files are in English, and always asked as "sentences".
  template: str = ""
  people: tuple[int, ...] = (2, 3)  # of generated puzzles, 2 to 8
  compound_rate: float = 0.5  # of claims with and, or, implies, iff; not 0
  shuffle_names: bool = False  # whether a name can be anybody's

  def __post_init__(self):
    if self.template:
      base.check_choice("template", self.template, _TEMPLATES)
    if not self.people or not all(2 <= n <= len(_NAMES) for n in self.people):
      raise ValueError(f"people are not from 2 to 8: {self.people}.")
    if not 0 < self.compound_rate <= 1:
      raise ValueError(
        f"compound_rate is not above 0, up to 1: {self.compound_rate}."
      )
    super().__post_init__()

  @property
  def generated_splits(self) -> tuple[str, ...]:
    if self.has_files:
      return ()
    return tuple(f"people_{count}" for count in sorted(set(self.people)))


class KnightsTask(answer_task.AnswerTask):
  """Puzzles whose reward is 3 for all roles right, and less for the rest."""

  name = "knights"
  components = (base.Component("roles", answers.NO_BLOCK, answers.RIGHT),)
  Config = KnightsConfig

  def score(self, example: base.Example, completion: str) -> base.Score:
    value = answers.reward(completion, example.reference)
    known = {
      answers.RIGHT: base.Outcome.RIGHT,
      answers.WRONG: base.Outcome.WRONG,
    }
    return base.Score((value,), known.get(value, base.Outcome.UNPARSABLE))

  def answer_key(
    self, completion: str, example: base.Example | None = None
  ) -> str | None:
    """Returns what a completion votes for, about the people of an example."""
    answer = answers.extract_answer(completion) or ""
    names = None if example is None else answers.read_roles(example.reference)
    return answers.canonical(answers.read_roles(answer), names)

  def label_form(self, example: base.Example) -> str:
    return " ".join(("roles", *sorted(answers.read_roles(example.reference))))

  def with_label(self, example: base.Example, label: str) -> base.Example:
    names = answers.read_roles(example.reference)
    reference = answers.canonical(answers.read_roles(label), names)
    if reference is None:
      raise ValueError(
        f"the label of example {example.key} has no role for each of "
        f"{', '.join(sorted(names))}: {label!r}."
      )
    return dataclasses.replace(example, reference=reference)

  def verification(
    self, example: base.Example, completion: str
  ) -> answer_task.Messages:
    """Asks about a compact puzzle in few tokens: it, the completion and "?"."""
    is_compact = (self.config.template or "compact") == "compact"
    if self.config.has_files or not is_compact:
      return super().verification(example, completion)
    question = example.messages[-1]["content"]
    return answer_task.ask(f"{question}\n{completion}?")

  def damages(self, example: base.Example) -> Iterator[answer_task.Damage]:
    gold, reference = self.gold_completion(example), example.reference
    draws = Draws("damage", example.key)
    roles = answers.read_roles(reference)
    wrong = self._block(_write(_flip_some(draws, roles)))
    yield "wrong_role", wrong, (answers.WRONG,)
    inside = {}
    if len(roles) > 1:
      inside["somebody_missing"] = _without_one(draws, roles)
    inside["no_roles"] = "nobody knows"
    inside["negated"] = reference.replace("=", " is not a ")
    for what, answer in inside.items():
      yield what, self._block(answer), (answers.NO_ROLES,)
    for what, text in (
      ("no_tags", reference),
      ("unclosed", gold.removesuffix("</answer>")),
      ("empty_block", self._block("")),
      ("nothing", ""),
    ):
      yield what, text, (answers.NO_BLOCK,)
    yield "wrong_answer_last", f"{gold} {wrong}", (answers.WRONG,)
    yield "wrong_answer_first", f"{wrong} {gold}", (answers.RIGHT,)

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

    Whoever claims something with one of the `misleading` operators is given the
    other role, at `misled_rate`: above a half the majority of samples agrees on
    the mistake. A share `verdict_rate` judges its answer rather than give it.
    """
    answer_task.check_rates(
      right_rate, format_rate, misled_rate, verdict_rate, verdict_accuracy
    )
    for operator in misleading:
      base.check_choice("operator", operator, puzzles.OPERATORS)
    pairs = []
    for example, draws in answer_task.demonstration_draws(
      self, "knights demonstration", count, seed
    ):
      is_right, is_complete, is_misled = map(
        draws.chance, (right_rate, format_rate, misled_rate)
      )
      roles = answers.read_roles(example.reference)
      belief = self.misbelief(example, misleading)
      if belief is not None and is_misled:
        roles = answers.read_roles(belief)
      elif not is_right:
        roles = _flip_some(draws, roles)
      text = self._block(_write(roles))
      if not is_complete:
        partial = self._block(_without_one(draws, roles))
        unclosed = text.removesuffix("</answer>")
        text = draws.choice((_write(roles), unclosed, partial))
      if verdict_rate and draws.chance(verdict_rate):
        is_true = self.score(example, text).outcome is base.Outcome.RIGHT
        is_true ^= not draws.chance(verdict_accuracy)
        asked = self.verification(example, text)
        example = dataclasses.replace(example, messages=asked)
        text = str(is_true).lower()
      pairs.append((example, text))
    return pairs

  def misbelief(
    self, example: base.Example, misleading: Collection[str]
  ) -> str | None:
    """Returns the reference with the other role for who uses the operators."""
    users = example.meta.get("operators", {})
    who = {name for operator in misleading for name in users.get(operator, ())}
    if not who:
      return None
    return _write(_flip(answers.read_roles(example.reference), who))

  def _block(self, answer: str) -> str:
    return f"<answer>{answer}</answer>"

  def _read(self, path: str, first_key: int) -> list[base.Example]:
    template = _TEMPLATES["sentences"]
    return answers.read_examples(path, first_key=first_key, template=template)

  def _generate(
    self, split: str, key: int, size: int
  ) -> Sequence[base.Example]:
    make = functools.partial(_draw, self.config, split, key)
    return base.LazyExamples(make, size)


def _draw(
  config: KnightsConfig, split: str, first_key: int, index: int
) -> base.Example:
  draws = Draws("knights", config.seed, split, index)
  count = draws.choice(config.people)
  if split.startswith("people_"):
    count, split = int(split.removeprefix("people_")), "test"
  rate = config.compound_rate
  puzzle = puzzles.draw_puzzle(draws, split, people=count, compound_rate=rate)
  names = _NAMES[:count]
  if config.shuffle_names:
    names = tuple(draws.sample(_NAMES, count))
  template = config.template or "compact"
  text = _WRITERS[template](puzzle.claims, names)
  roles = {
    name: puzzles.KNIGHT if is_knight else puzzles.KNAVE
    for name, is_knight in zip(names, puzzle.is_knight, strict=True)
  }
  users: dict[str, list[str]] = {}
  for name, claim in zip(names, puzzle.claims, strict=True):
    for operator in sorted(puzzles.operators_of(claim)):
      users.setdefault(operator, []).append(name)
  return base.Example(
    first_key + index,
    answer_task.ask(_TEMPLATES[template].replace("{puzzle}", text)),
    _write(roles),
    {"people": count, "claims": puzzle.claims, "operators": users},
  )


def _write(roles: Mapping[str, str]) -> str:
  return answers.canonical(roles) or ""


def _flip(roles: Mapping[str, str], who: Collection[str]) -> dict[str, str]:
  """Gives some people the other role."""
  other = dict(zip(puzzles.ROLES, reversed(puzzles.ROLES), strict=True))
  return {
    name: other[role] if name in who else role for name, role in roles.items()
  }


def _flip_some(draws: Draws, roles: Mapping[str, str]) -> dict[str, str]:
  """Makes one of all wrong answers, each as likely."""
  names = sorted(roles)
  number = 1 + draws.choice(range(2 ** len(names) - 1))
  return _flip(roles, {n for i, n in enumerate(names) if number >> i & 1})


def _without_one(draws: Draws, roles: Mapping[str, str]) -> str:
  missing = draws.choice(sorted(roles))
  return _write({n: role for n, role in roles.items() if n != missing})
