"""The vocabulary of tasks."""

import re

import pytest

from saw_jax.tasks import base
from saw_jax.tasks.base import Outcome


class TestOutcome:
  def test_what_was_read_is_scored_and_what_was_not_is_not(self):
    assert {outcome for outcome in Outcome if not outcome.scored} == {
      Outcome.TIMED_OUT,
      Outcome.CRASHED,
    }

  def test_names_in_files_are_the_members_own(self):
    for outcome in Outcome:
      assert outcome.value == outcome.name.lower()


class TestExample:
  def test_two_examples_share_no_notes(self):
    first, second = base.Example(0, (), ""), base.Example(1, (), "")
    assert first.meta is not second.meta

  def test_is_frozen(self):
    with pytest.raises(AttributeError):
      base.Example(0, (), "").key = 1


class TestNearest:
  def test_the_most_similar_choice_comes_first_and_all_are_listed(self):
    text = base.nearest("gdop", ("grpo", "saw", "gdpo"))
    assert text == "did you mean 'gdpo'? Choices: gdpo, grpo, saw"

  def test_a_word_like_none_of_them_gets_an_answer_too(self):
    assert re.fullmatch(
      r"did you mean '(a|b)'\? Choices: a, b", base.nearest("xyz", ["b", "a"])
    )

  def test_where_there_is_no_choice_it_says_so(self):
    assert base.nearest("xyz", []) == "there are none"


class TestTokenLimits:
  def find(self, **limits):
    class Task:
      components = (
        base.Component("a", 0.0, 1.0),
        base.Component("b", 0.0, 1.0),
      )
      token_limits = limits

    return base.token_limits(Task())

  def test_they_are_by_index(self):
    assert self.find(b=1) == {1: 1}
    assert self.find() == {}

  @pytest.mark.parametrize("limits", [{"c": 1}, {"b": 0}])
  def test_a_limit_that_cannot_be_is_named(self, limits):
    with pytest.raises(ValueError, match=next(iter(limits))):
      self.find(**limits)
