"""Benchmarks at the end of a run: scores, averages, kills and bad input."""

import json
import logging
import signal

import numpy as np
import pytest

from saw_jax.rollout.sampling import SamplingConfig
from saw_jax.run import benchmarks, evaluation, rollouts, session
from saw_jax.run import experiment as experiment_lib
from saw_jax.tasks import base
from tests import helpers
from tests.run.session_test import open_session, row


class Fake:
  """Scores by the book, and counts how often it is asked."""

  def __init__(self, modes, values, asked):
    self.modes, self.values, self.examples = modes, values, range(5)
    self.asked = asked

  def scores(self, mode, params, grader, *, num_seeds):
    assert (params, grader) == ("params", "grader")
    self.asked.append(mode)
    return [
      {name: value + seed for name, value in self.values[mode].items()}
      for seed in range(num_seeds)
    ]


@pytest.fixture
def asked():
  return []


@pytest.fixture
def two(asked):
  """One with samples and a figure of its own, and a greedy one."""
  easy = {"greedy": {"right": 0.5, "own": 9.0}, "sampled": {"right": 0.25}}
  return {
    "easy": Fake(("greedy", "sampled"), easy, asked),
    "hard": Fake(("greedy",), {"greedy": {"right": 0.1}}, asked),
  }


def score(evaluators, path, **changes):
  fields = {"seeds": [4, 7], "step": 3, "path": path, **changes}
  return benchmarks.score(evaluators, "params", "grader", **fields)


class TestScore:
  def test_averages_are_over_what_all_of_a_mode_have(self, two, tmp_path):
    found = score(two, tmp_path / "b.json")
    assert list(found) == [
      "easy/greedy",
      "easy/sampled",
      "hard/greedy",
      "benchmarks/greedy",
      "benchmarks/sampled",
    ]
    assert found["easy/greedy"][1] == {"right": 1.5, "own": 10.0}
    # Seed by seed, without the figure that one of them lacks.
    assert found["benchmarks/greedy"] == [
      {"right": pytest.approx(0.3)},
      {"right": pytest.approx(1.3)},
    ]
    assert found["benchmarks/sampled"] == found["easy/sampled"]

  def test_what_was_scored_is_kept_when_it_is_stopped(
    self, two, asked, tmp_path
  ):
    path = tmp_path / "b.json"
    assert score(two, path, stop=lambda: len(asked) == 2) is None
    assert asked == ["greedy", "sampled"]
    kept = json.loads(path.read_text())["scores"]
    assert list(kept) == ["easy/greedy", "easy/sampled"]
    resumed = score(two, path)
    assert asked == ["greedy", "sampled", "greedy"]  # the hard one alone
    assert resumed == score(two, tmp_path / "other.json")

  def test_a_stop_after_the_last_part_loses_nothing(self, two, tmp_path):
    assert score(two, tmp_path / "b.json", stop=lambda: True) is None
    assert score(two, tmp_path / "b.json", stop=lambda: True) is None
    assert score(two, tmp_path / "b.json", stop=lambda: True) is not None

  @pytest.mark.parametrize("changes", [{"step": 4}, {"seeds": [4, 8]}])
  def test_scores_of_other_policies_are_not_taken(
    self, two, asked, tmp_path, changes
  ):
    score(two, tmp_path / "b.json")
    score(two, tmp_path / "b.json", **changes)
    assert len(asked) == 6

  @pytest.mark.parametrize("text", ["{", "[]", '{"step": 3, "seeds": [4, 7]}'])
  def test_a_damaged_file_is_said_and_scored_anew(
    self, two, asked, tmp_path, text, caplog
  ):
    path = tmp_path / "b.json"
    path.write_text(text)
    with caplog.at_level(logging.WARNING):
      assert score(two, path) is not None
    assert f"{path} is damaged" in caplog.text
    assert len(asked) == 3

  def test_a_benchmark_that_was_taken_out_is_out(self, two, tmp_path):
    score(two, tmp_path / "b.json")
    del two["hard"]
    found = score(two, tmp_path / "b.json")
    assert not any(name.startswith("hard") for name in found)
    assert found["benchmarks/greedy"] == found["easy/greedy"]


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


