"""Knights and knaves: who tells the truth? Four rewards, from -3 to 3."""

import dataclasses
from collections.abc import Collection, Iterator

from saw_jax.tasks import answer_task, base, self_verification
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

# How a puzzle is written, and what is put around it.
_TEMPLATES = {
  "compact": (puzzles.write_compact, "%s"),
  "sentences": (
    puzzles.write_sentences,
    "%s\nThink step by step. Then say of each person what they are, between "
    "<answer> and </answer>, in the form name=knight|name=knave.",
  ),
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
    base.check_range(self, "(0, 1]", "compound_rate")
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
  _shows = "knights demonstration"
  _tags = ("<answer>", "</answer>")
  _scores = (answers.RIGHT,), (answers.WRONG,), (answers.NO_BLOCK,)
  _parse = staticmethod(answers.read_row)

  def __init__(self, config: KnightsConfig | None = None):
    super().__init__(config)
    name = self.config.template or "compact"
    name = "sentences" if self.config.has_files else name
    self._writer, self._template = _TEMPLATES[name]
    self._is_compact = name == "compact"

  def score(self, example: base.Example, completion: str) -> base.Score:
    value = answers.reward(completion, example.reference)
    known = {answers.RIGHT: "right", answers.WRONG: "wrong"}
    return base.Score((value,), base.Outcome(known.get(value, "unparsable")))

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
      who = ", ".join(sorted(names))
      what = f"the label of example {example.key} has no role for each of"
      raise ValueError(f"{what} {who}: {label!r}.")
    return dataclasses.replace(example, reference=reference)

  def verification(
    self, example: base.Example, completion: str
  ) -> answer_task.Messages:
    """Asks about a compact puzzle in few tokens: it, the completion and "?"."""
    question = example.messages[-1]["content"]
    if self._is_compact:
      return answer_task.ask(f"{question}\n{completion}?")
    return self_verification.ask(self.name, question, completion)

  def damages(self, example: base.Example) -> Iterator[answer_task.Damage]:
    yield from super().damages(example)
    reference = example.reference
    inside = {"no_roles": "nobody knows"}
    inside["negated"] = reference.replace("=", " is not a ")
    inside["supposed"] = f"if {reference}"
    if "|" in reference:
      draws = Draws("damage", example.key, "missing")
      inside["somebody_missing"] = _without_one(draws, reference)
    for what, answer in inside.items():
      yield what, self._block(answer), (answers.NO_ROLES,)

  def demonstrate(
    self,
    example: base.Example,
    draws: Draws,
    *,
    right_rate: float = 1.0,
    format_rate: float = 1.0,
    misleading: Collection[str] = (),
    misled_rate: float = 0.8,
    verdict_rate: float = 0.0,
    verdict_accuracy: float = 0.8,
  ) -> tuple[base.Example, str]:
    """Answers an example, rightly and in the right format at given rates.

    Whoever claims something with one of the `misleading` operators is given the
    other role, at `misled_rate`: above a half the majority of samples agrees on
    the mistake. At `verdict_rate` it judges its answer rather than give it.
    """
    for operator in misleading:
      base.check_choice("operator", operator, puzzles.OPERATORS)
    rates = right_rate, format_rate, misled_rate
    is_right, is_complete, is_misled = map(draws.chance, rates)
    answer = example.reference
    belief = self.misbelief(example, misleading)
    if belief is not None and is_misled:
      answer = belief
    elif not is_right:
      answer = self._wrong(draws, answer)
    text = self._block(answer)
    if not is_complete:
      partial = self._block(_without_one(draws, answer))
      text = draws.choice((answer, text.removesuffix("</answer>"), partial))
    if not verdict_rate or not draws.chance(verdict_rate):
      return example, text
    is_true = self.score(example, text).outcome is base.Outcome.RIGHT
    is_true ^= not draws.chance(verdict_accuracy)
    asked = self.verification(example, text)
    return dataclasses.replace(example, messages=asked), str(is_true).lower()

  def misbelief(
    self, example: base.Example, misleading: Collection[str]
  ) -> str | None:
    """Returns the reference with the other role for who uses the operators."""
    users = example.meta.get("operators", {})
    who = {name for operator in misleading for name in users.get(operator, ())}
    return _flip(example.reference, who) if who else None

  def _wrong(self, draws: Draws, answer: str) -> str:
    """Returns one of all wrong answers, each as likely."""
    names = sorted(answers.read_roles(answer))
    number = 1 + draws.choice(range(2 ** len(names) - 1))
    return _flip(answer, {n for i, n in enumerate(names) if number >> i & 1})

  def _draw(self, split: str, index: int) -> answer_task.Row:
    config = self.config
    draws = Draws("knights", config.seed, split, index)
    count = draws.choice(config.people)
    if split.startswith("people_"):
      count, split = int(split.removeprefix("people_")), "test"
    rate, names = config.compound_rate, _NAMES[:count]
    claims, roles = puzzles.draw_puzzle(draws, split, count, rate)
    if config.shuffle_names:
      names = tuple(draws.sample(_NAMES, count))
    users: dict[str, list[str]] = {}
    for name, claim in zip(names, claims, strict=True):
      for operator in sorted(puzzles.operators_of(claim)):
        users.setdefault(operator, []).append(name)
    said = (puzzles.ROLES[not is_knight] for is_knight in roles)
    reference = answers.write(dict(zip(names, said, strict=True)))
    meta = {"people": count, "claims": claims, "operators": users}
    return answer_task.ask(self._writer(claims, names)), reference, meta


def _flip(answer: str, who: Collection[str]) -> str:
  other = dict(zip(puzzles.ROLES, reversed(puzzles.ROLES), strict=True))
  roles = answers.read_roles(answer)
  flipped = {name: other[roles[name]] for name in roles if name in who}
  return answers.write(roles | flipped)


def _without_one(draws: Draws, answer: str) -> str:
  parts = answer.split("|")
  parts.remove(draws.choice(parts))
  return "|".join(parts)
