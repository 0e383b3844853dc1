"""The vocabulary of tasks."""

import pytest

from saw_jax.tasks import base
from saw_jax.tasks.base import Component, Outcome


def test_outcomes_and_examples():
  unscored = {outcome for outcome in Outcome if not outcome.scored}
  assert unscored == {Outcome.TIMED_OUT, Outcome.CRASHED}
  # Names in files are the members' own.
  assert all(outcome.value == outcome.name.lower() for outcome in Outcome)
  first, second = base.Example(0, (), ""), base.Example(1, (), "")
  assert first.meta is not second.meta
  with pytest.raises(AttributeError):
    first.key = 1


@pytest.mark.parametrize(
  ("word", "choices", "said"),
  [
    ("gdop", ["grpo", "saw", "gdpo"], "'gdpo'? Choices: gdpo, grpo, saw"),
    ("xyz", ["b", "a"], "? Choices: a, b"),  # like none of them
    ("xyz", [], "there are none"),
  ],
)
def test_the_nearest_choice_comes_first_and_all_are_listed(word, choices, said):
  assert base.nearest(word, choices).endswith(said)


@pytest.mark.parametrize(
  ("limits", "found"),
  [({"b": 1}, {1: 1}), ({}, {}), ({"c": 1}, "'c'"), ({"b": 0}, "'b'")],
)
def test_token_limits_are_by_index(limits, found):
  class Task:
    components = (Component("a", 0.0, 1.0), Component("b", 0.0, 1.0))
    token_limits = limits

  if isinstance(found, dict):
    assert base.token_limits(Task()) == found
  else:
    with pytest.raises(ValueError, match=found):
      base.token_limits(Task())
