"""Tests of saw_jax/stale_losses.py."""

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
from jax.test_util import check_grads

from saw_jax import diagnostics, losses, stale_losses

GOLDEN = json.loads(
  (pathlib.Path(__file__).parent / "golden" / "policy_losses.json").read_text()
)
CASES = {case["name"]: case for case in GOLDEN["cases"]}
AGGREGATES = {
  "token-mean": losses.token_mean,
  "seq-mean-token-mean": losses.sequence_mean_token_mean,
  "seq-mean-token-sum": losses.sequence_mean_token_sum,
}
RATIOS = {"token": losses.token_ratio, "sequence": losses.sequence_ratio}
DTYPES = (np.float64, np.float32)


def golden_loss(case, dtype):
  """The loss of a case as a function of the current log-probs alone."""
  inputs, params = case["inputs"], dict(case["params"])
  recorded = {
    name: np.array(inputs[key], dtype)
    for name, key in (
      ("old_log_probs", "old_logp"),
      ("behave_log_probs", "behav_logp"),
      ("ref_log_probs", "ref_logp"),
    )
    if key in inputs
  }
  rest = dict(
    advantages=np.array(case["expected"]["advantages"], dtype),
    completion_mask=np.array(inputs["mask"]),
  )
  if "agg" in params:
    rest["aggregate"] = AGGREGATES[params.pop("agg")]
  if "level" in params:
    rest["ratio_of"] = RATIOS[params.pop("level")]
  if case["loss"] in ("gspo", "ppo_clip"):
    rest["clip_low"] = params.pop("eps_low")
    rest["clip_high"] = params.pop("eps_high")

  kind, beta = case["loss"], params.pop("kl_beta", 0.0)
  ref = recorded.pop("ref_log_probs", None)
  if kind == "ppo_clip" and "tis" in params:
    fn = stale_losses.tis_loss
    rest["ratio_of"] = RATIOS[params.pop("tis")]
    rest["cap"] = params.pop("tis_cap")
  elif kind == "ppo_clip":
    decoupled = params.pop("decoupled", False)
    fn = (
      stale_losses.decoupled_ppo_loss
      if decoupled
      else losses.clipped_surrogate_loss
    )
  else:
    fn = {
      "asympo": stale_losses.asympo_loss,
      "spo": stale_losses.spo_loss,
      "gpg": losses.policy_gradient_loss,
      "gspo": stale_losses.gspo_loss,
      "cispo": stale_losses.cispo_loss,
      "tis_reinforce": stale_losses.tis_reinforce_loss,
      "topr": stale_losses.topr_loss,
    }[kind]
  if kind == "spo":
    rest["negative_weight"] = params.pop("alpha")

  def loss(log_probs):
    value = fn(log_probs, **recorded, **rest, **params).value()
    if beta:
      mask, aggregate = rest["completion_mask"], rest["aggregate"]
      kl = losses.kl_loss(log_probs, ref, mask, aggregate=aggregate)
      value += beta * kl.value()
    return value

  return loss


def sample(shape=(4, 5), seed=0):
  """Log-probs, old ones, behaviour's, advantages of whole groups, a mask."""
  rng = np.random.default_rng(seed)
  log_probs = -rng.uniform(0.1, 3, shape)
  old, behave = log_probs + rng.uniform(-0.5, 0.5, (2, *shape))
  mask = rng.random(shape) < 0.6
  mask[:, 0] = True
  advantages = rng.normal(size=shape[0])
  advantages -= advantages.mean()
  arrays = (x.astype(np.float32) for x in (log_probs, old, behave))
  return *arrays, advantages, mask


def every_loss(**options):
  """Each loss as a function of (log_probs, old, behave, advantages, mask)."""
  s = stale_losses
  current = {
    "spo": s.spo_loss,
    "asympo": s.asympo_loss,
    "asympo_stabilised": functools.partial(
      s.asympo_loss, p_low=0.2, p_high=0.7
    ),
    "batch_asympo": s.batch_asympo_loss,
  }
  to_one = {
    "gspo": s.gspo_loss,
    "cispo": s.cispo_loss,
    "tis_reinforce": s.tis_reinforce_loss,
    "tis_reinforce_sequence": functools.partial(
      s.tis_reinforce_loss, ratio_of=losses.sequence_ratio
    ),
    "topr": s.topr_loss,
    "topr_token": functools.partial(s.topr_loss, ratio_of=losses.token_ratio),
    "dppo_kl": s.dppo_kl_loss,
  }
  to_two = {
    "tis": s.tis_loss,
    "tis_sequence": functools.partial(
      s.tis_loss, ratio_of=losses.sequence_ratio
    ),
    "decoupled_ppo": s.decoupled_ppo_loss,
    "decoupled_ppo_capped": functools.partial(s.decoupled_ppo_loss, cap=1.2),
  }
  return {
    **{
      name: lambda x, o, b, a, m, f=f: f(x, a, m, **options)
      for name, f in current.items()
    },
    **{
      name: lambda x, o, b, a, m, f=f: f(x, b, a, m, **options)
      for name, f in to_one.items()
    },
    **{
      name: lambda x, o, b, a, m, f=f: f(x, o, b, a, m, **options)
      for name, f in to_two.items()
    },
  }


class GoldenTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.named_parameters(
    *(dict(testcase_name=name, case=case) for name, case in CASES.items())
  )
  def test_losses_and_gradients(self, case):
    want = case["expected"]
    for dtype in DTYPES:
      tolerance = GOLDEN["tolerance"][np.dtype(dtype).name]
      with jax.enable_x64(dtype is np.float64):
        value, gradient = self.variant(
          jax.value_and_grad(golden_loss(case, dtype))
        )(np.array(case["inputs"]["logp"], dtype))
        assert gradient.dtype == dtype
        np.testing.assert_allclose(value, want["loss"], **tolerance)
        np.testing.assert_allclose(gradient, want["grad_logp"], **tolerance)
        # Exactly 0, and not a small number, where the mask is off.
        assert not gradient[np.array(case["inputs"]["mask"]) == 0].any()

  @parameterized.named_parameters(
    *(
      dict(testcase_name=name, case=case)
      for name, case in CASES.items()
      if "S" in case["expected"]["aux"]
    )
  )
  def test_likelihoods_and_balance(self, case):
    aux = case["expected"]["aux"]
    with jax.enable_x64(True):
      log_probs = np.array(case["inputs"]["logp"])
      mask = np.array(case["inputs"]["mask"])
      nll = stale_losses.sequence_nll(log_probs, mask)
      np.testing.assert_allclose(nll, aux["S"], rtol=1e-12)
      found = diagnostics.balance(
        log_probs, np.array(case["expected"]["advantages"]), mask
      )
      np.testing.assert_allclose(
        found["balance"].numerator, aux["delta_theta"], rtol=1e-10, atol=1e-12
      )

  @chex.variants(with_jit=True, without_jit=True)
  def test_gradients_of_logits(self):
    (case,) = GOLDEN["logit_cases"]
    inputs, want = case["inputs"], case["expected"]
    rewards = np.array(inputs["rewards"], float)

    def loss(logits, a):
      taken = jnp.take_along_axis(
        jax.nn.log_softmax(logits), np.array(inputs["tokens"])[..., None], -1
      )[..., 0]
      mask = np.array(inputs["mask"])
      return stale_losses.asympo_loss(taken, a, mask).value(), taken

    for dtype in DTYPES:
      tolerance = GOLDEN["tolerance"][np.dtype(dtype).name]
      with jax.enable_x64(dtype is np.float64):
        (value, taken), gradient = self.variant(
          jax.value_and_grad(loss, has_aux=True)
        )(
          np.array(inputs["logits"], dtype),
          (rewards - rewards.mean()).astype(dtype),
        )
      np.testing.assert_allclose(taken, want["logp"], **tolerance)
      np.testing.assert_allclose(value, want["loss"], **tolerance)
      np.testing.assert_allclose(gradient, want["grad_logits"], **tolerance)

  @parameterized.parameters(
    *(
      name
      for identity in GOLDEN["identities"]
      if identity["kind"] == "zero_loss"
      for name in identity["cases"]
      if name in CASES
    )
  )
  def test_the_loss_of_whole_groups_is_zero(self, name):
    with jax.enable_x64(True):
      value = golden_loss(CASES[name], np.float64)(
        np.array(CASES[name]["inputs"]["logp"])
      )
    np.testing.assert_allclose(value, 0, atol=1e-12)

  @parameterized.parameters(
    *(
      (identity["kind"], identity.get("asympo") or identity["case"])
      for identity in GOLDEN["identities"]
      if identity["kind"] != "zero_loss"
    )
  )
  def test_the_gradient_is_also_that_of_another_loss(self, kind, name):
    case = CASES[name]
    mask = np.array(case["inputs"]["mask"])
    with jax.enable_x64(True):
      log_probs = np.array(case["inputs"]["logp"])
      a = np.array(case["expected"]["advantages"])
      gradient = jax.grad(golden_loss(case, np.float64))(log_probs)
      if kind == "grad_is_naive_grad_over_S":
        nll = stale_losses.sequence_nll(log_probs, mask)
        other = jax.grad(lambda x: naive(x, a, mask).value())(log_probs)
        other /= nll[:, None]
      else:
        assert kind == "grad_equals_grad_of_mean_A_log_S"
        other = jax.grad(
          lambda x: jnp.mean(a * jnp.log(stale_losses.sequence_nll(x, mask)))
        )(log_probs)
    np.testing.assert_allclose(gradient, other, rtol=1e-10, atol=1e-12)


