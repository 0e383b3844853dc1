"""The household against ALFWorld's engine, and TextWorld's games themselves.

`make engines` installs what these need; where it is not installed, they are
skipped.
"""

import os
import pathlib
import shutil
import signal
import subprocess
import sys

import psutil
import pytest

from saw_jax.contrib import textworld_games
from saw_jax.run import registry
from saw_jax.tasks.draws import Draws
from saw_jax.tasks.household import alfworld_games, alfworld_task, rules
from saw_jax.tasks.household import world as hw
from saw_jax.tasks.household.rules import expert, shortest_plan
from saw_jax.tasks.workers.environment_pool import EnvironmentPool

pytestmark = [pytest.mark.slow, pytest.mark.engines]
HOSTILE = ("", "\ud800", "x" * 10**5, "look\nquit", "İ", "../", "LOOK", "quit")
SEEDS = 4  # worlds of each kind


def expert_way(ours, draws):
  for action in expert(ours, draws):
    erring = draws.chance(0.2)
    yield draws.choice(ours.admissible_actions) if erring else action


def shortest_way(ours, draws):
  yield from shortest_plan(ours.world)


def any_way(ours, draws):
  names = [*ours.world.places, *ours.world.things, "desklamp 1", "bed 7", ""]
  verbs = "open close take move examine use clean heat cool slice go".split()
  for _ in range(40):
    yield draws.choice(ours.admissible_actions)
    between = draws.choice(["from", "to", "with", ""])
    words = (draws.choice(names), between, draws.choice(names))
    yield " ".join((draws.choice(verbs), *words))


@pytest.fixture(scope="module")
def meet():
  """Makes both play a world; gives ours, and a function that plays a step."""
  pytest.importorskip("alfworld")
  logic = alfworld_games.read_logic()
  options = dict(max_steps=10**6, reward=10.0)
  engine = alfworld_task.Alfworld(
    lambda world: alfworld_games.make_game(world, logic), **options
  )

  def start(world):
    ours = rules.Household(lambda seed: world, **options)
    assert engine.reset(world) == ours.reset(0)
    assert engine.task == ours.task

    def both(action):
      assert engine.admissible_actions == ours.admissible_actions
      theirs, here = engine.step(action), ours.step(action)
      assert theirs == here, (action, world)
      return here.done

    return ours, both

  return start


class TestHouseholdIsAlfworld:
  """Every text, every list of actions and every win, in the same worlds."""

  @pytest.mark.parametrize("way", [expert_way, shortest_way, any_way])
  @pytest.mark.parametrize("seed", range(SEEDS))
  @pytest.mark.parametrize("kind", hw.KINDS)
  def test_each_way_is_the_same_in_both(self, meet, kind, seed, way):
    size, split = (5, 7, 9, 12)[seed % 4], ("train", "test")[seed % 2]
    draws = Draws("engines", kind, seed)
    world = hw.draw_world(
      draws, split, kinds=[kind], receptacles=size, objects=size + 3
    )
    ours, both = meet(world)
    done = any(map(both, way(ours, draws)))
    assert ours.won == done and (done or way is any_way)

  def test_a_tour_of_all_that_can_be_done(self, meet):
    world = hw.World(
      *("heat", "kitchen", "mug", "cabinet", "put a hot mug in cabinet."),
      ("cabinet 1", "fridge 1", "microwave 1", "shelf 1", "sinkbasin 1"),
      *(("apple 1", "mug 1", "mug 2"), (1, 3, 3), -1),
    )
    _, both = meet(world)
    fridge, heat = "fridge 1", "heat apple 1 with microwave 1"
    for action in (
      *("look", "help", "inventory", "examine cabinet 1", f"go to {fridge}"),
      *(f"examine {fridge}", f"open {fridge}", "examine apple 1", "look"),
      *(f"take apple 1 from {fridge}", "examine apple 1", "inventory"),
      *(f"cool apple 1 with {fridge}", "examine apple 1", f"close {fridge}"),
      *(f"cool apple 1 with {fridge}", f"move apple 1 to {fridge}"),
      *("go to sinkbasin 1", "clean apple 1 with sinkbasin 1"),
      *("examine apple 1", "go to microwave 1", heat, "examine apple 1", heat),
      *("open microwave 1", "move apple 1 to microwave 1", "inventory"),
      *("go to shelf 1", "take mug 1 from shelf 1", "go to microwave 1"),
      *("heat mug 1 with microwave 1", "examine mug 1", "go to cabinet 1"),
      *("go to cabinet 1", "open cabinet 1", " look ", "go  to shelf 1"),
      *HOSTILE[:-1],
    ):
      assert not both(action)
    assert both("move mug 1 to cabinet 1")


