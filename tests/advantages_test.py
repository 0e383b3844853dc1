"""Tests of saw_jax/advantages.py."""

import functools
import json
import pathlib

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from saw_jax import (
  advantages,
  algorithms,
  losses,
  names,
  step_advantages,
  weighting,
)

GOLDEN = pathlib.Path(__file__).parent / "golden"
SAW = json.loads((GOLDEN / "saw_gdpo.json").read_text())
POLICY = json.loads((GOLDEN / "policy_losses.json").read_text())
PAW = json.loads((GOLDEN / "paw_gigpo.json").read_text())
released = functools.partial(
  weighting.saw_weights,
  minima=np.array([-3.0, 0.0]),
  delta=0.0,
  sum_eps=1e-8,
  flat_weight=0.0,
)
TRAJECTORY_CENTER = algorithms.STEP_ADVANTAGES["trajectory_center"]
GPG_NONZERO = algorithms.ADVANTAGES["gpg_nonzero"]
PRECISIONS = ((np.float64, 1e-9), (np.float32, 1e-5))
GDPO_SUM = jax.jit(functools.partial(advantages.gdpo, whiten=None))
ESTIMATORS = {
  **algorithms.ADVANTAGES,
  "gdpo_by_sequence": functools.partial(
    advantages.gdpo, whiten=advantages.sequence_whiten
  ),
  "gdpo_unwhitened": functools.partial(advantages.gdpo, whiten=None),
}


def estimate(name, *arrays, **values):
  """An estimator with those of the values that it reads."""
  return names.supply(ESTIMATORS[name], *arrays, **values)


def sample(shape=(3, 5, 2), seed=0):
  rng = np.random.default_rng(seed)
  rewards = rng.uniform(-1, 2, shape).astype(np.float32)
  lengths = rng.integers(1, 40, shape[:2])
  return rewards, lengths


def of_prompts(uid, estimate, *arrays):
  """Calls `estimate` on each prompt's rows, [1, n, ...], in any order."""
  result = np.zeros(len(uid))
  for name in set(uid):
    rows = [j for j, other in enumerate(uid) if other == name]
    result[rows] = estimate(*(a[rows][None] for a in arrays))[0]
  return result


