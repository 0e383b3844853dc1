"""The ledger of labels: nothing is lost, charged twice, or hushed up."""

import itertools
import json
import math
import os
import pathlib
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time

import hypothesis
import pytest
from hypothesis import stateful
from hypothesis import strategies as st

from saw_jax.annotate import ledger as label_ledger
from saw_jax.annotate.ledger import Budget, LabelLedger, LedgerError
from saw_jax.annotate.questions import Label, Question

ROOT = pathlib.Path(__file__).parents[2]
# Of the files of a state machine. Its random numbers would come back.
NUMBERS = itertools.count()


class Source:
  """Answers with a function of the prompt, and counts what it was asked."""

  name = "source"

  def __init__(self, price=1.0, silent=()):
    self.price, self.silent, self.asked = price, silent, []

  def answer(self, questions):
    self.asked += [(q.seed, q.step, q.prompt_id) for q in questions]
    return [
      None if q.prompt_id in self.silent else label(q.prompt_id)
      for q in questions
    ]


def label(prompt):
  return Label(f"label {prompt}", "source")


def ask(*prompts, step=0, seed=0):
  return [Question(p, f"prompt {p}", (), step, seed) for p in prompts]


@pytest.fixture
def path(tmp_path):
  return tmp_path / label_ledger.LEDGER_NAME


class TestBuy:
  def test_by_hand(self, path):
    ledger, source = LabelLedger(path), Source(price=2.5)
    assert ledger.buy(ask(3, 1), source) == [label(3), label(1)]
    assert ledger.buy(ask(1, 7, step=4), source) == [label(1), label(7)]
    assert source.asked == [(0, 0, 3), (0, 0, 1), (0, 4, 7)]
    assert ledger.totals(0) == (3, 3, 0, 7.5, None)
    assert ledger.spent_by_step(0) == {0: 5.0, 4: 2.5}
    assert ledger.known(0, [7, 1, 99]) == {7: label(7), 1: label(1)}
    first = ledger.purchases()[0]
    assert first[:6] == (0, 0, 1, "label 1", "source", 2.5)
    assert time.strptime(first.time, "%Y-%m-%dT%H:%M:%SZ").tm_year > 2020

  def test_the_same_step_is_not_charged_twice(self, path):
    source = Source()
    for _ in range(3):  # as a run does that goes on from an older checkpoint
      ledger = LabelLedger(path)
      assert ledger.buy(ask(3, 1), source) == [label(3), label(1)]
      assert ledger.buy(ask(3, 1), source, again=True) == [label(3), label(1)]
    assert len(source.asked) == 2
    assert ledger.totals(0).spent == 2.0

  def test_again_buys_at_another_step(self, path):
    ledger, source = LabelLedger(path), Source()
    for step in (0, 1):
      ledger.buy(ask(5, step=step), source, again=True)
    assert source.asked == [(0, 0, 5), (0, 1, 5)]
    totals = ledger.totals(0)
    assert (totals.labels, totals.prompts, totals.spent) == (2, 1, 2.0)

  def test_of_several_labels_the_latest_is_known(self, path):
    class Fickle(Source):
      def answer(self, questions):
        return [Label(f"at {q.step}", "x") for q in questions]

    ledger = LabelLedger(path)
    for step in (0, 1):
      ledger.buy(ask(5, step=step), Fickle(), again=True)
    assert ledger.known(0, [5]) == {5: Label("at 1", "x")}
    assert ledger.buy(ask(5, step=2), Fickle()) == [Label("at 1", "x")]

  def test_what_another_process_bought_meanwhile_counts(self, path):
    class Slow(Source):
      def answer(self, questions):
        LabelLedger(path).buy(questions, Source(price=3.0))
        return [Label("late", "x") for _ in questions]

    assert LabelLedger(path).buy(ask(5), Slow()) == [label(5)]
    assert LabelLedger(path).totals(0).spent == 3.0

  def test_seeds_buy_for_themselves(self, path):
    ledger, source = LabelLedger(path), Source()
    ledger.buy(ask(5, seed=0) + ask(5, 6, seed=1), source)
    assert [ledger.totals(seed).spent for seed in (0, 1, 2)] == [1.0, 2.0, 0.0]
    assert ledger.known(0, [5, 6]) == {5: label(5)}

  def test_no_label_costs_nothing_and_is_decided(self, path):
    ledger, source = LabelLedger(path), Source(silent=[2])
    assert ledger.buy(ask(1, 2), source) == [label(1), None]
    assert ledger.buy(ask(1, 2), Source()) == [label(1), None]
    assert ledger.totals(0) == (1, 1, 1, 1.0, None)
    assert ledger.known(0, [2]) == {}
    # At another step it may be asked again.
    assert ledger.buy(ask(2, step=1), Source()) == [label(2)]

  def test_any_text_is_a_label(self, path):
    class Odd(Source):
      def answer(self, questions):
        return [Label(text, "x") for q in questions]

    ledger = LabelLedger(path)
    for step, text in enumerate(['"', "\x00", "\ud800", "'; DROP", "é\u202e"]):
      assert ledger.buy(ask(step, step=step), Odd())[0].text == text
      assert ledger.known(0, [step])[step].text == text

  def test_a_source_that_breaks_its_contract(self, path):
    ledger = LabelLedger(path)
    source = Source()
    source.answer = lambda questions: [None]
    with pytest.raises(
      ValueError, match="source gave 1 answers to 2 questions"
    ):
      ledger.buy(ask(1, 2), source)
    for price in (-1.0, math.nan, math.inf):
      with pytest.raises(
        ValueError, match="the price of source is not a price"
      ):
        ledger.buy(ask(1), Source(price=price))
    with pytest.raises(ValueError, match="comes twice"):
      ledger.buy(ask(1, 1), Source())
    assert ledger.purchases() == []

  def test_a_source_that_fails_leaves_nothing(self, path):
    ledger, source = LabelLedger(path), Source()
    source.answer = lambda questions: 1 / 0
    with pytest.raises(ZeroDivisionError):
      ledger.buy(ask(1, 2), source)
    assert ledger.purchases() == []

  def test_the_file_is_free_while_the_source_thinks(self, path):
    ledger, source = LabelLedger(path), Source()
    answer = source.answer

    def slow(questions):
      other = LabelLedger(path, busy_s=0.0)
      other.buy(ask(9, seed=5), Source())
      return answer(questions)

    source.answer = slow
    ledger.buy(ask(1), source)
    assert len(ledger.purchases()) == 2


