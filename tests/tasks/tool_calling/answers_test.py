"""Writing, reading and damaging answers."""

import collections
import json

import pytest

from saw_jax.tasks.draws import Draws
from saw_jax.tasks.tool_calling import answers, catalogue, rewards
from saw_jax.tasks.tool_calling.answers import Answer

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


def correctness(body, gold):
  """The correctness of an answer with this text between its tags."""
  reference = answers.write(Answer("t", tuple(gold), None))
  text = answers.write(Answer("t", tuple(gold), None), body)
  return rewards.correctness_reward(text, reference)


each_answer = pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
each_damage = pytest.mark.parametrize(
  "damage", answers.CALL_DAMAGES, ids=lambda damage: damage.__name__
)


class TestWriteAndRead:
  def test_by_hand(self):
    assert answers.write(ANSWERS["both"]) == (
      "<think> one call will do </think>\n"
      "<tool_call>\n"
      '{"name": "weather", "parameters": {"city": "Oslo", "days": 3}}\n'
      "</tool_call>\n"
      "<response> here it is </response>"
    )

  @each_answer
  def test_what_is_written_has_the_format_and_can_be_read(self, answer):
    text = answers.write(answer)
    assert rewards.format_reward(text, text) == 1.0
    assert answers.read(text) == answer

  def test_a_body_takes_the_place_of_the_calls(self):
    text = answers.write(ANSWERS["calls"], "anything")
    assert "<tool_call>\nanything\n</tool_call>" in text

  @pytest.mark.parametrize(
    ("text", "word"),
    [(text, "format") for text in ("hello", "", "<think> t", "<tool_call>")]
    + [(answers.write(ANSWERS["calls"], "{"), "unreadable")],
  )
  def test_other_text_is_an_error(self, text, word):
    with pytest.raises(ValueError, match=word):
      answers.read(text)


class TestDamageFormat:
  @each_answer
  @pytest.mark.parametrize("name", answers.FORMAT_DAMAGES)
  def test_each_costs_the_format_and_nothing_else(self, name, answer):
    text = answers.write(answer)
    damaged = answers.FORMAT_DAMAGES[name](text)
    if damaged != text:
      assert rewards.format_reward(damaged, text) == 0.0
    assert rewards.correctness_reward(
      damaged, text
    ) == rewards.correctness_reward(text, text)

  def test_each_applies_to_some_answer(self):
    for name, damage in answers.FORMAT_DAMAGES.items():
      texts = [answers.write(answer) for answer in ANSWERS.values()]
      assert any(damage(text) != text for text in texts), name

  def test_draws_one_that_applies(self):
    text = answers.write(ANSWERS["response"])
    found = {answers.damage_format(Draws("f", i), text) for i in range(100)}
    assert text not in found
    # All but the two that are about calls, which leave this text alone.
    applying = {d(text) for d in answers.FORMAT_DAMAGES.values()} - {text}
    assert found == applying


class TestCallDamages:
  @each_damage
  @pytest.mark.parametrize("gold", [[WEATHER], [WEATHER, TIMER]])
  def test_each_costs_correctness(self, damage, gold):
    before = json.dumps(gold)
    for i in range(30):
      body = damage(Draws("c", i), gold, OFFERED)
      assert correctness(body, gold) < 3.0
    assert json.dumps(gold) == before

  @pytest.mark.parametrize(
    ("what", "num_parameters", "expected"),
    [
      # S_max is 4: names, parameter names, and two values.
      ("wrong_value", 2, 3 - 6 / 4),
      ("wrong_type", 2, 3 - 6 / 4),
      ("missing_parameter", 2, 3 - 6 * 1.5 / 4),
      ("missing_parameter", 1, -1.0),
      ("extra_parameter", 2, 3 - 6 * (1 / 3) / 4),
      ("extra_call", 2, 3 - 6 * 0.5 / 4),
      ("wrong_tool", 2, -3.0),
      ("broken_json", 2, -3.0),
    ],
  )
  def test_the_cost_by_hand(self, what, num_parameters, expected):
    parameters = {str(i): i for i in range(num_parameters)}
    gold = [{"name": "weather", "parameters": parameters}]
    assert answers.expected_correctness(what, gold) == pytest.approx(expected)
    body = getattr(answers, what)(Draws("hand"), gold, OFFERED)
    assert correctness(body, gold) == pytest.approx(expected)

  def test_a_wrong_value_is_another_of_the_tools_own(self):
    values = catalogue.TOOLS["timer"].parameters[0].values
    for i in range(30):
      body = answers.wrong_value(Draws("v", i), [TIMER], OFFERED)
      found = json.loads(body)["parameters"]["minutes"]
      assert found in values and found != 7

  @pytest.mark.parametrize("value", [True, 3, 1e300, "x", None, [1], {}])
  def test_a_wrong_value_of_an_unknown_tool_is_unequal(self, value):
    gold = {"name": "unknown", "parameters": {"p": value}}
    body = answers.wrong_value(Draws("v"), [gold], ())
    assert json.loads(body)["parameters"]["p"] != value

  def test_a_wrong_type_looks_alike_and_differs(self):
    body = answers.wrong_type(Draws("t"), [TIMER], OFFERED)
    assert json.loads(body)["parameters"]["minutes"] == "7"
    text = {"name": "f", "parameters": {"city": "Oslo"}}
    body = answers.wrong_type(Draws("t"), [text], OFFERED)
    assert json.loads(body)["parameters"]["city"] == ["Oslo"]

  def test_a_wrong_tool_is_one_of_those_offered(self):
    for i in range(30):
      body = answers.wrong_tool(Draws("w", i), [WEATHER], OFFERED)
      call = json.loads(body)
      assert call["name"] in {"timer", "alarm"}
      tool = catalogue.TOOLS[call["name"]]
      assert set(call["parameters"]) == {p.name for p in tool.parameters}

  @pytest.mark.parametrize("offered", [(), ("weather",)])
  def test_where_nothing_else_is_offered_a_name_is_made_up(self, offered):
    body = answers.wrong_tool(Draws("w"), [WEATHER], offered)
    assert json.loads(body)["name"] == "weather_2"
    body = answers.extra_call(Draws("w"), [WEATHER], offered)
    assert json.loads(body.split("\n")[1])["name"] == "weather_2"


