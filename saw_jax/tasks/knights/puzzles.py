"""Puzzles about knights, who tell the truth, and knaves, who lie, from a seed.

A claim is `(role, person)` or `(operator, claim, claim)`, a puzzle one claim a
person. Roles are one truth value a person, True for a knight.
"""

import functools
import hashlib
import itertools
import operator
from collections.abc import Mapping, Sequence

from saw_jax.tasks.draws import TEST_PERCENT, Draws

Claim = tuple[str, int] | tuple[str, "Claim", "Claim"]

KNIGHT, KNAVE = "knight", "knave"
ROLES = (KNIGHT, KNAVE)

# On masks, which have a bit for each way to give out the roles.
_APPLY = {
  "and": operator.and_,
  "or": operator.or_,
  "implies": lambda a, b: ~a | b,
  "iff": lambda a, b: ~(a ^ b),
}
OPERATORS = tuple(_APPLY)
_SYMMETRIC = ("and", "or", "iff")
_IN_ENGLISH = {"implies": "if {a} then {b}", "iff": "{a} if and only if {b}"}


def draw_puzzle(
  draws: Draws, split: str, people: int, compound_rate: float
) -> tuple[tuple[Claim, ...], tuple[bool, ...]]:
  """Draws the claims of a puzzle of a split, and the roles that alone fit.

  A claim joins two at `compound_rate`, which is not 0: of claims about one
  person each, all roles changed in a cycle of people fit as well.
  """
  while True:
    claims = tuple(
      _draw_claim(draws, speaker, people, compound_rate)
      for speaker in range(people)
    )
    found = solutions(claims)
    if len(found) == 1 and split_of(claims) == split:
      return claims, found[0]


def solutions(claims: Sequence[Claim]) -> list[tuple[bool, ...]]:
  """Returns the roles in which knights, and only they, say what is true.

  >>> solutions([("knave", 1), ("knave", 0)])  # one of them, nobody knows who
  [(False, True), (True, False)]
  >>> solutions([("knave", 0)])  # the liar's paradox
  []
  """
  every, knights = _all_roles(len(claims))
  lies = 0
  for is_knight, claim in zip(knights, claims, strict=True):
    lies |= is_knight ^ _truth(claim, knights)
  return [roles for place, roles in enumerate(every) if not lies >> place & 1]


@functools.cache
def _all_roles(people: int) -> tuple[list[tuple[bool, ...]], list[int]]:
  """All roles that people can have, and for each person their mask."""
  every = list(itertools.product((False, True), repeat=people))
  columns = zip(*every, strict=True)
  return every, [sum(x << i for i, x in enumerate(one)) for one in columns]


def operators_of(claim: Claim) -> set[str]:
  if claim[0] in ROLES:
    return set()
  return {claim[0]}.union(*map(operators_of, claim[1:]))


def split_of(claims: Sequence[Claim]) -> str:
  """Returns the split of a puzzle and any renaming of it, a fifth for tests.

  People are told apart by what they claim about whom, as far as that goes.
  """
  colours = [""] * len(claims)
  for _ in claims:
    told = [_describe(claim, i, colours) for i, claim in enumerate(claims)]
    colours = list(map(_digest, told))
  number = int(_digest("/".join(sorted(colours))), 16)
  return "test" if number % 100 < TEST_PERCENT else "train"


def write_compact(claims: Sequence[Claim], names: Sequence[str]) -> str:
  """Writes a puzzle in few tokens, one line a person.

  >>> write_compact([("knave", 1), ("knight", 0)], ["ann", "bob"])
  'ann:bob=knave\\nbob:ann=knight\\n'
  """
  return "".join(
    f"{name}:{_write(claim, names, '{}={}', {})}\n"
    for name, claim in zip(names, claims, strict=True)
  )


def write_sentences(claims: Sequence[Claim], names: Sequence[str]) -> str:
  names = [name.title() for name in names]
  said = " ".join(
    f'{name} says: "{_write(claim, names, "{} is a {}", _IN_ENGLISH)}."'
    for name, claim in zip(names, claims, strict=True)
  )
  return (
    "Everybody on an island is a knight, whose claims are all true, or a "
    f"knave, whose claims are all false. You meet {', '.join(names[:-1])} and "
    f"{names[-1]}. {said} Who is a knight, and who is a knave?"
  )


def _write(
  claim: Claim, names: Sequence[str], role: str, joined: Mapping[str, str]
) -> str:
  if claim[0] in ROLES:
    return role.format(names[claim[1]], claim[0])
  a, b = (_write(part, names, role, joined) for part in claim[1:])
  return joined.get(claim[0], f"{{a}} {claim[0]} {{b}}").format(a=a, b=b)


def _draw_claim(
  draws: Draws, speaker: int, people: int, compound_rate: float
) -> Claim:
  first = draws.choice([i for i in range(people) if i != speaker])
  single = (draws.choice(ROLES), first)
  if not draws.chance(compound_rate):
    return single
  joined = draws.choice(OPERATORS)
  second = draws.choice([i for i in range(people) if i != first])
  return joined, single, (draws.choice(ROLES), second)


def _truth(claim: Claim, knights: Sequence[int]) -> int:
  if claim[0] in ROLES:
    return knights[claim[1]] ^ -(claim[0] == KNAVE)
  return _APPLY[claim[0]](*(_truth(part, knights) for part in claim[1:]))


def _describe(claim: Claim, speaker: int, colours: Sequence[str]) -> str:
  if claim[0] in ROLES:
    who = "self" if claim[1] == speaker else colours[claim[1]]
    return f"{claim[0]}({who})"
  parts = [_describe(part, speaker, colours) for part in claim[1:]]
  if claim[0] in _SYMMETRIC:
    parts.sort()
  return f"{claim[0]}({','.join(parts)})"


def _digest(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()[:16]
