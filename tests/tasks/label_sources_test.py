"""Who answers: the data set at once, a person in the end or never."""

import logging
import math
import pathlib
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import pytest

from saw_jax.tasks import label_ledger, label_queue
from saw_jax.tasks.knights import KnightsConfig, KnightsTask
from saw_jax.tasks.label_sources import (
  Annotator,
  GroundTruth,
  Label,
  make_question,
)
from saw_jax.tasks.math import MathConfig, MathTask

ROOT = pathlib.Path(__file__).parents[2]
TASK = MathTask(MathConfig(num_train=40))
EXAMPLES = TASK.examples("train")


def ask(*places, step=0, seed=0):
  return [
    make_question(
      TASK,
      EXAMPLES[i],
      [TASK.gold_completion(EXAMPLES[i])] * 2,
      step=step,
      seed=seed,
    )
    for i in places
  ]


@pytest.fixture
def path(tmp_path):
  return tmp_path / "labels.sqlite"


def annotator(path, **options):
  return Annotator(
    path, **{"timeout_s": 20.0, "poll_s": 0.01, "undo_s": 0.0, **options}
  )


def person(path, act, delay=0.05):
  """Does something in the page after a while, in another thread."""

  def run():
    time.sleep(delay)
    act(label_queue.LabelQueue(path))

  thread = threading.Thread(target=run)
  thread.start()
  return thread


def answer_all(queue, count, **how):
  for _ in range(count):
    shown = queue.lease("page")
    queue.settle("page", shown.prompt_id, shown.round, **(how or {"choice": 0}))


class TestGroundTruth:
  @pytest.mark.parametrize(
    "task",
    [
      TASK,
      KnightsTask(KnightsConfig(num_train=30)),
    ],
    ids=lambda task: task.name,
  )
  def test_it_answers_with_the_reference(self, task):
    examples = task.examples("train")
    chosen = [examples[i] for i in (7, 0, 29)]
    questions = [make_question(task, e, [], step=0, seed=0) for e in chosen]
    for source in (
      GroundTruth(examples),
      GroundTruth(list(examples)[::-1]),  # keys in another order
      GroundTruth({e.key: e for e in chosen}),
    ):
      assert source.answer(questions) == [
        Label(e.reference, "ground truth") for e in chosen
      ]

  def test_a_label_scores_as_the_truth_does(self):
    (label,) = GroundTruth(EXAMPLES).answer(ask(3))
    assert TASK.with_label(EXAMPLES[3], label.text) == EXAMPLES[3]

  def test_an_example_that_is_not_there(self):
    with pytest.raises(ValueError, match="no example 5 whose label"):
      GroundTruth(EXAMPLES[:3]).answer(ask(5))
    with pytest.raises(ValueError, match="no example 5"):
      GroundTruth([]).answer(ask(5))

  def test_in_a_ledger(self, path):
    ledger = label_ledger.LabelLedger(path)
    labels = ledger.buy(ask(1, 2), GroundTruth(EXAMPLES, price=0.5))
    assert [label.text for label in labels] == [
      EXAMPLES[1].reference,
      EXAMPLES[2].reference,
    ]
    assert ledger.totals(0).spent == 1.0
    assert ledger.purchases()[0].who == "ground truth"


