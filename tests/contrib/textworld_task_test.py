"""Tests of saw_jax/contrib/textworld_task.py with a stand-in for the games.

The engines themselves are in tests/engines_test.py.
"""

import importlib.util
import pickle
import re
import types

import pytest

from saw_jax.contrib import textworld_task
from saw_jax.contrib.textworld_task import TextWorldConfig, TextWorldTask
from saw_jax.tasks import environments
from saw_jax.tasks.environments import Situation, Step


class Game:
  """Three steps up, one for each seed."""

  def __init__(self, *arguments, **options):
    self.made, self.task, self.done = (arguments, options), "climb", True

  def reset(self, seed):
    self.seed, self.height, self.done = seed, 0, False
    return f"floor {seed}.0"

  def step(self, action):
    self.height += 1
    self.done = self.height == 3
    return Step(f"floor {self.seed}.{self.height}", 0.0, self.done)

  @property
  def plan(self):
    return [] if self.seed == 1 else ["up"] * 5

  @property
  def admissible_actions(self):
    return ["down", "up"]

  def close(self):
    self.done = True


@pytest.fixture(autouse=True)
def engines(monkeypatch):
  monkeypatch.setattr(textworld_task, "ExpressGame", Game)
  monkeypatch.setattr(textworld_task, "StoryGame", Game)
  monkeypatch.setattr(
    importlib.util, "find_spec", lambda name: types.SimpleNamespace()
  )


class TestTask:
  def test_it_says_what_there_is(self):
    task = TextWorldTask(TextWorldConfig(num_train=5, num_test=2, reward=3.0))
    assert task.num_episodes("train") == 5 and task.num_episodes("test") == 2
    assert (task.max_steps, task.max_return) == (50, 3.0)
    assert task.components[0].maximum == 3.0
    with pytest.raises(ValueError, match="'test'"):
      task.make("tests")

  def test_a_game_gets_its_options(self):
    task = TextWorldTask(
      TextWorldConfig(game="twc", parameters="numLocations=2", pays="score")
    )
    arguments, options = task.make("test").made
    assert arguments == ("twc", "test")
    assert options == dict(
      parameters="numLocations=2", max_steps=50, reward=10.0, pays="score"
    )

  def test_files_are_those_of_the_split(self, tmp_path):
    for name in ("train/a.z8", "train/b.z8", "test/c.z8"):
      (tmp_path / name).parent.mkdir(exist_ok=True)
      (tmp_path / name).touch()
    task = TextWorldTask(
      TextWorldConfig(game="textworld", folder=str(tmp_path), num_train=9)
    )
    assert task.num_episodes("train") == 2 and task.num_episodes("test") == 1
    ((paths,), _) = task.make("test").made
    assert paths == [str(tmp_path / "test" / "c.z8")]

  def test_it_can_be_sent_to_a_process(self):
    task = TextWorldTask()
    again = pickle.loads(pickle.dumps(task))
    assert isinstance(again, environments.AgentTask)
    assert again.config == task.config


class TestDemonstrations:
  def test_they_are_plans_until_the_game_is_over(self):
    task = TextWorldTask(TextWorldConfig(num_train=3))
    steps = task.demonstrations(8, seed=2)
    # Seeds 2, 0 and, as 1 has no plan, 2 again; three steps each.
    assert [step.before.observation for step in steps] == [
      *("floor 2.0", "floor 2.1", "floor 2.2"),
      *("floor 0.0", "floor 0.1", "floor 0.2"),
      *("floor 2.0", "floor 2.1"),
    ]
    assert steps[2].history == (("floor 2.0", "up"), ("floor 2.1", "up"))
    assert steps[2].observation == "floor 2.3"
    assert steps[3].history == ()
    assert steps[0].before == Situation(
      "climb", "floor 2.0", ("down", "up"), 0.0, False
    )
    assert len(task.held_out(4)) == 4
    with pytest.raises(ValueError, match="wrong_rate"):
      task.demonstrations(8, seed=2, wrong_rate=0.1)

  def test_no_plan_is_an_error(self, monkeypatch):
    monkeypatch.setattr(Game, "plan", [])
    with pytest.raises(ValueError, match="walkthrough"):
      TextWorldTask(TextWorldConfig(num_train=3)).demonstrations(1, seed=0)


class TestPrompts:
  SITUATION = Situation("climb", "{floor}", ("down", "up"), 0.0, False)

  def write(self, history, **options):
    task = TextWorldTask(TextWorldConfig(**options))
    return list(task.prompts(self.SITUATION, history))

  def test_the_first_has_no_history(self):
    (text,) = self.write(())
    assert "climb" in text and "{floor}" in text and "['down', 'up']" in text
    assert "So far" not in text
    assert "<think> </think>" in text and "<action> </action>" in text

  def test_history_is_dropped_oldest_first(self):
    history = [(f"seen {k}", f"did {k}") for k in (1, 2, 3)]
    two, one, none = self.write(history)
    assert "[Observation 2: 'seen 2', Action 2: 'did 2'], " in two
    assert "[Observation 3: 'seen 3', Action 3: 'did 3']" in two
    assert "3 step(s). The last 2 " in two and "seen 1" not in two
    assert "seen 2" not in one and "seen 3" in one
    assert "So far" not in none

  def test_an_enormous_history_is_left_out(self):
    (text,) = self.write([("x" * 20_000, "look")])
    assert "So far" not in text


class TestMistakes:
  @pytest.mark.parametrize("game", ["coin", "textworld"])
  def test_without_the_package_its_extra_is_named(self, monkeypatch, game):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    folder = "somewhere" if game == "textworld" else ""
    with pytest.raises(ImportError, match=re.escape("saw_jax[textworld]")):
      TextWorldTask(TextWorldConfig(game=game, folder=folder))

  @pytest.mark.parametrize(
    ("field", "words"),
    [
      ({"game": "cookinworld"}, "'cookingworld'"),
      ({"pays": "scores"}, "'score'"),
      ({"max_steps": 0}, "max_steps"),
      ({"game": "textworld"}, "together"),
      ({"folder": "somewhere"}, "together"),
      ({"num_train": 1001}, "1000"),
    ],
  )
  def test_a_mistake_is_named(self, field, words):
    with pytest.raises(ValueError, match=words):
      TextWorldConfig(**field)
