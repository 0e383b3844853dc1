"""What the world says behind a response, and what it weighs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saw_jax import algorithms, world_model
from saw_jax.rollout import transcript
from saw_jax.run import observations, rollouts
from saw_jax.training import objective
from tests import helpers


class Echo(helpers.Letters):
  """Says the first letters of a response backwards; nothing to an empty one."""

  def observe(self, example, completion):
    assert example.reference in "ab"
    return completion[:3][::-1]


def experiment(**changes):
  world = algorithms.WorldModelConfig("cross_entropy", alpha=0.5, **changes)
  return helpers.experiment(
    task=Echo(),
    algorithm={"advantage": "gdpo", "world_model": world},
    episodes={"max_observation_tokens": 2},
  )


REWARDS = [[[1.0, 0.5], [0.0, 0.5]], [[0.0, 0.0], [0.5, 0.5]]]
# Shares of what could be earned: (1.5 + 0.5) / 4 and (0 + 1) / 4.
SHARES = jnp.array([[0.75, 0.25], [0.0, 0.5]])


def scored(made, scored=None):
  """Two groups of two responses, with `REWARDS`."""
  texts, width = ["ab", "xyzw", "c", "klm"], 5
  end = made.tokenizer.eos_ids[0]
  rows = [[*made.tokenizer.encode(text), end][:width] for text in texts]
  prompts = [[[97] * 3] * 4]
  sampled = helpers.transcript_of([rows], width, prompts, prompt_size=4)
  return rollouts.Rollout(
    transcript=sampled,
    completions=texts,
    rewards=np.array([REWARDS], np.float32),
    scored=np.ones((1, 2, 2, 2), bool) if scored is None else scored,
    outcomes=np.full((1, 2, 2), rollouts.WRONG),
    lengths=(sampled.ends - 4).reshape(1, 2, 2),
    ended=np.ones((1, 2, 2), bool),
  )


class Appended:
  """A batch before and after."""

  def __init__(self, is_scored=None, **changes):
    self.made = made = experiment(**changes)
    self.scores = scores = scored(made, is_scored)
    learner = helpers.make_learner(made, [7])
    self.params = learner.policy.params
    self.before, _ = learner.prepare(scores.transcript)
    examples = [list(made.task.examples("train")[:2])]
    self.batch, (self.row,) = observations.Appender(learner).append(
      self.before, scores, examples, step=3
    )
    self.forward = objective.make_forward(made.decoder)

  def outputs(self, batch):
    one = jax.tree.map(lambda x: x[0], (self.params, batch))
    return self.forward(*one)


@pytest.fixture(scope="module")
def appended():
  return Appended()


class TestAppender:
  @pytest.mark.slow
  def test_selects_the_responses_of_highest_entropy(self, appended):
    outputs = appended.outputs(appended.before)
    mask = np.asarray(appended.before.completion_mask[0])
    mean = (np.asarray(outputs.entropies) * mask).sum(-1) / mask.sum(-1)
    expected = set(np.argsort(mean)[-2:])  # half of four
    chosen = np.asarray(appended.batch.observation_mask[0]).any(-1)
    assert set(np.flatnonzero(chosen)) == expected
    assert appended.row["selected"] == 0.5
    assert appended.row["observed"] == 1.0
    assert appended.row["action_entropy"] == pytest.approx(mean.mean())

  def test_puts_what_is_said_directly_behind_a_response(self, appended):
    batch, made = appended.batch, appended.made
    size = batch.prompt_size
    for row, text in enumerate(appended.scores.completions):
      tokens, roles = batch.tokens[0, row, size:], batch.roles[0, row, size:]
      ids = tokens[roles == transcript.OBSERVATION].tolist()
      said = made.tokenizer.decode(ids)
      assert said in ("", text[:3][::-1][:2])
      written = np.flatnonzero(roles != transcript.PAD)
      np.testing.assert_array_equal(written, np.arange(len(written)))
      order = roles[written]
      assert (np.diff(np.flatnonzero(order == transcript.POLICY)) == 1).all()
      if said:
        assert order[-1] == transcript.OBSERVATION

  def test_counts_the_tokens_that_are_learned_from(self):
    batch = Appended(aggregate="flat_tokens").batch
    lengths = batch.observation_mask.sum(-1)
    assert lengths.max() == 2  # of three letters
    np.testing.assert_array_equal(batch.world.counts, lengths)

  def test_weighs_groups_by_the_share_of_reward_that_they_miss(self, appended):
    expected = world_model.adaptive_coefficients(SHARES, max_return=1.0)
    assert appended.row["lambda"] == pytest.approx(float(expected.mean()))
    assert float(expected[0]) != float(expected[1])
    selected = np.asarray(appended.batch.observation_mask[0]).any(-1)
    weights = appended.batch.world.weights[0]
    np.testing.assert_array_equal(weights != 0, selected)

  def test_the_term_is_the_equation(self, appended):
    batch = jax.tree.map(lambda x: x[0], appended.batch)
    outputs = appended.outputs(appended.batch)
    found = appended.made.method.terms["world_model"].fn(outputs, batch)
    mask = np.asarray(batch.observation_mask)
    nll = -(np.asarray(outputs.log_probs) * mask).sum(-1)
    # Equation (11): over all groups, λ times the mean over the selected
    # transitions of the mean over tokens; 0 where none is selected.
    lambdas = world_model.adaptive_coefficients(SHARES, max_return=1.0)
    per_row = (nll / np.maximum(mask.sum(-1), 1)).reshape(2, 2)
    chosen = mask.any(-1).reshape(2, 2)
    means = (per_row * chosen).sum(-1) / np.maximum(chosen.sum(-1), 1)
    expected = (np.asarray(lambdas) * means).mean()
    value = float(found.numerator / found.denominator)
    assert value == pytest.approx(float(expected), rel=1e-5)

  def test_what_could_not_be_scored_says_nothing_of_a_group(self):
    is_scored = np.ones((1, 2, 2, 2), bool)
    is_scored[0, 0, 1, 0] = False
    found = Appended(is_scored=is_scored)
    expected = world_model.adaptive_coefficients(
      SHARES, max_return=1.0, scored=jnp.array([[True, False], [True, True]])
    )
    assert found.row["lambda"] == pytest.approx(float(expected.mean()))
