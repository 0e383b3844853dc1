"""Tests of saw_jax/tasks/tool_calling/bfcl.py.

`make bfcl` runs all of them, in an environment with the package.
"""

import json
import pathlib
import re
import sys

import pytest

from saw_jax.tasks import base
from saw_jax.tasks.tool_calling import bfcl, rewards
from saw_jax.tasks.tool_calling import task as tool_calling
from saw_jax.tasks.workers import grading

TOOLRL = pathlib.Path(__file__).parents[2] / "data/toolrl/rlla_4k_test.parquet"
PROPERTIES = {
  "base": {"type": "integer", "description": "How wide."},
  "unit": {"type": "string", "description": "In what."},
}
KNOWN = {"type": "dict", "properties": PROPERTIES, "required": ["base"]}
FUNCTION = {"name": "geo.area", "description": "It.", "parameters": KNOWN}
ANSWERS = [{"geo.area": {"base": [10], "unit": ["cm", ""]}}]


def example(category="simple_python", answers=ANSWERS):
  meta = {"category": category, "id": "x", "functions": [FUNCTION]}
  return base.Example(bfcl.FIRST_KEY, (), json.dumps(answers), meta)


def toolrl():
  config = tool_calling.ToolCallingConfig(test_path=str(TOOLRL))
  return tool_calling.ToolCallingTask(config).examples("test")


def write(*calls):
  found = tuple({"name": n, "parameters": values} for n, values in calls)
  return rewards.write(rewards.Answer("...", found, None))


class TestReadCalls:
  def test_the_first_block_of_the_last_turn(self):
    text = write(("f", {"x": 1}), ("g.h", {}))
    for around in (text, f"<|im_start|>assistant\n{text}<|im_end|>"):
      assert bfcl.read_calls(around) == [{"f": {"x": 1}}, {"g.h": {}}]
    assert bfcl.read_calls("<response> No. </response>") == []
    assert bfcl.read_calls(text.removesuffix("</tool_call>")) is None

  @pytest.mark.parametrize(
    "inside",
    [
      "",
      "f(x=1)",
      '{"name": ["f"], "parameters": {}}',
      '{"name": "f", "parameters": [1]}',
      "[" * 100_000,
      '{"name": "f", "parameters": {"x": ' + "9" * 10_000 + "}}",
    ],
  )
  def test_what_cannot_be_read_is_none(self, inside):
    assert bfcl.read_calls(f"<tool_call>\n{inside}\n</tool_call>") is None


class TestAverages:
  def test_by_hand(self):
    right = [[1, 1], [0, 1], [0, 0], [1, 0], [1], [0], [1, 1, 1, 0]]
    right += [[1, 1], [1, 0, 0, 0], [0], [1], [1], [0]]  # live
    categories = zip(bfcl.CATEGORIES, right, strict=True)
    found = bfcl.averages((name, v) for name, some in categories for v in some)
    assert found["live_multiple"] == 0.25
    # (simple (1 + 1/2 + 0)/3, 1/2, 1, 0, 3/4) / 5
    assert found["non_live"] == pytest.approx((0.5 + 0.5 + 1 + 0 + 0.75) / 5)
    # All ten entries alike.
    assert found["live"] == pytest.approx(5 / 10)
    assert found["single_turn"] == pytest.approx((0.55 + 0.5) / 2)

  def test_are_of_what_is_bfcls_and_of_whole_groups(self):
    task = tool_calling.ToolCallingTask()
    mixed = [*task.examples("test")[:1], example(), example("multiple")]
    found = {"simple_python": 0.25, "multiple": 0.5}
    assert task.averages(mixed, [1.0, 0.25, 0.5]) == found
    assert task.averages(mixed[:1], [1.0]) == {}


