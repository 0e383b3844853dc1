"""Tests of workers/processes.py; grading and pools test it in use."""

import pickle

import pytest

from saw_jax.tasks.workers import processes
from saw_jax.tasks.workers.environment_worker import Command
from tests.tasks.misbehaving_environments import CounterTask


@pytest.fixture
def process():
  made = processes.Process(
    "saw_jax.tasks.workers.environment_worker",
    pickle.dumps((CounterTask(), 50)),
  )
  yield made
  made.stop()


def test_it_answers_until_it_is_stopped(process):
  assert process.problem() is None and process.is_alive()
  process.pipe.send((False, [tuple(Command(0, "train", 5))]))
  assert process.pipe.poll(30)
  assert process.pipe.recv()[0].observation == "world 5"
  assert process.stop() == -9  # SIGKILL
  assert not process.is_alive()


def test_a_greeting_that_cannot_be_read_is_a_sentence():
  made = processes.Process(
    "saw_jax.tasks.workers.environment_worker", b"nonsense"
  )
  assert "UnpicklingError" in made.problem()
  made.stop()


def test_a_process_that_does_not_come_up_says_how_it_ended():
  made = processes.Process("saw_jax.tasks.no_such_module", b"")
  assert made.problem() == "its process died, exit code 1"
  made.stop()
