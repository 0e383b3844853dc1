import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saw_jax.rollout import staleness
from saw_jax.rollout.staleness import FixedLag, Ledger, MaxLag, Quota, Ticket


def lags(ledger, tickets):
  """How old groups are at the update, in steps and in versions."""
  return (
    [ledger.step - ticket.step for ticket in tickets],
    [ledger.version - ticket.version for ticket in tickets],
  )


def fill(protocol, ledger=Ledger()):  # noqa: B008
  """Starts as many groups as there is room for."""
  return staleness.start(ledger, protocol.room(ledger))


def play(protocol, num_steps):
  """Plays a rollouter that is as fast as it may be; returns lags of steps."""
  ledger, tickets = fill(protocol)
  history, most = [], 0
  for _ in range(num_steps):
    ledger = staleness.finish(ledger, tickets, protocol)
    most = max(most, len(ledger.queue))
    ledger, dropped = staleness.expire(ledger, protocol)
    assert not dropped
    assert staleness.ready(ledger, protocol)
    ledger, taken = staleness.take(ledger, protocol)
    history.append(lags(ledger, taken))
    # The step's groups leave the budget only at a publication: generation
    # between two of them goes on while there is room.
    ledger, tickets = fill(protocol, staleness.advance(ledger, protocol))
  return history, most, ledger


class TestQuota:
  # Figures of an event simulation of verl's counter, 32 prompts a step, 375
  # steps, printed to two and three digits (cut or rounded: not said).
  @pytest.mark.parametrize(
    ("threshold", "stale", "mean", "largest"),
    [
      (0.0, 0.0, 7.4, 15),
      (0.1, 0.10, 9.0, 17),
      (0.3, 0.29, 12.1, 20),
      (0.5, 0.48, 15.2, 23),
      (1.0, 0.96, 22.7, 31),
    ],
  )
  def test_has_the_published_staleness(self, threshold, stale, mean, largest):
    history, _, _ = play(Quota(batch=32, threshold=threshold), 375)
    steps, versions = map(np.concatenate, zip(*history, strict=True))
    assert steps.max() == largest
    np.testing.assert_allclose((versions >= 1).mean(), stale, atol=0.01)
    np.testing.assert_allclose(steps.mean(), mean, atol=0.06)

  def test_publishes_after_each_window(self):
    _, _, ledger = play(Quota(batch=2, require=2, trigger=3), 13)
    assert (ledger.version, ledger.version_step) == (2, 12)

  def test_a_group_that_leaves_gives_its_share_of_the_budget_back(self):
    protocol = Quota(batch=1, threshold=0.0, require=1, trigger=2)
    ledger, tickets = fill(protocol)
    assert (len(tickets), protocol.room(ledger)) == (2, 0)
    filtered = staleness.finish(ledger, tickets, protocol, filtered=[0])
    assert protocol.room(filtered) == 1
    lost = staleness.lose(ledger, tickets[:1], protocol)
    assert protocol.room(lost) == 1
    # Again first, and with the newest weights.
    lost, (again,) = fill(protocol, lost._replace(version=3, version_step=6))
    assert again == Ticket(0, 3, 6) and lost.lost == 1 and not lost.again


class TestFixedLag:
  @pytest.mark.parametrize("lag", [0, 1, 4, 16])
  def test_the_lag_is_the_smaller_of_step_and_lag(self, lag):
    history, most, _ = play(FixedLag(batch=3, lag=lag), 40)
    for step, (steps, versions) in enumerate(history):
      assert steps == versions == [min(step, lag)] * 3
    assert most == 3 * (lag + 1)

  def test_consumes_groups_in_the_order_of_their_numbers(self):
    protocol = FixedLag(batch=2, lag=1)
    ledger, tickets = fill(protocol)
    ledger = staleness.finish(ledger, tickets[2:], protocol)
    assert not staleness.ready(ledger, protocol)
    ledger = staleness.finish(ledger, tickets[:2], protocol)
    _, taken = staleness.take(ledger, protocol)
    assert [ticket.number for ticket in taken] == [0, 1]

  def test_waits_for_a_group_whose_actor_died(self):
    protocol = FixedLag(batch=2, lag=1)
    ledger, tickets = fill(protocol)
    ledger = staleness.finish(ledger, tickets[1:], protocol)
    ledger = staleness.lose(ledger, tickets[:1], protocol)
    assert not staleness.ready(ledger, protocol)
    # It goes on with the weights that it had.
    assert ledger.running == tickets[:1] and ledger.lost == 1
    assert protocol.room(ledger) == 0

  def test_a_filtered_group_makes_room_for_another(self):
    protocol = FixedLag(batch=2)
    ledger, tickets = fill(protocol)
    ledger = staleness.finish(ledger, tickets, protocol, filtered=[0])
    ledger, (ticket,) = fill(protocol, ledger)
    ledger = staleness.finish(ledger, [ticket], protocol)
    _, taken = staleness.take(ledger, protocol)
    assert [ticket.number for ticket in taken] == [1, 2]


