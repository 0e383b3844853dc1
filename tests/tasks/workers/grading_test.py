"""Scores in worker processes: whatever a text does, it alone pays for it."""

import logging
import signal
import time

import numpy as np
import psutil
import pytest

from saw_jax.tasks.base import Example, Outcome, Score
from saw_jax.tasks.workers import pool, worker
from saw_jax.tasks.workers.grading import Grader
from saw_jax.tasks.workers.pool import RewardError
from tests.tasks.misbehaving_tasks import Obedient


@pytest.fixture(scope="module")
def grader():
  limits = dict(limit_s=1.0, crash_tolerance=1.0)
  with Grader(Obedient(), num_workers=2, **limits) as made:
    yield made


def local(**options):
  return Grader(Obedient(), num_workers=0, limit_s=1.0, **options)


def grade(grader, completions):
  examples = Obedient().examples("train")[: len(completions)]
  return grader.grade(examples, completions)


class Returns(Obedient):
  """Returns whatever it is asked about."""

  def score(self, example, completion):
    return completion


def check(score):
  return worker.Scorer(Returns())((Example(1, (), ""), score))


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
      (Score((10**400, 0.0), Outcome.RIGHT), "00, not finite in float32"),
      ("x" * 10_000, "xxx"),
    ],
  )
  def test_a_broken_contract_is_named(self, score, violation):
    found = check(score)
    assert violation in found.violation and len(found.violation) < 300
    assert found.values == ()


class TestRewards:
  def test_they_keep_the_order_with_workers_and_without(self, grader):
    completions = ["a" * (i % 7) for i in range(501)]
    one, other = grade(grader, completions), grade(local(), completions)
    for graded in (one, other):
      expected = [[((i % 7) + i) % 3, 1] for i in range(501)]
      np.testing.assert_array_equal(graded.rewards, expected)
      assert graded.rewards.dtype == np.float32
      assert graded.scored.dtype == bool and graded.scored.shape == (501, 2)
      assert graded.scored.all() and graded.outcomes == (Outcome.RIGHT,) * 501

  @pytest.mark.parametrize("make", [lambda grader: grader, lambda _: local()])
  def test_what_could_not_be_scored_is_masked(self, grader, make):
    # A score that says that it timed out or crashed is somebody else's fault.
    graded = grade(make(grader), ["half", "gave up", "no verdict", ""])
    expected = [[False, True], [False, False], [False, False], [True, True]]
    np.testing.assert_array_equal(graded.scored, expected)
    np.testing.assert_array_equal(graded.rewards[:3], [[0, 1], [0, 0], [0, 0]])
    found = [outcome.value for outcome in graded.outcomes]
    assert found == ["wrong", "timed_out", "crashed", "right"]

  def test_nothing_and_megabytes_are_legal(self, grader):
    graded = grade(grader, [])
    assert graded.rewards.shape == (0, 2) and graded.outcomes == ()
    assert grade(grader, ["a" * (3 << 20)] * 5).scored.all()

  def test_workers_do_not_import_jax(self, grader):
    graded = grade(grader, ["modules"] * 20)
    np.testing.assert_array_equal(graded.rewards, [[3.0, 0.0]] * 20)


