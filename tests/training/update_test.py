"""The gradient of a sum, divided once."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saw_jax import losses, reductions, stale_losses
from saw_jax.models import decoder
from saw_jax.training import objective, update
from saw_jax.training import optimizer as optimizer_lib
from tests import helpers


def params():
  return decoder.init_params(helpers.CONFIG, jax.random.key(0))


class TestMakeGradient:
  def test_agrees_with_differentiating_the_mean_directly(self):
    batch = helpers.batch(old=True)
    forward = objective.make_forward(helpers.CONFIG, chunk_size=16)

    def loss(params):
      outputs = forward(params, batch)
      mask = batch.completion_mask
      ratio = jnp.exp(outputs.log_probs - batch.old_log_probs)
      a = batch.advantages[:, None]
      tokens = jnp.maximum(-a * ratio, -a * jnp.clip(ratio, 0.8, 1.2))
      return jnp.sum(jnp.where(mask, tokens, 0)) / mask.sum()

    expected, gradient = jax.jit(jax.value_and_grad(loss))(params())
    gradient_of = update.make_gradient(
      objective.make_objective(
        forward, {"policy": objective.policy(losses.clipped_surrogate_loss)}
      ),
      num_microbatches=4,
    )
    found, metrics = jax.jit(gradient_of)(params(), batch)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    chex.assert_trees_all_close(found, gradient, rtol=1e-4, atol=1e-6)

  def test_a_mask_without_tokens_gives_no_gradient_and_no_nan(self):
    batch = helpers.batch()
    batch = batch.replace(roles=jnp.where(batch.roles == 2, 0, batch.roles))
    gradient_of = jax.jit(update.make_gradient(helpers.full_objective()))
    gradient, metrics = gradient_of(params(), batch)
    chex.assert_tree_all_finite((gradient, metrics))
    assert all(not leaf.any() for leaf in jax.tree.leaves(gradient))

  def test_denominators_cost_no_second_forward_pass(self):
    def flops(microbatches):
      fn = update.make_gradient(
        helpers.full_objective(), num_microbatches=microbatches
      )
      compiled = jax.jit(fn).lower(params(), helpers.batch()).compile()
      return compiled.cost_analysis()["flops"]

    def one_pass(params):
      terms, diagnostics = helpers.full_objective()(params, helpers.batch())
      return sum(t.numerator for t in terms.values()), diagnostics

    plain = (
      jax.jit(jax.value_and_grad(one_pass, has_aux=True))
      .lower(params())
      .compile()
      .cost_analysis()["flops"]
    )
    assert flops(1) < 1.1 * plain


class TestMakeUpdate:
  def test_moves_against_the_gradient_and_counts_updates(self):
    optimizer = optimizer_lib.make_optimizer(
      optimizer_lib.OptimizerConfig(learning_rate=1e-3, weight_decay=0.0), 10
    )
    made = update.make_update(helpers.full_objective(), optimizer)
    step = jax.jit(chex.assert_max_traces(made, n=1))
    state = update.create_state(params(), optimizer)
    found = []
    for _ in range(3):
      state, metrics = step(state, helpers.batch())
      found.append(float(metrics["loss"]))
    assert found[0] > found[1] > found[2]
    assert int(state.step) == 3
    step(state, helpers.batch(seed=1))  # compiled once over changing data


def table_forward(params, batch):
  """Reads log-probs out of the parameters: a row's first token is its row."""
  rows = params["log_probs"][batch.tokens[:, 0]]
  return objective.Outputs(log_probs=rows, entropies=-rows)


def table_batch(seed=0, rows=8):
  """Two complete groups, with parameters that are their log-probs."""
  batch = helpers.batch(rows=rows, seed=seed)
  rng = np.random.default_rng(seed)
  rewards = rng.integers(0, 2, (2, rows // 2)).astype(np.float32)
  rewards[:, :2] = 0, 1
  advantages = rewards - rewards.mean(1, keepdims=True)
  log_probs = -rng.uniform(0.05, 8, batch.completion_mask.shape)
  batch = batch.replace(
    tokens=batch.tokens.at[:, 0].set(jnp.arange(rows)),
    advantages=jnp.asarray(advantages.ravel()),
    old_log_probs=None,
    behave_log_probs=None,
    ref_log_probs=None,
  )
  return {"log_probs": jnp.asarray(log_probs, jnp.float32)}, batch


def current_policy_objective(loss):
  return objective.make_objective(
    table_forward,
    {
      "policy": objective.policy(
        functools.partial(loss, aggregate=losses.sequence_mean_token_mean)
      )
    },
    [objective.balance],
  )


class TestLossesOfWholeResponses:
  """What is not a plain sum over tokens, cut into parts (T8)."""

  LOSSES = (
    stale_losses.asympo_loss,
    stale_losses.batch_asympo_loss,
    stale_losses.spo_loss,
    losses.policy_gradient_loss,
  )

  @pytest.mark.parametrize("loss", LOSSES)
  @pytest.mark.parametrize("num_microbatches", [2, 8])
  def test_micro_batches(self, loss, num_microbatches):
    params, batch = table_batch()
    made = current_policy_objective(loss)
    whole = jax.jit(update.make_gradient(made))(params, batch)
    parts = jax.jit(
      update.make_gradient(made, num_microbatches=num_microbatches)
    )(params, batch)
    chex.assert_trees_all_close(parts, whole, rtol=1e-5, atol=1e-6)
    if loss is stale_losses.asympo_loss:
      np.testing.assert_allclose(parts[1]["loss"], 0, atol=1e-6)

  @pytest.mark.slow
  @pytest.mark.parametrize("loss", LOSSES)
  def test_devices(self, loss):
    params, batch = table_batch()
    made = current_policy_objective(loss)
    expected = jax.jit(update.make_gradient(made))(params, batch)
    gradient_of = update.make_gradient(made, num_microbatches=2)
    lifted = jax.pmap(
      functools.partial(gradient_of, axis_name="batch"),
      axis_name="batch",
      in_axes=(None, 0),
    )
    found = lifted(
      params, jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), batch)
    )
    for device in range(4):
      chex.assert_trees_all_close(
        jax.tree.map(lambda x, d=device: x[d], found),
        expected,
        rtol=1e-5,
        atol=1e-6,
      )

  def test_garbage_on_padding_has_no_part_in_it(self):
    params, batch = table_batch()
    gradient_of = jax.jit(
      update.make_gradient(
        current_policy_objective(stale_losses.asympo_loss), num_microbatches=2
      )
    )
    clean = gradient_of(params, batch)
    mask = batch.completion_mask
    for garbage in (jnp.nan, jnp.inf):
      dirty = {"log_probs": jnp.where(mask, params["log_probs"], garbage)}
      chex.assert_trees_all_equal(gradient_of(dirty, batch), clean)
    assert not clean[0]["log_probs"][~mask].any()