def naive(log_probs, advantages, mask):
  return losses.policy_gradient_loss(
    log_probs, advantages, mask, aggregate=losses.sequence_mean_token_mean
  )


class EveryLossTest(chex.TestCase):
  @parameterized.product(name=list(every_loss()), aggregate=list(AGGREGATES))
  def test_garbage_under_the_mask_reaches_nothing(self, name, aggregate):
    *log_probs, a, mask = sample()
    mask[1] = False  # a response without tokens, too
    run = jax.jit(
      jax.value_and_grad(
        lambda x, o, b: every_loss(aggregate=AGGREGATES[aggregate])[name](
          x, o, b, a, mask
        ).value()
      )
    )
    clean = run(*log_probs)
    assert np.isfinite(clean[0])
    assert np.abs(clean[1][mask]).max() > 0
    for garbage in (np.nan, np.inf, -np.inf):
      dirty = [np.where(mask, x, garbage) for x in log_probs]
      chex.assert_trees_all_equal(run(*dirty), clean)
    np.testing.assert_array_equal(np.where(mask, 0, clean[1]), 0)

  @parameterized.product(name=list(every_loss()), aggregate=list(AGGREGATES))
  def test_whole_responses_in_two_parts_add_up(self, name, aggregate):
    *arrays, a, mask = sample((6, 5))
    f = every_loss(aggregate=AGGREGATES[aggregate])[name]
    parts = [
      f(*(x[rows] for x in (*arrays, a, mask)))
      for rows in (slice(0, 2), slice(2, 6))
    ]
    whole = f(*arrays, a, mask)
    chex.assert_trees_all_close(
      parts[0].merge(parts[1]), whole, rtol=1e-5, atol=1e-6
    )

  @parameterized.parameters(*every_loss())
  def test_nothing_but_the_policy_gets_a_gradient(self, name):
    log_probs, old, behave, a, mask = sample()
    gradients = jax.grad(
      lambda o, b, a: every_loss()[name](log_probs, o, b, a, mask).value(),
      (0, 1, 2),
    )(old, behave, a)
    for gradient in gradients:
      np.testing.assert_array_equal(gradient, 0)

  @parameterized.parameters(*every_loss())
  def test_bfloat16_is_float32_inside(self, name):
    *arrays, mask = sample()
    low = [jnp.asarray(x, jnp.bfloat16) for x in arrays]
    high = [x.astype(jnp.float32) for x in low]
    result = every_loss()[name](*low, mask)
    assert result.numerator.dtype == result.denominator.dtype == jnp.float32
    chex.assert_trees_all_equal(result, every_loss()[name](*high, mask))

  @parameterized.parameters(*every_loss())
  def test_a_response_without_tokens_is_no_response(self, name):
    *arrays, a, mask = sample()
    mask[1] = False
    keep = np.array([0, 2, 3])
    f = every_loss()[name]
    chex.assert_trees_all_close(
      f(*arrays, a, mask).value(),
      f(*(x[keep] for x in (*arrays, a, mask))).value(),
      rtol=1e-5,
      atol=1e-6,
    )
    nothing = f(*arrays, a, np.zeros_like(mask))
    assert nothing.value() == 0 and nothing.denominator == 0

  @parameterized.parameters(*every_loss())
  def test_advantages_may_be_one_a_token(self, name):
    *arrays, a, mask = sample()
    per_token = np.where(mask, np.repeat(a[:, None], 5, 1), np.nan)
    f = every_loss()[name]
    chex.assert_trees_all_equal(
      f(*arrays, per_token, mask), f(*arrays, a, mask)
    )

  @parameterized.parameters(*every_loss())
  def test_no_advantage_no_gradient(self, name):
    if name == "dppo_kl":
      return  # its second term is a KL
    *arrays, a, mask = sample()
    gradient = jax.grad(
      lambda x: every_loss()[name](x, *arrays[1:], 0 * a, mask).value()
    )(arrays[0])
    np.testing.assert_array_equal(gradient, 0)

  @parameterized.parameters(
    "gspo", "tis", "tis_sequence", "decoupled_ppo", "dppo_kl"
  )
  def test_gradients_are_those_of_finite_differences(self, name):
    # Only the losses that stop no gradient of the current policy.
    with jax.enable_x64(True):
      *arrays, a, mask = sample()
      log_probs, old, behave = (x.astype(np.float64) for x in arrays)
      check_grads(
        lambda x: every_loss()[name](x, old, behave, a, mask).value(),
        (log_probs,),
        order=1,
        modes=("rev",),
      )


