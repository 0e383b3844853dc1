"""The gradient of a sum, divided once."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from saw_jax import losses, reductions, stale_losses
from saw_jax.models import decoder
from saw_jax.training import objective, update
from saw_jax.training import optimizer as optimizer_lib
from tests import helpers


def adam(rate):
  config = optimizer_lib.OptimizerConfig(learning_rate=rate)
  return optimizer_lib.make_optimizer(config, 10)


def over_devices(fn, first, batch):
  """Four devices with two rows each."""
  mapped = jax.pmap(
    functools.partial(fn, axis_name="batch"),
    axis_name="batch",
    in_axes=(None, 0),
  )
  rows = jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), batch)
  return mapped(first, rows)


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
    terms = {"policy": objective.policy(losses.clipped_surrogate_loss)}
    made = objective.make_objective(forward, terms)
    gradient_of = update.make_gradient(made, num_microbatches=4)
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

  def test_each_term_is_measured_and_the_sum_stays(self):
    batch = helpers.batch(old=True)
    forward = objective.make_forward(helpers.CONFIG, chunk_size=16)
    terms = {
      "policy": objective.policy(losses.clipped_surrogate_loss),
      "entropy": objective.Term(objective.entropy, 0.1),
    }

    def gradient(terms, **options):
      made = objective.make_objective(forward, terms)
      gradient_of = update.make_gradient(made, num_microbatches=4, **options)
      return jax.jit(gradient_of)(params(), batch)

    whole, plain = gradient(terms)
    found, metrics = gradient(terms, by_term=True)
    chex.assert_trees_all_close(found, whole, rtol=1e-4, atol=1e-6)
    for name, term in terms.items():
      alone, _ = gradient({name: term})
      norm = metrics.pop(f"gradient_norm/{name}")
      np.testing.assert_allclose(norm, optax.tree.norm(alone), rtol=1e-5)
    chex.assert_trees_all_close(metrics, plain, rtol=1e-6)

  def test_denominators_cost_no_second_forward_pass(self):
    def flops(fn):
      compiled = jax.jit(fn).lower(params(), helpers.batch()).compile()
      return compiled.cost_analysis()["flops"]

    def one_pass(params, batch):
      terms, diagnostics = helpers.full_objective()(params, batch)
      return sum(t.numerator for t in terms.values()), diagnostics

    plain = flops(jax.value_and_grad(one_pass, has_aux=True))
    assert flops(update.make_gradient(helpers.full_objective())) < 1.1 * plain


class TestMakeUpdate:
  def test_moves_against_the_gradient_and_counts_updates(self):
    optimizer = adam(1e-3)
    made = update.make_update(helpers.full_objective(), optimizer)
    step = jax.jit(chex.assert_max_traces(made, n=1))
    state = update.create_state(params(), optimizer, 4)
    assert state.weights.tolist() == [0.25] * 4
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
  names = ("old_log_probs", "behave_log_probs", "ref_log_probs")
  batch = batch.replace(
    tokens=batch.tokens.at[:, 0].set(jnp.arange(rows)),
    advantages=jnp.asarray(advantages.ravel()),
    **dict.fromkeys(names),
  )
  return {"log_probs": jnp.asarray(log_probs, jnp.float32)}, batch


def current_policy_objective(loss):
  loss = functools.partial(loss, aggregate=losses.sequence_mean_token_mean)
  terms = {"policy": objective.policy(loss)}
  return objective.make_objective(table_forward, terms, [objective.balance])


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
    of_parts = update.make_gradient(made, num_microbatches=num_microbatches)
    parts = jax.jit(of_parts)(params, batch)
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
    found = over_devices(gradient_of, params, batch)
    for device in range(4):
      one = update.take_seed(found, device)
      chex.assert_trees_all_close(one, expected, rtol=1e-5, atol=1e-6)


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
    terms = {"likelihood": objective.Term(objective.likelihood)}
    made = objective.make_objective(table_forward, terms, [fn])
    _, metrics = update.make_gradient(made, num_microbatches=4)(params, batch)
    assert metrics["greatest"] == jnp.max(-batch.advantages - 100)


class TestSkippedUpdates:
  """What is not finite never reaches the parameters."""

  def step(self, params, batch, **options):
    optimizer = adam(0.1)
    made = current_policy_objective(stale_losses.asympo_loss)
    step = jax.jit(update.make_update(made, optimizer, **options))
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
    parts = {"num_microbatches": num_microbatches}
    before, after, metrics = self.step(params, batch, **parts)
    assert metrics["skipped"] == 1
    chex.assert_trees_all_equal(after.params, before.params)
    chex.assert_trees_all_equal(after.opt_state, before.opt_state)
    assert after.step == before.step + 1

  def test_a_loss_that_is_finite_with_a_gradient_that_is_not(self):
    # sqrt at 0.
    def root(outputs, batch):
      roots = jnp.sqrt(outputs.log_probs)
      return losses.token_mean(roots, batch.completion_mask)

    terms = {"root": objective.Term(root)}
    made = objective.make_objective(table_forward, terms)
    optimizer = adam(1e-6)
    _, batch = table_batch()
    params = {"log_probs": jnp.zeros(batch.completion_mask.shape)}
    state = update.create_state(params, optimizer)
    after, metrics = update.make_update(made, optimizer)(state, batch)
    assert metrics["loss"] == 0 and metrics["skipped"] == 1
    chex.assert_trees_all_equal(after.params, params)

  @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
  def test_a_result_that_is_not_finite(self, dtype):
    params, batch = table_batch()
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    grows = optax.stateless(lambda g, _: jax.tree.map(lambda x: x / 0, g))
    count = optax.GradientTransformation(
      lambda params: jnp.zeros(()), lambda g, x, params: (g, x + jnp.inf)
    )
    for optimizer in (adam(3.3e38), adam(1e30), count, grows):
      made = current_policy_objective(stale_losses.spo_loss)
      state = update.create_state(params, optimizer)
      after, found = jax.jit(update.make_update(made, optimizer))(state, batch)
      assert np.isfinite(found["loss"]) and np.isfinite(found["gradient_norm"])
      assert "as updated" in update.not_finite(found)
      chex.assert_trees_all_equal(after, state.replace(step=1))

  def test_the_parts_of_an_update_are_named(self):
    def named(**values):
      metrics = {"loss/kl": 0.0, "loss": 0.0, "gradient_norm": 1.0}
      return update.not_finite(metrics | {"skipped": 1.0} | values)

    assert named(skipped=0.0) == ""
    assert named(loss=np.inf) == "loss is inf"
    assert named(**{"loss/kl": np.nan}) == "loss/kl is nan"
    assert named(gradient_norm=np.inf) == "gradient_norm is inf"

  def test_all_devices_skip_together(self):
    params, batch = table_batch()
    params = {"log_probs": params["log_probs"].at[5, 0].set(jnp.nan)}
    optimizer = adam(1e-6)
    made = current_policy_objective(stale_losses.asympo_loss)
    step = update.make_update(made, optimizer)
    state = update.create_state(params, optimizer)
    after, metrics = over_devices(step, state, batch)
    np.testing.assert_array_equal(metrics["skipped"], np.ones(4))
    for found in after.params["log_probs"]:
      np.testing.assert_array_equal(found, params["log_probs"])


def test_a_coefficient_may_be_a_function_of_the_step():
  params, batch = table_batch()
  optimizer = adam(1e-6)
  state = update.create_state(params, optimizer).replace(step=jnp.int32(5))

  def loss_at(coefficient, **options):
    term = objective.Term(objective.likelihood, coefficient)
    made = objective.make_objective(table_forward, {"nll": term})
    step = update.make_update(made, optimizer, **options)
    return made, step(state, batch)[1]["loss/nll"]

  _, constant = loss_at(2.0)
  # Two updates a step: the sixth is the last of the third, step 2.
  made, scheduled = loss_at(lambda step: 1.0 * step, num_minibatches=2)
  assert scheduled == constant != 0
  with pytest.raises(ValueError, match="step"):
    update.make_gradient(made)(params, batch)
