"""From names to functions: every entry, and every refusal."""

import functools
import importlib.util
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saw_jax import algorithms, losses, stale_losses, tokenizer, weighting
from saw_jax.tasks.tool_calling import task as tool_calling
from saw_jax.training import objective
from tests import helpers

AlgorithmConfig, KLConfig = algorithms.AlgorithmConfig, algorithms.KLConfig
MINIMA = np.array([-3.0, 0.0], np.float32)
# Options without which an entry cannot be called.
NEEDED = {
  "static": {"values": (1.5, 0.5)},
  "sequence_mean_token_sum_const": {"length": 7.0},
}


def make(**fields):
  return algorithms.make_method(AlgorithmConfig(**fields), MINIMA)


def rollout(seed=0):
  """Rewards `[P, G, M]` within their ranges, one of them not scored."""
  rng = np.random.default_rng(seed)
  rewards = rng.uniform([-3.0, 0.0], [3.0, 1.0], (5, 3, 2)).astype(np.float32)
  scored = np.ones(rewards.shape, bool)
  scored[1, 2] = False
  lengths = rng.integers(1, 8, (5, 3)).astype(np.float32)
  return jnp.asarray(rewards), jnp.asarray(scored), jnp.asarray(lengths)


class TestLookup:
  def test_finds_the_entry(self):
    found = algorithms.lookup(algorithms.WEIGHTS, "saw", "weighting")
    assert found is weighting.saw_weights

  def test_an_entry_may_be_none(self):
    assert algorithms.lookup(algorithms.WEIGHTS, "gradient", "w") is None

  @pytest.mark.parametrize(
    ("fields", "message"),
    [
      ({"advantage": "gdop"}, "unknown advantage 'gdop': did you mean 'gdpo'"),
      ({"weights": "sawe"}, "unknown weighting 'sawe': did you mean 'saw'"),
      ({"loss": "asmypo"}, "unknown loss 'asmypo': did you mean 'asympo'"),
      (
        {"loss": "topr", "loss_options": {"ratio_of": "tokne"}},
        "unknown ratio 'tokne': did you mean 'token'",
      ),
      (
        {"aggregate": "token_maen"},
        "unknown aggregate 'token_maen': did you mean 'token_mean'",
      ),
      (
        {"advantage": "gdpo", "advantage_options": {"whiten": "tokens"}},
        "unknown whitening 'tokens': did you mean 'token'",
      ),
      (
        {"kl": KLConfig(placement="loss", estimator="k4")},
        "unknown KL estimator 'k4': did you mean 'k",
      ),
    ],
  )
  def test_an_unknown_name_is_answered_with_the_nearest(self, fields, message):
    with pytest.raises(KeyError, match=message):
      make(**fields)


