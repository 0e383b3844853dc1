r"""Mathematical problems with one right answer, in `\boxed{...}`: 0 or 1."""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

from saw_jax.tasks import answer_task, base, self_verification
from saw_jax.tasks.draws import Draws
from saw_jax.tasks.math import answers, files, problems

# The pieces of generated arithmetic and its stories, for the tokenizer `math`.
PIECES = tuple(base.asset(__file__, "pieces.json"))
_GRADERS = {
  "exact": answers.is_equal,
  "math_verify": answers.is_equal_by_math_verify,
}
_TEMPLATES = {
  "plain": "%s",
  "boxed": "%s\nPlease reason step by step, and put your final answer within "
  "\\boxed{}.",
}
# Held-out generated problems of one level.
_LEVEL_SPLITS = {f"level_{level}": level for level in problems.LEVELS}


@dataclasses.dataclass(frozen=True)
class MathConfig(answer_task.AnswerConfig):
  """Where problems come from, how they are asked, and who grades.

  Where problems are generated there are also the splits level_1 to level_4.
  """

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

  def __post_init__(self):
    base.check_choice("grader", self.grader, _GRADERS)
    base.check_choice("problems", self.problems, ("generated", "reasoning_gym"))
    base.check_choice("template", self.template or "plain", _TEMPLATES)
    if not self.levels or not set(self.levels) <= set(problems.LEVELS):
      raise ValueError(f"levels are not from 1 to 4: {self.levels}.")
    base.check_range(self, "[0, 1]", "word_share")
    if not self.generators:
      raise ValueError("generators are empty.")
    base.check_range(self, "[0, inf)", "length_limit")
    if self.conditioned and not self.length_limit:
      raise ValueError("conditioned needs a length_limit.")
    super().__post_init__()

  @property
  def is_generated(self) -> bool:
    return not self.has_files and self.problems == "generated"

  @property
  def generated_splits(self) -> tuple[str, ...]:
    return tuple(_LEVEL_SPLITS) if self.is_generated else ()


