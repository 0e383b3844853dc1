"""Scores in worker processes: whatever a text does, it alone pays for it."""

import logging
import pathlib
import signal
import time

import numpy as np
import psutil
import pytest

from saw_jax.tasks import base
from saw_jax.tasks.tool_calling import task as tool_calling
from saw_jax.tasks.workers import grading
from tests.tasks import misbehaving_tasks

Outcome = base.Outcome


@pytest.fixture(scope="module")
def grader():
  task = misbehaving_tasks.Obedient()
  with grading.Grader(
    task, num_workers=2, limit_s=1.0, crash_tolerance=1.0
  ) as grader:
    yield grader


def _examples(count):
  return misbehaving_tasks.Obedient().examples("train")[:count]


def _grade(grader, completions):
  return grader.grade(_examples(len(completions)), completions)


def test_rewards_keep_the_order_of_the_completions(grader):
  completions = ["a" * (i % 7) for i in range(501)]
  graded = _grade(grader, completions)
  expected = [((i % 7) + i) % 3 for i in range(501)]
  np.testing.assert_array_equal(graded.rewards[:, 0], expected)
  assert graded.rewards.dtype == np.float32
  assert graded.rewards.shape == graded.scored.shape == (501, 2)
  assert graded.scored.dtype == bool and graded.scored.all()


def test_workers_and_this_process_give_the_same(grader):
  completions = ["a" * (i % 5) for i in range(67)] + ["half", ""]
  with grading.Grader(
    misbehaving_tasks.Obedient(), num_workers=0, limit_s=1.0
  ) as here:
    a, b = _grade(grader, completions), _grade(here, completions)
  np.testing.assert_array_equal(a.rewards, b.rewards)
  np.testing.assert_array_equal(a.scored, b.scored)
  assert a.outcomes == b.outcomes


@pytest.mark.parametrize(
  "behaviour, outcome",
  [
    ("sleep", Outcome.TIMED_OUT),
    ("spin", Outcome.TIMED_OUT),
    ("exit", Outcome.CRASHED),
    ("system exit", Outcome.CRASHED),
    ("segfault", Outcome.CRASHED),
    ("raise", Outcome.CRASHED),
    ("memory", Outcome.CRASHED),
  ],
)
def test_only_the_culprit_goes_unscored(grader, behaviour, outcome):
  # Two workers get chunks of 13: one culprit amid each of the first two.
  completions = ["a"] * 103
  completions[5] = completions[17] = behaviour
  graded = _grade(grader, completions)
  culprits = [i in (5, 17) for i in range(103)]
  assert [o is outcome for o in graded.outcomes] == culprits
  np.testing.assert_array_equal(~graded.scored[:, 0], culprits)
  np.testing.assert_array_equal(~graded.scored[:, 1], culprits)
  np.testing.assert_array_equal(graded.rewards[5], [0.0, 0.0])
  expected = [0.0 if i in (5, 17) else (1 + i) % 3 for i in range(103)]
  np.testing.assert_array_equal(graded.rewards[:, 0], expected)
  assert graded.outcome_counts[outcome.value] == 2
  assert graded.outcome_counts["right"] == 101
  assert sum(graded.outcome_counts.values()) == 103


def test_neighbours_in_one_chunk_can_all_misbehave(grader):
  graded = _grade(grader, ["exit", "sleep", "raise", "exit", "a"])
  assert graded.outcomes == (
    Outcome.CRASHED,
    Outcome.TIMED_OUT,
    Outcome.CRASHED,
    Outcome.CRASHED,
    Outcome.RIGHT,
  )


def test_one_component_can_be_unscored(grader):
  graded = _grade(grader, ["half"])
  np.testing.assert_array_equal(graded.scored, [[False, True]])
  np.testing.assert_array_equal(graded.rewards, [[0.0, 1.0]])
  assert graded.outcomes == (Outcome.WRONG,)


@pytest.mark.parametrize(
  "behaviour, words",
  [
    ("nan", ["'first'", "nan", "not finite"]),
    ("inf", ["'second'", "inf", "not finite"]),
    ("text", ["'second'", "'1'", "not a number"]),
    ("low", ["'first'", "-3.5", "outside"]),
    ("high", ["'second'", "1.5", "outside"]),
    ("three", ["3 values", "2 components"]),
    ("float", ["1.0", "not a Score"]),
  ],
)
def test_a_broken_reward_is_named(grader, behaviour, words):
  with pytest.raises(grading.RewardError) as info:
    _grade(grader, ["a", "a", behaviour])
  message = str(info.value)
  for word in [*words, "'obedient'", "example 2", repr(behaviour)]:
    assert word in message
  assert _grade(grader, ["a"]).scored.all()  # It goes on working.


