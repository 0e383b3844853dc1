"""Every advantage of responses: vectors, properties, by hand."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from numpy.testing import assert_allclose, assert_array_equal

from saw_jax import advantages, algorithms, losses, naming, weighting
from tests import helpers

SAW, POLICY = helpers.golden("saw_gdpo"), helpers.golden("policy_losses")
EXTRAS = {case["id"]: case for case in SAW["extras"]}
partial = functools.partial
released = partial(
  weighting.saw_weights,
  minima=np.array([-3.0, 0.0]),
  delta=0.0,
  sum_eps=1e-8,
  flat_weight=0.0,
)
PRECISIONS = ((np.float64, 1e-9), (np.float32, 1e-5))
GPG = algorithms.ADVANTAGES["gpg"]
GPG_NONZERO = algorithms.ADVANTAGES["gpg_nonzero"]
ESTIMATORS = {
  **algorithms.ADVANTAGES,
  "gdpo_by_sequence": partial(
    advantages.gdpo, whiten=advantages.sequence_whiten
  ),
  "gdpo_unwhitened": partial(advantages.gdpo, whiten=None),
}
WEIGHTS = np.array([0.5, 1.5], np.float32)
ONE = np.ones(1, np.float32)


def estimate(name, rewards, weights=WEIGHTS, **values):
  """An advantage with those of the values that it reads."""
  return naming.supply(ESTIMATORS[name], rewards, weights, **values)


def sample(shape=(3, 5, 2), seed=0):
  rng = np.random.default_rng(seed)
  rewards = rng.uniform(-1, 2, shape).astype(np.float32)
  lengths = rng.integers(1, 40, shape[:2])
  return rewards, lengths


def of_prompts(uid, f, rewards):
  """Calls `f` on each prompt's rows, [1, n, M], in any order."""
  result = jnp.zeros(len(uid), rewards.dtype)
  for name in sorted(set(uid)):
    rows = np.array([j for j, other in enumerate(uid) if other == name])
    result = result.at[rows].set(f(rewards[rows][None])[0])
  return result


@pytest.mark.parametrize("name", [*ESTIMATORS, *algorithms.STEP_ADVANTAGES])
@pytest.mark.parametrize("size", [1e20, 1e38, 3e38])
def test_rewards_that_overflow_are_no_silent_zeros(name, size):
  rewards, lengths = np.zeros((2, 4, 2), np.float32), np.ones((2, 4))
  rewards[0, 1], rewards[0, 2, 0] = 1, 0.75
  ones = np.ones(rewards.shape, np.int32)
  given = dict(steps=ones > 0, values=0 * ones, anchors=ones, lengths=lengths)
  given["ratios"] = ones
  if name in ESTIMATORS:
    f = partial(estimate, name, weights=np.ones(2, np.float32), **given)
  else:
    step = algorithms.STEP_ADVANTAGES[name]
    f = lambda rewards: naming.supply(step, rewards=rewards, **given)  # noqa: E731
  sign, found = np.sign(f(rewards)), np.asarray(f(size * rewards))
  assert sign.any() and (~np.isfinite(found) | (np.sign(found) == sign)).all()


def test_gdpo_counts_a_response_of_which_any_component_is_scored():
  rewards = np.array([[[0, 0], [1, 5], [2, 1]]], np.float32)
  scored = np.array([[[1, 1], [0, 1], [1, 1]]], bool)
  found = estimate("gdpo_by_sequence", rewards, np.ones(2), scored=scored)
  assert_allclose(found, [[-1.1005, 0.8529, 0.2476]], atol=1e-4)


