"""Grading in worker processes: a hostile text costs at most the limit."""

import collections
import dataclasses
import logging
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from saw_jax.tasks import base
from saw_jax.tasks.workers import pool, worker
from saw_jax.tasks.workers.pool import RewardError

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


class Grader(pool.Pool):
  """Scores completions with a task's reward; a context manager.

  The task's class is in an importable module, not in a script or a notebook, or
  `num_workers` is 0: then it scores in this process, without any protection.
  The other options are those of `Pool`.

  Attributes:
    token_limits: by index of a component that depends on length, the most
      tokens of a response; here it is scored as if that limit were kept.

  >>> with Grader(task, num_workers=2, limit_s=5.0) as grader:  # doctest: +SKIP
  ...   graded = grader.grade(examples, completions)
  """

  def __init__(self, task: base.Task, **options: Any):
    self.token_limits = base.token_limits(task)
    self._task, self._lock = task, threading.Lock()
    super().__init__(worker.Scorer(task), task.name, **options)

  def grade(
    self, examples: Sequence[base.Example], completions: Sequence[str]
  ) -> Graded:
    """Scores each completion as an answer to the example beside it.

    A reward that is not one finite number per component within its range is a
    `RewardError`, and so are more crashes than are tolerated.
    """
    if len(examples) != len(completions):
      sizes = f"{len(examples)} examples and {len(completions)} completions"
      raise ValueError(f"{sizes}.")
    pairs = list(zip(examples, completions, strict=True))
    with self._lock:
      results = self._score(pairs)
    self._check(pairs, results)
    shape = (len(pairs), len(self._task.components))
    # None is NaN; no reward is.
    values = np.array([r.values or (None,) * shape[1] for r in results], float)
    values = values.reshape(shape)
    is_scored = np.array([result.outcome.scored for result in results], bool)
    scored = ~np.isnan(values) & is_scored[:, None]
    outcomes = tuple(result.outcome for result in results)
    rewards = np.where(scored, values, 0.0).astype(np.float32)
    return Graded(rewards, scored, outcomes)

  def check_scored(
    self,
    unscored: Sequence[tuple[base.Example, str, base.Outcome]],
    total: int,  # responses, with those that have a reward
  ) -> None:
    """Raises if too few responses of a step have a reward to learn from.

    A time-out is no bug, and a judge may fail now and then.
    """
    lost = [
      f"{self._where(example, completion)}: {outcome.value}, with a limit of "
      f"{self._limit_s:g} s (grading.limit_s)"
      for example, completion, outcome in unscored
    ]
    what = "responses have no reward"
    self._check_failures(lost, total, what, "unscored_tolerance")

  def _where(self, example: base.Example, completion: str) -> str:
    return (
      f"the reward of task {self._task_name!r} on example {example.key}, "
      f"completion {completion[:80]!r}"
    )

  def _check(self, pairs, results: list[worker.Result]) -> None:
    failures = []
    for (example, completion), result in zip(pairs, results, strict=True):
      where = self._where(example, completion)
      if result.violation:
        raise RewardError(f"{where}: {result.violation}.")
      # A score that says CRASHED itself is no bug: somebody else failed.
      if result.exception:
        failures.append(f"{where}: {result.exception}")
        _LOG.warning("unscored: %s", failures[-1])
    self._check_failures(failures, len(pairs), "crashed")

  def _score(self, pairs) -> list[worker.Result]:
    if self._is_local():
      return list(self._job.each(pairs))
    for index, one in enumerate(self._workers):
      if one.process.poll() is not None:  # It died between calls: of no text.
        self._replace(index)
    size = -(-len(pairs) // (4 * len(self._workers)))
    size = max(1, min(size, _MAX_CHUNK))
    numbered, starts = list(enumerate(pairs)), range(0, len(pairs), size)
    todo = collections.deque(numbered[i : i + size] for i in starts)
    results: dict[int, worker.Result] = {}
    again: set[int] = set()

    def ask(index):
      return (todo.popleft() if todo else ()), True

    def note(asked, result):
      results[asked[0]] = result

    def lose(index, pending, why):
      if self._job.takes_many and len(pending) > 1:
        # Nobody knows which one it was.
        todo.extend([one] for one in pending)
        return
      # The first text without an answer is the one it was at.
      first, *rest = pending
      if why and first[0] not in again:  # It may have been killed from outside.
        again.add(first[0])
        todo.appendleft(pending)
        return
      timed_out = worker.Result(outcome=base.Outcome.TIMED_OUT)
      note(first, worker.Result(exception=why) if why else timed_out)
      if rest:
        todo.appendleft(rest)

    self._exchange(ask, note, lose)
    return [results[number] for number in range(len(pairs))]
