import dataclasses
import json
import pathlib
import pickle
import re
import statistics
import sys
import time

import pytest

from saw_jax import tokenizer
from saw_jax.annotate import questions
from saw_jax.tasks import base
from saw_jax.tasks.tool_calling import (
  answers as tool_answers,
)
from saw_jax.tasks.tool_calling import (
  catalogue as tool_catalogue,
)
from saw_jax.tasks.tool_calling import (
  task as tool_calling,
)

ROWS = pathlib.Path(__file__).parents[2] / "data/toolrl/rlla_4k_test.parquet"
Outcome = base.Outcome


def _task(**kwargs):
  return tool_calling.ToolCallingTask(tool_calling.ToolCallingConfig(**kwargs))


def _asked(examples):
  return {
    (name, json.dumps(values, sort_keys=True))
    for example in examples
    for name, values in example.meta["asked"]
  }


class TestGeneratedExamples:
  def test_an_example_depends_on_seed_split_and_index_alone(self):
    a, b = _task(seed=3).examples("train"), _task(seed=3).examples("train")
    forwards = [a[i] for i in range(50)]
    assert [b[i] for i in reversed(range(50))] == forwards[::-1]
    longer = _task(seed=3, num_train=99_999).examples("train")
    assert longer[:50] == forwards
    assert _task(seed=4).examples("train")[:50] != forwards

  def test_the_first_examples_never_change(self):
    # Results of seeds depend on these: a change here changes every number.
    example = _task().examples("train")[0]
    assert example.messages[0]["content"] == (
      "table(guests: integer, day: string, inside: boolean)\n"
      "play(music: string, volume: integer)"
    )
    assert example.messages[1]["content"] == "Tue we are 7 and sit inside"
    assert example.reference == (
      "<think> one call will do </think>\n<tool_call>\n"
      '{"name": "table", "parameters": '
      '{"guests": 7, "day": "Tue", "inside": true}}\n</tool_call>'
    )

  def test_splits_share_no_call_whatever_the_seeds(self):
    train = _asked(_task(seed=0).examples("train")[:])
    test = _asked(_task(seed=0, num_test=1000).examples("test")[:])
    other = _asked(_task(seed=5).examples("train")[:])
    assert len(train) > 1000 and len(test) > 200
    assert not (train | other) & test

  def test_both_splits_have_every_tool(self):
    for split in ("train", "test"):
      names = {name for name, _ in _asked(_task().examples(split)[:256])}
      assert names >= set(tool_catalogue.TOOLS)

  def test_keys_are_distinct_and_fit_in_31_bits(self):
    task = _task()
    keys = [e.key for s in ("train", "test") for e in task.examples(s)]
    assert len(set(keys)) == len(keys) == 8192 + 256
    assert 0 <= min(keys) and max(keys) < 2**31

  def test_the_shares_are_those_of_the_config(self):
    examples = _task(num_train=4000).examples("train")
    counts = [len(tool_answers.read(e.reference).calls) for e in examples]
    shares = [counts.count(n) / 4000 for n in range(4)]
    assert shares == pytest.approx([0.15, 0.595, 0.17, 0.085], abs=0.025)
    only = _task(call_weights=(0.0, 1.0), no_call_share=0.0).examples("train")
    calls = [len(tool_answers.read(e.reference).calls) for e in only[:100]]
    assert set(calls) == {2}

  def test_needed_tools_are_offered_and_others_too(self):
    for example in _task().examples("train")[:500]:
      offered = example.meta["offered"]
      answer = tool_answers.read(example.reference)
      names = {call["name"] for call in answer.calls}
      assert names <= set(offered)
      assert len(set(offered)) == len(offered) <= 3
      if len(names) < 3:
        assert len(offered) > len(names)
      system = example.messages[0]["content"]
      assert system.split("\n") == [
        tool_catalogue.TOOLS[name].signature for name in offered
      ]
      if not answer.calls:
        [(asked, _)] = example.meta["asked"]
        assert asked not in offered

  def test_values_are_of_their_type_and_in_the_request(self):
    types = {"string": str, "integer": int, "number": float, "boolean": bool}
    for example in _task().examples("train")[:500]:
      request = example.messages[1]["content"]
      for call in tool_answers.read(example.reference).calls:
        parameters = tool_catalogue.TOOLS[call["name"]].parameters
        assert list(call["parameters"]) == [p.name for p in parameters]
        for parameter in parameters:
          value = call["parameters"][parameter.name]
          assert type(value) is types[parameter.type]
          word = re.escape(parameter.say(value))
          assert re.search(rf"(?<!\w){word}(?!\w)", request), request

  def test_no_flight_ends_where_it_starts(self):
    for tool in tool_catalogue.CATALOGUE:
      for index in range(100):
        values = tool.draw_values(tool_catalogue.Draws(index)).values()
        texts = [value for value in values if isinstance(value, str)]
        assert len(set(texts)) == len(texts)

  def test_ten_thousand_take_little_time(self):
    start = time.perf_counter()
    for _ in _task(num_train=10_000).examples("train"):
      pass
    assert time.perf_counter() - start < 10

  def test_is_a_sequence(self):
    examples = _task(num_test=7).examples("test")
    assert len(examples) == 7 == len(list(examples))
    assert examples[-1] == examples[6] and len(examples[2:5]) == 3
    with pytest.raises(IndexError):
      examples[7]

  def test_a_wrong_split_is_named(self):
    with pytest.raises(ValueError, match="did you mean 'train'"):
      _task().examples("trian")

  @pytest.mark.parametrize(
    "kwargs",
    [
      {"num_distractors": (2, 1)},
      {"no_call_share": 1.5},
      {"call_weights": (0.0,)},
      {"call_weights": (1, 1, 1, 1)},
    ],
  )
  def test_wrong_options_are_errors(self, kwargs):
    with pytest.raises(ValueError):
      tool_calling.ToolCallingConfig(**kwargs)

  def test_prompts_and_answers_are_short(self):
    pytest.importorskip("tokenizers")
    bpe = tokenizer.BPETokenizer(tool_calling.VOCABULARY)
    examples = _task().examples("train")[:2000]
    prompts = [len(bpe.encode_chat(e.messages)) for e in examples]
    answers = [len(bpe.encode(e.reference)) + 1 for e in examples]
    assert max(prompts) <= 88 and statistics.mean(prompts) < 52
    assert max(answers) <= 64 and statistics.mean(answers) < 32

  def test_a_value_is_the_same_tokens_in_request_and_call(self):
    pytest.importorskip("tokenizers")
    bpe = tokenizer.BPETokenizer(tool_calling.VOCABULARY)
    for tool in tool_catalogue.CATALOGUE:
      for parameter in tool.parameters:
        for value in parameter.values:
          word = bpe.encode(str(value))
          if parameter.type == "boolean":
            continue
          assert len(word) <= 5
          call = bpe.encode(
            json.dumps({"name": "x", "parameters": {"p": value}})
          )
          request = bpe.encode(f"do {value} for me")
          for ids in (call, request):
            windows = [ids[i : i + len(word)] for i in range(len(ids))]
            assert word in windows, value


