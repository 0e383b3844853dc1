"""The ledger of labels: nothing is lost, charged twice, or hushed up."""

import contextlib
import itertools
import math
import random
import signal
import sqlite3
import time
from unittest import mock

import hypothesis
import pytest
from hypothesis import stateful
from hypothesis import strategies as st

from saw_jax.annotate.database import LedgerError, LedgerLockedError
from saw_jax.annotate.ledger import Budget, LabelLedger
from saw_jax.annotate.questions import Label, Question
from tests import helpers


class Source:
  """Answers with a function of the question, and notes what it was asked."""

  name = "source"

  def __init__(self, price=1.0, silent=(), says=None):
    self.price, self.silent, self.asked = price, silent, []
    self.says = says or (lambda q: f"label {q.prompt_id}")

  def answer(self, questions):
    self.asked += [(q.seed, q.step, q.prompt_id) for q in questions]
    said = [Label(self.says(q), "source") for q in questions]
    pairs = zip(questions, said, strict=True)
    return [None if q.prompt_id in self.silent else x for q, x in pairs]


def label(prompt):
  return Label(f"label {prompt}", "source")


def ask(*prompts, step=0, seed=0):
  return [Question(p, f"prompt {p}", (), step, seed) for p in prompts]


def prompts_of(ledger):
  return [p.prompt_id for p in ledger.purchases()]


class TestBuy:
  def test_by_hand(self, ledger):
    source = Source(price=2.5)
    assert ledger.buy(ask(3, 1, 3), source) == [label(3), label(1), label(3)]
    assert ledger.buy(ask(1, 7, step=4), source) == [label(1), label(7)]
    assert source.asked == [(0, 0, 3), (0, 0, 1), (0, 4, 7)]
    assert ledger.totals(0) == (3, 3, 0, 7.5)
    first, *rest = ledger.purchases()
    assert first[:6] == (0, 0, 1, "label 1", "source", 2.5)
    assert [p[:3] for p in rest] == [(0, 0, 3), (0, 4, 7)]
    assert time.strptime(first.time, "%Y-%m-%dT%H:%M:%SZ").tm_year > 2020

  def test_of_several_labels_the_latest_is_known(self, ledger):
    fickle = Source(says=lambda q: f"at {q.step}")
    for step in (0, 1):
      ledger.buy(ask(5, step=step), fickle, again=True)
    assert ledger.buy(ask(5, step=2), fickle)[0].text == "at 1"
    assert ledger.buy(ask(5), fickle, again=True)[0].text == "at 0"
    assert ledger.totals(0) == (2, 1, 0, 2.0)

  def test_what_another_process_bought_meanwhile_counts(self, path, ledger):
    def late(question):
      LabelLedger(path).buy([question], Source(price=3.0))
      return "late"

    assert ledger.buy(ask(5), Source(says=late)) == [label(5)]
    assert ledger.totals(0).spent == 3.0

  def test_no_label_costs_nothing_and_is_decided(self, ledger):
    assert ledger.buy(ask(1, 2), Source(silent=[2])) == [label(1), None]
    assert ledger.buy(ask(1, 2), Source()) == [label(1), None]
    assert ledger.totals(0) == (1, 1, 1, 1.0)
    # At another step it may be asked again.
    assert ledger.buy(ask(2, step=1), Source()) == [label(2)]

  def test_any_text_is_a_label(self, path, ledger):
    texts = ['"', "\x00", "\ud800", "'; DROP", "é\u202e", ""]
    source = Source(says=lambda q: texts[q.prompt_id])
    for _ in range(2):
      found = ledger.buy(ask(*range(6)), source)
      assert [x.text for x in found] == texts
    assert [p.label for p in LabelLedger(path).purchases()] == texts

  def test_a_source_that_breaks_its_contract(self, ledger):
    source = Source()
    source.answer = lambda questions: [None]
    with pytest.raises(ValueError, match="1 answers to 2"):
      ledger.buy(ask(1, 2), source)
    for price in (-1.0, math.nan, math.inf):
      with pytest.raises(ValueError, match="price"):
        ledger.buy(ask(1), Source(price=price))
    with pytest.raises(ZeroDivisionError):
      ledger.buy(ask(1, 2), Source(says=lambda q: 1 / 0))
    assert ledger.purchases() == []


