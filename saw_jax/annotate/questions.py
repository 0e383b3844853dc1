"""Questions for labels: what is asked, and what an answer looks like.

A label is text, the final answer to a prompt. A question carries the form that
its answer has to have, as a short text such as `math` or `roles ann bob`, so
that a page that knows nothing of the task can refuse nonsense.
"""

import dataclasses
import functools
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from saw_jax.tasks import base
from saw_jax.tasks.knights import answers as knights_answers
from saw_jax.tasks.math import answers as math_answers
from saw_jax.tasks.tool_calling import answers as tool_answers

MAX_LABEL_SIZE = 1000  # characters


class Label(NamedTuple):
  """A final answer, and who gave it."""

  text: str
  who: str


class Cluster(NamedTuple):
  """Responses with the same answer."""

  answer: str | None  # None: the responses without an answer
  count: int
  text: str  # one of the responses


@dataclasses.dataclass(frozen=True)
class Question:
  """A prompt whose label is wanted."""

  prompt_id: int  # `Example.key`
  text: str
  clusters: tuple[Cluster, ...]  # of the policy's answers, the largest first
  step: int  # of the training, from 0
  seed: int  # of the run that asks
  form: str = "text"


class LabelSource(Protocol):
  """A source of answers to questions, at a price per label."""

  name: str
  price: float

  def answer(self, questions: list[Question]) -> Sequence[Label | None]:
    """Returns a label for each question, or None where there is none."""


def make_question(
  task: Any,  # with `answer_key` and `label_form`, as math has them
  example: base.Example,
  completions: Sequence[str],
  *,
  step: int,
  seed: int,
) -> Question:
  """Makes the question for the label of a prompt, without its ground truth."""
  found: dict[str | None, list[str]] = {}
  for text in completions:
    found.setdefault(task.answer_key(text, example), []).append(text)
  order = sorted(found, key=lambda key: (key is None, -len(found[key])))
  clusters = (Cluster(key, len(found[key]), found[key][0]) for key in order)
  text = example.messages[0]["content"]
  if len(example.messages) > 1:
    text = "\n\n".join(f"{m['role']}: {m['content']}" for m in example.messages)
  form = task.label_form(example)
  return Question(example.key, text, tuple(clusters), step, seed, form)


def parse_label(form: str, text: str) -> str:
  """Reads typed text as a label, and returns the label's normal form.

  Text that is no answer is an error that says what is expected.

  >>> parse_label("roles ann bob", "Bob=knave, Ann=knight")
  'ann=knight|bob=knave'
  """
  parse, expected, _ = _read_form(form)
  text = text.strip()
  if not text:
    raise ValueError(f"The answer is empty: expected {expected}.")
  if len(text) > MAX_LABEL_SIZE:
    raise ValueError(
      f"The answer has {len(text)} characters, more than {MAX_LABEL_SIZE}: "
      f"expected {expected}."
    )
  if hidden := [c for c in text if is_hidden(c) or c in "\n\t"]:
    raise ValueError(
      f"The answer has the invisible character U+{ord(hidden[0]):04X}: "
      f"expected {expected}."
    )
  parsed = parse(text)
  if parsed is None:
    raise ValueError(f"This is not {expected}.")
  return parsed


def is_hidden(character: str) -> bool:
  """Controls, formats, surrogates, private and unassigned; odd separators."""
  return character not in "\n\t " and unicodedata.category(character)[0] in "CZ"


def placeholder(form: str) -> str:
  """Gives some label of a form, for what no response answers."""
  return _read_form(form)[2]


def describe_form(form: str) -> str:
  """Gives a phrase that can follow "expected"."""
  return _read_form(form)[1]


def _read_form(form: str) -> tuple[Callable[[str], str | None], str, str]:
  """What parses a label, what to expect of it, and an example."""
  kind, *people = form.split()
  base.check_choice("form of a label", kind, _FORMS)
  parse, phrase, example = _FORMS[kind]
  if not people:
    return parse, phrase, example
  roles = "|".join(f"{name}=knight" for name in people)
  return functools.partial(parse, people=people), phrase + roles, roles


def _parse_integer(text: str) -> str | None:
  number = math_answers.parse_number(math_answers.normalise_answer(text))
  if number is None or number.denominator != 1:
    return None
  return str(number)


def _parse_math(text: str) -> str | None:
  if "\\boxed" in text:
    inside = math_answers.extract_answer(text)
    if not inside:
      return None
    text = inside
  answer = math_answers.normalise_answer(text)
  # Brackets together, since [0,1) is an interval.
  opened, closed = (sum(map(answer.count, some)) for some in ("([", ")]"))
  is_balanced = opened == closed and answer.count("{") == answer.count("}")
  # Several plain words are a sentence, such as "no idea".
  parts = re.split("[,;]", text)
  is_sentence = any(len(part.split()) > 1 for part in parts) and not any(
    character.isdigit() or character in "\\^_=+*/()[]" for character in text
  )
  has_content = any(c.isalnum() or c == "\\" for c in answer)
  return answer if is_balanced and has_content and not is_sentence else None


def _parse_roles(text: str, people: Sequence[str]) -> str | None:
  """Reads pairs or sentences; None if somebody is missing, extra or both."""
  separators = r"[|,;]" if "=" in text else r"[,;.]|\band\b"
  roles: dict[str, str] = {}
  for part in filter(str.strip, re.split(separators, text)):
    found = knights_answers.read_roles(part.strip())
    if not found:
      return None
    for name, role in found.items():
      if name not in people or roles.setdefault(name, role) != role:
        return None
  return knights_answers.canonical(roles, people)


# By form: text -> label, or None if it is none; what to expect; an example.
_FORMS = {
  "text": (str, "a line of text", "0"),
  "integer": (_parse_integer, "an integer such as -7", "0"),
  "math": (
    _parse_math,
    "a number or an expression such as 3/4, 1.5 or \\sqrt{2}",
    "0",
  ),
  "roles": (_parse_roles, "knight or knave for each person, such as ", ""),
  "calls": (
    tool_answers.parse_calls,
    'calls such as [{"name": "timer", "parameters": {"minutes": 5}}], or [] '
    "for none",
    '{"calls": [], "response": true}',
  ),
}
