"""PaW's formulas: vectors, the literal equations, masks and devices."""

import functools
import math

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from saw_jax import diagnostics, losses, naming, stale_losses, world_model
from tests import helpers

GOLDEN = helpers.golden("paw_gigpo")
DTYPES = (np.float64, np.float32)
ROUNDINGS = {"ceil": math.ceil, "floor": math.floor, "round": round}
TOKEN_LOSSES = {
  "cmae": world_model.clipped_absolute_error,
  "mae": world_model.absolute_error,
  "hinge": world_model.hinge,
  "reversed": world_model.reversed_absolute_error,
  "ce": world_model.cross_entropy,
}
CLIPPED = ("cmae", "hinge", "reversed")
AGGREGATES = {
  "group_mean": world_model.group_mean,
  "flat_selected": world_model.flat_selected,
}
MEASURES = (world_model.action_entropy, world_model.printed_action_entropy)
partial, world_model_loss = functools.partial, world_model.world_model_loss


def of_kind(*kinds):
  return parameterized.named_parameters(
    dict(testcase_name=case["id"], case=case)
    for case in GOLDEN["cases"]
    if case["kind"] in kinds
  )


def close_to(dtype):
  return partial(assert_allclose, **GOLDEN["tolerance"][np.dtype(dtype).name])


def taken(logits, tokens):
  """Log-probs of the tokens."""
  every = jax.nn.log_softmax(logits)
  return jnp.take_along_axis(every, jnp.asarray(tokens)[..., None], -1)[..., 0]


def entropies_of(logits):
  every = jax.nn.log_softmax(logits)
  return -jnp.sum(jnp.exp(every) * every, axis=-1)


def readings(logits, tokens, mask):
  log_probs = taken(logits, tokens)
  return {
    "H_literal": world_model.printed_action_entropy(log_probs, mask),
    "H_full": world_model.action_entropy(entropies_of(logits), mask),
    "H_nll": stale_losses.sequence_nll(log_probs, mask),
  }


def sample(shape=(7, 5), seed=0):
  """Log-probs and a mask with one empty row; selection, lambdas and groups."""
  rng = np.random.default_rng(seed)
  log_probs = -rng.uniform(0.01, 4, shape).astype(np.float32)
  mask = rng.random(shape) < 0.6
  mask[:, 0] = True
  mask[2] = False
  selected = rng.random(shape[0]) < 0.7
  coefficients = rng.uniform(0, 1, 3).astype(np.float32)
  groups = np.arange(shape[0]) % 3
  return (log_probs, mask), (selected, coefficients, groups)


class TokenLossTest(chex.TestCase):
  @chex.variants(with_jit=True)
  @of_kind("wm_token_loss")
  def test_golden_losses_gradients_and_shares(self, case):
    inputs, want = case["inputs"], case["expected"]
    mask, rho = np.array(inputs["obs_mask"], bool)[None], inputs["rho"]

    every_loss = {
      name: partial(f, rho=rho) if name in CLIPPED else f
      for name, f in TOKEN_LOSSES.items()
    }

    def every(logits):
      batch = taken(logits, inputs["obs_tokens"])[None], mask
      found = {
        name: world_model.transition_losses(*batch, token_loss=f)[0]
        for name, f in every_loss.items()
      }
      return found, diagnostics.clipped_token_share(*batch, rho=rho).value()

    for dtype in DTYPES:
      with jax.enable_x64(dtype is np.float64):
        logits = np.array(inputs["obs_logits"], dtype)
        found, share = self.variant(every)(logits)
        gradients = jax.jit(jax.jacrev(lambda x: every(x)[0]))(logits)
        close = close_to(dtype)
      assert_allclose(share, want["clipped_token_ratio"], rtol=1e-6)
      for name, gradient in gradients.items():
        close(found[name], want[f"{name}_loss"], err_msg=name)
        # The hinge has the gradient of the clipped error.
        key = "cmae" if name == "hinge" else name
        close(gradient, want[f"{key}_grad_logits"], err_msg=name)
        assert gradient.dtype == dtype and not gradient[~mask[0]].any()

  def test_extreme_log_probs_padding_and_small_errors(self):
    (log_probs, mask), _ = sample()
    garbage = np.where(mask, log_probs, np.nan)
    padded = np.pad(garbage, ((0, 0), (0, 3)), constant_values=np.inf)
    wide = np.pad(mask, ((0, 0), (0, 3)))
    x = np.array([[-1e4, -90.0, -1e-7, 0.0]], np.float32)

    @jax.jit
    def every(x, *batches):
      def of(token_loss):
        f = partial(world_model.transition_losses, token_loss=token_loss)
        extreme = jax.value_and_grad(lambda x: f(x, np.ones((1, 4), bool))[0])
        return extreme(x), [f(*batch) for batch in batches]

      return {name: of(f) for name, f in TOKEN_LOSSES.items()}

    found = every(x, (log_probs, mask), (padded, wide))
    for extreme, (plain, wider) in found.values():
      chex.assert_tree_all_finite(extreme)
      assert_allclose(plain, wider, rtol=1e-6)
    (error,) = world_model.absolute_error(jnp.array([-1e-9]))
    assert_allclose(error, 1e-9, rtol=1e-6)