class TestApplies:
  @each_damage
  def test_some_need_a_parameter(self, damage):
    needs = damage.__name__ in (
      "wrong_value",
      "wrong_type",
      "missing_parameter",
    )
    assert not answers.applies(damage, [])
    assert answers.applies(damage, [BARE]) is not needs
    assert answers.applies(damage, [BARE, TIMER])
    for gold in ([BARE], [BARE, TIMER]):
      if answers.applies(damage, gold):
        assert correctness(damage(Draws("a"), gold, OFFERED), gold) < 3.0


class TestDamageCalls:
  def test_kinds_come_in_their_shares(self, monkeypatch):
    named = {
      (lambda *_, n=damage.__name__: n): share
      for damage, share in answers.CALL_DAMAGES.items()
    }
    monkeypatch.setattr(answers, "CALL_DAMAGES", named)
    found = collections.Counter(
      answers.damage_calls(Draws("d", i), [WEATHER], OFFERED)
      for i in range(2000)
    )
    for damage, share in named.items():
      assert abs(found[damage()] / 2000 - share) < 0.04

  def test_shares_are_of_all(self):
    assert sum(answers.CALL_DAMAGES.values()) == pytest.approx(1.0)


class TestDemonstrate:
  def many(self, format_rate, call_rate, answer="calls", count=600):
    reference = answers.write(ANSWERS[answer])
    rates = {"format_rate": format_rate, "call_rate": call_rate}
    texts = [
      answers.demonstrate(Draws("demo", i), reference, OFFERED, **rates)
      for i in range(count)
    ]
    return [
      (
        rewards.format_reward(text, reference) == 1.0,
        rewards.correctness_reward(text, reference) == 3.0,
      )
      for text in texts
    ]

  @pytest.mark.parametrize(("format_rate", "call_rate"), [(1, 0), (0, 1)])
  def test_each_can_be_right_alone(self, format_rate, call_rate):
    found = set(self.many(format_rate, call_rate, count=50))
    assert found == {(bool(format_rate), bool(call_rate))}

  def test_both_come_at_their_rates_and_independently(self):
    found = collections.Counter(self.many(0.5, 0.25))
    # Shares 3/8, 1/8, 3/8, 1/8 of 600, give or take 4 deviations.
    for (_, right), count in found.items():
      assert abs(count - (75 if right else 225)) < 48

  def test_an_answer_without_a_call_has_no_call_to_damage(self):
    assert {form for form, _ in self.many(1, 0, "response", 30)} == {True}


class TestCanonical:
  def test_is_the_same_for_any_order_of_parameters_and_form_of_a_number(self):
    a = answers.canonical(
      '<tool_call>\n{"name": "heat", "parameters": {"room": "Bath", '
      '"degrees": 17.0}}\n</tool_call>'
    )
    b = answers.canonical(
      'so <tool_call>{"parameters": {"degrees": 17, "room": "Bath"}, '
      '"name": "heat"}</tool_call>'
    )
    assert a == b is not None
    assert json.loads(a) == {
      "calls": [
        {"name": "heat", "parameters": {"degrees": 17, "room": "Bath"}}
      ],
      "response": False,
    }

  @pytest.mark.parametrize(
    "text",
    [
      "",
      "<tool_call> {} </tool_call>",
      '<tool_call>\n{"name": "heat", "parameters": {}}',
      '<tool_call>{"name": 3, "parameters": {}}</tool_call>',
      '<tool_call>{"name": "a", "parameters": 3}</tool_call>',
      f"<tool_call>{'[' * 100_000}</tool_call>",
      "<response> open",
    ],
  )
  def test_none_where_nothing_can_be_read(self, text):
    assert answers.canonical(text) is None

  def test_a_true_value_is_no_number(self):
    texts = [
      f'<tool_call>{{"name": "a", "parameters": {{"x": {value}}}}}</tool_call>'
      for value in ("true", "1", '"1"', "1.5", "[1.0]", "[1]")
    ]
    keys = [answers.canonical(text) for text in texts]
    assert len(set(keys)) == 5
    assert keys[4] == keys[5]


class TestParseCalls:
  @pytest.mark.parametrize(
    "text",
    [
      '{"name": "a", "parameters": {"x": 1.0}}',
      '[{"name": "a", "parameters": {"x": 1}}]',
      '{"calls": [{"name": "a", "parameters": {"x": 1}}], "response": false}',
    ],
  )
  def test_reads_what_people_may_type(self, text):
    assert answers.parse_calls(text) == (
      '{"calls": [{"name": "a", "parameters": {"x": 1}}], "response": false}'
    )

  def test_no_call_is_a_response(self):
    expected = '{"calls": [], "response": true}'
    assert answers.parse_calls("[]") == expected
    assert answers.parse_calls(expected) == expected

  @pytest.mark.parametrize(
    "text",
    [
      "weather in Oslo",
      "3",
      '{"calls": []}',
      '{"calls": [], "response": false}',
      '{"calls": [], "response": 1}',
      '[{"name": "a"}]',
      "[[]]",
    ],
  )
  def test_refuses_what_is_no_call(self, text):
    assert answers.parse_calls(text) is None
    with pytest.raises(ValueError, match="no calls"):
      answers.write_label(text, "x")