class TestSpecialise:
  def test_binds_keyword_options_only(self):
    def fn(positional, *, option=1):
      return positional, option

    bound = algorithms.specialise(fn, {"option": 5}, "fn")
    assert bound(3) == (3, 5)
    assert algorithms.specialise(fn, {}, "fn") is fn
    with pytest.raises(TypeError, match="fn has no option 'positional'"):
      algorithms.specialise(fn, {"positional": 5}, "fn")

  @pytest.mark.parametrize(
    ("fields", "message"),
    [
      (
        {"advantage": "grpo", "advantage_options": {"epss": 1.0}},
        "advantage 'grpo' has no option 'epss': did you mean 'eps'",
      ),
      (
        {"weights": "saw", "weights_options": {"detla": 1.0}},
        "weighting 'saw' has no option 'detla': did you mean 'delta'",
      ),
      (
        {"loss_options": {"clip_hihg": 0.28}},
        "loss 'clipped_surrogate' has no option 'clip_hihg': did you mean "
        "'clip_high'",
      ),
      (
        {"loss": "asympo", "loss_options": {"clip_low": 0.2}},
        "loss 'asympo' has no option 'clip_low'",
      ),
      (
        {"loss_options": {"aggregate": "token_mean"}},
        "the aggregate is a field of its own",
      ),
      (
        {"aggregate_options": {"length": 7}},
        "aggregate 'token_mean' has no option 'length'",
      ),
    ],
  )
  def test_an_unknown_option_is_answered(self, fields, message):
    with pytest.raises(TypeError, match=message):
      make(**fields)


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
    if method.weights is None:
      weight = jnp.ones(2)
    else:
      weight = method.weights(rewards, scored=scored, axis_name=None)
    assert weight.shape == (2,)
    assert (weight >= 0).all()
    found = method.advantage(
      rewards,
      weight,
      scored=scored,
      lengths=lengths,
      penalties=None,
      axis_name=None,
    )
    assert found.shape == (5, 3)
    assert found.dtype == jnp.float32
    assert np.isfinite(found).all()
    assert found[1, 2] == 0  # not scored
    assert np.abs(found).max() > 0.1

  @pytest.mark.parametrize(
    "weights", sorted(set(algorithms.WEIGHTS) - {"gradient"})
  )
  def test_weights_do_not_read_what_is_not_scored(self, weights):
    fn = make(weights=weights, weights_options=NEEDED.get(weights, {})).weights
    rewards, scored, _ = rollout()
    garbage = jnp.where(scored, rewards, 77.0)
    np.testing.assert_array_equal(
      fn(rewards, scored=scored, axis_name=None),
      fn(garbage, scored=scored, axis_name=None),
    )

  @pytest.mark.parametrize("name", algorithms.ADVANTAGES)
  def test_every_advantage_names_the_same_arguments(self, name):
    parameters = inspect.signature(algorithms.ADVANTAGES[name]).parameters
    assert list(parameters)[:2] == ["rewards", "weights"]
    assert {"scored", "lengths", "penalties", "axis_name"} <= set(parameters)

  @pytest.mark.parametrize("name", algorithms.WHITENINGS)
  def test_every_whitening_can_be_named(self, name):
    method = make(advantage="gdpo", advantage_options={"whiten": name})
    rewards, scored, lengths = rollout()
    found = method.advantage(
      rewards, jnp.ones(2), scored=scored, lengths=lengths
    )
    expected = algorithms.ADVANTAGES["gdpo"](
      rewards,
      jnp.ones(2),
      scored=scored,
      lengths=lengths,
      whiten=algorithms.WHITENINGS[name],
    )
    np.testing.assert_array_equal(found, expected)

  @pytest.mark.parametrize("name", algorithms.AGGREGATES)
  def test_every_aggregate_reaches_the_policy_term(self, name):
    options = NEEDED.get(name, {})
    method = make(aggregate=name, aggregate_options=options)
    batch = helpers.batch(old=True)
    outputs = objective.Outputs(
      log_probs=batch.behave_log_probs, entropies=-batch.behave_log_probs
    )
    found = method.terms["policy"].fn(outputs, batch)
    expected = losses.clipped_surrogate_loss(
      outputs.log_probs,
      batch.old_log_probs,
      batch.advantages,
      batch.completion_mask,
      aggregate=functools.partial(algorithms.AGGREGATES[name], **options),
    )
    np.testing.assert_array_equal(found, expected)

  @pytest.mark.parametrize("name", algorithms.LOSSES)
  def test_every_loss_reaches_the_policy_term(self, name):
    method = make(loss=name, aggregate="sequence_mean_token_sum")
    batch = helpers.batch(old=True)
    outputs = objective.Outputs(
      log_probs=batch.behave_log_probs - 0.1, entropies=batch.behave_log_probs
    )
    recorded = {
      field: getattr(batch, field)
      for field, needed in (
        ("old_log_probs", method.needs_old),
        ("behave_log_probs", method.needs_behave),
      )
      if needed
    }
    expected = algorithms.LOSSES[name](
      outputs.log_probs,
      advantages=batch.advantages,
      completion_mask=batch.completion_mask,
      aggregate=losses.sequence_mean_token_sum,
      **recorded,
    )
    found = method.terms["policy"].fn(outputs, batch)
    np.testing.assert_array_equal(found, expected)

  @pytest.mark.parametrize("name", algorithms.LOSSES)
  def test_no_loss_and_no_diagnostic_reads_more_than_it_says(self, name):
    # R7: what a method does not need may be absent from the batch.
    method = make(loss=name)
    batch = helpers.batch(old=True).replace(ref_log_probs=None)
    if not method.needs_old:
      batch = batch.replace(old_log_probs=None)
    if not method.needs_behave:
      batch = batch.replace(behave_log_probs=None)
    made = objective.make_objective(
      lambda params, batch: params, method.terms, method.diagnostics
    )
    noise = jnp.full(batch.completion_mask.shape, -5.0)
    terms, diagnostics = made(objective.Outputs(noise, -noise), batch)
    assert np.isfinite(terms["policy"].value())
    assert all(np.isfinite(found.value()) for found in diagnostics.values())
    assert {"balance", "nll/positive", "entropy"} <= set(diagnostics)
    assert ("sampler_mismatch" in diagnostics) == method.needs_behave

  def test_each_loss_says_which_log_probs_it_needs(self):
    def needs(**fields):
      method = make(**fields)
      return method.needs_old, method.needs_behave

    for name in ("policy_gradient", "spo", "asympo", "batch_asympo"):
      assert needs(loss=name) == (False, False), name
    for name in ("clipped_surrogate", "gspo", "cispo"):
      assert needs(loss=name) == (True, False), name
      assert needs(loss=name, ratio_to="behave") == (False, True), name
    for name in ("tis_reinforce", "topr", "dppo_kl"):
      assert needs(loss=name) == (False, True), name
    for name in ("tis", "decoupled_ppo"):
      assert needs(loss=name) == (True, True), name

  @pytest.mark.parametrize("name", algorithms.RATIOS)
  def test_every_ratio_can_be_named(self, name):
    method = make(loss="tis_reinforce", loss_options={"ratio_of": name})
    batch = helpers.batch()
    outputs = objective.Outputs(
      log_probs=batch.behave_log_probs - 0.1, entropies=batch.behave_log_probs
    )
    expected = stale_losses.tis_reinforce_loss(
      outputs.log_probs,
      batch.behave_log_probs,
      batch.advantages,
      batch.completion_mask,
      ratio_of=algorithms.RATIOS[name],
    )
    found = method.terms["policy"].fn(outputs, batch)
    np.testing.assert_array_equal(found, expected)

  @pytest.mark.parametrize("name", algorithms.KL_ESTIMATORS)
  def test_every_estimator_takes_two_log_probs(self, name):
    found = algorithms.KL_ESTIMATORS[name](jnp.zeros((2, 3)), -jnp.ones((2, 3)))
    # log-ratio 1: k1 = 1, k2 = 1/2, k3 = 1/e - 1 + 1
    expected = {"k1": 1.0, "k2": 0.5, "k3": math.exp(-1)}[name]
    np.testing.assert_allclose(found, np.full((2, 3), expected), rtol=1e-6)

  @pytest.mark.parametrize("name", algorithms.TASKS)
  def test_every_task_and_tokenizer_is_made(self, name):
    engine = {"alfworld": "alfworld", "textworld": "textworld_express"}
    if name in engine and importlib.util.find_spec(engine[name]) is None:
      with pytest.raises(ImportError, match=rf"saw_jax\[{name}\]"):
        algorithms.make_task(name, {})
      return
    task = algorithms.make_task(name, {})
    assert task.name == name
    assert task.components


