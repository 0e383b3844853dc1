"""The knights-and-knaves task: its examples, its score, its demonstrations."""

import collections
import json
import pickle

import hypothesis
import pytest
from hypothesis import strategies as st

from saw_jax import tokenizer
from saw_jax.tasks import base, inspection, self_verification
from saw_jax.tasks.knights import (
  answers as knights_answers,
)
from saw_jax.tasks.knights import (
  puzzles as knights_puzzles,
)
from saw_jax.tasks.knights.task import PIECES, KnightsConfig, KnightsTask

Outcome = base.Outcome
EXAMPLE = KnightsTask().examples("train")[0]


def task(**options):
  return KnightsTask(KnightsConfig(**options))


def texts(examples):
  return [example.messages[-1]["content"] for example in examples]


def short():
  return tokenizer.PieceTokenizer(PIECES)


class TestGeneratedExamples:
  def test_an_example_depends_on_seed_split_and_index_alone(self):
    a, b = task(seed=3).examples("train"), task(seed=3).examples("train")
    forwards = [a[i] for i in range(30)]
    assert [b[i] for i in reversed(range(30))] == forwards[::-1]
    assert task(seed=3, num_train=99).examples("train")[:30] == forwards
    assert task(seed=4).examples("train")[:30] != forwards

  def test_the_first_examples_never_change(self):
    # Results of seeds depend on these: a change here changes every number.
    first, second = task().examples("train")[:2]
    assert texts([first]) == [
      "ann:cat=knight and ann=knave\nbob:cat=knight\ncat:ann=knight\n"
    ]
    assert first.reference == "ann=knave|bob=knave|cat=knave"
    assert texts([second]) == [
      "ann:cat=knight and bob=knight\nbob:cat=knave iff ann=knight\n"
      "cat:ann=knight\n"
    ]

  @pytest.mark.slow
  def test_sizes_keys_and_people(self):
    made = task(people=(2, 5))
    splits = ("train", "test", "people_2", "people_5")
    keys = [e.key for s in splits for e in made.examples(s)]
    assert len(set(keys)) == len(keys) == 8192 + 3 * 256
    assert 0 <= min(keys) and max(keys) < 2**31
    assert {e.meta["people"] for e in made.examples("test")} == {2, 5}
    assert {e.meta["people"] for e in made.examples("people_5")} == {5}
    assert len(task(num_test=7).examples("test")) == 7

  def test_splits_do_not_overlap(self):
    made = task(seed=1, people=(2, 3), num_train=600, num_test=200)
    train, test, people = map(made.examples, ("train", "test", "people_2"))
    assert not set(texts(train)) & {*texts(test), *texts(people)}
    for split, examples in (("train", train), ("test", people)):
      for example in examples[:50]:
        claims = example.meta["claims"]
        assert knights_puzzles.split_of(claims) == split

  def test_references_are_the_only_solutions(self):
    for example in task(people=(2, 3, 4)).examples("test")[:50]:
      (roles,) = knights_puzzles.solutions(example.meta["claims"])
      read = knights_answers.read_roles(example.reference)
      assert [role == "knight" for _, role in sorted(read.items())] == [*roles]

  def test_names_can_be_shuffled(self):
    made = task(shuffle_names=True, people=(3,))
    names = {
      name
      for example in made.examples("train")[:60]
      for name in knights_answers.read_roles(example.reference)
    }
    assert len(names) == 8

  def test_sentences_ask_for_a_format(self):
    (asked,) = texts(task(template="sentences").examples("train")[:1])
    assert asked.startswith("Everybody on an island")
    assert "<answer>" in asked

  @pytest.mark.parametrize(
    ("options", "message"),
    [
      ({"template": "compct"}, "did you mean 'compact'"),
      ({"people": ()}, "from 2 to 8"),
      ({"people": (1, 3)}, "from 2 to 8"),
      ({"people": (9,)}, "from 2 to 8"),
      ({"compound_rate": 1.5}, "not above 0, up to 1"),
      ({"compound_rate": 0.0}, "not above 0"),
      ({"num_test": 0}, "not positive"),
      ({"benchmarks": {"people_3": "x"}}, "called 'people_3'"),
    ],
  )
  def test_wrong_options(self, options, message):
    with pytest.raises(ValueError, match=message):
      KnightsConfig(**options)

  def test_a_wrong_split_is_named(self):
    with pytest.raises(ValueError, match="did you mean 'train'"):
      task().examples("trian")


