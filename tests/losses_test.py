"""Tests of saw_jax/losses.py."""

import functools
import json
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized
from jax.test_util import check_grads

from saw_jax import diagnostics, losses

GOLDEN = json.loads(
  (pathlib.Path(__file__).parent / "golden" / "policy_losses.json").read_text()
)
CASES = {case["name"]: case for case in GOLDEN["cases"]}
CLIPPED = [
  case
  for case in GOLDEN["cases"]
  if case["loss"] == "ppo_clip"
  and not {"tis", "decoupled", "dynamic_sampling"} & set(case["params"])
]
AGGREGATES = {
  "token-mean": losses.token_mean,
  "seq-mean-token-mean": losses.sequence_mean_token_mean,
  "seq-mean-token-sum": losses.sequence_mean_token_sum,
  "seq-mean-token-sum-const": functools.partial(
    losses.sequence_mean_token_sum_const, length=9
  ),
}
ESTIMATORS = (losses.kl_k1, losses.kl_k2, losses.kl_k3)


def sample(shape=(3, 5), seed=0):
  rng = np.random.default_rng(seed)
  log_probs, old, ref = -rng.uniform(0.1, 3, (3, *shape)).astype(np.float32)
  mask = rng.random(shape) < 0.6
  mask[:, 0] = True
  return log_probs, old, ref, rng.normal(size=shape[0]), mask


def every_loss(aggregate=losses.token_mean):
  """Each loss as a function of (log_probs, others, advantages, mask)."""
  return {
    "clipped": lambda x, o, a, m: losses.clipped_surrogate_loss(
      x, o, a, m, dual_clip=3.0, aggregate=aggregate
    ),
    "policy_gradient": lambda x, o, a, m: losses.policy_gradient_loss(
      x, a, m, aggregate=aggregate
    ),
    "entropy": lambda x, o, a, m: losses.entropy_loss(
      x, m, aggregate=aggregate
    ),
    **{
      f.__name__: lambda x, o, a, m, f=f: losses.kl_loss(
        x, o, m, estimator=f, aggregate=aggregate
      )
      for f in ESTIMATORS
    },
  }


class GoldenTest(chex.TestCase):
  @parameterized.named_parameters(
    *(dict(testcase_name=case["name"], case=case) for case in CLIPPED)
  )
  def test_clipped_losses_and_gradients(self, case):
    inputs, params, want = case["inputs"], case["params"], case["expected"]
    for dtype in (np.float64, np.float32):
      tolerance = GOLDEN["tolerance"][np.dtype(dtype).name]
      with jax.enable_x64(dtype is np.float64):
        log_probs = np.array(inputs["logp"], dtype)
        old = np.array(inputs.get("old_logp", inputs["logp"]), dtype)
        mask = np.array(inputs["mask"])
        a = np.array(want["advantages"], dtype)
        aggregate = AGGREGATES[params["agg"]]
        clips = dict(clip_low=params["eps_low"], clip_high=params["eps_high"])

        policy = functools.partial(
          losses.clipped_surrogate_loss, aggregate=aggregate, **clips
        )
        kl = functools.partial(losses.kl_loss, aggregate=aggregate)
        value, gradient = jax.jit(
          jax.value_and_grad(
            lambda x, f=policy, rest=(old, a, mask): f(x, *rest).value()
          )
        )(log_probs)
        if "kl_beta" in params:
          ref = np.array(inputs["ref_logp"], dtype)
          more = jax.jit(
            jax.value_and_grad(
              lambda x, f=kl, rest=(ref, mask): f(x, *rest).value()
            )
          )(log_probs)
          value += params["kl_beta"] * more[0]
          gradient += params["kl_beta"] * more[1]
        np.testing.assert_allclose(value, want["loss"], **tolerance)
        np.testing.assert_allclose(gradient, want["grad_logp"], **tolerance)
        fractions = jax.jit(diagnostics.clip_fractions)(
          log_probs, old, a, mask, **clips
        )
        clipped = (np.array(want["aux"]["clipped"]) * mask).sum() / mask.sum()
        np.testing.assert_allclose(
          sum(one.value() for one in fractions.values()), clipped, rtol=1e-6
        )

  @parameterized.parameters(
    "asympo_basic", "asympo_stale_negatives", "asympo_groups_one_all_correct"
  )
  def test_naive_gradients(self, name):
    # ASymPO's gradient is the naive one over S.
    case = CASES[name]
    want = case["expected"]
    expected = np.array(want["grad_logp"]) * np.array(want["aux"]["S"])[:, None]
    with jax.enable_x64(True):
      gradient = jax.grad(
        lambda x: losses.policy_gradient_loss(
          x,
          np.array(want["advantages"]),
          np.array(case["inputs"]["mask"]),
          aggregate=losses.sequence_mean_token_mean,
        ).value()
      )(np.array(case["inputs"]["logp"]))
    np.testing.assert_allclose(gradient, expected, rtol=1e-10, atol=1e-12)


class AggregatesTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  def test_agree_with_loops(self):
    x, _, _, _, mask = sample()
    mask[1] = False  # a response without tokens is no row
    rows = [row[m] for row, m in zip(x, mask, strict=True) if m.any()]
    means = {
      "token-mean": np.concatenate(rows).mean(),
      "seq-mean-token-mean": np.mean([row.mean() for row in rows]),
      "seq-mean-token-sum": np.mean([row.sum() for row in rows]),
      "seq-mean-token-sum-const": np.mean([row.sum() / 9 for row in rows]),
    }
    for name, f in AGGREGATES.items():
      value = self.variant(lambda x, m, f=f: f(x, m).value())(x, mask)
      np.testing.assert_allclose(value, means[name], rtol=1e-5, err_msg=name)

  @parameterized.parameters(*AGGREGATES)
  def test_rows_in_two_parts_add_up_and_padding_changes_nothing(self, name):
    x, _, _, _, mask = sample((6, 5))
    f = AGGREGATES[name]
    whole = f(x, mask)
    chex.assert_trees_all_close(
      f(x[:2], mask[:2]).merge(f(x[2:], mask[2:])), whole, rtol=1e-6
    )
    pad = functools.partial(np.pad, pad_width=((0, 2), (0, 3)))
    chex.assert_trees_all_close(f(pad(x), pad(mask)), whole, rtol=1e-6)

  @parameterized.parameters(*AGGREGATES)
  def test_no_tokens_are_zero_over_zero(self, name):
    ratio = AGGREGATES[name](jnp.full((2, 3), jnp.nan), jnp.zeros((2, 3), bool))
    assert tuple(ratio) == (0, 0)

  def test_tokens_are_counted_in_float32(self):
    ones = jnp.ones((5, 205), jnp.bfloat16)
    assert tuple(losses.token_mean(ones, ones.astype(bool))) == (1025, 1025)


class EveryLossTest(chex.TestCase):
  @parameterized.product(name=list(every_loss()), aggregate=list(AGGREGATES))
  def test_garbage_under_the_mask_reaches_nothing(self, name, aggregate):
    log_probs, old, _, a, mask = sample()
    mask[1] = False
    run = jax.value_and_grad(
      lambda x, o: every_loss(AGGREGATES[aggregate])[name](
        x, o, a, mask
      ).value()
    )
    clean = run(log_probs, old)
    for garbage in (np.nan, np.inf, -np.inf):
      dirty = [np.where(mask, x, garbage) for x in (log_probs, old)]
      chex.assert_trees_all_equal(run(*dirty), clean)
    np.testing.assert_array_equal(np.where(mask, 0, clean[1]), 0)

  @parameterized.parameters(*every_loss())
  def test_gradients_are_those_of_finite_differences(self, name):
    with jax.enable_x64(True):
      log_probs, old, _, a, mask = sample()
      check_grads(
        lambda x: every_loss()[name](x, old, a, mask).value(),
        (log_probs.astype(np.float64),),
        order=1,
        modes=("rev",),
      )

  @parameterized.parameters(*every_loss())
  def test_what_was_recorded_gets_no_gradient(self, name):
    log_probs, old, _, a, mask = sample()
    gradients = jax.grad(
      lambda o, a: every_loss()[name](log_probs, o, a, mask).value(), (0, 1)
    )(old, a)
    for gradient in gradients:
      np.testing.assert_array_equal(gradient, 0)

  @parameterized.parameters(*every_loss())
  def test_bfloat16_is_float32_inside(self, name):
    log_probs, old, _, a, mask = sample()
    low = [jnp.asarray(x, jnp.bfloat16) for x in (log_probs, old, a)]
    high = [x.astype(jnp.float32) for x in low]
    result = every_loss()[name](*low, mask)
    assert result.numerator.dtype == result.denominator.dtype == jnp.float32
    chex.assert_trees_all_equal(result, every_loss()[name](*high, mask))