class TestMaxLag:
  @pytest.mark.parametrize("lag", [0, 1, 2, 8])
  def test_a_fast_rollouter_reaches_the_lag_and_not_more(self, lag):
    history, _, _ = play(MaxLag(batch=4, lag=lag), 30)
    assert max(max(versions) for _, versions in history) == lag

  def test_drops_a_late_group_whole(self):
    protocol = MaxLag(batch=1, lag=1)
    ledger, (late, *others) = staleness.start(Ledger(), 2)
    ledger = staleness.finish(ledger, others, protocol)
    for _ in range(3):
      ledger = staleness.advance(ledger, protocol)
    ledger = staleness.finish(ledger, [late], protocol)
    ledger, dropped = staleness.expire(ledger, protocol)
    assert set(dropped) == {late, *others}
    assert ledger.expired == 2
    assert protocol.room(ledger) == 5
    assert staleness.expire(ledger, protocol)[0].expired == 2  # counted once


ACTIONS = ("start", "finish", "lose", "filter", "step")
PROTOCOLS = st.one_of(
  st.builds(FixedLag, batch=st.integers(1, 4), lag=st.integers(0, 3)),
  st.builds(MaxLag, batch=st.integers(1, 4), lag=st.integers(0, 3)),
  st.builds(
    Quota,
    batch=st.integers(1, 4),
    threshold=st.sampled_from([0.0, 0.3, 1.0]),
    require=st.integers(1, 2),
    trigger=st.integers(1, 3),
  ),
)


@settings(max_examples=200)
@given(
  protocol=PROTOCOLS,
  moves=st.lists(
    st.tuples(st.sampled_from(ACTIONS), st.integers(0, 99)), max_size=60
  ),
)
def test_no_group_is_lost_doubled_or_split(protocol, moves):
  ledger, seen = Ledger(), []
  for action, pick in moves:
    running = ledger.running
    chosen = running[pick % len(running) :][:2] if running else ()
    if action == "start":
      room = protocol.room(ledger)
      assert room >= 0
      ledger, _ = staleness.start(ledger, min(room, 1 + pick % 5))
    elif action == "lose":
      ledger = staleness.lose(ledger, chosen, protocol)
    elif action in ("finish", "filter"):
      filtered = [t.number for t in chosen[:1] if action == "filter"]
      ledger = staleness.finish(ledger, chosen, protocol, filtered)
    else:
      ledger, _ = staleness.expire(ledger, protocol)
      if staleness.ready(ledger, protocol):
        ledger, taken = staleness.take(ledger, protocol)
        steps, versions = lags(ledger, taken)
        assert min(steps) >= 0
        if isinstance(protocol, MaxLag):
          assert max(versions) <= protocol.lag
        seen += [ticket.number for ticket in taken]
        ledger = staleness.advance(ledger, protocol)
    held = [t.number for t in ledger.running + ledger.queue]
    everywhere = [*held, *ledger.again, *seen]
    assert len(set(everywhere)) == len(everywhere)
    gone = ledger.filtered + ledger.expired
    assert len(everywhere) + gone == ledger.next_number
    assert len(seen) == ledger.consumed
    if isinstance(protocol, Quota):
      assert len(held) <= protocol.budget
  again = staleness.from_json(json.loads(json.dumps(ledger._asdict())))
  assert again == ledger


@given(protocol=PROTOCOLS)
def test_nobody_waits_for_ever(protocol):
  play(protocol, 12)


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: FixedLag(batch=0), "batch is 0"),
    (lambda: FixedLag(batch=1, lag=-1), "lag is -1"),
    (lambda: MaxLag(batch=1, lag=-2), "lag is -2"),
    (lambda: Quota(batch=1, threshold=-0.5), "threshold is -0.5"),
    (lambda: Quota(batch=1, require=0), "require is 0"),
    (
      lambda: staleness.lose(Ledger(), [Ticket(3, 0, 0)], Quota(1)),
      "no such group: .*number=3",
    ),
  ],
)
def test_what_cannot_be_is_named(make, message):
  with pytest.raises(ValueError, match=message):
    make()
