"""Questions in the ledger: the first answer counts, and none is lost."""

import json
import sqlite3

import pytest

from saw_jax.annotate import asking
from saw_jax.annotate.asking import AnswerError
from saw_jax.annotate.database import LedgerError
from saw_jax.annotate.questions import Cluster, Label, Question

CLUSTERS = (
  Cluster("7", 3, "it is 7"),
  Cluster("none", 1, "it is none"),
  Cluster(None, 1, ""),
)


def ask(*prompts, step=0, seed=0, form="integer", text="", clusters=CLUSTERS):
  return [
    Question(p, f"{text}prompt {p}", clusters, step, seed, form)
    for p in prompts
  ]


def settle(ledger, page="page", **how):
  """Leases a question and settles it."""
  shown = ledger.lease(page)
  ledger.settle(page, shown.prompt_id, shown.round, **how)


class TestLease:
  def test_what_is_shown(self, ledger):
    ledger.ask(ask(4, step=3, seed=1))
    assert ledger.lease("page")[1:] == (
      *(True, 4, 1, 1, 3),
      ["prompt 4", 0, ""],
      [
        [["7", 0, ""], 3, ["it is 7", 0, ""], "7"],
        [["none", 0, ""], 1, ["it is none", 0, ""], None],  # no integer
        [None, 1, ["", 0, ""], None],
      ],
      *("integer", 0, 0),
    )

  def test_two_pages_have_two_questions(self, ledger):
    ledger.ask(ask(1, 2))
    one, two = ledger.lease("one", now=100.0), ledger.lease("two", now=100.0)
    assert (one.prompt_id, two.prompt_id) == (1, 2)
    assert ledger.lease("three", now=129.0) is None
    # Reloading a page shows what it has.
    assert ledger.lease("two", now=129.0) == two
    # Page one is closed: its lease ends, the other's was renewed. The other
    # keeps its question, though an older one is free.
    assert ledger.lease("two", now=131.0) == two
    assert ledger.lease("three", now=131.0) == one

  def test_a_clock_that_is_set_back_blocks_nothing(self, ledger, monkeypatch):
    now = 10_000.0
    monkeypatch.setattr(asking.time, "time", lambda: now)
    ledger.ask(ask(2, 3), patience=60.0)
    one = ledger.lease("one")
    assert ledger.settle("one", 3, 1, answer="7") == "7"
    now -= 3600.0
    assert ledger.counts().patience == 60.0
    assert ledger.lease("two") == one and ledger.renew("one", 2) == "elsewhere"
    now -= 3600.0
    assert ledger.renew("one", 2) == "yours"
    # What came later stays later.
    ledger.ask(ask(1))
    assert ledger.lease("two").prompt_id == 1
    ledger.settle("one", 2, 1, answer="8")
    assert ledger.last("one")[0] == 2 and ledger.undo("one") == 2

  def test_what_is_long_is_cut_in_the_middle(self, ledger):
    long = "a" * 4000 + "b" * 1_000_000 + "c" * 4000
    clusters = [Cluster("7", 20, long), Cluster("8", 19, "d" * 8000)]
    clusters += [Cluster(str(n), 20 - n, "") for n in range(2, 12)]
    ledger.ask(ask(1, text="x" * 100_000, clusters=clusters))
    shown = ledger.lease("page")
    assert [response for _, _, response, _ in shown.clusters[:2]] == [
      ["a" * 4000, 1_000_000, "c" * 4000],
      ["d" * 8000, 0, ""],
    ]
    assert shown.text[1] == 100_008 - 40_000
    assert shown.text[2].endswith("prompt 1")
    assert [label for *_, label in shown.clusters] == list("782345678")
    assert (shown.other_clusters, shown.other_responses) == (3, 11 + 10 + 9)

  def test_any_text_comes_back(self, path, ledger):
    odd = "\x00\ud800\u202e\U0001f600'\""
    ledger.ask(ask(1, text=odd, form="text", clusters=(Cluster(odd, 1, odd),)))
    shown = ledger.lease("page")
    assert shown.text[0] == f"{odd}prompt 1"
    assert shown.clusters == [[[odd, 0, ""], 1, [odd, 0, ""], None]]
    connection = sqlite3.connect(path)
    ((document,),) = connection.execute("SELECT document FROM questions")
    connection.close()
    assert document.isascii() and json.loads(document)["form"] == "text"