class GoldenTest(chex.TestCase):
  @parameterized.parameters(*PRECISIONS)
  @pytest.mark.slow
  def test_every_arm_of_the_released_code(self, dtype, atol):
    def arms(case, rewards):
      inputs, found = case["inputs"], {}
      uid, lengths = inputs["uid"], np.array(inputs["response_lengths"])
      for prefix, w in (("", np.ones(2, dtype)), ("saw_", released(rewards))):
        # The prompts of one case differ in size, so only whole rectangles
        # go through gdpo at once.
        of_grpo, total = (
          of_prompts(uid, partial(estimate, n, weights=w), rewards)
          for n in ("grpo", "gdpo_unwhitened")
        )
        found[f"{prefix}grpo", "advantage"] = of_grpo
        found[f"{prefix}gdpo", "pre_whiten"] = total
        whitened = advantages.token_whiten(total, lengths=lengths)
        found[f"{prefix}gdpo", "advantage"] = whitened
        if len(set(map(uid.count, uid))) == 1:
          shape = (len(set(uid)), uid.count(uid[0]))
          assert uid == sorted(uid)
          r, n = rewards.reshape(*shape, 2), lengths.reshape(shape)
          whole = advantages.gdpo(r, w, lengths=n).reshape(-1)
          found[f"{prefix}gdpo", "advantage", "whole"] = whole
      return found

    rewards = [
      np.stack([case["inputs"][k] for k in ("correctness", "format")], -1)
      for case in SAW["vectors"]
    ]
    with jax.enable_x64(dtype is np.float64):
      every = jax.jit(lambda rs: list(map(arms, SAW["vectors"], rs)))(
        [x.astype(dtype) for x in rewards]
      )
    for found, case in zip(every, SAW["vectors"], strict=True):
      for (arm, key, *_), value in found.items():
        assert_allclose(value, case["expected"][arm][key], atol=atol)

  def test_kl_in_the_reward_and_trls_form_with_three_components(self):
    kl, trl = EXTRAS["E1a"], EXTRAS["E2a"]
    inputs = kl["inputs"]

    def with_kl(rewards, gap):
      penalties = losses.kl_penalty(
        gap, 0 * gap, gap == gap, coefficient=inputs["kl_coef"]
      )
      rewards, ones = rewards.reshape(2, 4, 2), np.ones(2, gap.dtype)
      return advantages.grpo(rewards, ones, penalties=penalties.reshape(2, 4))

    keys = {
      "gdpo_unwhitened": "pre_bn",
      "gdpo_by_sequence": "advantage",
      "grpo": "grpo_trl_advantage",
    }
    for dtype, atol in PRECISIONS:
      rewards = np.stack([inputs["correctness"], inputs["format"]], -1)
      gap = np.array(inputs["per_token_logp_minus_ref"], dtype)
      three = np.array(trl["inputs"]["rewards"], dtype).reshape(2, 4, 3)
      ones = np.ones(3, dtype)
      with jax.enable_x64(dtype is np.float64):
        one = jax.jit(with_kl)(rewards.astype(dtype), gap)
        others = jax.jit(
          lambda r, w: {k: estimate(k, r, w, eps=1e-4) for k in keys}
        )(three, ones)
      want = kl["expected"]["grpo_advantage"]
      assert_allclose(one.reshape(-1), want, atol=atol)
      for name, key in keys.items():
        want = trl["expected"][key]
        assert_allclose(others[name].reshape(-1), want, atol=atol)

  @parameterized.parameters(np.float64, np.float32)
  def test_advantages_of_the_policy_losses(self, dtype):
    cases = POLICY["advantage_cases"] + [
      dict(
        {k: case["inputs"][k] for k in ("rewards", "group")},
        advantage=case["advantage"],
        expected=case["expected"]["advantages"],
      )
      for case in POLICY["cases"]
      if case["advantage"]["estimator"] != "given"
    ]

    def of(case, rewards):
      options = dict(case["advantage"])
      f = {
        "mean": advantages.dr_grpo,
        "mean_std": advantages.grpo,
        "gpg_paper": GPG,
        "gpg_verl": GPG_NONZERO,
      }[options.pop("estimator")]
      # Groups of unequal size: the places that are left are not scored.
      _, rows = np.unique(case["group"], return_inverse=True)
      place = (
        rows,
        np.array([(rows[:j] == p).sum() for j, p in enumerate(rows)]),
      )
      shape = rows.max() + 1, np.bincount(rows).max(), 1
      padded = jnp.full(shape, np.nan, dtype).at[*place, 0].set(rewards)
      scored, one = jnp.isfinite(padded), np.ones(1, dtype)
      return f(padded, one, scored=scored, **options)[place]

    with jax.enable_x64(dtype is np.float64):
      every = jax.jit(lambda rewards: list(map(of, cases, rewards)))(
        [np.array(case["rewards"], dtype) for case in cases]
      )
    tolerance = POLICY["tolerance"][np.dtype(dtype).name]
    for found, case in zip(every, cases, strict=True):
      assert found.dtype == dtype
      assert_allclose(found, case["expected"], **tolerance)

  def test_the_worked_example(self):
    c = [3, -3, 1.5, -3, -3, 0.6]
    rewards = np.array([c, [1, 0, 0, 0, 0, 0]]).T.reshape(2, 3, 2)
    lengths = np.array([[10, 20, 5], [15, 8, 12]])
    second = [-0.577350, -0.577350, 1.154700]
    # Of equal weights, and of SAW's.
    want = {
      "grpo": (
        [0.892698, -1.080634, 0.187936, *second],
        [0.963143, -1.033175, 0.070032, *second],
      ),
      "gdpo": (
        [1.670002, -1.140019, -0.031609, -0.277923, -0.277923, 1.054220],
        [1.891262, -1.119816, -0.349506, -0.167953, -0.167953, 0.757845],
      ),
    }
    for dtype, atol in ((np.float64, 2e-6), (np.float32, 1e-5)):
      for name, expected in want.items():
        f = jax.jit(partial(estimate, name, lengths=lengths))
        for w, one in zip(
          ([1, 1], [0.636332, 1.363668]), expected, strict=True
        ):
          with jax.enable_x64(dtype is np.float64):
            found = f(rewards.astype(dtype), np.array(w, dtype))
          assert_allclose(found.reshape(-1), one, atol=atol)


