"""Tool calling: what the properties in answer_task_test.py leave open."""

import dataclasses
import json
import re
import statistics

import pytest

from saw_jax.annotate import questions
from saw_jax.tasks import base, inspection
from saw_jax.tasks.tool_calling import bfcl, catalogue, objectives, rewards
from saw_jax.tasks.tool_calling import task as tool_calling
from tests.tasks.answer_task_test import assert_refused, write

ROW = {
  "instruction": "system",
  "input": "user",
  "output": "<think> use <tool_call> </think>\n<tool_call>\n"
  '{"name": "a", "parameters": {}}\n</tool_call>',
}
Outcome = base.Outcome


def make(**options):
  return tool_calling.ToolCallingTask(tool_calling.ToolCallingConfig(**options))


def asked(examples):
  return {
    (name, json.dumps(values, sort_keys=True))
    for example in examples
    for name, values in example.meta["asked"]
  }


class TestExamples:
  def test_splits_share_no_call_whatever_the_seeds(self):
    train = asked(make(seed=0).examples("train")[:])
    test = asked(make(seed=0, num_test=1000).examples("test")[:])
    other = asked(make(seed=5).examples("train")[:])
    assert len(train) > 1000 and len(test) > 200
    assert not (train | other) & test
    for calls in (train, test):
      assert {name for name, _ in calls} >= set(catalogue.TOOLS)

  def test_the_shares_are_those_of_the_config(self):
    examples = make(num_train=4000).examples("train")
    found = [rewards.read(e.reference) for e in examples]
    counts = [len(answer.calls) for answer in found]
    shares = [counts.count(n) / 4000 for n in range(4)]
    assert shares == pytest.approx([0.15, 0.595, 0.17, 0.085], abs=0.025)
    words = ("no call", "one call", "two calls", "three calls")
    for answer, count in zip(found, counts, strict=True):
      assert answer.thought.startswith(words[count])
      assert len(set(map(json.dumps, answer.calls))) == count

  def test_calls_and_offers_may_be_fixed(self):
    options = {"no_call_share": 0.0, "call_weights": (0.0, 1.0)}
    task = make(num_distractors=(0, 0), **options)
    for example in task.examples("train")[:99]:
      calls = rewards.read(example.reference).calls
      assert len(calls) == 2
      assert {call["name"] for call in calls} == set(example.meta["offered"])

  def test_needed_tools_are_offered_and_others_too(self):
    types = {"string": str, "integer": int, "number": float, "boolean": bool}
    words = {True: "(with|inside)", False: "(without|outside)"}
    for example in make().examples("train")[:500]:
      offered = example.meta["offered"]
      calls = rewards.read(example.reference).calls
      names = {call["name"] for call in calls}
      assert names <= set(offered)
      assert len(set(offered)) == len(offered) <= 3
      if len(names) < 3:
        assert len(offered) > len(names)
      system, user = (message["content"] for message in example.messages)
      assert system.split("\n") == list(map(catalogue.write_signature, offered))
      if not calls:
        [(name, _)] = example.meta["asked"]
        assert name not in offered
      # Values are of their type, and in the request.
      for call in calls:
        known = catalogue.TOOLS[call["name"]]["parameters"]
        assert list(call["parameters"]) == [p["name"] for p in known]
        for p in known:
          value = call["parameters"][p["name"]]
          assert type(value) is types[p["type"]]
          is_said = p["type"] == "boolean"
          word = words[value] if is_said else re.escape(str(value))
          assert re.search(rf"(?<!\w){word}(?!\w)", user), user


