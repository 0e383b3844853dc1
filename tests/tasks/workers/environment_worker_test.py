"""Tests of saw_jax/tasks/workers/environment_worker.py, in this process."""

import pytest

from saw_jax.tasks.environments import EngineLost
from saw_jax.tasks.workers.environment_worker import Command, Host, failed
from tests.tasks.misbehaving_environments import CounterTask


@pytest.fixture
def host():
  made = Host(CounterTask(), max_chars=8)
  made.answer(Command(3, "train", 7))
  return made


def test_slots_are_apart_and_an_environment_is_made_once(host):
  env = host._slots[3][1]
  assert host.answer(Command(4, "train", 1)).observation == "world 1"
  assert host.answer(Command(3, action="count")).observation == "7 at 1"
  assert host.answer(Command(4, action="count")).observation == "1 at 1"
  assert host.answer(Command(3, "train", 2)).observation == "world 2"
  assert host._slots[3][1] is env
  host.answer(Command(3, "test", 2))
  assert host._slots[3][1] is not env


def test_what_is_long_is_cut_and_actions_are_left_out_whole(host):
  found = host.answer(Command(3, action="enormous"))
  assert found.observation == "x" * 8
  # "count" has 5 letters, and "stop" would make it 9.
  assert found.actions == ("count",)


@pytest.mark.parametrize(
  ("action", "words"),
  [
    ("raise", "ValueError: boom"),
    ("nan", "its reward is nan"),
    ("no text", "its observation is a NoneType"),
  ],
)
def test_what_goes_wrong_ends_the_episode_and_says_why(host, action, words):
  found = host.answer(Command(3, action=action))
  assert words in found.failure
  assert found == failed(found.failure)
  assert found.done and found.reward == 0


def test_a_lost_engine_is_no_failure_of_one_episode(host):
  with pytest.raises(EngineLost, match="is gone"):
    host.answer(Command(3, action="lose"))


def test_a_slot_that_was_never_started_is_a_failure(host):
  assert "KeyError" in host.answer(Command(9, action="count")).failure
