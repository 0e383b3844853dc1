"""Answers sampled ahead: staleness as promised, whoever samples."""

import dataclasses
import os
import shutil
import signal
import threading

import numpy as np
import pytest

from saw_jax.rollout import actor
from saw_jax.run import checkpoint, groups, loop
from tests import helpers

# A loss that reads tokens, rewards and the current policy alone.
ASYMPO = {"advantage": "dr_grpo", "loss": "asympo"}
ASYMPO["aggregate"] = "sequence_mean_token_mean"
# And one that reads what the log-probs were before the updates of a step.
CLIPPED = {"advantage": "grpo", "loss": "clipped_surrogate"}
# What depends on who was faster.
TIMING = ("groups/running", "groups/queued")
MESHED = {"lift": "meshed"}
TENSOR = {"lift": "meshed", "tensor": 2}
QUOTA = {"protocol": "quota", "require": 2, "trigger": 2}


def experiment(sections=None, **ahead):
  """An asynchronous experiment; `ahead` are fields of `asynchronous`."""
  changes = {
    "algorithm": ASYMPO,
    "loop": {"num_steps": 6, "checkpoint_interval": 3},
    "evaluation": {"interval": 0},
    **(sections or {}),
  }
  ahead = {"protocol": "fixed_lag", "lag": 2, **ahead}
  return helpers.experiment(**changes, asynchronous=ahead)


def run(directory, seeds=(0, 1), sections=None, **ahead):
  made = experiment(sections, **ahead)
  return loop.train(made, seeds, directory=directory)


def curves(directory):
  return helpers.curves(directory, *TIMING)


def assert_same_run(a, b):
  helpers.assert_same_run(a, b, *TIMING)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  directory = tmp_path_factory.mktemp("whole")
  assert run(directory).finished
  return directory


class TestFixedLag:
  def test_logs_the_lag_that_it_promises(self, whole):
    found = curves(whole)
    for name in ("lag/steps", "lag/steps_max", "lag/versions"):
      np.testing.assert_array_equal(found[name][0], [0, 1, 2, 2, 2, 2])
    np.testing.assert_array_equal(found["lag/stale"][1], [0, 1, 1, 1, 1, 1])

  @pytest.mark.slow
  @pytest.mark.parametrize("num_minibatches", [1, 2])
  def test_lag_0_is_the_synchronous_loop(self, tmp_path, num_minibatches):
    # Sampled in parts in both: a call of an actor is a step's prompts.
    loop = {"num_steps": 3, "num_minibatches": num_minibatches}
    sections = {"rollout": {"length_groups": 2}, "loop": loop}
    sections["algorithm"] = CLIPPED if num_minibatches > 1 else ASYMPO
    run(tmp_path / "a", sections=sections, lag=0)
    run(tmp_path / "b", sections=sections, protocol="none", lag=0)
    a, b = curves(tmp_path / "a"), curves(tmp_path / "b")
    assert not any(name.startswith("lag/") for name in b)
    helpers.assert_equal_curves(b, {name: a[name] for name in b})

  @pytest.mark.slow
  @pytest.mark.parametrize(
    ("parallel", "actors", "seeds"),
    [
      ({"lift": "seeded"}, 2, [0]),
      ({"lift": "seeded"}, 1, [0, 1]),
      (MESHED, 2, [0]),
      (TENSOR, 1, [0]),
      ({"lift": "pmapped"}, 1, [0]),
    ],
  )
  def test_actors_on_devices_of_their_own_change_nothing(
    self, whole, tmp_path, parallel, actors, seeds
  ):
    sections = {"parallel": parallel, "loop": {"num_steps": 4}}
    run(tmp_path, seeds, sections, actors=actors, actor_devices=2)
    # Another program, for another device: from step 3 on the weights have
    # moved; a few later the last digit may turn a token into another.
    for name in ("reward/total", "length", "lag/steps"):
      found, expected = (curves(d)[name][:, :4] for d in (tmp_path, whole))
      expected = expected[: len(seeds)]
      np.testing.assert_allclose(found, expected, atol=1e-6, err_msg=name)

  def test_a_mesh_samples_what_a_device_does(self, tmp_path):
    loop = {"num_steps": 3, "checkpoint_interval": 0}
    sections = {"parallel": {"lift": "meshed", "fsdp": 2}, "loop": loop}
    for actors in (1, 2):
      run(tmp_path / str(actors), [0], sections, actors=actors, actor_devices=2)
    # Fewer rows on a device: the sampler's own log-probs are rounded otherwise.
    ours = "behave_kl", "sampler_mismatch"
    helpers.assert_same_run(tmp_path / "1", tmp_path / "2", *TIMING, *ours)


