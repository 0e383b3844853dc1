"""Scores on held-out examples: batches, samples, averages and benchmarks."""

import json
import logging
import math

import numpy as np
import pytest

from saw_jax.rollout.sampling import SamplingConfig
from saw_jax.run import evaluation, rollouts, sections
from saw_jax.run import experiment as experiment_lib
from saw_jax.tasks import base
from saw_jax.tasks.base import Outcome
from tests import helpers

COMPONENTS = (base.Component("a", 0.0, 1.0), base.Component("b", 0.0, 1.0))


class Votes(helpers.Letters):
  """Scores what tells examples and answers apart; some not at all.

  Every other prompt is long; a completion votes for its first letter.
  """

  def examples(self, split):
    texts = ["ab", "ab" * 10]
    return [
      base.Example(e.key, ({"role": "user", "content": texts[e.key % 2]},), "a")
      for e in super().examples(split)
    ]

  def score(self, example, completion):
    if example.key % 3 == 2:
      return base.Score((None, 0.5), Outcome.WRONG)
    known = sum(map(ord, completion)) % 97 / 97
    share = (example.key - 1000) / 13
    outcome = Outcome.RIGHT if example.key % 2 else Outcome.WRONG
    return base.Score((known, share), outcome)

  def answer_key(self, completion, example):
    return None if example.key % 2 else f"{completion[:1]} of {example.key}"


def make(task=None, num_seeds=1, **fields):
  """An evaluator that scores in this process."""
  rollout = {"prompt_multiple": 8, "max_prompt_tokens": 64}
  sections = {"evaluation": fields, "rollout": rollout}
  made = helpers.experiment(task=task or Votes(), **sections)
  workers = experiment_lib.kind_of(made).open_workers()
  policy = experiment_lib.Policy(made, num_seeds)
  return evaluation.Evaluator(policy, workers)


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
    # 7 in batches of 4, the short ones first: the last is filled up.
    whole, parts = (
      make(num_examples=7, num_seeds=2, batch_size=size).run("sampled")
      for size in (7, 4)
    )
    assert [shape[:2] for shape in sizes] == [(2, 7), (2, 4), (2, 4)]
    assert sizes[1][-1] < sizes[2][-1] == sizes[0][-1]
    assert whole["rewards"].shape == (2, 7, 2, 2)
    assert whole["right"].shape == whole["lengths"].shape == (2, 7, 2)
    helpers.assert_equal_curves(whole, parts)
    # Each example was scored as itself.
    share = np.arange(7) / 13
    share[[1, 4]] = 0.5  # keys 1001 and 1004 leave 2 over 3
    expected = np.tile(share[None, :, None], (2, 1, 2))
    np.testing.assert_allclose(whole["rewards"][..., 1], expected, rtol=1e-6)

  def test_a_batch_is_filled_up_for_all_devices(self, monkeypatch):
    sizes, stop = [], pytest.raises(InterruptedError)

    def sample(generate, params, rows, *_, **options):
      sizes.append(len(rows[0]))
      raise InterruptedError

    monkeypatch.setattr(rollouts, "sample", sample)
    for lift, size in (("seeded", 6), ("pmapped", 8)):
      made = helpers.experiment(
        parallel={"lift": lift}, evaluation={"batch_size": 6, "num_examples": 9}
      )
      policy = experiment_lib.Policy(made, 1)
      with stop:
        evaluation.Evaluator(policy, None).run("greedy")
      assert sizes.pop() == size

  @pytest.mark.parametrize("votes", [True, False])
  def test_scores_are_the_averages_of_a_run(self, votes, monkeypatch):
    if not votes:
      monkeypatch.delattr(Votes, "answer_key")
    evaluator = make(samples=3, num_examples=7, batch_size=7)
    result = evaluator.run("sampled")
    (found,) = evaluator.scores("sampled")
    (greedy,) = evaluator.scores("greedy")
    (summary,) = evaluation.average("greedy", result, Votes.components)
    assert {name: found[name] for name in summary} == summary
    others = {"mean@3", "pass@3"} | ({"maj@3"} if votes else set())
    assert set(found) - set(summary) == others
    if votes:
      assert result["answers"].shape == result["right"].shape
      assert (result["answers"][:, 1::2] == -1).all()
      assert (result["answers"][:, ::2] >= 0).all()
    assert found["mean@3"] == found["right"]
    assert not any("@" in name for name in greedy)
    # Greedy gives one answer, and sampled ones differ.
    assert evaluator.run("greedy")["rewards"].shape == (1, 7, 1, 2)
    answers, scored = result["rewards"][..., 0], result["scored"][..., 0]
    differ = answers[..., 0] != answers[..., 1]
    assert differ[scored.all(-1)].mean() > 0.5

  def test_more_says_how_many_answers_are_too_long(self):
    limited = Votes()
    limited.token_limits = {"small": 3}
    found = make(limited).more({"lengths": np.array([[3, 4], [9, 3]])})
    assert found == {"over_small": 0.5}

  def test_another_split_is_whole(self):
    evaluator = make(samples=4, num_examples=3, temperature=0.5, top_p=0.9)
    other = evaluator.on("train", 8)
    assert [e.key for e in other.examples] == list(range(13))
    assert [e.key for e in evaluator.examples] == [1000, 1001, 1002]
    sampled = SamplingConfig(temperature=0.5, top_p=0.9)
    assert evaluator.modes["sampled"] == (sampled, 4)
    greedy = (SamplingConfig(greedy=True), 1)
    assert other.modes == {"greedy": greedy, "sampled": (sampled, 8)}
    assert list(evaluator.on("train", 0).modes) == ["greedy"]