def each(rewards, weights=WEIGHTS, **values):
  return {n: estimate(n, rewards, weights, **values) for n in ESTIMATORS}


class EveryAdvantageTest(chex.TestCase):
  def close(self, found, want, atol=1e-5, rtol=0):
    chex.assert_trees_all_close(found, want, atol=atol, rtol=rtol)

  @chex.variants(with_jit=True, without_jit=True)
  def test_order_shifts_and_devices(self):
    rewards, lengths = sample((8, 5, 2))
    f = self.variant(lambda r, n: each(r, lengths=n))
    found = f(rewards, lengths)
    # A permuted group has permuted advantages.
    order = np.array([3, 1, 4, 0, 2])
    permuted = f(rewards[:, order], lengths[:, order])
    self.close({n: np.array(x)[:, order] for n, x in found.items()}, permuted)
    self.close(f(rewards + 4, lengths), found, atol=1e-4)
    split = helpers.over_devices(
      lambda r, n, axis_name: each(r, lengths=n, axis_name=axis_name),
      rewards,
      lengths,
    )
    self.close(split, found)

  def test_constant_groups_have_exactly_zero(self):
    rng = np.random.default_rng(0)
    w = np.array([0.6363320, 1.3636680, 1.1], np.float32)
    f = jax.jit(lambda r, n: each(r, w, lengths=n))
    for group_size in (3, 7, 16, 64):
      constants = rng.uniform(-3, 3, (50, 1, 3)).astype(np.float32)
      rewards = np.repeat(constants, group_size, 1)
      lengths = rng.integers(1, 9, rewards.shape[:2])
      for name, found in f(rewards, lengths).items():
        assert_array_equal(found, 0, f"{name} {group_size}")

  def test_what_is_not_scored_is_as_if_absent(self):
    rewards, lengths = sample()
    f = jax.jit(lambda r, s: each(r, scored=s, lengths=lengths))

    def found(which):
      scored = np.broadcast_to(which[..., None], rewards.shape)
      every = f(np.where(scored, rewards, np.nan), scored)
      return {name: np.array(x) for name, x in every.items()}

    first = np.arange(5)[None] < np.full((3, 1), 3)
    want = jax.jit(lambda r: each(r, lengths=lengths[:, :3]))(rewards[:, :3])
    kept = {name: x[:, :3] for name, x in found(first).items()}
    self.close(kept, want, rtol=1e-5, atol=0)
    # Nothing, and one response of a group, have nothing to compare.
    nothing, one = first & False, first & (np.arange(5) == 2)[None]
    for name in ESTIMATORS:
      assert_array_equal(found(first)[name][:, 3:], 0, name)
      assert_array_equal(found(nothing)[name], 0, name)
      assert_array_equal(found(one)[name], 0, name)

  def test_no_gradient_and_float32_inside(self):
    rewards, lengths = sample()

    def gradient(name):
      return jax.grad(
        lambda r, w: jnp.sum(estimate(name, r, w, lengths=lengths) ** 2), (0, 1)
      )

    gradients = jax.jit(
      lambda r, w: {name: gradient(name)(r, w) for name in ESTIMATORS}
    )(rewards, WEIGHTS)
    assert not any(x.any() for x in jax.tree.leaves(gradients))
    low = jnp.asarray(rewards, jnp.bfloat16)
    found, want = (each(x, lengths=lengths) for x in (low, low.astype(float)))
    assert {x.dtype for x in found.values()} == {jnp.float32.dtype}
    chex.assert_trees_all_equal(found, want)
    alone = each(rewards[:, :1], lengths=lengths[:, :1])
    chex.assert_tree_all_finite(alone)

  @parameterized.parameters("grpo", "rloo", "dr_grpo", "gpg")
  def test_penalties_are_another_component_and_a_group_of_one(self, name):
    rewards, _ = sample()
    penalties = np.random.default_rng(1).normal(size=(3, 5)).astype(np.float32)
    joined = np.concatenate([rewards, penalties[..., None]], -1)
    found = estimate(name, rewards, penalties=penalties)
    want = estimate(name, joined, jnp.array([0.5, 1.5, -1.0]))
    assert_allclose(found, want, atol=1e-5)
    alone = np.array([[[3.0]], [[-1.0]]])
    eps = 1e-6 if name == "grpo" else 0
    want = alone[..., 0] / (1 + eps)
    assert_allclose(estimate(name, alone, ONE), want, rtol=1e-7)


