"""The queue of questions: first answer counts, and none is lost."""

import json
import sqlite3
import threading

import pytest

from saw_jax.annotate import ledger as label_ledger
from saw_jax.annotate import queue as label_queue
from saw_jax.annotate.questions import Cluster, Label, Question
from saw_jax.annotate.queue import AnswerError, LabelQueue


def ask(*prompts, step=0, seed=0, form="integer", text="", clusters=None):
  if clusters is None:
    clusters = (
      Cluster("7", 3, "it is 7"),
      Cluster("none", 1, "it is none"),
      Cluster(None, 1, "it is"),
    )
  return [
    Question(p, f"{text}prompt {p}", clusters, step, seed, form)
    for p in prompts
  ]


@pytest.fixture
def path(tmp_path):
  path = tmp_path / "labels.sqlite"
  label_ledger.create(path)
  return path


@pytest.fixture
def queue(path):
  return LabelQueue(path)


def settle(queue, page="page", **how):
  """Leases a question and settles it; returns its prompt."""
  shown = queue.lease(page)
  queue.settle(page, shown.prompt_id, shown.round, **how)
  return shown.prompt_id


class TestLease:
  def test_what_is_shown(self, queue):
    queue.ask(ask(4, step=3, seed=1))
    shown = queue.lease("page")
    assert (shown.prompt_id, shown.step, shown.seed) == (4, 3, 1)
    assert shown.text == ("prompt 4", 0, "")
    assert shown.form == "integer"
    first, second, third = shown.clusters
    assert first == (("7", 0, ""), 3, ("it is 7", 0, ""), "7")
    assert second.label is None  # no integer
    assert third.answer is None and third.label is None
    assert (shown.other_clusters, shown.other_responses) == (0, 0)

  def test_two_pages_have_two_questions(self, queue):
    queue.ask(ask(1, 2))
    one, two = queue.lease("one", now=100.0), queue.lease("two", now=100.0)
    assert (one.prompt_id, two.prompt_id) == (1, 2)
    assert queue.lease("three", now=129.0) is None
    # Reloading a page shows what it has.
    assert queue.lease("two", now=129.0) == two
    # Page one is closed: its lease ends, the other's was renewed.
    assert queue.lease("three", now=131.0) == one

  def test_a_page_keeps_its_question_when_an_older_one_is_free(self, queue):
    queue.ask(ask(1, 2))
    queue.lease("other", now=100.0)
    assert queue.lease("page", now=120.0).prompt_id == 2
    assert queue.lease("page", now=140.0).prompt_id == 2

  def test_long_texts_are_cut_in_the_middle(self, queue):
    long = "a" * 4000 + "b" * 1_000_000 + "c" * 4000
    queue.ask(ask(1, text="x" * 100_000, clusters=(Cluster("7", 1, long),)))
    shown = queue.lease("page")
    (cluster,) = shown.clusters
    assert cluster.response == ("a" * 4000, 1_000_000, "c" * 4000)
    assert shown.text.left_out == 100_008 - 40_000
    assert shown.text.tail.endswith("prompt 1")

  def test_many_clusters(self, queue):
    clusters = tuple(Cluster(str(n), 20 - n, "") for n in range(12))
    queue.ask(ask(1, clusters=clusters))
    shown = queue.lease("page")
    assert [c.label for c in shown.clusters] == [str(n) for n in range(9)]
    assert (shown.other_clusters, shown.other_responses) == (3, 11 + 10 + 9)

  def test_any_text_comes_back(self, queue):
    odd = "\x00\ud800\u202e\U0001f600'\""
    queue.ask(ask(1, text=odd, form="text", clusters=(Cluster(odd, 1, odd),)))
    shown = queue.lease("page")
    assert shown.text.head == f"{odd}prompt 1"
    assert shown.clusters[0].response.head == odd
    assert shown.clusters[0].label is None


