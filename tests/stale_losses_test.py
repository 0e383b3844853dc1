"""Losses from stale responses: by loops and by hand."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized
from numpy.testing import assert_allclose, assert_array_equal

from saw_jax import diagnostics, losses, stale_losses
from tests.losses_test import DTYPES, sample, value


def naive(log_probs, advantages, mask):
  return losses.policy_gradient_loss(
    log_probs, advantages, mask, aggregate=losses.sequence_mean_token_mean
  )


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
    assert_allclose(found, want, rtol=1e-9, atol=1e-12)

  def test_the_batchs_likelihood_in_place_of_the_responses(self):
    # S = 1 and 3: (0.5 · 1 − 0.5 · 3) / (1 + 3).
    batch = np.array([[-1.0], [-3.0]]), np.array([0.5, -0.5]), np.ones((2, 1))
    assert_allclose(stale_losses.batch_asympo_loss(*batch).value(), -0.25)

  def test_the_dual_clip_reaches_both(self):
    # A = −1, ρ = 5 and c = 3: the loss is held at 3 times the weight, 2.
    one = np.ones((1, 1))
    batch = one * np.log(5), 0 * one, -one * np.log(2), -one[0], one
    for f in (stale_losses.tis_loss, stale_losses.decoupled_ppo_loss):
      assert_allclose(f(*batch, dual_clip=3.0).value(), 6, rtol=1e-5)


class ASymPOLossTest(chex.TestCase):
  """By hand."""

  def loss_and_gradient(self, log_probs, a, mask=None, **options):
    log_probs, a = np.asarray(log_probs), np.asarray(a)
    mask = np.ones(log_probs.shape, bool) if mask is None else mask
    loss = functools.partial(stale_losses.asympo_loss, **options)
    return jax.value_and_grad(lambda x: loss(x, a, mask).value())(log_probs)

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
      assert_allclose(value, loss, rtol=1e-14, atol=1e-16)
      assert_allclose(gradient[0], good, rtol=1e-14)
      assert_allclose(gradient[1], bad, rtol=1e-14)

  def test_the_floor(self):
    for dtype in DTYPES:
      with jax.enable_x64(dtype is np.float64):
        value, gradient = self.loss_and_gradient(
          np.array([[0.0, 0.0], [-1.0, -1.0]], dtype), np.array([0.5, -0.5])
        )
      # It binds for who is certain, and the balance is lost: −0.5 is left.
      assert_allclose(value, -0.25, rtol=1e-6)
      # −A / (B n floor)
      assert_allclose(gradient[0], -0.5 / (2 * 2 * 1e-6), rtol=1e-6)
    # It is a maximum and not a sum.
    one, other = (
      self.loss_and_gradient(*group(), floor=floor) for floor in (1e-6, 0.09)
    )
    chex.assert_trees_all_equal(one, other)
    _, gradient = self.loss_and_gradient(np.array([[-0.5]]), [1.0], floor=2.0)
    assert_allclose(gradient, -0.5, rtol=1e-6)

  def test_one_token_and_no_token(self):
    value, gradient = self.loss_and_gradient(
      np.array([[-0.5, np.nan], [-2.0, -4.0], [-1.0, -1.0]]),
      [0.5, -0.5, 7.0],
      np.array([[1, 0], [1, 1], [0, 0]]),
    )
    assert_allclose(value, 0, atol=1e-7)
    want = [[-0.5, 0], [0.5 / 12, 0.5 / 12], [0, 0]]
    assert_allclose(gradient, want, rtol=1e-6)

  def test_tokens_at_a_bound_have_no_gradient_but_count(self):
    # Bounds at e⁻³ and e⁻¹. S of the first is (1 + 2) / 2, not 2 nor 1.25.
    log_probs = np.array([[-0.5, -2.0], [-1.0, -9.0]])
    value, gradient = self.loss_and_gradient(
      log_probs, [0.5, -0.5], p_low=np.exp(-3), p_high=np.exp(-1)
    )
    assert_allclose(value, 0, atol=1e-6)
    # −A / (B n S) with S = 1.5 and (1 + 3) / 2.
    assert_allclose(gradient, [[0, -0.125 / 1.5], [0.125 / 2, 0]], rtol=1e-6)

  def test_one_side_may_be_left_as_it_is(self):
    x, a, mask = group()
    plain = jax.grad(lambda x: naive(x, a, mask).value())(x)
    _, scaled = self.loss_and_gradient(x, a, mask)
    for good, bad in itertools.product((True, False), repeat=2):
      _, found = self.loss_and_gradient(
        x, a, mask, scale_positives=good, scale_negatives=bad
      )
      is_scaled = np.where(a >= 0, good, bad)[:, None]
      assert_allclose(found, np.where(is_scaled, scaled, plain), rtol=1e-6)

  def test_a_group_that_lost_a_response_is_not_balanced(self):
    x, a, mask = group()
    mask[0] = False
    value, _ = self.loss_and_gradient(x, a, mask)
    assert_allclose(value, a[1:].mean(), rtol=1e-5)


class BalanceTest(chex.TestCase):
  def test_by_hand(self):
    # S = 1, 3, 5, 7 and a response without tokens, A = 2, −1, −1, 0 and 9.
    log_probs = jnp.array([[-1.0], [-3.0], [-5.0], [-7.0], [jnp.nan]])
    mask = jnp.array([[1], [1], [1], [1], [0]])
    a = jnp.array([2.0, -1.0, -1.0, 0.0, 9.0])
    found = diagnostics.balance(log_probs, a, mask)
    assert tuple(found["nll/positive"]) == (1, 1)
    assert tuple(found["nll/negative"]) == (8, 2)
    assert tuple(found["balance"]) == (2 - 3 - 5, 4)
    assert tuple(found["balance_ratio"]) == (8, 2)
    assert tuple(found["zero_advantage"]) == (1, 4)
    assert found["largest_inverse_nll"].value() == 1

  def test_the_floor_nothing_counted_and_no_gradient(self):
    on = jnp.ones((2, 3), bool)
    found = diagnostics.balance(jnp.zeros((2, 3)), jnp.ones(2), on)
    assert_allclose(found["largest_inverse_nll"].value(), 1e6, rtol=1e-6)
    found = diagnostics.balance(jnp.full((2, 3), jnp.nan), jnp.ones(2), ~on)
    assert all(one.value() == 0 for one in found.values())
    x, a, mask = group()

    def total(x):
      found = diagnostics.balance(x, a, mask)
      return sum(one.value() for one in found.values())

    assert_array_equal(jax.grad(total)(x), 0)