class ByLoopTest(chex.TestCase):
  """Formulas again, in NumPy, one token at a time."""

  def found(self, name, **options):
    *arrays, a, mask = sample((7, 5), seed=3)
    with jax.enable_x64(True):
      arrays = [x.astype(np.float64) for x in arrays]
      value, gradient = jax.value_and_grad(
        lambda x: every_loss(**options)[name](x, *arrays[1:], a, mask).value()
      )(arrays[0])
    return value, gradient, (*arrays, a, mask)

  def check(self, name, gradient_at, total, **options):
    """`gradient_at(b, t)` is the expected gradient, up to 1 / `total`."""
    _, gradient, (*_, mask) = self.found(name, **options)
    want = np.zeros(mask.shape)
    for b, t in zip(*mask.nonzero(), strict=True):
      want[b, t] = gradient_at(b, t) / total(b, mask)
    assert np.abs(want).max() > 0
    np.testing.assert_allclose(gradient, want, rtol=1e-9, atol=1e-12)

  def test_reinforce_with_a_truncated_ratio_of_the_response(self):
    _, _, (x, _, behave, a, mask) = self.found("tis_reinforce_sequence")
    ratio = [np.exp((x - behave)[b][mask[b]].sum()) for b in range(7)]
    assert max(ratio) > 1.1 > min(ratio)  # so that the cap binds on some
    self.check(
      "tis_reinforce_sequence",
      lambda b, t: -min(ratio[b], 1.1) * a[b],
      lambda b, m: m.sum(),
      cap=1.1,
    )

  def test_topr_by_token_and_by_response(self):
    _, _, (x, _, behave, a, mask) = self.found("topr")
    for name in ("topr", "topr_token"):

      def taper(b, t, name=name):
        if a[b] >= 0:
          return 1.0
        log_ratio = (x - behave)[b]
        total = log_ratio[mask[b]].sum() if name == "topr" else log_ratio[t]
        return min(np.exp(total), 1.0)

      self.check(name, lambda b, t, f=taper: -f(b, t) * a[b], lambda b, m: 7)

  def test_a_cap_takes_tokens_out_of_the_numerator_alone(self):
    _, _, (x, old, behave, a, mask) = self.found("decoupled_ppo_capped")
    weight = np.exp(old - behave)
    assert (weight[mask] > 1.2).any()

    def coefficient(b, t):
      ratio = np.exp(x - old)[b, t]
      held = (a[b] > 0 and ratio > 1.2) or (a[b] < 0 and ratio < 0.8)
      kept = weight[b, t] <= 1.2 and not held
      return -a[b] * ratio * weight[b, t] * kept

    self.check("decoupled_ppo_capped", coefficient, lambda b, m: m.sum())

  def test_a_truncated_ratio_of_the_response_on_ppo(self):
    _, _, (x, old, behave, a, mask) = self.found("tis_sequence")
    weight = [
      min(np.exp((old - behave)[b][mask[b]].sum()), 1.05) for b in range(7)
    ]
    assert 1.05 in weight and min(weight) < 1.05

    def coefficient(b, t):
      ratio = np.exp(x - old)[b, t]
      held = (a[b] > 0 and ratio > 1.3) or (a[b] < 0 and ratio < 0.9)
      return -a[b] * ratio * weight[b] * (not held)

    self.check(
      "tis_sequence",
      coefficient,
      lambda b, m: m.sum(),
      cap=1.05,
      clip_low=0.1,
      clip_high=0.3,
    )

  def test_the_dual_clip_reaches_both(self):
    # A = −1, ρ = 5 and c = 3: the loss is held at 3 times the weight, 2.
    zero, mask = np.zeros((1, 1)), np.ones((1, 1), bool)
    for f in (stale_losses.tis_loss, stale_losses.decoupled_ppo_loss):
      loss = f(
        np.full((1, 1), np.log(5)),
        zero,
        np.full((1, 1), -np.log(2)),
        np.array([-1.0]),
        mask,
        dual_clip=3.0,
      )
      np.testing.assert_allclose(loss.value(), 6, rtol=1e-5)

  def test_gspo_and_its_clip(self):
    _, _, (x, _, behave, a, mask) = self.found("gspo")
    ratio = [np.exp((x - behave)[b][mask[b]].mean()) for b in range(7)]
    low, high = 0.1, 0.05

    def coefficient(b, t):
      held = (a[b] > 0 and ratio[b] > 1 + high) or (
        a[b] < 0 and ratio[b] < 1 - low
      )
      return -a[b] * ratio[b] / mask[b].sum() * (not held)

    held = [coefficient(b, 0) == 0 for b in range(7)]
    assert any(held) and not all(held)
    self.check(
      "gspo", coefficient, lambda b, m: 7, clip_low=low, clip_high=high
    )

  def test_cispo_bounds_the_weight_on_both_sides(self):
    _, _, (x, _, behave, a, mask) = self.found("cispo")
    ratio = np.clip(np.exp(x - behave), 0.9, 1.2)
    assert {0.9, 1.2} <= set(ratio[mask])
    self.check(
      "cispo",
      lambda b, t: -a[b] * ratio[b, t],
      lambda b, m: m.sum(),
      r_min=0.9,
      r_max=1.2,
    )

  def test_dppo_drops_by_probability_and_pulls_back(self):
    _, _, (x, _, behave, a, mask) = self.found("dppo_kl")
    moved = np.exp(x) - np.exp(behave)

    def coefficient(b, t):
      drop = moved[b, t] > 0.05 if a[b] > 0 else moved[b, t] < -0.05
      gain = 0 if drop else a[b] * np.exp(x - behave)[b, t]
      return 2 * 0.01 * (x - behave)[b, t] - gain

    dropped = [(a[b] > 0) == (moved[b, t] > 0) and abs(moved[b, t]) > 0.05
               for b, t in zip(*mask.nonzero(), strict=True)]  # fmt: skip
    assert any(dropped) and not all(dropped)
    self.check(
      "dppo_kl",
      coefficient,
      lambda b, m: m.sum(),
      bound=0.05,
      coefficient=0.01,
    )

  def test_the_batchs_likelihood_in_place_of_the_responses(self):
    value, _, (x, _, _, a, mask) = self.found("batch_asympo")
    nll = [-x[b][mask[b]].mean() for b in range(7)]
    np.testing.assert_allclose(value, np.dot(a, nll) / sum(nll), rtol=1e-9)
    self.check(
      "batch_asympo",
      lambda b, t: -a[b] / mask[b].sum(),
      lambda b, m: sum(nll),
    )

  @pytest.mark.slow
  def test_a_huge_ratio_is_finite(self):
    x, far = np.zeros((2, 3), np.float32), np.full((2, 3), -100, np.float32)
    mask, a = np.ones((2, 3), bool), np.array([1.0, -1.0])
    for name, f in every_loss().items():
      for one, other in ((x, far), (far, x)):
        value, gradient = jax.value_and_grad(
          lambda y, f=f, other=other: f(y, other, other, a, mask).value()
        )(one)
        assert np.isfinite(value) and np.isfinite(gradient).all(), name


