"""Who is a knight and who is a knave, read from a text, and rewarded.

An answer stands in `<answer>...</answer>`, as `ann=knight|bob=knave` or in
sentences such as "Ann is a knight".
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from saw_jax.tasks import answer_task
from saw_jax.tasks.row_files import field

# The four rewards: format plus answer.
NO_BLOCK, NO_ROLES, WRONG, RIGHT = -3.0, -1.0, -0.5, 3.0

_TRUTHS = ("solution_text_format", "answer", "ground_truth", "target")

_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_NAME = r"[A-Za-z][A-Za-z'_-]*"
_PAIR = re.compile(rf"({_NAME}) *= *(knight|knave)", re.IGNORECASE)
# A name starts where a word starts, so that a search takes linear time.
_SENTENCE = re.compile(
  rf"(?<![A-Za-z])({_NAME})\s+(?:is|are)\s+(?:an?\s+)?(knight|knave)\b",
  re.IGNORECASE,
)


def extract_answer(text: str) -> str | None:
  """Returns what is in the last complete answer block, None if that is nothing.

  >>> extract_answer("<answer>a=knave</answer>, no: <answer> a=knight</ANSWER>")
  'a=knight'
  """
  start, inside = None, ""
  for tag in _TAG.finditer(text):
    if tag[1] and start is not None:
      inside, start = text[start : tag.start()].strip(), None
    elif not tag[1] and start is None:
      start = tag.end()
  return inside or None


def read_roles(answer: str) -> dict[str, str]:
  """Reads roles by name, in small letters, from pairs or from sentences.

  Of two about one person the last counts. A sentence with "not" or about
  "both" says nothing.

  >>> read_roles("(1) Ann is a knight, (2) Bob is not a knave")
  {'ann': 'knight'}
  """
  pairs = [_PAIR.fullmatch(part.strip()) for part in answer.split("|")]
  matches = pairs if all(pairs) else _SENTENCE.finditer(answer)
  return {match[1].lower(): match[2].lower() for match in matches}


def canonical(
  roles: Mapping[str, str], names: Iterable[str] | None = None
) -> str | None:
  """Returns the one form of all ways to state roles, by default of everybody.

  None where one of the names has no role, or there is nobody.

  >>> canonical({"bob": "knave", "ann": "knight", "eve": "knave"}, ["bob"])
  'bob=knave'
  """
  names = list(roles if names is None else names)
  if not names or not set(names) <= set(roles):
    return None
  return write({name: roles[name] for name in names})


def write(roles: Mapping[str, str]) -> str:
  return "|".join(f"{name}={role}" for name, role in sorted(roles.items()))


def reward(text: str, reference: str) -> float:
  """Rewards a completion, as CARE does (https://arxiv.org/abs/2605.25864).

    −3    no answer block
    −1    a block in which somebody has no role
    −0.5  a wrong answer
     3    the right one

  Where nothing can be read in the reference, as in the pseudo-label "None", no
  answer is right.

  >>> reward("<answer>Ann is a knave</answer>", "ann=knight")
  -0.5
  """
  answer = extract_answer(text)
  if answer is None:
    return NO_BLOCK
  found, true = read_roles(answer), read_roles(reference)
  if not found or not set(true) <= set(found):
    return NO_ROLES
  is_right = bool(true) and all(found[name] == true[name] for name in true)
  return RIGHT if is_right else WRONG


def read_row(row: Any) -> answer_task.Row:
  """Reads a row of public puzzles.

    field                                 content
    quiz                                  the puzzle in English
    solution_text_format                  "(1) Zoey is a knave ...", or
    reward_model.ground_truth             verl: the same in an object or as text

  Where a row has no `quiz`, the last message of its `prompt` is the puzzle:
  those of some files are wrapped in chat markers, which would come twice.
  """
  if isinstance(row, Mapping) and "quiz" not in row and "prompt" in row:
    *_, last = None, *field(row, "prompt", list)
    text = field(last, "content", str)
    if "<|" in text:
      what = "field 'prompt' has chat markers, and there is no 'quiz'"
      raise ValueError(what)
  else:
    text = field(row, "quiz", str)
  if not text.strip():
    raise ValueError("the puzzle is empty")
  holder: Any = row
  if not any(name in row for name in _TRUTHS):
    model = field(row, "reward_model", Mapping)
    holder = field(model, "ground_truth", (Mapping, str))
  if isinstance(holder, Mapping):
    name = next((name for name in _TRUTHS if name in holder), _TRUTHS[0])
    holder = field(holder, name, str)
  truth = canonical(read_roles(holder))
  if truth is None:
    raise ValueError(f"no roles in the solution {holder!r}")
  return answer_task.ask(text.strip()), truth, {}
