"""Tests of saw_jax/labels/care.py."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from saw_jax.labels import care, replay
from tests.labels.golden_test import INPUTS, PROBES
from tests.labels.probes_test import read_features, read_variables

# P prompts, of which 3 are bought, with G responses and D hidden units.
P, G, D = 7, 3, 5
SETTINGS = care.CareSettings(
  **dict(prompt_width=3, joint_width=4, response_hidden_width=2),
  **dict(response_width=3, length_scale=10.0, replay_size=8, replay_batch=4),
)
BOUGHT = jnp.array([0, 1, 0, 0, 1, 1, 0], bool)
MADE = dict(settings=SETTINGS, optimizer=optax.adam(1e-2))
train = jax.jit(functools.partial(care.train_probes, budget=3, **MADE))


@jax.jit
def _prompts(hidden, responses, ids, correct, lengths):
  features = replay.probe_features(
    hidden, responses, ids, lengths, length_scale=SETTINGS.length_scale
  )
  return features, replay.probe_labels(ids, correct)


def prompts(seed):
  """Features and labels of P prompts."""
  rng = np.random.default_rng(seed)
  return _prompts(
    rng.normal(size=(P, D)).astype(np.float32),
    rng.normal(size=(P, G, D)).astype(np.float32),
    rng.integers(-1, 2, (P, G)),
    rng.integers(0, 2, (P, G)),
    rng.integers(1, 12, (P, G)),
  )


def step(state, seed, *batch):
  """A step on these prompts, or on those of the seed, and what was bought."""
  batch = batch or (*prompts(seed), BOUGHT)
  return train(state, jax.random.key(seed), *batch)


def same(one, other):
  equal = jax.tree.map(lambda a, b: (a == b).all(), one.params, other.params)
  return all(jax.tree.leaves(equal))


@pytest.fixture(scope="module")
def fresh():
  """A state before the first step."""
  create = functools.partial(care.create_state, group_size=G, hidden_size=D)
  return jax.jit(functools.partial(create, **MADE))(jax.random.key(0))


@pytest.fixture(scope="module")
def trained(fresh):
  """A state after two steps, with 6 of 8 places of the store filled."""
  return step(step(fresh, 0)[0], 1)[0]


@pytest.mark.slow
def test_three_steps_of_pytorch_in_float64():
  adamw, options = PROBES["optimizer"]["AdamW"], PROBES["optimizer"]
  settings = dataclasses.replace(
    SETTINGS,
    learning_rate=adamw["lr"],
    clip_norm=options["grad_clip_norm"],
    response_weight=options["aux_loss_weight"],
  )
  # The defaults of Adam, which has no decay.
  assert (adamw["betas"], adamw["eps"]) == ([0.9, 0.999], 1e-8)
  assert adamw["weight_decay"] == 0
  optimizer = optax.adam(settings.learning_rate)
  train = functools.partial(
    care.train_probes, budget=6, settings=settings, optimizer=optimizer
  )
  with jax.enable_x64(True):
    features = read_features(np.float64)
    labels = replay.ProbeLabels(
      vote_right=jnp.array(INPUTS["stage1_label"], bool),
      correct_outside=jnp.array(INPUTS["stage2_label"], jnp.int32),
      correct=jnp.array(INPUTS["resp_correct"], bool),
    )
    probes = []
    for stage in ("stage1", "stage2"):
      found = read_variables(stage, "initial_state", np.float64)
      opt_state = optimizer.init(found["params"])
      probes.append(care.ProbeState(**found, opt_state=opt_state))
    store = replay.make_replay(8, 3, 4)
    state = care.CareState(*probes, store, updates=jnp.int32(0))
    # The store is empty: four rows of each batch are padding.
    state, metrics = jax.jit(train)(
      state, jax.random.key(0), features, labels, jnp.ones(6, bool)
    )
    right, counts = care.care_probabilities(state, features, settings)
    for stage, state_of, found, mask in (
      ("stage1", state.vote, np.stack([1 - right, right], 1), 1),
      ("stage2", state.count, counts, INPUTS["stage2_class_valid_mask"]),
    ):
      want = read_variables(stage, "state_after_3_steps", np.float64)
      close = functools.partial(chex.assert_trees_all_close, rtol=1e-9)
      close(state_of.variables, want, atol=1e-12)
      odds = np.exp(PROBES[stage]["eval_logits_after_3_steps"]) * mask
      close(np.array(found), odds / odds.sum(1, keepdims=True))
  assert state.updates == 3 and state.replay.pushed == 6
  for name, stage, key in (
    ("vote/loss", "stage1", "loss"),
    ("vote/main_loss", "stage1", "main_loss"),
    ("vote/response_loss", "stage1", "aux_loss"),
    ("vote/grad_norm", "stage1", "grad_norm_before_clip"),
    ("count/loss", "stage2", "loss"),
    ("count/grad_norm", "stage2", "grad_norm_before_clip"),
  ):
    want = np.mean([step[key] for step in PROBES[stage]["steps"]])
    np.testing.assert_allclose(metrics[name], want, rtol=1e-9, err_msg=name)


@pytest.mark.parametrize(
  ("name", "value"),
  [("train_steps", -1), ("replay_batch", -1), ("replay_size", 0)]
  + [("clip_norm", 0.0), ("length_scale", float("nan"))],
)
def test_settings_that_cannot_be_are_refused(name, value):
  with pytest.raises(ValueError, match=f"^{name}"):
    care.CareSettings(**{name: value})


def test_the_least_that_settings_may_be():
  care.CareSettings(train_steps=0, replay_batch=0, replay_size=1)


def test_an_impossible_count_has_no_probability(trained):
  features, _ = prompts(3)
  score = jax.jit(care.care_probabilities, static_argnums=2)
  right, counts = score(trained, features, SETTINGS)
  assert ((right > 0) & (right < 1)).all()
  assert not counts[~features.possible].any()
  np.testing.assert_allclose(counts.sum(axis=1), 1, rtol=1e-5)


class TestTruth:
  """Ground truth comes in by bought labels alone."""

  # One less than the budget: a row of each batch is a prompt without a label.
  bought = BOUGHT.at[1].set(False)

  def test_other_rows_change_no_bit(self, trained):
    features, labels = prompts(5)
    rows = ~self.bought
    poisoned = replay.ProbeLabels(
      vote_right=labels.vote_right ^ rows,
      correct_outside=jnp.where(rows, 10**6, labels.correct_outside),
      correct=labels.correct ^ rows[:, None],
    )
    broken = features.replace(
      prompt_hidden=jnp.where(rows[:, None], jnp.nan, features.prompt_hidden),
      lengths=jnp.where(rows[:, None], 1e30, features.lengths),
    )
    chex.assert_trees_all_equal(
      step(trained, 1, features, labels, self.bought),
      step(trained, 1, broken, poisoned, self.bought),
    )

  def test_labels_that_were_bought_do_count(self, trained):
    features, labels = prompts(5)
    one, _ = step(trained, 1, features, labels, self.bought)
    turned = labels.replace(vote_right=labels.vote_right ^ self.bought)
    other, _ = step(trained, 1, features, turned, self.bought)
    # The vote is the first probe's business.
    assert not same(one.vote, other.vote) and same(one.count, other.count)


class TestTraining:
  def test_a_step_without_labels_changes_nothing(self, fresh, trained):
    for state in (fresh, trained):
      after, metrics = step(state, 1, *prompts(5), jnp.zeros(P, bool))
      chex.assert_trees_all_equal(after, state)
      chex.assert_tree_all_finite(metrics)
      assert metrics["num_bought"] == 0 and metrics["vote/loss"] == 0

  def test_a_single_prompt_is_stored_and_learnt_from_later(self, fresh):
    batch = *prompts(5), jnp.arange(P) == 2
    state, metrics = step(fresh, 1, *batch)
    chex.assert_trees_all_equal(state.vote, fresh.vote)
    chex.assert_trees_all_equal(state.count, fresh.count)
    assert state.updates == 0 and metrics["num_stored"] == 1
    state, metrics = step(state, 2, *batch)
    assert state.updates == 3 and metrics["num_replayed"] == 1
    chex.assert_tree_all_finite((state, metrics))

  def test_of_more_than_the_budget_the_first_count(self, trained):
    chex.assert_trees_all_equal(
      step(trained, 1, *prompts(5), jnp.ones(P, bool)),
      step(trained, 1, *prompts(5), jnp.arange(P) < 3),
    )

  def test_each_probe_draws_by_its_own_rule_and_anew(self, trained):
    # Of eight stored samples one is of class 1: the second probe always has it
    # among its four, the first not more often than any other.
    features, labels = trained.replay.samples
    rare = jnp.arange(8) == 6
    classes, batch = rare.astype(jnp.int32), (*prompts(6), BOUGHT)

    def run(seed, flipped, classes=classes):
      right = (jnp.arange(8) % 3 == 0) ^ flipped
      there = labels.replace(correct_outside=classes, vote_right=right)
      store = replay.Replay((features, there), jnp.int32(8))
      return step(trained.replace(replay=store), seed, *batch)[0]

    nothing, missed = jnp.zeros(8, bool), 0
    for seed in range(30):
      plain = run(seed, nothing)
      assert not same(plain.count, run(seed, nothing, 2 * classes).count)
      missed += same(plain.vote, run(seed, rare).vote)
    # In none of three draws of half of the samples: an eighth of the time.
    assert 0 < missed < 15
    # Three draws of four: more than four samples have a say.
    plain = run(0, nothing)
    heard = [
      not same(plain.vote, run(0, jnp.arange(8) == i).vote) for i in range(8)
    ]
    assert sum(heard) > 4

  def test_counts(self, fresh, trained):
    _, metrics = step(fresh, 5)
    assert metrics["num_replayed"] == 0 and metrics["num_stored"] == 3
    state, metrics = step(trained, 6)
    assert state.updates == 9
    assert metrics["num_replayed"] == 4  # of 6 that there are
    assert metrics["num_stored"] == 8  # and a ninth has made room
    chex.assert_tree_all_finite((state, metrics))

  def test_a_prompt_with_a_broken_feature_is_left_out(self, trained):
    features, labels = prompts(5)
    without = BOUGHT.at[4].set(False)
    broken = features.replace(
      response_hidden=features.response_hidden.at[4, 1, 0].set(jnp.inf)
    )
    one = step(trained, 1, features, labels, without)
    other = step(trained, 1, broken, labels, BOUGHT)
    chex.assert_trees_all_equal(one, other)
    assert one[1]["num_bought"] == 2


def test_a_gradient_may_be_left_as_it_is():
  for gradient, maximum in (([0.3, 0.4], 1.0), ([30.0, 40.0], float("inf"))):
    clipped, _ = care.clip_gradient(jnp.array(gradient), maximum)
    np.testing.assert_allclose(clipped, gradient, rtol=1e-6)
