"""Draws depend on their key alone."""

import collections

from saw_jax.tasks.draws import Draws


def test_draws_depend_on_the_key_and_nothing_else():
  assert Draws("a", 1).choice(range(1000)) == Draws("a", 1).choice(range(1000))
  assert len({Draws("a", i).choice(range(10**6)) for i in range(50)}) == 50
  # random.Random("a/1").random() three times, on every machine and version.
  draws = Draws("a", 1)
  assert [draws.choice(range(1000)) for _ in range(3)] == [331, 885, 783]


def test_draws_are_as_likely_as_they_should_be():
  draws = Draws("chance")
  assert 500 < sum(draws.chance(0.3) for _ in range(2000)) < 700
  assert not Draws("x").chance(0.0) and Draws("x").chance(1.0)
  counts = collections.Counter(draws.choice("abcd") for _ in range(2000))
  assert set(counts) == set("abcd") and min(counts.values()) > 400
  weights = [0.0, 3.0, 0.0, 1.0, 0.0]
  counts = collections.Counter(draws.weighted(weights) for _ in range(2000))
  assert set(counts) == {1, 3} and 1380 < counts[1] < 1620


def test_a_sample_takes_none_twice_in_any_order():
  for i in range(50):
    assert len(set(Draws("sample", i).sample(range(5), 4))) == 4
  assert len({tuple(Draws("s", i).sample("ab", 2)) for i in range(20)}) == 2
