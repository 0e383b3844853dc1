import pathlib

import pytest

from saw_jax.tasks import inspection
from saw_jax.tasks.math import task as math_task
from saw_jax.tasks.tool_calling import (
  answers as tool_answers,
)
from saw_jax.tasks.tool_calling import (
  task as tool_calling,
)

ROWS = pathlib.Path(__file__).parents[1] / "data/toolrl/rlla_4k_test.parquet"


@pytest.fixture(scope="module")
def real():
  pytest.importorskip("pyarrow")
  return tool_calling.read_examples(ROWS)


def test_the_generated_task_is_healthy():
  task = tool_calling.ToolCallingTask()
  for split in ("train", "test"):
    examples = task.examples(split)[:256]
    assert inspection.gold_failures(task, examples) == []
    assert inspection.damage_failures(task, examples) == []


def test_the_real_rows_are_healthy(real):
  task = tool_calling.ToolCallingTask()
  assert inspection.gold_failures(task, real) == []
  assert inspection.damage_failures(task, real) == []


def test_the_real_rows_have_the_published_shape(real):
  answers = [tool_answers.read(example.reference) for example in real]
  assert len(real) == 80
  counts = [len(answer.calls) for answer in answers]
  assert [counts.count(n) for n in range(6)] == [9, 36, 23, 8, 3, 1]
  assert sum(answer.response is not None for answer in answers) == 9


class _Lenient(tool_calling.ToolCallingTask):
  """A task with a reward that any text gets."""

  def score(self, example, completion):
    return super().score(example, example.reference)


class _Harsh(tool_calling.ToolCallingTask):
  """A task whose right answers get less than they should."""

  def score(self, example, completion):
    return super().score(example, completion + ".")


def test_a_reward_that_sees_no_mistake_is_found():
  task = _Lenient()
  failures = inspection.damage_failures(task, task.examples("test")[:7])
  found = {failure.what for failure in failures}
  assert found >= {"no_think", "wrong_value", "broken_json", "unclosed_call"}
  assert "swapped_calls" not in found


def test_several_calls_must_lose_something_too():
  config = tool_calling.ToolCallingConfig(
    call_weights=(0.0, 1.0), no_call_share=0.0
  )
  task = _Lenient(config)
  failures = inspection.damage_failures(task, task.examples("test")[:3])
  wrong = [f for f in failures if f.what == "wrong_value"]
  assert [f.expected for f in wrong] == [(None, 1.0)] * 3


def test_a_reward_that_right_answers_miss_is_found():
  task = _Harsh()
  failures = inspection.gold_failures(task, task.examples("test")[:7])
  assert len(failures) == 7
  assert failures[0].values[1] == 0.0 and failures[0].expected[1] == 1.0


@pytest.mark.parametrize(
  "what, num_parameters, expected",
  [
    ("extra_call", 2, 2.25),
    ("extra_parameter", 2, 2.5),
    ("wrong_value", 2, 1.5),
    ("missing_parameter", 2, 0.75),
    ("missing_parameter", 1, -1.0),
    ("wrong_tool", 2, -3.0),
    ("broken_json", 2, -3.0),
  ],
)
def test_closed_forms(what, num_parameters, expected):
  parameters = {str(i): i for i in range(num_parameters)}
  calls = [{"name": "a", "parameters": parameters}]
  assert tool_answers.expected_correctness(what, calls) == expected


def test_mean_rewards():
  task = tool_calling.ToolCallingTask()
  [example] = [
    e for e in task.examples("test")[:50] if "<tool_call>" in e.reference
  ][:1]
  means = inspection.mean_rewards(
    task, [(example, example.reference), (example, "")]
  )
  assert means == {"correctness": 0.0, "format": 0.5}


class TestMath:
  def test_it_is_healthy(self):
    task = math_task.MathTask(math_task.MathConfig(levels=(1, 2, 3, 4)))
    for split in ("train", "test"):
      examples = task.examples(split)[:256]
      assert inspection.gold_failures(task, examples) == []
      assert inspection.damage_failures(task, examples) == []
      assert inspection.mean_rewards(
        task, [(e, task.gold_completion(e)) for e in examples]
      ) == {"correct": 1.0}

  def test_so_are_real_rows(self):
    data = pathlib.Path(__file__).parents[1] / "data"
    for name in ("gsm8k/test.jsonl", "svamp/SVAMP.json"):
      task = math_task.MathTask(math_task.MathConfig(test_path=data / name))
      examples = task.examples("test")
      assert inspection.gold_failures(task, examples) == []
      assert inspection.damage_failures(task, examples) == []

  def test_a_reward_that_takes_any_box_is_found(self):
    class AnyBox(math_task.MathTask):
      def score(self, example, completion):
        if "\\boxed" in completion:
          completion = self.gold_completion(example)
        return super().score(example, completion)

    task = AnyBox()
    failures = inspection.damage_failures(task, task.examples("test")[:3])
    found = {failure.what for failure in failures}
    assert found == {
      "wrong_answer",
      "unclosed_box",
      "empty_box",
      "wrong_answer_last",
    }
