"""From rewards to advantages, composed and by hand."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saw_jax import advantages, losses, weighting
from saw_jax.training import estimation, objective
from saw_jax.training.batch import TrainBatch

MINIMA = np.array([-3.0, 0.0], np.float32)


def rollout(seed=0):
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
  def test_by_hand(self):
    # One component varies, 0 and 2 of at least 0; the other is flat. SAW gives
    # 2 and 0, Dr. GRPO the distance from the group's mean.
    rewards = jnp.array([[[0.0, 1.0], [2.0, 1.0]]])
    estimate = estimation.make_estimate(
      advantages.dr_grpo, weighting.saw_weights, minima=jnp.zeros(2)
    )
    scored, lengths = jnp.ones(rewards.shape, bool), jnp.ones((1, 2))
    found, statistics = estimate(rewards, scored, lengths, None, jnp.ones(2))
    np.testing.assert_allclose(found, [[-2.0, 2.0]], rtol=1e-5)
    for name, want in (
      ("weight", [2.0, 0.0]),
      ("mean", [1.0, 1.0]),
      ("std", [np.sqrt(2), 0]),
      ("cv", [np.sqrt(2), 0]),
      ("constant_groups", [0.0, 1.0]),
    ):
      np.testing.assert_allclose(statistics[name], want, rtol=1e-5)

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
    chex.assert_trees_all_equal(
      estimate(garbage, scored, lengths, None, jnp.zeros(2)),
      (found, statistics),
    )
    gradient = jax.grad(
      lambda r: jnp.sum(estimate(r, scored, lengths, None, jnp.ones(2))[0] ** 2)
    )(rewards)
    assert not gradient.any()
    for m in range(2):
      values = np.asarray(rewards[..., m])[np.asarray(scored[..., m])]
      mean, std = values.mean(dtype=np.float64), values.std(ddof=1)
      np.testing.assert_allclose(statistics["mean"][m], mean, rtol=1e-4)
      np.testing.assert_allclose(statistics["std"][m], std, rtol=1e-4)
      np.testing.assert_allclose(
        statistics["cv"][m], std / (mean - MINIMA[m]), rtol=1e-4
      )
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
    free, paid = (
      estimation.make_estimate(
        advantages.dr_grpo, weighting.equal_weights, minima=MINIMA
      )(rewards, scored, lengths, p, jnp.ones(2))[0]
      for p in (None, penalties)
    )
    # 3 less for one of three: the mean falls by 1.
    np.testing.assert_allclose(
      paid[0] - free[0], [1.0, -2.0, 1.0], rtol=1e-5, atol=1e-5
    )
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
    self, rewards, weights=(0.5, 0.5), batch=None, scored=None, **options
  ):
    options = {"learning_rate": 1.0, "temperature": 1.0, **options}
    made = options.pop("objective", POLICY_TERM)
    fn = estimation.make_gradient_weights(made, **options)
    rewards = jnp.asarray(rewards, jnp.float32)
    if scored is None:
      scored = jnp.ones(rewards.shape, bool)
    batch = two_tokens() if batch is None else batch
    return fn(LOGITS, jnp.array(weights), batch, rewards, jnp.asarray(scored))

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
        {"scored": [[[True, True], [True, False]]]},
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
    found = self.weigh(self.ONE_FLAT, objective=steep)
    expected = np.exp(1.0) / (1 + np.exp(1.0))
    np.testing.assert_allclose(found, [expected, 1 - expected], rtol=1e-5)

  def test_the_batchs_own_advantages_are_not_read(self):
    rewards = [[[1.0, 0.3], [0.0, 0.9]]]
    other = two_tokens().replace(advantages=jnp.array([7.0, -3.0]))
    np.testing.assert_array_equal(
      self.weigh(rewards), self.weigh(rewards, batch=other)
    )


class TestKlPenalties:
  def batch(self):
    """Two seeds, two prompts, three samples, two completion tokens."""
    rng = np.random.default_rng(0)
    roles = np.full((2, 6, 3), 2, np.int8)
    roles[:, :, 0] = 1
    roles[0, 4, 2] = 0  # the last token of one answer is padding
    shape = (2, 6, 2)
    return TrainBatch(
      tokens=jnp.zeros((2, 6, 3), jnp.int32),
      roles=jnp.asarray(roles),
      starts=jnp.zeros((2, 6), jnp.int32),
      advantages=jnp.zeros((2, 6)),
      old_log_probs=jnp.asarray(rng.normal(size=shape), jnp.float32),
      ref_log_probs=jnp.asarray(rng.normal(size=shape), jnp.float32),
      prompt_size=1,
    )

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
