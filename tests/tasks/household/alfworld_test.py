"""ALFWorld's game files, and its task with a stand-in for the engine.

The engine itself is in tests/engines_test.py.
"""

import importlib.util
import json
import logging
import pickle
import re
import sys

import pytest

from saw_jax.tasks.draws import Draws
from saw_jax.tasks.household import alfworld_games as games
from saw_jax.tasks.household import alfworld_task
from saw_jax.tasks.household import world as hw
from saw_jax.tasks.household.alfworld_task import AlfworldConfig, AlfworldTask
from saw_jax.tasks.household.rules import shortest_plan
from saw_jax.tasks.household.task import HouseholdTask
from saw_jax.tasks.workers.environment_pool import EnvironmentPool
from tests.tasks.household.household_test import LAMP

# In the form of the package's, with nothing of its content.
LOGIC = games.Logic(
  domain="(define (domain alfred))",
  grammar='"rhs": "Your task is to: UNKNOWN GOAL."',
  goals={
    name: "\n(:goal (exists (?o # object) (is ?o {obj} {recep} {toggle})))\n)"
    for name in games.TASK_TYPES.values()
  },
)
WORLD = hw.World(
  *("heat", "kitchen", "mug", "cabinet", "put a hot mug in cabinet."),
  ("cabinet 2", "cabinet 1", "microwave 1", "sinkbasin 1"),
  *(("mug 1", "apple 1"), (3, 2), -1),
)
# A world's places and things where the engine puts them: it counts down.
ZERO, ONE = (
  "_bar_" + "_bar_".join([f"_plus_{n}_dot_00"] * 3) for n in ("00", "01")
)


def draw(kind, seed):
  return hw.draw_world(Draws("games", kind, seed), "train", kinds=[kind])


def sections(problem):
  """The lines of `:objects` and of `:init`, and what follows them."""
  found = re.fullmatch(
    r"\(define \(problem household\)\n\(:domain alfred\)\n\(:objects\n(.*)\n\)"
    r"\n\(:init\n(.*)\n\)\n(.*)\n\)",
    problem,
    re.DOTALL,
  )
  return found[1].splitlines(), found[2].splitlines(), found[3]


class TestMakeProblem:
  def test_a_small_world(self):
    goal = LOGIC.goals["pick_heat_then_place_in_recep"]
    objects, init, rest = sections(games.make_problem(WORLD, goal))
    cabinet, mug, apple = f"Cabinet{ZERO}", f"Mug{ZERO}", f"Apple{ZERO}"
    sink = f"Sink{ZERO}_bar_Sinkbasin"
    for name in (cabinet, f"Cabinet{ONE}", f"Microwave{ZERO}", sink):
      assert f"{name} - receptacle" in objects
    assert {f"{mug} - object", "MugType - otype"} <= set(objects)
    assert {"SinkbasinType - rtype", "agent1 - agent"} <= set(objects)
    assert set(init) > {
      "(= (total-cost) 0)",
      f"(inReceptacle {mug} {sink})",
      f"(inReceptacle {apple} Microwave{ZERO})",
      f"(receptacleType {sink} SinkbasinType)",
      f"(openable {cabinet})",
      f"(receptacleAtLocation {cabinet} loc_bar_0_bar_1_bar_0_bar_30)",
      f"(heatable {mug})",
      f"(pickupable {apple})",
      "(canContain CabinetType MugType)",
    }
    no = {f"(openable {sink})", "(canContain CabinetType AppleType)"}
    assert not no & set(init)
    assert rest == (
      "(:goal (exists (?o - object) (is ?o Mug Cabinet Desklamp)))\n"
      "(:metric minimize (total-cost))"
    )

  def test_a_lamp_can_be_turned_on_and_not_taken(self):
    problem = games.make_problem(LAMP, LOGIC.goals["look_at_obj_in_light"])
    about = [fact for fact in sections(problem)[1] if "Desklamp_bar" in fact]
    told = ["objectType", "inReceptacle", "objectAtLocation", "toggleable"]
    assert [fact.strip("()").split()[0] for fact in about] == told

  @pytest.mark.parametrize("kind", hw.KINDS)
  def test_all_that_is_said_is_declared_once(self, kind):
    for seed in range(10):
      world, goal = draw(kind, seed), LOGIC.goals[games.TASK_TYPES[kind]]
      objects, init, _ = sections(games.make_problem(world, goal))
      names = [line.partition(" - ")[0] for line in objects]
      assert len(set(names)) == len(names)
      for fact in init[1:]:
        assert set(fact.strip("()").split()[1:]) <= set(names), fact
      assert len(set(init)) == len(init)
      in_places = [f for f in init if f.startswith("(inReceptacle ")]
      assert len(in_places) == len(world.things) + (world.lamp_in >= 0)

  def test_numbers_with_gaps_and_open_goals_are_refused(self):
    for first in ("cabinet 3", "cabinet 1"):
      world = WORLD._replace(places=(first, *WORLD.places[1:]))
      with pytest.raises(ValueError, match="numbers"):
        games.make_problem(world, "(:goal)")
    with pytest.raises(ValueError, match="bracket"):
      games.make_problem(WORLD, "(:goal (and")


