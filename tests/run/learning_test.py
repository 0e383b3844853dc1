"""On a bandit every algorithm learns: the tests that see a wrong sign anywhere.

The policy is one row of logits, an episode one token. Two rewards agree on the
right arm. The update, its terms and its optimizer are those of training.
"""

import functools

import jax
import jax.numpy as jnp
import pytest

from saw_jax import algorithms, losses
from saw_jax.training import estimation, objective, update
from saw_jax.training import optimizer as optimizer_lib
from saw_jax.training.batch import TrainBatch

ARMS, RIGHT, PROMPTS, GROUP = 5, 3, 4, 8
STEPS = 150


def forward(params, batch):
  log_probs = jax.nn.log_softmax(params["logits"])
  entropy = -jnp.sum(jnp.exp(log_probs) * log_probs)
  taken = log_probs[batch.tokens[:, 1:]]
  return objective.Outputs(taken, jnp.broadcast_to(entropy, taken.shape))


def make_batch(arms):
  """A row an arm, behind a prompt of one token."""
  rows = len(arms)
  return TrainBatch(
    tokens=jnp.stack([jnp.zeros(rows, jnp.int32), arms], 1),
    roles=jnp.tile(jnp.array([1, 2], jnp.int8), (rows, 1)),
    starts=jnp.zeros(rows, jnp.int32),
    advantages=jnp.zeros(rows),
    prompt_size=1,
  )


def probability_after_training(
  advantage, weights, *, sign=1.0, loss=losses.clipped_surrogate_loss
):
  """Trains for `STEPS` updates; returns the right arm's probability."""
  optimizer = optimizer_lib.make_optimizer(
    optimizer_lib.OptimizerConfig(learning_rate=0.1, weight_decay=0.0), STEPS
  )
  terms = {"policy": objective.policy(loss)}
  step_fn = update.make_update(
    objective.make_objective(forward, terms), optimizer
  )
  minima = jnp.zeros(2)
  estimate = estimation.make_estimate(advantage, weights, minima=minima)
  reweigh = estimation.make_gradient_weights(
    objective.make_objective(forward, terms)
  )

  def step(carry, key):
    (state,) = carry
    rows = PROMPTS * GROUP
    arms = jax.random.categorical(key, state.params["logits"], shape=(rows,))
    behave = jax.nn.log_softmax(state.params["logits"])[arms]
    batch = make_batch(arms).replace(behave_log_probs=behave[:, None])
    # The second reward is easier: a neighbour of the right arm has it too.
    hard = (arms == RIGHT).astype(jnp.float32)
    easy = (abs(arms - RIGHT) <= 1).astype(jnp.float32)
    rewards = jnp.stack([hard, easy], -1).reshape(PROMPTS, GROUP, 2)
    scored = jnp.ones(rewards.shape, bool)
    if weights is None:
      state = state.replace(
        weights=reweigh(state.params, state.weights, batch, rewards, scored)
      )
    found, _ = estimate(
      rewards, scored, jnp.ones((PROMPTS, GROUP)), None, state.weights
    )
    state, _ = step_fn(
      state, batch.replace(advantages=sign * found.reshape(-1))
    )
    return (state,), None

  state = update.create_state(
    {"logits": jnp.zeros(ARMS)}, optimizer, num_components=2
  )
  keys = jax.random.split(jax.random.key(0), STEPS)
  (state,), _ = jax.jit(lambda s: jax.lax.scan(step, (s,), keys))(state)
  return float(jax.nn.softmax(state.params["logits"])[RIGHT])


def named_weights(name):
  fn = algorithms.WEIGHTS[name]
  if name == "static":
    return functools.partial(fn, values=jnp.array([1.5, 0.5]))
  return fn


CASES = [
  *((name, "equal") for name in algorithms.ADVANTAGES),
  *(
    (name, weights)
    for name in ("grpo", "gdpo")
    for weights in algorithms.WEIGHTS
    if weights not in ("equal", "inverse_saw")
  ),
]


def assert_learns(advantage, weights, **options):
  """Up with the advantages, down with the negated ones."""
  fn = algorithms.ADVANTAGES[advantage]
  weights = named_weights(weights)
  assert probability_after_training(fn, weights, **options) > 0.9
  found = probability_after_training(fn, weights, sign=-1.0, **options)
  assert found < 0.5 / ARMS


@pytest.mark.parametrize(("advantage", "weights"), CASES)
def test_every_algorithm_raises_the_right_arm(advantage, weights):
  assert_learns(advantage, weights)


# A bandit has one token a response, so that all averages are alike.
@pytest.mark.parametrize("name", algorithms.LOSSES)
def test_every_loss_raises_the_right_arm(name):
  assert_learns("dr_grpo", "equal", loss=algorithms.LOSSES[name])


def test_no_weighting_is_left_out():
  tried = {weights for _, weights in CASES}
  # Inverse weights are a control that prefers what is learned already.
  assert set(algorithms.WEIGHTS) - tried == {"inverse_saw"}


@pytest.mark.parametrize("estimator", [losses.kl_k2, losses.kl_k3])
def test_a_kl_term_pulls_the_policy_back(estimator):
  ref = jax.nn.log_softmax(jnp.array([2.0, 0.0, 0.0, 0.0, 0.0]))
  optimizer = optimizer_lib.make_optimizer(
    optimizer_lib.OptimizerConfig(learning_rate=0.1, weight_decay=0.0), 200
  )
  terms = {"kl": objective.Term(objective.kl(estimator), 1.0)}
  step_fn = jax.jit(
    update.make_update(objective.make_objective(forward, terms), optimizer)
  )
  state = update.create_state({"logits": jnp.zeros(ARMS)}, optimizer)
  for key in jax.random.split(jax.random.key(0), 200):
    arms = jax.random.categorical(key, state.params["logits"], shape=(256,))
    batch = make_batch(arms).replace(ref_log_probs=ref[arms][:, None])
    state, _ = step_fn(state, batch)
  found = jax.nn.softmax(state.params["logits"])
  # k2's gradient is that of KL(policy || reference). k3's, differentiated on
  # its own samples, is that of the other direction: both end at the target.
  assert float(abs(found - jnp.exp(ref)).max()) < 0.08