class TestBudget:
  @pytest.mark.parametrize(
    ("options", "message"),
    [
      ({"per_step": 0}, "a budget of 0 labels a step buys nothing"),
      ({"per_step": -3}, "a budget of -3"),
      ({"total": 0.0}, "a total budget of 0.0 buys nothing"),
      ({"total": -1}, "total budget of -1"),
      ({"total": math.nan}, "total budget of nan"),
    ],
  )
  def test_wrong_options(self, options, message):
    with pytest.raises(ValueError, match=message):
      Budget(**options)

  def test_a_batch_that_is_too_small(self):
    Budget(per_step=8, total=1.0).check(8)
    with pytest.raises(
      ValueError, match="9 labels a step is more than the batch of 8"
    ):
      Budget(per_step=9).check(8)
    with pytest.raises(ValueError, match="does not pay one label at 3"):
      Budget(total=2.0).check(8, price=3.0)

  def test_room_by_hand(self, path):
    ledger = LabelLedger(path, budget=Budget(per_step=3, total=10.0))
    assert ledger.room(0, 0) == 3
    assert ledger.room(0, 0, price=4.0) == 2
    assert ledger.room(0, 0, price=0.0) == 3
    ledger.buy(ask(1, 2), Source(price=4.0))
    assert ledger.room(0, 0) == 1
    assert ledger.room(0, 1) == 2
    assert ledger.room(0, 1, price=2.5) == 0
    assert ledger.room(1, 0) == 3
    assert ledger.totals(0).remaining == 2.0
    assert LabelLedger(path).room(0, 1) == 2  # the file knows the budget
    assert LabelLedger(path, budget=Budget()).room(0, 1) == math.inf

  def test_tenths_add_up(self, path):
    ledger = LabelLedger(path, budget=Budget(total=0.3))
    for step in range(3):
      assert ledger.room(0, step, price=0.1) == 3 - step
      ledger.buy(ask(step, step=step), Source(price=0.1))
    assert ledger.room(0, 3, price=0.1) == 0

  def test_nobody_is_asked_beyond_it(self, path):
    ledger = LabelLedger(path, budget=Budget(per_step=2, total=3.0))
    source = Source()
    with pytest.raises(
      LedgerError, match="asks for 3 labels at 1, and the budget has room for 2"
    ):
      ledger.buy(ask(1, 2, 3), source)
    # Two steps at once, each within its own limit.
    with pytest.raises(
      LedgerError, match="4 labels at 1, and 3 of its budget of 3 is left"
    ):
      ledger.buy(ask(1, 2, step=0) + ask(3, 4, step=1), source)
    assert source.asked == [] and ledger.purchases() == []

  def test_what_is_known_needs_no_room(self, path):
    ledger = LabelLedger(path, budget=Budget(per_step=1, total=1.0))
    ledger.buy(ask(1), Source())
    assert ledger.buy(ask(1, step=1), Source()) == [label(1)]
    assert ledger.buy(ask(1), Source()) == [label(1)]

  def test_no_label_takes_no_room(self, path):
    ledger = LabelLedger(path, budget=Budget(per_step=1, total=1.0))
    ledger.buy(ask(1), Source(silent=[1]))
    assert ledger.room(0, 0) == 1