class SequenceNllTest(chex.TestCase):
  def test_by_hand_and_zero_without_tokens(self):
    log_probs = jnp.array([[-1.0, -3.0], [-5.0, jnp.nan], [jnp.inf, 0.0]])
    mask = jnp.array([[1, 1], [1, 0], [0, 0]])
    found = stale_losses.sequence_nll(log_probs, mask)
    np.testing.assert_array_equal(found, [2, 5, 0])


class SPOLossTest(chex.TestCase):
  def gradient(self, **options):
    x, _, _, a, mask = sample()
    return (
      jax.grad(lambda x: stale_losses.spo_loss(x, a, mask, **options).value())(
        x
      ),
      jax.grad(lambda x: naive(x, a, mask).value())(x),
      a,
    )

  def test_a_weight_of_one_is_the_policy_gradient(self):
    found, plain, _ = self.gradient(negative_weight=1.0)
    np.testing.assert_array_equal(found, plain)

  def test_a_weight_of_zero_learns_from_good_responses_alone(self):
    found, plain, a = self.gradient(negative_weight=0.0)
    assert not found[a < 0].any()
    np.testing.assert_array_equal(found[a >= 0], plain[a >= 0])

  def test_a_fifth_is_the_default(self):
    found, plain, a = self.gradient()
    np.testing.assert_allclose(found[a < 0], 0.2 * plain[a < 0], rtol=1e-6)


