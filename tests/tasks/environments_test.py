"""Tests of saw_jax/tasks/environments.py; tasks are in text_tasks_test.py."""

import pytest

from saw_jax.tasks.environments import AgentTask, number_anchors


@pytest.mark.parametrize(
  ("completion", "reply"),
  [
    (
      "<think>a</think> <action>\n Go to Bed 1 </action><action>b</action>",
      ("go to bed 1", True),
    ),
    ("", ("", False)),
    ("go to bed 1", ("", False)),
    ("<think>a</think><action>look", ("", False)),
    ("<action>look</action>", ("look", False)),
    ("<think>a<action>look</action>", ("look", False)),
    ("<think>看</think><action>look</action>", ("look", False)),
  ],
)
def test_the_first_action_is_read_and_the_form_checked(completion, reply):
  assert AgentTask().read_reply(completion) == reply


@pytest.mark.parametrize(
  ("texts", "similarity", "numbers"),
  [
    ([], 1.0, []),
    ("babca", 1.0, [0, 1, 0, 2, 1]),
    # The third is like the second, and not like the first, which it is
    # compared with.
    (["a" * 10, "a" * 9 + "b", "a" * 8 + "bb", "z" * 10], 0.9, [0, 0, 1, 2]),
    (["a" * 10, "a" * 9 + "b", "a" * 8 + "bb", "z" * 10], 1.0, [0, 1, 2, 3]),
  ],
)
def test_texts_that_are_alike_share_a_number(texts, similarity, numbers):
  assert number_anchors(texts, similarity=similarity) == numbers
