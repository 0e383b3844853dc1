"""The math task: its examples, its score, its demonstrations."""

import collections
import json
import math
import pathlib
import pickle
import statistics
import sys

import hypothesis
import pytest
from hypothesis import strategies as st

from saw_jax import tokenizer
from saw_jax.tasks import base
from saw_jax.tasks.math.problems import LEVELS, split_of
from saw_jax.tasks.math.task import PIECES, MathConfig, MathTask
from saw_jax.tasks.workers import grading

DATA = pathlib.Path(__file__).parents[2] / "data"
GRADERS = ("exact", "math_verify")
Outcome = base.Outcome
settings = hypothesis.settings(
  max_examples=200, deadline=None, derandomize=True, database=None
)


def task(**options):
  return MathTask(MathConfig(**options))


def texts(examples):
  return [example.messages[-1]["content"] for example in examples]


def rows(tmp_path, count, name="rows.jsonl"):
  path = tmp_path / name
  path.write_text(
    "".join(
      json.dumps({"problem": f"{n} + 0?", "answer": n}) + "\n"
      for n in range(count)
    )
  )
  return str(path)


class TestGeneratedExamples:
  def test_an_example_depends_on_seed_split_and_index_alone(self):
    a, b = task(seed=3).examples("train"), task(seed=3).examples("train")
    forwards = [a[i] for i in range(50)]
    assert [b[i] for i in reversed(range(50))] == forwards[::-1]
    assert task(seed=3, num_train=99).examples("train")[:50] == forwards
    assert task(seed=4).examples("train")[:50] != forwards

  def test_the_first_examples_never_change(self):
    # Results of seeds depend on these: a change here changes every number.
    assert [
      (text, example.reference)
      for example in task().examples("train")[:4]
      for text in texts([example])
    ] == [
      ("6-6=", "0"),
      ("4+1=", "5"),
      ("13 of 63 pens are lost. how many are left?", "50"),
      ("sam has 32 pens and gets 43 more. how many now?", "75"),
    ]

  def test_sizes_and_keys(self):
    made = task()
    keys = [e.key for s in ("train", "test") for e in made.examples(s)]
    assert len(set(keys)) == len(keys) == 8192 + 256
    assert 0 <= min(keys) and max(keys) < 2**31
    assert len(task(num_test=7).examples("test")) == 7

  def test_the_templates(self):
    plain = task(levels=(1,), word_share=0.0).examples("train")[0]
    boxed = task(levels=(1,), word_share=0.0, template="boxed")
    (text,) = texts([plain])
    assert text == f"{plain.meta['expression']}="
    (asked,) = texts([boxed.examples("train")[0]])
    assert asked == (
      f"{text}\nPlease reason step by step, and put your final answer within "
      "\\boxed{}."
    )

  def test_prompts_and_answers_are_short(self):
    short = tokenizer.PieceTokenizer(PIECES)
    made = task(levels=(1, 2, 3), word_share=0.0)
    pairs = made.demonstrations(2000, seed=0, working_rate=1.0)
    prompts = [len(short.encode_chat(e.messages)) for e, _ in pairs]
    answers = [len(short.encode(text)) + 1 for _, text in pairs]
    assert max(prompts) <= 14 and max(answers) <= 18
    in_bytes = tokenizer.ByteTokenizer()
    assert max(len(in_bytes.encode(text)) + 1 for _, text in pairs) <= 24
    stories = task(levels=(1, 2, 3), word_share=1.0).examples("train")[:2000]
    prompts = [len(short.encode_chat(e.messages)) for e in stories]
    assert max(prompts) <= 32 and statistics.mean(prompts) < 20

  def test_the_short_vocabulary_has_every_piece(self):
    short = tokenizer.PieceTokenizer(PIECES)
    made = task(levels=(1, 2, 3, 4), word_share=0.7)
    pairs = made.demonstrations(3000, seed=0, right_rate=0.5, box_rate=0.5)
    for example, answer in pairs:
      for text in (*texts([example]), answer):
        assert short.decode(short.encode(text)) == text

  def test_a_wrong_split_is_named(self):
    with pytest.raises(ValueError, match="did you mean 'train'"):
      task().examples("trian")

  @pytest.mark.parametrize(
    ("options", "message"),
    [
      ({"grader": "exakt"}, "did you mean 'exact'"),
      ({"problems": "generate"}, "did you mean 'generated'"),
      ({"template": "box"}, "did you mean 'boxed'"),
      ({"levels": ()}, "from 1 to 4"),
      ({"levels": (0, 1)}, "from 1 to 4"),
      ({"word_share": 1.5}, "not a share"),
      ({"num_train": 0}, "not positive"),
      ({"generators": ()}, "empty"),
      ({"benchmarks": {"test": "x"}}, "called 'test'"),
    ],
  )
  def test_wrong_options_are_errors(self, options, message):
    with pytest.raises(ValueError, match=message):
      MathConfig(**options)


