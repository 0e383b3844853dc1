"""Problems of reasoning-gym, where it is installed."""

import sys

import pytest

from saw_jax.tasks.math import gym as math_gym

NAMES = ("chain_sum", "basic_arithmetic")


@pytest.fixture
def draw():
  pytest.importorskip("reasoning_gym")
  return math_gym.draw_problems


def test_the_generators_take_turns(draw):
  found = draw(NAMES, seed=0, split="train", size=6)
  assert [problem.generator for problem in found] == [*NAMES] * 3
  assert found == draw(NAMES, seed=0, split="train", size=9)[:6]
  assert found != draw(NAMES, seed=1, split="train", size=6)


def test_splits_and_neighbouring_seeds_share_nothing(draw):
  # Item i of seed s is item i + 1 of seed s - 1 in the library itself.
  texts = [
    {p.text for p in draw(("gsm_symbolic",), seed=s, split=split, size=100)}
    for s, split in ((0, "train"), (0, "test"), (1, "train"), (1, "test"))
  ]
  assert not texts[0] & texts[1] and not texts[2] & texts[1]
  assert len(texts[0] & texts[2]) < 5


def test_a_wrong_generator_is_named(draw):
  with pytest.raises(ValueError, match="did you mean 'chain_sum'"):
    draw(("chain_sums",), seed=0, split="train", size=1)


def test_a_missing_library_names_the_extra(monkeypatch):
  monkeypatch.setitem(sys.modules, "reasoning_gym", None)
  with pytest.raises(ImportError, match=r"saw_jax\[math\]"):
    math_gym.draw_problems(NAMES, seed=0, split="train", size=1)
