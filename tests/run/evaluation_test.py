"""Scores on held-out examples: batches, samples, averages and benchmarks."""

import json
import logging

import numpy as np
import pytest

from saw_jax.rollout.sampling import SamplingConfig
from saw_jax.run import evaluation, rollouts, sections
from saw_jax.run import experiment as experiment_lib
from saw_jax.run import policy as policy_lib
from saw_jax.tasks import base
from saw_jax.tasks.base import Outcome
from tests import helpers

COMPONENTS = (base.Component("a", 0.0, 1.0), base.Component("b", 0.0, 1.0))


class Lengths(helpers.Letters):
  """Scores what tells examples and answers apart; some not at all."""

  def score(self, example, completion):
    if example.key % 3 == 2:
      return base.Score((None, 0.5), Outcome.WRONG)
    known = sum(map(ord, completion)) % 97 / 97
    share = (example.key - 1000) / 13
    outcome = Outcome.RIGHT if example.key % 2 else Outcome.WRONG
    return base.Score((known, share), outcome)


class Votes(Lengths):
  """Also says what a completion votes for: its first letter."""

  def answer_key(self, completion):
    return completion[:1] or None


class Texts(Lengths):
  """Every other prompt is long."""

  def examples(self, split):
    return [
      base.Example(
        e.key, ({"role": "user", "content": "ab" * (1 + 9 * (e.key % 2))},), "a"
      )
      for e in super().examples(split)
    ]


def make(task=None, num_seeds=1, rollout=None, **fields):
  """An evaluator that scores in this process."""
  made = helpers.experiment(
    task=task or Lengths(), evaluation=fields, rollout=rollout or {}
  )
  workers = experiment_lib.kind_of(made).open_workers()
  return evaluation.Evaluator(policy_lib.Policy(made, num_seeds), workers)


def run(mode, **fields):
  return make(**fields).run(mode)


class TestEvaluator:
  def test_has_the_first_examples_of_its_split(self):
    def keys(**fields):
      return [example.key for example in make(**fields).examples]

    assert keys(num_examples=3) == [1000, 1001, 1002]
    assert keys(num_examples=3, split="train") == [0, 1, 2]
    assert len(keys(num_examples=99)) == 13  # there are no more

  @pytest.mark.slow
  def test_batches_have_one_shape_and_change_nothing(self, monkeypatch):
    sizes, prompts = [], rollouts.Encoder.prompts

    def watched(self, examples):
      found = prompts(self, examples)
      sizes.append(found.tokens.shape)
      return found

    monkeypatch.setattr(rollouts.Encoder, "prompts", watched)
    rollout = {"prompt_multiple": 8, "max_prompt_tokens": 64}
    fields = dict(task=Texts(), rollout=rollout, num_examples=7, num_seeds=2)
    # 7 in batches of 4, the short ones first: the last is filled up.
    whole = run("sampled", batch_size=7, **fields)
    parts = run("sampled", batch_size=4, **fields)
    assert [shape[:2] for shape in sizes] == [(2, 7), (2, 4), (2, 4)]
    assert sizes[1][-1] < sizes[2][-1] == sizes[0][-1]
    assert whole["rewards"].shape == (2, 7, 2, 2)
    assert whole["right"].shape == whole["lengths"].shape == (2, 7, 2)
    helpers.assert_equal_curves(whole, parts)
    # Each example was scored as itself.
    share = np.arange(7) / 13
    share[[1, 4]] = 0.5  # keys 1001 and 1004 leave 2 over 3
    np.testing.assert_allclose(
      whole["rewards"][..., 1],
      np.broadcast_to(share[None, :, None], (2, 7, 2)),
      rtol=1e-6,
    )

  def test_greedy_gives_one_answer_and_sampled_several_that_differ(self):
    greedy = run("greedy", num_examples=7, batch_size=7)
    sampled = run("sampled", num_examples=7, batch_size=7)
    assert greedy["rewards"].shape == (1, 7, 1, 2)
    answers = sampled["rewards"][..., 0]
    scored = sampled["scored"][..., 0].all(-1)
    assert (answers[..., 0] != answers[..., 1])[scored].mean() > 0.5

  @pytest.mark.parametrize("task", [Lengths(), Votes()])
  def test_scores_are_the_averages_of_a_run(self, task):
    evaluator = make(task, samples=3)
    result = evaluator.run("sampled")
    (found,) = evaluator.scores("sampled")
    (greedy,) = evaluator.scores("greedy")
    (summary,) = evaluation.average("greedy", result, task.components)
    assert {name: found[name] for name in summary} == summary
    more = {"mean@3", "pass@3"}
    if isinstance(task, Votes):
      more.add("maj@3")
      assert result["answers"].shape == result["right"].shape
    assert set(found) - set(summary) == more
    assert found["mean@3"] == found["right"]
    assert not any("@" in name for name in greedy)

  def test_more_says_how_many_answers_are_too_long(self):
    limited = Lengths()
    limited.token_limits = {"small": 3}
    found = make(limited).more({"lengths": np.array([[3, 4], [9, 3]])})
    assert found == {"over_small": 0.5}

  def test_another_split_is_whole_and_shares_what_is_compiled(self):
    fields = dict(samples=4, num_examples=3, temperature=0.5, top_p=0.9)
    evaluator = make(**fields)
    other = evaluator.on("train", 8)
    assert [e.key for e in other.examples] == list(range(13))
    assert [e.key for e in evaluator.examples] == [1000, 1001, 1002]
    sampled = SamplingConfig(temperature=0.5, top_p=0.9)
    assert evaluator.modes["sampled"] == (sampled, 4)
    assert other.modes == {
      "greedy": (SamplingConfig(greedy=True), 1),
      "sampled": (sampled, 8),
    }
    greedy = [
      one._make_generate(*one.modes["greedy"]) for one in (evaluator, other)
    ]
    assert greedy[0] is greedy[1]
    assert list(evaluator.on("train", 0).modes) == ["greedy"]


