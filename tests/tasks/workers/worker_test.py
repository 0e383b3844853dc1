"""What a worker process does with one item, and with its pipe."""

import multiprocessing
import pickle
import signal
import threading

import pytest

from saw_jax.tasks import base
from saw_jax.tasks.environments import EngineLost
from saw_jax.tasks.workers import worker
from saw_jax.tasks.workers.worker import Command
from tests.tasks import misbehaving_environments, misbehaving_tasks

EXAMPLE = base.Example(1, (), "")


class Returns(misbehaving_tasks.Obedient):
  """Returns whatever it was made with."""

  def __init__(self, score):
    self.returned = score

  def score(self, example, completion):
    return self.returned


def result(score):
  return worker.Scorer(Returns(score))((EXAMPLE, ""))


class TestScorer:
  def test_a_good_score_comes_back_as_floats(self):
    found = result(base.Score((2, True), base.Outcome.RIGHT))
    assert found == worker.Result((2.0, 1.0), base.Outcome.RIGHT)
    assert all(type(value) is float for value in found.values)

  def test_both_ends_of_a_range_belong_to_it(self):
    for values in ((-3.0, 0.0), (3.0, 1.0)):
      found = result(base.Score(values, base.Outcome.WRONG))
      assert found.values == values

  def test_none_is_a_component_that_was_not_scored(self):
    found = result(base.Score((None, 1.0), base.Outcome.WRONG))
    assert found.values == (None, 1.0)
    assert not found.violation

  @pytest.mark.parametrize(
    ("score", "violation"),
    [
      (1.0, "it returned 1.0, not a Score"),
      (base.Score((0.0, 0.0), "right"), "outcome 'right' is no Outcome"),
      (base.Score(0.0, base.Outcome.RIGHT), "values 0.0 are no tuple"),
      (
        base.Score((0.0,), base.Outcome.RIGHT),
        "it returned 1 values for 2 components",
      ),
      (
        base.Score((0.0, "1"), base.Outcome.RIGHT),
        "component 'second' is '1', not a number",
      ),
      (
        base.Score((0.0, 1.5), base.Outcome.RIGHT),
        "component 'second' is 1.5, outside [0.0, 1.0]",
      ),
      (
        base.Score((-3.01, 0.0), base.Outcome.RIGHT),
        "component 'first' is -3.01, outside [-3.0, 3.0]",
      ),
      (
        base.Score((float("nan"), 0.0), base.Outcome.RIGHT),
        "component 'first' is nan, not finite in float32",
      ),
      (
        base.Score((1e39, 0.0), base.Outcome.RIGHT),
        "component 'first' is 1e+39, not finite in float32",
      ),
    ],
  )
  def test_a_broken_contract_is_named(self, score, violation):
    found = result(score)
    assert found.violation == violation
    assert found.values == ()

  def test_an_integer_that_no_float_holds_is_a_violation_too(self):
    found = result(base.Score((10**400, 0.0), base.Outcome.RIGHT))
    assert "OverflowError" in found.violation

  def test_an_exception_leaves_the_text_unscored(self):
    found = worker.Scorer(misbehaving_tasks.Obedient())((EXAMPLE, "raise"))
    assert found.exception == "KeyError: 'no such thing'"
    assert found.outcome is base.Outcome.CRASHED
    assert not found.violation

  def test_messages_stay_short(self):
    found = result("x" * 10_000)
    assert len(found.violation) < 300


class TestPlayer:
  @pytest.fixture
  def player(self):
    made = worker.Player(misbehaving_environments.CounterTask(), max_chars=8)
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
    ("action", "words"),
    [
      ("raise", "ValueError: boom"),
      ("nan", "nan"),
      ("no text", "NoneType"),
    ],
  )
  def test_what_goes_wrong_ends_the_episode(self, player, action, words):
    found = player(Command(3, action=action))
    assert words in found.failure
    assert found == worker.failed(found.failure)
    assert found.done and found.reward == 0

  def test_a_lost_engine_is_no_failure_of_one_episode(self, player):
    with pytest.raises(EngineLost):
      player(Command(3, action="lose"))

  def test_a_slot_that_was_never_started_is_a_failure(self, player):
    assert "KeyError" in player(Command(9, action="count")).failure


class TestServe:
  """Runs the server in a thread; the signals of this process stay."""

  @pytest.fixture(autouse=True)
  def signals(self, monkeypatch):
    calls = []
    monkeypatch.setattr(worker.signal, "signal", lambda *a: calls.append(a))
    monkeypatch.setattr(worker, "_die_with_the_parent", lambda: None)
    return calls

  @pytest.fixture
  def pipe(self):
    ours, theirs = multiprocessing.Pipe()
    thread = threading.Thread(
      target=worker.serve, args=(theirs.fileno(),), daemon=True
    )
    thread.start()
    yield ours
    ours.close()
    thread.join(10)
    assert not thread.is_alive()
    # Its connection has closed the descriptor.
    theirs._handle = None

  def greet(self, pipe, task):
    job = pickle.dumps(worker.Scorer(task))
    pipe.send((job, None))
    assert pipe.poll(10)
    return pipe.recv()

  @pytest.mark.parametrize("eager", [True, False])
  def test_answers_come_one_by_one_or_some_at_a_time(self, pipe, eager):
    assert self.greet(pipe, misbehaving_tasks.Obedient()) is None
    pairs = [(EXAMPLE, "a"), (EXAMPLE, "raise"), (EXAMPLE, "high")]
    for _ in range(2):  # more than one request
      pipe.send((eager, pairs))
      assert pipe.recv() == []  # it has read them
      lists = [pipe.recv() for _ in (pairs if eager else "a")]
      assert {len(one) for one in lists} == {1 if eager else 3}
      first, second, third = sum(lists, [])
      assert first.values == (2.0, 1.0)
      assert second.exception.startswith("KeyError")
      assert "outside" in third.violation

  def test_a_task_that_does_not_load_is_explained(self, pipe):
    answer = self.greet(pipe, misbehaving_tasks.Unloadable())
    assert answer == "RuntimeError: this cannot be loaded"

  def test_it_ends_when_the_other_end_is_closed(self, pipe):
    self.greet(pipe, misbehaving_tasks.Obedient())
    # The fixture closes the pipe and waits for the thread.

  def test_ctrl_c_is_left_to_the_parent(self, signals):
    ours, theirs = multiprocessing.Pipe()
    ours.close()
    worker.serve(theirs.fileno())
    theirs._handle = None
    assert signals == [(signal.SIGINT, signal.SIG_IGN)]
