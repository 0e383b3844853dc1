"""Which examples a step uses, whatever was asked before."""

import numpy as np
import pytest

from saw_jax.tasks import data


def epoch(number, seed=0):
  return np.concatenate(
    [
      data.batch_indices(23, 5, seed=seed, step=4 * number + step)
      for step in range(4)
    ]
  ).tolist()


def test_an_epoch_has_no_example_twice_and_an_order_of_its_own():
  epochs = [epoch(number) for number in range(50)]
  for indices in epochs:
    assert len(set(indices)) == 20 and set(indices) <= set(range(23))
  assert epochs[0] != epochs[1] and epochs[0] != epoch(0, seed=1)
  assert set().union(*epochs) == set(range(23))  # others are dropped each time


def test_a_step_does_not_depend_on_what_was_asked_before():
  forwards = [data.batch_indices(23, 5, seed=3, step=s) for s in range(30)]
  data._order.cache_clear()
  for step in [*reversed(range(30)), *range(30)]:
    again = data.batch_indices(23, 5, seed=3, step=step)
    np.testing.assert_array_equal(again, forwards[step])
    again[:] = -1  # A caller cannot change the order.


@pytest.mark.parametrize("batch_size, step", [(24, 0), (0, 0), (5, -1)])
def test_impossible_batches_are_errors(batch_size, step):
  with pytest.raises(ValueError):
    data.batch_indices(23, batch_size, seed=0, step=step)


def test_a_batch_can_be_everything():
  indices = data.batch_indices(7, 7, seed=0, step=11)
  assert sorted(indices.tolist()) == list(range(7))