def walk_of(task, split, seed):
  return alfworld_games.read_game(task._paths[split][seed])["walkthrough"]


class TestAlfworld:
  @pytest.fixture
  def folder(self, tmp_path):
    pytest.importorskip("alfworld")
    logic = alfworld_games.read_logic()
    for name in ("train", "valid_seen"):
      size = dict(receptacles=5, objects=5)
      worlds = [
        hw.draw_world(Draws(name, kind), "train", kinds=[kind], **size)
        for kind in hw.KINDS
      ]
      alfworld_games.write_games(tmp_path / name, worlds, logic)
    return tmp_path

  def test_the_package_plays_what_is_written(self, folder):
    import textworld
    from alfworld.agents.environment import alfred_tw_env

    data = {"data_path": str(folder / "train"), "num_train_games": 0}
    plain = {"goal_desc_human_anns_prob": 0, "task_types": [1, 2, 3, 4, 5, 6]}
    env = alfred_tw_env.AlfredTWEnv({"env": plain, "dataset": data})
    ours = map(str, alfworld_games.find_games(folder / "train"))
    assert sorted(env.game_files) == list(ours)
    # Its own planner solves them too.
    infos = textworld.EnvInfos(policy_commands=True, won=True)
    for path in env.game_files[::3]:
      game = alfred_tw_env.AlfredDemangler(textworld.start(path, infos))
      game.load(path)
      state = game.reset()
      for action in state["policy_commands"]:
        state, _, _ = game.step(action)
      assert state["won"]

  def test_workers_play_a_folder_with_a_damaged_game(self, folder):
    task = registry.make_task("alfworld", {"folder": str(folder)})
    broken = pathlib.Path(task._paths["train"][2])
    broken.write_text(broken.read_text().replace("(:init", "(:inti"))
    limits = dict(limit_s=60.0, crash_tolerance=0.5)
    with EnvironmentPool(task, num_workers=1, **limits) as pool:
      found = pool.start([("train", seed) for seed in range(4)])
      assert [bool(one.failure) for one in found] == [False, False, True, False]
      assert "the engine cannot play" in found[2].failure
      walks = {seed: walk_of(task, "train", seed) for seed in (0, 1, 3)}
      for action in HOSTILE:
        told = pool.step(dict.fromkeys(walks, action))
        assert all(one.observation == rules.NOTHING for one in told.values())
      # A worker that dies loses nothing.
      os.kill(pool._workers[0].process.pid, signal.SIGKILL)
      while walks:
        told = pool.step({seed: walk[0] for seed, walk in walks.items()})
        walks = {seed: walk[1:] for seed, walk in walks.items() if walk[1:]}
        for seed, one in told.items():
          assert not one.failure and one.done == (seed not in walks)
          assert one.reward == 10.0 * one.done

  def test_walkthroughs_are_demonstrations(self, folder):
    task = registry.make_task("alfworld", {"folder": str(folder)})
    walk = walk_of(task, "test", 0)
    steps = task.held_out(len(walk))
    assert [step.action for step in steps] == walk
    for step in steps:
      assert step.action in step.before.actions
      assert step.observation != rules.NOTHING
      assert step.before.task in next(task.prompts(step.before, step.history))


