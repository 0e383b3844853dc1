"""SAW's weights and their controls: vectors, by NumPy, masks and devices."""

import functools

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from saw_jax import algorithms, diagnostics, weighting
from tests import helpers

GOLDEN = helpers.golden("saw_gdpo")
MINIMA = np.array([-3.0, 0.0])
partial, saw_weights = functools.partial, weighting.saw_weights
# The released code, spelt out: no δ, a bounded sum, nothing when all are flat.
released = partial(
  saw_weights, minima=MINIMA, delta=0.0, sum_eps=1e-8, flat_weight=0.0
)
WEIGHTINGS = {k: f for k, f in algorithms.WEIGHTS.items() if f is not None}
WEIGHTINGS["static"] = partial(WEIGHTINGS["static"], values=0.5)
WEIGHTINGS["schedule"] = partial(
  WEIGHTINGS["schedule"], step=3, steps=[0, 4], values=np.eye(3)[:2]
)
WEIGHTINGS["dual"] = partial(
  WEIGHTINGS["dual"], step=1, persistent=np.ones(3), targets=[np.nan, 0.9, 0.9]
)
coefficient = weighting.coefficient_of_variation


def sample(shape=(4, 5, 3), seed=0):
  return np.random.default_rng(seed).uniform(0, 2, shape).astype(np.float32)


class SawWeightsTest(chex.TestCase):
  @parameterized.parameters(
    (np.float64, dict(rtol=1e-9)), (np.float32, dict(atol=1e-5))
  )
  def test_the_released_code_is_reached_exactly(self, dtype, tolerance):
    def found(rewards):
      found = diagnostics.reward_statistics(rewards[:, None], minima=MINIMA)
      cv = coefficient(rewards, minima=MINIMA, delta=0.0)
      mean = found["mean"] - MINIMA
      return {
        **dict(zip(("w_corr", "w_fmt"), released(rewards), strict=True)),
        **dict(zip(("cv_corr", "cv_fmt"), cv, strict=True)),
        **dict(zip(("mu_corr_offset", "mu_fmt"), mean, strict=True)),
        **dict(zip(("std_corr", "std_fmt"), found["std"], strict=True)),
      }

    names = "correctness", "format"
    rewards = [
      np.stack([np.array(case["inputs"][k], dtype) for k in names], -1)
      for case in GOLDEN["vectors"]
    ]
    with jax.enable_x64(dtype is np.float64):
      every = jax.jit(lambda cases: list(map(found, cases)))(rewards)
    for values, case in zip(every, GOLDEN["vectors"], strict=True):
      want = case["expected"]["saw_weights"]
      for name in values if dtype is np.float64 else ("w_corr", "w_fmt"):
        assert_allclose(values[name], want[name], **tolerance, err_msg=name)

  def test_the_papers_form_is_the_default(self):
    case = next(e for e in GOLDEN["extras"] if e["id"] == "E4a")
    rewards, want = np.array(case["inputs"]["rewards"]), case["expected"]
    saw = partial(saw_weights, minima=MINIMA)
    with jax.enable_x64(True):
      for found, name in (
        (coefficient(rewards, minima=MINIMA), "cv"),
        (saw(rewards), "weights_gdpo_mode"),
        (saw(rewards, total=1.0), "weights_grpo_mode"),
      ):
        assert_allclose(found, want[name], rtol=1e-9)
    found = saw(rewards.astype(np.float32))
    assert_allclose(found, want["weights_gdpo_mode"], rtol=1e-5)

  def test_the_worked_example(self):
    # c' = (6, 0, 4.5, 0, 0, 3.6) has mean 2.35 and deviation 2.686; f has mean
    # 1/6 and deviation 0.408.
    c = [3, -3, 1.5, -3, -3, 0.6]
    rewards = np.array([c, [1, 0, 0, 0, 0, 0]]).T.reshape(2, 3, 2)
    eps = dict(delta=1e-4, mean_eps=1e-4)
    with jax.enable_x64(True):
      found = saw_weights(rewards, minima=MINIMA, **eps)
    assert_allclose(found, [0.636815, 1.363185], atol=1e-6)

  @hypothesis.given(st.floats(-3, 3, width=32), st.sampled_from((2, 3, 7, 64)))
  def test_a_constant_component_gets_exactly_nothing(self, constant, size):
    rewards = sample((size, 2))
    rewards[:, 1] = constant
    w = jax.jit(saw_weights)(rewards, minima=np.array([0.0, -3.0]))
    assert w[1] == 0
    assert_allclose(w[0], 2, rtol=1e-6)

  def test_what_counts_as_flat(self):
    flat, nothing = np.full((7, 3), 1.8, np.float32), np.zeros((2, 3, 3), bool)
    absent = np.full(nothing.shape, np.nan, np.float32)
    assert_array_equal(saw_weights(flat), 1)
    assert_array_equal(saw_weights(flat, delta=0.0, flat_weight=0.25), 0.25)
    # δ is also how small a sum of coefficients counts as flat.
    found = saw_weights(sample(), delta=100.0, flat_weight=7.0)
    assert_array_equal(found, 7)
    assert_array_equal(saw_weights(sample((1, 1, 3))), 1)
    assert_array_equal(saw_weights(absent, scored=nothing), 1)

  def test_priorities_multiply_and_bfloat16_is_weighed_in_float32(self):
    rewards, priorities = sample(), np.array([1.0, 2.0, 0.5], np.float32)
    found = saw_weights(rewards, priorities=priorities)
    assert_allclose(found, saw_weights(rewards) * priorities, rtol=1e-6)
    low = jnp.asarray(rewards, jnp.bfloat16)
    w = saw_weights(low)
    assert w.dtype == jnp.float32
    assert_array_equal(w, saw_weights(low.astype(jnp.float32)))