class TestMakeMethod:
  def test_saw_reads_the_tasks_minima(self):
    rewards, scored, _ = rollout()
    found = make(weights="saw").weights(rewards, scored=scored)
    expected = weighting.saw_weights(
      rewards, scored=scored, minima=jnp.asarray(MINIMA)
    )
    np.testing.assert_array_equal(found, expected)
    zero = weighting.saw_weights(rewards, scored=scored)
    assert np.abs(found - zero).max() > 0.1  # so that it matters here

  @pytest.mark.parametrize("name", ["saw", "group_saw", "inverse_saw"])
  def test_minima_go_wherever_they_are_taken(self, name):
    rewards, scored, _ = rollout()
    found = make(weights=name).weights(rewards, scored=scored)
    expected = algorithms.WEIGHTS[name](
      rewards, scored=scored, minima=jnp.asarray(MINIMA)
    )
    np.testing.assert_array_equal(found, expected)

  def test_minima_of_the_config_come_first(self):
    rewards, scored, _ = rollout()
    options = {"minima": [-4.0, -1.0]}
    found = make(weights="saw", weights_options=options).weights(
      rewards, scored=scored
    )
    expected = weighting.saw_weights(
      rewards, scored=scored, minima=jnp.array([-4.0, -1.0])
    )
    np.testing.assert_array_equal(found, expected)
    assert options == {"minima": [-4.0, -1.0]}

  def test_lists_of_a_config_become_arrays(self):
    rewards, _, _ = rollout()
    for values in ([1.5, 0.5], (1.5, 0.5)):
      fn = make(weights="static", weights_options={"values": values}).weights
      np.testing.assert_array_equal(fn(rewards), [1.5, 0.5])

  def test_gradient_weighting_has_options_and_no_function(self):
    options = {"learning_rate": 1e-3, "temperature": 0.5}
    method = make(weights="gradient", weights_options=options)
    assert method.weights is None
    assert method.gradient_options == options

  def test_the_policy_alone_is_the_default(self):
    method = make()
    assert set(method.terms) == {"policy"}
    assert method.terms["policy"].coefficient == 1.0
    assert method.kl_in_reward is None
    assert not method.needs_reference

  def test_an_entropy_bonus_has_its_coefficient(self):
    method = make(entropy_coefficient=0.01)
    assert set(method.terms) == {"policy", "entropy"}
    assert method.terms["entropy"].coefficient == 0.01

  def test_clips_reach_the_loss_and_the_diagnostics(self):
    batch = helpers.batch(old=True)
    outputs = objective.Outputs(
      log_probs=batch.behave_log_probs, entropies=batch.behave_log_probs
    )
    arguments = (
      outputs.log_probs,
      batch.old_log_probs,
      batch.advantages,
      batch.completion_mask,
    )
    clips = {"clip_low": 0.1, "clip_high": 0.3}
    method = make(loss_options={"dual_clip": 1.01, **clips})
    np.testing.assert_array_equal(
      method.terms["policy"].fn(outputs, batch),
      losses.clipped_surrogate_loss(*arguments, dual_clip=1.01, **clips),
    )
    expected = losses.clip_fractions(*arguments, **clips)
    for name in ("low", "high"):
      found = method.diagnostics[f"clipped_{name}"](outputs, batch)
      np.testing.assert_array_equal(found, getattr(expected, name))
      assert found.numerator > 0

  def test_the_share_of_a_clip_is_that_of_its_own_ratio(self):
    batch = helpers.batch(old=True)
    outputs = objective.Outputs(
      log_probs=batch.old_log_probs + 0.3, entropies=batch.old_log_probs
    )
    recorded = (batch.advantages, batch.completion_mask)
    for name, ratio_to, bounds, ratio_of in (
      ("gspo", "old", (3e-4, 4e-4), losses.geometric_ratio),
      ("decoupled_ppo", "old", (0.2, 0.2), losses.token_ratio),
      ("clipped_surrogate", "behave", (0.2, 0.2), losses.token_ratio),
    ):
      found = make(loss=name, ratio_to=ratio_to).diagnostics
      old = getattr(batch, f"{ratio_to}_log_probs")
      expected = losses.clip_fractions(
        outputs.log_probs,
        old,
        *recorded,
        clip_low=bounds[0],
        clip_high=bounds[1],
        ratio_of=ratio_of,
      )
      for side in ("low", "high"):
        np.testing.assert_array_equal(
          found[f"clipped_{side}"](outputs, batch), getattr(expected, side)
        )
    for name in ("asympo", "cispo", "topr"):
      assert "clipped_low" not in make(loss=name).diagnostics

  def test_gpg_is_its_advantage_under_the_policy_gradient(self):
    method = make(
      advantage="gpg",
      advantage_options={"f_norm": 2.0},
      loss="policy_gradient",
      aggregate="token_mean",
    )
    rewards, scored, _ = rollout()
    expected = algorithms.ADVANTAGES["gpg"](
      rewards, jnp.ones(2), scored=scored, f_norm=2.0
    )
    np.testing.assert_array_equal(
      method.advantage(rewards, jnp.ones(2), scored=scored), expected
    )
    assert not method.needs_old and not method.needs_behave

  def test_a_ratio_to_the_sampler_is_refused_where_there_is_none(self):
    with pytest.raises(ValueError, match="asympo_loss reads neither"):
      make(loss="asympo", ratio_to="behave")

  def test_kl_in_the_loss_is_a_term_and_needs_the_reference(self):
    kl = KLConfig(placement="loss", estimator="k3", coefficient=0.05)
    method = make(advantage="gdpo", kl=kl)
    assert method.terms["kl"].coefficient == 0.05
    assert method.needs_reference
    assert method.kl_in_reward is None
    batch = helpers.batch()
    outputs = objective.Outputs(
      log_probs=batch.behave_log_probs, entropies=batch.behave_log_probs
    )
    np.testing.assert_array_equal(
      method.terms["kl"].fn(outputs, batch),
      losses.kl_loss(
        outputs.log_probs,
        batch.ref_log_probs,
        batch.completion_mask,
        estimator=losses.kl_k3,
      ),
    )

  def test_kl_in_the_reward_is_no_term(self):
    kl = KLConfig(placement="reward", estimator="k1", coefficient=0.001)
    method = make(advantage="grpo", kl=kl)
    assert set(method.terms) == {"policy"}
    assert method.kl_in_reward == (losses.kl_k1, 0.001)
    assert method.needs_reference

  def test_k1_in_the_loss_is_refused_unless_forced(self):
    kl = KLConfig(placement="loss", estimator="k1", coefficient=0.1)
    with pytest.raises(ValueError, match="k1 in the loss"):
      make(kl=kl)
    forced = KLConfig("loss", "k1", 0.1, force=True)
    assert "kl" in make(kl=forced).terms

  def test_kl_in_the_reward_with_gdpo_is_refused(self):
    with pytest.raises(ValueError, match=r"no place in GDPO.*placement='loss'"):
      make(advantage="gdpo", kl=KLConfig("reward", "k1", 0.001))

  def test_an_unknown_placement_is_refused(self):
    with pytest.raises(ValueError, match="placement 'rewrad'"):
      make(kl=KLConfig("rewrad", "k1", 0.001))

  def test_the_weights_can_be_traced(self):
    fn = make(weights="saw").weights
    rewards, scored, _ = rollout()
    np.testing.assert_allclose(
      jax.jit(lambda r, s: fn(r, scored=s))(rewards, scored),
      fn(rewards, scored=scored),
      rtol=1e-6,
    )


