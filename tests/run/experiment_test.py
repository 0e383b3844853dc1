import jax
import numpy as np
import pytest

from saw_jax.run import checkpoint, sync_loop
from saw_jax.run import experiment as experiment_lib
from tests import helpers


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  directory = tmp_path_factory.mktemp("trained")
  made = helpers.experiment(loop={"num_steps": 2, "checkpoint_interval": 1})
  loop.train(made, [0, 1], directory=directory)
  return made, directory


class TestRestore:
  def test_takes_the_step_that_is_asked_for(self, trained):
    made, directory = trained
    last = experiment_lib.restore(made, 2, directory)[1]
    first = experiment_lib.restore(made, 2, directory, step=1)[1]
    assert (first.step, last.step) == (1, 2)
    np.testing.assert_array_equal(first.state.step, [1, 1])
    moved = jax.tree.map(
      lambda a, b: bool((a != b).any()), first.state.params, last.state.params
    )
    assert all(jax.tree.leaves(moved))

  def test_nothing_to_restore(self, tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint"):
      experiment_lib.restore(helpers.experiment(), 1, tmp_path)


class TestEvaluateCheckpoint:
  def test_is_what_the_run_wrote(self, trained):
    made, directory = trained
    step, found = experiment_lib.evaluate_checkpoint(made, 2, directory)
    assert step == 2
    right = found["greedy"]["right"].mean((1, 2))
    import json

    final = json.loads((directory / "final.json").read_text())
    np.testing.assert_allclose(
      right, [seed["greedy"]["right"] for seed in final]
    )


class TestPlayCheckpoint:
  def test_answers_cannot_be_played(self, trained):
    made, directory = trained
    with pytest.raises(ValueError, match="'letters' has single answers"):
      experiment_lib.play_checkpoint(made, 2, directory)


class TestStartState:
  def test_leaves_the_last_devices_to_the_actors(self):
    made = helpers.experiment(
      asynchronous={"protocol": "max_lag", "actors": 1, "actor_devices": 2},
      parallel={"lift": "meshed"},
    )
    _, lift, state = experiment_lib.start_state(made, 1)
    used = {d for x in jax.tree.leaves(state.params) for d in x.devices()}
    assert used == set(jax.devices()[:2])
    shared = lift.share(state.params)
    leaf = jax.tree.leaves(shared)[0]
    assert leaf.devices() == {jax.devices()[0]}
    assert leaf.shape[0] == 1