class EntropyTest(chex.TestCase):
  @chex.variants(with_jit=True)
  @of_kind("entropy_selection", "total")
  def test_golden(self, case):
    inputs, want = case["inputs"], case["expected"]["entropy"]
    for dtype in DTYPES:
      with jax.enable_x64(dtype is np.float64):
        found = self.variant(readings)(
          np.array(inputs["action_logits"], dtype),
          np.array(inputs["action_tokens"]),
          np.array(inputs["action_mask"]),
        )
      for name, values in found.items():
        assert values.dtype == dtype
        close_to(dtype)(values, [row[name] for row in want])

  def test_no_gradient_no_tokens_and_impossible_ones(self):
    x, mask = -jnp.ones((1, 3)), jnp.ones((1, 3), bool)
    for f in MEASURES:
      assert not jax.grad(lambda x, f=f: f(x, mask).sum())(x).any()
      assert f(x * jnp.nan, ~mask)[0] == 0
    assert world_model.printed_action_entropy(x * jnp.inf, mask)[0] == 0


class SelectionTest(chex.TestCase):
  @of_kind("entropy_selection", "selection")
  def test_golden_readings_rounding_and_ties(self, case):
    rows, readings, how = case["expected"].get("entropy"), {}, {}
    for key in case["expected"]:
      if rows is None:
        alpha, readings[key] = (case["inputs"][k] for k in ("alpha", "entropy"))
        rounding = key
      elif key.startswith("selected"):
        _, reading, alpha, rounding = key.split("/")
        alpha = float(alpha.removeprefix("alpha="))
        readings[key] = [row[reading] for row in rows]
      else:
        continue
      how[key] = dict(alpha=alpha, rounding=ROUNDINGS[rounding])

    def every(readings):
      return {
        key: world_model.highest_entropy(h, np.ones(len(h), bool), **how[key])
        for key, h in readings.items()
      }

    for dtype in DTYPES:
      with jax.enable_x64(dtype is np.float64):
        entropies = {k: np.array(h, dtype) for k, h in readings.items()}
        for key, found in jax.jit(every)(entropies).items():
          assert_array_equal(found, case["expected"][key], err_msg=key)

  @hypothesis.given(
    entropies=st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=6).map(
      lambda x: x[:6]
    ),
    pool=st.lists(st.booleans(), min_size=6, max_size=6),
    alpha=st.sampled_from([0.1, 0.3, 0.5, 0.75, 1.0]),
  )
  def test_agrees_with_sorting(self, entropies, pool, alpha):
    count = max(1, math.ceil(round(alpha * sum(pool), 6)))
    h, rows = jnp.array(entropies), [i for i in range(6) if pool[i]]
    for f, sign in (
      (world_model.highest_entropy, -1),
      (world_model.lowest_entropy, 1),
    ):
      order = sorted(rows, key=lambda i: (sign * entropies[i], i))
      found = f(h, jnp.array(pool), alpha=alpha)
      assert_array_equal(found, np.isin(np.arange(6), order[:count]))

  def test_a_product_that_is_an_integer_is_not_rounded_up(self):
    # In binary 0.3 · 10 and 0.1 · 30 lie above 3, in one precision or another.
    for alpha, rows in ((0.3, 10), (0.1, 30), (0.7, 10)):
      h, pool = jnp.ones(rows), jnp.ones(rows, bool)
      found = world_model.highest_entropy(h, pool, alpha=alpha)
      assert found.sum() == round(alpha * rows)

  def test_random_ones_are_as_many_within_the_pool_and_differ(self):
    pool, f = jnp.arange(40) < 32, world_model.random_transitions
    for where, alpha in ((pool, 1.0), (pool & False, 0.5)):
      assert_array_equal(f(jax.random.key(0), where, alpha=alpha), where)
    found = [f(jax.random.key(seed), pool, alpha=0.5) for seed in range(2)]
    for one in found:
      assert one.sum() == 16 and not one[32:].any()
    assert (found[0] != found[1]).any()

  @parameterized.parameters(0.0, -0.1, 1.1)
  def test_alpha_is_a_share(self, alpha):
    with self.assertRaisesRegex(ValueError, "alpha"):
      world_model.highest_entropy(jnp.ones(2), jnp.ones(2, bool), alpha=alpha)

  def test_a_batch_split_over_devices_selects_the_same(self):
    rng = np.random.default_rng(0)
    h = rng.integers(0, 4, 24).astype(np.float32)  # with ties
    pool = rng.random(24) < 0.7
    for f in (
      world_model.highest_entropy,
      world_model.lowest_entropy,
      lambda h, pool, **rest: world_model.random_transitions(
        jax.random.key(3), pool, **rest
      ),
    ):
      f = partial(f, alpha=0.4)
      want = f(h, pool)
      assert_array_equal(helpers.over_devices(f, h, pool), want)
      mapped = jax.pmap(partial(f, axis_name="data"), axis_name="data")
      found = mapped(h.reshape(4, 6), pool.reshape(4, 6)).reshape(-1)
      assert_array_equal(found, want)


class CoefficientsTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  @of_kind("lambda")
  def test_golden(self, case):
    inputs, want = case["inputs"], case["expected"]
    f = partial(world_model.adaptive_coefficients, max_return=inputs["R_max"])
    for dtype in DTYPES:
      with jax.enable_x64(dtype is np.float64):
        returns = np.array(inputs["returns"], dtype).reshape(4, 4)
        found = self.variant(f)(returns)
      close = close_to(dtype)
      close(found, list(want["lambda_g"].values()))
      clipped = list(want["lambda_g_clipped01"].values())
      close(np.clip(found, 0, 1), clipped)

  @parameterized.parameters(0.1, 1.0, 1.8, 10.0)
  def test_solved_is_exactly_zero_and_failed_exactly_one(self, most):
    returns = jnp.array([[most] * 7, [0.0] * 7])
    found = world_model.adaptive_coefficients(returns, max_return=most)
    assert_array_equal(found, [0, 1])

  def test_returns_that_do_not_exist_do_not_count_and_a_constant(self):
    returns = jnp.array([[1.0, jnp.nan], [jnp.nan, jnp.nan]])
    found = world_model.adaptive_coefficients(
      returns, max_return=2.0, scored=jnp.isfinite(returns)
    )
    assert_array_equal(found, [0.5, 0])
    found = world_model.constant_coefficients(np.zeros((2, 3)), value=0.5)
    assert_array_equal(found, [0.5, 0.5])


class WeightsTest(chex.TestCase):
  def test_group_mean_is_the_literal_equation(self):
    batch, (selected, coefficients, groups) = sample()
    selected[groups == 1] = False  # a group without any still counts
    per_row = world_model.transition_losses(*batch)
    terms = [
      coefficients[g] * np.mean(per_row[selected & (groups == g)])
      for g in range(3)
      if (selected & (groups == g)).any()
    ]
    weights = world_model.group_mean(selected, coefficients, groups)
    found = world_model_loss(*batch, weights).value()
    assert_allclose(found, sum(terms) / 3, rtol=1e-6)

  def test_mini_batches_of_equal_size_average_to_the_equation(self):
    batch, chosen = sample((6, 5))
    weights = world_model.group_mean(*chosen)
    whole = world_model_loss(*batch, weights).value()
    halves = (
      jax.tree.map(lambda x, i=i: x[i::2], (*batch, weights)) for i in range(2)
    )
    one, other = (world_model_loss(*half) for half in halves)
    assert_allclose((one.value() + other.value()) / 2, whole, rtol=1e-6)
    merged = one.merge(other)
    assert_allclose(merged.value(), whole, rtol=1e-6)
    assert_allclose(merged.denominator, 3, rtol=1e-6)

  @parameterized.parameters(*AGGREGATES)
  def test_padded_rows_and_groups_of_no_weight(self, name):
    f = AGGREGATES[name]
    (log_probs, mask), (selected, coefficients, groups) = sample()
    weights = f(selected, coefficients, groups)
    want = world_model_loss(log_probs, mask, weights).value()
    pad = partial(np.pad, pad_width=((0, 4), (0, 0)))
    batch = (
      pad(log_probs, constant_values=-np.inf),
      pad(mask, constant_values=True),
    )
    chosen, of_rows = (np.pad(x, (0, 4)) for x in (selected, groups))
    weights = naming.supply(
      f, chosen, coefficients, of_rows, rows=np.arange(11) < 7
    )
    found = world_model_loss(*batch, weights).value()
    assert_allclose(found, want, rtol=1e-6)
    for chosen, lambdas in (
      (selected, np.zeros_like(coefficients)),
      (np.zeros_like(selected), coefficients),
    ):
      weights = f(chosen, lambdas, groups)
      value, gradient = jax.value_and_grad(
        lambda x, w=weights: world_model_loss(x, mask, w).value()
      )(log_probs)
      assert value == 0 and not gradient.any()

  @pytest.mark.slow
  def test_a_group_split_off_to_a_device_weighs_the_same(self):
    _, (selected, *_) = sample((12, 5))
    coefficients = np.array([0.1, 0.2, 0.7, 1.0], np.float32)
    groups = np.repeat(np.arange(4), 3)
    for f in AGGREGATES.values():
      found = helpers.over_devices(
        partial(naming.supply, f), selected, coefficients, groups * 0
      )
      want = f(selected, coefficients, groups)
      chex.assert_trees_all_close(found, want, rtol=1e-6)


