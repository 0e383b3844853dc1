"""Questions for labels: what is asked, who answers, what an answer looks like.

A label is text, the final answer to a prompt. A question carries the form that
its answer has to have, as a short text, so that a page that knows nothing of
the task can refuse nonsense:

  text              any line
  integer           -7
  math              a number, an expression, a word
  roles ann bob     who is what, of these people
  calls             calls of tools, or none, as JSON
"""

import dataclasses
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from saw_jax.tasks import base, clusters
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
  """A prompt whose label is wanted.

  Attributes:
    prompt_id: `Example.key`.
    text: the prompt.
    clusters: of the answers of the policy, the largest first.
    step: of the training, from 0.
    seed: of the run that asks.
    form: what an answer looks like; see the module.
  """

  prompt_id: int
  text: str
  clusters: tuple[Cluster, ...]
  step: int
  seed: int
  form: str = "text"


class LabelSource(Protocol):
  """Whoever answers questions.

  Attributes:
    name: of the source.
    price: of each label.
  """

  name: str
  price: float

  def answer(self, questions: Sequence[Question]) -> Sequence[Label | None]:
    """Returns a label for each question, or None where there is none."""
    ...


class LabelTask(base.Task, Protocol):
  """A task whose ground truth can be replaced by a label."""

  def answer_key(
    self, completion: str, example: base.Example | None = None
  ) -> str | None:
    """Returns what a completion votes for; None if it has no answer."""
    ...

  def label_form(self, example: base.Example) -> str:
    """Returns the form of a label; it tells nothing of the right one."""
    ...

  def with_label(self, example: base.Example, label: str) -> base.Example:
    """Returns the example with a label in place of its reference."""
    ...


def make_question(
  task: LabelTask,
  example: base.Example,
  completions: Sequence[str],
  *,
  step: int,
  seed: int,
) -> Question:
  """Makes the question for the label of a prompt.

  Nothing of the ground truth is in it.

  Args:
    task: what the example is from.
    example: the prompt.
    completions: the policy's responses to it.
    step: of the training, from 0.
    seed: of the run.

  Returns:
    The question. Clusters are in order of size, then of appearance; responses
    without an answer come last.
  """
  keys = [task.answer_key(text, example) for text in completions]
  (ids,) = clusters.answer_ids([keys])
  members: dict[int, list[int]] = {}
  for index, number in enumerate(ids.tolist()):
    members.setdefault(number, []).append(index)
  order = sorted(members, key=lambda n: (n < 0, -len(members[n]), n))
  messages = example.messages
  return Question(
    prompt_id=example.key,
    text=(
      messages[0]["content"]
      if len(messages) == 1
      else "\n\n".join(f"{m['role']}: {m['content']}" for m in messages)
    ),
    clusters=tuple(
      Cluster(keys[members[n][0]], len(members[n]), completions[members[n][0]])
      for n in order
    ),
    step=step,
    seed=seed,
    form=task.label_form(example),
  )


def parse_label(form: str, text: str) -> str:
  """Reads what somebody typed as a label.

  Args:
    form: of the label; see the module.
    text: anything.

  Returns:
    The label in its normal form; parsing it again gives the same.

  Raises:
    ValueError: it is no answer; the message says in a sentence what is
      expected. Or there is no such form.

  >>> parse_label("roles ann bob", "Bob=knave, Ann=knight")
  'ann=knight|bob=knave'
  """
  kind, *arguments = form.split()
  text = text.strip()
  if not text:
    raise ValueError(f"The answer is empty: expected {describe_form(form)}.")
  if len(text) > MAX_LABEL_SIZE:
    raise ValueError(
      f"The answer has {len(text)} characters, more than {MAX_LABEL_SIZE}: "
      f"expected {describe_form(form)}."
    )
  odd = next((c for c in text if c != " " and _is_invisible(c)), None)
  if odd is not None:
    raise ValueError(
      f"The answer has the invisible character U+{ord(odd):04X}: expected "
      f"{describe_form(form)}."
    )
  parsed = _parser(kind)(text, arguments)
  if parsed is None:
    raise ValueError(f"This is not {describe_form(form)}.")
  return parsed


def placeholder(form: str) -> str:
  """Gives some label of a form, for what no response answers.

  Args:
    form: of a label.

  Returns:
    The same label for every prompt of that form.

  Raises:
    ValueError: no such form.

  >>> placeholder("roles ann bob")
  'ann=knight|bob=knight'
  """
  kind, *arguments = form.split()
  _parser(kind)
  if kind == "roles":
    return "|".join(f"{name}=knight" for name in arguments)
  return '{"calls": [], "response": true}' if kind == "calls" else "0"


def describe_form(form: str) -> str:
  """Says what an answer looks like.

  Args:
    form: of a label.

  Returns:
    A phrase that can follow "expected".

  Raises:
    ValueError: no such form.

  >>> describe_form("integer")
  'an integer such as -7'
  """
  kind, *arguments = form.split()
  _parser(kind)
  if kind == "roles":
    example = "|".join(f"{name}=knight" for name in arguments)
    return f"knight or knave for each person, such as {example}"
  return {
    "text": "a line of text",
    "integer": "an integer such as -7",
    "math": "a number or an expression such as 3/4, 1.5 or \\sqrt{2}",
    "calls": 'calls such as [{"name": "timer", "parameters": {"minutes": 5}}], '
    "or [] for none",
  }[kind]


def _parser(kind: str) -> Callable[[str, Sequence[str]], str | None]:
  if kind not in _PARSERS:
    raise ValueError(
      f"unknown form of a label {kind!r}: {base.nearest(kind, tuple(_PARSERS))}"
    )
  return _PARSERS[kind]


def _parse_text(text: str, arguments: Sequence[str]) -> str:
  del arguments
  return text


def _parse_integer(text: str, arguments: Sequence[str]) -> str | None:
  del arguments
  number = math_answers.parse_number(math_answers.normalise_answer(text))
  if number is None or number.denominator != 1:
    return None
  return str(number)


def _parse_math(text: str, arguments: Sequence[str]) -> str | None:
  del arguments
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
  is_sentence = len(text.split()) > 1 and not any(
    character.isdigit() or character in "\\^_=+*/()[]" for character in text
  )
  has_content = any(c.isalnum() or c == "\\" for c in answer)
  return answer if is_balanced and has_content and not is_sentence else None


def _parse_roles(text: str, arguments: Sequence[str]) -> str | None:
  """Reads pairs or sentences; None if somebody is missing, extra or both."""
  separators = r"[|,;]" if "=" in text else r"[,;.]|\band\b"
  roles: dict[str, str] = {}
  for part in re.split(separators, text):
    if not part.strip():
      continue
    found = knights_answers.read_roles(part.strip())
    if not found:
      return None
    for name, role in found.items():
      if name not in arguments or roles.setdefault(name, role) != role:
        return None
  return knights_answers.canonical(roles, arguments)


def _parse_calls(text: str, arguments: Sequence[str]) -> str | None:
  del arguments
  return tool_answers.parse_calls(text)


def _is_invisible(character: str) -> bool:
  """Control, format, surrogate, private, unassigned, and odd spaces."""
  return unicodedata.category(character)[0] in "CZ"


_PARSERS = {
  "text": _parse_text,
  "integer": _parse_integer,
  "math": _parse_math,
  "roles": _parse_roles,
  "calls": _parse_calls,
}
