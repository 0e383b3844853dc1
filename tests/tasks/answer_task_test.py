"""Properties of every task with one answer to a prompt."""

import collections
import dataclasses
import inspect
import json
import pickle

import hypothesis
import pytest
from hypothesis import strategies as st

from saw_jax.run import registry
from saw_jax.tasks import answer_task, base, inspection
from saw_jax.tasks.knights.task import KnightsTask
from saw_jax.tasks.math.task import MathTask
from saw_jax.tasks.summaries.task import SummariesTask
from saw_jax.tasks.tool_calling.task import ToolCallingTask
from saw_jax.tasks.workers import grading

Outcome = base.Outcome
# Class, and the rates that its demonstrations ask for.
TASKS = {
  "math": (MathTask, {"right_rate": 0.5}),
  "knights": (KnightsTask, {"right_rate": 0.5}),
  "summaries": (SummariesTask, {"reference_rate": 0.5}),
  "tool_calling": (ToolCallingTask, {"format_rate": 0.5, "call_rate": 0.5}),
}
GENERATED = ("math", "knights", "tool_calling")
CALLS = {
  "instruction": "system",
  "output": "<think> t </think>\n<tool_call>\n"
  '{"name": "a", "parameters": {"p": 1}}\n</tool_call>',
}
# Row `n` of a file, by name of the task.
ROWS = {
  "math": lambda n: {"problem": f"{n} + 0?", "answer": n},
  "knights": lambda n: {"quiz": f"Puzzle {n}?", "answer": "(1) Ann is a knave"},
  "summaries": lambda n: {"post": f"Post {n} on {n}.", "summary": f"Is {n}"},
  "tool_calling": lambda n: {**CALLS, "input": f"user {n}"},
}
# What an answer is written in.
BLOCKS = {
  "math": "\\boxed{%s}",
  "knights": "<answer>%s</answer>",
  "summaries": "%s",
  "tool_calling": "<think> t </think>\n<tool_call>\n%s\n</tool_call>",
}
each = pytest.mark.parametrize("name", TASKS)
each_generated = pytest.mark.parametrize("name", GENERATED)


def make(name, **options):
  task, _ = TASKS[name]
  if name == "summaries":
    pytest.importorskip("rouge_score")
  return task(task.Config(**options))


def write(path, rows):
  if path.suffix == ".parquet":
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
  elif path.suffix == ".json":
    path.write_text(json.dumps(rows))
  else:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def from_files(name, tmp_path, count, **options):
  rows = [ROWS[name](n) for n in range(count)]
  train = write(tmp_path / "train.jsonl", rows)
  tests = [ROWS[name](n) for n in range(900, 903)]
  test = write(tmp_path / "test.jsonl", tests)
  return make(name, train_path=train, test_path=test, **options)


def assert_refused(name, path, good, broken, word):
  """The second row of a file is refused, and named."""
  path = write(path, [good, broken])
  task = TASKS[name][0]
  with pytest.raises(ValueError, match=word) as info:
    task(task.Config(train_path=path, test_path=path)).examples("train")
  assert str(info.value).startswith(f"{path}, row 1: ")


def texts(examples):
  return [example.messages[-1]["content"] for example in examples]


def splits(task):
  return [split for split in task.splits if not split.startswith("bfcl")]


class TestExamples:
  @each_generated
  def test_one_depends_on_seed_split_and_index_alone(self, name):
    a, b = (make(name, seed=3).examples("train") for _ in range(2))
    forwards = [a[i] for i in range(40)]
    assert [b[i] for i in reversed(range(40))] == forwards[::-1]
    assert make(name, seed=3, num_train=99).examples("train")[:40] == forwards
    assert make(name, seed=4).examples("train")[:40] != forwards
    task = make(name)
    assert len(task.examples("train")) == 8192
    assert all(len(task.examples(s)) == 256 for s in splits(task)[1:])

  @each
  def test_no_two_have_the_same_key(self, name):
    task = make(name, num_train=300, num_test=40)
    found = {split: task.examples(split) for split in splits(task)}
    keys = [example.key for rows in found.values() for example in rows]
    sizes = [len(rows) for rows in found.values()]
    assert sizes == [300, *[40] * (len(found) - 1)]
    assert len(set(keys)) == len(keys)
    assert 0 <= min(keys) and max(keys) < 2**31
    assert max(e.key for e in found["train"]) < answer_task.TEST_KEYS
    assert min(e.key for e in found["test"]) >= answer_task.TEST_KEYS

  # Results of seeds depend on these: a change here changes every number.
  @pytest.mark.parametrize(
    ("name", "index", "asked", "reference"),
    [
      ("math", 0, "6-6=", "0"),
      ("math", 1, "4+1=", "5"),
      ("math", 2, "13 of 63 pens are lost. how many are left?", "50"),
      ("math", 3, "sam has 32 pens and gets 43 more. how many now?", "75"),
      (
        "knights",
        0,
        "ann:cat=knight and ann=knave\nbob:cat=knight\ncat:ann=knight\n",
        "ann=knave|bob=knave|cat=knave",
      ),
      (
        "tool_calling",
        0,
        "Tue we are 7 and sit inside",
        "<think> one call will do </think>\n<tool_call>\n"
        '{"name": "table", "parameters": '
        '{"guests": 7, "day": "Tue", "inside": true}}\n</tool_call>',
      ),
    ],
  )
  def test_the_first_ones_never_change(self, name, index, asked, reference):
    example = make(name).examples("train")[index]
    assert example.messages[-1]["content"] == asked
    assert example.reference == reference

  @each
  def test_they_do_not_travel(self, name, tmp_path):
    task = from_files(name, tmp_path, 500)
    assert len(task.examples("train")) == 500
    packed = pickle.dumps(task)
    assert len(packed) < 1500
    example = task.examples("train")[0]
    copy = pickle.loads(packed)
    score = copy.score(example, task.gold_completion(example))
    assert score.outcome is Outcome.RIGHT
    assert list(copy.examples("train")) == list(task.examples("train"))


