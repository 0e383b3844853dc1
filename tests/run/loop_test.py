"""The loop on a task of letters: it learns, resumes, and says what is wrong."""

import itertools

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from saw_jax.models import lora
from saw_jax.run import learner, loop, metrics
from saw_jax.tasks import base
from saw_jax.tasks.workers.pool import RewardError
from tests import helpers
from tests.helpers import curves


def run(directory, seeds=(0, 1), **changes):
  return loop.train(helpers.experiment(**changes), seeds, directory=directory)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  directory = tmp_path_factory.mktemp("whole")
  return directory, run(directory)


class TestRun:
  def test_ends_with_scores_of_every_seed_and_starts_no_other_step(self, whole):
    directory, result = whole
    assert result.finished and result.step == 4
    assert [final["seed"] for final in result.final] == [0, 1]
    averages = {"total", "right", "ended", "unscored", "length"}
    assert set(result.final[0]["greedy"]) == {"letter", "small", *averages}
    before = (directory / "metrics.jsonl").read_text()
    assert run(directory).finished
    assert (directory / "metrics.jsonl").read_text() == before

  def test_logs_rewards_weights_and_cvs_of_each_objective(self, whole):
    found = curves(whole[0])
    for component in ("letter", "small"):
      for kind in ("reward", "weight", "cv", "std", "constant_groups"):
        assert f"{kind}/{component}" in found
    weights = found["weight/letter"] + found["weight/small"]
    assert_allclose(weights, 2.0, rtol=1e-5)
    assert not any(name.startswith(("lag/", "groups/")) for name in found)
    assert found["sampler_mismatch"].max() < 1e-5
    assert_array_equal(found["skipped"], 0)

  def test_keeps_completions_with_the_rewards_that_they_earn(self, whole):
    rows = list(metrics.read_lines(whole[0] / "completions.jsonl"))
    steps = [(row["step"], row["seed"]) for row in rows]
    shown = [(step, seed) for step in (0, 2, 3) for seed in (0, 1)]
    assert steps == [place for place in shown for _ in range(8)]
    for row in rows:
      example = base.Example(0, (), row["prompt"][0])
      score = helpers.Letters().score(example, row["completion"])
      found = row["reward/letter"], row["reward/small"]
      assert_allclose(found, score.values, rtol=1e-6)
      assert row["total"] == sum(found)
      assert row["outcome"] == score.outcome.value
    # GDPO gives what earned the same in a group the same, and more for more.
    for group in np.array(rows, object).reshape(-1, 4):
      assert len({row["prompt"] for row in group}) == 1
      for a, b in itertools.combinations(group, 2):
        gains = [
          a[f"reward/{c}"] - b[f"reward/{c}"] for c in ("letter", "small")
        ]
        if min(gains) >= 0 or max(gains) <= 0:
          gain = a["advantage"] - b["advantage"]
          assert np.sign(np.round(gain, 5)) == np.sign(sum(gains))

  @pytest.mark.slow
  def test_a_seed_is_the_same_alone_and_beside_another(self, whole, tmp_path):
    run(tmp_path, [1])
    alone, beside = curves(tmp_path), curves(whole[0])
    for name in ("reward/letter", "loss"):
      assert_allclose(alone[name][0], beside[name][1], rtol=1e-3, atol=1e-5)

  @pytest.mark.slow
  def test_the_reward_rises(self, tmp_path):
    fields = {"num_steps": 40, "checkpoint_interval": 0}
    run(tmp_path, loop=fields, evaluation={"interval": 0})
    small = curves(tmp_path)["reward/small"]
    assert (small[:, -9:].mean(1) > small[:, :9].mean(1) + 0.2).all()


class Scored(helpers.Letters):
  """Scores with what a function makes of the usual values."""

  def __init__(self, change):
    self.change = change

  def score(self, example, completion):
    score = super().score(example, completion)
    return base.Score(self.change(example, score.values), score.outcome)