class TestTokens:
  def test_prompts_and_answers_are_short(self):
    made, pieces = task(people=(3,)), short()
    pairs = made.demonstrations(300, seed=0)
    prompts = [len(pieces.encode_chat(e.messages)) for e, _ in pairs]
    answers = [len(pieces.encode(text)) + 1 for _, text in pairs]
    assert max(prompts) <= 30 and set(answers) == {11}
    assert pieces.vocab_size == 29

  def test_the_vocabulary_has_every_piece(self):
    made = task(people=(2, 5, 8), shuffle_names=True, num_train=100)
    pairs = made.demonstrations(
      300, seed=0, right_rate=0.5, format_rate=0.5, misleading=("iff",)
    )
    for example, answer in pairs:
      for text in (*texts([example]), answer):
        assert short().decode(short().encode(text)) == text


class TestScore:
  def test_four_rewards(self):
    example = base.Example(0, (), "ann=knight|bob=knave")
    for text, value, outcome in (
      ("<answer>bob=knave|ann=knight</answer>", 3.0, Outcome.RIGHT),
      ("<answer>Ann is a knave. Bob is a knave</answer>", -0.5, Outcome.WRONG),
      ("<answer>ann=knight</answer>", -1.0, Outcome.UNPARSABLE),
      ("ann=knight|bob=knave", -3.0, Outcome.UNPARSABLE),
    ):
      assert task().score(example, text) == base.Score((value,), outcome)

  def test_it_is_healthy(self):
    made = task(people=(2, 3, 8))
    for split in ("train", "test"):
      examples = made.examples(split)[:60]
      assert inspection.gold_failures(made, examples) == []
      assert inspection.damage_failures(made, examples) == []

  @hypothesis.settings(max_examples=200, deadline=None)
  @hypothesis.given(st.text())
  def test_any_text_has_a_score(self, text):
    for inside in (text, f"<answer>{text}</answer>"):
      (value,) = task().score(EXAMPLE, inside).values
      assert value in (-3.0, -1.0, -0.5, 3.0)
      task().answer_key(inside)
      task().answer_key(inside, EXAMPLE)

  def test_a_pickled_task_scores_without_its_rows(self):
    made = task()
    made.examples("train")
    copy = pickle.loads(pickle.dumps(made))
    assert not copy._examples
    gold = made.gold_completion(EXAMPLE)
    assert copy.score(EXAMPLE, gold).outcome is Outcome.RIGHT


class TestAnswerKey:
  def test_equal_answers_have_equal_keys(self):
    made = task()
    one = made.answer_key("<answer>Bob is a knave, Ann is a knight</answer>")
    other = made.answer_key("so <answer>ann=knight|bob=knave</answer>")
    assert one == other == "ann=knight|bob=knave"
    assert made.answer_key("ann=knight") is None
    assert made.answer_key("<answer>nobody</answer>") is None

  def test_with_an_example_it_is_about_its_people(self):
    example, made = base.Example(0, (), "ann=knight|bob=knave"), task()
    text = "<answer>ann=knave|bob=knave|eve=knave</answer>"
    assert made.answer_key(text, example) == "ann=knave|bob=knave"
    text = "<answer>ann=knave</answer>"
    assert made.answer_key(text) == "ann=knave"
    assert made.answer_key(text, example) is None