class TestResume:
  def test_with_actors_a_resumed_run_is_bitwise_alike(self, whole, tmp_path):
    task = {"task": helpers.Stops(40)}
    first = run(tmp_path, sections=task, actors=2)
    assert not first.finished and 0 < first.step < 6
    assert run(tmp_path, actors=2).finished
    assert_same_run(whole, tmp_path)

  @pytest.mark.slow
  def test_prompts_of_other_sizes_are_padded_as_before(self, tmp_path):
    class Long(helpers.Letters):
      def examples(self, split):
        return [
          dataclasses.replace(
            one,
            messages=({"role": "user", "content": "a" * (1 + 7 * (i % 5))},),
          )
          for i, one in enumerate(super().examples(split))
        ]

    def sections(steps):
      loop = {"num_steps": steps, "prompts_per_step": 1}
      rollout = {"prompt_multiple": 1, "max_prompt_tokens": 64}
      return {"task": Long(), "loop": loop, "rollout": rollout}

    run(tmp_path / "whole", [0], sections(6), lag=3)
    for steps in (3, 6):
      run(tmp_path / "cut", [0], sections(steps), lag=3)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")

  @pytest.mark.slow
  def test_brings_back_weights_that_were_published_before(self, tmp_path):
    run(tmp_path / "whole", [0], **QUOTA)
    task = {"task": helpers.Stops(90)}
    first = run(tmp_path / "cut", [0], task, **QUOTA)
    assert not first.finished
    assert first.step % 4, "it stopped where new weights were published"
    run(tmp_path / "cut", [0], **QUOTA)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")

  @pytest.mark.slow
  def test_a_synchronous_checkpoint_has_no_queue(self, tmp_path):
    run(tmp_path, [0], {"loop": {"num_steps": 1}}, protocol="none", lag=0)
    (tmp_path / "final.json").unlink()
    with pytest.raises(ValueError, match="no queue"):
      run(tmp_path, [0])

  def test_a_damaged_queue_is_named(self, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    arrays = tmp_path / "run" / "checkpoints" / "6" / "arrays"
    # All of them: which of the files are read differs from run to run.
    for path in arrays.rglob("d/*"):
      helpers.flip_a_byte(path)
    with pytest.raises(checkpoint.CheckpointError, match="last good step is 3"):
      run(tmp_path / "run")


class Constant(helpers.Letters):
  """Rewards nothing for prompts of even keys, so that nothing varies there."""

  def __init__(self, always):
    self.always = always

  def score(self, example, completion):
    score = super().score(example, completion)
    if self.always or example.key % 2 == 0:
      return dataclasses.replace(score, values=(0.0, 0.0))
    return score


@pytest.mark.slow
def test_max_lag_is_kept_by_actors(tmp_path):
  fields = {"lag": 1, "actors": 2, "partial_tokens": 2}
  assert run(tmp_path, protocol="max_lag", **fields).finished
  found = helpers.curves(tmp_path)
  assert found["lag/versions_max"].max() <= 1
  held = found["groups/queued"] + found["groups/running"]
  assert held.max() <= (1 + 1) * 4
  # Of two actors the slower one's groups may come too late, and are counted.
  assert (np.diff(found["groups/expired"]) >= 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("always", [False, True])
def test_groups_that_do_not_vary_are_replaced_while_some_do(tmp_path, always):
  sections = {"task": Constant(always), "loop": {"num_steps": 3}}
  fields = {"lag": 1, "dynamic_sampling": True, "max_attempts": 10}
  run(tmp_path, sections=sections, **fields)
  found = curves(tmp_path)
  assert (found["zero_advantage"] == always).all()
  assert (found["groups/filtered"][:, -1] > 0).all()


@pytest.mark.slow
def test_log_probs_are_carried_where_a_loss_reads_them(whole, tmp_path):
  run(tmp_path / "without", carry_log_probs=False)
  with_them, without = curves(whole), curves(tmp_path / "without")
  assert "sampler_mismatch" not in without
  # The update's sums round otherwise in another program.
  for name in ("reward/total", "length", "loss"):
    np.testing.assert_allclose(
      with_them[name], without[name], rtol=1e-5, atol=1e-6, err_msg=name
    )
  # A ratio loss gets them all the same. Stale by two steps, it is not 1.
  algorithm = {"advantage": "grpo", "ratio_to": "behave"}
  run(tmp_path / "ratio", [0], {"algorithm": algorithm}, carry_log_probs=False)
  assert curves(tmp_path / "ratio")["sampler_mismatch"][0, -1] > 1e-4


class TestDeaths:
  @pytest.mark.slow
  def test_a_killed_process_is_replaced(self, whole, tmp_path, monkeypatch):
    killed = threading.Event()
    before = actor.ProcessSampler.__call__

    def call(self, version, *args):
      if version == 2 and not killed.is_set():
        killed.set()
        os.kill(self.pid, signal.SIGKILL)
      return before(self, version, *args)

    monkeypatch.setattr(actor.ProcessSampler, "__call__", call)
    assert run(tmp_path, actors=1, actor_kind="process").finished
    assert killed.is_set()
    a, b = curves(whole), curves(tmp_path)
    assert b["groups/lost"][0, -1] == 4
    np.testing.assert_allclose(a["reward/total"], b["reward/total"], atol=1e-6)

  def test_too_many_deaths_end_the_run(self, tmp_path, monkeypatch):
    def dies(*args):
      raise actor.ActorDied("the sampler's process ended with code -9")

    monkeypatch.setattr(groups, "_by_engine", lambda *_, **how: dies)
    with pytest.raises(actor.ActorError, match="3 actors died"):
      run(tmp_path, [0], actors=1, actor_devices=1, max_deaths=2)

  def test_a_reward_that_raises_in_an_actor_ends_the_run(self, tmp_path):
    class Raises(helpers.Letters):
      def score(self, example, completion):
        raise RuntimeError("boom")

    with pytest.raises(Exception, match="boom"):
      run(tmp_path, sections={"task": Raises()}, actors=1)


@pytest.mark.parametrize(
  ("fields", "word"),
  [
    ({"protocol": "fixed_lagg"}, "'fixed_lag'"),
    ({"lag": -1}, "lag is -1"),
    ({"actor_kind": "proces", "actors": 1}, "'process'"),
    ({"partial_tokens": 4}, "needs actors"),
    ({"partial_tokens": 4, "actors": 1}, "span versions"),
    ({"actor_devices": 1}, "needs actors"),
    ({"actor_kind": "process"}, "needs actors"),
    ({"actor_kind": "process", "actors": 1, "actor_devices": 1}, "be idle"),
    ({"actors": 1, "actor_devices": 4}, "none is left"),
    ({"actors": 2, "actor_devices": 3}, "2 actors do not share evenly"),
    ({"actors": 1, "actor_devices": 2}, "do not share 1 seeds evenly"),
    (
      {"actors": 2, "actor_devices": 2, "sections": {"parallel": TENSOR}},
      "actor_devices: a mesh of",
    ),
    (
      {"actors": 1, "actor_devices": 3, "sections": {"parallel": MESHED}},
      "the 4 prompts .* over the 3 devices .* take more loop",
    ),
    ({"actors": -1}, "0 or more"),
    ({"sections": {"loop": {"num_minibatches": 2}}}, "num_minibatches is 2"),
  ],
)
def test_a_mistake_is_named(tmp_path, fields, word):
  with pytest.raises(ValueError, match=word):
    run(tmp_path, [0], **fields)