class TestBadRewards:
  def test_the_error_names_the_reward_and_the_example(self, tmp_path):
    for value, word in (((1.0,), "letters"), ((1.0, np.nan), "small")):
      with pytest.raises(RewardError, match=word) as caught:
        run(tmp_path, [0], task=Scored(lambda *_, value=value: value))
      assert any(str(key) in str(caught.value) for key in range(1000, 1003))

  @pytest.mark.parametrize("interval", [1, 0])  # with evaluations, and without
  def test_nothing_is_learned_from_an_unscored_step(self, interval, tmp_path):
    task = Scored(lambda *_: (None, None))
    # Keys of the held-out examples are above 1000.
    with pytest.raises(RewardError, match="'letters' .*of .*unscored") as error:
      run(tmp_path, [0], task=task, evaluation={"interval": interval})
    assert ("example 100" in str(error.value)) == bool(interval)
    assert not (tmp_path / "metrics.jsonl").read_text()

  def test_one_that_fails_held_out_loses_no_step(self, tmp_path):
    task = Scored(lambda e, values: values if e.key < 1000 else values[:1])
    how = {"evaluation": {"interval": 0}}
    with pytest.raises(RewardError, match="letters"):
      run(tmp_path, [0], task=task, **how)
    before = (tmp_path / "metrics.jsonl").read_text()
    result = run(tmp_path, [0], **how)  # with a reward that was mended
    assert result.finished and result.step == 4
    assert (tmp_path / "metrics.jsonl").read_text() == before

  def test_what_was_not_scored_is_masked_and_counted(self, tmp_path):
    # Nobody can say how small the letters of every other prompt are.
    task = Scored(lambda e, x: (x[0], None if e.key % 2 else x[1]))
    run(tmp_path, [0], task=task)
    found = curves(tmp_path)
    assert (found["unscored"] > 0).any()
    assert np.isfinite(found["loss"]).all()
    # A 0 in place of the mask would pull the mean of all prompts down.
    assert np.isfinite(found["reward/small"]).all()


class Rich(helpers.Letters):
  """Pays every other answer more than can be squared."""

  def __init__(self, paid):
    self.paid, self.components = paid, (base.Component("odd", 0.0, 1e38),)

  def score(self, example, completion):
    paid = self.paid * (sum(map(ord, completion)) % 2)
    return base.Score((paid,), base.Outcome.WRONG)


def spoilt(advantage="grpo", weights="equal", task=None, bonus=0.0, **changes):
  algorithm = dict(advantage=advantage, weights=weights)
  algorithm["entropy_coefficient"] = bonus
  return {"task": task or Rich(1.0), "algorithm": algorithm, **changes}


NAN = jax.tree.map(lambda x: x * np.nan, helpers.start())
GREEDY = {"optimizer": {"learning_rate": 3.3e38}}
LIFTS = [{"parallel": {"lift": lift}} for lift in ("meshed", "pmapped")]
OTHERS = [{}, {"lora": lora.LoraConfig(rank=2)}, *LIFTS]
HALF = {"decoder": {"param_dtype": "bfloat16"}}
SPOILT = {
  "loss/policy is nan": [spoilt(params=NAN)],
  "gradient_norm is inf": [
    spoilt(bonus=1e30),
    spoilt("dr_grpo", task=Rich(1e25)),
  ],
  "parameters": [spoilt(**GREEDY, **other) for other in (HALF, *OTHERS)],
  "advantages": [
    spoilt(*names, task=Rich(1e38))
    for names in (["grpo"], ["gdpo"], ["rloo", "saw"], ["rloo", "gradient"])
  ],
}


@pytest.mark.parametrize(
  ("word", "changes"),
  [
    pytest.param(word, changes, marks=[pytest.mark.slow] * (k > 0))
    for word, cases in SPOILT.items()
    for k, changes in enumerate(cases)
  ],
)
def test_what_is_not_finite_ends_the_run(tmp_path, word, changes):
  fields = {"checkpoint_interval": 1, "max_skipped": 2}
  seeds = [0] if "parallel" in changes else [0, 1]
  with pytest.raises(FloatingPointError, match=f"step 0 of seed 0: .*{word}"):
    run(tmp_path / "a", seeds, loop=fields, **changes)
  assert curves(tmp_path / "a")["skipped"][0, 0] == 1
  # Skipped, nothing has changed when it gives up: nor is it NaN that is saved.
  fields["skip_nonfinite"] = True
  start = "params" in changes
  word = "after 1 steps" if start else "3 steps in a row were skipped"
  with pytest.raises(FloatingPointError, match=word):
    run(tmp_path / "b", seeds, loop=fields, **changes)
  assert set(curves(tmp_path / "b")["skipped"].flat) == {1}
  folder = tmp_path / "b" / "checkpoints"
  assert start or {x.name for x in folder.iterdir()} >= {"1", "2"}


def test_seeds_are_judged_one_by_one(tmp_path, monkeypatch):
  def spoil(state, batch, *rest, made=learner.Learner.update):
    advantages = np.array(batch.advantages)
    advantages[1] = np.nan
    return made(state, batch.replace(advantages=advantages), *rest)

  fields = {"skip_nonfinite": True, "num_steps": 2}
  monkeypatch.setattr(learner.Learner, "update", spoil)
  assert run(tmp_path / "a", loop=fields).finished
  assert_array_equal(curves(tmp_path / "a")["skipped"].T, [[0, 1]] * 2)
  with pytest.raises(FloatingPointError, match="step 0 of seed 1: advantages"):
    run(tmp_path / "b")
