"""Text games as a task, with a stand-in; engines_test.py has the games."""

import importlib.util
import pickle
import re

import pytest

from saw_jax.contrib import textworld_task
from saw_jax.contrib.textworld_task import TextWorldConfig, TextWorldTask
from saw_jax.tasks.environments import Environment, Situation

SITUATION = Situation("climb", "{floor}", ("down", "up"), 0.0, False)
HISTORY = [(f"seen {k}", f"did {k}") for k in (1, 2, 3)]


class Game(Environment):
  """Three steps up, one for each seed."""

  admissible_actions = ("down", "up")

  def __init__(self, *arguments, **options):
    super().__init__(3, 10.0)
    self.made = arguments, options

  def _start(self, seed):
    self.task, self.seed = "climb", seed
    return f"floor {seed}.0"

  def _act(self, action):
    return f"floor {self.seed}.{self._steps}", 0.0, False

  @property
  def plan(self):
    return [] if self.seed == 1 else ["up"] * 5


@pytest.fixture(autouse=True)
def engines(monkeypatch):
  monkeypatch.setattr(textworld_task, "ExpressGame", Game)
  monkeypatch.setattr(textworld_task, "StoryGame", Game)
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: "found")


def make(**options):
  return TextWorldTask(TextWorldConfig(**options))


class TestGames:
  def test_one_gets_its_options(self):
    task = make(game="twc", parameters="numLocations=2", pays="score")
    again = pickle.loads(pickle.dumps(task))
    assert again.num_episodes("train") == 1000
    assert again.make("test").made == (
      ("twc", "test", "numLocations=2"),
      dict(max_steps=50, reward=10.0, pays="score"),
    )

  def test_files_are_those_of_the_split(self, tmp_path):
    for name in ("train/a.z8", "train/b.z8", "test/c.z8"):
      (tmp_path / name).parent.mkdir(exist_ok=True)
      (tmp_path / name).touch()
    task = make(game="textworld", folder=str(tmp_path), num_train=9)
    assert task.num_episodes("train") == 2 and task.num_episodes("test") == 1
    ((paths,), _) = task.make("test").made
    assert paths == [str(tmp_path / "test" / "c.z8")]


class TestDemonstrations:
  def test_they_are_plans_until_the_game_is_over(self):
    task = make(num_train=3)
    steps = task.demonstrations(8, seed=2)
    # Seeds 2, 0 and, as 1 has no plan, 2 again; three steps each.
    assert [step.before.observation for step in steps] == [
      *("floor 2.0", "floor 2.1", "floor 2.2"),
      *("floor 0.0", "floor 0.1", "floor 0.2"),
      *("floor 2.0", "floor 2.1"),
    ]
    assert len(task.held_out(4)) == 4
    with pytest.raises(ValueError, match="wrong_rate"):
      task.demonstrations(8, seed=2, wrong_rate=0.1)

  def test_no_plan_is_an_error(self, monkeypatch):
    monkeypatch.setattr(Game, "plan", [])
    with pytest.raises(ValueError, match="walkthrough"):
      make(num_train=3).demonstrations(1, seed=0)


def test_prompts_have_less_and_less_history():
  two, one, none = TextWorldTask().prompts(SITUATION, HISTORY)
  assert two == (
    "You are playing a text game.\n"
    "Your task is: climb\n"
    "So far you have taken 3 step(s). The last 2 observation(s) and the "
    "actions that you took: [Observation 2: 'seen 2', Action 2: 'did 2'], "
    "[Observation 3: 'seen 3', Action 3: 'did 3']\n"
    "Your current observation is: {floor}\n"
    "The actions that are possible now are: ['down', 'up'].\n\n"
    "It is your turn to act. First reason step by step about the situation, "
    "inside <think> </think> tags. Then choose one possible action and write "
    "it inside <action> </action> tags."
  )
  assert "seen 2" not in one and "seen 3" in one
  assert none == next(TextWorldTask().prompts(SITUATION, ()))
  assert "climb\nYour current" in none
  (short,) = TextWorldTask().prompts(SITUATION, [("x" * 20_000, "look")])
  assert short == none


class TestMistakes:
  @pytest.mark.parametrize("game", ["coin", "textworld"])
  def test_without_the_package_its_extra_is_named(self, monkeypatch, game):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    folder = "somewhere" if game == "textworld" else ""
    with pytest.raises(ImportError, match=re.escape("saw_jax[textworld]")):
      make(game=game, folder=folder)

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