class TestSettle:
  def test_typed_chosen_skipped(self, queue):
    queue.ask(ask(1, 2, 3))
    settle(queue, answer=" 007 ", who="eva")
    settle(queue, choice=0)
    settle(queue)
    assert queue.lease("page") is None
    assert queue.take([1, 2, 3, 99]) == {
      1: Label("7", "eva"),
      2: Label("7", "annotator"),
      3: None,
    }

  @pytest.mark.parametrize(
    ("how", "message"),
    [
      ({"answer": "no idea"}, "not an integer such as -7. Nothing was kept"),
      ({"answer": ""}, "is empty"),
      ({"answer": "7", "choice": 0}, "not both"),
      ({"choice": 1}, "no answer: type one, or skip"),
      ({"choice": 2}, "no answer"),
      ({"choice": 3}, "There is no answer 4"),
      ({"choice": -1}, "There is no answer 0"),
    ],
  )
  def test_nonsense(self, queue, how, message):
    queue.ask(ask(1))
    with pytest.raises(AnswerError, match=message):
      settle(queue, **how)
    assert queue.counts().waiting == 1
    assert queue.take([1]) == {1: None}

  def test_the_first_answer_counts(self, queue):
    queue.ask(ask(1))
    queue.settle("one", 1, 1, answer="5")
    for how in ({"answer": "6"}, {"answer": "5"}, {}):
      with pytest.raises(
        AnswerError, match="answered already with '5' in another page"
      ):
        queue.settle("two", 1, 1, **how)
    with pytest.raises(AnswerError, match="answered already with '5': this"):
      queue.settle("one", 1, 1, answer="6")
    assert queue.take([1]) == {1: Label("5", "annotator")}
    with pytest.raises(AnswerError, match="answered already"):
      queue.settle("two", 1, 1, answer="6")
    assert queue.counts().answered == 1

  def test_a_second_click_is_no_second_answer(self, queue):
    queue.ask(ask(1, 2))
    for _ in range(2):
      assert queue.settle("one", 1, 1, answer="5") == "5"
      assert queue.settle("one", 2, 1) is None
    assert queue.counts()[:3] == (0, 1, 1)

  def test_many_pages_at_once(self, queue):
    # Each of eight pages answers each question with its own number.
    prompts = range(6)
    queue.ask(ask(*prompts))
    kept = []

    def answer(number):
      for prompt in prompts:
        try:
          queue.settle(f"page {number}", prompt, 1, answer=str(number))
          kept.append((prompt, str(number)))
        except AnswerError:
          pass

    threads = [threading.Thread(target=answer, args=(n,)) for n in range(8)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    assert sorted(kept) == [
      (prompt, label.text) for prompt, label in queue.take(prompts).items()
    ]
    assert queue.counts().answered == 6

  def test_a_question_that_is_not_there(self, queue):
    with pytest.raises(AnswerError, match="There is no question 5"):
      queue.settle("page", 5, 1, answer="1")

  def test_an_answer_to_an_earlier_round(self, queue):
    # Skipped, then asked again with other clusters: a choice that was made
    # among the old ones must not pick one of the new.
    queue.ask(ask(1))
    settle(queue)
    queue.take([1])
    queue.ask(ask(1, step=5, clusters=(Cluster("8", 1, ""),)))
    with pytest.raises(AnswerError, match="asked again meanwhile"):
      queue.settle("old", 1, 1, choice=0)
    assert queue.settle("new", 1, 2, choice=0) == "8"

  def test_an_answer_after_the_run_gave_up_is_kept(self, queue):
    queue.ask(ask(1, 2))
    shown = queue.lease("page")
    assert queue.take([1, 2]) == {1: None, 2: None}
    assert queue.renew("page", 1) == "closed"
    assert queue.lease("page") is None
    assert queue.settle("page", 1, shown.round, answer="5") == "5"
    with pytest.raises(AnswerError, match="nothing to skip"):
      queue.settle("page", 2, 1)
    queue.ask(ask(1, step=9))
    assert queue.counts().waiting == 0
    assert queue.take([1]) == {1: Label("5", "annotator")}


class TestUndo:
  def test_the_last_one_is_shown_again(self, queue):
    queue.ask(ask(1, 2, 3))
    settle(queue, answer="1")
    settle(queue, answer="2")
    queue.lease("page")  # has the third one already
    assert queue.last("page") == (2, "2", True)
    assert queue.undo("page") == 2
    assert queue.lease("page").prompt_id == 2
    assert queue.undo("page") == 1
    assert queue.lease("page").prompt_id == 1
    assert queue.counts()[:3] == (3, 0, 0)
    with pytest.raises(AnswerError, match="nothing to take back"):
      queue.undo("page")

  def test_it_comes_before_an_older_question(self, queue):
    queue.ask(ask(1, 2))
    queue.lease("other", seconds=0.0, now=0.0)  # has the first, and is closed
    queue.settle("page", 2, 1, answer="2")
    assert queue.lease("page").prompt_id == 1
    queue.undo("page")
    assert queue.lease("page").prompt_id == 2

  def test_a_skip_can_be_taken_back(self, queue):
    queue.ask(ask(1))
    settle(queue)
    assert queue.last("page") == (1, None, True)
    queue.undo("page")
    assert queue.settle("page", 1, 1, answer="4") == "4"

  def test_not_what_the_run_has(self, queue):
    queue.ask(ask(1))
    settle(queue, answer="1")
    queue.take([1])
    assert queue.last("page") == (1, "1", False)
    with pytest.raises(AnswerError, match="The run has taken"):
      queue.undo("page")
    assert queue.take([1]) == {1: Label("1", "annotator")}

  def test_not_what_another_page_did(self, queue):
    queue.ask(ask(1))
    settle(queue, answer="1")
    with pytest.raises(AnswerError, match="nothing to take back"):
      queue.undo("other")
    assert queue.last("other") is None


class TestAsk:
  def test_an_answer_is_asked_for_once(self, queue):
    queue.ask(ask(1))
    settle(queue, answer="1")
    for step in range(3):
      queue.ask(ask(1, step=step))
      assert queue.lease("page") is None
      assert queue.take([1]) == {1: Label("1", "annotator")}

  def test_a_run_that_was_killed_asks_again(self, queue):
    queue.ask(ask(1, 2, 3))
    settle(queue, answer="1")
    settle(queue)  # skipped at this step, and so it is
    queue.ask(ask(1, 2, 3))
    states = queue.states([1, 2, 3])
    assert [states[p].status for p in (1, 2, 3)] == [
      "answered",
      "skipped",
      "waiting",
    ]
    queue.take([1, 2, 3])
    queue.ask(ask(1, 2, 3, step=1))  # another step may ask for it
    assert queue.counts()[:3] == (2, 1, 0)

  def test_one_prompt_of_two_seeds_is_one_question(self, queue):
    queue.ask(ask(1, seed=3) + ask(1, seed=4))
    assert queue.counts().waiting == 1
    assert queue.lease("page").seed == 3

  def test_another_prompt_under_the_same_id(self, queue):
    queue.ask(ask(1))
    with pytest.raises(
      label_ledger.LedgerError, match="another prompt under the id 1"
    ):
      queue.ask([*ask(2), *ask(1, text="another ")])
    assert queue.counts().waiting == 1  # all or nothing

  def test_an_unknown_form(self, queue):
    with pytest.raises(ValueError, match="did you mean 'integer'"):
      queue.ask(ask(1, form="intger"))


class TestRenew:
  def test_where_a_question_stands(self, queue):
    queue.ask(ask(1, 2, 3))
    assert queue.renew("one", 1) == "yours"
    assert queue.renew("two", 1) == "elsewhere"
    queue.settle("one", 1, 1, answer="1")
    queue.settle("one", 2, 1)
    assert queue.renew("two", 1) == "answered"
    assert queue.renew("two", 2) == "skipped"
    assert queue.renew("two", 99) == "unknown"
    assert queue.renew("one", 3, seconds=0.0) == "yours"
    assert queue.renew("two", 3) == "yours"


class TestCounts:
  def test_by_hand(self, path, queue):
    budget = label_ledger.Budget(per_step=2, total=9.0)
    ledger = label_ledger.LabelLedger(path, budget=budget)

    class Free:
      name, price = "x", 2.0

      def answer(self, questions):
        return [Label("1", "x") for _ in questions]

    ledger.buy(ask(8, 9, seed=5), Free())
    queue.ask(ask(1, 2, 3), patience=60.0)
    settle(queue, answer="1")
    settle(queue)
    counts = queue.counts()
    assert counts[:3] == (1, 1, 1)
    assert 55 < counts.patience <= 60
    assert counts.spent == {5: 4.0}
    assert counts.budget == budget

  def test_patience_is_for_whoever_waits(self, queue):
    assert queue.counts().patience is None
    queue.ask(ask(1))
    assert queue.counts().patience is None  # for ever
    queue.ask(ask(2), patience=1e-9)
    assert queue.counts().patience == 0.0


class TestFile:
  def test_there_has_to_be_one(self, tmp_path):
    with pytest.raises(label_ledger.LedgerError, match="there is no ledger"):
      LabelQueue(tmp_path / "nothing.sqlite")
    assert list(tmp_path.iterdir()) == []

  def test_locked(self, path):
    queue = LabelQueue(path, busy_s=0.05)
    queue.ask(ask(1))
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(label_ledger.LedgerLockedError, match="locked"):
      queue.settle("page", 1, 1, answer="1")
    holder.close()
    assert queue.settle("page", 1, 1, answer="1") == "1"

  def test_what_is_written_is_plain_json(self, path, queue):
    queue.ask(ask(1))
    connection = sqlite3.connect(path)
    ((document,),) = connection.execute("SELECT document FROM questions")
    connection.close()
    assert document.isascii() and json.loads(document)["form"] == "integer"

  def test_excerpt_keeps_what_fits(self):
    assert label_queue.excerpt("abcd", 2) == ("abcd", 0, "")
    assert label_queue.excerpt("", 2) == ("", 0, "")