def test_a_score_that_says_crashed_is_no_bug(caplog):
  # Somebody else failed, such as a judge: masked and counted, at any share.
  task = misbehaving_tasks.Obedient()
  with grading.Grader(
    task, num_workers=0, limit_s=1.0, crash_tolerance=0.0
  ) as here:
    graded = _grade(here, ["no verdict", "a", "no verdict"])
    assert graded.outcome_counts["crashed"] == 2
    np.testing.assert_array_equal(graded.scored[:, 0], [False, True, False])
    np.testing.assert_array_equal(graded.rewards[0], [0.0, 0.0])
    assert not caplog.text
    with pytest.raises(grading.RewardError, match="KeyError"):
      _grade(here, ["no verdict", "raise"])


def test_an_exception_is_logged_with_task_and_example(grader, caplog):
  with caplog.at_level(logging.WARNING):
    _grade(grader, ["a", "raise"])
  assert "obedient" in caplog.text and "example 1" in caplog.text
  assert "KeyError" in caplog.text


@pytest.mark.parametrize("num_workers", [0, 1])
def test_too_many_exceptions_are_an_error(num_workers):
  with grading.Grader(
    misbehaving_tasks.Obedient(), num_workers=num_workers, limit_s=5.0
  ) as grader:
    graded = _grade(grader, ["a"] * 9 + ["raise"])
    assert graded.outcome_counts["crashed"] == 1
    with pytest.raises(grading.RewardError, match="KeyError.*2 of 10 crashed"):
      _grade(grader, ["a"] * 8 + ["raise"] * 2)


def test_without_tolerance_the_first_exception_is_an_error():
  with grading.Grader(
    misbehaving_tasks.Obedient(), num_workers=0, limit_s=1, crash_tolerance=0
  ) as grader:
    with pytest.raises(grading.RewardError, match="example 999"):
      _grade(grader, ["a"] * 999 + ["raise"])


def test_workers_do_not_import_jax(grader):
  graded = _grade(grader, ["modules"] * 20)
  np.testing.assert_array_equal(graded.rewards, [[3.0, 0.0]] * 20)


def test_nothing_and_empty_completions_are_legal(grader):
  graded = _grade(grader, [])
  assert graded.rewards.shape == (0, 2) and graded.outcomes == ()
  assert _grade(grader, [""]).scored.all()


def test_megabytes_pass(grader):
  completions = ["a" * (3 << 20)] * 5
  assert _grade(grader, completions).scored.all()


def test_a_memory_limit_makes_a_crash():
  class_ = misbehaving_tasks.Obedient()
  with grading.Grader(
    class_, num_workers=1, limit_s=20, memory_limit_bytes=1 << 30
  ) as grader:
    graded = _grade(grader, ["a"] * 20 + ["gigabytes"])
  assert graded.outcomes[20] is Outcome.CRASHED


def test_a_task_can_give_up_by_itself(grader):
  graded = _grade(grader, ["gave up"])
  np.testing.assert_array_equal(graded.scored, [[False, False]])
  np.testing.assert_array_equal(graded.rewards, [[0.0, 0.0]])
  assert graded.outcomes == (Outcome.TIMED_OUT,)


def test_an_interrupted_call_does_not_answer_the_next(grader, monkeypatch):
  def interrupt(pipes, until):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(grader, "_wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
      _grade(grader, ["aa"] * 50)
  graded = _grade(grader, [""] * 50)
  np.testing.assert_array_equal(graded.rewards[:, 0], np.arange(50) % 3)


def _processes(grader):
  return [psutil.Process(one._process.pid) for one in grader._workers]


def test_an_interrupt_does_not_reach_a_worker(grader):
  _grade(grader, [""] * 9)
  workers = _processes(grader)
  for child in workers:
    child.send_signal(signal.SIGINT)
  assert _grade(grader, [""] * 9).scored.all()
  assert _processes(grader) == workers


def test_a_worker_that_died_between_calls_blames_no_text(grader):
  for child in _processes(grader):
    child.kill()
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
      time.sleep(0.01)
  assert _grade(grader, [""] * 9).scored.all()


def test_a_closed_grader_says_so():
  grader = grading.Grader(
    misbehaving_tasks.Obedient(), num_workers=0, limit_s=1
  )
  grader.close()
  with pytest.raises(ValueError, match="closed"):
    _grade(grader, ["a"])


def test_the_task_is_graded_without_its_rows():
  path = pathlib.Path(__file__).parents[2] / "data/toolrl/rlla_4k_test.parquet"
  pytest.importorskip("pyarrow")
  task = tool_calling.ToolCallingTask(
    tool_calling.ToolCallingConfig(test_path=str(path))
  )
  examples = task.examples("test")
  with grading.Grader(task, num_workers=1, limit_s=5.0) as grader:
    graded = grader.grade(examples, [e.reference for e in examples])
  np.testing.assert_array_equal(
    graded.rewards, [task.best_values(e) for e in examples]
  )
  assert graded.outcome_counts["right"] == 80
