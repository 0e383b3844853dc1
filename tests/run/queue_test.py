"""Answers sampled ahead: staleness as promised, whoever samples."""

import dataclasses
import signal
import threading
import time

import jax
import numpy as np
import pytest

from saw_jax import algorithms
from saw_jax.rollout import actor, staleness
from saw_jax.run import checkpoint, groups, loop
from saw_jax.run import experiment as experiment_lib
from tests import helpers

# A loss that reads tokens, rewards and the current policy alone.
ASYMPO = algorithms.AlgorithmConfig(
  advantage="dr_grpo", loss="asympo", aggregate="sequence_mean_token_mean"
)
# What depends on who was faster.
TIMING = ("groups/running", "groups/queued")


def experiment(**changes):
  changes.setdefault("algorithm", ASYMPO)
  changes.setdefault("loop", {"num_steps": 6, "checkpoint_interval": 3})
  changes.setdefault("evaluation", {"interval": 0})
  changes["asynchronous"] = {
    "protocol": "fixed_lag",
    "lag": 2,
    **changes.get("asynchronous", {}),
  }
  return helpers.experiment(**changes)


def run(directory, seeds=(0, 1), **changes):
  return loop.train(experiment(**changes), seeds, directory=directory)


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
  def test_lag_0_is_the_synchronous_loop(self, tmp_path):
    # Sampled in parts in both: a call of an actor is a step's prompts.
    rollout = {"length_groups": 2, "prompt_multiple": 1}
    run(tmp_path / "a", asynchronous={"lag": 0}, rollout=rollout)
    run(tmp_path / "b", asynchronous={"protocol": "none"}, rollout=rollout)
    a, b = curves(tmp_path / "a"), curves(tmp_path / "b")
    assert b.items() and not any(name.startswith("lag/") for name in b)
    helpers.assert_equal_curves(b, {name: a[name] for name in b})

  @pytest.mark.slow
  def test_a_lag_is_that_of_the_weights(self, whole, tmp_path):
    # At step 1 the responses are those of step 0's weights on other prompts:
    # a run that never learns samples the same ones there.
    still = experiment(optimizer={"learning_rate": 0.0})
    loop.train(still, [0, 1], directory=tmp_path)
    moved, kept = curves(whole), curves(tmp_path)
    for step, same in ((0, True), (1, True), (2, True), (4, False)):
      equal = moved["length"][:, step] == kept["length"][:, step]
      equal &= moved["reward/total"][:, step] == kept["reward/total"][:, step]
      assert equal.all() == same, step

  @pytest.mark.parametrize(
    "actors", [1, pytest.param(2, marks=pytest.mark.slow)]
  )
  def test_actors_change_nothing(self, whole, tmp_path, actors):
    run(tmp_path, asynchronous={"actors": actors})
    assert_same_run(whole, tmp_path)

  @pytest.mark.slow
  def test_actors_on_devices_of_their_own_change_nothing(self, whole, tmp_path):
    made = experiment(asynchronous={"actors": 2, "actor_devices": 2})
    loop.train(made, [0, 1], directory=tmp_path)
    a, b = curves(whole), curves(tmp_path)
    for name in ("reward/total", "length", "lag/steps"):
      np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    # Another program, for another device: other rounding.
    np.testing.assert_allclose(
      a["sampler_mismatch"], b["sampler_mismatch"], atol=1e-5
    )

  @pytest.mark.slow
  @pytest.mark.parametrize("lift", ["meshed", "pmapped"])
  def test_other_lifts_hand_their_weights_over(self, lift, tmp_path):
    fields = {"lag": 1, "actors": 1, "actor_devices": 2}
    seeded = experiment(asynchronous=fields)
    lifted = experiment(asynchronous=fields, parallel={"lift": lift})
    loop.train(seeded, [0], directory=tmp_path / "seeded")
    loop.train(lifted, [0], directory=tmp_path / "lifted")
    expected, found = curves(tmp_path / "seeded"), curves(tmp_path / "lifted")
    # From step 2 on the weights have moved; after a few more a difference in
    # the last digit may turn one token into another.
    np.testing.assert_allclose(
      found["reward/total"][:, :4], expected["reward/total"][:, :4], atol=1e-6
    )


