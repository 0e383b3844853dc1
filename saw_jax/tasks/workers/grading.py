"""Grading in worker processes, under a hard time limit.

A hostile text costs at most the limit, and it alone goes unscored.
"""

import collections
import dataclasses
import logging
import threading
from collections.abc import Sequence

import numpy as np

from saw_jax.tasks import base
from saw_jax.tasks.workers import pool, worker
from saw_jax.tasks.workers.pool import RewardError

__all__ = ["Graded", "Grader", "RewardError"]

_LOG = logging.getLogger(__name__)
_MAX_CHUNK = 32


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


class Grader(pool.Pool):
  """Scores completions with a task's reward; a context manager.

  The task's class is in an importable module, not in a script or a notebook, or
  `num_workers` is 0: then it scores in this process, without any protection.

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
    limit_s: float,  # that one completion may take
    crash_tolerance: float = 0.1,  # share of a call's completions
    memory_limit_bytes: int | None = None,  # address space of a worker
  ):
    self.token_limits = base.token_limits(task)
    self._task = task
    self._lock = threading.Lock()
    super().__init__(
      worker.Scorer(task),
      task.name,
      num_workers=num_workers,
      limit_s=limit_s,
      crash_tolerance=crash_tolerance,
      memory_limit_bytes=memory_limit_bytes,
    )

  def grade(
    self, examples: Sequence[base.Example], completions: Sequence[str]
  ) -> Graded:
    """Scores each completion as an answer to the example beside it.

    A reward that is not one finite number per component within its range is a
    `RewardError`, and so are more crashes than are tolerated.
    """
    if len(examples) != len(completions):
      raise ValueError(
        f"{len(examples)} examples and {len(completions)} completions."
      )
    pairs = list(zip(examples, completions, strict=True))
    with self._lock:
      results = self._score(pairs)
    self._check(pairs, results)
    shape = (len(pairs), len(self._task.components))
    # None is NaN; no reward is.
    values = np.array([r.values or (None,) * shape[1] for r in results], float)
    outcomes = tuple(result.outcome for result in results)
    is_scored = np.array([outcome.scored for outcome in outcomes], bool)
    scored = ~np.isnan(values.reshape(shape)) & is_scored[:, None]
    return Graded(
      rewards=np.where(scored, values.reshape(shape), 0.0).astype(np.float32),
      scored=scored,
      outcomes=outcomes,
    )

  def _check(self, pairs, results: list[worker.Result]) -> None:
    failures = []
    for (example, completion), result in zip(pairs, results, strict=True):
      where = (
        f"the reward of task {self._task_name!r} on example {example.key}, "
        f"completion {completion[:80]!r}"
      )
      if result.violation:
        raise RewardError(f"{where}: {result.violation}.")
      # A score that says CRASHED itself is no bug: somebody else failed.
      if result.exception:
        failures.append(f"{where}: {result.exception}")
        _LOG.warning("unscored: %s", failures[-1])
    self._check_failures(failures, len(pairs), "crashed")

  def _score(self, pairs) -> list[worker.Result]:
    if self._is_local():
      return [self._job(pair) for pair in pairs]
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

    def ask(index):
      return [(i, pairs[i]) for i in (todo.popleft() if todo else ())], True

    def lose(index, pending, why):
      # The first text without an answer is the one it was at.
      first, *rest = pending
      timed_out = worker.Result(outcome=base.Outcome.TIMED_OUT)
      results[first] = worker.Result(exception=why) if why else timed_out
      if rest:
        todo.appendleft(rest)

    self._exchange(ask, results.__setitem__, lose)
    assert all(result is not None for result in results)
    return results
