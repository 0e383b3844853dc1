"""The forward pass of an update, and the terms over it."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saw_jax import losses, stale_losses, world_model
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
  """All log-probs of one sequence, without padding."""
  first = int(batch.starts[row])
  last = int(batch.valid[row].nonzero()[0][-1]) + 1
  tokens = batch.tokens[row : row + 1, first:last]
  (logits,) = helpers.logits(helpers.CONFIG, params, tokens)
  return jax.nn.log_softmax(logits / temperature), first, last


class TestMakeForward:
  @pytest.mark.slow
  @pytest.mark.parametrize("temperature", [1.0, 0.6])
  def test_logits_of_a_place_predict_the_next_token(self, params, temperature):
    batch = helpers.batch(rows=3)
    assert len(set(np.asarray(batch.starts).tolist())) > 1  # unequal padding
    options = {"temperature": temperature, "chunk_size": 7}
    forward = objective.make_forward(helpers.CONFIG, **options)
    found = jax.jit(forward)(params, batch)
    for row in range(batch.tokens.shape[0]):
      plain, first, last = plain_log_softmax(params, row, batch, temperature)
      for s in range(batch.prompt_size, last):
        expected, t = plain[s - 1 - first], s - batch.prompt_size
        taken = expected[int(batch.tokens[row, s])]
        entropy = -(np.exp(expected) * expected).sum()
        said = found.log_probs[row, t], found.entropies[row, t]
        np.testing.assert_allclose(said, (taken, entropy), rtol=1e-4)

  def test_padding_has_no_say_and_gradients_reach_every_parameter(self, params):
    batch = helpers.batch()
    forward = objective.make_forward(helpers.CONFIG)

    @functools.partial(jax.grad, has_aux=True)
    def run(params, batch):
      taken = forward(params, batch).log_probs
      taken = jnp.where(batch.completion_mask, taken, 0)
      return jnp.sum(taken), taken

    run = jax.jit(run)
    gradient, taken = run(params, batch)
    garbage = batch.replace(tokens=jnp.where(batch.valid, batch.tokens, 200))
    np.testing.assert_array_equal(run(params, garbage)[1], taken)
    chex.assert_tree_all_finite(gradient)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
      assert np.abs(leaf).max() > 0, path


class TestInParts:
  @pytest.mark.parametrize("num_parts", [1, 2, 3])
  def test_parts_give_each_row_what_the_whole_gives_it(self, num_parts):
    batch = helpers.batch(rows=6)
    sizes = []

    def rows(factor, batch):
      sizes.append(len(batch.tokens))
      return factor * batch.advantages, batch.tokens

    found = objective.in_parts(rows, num_parts)(2.0, batch)
    chex.assert_trees_all_equal(found, (2 * batch.advantages, batch.tokens))
    assert set(sizes) == {6 // num_parts}


CURRENT = (
  losses.policy_gradient_loss,
  stale_losses.spo_loss,
  stale_losses.asympo_loss,
  stale_losses.batch_asympo_loss,
)
CLIPPED = functools.partial(
  losses.clipped_surrogate_loss, clip_low=0.1, clip_high=0.3
)


class TestMakeObjective:
  def test_terms_and_diagnostics_share_one_forward_pass(self):
    calls = []
    batch = helpers.batch()

    def forward(params, batch):
      calls.append(params)
      return outputs(batch)

    made = objective.make_objective(
      forward,
      {
        "policy": objective.policy(losses.clipped_surrogate_loss),
        "once": objective.Term(objective.entropy),
        "thrice": objective.Term(objective.entropy, 3.0),
      },
      [objective.mean_entropy],
    )
    terms, diagnostics = made("params", batch)
    assert calls == ["params"]
    assert set(diagnostics) == {"entropy", "clipped_low", "clipped_high"}
    # A coefficient multiplies the numerator alone.
    once, thrice = terms["once"], terms["thrice"]
    np.testing.assert_allclose(thrice.numerator, 3 * once.numerator, rtol=1e-6)
    np.testing.assert_array_equal(thrice.denominator, once.denominator)
    np.testing.assert_array_equal(once.denominator, batch.completion_mask.sum())

  @pytest.mark.parametrize("given", [lambda step: None, lambda step: [step, 1]])
  def test_a_coefficient_is_one_number(self, given):
    with pytest.raises(ValueError, match="<lambda> gave shapes"):
      objective.at_step(given, 3, "a coefficient")


class TestPolicy:
  @pytest.mark.parametrize(
    ("loss", "fields"),
    [
      *((loss, ()) for loss in CURRENT),
      (stale_losses.gspo_loss, ("old_log_probs",)),
      (stale_losses.topr_loss, ("behave_log_probs",)),
      (stale_losses.decoupled_ppo_loss, ("old_log_probs", "behave_log_probs")),
    ],
  )
  def test_reads_what_the_loss_has_as_arguments_and_no_more(self, loss, fields):
    batch = helpers.batch(old=True)
    made = outputs(batch)
    recorded = {name: getattr(batch, name) for name in fields}
    names = ("old_log_probs", "behave_log_probs", "ref_log_probs")
    bare = batch.replace(**dict.fromkeys(names) | recorded)
    assert objective.recorded_log_probs(loss) == fields
    args = *recorded.values(), batch.advantages, batch.completion_mask
    found = objective.policy(loss).fn(made, bare)
    np.testing.assert_array_equal(found, loss(made.log_probs, *args))

  def test_without_old_log_probs_the_ratio_is_one(self):
    # -sum(A) / n over the policy's tokens: no log-prob is in the value.
    batch = helpers.batch()
    made, term = outputs(batch), objective.policy(losses.clipped_surrogate_loss)
    mask = np.asarray(batch.completion_mask)
    a = np.asarray(batch.advantages)[:, None] * mask
    found = term.fn(made, batch)
    np.testing.assert_allclose(found.numerator, -a.sum(), rtol=1e-5)

    def value(log_probs, **recorded):
      said = made.replace(log_probs=log_probs)
      return term.fn(said, batch.replace(**recorded)).value()

    gradient = jax.grad(value)(made.log_probs)
    np.testing.assert_allclose(gradient, -a / mask.sum(), rtol=1e-5)
    # Nothing flows into the recorded.
    into = jax.grad(lambda old: value(made.log_probs, old_log_probs=old))
    assert not into(batch.behave_log_probs).any()

  def test_a_ratio_may_be_to_the_sampler(self):
    batch = helpers.batch(old=True)
    made = outputs(batch)
    swapped = batch.replace(old_log_probs=batch.behave_log_probs)
    for loss in (losses.clipped_surrogate_loss, stale_losses.cispo_loss):
      found = objective.policy(loss, ratio_to="behave").fn(made, batch)
      plain = objective.policy(loss).fn
      np.testing.assert_array_equal(found, plain(made, swapped))
      assert found.value() != plain(made, batch).value()

  @pytest.mark.parametrize(
    ("loss", "ratio_to", "word"),
    [
      (stale_losses.asympo_loss, "behave", "asympo_loss reads neither"),
      (stale_losses.tis_loss, "behave", "old_log_probs and behave_log_probs"),
      (stale_losses.gspo_loss, "sampler", "'sampler'"),
    ],
  )
  def test_a_ratio_that_does_not_fit_is_refused(self, loss, ratio_to, word):
    with pytest.raises(ValueError, match=word):
      objective.policy(loss, ratio_to=ratio_to)

  def test_a_missing_sampler_is_named_with_the_loss(self):
    batch = helpers.batch(old=True).replace(behave_log_probs=None)
    for loss, ratio_to in (
      (stale_losses.topr_loss, "old"),
      (stale_losses.cispo_loss, "behave"),
    ):
      term = objective.policy(loss, ratio_to=ratio_to)
      with pytest.raises(ValueError, match=f"{loss.__name__} needs behave"):
        term.fn(outputs(batch), batch)


class TestClipShares:
  def shares(self, loss, batch, ratio_to="old"):
    term = objective.policy(loss, ratio_to=ratio_to)
    found = term.diagnostic(outputs(batch), batch)
    return [found[f"clipped_{side}"].value() for side in ("low", "high")]

  def test_of_a_loss_of_ones_own_are_those_of_its_own_ratio(self):
    def own(
      log_probs, old_log_probs, advantages, completion_mask, *,
      clip_low=0.01, clip_high=0.01, clipped_ratio=losses.geometric_ratio,
    ):  # fmt: skip
      raise NotImplementedError

    def silent(
      log_probs, old_log_probs, advantages, completion_mask, *,
      clip_low=0.01, clip_high=0.01,
    ):  # fmt: skip
      return stale_losses.gspo_loss(
        *(log_probs, old_log_probs, advantages, completion_mask),
        **dict(clip_low=clip_low, clip_high=clip_high),
      )

    batch = helpers.batch(old=True)
    mask = np.asarray(batch.completion_mask)
    d = np.asarray(outputs(batch).log_probs - batch.behave_log_probs)
    a, n = np.asarray(batch.advantages), mask.sum(1)
    ratio = np.exp(np.where(mask, d, 0).sum(1) / n)
    low = n[(a < 0) & (ratio < 0.99)].sum() / n.sum()
    high = n[(a > 0) & (ratio > 1.01)].sum() / n.sum()
    assert low + high > 0
    for loss in (own, silent):
      found = self.shares(loss, batch, ratio_to="behave")
      np.testing.assert_allclose(found, [low, high], rtol=1e-6)
    assert self.shares(silent, batch.replace(old_log_probs=None)) == [0, 0]


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
    weights = jnp.array([0.5, 0.0, 1.0, 0.0])
    weights = world_model.RowWeights(weights, jnp.full(4, 0.5))
    batch = batch.replace(roles=jnp.asarray(roles), world=weights)
    return batch, observed[:, batch.prompt_size :]

  def test_it_is_the_formula_on_what_the_environment_wrote(self):
    batch, observed = self.rows()
    said = outputs(batch)
    found = objective.world(world_model.cross_entropy).fn(said, batch)
    nll = -np.where(observed, said.log_probs, 0).sum(-1)
    np.testing.assert_allclose(found, (0.5 * nll[0] + nll[2], 2.0), rtol=1e-6)

  def test_its_diagnostics_are_of_the_observations_at_its_own_bound(self):
    batch, observed = self.rows()
    said = outputs(batch)
    half = jnp.where(jnp.asarray(observed), jnp.log(0.5), said.log_probs)
    said = said.replace(log_probs=half)
    for rho, share in ((0.2, 1.0), (0.6, 0.0)):
      token_loss = functools.partial(world_model.hinge, rho=rho)
      found = objective.world(token_loss).diagnostic(said, batch)
      assert found["clipped_tokens"].value() == share
      nll = found["observation_nll"].value()
      np.testing.assert_allclose(nll, np.log(2), rtol=1e-6)

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
    targets = jnp.array([1.0, 3.0, jnp.nan])
    batch = batch.replace(roles=roles, value_targets=targets)
    said = outputs(batch)
    run = lambda v: objective.value(said.replace(values=v), batch)  # noqa: E731
    values = jnp.array([0.0, 1.0, 9.0])
    assert run(values) == (2.5, 2.0)
    gradient = jax.grad(lambda v: run(v).numerator)(values)
    np.testing.assert_array_equal(gradient, [-1.0, -2.0, 0.0])


class TestOtherTerms:
  def test_kl_by_hand_with_another_average(self):
    batch = helpers.batch()
    made = outputs(batch)
    term = objective.kl(losses.kl_k2, aggregate=losses.sequence_mean_token_sum)
    mask = np.asarray(batch.completion_mask)
    token = np.asarray(made.log_probs - batch.ref_log_probs) ** 2 / 2
    expected = (token * mask).sum() / len(mask)
    np.testing.assert_allclose(term(made, batch).value(), expected, rtol=1e-5)
    there = made.replace(log_probs=batch.ref_log_probs)
    assert objective.kl(losses.kl_k3)(there, batch).value() == 0

  def test_means_over_the_policys_tokens(self):
    batch = helpers.batch()
    made = outputs(batch)
    mask = np.asarray(batch.completion_mask)
    d = np.asarray(made.log_probs - batch.behave_log_probs, np.float64)
    entropy = np.asarray(made.entropies)
    mismatch = objective.sampler_mismatch(made, batch)
    for found, tokens in (
      (objective.entropy(made, batch), -entropy),
      (objective.mean_entropy(made, batch)["entropy"], entropy),
      (objective.likelihood(made, batch), -np.asarray(made.log_probs)),
      (mismatch["sampler_mismatch"], np.abs(d)),
      (mismatch["behave_kl"], np.exp(d) - 1 - d),
    ):
      np.testing.assert_allclose(found.value(), tokens[mask].mean(), rtol=1e-4)
      assert found.denominator == mask.sum()
    batch = batch.replace(behave_log_probs=None)  # is not logged then
    assert objective.sampler_mismatch(made, batch) == {}

  @pytest.mark.parametrize(
    ("term", "field"),
    [
      (objective.kl(losses.kl_k3), "ref_log_probs"),
      (objective.world(world_model.hinge).fn, "world"),
      (objective.value, "value_head"),
    ],
  )
  def test_a_term_names_what_it_lacks(self, term, field):
    batch = helpers.batch(rows=2).replace(ref_log_probs=None)
    with pytest.raises(ValueError, match=field):
      term(outputs(batch), batch)