class ASymPOLossTest(chex.TestCase):
  """By hand."""

  def loss_and_gradient(self, log_probs, a, mask=None, **options):
    log_probs = np.asarray(log_probs)
    if mask is None:
      mask = np.ones(log_probs.shape, bool)
    return jax.value_and_grad(
      lambda x: stale_losses.asympo_loss(
        x, np.asarray(a), mask, **options
      ).value()
    )(log_probs)

  def test_the_papers_family_by_hand(self):
    # S = 0.3 and 4.
    log_probs, a = np.array([[-0.2, -0.4], [-3.0, -5.0]]), np.array([0.5, -0.5])
    mask = np.ones((2, 2), bool)
    for f, loss, good, bad in (
      (naive, -0.925, -0.125, 0.125),
      (stale_losses.spo_loss, -0.125, -0.125, 0.025),
      (stale_losses.asympo_loss, 0.0, -1 / 2.4, 0.03125),
    ):
      with jax.enable_x64(True):
        value, gradient = jax.value_and_grad(
          lambda x, f=f: f(x, a, mask).value()
        )(log_probs)
      np.testing.assert_allclose(value, loss, rtol=1e-14, atol=1e-16)
      np.testing.assert_allclose(gradient[0], good, rtol=1e-14)
      np.testing.assert_allclose(gradient[1], bad, rtol=1e-14)

  def test_a_response_that_is_certain_is_finite(self):
    for dtype in DTYPES:
      with jax.enable_x64(dtype is np.float64):
        value, gradient = self.loss_and_gradient(
          np.array([[0.0, 0.0], [-1.0, -1.0]], dtype), np.array([0.5, -0.5])
        )
      # The floor binds, and the balance is lost: −0.5 is left of the bad one.
      np.testing.assert_allclose(value, -0.25, rtol=1e-6)
      # −A / (B n floor)
      np.testing.assert_allclose(gradient[0], -0.5 / (2 * 2 * 1e-6), rtol=1e-6)

  def test_the_floor_is_a_maximum_and_not_a_sum(self):
    x, _, _, a, mask = sample()
    found = self.loss_and_gradient(x, a, mask, floor=1e-6)
    chex.assert_trees_all_equal(
      found, self.loss_and_gradient(x, a, mask, floor=0.09)
    )
    _, gradient = self.loss_and_gradient(np.array([[-0.5]]), [1.0], floor=2.0)
    np.testing.assert_allclose(gradient, -0.5, rtol=1e-6)

  def test_one_token_and_no_token(self):
    value, gradient = self.loss_and_gradient(
      np.array([[-0.5, np.nan], [-2.0, -4.0], [-1.0, -1.0]]),
      [0.5, -0.5, 7.0],
      np.array([[1, 0], [1, 1], [0, 0]]),
    )
    np.testing.assert_allclose(value, 0, atol=1e-7)
    np.testing.assert_allclose(
      gradient, [[-0.5, 0], [0.5 / 12, 0.5 / 12], [0, 0]], rtol=1e-6
    )

  def test_tokens_at_a_bound_have_no_gradient_but_count(self):
    # Bounds at e⁻³ and e⁻¹. S of the first is (1 + 2) / 2, not 2 nor 1.25.
    log_probs = np.array([[-0.5, -2.0], [-1.0, -9.0]])
    value, gradient = self.loss_and_gradient(
      log_probs, [0.5, -0.5], p_low=np.exp(-3), p_high=np.exp(-1)
    )
    np.testing.assert_allclose(value, 0, atol=1e-6)
    # −A / (B n S) with S = 1.5 and (1 + 3) / 2.
    np.testing.assert_allclose(
      gradient, [[0, -0.125 / 1.5], [0.125 / 2, 0]], rtol=1e-6
    )

  def test_one_side_may_be_left_as_it_is(self):
    x, _, _, a, mask = sample()
    plain = jax.grad(lambda x: naive(x, a, mask).value())(x)
    _, scaled = self.loss_and_gradient(x, a, mask)
    for positives in (True, False):
      for negatives in (True, False):
        _, found = self.loss_and_gradient(
          x, a, mask, scale_positives=positives, scale_negatives=negatives
        )
        is_scaled = np.where(a >= 0, positives, negatives)[:, None]
        np.testing.assert_allclose(
          found, np.where(is_scaled, scaled, plain), rtol=1e-6
        )

  def test_token_mean_loses_the_balance(self):
    # L = Σ n A / Σ n, whatever the log-probs are.
    x, _, _, a, mask = sample()
    value, _ = self.loss_and_gradient(x, a, mask, aggregate=losses.token_mean)
    n = mask.sum(1)
    np.testing.assert_allclose(value, np.dot(n, a) / n.sum(), rtol=1e-5)
    assert abs(value) > 0.01

  def test_a_group_that_lost_a_response_is_not_balanced(self):
    x, _, _, a, mask = sample()
    mask[0] = False
    value, _ = self.loss_and_gradient(x, a, mask)
    np.testing.assert_allclose(value, a[1:].mean(), rtol=1e-5)