class TestMakeTask:
  def test_options_are_the_tasks_own_config(self):
    task = algorithms.make_task("tool_calling", {"num_train": 7})
    assert len(task.examples("train")) == 7

  def test_an_unknown_task_is_answered(self):
    with pytest.raises(KeyError, match="task 'tool_caling': did you mean"):
      algorithms.make_task("tool_caling", {})

  def test_an_unknown_option_is_answered(self):
    with pytest.raises(
      TypeError,
      match="task 'tool_calling' has no option 'num_trian': did you mean "
      "'num_train'",
    ):
      algorithms.make_task("tool_calling", {"num_trian": 7})


class TestMakeTokenizer:
  def test_by_name(self):
    assert isinstance(
      algorithms.make_tokenizer("bytes"), tokenizer.ByteTokenizer
    )
    found = algorithms.make_tokenizer("tool_calling")
    assert found.decode(found.encode("weather in Oslo")) == "weather in Oslo"

  def test_a_file_is_one_too(self, tmp_path):
    # Of a pretrained model, which pads with <|endoftext|>.
    text = tool_calling.VOCABULARY.read_text(encoding="utf-8")
    path = tmp_path / "tokenizer.json"
    path.write_text(text.replace(tokenizer.PAD, "<|endoftext|>"))
    found = algorithms.make_tokenizer(str(path))
    named = algorithms.make_tokenizer("tool_calling")
    assert found.encode("Oslo") == named.encode("Oslo")
    assert found.pad_id == named.pad_id

  def test_neither_a_name_nor_a_file_is_answered(self):
    with pytest.raises(
      KeyError, match=r"tokenizer \(or file\) 'byts'.*'bytes'"
    ):
      algorithms.make_tokenizer("byts")


