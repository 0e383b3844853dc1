"""The gradient of a sum, divided once."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from saw_jax import losses, reductions
from saw_jax.models import decoder
from saw_jax.training import objective, update
from saw_jax.training import optimizer as optimizer_lib
from saw_jax.training import state as state_lib
from saw_jax.training.batch import split_rows
from tests.training import helpers


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

    expected, gradient = jax.value_and_grad(loss)(params())
    found, metrics = update.make_gradient(
      objective.make_objective(
        forward, {"policy": objective.Term(objective.clipped_surrogate())}
      ),
      num_microbatches=4,
    )(params(), batch)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    chex.assert_trees_all_close(found, gradient, rtol=1e-4, atol=1e-6)

  def test_the_loss_is_the_sum_of_its_terms(self):
    _, metrics = update.make_gradient(helpers.full_objective())(
      params(), helpers.batch()
    )
    terms = [v for name, v in metrics.items() if name.startswith("loss/")]
    assert len(terms) == 3
    np.testing.assert_allclose(metrics["loss"], sum(terms), rtol=1e-6)

  def test_a_mask_without_tokens_gives_no_gradient_and_no_nan(self):
    batch = helpers.batch()
    batch = batch.replace(roles=jnp.where(batch.roles == 2, 0, batch.roles))
    gradient, metrics = update.make_gradient(helpers.full_objective())(
      params(), batch
    )
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
    step = update.make_update(helpers.full_objective(), optimizer)
    state = state_lib.create_state(params(), optimizer)
    before = None
    for _ in range(3):
      state, metrics = step(state, helpers.batch())
      if before is not None:
        assert metrics["loss"] < before
      before = metrics["loss"]
    assert int(state.step) == 3

  def test_compiles_once_over_changing_data(self):
    optimizer = optimizer_lib.make_optimizer(
      optimizer_lib.OptimizerConfig(), 10
    )
    step = jax.jit(
      chex.assert_max_traces(
        update.make_update(helpers.full_objective(), optimizer), n=1
      )
    )
    state = state_lib.create_state(params(), optimizer)
    for seed in range(3):
      state, _ = step(state, helpers.batch(seed=seed))


class TestSplitRows:
  def test_every_row_is_in_exactly_one_part(self):
    batch = helpers.batch(rows=6)
    parts = split_rows(batch, 3)
    assert parts.tokens.shape[:2] == (3, 2)
    found = np.sort(np.asarray(parts.advantages).ravel())
    np.testing.assert_array_equal(found, np.sort(batch.advantages))
    np.testing.assert_array_equal(parts.tokens[1, 1], batch.tokens[4])


class TestRatioOfParts:
  def test_ratios_of_parts_add_up_and_means_do_not(self):
    batch = helpers.batch()
    x = jnp.arange(batch.completion_mask.size, dtype=jnp.float32)
    x = x.reshape(batch.completion_mask.shape)
    whole = losses.token_mean(x, batch.completion_mask).value()
    parts = [
      losses.token_mean(x[i::2], batch.completion_mask[i::2]) for i in range(2)
    ]
    merged = reductions.Ratio(*parts[0]).merge(parts[1]).value()
    np.testing.assert_allclose(merged, whole, rtol=1e-6)
    assert abs(sum(p.value() for p in parts) / 2 - whole) > 1e-3
