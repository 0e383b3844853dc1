"""What people read of a step, of answers and of episodes."""

from types import SimpleNamespace

import numpy as np

from saw_jax.run import completions, rollouts
from saw_jax.run.agents import Turn
from saw_jax.tasks.base import Component
from tests import helpers
from tests.run import labelling_test

NAMES = [Component("a", 0.0, 1.0), Component("b", 0.0, 1.0)]


def answers(texts, **changes):
  """The rows of one prompt's answers."""
  made = helpers.experiment()
  encoder = rollouts.Encoder(made.tokenizer, made.rollout)
  sampled = labelling_test.say(texts)
  size = np.prod(sampled.starts.shape)
  read = rollouts.unscored(sampled, 2, 2, encoder)
  read = read._replace(scored=np.ones_like(read.scored), **changes)
  examples = [helpers.Letters().examples("train")[:2]]
  advantages = np.arange(size, dtype=np.float32)[None]
  (rows,) = completions.of_answers(examples, read, advantages, NAMES, encoder)
  return rows


def test_answers_with_what_each_of_them_earned():
  texts = labelling_test.TEXTS
  rewards = np.arange(16, dtype=np.float32).reshape(1, 2, 4, 2)
  scored = np.ones(rewards.shape, bool)
  scored[0, 1, 2, 1] = False
  outcomes = np.zeros((1, 2, 4), np.int8)
  outcomes[0, 1, 3] = rollouts.WRONG
  rows = answers(texts, rewards=rewards, outcomes=outcomes)
  assert [row["prompt"] for row in rows] == ["a"] * 4 + ["bb"] * 4
  assert rows[5] == {
    "prompt": "bb",
    "completion": rows[5]["completion"],
    **{"reward/a": 10.0, "reward/b": 11.0, "total": 21.0},
    **{"advantage": 5.0, "outcome": "right"},
  }
  assert rows[7]["outcome"] == "wrong"
  # A queue keeps tokens alone, and they are read.
  scores = dict(rewards=rewards, outcomes=outcomes)
  assert answers(texts, completions=[], **scores) == rows
  assert len({row["completion"] for row in rows}) > 2


def test_what_was_not_scored_is_null():
  made = helpers.experiment()
  encoder = rollouts.Encoder(made.tokenizer, made.rollout)
  said = labelling_test.say(labelling_test.TEXTS)
  read = rollouts.unscored(said, 2, 2, encoder)
  read.scored[0, 0, 1, 0] = True
  examples = [helpers.Letters().examples("train")[:2]]
  odd = np.full((1, 8), np.nan)
  (rows,) = completions.of_answers(examples, read, odd, NAMES, encoder)
  figures = "reward/a", "reward/b", "total", "advantage"
  assert [rows[1][name] for name in figures] == [0.0, None, None, None]


def test_an_episode_is_its_actions_and_what_the_world_said():
  turns = [
    Turn("at the door", "open", "open", "it opens", 0.0, True),
    Turn("inside", "mumble", "", "what?", 1.0, False),
  ]
  played = SimpleNamespace(
    turns=[[turns, [], turns[:1], turns[1:]]],
    failed=np.array([[[False, True], [False, False]]]),
    returns=np.array([[[1.0, 0.0], [0.0, 1.0]]]),
  )
  (rows,) = completions.of_episodes(played, max_return=1.0)
  outcomes = ["right", "failed", "wrong", "right"]
  assert [row["outcome"] for row in rows] == outcomes
  assert [row["total"] for row in rows] == [1.0, None, 0.0, 1.0]
  prompts = ["at the door", "", "at the door", "inside"]
  assert [row["prompt"] for row in rows] == prompts
  assert rows[0]["completion"].splitlines() == [
    "[action 1] open",
    "[world] it opens",
    "[action 2, does not parse] mumble",
    "[world] what?",
  ]


def test_a_long_text_loses_its_middle_and_what_is_no_unicode():
  assert completions.shorten("é" * 40, 40) == "é" * 40
  text = completions.shorten("a" * 10**6 + "\ud800b", 40)
  assert text.startswith("a" * 30 + "\n[... 999,962 more") and text[-2:] == "?b"
  assert len(text) < 80
