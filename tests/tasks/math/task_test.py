"""The math task: what its properties in answer_task_test.py leave open."""

import pathlib
import statistics
import sys

import pytest

from saw_jax.tasks import base, inspection
from saw_jax.tasks.draws import split_of
from saw_jax.tasks.math.problems import LEVELS
from saw_jax.tasks.math.task import MathConfig, MathTask
from tests.tasks.answer_task_test import texts

DATA = pathlib.Path(__file__).parents[2] / "data"
GSM8K = {s: str(DATA / "gsm8k" / f"{s}.jsonl") for s in ("train", "test")}
Outcome = base.Outcome


def task(**options):
  return MathTask(MathConfig(**options))


def from_gsm8k(**options):
  return task(train_path=GSM8K["train"], test_path=GSM8K["test"], **options)


class TestExamples:
  def test_the_templates(self):
    plain, boxed = (
      task(levels=(1,), word_share=0.0, template=template).examples("train")[0]
      for template in ("", "boxed")
    )
    (text,), (asked,) = texts([plain]), texts([boxed])
    assert text == f"{plain.meta['expression']}="
    assert asked == (
      f"{text}\nPlease reason step by step, and put your final answer within "
      "\\boxed{}."
    )

  def test_each_level_is_a_split_of_held_out_problems(self):
    made = task(levels=(2,), num_test=40)
    assert made.splits == ("train", "test", *(f"level_{n}" for n in LEVELS))
    for level in LEVELS:
      examples = list(made.examples(f"level_{level}"))
      assert {e.meta["level"] for e in examples} == {level}
      assert all(split_of(e.meta["expression"]) == "test" for e in examples)
    # What is trained on does not change them.
    other = task(levels=(1, 3), num_test=40)
    assert list(other.examples("level_2")) == list(made.examples("level_2"))
    # The first keys of level 1, whatever else there is.
    assert made.examples("level_1")[0].key == 2**30 + 2**29 + 2**20

  def test_files_are_asked_with_a_box_and_have_no_levels(self):
    made = from_gsm8k(benchmarks={"svamp": str(DATA / "svamp" / "SVAMP.json")})
    assert made.splits == ("train", "test", "svamp")
    assert [len(made.examples(split)) for split in made.splits] == [5, 5, 6]
    for split in made.splits:
      for example in made.examples(split):
        assert texts([example])[0].endswith("within \\boxed{}.")
    with pytest.raises(ValueError, match="levels"):
      made.demonstrations(3, seed=0, levels=(1,))
    pairs = made.demonstrations(5, seed=0, working_rate=1.0)
    assert "24 clips in May" in pairs[0][1]
    assert all(made.score(*pair).values == (1.0,) for pair in pairs)

  def test_label_forms_and_the_extra(self, monkeypatch):
    example = base.Example(0, (), "5")
    assert task().label_form(example) == "integer"
    assert task(problems="reasoning_gym").label_form(example) == "math"
    assert from_gsm8k().label_form(example) == "math"
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ImportError, match=r"saw_jax\[math\]"):
      task(problems="reasoning_gym").examples("train")


class TestScore:
  @pytest.mark.parametrize("grader", ["exact", "math_verify"])
  def test_by_hand(self, grader):
    if grader == "math_verify":
      pytest.importorskip("math_verify")
    texts = {
      Outcome.RIGHT: [r"\boxed{46}", r"12+34=40+6=\boxed{46}", r"\boxed{46.0}"]
      + [r"\boxed{64} no, \boxed{46}"],
      Outcome.WRONG: [r"\boxed{46} no, \boxed{64}"],
      Outcome.UNPARSABLE: [r"\boxed{}", "46", r"\boxed{46", ""],
    }
    for outcome, text in ((o, text) for o in texts for text in texts[o]):
      found = task(grader=grader).score(base.Example(0, (), "46"), text)
      value = float(outcome is Outcome.RIGHT)
      assert found == base.Score((value,), outcome), text

  def test_right_answers_have_one_key_and_empty_boxes_none(self):
    for inside in ("46", "46.0", "$46$", "92/2"):
      assert task().answer_key(f"\\boxed{{{inside}}}") == "46"
    for text in ("46", r"\boxed{}", r"\boxed{ }", r"\boxed{$$}"):
      assert task().answer_key(text) is None

  @pytest.mark.parametrize("conditioned", [False, True])
  def test_a_short_enough_answer_has_a_second_reward(self, conditioned):
    made = task(length_limit=5, conditioned=conditioned)
    assert [c.name for c in made.components] == ["correct", "length"]
    assert base.token_limits(made) == {1: 5}
    wrong = 0.0 if conditioned else 1.0  # eq. (8) of GDPO
    for text, values, outcome in (
      (r"\boxed{46}", (1.0, 1.0), Outcome.RIGHT),
      (r"\boxed{47}", (0.0, wrong), Outcome.WRONG),
      ("no box", (0.0, wrong), Outcome.UNPARSABLE),
    ):
      found = made.score(base.Example(0, (), "46"), text)
      assert found == base.Score(values, outcome)
    assert base.token_limits(task()) == {}
    examples = made.examples("train")[:9]
    assert inspection.gold_failures(made, examples) == []
    assert inspection.damage_failures(made, examples) == []


class TestDemonstrations:
  def test_the_working_rate_makes_lengths_differ(self):
    made = task(levels=(3,), word_share=0.0)
    direct, worked, mixed = (
      [t for _, t in made.demonstrations(1000, seed=0, working_rate=rate)]
      for rate in (0, 1, 0.3)
    )
    assert all(text.startswith("\\boxed") for text in direct)
    assert all("=\\boxed" in text for text in worked)
    share = statistics.mean("=" in text for text in mixed)
    assert share == pytest.approx(0.3, abs=0.08)

  def test_no_belief_is_about_what_is_no_integer(self):
    made, asked = task(), ({"role": "user", "content": "a-b"},)
    for reference, belief in (("1/2", None), ("x", None), ("-3", "-2")):
      example = base.Example(0, asked, reference)
      assert made.misbelief(example, ("-",)) == belief
      assert made.misbelief(example, ("*",)) is None

  def test_they_may_be_of_other_levels(self):
    made = task(levels=(2,))
    pairs = made.demonstrations(50, seed=0)
    assert {e.meta["level"] for e, _ in pairs} == {2}
    # They are those of a task that trains on these levels.
    same = task(levels=(1, 3)).demonstrations(50, seed=0)
    assert made.demonstrations(50, seed=0, levels=(1, 3)) == same
    assert {e.meta["level"] for e, _ in same} == {1, 3}