class TestScore:
  @each
  def test_right_answers_win_and_mistakes_cost(self, name):
    task = make(name, num_train=60, num_test=60)
    for split in splits(task):
      examples = task.examples(split)
      assert inspection.gold_failures(task, examples) == []
      assert inspection.damage_failures(task, examples) == []

  @each
  @hypothesis.settings(max_examples=150)
  @hypothesis.given(text=st.text())
  def test_any_text_has_one(self, name, text):
    task = make(name)
    example = task.examples("test")[0]
    for completion in (text, BLOCKS[name] % text):
      score = task.score(example, completion)
      for value, component in zip(score.values, task.components, strict=True):
        assert component.minimum <= value <= component.maximum
      if hasattr(task, "answer_key"):
        task.answer_key(completion)
        task.answer_key(completion, example)

  @pytest.mark.parametrize("name", [*TASKS, "math_verify"])
  def test_grading_processes_give_it(self, name):
    if name == "math_verify":
      pytest.importorskip(name)
      task = make("math", grader=name)
    else:
      task = make(name)
    example = task.examples("test")[3]
    texts = [task.gold_completion(example), "", "y" * 10**6]
    with grading.Grader(
      task, num_workers=1, limit_s=30.0, crash_tolerance=0.0
    ) as grader:
      graded = grader.grade([example] * 3, texts)
    scores = [task.score(example, text) for text in texts]
    assert graded.outcomes == tuple(score.outcome for score in scores)
    assert graded.outcomes[0] is Outcome.RIGHT and graded.scored.all()
    for row, score in zip(graded.rewards.tolist(), scores, strict=True):
      assert row == pytest.approx(score.values)


class TestLabels:
  @each_generated
  def test_the_truth_as_a_label_scores_as_the_truth(self, name):
    task = make(name)
    for example in task.examples("train")[:40]:
      gold = task.gold_completion(example)
      key = task.answer_key(gold, example)
      for label in (key, example.reference):
        labelled = task.with_label(example, label)
        same = dataclasses.replace(labelled, reference=example.reference)
        assert same == example
        assert task.score(labelled, gold) == task.score(example, gold)
        answer = task.gold_completion(labelled)
        assert task.answer_key(answer, example) == key

  @pytest.mark.parametrize(
    ("name", "label", "word"),
    [
      ("math", " ", "empty"),
      ("knights", "ann=knight", "no role"),
      ("knights", "None", "no role"),
      ("tool_calling", "weather in Oslo", "no calls"),
    ],
  )
  def test_what_is_none_is_refused(self, name, label, word):
    task = make(name)
    with pytest.raises(ValueError, match=word):
      task.with_label(task.examples("train")[0], label)


