"""Tools and requests of the generated task."""

import json
import re

import pytest

from saw_jax.tasks.draws import Draws
from saw_jax.tasks.tool_calling import catalogue


@pytest.mark.parametrize("name", catalogue.TOOLS)
def test_every_wording_says_every_value_and_no_text_comes_twice(name):
  tool = catalogue.TOOLS[name]
  names = sorted(parameter["name"] for parameter in tool["parameters"])
  for request in tool["requests"]:
    assert sorted(re.findall(r"\{(\w+)\}", request)) == names
  assert len(set(tool["requests"])) == len(tool["requests"])
  for i in range(100):
    values = catalogue.draw_values(Draws("flight", i), name).values()
    texts = [value for value in values if isinstance(value, str)]
    assert len(set(texts)) == len(texts)


def test_the_split_does_not_depend_on_the_order_of_the_values():
  for day in catalogue.TOOLS["alarm"]["parameters"][0]["values"]:
    one, other = {"day": day, "hour": 7}, {"hour": 7, "day": day}
    assert len({catalogue.split_of("alarm", v) for v in (one, other)}) == 1


OFFERED = ("weather", "heat", "call")


def call(name, /, **parameters):
  return json.dumps({"name": name, "parameters": parameters})


def say(*lines):
  text = "<think> x </think>\n<tool_call>\n{}\n</tool_call>"
  return catalogue.run_calls(text.format("\n".join(lines)), OFFERED)


class TestRunCalls:
  @pytest.mark.parametrize(
    ("line", "expected"),
    [
      # In the order of the signature.
      (call("weather", days=3, city="Oslo"), "done weather Oslo 3"),
      (call("call", name="Ann", minutes=2, video=True), "done call Ann 2 true"),
      (call("wether", city="Oslo", days=3), "no tool wether"),
      (call("timer", minutes=3), "no tool timer"),  # not on offer
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
  def test_says_what_is_done_or_wrong(self, line, expected):
    assert say(line) == expected

  def test_each_call_has_a_line_up_to_a_number(self):
    lines = [call("weather", city="Oslo", days=n) for n in range(2, 9)]
    said = say(*lines).split("\n")
    assert said == [f"done weather Oslo {n}" for n in range(2, 6)]

  def test_nothing_is_said_where_nothing_is_called(self):
    assert catalogue.run_calls("<response> hello </response>", OFFERED) == ""
    assert catalogue.run_calls("<tool_call>\n{}", OFFERED) == "open call"