class ByHandTest(chex.TestCase):
  def test_of_three(self):
    rewards = np.array([[[0.0], [1.0], [5.0]]])
    # RLOO: the others' means are (1 + 5) / 2, (0 + 5) / 2, (0 + 1) / 2.
    assert_allclose(advantages.rloo(rewards, ONE), [[-3, -1.5, 4.5]])
    assert_allclose(advantages.dr_grpo(rewards, 2 * ONE), [[-4, -2, 6]])
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(3, 5)).astype(np.float32)
    scored = np.array([[1] * 5, [1, 0, 1, 1, 0], [0, 0, 1, 0, 0]], bool)
    found = advantages.leave_one_out(scores, scored=scored)
    for p, g in np.ndindex(3, 5):
      others = [scores[p, k] for k in range(5) if k != g and scored[p, k]]
      want = scores[p, g] - np.mean(others) if others and scored[p, g] else 0
      assert_allclose(found[p, g], want, rtol=1e-5, atol=1e-6)

  def test_reinforce_plus_plus_agrees_with_numpy(self):
    rewards, lengths = sample()
    centered = rewards @ WEIGHTS - (rewards @ WEIGHTS).mean(1, keepdims=True)
    tokens = np.repeat(centered.ravel(), lengths.ravel())
    found = estimate("reinforce_plus_plus_baseline", rewards, lengths=lengths)
    want = (centered - tokens.mean()) / tokens.std(ddof=1)
    assert_allclose(found, want, rtol=1e-4)

  def test_a_partly_scored_response_counts_as_far_as_it_is_scored(self):
    rewards, _ = sample((1, 4, 2))
    gdpo, grpo, normalize = map(
      jax.jit,
      (
        partial(advantages.gdpo, whiten=None),
        advantages.grpo,
        advantages.normalize_groups,
      ),
    )
    scored = np.ones(rewards.shape, bool)
    scored[0, 3, 1] = False
    ones = jnp.ones(2)
    result = gdpo(rewards, ones, scored=scored)
    first = normalize(rewards[..., 0])
    second = normalize(rewards[:, :3, 1])
    assert_allclose(result[0, 3], first[0, 3], rtol=1e-6)
    assert_allclose(result[0, :3], first[0, :3] + second[0], rtol=1e-5)
    # In GRPO it is left out.
    result = grpo(rewards, ones, scored=scored)
    assert result[0, 3] == 0
    want = grpo(rewards[:, :3], ones)
    assert_allclose(result[:, :3], want, rtol=1e-6)

  def test_gdpo_says_that_lengths_are_missing(self):
    with self.assertRaisesRegex(ValueError, "lengths"):
      advantages.gdpo(sample()[0], jnp.ones(2))


