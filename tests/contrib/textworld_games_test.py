"""Tests of saw_jax/contrib/textworld_games.py with a stand-in for Java.

The engines themselves are in tests/engines_test.py.
"""

import json

import hypothesis
import pytest
from hypothesis import strategies as st

from saw_jax.contrib import textworld_games as games
from saw_jax.tasks.environments import EngineLost
from tests import helpers


class Java:
  """Counts to three: "up" adds a third, "fall" loses, all else is told back."""

  def __init__(self):
    self.asked, self.is_gone = [], False

  def ask(self, method, *arguments, of=None):
    if self.is_gone:
      raise EngineLost("Java has ended")
    self.asked.append((method, *arguments))
    return getattr(self, method)(*arguments)

  def PythonInterface(self):
    return self

  def load(self, game, parameters):
    return "no such parameter" if parameters == "?" else ""

  def generateNewGameJSON(self, seed, split, has_plan):
    self.count = 0
    return self.state(" a start ")

  def getTaskDescription(self):
    return "count. "

  def getGoldActionSequence(self):
    return ("Up", "Up", "Up")

  def stepJSON(self, action):
    if action == "fall":
      return self.state("fell", -1.0)
    self.count += action == "Up"
    return self.state("" if action == "mute" else f"<{action}>")

  def state(self, text, score=None):
    score = self.count / 3 if score is None else score
    actions = ["look", "Up", "fall", "look"]
    said = dict(observation=text, validActions=actions, score=score)
    said |= dict(tasksuccess=score >= 1, taskfailure=score < 0)
    return json.dumps(said)


@pytest.fixture
def java(monkeypatch):
  java = Java()
  monkeypatch.setattr(games, "_shared_java", lambda: java)
  return java


def play(env, actions):
  env.reset(0)
  return [env.step(action) for action in actions]


class TestExpressGame:
  def test_a_win_pays_at_its_end(self, java):
    env = games.ExpressGame("coin", reward=6.0)
    assert (env.reset(7), env.task) == ("a start", "count.")
    assert env.admissible_actions == ["Up", "fall", "look"]
    *before, last = play(env, ["Up", "look", "Up", "Up"])
    assert before == [(f"<{x}>", 0.0, False) for x in ("Up", "look", "Up")]
    assert last == ("<Up>", 6.0, True)

  def test_the_score_pays_as_it_changes(self, java):
    env = games.ExpressGame("coin", reward=6.0, pays="score")
    steps = play(env, ["Up", "look", "Up", "Up"])
    assert [step.reward for step in steps] == pytest.approx([2, 0, 2, 2])
    # What was paid is taken back: the return is what the score is at the end,
    # and never below nothing.
    steps = play(env, ["Up", "fall"])
    assert [step.reward for step in steps] == pytest.approx([2, -2])
    assert steps[-1].done

  def test_a_lost_game_and_one_out_of_steps_are_over(self, java):
    assert play(games.ExpressGame("coin"), ["fall"])[0] == ("fell", 0.0, True)
    env = games.ExpressGame("coin", max_steps=2)
    assert [s.done for s in play(env, ["look", "look"])] == [False, True]

  def test_splits_have_seeds_of_their_own(self, java):
    for split, first in (("train", 0), ("test", 20_000)):
      games.ExpressGame("twc", split).reset(5)
      assert ("generateNewGameJSON", first + 5, split, False) in java.asked
    with pytest.raises(ValueError, match="1000"):
      games.ExpressGame("twc").reset(1000)

  def test_a_plan_is_of_the_start(self, java):
    env = games.ExpressGame("coin")
    env.reset(5)
    assert env.plan == ["Up"] * 3
    assert java.asked[-2] == ("generateNewGameJSON", 5, "train", True)
    env.step("look")
    with pytest.raises(RuntimeError, match="start"):
      print(env.plan)

  def test_an_action_is_spelled_as_the_game_does(self, java):
    env = games.ExpressGame("coin")
    *_, silence = play(env, [" uP ", "b\nquit\x00", "mute"])
    said = [asked[1] for asked in java.asked if asked[0] == "stepJSON"]
    assert said == ["Up", "b quit", "mute"]
    assert silence.observation == games.NOTHING

  @hypothesis.given(st.text())
  @hypothesis.settings(
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
  )
  def test_hostile_text_is_one_short_line(self, java, text):
    play(games.ExpressGame("coin"), [text])
    said = java.asked[-1][1]
    assert len(said) <= games.LONGEST and said.isascii()
    assert said.isprintable()

  def test_a_mistake_is_named(self, java):
    with pytest.raises(ValueError, match="no such parameter"):
      games.ExpressGame("coin", parameters="?")
    with pytest.raises(ValueError, match="'score'"):
      games.ExpressGame("coin", pays="scor")

  def test_a_closed_game_is_over_and_a_lost_java_no_failed_episode(self, java):
    env = games.ExpressGame("coin")
    env.reset(0)
    java.is_gone = True
    with pytest.raises(EngineLost):
      env.step("look")
    env.close()
    env.close()
    with pytest.raises(RuntimeError, match="reset"):
      env.step("look")
    with pytest.raises(RuntimeError, match="closed"):
      env.reset(0)


@pytest.mark.parametrize(
  ("feedback", "told"),
  [
    ("\nA room. \n\n\n\nA door.\n\n>      -= Room =-1/2", "A room.\n\nA door."),
    (
      "You win.\n\n   *** The End ***\n\nYou scored.\n\nRESTART?\n>  ",
      "You win.",
    ),
    ("A > sign\n> is no prompt\nhere.", "A > sign\n> is no prompt\nhere."),
    ("\n>", ""),
  ],
)
def test_what_waits_for_a_player_is_cut(feedback, told):
  assert games._told(feedback) == told


def test_games_are_found_at_any_depth(tmp_path):
  (tmp_path / "a").mkdir()
  for name in ("b.z8", "a/c.z8", "b.json"):
    (tmp_path / name).touch()
  found = games.find_games(tmp_path)
  assert found == [tmp_path / "a" / "c.z8", tmp_path / "b.z8"]
  with pytest.raises(FileNotFoundError, match="tw-make"):
    games.find_games(tmp_path / "none")


@pytest.mark.parametrize(
  "make", [lambda: games.ExpressGame("coin"), lambda: games.StoryGame([])]
)
def test_without_the_packages_the_extra_is_named(make):
  packages = "py4j", "textworld", "textworld_express"
  with helpers.lacking("textworld", *packages):
    make()
