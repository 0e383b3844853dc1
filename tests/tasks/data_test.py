"""Which examples a step uses, which answers are one, and random draws."""

import collections

import numpy as np
import pytest

from saw_jax.tasks import data
from saw_jax.tasks.draws import Draws


def epoch(number, seed=0):
  steps = range(4 * number, 4 * number + 4)
  found = [data.batch_indices(23, 5, seed=seed, step=step) for step in steps]
  return np.concatenate(found).tolist()


def test_an_epoch_has_no_example_twice_and_an_order_of_its_own():
  epochs = [epoch(number) for number in range(50)]
  for indices in epochs:
    assert len(set(indices)) == 20 and set(indices) <= set(range(23))
  assert epochs[0] != epochs[1] and epochs[0] != epoch(0, seed=1)
  assert set().union(*epochs) == set(range(23))  # others are dropped each time


def test_a_step_does_not_depend_on_what_was_asked_before():
  forwards = [data.batch_indices(23, 5, seed=3, step=s) for s in range(30)]
  for step in [*reversed(range(30)), *range(30)]:
    again = data.batch_indices(23, 5, seed=3, step=step)
    np.testing.assert_array_equal(again, forwards[step])
    again[:] = -1  # A caller cannot change the order.


@pytest.mark.parametrize("batch_size, step", [(24, 0), (0, 0), (5, -1)])
def test_impossible_batches_are_errors(batch_size, step):
  with pytest.raises(ValueError):
    data.batch_indices(23, batch_size, seed=0, step=step)
  everything = data.batch_indices(7, 7, seed=0, step=11)
  assert sorted(everything.tolist()) == list(range(7))


def test_answers_are_numbered_in_order_of_appearance():
  ids = data.answer_ids([["b", None, "a", "b"], ["x", "y", "x", "z"]])
  assert ids.tolist() == [[0, -1, 1, 0], [0, 1, 0, 2]]
  assert ids.dtype == "int32"
  assert data.answer_ids([[None, None]]).tolist() == [[-1, -1]]
  with pytest.raises(ValueError):  # groups have one size
    data.answer_ids([["a"], ["a", "b"]])


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