class GoldenTest(chex.TestCase):
  @parameterized.parameters(*SAW["vectors"])
  @pytest.mark.slow
  def test_every_arm_of_the_released_code(self, **case):
    inputs, expected = case["inputs"], case["expected"]
    uid, lengths = inputs["uid"], np.array(inputs["response_lengths"])
    for dtype, atol in PRECISIONS:
      with jax.enable_x64(dtype is np.float64):
        rewards = np.stack([inputs["correctness"], inputs["format"]], -1)
        rewards = rewards.astype(dtype)
        for weights, grpo, gdpo in (
          (np.ones(2, dtype), "grpo", "gdpo"),
          (released(rewards), "saw_grpo", "saw_gdpo"),
        ):
          close = functools.partial(np.testing.assert_allclose, atol=atol)
          close(
            of_prompts(
              uid, lambda r, w=weights: jax.jit(advantages.grpo)(r, w), rewards
            ),
            expected[grpo]["advantage"],
          )
          # The prompts of one case differ in size, so only whole rectangles
          # go through gdpo at once.
          total = of_prompts(
            uid,
            lambda r, w=weights: GDPO_SUM(r, w),
            rewards,
          ).astype(dtype)
          close(total, expected[gdpo]["pre_whiten"])
          close(
            jax.jit(advantages.token_whiten)(total, lengths=lengths),
            expected[gdpo]["advantage"],
          )
          if len(set(map(uid.count, uid))) == 1:
            shape = (len(set(uid)), uid.count(uid[0]))
            assert uid == sorted(uid)
            close(
              jax.jit(advantages.gdpo)(
                rewards.reshape(*shape, 2),
                weights,
                lengths=lengths.reshape(shape),
              ).reshape(-1),
              expected[gdpo]["advantage"],
            )

  def test_kl_in_the_reward(self):
    case = next(e for e in SAW["extras"] if e["id"] == "E1a")
    inputs = case["inputs"]
    for dtype, atol in PRECISIONS:
      with jax.enable_x64(dtype is np.float64):
        rewards = np.stack([inputs["correctness"], inputs["format"]], -1)
        gap = np.array(inputs["per_token_logp_minus_ref"], dtype)
        penalties = losses.kl_penalty(
          gap,
          np.zeros_like(gap),
          np.ones(gap.shape, bool),
          coefficient=inputs["kl_coef"],
        )
        result = advantages.grpo(
          rewards.astype(dtype).reshape(2, 4, 2),
          np.ones(2, dtype),
          penalties=penalties.reshape(2, 4),
        )
      np.testing.assert_allclose(
        result.reshape(-1), case["expected"]["grpo_advantage"], atol=atol
      )

  def test_trls_form_with_three_components(self):
    case = next(e for e in SAW["extras"] if e["id"] == "E2a")
    for dtype, atol in PRECISIONS:
      with jax.enable_x64(dtype is np.float64):
        rewards = np.array(case["inputs"]["rewards"], dtype).reshape(2, 4, 3)
        weights = np.ones(3, dtype)
        gdpo = functools.partial(advantages.gdpo, rewards, weights, eps=1e-4)
        for result, key in (
          (gdpo(whiten=None), "pre_bn"),
          (gdpo(whiten=advantages.sequence_whiten), "advantage"),
          (advantages.grpo(rewards, weights, eps=1e-4), "grpo_trl_advantage"),
        ):
          np.testing.assert_allclose(
            result.reshape(-1), case["expected"][key], atol=atol
          )

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.parameters(
    *POLICY["advantage_cases"],
    *(
      dict(
        advantage=case["advantage"],
        rewards=case["inputs"]["rewards"],
        group=case["inputs"]["group"],
        expected=case["expected"]["advantages"],
      )
      for case in POLICY["cases"]
      if case["advantage"]["estimator"] != "given"
    ),
  )
  def test_advantages_of_the_policy_losses(self, **case):
    options = dict(case["advantage"])
    f = {
      "mean": advantages.dr_grpo,
      "mean_std": advantages.grpo,
      "gpg_paper": advantages.gpg,
      "gpg_verl": GPG_NONZERO,
    }[options.pop("estimator")]
    # Groups of unequal size: the places that are left are not scored.
    rewards, group = np.array(case["rewards"]), np.array(case["group"])
    rows = [np.flatnonzero(group == name) for name in sorted(set(group))]
    shape = (len(rows), max(map(len, rows)), 1)
    padded, scored = np.full(shape, np.nan), np.zeros(shape, bool)
    for p, chosen in enumerate(rows):
      padded[p, : len(chosen), 0] = rewards[chosen]
      scored[p, : len(chosen)] = True
    for dtype in (np.float64, np.float32):
      with jax.enable_x64(dtype is np.float64):
        result = self.variant(lambda r, w, s: f(r, w, scored=s, **options))(
          padded.astype(dtype), np.ones(1, dtype), scored
        )
      assert result.dtype == dtype
      found = np.zeros(len(rewards))
      for p, chosen in enumerate(rows):
        found[chosen] = result[p, : len(chosen)]
      np.testing.assert_allclose(
        found, case["expected"], **POLICY["tolerance"][np.dtype(dtype).name]
      )

  def test_the_worked_example(self):
    c = [3, -3, 1.5, -3, -3, 0.6]
    rewards = np.array([c, [1, 0, 0, 0, 0, 0]]).T.reshape(2, 3, 2)
    lengths = np.array([[10, 20, 5], [15, 8, 12]])
    equal, saw = np.ones(2), np.array([0.6363320, 1.3636680])
    second = [-0.577350, -0.577350, 1.154700]
    for f, w, want in (
      (advantages.grpo, equal, [0.892698, -1.080634, 0.187936, *second]),
      (advantages.grpo, saw, [0.963143, -1.033175, 0.070032, *second]),
      (
        advantages.gdpo,
        equal,
        [1.670002, -1.140019, -0.031609, -0.277923, -0.277923, 1.054220],
      ),
      (
        advantages.gdpo,
        saw,
        [1.891262, -1.119816, -0.349506, -0.167953, -0.167953, 0.757845],
      ),
    ):
      for dtype, atol in ((np.float64, 2e-6), (np.float32, 1e-5)):
        with jax.enable_x64(dtype is np.float64):
          result = jax.jit(
            lambda r, w, f=f: names.supply(f, r, w, lengths=lengths)
          )(rewards.astype(dtype), w.astype(dtype))
        np.testing.assert_allclose(result.reshape(-1), want, atol=atol)


