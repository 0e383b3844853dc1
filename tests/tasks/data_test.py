"""Which examples a step uses, and which answers are one."""

import numpy as np
import pytest

from saw_jax.tasks import data


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
  data._order.cache_clear()
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