def by_hand():
  """Two equal seeds, two examples, two samples, two components."""
  # The 9 stands where nothing was scored.
  rewards = np.array([[[1, 0], [0, 0.5]], [[9, 1], [9, 9]]], np.float32)
  result = {
    "rewards": rewards,
    "scored": rewards != 9,
    "right": np.array([[True, False], [False, False]]),
    "ended": np.array([[True, True], [True, False]]),
    "lengths": np.array([[4, 6], [5, 9]]),
  }
  return {name: np.stack([value, value]) for name, value in result.items()}


def as_lists(figures):
  return {name: value.tolist() for name, value in figures.items()}


class TestAverages:
  def test_of_examples_by_hand(self):
    result = by_hand()
    expected = {
      "a": 0.5,  # (1 + 0) / 2
      "b": 0.5,  # (0 + 0.5 + 1) / 3
      "total": 1.0,
      "right": 0.25,
      "ended": 0.75,
      "unscored": 0.375,  # 3 of 8
      "length": 6.0,
    }
    found = evaluation.average("greedy", result, COMPONENTS)
    assert found == [expected, expected]
    # A component that nobody scored has no mean.
    result["scored"][1, ..., 0] = False
    first, found = evaluation.average("sampled", result, COMPONENTS)
    assert first["a"] == found["b"] == 0.5
    assert np.isnan([found["a"], found["total"]]).all()

  def test_a_reward_that_is_called_right_is_shown_as_one(self):
    components = (base.Component("right", 0.0, 1.0), COMPONENTS[1])
    found = evaluation.average("greedy", by_hand(), components)
    assert found[0]["right"] == 0.5 and found[0]["total"] == 1.0
    assert evaluation.per_example(by_hand(), 0, components)["right"] == [0.5]

  def test_of_one_example_by_hand(self):
    result = by_hand()
    result["lengths"][1] = 7
    found = evaluation.per_example(result, 0, COMPONENTS)
    assert as_lists(found) == {
      "a": [0.5],  # the second example is left out
      "b": [0.25, 1.0],
      "right": [0.5, 0.0],
      "ended": [1.0, 0.5],
      "length": [5.0, 7.0],
    }
    found = evaluation.per_example(result, 1, COMPONENTS)
    assert found["length"].tolist() == [7.0, 7.0]
    # A figure has one meaning: a reward of its name says that it is one.
    ours = (base.Component("length", 0.0, 1.0), COMPONENTS[1])
    found = evaluation.per_example(result, 1, ours)
    assert found["length"].tolist() == [7.0, 7.0]
    assert found["reward/length"].tolist() == [0.5]

  def test_of_the_samples_of_an_example_by_hand(self):
    result = by_hand()
    result["right"][1] = True
    expected = {"mean@2": [1.0, 1.0], "pass@2": [1.0, 1.0]}
    assert as_lists(evaluation.at_k(result, 1)) == expected
    result["answers"] = np.array([[[0, -1], [0, 0]]])
    expected = {"mean@2": [0.5, 0], "pass@2": [1, 0], "maj@2": [1, 0]}
    assert as_lists(evaluation.at_k(result, 0)) == expected

  def test_votes_by_hand(self):
    cases = (
      ([1, 1, 0, 0], [0, 0, 1, 2], 1),  # the right one has two votes
      ([1, 0, 0, 0], [0, 1, 1, 2], 0),  # a wrong one has
      ([1, 0, 1, 0], [0, 1, 0, 1], 1),  # a tie, the right one came first
      ([0, 1, 0, 1], [1, 0, 1, 0], 0),  # a tie, the wrong one did
      ([1, 1, 1, 1], [-1, -1, -1, -1], 0),  # nobody answered
      ([0, 0, 0, 1], [-1, -1, -1, 0], 1),  # one answered
    )
    right, answers, votes = (np.array(x) for x in zip(*cases, strict=True))
    result = {"right": right[None] == 1, "answers": answers[None]}
    found = evaluation.at_k(result, 0)["maj@4"]
    np.testing.assert_array_equal(found, votes)


