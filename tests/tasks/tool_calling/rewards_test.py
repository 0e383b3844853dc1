"""The two rewards: by hand, against the reference, and on hostile text."""

import json
import pathlib
import re
import time

import hypothesis
import pytest
from hypothesis import strategies as st

from saw_jax.tasks.tool_calling import rewards

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "toolrl_rewards.json"
VECTORS = json.loads(GOLDEN.read_text())

settings = hypothesis.settings(
  max_examples=300, deadline=None, derandomize=True, database=None
)


def _call(name, **parameters):
  return {"name": name, "parameters": parameters}


def _text(*calls, response=None):
  body = "\n".join(json.dumps(call) for call in calls)
  text = f"<think> t </think>\n<tool_call>\n{body}\n</tool_call>"
  return text if response is None else f"{text}\n<response> r </response>"


def _correctness(gold, answer):
  gold = [gold] if isinstance(gold, dict) else gold
  answer = [answer] if isinstance(answer, dict) else answer
  return rewards.correctness_reward(_text(*answer), _text(*gold))


# --- The reference, once more, by another road. ------------------------------


def _literal_format(text, reference):
  call, response = "<tool_call>" in reference, "<response>" in reference
  if call and response:
    pattern = (
      r"^<think>.*?</think>\n<tool_call>\n.*?\n</tool_call>\n"
      r"<response>.*?</response>$"
    )
  elif call:
    pattern = r"^<think>.*?</think>\n<tool_call>\n.*?\n</tool_call>$"
  elif response:
    pattern = r"^<think>.*?</think>\n<response>.*?</response>$"
  else:
    pattern = r"^<think>.*?</think>$"
  found = re.search(pattern, text, re.DOTALL) is not None
  if call:
    found &= text.count("<tool_call>") == 1 == text.count("</tool_call>")
  if response:
    found &= text.count("<response>") == 1 == text.count("</response>")
  return 1.0 if found else 0.0


class TestVectors:
  @pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v["id"])
  def test_agrees_with_the_reference(self, vector):
    args = vector["response"], vector["ground_truth"]
    expected = vector["expected"]
    correctness = rewards.correctness_reward(*args)
    form = rewards.format_reward(*args)
    assert correctness == pytest.approx(expected["correctness"], abs=1e-12)
    assert form == expected["format"]
    assert correctness + form == pytest.approx(expected["total"], abs=1e-12)


class TestExtractCompletion:
  @pytest.mark.parametrize(
    "text, expected",
    [
      ("", ""),
      (" a \n", "a"),
      ("a<|im_end|>\n", "a"),
      (
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>",
        "a",
      ),
      ("<|im_start|>assistant\na<|im_end|><|im_start|>assistant\nb", "b"),
      ("<|im_start|>assistant\na<|im_end|>b<|im_end|>", "a"),
      ("<|im_start|>user a", "<|im_start|>user a"),
    ],
  )
  def test_takes_the_last_turn(self, text, expected):
    assert rewards.extract_completion(text) == expected


CALL = "<think> a </think>\n<tool_call>\n{}\n</tool_call>"
RESPONSE = "<think> a </think>\n<response> b </response>"
BOTH = CALL + "\n<response> b </response>"
NEITHER = "<think> a </think>"


class TestFormatReward:
  @pytest.mark.parametrize("reference", [CALL, RESPONSE, BOTH, NEITHER])
  @pytest.mark.parametrize("text", [CALL, RESPONSE, BOTH, NEITHER])
  def test_the_blocks_are_those_of_the_reference(self, text, reference):
    # "Neither" asks for `</think>` at the end and counts no tags.
    assert rewards.format_reward(text, reference) == (text == reference)

  @pytest.mark.parametrize(
    ("reference", "text", "value"),
    [
      (CALL, " " + CALL, 0),
      (CALL, CALL + " ", 0),
      (CALL, CALL.replace("{}", "</tool_call>"), 0),
      (CALL, "<think></think>\n<tool_call>\n</tool_call>", 0),
      (RESPONSE, "<think></think>\n<response></response", 0),
      (BOTH, RESPONSE + CALL[len("<think> a </think>") :], 0),
      (NEITHER, "<think></think", 0),
      (CALL, CALL.replace(" a ", "</think><think>\n"), 1),
      (CALL, CALL + "\n", 1),  # `$` matches before a last newline.
      (CALL, CALL.replace("{}", "</response><response>"), 1),
      (NEITHER, CALL.replace("</tool_call>", "</think>"), 1),
    ],
  )
  def test_by_hand(self, reference, text, value):
    assert rewards.format_reward(text, reference) == value

  PIECES = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<response>"]
  PIECES += ["</response>", "\n", "\n", "a", "</think>\n<tool_call>\n"]
  PIECES += ["\n</tool_call>", "\n</tool_call>\n<response>"]
  PIECES += ["</think>\n<response>"]

  @settings
  @hypothesis.given(
    reference=st.sampled_from([CALL, RESPONSE, BOTH, NEITHER]),
    pieces=st.lists(st.sampled_from(PIECES), max_size=9).map("".join),
    cut=st.integers(0, 80),
    length=st.integers(0, 12),
    new=st.sampled_from(["", "\n", "a", "</think>", "<response>", "\n\n"]),
  )
  def test_finds_what_the_patterns_find(
    self, reference, pieces, cut, length, new
  ):
    near = reference[:cut] + new + reference[cut + length :]
    for text in (pieces, "<think>" + pieces, near):
      assert rewards.format_reward(text, reference) == (
        _literal_format(text, reference)
      )


