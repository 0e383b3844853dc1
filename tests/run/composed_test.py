"""Four methods in one run: stale responses, labels, weights, observations."""

import shutil

import numpy as np
import pytest

from saw_jax import algorithms
from saw_jax.run import loop
from tests import helpers
from tests.run.labelling_test import PROBE, Guesses, purchases

# What answers that are sampled ahead alone log.
ONLY = ("lag/", "groups/")


class World(Guesses):
  """Guesses whose world says the last letter back."""

  def observe(self, example, completion):
    return completion[-1:] * 2


def experiment(lag=2, task=None, world=True, protocol="fixed_lag", **labels):
  world = algorithms.WorldModelConfig(
    loss="clipped_absolute_error" if world else "none"
  )
  return helpers.experiment(
    task=task or World(),
    algorithm=algorithms.AlgorithmConfig(
      advantage="gdpo",
      weights="saw",
      loss="asympo",
      aggregate="sequence_mean_token_mean",
      world_model=world,
    ),
    asynchronous={"protocol": protocol, "lag": lag},
    labels={
      "method": "care",
      "gate": "probe",
      "warm_up": 1,
      "label_fraction": 0.25,
      "probe": PROBE,
      **labels,
    },
    episodes={"max_observation_tokens": 2},
  )


def curves(directory):
  return helpers.curves(directory, *ONLY)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  directory = tmp_path_factory.mktemp("composed")
  assert loop.train(experiment(), [0, 1], directory=directory).finished
  return directory


@pytest.mark.slow
class TestComposed:
  def test_lag_0_is_the_synchronous_loop(self, tmp_path):
    made = experiment(lag=0)
    loop.train(made, [0, 1], directory=tmp_path / "a")
    made = experiment(protocol="none")
    loop.train(made, [0, 1], directory=tmp_path / "b")
    a, b = tmp_path / "a", tmp_path / "b"
    helpers.assert_equal_curves(curves(a), curves(b))
    a, b = ([p.prompt_id for p in purchases(x)] for x in (a, b))
    assert a == b

  def test_a_resumed_run_is_the_uninterrupted_one(self, whole, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    loop.train(experiment(), [0, 1], directory=workdir, resume_step=2)
    helpers.assert_same_run(whole, workdir)
    assert len(purchases(workdir)) == 8  # nothing is paid twice

  def test_truth_that_was_not_bought_reaches_nothing(self, whole, tmp_path):
    bought = {p.prompt_id for p in purchases(whole)}
    poisoned = {e.key for e in World().examples("train")} - bought
    made = experiment(task=World(poisoned), audit=False)
    loop.train(made, [0, 1], directory=tmp_path)
    expected, found = curves(whole), curves(tmp_path)
    assert not any(name.startswith("audit/") for name in found)
    for name, values in found.items():
      np.testing.assert_array_equal(values, expected[name], err_msg=name)
    assert found["loss"].shape == (2, 4)
    # The check sees a truth that does reach it: that of a bought prompt.
    other = tmp_path / "other"
    loop.train(experiment(task=World(bought)), [0, 1], directory=other)
    loss = curves(other)["probe/vote/loss"]
    assert (loss != expected["probe/vote/loss"]).any()