def test_a_game_is_what_the_package_writes():
  game = games.make_game(WORLD, LOGIC)
  names = "pddl_domain grammar pddl_problem solvable walkthrough"
  assert " ".join(game) == names
  assert game["pddl_domain"] == LOGIC.domain
  assert 'to: put a hot mug in cabinet."' in game["grammar"]
  assert game["walkthrough"] == shortest_plan(WORLD)


TEXTS = b'{"pddl_domain": "x", "grammar": "y", "pddl_problem": %s}'
DAMAGED = [b"", b"[1, 2]", b"\xff\xfe\x00", b"[" * 100_000, TEXTS % b'" "']
DAMAGED += [b'{"pddl_domain": "x", "grammar": "y"}', b'{"pddl_domain": "x"']
DAMAGED += [TEXTS % b'"z", "walkthrough": "look"']


class TestFiles:
  @pytest.fixture
  def folder(self, tmp_path):
    """A split with two worlds of each kind."""
    worlds = [draw(kind, seed) for seed in range(2) for kind in hw.KINDS]
    paths = games.write_games(tmp_path / "train", worlds, LOGIC)
    assert len(paths) == 12
    return tmp_path / "train"

  def test_what_is_written_is_found_and_read(self, folder):
    paths = games.find_games(folder)
    assert len(paths) == 12 and paths == sorted(paths)
    wanted = {draw(k, s).goal[:-1] for s in range(2) for k in hw.KINDS}
    found = set()
    for path in paths:
      game = games.read_game(path)
      found.add(game["grammar"].partition("to: ")[2][:-2])
      assert game["walkthrough"]
      about = json.loads((path.parent / games.TASK_FILE).read_text())
      kind = games.read_kind(path)
      assert games.TASK_TYPES[kind] == about["task_type"]
      assert path.parts[-3].startswith(about["task_type"])
      params = about["pddl_params"]
      lamp = "Desklamp" if kind == "look" else ""
      assert params["toggle_target"] == lamp and not params["object_sliced"]
      assert (params["parent_target"] == "") == (kind == "look")
    assert found == wanted
    kinds = map(games.read_kind, games.find_games(folder, ["heat", "two"]))
    assert sorted(kinds) == ["heat", "heat", "two", "two"]

  def test_damaged_games_are_left_out_and_told(self, folder, caplog):
    paths = games.find_games(folder)
    broken = dict(zip(paths, DAMAGED, strict=False))
    for path, content in broken.items():
      path.write_bytes(content)
      with pytest.raises(ValueError, match="game.tw-pddl"):
        games.read_game(path)
    paths[-1].with_name(games.TASK_FILE).write_bytes(b"no")
    with caplog.at_level(logging.WARNING):
      assert games.find_games(folder) == paths[len(broken) : -1]
    assert f"{len(broken) + 1} games in" in caplog.text
    assert str(paths[0]) in caplog.text

  def test_what_alfworld_leaves_out_is_left_out(self, folder):
    first, second, third, *_ = games.find_games(folder)
    data = json.loads(first.read_text())
    first.write_text(json.dumps(data | {"solvable": False}))
    second.parent.parent.rename(folder / "pick_movable-1")
    third.with_name(games.TASK_FILE).unlink()
    assert len(games.find_games(folder)) == 9

  def test_an_empty_folder_is_named(self, tmp_path):
    with pytest.raises(ValueError, match="heat"):
      games.find_games(tmp_path, ["heat"])
    with pytest.raises(FileNotFoundError, match="valid_unseen"):
      games.find_games(tmp_path / "train")
    with pytest.raises(FileNotFoundError):
      games.read_game(tmp_path / games.GAME_FILE)


