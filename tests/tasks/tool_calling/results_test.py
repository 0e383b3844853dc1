"""What tools say to calls, whatever a policy writes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saw_jax.tasks.tool_calling import catalogue, results

TOOLS = [catalogue.TOOLS[name] for name in ("weather", "heat", "call")]


def say(*lines):
  block = "\n".join(lines)
  return results.run_calls(
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
      (call("weather", city="Oslo", days=3.5), "days is integer"),
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
    assert results.run_calls("<response> hello </response>", TOOLS) == ""
    assert results.run_calls("<tool_call>\n{}", TOOLS) == "open call"

  @given(st.text(max_size=60))
  def test_any_text_has_an_answer(self, text):
    said = results.run_calls(f"<tool_call>{text}</tool_call>", TOOLS)
    assert said and all(len(line) < 100 for line in said.split("\n"))
