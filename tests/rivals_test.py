"""Methods of 2026: vectors of tests/golden/rivals.json, and what must hold."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from numpy.testing import assert_allclose, assert_array_equal

from saw_jax import advantages, component_advantages, weighting
from tests import helpers

GOLDEN = helpers.golden("rivals")
DTYPES = (np.float64, np.float32)
partial = functools.partial


def cases(method):
  """Named cases of a method, with both types."""
  return [
    (f"{case['name']}_{dtype.__name__}", case, dtype)
    for case in GOLDEN["cases"]
    if case["method"] == method
    for dtype in DTYPES
  ]


def read(case, dtype):
  """The inputs of a case as arrays, its options and what is expected."""
  inputs = {k: np.array(x) for k, x in case["inputs"].items()}
  inputs = {
    k: x.astype(bool if "mask" in k else dtype) for k, x in inputs.items()
  }
  return inputs, case["params"], case["expected"]


def close(found, want, dtype):
  tolerance = GOLDEN["tolerance"][np.dtype(dtype).name]
  assert_allclose(found, np.array(want, float), **tolerance)


def rewards_of(shape=(6, 4, 3), seed=0):
  rng = np.random.default_rng(seed)
  return rng.uniform(0, 1, shape).astype(np.float32)


class RewardsTest(parameterized.TestCase):
  @parameterized.named_parameters(*cases("sa_mrpo"))
  def test_sa_mrpo(self, case, dtype):
    with jax.enable_x64(dtype is np.float64):
      given, params, want = read(case, dtype)
      found = weighting.saturation_weights(
        given["rewards"],
        minima=given["minima"],
        maxima=given["maxima"],
        priorities=given["weights"],
        gamma=params["gamma"],
      )
      close(found, want["weights"], dtype)
      parts = [
        advantages.normalize_groups(part, eps=0.0, ddof=0)
        for part in np.moveaxis(given["rewards"], -1, 0)
      ]
      total = sum(w * part for w, part in zip(found, parts, strict=True))
      close((total - total.mean()) / total.std(), want["advantages"], dtype)

  def test_saturation_by_hand_and_at_its_ends(self):
    (_, case, _), *_ = cases("sa_mrpo_weights")
    (first, second) = case["inputs"]["saturation"]
    rewards = np.array([[first, second], [first, second]])
    for gamma, want in zip(
      case["params"]["gammas"], case["expected"]["weights"], strict=True
    ):
      found = weighting.saturation_weights(rewards, gamma=gamma)
      assert_allclose(found, want, rtol=1e-6)
    # Beyond its bounds a mean is at them, and gamma orders the weights.
    rewards = rewards_of() + np.array([0, -9, 0.3], np.float32)
    low, high = (
      weighting.saturation_weights(rewards, gamma=g) for g in (0.25, 1.0)
    )
    assert low[1] == high[1] == 1 and (high < low)[::2].all()
    saturated = weighting.saturation_weights(np.ones((2, 4, 3)), gamma=0.5)
    assert_array_equal(advantages.gdpo(rewards, saturated, whiten=None), 0)
    gdpo = partial(advantages.gdpo, rewards, whiten=advantages.sequence_whiten)
    none = weighting.saturation_weights(rewards, gamma=0.0)
    assert_array_equal(gdpo(none), gdpo(jnp.ones(3)))

  @parameterized.named_parameters(*cases("weight_schedule"))
  def test_schedule(self, case, dtype):
    given, _, want = read(case, dtype)
    with jax.enable_x64(dtype is np.float64):
      fn = partial(
        weighting.scheduled_weights,
        np.zeros((1, 2), dtype),
        steps=given["anchor_steps"],
        values=given["anchor_weights"],
      )
      close(jax.vmap(fn)(given["steps"].astype(int)), want["weights"], dtype)
      one = partial(fn, steps=[7], values=[[1.5, 0.5]])
      assert_array_equal([one(step) for step in (0, 7, 99)], [[1.5, 0.5]] * 3)
    for wrong in ({"steps": [0, 100, 100]}, {"values": np.ones((3, 3))}):
      with pytest.raises(ValueError, match="rising steps"):
        fn(1, **wrong)

  @parameterized.named_parameters(*cases("dvao"))
  def test_dvao(self, case, dtype):
    given, params, want = read(case, dtype)
    rewards, weights = given["rewards"], given["weights"]
    with jax.enable_x64(dtype is np.float64):
      found = component_advantages.dvao(rewards, weights, **params)
      close(found, want["advantages"], dtype)
      # The paper's own order: weights of the group, of standardised parts.
      parts = advantages.normalize_groups(np.moveaxis(rewards, -1, 0), **params)
      close(np.einsum("pk,kpg->pg", want["group_weights"], parts), found, dtype)
      plain = advantages.grpo(rewards, weights, **params)
      close(plain, want["reward_combination"], dtype)
      assert (np.abs(found) <= np.abs(plain) + 1e-6).all()

  def test_dvao_of_one_component_is_grpo_and_noise_gains_weight(self):
    one, ones = rewards_of((6, 4, 1)), jnp.ones(1)
    for rewards in (one, one[:, :1]):
      found = component_advantages.dvao(rewards, ones)
      assert_allclose(found, advantages.grpo(rewards, ones), rtol=1e-6)
    # A steady component loses its say to one that is noise of larger scale.
    signal = np.tile(np.array([0.0, 0.1, 0.2, 0.3]), (6, 1))
    mixed = np.stack([signal, 9 * rewards_of((6, 4), 1)], -1)
    found = component_advantages.dvao(mixed, jnp.ones(2))
    noise = advantages.normalize_groups(mixed[..., 1])
    assert np.corrcoef(found.ravel(), noise.ravel())[0, 1] > 0.99
    # What is not scored adds to neither sum.
    scored = np.ones(mixed.shape, bool)
    scored[..., 1] = False
    found = component_advantages.dvao(mixed, jnp.ones(2), scored=scored)
    want = component_advantages.dvao(mixed[..., :1], jnp.ones(1))
    assert_allclose(found, want, rtol=1e-6)

  @parameterized.named_parameters(*cases("gd2po"))
  def test_gd2po(self, case, dtype):
    given, params, want = read(case, dtype)
    tau = np.inf if params["tau"] is None else params["tau"]
    with jax.enable_x64(dtype is np.float64):
      fn = partial(
        component_advantages.gd2po,
        given["rewards"],
        np.ones(3, dtype),
        lengths=given["lengths"],
      )
      close(fn(tau=tau), want["advantages"], dtype)
      assert not np.array(fn(tau=tau))[~np.array(want["keep"], bool)].any()
      gdpo = advantages.gdpo(
        given["rewards"], np.ones(3, dtype), lengths=given["lengths"]
      )
      close(fn(tau=0.0), gdpo, dtype)

  def test_gd2po_where_little_is_kept(self):
    lengths, fn = np.ones((1, 2)), component_advantages.gd2po
    against = np.array([[[0.0, 1.0], [1.0, 0.0]]])
    # Both conflict; then one token is kept of all.
    assert_array_equal(fn(against, jnp.ones(2), lengths=lengths), 0)
    scored = np.array([[[1, 1], [0, 0]]], bool)
    one = fn(against, jnp.ones(2), scored=scored, lengths=lengths)
    assert_array_equal(one, 0)
    hard = partial(
      fn, rewards_of((6, 4, 1)), jnp.ones(1), lengths=np.ones((6, 4))
    )
    assert_allclose(hard(tau=np.inf), hard(tau=0.0), rtol=1e-6)

  @parameterized.named_parameters(*cases("opmd_advantages"))
  def test_opmd(self, case, dtype):
    given, params, want = read(case, dtype)
    rewards, one = given["rewards"][..., None], np.ones(1, dtype)
    with jax.enable_x64(dtype is np.float64):
      found = component_advantages.opmd(rewards, one, **params)
      close(found, want["logavgexp"], dtype)
      close(advantages.dr_grpo(rewards, one), want["mean"], dtype)
    flat = component_advantages.opmd(rewards, one, tau=1e4)
    assert_allclose(flat, want["mean"], atol=2e-3)

  @parameterized.named_parameters(*cases("mo_grpo"))
  def test_mo_grpo_is_a_name(self, case, dtype):
    given, _, want = read(case, dtype)
    with jax.enable_x64(dtype is np.float64):
      found = advantages.gdpo(given["rewards"], np.ones(3, dtype), whiten=None)
      close(found, want["advantages"], dtype)
