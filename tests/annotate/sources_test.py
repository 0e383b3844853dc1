"""Who answers: the data set at once, a person in the end or never."""

import functools
import logging
import math
import pathlib
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from saw_jax.annotate import sources
from saw_jax.annotate.ledger import LabelLedger
from saw_jax.annotate.questions import Label, make_question
from saw_jax.annotate.sources import Annotator, GroundTruth
from saw_jax.tasks.knights.task import KnightsConfig, KnightsTask
from saw_jax.tasks.math.task import MathConfig, MathTask

ROOT = pathlib.Path(__file__).parents[2]
TASK = MathTask(MathConfig(num_train=40))
EXAMPLES = TASK.examples("train")


def ask(*places, step=0):
  gold = {i: [TASK.gold_completion(EXAMPLES[i])] * 2 for i in places}
  return [
    make_question(TASK, EXAMPLES[i], gold[i], step=step, seed=0) for i in places
  ]


def annotator(path, **options):
  defaults = {"timeout_s": 60.0, "poll_s": 0.5, "undo_s": 0.0}
  return Annotator(LabelLedger(path), **{**defaults, **options})


class Clock:
  """Stands in for `time`: a person acts at given seconds, and nobody waits."""

  def __init__(self):
    self.now, self.plan = 1000.0, []

  def at(self, seconds, act, *arguments, **options):
    """Plans something for so many seconds after the start."""
    act = functools.partial(act, *arguments, **options)
    self.plan.append((1000.0 + seconds, act))

  def monotonic(self):
    return self.now

  def sleep(self, seconds):
    self.now += seconds
    due = [act for when, act in self.plan if when <= self.now]
    self.plan = [one for one in self.plan if one[0] > self.now]
    for act in due:
      act()


@pytest.fixture
def clock(monkeypatch):
  made = Clock()
  monkeypatch.setattr(sources, "time", made)
  return made


def answer_all(path, count, **how):
  ledger, how = LabelLedger(path), how or {"choice": 0}
  for _ in range(count):
    shown = ledger.lease("page")
    ledger.settle("page", shown.prompt_id, shown.round, **how)


class TestGroundTruth:
  @pytest.mark.parametrize(
    "task", [TASK, KnightsTask(KnightsConfig(num_train=30))]
  )
  def test_it_answers_with_the_reference(self, task):
    examples = task.examples("train")
    chosen = [examples[i] for i in (7, 0, 29)]
    questions = [make_question(task, e, [], step=0, seed=0) for e in chosen]
    labels = [Label(e.reference, "ground truth") for e in chosen]
    subset = [examples[i] for i in (0, 3, 29, 7, 8, 9, 10, 11)]
    for known in (examples, list(examples)[::-1], subset):
      assert GroundTruth(known).answer(questions) == labels

  @pytest.mark.parametrize("count", [3, 0])
  def test_an_example_that_is_not_there(self, count):
    with pytest.raises(ValueError, match="no example 5 whose label"):
      GroundTruth(EXAMPLES[:count]).answer(ask(5))


