"""Tests of saw_jax/tasks/self_verification.py."""

import json
import pathlib

import pytest

from saw_jax.tasks import self_verification

GOLDEN = json.loads(
  (pathlib.Path(__file__).parents[1] / "golden" / "rlavr_care.json").read_text()
)


class TestReadVerdict:
  @pytest.mark.parametrize("case", GOLDEN["self_verify_parse"])
  def test_golden(self, case):
    assert self_verification.read_verdict(case["text"]) == case["score"]

  @pytest.mark.parametrize(
    ("text", "reward"),
    [
      (r"\boxed{true}", 1.0),
      (r"\BOXED{TRUE}", 1.0),
      (r"\boxed{false}", 0.0),
      # An answer that was cut off.
      (r"\boxed{True", 1.0),
      (r"\boxed{False", 0.0),
      # A box counts before words, and True before False.
      (r"It is false, I thought: \boxed{True}", 1.0),
      (r"It is true, I thought: \boxed{False}", 0.0),
      (r"\boxed{True} \boxed{False}", 1.0),
      (r"\boxed{False} \boxed{True}", 1.0),
      # Words.
      ("True.", 1.0),
      ("False.", 0.0),
      (r"\boxed{ False }", 0.0),
      (r"\boxed{yes}", 0.0),
    ],
  )
  def test_by_hand(self, text, reward):
    assert self_verification.read_verdict(text) == reward


class TestPrompt:
  @pytest.mark.parametrize("task", self_verification.TASKS)
  def test_it_holds_what_was_asked_and_answered(self, task):
    question, solution = "What is {x}\n+ 1?", r"\boxed{{2}} {0}"
    text = self_verification.verification_prompt(task, question, solution)
    assert text.count(f"Question:\n{question}\n") == 1
    assert text.endswith(f"Solution:\n{solution}\n\nResult:")
    for verdict in (r"\boxed{True}", r"\boxed{False}"):
      assert text.count(verdict) == 1

  def test_each_task_has_a_wording(self):
    texts = {
      self_verification.verification_prompt(task, "q", "s")
      for task in self_verification.TASKS
    }
    assert len(texts) == 2 == len(self_verification.TASKS)
    text = self_verification.verification_prompt("knights", "q", "s")
    assert "knave" in text and "number" not in text
    assert [line[:2] for line in text.splitlines()[1:6]] == [
      "1.", "2.", "3.", "4.", "5.",
    ]  # fmt: skip

  def test_an_unknown_task_names_the_nearest(self):
    with pytest.raises(ValueError, match="did you mean 'knights'"):
      self_verification.verification_prompt("knight", "q", "s")
