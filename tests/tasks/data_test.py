import numpy as np
import pytest

from saw_jax.tasks import data


def _epoch(epoch, seed=0):
  return [
    data.batch_indices(23, 5, seed=seed, step=4 * epoch + step)
    for step in range(4)
  ]


def test_an_epoch_has_no_example_twice():
  for epoch in range(3):
    indices = np.concatenate(_epoch(epoch))
    assert len(set(indices.tolist())) == 20
    assert indices.min() >= 0 and indices.max() < 23


def test_epochs_have_orders_of_their_own_and_drop_others():
  epochs = [np.concatenate(_epoch(epoch)).tolist() for epoch in range(50)]
  assert epochs[0] != epochs[1]
  assert set().union(*epochs) == set(range(23))


def test_a_step_does_not_depend_on_what_was_asked_before():
  forwards = [data.batch_indices(23, 5, seed=3, step=s) for s in range(30)]
  data._order.cache_clear()
  for step in reversed(range(30)):
    np.testing.assert_array_equal(
      data.batch_indices(23, 5, seed=3, step=step), forwards[step]
    )


def test_the_seed_matters():
  assert np.concatenate(_epoch(0, 0)).tolist() != (
    np.concatenate(_epoch(0, 1)).tolist()
  )


def test_a_caller_cannot_change_the_order():
  data.batch_indices(23, 5, seed=0, step=0)[:] = -1
  assert data.batch_indices(23, 5, seed=0, step=0).min() >= 0


@pytest.mark.parametrize("batch_size, step", [(24, 0), (0, 0), (5, -1)])
def test_impossible_batches_are_errors(batch_size, step):
  with pytest.raises(ValueError):
    data.batch_indices(23, batch_size, seed=0, step=step)


def test_a_batch_can_be_everything():
  indices = data.batch_indices(7, 7, seed=0, step=11)
  assert sorted(indices.tolist()) == list(range(7))