class MathTask(answer_task.AnswerTask):
  """Problems whose reward is 1 for the right answer in a box, else 0.

  With a limit on the length there is a second one, 1 for a response within it
  (GDPO, https://arxiv.org/abs/2601.05242); conditioned, as in its eq. (8), 1
  for a right one within it.
  """

  name = "math"
  components = (base.Component("correct", 0.0, 1.0),)
  Config = MathConfig
  _shows = "math demonstration"
  _tags = ("\\boxed{", "}")
  _key_gaps = (0, 1)

  def __init__(self, config: MathConfig | None = None):
    super().__init__(config)
    default = "plain" if self.config.is_generated else "boxed"
    self._template = _TEMPLATES[self.config.template or default]
    self.token_limits = {}
    self._scores = (1.0,), (0.0,), (0.0,)
    if self.config.length_limit:
      length = base.Component("length", 0.0, 1.0)
      self.components = (*type(self).components, length)
      self.token_limits = {"length": self.config.length_limit}
      wrong = (0.0, 0.0 if self.config.conditioned else 1.0)
      self._scores = (1.0, 1.0), wrong, wrong

  def score(self, example: base.Example, completion: str) -> base.Score:
    answer = answers.extract_answer(completion)
    right, wrong, none = self._scores
    if answer is None or not answers.normalise_answer(answer):  # an empty box
      return base.Score(none, base.Outcome.UNPARSABLE)
    if _GRADERS[self.config.grader](answer, example.reference):
      return base.Score(right, base.Outcome.RIGHT)
    return base.Score(wrong, base.Outcome.WRONG)

  def answer_key(
    self, completion: str, example: base.Example | None = None
  ) -> str | None:
    answer = answers.extract_answer(completion)
    # An empty box is no answer.
    return None if answer is None else answers.normalise_answer(answer) or None

  def label_form(self, example: base.Example) -> str:
    return "integer" if self.config.is_generated else "math"

  def with_label(self, example: base.Example, label: str) -> base.Example:
    """Takes an answer without its box, which stays as it is written."""
    if not label.strip():
      raise ValueError(f"the label of example {example.key} is empty.")
    return dataclasses.replace(example, reference=label)

  def verification(
    self, example: base.Example, completion: str
  ) -> answer_task.Messages:
    question = example.messages[-1]["content"]
    return self_verification.ask(self.name, question, completion)

  def demonstrations(
    self, count: int, *, seed: int, levels: Collection[int] = (), **options: Any
  ) -> list[tuple[base.Example, str]]:
    """As of any task; `levels` are those of the problems."""
    if not levels:
      return super().demonstrations(count, seed=seed, **options)
    if not self.config.is_generated:
      raise ValueError("levels are of generated problems alone.")
    other = MathTask(dataclasses.replace(self.config, levels=tuple(levels)))
    return other.demonstrations(count, seed=seed, **options)

  def demonstrate(
    self,
    example: base.Example,
    draws: Draws,
    *,
    right_rate: float = 1.0,
    working_rate: float = 0.5,
    box_rate: float = 1.0,
    misleading: Collection[str] = (),
    misled_rate: float = 0.8,
    dispersing: Collection[str] = (),
    dispersed_rate: float = 0.6,
  ) -> tuple[base.Example, str]:
    """Answers an example, rightly at a rate.

    The rates of right answers, of steps before the answer and of complete boxes
    are independent. In problems with one of the `misleading` marks, such as
    "-", the answer is one too many at `misled_rate`: above a half, the majority
    of samples agrees on the mistake. With one of the `dispersing` marks it is
    right at `dispersed_rate`, and mistakes differ.
    """
    if _has_mark(example, dispersing):
      right_rate = dispersed_rate
    rates = right_rate, working_rate, box_rate
    is_right, is_worked, is_boxed = map(draws.chance, rates)
    answer = example.reference
    belief = self.misbelief(example, misleading)
    if belief is not None and draws.chance(misled_rate):
      answer = belief
    elif not is_right:
      answer = self._wrong(draws, answer)
    text = self._block(answer)
    if not is_boxed:
      text = draws.choice((answer, text[:-1]))
    if is_worked:
      text = example.meta.get("working", "") + text
    return example, text

  def misbelief(
    self, example: base.Example, misleading: Collection[str]
  ) -> str | None:
    """Returns the answer and 1 more where a misleading mark is in a problem."""
    if not _has_mark(example, misleading):
      return None
    number = answers.parse_number(answers.normalise_answer(example.reference))
    is_integer = number is not None and number.denominator == 1
    return str(number + 1) if is_integer else None

  def _wrong(self, draws: Draws, answer: str) -> str:
    """Returns a wrong answer, near the right one where that is an integer."""
    number = answers.parse_number(answers.normalise_answer(answer))
    if number is not None and number.denominator == 1:
      return str(problems.mistake(draws, int(number)))
    return "0" if number else "1"

  def _read(self, path: str, key: int) -> list[base.Example]:
    return files.read_examples(path, key, self._template)

  def _generator(self, split: str, size: int) -> Callable[[int], Any]:
    if self.config.is_generated:
      return super()._generator(split, size)
    names, seed = self.config.generators, self.config.seed
    return problems.draw_gym_problems(names, seed, split, size).__getitem__

  def _draw(self, split: str, index: int) -> answer_task.Row:
    config, levels = self.config, self.config.levels
    draws = Draws("math", config.seed, split, index)
    if split in _LEVEL_SPLITS:
      levels, split = (_LEVEL_SPLITS[split],), "test"
    return problems.draw_problem(draws, split, levels, config.word_share)


def _has_mark(example: base.Example, marks: Collection[str]) -> bool:
  return any(mark in example.messages[-1]["content"] for mark in marks)
