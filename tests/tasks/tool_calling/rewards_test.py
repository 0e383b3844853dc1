"""The two rewards: by hand, against the reference, and on hostile text."""

import json
import pathlib
import re
import time

import hypothesis
import pytest
from hypothesis import strategies as st

from saw_jax.tasks import base
from saw_jax.tasks.tool_calling import answers, rewards
from saw_jax.tasks.tool_calling import task as tool_task
from saw_jax.tasks.tool_calling.task import ToolCallingTask

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "toolrl_rewards.json"
VECTORS = json.loads(GOLDEN.read_text())
TASK = ToolCallingTask()
settings = hypothesis.settings(max_examples=300, derandomize=True)


def score(text, reference):
  return TASK.score(base.Example(0, (), reference), text).values


def call(name, **parameters):
  return {"name": name, "parameters": parameters}


def wrap(body):
  return f"<think> t </think>\n<tool_call>\n{body}\n</tool_call>"


def text_of(*calls):
  return wrap(rewards.write_calls(calls))


CALL = "<think> a </think>\n<tool_call>\n{}\n</tool_call>"
RESPONSE = "<think> a </think>\n<response> b </response>"
BOTH = CALL + "\n<response> b </response>"
NEITHER = "<think> a </think>"
PATTERNS = {
  CALL: r"^<think>.*?</think>\n<tool_call>\n.*?\n</tool_call>$",
  RESPONSE: r"^<think>.*?</think>\n<response>.*?</response>$",
  BOTH: r"^<think>.*?</think>\n<tool_call>\n.*?\n</tool_call>\n"
  r"<response>.*?</response>$",
  NEITHER: r"^<think>.*?</think>$",
}


def literal_format(text, reference):
  """The reference, once more, by another road."""
  found = re.search(PATTERNS[reference], text, re.DOTALL) is not None
  for tag in ("tool_call", "response"):
    if f"<{tag}>" in reference:
      found &= text.count(f"<{tag}>") == 1 == text.count(f"</{tag}>")
  return found


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v["id"])
def test_agrees_with_the_reference(vector):
  values = score(vector["response"], vector["ground_truth"])
  expected = vector["expected"]
  assert values[0] == pytest.approx(expected["correctness"], abs=1e-12)
  assert values[1] == expected["format"]
  assert sum(values) == pytest.approx(expected["total"], abs=1e-12)


@pytest.mark.parametrize(
  "text, expected",
  [
    (" a \n", "a"),
    ("a<|im_end|>\n", "a"),
    ("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>", "a"),
    ("<|im_start|>assistant\na<|im_end|><|im_start|>assistant\nb", "b"),
    ("<|im_start|>assistant\na<|im_end|>b<|im_end|>", "a"),
    ("<|im_start|>user a", "<|im_start|>user a"),
  ],
)
def test_the_last_turn_is_the_completion(text, expected):
  assert rewards.extract_completion(text) == expected


class TestFormatReward:
  @pytest.mark.parametrize("reference", PATTERNS)
  @pytest.mark.parametrize("text", PATTERNS)
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
    reference=st.sampled_from(list(PATTERNS)),
    pieces=st.lists(st.sampled_from(PIECES), max_size=9).map("".join),
    cut=st.integers(0, 80),
    length=st.integers(0, 12),
    new=st.sampled_from(["", "\n", "a", "</think>", "<response>", "\n\n"]),
  )
  def test_finds_what_patterns_find(self, reference, pieces, cut, length, new):
    near = reference[:cut] + new + reference[cut + length :]
    for text in (pieces, "<think>" + pieces, near):
      found = rewards.format_reward(text, reference)
      assert found == literal_format(text, reference)


A, B = call("a"), call("b")
P1, P12 = call("a", p=1), call("a", p=1, q=2)


