"""Tests of saw_jax/tasks/environments.py."""

import hypothesis
import pytest
from hypothesis import strategies as st

from saw_jax.tasks import environments


class TestReadReply:
  def test_the_action_is_lower_case_and_stripped(self):
    reply = environments.read_reply(
      "<think>a</think> <action>\n Go to Bed 1 </action><action>b</action>"
    )
    assert reply == ("go to bed 1", True)

  @pytest.mark.parametrize(
    ("completion", "action"),
    [
      ("", ""),
      ("go to bed 1", ""),
      ("<think>a</think>", ""),
      ("<think>a</think><action>look", ""),
      ("<action>look</action>", "look"),
      ("<think>a<action>look</action>", "look"),
      ("<think>看</think><action>look</action>", "look"),
    ],
  )
  def test_what_is_invalid(self, completion, action):
    assert environments.read_reply(completion) == (action, False)

  @hypothesis.given(st.text())
  def test_it_never_raises(self, completion):
    environments.read_reply(completion)


class TestNumberAnchors:
  def test_equal_texts_share_a_number(self):
    found = environments.number_anchors(["b", "a", "b", "c", "a"])
    assert found == [0, 1, 0, 2, 1]

  def test_similar_texts_join_the_first_that_is_like_them(self):
    texts = ["aaaaaaaaaa", "aaaaaaaaab", "aaaaaaaabb", "zzzzzzzzzz"]
    # The third is like the second, and not like the first, which it is
    # compared with.
    found = environments.number_anchors(texts, similarity=0.9)
    assert found == [0, 0, 1, 2]
    assert environments.number_anchors(texts) == [0, 1, 2, 3]

  def test_of_nothing(self):
    assert environments.number_anchors([]) == []