class TestRestore:
  def run(self, path, steps, *, choose=lambda step: (step, step + 1)):
    """Buys two prompts a step, of which one is known from the step before."""
    ledger, seen = LabelLedger(path), []
    for step in steps:
      known = sorted(ledger.known(0, range(100)))
      bought = ledger.buy(ask(*choose(step), step=step), Source())
      seen.append((known, bought, ledger.totals(0)))
    return seen

  def test_a_repeated_step_sees_what_it_saw(self, tmp_path):
    whole = self.run(tmp_path / "whole.sqlite", range(6))
    path = tmp_path / "resumed.sqlite"
    self.run(path, range(5))
    for start in (3, 0, 4):
      LabelLedger(path).restore(start)
      assert self.run(path, range(start, 6)) == whole[start:]

  def test_what_is_set_aside_is_neither_known_nor_counted(self, path):
    ledger = LabelLedger(path)
    for step in range(3):
      ledger.buy(ask(step, step=step), Source())
    ledger.restore(1)
    assert ledger.known(0, range(9)) == {0: label(0)}
    assert ledger.totals(0).labels == 1
    assert len(ledger.purchases()) == 1
    source = Source()
    assert ledger.buy(ask(1, step=1), source) == [label(1)]
    assert source.asked == [] and ledger.totals(0).labels == 2

  def test_what_nobody_answered_is_repeated_too(self, path):
    ledger = LabelLedger(path)
    ledger.buy(ask(1), Source(silent=[1]))
    ledger.restore(0)
    assert ledger.buy(ask(1), Source()) == [None]

  def test_a_later_checkpoint_counts_again(self, path):
    ledger = LabelLedger(path)
    for step in range(4):
      ledger.buy(ask(step, step=step), Source())
    snapshot = ledger.snapshot(4)
    ledger.restore(1)
    ledger.restore(4, snapshot)
    assert ledger.totals(0).labels == 4

  def test_what_the_repeated_step_did_not_buy_is_abandoned(self, path):
    self.run(path, range(4))
    ledger = LabelLedger(path)
    ledger.restore(1)
    self.run(path, range(1, 4), choose=lambda step: (50 + step,))
    assert [p.prompt_id for p in ledger.purchases()] == [0, 1, 51, 52, 53]
    snapshot = ledger.snapshot(4)
    ledger.restore(2)
    ledger.restore(4, snapshot)
    assert [p.prompt_id for p in ledger.purchases()] == [0, 1, 51, 52, 53]

  def test_a_snapshot_goes_through_json(self, path):
    ledger = LabelLedger(path)
    ledger.buy(ask(1, 2), Source())
    snapshot = json.loads(json.dumps(ledger.snapshot(1)))
    assert (snapshot["step"], snapshot["purchases"]) == (1, 2)
    ledger.buy(ask(3, step=1), Source())
    ledger.restore(1, snapshot)
    assert ledger.totals(0).labels == 2

  def test_another_file_is_not_the_checkpoints(self, tmp_path, path):
    ledger = LabelLedger(path)
    ledger.buy(ask(1, 2), Source())
    snapshot = ledger.snapshot(1)
    other = LabelLedger(tmp_path / "other.sqlite")
    other.buy(ask(1, 2, step=1), Source())
    with pytest.raises(
      LedgerError, match="has 0 purchases of the steps before, the checkpoint 2"
    ):
      other.restore(1, snapshot)
    assert other.totals(0).labels == 2  # left as it was
    # As many, but others.
    third = LabelLedger(tmp_path / "third.sqlite")
    third.buy(ask(1, 3), Source())
    with pytest.raises(
      LedgerError, match="is not the ledger of the checkpoint"
    ):
      third.restore(1, snapshot)