class TestDemonstrations:
  @each
  def test_are_training_examples_and_depend_on_the_seed(self, name):
    task, rates = make(name, num_train=60), TASKS[name][1]
    pairs = task.demonstrations(100, seed=1, **rates)
    again = make(name, num_train=60)
    assert pairs == again.demonstrations(100, seed=1, **rates)
    assert pairs[:50] == task.demonstrations(50, seed=1, **rates)
    assert pairs != task.demonstrations(100, seed=2, **rates)
    assert [e for e, _ in pairs[:60]] == list(task.examples("train"))
    assert pairs[60][0] == pairs[0][0]

  @pytest.mark.parametrize(
    ("name", "rates", "right", "unparsable"),
    [
      *((name, {}, 1.0, 0.0) for name in ("math", "knights")),
      ("math", {"right_rate": 0.0}, 0.0, 0.0),
      ("math", {"right_rate": 0.6, "box_rate": 0.5}, 0.3, 0.5),
      ("knights", {"right_rate": 0.7, "format_rate": 0.8}, 0.56, 0.2),
    ],
  )
  def test_rates_are_met(self, name, rates, right, unparsable):
    task = make(name)
    pairs = task.demonstrations(2000, seed=0, **rates)
    found = collections.Counter(task.score(*pair).outcome for pair in pairs)
    shares = {Outcome.RIGHT: right, Outcome.UNPARSABLE: unparsable}
    for outcome, share in shares.items():
      # Four deviations of a binomial; nothing that is certain ever fails.
      bound = 4 * (share * (1 - share) / 2000) ** 0.5
      assert found[outcome] / 2000 == pytest.approx(share, abs=bound)

  @pytest.mark.parametrize(
    ("name", "options", "word"),
    [
      (name, {rate: value}, "probability")
      for name, (task, _) in TASKS.items()
      for rate in inspect.signature(task.demonstrate).parameters
      if rate.endswith(("_rate", "_accuracy"))
      for value in (1.5, -0.1)
    ]
    + [
      ("knights", {"misleading": ("xor",)}, "'or'"),
      ("summaries", {"words": (4, 3)}, "words"),
    ],
  )
  def test_wrong_options_are_errors(self, name, options, word):
    rates = TASKS[name][1]
    with pytest.raises(ValueError, match=word):
      make(name).demonstrations(1, seed=0, **{**rates, **options})

  @pytest.mark.parametrize(
    ("name", "options", "marks"),
    [
      ("math", {"levels": (1, 2), "word_share": 0.0}, ("-",)),
      ("knights", {}, ("iff", "or")),
    ],
  )
  def test_self_belief_misleads_on_a_part(self, name, options, marks):
    made, misled = make(name, num_train=20, **options), 0
    pairs = made.demonstrations(
      2000, seed=0, right_rate=0.9, misleading=marks, misled_rate=0.7
    )
    answers = collections.defaultdict(collections.Counter)
    for example, text in pairs:
      answers[example.key][made.answer_key(text)] += 1
    for example in made.examples("train"):
      belief, votes = made.misbelief(example, marks), answers[example.key]
      (vote, size), *_ = votes.most_common()
      assert vote == (example.reference if belief is None else belief)
      if belief is not None:
        # A confident wrong majority, with a correct minority.
        assert belief != example.reference and votes[example.reference] > 5
        assert 0.5 < size / 100 < 0.9
        misled += 1
    assert 3 < misled < 17

  def test_a_part_is_right_but_dispersed(self):
    made = make("math", num_train=20, levels=(1, 2), word_share=0.0)
    pairs = made.demonstrations(
      4000, seed=0, right_rate=1.0, dispersing=("*",), dispersed_rate=0.6
    )
    shares, others = collections.defaultdict(list), set()
    for example, text in pairs:
      is_marked = "*" in example.messages[-1]["content"]
      is_right = made.score(example, text).outcome is base.Outcome.RIGHT
      shares[is_marked].append(is_right)
      if is_marked and not is_right:
        others.add((example.key, made.answer_key(text)))
    assert all(shares[False])
    assert 0.5 < sum(shares[True]) / len(shares[True]) < 0.7
    # Many mistakes a problem, and none that a majority agrees on.
    assert len(others) > 4 * len({key for key, _ in others})

  @pytest.mark.parametrize(
    ("name", "options", "rates"),
    [
      ("math", {"levels": (1, 2, 3, 4), "word_share": 0.7}, {"box_rate": 0.5}),
      (
        "knights",
        {"people": (2, 5, 8), "shuffle_names": True},
        {"format_rate": 0.5, "misleading": ("iff",), "verdict_rate": 0.2},
      ),
    ],
  )
  def test_the_short_vocabulary_has_every_piece(self, name, options, rates):
    short = registry.make_tokenizer(name)
    made = make(name, num_train=300, **options)
    for example, answer in made.demonstrations(1000, seed=0, **rates):
      for text in (example.messages[-1]["content"], answer):
        assert short.decode(short.encode(text)) == text


