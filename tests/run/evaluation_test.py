"""Scores on held-out examples: batches, samples and averages."""

import jax
import numpy as np
import pytest

from saw_jax.models import decoder
from saw_jax.run import evaluation, rollouts
from saw_jax.run import experiment as experiment_lib
from saw_jax.tasks import base
from saw_jax.tasks.base import Outcome
from saw_jax.tasks.workers.grading import Grader
from saw_jax.training import parallel
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


@pytest.fixture(scope="module")
def run():
  """Runs an evaluation of two seeds with other parameters each."""
  params = jax.tree.map(
    lambda *leaves: np.stack(leaves),
    *(decoder.init_params(helpers.CONFIG, jax.random.key(n)) for n in (0, 1)),
  )
  lift = parallel.seeded()

  def evaluate(mode, **fields):
    experiment = helpers.experiment(task=Lengths(), evaluation=fields)
    evaluator = experiment_lib.make_evaluator(
      experiment,
      lift,
      rollouts.Encoder(experiment.tokenizer, experiment.rollout),
    )
    with Grader(experiment.task, num_workers=0, limit_s=1.0) as grader:
      return evaluator.run(mode, params, grader, num_seeds=2)

  return evaluate


class TestEvaluator:
  def test_has_the_first_examples_of_its_split(self):
    experiment = helpers.experiment(evaluation={"num_examples": 5})

    def made(**fields):
      return evaluation.Evaluator(
        experiment.task,
        experiment.tokenizer,
        rollouts.Encoder(experiment.tokenizer, experiment.rollout),
        evaluation.EvaluationConfig(**fields),
        lambda sampling, group_size: None,
      ).examples

    assert [e.key for e in made(num_examples=3)] == [1000, 1001, 1002]
    assert [e.key for e in made(num_examples=3, split="train")] == [0, 1, 2]
    assert len(made(num_examples=99)) == 13  # there are no more

  @pytest.mark.slow
  def test_a_last_batch_that_is_filled_up_changes_nothing(self, run):
    # 7 in batches of 3: the last has one example and two that fill it.
    whole = run("sampled", num_examples=7, batch_size=7)
    parts = run("sampled", num_examples=7, batch_size=3)
    assert whole["rewards"].shape == (2, 7, 2, 2)
    assert whole["right"].shape == whole["lengths"].shape == (2, 7, 2)
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
      np.testing.assert_array_equal(parts[name], value, err_msg=name)
    # Each example was scored as itself.
    share = np.arange(7) / 13
    share[[1, 4]] = 0.5  # keys 1001 and 1004 leave 2 over 3
    np.testing.assert_allclose(
      whole["rewards"][..., 1],
      np.broadcast_to(share[None, :, None], (2, 7, 2)),
      rtol=1e-6,
    )

  def test_two_runs_are_equal(self, run):
    first, second = (
      run("sampled", num_examples=3, batch_size=2) for _ in range(2)
    )
    for name, value in first.items():
      np.testing.assert_array_equal(second[name], value, err_msg=name)

  def test_greedy_gives_one_answer_and_sampled_several_that_differ(self, run):
    greedy = run("greedy", num_examples=7, batch_size=7)
    sampled = run("sampled", num_examples=7, batch_size=7)
    assert greedy["rewards"].shape == (2, 7, 1, 2)
    answers = sampled["rewards"][..., 0]
    scored = sampled["scored"][..., 0].all(-1)
    assert (answers[..., 0] != answers[..., 1])[scored].mean() > 0.5

  def test_seeds_are_evaluated_with_their_own_parameters(self, run):
    found = run("greedy", num_examples=7, batch_size=7)
    assert (found["rewards"][0] != found["rewards"][1]).any()

  def test_scores_are_the_summary_of_a_run(self):
    experiment = helpers.experiment(task=Lengths())
    evaluator = experiment_lib.make_evaluator(
      experiment,
      parallel.seeded(),
      rollouts.Encoder(experiment.tokenizer, experiment.rollout),
    )
    params = jax.tree.map(lambda x: x[None], experiment.params)
    with Grader(experiment.task, num_workers=0, limit_s=1.0) as grader:
      result = evaluator.run("greedy", params, grader, num_seeds=1)
      found = evaluator.scores("greedy", params, grader, num_seeds=1)
    assert found == evaluation.summarise(result, experiment.task.components)


