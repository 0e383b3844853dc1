"""Summaries: what the properties in answer_task_test.py leave open."""

import numpy as np
import pytest

from saw_jax.tasks import base
from saw_jax.tasks.summaries import rewards
from saw_jax.tasks.summaries import task as task_lib
from saw_jax.tasks.summaries.task import SummariesConfig, SummariesTask
from saw_jax.tasks.workers import grading
from tests.tasks.answer_task_test import assert_refused, from_files, write
from tests.tasks.summaries import judge_test

stub = judge_test.stub  # the fixture
Outcome = base.Outcome


def make(**options):
  return SummariesTask(SummariesConfig(**options))


@pytest.fixture(scope="module")
def task():
  return make()


def sources(examples):
  return [example.meta["source"] for example in examples]


class TestExamples:
  def test_sizes_and_prompts(self, task):
    assert len(task.examples("train")) == 3184
    assert len(task.examples("test")) == 400
    example = task.examples("test")[0]
    (message,) = example.messages
    assert message["role"] == "user"
    assert message["content"] == (
      "Summarize this text in one short sentence.\n\n" + example.meta["source"]
    )
    assert example.reference not in message["content"]

  def test_long_texts_are_left_out_or_cut(self, task):
    short = sources(make(max_source_chars=300).examples("test"))
    assert 0 < len(short) < 400 and max(map(len, short)) <= 300
    cut = make(cut_source_chars=100, template="plain").examples("test")
    for whole, part in zip(task.examples("test"), cut, strict=True):
      source = part.meta["source"]
      assert part.messages[0]["content"] == source
      # Whole words, and no more of them would fit.
      rest = whole.meta["source"][len(source) :]
      assert whole.meta["source"].startswith(source) and rest.startswith(" ")
      assert len(source) + 1 + len(rest.split()[0]) > 100
      assert part.reference == whole.reference

  def test_files_of_ones_own(self, tmp_path):
    train = [{"post": f"Post {n}.", "summary": f"Is {n}"} for n in range(6)]
    train += [{"post": "Another.", "summary": "is 101!"}]  # held out
    test = [{"text": "abcdefghij", "summary": "Is 101"}]
    paths = {
      "train_path": write(tmp_path / "train.jsonl", train),
      "test_path": write(tmp_path / "test.jsonl", test),
    }
    assert len(make(**paths).examples("train")) == 6
    # A text without a space is cut too.
    cut = make(cut_source_chars=4, **paths)
    assert sources(cut.examples("train")) == ["Post"] * 6
    assert sources(cut.examples("test")) == ["abcd"]
    with pytest.raises(ValueError, match="max_source_chars"):
      make(max_source_chars=3, **paths).examples("test")

  def test_some_are_the_reference_and_others_begin_the_text(self, task):
    pairs = task.demonstrations(1000, seed=0, reference_rate=0.6, words=(3, 9))
    good = [example.reference == text for example, text in pairs]
    assert np.mean(good) == pytest.approx(0.6, abs=0.05)
    sizes = set()
    for (example, text), is_good in zip(pairs, good, strict=True):
      if not is_good:
        words = text.split()
        sizes.add(len(words))
        assert example.meta["source"].split()[: len(words)] == words
    assert sizes == set(range(3, 10))


class TestRules:
  @pytest.fixture(autouse=True)
  def library(self):
    pytest.importorskip("rouge_score")

  def test_by_the_rules(self, task):
    example = task.examples("test")[3]
    text = "Returns the number of things in the thing."
    quality = rewards.quality(text, example.reference, example.meta["source"])
    assert 0 < quality < 10
    for answer, values, outcome in (
      (text, (quality, 10.0), Outcome.WRONG),
      (example.reference, (10.0, 10.0), Outcome.RIGHT),
      ("", (0.0, 0.0), Outcome.UNPARSABLE),
      (" ", (0.0, 0.0), Outcome.UNPARSABLE),
      ("...", (0.0, 0.0), Outcome.UNPARSABLE),
    ):
      assert task.score(example, answer) == base.Score(values, outcome)
    assert "stand-in" in task.stand_in and task.has_gold