class TestLength:
  @pytest.mark.parametrize("conditioned", [False, True])
  def test_a_short_enough_answer_has_it(self, conditioned):
    made = task(length_limit=5, conditioned=conditioned)
    assert [c.name for c in made.components] == ["correct", "length"]
    assert base.token_limits(made) == {1: 5}
    example = base.Example(0, (), "46")
    wrong = 0.0 if conditioned else 1.0  # eq. (8) of GDPO
    for text, values, outcome in (
      (r"\boxed{46}", (1.0, 1.0), Outcome.RIGHT),
      (r"\boxed{47}", (0.0, wrong), Outcome.WRONG),
      ("no box", (0.0, wrong), Outcome.UNPARSABLE),
    ):
      assert made.score(example, text) == base.Score(values, outcome)

  def test_without_a_limit_there_is_one_reward(self):
    assert [c.name for c in task().components] == ["correct"]
    assert base.token_limits(task()) == {}

  def test_wrong_limits_are_errors(self):
    with pytest.raises(ValueError, match="length_limit is negative"):
      MathConfig(length_limit=-1)
    with pytest.raises(ValueError, match="conditioned needs a length_limit"):
      MathConfig(conditioned=True)
    made = task()
    made.token_limits = {"lenght": 5}
    with pytest.raises(ValueError, match="of no component: 'lenght'"):
      base.token_limits(made)
    made.token_limits = {"correct": 0}
    with pytest.raises(ValueError, match="'correct' has a limit of 0"):
      base.token_limits(made)


class TestLevels:
  def test_each_level_is_a_split_of_held_out_problems(self):
    made = task(levels=(2,), num_test=40)
    assert made.splits == ("train", "test", *(f"level_{n}" for n in LEVELS))
    keys = []
    for level in LEVELS:
      examples = list(made.examples(f"level_{level}"))
      assert len(examples) == 40
      assert {e.meta["level"] for e in examples} == {level}
      assert all(split_of(e.meta["expression"]) == "test" for e in examples)
      keys += [e.key for e in examples]
    keys += [e.key for split in ("train", "test") for e in made.examples(split)]
    assert len(set(keys)) == len(keys) and max(keys) < 2**31
    # What is trained on does not change them.
    other = task(levels=(1, 3), num_test=40)
    assert list(other.examples("level_2")) == list(made.examples("level_2"))

  def test_files_have_none(self):
    made = task(
      train_path=str(DATA / "gsm8k" / "train.jsonl"),
      test_path=str(DATA / "gsm8k" / "test.jsonl"),
    )
    assert made.splits == ("train", "test")
    with pytest.raises(ValueError, match="levels are of generated problems"):
      made.demonstrations(3, seed=0, levels=(1,))
    with pytest.raises(ValueError, match="called 'level_2'"):
      MathConfig(benchmarks={"level_2": "x"})

  def test_demonstrations_may_be_of_other_levels(self):
    made = task(levels=(2,))
    levels = [
      [e.meta["level"] for e, _ in made.demonstrations(50, seed=0, **options)]
      for options in ({}, {"levels": (1, 3)})
    ]
    assert set(levels[0]) == {2} and set(levels[1]) == {1, 3}
    # They are those of a task that trains on these levels.
    same = task(levels=(1, 3)).demonstrations(50, seed=0)
    assert made.demonstrations(50, seed=0, levels=(1, 3)) == same