class TestPrompts:
  def test_a_row_is_what_its_frame_makes_of_its_tools(self):
    row = toolrl()[1]
    system, user = (message["content"] for message in row.messages)
    functions = []
    for text in system.split("Name: ")[1:3]:
      name, about, known = text.split("\n")[:3]
      about = about.removeprefix("Description: ")
      known = json.loads(known.removeprefix("Parameters: "))
      function = {"name": name, "description": about, "parameters": known}
      functions.append(function)
    assert functions[0]["name"] == "getSentenceLength"
    said = "Can you calculate the average sentence length?"
    turn = [{"role": "user", "content": said}]
    messages = bfcl._write(functions, turn, bfcl.find_frame(row))
    assert [m["content"] for m in messages] == [system, user]
    (plain,) = tool_calling.ToolCallingTask().examples("test")[:1]
    with pytest.raises(ValueError, match="ToolRL"):
      bfcl.find_frame(plain)


class TestWithoutThePackage:
  def test_the_error_says_how_to_get_it(self, monkeypatch):
    monkeypatch.setitem(sys.modules, "bfcl_eval", None)
    with pytest.raises(ImportError, match="--no-deps 'bfcl-eval"):
      tool_calling.ToolCallingTask().examples("bfcl_multiple")
    with pytest.raises(ValueError, match="'simple_python'"):
      bfcl.read_category("simple_pyton")

  def test_gold_and_format(self):
    gold = bfcl.gold_completion(example())
    assert bfcl.read_calls(gold) == [{"geo.area": {"base": 10}}]
    assert rewards.format_reward(gold, gold) == 1

  @pytest.mark.parametrize(
    ("category", "calls", "nothing"),
    [("irrelevance", False, True), ("live_relevance", True, False)],
  )
  def test_whether_there_is_a_call(self, category, calls, nothing):
    asked = example(category, None)
    assert bfcl.is_right(asked, write(("other", {}))) is calls
    assert bfcl.is_right(asked, "No.") is nothing
    assert bfcl.is_right(asked, "<tool_call>\nf(\n</tool_call>") is nothing


# --- with the package ------------------------------------------------------


@pytest.fixture(scope="module")
def package():
  return pytest.importorskip(
    "bfcl_eval", reason="bfcl-eval is not installed: make bfcl"
  )


@pytest.fixture(scope="module")
def by_category(package):
  return {name: bfcl.read_category(name) for name in bfcl.CATEGORIES}


class TestData:
  def test_sizes_are_the_leaderboards(self, by_category):
    sizes = [len(rows) for rows in by_category.values()]
    assert sizes[:7] == [400, 100, 50, 200, 200, 200, 240]
    assert sizes[7:] == [258, 1053, 16, 24, 884, 16]  # live
    keys = [e.key for rows in by_category.values() for e in rows]
    assert len(set(keys)) == len(keys)
    assert min(keys) == bfcl.FIRST_KEY and max(keys) < 2**31
    assert len(bfcl.read_split("bfcl")) == len(keys)

  def test_prompts_are_in_the_words_of_the_files(self, package):
    config = tool_calling.ToolCallingConfig(test_path=str(TOOLRL))
    task = tool_calling.ToolCallingTask(config)
    system, user = task.examples("bfcl_simple_python")[0].messages
    framed, _ = bfcl.find_frame(task.examples("test")[0])
    around = re.split(r"1\. Name: [\s\S]*\nParameters: .*", framed)
    assert system["content"].startswith(around[0])
    assert system["content"].endswith(around[1])
    named = "1. Name: calculate_triangle_area\nDescription: "
    assert named in system["content"]
    assert user["content"].endswith(
      "with a base of 10 units and height of 5 units. </user>"
    )

  def test_java_is_asked_for_in_source_text(self, by_category):
    text = by_category["simple_java"][0].messages[0]["content"]
    assert text.startswith("GeometryPresentation.createPresentation(")
    assert "controller: string" in text


