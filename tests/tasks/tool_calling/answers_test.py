"""Writing, reading and damaging answers."""

import collections
import json

import pytest

from saw_jax.tasks.draws import Draws
from saw_jax.tasks.tool_calling import answers, catalogue, rewards
from saw_jax.tasks.tool_calling.rewards import Answer

WEATHER = {"name": "weather", "parameters": {"city": "Oslo", "days": 3}}
TIMER = {"name": "timer", "parameters": {"minutes": 7}}
BARE = {"name": "stop", "parameters": {}}
OFFERED = ("weather", "timer", "alarm")
ANSWERS = {
  "calls": Answer("two calls will do", (WEATHER, TIMER), None),
  "response": Answer("no call will do", (), "I see"),
  "both": Answer("one call will do", (WEATHER,), "here it is"),
  "neither": Answer("hm", (), None),
}
each_answer = pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)


class TestWriteAndRead:
  def test_by_hand(self):
    assert rewards.write(ANSWERS["both"]) == (
      "<think> one call will do </think>\n<tool_call>\n"
      '{"name": "weather", "parameters": {"city": "Oslo", "days": 3}}\n'
      "</tool_call>\n<response> here it is </response>"
    )

  @each_answer
  def test_what_is_written_has_the_format_and_can_be_read(self, answer):
    text = rewards.write(answer)
    assert rewards.format_reward(text, text) == 1.0
    assert rewards.read(text) == answer

  @pytest.mark.parametrize(
    ("text", "word"),
    [(text, "format") for text in ("hello", "", "<think> t", "<tool_call>")]
    + [(rewards.write(ANSWERS["calls"], "{"), "unreadable")],
  )
  def test_other_text_is_an_error(self, text, word):
    with pytest.raises(ValueError, match=word):
      rewards.read(text)


class TestDamageFormat:
  @each_answer
  @pytest.mark.parametrize("name", answers.FORMAT_DAMAGES)
  def test_each_costs_the_format_and_nothing_else(self, name, answer):
    text = rewards.write(answer)
    damaged = answers.FORMAT_DAMAGES[name](text)
    assert rewards.format_reward(damaged, text) == (damaged == text)
    if answer.calls:
      assert rewards.call_score(damaged, answer.calls) == 1.0

  def test_draws_one_that_applies(self):
    text = rewards.write(ANSWERS["response"])
    found = {answers.damage_format(Draws("f", i), text) for i in range(100)}
    # All but the two that are about calls, which leave this text alone.
    applying = {d(text) for d in answers.FORMAT_DAMAGES.values()} - {text}
    assert found == applying


class TestCallDamages:
  def test_a_wrong_value_is_another_of_the_tools_own_if_it_is_known(self):
    values = catalogue.TOOLS["timer"]["parameters"][0]["values"]
    for i in range(30):
      body = answers.wrong_value(Draws("v", i), [TIMER], OFFERED)
      found = json.loads(body)["parameters"]["minutes"]
      assert found in values and found != 7

    for value in (True, 3, 1e300, "x", None, [1], {}):
      gold = {"name": "unknown", "parameters": {"p": value}}
      body = answers.wrong_value(Draws("v"), [gold], ())
      assert json.loads(body)["parameters"]["p"] != value

  def test_a_wrong_type_looks_alike_and_differs(self):
    for value, wrong in ((7, "7"), ("Oslo", ["Oslo"])):
      gold = {"name": "f", "parameters": {"p": value}}
      body = answers.wrong_type(Draws("t"), [gold], OFFERED)
      assert json.loads(body)["parameters"]["p"] == wrong

  @pytest.mark.parametrize("offered", [(), ("weather",)])
  def test_where_nothing_else_is_offered_a_name_is_made_up(self, offered):
    body = answers.wrong_tool(Draws("w"), [WEATHER], offered)
    assert json.loads(body)["name"] == "weather_2"
    body = answers.extra_call(Draws("w"), [WEATHER], offered)
    assert json.loads(body.split("\n")[1])["name"] == "weather_2"

  def test_some_need_a_parameter(self):
    found = [
      {d.__name__ for d in answers.CALL_DAMAGES if answers.applies(d, gold)}
      for gold in ([], [BARE], [BARE, TIMER])
    ]
    every = {damage.__name__ for damage in answers.CALL_DAMAGES}
    needing = {"wrong_value", "wrong_type", "missing_parameter"}
    assert found == [set(), every - needing, every]

  def test_kinds_come_in_their_shares(self, monkeypatch):
    known = answers.CALL_DAMAGES.items()
    named = {(lambda *_, n=d.__name__: n): entry for d, entry in known}
    monkeypatch.setattr(answers, "CALL_DAMAGES", named)
    draw, draws = answers.damage_calls, (Draws("d", i) for i in range(2000))
    found = collections.Counter(draw(d, [WEATHER], OFFERED) for d in draws)
    for damage, (share, _) in named.items():
      assert abs(found[damage()] / 2000 - share) < 0.04


class TestCanonical:
  def test_is_the_same_for_any_order_of_parameters_and_form_of_a_number(self):
    call = {"name": "heat", "parameters": {"degrees": 17, "room": "Bath"}}
    other = {"parameters": {"room": "Bath", "degrees": 17.0}, "name": "heat"}
    expected = json.dumps({"calls": [call], "response": False})
    for said in (call, other):
      text = f"so <tool_call>\n{json.dumps(said)}</tool_call>"
      assert answers.canonical(text) == expected

  @pytest.mark.parametrize(
    "text",
    ["", "<response> open", '<tool_call>\n{"name": "heat", "parameters": {}}']
    + [
      f"<tool_call>{body}</tool_call>"
      for body in (" {} ", '{"name": 3, "parameters": {}}', "[" * 100_000)
    ]
    + ['<tool_call>{"name": "a", "parameters": 3}</tool_call>'],
  )
  def test_none_where_nothing_can_be_read(self, text):
    assert answers.canonical(text) is None

  def test_a_true_value_is_no_number(self):
    call = '<tool_call>{"name": "a", "parameters": {"x": %s}}</tool_call>'
    values = ("true", "1", '"1"', "1.5", "[1.0]", "[1]")
    keys = [answers.canonical(call % value) for value in values]
    assert len(set(keys)) == 5 and keys[4] == keys[5]


class TestParseCalls:
  CALL = '{"calls": [{"name": "a", "parameters": {"x": 1}}], "response": false}'
  NONE = '{"calls": [], "response": true}'

  @pytest.mark.parametrize(
    ("text", "expected"),
    [
      ('{"name": "a", "parameters": {"x": 1.0}}', CALL),
      ('[{"name": "a", "parameters": {"x": 1}}]', CALL),
      (CALL, CALL),
      ("[]", NONE),
      (NONE, NONE),
      ("weather in Oslo", None),
      ("3", None),
      ('{"calls": []}', None),
      ('{"calls": [], "response": false}', None),
      ('{"calls": [], "response": 1}', None),
      ('[{"name": "a"}]', None),
      ("[[]]", None),
    ],
  )
  def test_by_hand(self, text, expected):
    assert answers.parse_calls(text) == expected
