"""From names to functions: every entry, and every refusal."""

import functools
import json
import pathlib

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from saw_jax import (
  advantages,
  algorithms,
  diagnostics,
  losses,
  naming,
  step_advantages,
  weighting,
  world_model,
)
from saw_jax.training import objective
from saw_jax.training.estimation import make_estimate
from tests import helpers
from tests.training.estimation_test import MINIMA, rollout

AlgorithmConfig, KLConfig = algorithms.AlgorithmConfig, algorithms.KLConfig
World = algorithms.WorldModelConfig
GDPO, GIGPO = {"advantage": "gdpo"}, {"advantage": "gigpo"}
# Options without which an entry cannot be called.
NEEDED = {
  "static": {"values": (1.5, 0.5)},
  "schedule": {"steps": (0, 4), "values": ((2.0, 0.0), (0.0, 2.0))},
  "dual": {"targets": (None, 0.5)},
  "sequence_mean_token_sum_const": {"length": 7.0},
}


def make(**fields):
  return algorithms.make_method(AlgorithmConfig(**fields), MINIMA)


def make_world(**fields):
  fields = {"loss": "clipped_absolute_error", **fields}
  return algorithms.make_world_model(algorithms.WorldModelConfig(**fields))


@functools.cache
def recorded():
  """A batch with all that a loss may read, and what the policy says of it."""
  batch = helpers.batch(old=True)
  behave = batch.behave_log_probs
  return batch, objective.Outputs(log_probs=behave - 0.1, entropies=behave)


def value(method, name="policy"):
  batch, outputs = recorded()
  return method.terms[name].fn(outputs, batch)


def call(fn, **options):
  """A loss, with those of the recorded arrays that it names."""
  batch, outputs = recorded()
  names_of = ("old_log_probs", "behave_log_probs", "ref_log_probs")
  names_of += ("advantages", "completion_mask")
  given = {name: getattr(batch, name) for name in names_of}
  given["lags"] = jnp.zeros_like(batch.starts)
  return naming.supply(fn, outputs.log_probs, **given, **options)


@pytest.mark.parametrize(
  ("error", "words", "fields"),
  [
    # An unknown name, with the nearest.
    *(
      (KeyError, f"did you mean '{word}", fields)
      for word, fields in (
        ("gdpo", dict(advantage="gdop")),
        ("saw", dict(weights="sawe")),
        ("asympo", dict(loss="asmypo")),
        ("token", dict(loss="topr", loss_options={"ratio_of": "tokne"})),
        ("token_mean", dict(aggregate="token_maen")),
        ("m2po", dict(loss_options={"keep": "mp2o"})),
        ("token", {**GDPO, "advantage_options": {"whiten": "tokens"}}),
        ("mean", {**GIGPO, "advantage_options": {"normalize": "men"}}),
        ("k", dict(kl=KLConfig(placement="loss", estimator="k4"))),
        ("hinge", dict(world_model=World(loss="hnge"))),
        ("entropy", dict(world_model=World("hinge", entropy="entorpy"))),
        ("random", dict(world_model=World("hinge", selection="rnadom"))),
        ("adaptive", dict(world_model=World("hinge", coefficients="adaptve"))),
        ("group_mean", dict(world_model=World("hinge", aggregate="grop_mean"))),
      )
    ),
    # An unknown option, likewise; or one that is a field, or is missing.
    *(
      (TypeError, f"'{word}|{word} is a field", fields)
      for word, fields in (
        ("eps", dict(advantage="grpo", advantage_options={"epss": 1.0})),
        ("delta", dict(weights="saw", weights_options={"detla": 1.0})),
        ("clip_high", dict(loss_options={"clip_hihg": 0.28})),
        ("clip_low", dict(loss="asympo", loss_options={"clip_low": 0.2})),
        ("aggregate", dict(loss_options={"aggregate": "token_mean"})),
        ("length", dict(aggregate_options={"length": 7})),
        ("rewards", dict(advantage="grpo", advantage_options={"rewards": 1})),
        ("rho", dict(world_model=World("hinge", loss_options={"roh": 0.2}))),
      )
    ),
    *(
      (
        ValueError,
        "clip_low is (nan|'high').*number",
        dict(loss_options=options),
      )
      for options in ({"clip_low": "high"}, {"clip_low": float("nan")})
    ),
    (ValueError, "clip_low is -5", dict(loss_options={"clip_low": -5})),
    (ValueError, "dual_clip is 1", dict(loss_options={"dual_clip": 1})),
    (ValueError, "eps is -0.1", dict(advantage_options={"eps": -0.1})),
    (ValueError, "rho", dict(world_model=World("hinge", {"rho": 1.5}))),
    # What does not go together.
    (ValueError, "asympo_loss", dict(loss="asympo", ratio_to="behave")),
    (ValueError, "k1 in the loss", dict(kl=KLConfig("loss", "k1", 0.1))),
    (ValueError, "'rewrad'", dict(kl=KLConfig("rewrad", "k1", 0.1))),
    (ValueError, "gdpo", {**GDPO, "kl": KLConfig("reward", "k1", 0.1)}),
    (ValueError, "gigpo", {**GIGPO, "kl": KLConfig("reward", "k1", 0.1)}),
    (ValueError, "alpha", dict(world_model=World("hinge", alpha=0.0))),
  ],
)
def test_a_mistake_is_named(error, words, fields):
  with pytest.raises(error, match=words):
    make(**fields)
  forced = KLConfig("loss", "k1", 0.1, force=True)
  assert "kl" in make(kl=forced).terms