def by_hand():
  """One seed, two examples, two samples, two components."""
  return {
    # The 9 stands where nothing was scored.
    "rewards": np.array(
      [[[[1.0, 0.0], [0.0, 0.5]], [[9.0, 1.0], [9.0, 9.0]]]], np.float32
    ),
    "scored": np.array(
      [[[[True, True], [True, True]], [[False, True], [False, False]]]]
    ),
    "right": np.array([[[True, False], [False, False]]]),
    "ended": np.array([[[True, True], [True, False]]]),
    "lengths": np.array([[[4, 6], [5, 9]]]),
  }


def two_seeds():
  return {
    name: np.concatenate([value, value]) for name, value in by_hand().items()
  }


class TestAverages:
  def test_of_examples_by_hand(self):
    (found,) = evaluation.average("greedy", by_hand(), COMPONENTS)
    assert found == {
      "a": 0.5,  # (1 + 0) / 2
      "b": 0.5,  # (0 + 0.5 + 1) / 3
      "total": 1.0,
      "right": 0.25,
      "ended": 0.75,
      "unscored": 0.375,  # 3 of 8
      "length": 6.0,
    }

  def test_a_component_that_nobody_scored_has_no_mean(self):
    result = by_hand()
    result["scored"][..., 0] = False
    (found,) = evaluation.average("greedy", result, COMPONENTS)
    assert np.isnan([found["a"], found["total"]]).all() and found["b"] == 0.5

  def test_of_one_example_by_hand(self):
    result = two_seeds()
    result["lengths"][1] = 7
    result["rewards"][1, ..., 0] = 1.0
    found = evaluation.average("sampled", result, COMPONENTS)
    assert [values["a"] for values in found] == [0.5, 1.0]
    found = evaluation.per_example(result, 0, COMPONENTS)
    assert {name: value.tolist() for name, value in found.items()} == {
      "a": [0.5],  # the second example is left out
      "b": [0.25, 1.0],
      "right": [0.5, 0.0],
      "ended": [1.0, 0.5],
      "lengths": [5.0, 7.0],
    }
    found = evaluation.per_example(result, 1, COMPONENTS)
    assert found["lengths"].tolist() == [7.0, 7.0]

  def test_of_the_samples_of_an_example_by_hand(self):
    result = two_seeds()
    result["right"][1] = True
    result["answers"] = np.array([[[0, -1], [0, 0]]])
    found = evaluation.at_k(result, 0)
    assert {name: value.tolist() for name, value in found.items()} == {
      "mean@2": [0.5, 0.0],
      "pass@2": [1.0, 0.0],
      "maj@2": [1.0, 0.0],
    }
    del result["answers"]
    found = evaluation.at_k(result, 1)
    assert {name: value.tolist() for name, value in found.items()} == {
      "mean@2": [1.0, 1.0],
      "pass@2": [1.0, 1.0],
    }

  @pytest.mark.parametrize(
    ("right", "answers", "vote"),
    [
      ([1, 1, 0, 0], [0, 0, 1, 2], 1),  # the right one has two votes
      ([1, 0, 0, 0], [0, 1, 1, 2], 0),  # a wrong one has
      ([1, 0, 1, 0], [0, 1, 0, 1], 1),  # a tie, the right one came first
      ([0, 1, 0, 1], [1, 0, 1, 0], 0),  # a tie, the wrong one did
      ([1, 1, 1, 1], [-1, -1, -1, -1], 0),  # nobody answered
      ([0, 0, 0, 1], [-1, -1, -1, 0], 1),  # one answered
    ],
  )
  def test_votes_by_hand(self, right, answers, vote):
    result = {
      "right": np.array([[right]], bool),
      "answers": np.array([[answers]]),
    }
    assert evaluation.at_k(result, 0)["maj@4"].tolist() == [vote]


