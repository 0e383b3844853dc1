"""Tests of saw_jax/run/episode_evaluation.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saw_jax.models import decoder
from saw_jax.run import agents, episode_evaluation
from saw_jax.run import experiment as experiment_lib
from tests import agent_helpers, helpers


@pytest.fixture(scope="module")
def played():
  made = agent_helpers.experiment("grpo")
  kind = experiment_lib.kind_of(made)
  with kind.open_workers() as pool:
    evaluator = kind.Evaluator(experiment_lib.Policy(made, 2), pool)
    results = {mode: evaluator.run(mode) for mode in evaluator.modes}
    scores = evaluator.scores("greedy")
  return evaluator, results, scores


def test_every_world_is_played_as_often_as_asked(played):
  _, results, _ = played
  for mode, samples in (("greedy", 1), ("sampled", 2)):
    found = results[mode]
    assert found["rewards"].shape == (2, 6, samples, 1)
    for name in ("right", "ended", "lengths", "valid"):
      assert found[name].shape == (2, 6, samples), name
    won = found["rewards"][..., 0] == 10.0
    np.testing.assert_array_equal(found["right"], won)
    assert found["lengths"].min() >= 1 and found["lengths"].max() <= 4


def test_equal_policies_play_alike(played):
  _, results, scores = played
  for found in results.values():
    for name, value in found.items():
      np.testing.assert_array_equal(value[0], value[1], err_msg=name)
  assert scores[0] == scores[1]
  right = results["greedy"]["right"][0].mean()
  assert scores[0]["right"] == pytest.approx(right)
  assert {"valid", "observation_accuracy", "observation_nll"} <= set(scores[0])


def test_each_kind_has_its_share(played):
  evaluator, results, scores = played
  kind_of, seeds = evaluator._task.category, evaluator.examples
  kinds = [kind_of("test", seed) for seed in seeds]
  assert set(kinds) == {"even", "odd", ""}  # those without one are in none
  right = results["greedy"]["right"][0, :, 0]
  expected = {
    f"right_{kind}": pytest.approx(right[[k == kind for k in kinds]].mean())
    for kind in ("even", "odd")
  }
  found = {n: x for n, x in scores[0].items() if n.startswith("right_")}
  assert found == expected


def test_another_split_is_played_whole_by_its_samplers(played, monkeypatch):
  evaluator = played[0]
  other = evaluator.on("train", 0)
  assert list(other.modes) == ["greedy"]
  assert len(other.examples) == other._task.num_episodes("train")
  monkeypatch.setattr(agents, "play", lambda *args: args[2])
  worlds = other.play("greedy")
  assert worlds == [[("train", seed) for seed in other.examples]] * 2
  assert other._transitions is None and evaluator._transitions is not None
  assert list(evaluator.modes) == ["greedy", "sampled"]
  sampling, _ = evaluator.modes["sampled"]
  assert evaluator.on("train", 3).modes["sampled"] == (sampling, 3)


@pytest.mark.slow
def test_predictions_are_those_of_the_whole_logits(played):
  batch, config = played[0]._transitions, agent_helpers.CONFIG
  params = decoder.init_params(config, jax.random.key(3))
  found = episode_evaluation.make_predictions(config)(params, batch)
  rows = (batch.tokens, batch.positions, batch.valid)
  logits = helpers.logits(config, params, *rows)
  log_probs = jax.nn.log_softmax(logits[:, batch.prompt_size - 1 : -1])
  targets = batch.tokens[:, batch.prompt_size :]
  mask = np.asarray(batch.observation_mask)
  # "yes " and the letter, after each of eight actions.
  assert mask.sum() == 16
  taken = jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]
  np.testing.assert_allclose(
    found["observation_nll"], -np.asarray(taken)[mask].mean(), rtol=1e-5
  )
  right = np.asarray(log_probs.argmax(-1) == targets)[mask].mean()
  np.testing.assert_allclose(found["observation_accuracy"], right, rtol=1e-6)