class TestScore:
  def _score(self, text, reference):
    return _task().score(base.Example(0, (), reference), text)

  def test_values_are_correctness_then_format(self):
    example = _task().examples("train")[0]
    score = _task().score(example, example.reference)
    assert score == base.Score((3.0, 1.0), Outcome.RIGHT)
    assert [c.name for c in _task().components] == ["correctness", "format"]
    assert [c.minimum for c in _task().components] == [-3.0, 0.0]
    assert [c.maximum for c in _task().components] == [3.0, 1.0]

  def test_outcomes(self):
    call = '<tool_call>\n{"name": "a", "parameters": {"p": 1}}\n</tool_call>'
    gold = f"<think> t </think>\n{call}"
    assert self._score(gold, gold).outcome is Outcome.RIGHT
    assert self._score(call, gold).outcome is Outcome.WRONG
    wrong = gold.replace("1", "2")
    assert self._score(wrong, gold).outcome is Outcome.WRONG
    assert self._score(gold.replace("}}", "}"), gold).outcome is (
      Outcome.UNPARSABLE
    )
    assert self._score("", gold) == base.Score((-3.0, 0.0), Outcome.UNPARSABLE)

  def test_outcomes_without_a_call(self):
    gold = "<think> t </think>\n<response> r </response>"
    assert self._score(gold, gold).outcome is Outcome.RIGHT
    assert self._score(gold[8:], gold).outcome is Outcome.WRONG
    assert self._score("r", gold) == base.Score((0.0, 0.0), Outcome.UNPARSABLE)

  def test_the_whole_conversation_can_be_scored(self):
    example = _task().examples("train")[0]
    text = f"<|im_start|>assistant\n{example.reference}\n<|im_end|>\n"
    assert _task().score(example, text).values == (3.0, 1.0)

  def test_agrees_with_the_two_reward_functions(self):
    task = _task()
    for example, text in task.demonstrations(
      200, seed=0, format_rate=0.5, call_rate=0.3
    ):
      assert task.score(example, text).values == (
        tool_calling.correctness_reward(text, example.reference),
        tool_calling.format_reward(text, example.reference),
      )