@st.composite
def groups(draw):
  """One group: log-probs, advantages that sum to 0, and a mask, in float64."""
  rng = np.random.default_rng(draw(st.integers(0, 2**31)))
  size, length = 6, 5
  spread = draw(st.floats(0.1, 8.0))
  log_probs = -rng.uniform(0.01, spread, (size, length))
  rewards = rng.integers(0, 2, size).astype(float)
  rewards[:2] = 0, 1
  if draw(st.booleans()):
    rewards = rng.normal(size=size)
  mask = np.arange(length)[None] < rng.integers(1, length + 1, size)[:, None]
  return log_probs, rewards - rewards.mean(), mask


@functools.cache
def _compiled():
  """The losses of a group with their gradients, in float64, compiled once."""

  def run(f):
    return jax.jit(jax.value_and_grad(lambda x, a, m: f(x, a, m).value()))

  return {
    "naive": run(naive),
    "spo": run(stale_losses.spo_loss),
    "asympo": run(stale_losses.asympo_loss),
    "grpo": run(
      lambda x, a, m: losses.clipped_surrogate_loss(
        x, x, a, m, aggregate=losses.sequence_mean_token_mean
      )
    ),
    "balance": jax.jit(
      lambda x, a, m: [r.value() for r in diagnostics.balance(x, a, m).values()]
    ),
  }


def compiled(name, *arrays):
  with jax.enable_x64(True):
    return jax.device_get(_compiled()[name](*arrays))


