import json

import jax
import numpy as np
import pytest

from saw_jax.run import checkpoint, checks, loop
from saw_jax.run import experiment as experiment_lib
from saw_jax.tasks import base
from tests import helpers


def test_a_checkpoint_is_restored_and_evaluated(tmp_path):
  made = helpers.experiment(loop={"num_steps": 2, "checkpoint_interval": 1})
  loop.train(made, [0, 1], directory=tmp_path)
  step, last = experiment_lib.restore(made, 2, tmp_path)
  assert step == 2
  final = json.loads((tmp_path / "final.json").read_text())
  np.testing.assert_allclose(
    experiment_lib.evaluate(last)["greedy"]["right"].mean((1, 2)),
    [seed["greedy"]["right"] for seed in final],
  )
  step, first = experiment_lib.restore(made, 2, tmp_path, step=1)
  assert step == 1
  np.testing.assert_array_equal(first.state.step, [1, 1])
  moved = jax.tree.map(lambda a, b: (a != b).any(), first.params, last.params)
  assert all(jax.tree.leaves(moved))
  with pytest.raises(checkpoint.CheckpointError, match="no checkpoint"):
    experiment_lib.restore(made, 1, tmp_path / "elsewhere")


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


class Splits(helpers.Letters):
  """Letters with a long benchmark, an empty one and one without its file."""

  def examples(self, split):
    if split == "absent":
      raise FileNotFoundError("data/absent.jsonl is not there")
    if split == "empty":
      return []
    messages = ({"role": "user", "content": "a" * 99},)
    long = [base.Example(2000, messages, "a")] * (split == "long")
    return [*super().examples(split), *long]


def test_what_is_wrong_with_a_benchmark_is_said():
  def check(*names):
    fields = {"benchmarks": dict.fromkeys(names, 0)}
    made = helpers.experiment(task=Splits(), evaluation=fields)
    checks.check_examples(made)

  check("test", "train")
  for name, error, word in (
    ("absent", FileNotFoundError, "absent.jsonl"),
    ("empty", ValueError, "'empty'"),
    ("long", ValueError, r"1 of 14 prompts of split 'long'"),
    ("benchmarks", ValueError, "'benchmarks'"),
  ):
    with pytest.raises(error, match=word):
      check("test", name)