class TestDemonstrations:
  @pytest.mark.parametrize(
    "format_rate, call_rate", [(0.0, 1.0), (1.0, 0.0), (0.3, 0.6), (0.9, 0.2)]
  )
  def test_rates_are_met_and_independent(self, format_rate, call_rate):
    task = _task()
    pairs = task.demonstrations(
      3000, seed=0, format_rate=format_rate, call_rate=call_rate
    )
    scores = [task.score(*pair).values for pair in pairs]
    # 5 deviations of a binomial of 3000, 5 * 0.5 / sqrt(3000) = 0.046.
    formats = statistics.mean(form for _, form in scores)
    assert formats == pytest.approx(format_rate, abs=0.046)
    of_calls = [
      score
      for (example, _), score in zip(pairs, scores, strict=True)
      if "<tool_call>" in example.reference
    ]
    right = statistics.mean(value == 3.0 for value, _ in of_calls)
    assert right == pytest.approx(call_rate, abs=0.046)
    both = statistics.mean(value == 3.0 and form for value, form in of_calls)
    assert both == pytest.approx(format_rate * call_rate, abs=0.046)

  def test_they_are_training_examples_and_deterministic(self):
    task = _task(num_train=60)
    options = {"format_rate": 0.5, "call_rate": 0.5}
    pairs = task.demonstrations(100, seed=1, **options)
    assert pairs == _task(num_train=60).demonstrations(100, seed=1, **options)
    assert pairs[:50] == task.demonstrations(50, seed=1, **options)
    assert pairs != task.demonstrations(100, seed=2, **options)
    assert [e for e, _ in pairs[:60]] == list(task.examples("train"))
    assert pairs[60][0] == pairs[0][0]

  def test_wrong_rates_are_errors(self):
    with pytest.raises(ValueError, match="1.5"):
      _task().demonstrations(1, seed=0, format_rate=1.5, call_rate=0)

  def test_mistakes_are_of_many_kinds(self):
    pairs = _task().demonstrations(2000, seed=0, format_rate=0, call_rate=0)
    texts = [text for _, text in pairs]
    assert any(text.startswith("<thought>") for text in texts)
    assert any(text.startswith("yes") for text in texts)
    assert any(text.endswith("done") for text in texts)
    assert any(text.startswith("<tool_call>") for text in texts)
    assert any("}</tool_call>" in text for text in texts)
    assert any("</think> <tool_call>" in text for text in texts)
    assert any("</think>" not in text and "<think>" in text for text in texts)