A, B = _call("a"), _call("b")
P1, P12 = _call("a", p=1), _call("a", p=1, q=2)


class TestCorrectnessReward:
  def test_a_reference_without_a_call_gives_zero(self):
    for text in ("", RESPONSE, _text(_call("a"))):
      assert rewards.correctness_reward(text, RESPONSE) == 0.0
      assert rewards.correctness_reward(text, NEITHER) == 0.0

  @pytest.mark.parametrize(
    ("gold", "answer", "share"),
    [
      # Greedy, in the order of the gold calls. First gold: {p: 1} scores 1 + 1,
      # {p: 1, q: 2} scores 1/2 + 1: it takes the answer's second call, and the
      # other gold call takes the first: {p: 1, q: 2} against {p: 3, q: 2}
      # scores 1 + 1. S = 1 + 2 + 2 of S_max = 1 + 2 + 3.
      ([P1, _call("a", p=3, q=2)], [P12, P1], 5 / 6),
      # Greed can lose. First gold: 2/4 + 2 = 2.5 against 1 + 1 = 2: takes the
      # long call. Second gold is left 2/4 + 1 = 1.5. S = 1 + 4, while the
      # optimum is 1 + 2 + 4.
      (
        [P12, _call("a", p=1, q=2, r=3, s=4)],
        [_call("a", p=1, q=2, r=3, s=5), _call("a", p=1, q=9)],
        5 / 9,
      ),
      # A tie takes the first call: both answers score 1 + 1 for the first gold
      # call, and the second is left q = 3: 1 + 0.
      (
        [P12, _call("a", p=5, q=4)],
        [_call("a", p=1, q=4), _call("a", p=1, q=3)],
        4 / 7,
      ),
      # The order of calls and of parameters does not matter.
      ([P1, B, _call("a", p=2)], [_call("a", p=2), B, P1], 1),
      (P12, _call("a", q=2, p=1), 1),
      # Names are a multiset: J = 1 / (2 + 1 - 1), and the first gold call finds
      # a match, the second none; J = 1 / (1 + 3 - 1).
      ([A, A], [A], (0.5 + 1) / 3),
      ([A], [A, A, A], (1 / 3 + 1) / 2),
      # Nothing of the first gold call is in the answer: its best is 0, so that
      # the answer's call stays for the second.
      ([P1, _call("a", q=1)], [_call("a", q=1)], (0.5 + 2) / 5),
      (A, P1, 1 / 2),
      # Further fields matter to nothing but exact equality.
      (P1, {**P1, "id": 7}, 1),
      # Parameters are read of calls with a wanted name alone.
      (P1, [P1, {"name": "b"}], 5 / 6),
      (P1, [P1, {"name": "a"}], 0),
    ],
  )
  def test_matching_by_hand(self, gold, answer, share):
    assert _correctness(gold, answer) == pytest.approx(6 * share - 3)

  @pytest.mark.parametrize(
    ("gold", "answer", "is_equal"),
    [
      (1, "1", False),
      (1, 1.0, True),
      (True, 1, True),
      (False, 0.0, True),
      (None, 0, False),
      ({"x": 1, "y": 2}, {"y": 2, "x": 1}, True),
      ("a", "A", False),
    ],
  )
  def test_values_compare_as_python_compares(self, gold, answer, is_equal):
    found = _correctness(_call("a", p=gold), _call("a", p=answer))
    assert found == (3.0 if is_equal else 1.0)

  @pytest.mark.parametrize(
    "body",
    [
      "",
      "not json",
      "null",
      f"[{json.dumps(P1)}]",
      '{"parameters": {"p": 1}}',
      '{"name": "a"}',
      '{"name": "a", "parameters": null}',
      '{"name": "a", "parameters": ["p"]}',
      '{"name": ["a"], "parameters": {"p": 1}}',
      '{"name": "a",\n"parameters": {"p": 1}}',
      f"{json.dumps(P1)}\n\n{json.dumps(P1)}",
      '{"name": "a", "parameters": {"p": ' + "1" * 5000 + "}}",
      "[" * 100_000,
      '{"name": "a", "parameters": ' + '{"p":' * 100_000 + "}" * 100_001,
    ],
  )
  def test_unreadable_calls_get_the_least(self, body):
    gold = _text(_call("a", p=1))
    text = f"<think> t </think>\n<tool_call>\n{body}\n</tool_call>"
    assert rewards.correctness_reward(text, gold) == -3.0
    assert rewards.call_score(text, rewards.read_calls(gold)) is None

  def test_a_second_opening_tag_ends_the_block(self):
    text = _text(P1).replace("\n</tool_call>", "<tool_call>\n</tool_call>")
    assert rewards.correctness_reward(text, _text(P1)) == 3.0

  def test_a_call_must_be_closed_somewhere(self):
    gold = _text(_call("a", p=1))
    call = json.dumps(_call("a", p=1))
    unclosed = f"<tool_call>\n{call}"
    assert rewards.correctness_reward(unclosed, gold) == -3.0
    # The closing tag is looked for, but not where: as in the reference.
    early = f"</tool_call>{unclosed}"
    assert rewards.correctness_reward(early, gold) == 3.0

  @pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999999999"])
  def test_infinities_are_values(self, value):
    text = _text(P1).replace("1", value)
    assert rewards.correctness_reward(text, _text(P1)) == 1.0
    # Equality comes before the values: NaN is not equal to itself, but lists
    # that hold the same NaN are.
    gold = _text(_call("a", p=float("nan")))
    assert rewards.correctness_reward(gold, gold) == 3.0
    swapped = gold.replace('"a"', '"a", "id": 7')
    assert rewards.correctness_reward(swapped, gold) == 1.0

  def test_a_broken_reference_is_an_error(self):
    for body in ("{", '{"name": "a"}', '{"name": "a", "parameters": []}'):
      reference = f"<tool_call>\n{body}\n</tool_call>"
      with pytest.raises(ValueError, match="in the reference"):
        rewards.correctness_reward("", reference)


