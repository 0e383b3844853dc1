"""Generated arithmetic, checked by Python itself and by hand."""

import re

import pytest

from saw_jax.tasks.draws import Draws, split_of
from saw_jax.tasks.math import problems as math_problems

LEVELS = math_problems.LEVELS


def draw(count, split="train", *, levels=LEVELS, word_share=0.5, seed=0):
  return [
    math_problems.draw_problem(Draws("x", seed, i), split, levels, word_share)
    for i in range(count)
  ]


def reckon(text):
  """The value of an expression by another road: Python's own."""
  assert re.fullmatch(r"[-+*()0-9]+", text)
  return eval(text)


def test_answers_and_steps_are_right():
  for (message,), answer, meta in draw(2000):
    expression, steps = meta["expression"], meta["working"].split("=")[:-1]
    assert {str(reckon(step)) for step in (expression, *steps)} == {answer}
    if message["content"] == f"{expression}=":
      steps = [expression, *steps]  # A story's working starts with it.
    assert steps[0] == expression
    assert len({*steps, answer}) == len(steps) + 1


def test_stories_name_the_numbers_of_their_expression():
  rows = draw(1000, word_share=1.0)
  stories = [
    (m["content"], x["expression"]) for (m,), _, x in rows if x["level"] < 4
  ]
  assert len(stories) > 600
  for text, expression in stories:
    numbers = (re.findall(r"\d+", t) for t in (text, expression))
    assert len({tuple(sorted(found)) for found in numbers}) == 1
    assert "{" not in text and text.islower()


def test_levels_are_what_they_say():
  for level, count in ((1, 1), (2, 1), (3, 2), (4, 3)):
    for _, _, meta in draw(200, levels=(level,), word_share=0.0):
      assert meta["level"] == level
      assert len(re.findall(r"[-+*]", meta["expression"])) == count
      if level == 1:
        assert not re.search(r"\d\d", meta["expression"])


def test_no_expression_is_in_both_splits_whatever_the_seed():
  for split in ("train", "test"):
    rows = [row for seed in (0, 1) for row in draw(1500, split, seed=seed)]
    seen = {meta["expression"] for _, _, meta in rows}
    assert len(seen) > 500
    assert {split_of(expression) for expression in seen} == {split}


@pytest.mark.parametrize(
  ("expression", "steps"),
  [
    ("2+3", ()),
    ("12+34", ("40+6",)),
    ("47+38", ("70+15",)),
    ("40+38", ()),
    ("52-38", ("22-8",)),
    ("52-30", ()),
    ("7*8", ()),
    ("12*7", ("70+14",)),
    ("1*72", ()),
    ("(13+25)*4", ("38*4", "120+32")),
    ("4*(1+2)", ("4*3",)),
    ("20-(9-5)", ("20-4",)),
    ("20-3*5", ("20-15", "10-5")),
    ("9+8-3", ("17-3",)),
    ("(1+2)*(9-5)", ("3*(9-5)", "3*4")),
  ],
)
def test_working_by_hand(expression, steps):
  assert math_problems.work(expression) == steps


def test_a_mistake_is_near_and_wrong():
  for answer in (0, 1, 9, 10, 11, 46, 100, 999, 12345):
    found = {math_problems.mistake(Draws(answer, i), answer) for i in range(99)}
    assert answer not in found and len(found) >= 3
    assert all(0 <= wrong <= answer + 90 for wrong in found)
  assert math_problems.mistake(Draws(0), -5) < 0
  swapped = {math_problems.mistake(Draws(i), 46) for i in range(99)}
  assert swapped == {36, 44, 45, 47, 48, 56, 64}


class TestReasoningGym:
  NAMES = ("chain_sum", "basic_arithmetic")

  @pytest.fixture
  def draw(self):
    pytest.importorskip("reasoning_gym")
    return math_problems.draw_gym_problems

  def test_the_generators_take_turns(self, draw):
    found = draw(self.NAMES, 0, "train", 6)
    assert [meta["generator"] for _, _, meta in found] == [*self.NAMES] * 3
    assert found == draw(self.NAMES, 0, "train", 9)[:6]
    assert found != draw(self.NAMES, 1, "train", 6)

  def test_splits_and_neighbouring_seeds_share_nothing(self, draw):
    # Item i of seed s is item i + 1 of seed s - 1 in the library itself.
    texts = [
      {m["content"] for (m,), _, _ in draw(("gsm_symbolic",), seed, split, 100)}
      for seed, split in ((0, "train"), (0, "test"), (1, "train"), (1, "test"))
    ]
    assert not texts[0] & texts[1] and not texts[2] & texts[1]
    assert len(texts[0] & texts[2]) < 5

  def test_a_wrong_generator_is_named(self, draw):
    with pytest.raises(ValueError, match="'chain_sum'"):
      draw(("chain_sums",), 0, "train", 1)
