import json

import jax
import numpy as np
import pytest

from saw_jax.run import checkpoint, loop
from saw_jax.run import experiment as experiment_lib
from saw_jax.tasks import base
from tests import helpers


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  directory = tmp_path_factory.mktemp("trained")
  made = helpers.experiment(loop={"num_steps": 2, "checkpoint_interval": 1})
  loop.train(made, [0, 1], directory=directory)
  return made, directory


def test_restores_the_step_that_is_asked_for(trained):
  made, directory = trained
  step, last = experiment_lib.restore(made, 2, directory)
  assert step == 2
  step, first = experiment_lib.restore(made, 2, directory, step=1)
  assert step == 1
  np.testing.assert_array_equal(first.state.step, [1, 1])
  moved = jax.tree.map(
    lambda a, b: bool((a != b).any()), first.params, last.params
  )
  assert all(jax.tree.leaves(moved))


def test_nothing_to_restore(tmp_path):
  with pytest.raises(checkpoint.CheckpointError, match="no checkpoint"):
    experiment_lib.restore(helpers.experiment(), 1, tmp_path)


def test_an_evaluated_checkpoint_is_what_the_run_wrote(trained):
  made, directory = trained
  found = experiment_lib.evaluate(experiment_lib.restore(made, 2, directory)[1])
  final = json.loads((directory / "final.json").read_text())
  np.testing.assert_allclose(
    found["greedy"]["right"].mean((1, 2)),
    [seed["greedy"]["right"] for seed in final],
  )


def test_a_start_without_samples_is_scored_greedily():
  made = helpers.experiment(evaluation={"samples": 0})
  policy = experiment_lib.Policy(made, 1)
  assert set(experiment_lib.evaluate(policy)) == {"greedy"}


def test_answers_cannot_be_played():
  with pytest.raises(ValueError, match="single answers"):
    experiment_lib.kind_of(helpers.experiment()).play(None)


def test_the_last_devices_are_left_to_the_actors():
  made = helpers.experiment(
    asynchronous={"protocol": "max_lag", "actors": 1, "actor_devices": 2},
    parallel={"lift": "meshed"},
  )
  policy = experiment_lib.Policy(made, 1)
  used = {d for x in jax.tree.leaves(policy.params) for d in x.devices()}
  assert used == set(jax.devices()[:2])
  leaf = jax.tree.leaves(policy.lift.share(policy.params))[0]
  assert leaf.devices() == {jax.devices()[0]}
  assert leaf.shape[0] == 1


class Splits(helpers.Letters):
  """Letters with a long benchmark, an empty one and one without its file."""

  def examples(self, split):
    if split == "absent":
      raise FileNotFoundError("data/absent.jsonl is not there")
    if split == "empty":
      return []
    examples = super().examples(split)
    if split == "long":
      messages = ({"role": "user", "content": "a" * 99},)
      return [*examples, base.Example(2000, messages, "a")]
    return examples


@pytest.mark.parametrize(
  ("name", "error", "word"),
  [
    ("absent", FileNotFoundError, "absent.jsonl"),
    ("empty", ValueError, "'empty'"),
    ("long", ValueError, "example 2000"),
    ("benchmarks", ValueError, "'benchmarks'"),
  ],
)
def test_what_is_wrong_with_a_benchmark_is_said(name, error, word):
  def check(*names):
    fields = {"benchmarks": dict.fromkeys(names, 0)}
    experiment_lib.check_benchmarks(
      helpers.experiment(task=Splits(), evaluation=fields)
    )

  check("test", "train")
  with pytest.raises(error, match=word):
    check("test", name)