class Machine(stateful.RuleBasedStateMachine):
  """The ledger against a dictionary, over runs that are killed and resumed."""

  def __init__(self):
    super().__init__()
    self.path = pathlib.Path(os.environ["LEDGER_FOLDER"]) / (
      f"{next(NUMBERS)}.sqlite"
    )
    self.ledger = LabelLedger(self.path)
    self.step = 0
    self.decided = {}  # (seed, step, prompt) -> label or None, for ever
    self.counted = set()
    self.asked = []

  @stateful.rule(
    seed=st.integers(0, 1),
    prompts=st.lists(st.integers(0, 3), unique=True, max_size=3),
    silent=st.sets(st.integers(0, 3), max_size=2),
    again=st.booleans(),
  )
  def buy(self, seed, prompts, silent, again):
    source = Source(silent=silent)
    found = self.ledger.buy(
      ask(*prompts, step=self.step, seed=seed), source, again=again
    )
    for prompt, got in zip(prompts, found, strict=True):
      key = (seed, self.step, prompt)
      if key in self.decided:
        assert got == self.decided[key] and key not in source.asked
      elif key in source.asked:
        assert got == (None if prompt in silent else label(prompt))
        assert again or not self.known(seed, prompt)
        self.decided[key] = got
      else:
        assert got == label(prompt) and self.known(seed, prompt)
        continue
      self.counted.add(key)
    self.asked += source.asked
    assert len(set(self.asked)) == len(self.asked)  # nobody is asked twice

  @stateful.rule()
  def next_step(self):
    self.step += 1

  @stateful.rule(back=st.integers(0, 3))
  def resume(self, back):
    self.step = max(self.step - back, 0)
    self.ledger = LabelLedger(self.path)
    self.ledger.restore(self.step)
    # Steps that were repeated may also have left something out; without a
    # snapshot in between it is only set aside, and comes back.
    self.counted = {key for key in self.decided if key[1] < self.step}

  @stateful.invariant()
  def the_totals_are_those_of_the_dictionary(self):
    for seed in (0, 1):
      labels = [
        key[2]
        for key in self.counted
        if key[0] == seed and self.decided[key] is not None
      ]
      totals = self.ledger.totals(seed)
      assert (totals.labels, totals.prompts) == (len(labels), len(set(labels)))
      assert totals.spent == len(labels)
      assert set(self.ledger.known(seed, range(4))) == set(labels)

  def known(self, seed, prompt):
    return any(
      key[0] == seed and key[2] == prompt and self.decided[key] is not None
      for key in self.counted
    )


def test_any_history_agrees_with_a_dictionary(tmp_path, monkeypatch):
  monkeypatch.setenv("LEDGER_FOLDER", str(tmp_path))
  stateful.run_state_machine_as_test(
    Machine,
    settings=hypothesis.settings(
      max_examples=25, stateful_step_count=15, deadline=None
    ),
  )