class TestCallScore:
  @pytest.mark.parametrize(
    ("gold", "answer", "share"),
    [
      # Greedy, in the order of the gold calls. First gold: {p: 1} scores 1 + 1,
      # {p: 1, q: 2} scores 1/2 + 1: it takes the answer's second call, and the
      # other gold call takes the first: {p: 1, q: 2} against {p: 3, q: 2}
      # scores 1 + 1. S = 1 + 2 + 2 of S_max = 1 + 2 + 3.
      ([P1, call("a", p=3, q=2)], [P12, P1], 5 / 6),
      # Greed can lose. First gold: 2/4 + 2 = 2.5 against 1 + 1 = 2: takes the
      # long call. Second gold is left 2/4 + 1 = 1.5. S = 1 + 4, while the
      # optimum is 1 + 2 + 4.
      (
        [P12, call("a", p=1, q=2, r=3, s=4)],
        [call("a", p=1, q=2, r=3, s=5), call("a", p=1, q=9)],
        5 / 9,
      ),
      # A tie takes the first call: both answers score 1 + 1 for the first gold
      # call, and the second is left q = 3: 1 + 0.
      (
        [P12, call("a", p=5, q=4)],
        [call("a", p=1, q=4), call("a", p=1, q=3)],
        4 / 7,
      ),
      # The order of calls and of parameters does not matter.
      ([P1, B, call("a", p=2)], [call("a", p=2), B, P1], 1),
      ([P12], [call("a", q=2, p=1)], 1),
      # Names are a multiset: J = 1 / (2 + 1 - 1), and the first gold call finds
      # a match, the second none; J = 1 / (1 + 3 - 1).
      ([A, A], [A], (0.5 + 1) / 3),
      ([A], [A, A, A], (1 / 3 + 1) / 2),
      # Nothing of the first gold call is in the answer: its best is 0, so that
      # the answer's call stays for the second.
      ([P1, call("a", q=1)], [call("a", q=1)], (0.5 + 2) / 5),
      ([A], [P1], 1 / 2),
      # Further fields matter to nothing but exact equality.
      ([P1], [{**P1, "id": 7}], 1),
      # Parameters are read of calls with a wanted name alone.
      ([P1], [P1, {"name": "b"}], 5 / 6),
      ([P1], [P1, {"name": "a"}], None),
    ],
  )
  def test_matching_by_hand(self, gold, answer, share):
    found = rewards.call_score(text_of(*answer), gold)
    assert found == (None if share is None else pytest.approx(share))

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
      *((1, float(odd), False) for odd in ("nan", "inf", "1e999999")),
    ],
  )
  def test_values_compare_as_python_compares(self, gold, answer, is_equal):
    said = text_of(call("a", p=answer))
    found = rewards.call_score(said, [call("a", p=gold)])
    assert found == (1.0 if is_equal else 2 / 3)

  def test_equality_comes_before_the_values(self):
    # NaN is not equal to itself, but lists that hold the same NaN are.
    gold = text_of(call("a", p=float("nan")))
    assert score(gold, gold)[0] == 3.0
    assert score(gold.replace('"a"', '"a", "id": 7'), gold)[0] == 1.0

  @pytest.mark.parametrize(
    "body",
    ["", "not json", "null", f"[{json.dumps(P1)}]", '{"name": "a"}']
    + [
      '{"parameters": {"p": 1}}',
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
    assert rewards.call_score(wrap(body), [P1]) is None
    assert score(wrap(body), text_of(P1))[0] == -3.0

  @pytest.mark.parametrize(
    ("text", "share"),
    [
      ("<tool_call>{}</tool_call>", 1.0),
      ("<think><tool_call>{}</tool_call></think>", 1.0),  # as the reference
      ("<tool_call>{}</tool_call><tool_call>[</tool_call>", 1.0),  # likewise
      ("</tool_call><tool_call>{}</tool_call>", 1.0),
      ("<tool_call>{}", None),
      ("</tool_call><tool_call>{}", None),
      ("<tool_call>{}<tool_call></tool_call>", None),
      ("<tool_call><tool_call>{}</tool_call></tool_call>", None),
      ("{}</tool_call>", None),
    ],
  )
  def test_the_first_block_counts_if_it_is_closed(self, text, share):
    text = text.replace("{}", f"\n{json.dumps(P1)}\n")
    assert rewards.call_score(text, [P1]) == share
    assert (answers.canonical(text) is None) == (share is None)
    if share is None:
      assert score(text, text_of(P1)) == (-3.0, 0.0)

  @pytest.mark.parametrize(
    "tag", ["</tool_call>", "<tool_call>", "<response>", "</think>\n<|im_end|>"]
  )
  def test_a_tag_in_a_string_is_text(self, tag):
    calls = [call("a", p=f"say {tag} {{}}"), B]
    escaped, raw = text_of(*calls), wrap("\n".join(map(json.dumps, calls)))
    for reference in (escaped, raw):
      assert rewards.read(reference).calls == tuple(calls)
      for text in (escaped, raw, raw + "<|im_end|>"):
        assert score(text, reference) == (3.0, 1.0)
        # One value of S_max = 1 + 2 + 1 is lost.
        assert score(text.replace("say", "cry"), reference)[0] == 1.5
    assert answers.canonical(raw) == answers.canonical(escaped) is not None
    row = {"instruction": "", "input": "", "output": raw}
    assert score(raw, tool_task._read_row(row)[1]) == (3.0, 1.0)

  def test_a_broken_reference_is_an_error(self):
    for body in ("{", '{"name": "a"}', '{"name": "a", "parameters": []}'):
      with pytest.raises(ValueError, match="in the reference"):
        score("", f"<tool_call>\n{body}\n</tool_call>")


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


@settings
@hypothesis.given(
  st.lists(json_values, max_size=3),
  st.sampled_from([text_of(call("a", p=1, q="x"), B), RESPONSE, NEITHER]),
)
def test_any_json_has_a_score(values, gold):
  body = "\n".join(json.dumps(value) for value in values)
  correctness, form = score(f"<tool_call>\n{body}\n</tool_call>", gold)
  assert form in (0.0, 1.0) and -3.0 <= correctness <= 3.0


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
  gold = text_of(P1, call("a", q=2)) + "\n<response> r </response>"
  start = time.perf_counter()
  for reference in (gold, CALL.replace("{}", json.dumps(A)), RESPONSE):
    assert score(text, reference) in ((-3.0, 0.0), (0.0, 0.0))
  # Linear ones take milliseconds; a quadratic one would take hours.
  assert time.perf_counter() - start < 20