class EveryWeightingTest(chex.TestCase):
  @parameterized.parameters(*WEIGHTINGS)
  def test_devices_masks_and_gradients(self, name):
    f = WEIGHTINGS[name]
    whole_of = jax.jit(lambda r, s: f(r, scored=s))
    rewards = sample((8, 5, 3)) * np.arange(1, 9)[:, None, None] ** 2
    rewards[..., 2] = 1.8
    rewards = rewards.astype(np.float32)
    scored = np.random.default_rng(1).random(rewards.shape) < 0.8
    for where in (np.ones_like(scored), scored):
      whole = whole_of(rewards, where)
      assert whole.shape == (3,) and np.isfinite(whole).all()
      found = helpers.over_devices(
        lambda r, s, axis_name: f(r, scored=s, axis_name=axis_name),
        rewards,
        where,
        joined=False,
      )
      assert_allclose(found, whole, rtol=1e-6)
      dirty = np.where(where, rewards, np.nan)
      assert_array_equal(whole_of(dirty, where), whole)
    gradient = jax.jit(jax.grad(lambda r: f(r)[0] ** 2))
    assert_array_equal(gradient(rewards), 0)

  def test_a_component_is_measured_by_its_scored_rows_alone(self):
    rewards = sample((1, 9, 3))
    scored = np.ones(rewards.shape, bool)
    scored[0, 5:, 1] = False
    found = coefficient(rewards, scored=scored)
    want = coefficient(rewards[:, :5])
    assert_allclose(found[1], want[1], rtol=1e-6)

  @parameterized.parameters(
    ("inverse_saw", lambda r: r.mean((0, 1)) / r.reshape(-1, 3).std(0, ddof=1)),
    ("deviation", lambda r: r.reshape(-1, 3).std(0, ddof=1)),
    ("group_saw", lambda r: (r.std(1, ddof=1) / r.mean(1)).mean(0)),
  )
  def test_controls_agree_with_numpy(self, name, statistic):
    rewards, f = sample(), jax.jit(WEIGHTINGS[name])
    want = statistic(rewards.astype(np.float64))
    assert_allclose(f(rewards), 3 * want / want.sum(), rtol=1e-5)
    # What is flat has no weight, and all weigh alike where all is flat.
    rewards[..., 2] = 1.8
    w = f(rewards)
    assert w[2] == 0
    assert_allclose(w.sum(), 3, rtol=1e-6)
    assert_array_equal(f(np.full_like(rewards, 1.8)), 1)

  def test_statistics_split_over_devices_are_the_same(self):
    rewards = sample((8, 5, 3))
    rewards[:3, :, 1] = 1.8
    whole = diagnostics.reward_statistics(rewards)
    assert_allclose(whole["constant_groups"], [0, 3 / 8, 0])
    measure = diagnostics.reward_statistics
    found = helpers.over_devices(measure, rewards, joined=False)
    chex.assert_trees_all_close(found, whole, rtol=1e-6)


class GradientWeightsTest(chex.TestCase):
  def test_agrees_with_numpy(self):
    gram = np.array([[1.0, -0.4], [-0.4, 0.2]])
    # A component without weight stays without.
    for w in (np.array([0.3, 0.7]), np.array([0.0, 1.0])):
      want = w * np.exp(0.1 * gram.sum(1))
      found = weighting.gradient_weights(w, gram)
      assert_allclose(found, want / want.sum(), rtol=1e-6)

  def test_gram_clips_each_gradient_over_all_leaves(self):
    rng = np.random.default_rng(0)
    scale = np.array([0.01, 1, 50])[:, None, None]
    tree = {"a": scale * rng.normal(size=(3, 2, 5)), "b": 0.1 * np.ones(3)}
    flat = np.concatenate([tree["a"].reshape(3, -1), tree["b"][:, None]], 1)
    norm = np.linalg.norm(flat, axis=1, keepdims=True)
    flat = flat * np.minimum(1, 1 / norm)
    gram = weighting.gram_of_clipped(tree)
    assert_allclose(gram, flat @ flat.T, rtol=1e-5, atol=1e-6)
    # A gradient of 0 is not divided by.
    assert_array_equal(weighting.gram_of_clipped(jnp.zeros((2, 3))), 0)
    with self.assertRaisesRegex(ValueError, "at least one array"):
      weighting.gram_of_clipped({})
