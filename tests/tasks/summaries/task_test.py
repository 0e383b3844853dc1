"""The task of summaries: examples, two sources of rewards, outcomes."""

import pickle

import numpy as np
import pytest

from saw_jax.run import registry
from saw_jax.tasks import base, inspection
from saw_jax.tasks.summaries import rewards as summary_rewards
from saw_jax.tasks.summaries.task import (
  STAND_IN,
  TEST_KEYS,
  SummariesConfig,
  SummariesTask,
)
from saw_jax.tasks.workers import grading
from tests.tasks.summaries import judge_test

stub = judge_test.stub  # the fixture
Outcome = base.Outcome


def make(**options):
  return SummariesTask(SummariesConfig(**options))


@pytest.fixture(scope="module")
def task():
  return make()


def own_files(tmp_path, train=6, test=3):
  paths = {}
  for split, count, first in (("train", train, 0), ("test", test, 100)):
    paths[f"{split}_path"] = str(tmp_path / f"{split}.jsonl")
    with open(paths[f"{split}_path"], "w") as file:
      for n in range(first, first + count):
        file.write(
          f'{{"post": "Post {n} is about {n}.", "summary": "Is {n}"}}\n'
        )
  return paths


class TestExamples:
  def test_a_prompt_asks_for_a_summary_of_the_text(self, task):
    example = task.examples("test")[0]
    (message,) = example.messages
    assert message["role"] == "user"
    assert message["content"] == (
      "Summarize this text in one short sentence.\n\n" + example.meta["source"]
    )
    assert example.reference not in message["content"]

  def test_sizes_and_keys(self, task):
    train, test = task.examples("train"), task.examples("test")
    assert (len(train), len(test)) == (3184, 400)
    keys = [example.key for example in [*train, *test]]
    assert len(set(keys)) == len(keys)
    assert max(keys) < 2**31
    assert all(example.key >= TEST_KEYS for example in test)

  def test_a_subset_is_the_seeds_and_keeps_the_keys(self, task):
    all_keys = [example.key for example in task.examples("train")]

    def keys(**options):
      found = make(num_train=50, num_test=7, **options)
      assert len(found.examples("test")) == 7
      return [example.key for example in found.examples("train")]

    first = keys(seed=1)
    assert len(first) == 50 and first == sorted(first)
    assert set(first) < set(all_keys)
    assert keys(seed=1) == first != keys(seed=2)

  def test_long_texts_are_left_out_or_cut(self, task):
    short = make(max_source_chars=300).examples("test")
    assert 0 < len(short) < 400
    assert all(len(e.meta["source"]) <= 300 for e in short)
    cut = make(cut_source_chars=100, template="plain").examples("test")
    assert len(cut) == 400
    for whole, part in zip(task.examples("test"), cut, strict=True):
      source = part.meta["source"]
      assert part.messages[0]["content"] == source
      # Whole words, and no more of them would fit.
      rest = whole.meta["source"][len(source) :]
      assert whole.meta["source"].startswith(source)
      assert rest.startswith(" ")
      assert len(source) + 1 + len(rest.split()[0]) > 100
      assert part.reference == whole.reference

  def test_a_text_without_a_space_is_cut_too(self, tmp_path):
    paths = own_files(tmp_path)
    with open(paths["test_path"], "a") as file:
      file.write('{"text": "abcdefghij", "summary": "s"}\n')
    found = make(cut_source_chars=4, **paths).examples("test")
    assert [e.meta["source"] for e in found] == ["Post"] * 3 + ["abcd"]

  def test_files_of_ones_own(self, tmp_path):
    paths = own_files(tmp_path)
    with open(paths["train_path"], "a") as file:
      file.write('{"post": "Another.", "summary": "is 101!"}\n')  # held out
    found = make(**paths)
    assert len(found.examples("train")) == 6
    assert found.examples("test")[1].meta["source"] == "Post 101 is about 101."

  def test_no_row_left_is_an_error(self, tmp_path):
    found = make(max_source_chars=3, **own_files(tmp_path))
    with pytest.raises(ValueError, match="no row of split 'test' is left"):
      found.examples("test")

  @pytest.mark.parametrize(
    ("options", "words"),
    [
      ({"reward": "rule"}, "did you mean 'rules'"),
      ({"template": "plan"}, "did you mean 'plain'"),
      ({"target_chars": 0}, "do not ascend"),
      ({"target_chars": 250}, "do not ascend"),
      ({"num_train": 0}, "num_train is not positive"),
      ({"train_path": "a.jsonl"}, "go together"),
      ({"reward": "judge"}, "say where the judge is"),
    ],
  )
  def test_wrong_options_are_errors(self, options, words):
    with pytest.raises(ValueError, match=words):
      make(**options)

  def test_a_wrong_option_of_the_judge_names_the_nearest(self):
    with pytest.raises(TypeError, match="judge.modle: did you mean 'model'"):
      registry.make_task("summaries", {"judge": {"modle": "m"}})