class TestBudget:
  @pytest.mark.parametrize(
    "options", [{"per_step": 0}, {"total": -3.0}, {"total": math.nan}]
  )
  def test_one_that_buys_nothing(self, options):
    with pytest.raises(ValueError, match=next(iter(options))):
      Budget(**options)

  @pytest.mark.parametrize(
    ("budget", "price", "bought"),
    [
      (Budget(per_step=3, total=10.0), 1.0, 3),
      (Budget(per_step=3, total=10.0), 4.0, 2),
      (Budget(per_step=3, total=1.0), 0.0, 3),
      (Budget(total=10.0), 2.5, 4),
      (Budget(total=2.0), 3.0, 0),
      (Budget(total=0.3), 0.1, 3),  # which do not add up to the last digit
      (Budget(), 1e9, 5),
    ],
  )
  @pytest.mark.parametrize("calls", [1, 5])
  def test_the_first_are_bought(self, path, budget, price, bought, calls):
    ledger, source = LabelLedger(path, budget=budget), Source(price=price)
    want = [label(p) if p < bought else None for p in range(5)]
    size, found = 5 // calls, []
    for n in range(0, 5, size):
      found += ledger.buy(ask(*range(n, n + size)), source)
    assert found == want
    assert prompts_of(ledger) == list(range(bought))
    # What was not asked is not decided.
    rich = LabelLedger(path, budget=Budget())
    assert rich.buy(ask(4), Source()) == [label(4)]

  def test_of_each_step_and_of_each_seed(self, path):
    budget = Budget(per_step=2, total=3.0)
    LabelLedger(path, budget=budget)
    ledger = LabelLedger(path)  # the file knows the budget
    assert ledger.budget == budget
    asked = ask(1, 2, 5) + ask(3, 4, step=1) + ask(1, seed=1)
    found = ledger.buy(asked, Source())
    assert [bool(x) for x in found] == [True, True, False, True, False, True]
    assert ledger.buy(ask(6, step=2), Source()) == [None]

  def test_what_is_known_or_missing_takes_no_room(self, path):
    ledger = LabelLedger(path, budget=Budget(per_step=1, total=1.0))
    assert ledger.buy(ask(3, 2), Source(silent=[3])) == [None, None]
    ledger.buy(ask(1), Source())
    assert ledger.buy(ask(1, 2, step=1), Source()) == [label(1), None]
    assert ledger.buy(ask(1), Source()) == [label(1)]


class TestRestore:
  def run(self, path, steps, *, choose=lambda step: (step, step + 1, 99)):
    """Asks for prompts at each step, of which one is known from before."""
    ledger, seen = LabelLedger(path, budget=Budget(per_step=2)), []
    for step in steps:
      source = Source(silent=[3])
      bought = ledger.buy(ask(*choose(step), step=step), source)
      seen.append((bought, ledger.totals(0)))
    return seen

  @pytest.mark.parametrize("starts", [(3, 0, 4), (1,)])
  def test_a_repeated_step_sees_what_it_saw(self, tmp_path, starts):
    whole = self.run(tmp_path / "whole.sqlite", range(6))
    path = tmp_path / "resumed.sqlite"
    self.run(path, range(5))
    for start in starts:
      LabelLedger(path).restore(start)
      assert self.run(path, range(start, 6)) == whole[start:]

  def test_what_nobody_answered_is_repeated_too(self, path):
    # It takes the room that it took the first time.
    ledger = LabelLedger(path, budget=Budget(per_step=2))
    for source in (Source(silent=[1]), Source()):
      found = ledger.buy(ask(1, 2, 3), source)
      assert found == [None, label(2), None]
      ledger.restore(0)

  def test_what_the_repeated_step_did_not_buy_is_abandoned(self, path):
    self.run(path, range(4), choose=lambda step: (step, step + 1))
    ledger = LabelLedger(path)
    before, snapshot = ledger.purchases(), ledger.snapshot(4)
    ledger.restore(1)
    ledger.restore(4, snapshot)  # nothing is lost yet
    assert ledger.purchases() == before
    ledger.restore(1)
    self.run(path, range(1, 4), choose=lambda step: (50 + step,))
    snapshot = ledger.snapshot(4)
    ledger.restore(2)
    ledger.restore(4, snapshot)
    assert prompts_of(ledger) == [0, 1, 51, 52, 53]

  def test_another_file_is_not_the_checkpoints(self, tmp_path, ledger):
    ledger.buy(ask(1, 2) + ask(3, step=1), Source())
    snapshot = ledger.snapshot(1)
    ledger.restore(1, snapshot)  # step 1 is no part of it
    for name, asked, complaint in (
      ("fewer", ask(1, 2, step=1), "0 purchases .* the checkpoint 2"),
      ("others", ask(1, 3), "not the ledger of the checkpoint"),
    ):
      other = LabelLedger(tmp_path / name)
      other.buy(asked, Source())
      with pytest.raises(LedgerError, match=complaint):
        other.restore(1, snapshot)
      assert other.totals(0).labels == 2  # left as it was