json_values = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(
      st.sampled_from(["name", "parameters", "p", "q"]), inner, max_size=4
    )
  ),
  max_leaves=8,
)


class TestAnyText:
  golds = st.sampled_from(
    [_text(_call("a", p=1, q="x"), _call("b")), RESPONSE, NEITHER]
    + [_text(_call("a", p=1), response="r")]
  )

  def _check(self, text, gold):
    assert rewards.format_reward(text, gold) in (0.0, 1.0)
    reward = rewards.correctness_reward(text, gold)
    assert isinstance(reward, float) and -3.0 <= reward <= 3.0

  @settings
  @hypothesis.given(st.lists(json_values, max_size=3), golds)
  def test_json(self, values, gold):
    body = "\n".join(json.dumps(value) for value in values)
    self._check(f"<tool_call>\n{body}\n</tool_call>", gold)


MANY = 10**6


@pytest.mark.parametrize(
  "text",
  [
    "<tool_call>" + "[" * MANY + "]" * MANY + "</tool_call>",
    "<tool_call>" + '{"name":' * MANY + "</tool_call>",
    "<tool_call>" * MANY + "</tool_call>" * MANY,
    "<think>" + "</think>\n<tool_call>\n" * (MANY // 10),
    "<think>" * MANY,
    "<think></think>\n<tool_call>\n" + "\n</tool_call" * MANY,
    "\n" * (10 * MANY),
    "<tool_call>" + "\n" * (3 * MANY) + "a</tool_call>",
    "<tool_call>" + "1" * (10 * MANY) + "</tool_call>",
    "<tool_call>1e" + "9" * MANY + "</tool_call>",
    "<tool_call>" + f"{json.dumps(A)}\n" * (MANY // 10) + "{}</tool_call>",
  ],
  ids=range(11),
)
def test_hostile_text_takes_no_time(text):
  gold = _text(_call("a", p=1), _call("a", q=2), response="r")
  start = time.perf_counter()
  for reference in (gold, CALL.replace("{}", json.dumps(_call("a"))), RESPONSE):
    assert rewards.format_reward(text, reference) == 0.0
    assert rewards.correctness_reward(text, reference) in (-3.0, 0.0)
  rewards.extract_completion(text)
  # Linear ones take milliseconds; a quadratic one would take hours.
  assert time.perf_counter() - start < 20
