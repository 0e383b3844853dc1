"""What runs in a worker process: a job, item by item.

The process is started with `python -c` and a socket: it imports neither JAX nor
the program that started it, and it can be killed at any moment.
"""

import contextlib
import ctypes
import itertools
import numbers
import os
import pickle
import resource
import signal
import sys
import time
from collections.abc import Iterable
from multiprocessing import connection
from typing import NamedTuple

from saw_jax import naming
from saw_jax.tasks import base, environments
from saw_jax.tasks.environments import Situation

_EXCERPT = 200
_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
_FLOAT32_MAX = 3.4028234e38
_SILENCE_S = 0.05  # answers are sent together, but not later than this


class Result(NamedTuple):
  """The score of one completion, or what went wrong."""

  values: tuple[float | None, ...] = ()
  outcome: base.Outcome = base.Outcome.CRASHED
  exception: str = ""  # The reward function raised: unscored.
  violation: str = ""  # It broke its contract: an error of the whole call.


class Scorer:
  """The job of a grader: scores answers, and checks what the reward gave.

  Attributes:
    takes_many: whether the task scores several at once.
  """

  def __init__(self, task: base.Task):
    self.task = task
    self.takes_many = getattr(task, "score_many", None) is not None

  def __call__(self, pair: tuple[base.Example, str]) -> Result:
    try:
      return _checked(self.task, self.task.score(*pair))
    except Exception as error:
      return Result(exception=_show_error(error))

  def each(self, pairs: list[tuple[base.Example, str]]) -> Iterable[Result]:
    """Scores pairs at once if the task does that, or else one by one."""
    if self.takes_many:
      with contextlib.suppress(Exception):
        return [_checked(self.task, one) for one in self.task.score_many(pairs)]
    return map(self, pairs)


def _checked(task: base.Task, found: base.Score) -> Result:
  try:
    violation = _find_violation(task.components, found)
    if not violation:
      values = (None if v is None else float(v) for v in found.values)
      return Result(tuple(values), found.outcome)
  except Exception as error:
    violation = _show_error(error)
  return Result(violation=violation)


def _find_violation(components, score: base.Score) -> str:
  if not isinstance(score, base.Score):
    return f"it returned {_show(score)}, not a Score"
  if not isinstance(score.outcome, base.Outcome):
    return f"outcome {_show(score.outcome)} is no Outcome"
  if not isinstance(score.values, (tuple, list)):
    return f"values {_show(score.values)} are no tuple"
  if len(score.values) != len(components):
    there, wanted = len(score.values), len(components)
    return f"it returned {there} values for {wanted} components"
  for component, value in zip(components, score.values, strict=True):
    if value is None:
      continue
    if not isinstance(value, numbers.Real):
      wrong = "not a number"
    elif not abs(value) <= _FLOAT32_MAX:
      wrong = "not finite in float32"
    elif not component.minimum <= float(value) <= component.maximum:
      wrong = f"outside [{component.minimum}, {component.maximum}]"
    else:
      continue
    return f"component {component.name!r} is {_show(value)}, {wrong}"
  return ""


class Command(NamedTuple):
  """What one environment is asked: to start an episode, or to take a step."""

  slot: int
  split: str = ""  # of an episode to start
  seed: int = 0
  action: str | None = None  # None: start the episode


class Player:
  """The job of an environment pool: one environment a slot."""

  def __init__(self, task: environments.AgentTask, max_chars: int):
    self._task, self._max_chars = task, max_chars
    self.slots: dict[int, tuple[str, environments.Environment]] = {}

  def __call__(self, command: Command) -> Situation:
    """Returns where the episode stands after a command.

    Whatever the environment does wrong is a `failure`, and the episode is over.
    `EngineLost` comes out: other episodes may have been lost with this one.
    """
    try:
      return self._answer(*command)
    except environments.EngineLost:
      raise
    except Exception as error:
      return Situation(done=True, failure=_show_error(error))

  def each(self, commands: list[Command]) -> Iterable[Situation]:
    return map(self, commands)

  def _answer(self, slot, split, seed, action) -> Situation:
    if action is None and self.slots.get(slot, ("",))[0] != split:
      self.slots[slot] = (split, self._task.make(split))
    env = self.slots[slot][1]
    if action is None:
      observation, reward, done = env.reset(seed), 0.0, False
    else:
      observation, reward, done = env.step(action)
    if not isinstance(observation, str):
      kind = type(observation).__name__
      return Situation(done=True, failure=f"its observation is a {kind}")
    if not (isinstance(reward, numbers.Real) and abs(reward) <= _FLOAT32_MAX):
      return Situation(done=True, failure=f"its reward is {_show(reward)}")
    actions, limit = list(env.admissible_actions), self._max_chars
    sizes = itertools.accumulate(map(len, actions))
    actions = tuple(actions[: sum(size <= limit for size in sizes)])
    texts = (env.task[:limit], observation[:limit], actions)
    return Situation(*texts, float(reward), bool(done))


def serve(handle: int) -> None:
  """Does a job on a socket, until its other end is closed.

  The first message has the pickled job, a memory limit, and the files of the
  modules that the job needs; the answer is None, or what is wrong with it. Each
  later message has items, and whether to answer them one by one. They are
  acknowledged by an empty list, which lists of answers follow.
  """
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair.
  # Have the kernel end this process when the one that started it is killed:
  # between two items the closed socket does that; inside of one that takes
  # for ever, nothing else would.
  if sys.platform == "linux":
    with contextlib.suppress(OSError, AttributeError):
      ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
  pipe = connection.Connection(handle)
  with contextlib.suppress(EOFError, ConnectionError):
    job_bytes, memory_limit_bytes, files = pipe.recv()
    if memory_limit_bytes is not None:
      resource.setrlimit(resource.RLIMIT_AS, (memory_limit_bytes,) * 2)
    try:
      for name, path in files.items():
        module = naming.load_file(path, name=name)
        if name == naming.SCRIPT:
          sys.modules["__main__"] = module
      job = pickle.loads(job_bytes)
    except Exception as error:
      pipe.send(f"{type(error).__name__}: {error}")
      return
    pipe.send(None)
    while True:
      eager, items = pipe.recv()
      pipe.send([])
      ready, since = [], time.monotonic()
      try:
        for answer in job.each(items):
          ready.append(answer)
          if eager or time.monotonic() - since > _SILENCE_S:
            pipe.send(ready)
            ready, since = [], time.monotonic()
      except environments.EngineLost as error:
        sys.exit(f"worker {os.getpid()} leaves: {error}")
      if ready:
        pipe.send(ready)


def _show(value: object) -> str:
  return repr(value)[:_EXCERPT]


def _show_error(error: Exception) -> str:
  return f"{type(error).__name__}: {error}"[:_EXCERPT]