class TestScore:
  CALL = '<tool_call>\n{"name": "a", "parameters": {"p": 1}}\n</tool_call>'
  GOLD = f"<think> t </think>\n{CALL}"
  SAID = "<think> t </think>\n<response> r </response>"

  @pytest.mark.parametrize(
    ("text", "reference", "values", "outcome"),
    [
      (GOLD, GOLD, (3.0, 1.0), Outcome.RIGHT),
      (f"<|im_start|>assistant\n{GOLD}\n<|im_end|>\n", GOLD, (3.0, 1.0),
       Outcome.RIGHT),
      (CALL, GOLD, (3.0, 0.0), Outcome.WRONG),
      (GOLD.replace("1", "2"), GOLD, (1.0, 1.0), Outcome.WRONG),
      (GOLD.replace("}}", "}"), GOLD, (-3.0, 1.0), Outcome.UNPARSABLE),
      ("", GOLD, (-3.0, 0.0), Outcome.UNPARSABLE),
      (SAID, SAID, (0.0, 1.0), Outcome.RIGHT),
      (SAID[8:], SAID, (0.0, 0.0), Outcome.WRONG),
      ("r", SAID, (0.0, 0.0), Outcome.UNPARSABLE),
    ],
  )  # fmt: skip
  def test_by_hand(self, text, reference, values, outcome):
    example = base.Example(0, (), reference)
    assert make().score(example, text) == base.Score(values, outcome)


@pytest.mark.parametrize(
  "format_rate, call_rate", [(0.0, 1.0), (1.0, 0.0), (0.3, 0.6)]
)
def test_rates_of_demonstrations_hold_independently(format_rate, call_rate):
  task = make()
  pairs = task.demonstrations(
    3000, seed=0, format_rate=format_rate, call_rate=call_rate
  )
  scores = [(e.reference, *task.score(e, text).values) for e, text in pairs]
  of_calls = [s for s in scores if "<tool_call>" in s[0]]
  # 5 deviations of a binomial of 3000, 5 * 0.5 / sqrt(3000) = 0.046.
  for found, rate in (
    ([form for _, _, form in scores], format_rate),
    ([value == 3.0 for _, value, _ in of_calls], call_rate),
    ([v == 3.0 and form for _, v, form in of_calls], format_rate * call_rate),
  ):
    assert statistics.mean(found) == pytest.approx(rate, abs=0.046)


class TestReadExamples:
  @pytest.mark.parametrize("suffix", ["json", "jsonl"])
  def test_instruction_rows(self, tmp_path, suffix):
    path = write(tmp_path / f"rows.{suffix}", [ROW] * 3)
    task = make(train_path=path)
    examples = task.examples("train")
    assert [example.key for example in examples] == [0, 1, 2]
    said = [(m["role"], m["content"]) for m in examples[0].messages]
    assert said == [("system", "system"), ("user", "user")]
    assert examples[0].meta["output"] == ROW["output"]
    # The thought names a tag; as ground truth it would hide the call.
    assert "use <tool_call>" not in examples[0].reference
    pairs = task.demonstrations(50, seed=0, format_rate=1.0, call_rate=0.0)
    values = [task.score(*pair).values for pair in pairs]
    assert all(v[0] < 3.0 and v[1] == 1.0 for v in values)

  @pytest.mark.parametrize(
    "change, word",
    [
      ({"output": None}, "'output'"),
      ({"input": 3}, "'input'"),
      ({"output": "text"}, "format"),
      ({"output": ROW["output"].replace("}", "")}, "unreadable"),
      ({"output": ROW["output"].replace("{}", "3")}, "not an object"),
    ],
  )
  def test_a_broken_row_is_named(self, tmp_path, change, word):
    path, broken = tmp_path / "rows.json", {**ROW, **change}
    assert_refused("tool_calling", path, ROW, broken, word)


def test_rows_of_a_benchmark_are_no_leaderboard(tmp_path):
  path = write(tmp_path / "rows.json", [ROW])
  task = make(benchmarks={"mine": path})
  (example,) = task.examples("mine")
  # Beside the keys of all categories.
  assert example.key >= bfcl.FIRST_KEY + 10_000 * len(bfcl.CATEGORIES)
  assert inspection.gold_failures(task, [example]) == []
  assert inspection.damage_failures(task, [example]) == []
  assert task.averages([example], [1.0]) == {}


