"""On a bandit every algorithm learns: the tests that see a wrong sign anywhere.

The policy is one row of logits, an episode one token. Two rewards agree on the
right arm. The update, its terms and its optimizer are those of training.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saw_jax import algorithms, losses
from saw_jax.training import estimation, objective, update
from saw_jax.training import optimizer as optimizer_lib
from saw_jax.training.batch import TrainBatch

ARMS, RIGHT, PROMPTS, GROUP, STEPS = 5, 3, 4, 8, 150
START = {"logits": jnp.zeros(ARMS)}


def forward(params, batch):
  log_probs = jax.nn.log_softmax(params["logits"])
  entropy = -jnp.sum(jnp.exp(log_probs) * log_probs)
  taken = log_probs[batch.tokens[:, 1:]]
  return objective.Outputs(taken, jnp.broadcast_to(entropy, taken.shape))


def make_update(terms, steps=STEPS):
  config = optimizer_lib.OptimizerConfig(learning_rate=0.1, weight_decay=0.0)
  optimizer = optimizer_lib.make_optimizer(config, steps)
  loss = objective.make_objective(forward, terms)
  start = update.create_state(START, optimizer, num_components=2)
  return loss, update.make_update(loss, optimizer), start


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


def assert_learns(advantage, weights, loss="clipped_surrogate"):
  """Up with the advantages, down with the negated ones."""
  advantage, fn = algorithms.ADVANTAGES[advantage], algorithms.WEIGHTS[weights]
  if weights in ("static", "schedule"):
    values = [1.5, 0.5] if weights == "static" else [[1.5, 0.5], [1.0, 1.0]]
    of_step = {} if weights == "static" else {"steps": [0, STEPS]}
    fn = functools.partial(fn, values=np.array(values), **of_step)
  if weights == "dual":
    fn = functools.partial(fn, targets=np.array([np.nan, 0.9]))
  terms = {"policy": objective.policy(algorithms.LOSSES[loss])}
  loss, step_fn, start = make_update(terms)
  estimate = estimation.make_estimate(advantage, fn, minima=jnp.zeros(2))
  reweigh = estimation.make_gradient_weights(loss)

  def step(sign, state, key):
    rows = PROMPTS * GROUP
    arms = jax.random.categorical(key, state.params["logits"], shape=(rows,))
    behave = jax.nn.log_softmax(state.params["logits"])[arms]
    batch = make_batch(arms).replace(behave_log_probs=behave[:, None])
    # The second reward is easier: a neighbour of the right arm has it too.
    hard = (arms == RIGHT).astype(jnp.float32)
    easy = (abs(arms - RIGHT) <= 1).astype(jnp.float32)
    rewards = jnp.stack([hard, easy], -1).reshape(PROMPTS, GROUP, 2)
    scored = jnp.ones(rewards.shape, bool)
    if fn is None:
      state = state.replace(
        weights=reweigh(state.params, state.weights, batch, rewards, scored)
      )
    found, _ = estimate(
      rewards,
      scored,
      jnp.ones((PROMPTS, GROUP)),
      None,
      state.weights,
      state.step,
    )
    batch = batch.replace(advantages=sign * found.reshape(-1))
    return step_fn(state, batch)[0], None

  @jax.jit
  @jax.vmap
  def train(sign):
    keys = jax.random.split(jax.random.key(0), STEPS)
    state, _ = jax.lax.scan(functools.partial(step, sign), start, keys)
    return jax.nn.softmax(state.params["logits"])[RIGHT]

  up, down = train(jnp.array([1.0, -1.0]))
  assert up > 0.9 and down < 0.5 / ARMS


# Inverse weights are a control that prefers what is learned already.
OTHERS = [x for x in algorithms.WEIGHTS if x not in ("equal", "inverse_saw")]


# A bandit has one token a response, so that all averages are alike.
@pytest.mark.parametrize(
  "words",
  [
    *((name, "equal") for name in algorithms.ADVANTAGES),
    *(
      pytest.param((name, weights), marks=pytest.mark.slow)
      for name in ("grpo", "gdpo")
      for weights in OTHERS
    ),
    *(("dr_grpo", "equal", name) for name in algorithms.LOSSES),
  ],
  ids="-".join,
)
def test_every_algorithm_and_every_loss_raises_the_right_arm(words):
  assert_learns(*words)


@pytest.mark.parametrize("estimator", [losses.kl_k2, losses.kl_k3])
def test_a_kl_term_pulls_the_policy_back(estimator):
  ref = jax.nn.log_softmax(jnp.array([2.0, 0.0, 0.0, 0.0, 0.0]))
  terms = {"kl": objective.Term(objective.kl(estimator), 1.0)}
  _, step_fn, state = make_update(terms, 200)

  def step(state, key):
    arms = jax.random.categorical(key, state.params["logits"], shape=(256,))
    batch = make_batch(arms).replace(ref_log_probs=ref[arms][:, None])
    return step_fn(state, batch)[0], None

  keys = jax.random.split(jax.random.key(0), 200)
  state, _ = jax.jit(lambda start: jax.lax.scan(step, start, keys))(state)
  found = jax.nn.softmax(state.params["logits"])
  # k2's gradient is that of KL(policy || reference). k3's, differentiated on
  # its own samples, is that of the other direction: both end at the target.
  np.testing.assert_allclose(found, jnp.exp(ref), atol=0.08)
