"""Grading in worker processes, under a hard time limit.

Text that a policy wrote is hostile input to a reward function: a pattern may
take for ever, a parser may overflow the stack, a sandbox may kill its process.
Here such a text costs at most the limit, and it alone goes unscored.
"""

import atexit
import collections
import contextlib
import dataclasses
import logging
import pickle
import threading
import time
import weakref
from collections.abc import Sequence
from multiprocessing import connection

import numpy as np

from saw_jax.tasks import base
from saw_jax.tasks.workers import processes, worker

_LOG = logging.getLogger(__name__)
_MAX_CHUNK = 32
_START_LIMIT_S = processes.START_LIMIT_S


class RewardError(ValueError):
  """A reward function broke its contract; the message names it."""


@dataclasses.dataclass(frozen=True)
class Graded:
  """The rewards of N completions, in their order.

  Attributes:
    rewards: float32 `[N, M]`; 0 where unscored.
    scored: bool `[N, M]`; False where there is no reward.
    outcomes: one of each completion.
  """

  rewards: np.ndarray
  scored: np.ndarray
  outcomes: tuple[base.Outcome, ...]

  @property
  def outcome_counts(self) -> dict[str, int]:
    """How often each outcome occurred; all five are there."""
    counts = collections.Counter(self.outcomes)
    return {outcome.value: counts[outcome] for outcome in base.Outcome}