class TestMaximum:
  def largest(self, params, batch, **options):
    made = current_policy_objective(stale_losses.spo_loss)
    _, metrics = update.make_gradient(made, **options)(params, batch)
    return metrics["largest_inverse_nll"]

  @pytest.mark.slow
  def test_is_that_of_the_micro_batch_that_has_it(self):
    params, batch = table_batch()
    for row in range(8):
      # One row at S = 1/64, where the others have 1 or more.
      log_probs = jnp.minimum(params["log_probs"], -1).at[row].set(-1 / 64)
      found = self.largest({"log_probs": log_probs}, batch, num_microbatches=4)
      assert found == 64

  def test_is_below_zero_where_all_are(self):
    # Parts are not compared with a 0 that nobody has.
    def fn(outputs, batch):
      return {"greatest": reductions.Maximum(jnp.max(-batch.advantages - 100))}

    params, batch = table_batch()
    made = objective.make_objective(
      table_forward, {"likelihood": objective.Term(objective.likelihood)},
      [fn],
    )  # fmt: skip
    _, metrics = update.make_gradient(made, num_microbatches=4)(params, batch)
    np.testing.assert_allclose(
      metrics["greatest"], jnp.max(-batch.advantages - 100), rtol=1e-6
    )


class TestSkippedUpdates:
  """What is not finite never reaches the parameters."""

  def step(self, params, batch, **options):
    optimizer = optimizer_lib.make_optimizer(
      optimizer_lib.OptimizerConfig(learning_rate=0.1), 10
    )
    step = jax.jit(
      update.make_update(
        current_policy_objective(stale_losses.asympo_loss), optimizer, **options
      )
    )
    before = update.create_state(params, optimizer)
    # An update before, so that the optimizer has something to lose.
    clean, _ = table_batch()
    state, metrics = step(before.replace(params=clean), batch)
    assert metrics["skipped"] == 0
    state = state.replace(params=params)
    return state, *step(state, batch)

  @pytest.mark.parametrize(
    ("bad", "num_microbatches"), [(np.nan, 4), (np.inf, 1), (-np.inf, 1)]
  )
  def test_one_bad_log_prob_changes_nothing(self, bad, num_microbatches):
    params, batch = table_batch()
    row, t = 5, 0
    assert batch.completion_mask[row, t] and batch.advantages[row]
    params = {"log_probs": params["log_probs"].at[row, t].set(bad)}
    before, after, metrics = self.step(
      params, batch, num_microbatches=num_microbatches
    )
    assert metrics["skipped"] == 1
    chex.assert_trees_all_equal(after.params, before.params)
    chex.assert_trees_all_equal(after.opt_state, before.opt_state)
    assert after.step == before.step + 1

  def test_a_loss_that_is_finite_with_a_gradient_that_is_not(self):
    # sqrt at 0.
    made = objective.make_objective(
      table_forward,
      {
        "root": objective.Term(
          lambda outputs, batch: losses.token_mean(
            jnp.sqrt(outputs.log_probs), batch.completion_mask
          )
        )
      },
    )
    optimizer = optimizer_lib.make_optimizer(
      optimizer_lib.OptimizerConfig(), 10
    )
    _, batch = table_batch()
    params = {"log_probs": jnp.zeros(batch.completion_mask.shape)}
    state = update.create_state(params, optimizer)
    after, metrics = update.make_update(made, optimizer)(state, batch)
    assert metrics["loss"] == 0 and metrics["skipped"] == 1
    chex.assert_trees_all_equal(after.params, params)

  def test_all_devices_skip_together(self):
    params, batch = table_batch()
    params = {"log_probs": params["log_probs"].at[5, 0].set(jnp.nan)}
    optimizer = optimizer_lib.make_optimizer(
      optimizer_lib.OptimizerConfig(), 10
    )
    step = update.make_update(
      current_policy_objective(stale_losses.asympo_loss), optimizer
    )
    state = update.create_state(params, optimizer)
    after, metrics = jax.pmap(
      functools.partial(step, axis_name="batch"),
      axis_name="batch",
      in_axes=(None, 0),
    )(state, jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), batch))
    np.testing.assert_array_equal(metrics["skipped"], np.ones(4))
    for device in range(4):
      np.testing.assert_array_equal(
        after.params["log_probs"][device], params["log_probs"]
      )
