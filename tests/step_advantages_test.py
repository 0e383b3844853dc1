"""Every advantage of steps: vectors, loops, properties."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized
from numpy.testing import assert_allclose

from saw_jax import advantages, algorithms, naming
from saw_jax import step_advantages as steps_lib
from tests import helpers

PAW = helpers.golden("paw_gigpo")
(GOLDEN,) = (case for case in PAW["cases"] if case["kind"] == "advantage")
# BRACE, which gives targets too, is in tests/rivals_test.py.
ESTIMATORS = dict(algorithms.STEP_ADVANTAGES)
del ESTIMATORS["brace"]


def golden_steps(dtype):
  """The golden steps as `[P, G, E]`: rewards, anchors, penalties, a mask.

  Also, for each array of the file, where its entries are in that shape.
  """
  inputs = GOLDEN["inputs"]
  group, traj = np.array(inputs["group"]), np.array(inputs["traj"])
  first = np.array([0, 3])  # of each group, its first trajectory
  step = [(traj[:i] == one).sum() for i, one in enumerate(traj)]
  rows = group, traj - first[group], np.array(step)
  _, anchors = np.unique(inputs["anchor"], return_inverse=True)
  penalties = inputs["penalty_coef"] * np.array(inputs["invalid"])

  def spread(values, dtype, fill=0):
    array = np.full((2, 3, 4), fill, dtype)
    array[rows] = values
    return array

  rewards, anchors = spread(inputs["reward"], dtype), spread(anchors, int, -1)
  return rewards, anchors, spread(penalties, dtype), spread(True, bool), rows


def sample(seed=0, shape=(2, 3, 5)):
  rng = np.random.default_rng(seed)
  lengths = rng.integers(1, shape[-1] + 1, shape[:2])
  return dict(
    steps=np.arange(shape[-1]) < lengths[..., None],
    rewards=rng.normal(size=shape).astype(np.float32),
    anchors=rng.integers(0, 3, shape),
    values=rng.normal(size=shape).astype(np.float32),
    penalties=rng.random(shape).astype(np.float32),
  )


def call(name, record, **changes):
  return naming.supply(ESTIMATORS[name], **{**record, **changes})


class GoldenTest(chex.TestCase):
  @chex.variants(with_jit=True)
  @parameterized.parameters(np.float64, np.float32)
  def test_every_number(self, dtype):
    rewards, at, penalties, mask, rows = golden_steps(dtype)
    inputs, want = GOLDEN["inputs"], GOLDEN["expected"]
    options = {k: inputs[k] for k in ("gamma", "omega")}
    std = functools.partial(advantages.normalize_groups, eps=inputs["eps"])

    def every(r, p):
      returns = steps_lib.step_returns(r, mask, gamma=options["gamma"]) - p
      found = {"step_return": returns}
      for name, normalize, across in (
        ("mean_std_norm", std, "trajectory_grpo"),
        ("mean_norm", advantages.center_groups, "trajectory_center"),
      ):
        how = {"normalize": normalize}
        for key, value in (
          (
            "grpo_episode_adv",
            steps_lib.step_grpo(r, mask, penalties=p, **how),
          ),
          (
            "gigpo_step_adv",
            steps_lib.anchor_advantages(returns, at, mask, **how),
          ),
          (
            "gigpo_adv",
            steps_lib.gigpo(r, at, mask, penalties=p, **how, **options),
          ),
          (
            "grpo_episode_adv_across_trajectories",
            ESTIMATORS[across](r, mask, penalties=p),
          ),
        ):
          found[f"{key}/{name}"] = value
      return found

    with jax.enable_x64(dtype is np.float64):
      found = self.variant(every)(rewards, penalties)
    assert set(found) == set(want) - {"step_score", "anchor_group"}
    tolerance = PAW["tolerance"][np.dtype(dtype).name]
    for name, values in found.items():
      assert values.dtype == dtype
      assert_allclose(values[rows], want[name], **tolerance, err_msg=name)
      if name != "step_return":
        assert not np.array(values)[~mask].any(), name


class EveryAdvantageTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  def test_what_was_not_taken_has_no_say(self):
    record = sample()
    taken = record["steps"]
    dirty = {
      k: np.where(taken, x, np.nan) if x.dtype == np.float32 else x
      for k, x in record.items()
    }
    every = self.variant(lambda x: {n: call(n, x) for n in ESTIMATORS})
    clean = every(record)
    chex.assert_trees_all_close(every(dirty), clean, rtol=1e-5, atol=1e-6)
    for name, found in clean.items():
      found = np.array(found)
      assert not found[~taken].any() and np.abs(found).max() > 0.1, name

  @parameterized.parameters("rewards", "penalties")
  def test_it_gets_no_gradient(self, what):
    record = sample()

    def gradient(name, x):
      def total(x):  # of a plain sum the parts cancel
        found = call(name, record, **{what: x})
        waves = np.cos(np.arange(found.size)).reshape(found.shape)
        return (found * waves).sum()

      return jax.grad(total)(x)

    every = jax.jit(lambda x: {name: gradient(name, x) for name in ESTIMATORS})
    for name, found in every(record["rewards"]).items():
      assert not found.any(), name

  def test_constant_groups_are_exactly_zero(self):
    record = sample(shape=(2, 7, 3))
    rewards = np.zeros(record["steps"].shape, np.float32)
    apart = np.broadcast_to(np.arange(3), rewards.shape)
    rest = {"anchors": apart, "penalties": None}
    names = sorted(set(ESTIMATORS) - {"step_gae"})
    every = jax.jit(
      lambda r: {n: call(n, record, rewards=r, **rest) for n in names}
    )
    for paid in (0.1, 1.8, 10.0):
      rewards[..., 0] = paid
      for name, found in every(rewards).items():
        assert not found.any(), (name, paid)

  def test_of_one_step_each_is_the_advantage_of_answers(self):
    record = sample(shape=(2, 5, 1))
    record["steps"] = np.ones((2, 5, 1), bool)
    # All episodes begin in the same place: the two terms of GiGPO are one.
    record["anchors"] *= 0
    for name, other, factor in (
      ("step_grpo", advantages.grpo, 1),
      ("trajectory_grpo", advantages.grpo, 1),
      ("gigpo", advantages.grpo, 2),
      ("trajectory_center", advantages.dr_grpo, 1),
      ("step_rloo", advantages.rloo, 1),
    ):
      found, want = jax.jit(
        lambda r, name=name, other=other: (
          call(name, record, rewards=r, penalties=None)[..., 0],
          other(r, np.ones(1, np.float32)),
        )
      )(record["rewards"])
      assert_allclose(found, factor * want, rtol=1e-5, atol=1e-6)


class StepsTest(chex.TestCase):
  def test_gigpo_adds_discounted_steps_times_omega(self):
    record = sample()
    steps = record["steps"]
    later = steps_lib.step_returns(record["rewards"], steps, gamma=0.9)
    later -= np.where(steps, record["penalties"], 0)
    by_step = steps_lib.anchor_advantages(later, record["anchors"], steps)
    found = call("gigpo", record, gamma=0.9, omega=0.5)
    want = call("step_grpo", record) + 0.5 * by_step
    assert_allclose(found, want, rtol=1e-5, atol=1e-6)
    ones = jnp.ones((1, 1, 3))
    returns = steps_lib.step_returns(ones, ones, gamma=0.5)
    assert_allclose(returns[0, 0], [1.75, 1.5, 1])
    # A single step has nothing to be compared with.
    one = jnp.ones((1, 1, 1))
    assert steps_lib.anchor_advantages(one, one.astype(int), one) == 0

  def test_rloo_compares_with_all_other_steps_of_the_group(self):
    rewards = np.array([[[0.0, 6.0, 9.0], [3.0, 9.0, 9.0]]], np.float32)
    mask = np.array([[[1, 1, 0], [1, 0, 0]]], bool)
    penalties = np.array([[[0.0, 0.5, 9.0], [0.0, 9.0, 9.0]]], np.float32)
    found = steps_lib.step_rloo(rewards, mask, penalties=penalties)
    # Scores 6, 5.5 and 3.
    want = [[6 - 4.25, 5.5 - 4.5, 0], [3 - 5.75, 0, 0]]
    assert_allclose(found[0], want, rtol=1e-6)


class GaeTest(chex.TestCase):
  def test_time_runs_over_the_steps_of_an_episode(self):
    record = sample(1, (2, 3, 4))
    found = call("step_gae", record, gamma=0.9, lambda_=0.8)
    rewards, values = record["rewards"] - record["penalties"], record["values"]
    for p, g in np.ndindex(2, 3):
      length, later = record["steps"][p, g].sum(), 0.0
      for t in reversed(range(length)):
        after = 0.0 if t == length - 1 else values[p, g, t + 1]
        later = rewards[p, g, t] + 0.9 * after - values[p, g, t] + 0.72 * later
        assert_allclose(found[p, g, t], later, rtol=1e-4, atol=1e-5)

  @chex.variants(with_jit=True, without_jit=True)
  def test_masked_equals_subset(self):
    rng = np.random.default_rng(1)
    r, v = rng.normal(size=(2, 1, 6)).astype(np.float32)
    mask = np.array([[0, 1, 1, 0, 1, 0]], bool)
    f = self.variant(functools.partial(steps_lib.gae, gamma=0.9, lambda_=0.8))
    found = f(np.where(mask, r, np.nan), np.where(mask, v, np.inf), mask)
    want = f(r[mask][None], v[mask][None], np.ones((1, 3), bool))
    assert_allclose(found[mask], want[0], rtol=1e-6)
    assert not found[~mask].any()
