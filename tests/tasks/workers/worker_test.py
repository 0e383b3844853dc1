"""What a worker process does with one item; pool_test.py runs processes."""

import pytest

from saw_jax.tasks.base import Example, Outcome, Score
from saw_jax.tasks.environments import EngineLost, Situation
from saw_jax.tasks.workers import worker
from saw_jax.tasks.workers.worker import Command, Player
from tests.tasks.misbehaving_environments import CounterTask
from tests.tasks.misbehaving_tasks import Obedient


class Returns(Obedient):
  """Returns whatever it is asked about."""

  def score(self, example, completion):
    return completion


def check(score, task=None):
  return worker.score(task or Returns(), (Example(1, (), ""), score))


class TestScore:
  @pytest.mark.parametrize(
    "values", [(2, True), (-3.0, 0.0), (3.0, 1.0), (None, 1.0)]
  )
  def test_a_good_score_comes_back_as_floats(self, values):
    found = check(Score(values, Outcome.WRONG))
    assert found == worker.Result(values, Outcome.WRONG)
    assert {type(v) for v in found.values} <= {float, type(None)}

  @pytest.mark.parametrize(
    ("score", "violation"),
    [
      (1.0, "it returned 1.0, not a Score"),
      (Score((0.0, 0.0), "right"), "outcome 'right' is no Outcome"),
      (Score(0.0, Outcome.RIGHT), "values 0.0 are no tuple"),
      (Score((0.0,), Outcome.RIGHT), "1 values for 2 components"),
      (Score((0.0, "1"), Outcome.RIGHT), "'second' is '1', not a number"),
      (Score((0.0, 1.5), Outcome.RIGHT), "1.5, outside [0.0, 1.0]"),
      (Score((-3.01, 0.0), Outcome.RIGHT), "-3.01, outside [-3.0, 3.0]"),
      (Score((float("nan"), 0.0), Outcome.RIGHT), "nan, not finite"),
      (Score((0.0, float("inf")), Outcome.RIGHT), "inf, not finite"),
      (Score((1e39, 0.0), Outcome.RIGHT), "1e+39, not finite in float32"),
      (Score((10**400, 0.0), Outcome.RIGHT), "OverflowError"),
      ("x" * 10_000, "xxx"),
    ],
  )
  def test_a_broken_contract_is_named(self, score, violation):
    found = check(score)
    assert violation in found.violation and len(found.violation) < 300
    assert found.values == ()

  def test_an_exception_leaves_the_text_unscored(self):
    found = check("raise", Obedient())
    assert found == worker.Result(exception="KeyError: 'no such thing'")
    assert found.outcome is Outcome.CRASHED


class TestPlayer:
  @pytest.fixture
  def player(self):
    made = Player(CounterTask(), max_chars=8)
    made(Command(3, "train", 7))
    return made

  def test_slots_are_apart_and_an_environment_is_made_once(self, player):
    env = player._slots[3][1]
    assert player(Command(4, "train", 1)).observation == "world 1"
    assert player(Command(3, action="count")).observation == "7 at 1"
    assert player(Command(4, action="count")).observation == "1 at 1"
    assert player(Command(3, "train", 2)).observation == "world 2"
    assert player._slots[3][1] is env
    player(Command(3, "test", 2))
    assert player._slots[3][1] is not env

  def test_what_is_long_is_cut_and_actions_are_left_out_whole(self, player):
    found = player(Command(3, action="enormous"))
    assert found.observation == "x" * 8
    # "count" has 5 letters, and "stop" would make it 9.
    assert found.actions == ("count",)

  @pytest.mark.parametrize(
    ("slot", "action", "words"),
    [
      (3, "raise", "ValueError: boom"),
      (3, "nan", "reward is nan"),
      (3, "no text", "observation is a NoneType"),
      (9, "count", "KeyError"),  # never started
    ],
  )
  def test_what_goes_wrong_ends_the_episode(self, player, slot, action, words):
    found = player(Command(slot, action=action))
    assert words in found.failure
    assert found == Situation(done=True, failure=found.failure)

  def test_a_lost_engine_is_no_failure_of_one_episode(self, player):
    with pytest.raises(EngineLost):
      player(Command(3, action="lose"))
