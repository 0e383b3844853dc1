"""Rewards that are wrong are found, and those of real rows are not."""

import pathlib

import pytest

from saw_jax.tasks import base, inspection
from saw_jax.tasks.math.task import MathConfig, MathTask
from saw_jax.tasks.tool_calling import answers, bfcl
from saw_jax.tasks.tool_calling.task import ToolCallingConfig, ToolCallingTask

DATA = pathlib.Path(__file__).parents[1] / "data"


def tools():
  pytest.importorskip("pyarrow")
  path = str(DATA / "toolrl/rlla_4k_test.parquet")
  return ToolCallingTask(ToolCallingConfig(test_path=path))


@pytest.mark.parametrize(
  "make",
  [
    tools,
    lambda: MathTask(MathConfig(test_path=DATA / "gsm8k/test.jsonl")),
    lambda: MathTask(MathConfig(test_path=DATA / "svamp/SVAMP.json")),
  ],
)
def test_real_rows_are_healthy(make):
  task = make()
  examples = task.examples("test")
  assert inspection.gold_failures(task, examples) == []
  assert inspection.damage_failures(task, examples) == []


def test_the_real_rows_have_the_published_shape():
  examples = tools().examples("test")
  assert [m["role"] for m in examples[0].messages] == ["system", "user"]
  assert "GetPowerBINews" in examples[0].messages[0]["content"]
  said = '{"name": "GetNews", "parameters": {"page": "1"}}\n</tool_call>'
  assert examples[0].reference.endswith(said)
  read = [answers.read(one.reference) for one in examples]
  counts = [len(answer.calls) for answer in read]
  assert [counts.count(n) for n in range(6)] == [9, 36, 23, 8, 3, 1]
  assert sum(answer.response is not None for answer in read) == 9


@pytest.mark.parametrize("category", ["irrelevance", "live_relevance"])
def test_bfcl_is_healthy_where_it_needs_no_checker(category):
  meta = {"category": category, "functions": [{"name": "f"}]}
  example = base.Example(bfcl.FIRST_KEY, (), "null", meta)
  task = ToolCallingTask()
  assert inspection.gold_failures(task, [example]) == []
  assert inspection.damage_failures(task, [example]) == []
  kinds = {what for what, *_ in task.damages(example)}
  assert ("unclosed_call" in kinds) == (category == "live_relevance")
  assert {"no_think", "text_after"} < kinds


class Lenient(ToolCallingTask):
  """A task with a reward that any text gets."""

  def score(self, example, completion):
    return super().score(example, example.reference)


def test_a_reward_that_sees_no_mistake_is_found():
  task = Lenient()
  failures = inspection.damage_failures(task, task.examples("test")[:7])
  found = {failure.what for failure in failures}
  assert found >= {"no_think", "wrong_value", "broken_json", "unclosed_call"}
  assert "swapped_calls" not in found


def test_several_calls_must_lose_something_too():
  task = Lenient(ToolCallingConfig(call_weights=(0.0, 1.0), no_call_share=0.0))
  failures = inspection.damage_failures(task, task.examples("test")[:3])
  wrong = [f for f in failures if f.what == "wrong_value"]
  assert [f.expected for f in wrong] == [(None, 1.0)] * 3


def test_a_reward_that_right_answers_miss_is_found(monkeypatch):
  task = ToolCallingTask()
  score = task.score
  monkeypatch.setattr(task, "score", lambda one, text: score(one, text + "."))
  failures = inspection.gold_failures(task, task.examples("test")[:7])
  assert len(failures) == 7
  assert failures[0].values[1] == 0.0 and failures[0].expected[1] == 1.0


def test_a_task_without_right_answers_has_none_that_fail():
  assert inspection.gold_failures(object(), []) == []
