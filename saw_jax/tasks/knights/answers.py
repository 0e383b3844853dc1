"""Who is a knight and who is a knave, read from a text, and rewarded.

An answer stands in `<answer>...</answer>`, as `ann=knight|bob=knave` or in
plain statements such as "Ann is a knight".
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from saw_jax.tasks import answer_task
from saw_jax.tasks.environments import find_blocks
from saw_jax.tasks.row_files import field

# The four rewards: format plus answer.
NO_BLOCK, NO_ROLES, WRONG, RIGHT = -3.0, -1.0, -0.5, 3.0

_TRUTHS = ("solution_text_format", "answer", "ground_truth", "target")

_NAME = re.compile(r"[^\W\d_][\w'-]*")
_PAIR = re.compile(rf"({_NAME.pattern}) *= *(knight|knave)")
_NUMBER = re.compile(r"(?:(?<=[\s,;|])|^)(?:[(]?[0-9]{1,3}[.)]|[-•]) ")
# What is said in quotation marks or parentheses, which need not end.
_ASIDE = re.compile(
  r"""  "[^"]*"? | “[^”]*”? | «[^»]*»? | ‘[^’]*’? | [(][^)]*[)]?
  | (?<!\w)'[^']*(?:'(?!\w)|$) """,
  re.VERBOSE,
)
# Words before a statement that leave it as it is.
_LEADS = set(
  "and so thus therefore hence finally here the final answer answers solution "
  "conclusion result roles in is are as follows".split()
)


def extract_answer(text: str) -> str | None:
  """Returns what the last complete answer block says, in small letters, if any.

  >>> extract_answer("<answer>a=knave</answer>, no: <answer> a=knight</ANSWER>")
  'a=knight'
  """
  inside = [inside for _, inside in find_blocks(text.lower(), "answer")]
  return inside[-1].strip() or None if inside else None


def read_roles(answer: str) -> dict[str, str]:
  """Reads roles by name, in small letters, from plain statements.

  They are `ann=knight|bob=knave` and nothing else, or such as "Ann: knight" and
  "Ann is a knight", joined by `|`, commas, semicolons or "and". A sentence with
  anything else in it (a negation, a condition, an alternative, a question, a
  quotation, a thought) states nothing. It also cancels what was stated before
  it of the people whom it names; if it names none of those who are stated
  about, it cancels everything, before and after it. Of two statements about a
  person the later counts; two in one sentence count as none.

  >>> read_roles("(1) Ann is a knight, (2) Eve is a knave. Is Eve a knight?")
  {'ann': 'knight'}
  """
  pairs = [_PAIR.fullmatch(x.strip()) for x in answer.lower().split("|")]
  if all(pairs):
    said = {(pair[1], pair[2]) for pair in pairs}
    return dict(said) if len(dict(said)) == len(said) else {}
  text = _NUMBER.sub("", re.sub(r"[*`#]", "", answer.lower()))
  text = _ASIDE.sub(lambda aside: re.sub(r"[.!?\n]", " ", aside[0]), text)
  text = re.sub(r"->|→|:", " is ", text)
  roles, people, strays, is_open = {}, set(), [], False
  for sentence in re.findall(r"[^.!?\n]*[.!?\n]?", text):
    parts = re.split(r"[,;|&]|\band\b", sentence.rstrip(".!?\n"))
    found = [_read_statement(part.split()) for part in parts]
    said = set(filter(None, found))
    people.update(name for name, _ in said)
    is_plain = not is_open and None not in found and sentence[-1:] != "?"
    is_plain = is_plain and len(dict(said)) == len(said)
    if is_plain:
      roles.update(said)
    elif sentence.strip():
      strays.append(set(re.findall(r"[\w'-]+", sentence)))
      for name in strays[-1]:
        roles.pop(name, None)
    # What is not plain goes on in the next line where nothing ends it.
    is_open = not is_plain and sentence[-1:] not in tuple(".!?")
  return {} if any(map(people.isdisjoint, strays)) else roles


def _read_statement(words: list[str]) -> tuple[str, ...] | None:
  """Returns a name and a role, () where nothing is said, or None."""
  if _LEADS.issuperset(words):
    return ()
  role = words.pop()
  if words and words[-1] in ("a", "an", "the"):
    words.pop()
  if len(words) < 2:
    return None
  *leads, name, verb = words
  is_said = verb in ("is", "are") and role in ("knight", "knave")
  is_said = is_said and _LEADS.issuperset(leads) and _NAME.fullmatch(name)
  return (name, role) if is_said else None


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
