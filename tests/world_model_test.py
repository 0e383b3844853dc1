"""Tests of saw_jax/world_model.py."""

import functools
import json
import math
import pathlib

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads
from numpy.testing import assert_allclose, assert_array_equal

from saw_jax import diagnostics, losses, names, stale_losses, world_model

GOLDEN = json.loads(
  (pathlib.Path(__file__).parent / "golden" / "paw_gigpo.json").read_text()
)
CASES = {case["id"]: case for case in GOLDEN["cases"]}
DTYPES = (np.float64, np.float32)
ROUNDINGS = {"ceil": math.ceil, "floor": math.floor, "round": round}


def of_kind(kind):
  return [
    dict(testcase_name=name, case=case)
    for name, case in CASES.items()
    if case["kind"] == kind
  ]


def tolerance(dtype):
  return GOLDEN["tolerance"][np.dtype(dtype).name]


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
  """Log-probs, a mask with one empty row, selection, lambdas and groups."""
  rng = np.random.default_rng(seed)
  log_probs = -rng.uniform(0.01, 4, shape).astype(np.float32)
  mask = rng.random(shape) < 0.6
  mask[:, 0] = True
  mask[2] = False
  groups = np.arange(shape[0]) % 3
  selected = rng.random(shape[0]) < 0.7
  coefficients = rng.uniform(0, 1, 3).astype(np.float32)
  return log_probs, mask, selected, coefficients, groups


def on_mesh(f, *arrays):
  mesh = jax.make_mesh(
    (4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  return jax.jit(
    jax.shard_map(f, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
  )(*arrays)


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


class TokenLossTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.named_parameters(*of_kind("wm_token_loss"))
  def test_golden_losses_and_gradients(self, case):
    inputs, want = case["inputs"], case["expected"]
    mask = np.array(inputs["obs_mask"], bool)[None]
    for dtype in DTYPES:
      with jax.enable_x64(dtype is np.float64):
        for name, token_loss in TOKEN_LOSSES.items():
          if name in CLIPPED:
            token_loss = functools.partial(token_loss, rho=inputs["rho"])

          def loss(logits, token_loss=token_loss):
            return world_model.transition_losses(
              taken(logits, inputs["obs_tokens"])[None],
              mask,
              token_loss=token_loss,
            )[0]

          value, gradient = self.variant(jax.value_and_grad(loss))(
            np.array(inputs["obs_logits"], dtype)
          )
          assert gradient.dtype == dtype
          assert_allclose(
            value, want[f"{name}_loss"], **tolerance(dtype), err_msg=name
          )
          # The hinge has the gradient of the clipped error.
          key = "cmae" if name == "hinge" else name
          assert_allclose(
            gradient,
            want[f"{key}_grad_logits"],
            **tolerance(dtype),
            err_msg=name,
          )
          assert not gradient[~mask[0]].any()

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.named_parameters(*of_kind("wm_token_loss"))
  def test_golden_share_of_clipped_tokens(self, case):
    inputs, want = case["inputs"], case["expected"]
    share = self.variant(
      lambda x: diagnostics.clipped_token_share(
        taken(x, inputs["obs_tokens"])[None],
        np.array(inputs["obs_mask"])[None],
        rho=inputs["rho"],
      ).value()
    )(np.array(inputs["obs_logits"], np.float32))
    assert_allclose(share, want["clipped_token_ratio"], rtol=1e-6)

  @pytest.mark.slow
  def test_finite_differences(self):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 4, 5))
    tokens = rng.integers(0, 5, (3, 4))
    mask = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]], bool)
    weights = world_model.RowWeights(np.array([0.5, 0.25, 1.0]), np.ones(3))
    with jax.enable_x64(True):
      p = np.exp(taken(logits, tokens))
      assert (np.abs(p - 0.2) > 1e-3).all()  # away from the kink
      for token_loss in TOKEN_LOSSES.values():

        def loss(x, token_loss=token_loss):
          return world_model.world_model_loss(
            taken(x, tokens), mask, weights, token_loss=token_loss
          ).value()

        # Steps are so small that no p crosses the clip.
        check_grads(loss, (logits,), 1, modes=["rev"], rtol=1e-6, eps=1e-5)

  @parameterized.parameters(-1e4, -90.0, -1e-7, 0.0)
  def test_extreme_log_probs_stay_finite(self, log_prob):
    x = jnp.full((1, 2), log_prob)
    mask = jnp.ones((1, 2), bool)
    for token_loss in TOKEN_LOSSES.values():

      def loss(x, token_loss=token_loss):
        return world_model.transition_losses(x, mask, token_loss=token_loss)[0]

      value, gradient = jax.value_and_grad(loss)(x)
      assert np.isfinite(value) and np.isfinite(gradient).all()

  def test_a_small_error_is_not_rounded_away(self):
    (error,) = world_model.absolute_error(jnp.array([-1e-9]))
    assert_allclose(error, 1e-9, rtol=1e-6)

  def test_padding_changes_nothing(self):
    log_probs, mask, *_ = sample()
    garbage = np.where(mask, log_probs, np.nan)
    padded = np.pad(garbage, ((0, 0), (0, 3)), constant_values=np.inf)
    wide = np.pad(mask, ((0, 0), (0, 3)))
    for token_loss in TOKEN_LOSSES.values():
      f = functools.partial(
        world_model.transition_losses, token_loss=token_loss
      )
      assert_allclose(f(log_probs, mask), f(padded, wide), rtol=1e-6)


class EntropyTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.named_parameters(
    *of_kind("entropy_selection"), *of_kind("total")
  )
  def test_golden(self, case):
    inputs, want = case["inputs"], case["expected"]
    for dtype in DTYPES:
      with jax.enable_x64(dtype is np.float64):
        found = self.variant(readings)(
          np.array(inputs["action_logits"], dtype),
          np.array(inputs["action_tokens"]),
          np.array(inputs["action_mask"]),
        )
        for name, values in found.items():
          assert values.dtype == dtype
          assert_allclose(
            values, [row[name] for row in want["entropy"]], **tolerance(dtype)
          )

  def test_no_gradient(self):
    x, mask = -jnp.ones((2, 3)), jnp.ones((2, 3), bool)
    for f in (world_model.action_entropy, world_model.printed_action_entropy):
      assert not jax.grad(lambda x, f=f: f(x, mask).sum())(x).any()

  def test_the_printed_form_of_an_impossible_token_is_zero(self):
    x = jnp.array([[-jnp.inf, -jnp.inf]])
    assert world_model.printed_action_entropy(x, jnp.ones((1, 2)))[0] == 0
    x, mask = jnp.full((1, 2), jnp.nan), jnp.zeros((1, 2), bool)
    for f in (world_model.action_entropy, world_model.printed_action_entropy):
      assert f(x, mask)[0] == 0  # an action without tokens


class SelectionTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.named_parameters(*of_kind("entropy_selection"))
  def test_golden_readings(self, case):
    rows = case["expected"]["entropy"]
    for key, want in case["expected"].items():
      if not key.startswith("selected"):
        continue
      _, reading, alpha, rounding = key.split("/")
      for dtype in DTYPES:
        with jax.enable_x64(dtype is np.float64):
          found = self.variant(
            functools.partial(
              world_model.highest_entropy,
              alpha=float(alpha.removeprefix("alpha=")),
              rounding=ROUNDINGS[rounding],
            )
          )(
            np.array([row[reading] for row in rows], dtype),
            np.ones(len(rows), bool),
          )
          assert_array_equal(found, want, err_msg=key)

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.named_parameters(*of_kind("selection"))
  def test_golden_rounding_and_ties(self, case):
    entropies = np.array(case["inputs"]["entropy"], np.float32)
    for name, want in case["expected"].items():
      found = self.variant(
        functools.partial(
          world_model.highest_entropy,
          alpha=case["inputs"]["alpha"],
          rounding=ROUNDINGS[name],
        )
      )(entropies, np.ones(entropies.shape, bool))
      assert_array_equal(found, want, err_msg=name)

  @hypothesis.given(
    entropies=st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=6).map(
      lambda x: x[:6]
    ),
    pool=st.lists(st.booleans(), min_size=6, max_size=6),
    alpha=st.sampled_from([0.1, 0.3, 0.5, 0.75, 1.0]),
  )
  def test_agrees_with_sorting(self, entropies, pool, alpha):
    count = max(1, math.ceil(round(alpha * sum(pool), 6)))
    for f, sign in (
      (world_model.highest_entropy, -1),
      (world_model.lowest_entropy, 1),
    ):
      order = sorted(
        (i for i in range(6) if pool[i]), key=lambda i: (sign * entropies[i], i)
      )
      want = np.isin(np.arange(6), order[:count])
      found = f(jnp.array(entropies), jnp.array(pool), alpha=alpha)
      assert_array_equal(found, want)

  def test_a_product_that_is_an_integer_is_not_rounded_up(self):
    # In binary 0.3 · 10 and 0.1 · 30 lie above 3, in one precision or another.
    for alpha, rows in ((0.3, 10), (0.1, 30), (0.7, 10)):
      found = world_model.highest_entropy(
        jnp.ones(rows), jnp.ones(rows, bool), alpha=alpha
      )
      assert found.sum() == round(alpha * rows)

  def test_random_ones_are_as_many_within_the_pool_and_differ(self):
    pool = jnp.arange(40) < 32
    for where, alpha in ((pool, 1.0), (pool & False, 0.5)):
      assert_array_equal(
        world_model.random_transitions(jax.random.key(0), where, alpha=alpha),
        where,
      )
    found = [
      world_model.random_transitions(jax.random.key(seed), pool, alpha=0.5)
      for seed in range(2)
    ]
    for one in found:
      assert one.sum() == 16 and not one[32:].any()
    assert (found[0] != found[1]).any()

  @parameterized.parameters(0.0, -0.1, 1.1)
  def test_alpha_is_a_share(self, alpha):
    with self.assertRaises(ValueError):
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
      want = f(h, pool, alpha=0.4)
      split = functools.partial(f, alpha=0.4, axis_name="data")
      assert_array_equal(on_mesh(split, h, pool), want)
      mapped = jax.pmap(split, axis_name="data")
      found = mapped(h.reshape(4, 6), pool.reshape(4, 6)).reshape(-1)
      assert_array_equal(found, want)


class CoefficientsTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.named_parameters(*of_kind("lambda"))
  def test_golden(self, case):
    inputs, want = case["inputs"], case["expected"]
    for dtype in DTYPES:
      with jax.enable_x64(dtype is np.float64):
        found = self.variant(
          functools.partial(
            world_model.adaptive_coefficients, max_return=inputs["R_max"]
          )
        )(np.array(inputs["returns"], dtype).reshape(4, 4))
        assert_allclose(
          found, list(want["lambda_g"].values()), **tolerance(dtype)
        )
        assert_allclose(
          jnp.clip(found, 0, 1),
          list(want["lambda_g_clipped01"].values()),
          **tolerance(dtype),
        )

  @parameterized.parameters(0.1, 1.0, 1.8, 10.0)
  def test_solved_is_exactly_zero_and_failed_exactly_one(self, most):
    returns = jnp.array([[most] * 7, [0.0] * 7])
    found = world_model.adaptive_coefficients(returns, max_return=most)
    assert_array_equal(found, [0, 1])

  def test_returns_that_do_not_exist_do_not_count(self):
    returns = jnp.array([[1.0, jnp.nan], [jnp.nan, jnp.nan]])
    scored = jnp.array([[True, False], [False, False]])
    found = world_model.adaptive_coefficients(
      returns, max_return=2.0, scored=scored
    )
    assert_array_equal(found, [0.5, 0])

  def test_a_constant(self):
    found = world_model.constant_coefficients(np.zeros((2, 3)), value=0.5)
    assert_array_equal(found, [0.5, 0.5])


