"""Gymnasium's own environments as a task, and environments that misbehave."""

import pickle
import sys

import pytest

from saw_jax import tokenizer
from saw_jax.run import registry
from saw_jax.tasks.workers.environment_pool import EnvironmentPool
from tests import agent_helpers, helpers
from tests.agent_helpers import play

pytest.importorskip("gymnasium")

from saw_jax.contrib import gymnasium_task

WORLDS = "tests.contrib.worlds.says"
ICE = {"is_slippery": False}
NAMES = ("left", "down", "right", "up")


def make(**options):
  return registry.make_task("gymnasium", options)


class TestPlaying:
  def test_the_lake_is_crossed(self):
    task = make(kwargs=ICE)
    path = ["DOWN", "fly", "down", "right", "right", "down", "right"]
    start, *steps = play(task, path)
    assert start.actions == NAMES
    assert "Frozen lake involves crossing a frozen lake" in start.task
    assert start.observation.startswith("[S]FFF\nFHFH")
    assert "S" in steps[0].observation and "\n[F]HFH" in steps[0].observation
    assert steps[1].observation == steps[0].observation  # no such action
    assert [step.reward for step in steps] == [0] * 6 + [1]
    assert [step.done for step in steps] == [False] * 6 + [True]

  def test_an_episode_is_that_of_its_seed_and_split(self):
    task = make(env="Taxi-v4", reward=20.0)
    starts = {
      (split, seed): play(task, (), split, seed)[0].observation
      for split in ("train", "test")
      for seed in range(4)
    }
    assert len(set(starts.values())) > 4
    assert play(task, (), "test", 3)[0].observation == starts["test", 3]
    says = make(env=f"{WORLDS}:Says-v0")
    shown = [play(says, (), split)[0].observation for split in says.episodes]
    assert shown == ["seed 0", f"seed {2**30}"]

  def test_only_what_the_mask_allows_is_done(self):
    task = make(env="Taxi-v4", reward=20.0)
    start, *steps = play(task, ["dropoff", "south"])
    assert "dropoff" not in start.actions
    assert (steps[0].reward, steps[0].observation) == (0, start.observation)
    assert steps[1].reward == -1 or "south" not in start.actions

  def test_a_function_describes_what_is_no_text(self):
    task = make(env="Blackjack-v1", describe=f"{WORLDS}:describe")
    start, step = play(task, ["stick"])
    assert start.observation.endswith("cards 2")
    assert start.actions == ("stick", "hit")
    assert step.done and step.reward in (-1, 0, 1)

  def test_text_is_kept_as_it_is_said(self):
    task = make(env=f"{WORLDS}:Says-v0", max_steps=5)
    assert task.read_reply("<think></think><action> Hi X </action>") == (
      "Hi X",
      True,
    )
    shown = play(task, ["Hi X", "é" * 3, "cut"])
    assert [one.observation for one in shown[1:]] == ["Hi X", "Hi X", "cut"]
    assert [one.done for one in shown] == [False, False, False, True]
    prompt = next(task.prompts(shown[1], [("seed 0", "Hi X")]))
    assert "possible now" not in prompt and "seed 0" in prompt

  @pytest.mark.parametrize(
    ("text", "told"),
    [
      ("S\x1b[41mF\x1b[0mG\n", "S[F]G"),
      ("\x1b[34;1mB\x1b[0m \x1b[43m \x1b[0m", "[blue:B] [yellow: ]"),
      ("\x1b[35m\x1b[43mY\x1b[0m\x1b[0m", "[magenta:[yellow:Y]]"),
    ],
  )
  def test_colours_are_told(self, text, told):
    assert gymnasium_task._uncolour(text) == told


def test_a_describing_file_is_found_from_anywhere(tmp_path, monkeypatch):
  (tmp_path / "words.py").write_text("def say(env, seen, info): return 'hm'")
  monkeypatch.chdir(tmp_path)
  task = make(env="Blackjack-v1", describe="words.py:say")
  assert play(task, ())[0].observation == "hm"
  remembered = task.remember(tmp_path)
  monkeypatch.chdir("/")
  again = make(**remembered)
  assert play(again, ())[0].observation == "hm"
  assert again.config.reward == task.config.reward


def test_a_worker_imports_the_environment_before_any_step(monkeypatch):
  pickled = pickle.dumps(make(env=f"{WORLDS}:Says-v0"))
  monkeypatch.delitem(sys.modules, WORLDS)
  pickle.loads(pickled)
  assert WORLDS in sys.modules


def test_what_goes_wrong_fails_its_episode_alone():
  task = make(env=f"{WORLDS}:Says-v0")
  options = {"num_workers": 1, "limit_s": 0.5, "crash_tolerance": 1}
  with EnvironmentPool(task, **options) as pool:
    pool.start([("train", seed) for seed in range(5)])
    acts = dict(enumerate(["raise", "nan", "number", "hang", "fine"]))
    found = pool.step(acts)
  whys = ["RuntimeError", "reward", "observation", "no answer", ""]
  for slot, why in enumerate(whys):
    assert why in found[slot].failure and found[slot].done == bool(why)
  assert found[4].observation == "fine"


@pytest.mark.parametrize(
  ("options", "word"),
  [
    ({"env": "FrozenLak-v1"}, "FrozenLake"),
    ({"env": "CartPole-v1"}, "options.describe"),
    ({"env": "Pendulum-v1", "describe": f"{WORLDS}:describe"}, "Discrete"),
    ({"actions": ("a", "b")}, "4 actions"),
    ({"num_train": 2**30 + 1}, "num_train"),
    ({"env": ""}, "options.env"),
  ],
)
def test_a_mistake_is_named(options, word):
  with pytest.raises(ValueError, match=word):
    make(**options)


def test_without_the_package_the_extra_is_named():
  with helpers.lacking("gymnasium", "gymnasium"):
    make()


def test_a_policy_of_random_weights_learns_to_cross(tmp_path):
  pieces = tokenizer.PieceTokenizer([*"SFG[]()\n", "Left", "Right", *NAMES])
  options = {"kwargs": {"desc": ["SFG"], **ICE}, "form": "compact"}
  options |= {"max_steps": 4, "shown": 1}
  curves = agent_helpers.train("gymnasium", options, pieces, tmp_path)
  invalid, returns = curves["invalid"][0], curves["reward/return"][0]
  assert invalid[0] > 0.5 and invalid[-1] < invalid[0] - 0.05
  assert returns[0] < returns[-1] <= 1
