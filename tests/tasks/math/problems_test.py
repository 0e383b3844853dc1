"""Generated arithmetic, checked by Python itself and by hand."""

import re

import pytest

from saw_jax.tasks.draws import Draws, split_of
from saw_jax.tasks.math import problems as math_problems

LEVELS = math_problems.LEVELS


def draw(count, split="train", *, levels=LEVELS, word_share=0.5, seed=0):
  return [
    math_problems.draw_problem(
      Draws("x", seed, i), split, levels=levels, word_share=word_share
    )
    for i in range(count)
  ]


def reckon(text):
  """The value of an expression by another road: Python's own."""
  assert re.fullmatch(r"[-+*()0-9]+", text)
  return eval(text)


def test_answers_and_steps_are_right():
  for problem in draw(2000):
    assert reckon(problem.expression) == problem.answer, problem
    for step in problem.working:
      assert reckon(step) == problem.answer, problem
    steps = (problem.expression, *problem.working, str(problem.answer))
    if problem.text != f"{problem.expression}=":
      steps = steps[1:]  # A story's working starts with the expression.
      assert steps[0] == problem.expression
    assert len(set(steps)) == len(steps), problem


def test_stories_name_the_numbers_of_their_expression():
  stories = [p for p in draw(1000, word_share=1.0) if p.level < 4]
  assert len(stories) > 600
  for problem in stories:
    in_text = sorted(re.findall(r"\d+", problem.text))
    assert in_text == sorted(re.findall(r"\d+", problem.expression))
    assert "{" not in problem.text and problem.text.islower()


def test_levels_are_what_they_say():
  for level, count in ((1, 1), (2, 1), (3, 2), (4, 3)):
    for problem in draw(200, levels=(level,), word_share=0.0):
      assert problem.level == level
      operators = re.findall(r"[-+*]", problem.expression)
      assert len(operators) == count, problem
      numbers = re.findall(r"\d+", problem.expression)
      if level == 1:
        assert max(map(len, numbers)) == 1


def test_no_expression_is_in_both_splits_whatever_the_seed():
  seen = {}
  for split in ("train", "test"):
    seen[split] = {
      p.expression for seed in (0, 1) for p in draw(1500, split, seed=seed)
    }
    assert len(seen[split]) > 500
    assert {split_of(e) for e in seen[split]} == {split}
  assert not seen["train"] & seen["test"]


@pytest.mark.parametrize(
  ("tree", "text", "steps"),
  [
    (("+", 2, 3), "2+3", ()),
    (("+", 12, 34), "12+34", ("40+6",)),
    (("+", 47, 38), "47+38", ("70+15",)),
    (("+", 40, 38), "40+38", ()),
    (("-", 52, 38), "52-38", ("22-8",)),
    (("-", 52, 30), "52-30", ()),
    (("*", 7, 8), "7*8", ()),
    (("*", 12, 7), "12*7", ("70+14",)),
    (("*", 1, 72), "1*72", ()),
    (("*", ("+", 13, 25), 4), "(13+25)*4", ("38*4", "120+32")),
    (("*", 4, ("+", 1, 2)), "4*(1+2)", ("4*3",)),
    (("-", 20, ("-", 9, 5)), "20-(9-5)", ("20-4",)),
    (("-", 20, ("*", 3, 5)), "20-3*5", ("20-15", "10-5")),
    (("-", ("+", 9, 8), 3), "9+8-3", ("17-3",)),
    (("*", ("+", 1, 2), ("-", 9, 5)), "(1+2)*(9-5)", ("3*(9-5)", "3*4")),
  ],
)
def test_writing_and_working_by_hand(tree, text, steps):
  assert math_problems.write(tree) == text
  assert math_problems._parse(text) == tree
  assert math_problems.work(tree) == steps
  assert math_problems.evaluate(tree) == reckon(text)


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
    found = draw(self.NAMES, seed=0, split="train", size=6)
    assert [generator for _, _, generator in found] == [*self.NAMES] * 3
    assert found == draw(self.NAMES, seed=0, split="train", size=9)[:6]
    assert found != draw(self.NAMES, seed=1, split="train", size=6)

  def test_splits_and_neighbouring_seeds_share_nothing(self, draw):
    # Item i of seed s is item i + 1 of seed s - 1 in the library itself.
    texts = [
      {
        text
        for text, _, _ in draw(
          ("gsm_symbolic",), seed=seed, split=split, size=100
        )
      }
      for seed, split in ((0, "train"), (0, "test"), (1, "train"), (1, "test"))
    ]
    assert not texts[0] & texts[1] and not texts[2] & texts[1]
    assert len(texts[0] & texts[2]) < 5

  def test_a_wrong_generator_is_named(self, draw):
    with pytest.raises(ValueError, match="'chain_sum'"):
      draw(("chain_sums",), seed=0, split="train", size=1)