class TheoremsTest(chex.TestCase):
  """What the paper proves of one group (arXiv 2606.03070)."""

  def parts(self, group):
    log_probs, a, mask = group
    nll = np.array([-x[m].mean() for x, m in zip(log_probs, mask, strict=True)])
    weight = a[a > 0].sum()
    good = (a * nll)[a > 0].sum() / weight
    bad = (-a * nll)[a < 0].sum() / weight
    return nll, weight, good, bad

  @hypothesis.given(groups(), st.floats(0.01, 0.5), st.floats(0.0, 0.5))
  def test_1_near_a_balanced_sampler_the_sum_is_bounded(self, group, eps, d):
    behave, a, mask = group
    rng = np.random.default_rng(0)
    # The sampler's S within d of their mean, all ratios within 1 ± eps.
    nll, weight, _, _ = self.parts((behave, a, mask))
    target = 2 + rng.uniform(-d, d, len(nll))
    behave = behave * (target / nll)[:, None]
    spread = np.abs(target - target.mean()).max()
    log_probs = behave + np.log(rng.uniform(1 - eps, 1 + eps, behave.shape))
    log_probs = np.minimum(log_probs, 0)
    mean_balance = compiled("balance", log_probs, a, mask)[2]
    tau = max(np.log(1 + eps), -np.log(1 - eps))
    bound = 2 * weight * (spread + tau)
    assert abs(mean_balance * len(a)) <= bound + 1e-9

  @hypothesis.given(groups())
  def test_2_signed_losses_of_a_group_sum_to_zero(self, group):
    log_probs, a, mask = group
    value, _ = compiled("asympo", *group)
    np.testing.assert_allclose(value, 0, atol=1e-12)
    only_good, _ = compiled("asympo", log_probs, np.maximum(a, 0), mask)
    np.testing.assert_allclose(
      only_good, np.maximum(a, 0).mean(), rtol=1e-10, atol=1e-12
    )

  @hypothesis.given(groups())
  def test_3_and_4_the_naive_loss_is_the_imbalance(self, group):
    _, weight, good, bad = self.parts(group)
    value, _ = compiled("naive", *group)
    np.testing.assert_allclose(
      value, weight / len(group[1]) * (good - bad), rtol=1e-9, atol=1e-12
    )
    _, _, mean, ratio, _, _ = compiled("balance", *group)
    np.testing.assert_allclose(mean, value, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(ratio, bad / good, rtol=1e-9)

  @hypothesis.given(groups())
  def test_5_equal_likelihoods_bound_the_difference(self, group):
    nll, weight, _, _ = self.parts(group)
    spread = np.abs(nll - nll.mean()).max()
    plain, _ = compiled("naive", *group)
    value, _ = compiled("asympo", *group)
    assert abs(plain - value) <= 2 * weight * spread / len(nll) + 1e-12

  @hypothesis.given(groups(), st.integers(0, 5))
  def test_6_a_response_weighs_its_advantage(self, group, row):
    log_probs, a, mask = group
    alone = np.zeros_like(mask)
    alone[row] = mask[row]
    value, _ = compiled("asympo", log_probs, a, alone)
    np.testing.assert_allclose(value, a[row], rtol=1e-10, atol=1e-12)

  @hypothesis.given(groups())
  def test_7_the_gradient_is_the_naive_one_over_the_likelihood(self, group):
    log_probs, a, mask = group
    nll, _, _, _ = self.parts(group)
    _, gradient = compiled("asympo", *group)
    _, plain = compiled("naive", *group)
    np.testing.assert_allclose(
      gradient, plain / nll[:, None], rtol=1e-10, atol=1e-12
    )
    # Euler: no length and no likelihood is left in Σ log π dL/dlog π.
    np.testing.assert_allclose(
      (log_probs * gradient).sum(1), a / len(a), rtol=1e-9, atol=1e-12
    )

  @hypothesis.given(groups(), st.permutations(range(6)), st.integers(0, 2**31))
  def test_8_order_and_padding_do_not_matter(self, group, order, seed):
    log_probs, a, mask = group
    value, gradient = compiled("asympo", *group)
    order = np.array(order)
    garbage = np.random.default_rng(seed).normal(size=log_probs.shape) * 1e3
    dirty = np.where(mask, log_probs, garbage)[order]
    other, other_gradient = compiled("asympo", dirty, a[order], mask[order])
    np.testing.assert_allclose(other, value, atol=1e-12)
    np.testing.assert_allclose(
      other_gradient, gradient[order], rtol=1e-12, atol=1e-12
    )

  @hypothesis.given(groups())
  def test_9_spo_scales_bad_responses_alone(self, group):
    _, a, _ = group
    _, gradient = compiled("spo", *group)
    _, plain = compiled("naive", *group)
    scale = np.where(a < 0, 0.2, 1.0)[:, None]
    np.testing.assert_allclose(gradient, scale * plain, rtol=1e-12)

  @hypothesis.given(groups())
  def test_10_on_policy_the_clipped_gradient_is_the_naive_one(self, group):
    _, gradient = compiled("grpo", *group)
    _, plain = compiled("naive", *group)
    np.testing.assert_allclose(gradient, plain, rtol=1e-12)


class BalanceTest(chex.TestCase):
  def test_by_hand(self):
    # S = 1, 3, 5, 7 and a response without tokens, A = 2, −1, −1, 0 and 9.
    log_probs = jnp.array([[-1.0], [-3.0], [-5.0], [-7.0], [jnp.nan]])
    mask = jnp.array([[1], [1], [1], [1], [0]])
    found = diagnostics.balance(
      log_probs, jnp.array([2.0, -1.0, -1.0, 0.0, 9.0]), mask
    )
    assert tuple(found["nll/positive"]) == (1, 1)
    assert tuple(found["nll/negative"]) == (8, 2)
    assert tuple(found["balance"]) == (2 - 3 - 5, 4)
    assert tuple(found["balance_ratio"]) == (8, 2)
    assert tuple(found["zero_advantage"]) == (1, 4)
    assert found["largest_inverse_nll"].value() == 1

  def test_the_floor_bounds_the_largest_inverse(self):
    found = diagnostics.balance(
      jnp.zeros((2, 3)), jnp.ones(2), jnp.ones((2, 3), bool)
    )
    np.testing.assert_allclose(
      found["largest_inverse_nll"].value(), 1e6, rtol=1e-6
    )

  def test_nothing_counted_is_zero_throughout(self):
    found = diagnostics.balance(
      jnp.full((2, 3), jnp.nan), jnp.ones(2), jnp.zeros((2, 3), bool)
    )
    assert all(one.value() == 0 for one in found.values())

  def test_no_gradient_flows(self):
    x, _, _, a, mask = sample()
    gradient = jax.grad(
      lambda x: sum(
        one.value() for one in diagnostics.balance(x, a, mask).values()
      )
    )(x)
    np.testing.assert_array_equal(gradient, 0)
