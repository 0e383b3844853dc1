"""The loop on a task of letters: it learns, resumes, and says what is wrong."""

import signal

import jax
import numpy as np
import pytest

from saw_jax import algorithms
from saw_jax.reporting import runs
from saw_jax.run import checkpoint, sync_loop
from saw_jax.tasks import base
from saw_jax.tasks.workers.grading import RewardError
from tests import helpers

CLOCK = ("seconds/", "tokens_per_second", "compilations")


def curves(directory):
  """Everything that was logged, but for what the clock says."""
  found = runs.read_curves([directory])
  return {
    name: value
    for name, value in found.values.items()
    if not name.startswith(CLOCK)
  }


def assert_same_run(a, b):
  first, second = curves(a), curves(b)
  assert first.keys() == second.keys()
  for name, value in first.items():
    np.testing.assert_array_equal(value, second[name], err_msg=name)
  for name in ("final.json", "evals.csv"):
    assert (a / name).read_text() == (b / name).read_text()
  assert last_fingerprints(a) == last_fingerprints(b)


def last_fingerprints(directory):
  """Checksums of all arrays in the last checkpoint."""
  folder = directory / "checkpoints"
  last = max(int(p.name) for p in folder.iterdir() if p.name.isdigit())
  return helpers.read_document(folder / str(last))["fingerprints"]


class Stops(helpers.Letters):
  """Asks for an interrupt while it scores."""

  def __init__(self, calls):
    self.calls = calls

  def score(self, example, completion):
    self.calls -= 1
    if self.calls == 0:
      signal.raise_signal(signal.SIGINT)
    return super().score(example, completion)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  directory = tmp_path_factory.mktemp("whole")
  result = loop.train(helpers.experiment(), [0, 1], directory=directory)
  return directory, result


def run_under(lift, directory):
  """The curves of a run of one seed."""
  experiment = helpers.experiment(
    parallel={"lift": lift},
    evaluation={"num_examples": 8, "batch_size": 4},
  )
  loop.train(experiment, [0], directory=directory)
  return curves(directory)


@pytest.fixture(scope="module")
def seeded(tmp_path_factory):
  return run_under("seeded", tmp_path_factory.mktemp("seeded"))


class TestRun:
  def test_ends_with_scores_of_every_seed(self, whole):
    _, result = whole
    assert result.finished and result.step == 4
    assert [final["seed"] for final in result.final] == [0, 1]
    assert set(result.final[0]["greedy"]) == {
      "letter",
      "small",
      "total",
      "right",
      "ended",
      "unscored",
      "length",
    }

  def test_logs_rewards_weights_and_cvs_of_each_objective(self, whole):
    found = curves(whole[0])
    for component in ("letter", "small"):
      for kind in ("reward", "weight", "cv", "std", "constant_groups"):
        assert f"{kind}/{component}" in found
    weights = found["weight/letter"] + found["weight/small"]
    np.testing.assert_allclose(weights, 2.0, rtol=1e-5)

  def test_the_sampler_and_the_trainer_agree(self, whole):
    assert curves(whole[0])["sampler_mismatch"].max() < 1e-5

  def test_no_update_was_skipped(self, whole):
    np.testing.assert_array_equal(curves(whole[0])["skipped"], 0)

  @pytest.mark.slow
  def test_a_loss_of_the_current_policy_has_its_balance_logged(self, tmp_path):
    experiment = helpers.experiment(
      algorithm=algorithms.AlgorithmConfig(
        advantage="dr_grpo",
        loss="asympo",
        aggregate="sequence_mean_token_mean",
      ),
      loop={"num_steps": 2, "num_minibatches": 2},
    )
    assert loop.train(experiment, [0], directory=tmp_path).finished
    found = curves(tmp_path)
    np.testing.assert_allclose(found["loss"], 0, atol=1e-6)
    assert (found["nll/positive"] > 0).all()
    assert (found["largest_inverse_nll"] > 1 / found["nll/positive"]).all()

  @pytest.mark.slow
  def test_two_runs_with_one_seed_are_bitwise_equal(self, whole, tmp_path):
    loop.train(helpers.experiment(), [0, 1], directory=tmp_path)
    assert_same_run(whole[0], tmp_path)

  def test_a_seed_is_the_same_alone_and_beside_another(self, whole, tmp_path):
    loop.train(helpers.experiment(), [1], directory=tmp_path)
    alone = curves(tmp_path)
    beside = curves(whole[0])
    np.testing.assert_allclose(
      alone["reward/letter"][0], beside["reward/letter"][1], atol=1e-6
    )
    np.testing.assert_allclose(
      alone["loss"][0], beside["loss"][1], rtol=1e-3, atol=1e-5
    )

  @pytest.mark.slow
  def test_ctrl_c_saves_and_the_resumed_run_is_the_uninterrupted_one(
    self, whole, tmp_path
  ):
    # 2 seeds: 6 evaluation scores (padded to 8), then 32 a step.
    first = loop.train(
      helpers.experiment(task=Stops(8 + 32 + 5)), [0, 1], directory=tmp_path
    )
    assert not first.finished and first.step == 2
    assert not (tmp_path / "final.json").exists()
    second = loop.train(helpers.experiment(), [0, 1], directory=tmp_path)
    assert second.finished
    assert_same_run(whole[0], tmp_path)

  @pytest.mark.slow
  def test_responses_sampled_by_length_are_the_same(self, whole, tmp_path):
    experiment = helpers.experiment(rollout={"length_groups": 2})
    loop.train(experiment, [0, 1], directory=tmp_path)
    found, expected = curves(tmp_path), curves(whole[0])
    assert found.keys() == expected.keys()
    for name, value in expected.items():
      # Half as many rows at a time are rounded in another way.
      np.testing.assert_allclose(
        found[name], value, rtol=1e-5, atol=1e-5, err_msg=name
      )

  def test_a_finished_run_starts_no_step(self, whole, tmp_path):
    del tmp_path
    before = (whole[0] / "metrics.jsonl").read_text()
    again = loop.train(helpers.experiment(), [0, 1], directory=whole[0])
    assert again.finished
    assert (whole[0] / "metrics.jsonl").read_text() == before

  @pytest.mark.slow
  def test_resuming_from_an_earlier_step_repeats_the_rest(
    self, whole, tmp_path
  ):
    loop.train(helpers.experiment(), [0, 1], directory=tmp_path)
    loop.train(
      helpers.experiment(), [0, 1], directory=tmp_path, resume_step=2
    )
    assert_same_run(whole[0], tmp_path)


