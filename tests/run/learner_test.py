import jax
import numpy as np
import pytest

from saw_jax import algorithms
from saw_jax.run import learner, rollouts, session, sync_loop
from saw_jax.tasks.workers.grading import Grader
from tests import helpers


def sample(made, one):
  """A scored rollout of the first step."""
  examples = [sync_loop.step_examples(made.task.examples("train"), 4, 0, 0)]
  ids = np.array([[example.key for example in examples[0]]])
  transcript = rollouts.sample(
    one.generate,
    one.state.params,
    examples,
    rollouts.row_keys([0], 0, ids, made.loop.group_size),
    encoder=one.encoder,
    multiple=5,
  )
  with Grader(made.task, num_workers=0, limit_s=1.0) as grader:
    scores = rollouts.score(
      transcript, examples, tokenizer=made.tokenizer, grader=grader
    )
  return transcript, scores


@pytest.fixture(scope="module")
def step():
  made = helpers.experiment()
  one = learner.Learner(made, 1)
  return made, one, *sample(made, one)


def test_a_step_moves_the_policy_and_says_what_it_did(step):
  made, one, transcript, scores = step
  before = jax.device_get(one.state.params)
  clock = session.Clock()
  batch, observed = one.prepare(transcript)
  assert observed is None  # nobody buys labels
  (row,) = one.learn(batch, scores, clock)
  after = jax.device_get(one.state.params)
  moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, after)
  assert all(jax.tree.leaves(moved))
  assert int(one.state.step[0]) == 1
  for name in ("letter", "small"):
    m = [c.name for c in made.task.components].index(name)
    np.testing.assert_allclose(
      row[f"reward/{name}"], scores.rewards[..., m].mean(), rtol=1e-5
    )
    assert {f"weight/{name}", f"cv/{name}", f"std/{name}"} <= set(row)
  assert row["sampler_mismatch"] < 1e-5
  assert row["skipped"] == 0
  assert {"estimate", "update"} <= set(clock.seconds())


@pytest.mark.parametrize(
  ("algorithm", "loop", "old", "ref"),
  [
    ({}, {}, False, False),
    ({}, {"num_minibatches": 2}, True, False),
    ({"loss": "policy_gradient"}, {"num_minibatches": 2}, False, False),
    ({"kl": algorithms.KLConfig("loss", "k3", 0.1)}, {}, False, True),
    ({"kl": algorithms.KLConfig("reward", "k1", 0.1)}, {}, True, True),
  ],
  ids=["one update", "two updates", "no ratio", "kl in loss", "kl in reward"],
)
def test_log_probs_are_computed_where_they_are_needed(
  step, algorithm, loop, old, ref
):
  made = helpers.experiment(
    algorithm=algorithms.AlgorithmConfig(**algorithm), loop=loop
  )
  batch, _ = learner.Learner(made, 1).prepare(step[2])
  assert (batch.old_log_probs is not None) == old
  assert (batch.ref_log_probs is not None) == ref
  if old:
    np.testing.assert_allclose(
      np.where(batch.completion_mask, batch.old_log_probs, 0),
      np.where(batch.completion_mask, batch.behave_log_probs, 0),
      atol=1e-5,
    )


def test_prompts_that_do_not_count_move_nothing(step):
  made, one, transcript, scores = step
  one = learner.Learner(made, 1)
  before = jax.device_get(one.state.params)
  nothing = scores._replace(multipliers=np.zeros((1, 4), np.float32))
  batch, _ = one.prepare(transcript)
  (row,) = one.learn(batch, nothing, session.Clock())
  assert row["zero_advantage"] == 1
  assert row["gradient_norm"] == 0
  # Weight decay alone.
  after = jax.device_get(one.state.params)
  rate = made.optimizer.learning_rate * made.optimizer.weight_decay
  for old, new in zip(
    jax.tree.leaves(before), jax.tree.leaves(after), strict=True
  ):
    np.testing.assert_allclose(new, old * (1 - rate), rtol=1e-6)


@pytest.mark.parametrize("num_minibatches", [1, 2])
def test_labels_look_at_the_pass_that_the_update_needs(step, num_minibatches):
  made = helpers.experiment(
    labels={"method": "vote"}, loop={"num_minibatches": num_minibatches}
  )
  batch, observed = learner.Learner(made, 1).prepare(step[2])
  assert observed.prompt_hidden.shape == (1, 4, helpers.CONFIG.width)
  assert observed.response_hidden.shape == (1, 16, helpers.CONFIG.width)
  if num_minibatches == 1:
    assert batch.old_log_probs is None and observed.log_probs is None
  else:
    assert batch.old_log_probs is observed.log_probs