class TestOver:
  def test_scores_say_how_many_answers_are_too_long(self, monkeypatch):
    limited = Lengths()
    limited.token_limits = {"small": 3}
    made = helpers.experiment(task=limited)
    evaluator = evaluation.Evaluator(
      made.task,
      made.tokenizer,
      rollouts.Encoder(made.tokenizer, made.rollout),
      made.evaluation,
      lambda sampling, group_size: None,
    )
    lengths = np.array([[[3, 4], [9, 1]], [[1, 2], [3, 5]]])
    shape = lengths.shape
    result = {
      "rewards": np.zeros((*shape, 2), np.float32),
      "scored": np.ones((*shape, 2), bool),
      "right": np.zeros(shape, bool),
      "ended": np.ones(shape, bool),
      "lengths": lengths,
    }
    monkeypatch.setattr(evaluator, "run", lambda *_, **__: result)
    scores = evaluator.scores("sampled", None, None, num_seeds=2)
    assert [values["over_small"] for values in scores] == [0.5, 0.25]
    assert "over_letter" not in scores[0]


class Texts(Lengths):
  """Every other prompt is long."""

  def examples(self, split):
    return [
      base.Example(
        e.key, ({"role": "user", "content": "ab" * (1 + 9 * (e.key % 2))},), "a"
      )
      for e in super().examples(split)
    ]


class TestByLength:
  @pytest.mark.slow
  def test_a_batch_has_prompts_of_one_size_and_results_keep_their_order(self):
    experiment = helpers.experiment(
      task=Texts(),
      evaluation={"num_examples": 8},
      rollout={"prompt_multiple": 8, "max_prompt_tokens": 64},
    )
    sizes, params = [], jax.tree.map(lambda x: x[None], experiment.params)

    def evaluator(batch_size):
      made = experiment_lib.make_evaluator(
        experiment._replace(
          evaluation=evaluation.EvaluationConfig(
            num_examples=8, batch_size=batch_size
          )
        ),
        parallel.seeded(),
        rollouts.Encoder(experiment.tokenizer, experiment.rollout),
      )
      fn, group_size = made._modes["greedy"]

      def watched(params, prompts, keys):
        sizes.append(prompts.tokens.shape[-1])
        return fn(params, prompts, keys)

      made._modes["greedy"] = watched, group_size
      return made

    with Grader(experiment.task, num_workers=0, limit_s=1.0) as grader:
      whole = evaluator(8).run("greedy", params, grader, num_seeds=1)
      parts = evaluator(4).run("greedy", params, grader, num_seeds=1)
    assert len(sizes) == 3
    assert sizes[1] < sizes[2] == sizes[0]
    for name, value in whole.items():
      np.testing.assert_array_equal(parts[name], value, err_msg=name)
    share = np.arange(8) / 13
    scored = whole["scored"][0, :, 0].all(-1)
    np.testing.assert_allclose(
      whole["rewards"][0, scored, 0, 1], share[scored], rtol=1e-6
    )


class Votes(Lengths):
  """Also says what a completion votes for: its first letter."""

  def answer_key(self, completion):
    return completion[:1] or None


