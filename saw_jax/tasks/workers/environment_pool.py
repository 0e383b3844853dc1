"""Many environments in worker processes, under a hard time limit.

An environment that raises, hangs or kills its process costs its own episode and
nothing else: the process is replaced, and the other environments in it are
played again from their seeds and actions, as environments are deterministic.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from saw_jax.tasks import environments
from saw_jax.tasks.environments import Situation
from saw_jax.tasks.workers import pool, worker
from saw_jax.tasks.workers.worker import Command

_LOG = logging.getLogger(__name__)


class EnvironmentPool(pool.Pool):
  """Plays episodes in lockstep; a context manager.

  `start` some, then `step` those that are not over. With 0 workers the
  environments are in this process, without any protection but against
  exceptions; `EngineLost` comes out. Observations are cut after `max_chars`;
  the other options are those of `Pool`.
  """

  def __init__(
    self, task: environments.AgentTask, max_chars: int = 20_000, **options: Any
  ):
    # What was played in each slot that is not over.
    self._played: dict[int, list[Command]] = {}
    self._failures: list[str] = []
    self._num_episodes = 0
    super().__init__(worker.Player(task, max_chars), task.name, **options)

  def start(self, episodes: Sequence[tuple[str, int]]) -> list[Situation]:
    """Starts episodes by split and seed, and forgets those that were there.

    The place of an episode in the list is its slot.
    """
    self._played, self._failures = {}, []
    self._num_episodes = len(episodes)
    found = self._run([Command(i, *one) for i, one in enumerate(episodes)])
    return [found[slot] for slot in range(len(episodes))]

  def step(self, actions: Mapping[int, str]) -> dict[int, Situation]:
    """Takes one step in some slots whose episodes are not over."""
    return self._run([Command(i, action=one) for i, one in actions.items()])

  def give_up(self, slot: int, why: str) -> Situation:
    """Ends an episode that cannot go on, and counts it among the failed."""
    found = {}
    failed = Situation(done=True, failure=why)
    self._note(Command(slot, action=""), failed, found)
    return found[slot]

  def check(self) -> None:
    """Raises if too many of the episodes that were started have failed."""
    self._check_failures(self._failures, self._num_episodes, "episodes failed")

  def _run(self, commands: Sequence[Command]) -> dict[int, Situation]:
    found: dict[int, Situation] = {}
    if self._is_local():
      for command in commands:
        self._note(command, self._job(command), found)
      return found
    size = len(self._workers)
    # By worker: whether each command is new or played again, and the command.
    todo = {
      index: [(True, c) for c in commands if c.slot % size == index]
      for index in range(size)
    }
    careful = set()  # Workers that answer one by one, so as to find culprits.

    def ask(index):
      return todo.pop(index, ()), index in careful

    def note(asked, situation):
      is_new, command = asked
      if is_new:
        self._note(command, situation, found)

    def lose(index, pending, why):
      if index in careful:  # The one that is not answered is the culprit.
        failure = why or f"no answer in {self._limit_s:g} s"
        culprit = pending[0][1]
        self._note(culprit, Situation(done=True, failure=failure), found)
      careful.add(index)
      again = [
        (False, command)
        for slot, played in self._played.items()
        if slot % size == index
        for command in played
      ]
      left = [one for one in pending if one[0] and one[1].slot not in found]
      todo[index] = again + left

    self._exchange(ask, note, lose)
    return found

  def _note(self, command: Command, situation: Situation, found: dict) -> None:
    """Keeps an answer, and what has to be played again to get there."""
    found[command.slot] = situation
    if situation.failure:
      what = f"{command.split} episode {command.seed}"
      if command.action is not None:
        what = f"action {command.action[:80]!r}"
      self._failures.append(
        f"the environment of task {self._task_name!r}, slot {command.slot}, "
        f"{what}: {situation.failure}"
      )
      _LOG.warning("%s", self._failures[-1])
    if situation.done:
      self._played.pop(command.slot, None)
    else:
      self._played.setdefault(command.slot, []).append(command)
