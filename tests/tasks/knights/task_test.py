"""Knights and knaves: what the properties in answer_task_test.py leave open."""

import collections

import pytest

from saw_jax import tokenizer
from saw_jax.tasks import base, self_verification
from saw_jax.tasks.knights import answers as knights_answers
from saw_jax.tasks.knights import puzzles
from saw_jax.tasks.knights.task import PIECES, KnightsConfig, KnightsTask
from tests.tasks.answer_task_test import from_files, texts

Outcome = base.Outcome


def task(**options):
  return KnightsTask(KnightsConfig(**options))


class TestExamples:
  def test_splits_do_not_overlap_and_have_their_people(self):
    made = task(seed=1, people=(2, 3), num_train=600, num_test=200)
    assert made.splits == ("train", "test", "people_2", "people_3")
    for split, counts in zip(made.splits[1:], ({2, 3}, {2}, {3}), strict=True):
      assert {e.meta["people"] for e in made.examples(split)} == counts
    train, test, people = map(made.examples, ("train", "test", "people_2"))
    assert not set(texts(train)) & {*texts(test), *texts(people)}
    for split, examples in (("train", train), ("test", people)):
      for example in examples[:50]:
        assert puzzles.split_of(example.meta["claims"]) == split

  def test_names_can_be_shuffled(self):
    examples = task(shuffle_names=True, people=(3,)).examples("train")[:60]
    roles = [knights_answers.read_roles(e.reference) for e in examples]
    assert len(set().union(*roles)) == 8

  @pytest.mark.parametrize("source", ["generator", "file"])
  def test_sentences_ask_for_a_format(self, source, tmp_path):
    made = task(template="sentences")
    if source == "file":
      made = from_files("knights", tmp_path, 3)
    (asked,) = texts(made.examples("train")[:1])
    assert asked.startswith(("Everybody on an island", "Puzzle 0?\nThink"))
    assert "<answer>" in asked
    (message,) = made.verification(made.examples("train")[0], "{no}")
    assert "\nSolution:\n{no}\n" in message["content"]


class TestAnswers:
  @pytest.mark.parametrize(
    ("text", "value", "outcome"),
    [
      ("<answer>bob=knave|ann=knight</answer>", 3.0, Outcome.RIGHT),
      ("<answer>Ann is a knave. Bob is a knave</answer>", -0.5, Outcome.WRONG),
      ("<answer>ann=knight</answer>", -1.0, Outcome.UNPARSABLE),
      ("ann=knight|bob=knave", -3.0, Outcome.UNPARSABLE),
    ],
  )
  def test_four_rewards(self, text, value, outcome):
    example = base.Example(0, (), "ann=knight|bob=knave")
    assert task().score(example, text) == base.Score((value,), outcome)

  def test_equal_answers_have_equal_keys_about_the_people_asked_for(self):
    example, made = base.Example(0, (), "ann=knight|bob=knave"), task()
    for text in ("Bob is a knave, Ann is a knight", example.reference):
      found = made.answer_key(f"so <answer>{text}</answer>")
      assert found == example.reference
    for text in ("ann=knight", "<answer>nobody</answer>"):
      assert made.answer_key(text) is None
    text = "<answer>ann=knave|bob=knave|eve=knave</answer>"
    assert made.answer_key(text, example) == "ann=knave|bob=knave"
    text = "<answer>ann=knave</answer>"
    assert made.answer_key(text) == "ann=knave"
    assert made.answer_key(text, example) is None
    assert made.label_form(example) == "roles ann bob"


class TestDemonstrations:
  def test_any_wrong_answer_is_as_likely(self):
    made = task(num_train=1, people=(2,))
    pairs = made.demonstrations(300, seed=0, right_rate=0.0)
    found = collections.Counter(made.answer_key(text) for _, text in pairs)
    assert len(found) == 3 and pairs[0][0].reference not in found
    assert min(found.values()) > 60

  def test_the_belief_is_about_who_uses_the_operator(self, tmp_path):
    example = base.Example(
      0, (), "ann=knight|bob=knave|cat=knave", {"operators": {"or": ["bob"]}}
    )
    belief = task().misbelief(example, ["or"])
    assert belief == "ann=knight|bob=knight|cat=knave"
    assert task().misbelief(example, ["and"]) is None
    made = from_files("knights", tmp_path, 3)
    assert made.misbelief(made.examples("train")[0], ["or"]) is None

  def test_some_judge_an_answer(self):
    made = task(num_train=50)
    plain = made.demonstrations(2000, seed=0, right_rate=0.5)
    pairs = made.demonstrations(
      2000, seed=0, right_rate=0.5, verdict_rate=0.25, verdict_accuracy=0.9
    )
    agree = count = 0
    for (example, answer), (asked, text) in zip(plain, pairs, strict=True):
      if text == answer:
        assert asked == example
        continue
      # The same answer as without verdicts, and what is thought of it.
      assert asked.messages == made.verification(example, answer)
      assert text in ("true", "false")
      is_right = made.score(example, answer).outcome is Outcome.RIGHT
      agree += self_verification.read_verdict(text) == is_right
      count += 1
    # 2000 and 500 draws: three deviations are 0.03 and 0.04.
    assert abs(count / 2000 - 0.25) < 0.03
    assert abs(agree / count - 0.9) < 0.04

    # In the words of the puzzle, few tokens.
    example = made.examples("train")[0]
    (message,) = made.verification(example, "<answer>ann=knave</answer>")
    (question,) = texts([example])
    assert message["content"] == f"{question}\n<answer>ann=knave</answer>?"
    assert len(tokenizer.PieceTokenizer(PIECES).encode(message["content"])) < 64