class ClippedSurrogateLossTest(chex.TestCase):
  def loss(self, ratio, advantage, **clips):
    def f(log_prob):
      return losses.clipped_surrogate_loss(
        log_prob[None, None],
        jnp.zeros((1, 1)),
        jnp.array([advantage]),
        jnp.ones((1, 1), bool),
        **clips,
      ).value()

    return jax.value_and_grad(f)(jnp.log(ratio))

  def test_the_gradient_stops_where_the_policy_has_moved_enough(self):
    clips = dict(clip_low=0.1, clip_high=0.3)
    # (ratio, advantage) -> (loss, gradient), by hand: dρ/dlog π = ρ.
    for (ratio, a), want in {
      (1.5, 1.0): (-1.3, 0.0),
      (1.2, 1.0): (-1.2, -1.2),
      (0.5, 1.0): (-0.5, -0.5),
      (0.5, -1.0): (0.9, 0.0),
      (0.95, -1.0): (0.95, 0.95),
      (1.5, -1.0): (1.5, 1.5),
    }.items():
      np.testing.assert_allclose(self.loss(ratio, a, **clips), want, rtol=1e-6)

  def test_the_dual_clip_bounds_bad_tokens_only(self):
    np.testing.assert_allclose(
      self.loss(5.0, -1.0, dual_clip=3.0), (3, 0), rtol=1e-6
    )
    np.testing.assert_allclose(
      self.loss(0.5, 1.0, dual_clip=3.0), (-0.5, -0.5), rtol=1e-6
    )

  def test_a_huge_ratio_is_finite(self):
    for advantage in (0.0, 1.0, -1.0):
      value, gradient = self.loss(jnp.exp(88.0) * 0.999, advantage)
      assert np.isfinite(value) and np.isfinite(gradient)
    ratio = losses.token_ratio(
      jnp.zeros((1, 1)), jnp.full((1, 1), -1000.0), jnp.ones((1, 1), bool)
    )
    assert np.isfinite(0 * ratio)

  def test_at_the_old_policy_it_is_the_policy_gradient(self):
    log_probs, _, _, a, mask = sample()
    clipped = jax.grad(
      lambda x: losses.clipped_surrogate_loss(x, x, a, mask).value()
    )(log_probs)
    naive = jax.grad(lambda x: losses.policy_gradient_loss(x, a, mask).value())(
      log_probs
    )
    np.testing.assert_allclose(clipped, naive, rtol=1e-6)

  def test_advantages_may_be_one_a_token(self):
    log_probs, old, _, a, mask = sample()
    per_token = np.where(mask, np.repeat(a[:, None], 5, 1), np.nan)
    for f in (losses.clipped_surrogate_loss, diagnostics.clip_fractions):
      chex.assert_trees_all_equal(
        f(log_probs, old, per_token, mask), f(log_probs, old, a, mask)
      )

  def test_fractions_count_what_either_bound_holds(self):
    log_probs = jnp.log(jnp.array([[1.5, 0.5, 1.1, 1.5], [1.5, 0.5, 0.5, 0.9]]))
    mask = jnp.array([[1, 1, 1, 0], [1, 1, 1, 1]])
    found = diagnostics.clip_fractions(
      log_probs, jnp.zeros((2, 4)), jnp.array([1.0, -1.0]), mask
    )
    assert tuple(found["clipped_low"]) == (2, 7)
    assert tuple(found["clipped_high"]) == (1, 7)


class KLTest(chex.TestCase):
  def test_values_by_hand(self):
    # π / π_ref = 2: k1 = log 2, k2 = (log 2)² / 2, k3 = 1/2 + log 2 − 1.
    for f, want in zip(ESTIMATORS, (0.693147, 0.240227, 0.193147), strict=True):
      np.testing.assert_allclose(
        f(jnp.log(0.5), jnp.log(0.25)), want, rtol=1e-5
      )

  def test_means_and_gradients_under_the_policy(self):
    # Exact expectations over a distribution of five tokens, not samples.
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
      logits, ref = rng.normal(size=(2, 5))
      log_ref = jax.nn.log_softmax(ref)
      p = jax.nn.softmax(logits)

      def kl(logits):
        log_p = jax.nn.log_softmax(logits)
        return jnp.sum(jnp.exp(log_p) * (log_p - log_ref))

      def mean(f, logits):
        return jnp.sum(p * f(jax.nn.log_softmax(logits), log_ref))

      for f in (losses.kl_k1, losses.kl_k3):
        np.testing.assert_allclose(mean(f, logits), kl(logits), rtol=1e-9)
      gradient = {f: jax.grad(lambda x, f=f: mean(f, x))(logits)
                  for f in ESTIMATORS}  # fmt: skip
      np.testing.assert_allclose(gradient[losses.kl_k1], 0, atol=1e-12)
      np.testing.assert_allclose(
        gradient[losses.kl_k2], jax.grad(kl)(logits), rtol=1e-9
      )
      np.testing.assert_allclose(
        gradient[losses.kl_k3], p - jnp.exp(log_ref), rtol=1e-9
      )

  def test_k3_keeps_its_digits_when_the_policies_are_close(self):
    d = np.float32(2**-12)
    np.testing.assert_allclose(
      losses.kl_k3(d, np.float32(0)), float(d) ** 2 / 2, rtol=2e-3
    )

  def test_the_penalty_adds_up_a_response_and_has_no_gradient(self):
    log_probs, _, ref, _, mask = sample()
    want = 0.5 * np.where(mask, log_probs - ref, 0).sum(1)
    dirty = np.where(mask, log_probs, -np.inf)
    penalty = functools.partial(losses.kl_penalty, coefficient=0.5)
    np.testing.assert_allclose(penalty(dirty, ref, mask), want, rtol=1e-5)
    gradient = jax.grad(lambda x: penalty(x, ref, mask).sum())(log_probs)
    np.testing.assert_array_equal(gradient, 0)