class TestTables:
  @pytest.mark.parametrize("weights", algorithms.WEIGHTS)
  @pytest.mark.parametrize("advantage", algorithms.ADVANTAGES)
  def test_every_pair_obeys_the_one_protocol(self, advantage, weights):
    method = make(
      advantage=advantage,
      weights=weights,
      weights_options=NEEDED.get(weights, {}),
    )
    rewards, scored, lengths = rollout()
    weight = jnp.ones(2)
    if method.weights is not None:
      garbage = jnp.where(scored, rewards, 77.0)
      weigh = functools.partial(naming.supply, method.weights)
      known = dict(axis_name=None, step=1, persistent=weight / 2)
      weight = weigh(rewards, scored=scored, **known)
      # Weights do not read what is not scored.
      same = weigh(garbage, scored=scored, **known)
      assert_array_equal(weight, same)
    assert weight.shape == (2,) and (weight >= 0).all()
    found = naming.supply(
      method.advantage, rewards, weight, scored=scored, lengths=lengths
    )
    assert found.shape == (5, 3) and found.dtype == jnp.float32
    assert np.isfinite(found).all() and np.abs(found).max() > 0.1
    assert found[1, 2] == 0  # not scored

  def test_every_option_that_is_a_name(self):
    for name, normalize in algorithms.NORMALIZATIONS.items():
      method = make(advantage="gigpo", advantage_options={"normalize": name})
      assert method.advantage.keywords == {"normalize": normalize}
    for name, whiten in algorithms.WHITENINGS.items():
      options = {"whiten": name}
      method = make(advantage="gdpo", advantage_options=options)
      assert method.advantage.keywords == {"whiten": whiten}
      # No advantage of steps whitens by itself.
      of_steps = make(advantage="step_gae", advantage_options=options)
      assert of_steps.whiten is whiten and of_steps.reads_values
    for name, ratio in algorithms.RATIOS.items():
      for loss, key in (
        ("tis_reinforce", "ratio_of"),
        ("gspo", "clipped_ratio"),
      ):
        options = {key: ratio, "aggregate": losses.token_mean}
        found = value(make(loss=loss, loss_options={key: name}))
        assert_array_equal(found, call(algorithms.LOSSES[loss], **options))

  @pytest.mark.parametrize("name", algorithms.STEP_ADVANTAGES)
  def test_advantages_of_steps_are_known_as_such(self, name):
    method = make(advantage=name)
    assert method.per_step and method.whiten is None
    reads = name in ("step_gae", "brace")
    assert method.reads_values == reads == ("value" in method.terms)
    assert method.reads_ratios == (name == "brace")
    assert not make().per_step and not make().reads_values

  @pytest.mark.parametrize("aggregate", algorithms.AGGREGATES)
  @pytest.mark.parametrize("name", algorithms.LOSSES)
  def test_each_loss_and_aggregate_reaches_the_policy(self, name, aggregate):
    options = NEEDED.get(aggregate, {})
    method = make(loss=name, aggregate=aggregate, aggregate_options=options)
    batch, outputs = recorded()
    # What a method does not say that it needs may be absent from the batch.
    batch = batch.replace(ref_log_probs=None)
    if not method.needs_old:
      batch = batch.replace(old_log_probs=None)
    if not method.needs_behave:
      batch = batch.replace(behave_log_probs=None)
    found, logged = objective.make_objective(
      lambda params, batch: outputs, method.terms, method.diagnostics
    )({}, batch)
    average = functools.partial(algorithms.AGGREGATES[aggregate], **options)
    expected = call(algorithms.LOSSES[name], aggregate=average)
    assert_array_equal(found["policy"], expected)
    assert {"balance", "nll/positive", "entropy"} <= set(logged)
    assert ("sampler_mismatch" in logged) == method.needs_behave
    clips = ("clipped_surrogate", "gspo", "tis", "decoupled_ppo")
    clips += ("a3po", "importance")
    assert ("clipped_low" in logged) == (name in clips)
    assert all(np.isfinite(one.value()) for one in logged.values())

  def test_each_loss_says_which_log_probs_it_needs(self):
    def needs(**fields):
      method = make(**fields)
      return method.needs_old, method.needs_behave

    for name in ("policy_gradient", "spo", "asympo", "batch_asympo"):
      assert needs(loss=name) == (False, False), name
    for name in ("clipped_surrogate", "gspo", "cispo"):
      assert needs(loss=name) == (True, False), name
      assert needs(loss=name, ratio_to="behave") == (False, True), name
    for name in ("tis_reinforce", "topr", "dppo_kl", "a3po"):
      assert needs(loss=name) == (False, True), name
    for name in ("tis", "decoupled_ppo"):
      assert needs(loss=name) == (True, True), name

  @pytest.mark.parametrize("name", algorithms.MEASURES)
  def test_every_measure_is_given_what_it_reads(self, name):
    mask = jnp.array([[True, True]])
    found = make_world(entropy=name).measure(
      entropies=jnp.array([[1.0, 2.0]]),
      log_probs=jnp.log(jnp.array([[0.5, 0.5]])),
      completion_mask=mask,
    )
    expected = {"entropy": 1.5, "printed": np.log(2) / 2, "nll": np.log(2)}
    assert_allclose(found, [expected[name]], rtol=1e-6)

  def test_a_function_stands_for_itself(self):
    def own_loss(log_probs, advantages, completion_mask, *, aggregate, scale=1):
      return aggregate(-scale * log_probs, completion_mask)

    method = make(
      loss=own_loss,
      loss_options={"scale": 2.0},
      advantage=advantages.rloo,
      weights=weighting.saw_weights,
      aggregate=losses.sequence_mean_token_sum,
    )
    assert method.advantage is advantages.rloo and not method.per_step
    assert method.weights.keywords["minima"].tolist() == MINIMA.tolist()
    batch, outputs = recorded()
    expected = losses.sequence_mean_token_sum(
      -2.0 * outputs.log_probs, batch.completion_mask
    )
    assert_array_equal(value(method), expected)
    with pytest.raises(TypeError, match="scale"):
      make(loss=own_loss, loss_options={"sclae": 2.0})
    for fn in (world_model.lowest_entropy, lambda pool: pool):
      assert naming.name_of(make_world(selection=fn).select) == fn.__name__

  def test_one_of_somebodys_own_gives_what_it_has_to(self):
    for fields in (
      {"loss": lambda log_probs, advantages, mask: jnp.sum(log_probs)},
      {"weights": lambda rewards: rewards[0, 0, 0]},
      {"advantage": lambda rewards, weights: (rewards @ weights).T},
    ):
      method = make(**fields)
      estimate = make_estimate(method.advantage, method.weights, minima=MINIMA)
      with pytest.raises(ValueError, match="<lambda> gave shapes .*, not "):
        value(method)
        estimate(*rollout(), None, None)


