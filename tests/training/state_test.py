"""The state of an update, of one seed and of several."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from saw_jax.training import state as state_lib


def state(seed: float, num_components: int = 3) -> state_lib.TrainState:
  params = {"a": jnp.full((2, 5), seed), "b": {"c": jnp.array([seed, 7.0])}}
  made = state_lib.create_state(
    params, optax.adam(1e-3), num_components=num_components
  )
  return made.replace(step=jnp.int32(10 * seed))


class TestCreateState:
  def test_starts_at_step_zero_with_equal_weights_that_sum_to_one(self):
    made = state_lib.create_state(
      {"a": jnp.ones(2)}, optax.sgd(0.1), num_components=4
    )
    assert int(made.step) == 0
    assert made.step.dtype == jnp.int32
    np.testing.assert_array_equal(made.weights, [0.25] * 4)

  def test_the_optimizer_starts_from_the_parameters(self):
    optimizer = optax.adam(1e-3)
    params = {"a": jnp.ones((2, 5))}
    made = state_lib.create_state(params, optimizer)
    assert jax.tree.structure(made.opt_state) == jax.tree.structure(
      optimizer.init(params)
    )
    assert made.params["a"] is params["a"]


class TestStackStates:
  def test_every_array_gets_a_leading_axis_of_seeds(self):
    stacked = state_lib.stack_states([state(1.0), state(2.0)])
    for one, both in zip(
      jax.tree.leaves(state(1.0)), jax.tree.leaves(stacked), strict=True
    ):
      assert both.shape == (2, *one.shape)
      assert both.dtype == one.dtype
    np.testing.assert_array_equal(stacked.step, [10, 20])
    assert stacked.weights.shape == (2, 3)


class TestTakeSeed:
  def test_undoes_the_stack(self):
    states = [state(float(seed)) for seed in (1, 2, 3)]
    stacked = state_lib.stack_states(states)
    for index, expected in enumerate(states):
      found = state_lib.take_seed(stacked, index)
      assert jax.tree.structure(found) == jax.tree.structure(expected)
      for a, b in zip(
        jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
      ):
        np.testing.assert_array_equal(a, b)
        assert a.shape == b.shape
