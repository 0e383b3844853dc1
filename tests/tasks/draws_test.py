"""Draws depend on their key alone."""

import collections

from saw_jax.tasks.draws import Draws


class TestDraws:
  def test_depend_on_the_key_and_nothing_else(self):
    first = [Draws("a", 1).choice(range(1000)) for _ in range(2)]
    assert first[0] == first[1]
    others = {Draws("a", i).choice(range(10**6)) for i in range(50)}
    assert len(others) == 50

  def test_are_the_same_on_every_machine_and_version(self):
    # random.Random("a/1").random() three times, written down.
    draws = Draws("a", 1)
    found = [draws.choice(range(1000)) for _ in range(3)]
    assert found == [331, 885, 783]

  def test_chance_is_a_frequency(self):
    draws = Draws("chance")
    hits = sum(draws.chance(0.3) for _ in range(2000))
    assert 500 < hits < 700
    assert not Draws("x").chance(0.0)
    assert Draws("x").chance(1.0)

  def test_choice_takes_every_item_about_equally(self):
    draws = Draws("choice")
    counts = collections.Counter(draws.choice("abcd") for _ in range(2000))
    assert set(counts) == set("abcd")
    assert min(counts.values()) > 400

  def test_weighted_follows_the_weights_and_skips_zeros(self):
    draws = Draws("weighted")
    counts = collections.Counter(
      draws.weighted([0.0, 3.0, 0.0, 1.0, 0.0]) for _ in range(2000)
    )
    assert set(counts) == {1, 3}
    assert 1380 < counts[1] < 1620

  def test_sample_takes_none_twice(self):
    for i in range(50):
      found = Draws("sample", i).sample(range(5), 4)
      assert len(set(found)) == 4
    orders = {tuple(Draws("s", i).sample("ab", 2)) for i in range(20)}
    assert len(orders) == 2
