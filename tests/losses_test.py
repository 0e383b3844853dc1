"""Every policy loss, KL estimator and aggregate: vectors and properties."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized
from jax.test_util import check_grads
from numpy.testing import assert_allclose, assert_array_equal

from saw_jax import (
  algorithms,
  diagnostics,
  losses,
  naming,
  stale_losses,
  trust_regions,
)
from tests import helpers

GOLDEN = helpers.golden("policy_losses")
CASES = {case["name"]: case for case in GOLDEN["cases"]}
AGGREGATES = {
  "token-mean": losses.token_mean,
  "seq-mean-token-mean": losses.sequence_mean_token_mean,
  "seq-mean-token-sum": losses.sequence_mean_token_sum,
  "seq-mean-token-sum-const": functools.partial(
    losses.sequence_mean_token_sum_const, length=9
  ),
}
RATIOS = algorithms.RATIOS
ESTIMATORS = {f"kl_{k}": f for k, f in algorithms.KL_ESTIMATORS.items()}
DTYPES = (np.float64, np.float32)
partial = functools.partial


def entropy_of(log_probs, completion_mask, *, aggregate=losses.token_mean):
  return losses.entropy_loss(log_probs, completion_mask, aggregate=aggregate)


# Each row of the table, and what its options make of it. A loss is called with
# those of the recorded arrays that it names.
LOSSES = {
  **algorithms.LOSSES,
  "dual_clip": partial(losses.clipped_surrogate_loss, dual_clip=3.0),
  "asympo_bounded": partial(stale_losses.asympo_loss, p_low=0.2, p_high=0.7),
  "tis_reinforce_sequence": partial(
    stale_losses.tis_reinforce_loss, ratio_of=losses.sequence_ratio
  ),
  "topr_token": partial(stale_losses.topr_loss, ratio_of=losses.token_ratio),
  "icepop": partial(
    stale_losses.tis_loss, floor=0.5, cap=5.0, outside=stale_losses.drop
  ),
  "tis_sequence": partial(
    stale_losses.tis_loss, ratio_of=losses.sequence_ratio
  ),
  "decoupled_ppo_capped": partial(stale_losses.decoupled_ppo_loss, cap=1.2),
  "quadratic_response": partial(
    trust_regions.quadratic_loss, per_response=True
  ),
  "entropy": entropy_of,
  **{k: partial(losses.kl_loss, estimator=f) for k, f in ESTIMATORS.items()},
}
# Those that stop no gradient of the current policy.
SMOOTH = ("clipped_surrogate", "dual_clip", "policy_gradient", "gspo", "tis")
SMOOTH += ("tis_sequence", "decoupled_ppo", "dppo_kl", "entropy", *ESTIMATORS)
SMOOTH += ("icepop", "sapo", "quadratic", "quadratic_response")
SMOOTH += ("importance",)
# Those in which advantages are not all there is.
REGULARIZED = ("dppo_kl", "entropy", *ESTIMATORS)
REGULARIZED += ("quadratic", "quadratic_response")


def sample(shape=(4, 5), seed=0):
  """What a loss may read: advantages are those of a whole group."""
  rng = np.random.default_rng(seed)
  log_probs = -rng.uniform(0.1, 3, shape)
  old, behave = log_probs + rng.uniform(-0.5, 0.5, (2, *shape))
  mask = rng.random(shape) < 0.6
  mask[:, 0] = True
  advantages = rng.normal(size=shape[0])
  return dict(
    log_probs=log_probs.astype(np.float32),
    old_log_probs=old.astype(np.float32),
    behave_log_probs=behave.astype(np.float32),
    ref_log_probs=old.astype(np.float32),
    advantages=advantages - advantages.mean(),
    completion_mask=mask,
    lags=np.arange(shape[0]),
  )


def call(name, arrays, **options):
  return naming.supply(LOSSES[name], **arrays, **options)


def value(name, log_probs, arrays, **options):
  return call(name, {**arrays, "log_probs": log_probs}, **options).value()


def rows(arrays, chosen):
  return {name: x[chosen] for name, x in arrays.items()}


def golden_loss(case, dtype):
  """The loss of a case as a function of the current log-probs alone."""
  inputs, params = case["inputs"], dict(case["params"])
  arrays = {
    f"{name}_log_probs": np.array(inputs[f"{key}_logp"], dtype)
    for name, key in (("old", "old"), ("behave", "behav"), ("ref", "ref"))
    if f"{key}_logp" in inputs
  }
  arrays["advantages"] = np.array(case["expected"]["advantages"], dtype)
  arrays["completion_mask"] = np.array(inputs["mask"])
  options = {}
  if "agg" in params:
    options["aggregate"] = AGGREGATES[params.pop("agg")]
  if "level" in params:
    options["ratio_of"] = RATIOS[params.pop("level")]
  kind, beta = case["loss"], params.pop("kl_beta", 0.0)
  if kind in ("gspo", "ppo_clip"):
    options["clip_low"] = params.pop("eps_low")
    options["clip_high"] = params.pop("eps_high")
  if kind == "ppo_clip" and "tis" in params:
    kind, options["ratio_of"] = "tis", RATIOS[params.pop("tis")]
    options["cap"] = params.pop("tis_cap")
  elif kind == "ppo_clip":
    decoupled = params.pop("decoupled", False)
    kind = "decoupled_ppo" if decoupled else "clipped_surrogate"
  elif kind == "spo":
    options["negative_weight"] = params.pop("alpha")
  params.pop("dynamic_sampling", None)
  kind = {"gpg": "policy_gradient"}.get(kind, kind)

  def loss(log_probs):
    found = value(kind, log_probs, arrays, **options, **params)
    if beta:
      aggregate = {"aggregate": options["aggregate"]}
      found += beta * value("kl_k3", log_probs, arrays, **aggregate)
    return found

  return loss


def tolerance(dtype):
  return GOLDEN["tolerance"][np.dtype(dtype).name]


class GoldenTest(chex.TestCase):
  @parameterized.parameters(*DTYPES)
  def test_losses_and_gradients(self, dtype):
    close = partial(assert_allclose, **tolerance(dtype))
    inputs = {
      name: np.array(case["inputs"]["logp"], dtype)
      for name, case in CASES.items()
    }
    with jax.enable_x64(dtype is np.float64):
      every = jax.jit(
        lambda x: {
          name: jax.value_and_grad(golden_loss(case, dtype))(x[name])
          for name, case in CASES.items()
        }
      )(inputs)
    for name, case in CASES.items():
      (found, gradient), want = every[name], case["expected"]
      assert gradient.dtype == dtype, name
      close(found, want["loss"], err_msg=name)
      close(gradient, want["grad_logp"], err_msg=name)
      # Exactly 0, and not a small number, where the mask is off.
      off = np.array(case["inputs"]["mask"]) == 0
      assert not np.array(gradient)[off].any(), name

  @parameterized.named_parameters(
    (name, case)
    for name, case in CASES.items()
    if {"S", "clipped"} & set(case["expected"]["aux"])
  )
  def test_likelihoods_balance_and_clips(self, case):
    inputs, aux = case["inputs"], case["expected"]["aux"]
    params = case["params"]
    with jax.enable_x64(True):
      log_probs, mask = np.array(inputs["logp"]), np.array(inputs["mask"])
      advantages = np.array(case["expected"]["advantages"])
      if "S" in aux:
        nll = stale_losses.sequence_nll(log_probs, mask)
        assert_allclose(nll, aux["S"], rtol=1e-12)
        found = diagnostics.balance(log_probs, advantages, mask)["balance"]
        delta = aux["delta_theta"]
        assert_allclose(found.numerator, delta, rtol=1e-10, atol=1e-12)
      if "clipped" in aux and case["loss"] == "ppo_clip":
        old = np.array(inputs.get("old_logp", inputs["logp"]))
        bounds = dict(clip_low=params["eps_low"], clip_high=params["eps_high"])
        given = log_probs, old, advantages, mask
        found = diagnostics.clip_fractions(*given, **bounds)
        share = sum(one.value() for one in found.values())
        clipped = (np.array(aux["clipped"]) * mask).sum() / mask.sum()
        assert_allclose(share, clipped, rtol=1e-6)

  @chex.variants(with_jit=True)
  def test_gradients_of_logits(self):
    (case,) = GOLDEN["logit_cases"]
    inputs, want = case["inputs"], case["expected"]
    rewards, mask = np.array(inputs["rewards"], float), np.array(inputs["mask"])
    tokens = np.array(inputs["tokens"])[..., None]

    def loss(logits, a):
      every = jax.nn.log_softmax(logits)
      taken = jnp.take_along_axis(every, tokens, -1)[..., 0]
      return stale_losses.asympo_loss(taken, a, mask).value(), taken

    for dtype in DTYPES:
      with jax.enable_x64(dtype is np.float64):
        a = (rewards - rewards.mean()).astype(dtype)
        f = self.variant(jax.value_and_grad(loss, has_aux=True))
        (found, taken), gradient = f(np.array(inputs["logits"], dtype), a)
      assert_allclose(taken, want["logp"], **tolerance(dtype))
      assert_allclose(found, want["loss"], **tolerance(dtype))
      assert_allclose(gradient, want["grad_logits"], **tolerance(dtype))


class AggregatesTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  def test_agree_with_loops(self):
    x, mask = sample()["log_probs"], sample()["completion_mask"]
    mask[1] = False  # a response without tokens is no row
    kept = [row[m] for row, m in zip(x, mask, strict=True) if m.any()]
    means = {
      "token-mean": np.concatenate(kept).mean(),
      "seq-mean-token-mean": np.mean([row.mean() for row in kept]),
      "seq-mean-token-sum": np.mean([row.sum() for row in kept]),
      "seq-mean-token-sum-const": np.mean([row.sum() / 9 for row in kept]),
    }
    for name, f in AGGREGATES.items():
      found = self.variant(lambda x, m, f=f: f(x, m).value())(x, mask)
      assert_allclose(found, means[name], rtol=1e-5, err_msg=name)

  @parameterized.parameters(*AGGREGATES)
  def test_padding_changes_nothing_and_no_tokens_are_zero(self, name):
    x, mask = sample()["log_probs"], sample()["completion_mask"]
    f = AGGREGATES[name]
    pad = partial(np.pad, pad_width=((0, 2), (0, 3)))
    chex.assert_trees_all_close(f(pad(x), pad(mask)), f(x, mask), rtol=1e-6)
    nothing = f(x * np.nan, mask & False)
    assert nothing.numerator == nothing.denominator == 0

  def test_tokens_are_counted_in_float32(self):
    ones = jnp.ones((5, 205), jnp.bfloat16)
    assert tuple(losses.token_mean(ones, ones.astype(bool))) == (1025, 1025)


class EveryLossTest(chex.TestCase):
  @parameterized.parameters(*AGGREGATES)
  def test_masks_parts_and_empty_responses(self, aggregate):
    f = partial(call, aggregate=AGGREGATES[aggregate])

    @jax.jit
    def every(arrays):
      def one(name):
        return jax.value_and_grad(
          lambda x: f(name, {**arrays, "log_probs": x}).value()
        )(arrays["log_probs"])

      chosen = slice(6), slice(2), slice(2, 6), np.array([0, 2, 3, 4, 5])
      return {
        name: (*(f(name, rows(arrays, s)) for s in chosen), one(name))
        for name in LOSSES
      }

    arrays = sample((6, 5))
    # Whole responses in two parts add up.
    for name, (whole, first, second, *_) in every(arrays).items():
      both = first.merge(second)
      chex.assert_trees_all_close(both, whole, rtol=1e-5, atol=1e-6)
      assert whole.denominator, name
    # Garbage under the mask reaches nothing.
    mask = arrays["completion_mask"]
    mask[1] = False
    clean = every(arrays)
    for garbage in (np.nan, np.inf, -np.inf):
      dirty = {
        k: np.where(mask, x, garbage) if k.endswith("log_probs") else x
        for k, x in arrays.items()
      }
      chex.assert_trees_all_equal(every(dirty), clean)
    nothing = every({**arrays, "completion_mask": np.zeros_like(mask)})
    for name, (*_, kept, (found, gradient)) in clean.items():
      gradient = np.array(gradient)
      assert np.isfinite(found) and np.abs(gradient[mask]).max() > 0, name
      assert not gradient[~mask].any(), name
      # A response without tokens is no response.
      want = kept.value()
      assert_allclose(found, want, rtol=1e-5, atol=1e-6, err_msg=name)
      none, *_ = nothing[name]
      assert none.value() == 0 and none.denominator == 0, name

  def test_what_gets_a_gradient_and_types(self):
    arrays = sample()
    log_probs, a = arrays["log_probs"], arrays["advantages"]
    mask = {k: arrays[k] for k in ("completion_mask", "lags")}
    rest = {k: x for k, x in arrays.items() if k not in mask}
    # bfloat16 is float32 inside.
    low = {k: jnp.asarray(x, jnp.bfloat16) for k, x in rest.items()}
    high = {k: x.astype(jnp.float32) for k, x in low.items()}
    # Advantages may be one a token, and where all are 0 is no gradient.
    per_token = np.where(arrays["completion_mask"], a[:, None], np.nan)

    @jax.jit
    def gradients(rest, a):
      def one(name):
        flat = {**rest, **mask, "advantages": a}
        return (
          jax.grad(lambda x: value(name, log_probs, {**x, **mask}))(rest),
          jax.grad(lambda x: value(name, x, flat))(rest["log_probs"]),
        )

      return {name: one(name) for name in LOSSES}

    every = gradients(rest, 0 * a)
    for name, (recorded, own) in every.items():
      assert not any(np.any(x) for x in recorded.values()), name
      assert np.any(own) == (name in REGULARIZED), name
      result = call(name, {**low, **mask})
      assert result.numerator.dtype == result.denominator.dtype == jnp.float32
      chex.assert_trees_all_equal(result, call(name, {**high, **mask}))
      found = call(name, {**arrays, "advantages": per_token})
      chex.assert_trees_all_equal(found, call(name, arrays))

  @parameterized.parameters(*SMOOTH)
  def test_gradients_are_those_of_finite_differences(self, name):
    with jax.enable_x64(True):
      arrays = {k: np.asarray(x, np.float64) for k, x in sample().items()}
      loss = partial(value, name, arrays=arrays)
      check_grads(loss, (arrays["log_probs"],), order=1, modes=("rev",))

  def test_a_huge_ratio_is_finite(self):
    near, far = np.zeros((2, 3), np.float32), np.full((2, 3), -100, np.float32)
    rest = {"advantages": np.array([1.0, -1.0]), "completion_mask": near == 0}
    rest["lags"] = np.array([3, 0])

    @jax.jit
    def every(one, other):
      arrays = {**rest, "old_log_probs": other, "behave_log_probs": other}
      return {
        name: jax.value_and_grad(partial(value, name, arrays=arrays))(one)
        for name in set(LOSSES) - set(ESTIMATORS)
      }

    for one, other in ((near, far), (far, near)):
      for name, (found, gradient) in every(one, other).items():
        assert np.isfinite(found) and np.isfinite(gradient).all(), name


class ClippedSurrogateLossTest(chex.TestCase):
  def loss(self, ratio, advantage, **clips):
    rest = jnp.zeros((1, 1)), jnp.array([advantage]), jnp.ones((1, 1), bool)
    f = partial(losses.clipped_surrogate_loss, **clips)
    return jax.value_and_grad(lambda x: f(x[None, None], *rest).value())(
      jnp.log(ratio)
    )

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
      assert_allclose(self.loss(ratio, a, **clips), want, rtol=1e-6)
    # The dual clip bounds bad tokens only.
    dual = partial(self.loss, dual_clip=3.0)
    assert_allclose(dual(5.0, -1.0), (3, 0), rtol=1e-6)
    assert_allclose(dual(0.5, 1.0), (-0.5, -0.5), rtol=1e-6)

  def test_fractions_count_what_either_bound_holds(self):
    log_probs = jnp.log(jnp.array([[1.5, 0.5, 1.1, 1.5], [1.5, 0.5, 0.5, 0.9]]))
    mask = jnp.array([[1, 1, 1, 0], [1, 1, 1, 1]])
    old, a = jnp.zeros((2, 4)), jnp.array([1.0, -1.0])
    found = diagnostics.clip_fractions(log_probs, old, a, mask)
    assert tuple(found["clipped_low"]) == (2, 7)
    assert tuple(found["clipped_high"]) == (1, 7)


class KLTest(chex.TestCase):
  def test_values_by_hand(self):
    # π / π_ref = 2: k1 = log 2, k2 = (log 2)² / 2, k3 = 1/2 + log 2 − 1.
    found = [f(jnp.log(0.5), jnp.log(0.25)) for f in ESTIMATORS.values()]
    assert_allclose(found, (0.693147, 0.240227, 0.193147), rtol=1e-5)
    # k3 keeps its digits when the policies are close.
    d = np.float32(2**-12)
    assert_allclose(losses.kl_k3(d, np.float32(0)), d**2 / 2, rtol=2e-3)

  def test_the_penalty_adds_up_a_response_and_has_no_gradient(self):
    arrays = sample()
    x, mask = arrays["log_probs"], arrays["completion_mask"]
    ref = arrays["ref_log_probs"]
    want = 0.5 * np.where(mask, x - ref, 0).sum(1)
    penalty = partial(losses.kl_penalty, coefficient=0.5)
    dirty = np.where(mask, x, -np.inf)
    assert_allclose(penalty(dirty, ref, mask), want, rtol=1e-5, atol=1e-6)
    gradient = jax.grad(lambda x: penalty(x, ref, mask).sum())(x)
    assert_array_equal(gradient, 0)