class TestHostileText:
  @pytest.mark.parametrize(
    "behaviour",
    ["sleep", "spin", "exit", "system exit", "segfault", "raise", "memory"],
  )
  def test_only_the_culprit_goes_unscored(self, grader, behaviour):
    # Two workers get chunks of 13: one culprit amid each of the first two.
    completions, expected = ["a"] * 103, [Outcome.RIGHT] * 103
    completions[5] = completions[17] = behaviour
    is_slow = behaviour in ("sleep", "spin")
    outcome = Outcome.TIMED_OUT if is_slow else Outcome.CRASHED
    expected[5] = expected[17] = outcome
    graded = grade(grader, completions)
    assert graded.outcomes == tuple(expected)
    culprits = np.isin(range(103), (5, 17))
    for scored in graded.scored.T:
      np.testing.assert_array_equal(~scored, culprits)
    values = np.where(culprits, 0, (1 + np.arange(103)) % 3)
    np.testing.assert_array_equal(graded.rewards[:, 0], values)

  def test_neighbours_in_one_chunk_can_all_misbehave(self, grader):
    graded = grade(grader, ["exit", "sleep", "raise", "exit", "a"])
    found = [outcome.value for outcome in graded.outcomes]
    assert found == ["crashed", "timed_out", "crashed", "crashed", "right"]

  def test_a_memory_limit_makes_a_crash(self):
    options = dict(num_workers=1, limit_s=20, memory_limit_bytes=1 << 30)
    with Grader(Obedient(), **options) as grader:
      graded = grade(grader, ["a"] * 20 + ["gigabytes"])
    assert graded.outcomes[20] is Outcome.CRASHED


class TestErrors:
  def test_a_broken_reward_is_named(self, grader):
    with pytest.raises(RewardError) as info:
      grade(grader, ["a", "a", "nan"])
    for word in ("'obedient'", "example 2", "'nan'"):
      assert word in str(info.value)
    assert grade(grader, ["a"]).scored.all()  # It goes on working.

  def test_an_exception_is_logged_with_task_and_example(self, grader, caplog):
    with caplog.at_level(logging.WARNING):
      grade(grader, ["no verdict", "raise"])
    for word in ("obedient", "example 1", "KeyError"):
      assert word in caplog.text
    assert "example 0" not in caplog.text

  def test_too_many_exceptions_are_an_error(self):
    graded = grade(local(), ["a"] * 9 + ["raise"])
    assert graded.outcomes.count(Outcome.CRASHED) == 1
    with pytest.raises(RewardError, match="KeyError.*2 of 10"):
      grade(local(), ["a"] * 8 + ["raise"] * 2)
    strict = local(crash_tolerance=0.0)
    graded = grade(strict, ["no verdict"] * 2)
    assert graded.outcomes == (Outcome.CRASHED,) * 2
    with pytest.raises(RewardError, match="example 999"):
      grade(strict, ["a"] * 999 + ["raise"])

  def test_a_closed_grader_and_other_lengths(self):
    grader = local()
    with pytest.raises(ValueError, match="1 examples"):
      grader.grade(Obedient().examples("train")[:1], [])
    grader.close()
    with pytest.raises(ValueError, match="closed"):
      grade(grader, ["a"])


class TestProcesses:
  def find(self, grader):
    return [psutil.Process(one.process.pid) for one in grader._workers]

  def test_interrupted_calls_do_not_answer_the_next(self, grader, monkeypatch):
    def interrupt(worker, note):
      raise KeyboardInterrupt

    before = self.find(grader)
    with monkeypatch.context() as patch:
      patch.setattr(pool.Worker, "take", interrupt)
      with pytest.raises(KeyboardInterrupt):
        grade(grader, ["aa"] * 50)
    assert not set(before) & set(self.find(grader))
    graded = grade(grader, [""] * 50)
    np.testing.assert_array_equal(graded.rewards[:, 0], np.arange(50) % 3)

  def test_an_interrupt_does_not_reach_a_worker(self, grader):
    grade(grader, [""] * 9)
    workers = self.find(grader)
    for child in workers:
      child.send_signal(signal.SIGINT)
    assert grade(grader, [""] * 9).scored.all()
    assert self.find(grader) == workers

  def test_a_text_that_a_worker_died_at_is_tried_again(self, grader, tmp_path):
    texts = ["", *(str(tmp_path / name) for name in "abc"), ""]
    assert grade(grader, texts).scored.all()

  def test_a_worker_that_died_between_calls_blames_no_text(self, grader):
    for child in self.find(grader):
      child.kill()
      while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert grade(grader, [""] * 9).scored.all()
