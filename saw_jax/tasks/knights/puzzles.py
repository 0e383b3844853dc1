"""Puzzles about knights, who tell the truth, and knaves, who lie, from a seed.

A claim is `(role, person)` or `(operator, claim, claim)`, a puzzle one claim a
person. All 2ⁿ assignments of roles are tried at once: bit `a` of a mask is of
the one in which person `i` is a knight where `a` has bit `i`.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from saw_jax.tasks.draws import Draws

Claim = tuple[str, int] | tuple[str, "Claim", "Claim"]

KNIGHT, KNAVE = "knight", "knave"
ROLES = (KNIGHT, KNAVE)
_TEST_PERCENT = 20

# Masks of both sides and of all assignments, to the mask of the claim.
_APPLY: dict[str, Callable[[int, int, int], int]] = {
  "and": lambda a, b, every: a & b,
  "or": lambda a, b, every: a | b,
  "implies": lambda a, b, every: (every ^ a) | b,
  "iff": lambda a, b, every: every ^ a ^ b,
}
OPERATORS = tuple(_APPLY)
_SYMMETRIC = ("and", "or", "iff")

_SENTENCES = {
  "and": "{a} and {b}",
  "or": "{a} or {b}",
  "implies": "if {a} then {b}",
  "iff": "{a} if and only if {b}",
}


class Puzzle(NamedTuple):
  """One claim a person, and the one assignment of roles that fits them."""

  claims: tuple[Claim, ...]
  is_knight: tuple[bool, ...]


def draw_puzzle(
  draws: Draws, split: str, *, people: int, compound_rate: float
) -> Puzzle:
  """Draws a puzzle of a split, with one solution.

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
      return Puzzle(claims, found[0])


def solutions(claims: Sequence[Claim]) -> list[tuple[bool, ...]]:
  """Returns the assignments in which knights, and only they, say what is true.

  >>> solutions([("knave", 1), ("knave", 0)])  # one of them, nobody knows who
  [(True, False), (False, True)]
  >>> solutions([("knave", 0)])  # the liar's paradox
  []
  """
  people = len(claims)
  every = (1 << 2**people) - 1
  fits = every
  for speaker, claim in enumerate(claims):
    is_true = _mask(claim, people, every)
    fits &= every ^ is_true ^ _knight_mask(speaker, people)
  return [
    tuple(bool(assignment >> i & 1) for i in range(people))
    for assignment in range(2**people)
    if fits >> assignment & 1
  ]


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
  return "test" if number % 100 < _TEST_PERCENT else "train"


def write_compact(claims: Sequence[Claim], names: Sequence[str]) -> str:
  """Writes a puzzle in few tokens, one line a person.

  >>> write_compact([("knave", 1), ("knight", 0)], ["ann", "bob"])
  'ann:bob=knave\\nbob:ann=knight\\n'
  """

  def write(claim: Claim) -> str:
    if claim[0] in ROLES:
      return f"{names[claim[1]]}={claim[0]}"
    return f"{write(claim[1])} {claim[0]} {write(claim[2])}"

  lines = zip(names, claims, strict=True)
  return "".join(f"{name}:{write(claim)}\n" for name, claim in lines)


def write_sentences(claims: Sequence[Claim], names: Sequence[str]) -> str:

  def write(claim: Claim) -> str:
    if claim[0] in ROLES:
      return f"{names[claim[1]].title()} is a {claim[0]}"
    a, b = map(write, claim[1:])
    return _SENTENCES[claim[0]].format(a=a, b=b)

  *others, last = (name.title() for name in names)
  said = " ".join(
    f'{name.title()} says: "{write(claim)}."'
    for name, claim in zip(names, claims, strict=True)
  )
  return (
    "Everybody on an island is a knight, whose claims are all true, or a "
    f"knave, whose claims are all false. You meet {', '.join(others)} and "
    f"{last}. {said} Who is a knight, and who is a knave?"
  )


def _draw_claim(
  draws: Draws, speaker: int, people: int, compound_rate: float
) -> Claim:
  others = [i for i in range(people) if i != speaker]
  first = draws.choice(others)
  single = (draws.choice(ROLES), first)
  if not draws.chance(compound_rate):
    return single
  operator = draws.choice(OPERATORS)
  second = draws.choice([i for i in range(people) if i != first])
  return operator, single, (draws.choice(ROLES), second)


def _mask(claim: Claim, people: int, every: int) -> int:
  """The assignments in which a claim is true."""
  if claim[0] in ROLES:
    knight = _knight_mask(claim[1], people)
    return knight if claim[0] == KNIGHT else every ^ knight
  left, right = (_mask(part, people, every) for part in claim[1:])
  return _APPLY[claim[0]](left, right, every)


def _knight_mask(person: int, people: int) -> int:
  """The assignments in which a person is a knight."""
  return sum(1 << a for a in range(2**people) if a >> person & 1)


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