class TestAnswers:
  def test_reading_is_the_reverse_of_writing(self):
    answer = tool_answers.Answer(
      "t", ({"name": "a", "parameters": {"p": "é"}},) * 2, "r"
    )
    assert tool_answers.read(tool_answers.write(answer)) == answer

  @pytest.mark.parametrize("text", ["", "<think> t", "<tool_call>"])
  def test_other_text_is_an_error(self, text):
    with pytest.raises(ValueError, match="rewarded format"):
      tool_answers.read(text)


class TestReadExamples:
  def _json(self, tmp_path, rows, suffix=".json"):
    path = tmp_path / f"rows{suffix}"
    if suffix == ".json":
      path.write_text(json.dumps(rows))
    else:
      path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path

  row = {
    "instruction": "system",
    "input": "user",
    "output": "<think> use <tool_call> </think>\n<tool_call>\n"
    '{"name": "a", "parameters": {}}\n</tool_call>',
  }

  def test_the_parquet_of_toolrl(self):
    pytest.importorskip("pyarrow")
    task = _task(test_path=str(ROWS))
    examples = task.examples("test")
    assert len(examples) == 80
    assert [m["role"] for m in examples[0].messages] == ["system", "user"]
    assert "GetPowerBINews" in examples[0].messages[0]["content"]
    assert examples[0].reference.endswith(
      '{"name": "GetNews", "parameters": {"page": "1"}}\n</tool_call>'
    )
    assert examples[0].key != _task().examples("train")[0].key
    with pytest.raises(ValueError, match="train_path"):
      task.examples("train")

  def test_the_rows_do_not_travel(self):
    pytest.importorskip("pyarrow")
    task = _task(test_path=str(ROWS))
    task.examples("test")
    assert len(pickle.dumps(task)) < 1000
    assert len(pickle.loads(pickle.dumps(task)).examples("test")) == 80

  @pytest.mark.parametrize("suffix", [".json", ".jsonl"])
  def test_instruction_rows(self, tmp_path, suffix):
    path = self._json(tmp_path, [self.row] * 3, suffix)
    task = _task(train_path=str(path))
    examples = task.examples("train")
    assert [example.key for example in examples] == [0, 1, 2]
    assert examples[0].messages == (
      {"role": "system", "content": "system"},
      {"role": "user", "content": "user"},
    )
    assert examples[0].meta["output"] == self.row["output"]
    # The thought names a tag; as ground truth it would hide the call.
    assert "use <tool_call>" not in examples[0].reference
    score = task.score(examples[0], examples[0].reference)
    assert score.outcome is Outcome.RIGHT

  def test_demonstrations_of_rows(self, tmp_path):
    path = self._json(tmp_path, [self.row] * 3)
    task = _task(train_path=str(path))
    pairs = task.demonstrations(50, seed=0, format_rate=1.0, call_rate=0.0)
    values = [task.score(*pair).values for pair in pairs]
    assert all(v[0] < 3.0 and v[1] == 1.0 for v in values)

  @pytest.mark.parametrize(
    "change, words",
    [
      ({"output": None}, "'output' is not a str"),
      ({"input": 3}, "'input' is not a str"),
      ({"output": "text"}, "rewarded format"),
      (
        {"output": "<think> t </think>\n<tool_call>\n{\n</tool_call>"},
        "unreadable tool calls",
      ),
      (
        {
          "output": "<think> t </think>\n<tool_call>\n"
          '{"name": "a", "parameters": 3}\n</tool_call>'
        },
        "not an object",
      ),
    ],
  )
  def test_a_broken_row_is_named(self, tmp_path, change, words):
    path = self._json(tmp_path, [self.row, {**self.row, **change}])
    with pytest.raises(ValueError, match=words) as info:
      tool_calling.read_examples(path)
    assert str(info.value).startswith(f"{path}, row 1: ")

  def test_a_missing_field_is_named(self, tmp_path):
    path = self._json(tmp_path, [self.row, {"input": "a"}])
    with pytest.raises(ValueError, match="row 1: no field 'instruction'"):
      tool_calling.read_examples(path)
    path = self._json(tmp_path, [3])
    with pytest.raises(ValueError, match="row 0: not an object"):
      tool_calling.read_examples(path)

  def test_a_broken_parquet_row_is_named(self, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "rows.parquet"
    table = pyarrow.Table.from_pylist(
      [{"prompt": [], "reward_model": {"a": 1}}]
    )
    parquet.write_table(table, path)
    with pytest.raises(ValueError, match="rows.parquet, row 0: .*'prompt'"):
      tool_calling.read_examples(path)

  @pytest.mark.parametrize(
    "name, text, words",
    [
      ("a.json", "{", "not JSON"),
      ("a.json", "{}", "not a list"),
      ("a.jsonl", "\n{", "line 1"),
      ("a.csv", "", "not a .parquet"),
    ],
  )
  def test_broken_files_are_named(self, tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=words):
      tool_calling.read_examples(tmp_path / name)

  def test_a_missing_library_is_named(self, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r"saw_jax\[data\]"):
      tool_calling.read_examples(ROWS)


class TestLabels:
  def test_a_label_does_what_the_truth_does(self):
    task = _task()
    for example in task.examples("train")[:60]:
      key = task.answer_key(task.gold_completion(example), example)
      blank = dataclasses.replace(example, reference="poison")
      for label in (key, example.reference):
        labelled = task.with_label(blank, label)
        assert task.answer_key(labelled.reference) == key
        score = task.score(labelled, example.reference)
        assert score.outcome is Outcome.RIGHT
        assert score == task.score(example, example.reference)

  def test_answers_that_differ_vote_apart(self):
    task, right = _task(), 0
    pairs = task.demonstrations(200, seed=0, format_rate=0.0, call_rate=0.5)
    for example, text in pairs:
      key = task.answer_key(text, example)
      truth = task.answer_key(example.reference, example)
      labelled = task.score(example, text).values[0] == 3.0
      if "<tool_call>" in example.reference:
        assert (key == truth) == labelled
        right += labelled
    assert 60 < right < 120

  def test_refuses_a_label_that_is_none(self):
    task = _task()
    with pytest.raises(ValueError, match="these are no calls"):
      task.with_label(task.examples("train")[0], "weather in Oslo")

  def test_the_placeholder_and_a_typed_answer_are_labels(self):
    task = _task()
    example = task.examples("train")[0]
    form = task.label_form(example)
    for label in (
      questions.placeholder(form),
      questions.parse_label(form, '[{"name": "play", "parameters": {}}]'),
    ):
      assert task.answer_key(task.with_label(example, label).reference) == label
    with pytest.raises(ValueError, match="This is not calls such as"):
      questions.parse_label(form, "play something")


class TestObserve:
  def test_reads_no_reference(self):
    task = _task()
    for example, text in task.demonstrations(
      100, seed=0, format_rate=0.5, call_rate=0.5
    ):
      blank = dataclasses.replace(example, reference="poison")
      assert task.observe(example, text) == task.observe(blank, text)

  def test_is_about_the_tools_on_offer(self):
    task = _task()
    example = task.examples("train")[0]
    said = task.observe(example, example.reference)
    assert said == "done table 7 Tue true"
    other = dataclasses.replace(example, meta={"offered": ("play",)})
    assert task.observe(other, example.reference) == "no tool table"

  def test_tools_of_a_file_cannot_be_run(self):
    (example, *_) = tool_calling.read_examples(ROWS)
    with pytest.raises(ValueError, match="comes from a file"):
      _task().observe(example, example.reference)