class Fake:
  """Scores two benchmarks by the book, and counts how often it is asked."""

  VALUES = {
    "easy": {"greedy": {"right": 0.5, "own": 9.0}, "sampled": {"right": 0.25}},
    "hard": {"greedy": {"right": 0.1}},
  }
  examples = range(5)

  def __init__(self, benchmarks=None):
    samples = {"easy": 2, "hard": 0} if benchmarks is None else benchmarks
    self.config = sections.EvaluationConfig(benchmarks=samples)
    self.asked = []

  def on(self, name, samples):
    other = Fake()
    other.asked, other.modes = self.asked, self.VALUES[name]
    assert bool(samples) == ("sampled" in other.modes)
    return other

  def scores(self, mode):
    self.asked.append(mode)
    return [
      {name: value + seed for name, value in self.modes[mode].items()}
      for seed in range(2)
    ]


def score(fake, path, **changes):
  fields = {"seeds": [4, 7], "step": 3, "stop": lambda: False, **changes}
  return evaluation.score_benchmarks(fake, path=path, **fields)


class TestBenchmarks:
  def test_averages_are_over_what_all_of_a_mode_have(self, tmp_path):
    found = score(Fake(), tmp_path / "b.json")
    names = "easy/greedy easy/sampled hard/greedy"
    names += " benchmarks/greedy benchmarks/sampled"
    assert list(found) == names.split()
    assert found["easy/greedy"][1] == {"right": 1.5, "own": 10.0}
    # Seed by seed, without the figure that one of them lacks.
    assert found["benchmarks/greedy"] == [
      {"right": pytest.approx(0.3)},
      {"right": pytest.approx(1.3)},
    ]
    assert found["benchmarks/sampled"] == found["easy/sampled"]

  def test_what_was_scored_is_kept_when_it_is_stopped(self, tmp_path):
    fake, path = Fake(), tmp_path / "b.json"
    assert score(fake, path, stop=lambda: len(fake.asked) == 2) is None
    assert fake.asked == ["greedy", "sampled"]
    kept = json.loads(path.read_text())["scores"]
    assert list(kept) == ["easy/greedy", "easy/sampled"]
    # A stop after the last part loses nothing.
    resumed = score(fake, path, stop=lambda: True)
    assert fake.asked == ["greedy", "sampled", "greedy"]  # the hard one alone
    assert resumed == score(Fake(), tmp_path / "other.json")

  @pytest.mark.parametrize("changes", [{"step": 4}, {"seeds": [4, 8]}])
  def test_scores_of_other_policies_are_not_taken(self, tmp_path, changes):
    fake = Fake()
    score(fake, tmp_path / "b.json")
    score(fake, tmp_path / "b.json", **changes)
    assert len(fake.asked) == 6

  @pytest.mark.parametrize("text", ["{", "[]", '{"step": 3, "seeds": [4, 7]}'])
  def test_a_damaged_file_is_said_and_scored_anew(self, tmp_path, text, caplog):
    fake, path = Fake(), tmp_path / "b.json"
    path.write_text(text)
    with caplog.at_level(logging.WARNING):
      assert score(fake, path) is not None
    assert f"{path} is damaged" in caplog.text
    assert len(fake.asked) == 3

  def test_a_benchmark_that_was_taken_out_is_out(self, tmp_path):
    score(Fake(), tmp_path / "b.json")
    found = score(Fake({"easy": 2}), tmp_path / "b.json")
    assert not any(name.startswith("hard") for name in found)
    assert found["benchmarks/greedy"] == found["easy/greedy"]

  @pytest.mark.parametrize("samples", [-1, 0.5, True, "8"])
  def test_samples_are_counted(self, samples):
    with pytest.raises(ValueError, match="aime24"):
      sections.EvaluationConfig(benchmarks={"aime24": samples})