class TestAnnotator:
  def test_nobody_comes(self, path, clock, caplog):
    assert annotator(path).answer(ask(1, 2)) == [None, None]
    assert clock.now == 1060.0
    assert "2 of 2 questions have no label" in caplog.text
    assert LabelLedger(path).counts().waiting == 0

  def test_each_answer_buys_time(self, path, clock):
    # Each within the limit after the last: longer than the limit in all.
    source = annotator(path)
    for number in range(4):
      clock.at(1 + 59 * number, answer_all, path, 1)
    assert None not in source.answer(ask(1, 2, 3, 4))
    assert clock.now == 1178.0

  def test_an_answer_in_the_last_moment_is_taken(self, path, clock):
    source = annotator(path)
    clock.at(60, answer_all, path, 1)  # with the look that ends the wait
    assert source.answer(ask(1)) != [None]

  def test_the_last_answer_can_be_taken_back(self, path, clock):
    source = annotator(path, undo_s=3.0)
    clock.at(5, answer_all, path, 1, answer="99999")
    clock.at(7, lambda: LabelLedger(path).undo("page"))
    clock.at(30, answer_all, path, 1)
    (label,) = source.answer(ask(1))
    assert label.text == EXAMPLES[1].reference
    assert clock.now == 1033.0

  def test_what_is_answered_is_not_waited_for(self, path, clock):
    LabelLedger(path).ask(ask(1))
    answer_all(path, 1)
    (label,) = annotator(path, undo_s=3.0).answer(ask(1, step=5))
    assert label.text == EXAMPLES[1].reference
    assert clock.now == 1000.0

  def test_a_label_that_came_too_late_serves_a_later_step(self, path, clock):
    ledger, source = LabelLedger(path), annotator(path)
    assert ledger.buy(ask(1), source) == [None]
    ledger.settle("page", EXAMPLES[1].key, 1, choice=0)
    assert ledger.buy(ask(1), source) == [None]  # that step is decided
    (label,) = ledger.buy(ask(1, step=1), source)
    assert label.text == EXAMPLES[1].reference
    ledger.restore(0)
    assert ledger.buy(ask(1), source) == [None]
    assert ledger.buy(ask(1, step=1), source) == [label]
    assert ledger.totals(0).spent == 1.0

  def test_it_says_where_to_answer_and_a_person_does(self, path, clock, caplog):
    caplog.set_level(logging.INFO)
    clock.at(5, answer_all, path, 1)
    told = []
    label, nothing = annotator(path, tell=told.append).answer(ask(4, 2))
    assert label == Label(EXAMPLES[4].reference, "annotator")
    assert nothing is None
    first, second = caplog.messages[:2]
    assert told == [first]
    assert first.startswith("labels wanted from a person: 2; ")
    assert f"saw annotate --ledger={path}" in first
    assert "60 s without an answer" in first and "\n" not in first
    assert second == "1 of 2 questions are answered"

  def test_it_waits_while_the_file_is_locked(self, path, clock, caplog):
    source = annotator(path)
    source._ledger = LabelLedger(path, busy_s=0.0)
    holder = sqlite3.connect(path, isolation_level=None)
    clock.at(5, holder.execute, "BEGIN EXCLUSIVE")
    clock.at(10, holder.execute, "ROLLBACK")
    clock.at(20, answer_all, path, 1)
    (label,) = source.answer(ask(1))
    holder.close()
    assert label is not None
    assert caplog.text.count("is locked by another process") == 1

  def test_the_wait_can_be_stopped(self, path, clock):
    source = annotator(path, stop=lambda: clock.now > 1004)
    with pytest.raises(KeyboardInterrupt, match="waited for labels"):
      source.answer(ask(1))
    # The question stays: whoever answers it now does so for the next start.
    assert LabelLedger(path).counts().waiting == 1

  def test_for_ever_is_a_time(self, path, clock):
    clock.at(10**6, answer_all, path, 1)
    source = annotator(path, timeout_s=math.inf, poll_s=10**5)
    assert source.answer(ask(1)) != [None]

  @pytest.mark.parametrize(
    ("name", "value"),
    [("timeout_s", math.nan), ("poll_s", -1.0), ("undo_s", -1.0)],
  )
  def test_wrong_options(self, path, name, value):
    with pytest.raises(ValueError, match=name):
      annotator(path, **{name: value})


_RUN = """
import sys
sys.path[0] = {root!r}
from tests.annotate import sources_test as here
ledger = here.LabelLedger(sys.argv[1])
print("asks", flush=True)
labels = ledger.buy(here.ask(1, 2), here.annotator(sys.argv[1], poll_s=0.01))
print([label.text for label in labels], flush=True)
"""


class TestARunThatIsKilled:
  def start(self, path):
    process = subprocess.Popen(
      [sys.executable, "-c", _RUN.format(root=str(ROOT)), str(path)],
      stdout=subprocess.PIPE,
      text=True,
    )
    assert process.stdout.readline() == "asks\n"
    return process

  def test_its_answers_are_kept_and_nobody_is_asked_again(self, path):
    first = self.start(path)
    while LabelLedger(path).counts().waiting != 2:
      time.sleep(0.01)
    answer_all(path, 1)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    ledger = LabelLedger(path)
    assert ledger.purchases() == []  # nothing is charged yet
    answer_all(path, 1)  # the page goes on without the run
    second = self.start(path)
    references = [EXAMPLES[1].reference, EXAMPLES[2].reference]
    assert second.communicate()[0] == f"{references}\n"
    assert ledger.totals(0).spent == 2.0
    third = self.start(path)  # a finished step, repeated
    assert third.communicate()[0] == f"{references}\n"
    assert ledger.totals(0).spent == 2.0