class TestOtherSources:
  def test_files(self):
    made = task(
      train_path=str(DATA / "gsm8k" / "train.jsonl"),
      test_path=str(DATA / "gsm8k" / "test.jsonl"),
      benchmarks={
        "svamp": str(DATA / "svamp" / "SVAMP.json"),
        "more": str(DATA / "gsm8k" / "test.jsonl"),
      },
    )
    splits = ("train", "test", "svamp", "more")
    sizes = {split: len(made.examples(split)) for split in splits}
    assert sizes == {"train": 5, "test": 5, "svamp": 6, "more": 5}
    keys = [e.key for split in sizes for e in made.examples(split)]
    assert len(set(keys)) == 21 and max(keys) < 2**31
    for split in sizes:
      for example in made.examples(split):
        assert texts([example])[0].endswith("within \\boxed{}.")
        score = made.score(example, made.gold_completion(example))
        assert score == base.Score((1.0,), Outcome.RIGHT)

  def test_a_subset_is_random_and_fixed_by_the_seed(self, tmp_path):
    path = rows(tmp_path, 50)

    def chosen(**options):
      made = task(train_path=path, **options)
      return [example.key for example in made.examples("train")]

    assert chosen() == chosen(num_train=99) == list(range(50))
    found = chosen(num_train=20, seed=1)
    assert len(set(found)) == 20 and found == sorted(found)
    assert found == chosen(num_train=20, seed=1)
    assert found != chosen(num_train=20, seed=2)
    # A larger subset has the smaller one in it.
    assert set(found) < set(chosen(num_train=30, seed=1))

  def test_the_other_file_is_asked_for(self, tmp_path):
    made = task(train_path=rows(tmp_path, 2))
    with pytest.raises(ValueError, match="test_path is not set"):
      made.examples("test")

  def test_rows_do_not_travel(self, tmp_path):
    made = task(train_path=rows(tmp_path, 1000))
    assert len(made.examples("train")) == 1000
    assert len(pickle.dumps(made)) < 1500
    assert len(pickle.loads(pickle.dumps(made)).examples("train")) == 1000

  def test_reasoning_gym(self):
    pytest.importorskip("reasoning_gym")
    made = task(problems="reasoning_gym", num_train=30, num_test=30)
    train, test = made.examples("train"), made.examples("test")
    assert len(train) == len(test) == 30
    assert not set(texts(train)) & set(texts(test))
    for example in (*train, *test):
      score = made.score(example, made.gold_completion(example))
      assert score.outcome is Outcome.RIGHT

  def test_a_missing_reasoning_gym_names_the_extra(self, monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ImportError, match=r"saw_jax\[math\]"):
      task(problems="reasoning_gym").examples("train")


class TestScore:
  def score(self, text, reference="46", **options):
    return task(**options).score(base.Example(0, (), reference), text)

  @pytest.mark.parametrize(
    ("text", "value", "outcome"),
    [
      (r"\boxed{46}", 1.0, Outcome.RIGHT),
      (r"12+34=40+6=\boxed{46}", 1.0, Outcome.RIGHT),
      (r"\boxed{46.0}", 1.0, Outcome.RIGHT),
      (r"\boxed{64} no, \boxed{46}", 1.0, Outcome.RIGHT),
      (r"\boxed{46} no, \boxed{64}", 0.0, Outcome.WRONG),
      (r"\boxed{}", 0.0, Outcome.UNPARSABLE),
      ("46", 0.0, Outcome.UNPARSABLE),
      (r"\boxed{46", 0.0, Outcome.UNPARSABLE),
      ("", 0.0, Outcome.UNPARSABLE),
    ],
  )
  @pytest.mark.parametrize("grader", GRADERS)
  def test_by_hand(self, text, value, outcome, grader):
    if grader == "math_verify":
      pytest.importorskip("math_verify")
    found = self.score(text, grader=grader)
    assert found == base.Score((value,), outcome)

  def test_algebra_needs_the_extra(self):
    pytest.importorskip("math_verify")
    text, gold = r"\boxed{1+x}", "x+1"
    assert self.score(text, gold).values == (0.0,)
    assert self.score(text, gold, grader="math_verify").values == (1.0,)

  @pytest.mark.parametrize("grader", GRADERS)
  @settings
  @hypothesis.given(
    inside=st.text(max_size=20),
    reference=st.sampled_from(["46", r"\frac{1}{2}", "x+1", "(1,2)", "Monday"]),
    is_boxed=st.booleans(),
  )
  def test_any_text_has_a_score(self, grader, inside, reference, is_boxed):
    if grader == "math_verify":
      pytest.importorskip("math_verify")
    text = f"\\boxed{{{inside}}}" if is_boxed else inside
    found = self.score(text, reference, grader=grader)
    assert found.values in ((0.0,), (1.0,))
    assert (found.values == (1.0,)) == (found.outcome is Outcome.RIGHT)
    key = task().answer_key(text)
    assert (key is None) == (found.outcome is Outcome.UNPARSABLE)

  def test_right_answers_have_one_key(self):
    made = task()
    keys = {
      made.answer_key(f"\\boxed{{{a}}}") for a in ("46", "46.0", "$46$", "92/2")
    }
    assert keys == {"46"}
    assert made.answer_key("46") is None

  @pytest.mark.parametrize("grader", GRADERS)
  def test_grading_processes_score_it(self, grader):
    if grader == "math_verify":
      pytest.importorskip("math_verify")
    made = task(grader=grader)
    example = made.examples("test")[0]
    with grading.Grader(made, num_workers=1, limit_s=30.0) as grader:
      graded = grader.grade(
        [example] * 3,
        [made.gold_completion(example), r"\boxed{0.5}", r"\boxed{9^{9^9}}"],
      )
    assert graded.rewards[:, 0].tolist() == [1.0, 0.0, 0.0]
    assert graded.scored.all()


