"""From rewards to advantages, composed and by hand."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saw_jax import (
  advantages,
  algorithms,
  losses,
  step_advantages,
  weighting,
)
from saw_jax.training import estimation, objective, parallel
from saw_jax.training.batch import TrainBatch
from saw_jax.training.estimation import StepRecord

MINIMA = np.array([-3.0, 0.0], np.float32)


def rollout(seed=0):
  """Rewards `[P, G, M]` within their ranges, one of them not scored."""
  rng = np.random.default_rng(seed)
  rewards = rng.uniform([-3.0, 0.0], [3.0, 1.0], (5, 3, 2)).astype(np.float32)
  rewards[2, :, 1] = 0.5  # a group without spread
  scored = np.ones(rewards.shape, bool)
  scored[1, 2] = False
  lengths = rng.integers(1, 8, (5, 3)).astype(np.float32)
  return jnp.asarray(rewards), jnp.asarray(scored), jnp.asarray(lengths)


def saw(rewards, *, scored, axis_name=None):
  return weighting.saw_weights(
    rewards, scored=scored, minima=jnp.asarray(MINIMA), axis_name=axis_name
  )


class TestMakeEstimate:
  def test_is_the_weighting_and_then_the_advantage(self):
    rewards, scored, lengths = rollout()
    estimate = estimation.make_estimate(advantages.gdpo, saw, minima=MINIMA)
    found, statistics = estimate(rewards, scored, lengths, None, jnp.ones(2))
    weight = saw(rewards, scored=scored)
    expected = advantages.gdpo(rewards, weight, scored=scored, lengths=lengths)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(statistics["weight"], weight)
    # Neither what is not scored nor persistent weights have a say.
    garbage = jnp.where(scored, rewards, 1e6)
    again = estimate(garbage, scored, lengths, None, jnp.zeros(2))
    chex.assert_trees_all_equal(again, (found, statistics))

    def total(rewards):
      return jnp.sum(estimate(rewards, scored, lengths, None, None)[0] ** 2)

    assert not jax.grad(total)(rewards).any()
    for m in range(2):
      values = np.asarray(rewards[..., m])[np.asarray(scored[..., m])]
      mean, std = values.mean(dtype=np.float64), values.std(ddof=1)
      found = [statistics[name][m] for name in ("mean", "std", "cv")]
      expected = mean, std, std / (mean - MINIMA[m])
      np.testing.assert_allclose(found, expected, rtol=1e-4)
    groups = statistics["constant_groups"]
    np.testing.assert_allclose(groups, [0.0, 0.2], rtol=1e-6)

  def test_persistent_weights_are_multiplied_by_their_number(self):
    # They sum to 1, and every other weighting sums to M.
    rewards, scored, lengths = rollout()
    estimate = estimation.make_estimate(advantages.dr_grpo, None, minima=MINIMA)
    persistent = jnp.array([0.8, 0.2])
    found, statistics = estimate(rewards, scored, lengths, None, persistent)
    np.testing.assert_allclose(statistics["weight"], [1.6, 0.4], rtol=1e-6)
    expected = advantages.dr_grpo(rewards, 2 * persistent, scored=scored)
    np.testing.assert_allclose(found, expected, rtol=1e-6)

  def test_penalties_lower_the_advantage_of_who_pays(self):
    rewards, scored, lengths = rollout()
    penalties = jnp.zeros((5, 3)).at[0, 1].set(3.0)
    estimate = estimation.make_estimate(
      advantages.dr_grpo, weighting.equal_weights, minima=MINIMA
    )
    free, paid = (
      estimate(rewards, scored, lengths, p, None)[0] for p in (None, penalties)
    )
    # 3 less for one of three: the mean falls by 1.
    np.testing.assert_allclose(paid[0] - free[0], [1, -2, 1], atol=1e-5)
    np.testing.assert_array_equal(paid[1:], free[1:])
    estimate = estimation.make_estimate(advantages.gdpo, saw, minima=MINIMA)
    with pytest.raises(ValueError, match="gdpo"):
      estimate(rewards, scored, lengths, penalties, jnp.ones(2))


# --- a policy of one softmax, whose gradients can be worked out --------------


def forward(params, batch):
  """Log-probs of a policy that draws every token from `softmax(logits)`."""
  log_probs = jax.nn.log_softmax(params["logits"])
  taken = log_probs[batch.tokens[:, batch.prompt_size :]]
  return objective.Outputs(log_probs=taken, entropies=jnp.zeros_like(taken))


POLICY_TERM = objective.make_objective(
  forward, {"policy": objective.policy(losses.clipped_surrogate_loss)}
)
LOGITS = {"logits": jnp.zeros(2)}


def two_tokens() -> TrainBatch:
  """One prompt, two answers of one token each: token 0 and token 1."""
  return TrainBatch(
    tokens=jnp.array([[5, 0], [5, 1]]),
    roles=jnp.array([[1, 2], [1, 2]], jnp.int8),
    starts=jnp.zeros(2, jnp.int32),
    advantages=jnp.zeros(2),
    prompt_size=1,
  )


class TestMakeGradientWeights:
  def weigh(
    self,
    rewards,
    weights=(0.5, 0.5),
    scored=((True, True), (True, True)),
    made=POLICY_TERM,
    advantages=(0.0, 0.0),
    **options,
  ):
    options = {"learning_rate": 1.0, "temperature": 1.0, **options}
    fn = estimation.make_gradient_weights(made, **options)
    batch = two_tokens().replace(advantages=jnp.array(advantages))
    rewards, scored = jnp.array(rewards, jnp.float32), jnp.array([scored])
    return fn(LOGITS, jnp.array(weights), batch, rewards, scored)

  # Rewards (1, 0) have advantages +-a, a = 1/sqrt(2) to 1e-6. The surrogate is
  # -(a l_0 - a l_1) / 2, so its gradient (-a/2, a/2) at equal logits, of norm
  # 1/2: below 1, so not clipped. A flat component has none.
  ONE_FLAT = [[[1.0, 5.0], [0.0, 5.0]]]

  @pytest.mark.parametrize(
    ("rewards", "options", "gain"),
    [
      # Equal gradients, and opposite ones: <g, g> + <g, -g> = 0 for both.
      ([[[1.0, 1.0], [0.0, 0.0]]], {"weights": (0.7, 0.3)}, 0),
      ([[[1.0, 0.0], [0.0, 1.0]]], {"weights": (0.7, 0.3)}, 0),
      (ONE_FLAT, {}, 0.25),
      (ONE_FLAT, {"num_microbatches": 2}, 0.25),
      # 0.4 / 0.1 * 0.25.
      (ONE_FLAT, {"learning_rate": 0.4, "temperature": 0.1}, 1.0),
      # What is not scored gives no gradient.
      (
        [[[1.0, 5.0], [0.0, 9.0]]],
        {"scored": [[True, True], [True, False]]},
        0.25,
      ),
    ],
  )
  def test_by_hand(self, rewards, options, gain):
    first, second = options.get("weights", (0.5, 0.5))
    raised = first * np.exp(gain)
    expected = np.array([raised, second]) / (raised + second)
    found = self.weigh(rewards, **options)
    np.testing.assert_allclose(found, expected, rtol=1e-5)

  def test_a_long_gradient_counts_as_one_of_norm_one(self):
    # The policy's logits are 10 x: the gradient in x is 10 times as long, 5.
    steep = objective.make_objective(
      lambda params, batch: forward({"logits": 10 * params["logits"]}, batch),
      {"policy": objective.policy(losses.clipped_surrogate_loss)},
    )
    found = self.weigh(self.ONE_FLAT, made=steep)
    expected = np.exp(1.0) / (1 + np.exp(1.0))
    np.testing.assert_allclose(found, [expected, 1 - expected], rtol=1e-5)

  def test_the_batchs_own_advantages_are_not_read(self):
    rewards = [[[1.0, 0.3], [0.0, 0.9]]]
    other = self.weigh(rewards, advantages=(7.0, -3.0))
    np.testing.assert_array_equal(self.weigh(rewards), other)


class TestKlPenalties:
  def batch(self):
    """Two seeds, two prompts, three samples, two completion tokens."""
    rng, none = np.random.default_rng(0), jnp.zeros((2, 6), jnp.int32)
    roles = np.full((2, 6, 3), 2, np.int8)
    roles[:, :, 0] = 1
    roles[0, 4, 2] = 0  # the last token of one answer is padding
    old, ref = jnp.asarray(rng.normal(size=(2, 2, 6, 2)), jnp.float32)
    tokens, said = jnp.zeros((2, 6, 3), jnp.int32), jnp.asarray(roles)
    made = TrainBatch(tokens, said, none, none, prompt_size=1)
    return made.replace(old_log_probs=old, ref_log_probs=ref)

  def test_adds_up_an_answers_tokens_in_the_shape_of_its_rewards(self):
    batch = self.batch()
    found = estimation.kl_penalties(batch, losses.kl_k1, 0.5, group_size=3)
    tokens = np.asarray(batch.old_log_probs - batch.ref_log_probs)
    tokens = tokens * (np.asarray(batch.roles[..., 1:]) == 2)
    expected = 0.5 * tokens.sum(-1).reshape(2, 2, 3)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)

  @pytest.mark.parametrize("field", ["old_log_probs", "ref_log_probs"])
  def test_says_what_is_missing(self, field):
    batch = self.batch().replace(**{field: None})
    with pytest.raises(ValueError, match=field):
      estimation.kl_penalties(batch, losses.kl_k1, 0.5, group_size=3)


# --- steps of episodes --------------------------------------------------------

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
    observed=(rng.random((P, G, E)) < 0.9) * rng.integers(1, 5, (P, G, E)),
  )
  return made.replace(**changes)


def world(**changes):
  return algorithms.make_world_model(
    algorithms.WorldModelConfig(loss="clipped_absolute_error", **changes)
  )


def estimate(made, *, advantage=step_advantages.step_grpo, key=0, **options):
  fn = estimation.make_step_estimate(advantage, max_return=10.0, **options)
  return fn(made, jax.random.key(key))


class TestStepAdvantages:
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
      made, advantage=step_advantages.gae, whiten=advantages.sequence_whiten
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
    pool = made.steps & (made.observed > 0)
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
      found.world.weights.sum() / found.world.counts.sum(),
      np.where(some, found.coefficients, 0).mean(),
      rtol=1e-5,
    )

  def test_an_episode_that_failed_is_in_no_mean(self):
    # In a group of which another one won: without a winner the mean is 0
    # whether the failed one is counted or not.
    made = record()
    won = made.rewards.sum(-1) / 10
    p = int(np.flatnonzero(won[:, 1:].any(1) & ~won[:, 1:].all(1))[0])
    scored = made.scored.copy()
    scored[p, 0] = False
    steps = made.steps & scored[..., None]
    found = estimate(made.replace(scored=scored, steps=steps), world=world())
    expected = 1 - won[p, 1:].mean()
    np.testing.assert_allclose(found.coefficients[p], expected, rtol=1e-6)
    for x in found.world:
      assert not np.asarray(x)[p, 0].any()

  def test_a_random_choice_is_the_keys(self):
    made = record()

    def selected(choice, key=0):
      found = estimate(made, world=world(selection=choice), key=key)
      return np.asarray(found.selected)

    base, lowest = selected("highest_entropy"), selected("lowest_entropy")
    one, same, other = (selected("random", key) for key in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    for control in (lowest, one):
      assert control.sum() == base.sum() and (control != base).any()

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
    kinds = (parallel.ROWS, parallel.SAME), (parallel.ROWS,)
    lift = parallel.pmapped(jax.devices()[:2])
    one = jax.tree.map(lambda x: np.asarray(x)[None], made)
    lifted = lift.wrap(fn, *kinds, takes_axis_name=True)
    found = lifted(one, jax.random.key(0)[None])
    found = jax.tree.map(lambda x: np.asarray(x)[0], found)
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-5)