class ByHandTest(chex.TestCase):
  def test_rloo_leaves_the_response_out_of_its_baseline(self):
    # Others' means: (1 + 5) / 2, (0 + 5) / 2, (0 + 1) / 2.
    rewards = jnp.array([[[0.0], [1.0], [5.0]]])
    np.testing.assert_allclose(
      advantages.rloo(rewards, jnp.ones(1)), [[-3, -1.5, 4.5]]
    )

  def test_dr_grpo_keeps_the_scale(self):
    rewards = jnp.array([[[0.0], [1.0], [5.0]]])
    np.testing.assert_allclose(
      advantages.dr_grpo(rewards, jnp.array([2.0])), [[-4, -2, 6]]
    )

  def test_reinforce_plus_plus_agrees_with_numpy(self):
    rewards, lengths = sample()
    w = np.array([0.5, 1.5])
    centered = rewards @ w - (rewards @ w).mean(1, keepdims=True)
    tokens = np.repeat(centered.ravel(), lengths.ravel())
    np.testing.assert_allclose(
      algorithms.ADVANTAGES["reinforce_plus_plus_baseline"](
        rewards, w, lengths=lengths
      ),
      (centered - tokens.mean()) / tokens.std(ddof=1),
      rtol=1e-4,
    )


class EveryEstimatorTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.parameters(*ESTIMATORS)
  def test_a_permuted_group_has_permuted_advantages(self, name):
    rewards, lengths = sample()
    order = np.array([3, 1, 4, 0, 2])
    f = self.variant(
      lambda r, n: estimate(name, r, jnp.array([0.5, 1.5]), lengths=n)
    )
    np.testing.assert_allclose(
      f(rewards, lengths)[:, order],
      f(rewards[:, order], lengths[:, order]),
      atol=1e-5,
    )

  @parameterized.parameters(*ESTIMATORS)
  def test_shifted_rewards_have_the_same_advantages(self, name):
    rewards, lengths = sample()
    f = functools.partial(estimate, name, lengths=lengths)
    np.testing.assert_allclose(
      f(rewards + 4, jnp.ones(2)), f(rewards, jnp.ones(2)), atol=1e-4
    )

  @parameterized.parameters(*ESTIMATORS)
  def test_a_batch_split_over_devices_has_the_same_advantages(self, name):
    rewards, lengths = sample((8, 3, 2))
    w = jnp.array([0.5, 1.5])

    def f(r, n, axis_name=None):
      return estimate(name, r, w, lengths=n, axis_name=axis_name)

    lifted = jax.shard_map(
      functools.partial(f, axis_name="data"),
      mesh=jax.make_mesh(
        (4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
      ),
      in_specs=P("data"),
      out_specs=P("data"),
    )
    np.testing.assert_allclose(
      jax.jit(lifted)(rewards, lengths), f(rewards, lengths), atol=1e-5
    )

  @parameterized.parameters(*ESTIMATORS)
  def test_constant_groups_have_exactly_zero(self, name):
    rng = np.random.default_rng(0)
    w = jnp.array([0.6363320, 1.3636680, 1.1])
    f = jax.jit(lambda r, n: estimate(name, r, w, lengths=n))
    for group_size in (3, 7, 16, 64):
      constants = rng.uniform(-3, 3, (50, 1, 3)).astype(np.float32)
      rewards = np.repeat(constants, group_size, 1)
      lengths = rng.integers(1, 9, rewards.shape[:2])
      np.testing.assert_array_equal(f(rewards, lengths), 0, str(group_size))

  @parameterized.parameters(*ESTIMATORS)
  def test_what_is_not_scored_is_as_if_absent(self, name):
    rewards, lengths = sample()
    scored = np.ones(rewards.shape, bool)
    scored[:, 3:] = False
    dirty = np.where(scored, rewards, np.nan)
    w = jnp.array([0.5, 1.5])
    result = estimate(name, dirty, w, scored=scored, lengths=lengths)
    np.testing.assert_array_equal(result[:, 3:], 0)
    np.testing.assert_allclose(
      result[:, :3],
      estimate(name, rewards[:, :3], w, lengths=lengths[:, :3]),
      rtol=1e-5,
    )

  @parameterized.parameters(*ESTIMATORS)
  def test_nothing_scored_is_zero(self, name):
    rewards, lengths = sample()
    result = estimate(
      name,
      np.full_like(rewards, np.nan),
      jnp.ones(2),
      scored=np.zeros(rewards.shape, bool),
      lengths=lengths,
    )
    np.testing.assert_array_equal(result, 0)

  @parameterized.parameters(*ESTIMATORS)
  def test_one_scored_response_of_a_group_has_nothing_to_compare(self, name):
    rewards, lengths = sample((1, 5, 2))
    scored = np.zeros(rewards.shape, bool)
    scored[0, 2] = True
    result = estimate(
      name, rewards, jnp.ones(2), scored=scored, lengths=lengths
    )
    np.testing.assert_array_equal(result, 0)

  @parameterized.parameters(*ESTIMATORS)
  def test_rewards_and_weights_get_no_gradient(self, name):
    rewards, lengths = sample()
    gradients = jax.grad(
      lambda r, w: jnp.sum(estimate(name, r, w, lengths=lengths) ** 2), (0, 1)
    )(rewards, jnp.ones(2))
    for gradient in gradients:
      np.testing.assert_array_equal(gradient, 0)

  @parameterized.parameters(*ESTIMATORS)
  def test_bfloat16_is_float32_inside(self, name):
    rewards, lengths = sample()
    f = functools.partial(estimate, name, lengths=lengths)
    low = jnp.asarray(rewards, jnp.bfloat16)
    result = f(low, jnp.ones(2))
    assert result.dtype == jnp.float32
    np.testing.assert_array_equal(
      result, f(low.astype(jnp.float32), jnp.ones(2))
    )

  @parameterized.parameters(*ESTIMATORS)
  def test_one_response_in_all_is_finite(self, name):
    result = estimate(
      name, np.full((1, 1, 2), 1.8), jnp.ones(2), lengths=np.ones((1, 1))
    )
    assert np.isfinite(result).all()


class NormalizeGroupsTest(chex.TestCase):
  def test_constant_groups_of_every_size_have_exactly_zero(self):
    constants = np.random.default_rng(0).uniform(-3, 3, (100, 1))
    f = jax.jit(advantages.normalize_groups)
    for group_size in (*range(2, 17), 64):
      rewards = np.repeat(constants.astype(np.float32), group_size, 1)
      np.testing.assert_array_equal(f(rewards), 0, str(group_size))


class GroupsOfOneTest(chex.TestCase):
  def test_a_group_of_one_keeps_its_reward(self):
    rewards = np.array([[[3.0]], [[-1.0]]])
    np.testing.assert_allclose(
      advantages.grpo(rewards, jnp.ones(1)),
      rewards[..., 0] / (1 + 1e-6),
      rtol=1e-7,
    )
    for f in (advantages.rloo, advantages.dr_grpo):
      np.testing.assert_array_equal(f(rewards, jnp.ones(1)), rewards[..., 0])


class GrpoTest(chex.TestCase):
  @hypothesis.given(st.integers(0, 2**31), st.sampled_from([0.5, 2.0, 3.0]))
  def test_only_ratios_of_weights_matter(self, seed, scale):
    rewards, _ = sample(seed=seed)
    w = jnp.array([0.5, 1.5])
    np.testing.assert_allclose(
      advantages.grpo(rewards, scale * w),
      advantages.grpo(rewards, w),
      atol=1e-4,
    )

  def test_a_partly_scored_response_is_left_out(self):
    rewards, _ = sample((1, 4, 2))
    scored = np.ones(rewards.shape, bool)
    scored[0, 3, 1] = False
    result = advantages.grpo(rewards, jnp.ones(2), scored=scored)
    assert result[0, 3] == 0
    np.testing.assert_allclose(
      result[:, :3], advantages.grpo(rewards[:, :3], jnp.ones(2)), rtol=1e-6
    )

  def test_penalties_are_subtracted_before_the_group_is_normalised(self):
    rewards, _ = sample()
    penalties = np.random.default_rng(1).normal(size=(3, 5)).astype(np.float32)
    w = jnp.array([0.5, 1.5])
    as_component = np.concatenate([rewards, penalties[..., None]], -1)
    for f in (advantages.grpo, advantages.rloo, advantages.dr_grpo):
      np.testing.assert_allclose(
        f(rewards, w, penalties=penalties),
        f(as_component, jnp.array([0.5, 1.5, -1.0])),
        atol=1e-5,
      )


class GdpoTest(chex.TestCase):
  def test_one_component_is_whitened_grpo(self):
    rewards, lengths = sample((3, 5, 1))
    np.testing.assert_allclose(
      advantages.gdpo(rewards, jnp.ones(1), lengths=lengths),
      advantages.token_whiten(
        advantages.grpo(rewards, jnp.ones(1)), lengths=lengths
      ),
      rtol=1e-6,
    )

  def test_keeps_apart_what_grpo_makes_equal(self):
    # Both prompts have totals (0, 2); only GDPO sees that one took two rewards.
    rewards = jnp.array([[[0.0, 0.0], [2.0, 0.0]], [[0.0, 0.0], [1.0, 1.0]]])
    grpo = advantages.grpo(rewards, jnp.ones(2))
    np.testing.assert_array_equal(grpo[0], grpo[1])
    gdpo = advantages.gdpo(rewards, jnp.ones(2), whiten=None)
    np.testing.assert_allclose(gdpo[1], 2 * gdpo[0], rtol=1e-5)

  def test_an_unscored_component_adds_nothing(self):
    rewards, _ = sample((1, 4, 2))
    scored = np.ones(rewards.shape, bool)
    scored[0, 3, 1] = False
    result = advantages.gdpo(rewards, jnp.ones(2), scored=scored, whiten=None)
    first = advantages.normalize_groups(rewards[..., 0])
    second = advantages.normalize_groups(rewards[:, :3, 1])
    np.testing.assert_allclose(result[0, 3], first[0, 3], rtol=1e-6)
    np.testing.assert_allclose(
      result[0, :3], first[0, :3] + second[0], rtol=1e-5
    )

  def test_says_that_lengths_are_missing(self):
    with self.assertRaisesRegex(ValueError, "give lengths"):
      advantages.gdpo(sample()[0], jnp.ones(2))


class GpgTest(chex.TestCase):
  # Groups: constant, varied, constant at 0, varied with one unscored response.
  REWARDS = np.array([[1, 1, 1], [0, 1, 1], [0, 0, 0], [1, 0, 5]], np.float32)[
    ..., None
  ]
  SCORED = np.array([[1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 0]], bool)[
    ..., None
  ]

  def test_factors_by_hand(self):
    w = jnp.ones(1)
    plain = advantages.dr_grpo(self.REWARDS, w, scored=self.SCORED)
    for f, factor in (
      (advantages.gpg, 4 / 2),
      (GPG_NONZERO, 11 / 6),
    ):
      found = f(self.REWARDS, w, scored=self.SCORED)
      np.testing.assert_allclose(found, factor * plain, rtol=1e-6)
      halved = f(self.REWARDS, w, scored=self.SCORED, f_norm=2.0)
      np.testing.assert_allclose(halved, factor / 2 * plain, rtol=1e-6)

  def test_a_group_without_any_score_is_not_counted(self):
    scored = self.SCORED.copy()
    scored[0] = False
    found = advantages.gpg(self.REWARDS, jnp.ones(1), scored=scored)
    np.testing.assert_allclose(
      found[1:],
      advantages.gpg(self.REWARDS[1:], jnp.ones(1), scored=scored[1:]),
      rtol=1e-6,
    )
    np.testing.assert_allclose(found[3, :2], [0.75, -0.75], rtol=1e-6)

  def test_the_factor_is_that_of_all_devices(self):
    # Two of the four devices hold no group that varies.
    mesh = jax.make_mesh(
      (4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
    )
    for f in (advantages.gpg, GPG_NONZERO):
      lifted = jax.shard_map(
        lambda r, s, f=f: f(r, jnp.ones(1), scored=s, axis_name="data"),
        mesh=mesh,
        in_specs=P("data"),
        out_specs=P("data"),
      )
      np.testing.assert_allclose(
        jax.jit(lifted)(self.REWARDS, self.SCORED),
        f(self.REWARDS, jnp.ones(1), scored=self.SCORED),
        rtol=1e-6,
      )

  def test_nothing_to_count_leaves_the_factor_at_one(self):
    for f in (advantages.gpg, GPG_NONZERO):
      zeros = f(np.zeros((2, 3, 1)), jnp.ones(1))
      np.testing.assert_array_equal(zeros, 0)
    alone = advantages.gpg(np.full((2, 1, 1), 3.0), jnp.ones(1))
    np.testing.assert_array_equal(alone, 3)


class VariedGroupsTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  def test_only_scored_responses_count(self):
    found = self.variant(
      lambda r, s: advantages.varied_groups(r, jnp.ones(1), scored=s)
    )
    np.testing.assert_array_equal(
      found(GpgTest.REWARDS, GpgTest.SCORED), [False, True, False, True]
    )
    scored = GpgTest.SCORED.copy()
    scored[1, 0] = False
    scored[3] = False
    assert not found(GpgTest.REWARDS, scored).any()

  def test_what_adds_up_to_the_same_does_not_vary(self):
    rewards = np.array([[[0.0, 1.0], [1.0, 0.0]]])
    assert not advantages.varied_groups(rewards, jnp.ones(2))
    assert advantages.varied_groups(rewards, jnp.array([1.0, 2.0]))

  def test_they_are_the_groups_with_an_advantage(self):
    rng = np.random.default_rng(0)
    rewards = rng.integers(0, 2, (50, 3, 2)) * np.float32(1.8)
    w = jnp.array([0.6363320, 1.3636680])
    has_advantage = np.any(advantages.dr_grpo(rewards, w) != 0, axis=1)
    found = advantages.varied_groups(rewards, w)
    np.testing.assert_array_equal(found, has_advantage)
    assert 0 < found.sum() < 50


class WhiteningTest(chex.TestCase):
  def test_tokens_have_mean_zero_and_variance_one(self):
    a = np.random.default_rng(0).normal(2, 3, (4, 5))
    lengths = np.random.default_rng(1).integers(0, 30, (4, 5))
    white = advantages.token_whiten(a, lengths=lengths)
    tokens = np.repeat(np.ravel(white), lengths.ravel())
    np.testing.assert_allclose(tokens.mean(), 0, atol=1e-6)
    np.testing.assert_allclose(tokens.std(ddof=1), 1, rtol=1e-5)

  def test_sequences_have_mean_zero_and_variance_one(self):
    a = np.random.default_rng(0).normal(2, 3, (4, 5))
    white = np.asarray(advantages.sequence_whiten(a, eps=0.0))
    np.testing.assert_allclose(white.mean(), 0, atol=1e-6)
    np.testing.assert_allclose(white.std(ddof=1), 1, rtol=1e-5)

  def test_what_does_not_differ_is_zero(self):
    for whiten in (advantages.token_whiten, advantages.sequence_whiten):
      for a in (np.zeros((2, 3)), np.full((2, 3), 0.9999), np.ones((1, 1))):
        for eps in (0.0, 1e-8):
          n = np.full(a.shape, 7)
          np.testing.assert_array_equal(whiten(a, lengths=n, eps=eps), 0)
          np.testing.assert_array_equal(whiten(a, lengths=0 * n, eps=eps), 0)


def paw_steps(dtype=np.float64):
  """The golden steps as `[P, G, E]`: rewards, anchors, penalties, a mask.

  Also, for each array of the file, where its entries are in that shape.
  """
  (case,) = (c for c in PAW["cases"] if c["kind"] == "advantage")
  inputs = case["inputs"]
  anchors = {name: i for i, name in enumerate(sorted(set(inputs["anchor"])))}
  first = {0: 0, 1: 3}  # of each group, its first trajectory
  shape = (2, 3, 4)
  rewards, penalties = np.zeros(shape, dtype), np.zeros(shape, dtype)
  at, mask, places = np.full(shape, -1), np.zeros(shape, bool), []
  for i, (group, traj) in enumerate(
    zip(inputs["group"], inputs["traj"], strict=True)
  ):
    step = inputs["traj"][:i].count(traj)
    place = (group, traj - first[group], step)
    places.append(place)
    rewards[place], mask[place] = inputs["reward"][i], True
    penalties[place] = inputs["penalty_coef"] * inputs["invalid"][i]
    at[place] = anchors[inputs["anchor"][i]]
  rows = tuple(np.array(places).T)
  return case, rewards, at, penalties, mask, rows


class StepsGoldenTest(chex.TestCase):
  @chex.variants(with_jit=True)
  def test_compiled(self):
    self.check(np.float64, np.float32)

  @chex.variants(without_jit=True)
  def test_op_by_op(self):
    self.check(np.float32)

  def check(self, *dtypes):
    for dtype in dtypes:
      with jax.enable_x64(dtype is np.float64):
        case, rewards, at, penalties, mask, rows = paw_steps(dtype)
        inputs, want = case["inputs"], case["expected"]
        gamma, omega = inputs["gamma"], inputs["omega"]
        std = functools.partial(advantages.normalize_groups, eps=inputs["eps"])

        def every(r, p, std=std, at=at, mask=mask, gamma=gamma, omega=omega):
          returns = step_advantages.step_returns(r, mask, gamma=gamma) - p
          found = {"step_return": returns}
          for name, normalize in (
            ("mean_std_norm", std),
            ("mean_norm", advantages.center_groups),
          ):
            found[f"grpo_episode_adv/{name}"] = step_advantages.step_grpo(
              r, mask, penalties=p, normalize=normalize
            )
            found[f"gigpo_step_adv/{name}"] = step_advantages.anchor_advantages(
              returns, at, mask, normalize=normalize
            )
            found[f"gigpo_adv/{name}"] = step_advantages.gigpo(
              r,
              at,
              mask,
              penalties=p,
              gamma=gamma,
              omega=omega,
              normalize=normalize,
            )
          key = "grpo_episode_adv_across_trajectories"
          found[f"{key}/mean_std_norm"] = step_advantages.trajectory_grpo(
            r, mask, penalties=p
          )
          found[f"{key}/mean_norm"] = TRAJECTORY_CENTER(r, mask, penalties=p)
          return found

        found = self.variant(every)(rewards, penalties)
        assert set(found) == set(want) - {"step_score", "anchor_group"}
        for name, values in found.items():
          assert values.dtype == dtype
          np.testing.assert_allclose(
            values[rows],
            want[name],
            **PAW["tolerance"][np.dtype(dtype).name],
            err_msg=name,
          )
          if name != "step_return":
            assert not values[~mask].any(), name


class StepsTest(chex.TestCase):
  def sample(self, seed=0, shape=(2, 3, 5)):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, shape[-1] + 1, shape[:2])
    mask = np.arange(shape[-1]) < lengths[..., None]
    rewards = rng.normal(size=shape).astype(np.float32)
    return rewards, rng.integers(0, 3, shape), mask

  def test_agrees_with_loops(self):
    for seed in range(4):
      rewards, at, mask = self.sample(seed)
      found = step_advantages.gigpo(rewards, at, mask, gamma=0.9, omega=0.5)
      for p in range(2):
        steps = [tuple(i) for i in np.argwhere(mask[p])]
        scores = {i: rewards[p, i[0]][mask[p, i[0]]].sum() for i in steps}
        later = {
          (g, t): sum(
            0.9 ** (k - t) * rewards[p, g, k]
            for k in range(t, mask[p, g].sum())
          )
          for g, t in steps
        }
        for i in steps:
          pool = list(scores.values())
          want = (scores[i] - np.mean(pool)) / (np.std(pool, ddof=1) + 1e-6)
          like = [later[j] for j in steps if at[p][j] == at[p][i]]
          if len(like) > 1:
            spread = np.std(like, ddof=1) + 1e-6
            want += 0.5 * (later[i] - np.mean(like)) / spread
          np.testing.assert_allclose(found[p][i], want, rtol=2e-4, atol=2e-5)

  def test_omega_of_zero_is_grpo_over_steps(self):
    rewards, at, mask = self.sample()
    np.testing.assert_array_equal(
      step_advantages.gigpo(rewards, at, mask, omega=0.0),
      step_advantages.step_grpo(rewards, mask),
    )

  def test_of_one_step_each_is_grpo(self):
    rewards, at, _ = self.sample(shape=(2, 5, 1))
    mask = np.ones(rewards.shape, bool)
    want = advantages.grpo(rewards, jnp.ones(1))
    for f in (step_advantages.step_grpo, step_advantages.trajectory_grpo):
      np.testing.assert_allclose(f(rewards, mask)[..., 0], want, rtol=1e-5)
    # All episodes begin in the same place: the two terms are one.
    np.testing.assert_allclose(
      step_advantages.gigpo(rewards, at * 0, mask)[..., 0], 2 * want, rtol=1e-5
    )

  @parameterized.parameters(0.1, 1.8, 10.0)
  @pytest.mark.slow
  def test_constant_groups_are_exactly_zero(self, paid):
    _, at, mask = self.sample(shape=(2, 7, 3))
    rewards = np.zeros(mask.shape, np.float32)
    rewards[..., 0] = paid
    for found in (
      step_advantages.step_grpo(rewards, mask),
      step_advantages.trajectory_grpo(rewards, mask),
      TRAJECTORY_CENTER(rewards, mask),
      step_advantages.anchor_advantages(np.full_like(rewards, paid), at, mask),
      step_advantages.gigpo(rewards, at * 0 + np.arange(3), mask),
    ):
      np.testing.assert_array_equal(found, np.zeros_like(found))

  def test_what_was_not_taken_has_no_say(self):
    rewards, at, mask = self.sample()
    garbage = np.where(mask, rewards, np.nan).astype(np.float32)
    for f in (
      step_advantages.step_grpo,
      step_advantages.trajectory_grpo,
      lambda r, m: step_advantages.gigpo(r, np.where(m, at, 0), m),
    ):
      found = f(garbage, mask)
      np.testing.assert_allclose(found, f(rewards, mask), rtol=1e-5)
      assert not found[~mask].any()

  def test_a_single_step_has_nothing_to_be_compared_with(self):
    one = jnp.ones((1, 1, 1))
    found = step_advantages.anchor_advantages(one, one.astype(int), one)
    assert found == 0

  def test_a_penalty_is_paid_at_its_step_only(self):
    rewards, at, mask = self.sample()
    at = np.arange(at.size).reshape(at.shape)  # nothing to compare
    penalties = np.zeros_like(rewards)
    penalties[0, 0, 0] = 0.5
    center = advantages.center_groups
    before = step_advantages.step_grpo(rewards, mask, normalize=center)
    after = step_advantages.gigpo(
      rewards, at, mask, penalties=penalties, normalize=center
    )
    moved = after - before
    share = 0.5 / mask[0].sum()
    np.testing.assert_allclose(moved[0, 0, 0], share - 0.5, rtol=1e-4)
    others = mask[0].copy()
    others[0, 0] = False
    np.testing.assert_allclose(moved[0][others], share, rtol=1e-4)
    assert not moved[1].any()

  def test_rewards_get_no_gradient(self):
    rewards, at, mask = self.sample()
    gradient = jax.grad(lambda r: step_advantages.gigpo(r, at, mask).sum())(
      rewards
    )
    assert not gradient.any()


class LeaveOneOutTest(chex.TestCase):
  def test_it_is_the_reward_less_the_mean_of_the_others(self):
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=(3, 5)).astype(np.float32)
    scored = np.array([[1] * 5, [1, 0, 1, 1, 0], [0, 0, 1, 0, 0]], bool)
    found = advantages.leave_one_out(rewards, scored=scored)
    for p, g in np.ndindex(3, 5):
      others = [rewards[p, k] for k in range(5) if k != g and scored[p, k]]
      want = rewards[p, g] - np.mean(others) if others and scored[p, g] else 0
      np.testing.assert_allclose(found[p, g], want, rtol=1e-5, atol=1e-6)

  def test_over_steps_the_others_are_all_other_steps_of_the_group(self):
    rewards = np.array([[[0.0, 6.0, 9.0], [3.0, 9.0, 9.0]]], np.float32)
    mask = np.array([[[1, 1, 0], [1, 0, 0]]], bool)
    penalties = np.array([[[0.0, 0.5, 9.0], [0.0, 9.0, 9.0]]], np.float32)
    found = step_advantages.step_rloo(rewards, mask, penalties=penalties)
    # Scores 6, 5.5 and 3.
    want = [[6 - 4.25, 5.5 - 4.5, 0], [3 - 5.75, 0, 0]]
    np.testing.assert_allclose(found[0], want, rtol=1e-6)