class TestMakeMethod:
  @pytest.mark.parametrize("name", ["saw", "group_saw", "inverse_saw"])
  def test_minima_go_wherever_they_are_taken(self, name):
    rewards, scored, _ = rollout()
    saw = functools.partial(algorithms.WEIGHTS[name], rewards, scored=scored)
    found = make(weights=name).weights(rewards, scored=scored)
    assert_array_equal(found, saw(minima=MINIMA))
    assert np.abs(found - saw()).max() > 0.1  # so that it matters here
    options = {"minima": [-4.0, -1.0]}
    own = make(weights=name, weights_options=options).weights
    expected = saw(minima=np.array(options["minima"], np.float32))
    assert_array_equal(own(rewards, scored=scored), expected)
    assert options == {"minima": [-4.0, -1.0]}

  def test_static_weights_and_gradient_weighting(self):
    rewards, _, _ = rollout()
    for values in ([1.5, 0.5], (1.5, 0.5)):
      fn = make(weights="static", weights_options={"values": values}).weights
      assert_array_equal(fn(rewards), [1.5, 0.5])
    options = {"learning_rate": 1e-3, "temperature": 0.5}
    method = make(weights="gradient", weights_options=options)
    assert method.weights is None
    assert method.gradient_options == options

  def test_terms_have_their_coefficients(self):
    def coefficients(method):
      return [(name, term.coefficient) for name, term in method.terms.items()]

    assert coefficients(make()) == [("policy", 1.0)]
    assert make().kl_in_reward is None and not make().needs_reference
    method = make(
      advantage="step_gae",
      entropy_coefficient=0.01,
      kl=KLConfig(placement="loss", estimator="k2", coefficient=0.05),
      world_model=algorithms.WorldModelConfig(loss="hinge"),
      value_coefficient=0.25,
    )
    # In the order in which they add up.
    found = coefficients(method)
    assert found[:2] == [("policy", 1.0), ("entropy", 0.01)]
    assert found[2:4] == [("value", 0.25), ("world_model", 1.0)]
    assert found[4:] == [("kl", 0.05)]
    assert method.needs_reference and method.kl_in_reward is None
    expected = call(losses.kl_loss, estimator=losses.kl_k2)
    assert_array_equal(value(method, "kl"), expected)
    # A KL in the reward is no term.
    kl = KLConfig(placement="reward", estimator="k1", coefficient=0.001)
    method = make(advantage="grpo", kl=kl)
    assert coefficients(method) == [("policy", 1.0)]
    assert method.kl_in_reward == (losses.kl_k1, 0.001)
    assert method.needs_reference

  def test_options_reach_the_loss_and_the_shares_of_its_clip(self):
    clips = {"clip_low": 0.1, "clip_high": 0.3}
    method = make(loss_options={"dual_clip": 1.01, **clips})
    expected = call(losses.clipped_surrogate_loss, dual_clip=1.01, **clips)
    assert_array_equal(value(method), expected)
    shares = call(diagnostics.clip_fractions, **clips)
    assert all(share.numerator > 0 for share in shares.values())
    batch, outputs = recorded()
    found = method.terms["policy"].diagnostic(outputs, batch)
    chex.assert_trees_all_equal(found, shares)


