"""Schedules and the optimizer, by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from saw_jax.training import optimizer as optimizer_lib

Config = optimizer_lib.OptimizerConfig


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"schedule": "linaer"}, "unknown schedule 'linaer'.*cosine"),
    (
      {"learning_rate": -1e-6},
      r"learning_rate is -1e-06; it must be in \[0, inf\)",
    ),
    ({"state_dtype": "float16"}, "'float16'.*bfloat16"),
    ({"clip_norm": 0.0}, r"clip_norm is 0.0; it must be in \(0, inf\]"),
    ({"b1": 1.0}, r"b1 is 1.0; it must be in \[0, 1\)"),
    ({"b2": 1.5}, "b2 is 1.5"),
    ({"b1": -0.1}, "b1 is -0.1"),
    ({"eps": 0.0}, r"eps is 0.0; it must be in \(0, inf\)"),
    ({"weight_decay": -0.01}, "weight_decay is -0.01"),
    *(
      ({name: value}, f"{name} is {value}")
      for name in ("learning_rate", "weight_decay", "b1", "b2", "eps")
      for value in (math.nan, math.inf)
    ),
    ({"clip_norm": math.nan}, "clip_norm is nan"),  # infinity: none
  ],
)
def test_what_makes_no_sense_is_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    Config(**fields)


COSINE = [0.8, 0.4 * (1 + math.sqrt(0.5)), 0.4, 0.0]  # (1 + cos(pi t / 8)) / 2


@pytest.mark.parametrize(
  ("fields", "num_updates", "steps", "expected"),
  [
    ({}, 10, [0, 5, 99], [0.8] * 3),
    # To zero at the end of the run, and not below it.
    ({"schedule": "linear"}, 8, [0, 1, 4, 8, 20], [0.8, 0.7, 0.4, 0, 0]),
    ({"schedule": "cosine"}, 8, [0, 2, 4, 8], COSINE),
    # Eight updates are left of twelve; the middle of them is update 8.
    (
      {"schedule": "linear", "warmup_steps": 4},
      12,
      [0, 1, 2, 3, 4, 8, 12],
      [0, 0.2, 0.4, 0.6, 0.8, 0.4, 0],
    ),
    ({"warmup_steps": 4}, 12, [2, 4, 9], [0.4, 0.8, 0.8]),
    ({"schedule": "cosine", "warmup_steps": 4}, 12, [2, 4, 8], [0.4, 0.8, 0.4]),
    # A warm-up longer than the run is no error.
    ({"schedule": "cosine", "warmup_steps": 8}, 4, [4], [0.4]),
    ({"schedule": "linear", "decay_steps": 4}, 100, [2, 4, 50], [0.4, 0, 0]),
  ],
)
def test_schedules_by_hand(fields, num_updates, steps, expected):
  config = Config(learning_rate=0.8, **fields)
  schedule = optimizer_lib.make_schedule(config, num_updates)
  found = [float(schedule(step)) for step in steps]
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


class TestMakeOptimizer:
  def steps(self, *gradients, num_updates=10, start=(0.0,), **fields):
    params = jnp.array(start)
    optimizer = optimizer_lib.make_optimizer(Config(**fields), num_updates)
    state, found = optimizer.init(params), []
    for gradient in gradients:
      step, state = optimizer.update(jnp.array(gradient), state, params)
      found.append(np.asarray(step))
    return np.stack(found)

  def first_step(self, gradient, **fields):
    fields = {"learning_rate": 0.1, "weight_decay": 0.0, **fields}
    return self.steps(gradient, start=(3.0, -2.0), **fields)[0]

  def test_clips_the_whole_gradient_before_adam(self):
    # eps is large beside the gradient, so that Adam's step is lr g / (|g| +
    # eps) and shows the size of what came through: |g| = 5 becomes 1.
    found = self.first_step([3.0, -4.0], eps=10.0)
    expected = [-0.1 * 0.6 / 10.6, 0.1 * 0.8 / 10.8]
    np.testing.assert_allclose(found, expected, rtol=1e-5)

  def test_weight_decay_pulls_towards_zero_without_a_gradient(self):
    # Decoupled: rate times decay times the parameter.
    np.testing.assert_allclose(
      self.first_step([0.0, 0.0], weight_decay=0.5), [-0.15, 0.1], rtol=1e-6
    )

  def test_betas_are_the_decays_of_both_moments(self):
    options = dict(learning_rate=1.0, b1=0.5, b2=0.75, clip_norm=math.inf)
    _, found = self.steps([1.0], [-2.0], eps=1e-12, **options)
    # m = (0.5 * 0.5 - 0.5 * 2) / 0.75, v = (0.75 * 0.25 + 0.25 * 4) / 0.4375
    m, v = (0.25 - 1.0) / 0.75, (0.1875 + 1.0) / 0.4375
    np.testing.assert_allclose(found, [-m / math.sqrt(v)], rtol=1e-5)

  def test_the_rate_follows_the_schedule_update_by_update(self):
    options = dict(learning_rate=0.8, schedule="linear", warmup_steps=2)
    found = -self.steps(*[[1.0]] * 7, num_updates=6, **options)[:, 0]
    expected = [0.0, 0.4, 0.8, 0.6, 0.4, 0.2, 0.0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_rounding_at_random_takes_a_neighbour_and_is_right_on_average():
  # A quarter of the way from 1 to the next number of bfloat16, 1 + 1 / 128.
  x = jnp.full(40_000, 1 + 1 / 512, jnp.float32)
  found = optimizer_lib.round_at_random(x, jax.random.key(0))
  assert found.dtype == jnp.bfloat16
  assert set(np.unique(found.astype(jnp.float32))) == {1, 1 + 1 / 128}
  share = np.mean(found.astype(jnp.float32) > 1)
  assert abs(share - 0.25) < 0.01  # 4.6 standard deviations
  exact = jnp.array([0.0, 1.5, -2.0, jnp.inf, jnp.nan], jnp.float32)
  kept = optimizer_lib.round_at_random(exact, jax.random.key(1))
  np.testing.assert_array_equal(kept.astype(jnp.float32), exact)


def test_moments_in_bfloat16_add_up_and_train_alike():
  params = {"w": jnp.zeros(1_000)}
  gradient = {"w": jnp.linspace(0.001, 0.003, 1_000)}

  def trained(dtype):
    # Every gradient is the same: after n steps nu is 1 - b2^n of its square.
    made = Config(1e-3, weight_decay=0.0, clip_norm=1e9, state_dtype=dtype)
    optimizer = optimizer_lib.make_optimizer(made, 300)

    def step(carry, _):
      params, state = carry
      updates, state = optimizer.update(gradient, state, params)
      return (optax.apply_updates(params, updates), state), None

    carry = params, optimizer.init(params)
    return jax.jit(lambda x: jax.lax.scan(step, x, length=300)[0])(carry)

  (narrow, state), (wide, _) = trained("bfloat16"), trained("float32")
  moments = state[1][0]
  assert moments.mu["w"].dtype == moments.nu["w"].dtype == jnp.bfloat16
  ratio = moments.nu["w"].astype(jnp.float32) / jnp.square(gradient["w"])
  np.testing.assert_allclose(ratio.mean(), 1 - 0.999**300, rtol=0.01)
  np.testing.assert_allclose(narrow["w"], wide["w"], rtol=0.05)
