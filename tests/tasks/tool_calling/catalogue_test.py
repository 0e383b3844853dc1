"""Draws, tools and scenarios of the generated task."""

import collections
import dataclasses
import json
import re

import pytest

from saw_jax.tasks.draws import Draws
from saw_jax.tasks.tool_calling import catalogue
from saw_jax.tasks.tool_calling.task import ToolCallingConfig


def scenarios(count, split="train", **options):
  config = ToolCallingConfig(no_call_share=0.2)
  config = dataclasses.replace(config, **options)
  return [
    catalogue.draw_scenario(Draws("x", i), split, config) for i in range(count)
  ]


each_tool = pytest.mark.parametrize(
  "tool", catalogue.CATALOGUE, ids=lambda tool: tool.name
)


class TestTool:
  @each_tool
  def test_every_wording_says_every_value_once(self, tool):
    names = sorted(parameter.name for parameter in tool.parameters)
    for request in tool.requests:
      assert sorted(re.findall(r"\{(\w+)\}", request)) == names
    assert len(set(tool.requests)) == len(tool.requests)

  @each_tool
  def test_no_text_occurs_twice_in_a_call(self, tool):
    for i in range(100):
      values = tool.draw_values(Draws("flight", i)).values()
      texts = [value for value in values if isinstance(value, str)]
      assert len(set(texts)) == len(texts)


class TestSplitOf:
  def test_does_not_depend_on_the_order_of_the_values(self):
    for day in catalogue.TOOLS["alarm"].parameters[0].values:
      assert catalogue.split_of(
        "alarm", {"day": day, "hour": 7}
      ) == catalogue.split_of("alarm", {"hour": 7, "day": day})


class TestDrawScenario:
  def test_calls_follow_their_weights_and_differ(self):
    words = ("no call", "one call", "two calls", "three calls")
    found = scenarios(2000, no_call_share=0.0)
    counts = collections.Counter(len(s[2].calls) for s in found)
    assert set(counts) == {1, 2, 3}
    assert counts[1] > counts[2] > counts[3]
    for _, _, answer, _ in found:
      assert answer.thought.startswith(words[len(answer.calls)])
      texts = {json.dumps(call) for call in answer.calls}
      assert len(texts) == len(answer.calls)
    only = scenarios(50, no_call_share=0.0, call_weights=(0.0, 1.0))
    assert {len(s[2].calls) for s in only} == {2}

  @pytest.mark.parametrize("num_distractors", [(1, 2), (0, 0)])
  def test_offers_stay_within_their_number(self, num_distractors):
    found = scenarios(200, num_distractors=num_distractors)
    for tools, _, answer, _ in found:
      offered = [tool.name for tool in tools]
      used = {call["name"] for call in answer.calls}
      assert used <= set(offered) and len(set(offered)) == len(offered)
      assert len(offered) <= max(3, len(used))
      if used and not num_distractors[1]:
        assert used == set(offered)


TOOLS = [catalogue.TOOLS[name] for name in ("weather", "heat", "call")]


def say(*lines):
  block = "\n".join(lines)
  return catalogue.run_calls(
    f"<think> x </think>\n<tool_call>\n{block}\n</tool_call>", TOOLS
  )


def call(name, /, **parameters):
  return json.dumps({"name": name, "parameters": parameters})


class TestRunCalls:
  def test_a_call_that_fits_is_done_in_the_order_of_the_signature(self):
    assert say(call("weather", days=3, city="Oslo")) == "done weather Oslo 3"
    assert say(call("heat", room="Bath", degrees=17)) == "done heat Bath 17"
    made = call("call", name="Ann", minutes=2, video=True)
    assert say(made) == "done call Ann 2 true"

  @pytest.mark.parametrize(
    ("line", "expected"),
    [
      (call("wether", city="Oslo", days=3), "no tool wether"),
      (call("weather", days=3), "weather needs city"),
      (call("weather", city="Oslo", days="3"), "days is integer"),
      (call("weather", city="Oslo", days=True), "days is integer"),
      (call("call", name="Ann", minutes=2, video=1), "video is boolean"),
      (call("heat", room=["Bath"], degrees=17), "room is string"),
      (call("weather", city="Oslo", days=3, x=1), "weather has only city days"),
      ('{"name": "weather"', "no call"),
      ('{"name": ["weather"], "parameters": {}}', "no call"),
      ('{"name": "weather", "parameters": [1]}', "no call"),
      ("[" * 100_000, "no call"),
      ('{"name": "weather", "parameters": {"city": "O", "days": 1e999}}',
       "days is integer"),
      (call("x" * 500), "no tool " + "x" * 16),
    ],
  )  # fmt: skip
  def test_says_what_is_wrong(self, line, expected):
    assert say(line) == expected

  def test_each_call_has_a_line_up_to_a_number(self):
    lines = [call("weather", city="Oslo", days=n) for n in range(2, 9)]
    said = say(*lines).split("\n")
    assert said == [f"done weather Oslo {n}" for n in range(2, 6)]

  def test_nothing_is_said_where_nothing_is_called(self):
    assert catalogue.run_calls("<response> hello </response>", TOOLS) == ""
    assert catalogue.run_calls("<tool_call>\n{}", TOOLS) == "open call"
