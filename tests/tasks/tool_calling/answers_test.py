"""Writing, reading and damaging answers."""

import collections
import json

import pytest

from saw_jax.tasks.draws import Draws
from saw_jax.tasks.tool_calling import answers, catalogue, rewards
from saw_jax.tasks.tool_calling.catalogue import Answer

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

  def test_draws_one_that_applies(self):
    text = answers.write(ANSWERS["response"])
    found = {answers.damage_format(Draws("f", i), text) for i in range(100)}
    assert text not in found
    # All but the two that are about calls, which leave this text alone.
    applying = {d(text) for d in answers.FORMAT_DAMAGES.values()} - {text}
    assert found == applying


class TestCallDamages:
  @pytest.mark.parametrize(
    ("what", "num_parameters", "expected"),
    [
      # S_max is 4: names, parameter names, and two values.
      ("wrong_value", 2, 3 - 6 / 4),
      ("wrong_type", 2, 3 - 6 / 4),
      ("missing_parameter", 2, 3 - 6 * 1.5 / 4),
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

  @pytest.mark.parametrize("offered", [(), ("weather",)])
  def test_where_nothing_else_is_offered_a_name_is_made_up(self, offered):
    body = answers.wrong_tool(Draws("w"), [WEATHER], offered)
    assert json.loads(body)["name"] == "weather_2"
    body = answers.extra_call(Draws("w"), [WEATHER], offered)
    assert json.loads(body.split("\n")[1])["name"] == "weather_2"


@each_damage
def test_some_damages_need_a_parameter(damage):
  needs = damage in (
    answers.wrong_value,
    answers.wrong_type,
    answers.missing_parameter,
  )
  golds = [], [BARE], [BARE, TIMER]
  found = [answers.applies(damage, gold) for gold in golds]
  assert found == [False, not needs, True]


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