class TestJudge:
  @pytest.fixture
  def judged(self, stub, tmp_path):
    pytest.importorskip("httpx")
    judge = {"url": stub.url, "model": "m", "attempts": 1, "limit_s": 5.0}
    judge["cache"] = str(tmp_path / "judge.sqlite")
    judge["request_limit_s"] = 1.0
    return from_files("summaries", tmp_path, 6, reward="judge", judge=judge)

  def test_the_values_are_the_judges(self, stub, judged):
    example = judged.examples("test")[0]
    stub.replies = [judge_test.GOOD, '{"quality": 10, "conciseness": 10}']
    found = [judged.score(example, text) for text in ("Is a post", "Is", " ")]
    assert found == [
      base.Score((7.0, 8.5), Outcome.WRONG),
      base.Score((10.0, 10.0), Outcome.RIGHT),
      base.Score((0.0, 0.0), Outcome.UNPARSABLE),  # Nobody is asked.
    ]
    assert len(stub.requests) == 2
    asked = stub.requests[0][2]["messages"][1]["content"]
    assert example.meta["source"] in asked and example.reference not in asked
    assert judged.stand_in == "" and not judged.has_gold

  def test_prose_is_masked_and_never_0(self, stub, judged):
    # By the reply to each text, as two workers ask in any order.
    def answer(handler):
      asked = handler.server.requests[-1][2]["messages"][1]["content"]
      if "hang" in asked:
        return judge_test.hang(handler)
      text = "It is a fine summary." if "prose" in asked else judge_test.GOOD
      return handler.answer(200, judge_test.completion(text))

    stub.replies = [answer]
    texts = ["good", "prose", "hang", "", "more prose", "fine"]
    example = judged.examples("test")[0]
    with grading.Grader(
      judged, num_workers=1, limit_s=20.0, crash_tolerance=0.0
    ) as grader:
      graded = grader.grade([example] * 6, texts)
    outcomes = "wrong crashed timed_out unparsable crashed wrong".split()
    assert [o.value for o in graded.outcomes] == outcomes
    np.testing.assert_array_equal(
      graded.scored, [[s] * 2 for s in (True, False, False, True, False, True)]
    )
    assert graded.rewards[[0, 5]].tolist() == [[7.0, 8.5]] * 2
    assert graded.outcomes.count(Outcome.CRASHED) == 2


def numbered(first, count):
  """A text of different words."""
  return " ".join(f"w{i}" for i in range(first, first + count))


class TestRead:
  def test_what_comes_along_has_the_sizes_and_licences_that_it_says(self):
    readme, notice = (
      (task_lib._DOCSUM / name).read_text()
      for name in ("README.md", "LICENSE-BSD.txt")
    )
    apache, bsd = task_lib.DOCSUM_FILES["train"]
    for path, size, licence in (
      (apache, 1037, "Apache-2.0"),
      (bsd, 2363, "BSD-3-Clause"),
      (*task_lib.DOCSUM_FILES["test"], 400, None),
    ):
      rows = task_lib.read_examples([path])
      assert len(rows) == size and f"| {size:,} |" in readme
      if licence:
        assert {row.meta["licence"] for row in rows} == {licence}
      if licence == "BSD-3-Clause":
        for package in {row.meta["package"] for row in rows}:
          assert f"\n{package} " in notice

  @pytest.mark.parametrize(
    ("row", "text"),
    [
      ({"text": " a b ", "summary": "s"}, "a b"),
      ({"post": "a b", "summary": "s", "id": 3}, "a b"),
      ({"title": "t", "post": "a b", "summary": "s"}, "t\n\na b"),
      ({"title": " ", "post": "a b", "summary": "s"}, "a b"),
      ({"prompt": "POST: a b\n\nTL;DR:", "label": "s"}, "POST: a b"),
      ({"prompt": "POST: a b\nTL;DR: ", "completion": " s"}, "POST: a b"),
    ],
  )
  def test_schemas(self, tmp_path, row, text):
    path = write(tmp_path / "rows.jsonl", [row])
    one, other = task_lib.read_examples([path, path])
    assert one.meta["source"] == other.meta["source"] == text
    assert (one.key, other.key, one.reference) == (0, 1, "s")

  @pytest.mark.parametrize(
    ("row", "words"),
    [
      ({"summary": "s"}, "text, post"),
      ({"text": "a"}, "columns are text"),
      ({"text": 3, "summary": "s"}, "'text'"),
      ({"text": "...", "summary": "s"}, "the text"),
      ({"text": "a", "summary": "?!"}, "the summary"),
    ],
  )
  def test_a_broken_row_is_named(self, tmp_path, row, words):
    good, path = {"text": "a", "summary": "s"}, tmp_path / "rows.jsonl"
    assert_refused("summaries", path, good, row, words)


@pytest.mark.parametrize(
  ("text", "summary", "leaks"),
  [
    # A fifth of the runs is too much: 11 words are 4 runs of 8, of 20.
    (numbered(0, 10) + " " + numbered(100, 100), "x", False),
    (numbered(0, 11) + " " + numbered(100, 100), "x", True),
    # The shorter text counts: 12 words have 5 runs, of which 8 equal words make
    # one: a fifth.
    (numbered(5, 8) + " " + numbered(200, 4), "x", True),
    (numbered(5, 8) + " " + numbered(200, 5), "x", False),
    # Signs and case do not hide a leak.
    (numbered(0, 27).upper().replace(" ", ", "), "x", True),
    ("other words", "returns A THING", True),
    # Short texts leak only when they are equal.
    ("two words", "x", True),
    ("two others", "x", False),
  ],
)
def test_leaks(text, summary, leaks):
  test = [
    # 20 runs.
    base.Example(0, (), "Returns a thing.", {"source": numbered(0, 27)}),
    base.Example(1, (), "s", {"source": "two words"}),
  ]
  row = base.Example(0, (), summary, {"source": text})
  assert task_lib.without_leaks([row], test) == [row] * (not leaks)