class TestLearns:
  @pytest.mark.slow
  def test_the_reward_rises(self, tmp_path):
    loop.train(
      helpers.experiment(
        loop={"num_steps": 25, "prompts_per_step": 8, "group_size": 8},
        evaluation={"interval": 0},
      ),
      [0],
      directory=tmp_path,
    )
    small = curves(tmp_path)["reward/small"][0]
    assert small[-5:].mean() > small[:5].mean() + 0.2


class TestMethods:
  @pytest.mark.slow
  @pytest.mark.parametrize(
    "algorithm",
    [
      algorithms.AlgorithmConfig(advantage="grpo", weights="gradient"),
      algorithms.AlgorithmConfig(
        advantage="grpo",
        kl=algorithms.KLConfig("reward", "k1", 0.01),
        entropy_coefficient=0.01,
      ),
      algorithms.AlgorithmConfig(
        advantage="gdpo", kl=algorithms.KLConfig("loss", "k3", 0.1)
      ),
    ],
    ids=["gradient", "kl in the reward", "kl in the loss"],
  )
  def test_runs_with_several_updates_a_step(self, algorithm, tmp_path):
    result = loop.train(
      helpers.experiment(
        algorithm=algorithm, loop={"num_steps": 2, "num_minibatches": 2}
      ),
      [0, 1],
      directory=tmp_path,
    )
    assert result.finished
    assert np.isfinite(curves(tmp_path)["loss"]).all()

  @pytest.mark.slow
  def test_the_penalty_reaches_the_advantages(self, tmp_path):
    # At the first step policy and reference are one: no KL, the same run.
    kinds = {}
    for name, coefficient in (("none", 0.0), ("kl", 5.0)):
      algorithm = algorithms.AlgorithmConfig(
        advantage="grpo",
        kl=algorithms.KLConfig(
          "reward" if coefficient else "none", "k1", coefficient
        ),
      )
      loop.train(
        helpers.experiment(algorithm=algorithm),
        [0],
        directory=tmp_path / name,
      )
      kinds[name] = curves(tmp_path / name)["gradient_norm"][0]
    np.testing.assert_allclose(kinds["none"][0], kinds["kl"][0], rtol=1e-4)
    assert abs(kinds["none"][2] - kinds["kl"][2]) > 1e-4

  @pytest.mark.slow
  @pytest.mark.parametrize("lift", ["seeded", "pmapped"])
  def test_packed_rows_train_the_same_policy(self, lift, tmp_path):
    # All that passes through the model: old and reference log-probs, gradient
    # weights, updates in mini- and micro-batches.
    found = {}
    for length in (0, 53):
      loop.train(
        helpers.experiment(
          algorithm=algorithms.AlgorithmConfig(
            advantage="grpo",
            weights="gradient",
            kl=algorithms.KLConfig("reward", "k1", 0.01),
          ),
          loop={
            "num_steps": 2,
            "prompts_per_step": 8,
            "num_minibatches": 2,
            "num_microbatches": 2,
            "pack_length": length,
          },
          parallel={"lift": lift},
          evaluation={"num_examples": 8, "batch_size": 4},
        ),
        [0],
        directory=tmp_path / str(length),
      )
      found[length] = curves(tmp_path / str(length))
    assert found[0].keys() == found[53].keys()
    for name, values in found[0].items():
      if not name.startswith(("seconds/", "compilations", "memory")):
        np.testing.assert_allclose(
          found[53][name], values, rtol=1e-3, atol=1e-5, err_msg=name
        )

  @pytest.mark.slow
  @pytest.mark.parametrize("lift", ["pmapped", "meshed"])
  def test_other_lifts_train_the_same_policy(self, lift, seeded, tmp_path):
    expected, found = seeded, run_under(lift, tmp_path)
    np.testing.assert_allclose(
      found["reward/letter"], expected["reward/letter"], atol=1e-6
    )
    np.testing.assert_allclose(
      found["loss"], expected["loss"], rtol=1e-3, atol=1e-5
    )