class StepGaeTest(chex.TestCase):
  def test_time_runs_over_the_steps_of_an_episode(self):
    rng = np.random.default_rng(1)
    rewards, values = rng.normal(size=(2, 2, 3, 4)).astype(np.float32)
    penalties = rng.random((2, 3, 4)).astype(np.float32)
    lengths = rng.integers(1, 5, (2, 3))
    mask = np.arange(4) < lengths[..., None]
    found = step_advantages.gae(
      rewards, values, mask, penalties=penalties, gamma=0.9, lambda_=0.8
    )
    for p, g in np.ndindex(2, 3):
      later = 0.0
      for t in reversed(range(lengths[p, g])):
        last = t == lengths[p, g] - 1
        after = 0.0 if last else values[p, g, t + 1]
        paid = rewards[p, g, t] - penalties[p, g, t]
        later = paid + 0.9 * after - values[p, g, t] + 0.72 * later
        np.testing.assert_allclose(found[p, g, t], later, rtol=1e-4, atol=1e-5)
      np.testing.assert_array_equal(found[p, g, lengths[p, g] :], 0)

  def test_without_discount_advantage_and_value_are_the_return(self):
    rewards = np.array([[[0.0, 0.0, 10.0]]], np.float32)
    values = np.array([[[3.0, 1.0, 7.0]]], np.float32)
    mask = np.ones((1, 1, 3), bool)
    found = step_advantages.gae(rewards, values, mask)
    np.testing.assert_allclose(found + values, 10.0)


