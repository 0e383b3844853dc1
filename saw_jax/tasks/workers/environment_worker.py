"""What runs in a process of environments: play many of them, one command each.

A process of its own, as those of the graders: an environment may hang, crash or
eat its memory, and what a policy writes to it is hostile.
"""

import contextlib
import math
import numbers
import os
import pickle
import sys
import time
from collections.abc import Iterator
from multiprocessing import connection
from typing import NamedTuple

from saw_jax.tasks import environments
from saw_jax.tasks.environments import Situation
from saw_jax.tasks.workers import worker

_EXCERPT = 200
_SILENCE_S = 0.05  # answers are sent together, but not later than this


class Command(NamedTuple):
  """What one environment is asked: to start an episode, or to take a step."""

  slot: int
  split: str = ""  # of an episode to start
  seed: int = 0
  action: str | None = None  # None: start the episode


class Host:
  """Environments by slot; one is made when its slot is first used."""

  def __init__(self, task: environments.AgentTask, max_chars: int):
    """Makes nothing yet.

    Args:
      task: makes the environments.
      max_chars: longest observation that is passed on, and longest list of
        actions; what is longer is cut.
    """
    self._task, self._max_chars = task, max_chars
    self._slots: dict[int, tuple[str, environments.Environment]] = {}

  def answer(self, command: Command) -> Situation:
    """Carries a command out.

    Args:
      command: for one slot.

    Returns:
      Where the episode stands then. Whatever the environment does wrong is a
      `failure`, and the episode is over.

    Raises:
      EngineLost: other episodes may have been lost with this one.
    """
    try:
      return self._answer(command)
    except environments.EngineLost:
      raise
    except Exception as error:
      text = f"{type(error).__name__}: {error}"[:_EXCERPT]
      return failed(text)

  def _answer(self, command: Command) -> Situation:
    if command.action is None:
      split, env = self._slots.get(command.slot, ("", None))
      if env is None or split != command.split:
        env = self._task.make(command.split)
        self._slots[command.slot] = (command.split, env)
      observation, reward, done = env.reset(command.seed), 0.0, False
    else:
      env = self._slots[command.slot][1]
      observation, reward, done = env.step(command.action)
    if not isinstance(observation, str):
      return failed(f"its observation is a {type(observation).__name__}")
    if not isinstance(reward, numbers.Real) or not math.isfinite(reward):
      return failed(f"its reward is {reward!r}"[:_EXCERPT])
    actions, left = [], self._max_chars
    for action in env.admissible_actions:
      left -= len(action)
      if left < 0:
        break
      actions.append(action)
    return Situation(
      env.task[: self._max_chars],
      observation[: self._max_chars],
      tuple(actions),
      float(reward),
      bool(done),
    )


def failed(why: str) -> Situation:
  """Makes the situation of an episode whose environment failed.

  Args:
    why: what went wrong.

  Returns:
    The situation; the episode is over.
  """
  return Situation("", "", (), 0.0, True, why)


def serve(handle: int) -> None:
  """Answers requests on a socket until its other end is closed.

  The first message is the pickled task with the longest observation. Each other
  one is whether every answer is wanted at once, and a list of commands; answers
  come in order, in lists.

  Args:
    handle: the file descriptor.
  """
  worker.settle()
  pipe = connection.Connection(handle)
  host = None
  for message in _messages(pipe):
    if host is None:
      try:
        host = Host(*pickle.loads(message))
      except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")
        return
      pipe.send(None)
      continue
    eager, commands = pickle.loads(message)
    ready, since = [], time.monotonic()
    for command in commands:
      try:
        ready.append(host.answer(Command(*command)))
      except environments.EngineLost as error:
        sys.exit(f"worker {os.getpid()} leaves: {error}")
      if eager or time.monotonic() - since > _SILENCE_S:
        pipe.send(ready)
        ready, since = [], time.monotonic()
    if ready:
      pipe.send(ready)


def _messages(pipe: connection.Connection) -> Iterator[bytes]:
  with contextlib.suppress(EOFError, ConnectionError):
    while True:
      yield pipe.recv_bytes()
