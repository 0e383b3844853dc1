"""Tests of household/alfworld_task.py with a stand-in for the engine.

The engine itself is in tests/engines_test.py.
"""

import importlib.util
import json
import pickle
import re
import types

import pytest

from saw_jax.tasks.draws import Draws
from saw_jax.tasks.household import alfworld_games, alfworld_task
from saw_jax.tasks.household import world as hw
from saw_jax.tasks.household.alfworld_games import Logic
from saw_jax.tasks.household.alfworld_task import AlfworldConfig, AlfworldTask
from saw_jax.tasks.household.rules import shortest_plan
from saw_jax.tasks.household.task import HouseholdTask
from saw_jax.tasks.workers.environment_pool import EnvironmentPool

GOALS = dict.fromkeys(alfworld_games.TASK_TYPES.values(), "(:goal)")
LOGIC = Logic("domain", "UNKNOWN GOAL", GOALS)
SMALL = AlfworldConfig(num_train=20, num_test=5, receptacles=6, objects=6)
GAME = {"grammar": "win", "pddl_problem": "", "walkthrough": ["one", "two"]}


class Engine:
  """As the engine is used: a state is told, and has a dictionary's keys."""

  def load(self, data):
    if "damage" in data["pddl_problem"]:
      raise SystemExit(30)
    self.data, self.closed = data, 0

  def reset(self):
    self.left = list(self.data["walkthrough"] or ["win"])
    goal = self.data["grammar"]
    return self.state(f"A room.\n\nYour task is to: {goal}.")

  def step(self, action):
    told = "Nothing happens."
    if self.left and action == self.left[0]:
      told = f"Done: {self.left.pop(0)}."
    return self.state(told), 0, False

  def state(self, feedback):
    class State(dict):
      pass

    actions = ["look", *self.left[:1]]
    state = State(won=not self.left, admissible_commands=actions)
    state.feedback = feedback
    return state

  def close(self):
    self.closed += 1


@pytest.fixture(autouse=True)
def engine(monkeypatch):
  monkeypatch.setattr(alfworld_task, "_start_engine", Engine)
  monkeypatch.setattr(alfworld_games, "read_logic", lambda: LOGIC)
  find = importlib.util.find_spec
  there = types.SimpleNamespace()
  monkeypatch.setattr(
    importlib.util,
    "find_spec",
    lambda name: there if name == "alfworld" else find(name),
  )


def start(choose=lambda seed: GAME):
  return alfworld_task.Alfworld(choose, 50, 7.0)


class TestAlfworld:
  def test_the_step_that_wins_pays(self):
    env = start()
    assert env.max_return == 7.0
    assert env.reset(0) == "A room.\n\nYour task is to: win."
    assert env.task == "win." and env.admissible_actions == ["look", "one"]
    assert [env.step(action) for action in ("one", "sing", "two")] == [
      ("Done: one.", 0, False),
      ("Nothing happens.", 0, False),
      ("Done: two.", 7.0, True),
    ]

  def test_there_is_no_step_before_a_reset_or_after_a_close(self):
    env = start()
    with pytest.raises(RuntimeError, match="reset"):
      env.step("look")
    env.reset(0)
    env.close()
    env.close()
    assert env._engine.closed == 2
    with pytest.raises(RuntimeError, match="reset"):
      env.step("look")

  def test_a_game_that_the_engine_refuses_is_a_value_error(self):
    env = start([GAME, GAME | {"pddl_problem": "damage"}].__getitem__)
    env.reset(0)
    with pytest.raises(ValueError, match="seed 1: SystemExit: 30"):
      env.reset(1)
    with pytest.raises(RuntimeError, match="reset"):
      env.step("look")
    assert env.reset(0)


def test_drawn_games_are_the_households_worlds():
  task, ours = AlfworldTask(SMALL), HouseholdTask(SMALL)
  envs = pickle.loads(pickle.dumps(task)).make("test"), ours.make("test")
  assert task.num_episodes("train") == 20 and task.max_return == 10.0
  for seed in range(task.num_episodes("test")):
    for env in envs:
      env.reset(seed)
    assert envs[0].task == envs[1].task
    assert envs[0].game["walkthrough"] == shortest_plan(envs[1].world)
    assert task.category("test", seed) == envs[1].world.kind
  steps = task.demonstrations(9, seed=1, wrong_rate=0.3)
  assert steps == ours.demonstrations(9, seed=1, wrong_rate=0.3)
  assert task.held_out(4) == ours.held_out(4)
  for step in steps:
    prompts = list(task.prompts(step.before, step.history))
    assert prompts == list(ours.prompts(step.before, step.history))


class TestFolder:
  @pytest.fixture
  def task(self, tmp_path):
    for name, count in (("train", 3), ("valid_seen", 2), ("valid_unseen", 1)):
      worlds = [
        hw.draw_world(Draws(name, seed), "train", kinds=["pick"])
        for seed in range(count)
      ]
      alfworld_games.write_games(tmp_path / name, worlds, LOGIC)
    return lambda **options: AlfworldTask(
      AlfworldConfig(folder=str(tmp_path), **options)
    )

  def test_splits_are_folders(self, task):
    assert task().num_episodes("train") == 3
    assert task().num_episodes("test") == 2
    assert task(evaluate_on="valid_unseen").num_episodes("test") == 1
    assert task(num_train=2).num_episodes("train") == 2
    with pytest.raises(ValueError, match="'test'"):
      task().num_episodes("tests")
    with pytest.raises(ValueError, match="heat"):
      task(kinds=("heat",))

  def test_every_seed_is_another_file(self, task):
    env = task().make("train")
    walks = {
      env.reset(seed) and tuple(env.game["walkthrough"]) for seed in range(3)
    }
    assert len(walks) == 3

  def test_demonstrations_are_walkthroughs(self, task):
    made = task()
    one = made.make("train")
    one.reset(0)
    steps = made.demonstrations(40, seed=0)
    assert len(steps) == 40
    length = len(one.game["walkthrough"])
    assert [s.action for s in steps[:length]] == list(one.game["walkthrough"])
    assert steps[length].history == ()
    assert steps[1].history == ((steps[0].before.observation, steps[0].action),)
    assert steps[1].before.observation == steps[0].observation
    assert len(made.held_out(3)) == 3
    with pytest.raises(ValueError, match="wrong_rate"):
      made.demonstrations(1, seed=0, wrong_rate=0.1)

  def test_games_without_a_walkthrough_show_nothing(self, task):
    made = task()
    for path in made._paths["train"]:
      game = alfworld_games.read_game(path) | {"walkthrough": None}
      path.write_text(json.dumps(game))
    with pytest.raises(ValueError, match="walkthrough"):
      made.demonstrations(1, seed=0)

  def test_a_game_damaged_in_between_costs_its_own_episode(self, task):
    made = task()
    made._paths["train"][1].write_text("{")
    with EnvironmentPool(made, num_workers=0, limit_s=5.0) as pool:
      found = pool.start([("train", seed) for seed in range(3)])
      assert [one.done for one in found] == [False, True, False]
      assert "ValueError" in found[1].failure
      assert set(pool.step({0: "look", 2: "look"})) == {0, 2}

  def test_one_that_is_not_there_is_named(self, tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
      AlfworldTask(AlfworldConfig(folder=str(tmp_path / "no")))


def test_without_the_package_its_extra_is_named(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ImportError, match=re.escape("saw_jax[alfworld]")):
    AlfworldTask()