class WeightsTest(chex.TestCase):
  def test_group_mean_is_the_literal_equation(self):
    log_probs, mask, selected, coefficients, groups = sample()
    selected[groups == 1] = False  # a group without any still counts
    per_row = world_model.transition_losses(log_probs, mask)
    terms = [
      coefficients[g] * np.mean(per_row[selected & (groups == g)])
      for g in range(3)
      if (selected & (groups == g)).any()
    ]
    weights = world_model.group_mean(selected, coefficients, groups)
    found = world_model.world_model_loss(log_probs, mask, weights).value()
    assert_allclose(found, sum(terms) / 3, rtol=1e-6)

  def test_mini_batches_of_equal_size_average_to_the_equation(self):
    log_probs, mask, selected, coefficients, groups = sample((6, 5))
    weights = world_model.group_mean(selected, coefficients, groups)
    whole = world_model.world_model_loss(log_probs, mask, weights)
    parts = [
      world_model.world_model_loss(
        log_probs[i::2],
        mask[i::2],
        world_model.RowWeights(*(x[i::2] for x in weights)),
      )
      for i in range(2)
    ]
    assert_allclose(
      np.mean([part.value() for part in parts]), whole.value(), rtol=1e-6
    )
    merged = parts[0].merge(parts[1])
    assert_allclose(merged.value(), whole.value(), rtol=1e-6)
    assert_allclose(merged.denominator, 3, rtol=1e-6)

  @parameterized.named_parameters(
    *(dict(testcase_name=name, f=f) for name, f in AGGREGATES.items())
  )
  def test_padded_rows_change_nothing(self, f):
    log_probs, mask, selected, coefficients, groups = sample()
    want = world_model.world_model_loss(
      log_probs, mask, f(selected, coefficients, groups)
    )
    padded = names.supply(
      f,
      np.pad(selected, (0, 4)),
      coefficients,
      np.pad(groups, (0, 4)),
      rows=np.arange(11) < 7,
    )
    found = world_model.world_model_loss(
      np.pad(log_probs, ((0, 4), (0, 0)), constant_values=-np.inf),
      np.pad(mask, ((0, 4), (0, 0)), constant_values=True),
      padded,
      token_loss=world_model.clipped_absolute_error,
    )
    assert_allclose(found.value(), want.value(), rtol=1e-6)

  @parameterized.named_parameters(
    *(dict(testcase_name=name, f=f) for name, f in AGGREGATES.items())
  )
  def test_no_group_to_learn_from_has_no_gradient_at_all(self, f):
    log_probs, mask, selected, coefficients, groups = sample()
    for chosen, lambdas in (
      (selected, np.zeros_like(coefficients)),
      (np.zeros_like(selected), coefficients),
    ):
      weights = f(chosen, lambdas, groups)
      value, gradient = jax.value_and_grad(
        lambda x, w=weights: world_model.world_model_loss(x, mask, w).value()
      )(log_probs)
      assert value == 0 and not gradient.any()

  @pytest.mark.slow
  def test_a_group_split_off_to_a_device_weighs_the_same(self):
    log_probs, mask, selected, *_ = sample((12, 5))
    coefficients = np.array([0.1, 0.2, 0.7, 1.0], np.float32)
    groups = np.repeat(np.arange(4), 3)
    for f in AGGREGATES.values():
      want = f(selected, coefficients, groups)
      found = on_mesh(
        functools.partial(names.supply, f, axis_name="data"),
        selected,
        coefficients,
        groups * 0,
      )
      chex.assert_trees_all_close(found, want, rtol=1e-6)

  def test_weights_get_no_gradient(self):
    log_probs, mask, selected, coefficients, groups = sample()

    def loss(c):
      weights = world_model.group_mean(selected, c, groups)
      return world_model.world_model_loss(log_probs, mask, weights).value()

    assert not jax.grad(loss)(coefficients).any()


class TotalTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.named_parameters(*of_kind("total"))
  def test_golden(self, case):
    inputs, want = case["inputs"], case["expected"]
    groups, trajs = np.array(inputs["group"]), np.array(inputs["traj"])
    # Two groups of two trajectories.
    returns = np.array(list(inputs["returns_by_traj"].values())).reshape(2, 2)
    assert (trajs // 2 == groups).all()
    action_mask = np.array(inputs["action_mask"], bool)
    obs_mask = np.array(inputs["obs_mask"], bool)
    weigh = AGGREGATES[inputs["readings"]["wm_aggregation"]]

    def policy_loss(log_probs, dtype):
      a = np.array(inputs["advantages"], dtype)
      if inputs["readings"]["rl"] == "eq1":
        # (1): a mean over the two groups of one over their two trajectories.
        sums = jnp.sum(jnp.where(action_mask, log_probs, 0), axis=1)
        return jnp.sum(-a * sums) / (2 * 2)
      ppo = inputs["ppo"]
      surrogate = losses.clipped_surrogate_loss(
        log_probs,
        np.array(inputs["old_logp"], dtype),
        a,
        action_mask,
        clip_low=ppo["eps"],
        clip_high=ppo["eps"],
        dual_clip=ppo["c"],
      )
      kl = losses.kl_loss(
        log_probs,
        np.array(inputs["ref_logp"], dtype),
        action_mask,
        estimator=losses.kl_k3,
      )
      return surrogate.value() + ppo["kl_coef"] * kl.value()

    def total(action_logits, obs_logits):
      dtype = action_logits.dtype
      entropies = world_model.action_entropy(
        entropies_of(action_logits), action_mask
      )
      selected = world_model.highest_entropy(
        entropies, obs_mask.any(-1), alpha=inputs["alpha"]
      )
      coefficients = world_model.adaptive_coefficients(
        returns.astype(dtype), max_return=inputs["R_max"]
      )
      weights = weigh(selected, coefficients, groups)
      log_probs = taken(obs_logits, np.array(inputs["obs_tokens"]))
      token_loss = functools.partial(
        world_model.clipped_absolute_error, rho=inputs["rho"]
      )
      world = world_model.world_model_loss(
        log_probs, obs_mask, weights, token_loss=token_loss
      )
      policy = policy_loss(
        taken(action_logits, np.array(inputs["action_tokens"])), dtype
      )
      aux = dict(
        selected=selected,
        coefficients=coefficients,
        per_row=world_model.transition_losses(
          log_probs, obs_mask, token_loss=token_loss
        ),
        weights=weights.weights / weights.counts.sum(),
        policy=policy,
        world=world.value(),
      )
      return policy + world.value(), aux

    for dtype in DTYPES:
      with jax.enable_x64(dtype is np.float64):
        (value, aux), gradients = self.variant(
          jax.value_and_grad(total, argnums=(0, 1), has_aux=True)
        )(
          np.array(inputs["action_logits"], dtype),
          np.array(inputs["obs_logits"], dtype),
        )
        assert all(gradient.dtype == dtype for gradient in gradients)
        close = functools.partial(assert_allclose, **tolerance(dtype))
        assert_array_equal(aux["selected"], want["selected"])
        close(aux["coefficients"], list(want["lambda_g"].values()))
        close(aux["per_row"], want["wm_loss_per_transition"])
        close(aux["weights"], want["wm_weight_per_transition"])
        close(aux["policy"], want["L_RL"])
        close(aux["world"], want["lambda_L_WM"])
        close(value, want["L_total"])
        close(gradients[0], want["grad_action_logits"])
        close(gradients[1], want["grad_obs_logits"])
