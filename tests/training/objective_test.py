"""The forward pass of an update, and the terms over it."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saw_jax import losses, reductions, stale_losses, world_model
from saw_jax.models import decoder
from saw_jax.rollout import transcript
from saw_jax.training import objective
from tests import helpers


@pytest.fixture(scope="module")
def params():
  return decoder.init_params(helpers.CONFIG, jax.random.key(0))


def outputs(batch, seed=1):
  """Log-probs and entropies of a policy near the recorded ones."""
  rng = np.random.default_rng(seed)
  shape = batch.completion_mask.shape
  return objective.Outputs(
    log_probs=jnp.asarray(-5.5 + 0.3 * rng.standard_normal(shape), jnp.float32),
    entropies=jnp.asarray(rng.uniform(1, 5, shape), jnp.float32),
  )


def plain_log_softmax(params, row, batch, temperature):
  """All log-probs of one sequence, without padding, in float64."""
  first = int(batch.starts[row])
  last = int(batch.valid[row].nonzero()[0][-1]) + 1
  tokens = batch.tokens[row : row + 1, first:last]
  count = last - first
  hidden, _ = decoder.Decoder(helpers.CONFIG).apply(
    {"params": params},
    tokens,
    jnp.arange(count)[None],
    jnp.ones((1, count), bool),
  )
  head = np.asarray(decoder.head_kernel(params, helpers.CONFIG), np.float64)
  logits = np.asarray(hidden[0], np.float64) @ head / temperature
  logits -= logits.max(-1, keepdims=True)
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True)), first, last


class TestMakeForward:
  @pytest.mark.slow
  @pytest.mark.parametrize("temperature", [1.0, 0.6])
  def test_the_logits_at_one_position_predict_the_token_at_the_next(
    self, params, temperature
  ):
    batch = helpers.batch(rows=3)
    assert len(set(np.asarray(batch.starts).tolist())) > 1  # unequal padding
    found = jax.jit(
      objective.make_forward(
        helpers.CONFIG, temperature=temperature, chunk_size=7
      )
    )(params, batch)
    for row in range(batch.tokens.shape[0]):
      plain, first, last = plain_log_softmax(params, row, batch, temperature)
      for s in range(batch.prompt_size, last):
        expected = plain[s - 1 - first]
        t = s - batch.prompt_size
        np.testing.assert_allclose(
          found.log_probs[row, t],
          expected[int(batch.tokens[row, s])],
          rtol=1e-4,
        )
        np.testing.assert_allclose(
          found.entropies[row, t],
          -(np.exp(expected) * expected).sum(),
          rtol=1e-4,
        )

  def test_temperature_divides_the_logits(self, params):
    # At a high one every token is as likely; at a low one the entropy falls.
    batch = helpers.batch()
    hot, warm, cold = (
      jax.jit(objective.make_forward(helpers.CONFIG, temperature=t))(
        params, batch
      )
      for t in (1e6, 1.0, 0.1)
    )
    np.testing.assert_allclose(hot.log_probs, -np.log(259), rtol=1e-5)
    assert (cold.entropies < warm.entropies).all()

  def test_what_stands_on_padding_changes_nothing(self, params):
    batch = helpers.batch()
    forward = jax.jit(objective.make_forward(helpers.CONFIG))
    garbage = batch.replace(tokens=jnp.where(batch.valid, batch.tokens, 200))
    mask = batch.completion_mask
    np.testing.assert_array_equal(
      forward(params, batch).log_probs[mask],
      forward(params, garbage).log_probs[mask],
    )

  def test_gradients_reach_every_parameter(self, params):
    batch = helpers.batch()
    forward = objective.make_forward(helpers.CONFIG)
    gradient = jax.jit(
      jax.grad(
        lambda p: jnp.sum(forward(p, batch).log_probs * batch.completion_mask)
      )
    )(params)
    chex.assert_tree_all_finite(gradient)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
      assert np.abs(leaf).max() > 0, path


class TestInParts:
  @pytest.mark.parametrize("num_parts", [1, 2, 3])
  def test_parts_give_each_row_what_the_whole_gives_it(self, params, num_parts):
    batch = helpers.batch(rows=6)
    forward = objective.make_forward(helpers.CONFIG, chunk_size=7)
    log_probs = lambda *args: forward(*args).log_probs  # noqa: E731
    found = jax.jit(objective.in_parts(log_probs, num_parts))(params, batch)
    whole = jax.jit(forward)(params, batch).log_probs
    mask = batch.completion_mask
    # The rows differ, so that their order is seen.
    assert len({float(row[mask[r]].sum()) for r, row in enumerate(whole)}) == 6
    np.testing.assert_allclose(found[mask], whole[mask], atol=1e-5)

  def test_one_part_is_in_memory_at_a_time(self, params):
    batch = helpers.batch(rows=6)
    rows = set()

    def forward(params, part):
      rows.add(part.tokens.shape[0])
      return objective.Outputs(*[part.completion_mask.astype(jnp.float32)] * 2)

    objective.in_parts(forward, 3)(params, batch)
    assert rows == {2}


class TestMakeObjective:
  def test_a_coefficient_multiplies_the_numerator_alone(self):
    batch = helpers.batch()
    made = objective.make_objective(
      lambda params, batch: outputs(batch),
      {
        "once": objective.Term(objective.entropy()),
        "thrice": objective.Term(objective.entropy(), 3.0),
      },
    )
    terms, diagnostics = made({}, batch)
    once, thrice = terms["once"], terms["thrice"]
    np.testing.assert_allclose(thrice.numerator, 3 * once.numerator, rtol=1e-6)
    np.testing.assert_array_equal(thrice.denominator, once.denominator)
    np.testing.assert_array_equal(once.denominator, batch.completion_mask.sum())
    assert diagnostics == {}

  def test_all_terms_share_one_forward_pass(self):
    calls = []

    def forward(params, batch):
      calls.append(params)
      return outputs(batch)

    made = objective.make_objective(
      forward,
      {
        "policy": objective.Term(objective.clipped_surrogate()),
        "likelihood": objective.Term(objective.likelihood, 0.5),
      },
      {"entropy": objective.mean_entropy},
    )
    terms, diagnostics = made("params", helpers.batch())
    assert calls == ["params"]
    assert set(terms) == {"policy", "likelihood"}
    assert set(diagnostics) == {"entropy"}
    for ratio in [*terms.values(), *diagnostics.values()]:
      assert isinstance(ratio, reductions.Ratio)


class TestClippedSurrogate:
  def test_without_old_log_probs_the_ratio_is_one(self):
    # -sum(A) / n over the policy's tokens: no log-prob is in the value.
    batch = helpers.batch()
    found = objective.clipped_surrogate()(outputs(batch), batch)
    mask = np.asarray(batch.completion_mask)
    advantages = np.asarray(batch.advantages)[:, None] * mask
    np.testing.assert_allclose(found.numerator, -advantages.sum(), rtol=1e-5)

  def test_its_gradient_is_the_policy_gradient(self):
    batch = helpers.batch()
    made = outputs(batch)
    gradient = jax.grad(
      lambda x: objective.clipped_surrogate()(
        made.replace(log_probs=x), batch
      ).value()
    )(made.log_probs)
    # d/dx of -mean(A log pi).
    mask = np.asarray(batch.completion_mask)
    expected = -np.asarray(batch.advantages)[:, None] * mask / mask.sum()
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)

  def test_old_log_probs_are_what_the_ratio_divides_by(self):
    batch = helpers.batch(old=True)
    made = outputs(batch)
    found = objective.clipped_surrogate(
      clip_low=0.1, clip_high=0.3, aggregate=losses.sequence_mean_token_mean
    )(made, batch)
    mask = np.asarray(batch.completion_mask)
    ratio = np.exp(np.asarray(made.log_probs - batch.old_log_probs))
    a = np.asarray(batch.advantages)[:, None]
    token = np.maximum(-a * ratio, -a * np.clip(ratio, 0.9, 1.3))
    expected = [token[b][mask[b]].mean() for b in range(len(mask))]
    np.testing.assert_allclose(found.value(), np.mean(expected), rtol=1e-5)

  def test_nothing_flows_into_the_recorded(self):
    batch = helpers.batch(old=True)
    made = outputs(batch)
    gradient = jax.grad(
      lambda old: objective.clipped_surrogate()(
        made, batch.replace(old_log_probs=old)
      ).value()
    )(batch.old_log_probs)
    assert not gradient.any()


class TestPolicy:
  def test_reads_what_the_loss_has_as_arguments(self):
    batch = helpers.batch(old=True)
    made = outputs(batch)
    rest = (batch.advantages, batch.completion_mask)
    for loss, recorded in (
      (stale_losses.asympo_loss, ()),
      (stale_losses.gspo_loss, (batch.old_log_probs,)),
      (stale_losses.topr_loss, (batch.behave_log_probs,)),
      (
        stale_losses.decoupled_ppo_loss,
        (batch.old_log_probs, batch.behave_log_probs),
      ),
    ):
      np.testing.assert_array_equal(
        objective.policy(loss)(made, batch),
        loss(made.log_probs, *recorded, *rest),
      )

  @pytest.mark.parametrize(
    "loss",
    [
      losses.policy_gradient_loss,
      stale_losses.spo_loss,
      stale_losses.asympo_loss,
      stale_losses.batch_asympo_loss,
    ],
  )
  def test_current_policy_losses_need_no_recorded_log_probs(self, loss):
    batch = helpers.batch(old=True)
    made = outputs(batch)
    bare = batch.replace(
      old_log_probs=None, behave_log_probs=None, ref_log_probs=None
    )
    assert objective.recorded_log_probs(loss) == ()
    np.testing.assert_array_equal(
      objective.policy(loss)(made, bare), objective.policy(loss)(made, batch)
    )

  def test_a_ratio_may_be_to_the_sampler(self):
    batch = helpers.batch(old=True)
    made = outputs(batch)
    for loss in (
      losses.clipped_surrogate_loss,
      stale_losses.gspo_loss,
      stale_losses.cispo_loss,
    ):
      found = objective.policy(loss, ratio_to="behave")(made, batch)
      swapped = batch.replace(old_log_probs=batch.behave_log_probs)
      np.testing.assert_array_equal(
        found, objective.policy(loss)(made, swapped)
      )
      assert found.value() != objective.policy(loss)(made, batch).value()

  def test_a_missing_sampler_is_named_with_the_loss(self):
    batch = helpers.batch(old=True).replace(behave_log_probs=None)
    for term, name in (
      (objective.policy(stale_losses.topr_loss), "topr_loss"),
      (objective.policy(stale_losses.tis_loss), "tis_loss"),
      (
        objective.policy(stale_losses.cispo_loss, ratio_to="behave"),
        "cispo_loss",
      ),
    ):
      message = f"{name} needs behave_log_probs, which this batch does not hold"
      with pytest.raises(ValueError, match=message):
        term(outputs(batch), batch)

  def test_without_old_log_probs_the_update_is_the_first(self):
    # The old policy is the current one: all weight is in the truncated ratio.
    batch = helpers.batch()
    made = outputs(batch)
    found = objective.policy(stale_losses.decoupled_ppo_loss)(made, batch)
    weight = losses.importance_ratio(made.log_probs, batch.behave_log_probs)
    expected = losses.token_mean(
      -batch.advantages[:, None] * weight, batch.completion_mask
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)

  def test_a_ratio_that_cannot_be_to_the_sampler_is_refused(self):
    with pytest.raises(ValueError, match="asympo_loss reads neither"):
      objective.policy(stale_losses.asympo_loss, ratio_to="behave")
    with pytest.raises(ValueError, match="reads old_log_probs and behave"):
      objective.policy(stale_losses.tis_loss, ratio_to="behave")
    with pytest.raises(ValueError, match="'sampler', neither"):
      objective.policy(stale_losses.gspo_loss, ratio_to="sampler")


class TestWorld:
  """PaW's term, and the value head's."""

  def rows(self):
    batch = helpers.batch(rows=4)
    roles = np.array(batch.roles)
    observed = np.zeros(roles.shape, bool)
    for row in (0, 2):
      last = np.flatnonzero(roles[row] == transcript.POLICY)[-1]
      roles[row, last] = transcript.OBSERVATION
      observed[row, last] = True
    weights = world_model.RowWeights(
      jnp.array([0.5, 0.0, 1.0, 0.0]), jnp.full(4, 0.5)
    )
    batch = batch.replace(roles=jnp.asarray(roles), world=weights)
    return batch, observed[:, batch.prompt_size :]

  def test_it_is_the_formula_on_what_the_environment_wrote(self):
    batch, observed = self.rows()
    said = outputs(batch)
    found = objective.world(world_model.cross_entropy)(said, batch)
    nll = -np.where(observed, said.log_probs, 0).sum(-1)
    np.testing.assert_allclose(
      found.numerator, 0.5 * nll[0] + nll[2], rtol=1e-6
    )
    np.testing.assert_allclose(found.denominator, 2.0)

  def test_its_gradient_is_on_observations_and_the_policys_is_not(self):
    batch, observed = self.rows()
    said = outputs(batch)

    def gradient(term):
      return jax.grad(
        lambda x: term(said.replace(log_probs=x), batch).numerator
      )(said.log_probs)

    of_world = np.asarray(gradient(objective.world(world_model.cross_entropy)))
    assert (of_world[observed] != 0).all() and not of_world[~observed].any()
    of_policy = np.asarray(gradient(objective.clipped_surrogate()))
    assert not of_policy[observed].any()

  def test_a_batch_without_weights_is_named(self):
    batch = helpers.batch(rows=2)
    with pytest.raises(ValueError, match="the world model needs world"):
      objective.world(world_model.hinge)(outputs(batch), batch)

  def test_its_diagnostics_are_of_the_observations(self):
    batch, observed = self.rows()
    said = outputs(batch)
    high = jnp.where(jnp.asarray(observed), jnp.log(0.5), said.log_probs)
    found = {
      name: fn(said.replace(log_probs=high), batch).value()
      for name, fn in objective.world_diagnostics(0.2).items()
    }
    np.testing.assert_allclose(found["clipped_tokens"], 1.0)
    np.testing.assert_allclose(found["observation_nll"], np.log(2), rtol=1e-6)

  @pytest.mark.slow
  def test_values_are_those_at_the_end_of_the_prompt(self):
    config = dataclasses.replace(helpers.CONFIG, value_head=True)
    params = decoder.add_value_head(
      decoder.init_params(helpers.CONFIG, jax.random.key(0)), config
    )
    batch = helpers.batch(rows=3)
    forward = objective.make_forward(config)
    np.testing.assert_array_equal(forward(params, batch).values, 0)
    params["value_kernel"] = jnp.arange(16.0)
    params["value_bias"] = jnp.array([2.0])
    found = forward(params, batch).values
    hidden, _ = decoder.Decoder(config).apply(
      {"params": params}, batch.tokens, batch.positions, batch.valid
    )
    want = hidden[:, batch.prompt_size - 1] @ jnp.arange(16.0) + 2
    np.testing.assert_allclose(found, want, rtol=1e-5)
    # What comes after the prompt cannot be seen.
    other = batch.tokens.at[:, batch.prompt_size :].set(7)
    np.testing.assert_array_equal(
      forward(params, batch.replace(tokens=other)).values, found
    )

  def test_the_value_term_is_half_the_squared_error_of_real_rows(self):
    batch = helpers.batch(rows=3)
    roles = batch.roles.at[2].set(transcript.PAD)
    batch = batch.replace(
      roles=roles, value_targets=jnp.array([1.0, 3.0, jnp.nan])
    )
    said = outputs(batch).replace(values=jnp.array([0.0, 1.0, 9.0]))
    found = objective.value(said, batch)
    assert (found.numerator, found.denominator) == (2.5, 2.0)
    gradient = jax.grad(
      lambda v: objective.value(said.replace(values=v), batch).numerator
    )(said.values)
    np.testing.assert_array_equal(gradient, [-1.0, -2.0, 0.0])

  def test_a_decoder_without_a_value_head_is_named(self):
    batch = helpers.batch(rows=2)
    with pytest.raises(ValueError, match="value_head=True"):
      objective.value(outputs(batch), batch)


class TestKl:
  def test_without_a_reference_it_says_who_needs_it(self):
    batch = helpers.batch().replace(ref_log_probs=None)
    with pytest.raises(ValueError, match="the KL term needs ref_log_probs"):
      objective.kl(losses.kl_k3)(outputs(batch), batch)

  def test_by_hand_with_another_average(self):
    batch = helpers.batch()
    made = outputs(batch)
    found = objective.kl(
      losses.kl_k2, aggregate=losses.sequence_mean_token_sum
    )(made, batch)
    mask = np.asarray(batch.completion_mask)
    token = np.asarray(made.log_probs - batch.ref_log_probs) ** 2 / 2
    expected = (token * mask).sum() / len(mask)
    np.testing.assert_allclose(found.value(), expected, rtol=1e-5)

  def test_is_zero_at_the_reference(self):
    batch = helpers.batch()
    made = outputs(batch).replace(log_probs=batch.ref_log_probs)
    assert objective.kl(losses.kl_k3)(made, batch).value() == 0


class TestEntropy:
  def test_a_higher_entropy_lowers_the_loss(self):
    batch = helpers.batch()
    made = outputs(batch)
    mask = np.asarray(batch.completion_mask)
    mean = np.asarray(made.entropies)[mask].mean()
    found = objective.entropy()(made, batch)
    np.testing.assert_allclose(found.value(), -mean, rtol=1e-5)
    logged = objective.mean_entropy(made, batch)
    np.testing.assert_allclose(logged.value(), mean, rtol=1e-5)


class TestLikelihood:
  def test_is_the_mean_over_the_completions_tokens(self):
    batch = helpers.batch()
    made = outputs(batch)
    mask = np.asarray(batch.completion_mask)
    found = objective.likelihood(made, batch)
    np.testing.assert_allclose(
      found.value(), -np.asarray(made.log_probs)[mask].mean(), rtol=1e-5
    )
    assert found.denominator == mask.sum()


class TestSamplerMismatch:
  def test_is_the_mean_distance_on_the_policys_tokens(self):
    batch = helpers.batch()
    made = outputs(batch)
    mask = np.asarray(batch.completion_mask)
    distance = np.abs(np.asarray(made.log_probs - batch.behave_log_probs))
    found = objective.sampler_mismatch(made, batch)
    np.testing.assert_allclose(found.value(), distance[mask].mean(), rtol=1e-5)

  def test_without_a_sampler_it_says_what_is_missing(self):
    batch = helpers.batch().replace(behave_log_probs=None)
    with pytest.raises(ValueError, match="the sampler mismatch needs behave"):
      objective.sampler_mismatch(outputs(batch), batch)


class TestBehaveKl:
  def test_is_the_mean_of_k3_from_the_sampler(self):
    batch = helpers.batch()
    made = outputs(batch)
    mask = np.asarray(batch.completion_mask)
    d = np.asarray(made.log_probs - batch.behave_log_probs, np.float64)
    found = objective.behave_kl(made, batch).value()
    np.testing.assert_allclose(
      found, (np.exp(d) - 1 - d)[mask].mean(), rtol=1e-4
    )

  def test_without_a_sampler_it_says_what_is_missing(self):
    batch = helpers.batch().replace(behave_log_probs=None)
    with pytest.raises(ValueError, match="the KL to the sampler needs behave"):
      objective.behave_kl(outputs(batch), batch)


class TestIfRecorded:
  def test_a_diagnostic_is_left_out_where_it_cannot_be_computed(self):
    made = objective.make_objective(
      lambda params, batch: outputs(batch),
      {"policy": objective.Term(objective.policy(stale_losses.spo_loss))},
      {
        "mismatch": objective.if_recorded(
          "behave_log_probs", objective.sampler_mismatch
        ),
        "entropy": objective.mean_entropy,
      },
    )
    batch = helpers.batch()
    assert set(made({}, batch)[1]) == {"mismatch", "entropy"}
    bare = batch.replace(behave_log_probs=None)
    assert set(made({}, bare)[1]) == {"entropy"}


class TestBalanceDiagnostics:
  def test_are_the_statistics_by_name(self):
    batch = helpers.batch()
    made = outputs(batch)
    expected = stale_losses.balance(
      made.log_probs, batch.advantages, batch.completion_mask
    )
    found = objective.balance_diagnostics()
    assert len(found) == len(expected)
    for (name, fn), field in zip(found.items(), expected._fields, strict=True):
      assert name.replace("/", "_") == field
      np.testing.assert_array_equal(
        fn(made, batch), getattr(expected, field), name
      )


class TestClipDiagnostics:
  def test_the_ratio_may_be_a_responses_and_to_the_sampler(self):
    batch = helpers.batch(old=True)
    made = outputs(batch)
    mask = np.asarray(batch.completion_mask)
    d = np.asarray(made.log_probs - batch.behave_log_probs)
    ratio = np.array(
      [np.exp(x[m].mean()) for x, m in zip(d, mask, strict=True)]
    )
    a, n = np.asarray(batch.advantages), mask.sum(1)
    high = n[(a > 0) & (ratio > 1.01)].sum() / n.sum()
    low = n[(a < 0) & (ratio < 0.99)].sum() / n.sum()
    found = objective.clip_diagnostics(
      0.01, 0.01, ratio_of=losses.geometric_ratio, ratio_to="behave"
    )
    assert low + high > 0
    for name, share in (("low", low), ("high", high)):
      np.testing.assert_allclose(
        found[f"clipped_{name}"](made, batch).value(), share, rtol=1e-6
      )

  def test_counts_the_tokens_that_the_clip_holds(self):
    batch = helpers.batch(old=True)
    made = outputs(batch)
    mask = np.asarray(batch.completion_mask)
    ratio = np.exp(np.asarray(made.log_probs - batch.old_log_probs))
    a = np.asarray(batch.advantages)[:, None]
    low = (mask & (a < 0) & (ratio < 0.9)).sum() / mask.sum()
    high = (mask & (a > 0) & (ratio > 1.3)).sum() / mask.sum()
    found = objective.clip_diagnostics(0.1, 0.3)
    assert 0 < low and 0 < high and low != high
    np.testing.assert_allclose(
      found["clipped_low"](made, batch).value(), low, rtol=1e-6
    )
    np.testing.assert_allclose(
      found["clipped_high"](made, batch).value(), high, rtol=1e-6
    )

  def test_nothing_is_clipped_on_the_first_update(self):
    batch = helpers.batch()
    for fn in objective.clip_diagnostics(0.1, 0.3).values():
      assert fn(outputs(batch), batch).value() == 0
