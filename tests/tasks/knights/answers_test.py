"""Tests of saw_jax/tasks/knights/answers.py."""

import json
import pathlib
import time

import hypothesis
import pytest
from hypothesis import strategies as st

from saw_jax.tasks.knights import answers

GOLDEN = json.loads(
  (pathlib.Path(__file__).parents[2] / "golden" / "rlavr_care.json").read_text()
)["kk_reward"]
TRUTH = GOLDEN["ground_truth"]["solution_text_format"]
PARTS = st.sampled_from(
  ["<answer>", "</answer>", "<ANSWER>", "ann", "Bob", "=", "|", "knight"]
  + ["knave", " is a ", " are ", " not ", "\n", "\x00", "é", "İ", "<"]
)


class TestGolden:
  @pytest.mark.parametrize("case", GOLDEN["cases"])
  def test_rewards(self, case):
    found = answers.reward(case["response"], TRUTH)
    assert found == case["score"]
    assert (found == answers.RIGHT) == case["acc"]

  @pytest.mark.parametrize("case", GOLDEN["cases"])
  def test_canonical_answers(self, case):
    truth = answers.read_roles(TRUTH)
    assert answers.canonical(truth) == case["extracted_gt"]
    answer = answers.extract_answer(case["response"])
    roles = answers.read_roles(answer) if answer else {}
    assert (answers.canonical(roles, truth) or "") == case["pred"]

  @pytest.mark.parametrize("case", GOLDEN["pseudo_label_ground_truth_cases"])
  def test_a_vote_may_be_the_truth(self, case):
    found = answers.reward(case["response"], case["ground_truth"])
    assert found == case["score"]


class TestExtract:
  @pytest.mark.parametrize(
    ("text", "answer"),
    [
      ("<answer>a</answer><answer>b</answer>", "b"),
      ("<answer>a<answer>b</answer>", "a<answer>b"),
      ("</answer><answer>a\nb</answer></answer>", "a\nb"),
      ("<Answer> a </ANSWER>", "a"),
      ("<answer>a</answer><answer>", "a"),
      ("<answer>a</answer><answer> </answer>", None),
      ("<answer></answer>", None),
      ("<answer>a", None),
      ("answer: a", None),
    ],
  )
  def test_the_last_block(self, text, answer):
    assert answers.extract_answer(text) == answer


class TestRead:
  @pytest.mark.parametrize(
    ("text", "roles"),
    [
      ("ann=knight|bob=knave", "knight knave"),
      (" Ann = KNIGHT | bob=knave ", "knight knave"),
      ("(1) Ann is a knight\n(2) Bob is a knave", "knight knave"),
      ("Ann is knight and Bob are an knave.", "knight knave"),
      ("Ann is a knave. Bob is a knave. Ann is a knight.", "knight knave"),
      # One part that is no pair: read as sentences, of which there are none.
      ("ann=knight|bob", ""),
      ("ann=knight, bob=knave", ""),
      ("Ann: knight, Bob: knave", ""),
      ("Ann is not a knave", ""),
      ("both Ann and Bob are knights", ""),
      ("Ann is a knightly person", ""),
    ],
  )
  def test_two_people(self, text, roles):
    expected = dict(zip(("ann", "bob"), roles.split(), strict=False))
    assert answers.read_roles(text) == expected

  def test_names_with_marks(self):
    roles = answers.read_roles("O'Neil is a knight, Mary-Jane is a knave")
    assert roles == {"o'neil": "knight", "mary-jane": "knave"}

  def test_others_are_ignored(self):
    text = "<answer>ann=knight|eve=knave</answer>"
    assert answers.reward(text, "ann=knight") == answers.RIGHT

  def test_nobody_is_no_form(self):
    assert answers.canonical({}) is None
    assert answers.canonical({"ann": "knight"}, ["ann", "bob"]) is None


class TestAnyText:
  @hypothesis.settings(max_examples=300, deadline=None)
  @hypothesis.given(
    st.one_of(st.text(), st.lists(PARTS, max_size=30).map("".join)),
    st.one_of(st.just("ann=knight|bob=knave"), st.just("None"), st.text()),
  )
  def test_it_has_one_of_four_rewards(self, text, reference):
    value = answers.reward(text, reference)
    assert value in (-3.0, -1.0, -0.5, 3.0)

  @pytest.mark.parametrize(
    "text",
    ["<answer>" * 20_000, "a" * 100_000, "a " * 50_000, "ann is a " * 20_000]
    + ["a=|" * 30_000, " " * 100_000, "a=" + " " * 100_000],
  )
  def test_long_texts_take_little_time(self, text):
    start = time.perf_counter()
    answers.reward(f"<answer>{text}</answer>", "ann=knight")
    assert time.perf_counter() - start < 5  # seconds; milliseconds in truth
