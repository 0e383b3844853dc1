"""Tests of saw_jax/training/estimation.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saw_jax import advantages, algorithms, step_advantages, world_model
from saw_jax.training import estimation, parallel
from saw_jax.training.estimation import StepRecord

P, G, E = 4, 3, 5


def record(seed=0, **changes):
  rng = np.random.default_rng(seed)
  lengths = rng.integers(1, E + 1, (P, G))
  steps = np.arange(E) < lengths[..., None]
  last = np.arange(E) == lengths[..., None] - 1
  won = rng.random((P, G)) < 0.5
  made = StepRecord(
    rewards=(10.0 * (last & won[..., None])).astype(np.float32),
    steps=steps,
    scored=np.ones((P, G), bool),
    anchors=rng.integers(0, 3, (P, G, E)).astype(np.int32),
    penalties=(0.1 * (rng.random((P, G, E)) < 0.3)).astype(np.float32),
    entropies=rng.random((P, G, E)).astype(np.float32),
    pool=rng.random((P, G, E)) < 0.9,
  )
  return made.replace(**changes)


def world(**changes):
  return algorithms.make_world_model(
    algorithms.WorldModelConfig(loss="clipped_absolute_error", **changes)
  )


def estimate(made, *, advantage=step_advantages.step_grpo, key=0, **options):
  fn = estimation.make_step_estimate(advantage, max_return=10.0, **options)
  return fn(made, jax.random.key(key))


class TestAdvantages:
  def test_each_reads_what_its_arguments_say(self):
    made = record()
    np.testing.assert_array_equal(
      estimate(made).advantages,
      step_advantages.step_grpo(
        made.rewards, made.steps, penalties=made.penalties
      ),
    )
    gigpo = functools.partial(step_advantages.gigpo, omega=0.5)
    np.testing.assert_array_equal(
      estimate(made, advantage=gigpo).advantages,
      gigpo(made.rewards, made.anchors, made.steps, penalties=made.penalties),
    )

  def test_what_reads_values_gets_targets_and_is_whitened(self):
    made = record(values=np.full((P, G, E), 0.25, np.float32))
    found = estimate(
      made,
      advantage=step_advantages.gae,
      whiten=advantages.sequence_whiten,
    )
    # With gamma = lambda = 1 the target is the return to go, over R_max.
    paid = made.rewards / 10 - made.penalties / 10 * made.steps
    to_go = np.cumsum(paid[..., ::-1], -1)[..., ::-1]
    np.testing.assert_allclose(
      np.asarray(found.value_targets)[made.steps], to_go[made.steps], atol=1e-6
    )
    own = np.asarray(found.advantages)[made.steps]
    assert abs(own.mean()) < 1e-6
    np.testing.assert_allclose(own.std(ddof=1), 1, atol=1e-3)
    assert not np.asarray(found.advantages)[~made.steps].any()

  def test_an_advantage_of_answers_is_refused(self):
    with pytest.raises(TypeError, match="cannot read 'weights'"):
      estimation.make_step_estimate(advantages.grpo, max_return=1.0)


class TestWorldModel:
  def test_weights_are_those_of_the_papers_equation(self):
    made = record()
    found = estimate(made, world=world())
    pool = made.steps & made.pool
    assert found.selected.sum() == np.ceil(0.75 * pool.sum())
    assert not np.asarray(found.selected)[~pool].any()
    # Every selected action is at least as uncertain as every other one.
    chosen = np.asarray(found.selected)
    rest = pool & ~chosen
    assert made.entropies[chosen].min() >= made.entropies[rest].max()
    won = made.rewards.sum((-1, -2)) / 10
    np.testing.assert_allclose(found.coefficients, 1 - won / G, rtol=1e-6)
    # Sum of weights over counts: the mean of lambda over groups with any.
    some = chosen.any((-1, -2))
    np.testing.assert_allclose(
      found.weights.sum() / found.counts.sum(),
      np.where(some, found.coefficients, 0).mean(),
      rtol=1e-5,
    )

  def test_an_episode_that_failed_is_in_no_mean(self):
    made = record()
    scored = made.scored.copy()
    scored[0, 0] = False
    steps = made.steps & scored[..., None]
    found = estimate(made.replace(scored=scored, steps=steps), world=world())
    won = made.rewards.sum(-1)[0, 1:] / 10
    np.testing.assert_allclose(found.coefficients[0], 1 - won.mean(), rtol=1e-6)
    assert not np.asarray(found.weights)[0, 0].any()
    assert not np.asarray(found.counts)[0, 0].any()

  def test_a_random_choice_is_the_keys(self):
    made = record()
    base, lowest, one, same, other = (
      np.asarray(estimate(made, world=world(selection=choice), key=k).selected)
      for choice, k in (
        *(("highest_entropy", 0), ("lowest_entropy", 0)),
        *(("random", 1), ("random", 1), ("random", 2)),
      )
    )
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    for control in (lowest, one):
      assert control.sum() == base.sum() and (control != base).any()

  def test_echo_is_its_own_formula(self):
    made = record()
    found = estimate(
      made,
      world=world(
        alpha=1.0,
        coefficients="constant",
        coefficient_options={"value": 0.05},
        aggregate="flat_selected",
      ),
    )
    rng = np.random.default_rng(3)
    log_probs = -rng.random((P * G * E, 4)).astype(np.float32)
    mask = (made.steps & made.pool).reshape(-1)[:, None] & (
      np.arange(4) < rng.integers(1, 5, (P * G * E, 1))
    )
    weights = world_model.RowWeights(
      found.weights.reshape(-1), found.counts.reshape(-1)
    )
    ours = world_model.world_model_loss(
      jnp.asarray(log_probs),
      jnp.asarray(mask),
      weights,
      token_loss=world_model.cross_entropy,
    )
    rows = [
      -x[m].mean() for x, m in zip(log_probs, mask, strict=True) if any(m)
    ]
    np.testing.assert_allclose(ours.value(), 0.05 * np.mean(rows), rtol=1e-5)

  def test_devices_agree_with_one(self):
    made = record()
    fn = estimation.make_step_estimate(
      step_advantages.gae,
      max_return=10.0,
      whiten=advantages.sequence_whiten,
      world=world(),
    )
    made = made.replace(values=np.full((P, G, E), 0.3, np.float32))
    expected = fn(made, jax.random.key(0))
    wrapped = parallel.pmapped(jax.devices()[:2]).wrap(
      fn,
      (parallel.ROWS, parallel.SAME),
      (parallel.ROWS,),
      takes_axis_name=True,
    )
    one = jax.tree.map(lambda x: np.asarray(x)[None], made)
    found = wrapped(one, jax.random.key(0)[None])
    for a, b in zip(
      jax.tree.leaves(expected), jax.tree.leaves(found), strict=True
    ):
      np.testing.assert_allclose(a, np.asarray(b)[0], rtol=1e-5, atol=1e-5)