class Broken(helpers.Letters):
  def __init__(self, value):
    self.value = value

  def score(self, example, completion):
    if self.value is None:
      raise RuntimeError("boom")
    return base.Score(self.value, base.Outcome.WRONG)


class Unscored(helpers.Letters):
  """Cannot say how small the letters of every other prompt are."""

  def score(self, example, completion):
    score = super().score(example, completion)
    if example.key % 2:
      return base.Score((score.values[0], None), score.outcome)
    return score


class TestBadRewards:
  @pytest.mark.parametrize(
    ("value", "words"),
    [
      ((1.0,), "letters"),
      ((1.0, float("nan")), "small"),
      ((1.0, float("inf")), "small"),
      (None, "boom"),
    ],
    ids=["wrong shape", "nan", "inf", "raises"],
  )
  def test_the_error_names_the_reward_and_the_example(
    self, tmp_path, value, words
  ):
    with pytest.raises(RewardError, match=words) as caught:
      loop.train(
        helpers.experiment(task=Broken(value)), [0], directory=tmp_path
      )
    assert any(str(key) in str(caught.value) for key in range(1000, 1003))

  def test_what_was_not_scored_is_masked_and_counted(self, tmp_path):
    loop.train(helpers.experiment(task=Unscored()), [0], directory=tmp_path)
    found = curves(tmp_path)
    assert (found["unscored"] > 0).any()
    assert np.isfinite(found["loss"]).all()
    # A 0 in place of the mask would pull the mean of all prompts down.
    scored_only = found["reward/small"]
    assert np.isfinite(scored_only).all()


class TestBadState:
  def test_a_loss_that_is_not_finite_ends_the_run(self, tmp_path):
    experiment = helpers.experiment()
    params = jax.tree.map(lambda x: x * np.nan, experiment.params)
    with pytest.raises(FloatingPointError, match="seed 0 is nan at step 0"):
      loop.train(experiment._replace(params=params), [0], directory=tmp_path)

  @pytest.mark.slow
  def test_the_update_of_such_a_loss_was_skipped(self, tmp_path):
    experiment = helpers.experiment()
    params = jax.tree.map(lambda x: x * np.nan, experiment.params)
    with pytest.raises(FloatingPointError):
      loop.train(experiment._replace(params=params), [0], directory=tmp_path)
    np.testing.assert_array_equal(curves(tmp_path)["skipped"], 1.0)

  @pytest.mark.slow
  def test_a_checkpoint_of_another_model_is_refused(self, tmp_path):
    loop.train(helpers.experiment(), [0], directory=tmp_path)
    with pytest.raises(checkpoint.CheckpointError, match="there and"):
      loop.train(helpers.experiment(), [0, 1], directory=tmp_path)
