"""Worker processes that do jobs under a hard time limit, and are replaced.

What they work on is text that a policy wrote, which is hostile: a pattern may
take for ever, a parser may overflow the stack, a sandbox may kill its process.
"""

import collections
import contextlib
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from multiprocessing import connection
from typing import Any

from saw_jax import naming

START_LIMIT_S = 120.0
# Not multiprocessing's spawn, which would import the main script, and with it
# JAX, into each worker.
_COMMAND = """
import sys
sys.path[:] = {path!r}
from saw_jax.tasks.workers import worker
worker.serve({handle})
"""


class RewardError(ValueError):
  """A reward or an environment broke its contract; the message names it."""


class Worker:
  """A process that does a job, what it was asked, and its deadline."""

  def __init__(self, greeting: bytes, limit_s: float):
    self.pending: collections.deque[tuple] = collections.deque()
    self.deadline, self._limit_s = 0.0, limit_s
    self.pipe, theirs = multiprocessing.Pipe()
    with theirs:
      command = _COMMAND.format(path=sys.path, handle=theirs.fileno())
      self.process = subprocess.Popen(
        [sys.executable, "-c", command],
        stdin=subprocess.DEVNULL,
        pass_fds=(theirs.fileno(),),
        start_new_session=True,  # Its children die with it; no Ctrl-C comes in.
      )
    self._kill = weakref.finalize(self, _kill, self.process.pid)  # at exit too
    with contextlib.suppress(OSError):  # Its death shows in `problem`.
      self.pipe.send_bytes(greeting)

  def problem(self) -> str | None:
    """Waits for the answer to the greeting; None if all is well."""
    try:
      if self.pipe.poll(START_LIMIT_S):
        return self.pipe.recv()
    except (EOFError, OSError):
      return self.stop(1.0)
    return "its process did not start"

  def ask(self, asked: Sequence[tuple[Any, Any]], eager: bool) -> None:
    """Sends the item of each pair `(label, item)`.

    Answers come one by one if `eager`, or else several at a time.
    """
    if not asked:
      return
    self.pending.extend(asked)
    self.deadline = time.monotonic() + START_LIMIT_S  # to read them
    with contextlib.suppress(OSError):  # Its death shows in `take`.
      self.pipe.send((eager, [item for _, item in asked]))

  def take(self, note: Callable) -> str | None:
    """Passes the answers that are there to `note(pair, answer)`.

    Returns None if all is well, or why nothing more will come: how the process
    ended, or "" if an answer is overdue.
    """
    try:
      while self.pending and self.pipe.poll():
        answers = self.pipe.recv()
        self.deadline = time.monotonic() + self._limit_s
        for answer in answers:
          note(self.pending.popleft(), answer)
    except (EOFError, OSError, pickle.UnpicklingError):
      return self.stop(1.0)
    is_overdue = self.pending and time.monotonic() >= self.deadline
    return "" if is_overdue else None

  def stop(self, grace_s: float = 0.0) -> str:
    """Kills the process with its children; returns how it ended."""
    self.pipe.close()
    code = None
    with contextlib.suppress(subprocess.TimeoutExpired):
      if grace_s:
        code = self.process.wait(grace_s)
    self._kill()
    died = f"its process died, exit code {self.process.wait()}"
    killed = ", killed by the system, as it is where memory runs out"
    return died + killed * (code == -signal.SIGKILL)


def _pack(job: Any) -> tuple[bytes, dict[str, str]]:
  """A pickled job, and the files of its modules that no import would find.

  What a notebook or a script defined is sent by value where cloudpickle is
  there. Else a script is read again, as multiprocessing does it.
  """
  try:
    import cloudpickle

    dumped, files = cloudpickle.dumps(job), {}
  except ImportError:
    dumped, files = pickle.dumps(job), {}
    script = getattr(sys.modules["__main__"], "__file__", None) or ""
    if b"__main__" in dumped and script.endswith(".py"):
      files[naming.SCRIPT] = os.path.abspath(script)
  named = naming.FILES.items()
  return dumped, files | {k: x for k, x in named if k.encode() in dumped}


def _kill(pid: int) -> None:
  with contextlib.suppress(ProcessLookupError, PermissionError):
    os.killpg(pid, signal.SIGKILL)