class TestSettle:
  def test_typed_chosen_skipped(self, ledger):
    ledger.ask(ask(1, 2, 3))
    settle(ledger, answer=" 007 ", who="eva")
    settle(ledger, choice=0)
    settle(ledger)
    assert ledger.lease("page") is None
    labels = {1: Label("7", "eva"), 2: Label("7", "annotator"), 3: None}
    assert ledger.take([1, 2, 3, 99]) == labels

  @pytest.mark.parametrize(
    ("how", "word"),
    [
      ({"answer": "no idea"}, "integer such as -7. Nothing was kept"),
      ({"answer": ""}, "empty"),
      ({"answer": "7", "choice": 0}, "not both"),
      ({"choice": 1}, "no answer"),
      ({"choice": 3}, "no answer 4"),
      ({"choice": -1}, "no answer 0"),
    ],
  )
  def test_nonsense(self, ledger, how, word):
    ledger.ask(ask(1))
    with pytest.raises(AnswerError, match=word):
      settle(ledger, **how)
    assert ledger.counts().waiting == 1
    assert ledger.take([1]) == {1: None}

  def test_the_first_answer_counts(self, ledger):
    ledger.ask(ask(1, 2))
    for _ in range(2):  # a second click is no second answer
      assert ledger.settle("one", 1, 1, answer="5") == "5"
      assert ledger.settle("one", 2, 1) is None
    assert ledger.counts()[:3] == (0, 1, 1)
    for how in ({"answer": "6"}, {"answer": "5"}, {}):
      with pytest.raises(AnswerError, match="with '5' in another page"):
        ledger.settle("two", 1, 1, **how)
    with pytest.raises(AnswerError, match="already with '5': this"):
      ledger.settle("one", 1, 1, answer="6")
    assert ledger.take([1]) == {1: Label("5", "annotator")}
    with pytest.raises(AnswerError, match="already"):
      ledger.settle("two", 1, 1, answer="6")
    assert ledger.counts()[:3] == (0, 1, 1)

  def test_an_answer_to_an_earlier_round(self, ledger):
    # Skipped, then asked again with other clusters: a choice that was made
    # among the old ones must not pick one of the new.
    ledger.ask(ask(1))
    settle(ledger)
    ledger.take([1])
    ledger.ask(ask(1, step=5, clusters=(Cluster("8", 1, ""),)))
    with pytest.raises(AnswerError, match="asked again"):
      ledger.settle("old", 1, 1, choice=0)
    assert ledger.settle("new", 1, 2, choice=0) == "8"

  def test_an_answer_after_the_run_gave_up_is_kept(self, ledger):
    ledger.ask(ask(1, 2))
    shown = ledger.lease("page")
    assert ledger.take([1, 2]) == {1: None, 2: None}
    assert ledger.renew("page", 1) == "closed"
    assert ledger.lease("page") is None
    assert ledger.settle("page", 1, shown.round, answer="5") == "5"
    with pytest.raises(AnswerError, match="nothing to skip"):
      ledger.settle("page", 2, 1)
    ledger.ask(ask(1, step=9))
    assert ledger.counts().waiting == 0
    assert ledger.take([1]) == {1: Label("5", "annotator")}


class TestUndo:
  def test_the_last_one_is_shown_again(self, ledger):
    ledger.ask(ask(1, 2, 3))
    settle(ledger, answer="1")
    settle(ledger, answer="2")
    ledger.lease("page")  # has the third one already
    assert ledger.last("page") == (2, "2", True)
    assert ledger.last("other") is None
    for prompt in (2, 1):
      assert ledger.undo("page") == prompt
      assert ledger.lease("page").prompt_id == prompt
    assert ledger.counts()[:3] == (3, 0, 0)
    for page in ("page", "other"):
      with pytest.raises(AnswerError, match="nothing to take back"):
        ledger.undo(page)

  def test_it_comes_before_an_older_question(self, ledger):
    ledger.ask(ask(1, 2))
    ledger.lease("other", now=0.0)  # has the first, and is closed
    ledger.settle("page", 2, 1, answer="2")
    assert ledger.lease("page").prompt_id == 1
    ledger.undo("page")
    assert ledger.lease("page").prompt_id == 2

  def test_not_what_the_run_has(self, ledger):
    ledger.ask(ask(1))
    settle(ledger, answer="1")
    ledger.take([1])
    assert ledger.last("page") == (1, "1", False)
    with pytest.raises(AnswerError, match="taken"):
      ledger.undo("page")
    assert ledger.take([1]) == {1: Label("1", "annotator")}


class TestAsk:
  def test_a_run_that_was_killed_asks_again(self, ledger):
    ledger.ask(ask(1, 2, 3))
    settle(ledger, answer="1")
    settle(ledger)  # skipped at this step, and so it is
    ledger.ask(ask(1, 2, 3))
    states = ledger.states([1, 2, 3, 4])
    assert {p: (status, taken) for p, (status, _, taken) in states.items()} == {
      1: ("answered", 0),
      2: ("skipped", 0),
      3: ("waiting", 0),
    }
    ledger.take([1, 2, 3])
    ledger.ask(ask(1, 2, 3, step=1))  # another step may ask for it
    assert ledger.counts()[:3] == (2, 1, 0)
    assert ledger.take([1]) == {1: Label("1", "annotator")}

  def test_one_prompt_of_two_seeds_is_one_question(self, ledger):
    ledger.ask(ask(1, seed=3) + ask(1, seed=4))
    assert ledger.counts().waiting == 1
    assert ledger.lease("page").seed == 3

  def test_another_prompt_under_the_same_id_and_an_unknown_form(self, ledger):
    ledger.ask(ask(1))
    with pytest.raises(LedgerError, match="another prompt under the id 1"):
      ledger.ask([*ask(2), *ask(1, text="another ")])
    with pytest.raises(ValueError, match="'integer'"):
      ledger.ask([*ask(2), *ask(3, form="intger")])
    assert ledger.counts().waiting == 1  # all or nothing


def test_where_a_question_stands(ledger, monkeypatch):
  ledger.ask(ask(1, 2, 3))
  assert ledger.renew("one", 1) == "yours"
  assert ledger.renew("two", 1) == "elsewhere"
  ledger.settle("one", 1, 1, answer="1")
  ledger.settle("one", 2, 1)
  states = {1: "answered", 2: "skipped", 99: "unknown"}
  assert {prompt: ledger.renew("two", prompt) for prompt in states} == states
  monkeypatch.setattr(asking, "_LEASE_S", 0.0)
  assert ledger.renew("one", 3) == "yours"
  assert ledger.renew("two", 3) == "yours"


def test_patience_is_for_whoever_waits(ledger):
  assert ledger.counts().patience is None
  ledger.ask(ask(1))
  assert ledger.counts().patience is None  # for ever
  ledger.ask(ask(2), patience=1e-9)
  assert ledger.counts().patience == 0.0
