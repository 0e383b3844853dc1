"""Who is a knight and who is a knave, read from a text, and rewarded.

An answer stands in `<answer>...</answer>`, as `ann=knight|bob=knave` or in
sentences such as "Ann is a knight". Its canonical form is the former, with
small letters and names in alphabetical order.
"""

import re
from collections.abc import Iterable, Mapping

# The four rewards: format plus answer.
NO_BLOCK, NO_ROLES, WRONG, RIGHT = -3.0, -1.0, -0.5, 3.0

_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_NAME = r"[A-Za-z][A-Za-z'_-]*"
_PAIR = re.compile(rf"({_NAME}) *= *(knight|knave)", re.IGNORECASE)
# A name starts where a word starts, so that a search takes linear time.
_SENTENCE = re.compile(
  rf"(?<![A-Za-z])({_NAME})\s+(?:is|are)\s+(?:an?\s+)?(knight|knave)\b",
  re.IGNORECASE,
)


def extract_answer(text: str) -> str | None:
  """Finds the last complete answer block of a text.

  Args:
    text: anything.

  Returns:
    What is in the block, or None where there is no block or nothing in it.

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
  """Reads who is what.

  Args:
    answer: pairs of a name and a role, or sentences; of two about one person
      the last counts. A sentence with "not" or about "both" says nothing.

  Returns:
    Role by name, both in small letters; empty if nothing can be read.

  >>> read_roles("(1) Ann is a knight, (2) Bob is not a knave")
  {'ann': 'knight'}
  """
  pairs = [_PAIR.fullmatch(part.strip()) for part in answer.split("|")]
  matches = pairs if all(pairs) else _SENTENCE.finditer(answer)
  return {match[1].lower(): match[2].lower() for match in matches}


def canonical(
  roles: Mapping[str, str], names: Iterable[str] | None = None
) -> str | None:
  """Writes roles in the one form of all ways to state them.

  Args:
    roles: role by name.
    names: of the people of the puzzle; None for whoever has a role.

  Returns:
    The form, or None where somebody has no role or there is nobody.

  >>> roles = {"bob": "knave", "ann": "knight", "eve": "knave"}
  >>> canonical(roles, ["bob", "ann"])
  'ann=knight|bob=knave'
  """
  names = sorted(roles if names is None else names)
  if not names or not set(names) <= set(roles):
    return None
  return "|".join(f"{name}={roles[name]}" for name in names)


def reward(text: str, reference: str) -> float:
  """Rewards a completion.

    −3    no answer block
    −1    a block in which somebody has no role
    −0.5  a wrong answer
     3    the right one

  Args:
    text: anything.
    reference: who is what, in any form that `read_roles` reads. Where it reads
      nothing, as in the pseudo-label "None", no answer is right.

  Returns:
    The reward.

  References:
    CARE, https://arxiv.org/abs/2605.25864

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