class GaeTest(chex.TestCase):
  def test_lambda_of_one_is_return_less_value(self):
    rng = np.random.default_rng(0)
    r, v = rng.normal(size=(2, 3, 5)).astype(np.float32)
    returns = np.cumsum(r[:, ::-1], axis=-1)[:, ::-1]
    np.testing.assert_allclose(
      step_advantages.gae(r, v, np.ones_like(r)),
      returns - v,
      rtol=1e-4,
      atol=1e-6,
    )

  def test_lambda_of_zero_is_the_error_of_one_step(self):
    r, v = jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 5.0]])
    # 1 + 0.5 · 5 − 3 and 2 − 5.
    found = step_advantages.gae(r, v, jnp.ones_like(r), gamma=0.5, lambda_=0.0)
    np.testing.assert_allclose(found, [[0.5, -3.0]])

  @chex.variants(with_jit=True, without_jit=True)
  def test_masked_equals_subset(self):
    rng = np.random.default_rng(1)
    r, v = rng.normal(size=(2, 1, 6)).astype(np.float32)
    mask = np.array([[0, 1, 1, 0, 1, 0]], bool)
    f = self.variant(
      functools.partial(step_advantages.gae, gamma=0.9, lambda_=0.8)
    )
    found = f(np.where(mask, r, np.nan), np.where(mask, v, np.inf), mask)
    want = step_advantages.gae(
      r[mask][None],
      v[mask][None],
      np.ones((1, 3), bool),
      gamma=0.9,
      lambda_=0.8,
    )
    np.testing.assert_allclose(found[mask], want[0], rtol=1e-6)
    assert not found[~mask].any()
