"""Tests of saw_jax/weighting.py."""

import functools
import json
import pathlib

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P
from numpy.testing import assert_allclose, assert_array_equal

from saw_jax import algorithms, diagnostics, weighting

GOLDEN = json.loads(
  (pathlib.Path(__file__).parent / "golden" / "saw_gdpo.json").read_text()
)
MINIMA = np.array([-3.0, 0.0])
# The released code, spelt out: no δ, a bounded sum, nothing when all are flat.
released = functools.partial(
  weighting.saw_weights, minima=MINIMA, delta=0.0, sum_eps=1e-8, flat_weight=0.0
)
WEIGHTINGS = {k: f for k, f in algorithms.WEIGHTS.items() if f is not None}
WEIGHTINGS["static"] = functools.partial(WEIGHTINGS["static"], values=0.5)


def rewards_of(inputs):
  return np.stack([inputs["correctness"], inputs["format"]], -1)


def sample(shape=(4, 5, 3), seed=0):
  return np.random.default_rng(seed).uniform(0, 2, shape).astype(np.float32)


def split(f, *args):
  mesh = jax.make_mesh(
    (4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  return jax.jit(
    jax.shard_map(f, mesh=mesh, in_specs=P("data"), out_specs=P())
  )(*args)


class SawWeightsTest(chex.TestCase):
  @parameterized.parameters(*GOLDEN["vectors"])
  def test_the_released_code_is_reached_exactly(self, **case):
    expected = case["expected"]["saw_weights"]
    want = [expected["w_corr"], expected["w_fmt"]]
    cv = [expected["cv_corr"], expected["cv_fmt"]]
    with jax.enable_x64(True):
      rewards = rewards_of(case["inputs"])
      assert_allclose(released(rewards), want, rtol=1e-9)
      found = weighting.coefficient_of_variation(
        rewards, minima=MINIMA, delta=0.0
      )
      assert_allclose(found, cv, rtol=1e-9)
      statistics = diagnostics.reward_statistics(
        rewards[:, None], minima=MINIMA
      )
      assert_allclose(
        statistics["mean"] - MINIMA,
        [expected["mu_corr_offset"], expected["mu_fmt"]],
        rtol=1e-9,
      )
      assert_allclose(
        statistics["std"],
        [expected["std_corr"], expected["std_fmt"]],
        rtol=1e-9,
      )
    assert_allclose(released(rewards.astype(np.float32)), want, atol=1e-5)

  def test_the_papers_form_is_the_default(self):
    case = next(e for e in GOLDEN["extras"] if e["id"] == "E4a")
    rewards = np.array(case["inputs"]["rewards"])
    want = case["expected"]
    saw = functools.partial(weighting.saw_weights, minima=MINIMA)
    with jax.enable_x64(True):
      assert_allclose(
        weighting.coefficient_of_variation(rewards, minima=MINIMA),
        want["cv"],
        rtol=1e-9,
      )
      assert_allclose(saw(rewards), want["weights_gdpo_mode"], rtol=1e-9)
      assert_allclose(
        saw(rewards, total=1.0), want["weights_grpo_mode"], rtol=1e-9
      )
    assert_allclose(
      saw(rewards.astype(np.float32)), want["weights_gdpo_mode"], rtol=1e-5
    )

  def test_the_worked_example(self):
    # c' = (6, 0, 4.5, 0, 0, 3.6) has mean 2.35 and deviation 2.686; f has mean
    # 1/6 and deviation 0.408.
    c = [3, -3, 1.5, -3, -3, 0.6]
    rewards = np.array([c, [1, 0, 0, 0, 0, 0]]).T.reshape(2, 3, 2)
    with jax.enable_x64(True):
      assert_allclose(
        weighting.saw_weights(
          rewards, minima=MINIMA, delta=1e-4, mean_eps=1e-4
        ),
        [0.636815, 1.363185],
        atol=1e-6,
      )

  @hypothesis.given(st.floats(-3, 3, width=32), st.sampled_from((2, 3, 7, 64)))
  def test_a_constant_component_gets_exactly_nothing(self, constant, size):
    rewards = sample((size, 2))
    rewards[:, 1] = constant
    w = jax.jit(weighting.saw_weights)(rewards, minima=np.array([0.0, -3.0]))
    assert w[1] == 0
    assert_allclose(w[0], 2, rtol=1e-6)

  def test_components_that_are_all_flat(self):
    flat = np.full((7, 3), 1.8, np.float32)
    assert_array_equal(weighting.saw_weights(flat), 1)
    assert_array_equal(
      weighting.saw_weights(flat, delta=0.0, flat_weight=0.25), 0.25
    )
    # δ is also how small a sum of coefficients counts as flat.
    assert_array_equal(
      weighting.saw_weights(sample(), delta=100.0, flat_weight=7.0), 7
    )

  def test_one_response_has_no_dispersion(self):
    assert_array_equal(weighting.saw_weights(sample((1, 1, 3))), 1)

  def test_priorities_multiply(self):
    rewards, priorities = sample(), np.array([1.0, 2.0, 0.5])
    assert_allclose(
      weighting.saw_weights(rewards, priorities=priorities),
      weighting.saw_weights(rewards) * priorities.astype(np.float32),
      rtol=1e-6,
    )

  def test_bfloat16_is_weighed_in_float32(self):
    rewards = jnp.asarray(sample(), jnp.bfloat16)
    w = weighting.saw_weights(rewards)
    assert w.dtype == jnp.float32
    high = rewards.astype(jnp.float32)
    assert_array_equal(w, weighting.saw_weights(high))

  def test_nothing_scored_is_flat(self):
    rewards = np.full((2, 3, 2), np.nan, np.float32)
    w = weighting.saw_weights(rewards, scored=np.zeros(rewards.shape, bool))
    assert_array_equal(w, 1)


class EveryWeightingTest(chex.TestCase):
  @parameterized.parameters(*WEIGHTINGS)
  def test_devices_masks_and_gradients(self, name):
    f = WEIGHTINGS[name]
    rewards = sample((8, 5, 3)) * np.arange(1, 9)[:, None, None] ** 2
    rewards[..., 2] = 1.8
    rewards = rewards.astype(np.float32)
    scored = np.random.default_rng(1).random(rewards.shape) < 0.8
    for where in (np.ones_like(scored), scored):
      whole = f(rewards, scored=where)
      assert whole.shape == (3,) and np.isfinite(whole).all()
      assert_allclose(
        split(lambda r, s: f(r, scored=s, axis_name="data"), rewards, where),
        whole,
        rtol=1e-6,
      )
      dirty = np.where(where, rewards, np.nan)
      assert_array_equal(f(dirty, scored=where), whole)
    gradient = jax.grad(lambda r: f(r)[0] ** 2)(rewards)
    assert_array_equal(gradient, 0)

  def test_a_component_is_measured_by_its_scored_rows_alone(self):
    rewards = sample((1, 9, 3))
    scored = np.ones(rewards.shape, bool)
    scored[0, 5:, 1] = False
    cv = weighting.coefficient_of_variation(rewards, scored=scored)
    assert_allclose(
      cv[1], weighting.coefficient_of_variation(rewards[:, :5])[1], rtol=1e-6
    )

  @parameterized.parameters(
    ("inverse_saw", lambda r: r.mean((0, 1)) / r.reshape(-1, 3).std(0, ddof=1)),
    ("deviation", lambda r: r.reshape(-1, 3).std(0, ddof=1)),
    ("group_saw", lambda r: (r.std(1, ddof=1) / r.mean(1)).mean(0)),
  )
  def test_controls_agree_with_numpy(self, name, statistic):
    rewards = sample()
    want = statistic(rewards.astype(np.float64))
    assert_allclose(WEIGHTINGS[name](rewards), 3 * want / want.sum(), rtol=1e-5)
    # What is flat has no weight, and all weigh alike where all is flat.
    rewards[..., 2] = 1.8
    w = WEIGHTINGS[name](rewards)
    assert w[2] == 0
    assert_allclose(w.sum(), 3, rtol=1e-6)
    flat = np.full_like(rewards, 1.8)
    assert_array_equal(WEIGHTINGS[name](flat), 1)

  def test_statistics_split_over_devices_are_the_same(self):
    rewards = sample((8, 5, 3))
    rewards[:3, :, 1] = 1.8
    whole = diagnostics.reward_statistics(rewards)
    assert_allclose(whole["constant_groups"], [0, 3 / 8, 0])
    chex.assert_trees_all_close(
      split(
        lambda r: diagnostics.reward_statistics(r, axis_name="data"), rewards
      ),
      whole,
      rtol=1e-6,
    )


class GradientWeightsTest(chex.TestCase):
  def test_agrees_with_numpy(self):
    w, gram = np.array([0.3, 0.7]), np.array([[1.0, -0.4], [-0.4, 0.2]])
    unscaled = w * np.exp(0.1 * gram.sum(1))
    assert_allclose(
      weighting.gradient_weights(w, gram), unscaled / unscaled.sum(), rtol=1e-6
    )

  def test_a_component_without_weight_stays_without(self):
    w = weighting.gradient_weights(jnp.array([0.0, 1.0]), jnp.ones((2, 2)))
    assert_array_equal(w, [0, 1])

  def test_gram_clips_each_gradient_over_all_leaves(self):
    rng = np.random.default_rng(0)
    tree = {"a": rng.normal(size=(3, 2, 5)), "b": rng.normal(size=(3,)) * 0.1}
    tree = {k: v * np.array([0.01, 1, 50])[:, None, None] if v.ndim == 3 else v
            for k, v in tree.items()}  # fmt: skip
    flat = np.concatenate([tree["a"].reshape(3, -1), tree["b"][:, None]], 1)
    norm = np.linalg.norm(flat, axis=1, keepdims=True)
    flat = flat * np.minimum(1, 1 / norm)
    gram = weighting.gram_of_clipped(tree)
    assert_allclose(gram, flat @ flat.T, rtol=1e-5, atol=1e-6)

  def test_a_gradient_of_zero_is_not_divided_by(self):
    gram = weighting.gram_of_clipped(jnp.zeros((2, 3)))
    assert_array_equal(gram, 0)

  def test_no_gradients_are_refused(self):
    with self.assertRaisesRegex(ValueError, "at least one array"):
      weighting.gram_of_clipped({})