class TestRules:
  @pytest.fixture(autouse=True)
  def library(self):
    pytest.importorskip("rouge_score")

  def test_the_values_are_those_of_the_rules(self, task):
    example = task.examples("test")[3]
    text = "Returns the number of things in the thing."
    found = task.score(example, text)
    assert found.values == (
      summary_rewards.quality(text, example.reference, example.meta["source"]),
      10.0,
    )
    assert found.outcome is Outcome.WRONG
    assert 0 < found.values[0] < 10

  def test_the_reference_is_right_and_an_empty_answer_legal(self, task):
    example = task.examples("test")[3]
    found = task.score(example, example.reference)
    assert found == base.Score((10.0, 10.0), Outcome.RIGHT)
    for text in ("", " ", "..."):
      found = task.score(example, text)
      assert found == base.Score((0.0, 0.0), Outcome.UNPARSABLE)

  def test_gold_answers_score_best_and_damaged_ones_less(self, task):
    examples = task.examples("test")[:100]
    assert inspection.gold_failures(task, examples) == []
    assert inspection.damage_failures(task, examples) == []

  def test_a_number_of_rules_says_that_it_is_a_stand_in(self, task):
    assert task.stand_in == STAND_IN
    assert "stand-in" in STAND_IN and "judge" in STAND_IN

  def test_all_outcomes_of_workers(self, task):
    example = task.examples("test")[3]
    texts = ["", example.reference, "Something else", "y" * 10**6]
    with grading.Grader(
      task, num_workers=1, limit_s=30.0, crash_tolerance=0.0
    ) as grader:
      graded = grader.grade([example] * 4, texts)
    assert graded.scored.all()
    assert graded.outcomes == (
      Outcome.UNPARSABLE,
      Outcome.RIGHT,
      Outcome.WRONG,
      Outcome.WRONG,
    )
    assert graded.rewards[3].tolist() == [0.0, 0.0]


class TestDemonstrations:
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

  def test_they_depend_on_the_seed_alone(self, task):
    def texts(seed):
      pairs = task.demonstrations(20, seed=seed, reference_rate=0.5)
      return [text for _, text in pairs]

    assert texts(0) == texts(0) != texts(1)

  def test_both_rewards_begin_in_the_middle(self):
    pytest.importorskip("rouge_score")
    tiny = make(cut_source_chars=100, target_chars=40, limit_chars=120)
    pairs = tiny.demonstrations(200, seed=0, reference_rate=0.5, words=(3, 14))
    means = inspection.mean_rewards(tiny, pairs)
    assert 4 < means["quality"] < 7
    assert 6 < means["conciseness"] < 9.5

  @pytest.mark.parametrize(
    "options",
    [
      {"reference_rate": 1.5},
      {"reference_rate": 0.5, "words": (0, 3)},
      {"reference_rate": 0.5, "words": (4, 3)},
    ],
  )
  def test_wrong_options_are_errors(self, task, options):
    with pytest.raises(ValueError):
      task.demonstrations(1, seed=0, **options)


class TestJudge:
  @pytest.fixture(autouse=True)
  def library(self):
    pytest.importorskip("httpx")

  @pytest.fixture
  def judged(self, stub, tmp_path):
    return make(
      reward="judge",
      judge={
        "url": stub.url,
        "model": "m",
        "cache": str(tmp_path / "judge.sqlite"),
        "attempts": 1,
        "limit_s": 5.0,
        "request_limit_s": 1.0,
      },
      **own_files(tmp_path),
    )

  def test_the_values_are_the_judges(self, stub, judged):
    example = judged.examples("test")[0]
    found = judged.score(example, "Is a post")
    assert found == base.Score((7.0, 8.5), Outcome.WRONG)
    asked = stub.requests[0][2]["messages"][1]["content"]
    assert "Post 100 is about 100." in asked and "Is 100" not in asked
    assert judged.stand_in == "" and not judged.has_gold

  def test_full_marks_are_right(self, stub, judged):
    stub.replies = ['{"quality": 10, "conciseness": 10}']
    found = judged.score(judged.examples("test")[0], "Is a post")
    assert found == base.Score((10.0, 10.0), Outcome.RIGHT)

  def test_nobody_is_asked_about_nothing(self, stub, judged):
    found = judged.score(judged.examples("test")[0], " ")
    assert found == base.Score((0.0, 0.0), Outcome.UNPARSABLE)
    assert not stub.requests

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
    assert [o.value for o in graded.outcomes] == [
      "wrong",
      "crashed",
      "timed_out",
      "unparsable",
      "crashed",
      "wrong",
    ]
    np.testing.assert_array_equal(
      graded.scored, [[s] * 2 for s in (True, False, False, True, False, True)]
    )
    assert graded.rewards[[0, 5]].tolist() == [[7.0, 8.5]] * 2
    assert graded.outcome_counts["crashed"] == 2

  def test_a_refused_key_stops_the_run(self, stub, judged):
    stub.replies = [(401, ())]
    with grading.Grader(judged, num_workers=0, limit_s=20.0) as grader:
      with pytest.raises(grading.RewardError, match="judge.url, judge.model"):
        grader.grade([judged.examples("test")[0]], ["good"])

  def test_what_travels_holds_no_examples(self, judged):
    judged.examples("test")
    assert b"about 100" not in pickle.dumps(judged)