class TestAnnotator:
  def test_a_person_answers(self, path):
    source = annotator(path)
    worker = person(path, lambda queue: answer_all(queue, 2))
    assert source.answer(ask(4, 2)) == [
      Label(EXAMPLES[4].reference, "annotator"),
      Label(EXAMPLES[2].reference, "annotator"),
    ]
    worker.join()

  def test_nobody_comes(self, path, caplog):
    start = time.monotonic()
    assert annotator(path, timeout_s=0.1).answer(ask(1, 2)) == [None, None]
    assert time.monotonic() - start < 10
    assert "2 of 2 questions have no label" in caplog.text
    assert label_queue.LabelQueue(path).counts().waiting == 0

  def test_the_page_is_closed_half_way(self, path):
    source = annotator(path, timeout_s=0.5)
    worker = person(path, lambda queue: answer_all(queue, 1))
    first, second = source.answer(ask(1, 2))
    worker.join()
    assert first.text == EXAMPLES[1].reference and second is None

  def test_a_skip_is_no_label(self, path):
    source = annotator(path)

    def act(queue):
      shown = queue.lease("page")
      queue.settle("page", shown.prompt_id, shown.round)
      answer_all(queue, 1)

    worker = person(path, act)
    first, second = source.answer(ask(1, 2))
    worker.join()
    assert first is None and second.text == EXAMPLES[2].reference

  def test_each_answer_buys_time(self, path):
    # Four answers, each within the limit of the last: longer than the limit in
    # all.
    source = annotator(path, timeout_s=1.0)

    def act(queue):
      for _ in range(4):
        answer_all(queue, 1)
        time.sleep(0.4)

    worker = person(path, act)
    assert None not in source.answer(ask(1, 2, 3, 4))
    worker.join()

  def test_the_last_answer_can_be_taken_back(self, path):
    source = annotator(path, undo_s=1.0)

    def act(queue):
      answer_all(queue, 1, answer="99999")
      time.sleep(0.1)  # so that the run has seen it
      queue.undo("page")
      answer_all(queue, 1)

    worker = person(path, act)
    (label,) = source.answer(ask(1))
    worker.join()
    assert label.text == EXAMPLES[1].reference

  def test_what_is_answered_is_not_waited_for(self, path):
    source = annotator(path, undo_s=60.0)
    source._queue.ask(ask(1))
    answer_all(source._queue, 1)
    (label,) = source.answer(ask(1, step=5))
    assert label.text == EXAMPLES[1].reference

  def test_two_seeds_share_a_question(self, path):
    ledger = label_ledger.LabelLedger(path)
    worker = person(path, lambda queue: answer_all(queue, 1))
    labels = ledger.buy(ask(1, seed=0) + ask(1, seed=1), annotator(path))
    worker.join()
    assert labels[0] == labels[1] is not None
    assert [ledger.totals(seed).spent for seed in (0, 1)] == [1.0, 1.0]

  def test_no_label_is_not_charged(self, path):
    ledger = label_ledger.LabelLedger(path)
    source = annotator(path, timeout_s=0.05)
    assert ledger.buy(ask(1, 2), source) == [None, None]
    assert ledger.totals(0) == (0, 0, 2, 0.0, None)

  def test_it_says_where_to_answer(self, path, caplog):
    caplog.set_level(logging.INFO)
    annotator(path, timeout_s=0.05).answer(ask(1))
    line = caplog.messages[0]
    assert line.startswith("1 questions wait for labels")
    assert f"python experiments/annotate.py --ledger={path}" in line
    assert "0.05 s without an answer" in line and "\n" not in line

  def test_it_waits_while_the_file_is_locked(self, path, caplog):
    source = annotator(path)
    source._queue = label_queue.LabelQueue(path, busy_s=0.01)
    source._queue.ask(ask(1))
    holder = sqlite3.connect(
      path, isolation_level=None, check_same_thread=False
    )

    def act(queue):
      holder.execute("BEGIN EXCLUSIVE")
      time.sleep(0.3)
      holder.close()
      answer_all(queue, 1)

    worker = person(path, act)
    (label,) = source.answer(ask(1))
    worker.join()
    assert label is not None
    assert caplog.text.count("is locked by another process") == 1

  def test_the_wait_can_be_stopped(self, path):
    looks = iter([False, False, True])
    source = annotator(path, stop=lambda: next(looks))
    with pytest.raises(KeyboardInterrupt, match="waited for labels"):
      source.answer(ask(1))
    # The question stays: whoever answers it now does so for the next start.
    assert label_queue.LabelQueue(path).counts().waiting == 1

  @pytest.mark.parametrize(
    ("options", "message"),
    [
      ({"timeout_s": 0.0}, "timeout_s is not above 0"),
      ({"timeout_s": math.nan}, "timeout_s is not above 0"),
      ({"poll_s": -1.0}, "poll_s is not above 0"),
      ({"undo_s": -1.0}, "undo_s is negative"),
    ],
  )
  def test_wrong_options(self, path, options, message):
    with pytest.raises(ValueError, match=message):
      annotator(path, **options)

  def test_for_ever_is_a_time(self, path):
    source = annotator(path, timeout_s=math.inf)
    worker = person(path, lambda queue: answer_all(queue, 1))
    assert source.answer(ask(1)) != [None]
    worker.join()


_RUN = """
import sys
sys.path[0] = {root!r}
from tests.tasks import label_sources_test as here
ledger = here.label_ledger.LabelLedger(sys.argv[1])
print("asks", flush=True)
labels = ledger.buy(here.ask(1, 2), here.annotator(sys.argv[1]))
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
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
      queue = label_queue.LabelQueue(path)
      if queue.counts().waiting == 2:
        break
      time.sleep(0.01)
    answer_all(queue, 1)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    ledger = label_ledger.LabelLedger(path)
    assert ledger.purchases() == []  # nothing is charged yet
    answer_all(queue, 1)  # the page goes on without the run
    second = self.start(path)
    references = [EXAMPLES[1].reference, EXAMPLES[2].reference]
    assert second.communicate()[0] == f"{references}\n"
    assert ledger.totals(0).spent == 2.0
    third = self.start(path)  # a finished step, repeated
    assert third.communicate()[0] == f"{references}\n"
    assert ledger.totals(0).spent == 2.0