class TotalTest(chex.TestCase):
  @chex.variants(with_jit=True)
  @of_kind("total")
  def test_golden(self, case):
    inputs, want = case["inputs"], case["expected"]
    groups, trajs = np.array(inputs["group"]), np.array(inputs["traj"])
    # Two groups of two trajectories.
    returns = np.array(list(inputs["returns_by_traj"].values())).reshape(2, 2)
    assert (trajs // 2 == groups).all()
    action_mask = np.array(inputs["action_mask"], bool)
    obs_mask = np.array(inputs["obs_mask"], bool)
    weigh = AGGREGATES[inputs["readings"]["wm_aggregation"]]
    token_loss = partial(TOKEN_LOSSES["cmae"], rho=inputs["rho"])

    def policy_loss(log_probs, dtype):
      a = np.array(inputs["advantages"], dtype)
      if inputs["readings"]["rl"] == "eq1":
        # (1): a mean over the two groups of one over their two trajectories.
        sums = jnp.sum(jnp.where(action_mask, log_probs, 0), axis=1)
        return jnp.sum(-a * sums) / (2 * 2)
      ppo = inputs["ppo"]
      old, ref = (np.array(inputs[f"{k}_logp"], dtype) for k in ("old", "ref"))
      clips = dict.fromkeys(("clip_low", "clip_high"), ppo["eps"])
      surrogate = losses.clipped_surrogate_loss(
        *(log_probs, old, a, action_mask), **clips, dual_clip=ppo["c"]
      )
      kl = losses.kl_loss(log_probs, ref, action_mask, estimator=losses.kl_k3)
      return surrogate.value() + ppo["kl_coef"] * kl.value()

    def total(action_logits, obs_logits):
      dtype = action_logits.dtype
      entropies = entropies_of(action_logits)
      entropies = world_model.action_entropy(entropies, action_mask)
      selected = world_model.highest_entropy(
        entropies, obs_mask.any(-1), alpha=inputs["alpha"]
      )
      coefficients = world_model.adaptive_coefficients(
        returns.astype(dtype), max_return=inputs["R_max"]
      )
      weights = weigh(selected, coefficients, groups)
      batch = taken(obs_logits, np.array(inputs["obs_tokens"])), obs_mask
      world = world_model_loss(*batch, weights, token_loss=token_loss).value()
      log_probs = taken(action_logits, np.array(inputs["action_tokens"]))
      policy = policy_loss(log_probs, dtype)
      return policy + world, {
        "lambda_g": coefficients,
        "wm_loss_per_transition": world_model.transition_losses(
          *batch, token_loss=token_loss
        ),
        "wm_weight_per_transition": weights.weights / weights.counts.sum(),
        "L_RL": policy,
        "lambda_L_WM": world,
        "selected": selected,
      }

    lambdas = {"lambda_g": list(want["lambda_g"].values())}
    for dtype in DTYPES:
      with jax.enable_x64(dtype is np.float64):
        (value, found), gradients = self.variant(
          jax.value_and_grad(total, argnums=(0, 1), has_aux=True)
        )(
          np.array(inputs["action_logits"], dtype),
          np.array(inputs["obs_logits"], dtype),
        )
      close = close_to(dtype)
      close(value, want["L_total"])
      for name, x in found.items():
        close(x, {**want, **lambdas}[name], err_msg=name)
      for name, gradient in zip(("action", "obs"), gradients, strict=True):
        assert gradient.dtype == dtype
        close(gradient, want[f"grad_{name}_logits"])