_BUYER = """
import sys
from saw_jax.annotate import ledger as label_ledger
from saw_jax.annotate.questions import Label, Question

class Source:
  name, price = "source", 1.0
  def answer(self, questions):
    return [Label("x" * 2000, "source") for q in questions]

path, seed, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
ledger = label_ledger.LabelLedger(path)
for step in range(count):
  questions = [Question(p, "", (), step, seed) for p in range(5)]
  ledger.buy(questions, Source(), again=True)
  print(step, flush=True)
"""


def buyer(path, seed, count):
  return subprocess.Popen(
    [sys.executable, "-c", _BUYER, str(path), str(seed), str(count)],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    text=True,
  )


class TestProcesses:
  def test_killed_at_any_moment(self, path):
    # Whatever was said to be bought is there, and only whole batches are.
    for seed in range(4):
      process = buyer(path, seed, 100_000)
      assert process.stdout.readline() == "0\n"
      time.sleep(0.011 * seed)
      process.send_signal(signal.SIGKILL)
      said = 1 + len(process.communicate()[0].splitlines())
      steps = LabelLedger(path).spent_by_step(seed)
      assert set(steps.values()) == {5.0}
      assert list(steps) == list(range(len(steps)))
      assert said <= len(steps) <= said + 1

  def test_killed_in_the_middle_of_a_write(self, tmp_path, path):
    # A process that stops between its writes and its commit, with more changed
    # than SQLite keeps in memory: the file on disk is half written.
    LabelLedger(path).buy(ask(1, 2), Source())
    program = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size = 2")
connection.execute("BEGIN IMMEDIATE")
connection.execute("DELETE FROM purchases")
for number in range(500):
  connection.execute(
    "INSERT INTO purchases VALUES (9, 9, ?, ?, 'x', 1, 'x', 1)",
    (number, "x" * 1000),
  )