class TestAtK:
  def test_by_hand(self):
    found = evaluation.at_k(by_hand(), 0)
    assert {name: value.tolist() for name, value in found.items()} == {
      "mean@2": [0.5, 0.0],
      "pass@2": [1.0, 0.0],
    }

  def test_votes_count_where_there_are_answers(self):
    result = by_hand()
    result["answers"] = np.array([[[0, -1], [0, 0]]])
    assert evaluation.at_k(result, 0)["maj@2"].tolist() == [1.0, 0.0]

  def test_votes_by_hand(self):
    right = [
      [1, 1, 0, 0],  # 7 7 8 9: the right one has two votes
      [1, 0, 0, 0],  # 7 8 8 9: a wrong one has
      [1, 0, 1, 0],  # 7 8 7 8: a tie, the right one came first
      [0, 1, 0, 1],  # 8 7 8 7: a tie, the wrong one did
      [1, 1, 1, 1],  # nobody answered
      [0, 0, 0, 1],  # one answered
    ]
    answers = [
      [7, 7, 8, 9],
      [7, 8, 8, 9],
      [7, 8, 7, 8],
      [8, 7, 8, 7],
      [-1, -1, -1, -1],
      [-1, -1, -1, 7],
    ]
    votes = evaluation._vote(np.array(right, bool), np.array(answers))
    assert votes.tolist() == [1, 0, 1, 0, 0, 1]

  def test_takes_the_seed_that_is_asked_for(self):
    result = {
      name: np.concatenate([value, value]) for name, value in by_hand().items()
    }
    result["right"][1] = True
    assert evaluation.at_k(result, 1)["mean@2"].tolist() == [1.0, 1.0]

  @pytest.mark.parametrize("task", [Lengths(), Votes()])
  def test_sampled_scores_have_them_and_greedy_ones_not(self, task):
    experiment = helpers.experiment(task=task, evaluation={"samples": 3})
    evaluator = experiment_lib.make_evaluator(
      experiment,
      parallel.seeded(),
      rollouts.Encoder(experiment.tokenizer, experiment.rollout),
    )
    params = jax.tree.map(lambda x: x[None], experiment.params)
    with Grader(experiment.task, num_workers=0, limit_s=1.0) as grader:
      result = evaluator.run("sampled", params, grader, num_seeds=1)
      (found,) = evaluator.scores("sampled", params, grader, num_seeds=1)
      (greedy,) = evaluator.scores("greedy", params, grader, num_seeds=1)
    (summary,) = evaluation.summarise(result, experiment.task.components)
    assert {name: found[name] for name in summary} == summary
    more = {"mean@3", "pass@3"}
    if isinstance(task, Votes):
      more.add("maj@3")
      assert result["answers"].shape == result["right"].shape
    assert set(found) - set(summary) == more
    assert found["mean@3"] == found["right"]
    assert not any("@" in name for name in greedy)

  def test_answers_are_numbered_group_by_group(self):
    keys = ["a", "b", "a", None, "b", "b"]
    ids = evaluation._answer_ids(keys, 3)
    assert ids.tolist() == [0, 1, 0, -1, 0, 0]


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


class TestSummarise:
  def test_by_hand(self):
    (found,) = evaluation.summarise(by_hand(), COMPONENTS)
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
    (found,) = evaluation.summarise(result, COMPONENTS)
    assert np.isnan(found["a"])
    assert np.isnan(found["total"])
    assert found["b"] == 0.5

  def test_each_seed_has_its_own(self):
    result = {
      name: np.concatenate([value, value]) for name, value in by_hand().items()
    }
    result["rewards"][1, ..., 0] = 1.0
    found = evaluation.summarise(result, COMPONENTS)
    assert [values["a"] for values in found] == [0.5, 1.0]


class TestPerExample:
  def test_by_hand(self):
    found = evaluation.per_example(by_hand(), 0, COMPONENTS)
    expected = {
      "a": [0.5],  # the second example is left out
      "b": [0.25, 1.0],
      "right": [0.5, 0.0],
      "ended": [1.0, 0.5],
      "lengths": [5.0, 7.0],
    }
    assert {name: value.tolist() for name, value in found.items()} == expected

  def test_takes_the_seed_that_is_asked_for(self):
    result = {
      name: np.concatenate([value, value]) for name, value in by_hand().items()
    }
    result["lengths"][1] = 7
    found = evaluation.per_example(result, 1, COMPONENTS)
    assert found["lengths"].tolist() == [7.0, 7.0]
