"""Questions for labels, and what counts as an answer."""

import dataclasses

import hypothesis
import pytest
from hypothesis import strategies as st

from saw_jax.annotate import questions
from saw_jax.tasks.knights.task import KnightsConfig, KnightsTask
from saw_jax.tasks.math.task import MathConfig, MathTask

KNIGHTS, MATH = KnightsTask(), MathTask()
PUZZLE = KNIGHTS.examples("train")[0]  # of ann, bob and cat
PROBLEM = MATH.examples("train")[0]
FORMS = ("text", "integer", "math", "roles ann bob")


def ask(task, example, completions):
  return questions.make_question(task, example, completions, step=4, seed=2)


class TestMakeQuestion:
  def test_by_hand(self):
    right = "<answer>ann=knave|bob=knave|cat=knave</answer>"
    other = "<answer>ann=knight|bob=knave|cat=knave</answer>"
    third = "<answer>ann=knave|bob=knight|cat=knave</answer>"
    texts = ["?", other, f"so {right}", third, right, "??"]
    asked = ask(KNIGHTS, PUZZLE, texts)
    assert asked.clusters == (
      ("ann=knave|bob=knave|cat=knave", 2, f"so {right}"),
      ("ann=knight|bob=knave|cat=knave", 1, other),  # the first of its size
      ("ann=knave|bob=knight|cat=knave", 1, third),
      (None, 2, "?"),
    )
    assert (asked.prompt_id, asked.step, asked.seed) == (PUZZLE.key, 4, 2)
    assert asked.text == PUZZLE.messages[0]["content"]
    assert asked.form == "roles ann bob cat"

  @pytest.mark.parametrize(
    ("task", "wrong"),
    [(KNIGHTS, "ann=knight|bob=knight|cat=knight"), (MATH, "123456")],
  )
  def test_it_holds_nothing_of_the_truth(self, task, wrong):
    # The question is the same whatever the reference says.
    example, other = task.examples("train")[:2]
    texts, lie = [task.gold_completion(other), "?"], task.with_label
    assert example.reference != wrong
    assert ask(task, example, texts) == ask(task, lie(example, wrong), texts)

  def test_several_messages_say_whose_they_are(self):
    said = {"system": "Be brief.", "user": "1+1"}
    messages = tuple({"role": r, "content": c} for r, c in said.items())
    example = dataclasses.replace(PROBLEM, messages=messages)
    assert ask(MATH, example, ["2"]).text == "system: Be brief.\n\nuser: 1+1"


class TestParseLabel:
  @pytest.mark.parametrize(
    ("form", "text", "label"),
    [
      ("text", "  any thing ", "any thing"),
      ("integer", "-07", "-7"),
      ("integer", "1,234", "1234"),
      ("integer", "6/3", "2"),
      ("math", r"\boxed{\frac{2}{4}}", "1/2"),
      ("math", "1.50", "3/2"),
      ("math", "[0, 1)", "[0,1)"),
      ("math", r"2 \sqrt{3}", r"2\sqrt{3}"),
      ("roles ann bob", "ann=knight|bob=knave", "ann=knight|bob=knave"),
      ("roles ann bob", "Bob = knave; Ann = knight", "ann=knight|bob=knave"),
      ("roles b a", "A is a knave and B is a knight.", "a=knave|b=knight"),
    ],
  )
  def test_by_hand(self, form, text, label):
    assert questions.parse_label(form, text) == label

  @pytest.mark.parametrize(
    ("form", "text"),
    [
      ("roles ann bob", "ann=knight"),
      ("roles ann bob", "ann=knight|bob=knave|eve=knave"),
      ("roles ann bob", "ann=knight|bob=knave|bob=knight"),
      ("roles ann bob", "Ann is a knave, Bob is not a knave"),
      ("roles ann bob", "ann=knight|bob=wizard"),
      *(("integer", text) for text in ("seven", "7.5", "1 2")),
      *(("math", text) for text in ("no idea", "???", r"\frac{1}{2")),
      ("math", r"\boxed{1"),
    ],
  )
  def test_what_is_none(self, form, text):
    with pytest.raises(ValueError, match="This is not "):
      questions.parse_label(form, text)

  @pytest.mark.parametrize("form", FORMS)
  @pytest.mark.parametrize(
    ("text", "message"),
    [
      (" \n ", "The answer is empty: expected "),
      ("7" * 1001, "has 1001 characters, more than 1000: expected "),
      ("7\u202e8", r"invisible character U\+202E: expected "),
      ("7\n8", r"U\+000A"),
      ("7\ud8008", r"U\+D800"),
    ],
  )
  def test_what_no_form_takes(self, form, text, message):
    with pytest.raises(ValueError, match=message):
      questions.parse_label(form, text)

  def test_an_unknown_form_names_the_nearest_one(self):
    with pytest.raises(ValueError, match="did you mean 'integer'"):
      questions.describe_form("intger")

  @hypothesis.settings(max_examples=150)
  @hypothesis.given(
    st.sampled_from(FORMS),
    st.text() | st.text("0123456789.,/-+()[]{}=|\\ abkn", max_size=12),
  )
  def test_a_label_parses_to_itself(self, form, text):
    try:
      label = questions.parse_label(form, text)
    except ValueError as error:
      assert len(str(error)) < 300
      return
    assert questions.parse_label(form, label) == label

  def test_the_references_of_both_tasks_are_labels(self):
    many = KnightsConfig(people=(2, 8), shuffle_names=True)
    hard = MathConfig(levels=(3, 4))
    for task in (KNIGHTS, KnightsTask(many), MATH, MathTask(hard)):
      for example in task.examples("train")[:50]:
        form = task.label_form(example)
        label = questions.parse_label(form, example.reference)
        assert label == task.answer_key(task.gold_completion(example), example)
