# SPDX-License-Identifier: Apache-2.0
"""When a group of responses may start, and when it is too old to learn from.

Functions go from one `Ledger` to the next, which a checkpoint holds as JSON. A
lag counts the time in the queue and in flight: in optimizer steps from the
weights that a group was started with to those that the update starts from, or
in versions, the published sets of weights.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple


class Ticket(NamedTuple):
  """One group: the responses of one prompt, which stay together."""

  number: int  # of the group in its run: it names the prompt and its keys
  version: int  # published weights with which it was started
  step: int  # optimizer steps in those weights


Tickets = tuple[Ticket, ...]


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
  running: Tickets = ()
  queue: Tickets = ()  # in the order of consumption
  again: tuple[int, ...] = ()  # numbers whose actor died
  consumed: int = 0
  filtered: int = 0
  expired: int = 0
  lost: int = 0

  @property
  def outstanding(self) -> int:
    return len(self.running) + len(self.queue)

  @property
  def held(self) -> int:
    """Groups that were or will be consumed, unless they are lost."""
    return self.consumed + self.outstanding


@dataclasses.dataclass(frozen=True)
class Protocol:
  """Decides which groups may start ahead of the updates, and how far."""

  batch: int  # groups that one optimizer step learns from
  # The queue is in the order of the groups' numbers, without gaps.
  ordered: ClassVar[bool] = False

  def __post_init__(self):
    least = {"batch": 1, "lag": 0, "threshold": 0, "require": 1, "trigger": 1}
    for name, value in dataclasses.asdict(self).items():
      if not value >= least[name]:
        raise ValueError(f"{name} is {value}; it must be {least[name]} or more")

  def room(self, ledger: Ledger) -> int:
    """How many groups may be started now, at least 0."""
    raise NotImplementedError

  def publishes(self, ledger: Ledger) -> bool:
    """Whether weights are published after the step just counted."""
    return True

  def expired(self, ledger: Ledger, ticket: Ticket) -> bool:
    """Whether a queued group is too old to be consumed."""
    return False


@dataclasses.dataclass(frozen=True)
class MaxLag(Protocol):
  """No group is learned from more than `lag` versions after its start.

  Groups are admitted as long as what is ahead would be consumed in time, and
  one that is late all the same is dropped. AReaL, https://arxiv.org/abs/2505.24298
  """

  lag: int = 1  # versions, of one optimizer step each

  def room(self, ledger: Ledger) -> int:
    return max(0, (self.lag + ledger.version + 1) * self.batch - ledger.held)

  def expired(self, ledger: Ledger, ticket: Ticket) -> bool:
    return ledger.version - ticket.version > self.lag


@dataclasses.dataclass(frozen=True)
class FixedLag(MaxLag):
  """Step t learns from what the weights of step max(0, t - lag) sampled.

  Deterministic, with or without actors; none is ever late.
  """

  lag: int = 0  # 0 is the synchronous loop
  ordered: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True)
class Quota(Protocol):
  """A budget of groups per published version; verl's fully asynchronous mode.

  Weights are published after `trigger` learner batches of `require` optimizer
  steps; what is running or queued then is charged again. Lags have no bound.
  """

  threshold: float = 0.5  # share of a window that may be started ahead of it
  require: int = 4  # optimizer steps of a learner batch
  trigger: int = 4  # learner batches between two publications

  @property
  def window(self) -> int:  # optimizer steps between two publications
    return self.require * self.trigger

  @property
  def budget(self) -> int:  # groups charged to a version, and the queue's size
    return int(self.batch * self.window * (1 + self.threshold))

  def room(self, ledger: Ledger) -> int:
    return max(0, self.budget - max(ledger.charged, ledger.outstanding))

  def publishes(self, ledger: Ledger) -> bool:
    return ledger.step % self.window == 0


def start(ledger: Ledger, count: int) -> tuple[Ledger, Tickets]:
  """Starts `count` groups with the published weights; lost ones come first."""
  redone = ledger.again[:count]
  fresh = count - len(redone)
  numbers = (*redone, *range(ledger.next_number, ledger.next_number + fresh))
  weights = ledger.version, ledger.version_step
  tickets = tuple(Ticket(number, *weights) for number in numbers)
  return ledger._replace(
    running=ledger.running + tickets,
    again=ledger.again[count:],
    next_number=ledger.next_number + fresh,
    charged=ledger.charged + count,
  ), tickets


def finish(
  ledger: Ledger,
  tickets: Sequence[Ticket],
  protocol: Protocol,
  filtered: Iterable[int] = (),
) -> Ledger:
  """Queues running groups that are scored; those `filtered` by number leave."""
  kept = tuple(t for t in tickets if t.number not in filtered)
  queue, dropped = ledger.queue + kept, len(tickets) - len(kept)
  return ledger._replace(
    running=_without(ledger.running, tickets),
    queue=tuple(sorted(queue)) if protocol.ordered else queue,
    filtered=ledger.filtered + dropped,
    charged=ledger.charged - dropped,
  )


def lose(
  ledger: Ledger, tickets: Sequence[Ticket], protocol: Protocol
) -> Ledger:
  """Takes back groups whose actor died; ordered ones go on running."""
  ledger = ledger._replace(lost=ledger.lost + len(tickets))
  if protocol.ordered:
    return ledger
  return ledger._replace(
    running=_without(ledger.running, tickets),
    again=tuple(sorted((*ledger.again, *(t.number for t in tickets)))),
    charged=ledger.charged - len(tickets),
  )


def expire(ledger: Ledger, protocol: Protocol) -> tuple[Ledger, Tickets]:
  """Drops queued groups that are too old, whole; returns their tickets too."""
  old = tuple(t for t in ledger.queue if protocol.expired(ledger, t))
  queue, expired = _without(ledger.queue, old), ledger.expired + len(old)
  return ledger._replace(queue=queue, expired=expired), old


def ready(ledger: Ledger, protocol: Protocol) -> bool:
  """Whether the next optimizer step has its groups."""
  if len(ledger.queue) < protocol.batch:
    return False
  last = ledger.queue[protocol.batch - 1].number
  pending = (*(t.number for t in ledger.running), *ledger.again)
  return not protocol.ordered or last < min(pending, default=last + 1)


def take(ledger: Ledger, protocol: Protocol) -> tuple[Ledger, Tickets]:
  """Consumes the groups of one optimizer step from a ledger that is `ready`."""
  taken, rest = ledger.queue[: protocol.batch], ledger.queue[protocol.batch :]
  consumed = ledger.consumed + len(taken)
  return ledger._replace(queue=rest, consumed=consumed), taken


def advance(ledger: Ledger, protocol: Protocol) -> Ledger:
  """Counts an optimizer step; `version` is one more if it is published."""
  ledger = ledger._replace(step=ledger.step + 1)
  if not protocol.publishes(ledger):
    return ledger
  return ledger._replace(
    version=ledger.version + 1,
    version_step=ledger.step,
    charged=ledger.outstanding,
  )


def from_json(document: Mapping[str, Any]) -> Ledger:
  """The ledger whose `_asdict()` went through JSON."""
  running, queue = (
    tuple(Ticket(*ticket) for ticket in document[name])
    for name in ("running", "queue")
  )
  again = tuple(document["again"])
  return Ledger(**document)._replace(running=running, queue=queue, again=again)


def _without(tickets: Tickets, removed: Iterable[Ticket]) -> Tickets:
  if missing := set(removed) - set(tickets):
    raise ValueError(f"no such group: {min(missing)}")
  return tuple(t for t in tickets if t not in removed)
