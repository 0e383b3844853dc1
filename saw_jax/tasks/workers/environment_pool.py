"""Many environments in worker processes, under a hard time limit.

An environment that raises, hangs or kills its process costs its own episode and
nothing else: the process is replaced, and the other environments in it are
played again from their seeds and actions, as environments are deterministic.
"""

import atexit
import contextlib
import logging
import pickle
import time
import weakref
from collections.abc import Mapping, Sequence
from multiprocessing import connection

from saw_jax.tasks import environments
from saw_jax.tasks.environments import Situation
from saw_jax.tasks.workers import environment_worker, processes
from saw_jax.tasks.workers.environment_worker import Command
from saw_jax.tasks.workers.grading import RewardError

_LOG = logging.getLogger(__name__)
MAX_CHARS = 20_000


class EnvironmentPool:
  """Plays episodes in lockstep; a context manager.

  `start` some, then `step` those that are not over.
  """

  def __init__(
    self,
    task: environments.AgentTask,
    *,
    num_workers: int,
    limit_s: float,
    crash_tolerance: float = 0.1,
    max_chars: int = MAX_CHARS,
  ):
    """Starts the workers.

    Args:
      task: makes the environments.
      num_workers: processes. With 0 the environments are in this process,
        without any protection but against exceptions; `EngineLost` comes out.
      limit_s: most seconds that one step may take.
      crash_tolerance: largest share of the episodes started together that may
        fail; see `check`.
      max_chars: longest observation that is passed on.

    Raises:
      RewardError: a worker cannot load the task.
      ValueError: a number that makes no sense.
    """
    if num_workers < 0:
      raise ValueError(f"num_workers is negative: {num_workers}.")
    if not limit_s > 0:
      raise ValueError(f"limit_s is not positive: {limit_s}.")
    if not 0 <= crash_tolerance <= 1:
      raise ValueError(f"crash_tolerance is not a share: {crash_tolerance}.")
    self._task, self._limit_s = task, limit_s
    self._crash_tolerance = crash_tolerance
    # What was played in each slot that is not over.
    self._played: dict[int, list[Command]] = {}
    self._failures: list[str] = []
    self._num_episodes = 0
    self._workers: list[_Worker] = []
    self._host = environment_worker.Host(task, max_chars)
    self._num_workers = num_workers
    if num_workers:
      self._greeting = pickle.dumps((task, max_chars))
    _OPEN.add(self)
    try:
      for _ in range(num_workers):
        self._workers.append(self._new_worker())
      for one in self._workers:
        self._wait_until_ready(one)
    except BaseException:
      self.close()
      raise

  def __enter__(self) -> "EnvironmentPool":
    return self

  def __exit__(self, *exc_info: object) -> None:
    self.close()

  def close(self) -> None:
    """Ends the workers; safe to call twice."""
    for one in self._workers:
      one.stop()
    self._workers = []
    _OPEN.discard(self)

  def start(self, episodes: Sequence[tuple[str, int]]) -> list[Situation]:
    """Starts episodes, and forgets those that were there.

    Args:
      episodes: the split and the seed of each; its place is its slot.

    Returns:
      Where each stands at its beginning.
    """
    self._played, self._failures = {}, []
    self._num_episodes = len(episodes)
    commands = [
      Command(slot, split, seed) for slot, (split, seed) in enumerate(episodes)
    ]
    found = self._run(commands)
    return [found[slot] for slot in range(len(episodes))]

  def step(self, actions: Mapping[int, str]) -> dict[int, Situation]:
    """Takes one step in some episodes that are not over.

    Args:
      actions: what is done, by slot.

    Returns:
      Where those episodes stand then.
    """
    return self._run(
      [Command(slot, action=action) for slot, action in actions.items()]
    )

  def check(self) -> None:
    """Raises if too many of the episodes that were started have failed.

    Raises:
      RewardError: more than `crash_tolerance` of them; it tells of the first.
    """
    if len(self._failures) > self._crash_tolerance * self._num_episodes:
      raise RewardError(
        f"the environments of task {self._task.name!r}: {self._failures[0]}. "
        f"{len(self._failures)} of {self._num_episodes} episodes failed; at "
        f"most a share of {self._crash_tolerance} may."
      )

  def _run(self, commands: Sequence[Command]) -> dict[int, Situation]:
    found: dict[int, Situation] = {}
    if not self._num_workers:
      for command in commands:
        self._note(command, self._host.answer(command), found)
      return found
    try:
      for index, one in enumerate(self._workers):
        mine = [c for c in commands if c.slot % self._num_workers == index]
        if mine:
          one.ask(mine, eager=False)
      while any(one.pending for one in self._workers):
        for index in self._speaking():
          one = self._workers[index]
          if not self._take(one, found):
            self._recover(index, list(one.pending), found)
    except BaseException:
      # Ctrl-C, or a bug: what is under way must not answer the next call.
      for index, one in enumerate(self._workers):
        if one.pending:
          self._replace(index)
      raise
    return found

  def _speaking(self) -> list[int]:
    """Waits for workers that have something to say or are overdue."""
    busy = [i for i, one in enumerate(self._workers) if one.pending]
    first = min(self._workers[i].since for i in busy) + self._limit_s
    pipes = {self._workers[i].pipe: i for i in busy}
    ready = connection.wait(list(pipes), max(first - time.monotonic(), 0.0))
    now = time.monotonic()
    late = [i for i in busy if self._workers[i].since + self._limit_s <= now]
    return sorted({pipes[pipe] for pipe in ready} | set(late))

  def _take(self, one: "_Worker", found: dict[int, Situation]) -> bool:
    """Takes a worker's answers; False if it has died or is overdue."""
    try:
      while one.pending and one.pipe.poll():
        for situation in one.pipe.recv():
          self._note(one.pending.pop(0), situation, found)
        one.since = time.monotonic()
    except (EOFError, OSError):
      return False
    return not one.pending or time.monotonic() < one.since + self._limit_s

  def _recover(
    self, index: int, todo: list[Command], found: dict[int, Situation]
  ) -> None:
    """Replaces a worker, plays its episodes again, and finds who is to blame.

    Command by command: the one that is not answered is the culprit.
    """
    self._replace(index)
    again = True
    while again:
      again = False
      todo = [c for c in todo if c.slot not in found]
      mine = [s for s in self._played if s % self._num_workers == index]
      replays = [c for slot in mine for c in list(self._played[slot])]
      for command, is_new in [(c, False) for c in replays] + [
        (c, True) for c in todo
      ]:
        one = self._workers[index]
        one.ask([command], eager=True)
        answer = self._wait_for(one)
        if isinstance(answer, Situation):
          if is_new:
            self._note(command, answer, found)
          continue
        self._note(command, environment_worker.failed(answer), found)
        self._replace(index)
        again = True  # The others were lost with it.
        break

  def _wait_for(self, one: "_Worker") -> Situation | str:
    """One answer, or what became of the process."""
    try:
      if one.pipe.poll(self._limit_s):
        (situation,) = one.pipe.recv()
        one.pending = []
        return situation
    except (EOFError, OSError):
      return f"its process died, exit code {one.stop(1.0)}"
    return f"no answer in {self._limit_s:g} s"

  def _note(
    self, command: Command, situation: Situation, found: dict[int, Situation]
  ) -> None:
    """Keeps an answer, and what has to be played again to get there."""
    found[command.slot] = situation
    if situation.failure:
      text = f"slot {command.slot}, {_describe(command)}: {situation.failure}"
      _LOG.warning("task %r, %s", self._task.name, text)
      self._failures.append(text)
    if situation.done:
      self._played.pop(command.slot, None)
    else:
      self._played.setdefault(command.slot, []).append(command)

  def _new_worker(self) -> "_Worker":
    return _Worker("saw_jax.tasks.workers.environment_worker", self._greeting)

  def _replace(self, index: int) -> None:
    self._workers[index].stop()
    self._workers[index] = self._new_worker()
    self._wait_until_ready(self._workers[index])

  def _wait_until_ready(self, one: "_Worker") -> None:
    problem = one.problem()
    if problem is not None:
      raise RewardError(
        f"task {self._task.name!r} cannot be loaded in a worker process: "
        f"{problem}. Its class has to be in an importable module; "
        "num_workers=0 plays in this process."
      )


class _Worker(processes.Process):
  """A process of environments, and what it has been asked."""

  pending: Sequence[Command] = ()
  since = 0.0  # when it last said something

  def ask(self, commands: Sequence[Command], *, eager: bool) -> None:
    self.pending, self.since = list(commands), time.monotonic()
    with contextlib.suppress(OSError):  # Its death shows in its answer.
      self.pipe.send((eager, [tuple(command) for command in commands]))


def _describe(command: Command) -> str:
  if command.action is None:
    return f"{command.split} episode {command.seed}"
  return f"action {command.action[:80]!r}"


_OPEN: weakref.WeakSet[EnvironmentPool] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
  for pool in list(_OPEN):
    pool.close()
