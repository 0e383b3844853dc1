"""What runs in a grading process: score what comes in, one text at a time.

A process of its own, started with `python -c` and a socket: it imports neither
JAX nor the program that started it, and it can be killed at any moment.
"""

import contextlib
import ctypes
import numbers
import pickle
import resource
import signal
import sys
from collections.abc import Iterator, Sequence
from multiprocessing import connection
from typing import NamedTuple

from saw_jax.tasks import base

_EXCERPT = 200
_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
_FLOAT32_MAX = 3.4028234e38


class Result(NamedTuple):
  """The score of one completion, or what went wrong."""

  values: tuple[float | None, ...] = ()
  outcome: base.Outcome = base.Outcome.CRASHED
  exception: str = ""  # The reward function raised: unscored.
  violation: str = ""  # It broke its contract: an error of the whole call.


def score_one(
  task: base.Task, example: base.Example, completion: str
) -> Result:
  """Scores a completion and checks what the reward function returned.

  Args:
    task: what scores.
    example: what was asked.
    completion: the answer.

  Returns:
    The score, or what went wrong; it does not raise.
  """
  try:
    score = task.score(example, completion)
  except Exception as error:
    return Result(exception=f"{type(error).__name__}: {error}"[:_EXCERPT])
  try:
    return _check(task.components, score)
  except Exception as error:
    return Result(violation=f"{type(error).__name__}: {error}"[:_EXCERPT])


def _check(components: Sequence[base.Component], score: base.Score) -> Result:
  if not isinstance(score, base.Score):
    return Result(violation=f"it returned {_show(score)}, not a Score")
  if not isinstance(score.outcome, base.Outcome):
    return Result(violation=f"outcome {_show(score.outcome)} is no Outcome")
  if not isinstance(score.values, (tuple, list)):
    return Result(violation=f"values {_show(score.values)} are no tuple")
  if len(score.values) != len(components):
    return Result(
      violation=f"it returned {len(score.values)} values "
      f"for {len(components)} components"
    )
  values = []
  for component, value in zip(components, score.values, strict=True):
    wrong = ""
    if value is None:
      pass
    elif not isinstance(value, numbers.Real):
      wrong = "not a number"
    elif not abs(value := float(value)) <= _FLOAT32_MAX:
      wrong = "not finite in float32"
    elif not component.minimum <= value <= component.maximum:
      wrong = f"outside [{component.minimum}, {component.maximum}]"
    if wrong:
      return Result(
        violation=f"component {component.name!r} is {_show(value)}, {wrong}"
      )
    values.append(value)
  return Result(tuple(values), score.outcome)


def _show(value: object) -> str:
  return repr(value)[:_EXCERPT]


def serve(handle: int) -> None:
  """Answers requests on a socket until its other end is closed.

  The first message is the pickled task. Each other one is a list of (example,
  completion), also pickled, and is answered with None when it has been read and
  then with a `Result` each, as soon as it is there: what is not answered when
  the process dies tells which text it died of.

  Args:
    handle: the file descriptor.
  """
  settle()
  pipe = connection.Connection(handle)
  for message in _messages(pipe):
    task_bytes, memory_limit_bytes = pickle.loads(message)
    if memory_limit_bytes is not None:
      resource.setrlimit(
        resource.RLIMIT_AS, (memory_limit_bytes, memory_limit_bytes)
      )
    try:
      task = pickle.loads(task_bytes)
    except Exception as error:
      pipe.send(f"{type(error).__name__}: {error}")
      return
    pipe.send(None)
    break
  for message in _messages(pipe):
    pairs = pickle.loads(message)
    del message
    pipe.send(None)
    for example, completion in pairs:
      pipe.send(score_one(task, example, completion))


def settle() -> None:
  """Makes this process one that ends with its parent, and by its will alone."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair.
  _die_with_the_parent()


def _die_with_the_parent() -> None:
  """Has the kernel end this process when the one that started it is killed.

  Between two texts the closed socket does that; inside of one that takes
  forever, nothing else would.
  """
  if sys.platform == "linux":
    with contextlib.suppress(OSError, AttributeError):
      ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _messages(pipe: connection.Connection) -> Iterator[bytes]:
  while True:
    try:
      yield pipe.recv_bytes()
    except (EOFError, ConnectionError):
      return
