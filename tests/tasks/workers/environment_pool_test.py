"""Tests of saw_jax/tasks/workers/environment_pool.py, and of its `Player`."""

import pytest

from saw_jax.tasks.environments import EngineLost, Situation
from saw_jax.tasks.workers.environment_pool import EnvironmentPool
from saw_jax.tasks.workers.pool import RewardError
from tests.tasks.misbehaving_environments import CounterTask

STARTS = [("train", seed) for seed in range(6)]
COUNT = dict.fromkeys(range(6), "count")


@pytest.fixture(scope="module")
def pool():
  with EnvironmentPool(
    CounterTask(), num_workers=2, limit_s=1.5, max_chars=50, crash_tolerance=0.4
  ) as made:
    yield made


def local(**options):
  return EnvironmentPool(CounterTask(), num_workers=0, limit_s=1.0, **options)


def texts(found):
  """Observations by slot; there is no failure."""
  found = dict(enumerate(found)) if isinstance(found, list) else found
  assert not any(one.failure for one in found.values())
  return {slot: one.observation for slot, one in found.items()}


class TestPlaying:
  def test_each_slot_is_its_own_episode(self, pool):
    found = pool.start(STARTS)
    assert texts(found) == {i: f"world {i}" for i in range(6)}
    assert not any(one.done for one in found)
    before = list(pool._workers)
    assert texts(pool.step(COUNT)) == {i: f"{i} at 1" for i in range(6)}
    last = pool.step({1: "stop", 4: "count"})
    actions = ("count", "stop")
    assert last == {
      1: Situation("count", "1 at 2", actions, reward=1.0, done=True),
      4: Situation("count", "4 at 2", actions),
    }
    assert pool._workers == before  # processes that answer stay

  def test_no_workers_play_the_same(self, pool):
    plain = local()
    assert pool.start(STARTS[:3]) == plain.start(STARTS[:3])
    actions = {0: "count", 2: "stop"}
    assert pool.step(actions) == plain.step(actions)

  def test_a_slot_makes_one_environment_of_a_split(self):
    plain, envs = local(), []
    for start in [("train", 7), ("train", 2), ("test", 2)]:
      assert texts(plain.start([start])) == {0: f"world {start[1]}"}
      envs.append(plain._job.slots[0][1])
    assert envs[0] is envs[1] is not envs[2]

  def test_what_is_long_is_cut_and_actions_are_left_out_whole(self, pool):
    pool.start(STARTS[:2])
    assert texts(pool.step({0: "enormous", 1: "empty"})) == {0: "x" * 50, 1: ""}
    # "count" has 5 letters, and "stop" would make it 9.
    for limit, actions in ((8, ("count",)), (9, ("count", "stop"))):
      assert local(max_chars=limit).start(STARTS[:1])[0].actions == actions


class TestMisbehaviour:
  @pytest.mark.parametrize(
    ("slot", "action", "words"),
    [
      (0, "raise", "ValueError: boom"),
      (0, "nan", "reward is nan"),
      (0, "no text", "observation is a NoneType"),
      (9, "count", "KeyError"),  # never started
    ],
  )
  def test_an_exception_or_nonsense_ends_the_episode(self, slot, action, words):
    plain = local()
    plain.start(STARTS[:2])
    found = plain.step({slot: action, 1: "count"})
    assert words in found[slot].failure
    assert found[slot] == Situation(done=True, failure=found[slot].failure)
    assert texts({1: found[1]}) == {1: "1 at 1"}

  def test_without_workers_a_lost_engine_is_the_end(self):
    plain = local()
    plain.start(STARTS[:2])
    with pytest.raises(EngineLost, match="is gone"):
      plain.step({1: "lose"})

  @pytest.mark.slow
  @pytest.mark.parametrize(
    ("action", "words"),
    [("raise", "ValueError: boom"), ("hang", "no answer in 1.5 s")]
    + [("die", "exit code 3"), ("lose", "its process died")],
  )
  def test_it_costs_its_own_episode_alone(self, pool, action, words):
    pool.start(STARTS)
    pool.step(COUNT)
    # Slots 0, 2 and 4 share a process; 2 is to blame.
    found = pool.step({0: "count", 2: action, 4: "count", 1: "count"})
    assert words in found[2].failure
    assert found[2].done and found.pop(2).reward == 0
    assert texts(found) == {slot: f"{slot} at 2" for slot in (0, 1, 4)}
    # The neighbours go on from where they were.
    later = pool.step({0: "count", 4: "stop", 1: "count"})
    assert later[0].observation == "0 at 3" and later[4].reward == 1.0
    pool.check()  # one of six

  def test_two_culprits_in_one_process_are_both_found(self, pool):
    pool.start(STARTS)
    found = pool.step({0: "die", 2: "count", 4: "die", 1: "count"})
    assert found.pop(0).failure and found.pop(4).failure
    assert texts(found) == {1: "1 at 1", 2: "2 at 1"}

  def test_a_process_that_died_between_two_calls_is_replaced(self, pool):
    pool.start(STARTS)
    pool.step(COUNT)
    for one in pool._workers:
      one.process.kill()
      one.process.wait()
    assert texts(pool.step(COUNT)) == {i: f"{i} at 2" for i in range(6)}

  def test_a_world_that_cannot_be_made_is_a_failed_episode(self, pool):
    one, two, three = pool.start([("train", 1), ("train", 666), ("train", 2)])
    assert "no such world" in two.failure and two.done
    assert texts([one, three]) == {0: "world 1", 1: "world 2"}
    assert texts(pool.step({0: "count"})) == {0: "1 at 1"}

  def test_too_many_failures_are_an_error_that_tells_of_the_first(self, pool):
    pool.start(STARTS[:4])
    pool.step({1: "raise", 3: "raise"})
    with pytest.raises(RewardError, match=r"slot 1.*boom.*2 of 4 episodes"):
      pool.check()