class TestLabels:
  def test_answers_that_differ_vote_apart(self):
    task, right = make(), 0
    pairs = task.demonstrations(200, seed=0, format_rate=0.0, call_rate=0.5)
    for example, text in pairs:
      key = task.answer_key(text, example)
      truth = task.answer_key(example.reference, example)
      labelled = task.score(example, text).values[0] == 3.0
      if "<tool_call>" in example.reference:
        assert (key == truth) == labelled
        right += labelled
    assert 60 < right < 120

  def test_the_placeholder_and_a_typed_answer_are_labels(self):
    task = make()
    example = task.examples("train")[0]
    form = task.label_form(example)
    for label in (
      questions.placeholder(form),
      questions.parse_label(form, '[{"name": "play", "parameters": {}}]'),
    ):
      assert task.answer_key(task.with_label(example, label).reference) == label
    with pytest.raises(ValueError, match="calls"):
      questions.parse_label(form, "play something")


def test_what_is_observed_is_about_the_offer_and_reads_no_reference():
  task = make()
  pairs = task.demonstrations(100, seed=0, format_rate=0.5, call_rate=0.5)
  for example, text in pairs:
    blank = dataclasses.replace(example, reference="poison")
    assert task.observe(example, text) == task.observe(blank, text)
  example = task.examples("train")[0]
  assert task.observe(example, example.reference) == "done table 7 Tue true"
  other = dataclasses.replace(example, meta={"offered": ("play",)})
  assert task.observe(other, example.reference) == "no tool table"
  with pytest.raises(ValueError, match="file"):
    task.observe(dataclasses.replace(example, meta={}), example.reference)


class TestObjectives:
  @staticmethod
  def make(*names, **options):
    config = objectives.ToolObjectivesConfig(objectives=names, **options)
    return objectives.ToolObjectivesTask(config)

  def test_parts_are_told_apart(self):
    task = self.make("values", "names", "parameters", "format", num_train=1)
    (example,) = task.examples("train")[:]
    calls = [
      {"name": "a", "parameters": {"p": 1, "q": 2}},
      {"name": "b", "parameters": {}},
    ]
    write = lambda *calls: rewards.write(rewards.Answer("t", calls, None))  # noqa: E731
    example = dataclasses.replace(example, reference=write(*calls))
    for answer, values in (
      (calls, (3.0, 1.0, 1.0, 1.0)),
      (calls[:1], (3.0, 0.5, 0.5, 1.0)),
      ([{**calls[0], "parameters": {"p": 1}}], (1.5, 0.5, 0.25, 1.0)),
      ([{"name": "c", "parameters": {"p": 1, "q": 2}}], (0.0, 0.0, 0.0, 1.0)),
      ([{"name": "a"}], (0.0, 0.0, 0.0, 1.0)),
    ):
      assert task.score(example, write(*answer)).values == values
    assert task.score(example, "").values == (0.0, 0.0, 0.0, 0.0)

  def test_parts_make_up_the_score_of_calls(self):
    task = self.make("names", no_call_share=0.0, num_train=300)
    others = task.examples("train")[1:]
    for example, other in zip(task.examples("train"), others, strict=False):
      gold = rewards.read_calls(example.reference)
      names, named, equal = rewards.call_parts(other.reference, gold)
      count = sum(len(call["parameters"]) for call in gold)
      added = names + named * len(gold) + equal * count
      whole = rewards.call_score(other.reference, gold)
      assert whole == pytest.approx(added / (1 + len(gold) + count))

  def test_errors_and_coins_are_of_the_text_and_as_often_as_told(self):
    task = self.make("format", "coin", error_rate=0.05, num_train=2000)
    assert [one.name for one in task.components] == ["format", "coin"]
    pairs = [(one, one.reference) for one in task.examples("train")]
    found = [task.score(*pair).values for pair in pairs]
    assert found == [task.score(*pair).values for pair in pairs]
    formats, coins = zip(*found, strict=True)
    assert statistics.fmean(formats) == pytest.approx(0.95, abs=0.02)
    assert statistics.fmean(coins) == pytest.approx(0.5, abs=0.04)