class Machine(stateful.RuleBasedStateMachine):
  """The ledger against a dictionary, over runs that are killed and resumed."""

  paths = ()  # of a file for each example

  def __init__(self):
    super().__init__()
    self.path = next(self.paths)
    self.ledger, self.step = LabelLedger(self.path), 0
    self.decided = {}  # (seed, step, prompt) -> label or None, for ever
    self.counted, self.asked = set(), []

  @stateful.rule(
    seed=st.integers(0, 1),
    prompts=st.lists(st.integers(0, 3), unique=True, max_size=3),
    silent=st.sets(st.integers(0, 3), max_size=2),
    again=st.booleans(),
  )
  def buy(self, seed, prompts, silent, again):
    source = Source(silent=silent)
    asked = ask(*prompts, step=self.step, seed=seed)
    found = self.ledger.buy(asked, source, again=again)
    for prompt, got in zip(prompts, found, strict=True):
      key = (seed, self.step, prompt)
      if key in self.decided:
        assert got == self.decided[key] and key not in source.asked
      elif key in source.asked:
        assert got == (None if prompt in silent else label(prompt))
        assert again or prompt not in self.labels(seed)
        self.decided[key] = got
      else:
        assert got == label(prompt) and prompt in self.labels(seed)
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
    assert {p[:3] for p in self.ledger.purchases()} == self.counted
    for seed in (0, 1):
      labels, totals = self.labels(seed), self.ledger.totals(seed)
      assert (totals.labels, totals.prompts) == (len(labels), len(set(labels)))
      assert totals.spent == len(labels)

  def labels(self, seed):
    """The prompts of the labels that count."""
    return [
      key[2]
      for key in self.counted
      if key[0] == seed and self.decided[key] is not None
    ]


def test_any_history_agrees_with_a_dictionary(tmp_path, monkeypatch):
  paths = (tmp_path / f"{n}.sqlite" for n in itertools.count())
  monkeypatch.setattr(Machine, "paths", paths)
  settings = hypothesis.settings(max_examples=25, stateful_step_count=15)
  stateful.run_state_machine_as_test(Machine, settings=settings)


_BUYER = """
import sys
from saw_jax.annotate.ledger import LabelLedger
from saw_jax.annotate.questions import Label, Question

class Source:
  name, price = "source", 1.0
  def answer(self, questions):
    return [Label("x" * 2000, "source") for q in questions]

seed, count = map(int, sys.argv[2:])
ledger = LabelLedger(sys.argv[1])
for step in range(count):
  questions = [Question(p, "", (), step, seed) for p in range(5)]
  ledger.buy(questions, Source(), again=True)
  print(step, flush=True)
"""