class TestFiles:
  @pytest.mark.parametrize("name", ["math", "knights", "summaries"])
  def test_a_subset_is_random_and_fixed_by_the_seed(self, name, tmp_path):
    def chosen(**options):
      task = from_files(name, tmp_path, 50, **options)
      return [example.key for example in task.examples("train")]

    assert chosen() == chosen(num_train=99) == list(range(50))
    found = chosen(num_train=20, seed=1)
    assert len(set(found)) == 20 and found == sorted(found)
    assert found == chosen(num_train=20, seed=1)
    assert found != chosen(num_train=20, seed=2)
    # A larger subset has the smaller one in it.
    assert set(found) < set(chosen(num_train=30, seed=1))

  @pytest.mark.parametrize("name", ["math", "knights"])
  def test_benchmarks_are_splits_of_all_their_rows(self, name, tmp_path):
    path = write(tmp_path / "more.jsonl", [ROWS[name](n) for n in range(7)])
    options = {"num_train": 4, "benchmarks": {"one": path, "two": path}}
    task = from_files(name, tmp_path, 9, **options)
    assert task.splits == ("train", "test", "one", "two")
    assert [len(task.examples(s)) for s in task.splits] == [4, 3, 7, 7]
    keys = [e.key for s in task.splits for e in task.examples(s)]
    assert len(set(keys)) == len(keys) and max(keys) < 2**31

  @each_generated
  @pytest.mark.parametrize("other", ["train", "test"])
  def test_the_other_file_is_asked_for(self, name, other, tmp_path):
    path = write(tmp_path / "rows.jsonl", [ROWS[name](0)])
    task = make(name, **{f"{other}_path": path})
    assert len(task.examples(other)) == 1
    missing = {"train": "test", "test": "train"}[other]
    with pytest.raises(ValueError, match=f"{missing}_path"):
      task.examples(missing)

  @each
  @pytest.mark.parametrize("suffix", ["json", "jsonl"])
  def test_a_broken_row_is_named_with_its_file(self, name, suffix, tmp_path):
    path = tmp_path / f"rows.{suffix}"
    assert_refused(name, path, ROWS[name](0), [1], "not an object")

  @each
  def test_an_empty_or_missing_one_is_named(self, name, tmp_path):
    with pytest.raises(ValueError, match="no rows"):
      from_files(name, tmp_path, 0).examples("train")
    path = str(tmp_path / "none.jsonl")
    with pytest.raises(FileNotFoundError, match="none.jsonl"):
      make(name, train_path=path, test_path=path).examples("train")


@pytest.mark.parametrize(
  ("name", "options", "word"),
  [
    ("math", {"grader": "exakt"}, "'exact'"),
    ("math", {"problems": "generate"}, "'generated'"),
    ("math", {"template": "box"}, "'boxed'"),
    ("math", {"levels": (0, 1)}, "levels"),
    ("math", {"word_share": 1.5}, "word_share"),
    ("math", {"num_train": 0}, "num_train"),
    ("math", {"generators": ()}, "generators"),
    ("math", {"benchmarks": {"level_2": "x"}}, "'level_2'"),
    ("math", {"length_limit": -1}, "length_limit"),
    ("math", {"conditioned": True}, "length_limit"),
    ("knights", {"template": "compct"}, "'compact'"),
    ("knights", {"people": (1, 3)}, "people"),
    ("knights", {"people": (9,)}, "people"),
    ("knights", {"compound_rate": 0.0}, "compound_rate"),
    ("knights", {"num_test": 0}, "num_test"),
    ("knights", {"benchmarks": {"people_3": "x"}}, "'people_3'"),
    ("summaries", {"reward": "rule"}, "'rules'"),
    ("summaries", {"template": "plan"}, "'plain'"),
    ("summaries", {"target_chars": 0}, "target_chars"),
    ("summaries", {"target_chars": 250}, "limit_chars"),
    ("summaries", {"num_train": 0}, "num_train"),
    ("summaries", {"cut_source_chars": 0}, "cut_source_chars"),
    ("summaries", {"train_path": "a.jsonl"}, "together"),
    ("summaries", {"judge": {"modle": "m"}}, "did you mean 'judge.model'"),
    ("summaries", {"reward": "judge"}, "judge.url"),
    ("tool_calling", {"num_distractors": (2, 1)}, "num_distractors"),
    ("tool_calling", {"no_call_share": 1.5}, "no_call_share"),
    ("tool_calling", {"call_weights": (1, 1, 1, 1)}, "call_weights"),
    ("tool_calling", {"call_weights": (2.0, -1.0)}, "call_weights"),
    ("tool_objectives", {"objectives": ("speed",)}, "speed"),
    ("tool_objectives", {"error_rate": 2}, "error_rate"),
  ],
)
def test_wrong_options_are_errors(name, options, word):
  with pytest.raises((ValueError, TypeError), match=word):
    registry.make_task(name, options)


def test_an_example_is_made_when_it_is_asked_for():
  made = []
  examples = answer_task.LazyExamples(lambda i: made.append(i) or i, 5)
  assert (len(examples), made) == (5, [])
  assert (examples[-1], examples[1:4:2]) == (4, [1, 3])
  assert made == [4, 1, 3]
  assert list(examples) == [0, 1, 2, 3, 4]
  for index in (5, -6):
    with pytest.raises(IndexError):
      examples[index]