class GpgTest(chex.TestCase):
  # Groups: constant, varied, constant at 0, varied with one unscored response.
  REWARDS = np.array([[1, 1, 1], [0, 1, 1], [0, 0, 0], [1, 0, 5]], np.float32)
  REWARDS = REWARDS[..., None]
  SCORED = REWARDS != 5

  @parameterized.parameters((GPG, 4 / 2), (GPG_NONZERO, 11 / 6))
  def test_factors_by_hand(self, f, factor):
    plain = advantages.dr_grpo(self.REWARDS, ONE, scored=self.SCORED)

    def gpg(rewards, scored, **axis):
      return f(rewards, ONE, scored=scored, f_norm=2.0, **axis)

    found = gpg(self.REWARDS, self.SCORED)
    assert_allclose(found, factor / 2 * plain, rtol=1e-6)
    # Two of the four devices hold no group that varies.
    split = helpers.over_devices(gpg, self.REWARDS, self.SCORED)
    assert_allclose(split, found, rtol=1e-6)
    assert_array_equal(f(np.zeros((2, 3, 1)), ONE), 0)

  def test_a_group_without_any_score_is_not_counted(self):
    scored = self.SCORED.copy()
    scored[0] = False
    found = GPG(self.REWARDS, ONE, scored=scored)
    want = GPG(self.REWARDS[1:], ONE, scored=scored[1:])
    assert_allclose(found[1:], want, rtol=1e-6)
    assert_allclose(found[3, :2], [0.75, -0.75], rtol=1e-6)

  @chex.variants(with_jit=True, without_jit=True)
  def test_varied_groups(self):
    f = self.variant(lambda r, s: advantages.varied_groups(r, ONE, scored=s))
    found = f(self.REWARDS, self.SCORED)
    assert_array_equal(found, [False, True, False, True])
    scored = self.SCORED.copy()
    scored[1, 0] = scored[3] = False
    assert not f(self.REWARDS, scored).any()

  def test_varied_groups_are_those_with_an_advantage(self):
    rng = np.random.default_rng(0)
    rewards = rng.integers(0, 2, (50, 3, 2)) * np.float32(1.8)
    w = jnp.array([0.6363320, 1.3636680])
    has_advantage = np.any(advantages.dr_grpo(rewards, w) != 0, axis=1)
    found = advantages.varied_groups(rewards, w)
    assert_array_equal(found, has_advantage)
    assert 0 < found.sum() < 50
    same = np.array([[[0.0, 1.0], [1.0, 0.0]]])  # adds up to the same
    assert not advantages.varied_groups(same, jnp.ones(2))


class WhiteningTest(chex.TestCase):
  @parameterized.product(
    whiten=(advantages.token_whiten, advantages.sequence_whiten),
    eps=(0.0, 1e-8),
  )
  def test_what_does_not_differ_is_zero(self, whiten, eps):
    for a in (np.zeros((2, 3)), np.full((2, 3), 0.9999), np.ones((1, 1))):
      for lengths in (np.full(a.shape, 7), np.zeros(a.shape)):
        assert_array_equal(whiten(a, lengths=lengths, eps=eps), 0)