class TestCheck:
  @pytest.mark.parametrize(
    ("name", "error", "message"),
    [
      ("absent", FileNotFoundError, "absent.jsonl is not there"),
      ("empty", ValueError, "'empty' is empty"),
      ("long", ValueError, "example 2000 has a prompt of"),
      ("benchmarks", ValueError, "called 'benchmarks'"),
    ],
  )
  def test_what_is_wrong_is_said(self, name, error, message):
    made = helpers.experiment(task=Splits())
    encoder = rollouts.Encoder(made.tokenizer, made.rollout)
    benchmarks.check(made.task, encoder, ["test", "train"])
    with pytest.raises(error, match=message):
      benchmarks.check(made.task, encoder, ["test", name])

  @pytest.mark.parametrize("samples", [-1, 0.5, True, "8"])
  def test_samples_are_counted(self, samples):
    with pytest.raises(ValueError, match="benchmarks.aime24"):
      evaluation.EvaluationConfig(benchmarks={"aime24": samples})


def make_evaluator(**fields):
  made = helpers.experiment(
    evaluation={"temperature": 0.5, "top_p": 0.9, **fields}
  )
  calls = []

  def make_sampler(sampling, group_size):
    calls.append((sampling, group_size))
    return len(calls)

  return (
    evaluation.Evaluator(
      made.task,
      made.tokenizer,
      rollouts.Encoder(made.tokenizer, made.rollout),
      made.evaluation,
      make_sampler,
    ),
    calls,
  )


class TestOn:
  def test_it_is_whole_and_shares_what_is_compiled(self):
    evaluator, calls = make_evaluator(samples=4, num_examples=3)
    assert evaluator.modes == ("greedy", "sampled")
    other = evaluator.on("train", 8)
    assert [e.key for e in other.examples] == list(range(13))
    assert [e.key for e in evaluator.examples] == [1000, 1001, 1002]
    assert evaluator.on("test", 8).modes == ("greedy", "sampled")
    sampled = SamplingConfig(temperature=0.5, top_p=0.9)
    assert calls == [
      (SamplingConfig(greedy=True), 1),
      (sampled, 4),
      (sampled, 8),
    ]

  def test_without_samples_it_is_greedy(self):
    evaluator, _ = make_evaluator()
    assert evaluator.on("train", 0).modes == ("greedy",)


class Averaging(helpers.Letters):
  """Averages even and odd examples apart, as BFCL does its categories."""

  def averages(self, examples, right):
    keys = np.array([example.key for example in examples])
    return {
      "even": float(right[keys % 2 == 0].mean()),
      "odd": float(right[keys % 2 == 1].mean()),
    }


class TestRun:
  def test_a_run_has_them_in_its_final_scores(self, tmp_path):
    fields = {
      "interval": 0,
      "num_examples": 13,
      "batch_size": 13,
      "benchmarks": {"test": 2, "train": 0},
    }
    options = dict(task=Averaging(), evaluation=fields, loop={"num_steps": 1})
    with open_session(tmp_path, **options) as opened:
      opened.end_step([row()], session.Clock(), tokens=1.0)
      # Killed before the second part: the scores so far are kept.
      signal.raise_signal(signal.SIGINT)
      assert not opened.result().finished
    assert not (tmp_path / "final.json").exists()
    before = json.loads((tmp_path / "benchmarks.json").read_text())
    assert list(before["scores"]) == ["test/greedy"]

    with open_session(tmp_path, **options) as opened:
      assert opened.step == 1 and not opened.goes_on
      result = opened.result()
    assert result.finished
    (final,) = json.loads((tmp_path / "final.json").read_text())
    assert final == result.final[0]
    # The same examples under the same keys are the same answers.
    assert final["test/greedy"] == final["greedy"]
    assert final["test/sampled"] == final["sampled"]
    assert {"even", "odd", "mean@2", "pass@2"} <= final["sampled"].keys()
    assert "train/sampled" not in final
    for name in ("right", "even", "letter"):
      wanted = (final["test/greedy"][name] + final["train/greedy"][name]) / 2
      assert final["benchmarks/greedy"][name] == pytest.approx(wanted)

  def test_without_them_a_run_has_its_held_out_split_alone(self, tmp_path):
    fields = {"interval": 0, "samples": 0}
    options = dict(evaluation=fields, loop={"num_steps": 1})
    with open_session(tmp_path, **options) as opened:
      opened.end_step([row()], session.Clock(), tokens=1.0)
      (final,) = opened.result().final
    assert set(final) == {"seed", "step", "greedy"}  # nor samples, if 0
    assert not (tmp_path / "benchmarks.json").exists()

  def test_a_start_without_samples_is_scored_greedily(self):
    made = helpers.experiment(evaluation={"samples": 0})
    assert set(experiment_lib.evaluate_start(made, 1)) == {"greedy"}
