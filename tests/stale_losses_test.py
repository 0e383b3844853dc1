"""Losses from stale responses: by loops, by hand, and what ASymPO proves."""

import functools

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized
from hypothesis import strategies as st

from saw_jax import diagnostics, losses, stale_losses
from tests.losses_test import CASES, DTYPES, GOLDEN, golden_loss, sample, value


def naive(log_probs, advantages, mask):
  return losses.policy_gradient_loss(
    log_probs, advantages, mask, aggregate=losses.sequence_mean_token_mean
  )


class IdentitiesTest(chex.TestCase):
  """What the vectors say of one loss in terms of another."""

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


def group():
  arrays = sample()
  return (arrays[k] for k in ("log_probs", "advantages", "completion_mask"))


def clip_holds(a, ratio, low, high):
  return (a > 0 and ratio > 1 + high) or (a < 0 and ratio < 1 - low)


# Of each loss: its options, the gradient at a token up to the last entry, the
# total that it is divided by. `r` are log-ratios to the policy that the loss
# names, `c` those of the old policy to the sampler.
LOOPS = {
  "tis_reinforce_sequence": (
    dict(cap=1.1),
    lambda r, c, a, x, t: -min(np.exp(r.sum()), 1.1) * a,
    "tokens",
  ),
  "topr": (
    {},
    lambda r, c, a, x, t: -a * (1 if a >= 0 else min(np.exp(r.sum()), 1)),
    "rows",
  ),
  "topr_token": (
    {},
    lambda r, c, a, x, t: -a * (1 if a >= 0 else min(np.exp(r[t]), 1)),
    "rows",
  ),
  "decoupled_ppo_capped": (
    {},
    lambda r, c, a, x, t: (
      -a
      * np.exp(r[t] + c[t])
      * (np.exp(c[t]) <= 1.2 and not clip_holds(a, np.exp(r[t]), 0.2, 0.2))
    ),
    "tokens",
  ),
  "tis_sequence": (
    dict(cap=1.05, clip_low=0.1, clip_high=0.3),
    lambda r, c, a, x, t: (
      -a
      * np.exp(r[t])
      * min(np.exp(c.sum()), 1.05)
      * (not clip_holds(a, np.exp(r[t]), 0.1, 0.3))
    ),
    "tokens",
  ),
  "gspo": (
    dict(clip_low=0.1, clip_high=0.05),
    lambda r, c, a, x, t: (
      -a
      * np.exp(r.mean())
      / len(r)
      * (not clip_holds(a, np.exp(r.mean()), 0.1, 0.05))
    ),
    "rows",
  ),
  "cispo": (
    dict(r_min=0.9, r_max=1.2),
    lambda r, c, a, x, t: -a * np.clip(np.exp(r[t]), 0.9, 1.2),
    "tokens",
  ),
  "dppo_kl": (
    dict(bound=0.05, coefficient=0.01),
    lambda r, c, a, x, t: (
      0.02 * r[t]
      - a
      * np.exp(r[t])
      * ((np.exp(x[t]) - np.exp(x[t] - r[t])) * np.sign(a) <= 0.05)
    ),
    "tokens",
  ),
  "batch_asympo": ({}, lambda r, c, a, x, t: -a / len(r), "likelihoods"),
}
TO_SAMPLER = ("tis_reinforce_sequence", "topr", "topr_token", "dppo_kl")


class ByLoopTest(chex.TestCase):
  """Formulas again, in NumPy, one token at a time."""

  @parameterized.parameters(*LOOPS)
  def test_the_gradient(self, name):
    options, gradient_at, total = LOOPS[name]
    with jax.enable_x64(True):
      arrays = {
        k: v if v.dtype == bool else v.astype(np.float64)
        for k, v in sample((7, 5), seed=3).items()
      }
      log_probs, mask = arrays["log_probs"], arrays["completion_mask"]
      found = jax.grad(lambda x: value(name, x, arrays, **options))(log_probs)
    other = "behave" if name in TO_SAMPLER else "old"
    want, held = np.zeros(mask.shape), []
    for b, row in enumerate(mask):
      x, old, behave, to = (
        arrays[f"{k}log_probs"][b][row]
        for k in ("", "old_", "behave_", other + "_")
      )
      a = arrays["advantages"][b]
      want[b, row] = [
        gradient_at(x - to, old - behave, a, x, t) for t in range(len(x))
      ]
      held += [a * w for w in want[b, row]]
    want /= {
      "tokens": mask.sum(),
      "rows": 7,
      "likelihoods": sum(
        -x[m].mean() for x, m in zip(log_probs, mask, strict=True)
      ),
    }[total]
    assert np.abs(want).max() > 0
    assert len(np.unique(np.round(held, 9))) > 3  # bounds bind on some only
    np.testing.assert_allclose(found, want, rtol=1e-9, atol=1e-12)

  def test_the_batchs_likelihood_in_place_of_the_responses(self):
    # S = 1 and 3: (0.5 · 1 − 0.5 · 3) / (1 + 3).
    found = stale_losses.batch_asympo_loss(
      jnp.array([[-1.0], [-3.0]]),
      jnp.array([0.5, -0.5]),
      jnp.ones((2, 1), bool),
    )
    np.testing.assert_allclose(found.value(), -0.25)

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


class SPOLossTest(chex.TestCase):
  def test_bad_responses_alone_are_scaled_by_a_fifth_by_default(self):
    x, a, mask = group()
    plain = jax.grad(lambda x: naive(x, a, mask).value())(x)
    for options, scale in (
      ({}, 0.2), ({"negative_weight": 1.0}, 1), ({"negative_weight": 0.0}, 0)
    ):  # fmt: skip
      found = jax.grad(
        lambda x, o=options: stale_losses.spo_loss(x, a, mask, **o).value()
      )(x)
      want = np.where(a < 0, scale, 1)[:, None] * plain
      np.testing.assert_allclose(found, want, rtol=1e-6)


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
    x, a, mask = group()
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
    x, a, mask = group()
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

  def test_a_group_that_lost_a_response_is_not_balanced(self):
    x, a, mask = group()
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
    "asympo": run(stale_losses.asympo_loss),
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
    x, a, mask = group()
    gradient = jax.grad(
      lambda x: sum(
        one.value() for one in diagnostics.balance(x, a, mask).values()
      )
    )(x)
    np.testing.assert_array_equal(gradient, 0)
