import chex
import jax
import numpy as np
import pytest

from saw_jax import algorithms
from saw_jax.run import groups, rollouts
from saw_jax.tasks.workers.grading import Grader
from saw_jax.training import batch as batch_lib
from tests import helpers


@pytest.fixture(scope="module")
def step():
  """An experiment, its learner, and a scored rollout of the first step."""
  made = helpers.experiment()
  one = helpers.make_learner(made)
  transcript, examples, *_ = groups.Fresh(one).draw(0)
  with Grader(made.task, num_workers=0, limit_s=1.0) as grader:
    scores = rollouts.score(transcript, examples, grader, one.policy.encoder)
  return made, one, transcript, scores


def learn(one, transcript, scores):
  """The parameters before and after a step, and the row that it logs."""
  before = jax.device_get(one.policy.params)
  batch, observed = one.prepare(transcript)
  assert observed is None  # nobody buys labels
  batch, rows = one.estimate(batch, scores)
  row = {**rows[0], **one.update(batch)[0]}
  return before, jax.device_get(one.policy.params), row


def test_a_step_moves_the_policy_and_says_what_it_did(step):
  made, one, transcript, scores = step
  before, after, row = learn(one, transcript, scores)
  moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, after)
  assert all(jax.tree.leaves(moved))
  assert int(one.policy.state.step[0]) == 1
  for m, component in enumerate(made.task.components):
    np.testing.assert_allclose(
      row[f"reward/{component.name}"], scores.rewards[..., m].mean(), rtol=1e-5
    )
  right = (scores.outcomes == rollouts.RIGHT).mean()
  assert row["outcome/right"] == pytest.approx(float(right))
  assert row["sampler_mismatch"] < 1e-5 and row["skipped"] == 0
  assert {"estimate", "update"} <= set(one.clock.seconds())


@pytest.mark.parametrize(
  ("algorithm", "parts", "old", "ref"),
  [
    ({}, 1, False, False),
    ({}, 2, True, False),
    ({"loss": "policy_gradient"}, 2, False, False),
    ({"kl": algorithms.KLConfig("loss", "k3", 0.1)}, 1, False, True),
    ({"kl": algorithms.KLConfig("reward", "k1", 0.1)}, 1, True, True),
  ],
  ids=["one update", "two updates", "no ratio", "kl in loss", "kl in reward"],
)
def test_log_probs_are_computed_where_needed(step, algorithm, parts, old, ref):
  loop = {"num_minibatches": parts}
  made = helpers.experiment(algorithm=algorithm, loop=loop)
  batch, _ = helpers.make_learner(made).prepare(step[2])
  assert (batch.old_log_probs is not None) == old
  assert (batch.ref_log_probs is not None) == ref
  if old:
    a, b = (
      np.where(batch.completion_mask, x, 0)
      for x in (batch.old_log_probs, batch.behave_log_probs)
    )
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_prompts_that_do_not_count_move_nothing(step):
  made, _, transcript, scores = step
  nothing = scores._replace(multipliers=np.zeros((1, 4), np.float32))
  one = helpers.make_learner(made)
  before, after, row = learn(one, transcript, nothing)
  assert row["zero_advantage"] == 1 and row["gradient_norm"] == 0
  # Weight decay alone.
  kept = 1 - made.optimizer.learning_rate * made.optimizer.weight_decay
  expected = jax.tree.map(lambda old: old * kept, before)
  chex.assert_trees_all_close(after, expected, rtol=1e-6)


@pytest.mark.parametrize("num_minibatches", [1, 2])
def test_labels_look_at_the_pass_that_the_update_needs(step, num_minibatches):
  made = helpers.experiment(
    labels={"method": "vote"}, loop={"num_minibatches": num_minibatches}
  )
  batch, observed = helpers.make_learner(made).prepare(step[2])
  assert observed.prompt_hidden.shape == (1, 4, helpers.CONFIG.width)
  assert observed.response_hidden.shape == (1, 16, helpers.CONFIG.width)
  assert batch.old_log_probs is observed.log_probs
  assert (observed.log_probs is None) == (num_minibatches == 1)


@pytest.mark.parametrize("advantage", algorithms.ADVANTAGES)
def test_responses_that_did_not_end_may_be_left_out(step, advantage):
  made, _, transcript, scores = step
  scores = scores._replace(ended=np.arange(16).reshape(1, 4, 4) % 3 > 0)
  absurd = np.where(scores.ended[..., None], scores.rewards, 7.0)
  ended, found = scores.ended.reshape(1, 16), {}
  for how in ("learn", "mask", "drop"):
    options = dict(weights="saw", loss_options={"truncated": how})
    algorithm = {"advantage": advantage, **options}
    one = helpers.make_learner(helpers.experiment(algorithm=algorithm))
    batch = one.recompute(batch_lib.make_batch(transcript, scores.lengths))
    for rewards in (scores.rewards, absurd):
      changed = scores._replace(rewards=np.float32(rewards))
      batch, _ = one.estimate(batch, changed)
      found.setdefault(how, []).append(np.asarray(batch.advantages))
    mask = np.asarray(batch.completion_mask).any(-1)
    np.testing.assert_array_equal(mask, ended | (how == "learn"))
  # Masked alone, they are compared with the others all the same.
  np.testing.assert_array_equal(found["mask"], found["learn"])
  assert (found["mask"][0] != found["mask"][1])[ended].any()
  np.testing.assert_array_equal(*found["drop"])
  assert found["drop"][0].any() and not found["drop"][0][~ended].any()


def test_an_update_does_not_know_of_what_was_left_out(step):
  made, _, transcript, scores = step
  batch = batch_lib.make_batch(transcript, scores.rewards.sum(-1) - 0.4)
  masked = batch_lib.leave_out(batch, np.arange(16) % 2 == 0)
  kept = jax.tree.map(lambda x: x[:, 1::2], batch)
  learners = (helpers.make_learner(made) for _ in range(3))
  rows = (
    one.update(x)[0]
    for one, x in zip(learners, (batch, masked, kept), strict=True)
  )
  norms = [row["gradient_norm"] for row in rows]
  np.testing.assert_allclose(norms[1], norms[2], rtol=1e-4)
  assert abs(norms[0] - norms[1]) > 1e-3