class Pool(contextlib.AbstractContextManager):
  """Workers of one job; a context manager.

  With 0 workers the job is done in this process, without a time limit, and a
  crash is a crash.
  """

  def __init__(
    self,
    job: Any,  # its `each` yields the answers to items
    task_name: str,
    *,
    num_workers: int,
    limit_s: float,  # that one item may take
    crash_tolerance: float = 0.1,  # share of what a call has that may fail
    unscored_tolerance: float = 0.5,  # share of a step that may lack a reward
    memory_limit_bytes: int | None = None,  # address space of a worker
  ):
    if num_workers < 0:
      raise ValueError(f"num_workers is negative: {num_workers}.")
    if not limit_s > 0:
      raise ValueError(f"limit_s is not positive: {limit_s}.")
    shares = {"crash_tolerance": crash_tolerance}
    shares["unscored_tolerance"] = unscored_tolerance
    for name, share in shares.items():
      if not 0 <= share <= 1:
        raise ValueError(f"{name} is not a share: {share}.")
    self._job, self._task_name = job, task_name
    self._limit_s, self._tolerances = limit_s, shares
    self._workers, self._is_closed = [], False
    if not num_workers:
      return
    naming.leave_if_read()  # In a worker, a script starts no workers again.
    try:
      # Twice: the limit holds before the task is loaded.
      told = _pack(job)
      self._greeting = pickle.dumps((told[0], memory_limit_bytes, told[1]))
    except Exception as error:
      self._check_loaded(f"{type(error).__name__}: {error}")
    try:
      for _ in range(num_workers):  # all before waiting for the first
        self._workers.append(Worker(self._greeting, limit_s))
      for one in self._workers:
        self._check_loaded(one.problem())
    except BaseException:
      self.close()
      raise

  def __exit__(self, *exc_info: object) -> None:
    self.close()

  def close(self) -> None:
    """Ends the workers; safe to call twice."""
    for one in self._workers:
      one.stop()
    self._workers, self._is_closed = [], True

  def _is_local(self) -> bool:
    if self._is_closed:
      raise ValueError(f"the pool of task {self._task_name!r} is closed.")
    return not self._workers

  def _exchange(self, ask, note, lose) -> None:
    """Keeps the workers busy until there is nothing more to ask.

    `ask(index)` gives what an idle worker is asked next, as `Worker.ask` takes
    it. `note(pair, answer)` keeps an answer. `lose(index, pairs, why)` is told
    what a worker had not answered when it died or was overdue (`why` is "").
    """
    try:
      while True:
        for index, one in enumerate(self._workers):
          if not one.pending:
            one.ask(*ask(index))
        busy = [one for one in self._workers if one.pending]
        if not busy:
          return
        left_s = min(one.deadline for one in busy) - time.monotonic()
        connection.wait([one.pipe for one in busy], max(left_s, 0.0))
        for index, one in enumerate(self._workers):
          why = one.take(note)
          if why is not None:
            self._replace(index)
            lose(index, list(one.pending), why)
    except BaseException:
      # Ctrl-C, or a bug: what is under way must not answer the next call.
      for index, one in enumerate(self._workers):
        if one.pending:
          self._replace(index)
      raise

  def _check_failures(
    self,
    failures: Sequence[str],
    total: int,
    what: str,
    kind: str = "crash_tolerance",
  ) -> None:
    """Raises if more than the tolerated share failed; it tells of the first."""
    share = self._tolerances[kind]
    if len(failures) > share * total:
      raise RewardError(
        f"{failures[0]}. {len(failures)} of {total} {what}; at most a share of "
        f"{share} may (grading.{kind})."
      )

  def _replace(self, index: int) -> None:
    self._workers[index].stop()
    self._workers[index] = Worker(self._greeting, self._limit_s)
    self._check_loaded(self._workers[index].problem())

  def _check_loaded(self, problem: str | None) -> None:
    if problem is not None:
      advice = "Fewer workers (grading.num_workers) need less"
      if "memory" not in problem.lower():
        advice = (
          "Its class or functions have to be in a file, or pip install "
          "'saw_jax[notebook]', which sends them along; grading.num_workers=0 "
          "does without workers"
        )
      raise RewardError(
        f"task {self._task_name!r} cannot be loaded in a worker process: "
        f"{problem}. {advice}."
      )