# Entries to which no answer is right by the checker, a matter of their data: an
# argument that the function does not have, a required one without a possible
# value, numbers in a list whose items the converter leaves as text.
UNANSWERABLE = {
  "simple_java": ["simple_java_36", "simple_java_65"],
  "live_simple": ["live_simple_106-63-0", "live_simple_112-68-0"],
  "live_multiple": ["live_multiple_862-181-3", "live_multiple_964-207-0"],
}


class TestChecker:
  @pytest.mark.parametrize("category", bfcl.CATEGORIES)
  def test_gold_answers_are_right(self, by_category, category):
    wrong = [
      e.meta["id"]
      for e in by_category[category]
      if not bfcl.is_right(e, bfcl.gold_completion(e))
    ]
    assert wrong == UNANSWERABLE.get(category, [])

  @pytest.mark.parametrize(
    "category", [c for c in bfcl.CATEGORIES if not c.endswith("relevance")]
  )
  def test_damaged_ones_are_wrong(self, by_category, category):
    for e in by_category[category]:
      calls = bfcl.read_calls(bfcl.gold_completion(e))
      (name, parameters), *rest = [c for call in calls for c in call.items()]
      damaged = [
        [(name + "x", parameters), *rest],
        [(name, {**parameters, "no such": 1}), *rest],
        [(name, parameters), *rest, (name, parameters)],
        rest,
      ]
      for argument in parameters:
        left = {k: v for k, v in parameters.items() if k != argument}
        # A value that is nowhere possible, and an argument that is missing.
        damaged.append([(name, {**left, argument: "no such"}), *rest])
        damaged.append([(name, left), *rest])
      for these in damaged:
        assert not bfcl.is_right(e, write(*these)), (e.meta["id"], these)
      assert not bfcl.is_right(e, "")

  def test_what_makes_the_checker_raise_is_wrong(self, package):
    # An argument that may be left out: then items of any type get through to
    # where the checker takes them for dictionaries.
    answers = [{"f": {"x": [[{"a": [1]}], ""]}}]
    kind = {"type": "array", "items": {"type": "dict"}}
    known = {"properties": {"x": kind}, "required": ["x"]}
    function = {"name": "f", "description": "", "parameters": known}
    asked = example(answers=answers)
    asked.meta["functions"][:] = [function]
    assert bfcl.is_right(asked, write(("f", {"x": [{"a": 1}]})))
    calls = [{"f": {"x": [3]}}]
    checker, languages = bfcl._checker()
    given = calls, answers, languages.PYTHON, "simple_python", "m"
    with pytest.raises(AttributeError):
      checker([function], *given)
    assert not bfcl.is_right(asked, write(("f", {"x": [3]})))

  def test_the_table_of_models_is_not_loaded(self, by_category):
    one = by_category["simple_python"][0]
    assert bfcl.is_right(one, bfcl.gold_completion(one))
    assert "bfcl_eval.constants.model_config" not in sys.modules
    assert "bfcl_eval.model_handler" not in sys.modules


@pytest.mark.slow
class TestThroughTheGraders:
  def test_scores_and_hostile_texts(self, by_category):
    task = tool_calling.ToolCallingTask()
    examples = [rows[0] for rows in by_category.values()]
    evil = [
      "<tool_call>\n" + "[" * 10**5 + "\n</tool_call>",
      write(("__import__('os').system('touch hostile')", {})),
      "\ud800" * 100,
      write(*[("f", {"x": "a" * 1000})] * 300),
    ]
    with grading.Grader(task, num_workers=1, limit_s=5.0) as grader:
      gold = grader.grade(examples, [bfcl.gold_completion(e) for e in examples])
      bad = grader.grade(examples[:1] * len(evil), evil)
    assert [o.value for o in gold.outcomes] == ["right"] * len(examples)
    assert gold.rewards.tolist() == [[3.0, 1.0]] * len(examples)
    assert all(o.value in ("wrong", "unparsable") for o in bad.outcomes)
    assert (bad.rewards[:, 0] == -3).all()
    right = task.averages(examples, [1.0] * len(examples))
    assert right["single_turn"] == 1.0 and len(right) == 16
