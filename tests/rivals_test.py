"""Methods of 2026: vectors of tests/golden/rivals.json, and what must hold."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import parameterized
from numpy.testing import assert_allclose, assert_array_equal

from saw_jax import (
  advantages,
  algorithms,
  component_advantages,
  diagnostics,
  losses,
  naming,
  stale_losses,
  step_advantages,
  trust_masks,
  trust_regions,
  weighting,
  world_model,
)
from saw_jax.labels import trajectories
from saw_jax.run import answers, methods
from saw_jax.run import config as config_lib
from saw_jax.tasks import data
from saw_jax.tasks.workers.grading import Grader
from saw_jax.training import estimation, objective, update
from tests import helpers, losses_test
from tests.training import update_test

GOLDEN = helpers.golden("rivals")
DTYPES = (np.float64, np.float32)
partial = functools.partial


def first(method):
  """The first case of a method, as it is written down."""
  return next(x for x in GOLDEN["cases"] if x["method"] == method)


class Case:
  """A case with arrays of one type, and how close to it numbers have to be."""

  def __init__(self, case, dtype):
    self.method, self.dtype = case["method"], dtype
    self.params, self.want = dict(case["params"]), case["expected"]
    self.given = {
      k: np.array(x).astype(bool if "mask" in k else dtype)
      for k, x in case["inputs"].items()
    }

  def close(self, found, want):
    tolerance = GOLDEN["tolerance"][np.dtype(self.dtype).name]
    assert_allclose(found, np.array(want, float), **tolerance)


def golden(*methods):
  """Runs a test on the cases of methods, with both types."""
  chosen = [x for x in GOLDEN["cases"] if x["method"] in methods]
  named = [
    (f"{case['name']}_{dtype.__name__}", case, dtype)
    for case in sorted(chosen, key=lambda x: methods.index(x["method"]))
    for dtype in DTYPES
  ]

  def decorate(test):
    def run(self, case, dtype):
      with jax.enable_x64(dtype is np.float64):
        test(self, Case(case, dtype))

    run.__name__ = test.__name__
    return parameterized.named_parameters(*named)(run)

  return decorate


def rewards_of(shape=(6, 4, 3), seed=0):
  rng = np.random.default_rng(seed)
  return rng.uniform(0, 1, shape).astype(np.float32)


class RewardsTest(parameterized.TestCase):
  @golden("sa_mrpo")
  def test_sa_mrpo(self, case):
    ends = {name: case.given[name] for name in ("minima", "maxima")}
    found = weighting.saturation_weights(
      case.given["rewards"],
      priorities=case.given["weights"],
      gamma=case.params["gamma"],
      **ends,
    )
    case.close(found, case.want["weights"])
    parts = [
      advantages.normalize_groups(part, eps=0.0, ddof=0)
      for part in np.moveaxis(case.given["rewards"], -1, 0)
    ]
    total = sum(w * part for w, part in zip(found, parts, strict=True))
    case.close((total - total.mean()) / total.std(), case.want["advantages"])

  def test_saturation_by_hand_and_at_its_ends(self):
    case = first("sa_mrpo_weights")
    rewards = np.array([case["inputs"]["saturation"]] * 2)
    for gamma, want in zip(
      case["params"]["gammas"], case["expected"]["weights"], strict=True
    ):
      found = weighting.saturation_weights(rewards, gamma=gamma)
      assert_allclose(found, want, rtol=1e-6)
    # Beyond its bounds a mean is at them, and gamma orders the weights.
    rewards = rewards_of() + np.array([0, -9, 0.3], np.float32)
    low = weighting.saturation_weights(rewards, gamma=0.25)
    high = weighting.saturation_weights(rewards, gamma=1.0)
    assert low[1] == high[1] == 1 and (high < low)[::2].all()
    saturated = weighting.saturation_weights(np.ones((2, 4, 3)), gamma=0.5)
    assert_array_equal(advantages.gdpo(rewards, saturated, whiten=None), 0)
    gdpo = partial(advantages.gdpo, rewards, whiten=advantages.sequence_whiten)
    none = weighting.saturation_weights(rewards, gamma=0.0)
    assert_array_equal(gdpo(none), gdpo(jnp.ones(3)))

  @golden("weight_schedule")
  def test_schedule(self, case):
    fn = partial(
      weighting.scheduled_weights,
      np.zeros((1, 2), case.dtype),
      steps=case.given["anchor_steps"],
      values=case.given["anchor_weights"],
    )
    found = jax.vmap(fn)(case.given["steps"].astype(int))
    case.close(found, case.want["weights"])
    one = partial(fn, steps=[7], values=[[1.5, 0.5]])
    assert_array_equal([one(step) for step in (0, 7, 99)], [[1.5, 0.5]] * 3)
    for wrong in ({"steps": [0, 100, 100]}, {"values": np.ones((3, 3))}):
      with pytest.raises(ValueError, match="rising steps"):
        fn(1, **wrong)

  @golden("dvao")
  def test_dvao(self, case):
    given, params, want = case.given, case.params, case.want
    rewards, weights = given["rewards"], given["weights"]
    found = component_advantages.dvao(rewards, weights, **params)
    case.close(found, want["advantages"])
    # The paper's own order: weights of the group, of standardised parts.
    parts = advantages.normalize_groups(np.moveaxis(rewards, -1, 0), **params)
    case.close(np.einsum("pk,kpg->pg", want["group_weights"], parts), found)
    plain = advantages.grpo(rewards, weights, **params)
    case.close(plain, want["reward_combination"])
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

  @golden("gd2po")
  def test_gd2po(self, case):
    tau, want = case.params["tau"], case.want
    given = case.given["rewards"], np.ones(3, case.dtype)
    lengths = {"lengths": case.given["lengths"]}
    fn = partial(component_advantages.gd2po, *given, **lengths)
    found = np.array(fn(tau=np.inf if tau is None else tau))
    case.close(found, want["advantages"])
    assert not found[~np.array(want["keep"], bool)].any()
    case.close(fn(tau=0.0), advantages.gdpo(*given, **lengths))

  def test_gd2po_where_little_is_kept(self):
    lengths, fn = np.ones((1, 2)), component_advantages.gd2po
    against = np.array([[[0.0, 1.0], [1.0, 0.0]]])
    # Both conflict; then one token is kept of all.
    assert_array_equal(fn(against, jnp.ones(2), lengths=lengths), 0)
    scored = np.array([[[1, 1], [0, 0]]], bool)
    one = fn(against, jnp.ones(2), scored=scored, lengths=lengths)
    assert_array_equal(one, 0)
    given = rewards_of((6, 4, 1)), jnp.ones(1)
    hard = partial(fn, *given, lengths=np.ones((6, 4)))
    assert_allclose(hard(tau=np.inf), hard(tau=0.0), rtol=1e-6)

  @golden("opmd_advantages")
  def test_opmd(self, case):
    rewards, one = case.given["rewards"][..., None], np.ones(1, case.dtype)
    found = component_advantages.opmd(rewards, one, **case.params)
    case.close(found, case.want["logavgexp"])
    case.close(advantages.dr_grpo(rewards, one), case.want["mean"])
    flat = component_advantages.opmd(rewards, one, tau=1e4)
    assert_allclose(flat, case.want["mean"], atol=2e-3)

  @golden("mo_grpo")
  def test_mo_grpo_is_a_name(self, case):
    ones = np.ones(3, case.dtype)
    found = advantages.gdpo(case.given["rewards"], ones, whiten=None)
    case.close(found, case.want["advantages"])

  @golden("constrained_grpo")
  def test_constrained_grpo(self, case):
    """A reward of 1 - C with a target of 1 - d is the constraint C <= d."""
    given, want, dtype = case.given, case.want, case.dtype
    kept = 1 - given["costs"]
    rewards = np.concatenate([given["rewards"][..., None], kept], -1)
    weights = np.array([1.0, *given["multipliers"]], dtype)
    targets = np.array([np.nan, *(1 - given["thresholds"])], dtype)
    options = dict(targets=targets, rate=case.params["dual_lr"])
    found = algorithms.ADVANTAGES["mo_grpo"](rewards, weights)
    case.close(found, want["advantages"])
    move = partial(weighting.dual_weights, rewards, **options)
    case.close(move(1, weights), [1.0, *want["next_multipliers"]])
    # A run begins with multipliers of 0, whatever a state has before it.
    short = targets[1:] - kept.mean((0, 1))
    case.close(move(0, weights), [1.0, *(0.5 * short).clip(0)])
    bounds = move(1, np.array([7.0, 11.0, -1.0], dtype), most=2.0)
    assert_array_equal(bounds, [1, 2, 0])
    unseen = np.ones(rewards.shape, bool)
    unseen[..., 2] = False
    assert move(1, weights, scored=unseen)[2] == weights[2]


SLOW = [pytest.param(x, marks=pytest.mark.slow) for x in ("meshed", "pmapped")]
on_each_lift = pytest.mark.parametrize("lift", ["seeded", *SLOW])


@on_each_lift
def test_multipliers_go_from_step_to_step(lift):
  algorithm = {"advantage": "mo_grpo", "weights": "dual"}
  algorithm["weights_options"] = {"targets": (None, 0.9)}
  made = helpers.experiment(algorithm=algorithm, parallel={"lift": lift})
  one = helpers.make_learner(made)
  assert one.policy.state.step.sum() == 0
  want = 0.0
  with Grader(made.task, num_workers=0, limit_s=1.0) as grader:
    source = answers.Answers(one, grader, None)
    for step in range(3):
      scored = source.score(source.generate(step), step)
      _, (row,) = source.estimate(scored, step)
      want += 0.5 * (0.9 - row["reward/small"])
      assert row["weight/letter"] == 1
      assert_allclose(row["weight/small"], want, rtol=1e-5)
  state = one.policy.lift.fetch(one.policy.state)
  assert_allclose(state.weights, [[1, want]], rtol=1e-5)


AGGREGATES = losses_test.AGGREGATES
masked = partial(stale_losses.tis_loss, outside=stale_losses.drop)


def opmd(log_probs, advantages, completion_mask, *, tau, aggregate):
  """The policy gradient, with 1 + τ in the advantages."""
  scaled = advantages / (1 + tau)
  return losses.policy_gradient_loss(
    log_probs, scaled, completion_mask, aggregate=aggregate
  )


# Of each method of the vectors: its loss, and what it makes of the parameters.
LOSSES = {
  "sapo": (trust_regions.sapo_loss, ("tau_pos", "tau_neg")),
  "quadratic_token": (trust_regions.quadratic_loss, {"tau": "beta"}),
  "quadratic_sequence": (
    partial(
      trust_regions.quadratic_loss,
      per_response=True,
      aggregate=losses.sequence_mean_token_sum,
    ),
    {"tau": "beta"},
  ),
  "opmd_loss": (opmd, ("tau",)),
  "icepop_ppo": (masked, ("clip_low", "clip_high")),
  "sequence_mask_ppo": (partial(masked, ratio_of=losses.sequence_ratio), ()),
  "geometric_mask_token_weight_ppo": (
    partial(masked, measured_by=losses.geometric_ratio),
    (),
  ),
  "a3po": (
    trust_regions.a3po_loss,
    {"behaviour_weight": "correct", "clip_low": "clip_low"},
  ),
}


def arrays_of(given):
  """The inputs of a case, as the library calls them."""
  names = {"logp": "log_probs", "mask": "completion_mask", "lag": "lags"}
  return {
    names.get(k, k.replace("logp", "log_probs")): x for k, x in given.items()
  }


def one_token(ratio, advantage=1.0, **more):
  """A token whose probability is this many times that of the policy before."""
  zero, one = np.zeros((1, 1)), np.ones((1, 1), bool)
  arrays = dict(log_probs=np.log(zero + ratio), completion_mask=one, **more)
  arrays |= dict(old_log_probs=zero, behave_log_probs=zero)
  return arrays | {"advantages": np.array([advantage])}


def value_and_grad(loss, arrays):
  """A loss and its gradient with respect to the current log-probs."""
  return jax.value_and_grad(
    lambda x: naming.supply(loss, **{**arrays, "log_probs": x}).value()
  )(arrays["log_probs"])


class LossTest(parameterized.TestCase):
  @golden(*LOSSES)
  def test_losses_and_gradients(self, case):
    params, want = case.params, case.want
    loss, names = LOSSES[case.method]
    names = names if isinstance(names, dict) else {name: name for name in names}
    options = {new: params[old] for old, new in names.items()}
    if params.get("agg") in AGGREGATES:
      options["aggregate"] = AGGREGATES[params["agg"]]
    if "bounds" in params:
      options["floor"], options["cap"] = params["bounds"]
    arrays = arrays_of(case.given)
    found, gradient = value_and_grad(partial(loss, **options), arrays)
    case.close(found, want["loss"])
    case.close(gradient, want["grad_logp"])
    mask = arrays["completion_mask"]
    assert not np.array(gradient)[~mask].any()
    if "prox_logp" in want:
      fn, names = trust_regions.near_policy, ("log_probs", "behave_log_probs")
      given = [arrays[name] for name in (*names, "lags")]
      case.close(fn(*given)[mask], np.array(want["prox_logp"])[mask])
      total = lambda *x: fn(*x).sum()  # noqa: E731
      assert not np.any(jax.grad(total, argnums=(0, 1))(*given))

  @golden("importance_weights")
  def test_weights_within_bounds(self, case):
    given, params = case.given, case.params
    ratio = algorithms.RATIOS[params["level"]]
    w = ratio(given["old_logp"], given["behave_logp"], given["mask"])
    outside = {"mask": stale_losses.drop}.get(
      params["mode"], stale_losses.truncate
    )
    w = outside(w, w, params["low"] or 0.0, params["high"])
    case.close(np.where(given["mask"], w, 0), case.want["weights"])

  def test_what_is_beyond_a_bound_counts_below_and_its_ends_are_kept(self):
    d = np.log(np.array([[0.5, 5.0, 0.49, 5.01, 1.0]]))
    zero, one, mask = np.zeros((1, 5)), np.ones(1), np.ones((1, 5), bool)
    with jax.enable_x64(True):
      loss = partial(masked, floor=0.5, cap=5.0)
      found = loss(zero, zero, -d, one, mask)
      assert_allclose(found, (-(0.5 + 5 + 1), 5))
      none = partial(loss, floor=9.0, cap=10.0)
      arrays = dict(
        log_probs=zero,
        old_log_probs=zero,
        behave_log_probs=-d,
        advantages=one,
        completion_mask=mask,
      )
      found, gradient = value_and_grad(none, arrays)
      assert found == 0 and not np.any(gradient)

  def test_gradients_at_a_ratio_of_one(self):
    arrays = losses_test.sample()
    at_one = {**arrays, "old_log_probs": arrays["log_probs"]}
    at_one["behave_log_probs"] = arrays["log_probs"]
    at_one["lags"] = np.array([0, 1, 2, 7])
    mean = losses.sequence_mean_token_mean
    _, want = value_and_grad(
      partial(losses.policy_gradient_loss, aggregate=mean), arrays
    )
    for name in ("sapo", "quadratic", "a3po", "importance"):
      loss = partial(algorithms.LOSSES[name], aggregate=mean)
      _, found = value_and_grad(loss, at_one)
      assert_allclose(found, want, rtol=1e-5, atol=1e-7, err_msg=name)
    # Which τ is whose shows off 1, where both sides fall.
    for ratio, a in ((1.3, 1.0), (0.7, -1.0)):
      tau = 1.0 if a > 0 else 3.0
      s = 1 / (1 + np.exp(-tau * (ratio - 1)))
      loss = partial(trust_regions.sapo_loss, tau_neg=3.0)
      _, found = value_and_grad(loss, one_token(ratio, a))
      want = -a * 4 * s * (1 - s) * ratio
      assert_allclose(found[0, 0], want, rtol=1e-5)
      assert abs(want) < ratio

  def test_a3po_is_the_ratio_to_the_sampler_with_a_wider_clip(self):
    arrays = losses_test.sample((6, 5)) | {"lags": np.array([0, 1, 2, 3, 8, 8])}
    free = dict(clip_low=np.inf, clip_high=np.inf)
    found = value_and_grad(partial(trust_regions.a3po_loss, **free), arrays)
    want = value_and_grad(
      trust_regions.importance_loss,
      {**arrays, "old_log_probs": arrays["behave_log_probs"]},
    )
    # The value too, since the weight is what is left of the ratio.
    for one, other in zip(found, want, strict=True):
      assert_allclose(one, other, rtol=1e-5, atol=1e-7)
    # A clip of ε at lag 3 is (1 + ε)³ of the ratio to the sampler.
    for ratio, has in ((1.1**3 - 1e-3, True), (1.1**3 + 1e-3, False)):
      loss = partial(trust_regions.a3po_loss, clip_high=0.1)
      given = one_token(ratio, lags=np.array([3]))
      _, gradient = value_and_grad(loss, given)
      assert np.any(gradient) == has

  def test_the_quadratic_is_least_where_it_says(self):
    old, a, mask = np.array([[-1.0, -2.0]]), np.array([0.3]), np.ones((1, 2))
    arrays = dict(old_log_probs=old, advantages=a, completion_mask=mask)
    for whole, step in ((False, 0.3 / 0.5), (True, 0.3 / 0.5 / 2)):
      loss = partial(
        trust_regions.quadratic_loss,
        beta=0.5,
        per_response=whole,
        aggregate=losses.sequence_mean_token_sum,
      )
      _, gradient = value_and_grad(loss, {**arrays, "log_probs": old + step})
      assert_allclose(gradient, 0, atol=1e-6)


class TrustMaskTest(parameterized.TestCase):
  def keep(self, name, given, **options):
    """What a mask keeps of the inputs of a case."""
    mask, old = given["mask"], given.get("logp", given["old_logp"])
    d = np.where(mask, old - given["behave_logp"], 0)
    a = given.get("advantages", np.zeros(len(d)))[:, None] * mask
    fn = partial((algorithms.KEEPS | algorithms.STEP_SIZES)[name], **options)
    return np.array(naming.supply(fn, log_ratios=d, advantages=a, mask=mask))

  @golden("m2po_mask", "m2po_official_clip")
  def test_m2po(self, case):
    params, want = case.params, case.want
    name, options = "m2po", {"budget": params["tau"]}
    if "keep" not in want:
      name, ends = "m2po_bounds", ("low", "high")
      options |= {f"least_{x}": params[f"miniclip_{x}"] or 0.0 for x in ends}
    kept = self.keep(name, case.given, **options)
    arrays = arrays_of(case.given)
    a, mask = arrays["advantages"], arrays["completion_mask"]
    arrays["advantages"] = losses.token_advantages(a, mask) * kept
    arrays["old_log_probs"] = arrays["behave_log_probs"]
    loss = trust_regions.importance_loss
    found, gradient = value_and_grad(loss, arrays)
    # A clip has a value, but no gradient, where a mask has neither.
    case.close(gradient, want["grad_logp"])
    if "keep" in want:
      assert_array_equal(kept, np.array(want["keep"], bool))
      case.close(found, want["loss"])

  @golden("m2po_areal_mask")
  def test_areals_form(self, case):
    kept = self.keep("m2po_all", case.given, budget=case.params["tau"])
    assert_array_equal(kept, np.array(case.want["keep"], bool))

  @golden("off_policy_sequence_mask")
  def test_likely_responses(self, case):
    kept = self.keep("off_policy_sequence", case.given, **case.params)
    rows = np.array(case.want["keep"], bool)[:, None]
    assert_array_equal(kept, case.given["mask"] & rows)

  def test_ends_of_the_budget(self):
    rng = np.random.default_rng(2)
    given = dict(
      logp=0.3 * rng.normal(size=(16, 6)),
      behave_logp=np.zeros((16, 6)),
      old_logp=None,
      mask=rng.random((16, 6)) < 0.7,
      advantages=rng.normal(size=16),
    )
    a, mask = given["advantages"], given["mask"]
    harmful = mask & (a[:, None] * given["logp"] > 0)
    at = lambda budget: self.keep("m2po", given, budget=budget)  # noqa: E731
    assert_array_equal(at(0.0), mask & ~harmful)
    assert_array_equal(at(np.inf), mask)
    assert self.keep("m2po_all", given, budget=0.0).sum() == 1
    sizes = [at(budget).sum() for budget in (0.0, 0.01, 0.04, 0.1)]
    assert sizes == sorted(sizes) and len(set(sizes)) == 4
    order = rng.permutation(16)
    other = {k: x if x is None else x[order] for k, x in given.items()}
    kept = self.keep("m2po", other, budget=0.04)
    assert_array_equal(kept, at(0.04)[order])
    # A mask of each half is another than a mask of both.
    halves = [
      {k: x if x is None else x[s] for k, x in given.items()}
      for s in (slice(8), slice(8, 16))
    ]
    halves = [self.keep("m2po", half, budget=0.04) for half in halves]
    assert np.any(np.concatenate(halves) != at(0.04))
    # At most τ, and not below it: d² of 1/4 and 1/4 have a mean of 1/4.
    exact = dict(
      logp=np.array([[0.5, 0.5]]),
      behave_logp=np.zeros((1, 2)),
      old_logp=None,
      mask=np.ones((1, 2), bool),
      advantages=np.ones(1),
    )
    for name, count in (("m2po", 2), ("m2po_all", 1)):
      assert self.keep(name, exact, budget=0.25).sum() == count

  @parameterized.parameters(*algorithms.KEEPS, *algorithms.STEP_SIZES)
  def test_devices_are_one_batch(self, name):
    fn = (algorithms.KEEPS | algorithms.STEP_SIZES)[name]
    rng = np.random.default_rng(2)
    mask = rng.random((16, 6)) < 0.7
    d, a = rng.normal(size=(2, 16, 6)) * mask
    given = dict(log_ratios=0.3 * d, advantages=a, mask=mask)
    given = {k: x for k, x in given.items() if k in naming.positional(fn)}

    def call(*values, axis_name=None):
      named = dict(zip(given, values, strict=True))
      return naming.supply(fn, **named, axis_name=axis_name)

    joined = name in algorithms.KEEPS
    found = helpers.over_devices(call, *given.values(), joined=joined)
    assert_allclose(found, call(*given.values()), rtol=1e-5)

  def test_effective_samples(self):
    case = first("vcpo_ess")
    sums, want = np.array(case["inputs"]["log_ratio_sums"]), case["expected"]
    with jax.enable_x64(True):

      def size(d, **options):
        fn = trust_masks.effective_step_size
        return fn(d[:, None], np.ones((6, 1), bool), **options)

      lr = case["params"]["lr"]
      for options, name in (
        (dict(power=1.0), "lr_linear_base1"),
        ({}, "lr_sqrt_base1"),
        (dict(base=0.55), "lr_sqrt_base055"),
      ):
        assert_allclose(lr * size(sums, **options), want[name], rtol=1e-9)
      assert_allclose(size(sums + 700), size(sums), rtol=1e-9)
      assert size(0 * sums) == 1
      one = np.array([800.0, 0, 0, 0, 0, 0])
      assert_allclose(size(one, power=1.0), 1 / 6)


class BraceTest(parameterized.TestCase):
  @golden("brace")
  def test_brace(self, case):
    given, want = case.given, case.want
    window, values = case.params.pop("k"), given["values"]
    paid = np.zeros_like(values)
    paid[-1] = given["reward"]
    fn = partial(step_advantages.brace, window=window, **case.params)
    found = fn(paid, values, given["ratios"], np.ones_like(values))
    case.close(found[0], want["advantages"])
    case.close(found[1], want["targets"])
    # Beside a longer episode, with garbage where no step was taken.
    pad = lambda x: np.stack([np.pad(x, (0, 2)), np.pad(x, (2, 0))])  # noqa: E731
    taken = pad(np.ones_like(values)).astype(bool)
    taken[1] = True
    rows = [pad(x) for x in (paid, values, given["ratios"])]
    dirty = [np.where(taken, x, np.nan) for x in rows]
    for kind, one in zip(
      ("advantages", "targets"), fn(*dirty, taken), strict=True
    ):
      case.close(one[0, :-2], want[kind])
      assert_array_equal(one[0, -2:], 0)

  def test_brace_on_the_policy_is_the_reward_and_a_window_hides_what_is_beyond(
    self,
  ):
    rng = np.random.default_rng(0)
    paid, values, w = rng.normal(size=(3, 4, 6)).astype(np.float32)
    ones = np.ones_like(paid)
    fn = partial(step_advantages.brace, steps=ones)
    returns = paid[:, ::-1].cumsum(-1)[:, ::-1]
    for found in (fn(paid, values, ones), fn(paid, values, w, window=0)):
      assert_allclose(found[1], returns, rtol=1e-5, atol=1e-6)
      gae = step_advantages.gae(paid, values, ones)
      assert_allclose(found[0], gae, rtol=1e-5, atol=1e-6)
    w, other = np.exp(w), values.copy()
    other[:, 3:] += 9
    near, far = (fn(paid, v, w, window=2)[1] for v in (values, other))
    assert_allclose(near[:, 0], far[:, 0], rtol=1e-5)
    assert np.abs(near[:, 1] - far[:, 1]).min() > 1e-3
    total = lambda *x: sum(y.sum() for y in fn(*x))  # noqa: E731
    assert not np.any(jax.grad(total, argnums=(0, 1, 2))(paid, values, w))
    # A penalty is paid at its step.
    fined = fn(paid, values, w, penalties=0.5 * ones)
    chex.assert_trees_all_close(fined, fn(paid - 0.5, values, w))


class LabelsTest(parameterized.TestCase):
  @golden("trapo")
  def test_trapo(self, case):
    known, curves = case.given["reference"], case.given["unlabelled"]
    score, want = trajectories.curve_scores, case.want
    found = score(known, curves)
    case.close(found, want["scores"])
    case.close([score(x[None], curves) for x in known], want["similarity"])
    case.close(score(3 * known + 1, 0.2 * curves - 1), want["scores"])
    limits = {name: case.params[name] for name in ("top", "threshold")}
    chosen = trajectories.trusted(found, **limits)
    assert np.flatnonzero(chosen).tolist() == sorted(want["selected"])
    assert not score(known[:, :1], curves[:, :1]).any()

  def test_curves_of_any_length(self):
    up, down, flat = [0.1, 0.2, 0.9, 0.0], [0.9, 0.5, 0.1], [0.3] * 3
    settings = trajectories.CurveSettings(top=0.0, threshold=0.4)
    curves = {4: up[:3], 5: down, 6: flat, 7: up[:2], 8: [0.0, 0.1, 0.2, 0.0]}
    given = {1: up, 2: [0.0, 0.3, 0.6]}, curves, [8, 7, 5, 6, 4]
    # 7 was seen twice alone, and 9 is not asked about.
    fn = trajectories.trusted_prompts
    assert fn(*given, settings) == {4, 8}
    low = dataclasses.replace(settings, threshold=2.0)
    assert len(fn(*given, low)) == 1  # the best, whatever its score
    assert not fn({}, curves, [4], settings)
    assert not fn(given[0], {}, [4], settings)

  def test_a_tie_is_no_vote(self):
    case = first("trapo_pseudo_labels")
    found = trajectories.vote_pass_rates(
      np.stack([data.answer_ids([row])[0] for row in case["inputs"]["answers"]])
    )
    assert_allclose(found, case["expected"]["pass_rate"])
    one = trajectories.vote_pass_rates(np.array([[0], [-1]]))
    assert_allclose(one, [1, 0])

  def test_echos_divisors(self):
    case = first("echo")
    log_probs, every, trained = map(np.array, case["inputs"].values())
    # A warning is not learned from, and stays in the length but for prime-rl.
    log_probs = np.where(trained, log_probs, 0)
    for name, key, rate, mask in (
      ("flat_rows", "sequence_mean_all_rows", "lambda_paper", every),
      (
        *("flat_selected", "sequence_mean_rows_with_observation"),
        *("lambda_paper", every),
      ),
      ("flat_tokens", "token_mean_over_O", "lambda_paper", every),
      (
        *("flat_tokens", "prime_rl_token_mean_over_trained"),
        *("alpha_prime_rl", trained),
      ),
    ):
      weights = naming.supply(
        algorithms.ROW_AGGREGATES[name],
        *(mask.any(-1), np.full(3, case["params"][rate]), np.arange(3)),
        observed=mask.sum(-1),
      )
      found = world_model.world_model_loss(
        *(log_probs, mask, weights), token_loss=world_model.cross_entropy
      )
      assert_allclose(found.value(), case["expected"][key], rtol=1e-6)


def test_the_cosine_of_gradients():
  tree = {"a": np.array([3.0, 0.0]), "b": np.array([4.0])}
  cosine = partial(diagnostics.gradient_cosine, tree)
  assert_allclose(cosine(jax.tree.map(lambda x: -2 * x, tree)), -1, rtol=1e-6)
  assert_allclose(cosine({"a": np.array([1.0, 0.0]), "b": np.zeros(1)}), 0.6)
  assert np.isnan(cosine(jax.tree.map(np.zeros_like, tree)))
  tiny = jax.tree.map(lambda x: np.float32(1e-15) * x, tree)
  found = diagnostics.gradient_cosine(tiny, tiny)
  assert_allclose(found, 1, rtol=1e-5)


# Methods by name, with what makes them matter on few rows.
RUNS = {
  **dict.fromkeys(("sa_mrpo", "dvao", "gd2po", "opmd", "icepop"), {}),
  **dict.fromkeys(("sequence_mask", "a3po", "sapo", "quadratic_response"), {}),
  **dict.fromkeys(("m2po", "m2po_bounds", "m2po_all"), {"budget": 1e-4}),
  "off_policy_sequence": {"delta": -0.02},
  "vcpo": {"gradient_cosine": True},
  **dict.fromkeys(("gdpo+schedule", "constrained_grpo"), {}),
}


@pytest.mark.parametrize("name", RUNS)
def test_two_updates_by_name_whole_and_in_parts(name):
  config, zeros = config_lib.get_config(), np.zeros(2, np.float32)
  methods.set_method(config, name)
  config.algorithm.loss_options.update(RUNS[name])
  if "schedule" in name:
    config.algorithm.weights_options.update(steps=(0, 2), values=np.eye(2))
  if name == "constrained_grpo":
    config.algorithm.weights_options.targets = (None, 0.9)
  method = algorithms.make_method(config_lib.typed(config).algorithm, zeros)
  formulas = method.advantage, method.weights
  estimate = estimation.make_estimate(*formulas, minima=zeros)
  params, batch = update_test.table_batch()
  near = 0.1 * np.random.default_rng(0).normal(size=(3, 8, 7))
  fields = "old_log_probs", "behave_log_probs"
  batch = batch.replace(
    lags=np.array([0, 1, 2, 3, 4, 8, 8, 8]),
    **{k: params["log_probs"] + x for k, x in zip(fields, near, strict=False)},
  )
  rewards = rewards_of((2, 4, 2))
  scored, lengths = rewards > -1, batch.completion_mask.sum(-1).reshape(2, 4)
  made = objective.make_objective(
    update_test.table_forward, method.terms, method.diagnostics
  )

  def train(parts):
    decide, how = None, (method.keep, method.step_size)
    if any(how):
      decide = objective.make_decide(
        update_test.table_forward, *how, num_parts=parts
      )
    sgd = optax.sgd(0.1)
    step = jax.jit(
      update.make_update(made, sgd, num_microbatches=parts, decide=decide)
    )
    state = update.create_state(params, sgd, 2, compares=method.compares)
    for k in range(2):
      a, _ = estimate(rewards, scored, lengths, None, state.weights, k)
      state, row = step(state, batch.replace(advantages=a.reshape(-1)))
    return state, row

  (whole, row), (parts, same) = train(1), train(4)
  chex.assert_trees_all_close(parts.params, whole.params, rtol=1e-5)
  chex.assert_trees_all_close(same, row, rtol=1e-4, atol=1e-6)
  assert np.abs(whole.params["log_probs"] - params["log_probs"]).max() > 1e-3
  assert row["skipped"] == 0
  assert 0 < row["kept"] < 1 if method.keep else "kept" not in row
  assert ("step_size" in row) == ("gradient_cosine" in row) == (name == "vcpo")
  if name == "vcpo":
    assert 0 < row["step_size"] < 1 and -1 < row["gradient_cosine"] < 1


def test_a_factor_is_of_the_update_and_not_of_the_gradient():
  params, batch = update_test.table_batch()
  terms = {"policy": objective.policy(losses.policy_gradient_loss)}
  made = objective.make_objective(update_test.table_forward, terms)
  adam, moved = optax.adam(0.1), []
  for decide in (None, lambda params, batch, axis_name: (batch, 0.25)):
    step = jax.jit(update.make_update(made, adam, decide=decide))
    state, row = step(update.create_state(params, adam, 2), batch)
    moved.append(state.params["log_probs"] - params["log_probs"])
  assert row["step_size"] == 0.25 and np.any(moved[0])
  assert_allclose(moved[1], 0.25 * moved[0], rtol=1e-3, atol=1e-6)


@on_each_lift
def test_a_run_knows_how_old_its_answers_are(lift, tmp_path):
  """Lags, masks and step sizes of a queue, through a learner of the decoder."""
  options = dict(keep="m2po", step_size="effective", gradient_cosine=True)
  algorithm = dict(loss="a3po", advantage="dr_grpo", loss_options=options)
  made = helpers.experiment(
    algorithm=algorithm,
    asynchronous={"protocol": "fixed_lag", "lag": 2},
    loop={"num_microbatches": 2, "num_minibatches": 2},
    parallel={"lift": lift},
  )
  one, seen = helpers.make_learner(made), []
  with Grader(made.task, num_workers=0, limit_s=1.0) as grader:
    source = answers.Answers(one, grader, helpers.begun(tmp_path))
    for step in range(3):
      scored = source.score(source.generate(step), step)
      batch, rows = source.estimate(scored, step)
      seen.append(np.unique(batch.lags).tolist())
      assert (batch.lags == rows[0]["lag/versions"]).all()
      row = one.update(batch)[0]
      source.finish([row], step)
  assert seen == [[0], [1], [2]]
  assert 0 < row["step_size"] < 1 and 0 < row["kept"] <= 1
  assert -1 <= row["gradient_cosine"] <= 1