class Fake:
  """Scores two benchmarks by the book, and counts how often it is asked."""

  VALUES = {
    "easy": {"greedy": {"right": 0.5, "own": 9.0}, "sampled": {"right": 0.25}},
    "hard": {"greedy": {"right": 0.1}},
  }
  examples = range(5)

  def __init__(self, benchmarks=None):
    samples = benchmarks or {"easy": 2, "hard": 0}
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
  return evaluation.score_benchmarks(fake, path=path / "b.json", **fields)


class TestBenchmarks:
  def test_averages_are_over_what_all_of_a_mode_have(self, tmp_path):
    found = score(Fake(), tmp_path)
    names = ["easy/greedy", "easy/sampled", "hard/greedy"]
    assert [*found] == [*names, "benchmarks/greedy", "benchmarks/sampled"]
    assert found["easy/greedy"][1] == {"right": 1.5, "own": 10.0}
    # Seed by seed, without the figure that one of them lacks.
    expected = [{"right": pytest.approx(x)} for x in (0.3, 1.3)]
    assert found["benchmarks/greedy"] == expected
    assert found["benchmarks/sampled"] == found["easy/sampled"]
    # A benchmark that was taken out is out.
    found = score(Fake({"easy": 2}), tmp_path)
    assert not any(name.startswith("hard") for name in found)
    assert found["benchmarks/greedy"] == found["easy/greedy"]

  def test_what_was_scored_is_kept_when_it_is_stopped(self, tmp_path):
    fake = Fake()
    assert score(fake, tmp_path, stop=lambda: len(fake.asked) == 2) is None
    assert fake.asked == ["greedy", "sampled"]
    kept = json.loads((tmp_path / "b.json").read_text())["scores"]
    assert list(kept) == ["easy/greedy", "easy/sampled"]
    # A stop after the last part loses nothing.
    resumed = score(fake, tmp_path, stop=lambda: True)
    assert fake.asked == ["greedy", "sampled", "greedy"]  # the hard one alone
    (tmp_path / "other").mkdir()
    assert resumed == score(Fake(), tmp_path / "other")

  def test_what_could_not_be_scored_is_kept_as_null(self, tmp_path):
    fake = Fake({"easy": 2})
    fake.VALUES = {"easy": {"greedy": {"right": math.nan}, "sampled": {}}}
    for _ in range(2):  # as it was found, and as it is read
      found = score(fake, tmp_path)["benchmarks/greedy"]
      assert math.isnan(found[1]["right"])
    kept = json.loads((tmp_path / "b.json").read_text())["scores"]
    assert kept["easy/greedy"] == [{"right": None}, {"right": None}]

  def test_scores_of_other_policies_are_not_taken(self, tmp_path):
    fake = Fake()
    for changes in ({}, {"step": 4}, {"seeds": [4, 8]}):
      score(fake, tmp_path, **changes)
    assert len(fake.asked) == 9

  @pytest.mark.parametrize("text", ["{", "[]", '{"step": 3, "seeds": [4, 7]}'])
  def test_a_damaged_file_is_said_and_scored_anew(self, tmp_path, text, caplog):
    fake, path = Fake(), tmp_path / "b.json"
    path.write_text(text)
    with caplog.at_level(logging.WARNING):
      assert score(fake, tmp_path) is not None
    assert f"{path} is damaged" in caplog.text
    assert len(fake.asked) == 3

  def test_samples_are_counted(self):
    for samples in (-1, 0.5, True, "8"):
      with pytest.raises(ValueError, match="aime24"):
        sections.EvaluationConfig(benchmarks={"aime24": samples})