_HALF_A_WRITE = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size = 2")
connection.execute("BEGIN IMMEDIATE")
insert = "INSERT INTO purchases VALUES (9, 9, ?, ?, 'x', 1, 'x', 1)"
connection.executemany(insert, [(n, "x" * 1000) for n in range(500)])
connection.execute("DELETE FROM purchases WHERE seed = 0")
print("now", flush=True)
sys.stdin.read()
"""


def steps_of(path, seed):
  found = [p.step for p in LabelLedger(path).purchases() if p.seed == seed]
  return {step: found.count(step) for step in found}


class TestProcesses:
  def test_killed_at_any_moment(self, path):
    # Whatever was said to be bought is there, and only whole batches are.
    for seed in range(4):
      process = helpers.process("-c", _BUYER, path, seed, 100_000)
      assert process.stdout.readline() == "0\n"
      time.sleep(0.011 * seed)
      process.send_signal(signal.SIGKILL)
      said = 1 + len(process.communicate()[0].splitlines())
      steps = steps_of(path, seed)
      assert steps == {step: 5 for step in range(len(steps))}
      assert said <= len(steps) <= said + 1

  def test_killed_in_the_middle_of_a_write(self, path, ledger):
    # A process that stops between its writes and its commit, with more changed
    # than SQLite keeps in memory: the file on disk is half written.
    ledger.buy(ask(1, 2), Source())
    before = path.read_bytes()
    process = helpers.process("-c", _HALF_A_WRITE, path)
    assert process.stdout.readline() == "now\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert path.read_bytes() != before  # else this would test nothing
    assert prompts_of(LabelLedger(path)) == [1, 2]

  def test_two_at_once(self, path):
    # Also both make the file. The third buys what the first one does.
    words = "-c", _BUYER, path
    processes = [helpers.process(*words, seed, 8) for seed in (0, 1, 0)]
    for process in processes:
      assert process.communicate()[0].split() == [str(n) for n in range(8)]
      assert process.returncode == 0
    for seed in (0, 1):
      assert steps_of(path, seed) == {step: 5 for step in range(8)}

  def test_locked(self, path):
    ledger = LabelLedger(path, busy_s=0.1)
    ledger.buy(ask(1), Source())
    with contextlib.closing(sqlite3.connect(path)) as holder:
      holder.execute("BEGIN EXCLUSIVE")  # as another process would
      with pytest.raises(LedgerLockedError, match="0.1 s"):
        ledger.buy(ask(2), Source())
      with pytest.raises(LedgerLockedError):
        LabelLedger(path, busy_s=0.1)
    assert ledger.buy(ask(1, 2), Source()) == [label(1), label(2)]
    assert ledger.totals(0).spent == 2.0

  def test_a_writer_waits_before_it_reads(self, path, ledger):
    # Else two of them read, and neither can write.
    other = LabelLedger(path, busy_s=0.05)
    with ledger.transaction(writes=True):
      with pytest.raises(LedgerLockedError):
        with other.transaction(writes=True):
          pytest.fail("two writers at once")
      assert other.purchases() == []


class TestDamage:
  @pytest.fixture
  def full(self, path, ledger):
    ledger.buy(ask(*range(200)), Source())
    return path

  def complaint(self, path):
    before = path.read_bytes()
    with pytest.raises(LedgerError) as caught:
      LabelLedger(path)
    assert path.read_bytes() == before  # left as it is
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name]
    assert "\n" not in str(caught.value)
    return str(caught.value)

  @pytest.mark.parametrize(
    "spoil",
    [
      lambda content: b"seed,step\n" * 500,
      lambda content: content[:9000],
      lambda content: content[:-4096] + random.Random(0).randbytes(4096),
    ],
    ids=["no database", "cut short", "a page of noise"],
  )
  def test_damaged(self, full, spoil):
    full.write_bytes(spoil(full.read_bytes()))
    assert f"{full} is damaged (" in self.complaint(full)

  def test_damage_while_it_is_open(self, full, ledger):
    full.write_bytes(b"x" * 9000)
    with pytest.raises(LedgerError, match="damaged"):
      ledger.buy(ask(1), Source())
    assert full.read_bytes() == b"x" * 9000

  @pytest.mark.parametrize(
    ("statement", "complaint"),
    [
      ("PRAGMA user_version = 2", "version 2, and this code reads version 1"),
      ("PRAGMA application_id = 5", "no ledger of labels"),
    ],
  )
  def test_the_database_of_another_program(self, full, statement, complaint):
    with contextlib.closing(sqlite3.connect(full)) as other, other:
      other.execute(statement)
    assert complaint in self.complaint(full)

  def test_no_folder_and_a_folder(self, tmp_path):
    (tmp_path / "file").touch()
    for name, why in (("nowhere", "No such file"), ("file", "Not a dir")):
      with pytest.raises(LedgerError, match=f"{name}: {why}"):
        LabelLedger(tmp_path / name / "labels.sqlite")
    with pytest.raises(LedgerError, match="cannot be used"):
      LabelLedger(tmp_path)
    # A folder that may not be entered, to whoever is not root.
    with mock.patch("os.stat", side_effect=PermissionError(13, "Permission")):
      with pytest.raises(LedgerError, match="Permission"):
        LabelLedger(tmp_path / "labels.sqlite")

  def test_a_file_that_is_not_there_is_not_made(self, full, ledger):
    full.unlink()
    with pytest.raises(LedgerError, match="there is no ledger"):
      ledger.buy(ask(1), Source())
    with pytest.raises(LedgerError, match="there is no ledger"):
      LabelLedger(full, creates=False)
    assert not full.exists()

  def test_a_full_disk_loses_nothing(self, ledger, full):
    # As SQLite sees it: no more pages than there are.
    insert = "INSERT INTO purchases VALUES (7, 7, ?, ?, 'x', 1, 'x', 1)"
    with pytest.raises(LedgerError, match="full"):
      with ledger.transaction(writes=True) as sql:
        sql("PRAGMA max_page_count = 1")
        for number in range(100):
          sql(insert, number, "x" * 1000)
    assert ledger.totals(0).labels == 200 and ledger.totals(7).labels == 0

  def test_an_empty_file_is_an_empty_ledger(self, path):
    # What a run leaves that is killed while it makes one.
    path.touch()
    assert LabelLedger(path).purchases() == []