class TestExpress:
  @pytest.fixture(autouse=True)
  def packages(self):
    pytest.importorskip("textworld_express")

  @pytest.mark.parametrize("game", textworld_games.EXPRESS)
  def test_plans_win_and_seeds_are_games(self, game):
    # Two of one seed at once, as the episodes of a group are.
    options = dict(max_steps=200, pays="score")
    env = textworld_games.ExpressGame(game, "test", **options)
    again = textworld_games.ExpressGame(game, "test", **options)
    starts = []
    for seed in (0, 1):
      starts.append((env.reset(seed), env.task))
      assert starts[-1] == (again.reset(seed), again.task)
      total = 0.0
      for action in env.plan:
        step = env.step(action)
        assert step == again.step(action)
        assert env.admissible_actions == again.admissible_actions
        total += step.reward
        if step.done:
          break
      assert total == pytest.approx(10.0) and step.done
    assert starts[0] != starts[1]
    env.close()
    again.close()

  def test_hostile_text_changes_nothing(self):
    env = textworld_games.ExpressGame("coin")
    env.reset(0)
    before = env.admissible_actions
    for text in HOSTILE:
      step = env.step(text)
      assert step.observation and not step.done
    assert env.admissible_actions == before
    env.close()

  def test_games_share_java_until_the_last_is_closed(self):
    one, other = (textworld_games.ExpressGame(n) for n in ("coin", "twc"))
    pid = one._java.process.pid
    assert other._java.process.pid == pid
    one.close()
    assert psutil.pid_exists(pid) and other.reset(0)
    other.close()
    assert not psutil.pid_exists(pid)

  @pytest.mark.parametrize("what", [signal.SIGKILL, signal.SIGSTOP])
  def test_a_java_that_dies_or_hangs_is_replaced(self, what):
    task = registry.make_task("textworld", {"game": "coin", "num_train": 9})
    with EnvironmentPool(task, num_workers=1, limit_s=8.0) as pool:
      start = pool.start([("train", seed) for seed in range(3)])
      (java,) = psutil.Process(pool._workers[0].process.pid).children()
      actions = {slot: one.actions[0] for slot, one in enumerate(start)}
      java.send_signal(what)
      first = pool.step(actions)
      pool.check()
      again = EnvironmentPool(task, num_workers=0, limit_s=8.0)
      assert again.start([("train", seed) for seed in range(3)]) == start
      assert again.step(actions) == first
      assert not java.is_running() or java.status() == psutil.STATUS_ZOMBIE
      (java,) = psutil.Process(pool._workers[0].process.pid).children()
      again.close()
    psutil.wait_procs([java], timeout=5)
    assert not java.is_running() or java.status() == psutil.STATUS_ZOMBIE

  def test_a_game_that_does_not_exist_is_named(self):
    with pytest.raises(ValueError, match="Unknown game"):
      textworld_games.ExpressGame("chess")
    with pytest.raises(ValueError, match="Unrecognized property"):
      textworld_games.ExpressGame("coin", parameters="wings=2")


class TestStories:
  @pytest.fixture
  def folder(self, tmp_path_factory):
    pytest.importorskip("textworld")
    folder = tmp_path_factory.mktemp("stories")
    make = [pathlib.Path(sys.executable).with_name("tw-make")]
    make += "tw-treasure_hunter --level 5 --seed".split()
    for split, seed in (("train", "1"), ("test", "2")):
      where = ["--output", folder / split / "game.z8"]
      subprocess.run([*make, seed, *where], check=True)
    return folder

  def task(self, folder):
    options = {"game": "textworld", "folder": str(folder)}
    return registry.make_task("textworld", options)

  def test_the_walkthrough_wins(self, folder):
    task = self.task(folder)
    assert task.num_episodes("train") == task.num_episodes("test") == 1
    env, played = task.make("test"), []
    for _ in range(2):
      seen, total = [env.reset(0), env.task], 0.0
      assert "$$" not in seen[0] and seen[0].startswith("-= ")
      for action in (*HOSTILE, "save", "restart", "undo", *env.plan):
        step = env.step(action)
        assert step.observation and ">" not in step.observation
        seen.append((step, env.admissible_actions))
        total += step.reward
      assert total == 10.0 and step.done
      played.append(seen)
    assert played[0] == played[1]
    assert task.demonstrations(2, seed=0)[1].history
    env.close()

  def test_damaged_files_cost_their_own_episode(self, folder, tmp_path):
    (whole,) = textworld_games.find_games(folder / "train")
    for split in ("train", "test"):
      (tmp_path / split).mkdir()
      for name in ("a.z8", "b.z8", "c.z8", "a.json", "b.json", "c.json"):
        shutil.copy(whole.with_suffix(name[1:]), tmp_path / split / name)
    (tmp_path / "train" / "a.z8").write_bytes(b"\x08" + b"\xff" * 999)
    (tmp_path / "train" / "b.json").write_text("{")
    task, limits = self.task(tmp_path), dict(limit_s=20.0, crash_tolerance=0.9)
    with EnvironmentPool(task, num_workers=1, **limits) as pool:
      found = pool.start([("train", seed) for seed in range(3)])
      assert [bool(one.failure) for one in found] == [True, True, False]
      assert pool.step({2: "look"})[2].observation