class Grader:
  """Scores completions with a task's reward; a context manager.

  Attributes:
    token_limits: the most tokens of a response by index of a component; what
      depends on it is scored here as if the response kept to it.

  >>> with Grader(task, num_workers=2, limit_s=5.0) as grader:  # doctest: +SKIP
  ...   graded = grader.grade(examples, completions)
  """

  def __init__(
    self,
    task: base.Task,
    *,
    num_workers: int,
    limit_s: float,
    crash_tolerance: float = 0.1,
    memory_limit_bytes: int | None = None,
  ):
    """Starts the workers.

    Args:
      task: what scores. Its class is defined in an importable module, not in a
        script or a notebook, or `num_workers` is 0.
      num_workers: processes. With 0 the task scores in this process, without
        any protection: no time limit, and a crash is a crash.
      limit_s: most seconds that one completion may take.
      crash_tolerance: largest share of a call's completions that the reward
        function may crash on; with 0 the first crash is an error.
      memory_limit_bytes: most address space of a worker.

    Raises:
      RewardError: a worker cannot load the task.
    """
    if num_workers < 0:
      raise ValueError(f"num_workers is negative: {num_workers}.")
    if not limit_s > 0:
      raise ValueError(f"limit_s is not positive: {limit_s}.")
    if not 0 <= crash_tolerance <= 1:
      raise ValueError(f"crash_tolerance is not a share: {crash_tolerance}.")
    self.token_limits = base.token_limits(task)
    self._task = task
    self._limit_s = limit_s
    self._crash_tolerance = crash_tolerance
    self._lock = threading.Lock()
    self._closed = False
    self._workers: list[_Worker] = []
    if num_workers:
      self._greeting = pickle.dumps((pickle.dumps(task), memory_limit_bytes))
    _OPEN.add(self)
    try:
      # Start them all before waiting for the first.
      for _ in range(num_workers):
        self._workers.append(_Worker(self._greeting))
      for one in self._workers:
        one.wait_until_ready(task.name)
    except BaseException:
      self.close()
      raise

  def __enter__(self) -> "Grader":
    return self

  def __exit__(self, *exc_info: object) -> None:
    self.close()

  def close(self) -> None:
    """Ends the workers; safe to call twice."""
    self._closed = True
    for one in self._workers:
      one.stop()
    self._workers = []
    _OPEN.discard(self)

  def grade(
    self, examples: Sequence[base.Example], completions: Sequence[str]
  ) -> Graded:
    """Scores each completion as an answer to the example beside it.

    Args:
      examples: N examples.
      completions: N texts; an empty one is a text.

    Returns:
      The rewards, with a mask over those that could not be scored.

    Raises:
      RewardError: a reward is not one finite number per component within its
        range, or the reward function crashed too often.
    """
    if len(examples) != len(completions):
      raise ValueError(
        f"{len(examples)} examples and {len(completions)} completions."
      )
    pairs = list(zip(examples, completions, strict=True))
    with self._lock:
      if self._closed:
        raise ValueError("the grader is closed.")
      if self._workers:
        results = self._score_in_workers(pairs)
      else:
        results = [worker.score_one(self._task, *pair) for pair in pairs]
    self._raise_and_warn(pairs, results)
    values = [r.values or (None,) * len(self._task.components) for r in results]
    is_scored = [
      [value is not None and result.outcome.scored for value in row]
      for row, result in zip(values, results, strict=True)
    ]
    shape = (len(pairs), len(self._task.components))
    scored = np.array(is_scored, dtype=bool).reshape(shape)
    rewards = np.array(
      [[value or 0.0 for value in row] for row in values], dtype=np.float32
    ).reshape(shape)
    return Graded(
      rewards=np.where(scored, rewards, np.float32(0.0)),
      scored=scored,
      outcomes=tuple(result.outcome for result in results),
    )

  def _raise_and_warn(self, pairs, results: list[worker.Result]) -> None:
    """Reports what the reward function did wrong."""

    def where(index: int) -> str:
      example, completion = pairs[index]
      return (
        f"the reward of task {self._task.name!r} on example {example.key}, "
        f"completion {completion[:80]!r}"
      )

    raised = []
    for index, result in enumerate(results):
      if result.violation:
        raise RewardError(f"{where(index)}: {result.violation}.")
      # A score that says CRASHED itself is no bug: somebody else failed.
      if result.exception:
        raised.append(index)
        _LOG.warning("%s: unscored, %s", where(index), result.exception)
    if len(raised) > self._crash_tolerance * len(results):
      first = raised[0]
      raise RewardError(
        f"{where(first)}: {results[first].exception}. {len(raised)} of "
        f"{len(results)} crashed; at most a share of {self._crash_tolerance} "
        "may."
      )

  def _score_in_workers(self, pairs) -> list[worker.Result]:
    results: list[worker.Result | None] = [None] * len(pairs)
    size = -(-len(pairs) // (4 * len(self._workers)))
    size = max(1, min(size, _MAX_CHUNK))
    todo = collections.deque(
      range(start, min(start + size, len(pairs)))
      for start in range(0, len(pairs), size)
    )
    for index, one in enumerate(self._workers):
      if not one.is_alive():  # It died between two calls: of no text.
        self._replace(index)
    try:
      while todo or any(one.pending for one in self._workers):
        for one in self._workers:
          if todo and not one.pending:
            one.send(todo.popleft(), pairs)
        for one in self._wait():
          self._advance(one, results, todo)
    except BaseException:
      # Ctrl-C, or a bug: what is under way must not answer the next call.
      for index, one in enumerate(self._workers):
        if one.pending:
          self._replace(index)
      raise
    assert all(result is not None for result in results)
    return results

  def _wait(self) -> list["_Worker"]:
    """Returns the busy workers that have something to say or are overdue."""
    busy = [one for one in self._workers if one.pending]
    now = time.monotonic()
    left = min(one.deadline(self._limit_s) for one in busy) - now
    speaking = connection.wait([one.pipe for one in busy], max(left, 0.0))
    now = time.monotonic()
    return [
      one
      for one in busy
      if one.pipe in speaking or one.deadline(self._limit_s) <= now
    ]

  def _advance(self, one: "_Worker", results, todo) -> None:
    """Takes the answers of a worker, or its death."""
    try:
      while one.pending and one.pipe.poll():
        one.take(results)
      if not one.pending or time.monotonic() < one.deadline(self._limit_s):
        return
      culprit = worker.Result(outcome=base.Outcome.TIMED_OUT)
    except (EOFError, OSError, pickle.UnpicklingError):
      code = one.stop(1.0)
      culprit = worker.Result(exception=f"its process died, exit code {code}")
    # The first text without an answer is the one it was at.
    first, *rest = one.pending
    results[first] = culprit
    if rest:
      todo.appendleft(rest)
    self._replace(self._workers.index(one))

  def _replace(self, index: int) -> None:
    self._workers[index].stop()
    self._workers[index] = _Worker(self._greeting)
    self._workers[index].wait_until_ready(self._task.name)


class _Worker(processes.Process):
  """A grading process, the pipe to it, and what it has been asked."""

  def __init__(self, greeting: bytes):
    self.pending: collections.deque[int] = collections.deque()
    self._since = 0.0
    self._reading = False
    super().__init__("saw_jax.tasks.workers.worker", greeting)

  def wait_until_ready(self, task_name: str) -> None:
    """Waits until the task is loaded."""
    problem = self.problem()
    if problem is not None:
      raise RewardError(
        f"task {task_name!r} cannot be loaded in a grading process: {problem}. "
        "Its class has to be in an importable module; num_workers=0 grades in "
        "this process."
      )

  def send(self, indices: Sequence[int], pairs) -> None:
    """Asks for the scores of some pairs."""
    self.pending = collections.deque(indices)
    self._reading = True
    self._since = time.monotonic()
    with contextlib.suppress(OSError):  # Its death shows in take.
      self.pipe.send_bytes(pickle.dumps([pairs[index] for index in indices]))

  def deadline(self, limit_s: float) -> float:
    """When the text it is at has taken too long."""
    return self._since + (_START_LIMIT_S if self._reading else limit_s)

  def take(self, results: list[worker.Result | None]) -> None:
    """Takes one answer."""
    answer = self.pipe.recv()
    if self._reading:
      self._reading = False
    else:
      results[self.pending.popleft()] = answer
    self._since = time.monotonic()


_OPEN: weakref.WeakSet[Grader] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
  for grader in list(_OPEN):
    grader.close()