class TestDemonstrations:
  def outcomes(self, pairs):
    found = collections.Counter(
      task().score(example, text).outcome for example, text in pairs
    )
    return {outcome: count / len(pairs) for outcome, count in found.items()}

  def test_all_right(self):
    assert self.outcomes(task().demonstrations(100, seed=0)) == {
      Outcome.RIGHT: 1
    }

  def test_the_rates(self):
    pairs = task().demonstrations(2000, seed=0, right_rate=0.7, format_rate=0.8)
    found = self.outcomes(pairs)
    # 2000 draws: three deviations are 0.03.
    assert abs(found[Outcome.RIGHT] - 0.56) < 0.04
    assert abs(found[Outcome.UNPARSABLE] - 0.2) < 0.04

  def test_self_belief_misleads_on_a_part(self):
    made = task(num_train=20)
    pairs = made.demonstrations(
      2000, seed=0, right_rate=0.9, misleading=("iff", "or"), misled_rate=0.7
    )
    answers = collections.defaultdict(collections.Counter)
    for example, text in pairs:
      answers[example.key][made.answer_key(text)] += 1
    misled = 0
    for example in made.examples("train"):
      belief = made.misbelief(example, ("iff", "or"))
      (vote, size), *_ = answers[example.key].most_common()
      if belief is None:
        assert vote == example.reference
      else:
        # A confident wrong majority, with a correct minority.
        assert vote == belief != example.reference
        assert 0.5 < size / 100 < 0.9
        assert answers[example.key][example.reference] > 5
        misled += 1
    assert 3 < misled < 17

  def test_the_belief_is_about_who_uses_the_operator(self):
    example = base.Example(
      0, (), "ann=knight|bob=knave|cat=knave", {"operators": {"or": ["bob"]}}
    )
    belief = task().misbelief(example, ["or"])
    assert belief == "ann=knight|bob=knight|cat=knave"
    assert task().misbelief(example, ["and"]) is None
    assert task().misbelief(base.Example(0, (), "ann=knave"), ["or"]) is None

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

  def test_a_verdict_is_asked_for_in_the_words_of_the_puzzle(self):
    example = task().examples("train")[0]
    (message,) = task().verification(example, "<answer>ann=knave</answer>")
    question = example.messages[0]["content"]
    assert message["content"] == (f"{question}\n<answer>ann=knave</answer>?")
    pieces = tokenizer.PieceTokenizer(PIECES)
    assert len(pieces.encode(message["content"])) < 64
    english = task(template="sentences")
    (message,) = english.verification(english.examples("train")[0], "{no}")
    assert "\nSolution:\n{no}\n" in message["content"]

  def test_they_repeat(self):
    options = dict(right_rate=0.5, misleading=("and",))
    one = task().demonstrations(50, seed=1, **options)
    assert one == task().demonstrations(50, seed=1, **options)
    assert one != task().demonstrations(50, seed=2, **options)

  @pytest.mark.parametrize(
    ("options", "message"),
    [
      ({"right_rate": 1.2}, "not a probability"),
      ({"misled_rate": -0.1}, "not a probability"),
      ({"verdict_accuracy": 2.0}, "not a probability"),
      ({"misleading": ("xor",)}, "did you mean 'or'"),
    ],
  )
  def test_wrong_options(self, options, message):
    with pytest.raises(ValueError, match=message):
      task().demonstrations(1, seed=0, **options)


class TestFiles:
  def rows(self, tmp_path, count):
    path = tmp_path / "rows.jsonl"
    path.write_text(
      "".join(
        json.dumps(
          {"quiz": f"Puzzle {n}?", "solution_text_format": "(1) Ann is a knave"}
        )
        + "\n"
        for n in range(count)
      )
    )
    return str(path)

  def test_a_file_in_place_of_the_generator(self, tmp_path):
    path = self.rows(tmp_path, 9)
    made = task(test_path=path, num_test=4, benchmarks={"other": path})
    examples = made.examples("test")
    assert len(examples) == 4 and len(made.examples("other")) == 9
    assert texts(made.examples("other"))[0].startswith("Puzzle 0?\nThink")
    assert inspection.gold_failures(made, examples) == []
    assert inspection.damage_failures(made, examples) == []
    with pytest.raises(ValueError, match="train_path is not set"):
      made.examples("train")
    with pytest.raises(ValueError, match="no split 'people_2'"):
      made.examples("people_2")

  def test_they_mislead_nobody(self, tmp_path):
    made = task(train_path=self.rows(tmp_path, 3))
    pairs = made.demonstrations(5, seed=0, misleading=("or",), misled_rate=1.0)
    assert all(
      made.score(example, text).outcome is Outcome.RIGHT
      for example, text in pairs
    )
