# SPDX-License-Identifier: Apache-2.0
"""When a group of responses may start, and when it is too old to learn from.

A protocol is a small state machine over whole groups: pure functions from one
`Ledger` to the next. No array, thread or clock is in here, so that what a
protocol promises about staleness can be tested by playing it through, and a
checkpoint can hold it as JSON.

A lag is counted in *optimizer steps* between the weights that a group was
started with and those that the update starts from, and in *versions*, the
published sets of weights. Time in the queue and in flight is included.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol


class Ticket(NamedTuple):
  """One group: the responses of one prompt, which stay together."""

  number: int  # of the group in its run: it names the prompt and its keys
  version: int  # published weights with which it was started
  step: int  # optimizer steps in those weights


class Ledger(NamedTuple):
  """Where every group of a run is.

  A group is running, then queued, then consumed; or it is filtered (all its
  rewards are equal), expired (too old) or lost (its actor died), and counted.
  """

  step: int = 0  # optimizer steps done
  version: int = 0  # sets of weights published after the first
  version_step: int = 0  # optimizer steps in the published weights
  next_number: int = 0  # of the next new group
  charged: int = 0  # groups since the last publication; see Quota
  running: tuple[Ticket, ...] = ()
  queue: tuple[Ticket, ...] = ()  # in the order of consumption
  again: tuple[int, ...] = ()  # numbers whose actor died
  consumed: int = 0
  filtered: int = 0
  expired: int = 0
  lost: int = 0


class Lags(NamedTuple):
  """How old the groups of one update are."""

  steps: tuple[int, ...]
  versions: tuple[int, ...]


class StalenessProtocol(Protocol):
  """What decides who may run ahead, and how far.

  Attributes:
    batch: groups that one optimizer step learns from.
    ordered: the queue is kept in the order of the groups' numbers, and a step
      waits for the next ones in that order.
  """

  batch: int
  ordered: bool

  def room(self, ledger: Ledger) -> int:
    """Returns how many groups may be started now, at least 0."""
    ...

  def publishes(self, ledger: Ledger) -> bool:
    """Returns whether weights are published after the step just counted."""
    ...

  def expired(self, ledger: Ledger, ticket: Ticket) -> bool:
    """Returns whether a queued group is too old to be consumed."""
    ...


@dataclasses.dataclass(frozen=True)
class FixedLag:
  """Step t learns from what the weights of step max(0, t - lag) sampled.

  Deterministic: a rerun is bitwise equal, with or without actors.

  Attributes:
    batch: groups per optimizer step.
    lag: optimizer steps; 0 is the synchronous loop.
  """

  batch: int
  lag: int = 0

  ordered = True

  def __post_init__(self):
    _check_batch(self.batch)
    _check_lag("lag", self.lag)

  def room(self, ledger: Ledger) -> int:
    """See `StalenessProtocol`."""
    return max(0, (self.lag + ledger.step + 1) * self.batch - _held(ledger))

  def publishes(self, ledger: Ledger) -> bool:
    """See `StalenessProtocol`."""
    return True

  def expired(self, ledger: Ledger, ticket: Ticket) -> bool:
    """See `StalenessProtocol`."""
    return False


@dataclasses.dataclass(frozen=True)
class MaxLag:
  """No group is learned from more than `lag` versions after its start.

  Groups are admitted as long as what is ahead would be consumed in time, and
  one that is late all the same is dropped as a whole.

    room = (lag + version + 1) batch - (consumed + queued + running)

  Attributes:
    batch: groups per optimizer step.
    lag: versions, of one optimizer step each.

  References:
    AReaL, https://arxiv.org/abs/2505.24298
  """

  batch: int
  lag: int = 1

  ordered = False

  def __post_init__(self):
    _check_batch(self.batch)
    _check_lag("lag", self.lag)

  def room(self, ledger: Ledger) -> int:
    """See `StalenessProtocol`."""
    return max(0, (self.lag + ledger.version + 1) * self.batch - _held(ledger))

  def publishes(self, ledger: Ledger) -> bool:
    """See `StalenessProtocol`."""
    return True

  def expired(self, ledger: Ledger, ticket: Ticket) -> bool:
    """See `StalenessProtocol`."""
    return ledger.version - ticket.version > self.lag


@dataclasses.dataclass(frozen=True)
class Quota:
  """A budget of groups per published version; verl's fully asynchronous mode.

  Weights are published after `trigger` learner batches, each of which is
  `require` optimizer steps. Between two publications

    batch · require · trigger · (1 + threshold)

  groups may be charged; at a publication what is running or queued is charged
  again. The lag of one group has no bound.

  Attributes:
    batch: groups per optimizer step.
    threshold: share of a window that may be started ahead of it, at least 0.
    require: optimizer steps of a learner batch.
    trigger: learner batches between two publications.

  References:
    verl, recipe "fully async policy trainer"
  """

  batch: int
  threshold: float = 0.5
  require: int = 4
  trigger: int = 4

  ordered = False

  def __post_init__(self):
    _check_batch(self.batch)
    if not self.threshold >= 0:
      raise ValueError(f"threshold is {self.threshold}; it must be 0 or more.")
    for name in ("require", "trigger"):
      if getattr(self, name) < 1:
        raise ValueError(
          f"{name} is {getattr(self, name)}; it must be 1 or more."
        )

  @property
  def window(self) -> int:
    """Optimizer steps between two publications."""
    return self.require * self.trigger

  @property
  def budget(self) -> int:
    """Groups that may be charged to a version, and the size of the queue."""
    return int(self.batch * self.window * (1 + self.threshold))

  def room(self, ledger: Ledger) -> int:
    """See `StalenessProtocol`."""
    outstanding = len(ledger.running) + len(ledger.queue)
    return max(0, self.budget - max(ledger.charged, outstanding))

  def publishes(self, ledger: Ledger) -> bool:
    """See `StalenessProtocol`."""
    return ledger.step % self.window == 0

  def expired(self, ledger: Ledger, ticket: Ticket) -> bool:
    """See `StalenessProtocol`."""
    return False


def start(ledger: Ledger, count: int) -> tuple[Ledger, tuple[Ticket, ...]]:
  """Starts groups with the published weights; lost ones come first.

  Args:
    ledger: where the groups are.
    count: how many to start, at most the protocol's room.

  Returns:
    The ledger, and the tickets of the groups started.
  """
  redone = ledger.again[:count]
  fresh = count - len(redone)
  numbers = (*redone, *range(ledger.next_number, ledger.next_number + fresh))
  tickets = tuple(
    Ticket(number, ledger.version, ledger.version_step) for number in numbers
  )
  return ledger._replace(
    running=ledger.running + tickets,
    again=ledger.again[count:],
    next_number=ledger.next_number + fresh,
    charged=ledger.charged + count,
  ), tickets


def finish(
  ledger: Ledger,
  tickets: Iterable[Ticket],
  protocol: StalenessProtocol,
  *,
  filtered: Iterable[int] = (),
) -> Ledger:
  """Queues groups that are complete and scored.

  Args:
    ledger: where the groups are.
    tickets: running ones.
    protocol: for the order of the queue.
    filtered: numbers of those that nothing can be learned from: they are
      counted and leave, and others may be started in their place.

  Returns:
    The ledger.

  Raises:
    ValueError: a ticket is not running.
  """
  tickets = tuple(tickets)
  filtered = set(filtered)
  kept = tuple(t for t in tickets if t.number not in filtered)
  queue = ledger.queue + kept
  if protocol.ordered:
    queue = tuple(sorted(queue))
  return ledger._replace(
    running=_without(ledger.running, tickets),
    queue=queue,
    filtered=ledger.filtered + len(tickets) - len(kept),
    charged=ledger.charged - (len(tickets) - len(kept)),
  )


def lose(ledger: Ledger, tickets: Iterable[Ticket]) -> Ledger:
  """Takes back groups whose actor died; they are started again as a whole.

  Args:
    ledger: where the groups are.
    tickets: running ones.

  Returns:
    The ledger.

  Raises:
    ValueError: a ticket is not running.
  """
  tickets = tuple(tickets)
  return ledger._replace(
    running=_without(ledger.running, tickets),
    again=tuple(sorted((*ledger.again, *(t.number for t in tickets)))),
    lost=ledger.lost + len(tickets),
    charged=ledger.charged - len(tickets),
  )


def restart(ledger: Ledger, tickets: Iterable[Ticket]) -> Ledger:
  """Has lost groups run again as they were, with the weights that they had.

  Args:
    ledger: where the groups are.
    tickets: of groups that were just lost.

  Returns:
    The ledger.
  """
  tickets = tuple(tickets)
  numbers = {ticket.number for ticket in tickets}
  return ledger._replace(
    running=ledger.running + tickets,
    again=tuple(number for number in ledger.again if number not in numbers),
    charged=ledger.charged + len(tickets),
  )


def expire(
  ledger: Ledger, protocol: StalenessProtocol
) -> tuple[Ledger, tuple[Ticket, ...]]:
  """Drops queued groups that are too old, whole.

  Args:
    ledger: where the groups are.
    protocol: what is too old.

  Returns:
    The ledger, and the tickets dropped.
  """
  old = tuple(t for t in ledger.queue if protocol.expired(ledger, t))
  if not old:
    return ledger, ()
  return ledger._replace(
    queue=_without(ledger.queue, old), expired=ledger.expired + len(old)
  ), old


def ready(ledger: Ledger, protocol: StalenessProtocol) -> bool:
  """Says whether the next optimizer step has its groups.

  Args:
    ledger: where the groups are, without expired ones.
    protocol: how many a step takes, and whether in the order of their numbers.

  Returns:
    Whether `take` may be called.
  """
  if len(ledger.queue) < protocol.batch:
    return False
  if not protocol.ordered:
    return True
  last = ledger.queue[protocol.batch - 1].number
  pending = (*(t.number for t in ledger.running), *ledger.again)
  return all(number > last for number in pending)


def take(
  ledger: Ledger, protocol: StalenessProtocol
) -> tuple[Ledger, tuple[Ticket, ...]]:
  """Consumes the groups of one optimizer step.

  Args:
    ledger: one that is `ready`.
    protocol: how many a step takes.

  Returns:
    The ledger, and the tickets consumed.
  """
  taken = ledger.queue[: protocol.batch]
  return ledger._replace(
    queue=ledger.queue[protocol.batch :],
    consumed=ledger.consumed + len(taken),
  ), taken


def lags(ledger: Ledger, tickets: Iterable[Ticket]) -> Lags:
  """Measures the age of groups at the update that is about to start.

  Args:
    ledger: before the step is counted.
    tickets: the groups of the update.

  Returns:
    Their lags, in optimizer steps and in versions.
  """
  tickets = tuple(tickets)
  return Lags(
    steps=tuple(ledger.step - t.step for t in tickets),
    versions=tuple(ledger.version - t.version for t in tickets),
  )


def advance(ledger: Ledger, protocol: StalenessProtocol) -> Ledger:
  """Counts an optimizer step, and publishes its weights if it is time.

  Args:
    ledger: where the groups are.
    protocol: when weights are published.

  Returns:
    The ledger. Its `version` is one more if the weights were published.
  """
  ledger = ledger._replace(step=ledger.step + 1)
  if not protocol.publishes(ledger):
    return ledger
  return ledger._replace(
    version=ledger.version + 1,
    version_step=ledger.step,
    charged=len(ledger.running) + len(ledger.queue),
  )


def to_json(ledger: Ledger) -> dict[str, Any]:
  """Returns a ledger as what JSON can hold.

  Args:
    ledger: where the groups are.

  Returns:
    A document; `from_json` reads it.
  """
  return ledger._asdict()


def from_json(document: dict[str, Any]) -> Ledger:
  """Returns the ledger that `to_json` was given.

  Args:
    document: from `to_json`, read back from JSON.

  Returns:
    The ledger.
  """
  values = dict(document)
  for name in ("running", "queue"):
    values[name] = tuple(Ticket(*ticket) for ticket in values[name])
  values["again"] = tuple(values["again"])
  return Ledger(**values)


def _held(ledger: Ledger) -> int:
  """Groups that were or will be consumed, unless they are lost."""
  return ledger.consumed + len(ledger.queue) + len(ledger.running)


def _without(
  tickets: tuple[Ticket, ...], removed: tuple[Ticket, ...]
) -> tuple[Ticket, ...]:
  missing = set(removed) - set(tickets)
  if missing:
    raise ValueError(f"no such group: {sorted(missing)[0]}")
  removed = set(removed)
  return tuple(t for t in tickets if t not in removed)


def _check_batch(batch: int) -> None:
  if batch < 1:
    raise ValueError(f"batch is {batch}; a step learns from 1 or more groups.")


def _check_lag(name: str, lag: int) -> None:
  if lag < 0:
    raise ValueError(f"{name} is {lag}; it must be 0 or more.")