class TestWithLoss:
  """A loss of one's own is as good as one of the table."""

  @pytest.mark.parametrize(
    ("name", "ratio_to"),
    [("asympo", "old"), ("clipped_surrogate", "behave"), ("gspo", "old")]
    + [("topr", "old"), ("decoupled_ppo", "old")],
  )
  def test_it_makes_the_method_that_the_table_makes(self, name, ratio_to):
    fields = dict(
      aggregate="sequence_mean_token_mean",
      ratio_to=ratio_to,
      entropy_coefficient=0.1,
      kl=KLConfig(placement="loss", coefficient=0.1),
    )
    expected = make(loss=name, **fields)
    start = make(loss="cispo", **fields)
    loss = functools.partial(
      algorithms.LOSSES[name], aggregate=losses.sequence_mean_token_mean
    )
    found = algorithms.with_loss(start, loss, ratio_to=ratio_to)
    for field in ("needs_old", "needs_behave", "needs_reference"):
      assert getattr(found, field) == getattr(expected, field), field
    assert list(found.terms) == list(expected.terms)
    for term, wanted in expected.terms.items():
      assert found.terms[term].coefficient == wanted.coefficient
      assert_array_equal(value(found, term), value(expected, term))
    shares = found.terms["policy"].diagnostic
    assert (shares is None) == (name in ("asympo", "topr"))
    # The method that it was made of is as it was.
    assert start.terms["policy"].diagnostic is None and start.needs_old != (
      ratio_to == "behave"
    )


def test_options_that_nobody_sets_are_as_the_papers_have_them():
  tables = (
    "ADVANTAGES STEP_ADVANTAGES WEIGHTS LOSSES TOKEN_LOSSES SELECTIONS "
    "COEFFICIENTS WHITENINGS NORMALIZATIONS KEEPS STEP_SIZES"
  )
  functions = {
    f"{table} {name}": function
    for table in tables.split()
    for name, function in getattr(algorithms, table).items()
    if function is not None
  }
  functions |= {"kl_penalty": losses.kl_penalty, "gae": step_advantages.gae}
  found = {
    name: {
      key: default
      for key, default in naming.options(function).items()
      if isinstance(default, int | float) and not isinstance(default, bool)
    }
    for name, function in functions.items()
  }
  path = pathlib.Path(__file__).parent / "golden" / "defaults.json"
  assert {k: x for k, x in found.items() if x} == json.loads(path.read_text())