print("now", flush=True)
sys.stdin.read()
"""
    before = path.read_bytes()
    process = subprocess.Popen(
      [sys.executable, "-c", program, str(path)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    assert process.stdout.readline() == "now\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert path.read_bytes() != before  # else this would test nothing
    ledger = LabelLedger(path)
    assert ledger.known(0, [1, 2]) == {1: label(1), 2: label(2)}
    assert ledger.totals(9).labels == 0

  def test_two_at_once(self, path):
    # Also both make the file. The third buys what the first one does.
    processes = [buyer(path, seed, 8) for seed in (0, 1, 0)]
    for process in processes:
      assert process.communicate()[0].split() == [str(n) for n in range(8)]
      assert process.returncode == 0
    ledger = LabelLedger(path)
    for seed in (0, 1):
      assert ledger.spent_by_step(seed) == {step: 5.0 for step in range(8)}

  def test_locked(self, path):
    ledger = LabelLedger(path, busy_s=0.1)
    ledger.buy(ask(1), Source())
    with sqlite3.connect(path, isolation_level=None) as holder:
      holder.execute("BEGIN EXCLUSIVE")
      for call in (
        lambda: ledger.buy(ask(2), Source()),
        lambda: ledger.totals(0),
        lambda: LabelLedger(path, busy_s=0.1),
      ):
        with pytest.raises(
          label_ledger.LedgerLockedError,
          match="is locked by another process for more than 0.1 s",
        ):
          call()
      holder.execute("ROLLBACK")
    holder.close()
    assert ledger.buy(ask(1, 2), Source()) == [label(1), label(2)]
    assert ledger.totals(0).spent == 2.0

  def test_a_writer_waits_before_it_reads(self, path):
    # Else two of them read, and neither can write.
    LabelLedger(path)
    with label_ledger.transaction(path, writes=True):
      with pytest.raises(label_ledger.LedgerLockedError):
        with label_ledger.transaction(path, writes=True, busy_s=0.05):
          pytest.fail("two writers at once")
      with label_ledger.transaction(path, busy_s=0.05) as reader:
        assert reader.execute("SELECT COUNT(*) FROM purchases").fetchone()

  def test_locked_after_the_source_has_answered(self, path):
    # Nothing is written, and the same call afterwards is charged once.
    ledger, source = LabelLedger(path, busy_s=0.1), Source()
    holder = sqlite3.connect(path, isolation_level=None)
    answer = source.answer

    def lock(questions):
      holder.execute("BEGIN EXCLUSIVE")
      return answer(questions)

    source.answer = lock
    with pytest.raises(label_ledger.LedgerLockedError):
      ledger.buy(ask(1), source)
    holder.close()
    assert ledger.purchases() == []
    assert ledger.buy(ask(1), Source()) == [label(1)]
    assert ledger.totals(0).spent == 1.0


class TestDamage:
  @pytest.fixture
  def full(self, path):
    LabelLedger(path).buy(ask(*range(200)), Source())
    return path

  def complaint(self, path):
    before = path.read_bytes()
    with pytest.raises(LedgerError) as caught:
      LabelLedger(path)
    assert path.read_bytes() == before  # left as it is
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name]
    assert "\n" not in str(caught.value)
    return str(caught.value)

  def test_no_database(self, full):
    full.write_bytes(b"seed,step\n" * 500)
    said = self.complaint(full)
    assert f"{full} is damaged (file is not a database)" in said
    assert "put a copy back" in said

  def test_cut_short(self, full):
    full.write_bytes(full.read_bytes()[:9000])
    assert f"{full} is damaged" in self.complaint(full)

  def test_a_page_of_noise(self, full):
    content = bytearray(full.read_bytes())
    content[-4096:] = random.Random(0).randbytes(4096)
    full.write_bytes(content)
    assert f"{full} is damaged" in self.complaint(full)

  def test_damage_while_it_is_open(self, full):
    ledger = LabelLedger(full)
    full.write_bytes(b"x" * 9000)
    for call in (
      lambda: ledger.buy(ask(1), Source()),
      lambda: ledger.totals(0),
    ):
      with pytest.raises(LedgerError, match="is damaged"):
        call()
    assert full.read_bytes() == b"x" * 9000

  def test_another_programs_database(self, path):
    with sqlite3.connect(path) as other:
      other.execute("CREATE TABLE cats (name)")
    other.close()
    assert "is an SQLite file, but no ledger of labels" in self.complaint(path)

  def test_a_newer_version(self, full):
    with sqlite3.connect(full) as other:
      other.execute("PRAGMA user_version = 2")
    other.close()
    said = self.complaint(full)
    assert "a ledger of version 2, and this code reads version 1" in said

  def test_no_folder_and_a_folder(self, tmp_path):
    with pytest.raises(LedgerError, match="there is no folder .*nowhere"):
      LabelLedger(tmp_path / "nowhere" / "labels.sqlite")
    with pytest.raises(LedgerError, match="cannot be used"):
      LabelLedger(tmp_path)

  def test_a_file_that_vanishes_is_not_made_anew(self, full):
    ledger = LabelLedger(full)
    full.unlink()
    with pytest.raises(LedgerError, match="there is no ledger"):
      ledger.buy(ask(1), Source())
    assert not full.exists()

  def test_a_full_disk_loses_nothing(self, full):
    # As SQLite sees it: no more pages than there are.
    ledger = LabelLedger(full)
    with pytest.raises(LedgerError, match="cannot be used: .*full"):
      with label_ledger.transaction(full, writes=True) as connection:
        connection.execute("PRAGMA max_page_count = 1")
        connection.executemany(
          "INSERT INTO purchases VALUES (7, 7, ?, ?, 'x', 1, 'x', 1)",
          [(number, "x" * 1000) for number in range(100)],
        )
    assert ledger.totals(0).labels == 200 and ledger.totals(7).labels == 0

  def test_an_empty_file_is_an_empty_ledger(self, path):
    # What a run leaves that is killed while it makes one.
    path.touch()
    assert LabelLedger(path).purchases() == []

  def test_a_copy_is_as_good(self, full, tmp_path):
    copy = tmp_path / "copy.sqlite"
    snapshot = LabelLedger(full).snapshot(1)
    shutil.copy(full, copy)
    LabelLedger(copy).restore(1, snapshot)