BARE = LOGIC._replace(grammar="UNKNOWN GOAL")
State = type("State", (dict,), {})  # which can have attributes
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
    actions = ["look", *self.left[:1]]
    state = State(won=not self.left, admissible_commands=actions)
    state.feedback = feedback
    return state

  def close(self):
    self.closed += 1


@pytest.fixture
def engine(monkeypatch):
  monkeypatch.setattr(alfworld_task, "_start_engine", Engine)
  monkeypatch.setattr(games, "read_logic", lambda: BARE)
  find, there = importlib.util.find_spec, {"alfworld": object()}
  fake = lambda name: there.get(name) or find(name)  # noqa: E731
  monkeypatch.setattr(importlib.util, "find_spec", fake)


def start(choose=lambda seed: GAME):
  return alfworld_task.Alfworld(choose, 50, 7.0)


@pytest.mark.usefixtures("engine")
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

  def test_there_is_no_step_after_a_close_or_a_game_that_is_refused(self):
    env = start([GAME, GAME | {"pddl_problem": "damage"}].__getitem__)
    env.reset(0)
    with pytest.raises(ValueError, match="seed 1: SystemExit: 30"):
      env.reset(1)
    with pytest.raises(RuntimeError, match="reset"):
      env.step("look")
    assert env.reset(0)
    env.close()
    env.close()
    assert env._engine.closed == 2
    with pytest.raises(RuntimeError, match="reset"):
      env.step("look")


@pytest.mark.usefixtures("engine")
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


@pytest.mark.usefixtures("engine")
class TestFolder:
  @pytest.fixture
  def task(self, tmp_path):
    for name, count in (("train", 3), ("valid_seen", 2), ("valid_unseen", 1)):
      worlds = [draw("pick", f"{name} {seed}") for seed in range(count)]
      games.write_games(tmp_path / name, worlds, LOGIC)
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

  def test_demonstrations_are_the_walkthroughs_of_all_files(self, task):
    made, walks = task(), []
    env = made.make("train")
    for seed in (0, 1, 2, 0):
      env.reset(seed)
      walks.append(env.game["walkthrough"])
    assert len(set(map(tuple, walks))) == 3
    actions = [action for walk in walks for action in walk]
    steps = made.demonstrations(len(actions), seed=0)
    assert [step.action for step in steps] == actions
    assert steps[len(walks[0])].history == ()
    assert steps[1].history == ((steps[0].before.observation, actions[0]),)
    assert steps[1].before.observation == steps[0].observation
    assert len(made.held_out(3)) == 3
    with pytest.raises(ValueError, match="wrong_rate"):
      made.demonstrations(1, seed=0, wrong_rate=0.1)

  def test_games_without_a_walkthrough_show_nothing(self, task):
    made = task()
    for path in made._paths["train"]:
      game = games.read_game(path) | {"walkthrough": None}
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


def test_without_the_package_its_extra_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "alfworld", None)
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  for need in (games.read_logic, AlfworldTask):
    with pytest.raises(ImportError, match=re.escape("saw_jax[alfworld]")):
      need()
