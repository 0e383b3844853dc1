"""Generated puzzles: one solution, splits that share none, their text."""

import collections
import itertools
import random

import pytest

from saw_jax.tasks.draws import Draws
from saw_jax.tasks.knights import puzzles


def draw(index, people=3, split="train", compound_rate=0.5):
  draws = Draws("test", people, split, index)
  return puzzles.draw_puzzle(draws, split, people, compound_rate)


def holds(claim, is_knight):
  """Whether a claim is true, said anew."""
  match claim:
    case ("knight", who):
      return is_knight[who]
    case ("knave", who):
      return not is_knight[who]
    case (operator, left, right):
      a, b = holds(left, is_knight), holds(right, is_knight)
      found = {"and": a and b, "or": a or b, "iff": a == b}
      return {**found, "implies": not a or b}[operator]


def rename(claim, order):
  if claim[0] in puzzles.ROLES:
    return claim[0], order[claim[1]]
  return claim[0], *(rename(part, order) for part in claim[1:])


def solve(claims):
  """The same as `puzzles.solutions`, one assignment after the other."""
  return [
    roles
    for roles in itertools.product([False, True], repeat=len(claims))
    if all(holds(c, roles) == r for c, r in zip(claims, roles, strict=True))
  ]


class TestSolutions:
  @pytest.mark.parametrize("people", range(2, 9))
  def test_exactly_one_assignment_fits(self, people):
    for index in range(12):
      claims, is_knight = draw(index, people)
      assert solve(claims) == [is_knight]

  def test_they_are_found_by_masks_as_by_loops(self):
    # Unfiltered claims: none, one and several solutions.
    draws, counts = Draws("any"), collections.Counter()
    for _ in range(300):
      claims = [puzzles._draw_claim(draws, i, 3, 0.7) for i in range(3)]
      found = puzzles.solutions(claims)
      assert sorted(found) == solve(claims)
      counts[len(found)] += 1
    assert {0, 1, 2} <= set(counts)


class TestDraws:
  def test_the_rate_of_compound_claims(self):
    for rate in (0.3, 1.0):
      claims = [c for i in range(60) for c in draw(i, 4, "train", rate)[0]]
      found = set().union(*map(puzzles.operators_of, claims))
      assert found == set(puzzles.OPERATORS)
      share = sum(claim[0] in found for claim in claims) / len(claims)
      # Puzzles with one solution have somewhat more of them.
      assert rate - 0.1 < share < rate + 0.25

  def test_nobody_talks_of_themselves_alone(self):
    for index in range(100):
      for speaker, claim in enumerate(draw(index)[0]):
        if claim[0] in puzzles.ROLES:
          assert claim[1] != speaker
        else:
          assert claim[1][1] != speaker and claim[1][1] != claim[2][1]


class TestSplits:
  @pytest.mark.parametrize("people", [2, 3, 5, 8])
  def test_renaming_and_turning_claims_around_change_nothing(self, people):
    shuffle = random.Random(0).shuffle
    for index in range(30):
      claims = draw(index, people, ("train", "test")[index % 2])[0]
      order = list(range(people))
      shuffle(order)
      renamed: list = [None] * people
      for speaker, claim in enumerate(claims):
        claim = rename(claim, order)
        if claim[0] in ("and", "or", "iff"):
          claim = claim[0], claim[2], claim[1]
        renamed[order[speaker]] = claim
      assert puzzles.split_of(renamed) == puzzles.split_of(claims)

  def test_an_implication_has_a_direction(self):
    one = (("implies", ("knave", 1), ("knight", 0)), ("knave", 0))
    other = (("implies", ("knight", 0), ("knave", 1)), ("knave", 0))
    describe = puzzles._describe
    assert describe(one[0], 0, ["x", "y"]) != describe(other[0], 0, ["x", "y"])

  def test_a_fifth_is_for_tests(self):
    draws = Draws("shares")
    claim = puzzles._draw_claim
    drawn = ([claim(draws, i, 4, 0.5) for i in range(4)] for _ in range(2000))
    found = collections.Counter(map(puzzles.split_of, drawn))
    assert 0.15 < found["test"] / 2000 < 0.25


class TestText:
  CLAIMS = (
    ("implies", ("knave", 1), ("knight", 2)),
    ("iff", ("knight", 0), ("knave", 1)),
    ("or", ("knave", 0), ("knight", 1)),
  )

  def test_compact_and_sentences(self):
    text = puzzles.write_compact(self.CLAIMS, ["ann", "bob", "cat"])
    assert text == (
      "ann:bob=knave implies cat=knight\n"
      "bob:ann=knight iff bob=knave\n"
      "cat:ann=knave or bob=knight\n"
    )
    text = puzzles.write_sentences(self.CLAIMS, ["ann", "bob", "cat"])
    assert "You meet Ann, Bob and Cat." in text
    for said in (
      'Ann says: "if Bob is a knave then Cat is a knight."',
      'Bob says: "Ann is a knight if and only if Bob is a knave."',
      'Cat says: "Ann is a knave or Bob is a knight."',
    ):
      assert said in text
