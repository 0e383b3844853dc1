"""Tests of saw_jax/tasks/self_verification.py."""

import pytest

from saw_jax.tasks import self_verification
from tests.helpers import golden

BY_HAND = [
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
]
CASES = golden("rlavr_care")["self_verify_parse"]
CARE = [(case["text"], case["score"]) for case in CASES]


@pytest.mark.parametrize(("text", "reward"), BY_HAND + CARE)
def test_verdicts(text, reward):
  assert self_verification.read_verdict(text) == reward


@pytest.mark.parametrize("task", self_verification.TASKS)
def test_a_prompt_holds_what_was_asked_and_answered(task):
  question, solution = "What is {x}\n+ 1?", r"\boxed{{2}} {0}"
  (message,) = self_verification.ask(task, question, solution)
  text = message["content"]
  assert text.count(f"Question:\n{question}\n") == 1
  assert text.endswith(f"Solution:\n{solution}\n\nResult:")
  for verdict in (r"\boxed{True}", r"\boxed{False}"):
    assert text.count(verdict) == 1
  assert ("knave" in text) == (task == "knights")
  assert [line[:2] for line in text.split("\n")[1:6]] == [
    f"{number}." for number in range(1, 6)
  ]


def test_an_unknown_task_names_the_nearest():
  with pytest.raises(ValueError, match="did you mean 'knights'"):
    self_verification.ask("knight", "q", "s")