class TestResume:
  @pytest.mark.slow
  @pytest.mark.parametrize("actors", [0, 1])
  def test_is_bitwise_the_run_that_was_not_stopped(
    self, whole, tmp_path, actors
  ):
    task = helpers.Stops(40)
    made = experiment(task=task, asynchronous={"actors": actors})
    first = loop.train(made, [0, 1], directory=tmp_path)
    assert not first.finished
    assert 0 < first.step < 6
    made = experiment(asynchronous={"actors": actors})
    assert loop.train(made, [0, 1], directory=tmp_path).finished
    assert_same_run(whole, tmp_path)

  @pytest.mark.slow
  def test_brings_back_weights_that_were_published_before(self, tmp_path):
    fields = {"protocol": "quota", "require": 2, "trigger": 2}
    made = experiment(asynchronous=fields)
    loop.train(made, [0], directory=tmp_path / "whole")
    cut = experiment(asynchronous=fields, task=helpers.Stops(90))
    first = loop.train(cut, [0], directory=tmp_path / "cut")
    assert not first.finished
    assert first.step % 4, "it stopped where new weights were published"
    loop.train(made, [0], directory=tmp_path / "cut")
    assert_same_run(tmp_path / "whole", tmp_path / "cut")

  @pytest.mark.slow
  def test_a_synchronous_checkpoint_has_no_queue(self, tmp_path):
    made = experiment()
    run(tmp_path, [0], asynchronous={"protocol": "none"})
    (tmp_path / "final.json").unlink()
    with pytest.raises(ValueError, match="no queue"):
      loop.train(made, [0], directory=tmp_path)

  def test_a_damaged_queue_is_named(self, whole, tmp_path):
    import shutil

    shutil.copytree(whole, tmp_path / "run")
    arrays = tmp_path / "run" / "checkpoints" / "6" / "arrays"
    # All of them: which of the files are read differs from run to run.
    for path in arrays.rglob("d/*"):
      data = bytearray(path.read_bytes())
      data[len(data) // 2] ^= 0xFF
      path.write_bytes(data)
    with pytest.raises(checkpoint.CheckpointError, match="last good step is 3"):
      loop.train(experiment(), [0, 1], directory=tmp_path / "run")


class TestOtherProtocols:
  @pytest.mark.slow
  def test_quota_without_actors_has_the_lag_of_its_budget(self, tmp_path):
    made = experiment(
      loop={"num_steps": 12, "checkpoint_interval": 0},
      asynchronous={"protocol": "quota", "require": 2, "trigger": 2},
    )
    loop.train(made, [0], directory=tmp_path)
    found = curves(tmp_path)
    # A window is 4 steps, and half of one is started ahead.
    assert found["lag/steps_max"].max() == 5
    assert found["lag/versions_max"].max() == 1

  @pytest.mark.parametrize(
    "partial", [0, pytest.param(2, marks=pytest.mark.slow)]
  )
  def test_max_lag_is_kept_by_actors(self, tmp_path, partial):
    made = experiment(
      asynchronous={
        "protocol": "max_lag",
        "lag": 1,
        "actors": 2,
        "partial_tokens": partial,
      }
    )
    assert loop.train(made, [0, 1], directory=tmp_path).finished
    assert curves(tmp_path)["lag/versions_max"].max() <= 1


class Constant(helpers.Letters):
  """Rewards nothing for prompts of even keys, so that nothing varies there."""

  def __init__(self, always=False):
    self.always = always

  def score(self, example, completion):
    score = super().score(example, completion)
    if self.always or example.key % 2 == 0:
      return dataclasses.replace(score, values=(0.0, 0.0))
    return score


class Slow(helpers.Letters):
  """Takes its time, so that actors wait for the grader."""

  def score(self, example, completion):
    time.sleep(0.002)
    return super().score(example, completion)


class TestBackPressure:
  @pytest.mark.slow
  def test_a_slow_grader_is_waited_for_and_the_queue_stays_bounded(
    self, tmp_path
  ):
    made = experiment(
      task=Slow(),
      asynchronous={"protocol": "max_lag", "lag": 2, "actors": 2},
    )
    assert loop.train(made, [0], directory=tmp_path).finished
    found = helpers.curves(tmp_path)
    held = found["groups/queued"] + found["groups/running"]
    assert held.max() <= (2 + 1) * 4
    assert found["groups/expired"].max() == 0


class TestDynamicSampling:
  @pytest.mark.slow
  def test_replaces_groups_that_do_not_vary(self, tmp_path):
    made = experiment(
      task=Constant(), asynchronous={"lag": 1, "dynamic_sampling": True}
    )
    loop.train(made, [0, 1], directory=tmp_path)
    found = curves(tmp_path)
    assert found["zero_advantage"].max() == 0
    assert (found["groups/filtered"][:, -1] > 0).all()

  @pytest.mark.slow
  def test_ends_where_nothing_varies(self, tmp_path):
    made = experiment(
      task=Constant(always=True),
      asynchronous={"lag": 0, "dynamic_sampling": True, "max_attempts": 2},
      loop={"num_steps": 2, "checkpoint_interval": 0},
    )
    assert loop.train(made, [0], directory=tmp_path).finished
    assert curves(tmp_path)["zero_advantage"].min() == 1


class TestLogProbs:
  @pytest.mark.slow
  def test_a_current_policy_loss_learns_without_them(self, whole, tmp_path):
    made = experiment(asynchronous={"carry_log_probs": False})
    loop.train(made, [0, 1], directory=tmp_path)
    with_them, without = curves(whole), curves(tmp_path)
    assert "sampler_mismatch" not in without
    # The update's own sums over tokens round otherwise in a program that does
    # not compare log-probs; what is sampled and scored has the same bits.
    rounded = ("balance", "entropy", "gradient_norm", "largest", "loss", "nll")
    for name, value in without.items():
      if name.startswith(rounded):
        np.testing.assert_allclose(with_them[name], value, 1e-5, 1e-6, name)
      else:
        np.testing.assert_array_equal(with_them[name], value, name)

  @pytest.mark.slow
  def test_a_ratio_loss_gets_them_all_the_same(self, tmp_path):
    algorithm = algorithms.AlgorithmConfig(advantage="grpo", ratio_to="behave")
    made = experiment(
      algorithm=algorithm, asynchronous={"carry_log_probs": False}
    )
    loop.train(made, [0], directory=tmp_path)
    # Stale by two steps: the ratio is not 1.
    assert curves(tmp_path)["sampler_mismatch"][0, -1] > 1e-4


class TestNonFinite:
  @pytest.mark.slow
  def test_an_update_is_skipped_and_counted(self, tmp_path):
    made = experiment(
      loop={
        "num_steps": 2,
        "checkpoint_interval": 0,
        "skip_nonfinite": True,
      },
      algorithm=dataclasses.replace(ASYMPO, entropy_coefficient=float("nan")),
    )
    before = jax.device_get(made.params)
    loop.train(made, [0], directory=tmp_path)
    assert (curves(tmp_path)["skipped"] == 1).all()
    _, policy = experiment_lib.restore(made, 1, tmp_path)
    jax.tree.map(
      lambda a, b: np.testing.assert_array_equal(a, b[0]),
      before,
      policy.state.params,
    )


class TestProcesses:
  @pytest.mark.slow
  def test_sample_what_threads_sample_and_may_be_killed(self, whole, tmp_path):
    killed = threading.Event()
    before = actor.ProcessSampler.__call__

    def call(self, version, *args):
      if version == 2 and not killed.is_set():
        killed.set()
        import os

        os.kill(self.pid, signal.SIGKILL)
      return before(self, version, *args)

    made = experiment(asynchronous={"actors": 1, "actor_kind": "process"})
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(actor.ProcessSampler, "__call__", call)
      result = loop.train(made, [0, 1], directory=tmp_path)
    assert killed.is_set()
    assert result.finished
    assert curves(tmp_path)["groups/lost"][0, -1] == 4
    a, b = curves(whole), curves(tmp_path)
    np.testing.assert_allclose(a["reward/total"], b["reward/total"], atol=1e-6)

  def test_too_many_deaths_end_the_run(self, tmp_path, monkeypatch):
    def dies(self, *args):
      raise actor.ActorDied("the sampler's process ended with code -9")

    monkeypatch.setattr(actor.DeviceSampler, "__call__", dies)
    made = experiment(
      asynchronous={"actors": 1, "actor_devices": 1, "max_deaths": 2}
    )
    with pytest.raises(actor.ActorError, match="3 actors died, and 2 may be"):
      loop.train(made, [0], directory=tmp_path)


class TestBadInput:
  @pytest.mark.parametrize(
    ("fields", "message"),
    [
      ({"protocol": "fixed_lagg"}, "did you mean 'fixed_lag'"),
      ({"lag": -1}, "lag is -1"),
      ({"actor_kind": "proces", "actors": 1}, "did you mean 'process'"),
      ({"partial_tokens": 4}, "needs actors"),
      ({"partial_tokens": 4, "actors": 1}, "span versions"),
      ({"actor_devices": 1}, "needs actors"),
      ({"actors": 1, "actor_devices": 4}, "none is left"),
    ],
  )
  def test_is_one_sentence(self, tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
      loop.train(experiment(asynchronous=fields), [0], directory=tmp_path)

  def test_several_updates_a_step(self, tmp_path):
    made = experiment(loop={"num_minibatches": 2})
    with pytest.raises(ValueError, match="num_minibatches is 2"):
      loop.train(made, [0], directory=tmp_path)

  def test_a_reward_that_raises_in_an_actor_ends_the_run(self, tmp_path):
    class Raises(helpers.Letters):
      def score(self, example, completion):
        raise RuntimeError("boom")

    made = experiment(task=Raises(), asynchronous={"actors": 1})
    with pytest.raises(Exception, match="boom"):
      loop.train(made, [0], directory=tmp_path)


def test_protocols_are_made_of_their_figures():
  config = experiment_lib.AsyncConfig("quota", threshold=0.3, trigger=2)
  found = groups.make_protocol(config, 8)
  assert found == staleness.Quota(8, 0.3, require=4, trigger=2)