class TestWithLoss:
  """A loss of one's own is as good as one of the table."""

  @pytest.mark.parametrize(
    ("name", "ratio_to"),
    [
      ("asympo", "old"),
      ("clipped_surrogate", "old"),
      ("clipped_surrogate", "behave"),
      ("gspo", "old"),
      ("topr", "old"),
      ("decoupled_ppo", "old"),
    ],
  )
  def test_it_makes_the_method_that_the_table_makes(self, name, ratio_to):
    fields = {"aggregate": "sequence_mean_token_mean", "ratio_to": ratio_to}
    expected = make(loss=name, entropy_coefficient=0.1, **fields)
    start = make(loss="cispo", entropy_coefficient=0.1, **fields)
    loss = functools.partial(
      algorithms.LOSSES[name], aggregate=losses.sequence_mean_token_mean
    )
    found = algorithms.with_loss(start, loss, ratio_to=ratio_to)
    for field in ("needs_old", "needs_behave", "needs_reference"):
      assert getattr(found, field) == getattr(expected, field), field
    assert list(found.terms) == list(expected.terms)
    assert found.diagnostics.keys() == expected.diagnostics.keys()
    batch = helpers.batch(old=True)
    outputs = objective.Outputs(
      log_probs=batch.behave_log_probs - 0.1, entropies=batch.behave_log_probs
    )
    for term, wanted in expected.terms.items():
      assert found.terms[term].coefficient == wanted.coefficient
      np.testing.assert_array_equal(
        found.terms[term].fn(outputs, batch), wanted.fn(outputs, batch)
      )
    for side in {"clipped_low", "clipped_high"} & expected.diagnostics.keys():
      np.testing.assert_array_equal(
        found.diagnostics[side](outputs, batch),
        expected.diagnostics[side](outputs, batch),
      )

  def test_the_shares_of_a_clip_that_is_gone_are_gone(self):
    start = make()
    assert "clipped_low" in start.diagnostics
    found = algorithms.with_loss(start, stale_losses.asympo_loss)
    assert "clipped_low" not in found.diagnostics
    assert "clipped_low" in start.diagnostics  # that one is as it was

  def test_what_the_other_terms_need_stays(self):
    start = make(kl=KLConfig(placement="loss", coefficient=0.1))
    found = algorithms.with_loss(start, stale_losses.asympo_loss)
    assert found.needs_reference and "kl" in found.terms
    assert not found.needs_old

  def test_a_ratio_that_does_not_fit_is_refused(self):
    with pytest.raises(ValueError, match="reads neither"):
      algorithms.with_loss(make(), stale_losses.asympo_loss, ratio_to="behave")