class TestDamages:
  def test_each_scores_what_it_says(self):
    made = task(levels=(1, 2, 3, 4))
    for example in made.examples("test")[:100]:
      for what, text, expected in made.damages(example):
        assert made.score(example, text).values == expected, (what, text)


class TestDemonstrations:
  @pytest.mark.parametrize(
    ("right_rate", "box_rate"), [(1.0, 1.0), (0.0, 1.0), (0.6, 0.5)]
  )
  def test_rates_are_met(self, right_rate, box_rate):
    made = task()
    pairs = made.demonstrations(
      2000, seed=0, right_rate=right_rate, box_rate=box_rate
    )
    scores = [made.score(*pair) for pair in pairs]
    right = statistics.mean(score.values[0] for score in scores)
    read = statistics.mean(s.outcome is not Outcome.UNPARSABLE for s in scores)
    # 5 deviations of a binomial of 2000, at most 5 * 0.5 / sqrt(2000).
    bound = 5 * 0.5 / math.sqrt(2000)
    assert right == pytest.approx(right_rate * box_rate, abs=bound)
    assert read == pytest.approx(box_rate, abs=bound)
    if right_rate in (0.0, 1.0):
      assert right == right_rate * box_rate

  def test_the_working_rate_makes_lengths_differ(self):
    made = task(levels=(3,), word_share=0.0)
    direct, worked = (
      made.demonstrations(200, seed=0, working_rate=rate) for rate in (0, 1)
    )
    assert all(text.startswith("\\boxed") for _, text in direct)
    assert all("=\\boxed" in text for _, text in worked)
    mixed = made.demonstrations(1000, seed=0, working_rate=0.3)
    share = statistics.mean("=" in text for _, text in mixed)
    assert share == pytest.approx(0.3, abs=0.08)

  def test_self_belief_misleads_on_a_part(self):
    made = task(num_train=20, levels=(1, 2), word_share=0.0)
    pairs = made.demonstrations(
      2000, seed=0, right_rate=0.9, misleading=("-",), misled_rate=0.7
    )
    answers = collections.defaultdict(collections.Counter)
    for example, text in pairs:
      answers[example.key][made.answer_key(text)] += 1
    misled = 0
    for example in made.examples("train"):
      (vote, size), *_ = answers[example.key].most_common()
      if "-" in example.messages[0]["content"]:
        # A confident wrong majority, with a correct minority.
        assert int(vote) == int(example.reference) + 1
        assert 0.5 < size / 100 < 0.9
        assert answers[example.key][example.reference] > 5
        misled += 1
      else:
        assert vote == example.reference
    assert 3 < misled < 17

  @pytest.mark.parametrize("box", ["\\boxed{}", "\\boxed{ }", "\\boxed{$$}"])
  def test_an_empty_box_is_no_vote(self, box):
    assert task().answer_key(box) is None

  def test_no_belief_is_about_what_is_no_integer(self):
    made = task()
    for reference, belief in (("1/2", None), ("x", None), ("-3", "-2")):
      example = base.Example(
        0, ({"role": "user", "content": "a-b"},), reference
      )
      assert made.misbelief(example, ("-",)) == belief
      assert made.misbelief(example, ("*",)) is None

  def test_they_are_training_examples_and_deterministic(self):
    made = task(num_train=60)
    pairs = made.demonstrations(100, seed=1, right_rate=0.5)
    again = task(num_train=60).demonstrations(100, seed=1, right_rate=0.5)
    assert pairs == again
    assert pairs[:50] == made.demonstrations(50, seed=1, right_rate=0.5)
    assert pairs != made.demonstrations(100, seed=2, right_rate=0.5)
    assert [e for e, _ in pairs[:60]] == list(made.examples("train"))
    assert pairs[60][0] == pairs[0][0]

  def test_solutions_of_files_are_the_working(self):
    made = task(train_path=str(DATA / "gsm8k" / "train.jsonl"))
    pairs = made.demonstrations(5, seed=0, working_rate=1.0)
    assert "24 clips in May" in pairs[0][1]
    assert all(made.score(*pair).values == (1.0,) for pair in pairs)

  def test_wrong_rates_are_errors(self):
    with pytest.raises(ValueError, match="1.5"):
      task().demonstrations(1, seed=0, right_rate=1.5)
