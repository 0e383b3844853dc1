"""Rows of any source, their split, and functions that reward them."""

import asyncio
import json
import sys
import time

import numpy as np
import pytest

import saw_jax
from saw_jax import naming
from saw_jax.run import doctor
from saw_jax.tasks.answer_task import TEST_KEYS
from saw_jax.tasks.base import Outcome
from saw_jax.tasks.rows import rewards
from saw_jax.tasks.workers.grading import Grader
from saw_jax.tasks.workers.pool import RewardError
from tests.tasks.answer_task_test import texts, write

ROWS = [{"question": f"say {x}", "answer": x} for x in "abcdefghijklmnopqrst"]
LOOPS = set()  # in which a function waited


def right(completion, row):
  return float(row["answer"] in completion)


def task(rows=ROWS, **options):
  options = {"prompt": "question", "rewards": [right]} | options
  return saw_jax.task(rows, **options)


def asked(made, split="train"):
  return texts(made.examples(split))


class Dataset:
  """Rows as the library `datasets` has them: something to go through."""

  def __iter__(self):
    return iter(ROWS)


class TestRows:
  def test_every_source_has_the_same_rows(self, tmp_path):
    lines = tmp_path / "x.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    table = tmp_path / "x.csv"
    cells = "".join(f'"{row["question"]}",{row["answer"]}\n' for row in ROWS)
    table.write_text("\ufeffquestion,answer\n" + cells)
    want = task().examples("train")
    for source in (str(lines), table, iter(ROWS), Dataset()):
      assert task(source).examples("train") == want
    assert want[0].meta["row"] == ROWS[want[0].key]

  def test_a_prompt_is_a_text_or_messages_or_a_text_around_columns(self):
    chat = [{"role": "user", "content": "hi"}]
    chat += [{"role": "assistant", "content": "yes?"}, chat[0]]
    row = {"question": "say a", "answer": "a", "chat": chat}
    for options, want in (
      ({"prompt": "chat"}, chat),
      (
        {"prompt": "{question}: {answer}!", "system": "Be short."},
        [
          {"role": "system", "content": "Be short."},
          {"role": "user", "content": "say a: a!"},
        ],
      ),
    ):
      made = task([row], test=[row], **options)
      assert list(made.examples("train")[0].messages) == want

  @pytest.mark.parametrize(
    ("rows", "options", "word"),
    [
      (ROWS, {"prompt": "questoin"}, "row 0.*'question'"),
      (ROWS, {"prompt": "Q: {quest}"}, "'question'"),
      (ROWS, {"answer": "anser"}, "'answer'"),
      ([{"question": 7}], {}, "not 7"),
      ([ROWS[0], "say b"], {}, "row 1.*str"),
      ([], {}, "no rows"),
      ({"train": ROWS}, {}, "train"),
      ("x.txt", {}, "csv"),
      (ROWS, {"test": 1.5}, "share"),
      (ROWS[:1] * 2, {}, "2 rows with 1 prompts none is left"),
      ([{"a": None}], {"prompt": "{a:.2f}"}, "row 0: unsupported"),
      ([{"a": "b"}], {"prompt": "{a:{w}}"}, "row 0: prompt .*'w'"),
      (ROWS, {"answer_key": str}, "answer"),
      (ROWS, {"rewards": []}, "no reward"),
      (ROWS, {"rewards": [lambda completion, row: 1]}, "name"),
      (ROWS, {"rewards": [right, right]}, "twice"),
      (ROWS, {"rewards": "right"}, "my_rewards.py"),
      (ROWS, {"rewards": {"one": lambda text: 1}}, "'one' is no.*too many"),
      *((ROWS, {"rewards": {x: right}}, x) for x in ("total", "step", "seed")),
      (ROWS, {"ranges": {"right": (1, 1)}}, "no range"),
    ],
  )
  def test_a_mistake_is_named(self, rows, options, word):
    with pytest.raises(ValueError, match=word):
      task(rows, **options).examples("train")

  def test_options_have_the_nearest_name(self):
    with pytest.raises(TypeError, match="'rewards'"):
      task(rewrads=[right])
    with pytest.raises(TypeError, match="'right'"):
      task(ranges={"rihgt": (0, 1)})

  def test_a_held_out_row_stays_so_when_others_come(self):
    rows = [{"question": f"{n} + 1"} for n in range(400)]
    few, many = task(rows[:200], test=0.2), task(rows[::-1], test=0.2)
    assert 25 < len(few.examples("test")) < 55
    assert set(asked(few, "test")) <= set(asked(many, "test"))
    assert set(asked(few)) <= set(asked(many))
    # Equal prompts are on one side, and no key is of both.
    twice = task(rows + rows, test=0.2)
    assert not set(asked(twice)) & set(asked(twice, "test"))
    assert min(one.key for one in twice.examples("test")) >= TEST_KEYS
    # Of a few rows one is held out.
    assert len(task(ROWS[:3], test=0.001).examples("test")) == 1

  def test_held_out_rows_of_their_own(self, tmp_path):
    path = write(tmp_path / "x.json", ROWS[:2])
    for test in (ROWS[:2], path):
      made = task(test=test)
      assert asked(made, "test") == ["say a", "say b"]
      assert len(made.examples("train")) == len(ROWS)


def size(completions, rows):
  return np.minimum([len(text) for text in completions], 4) / 4


async def waits(completion, row):
  LOOPS.add(asyncio.get_running_loop())
  await asyncio.sleep(0.2)
  return right(completion, row)


async def waits_for_all(completions, rows):
  return [await waits(*pair) for pair in zip(completions, rows, strict=True)]


@rewards.reward(minimum=-1.0, maximum=2.0)
def wide(completion, row):
  return len(completion) - 1 if completion else None


class Judge:
  """A function that is an object."""

  __name__ = "judge"

  def __call__(self, completion, row):
    return True


class TestRewards:
  def test_every_kind_of_function(self):
    made = task(rewards=[right, size, waits, wide, Judge()])
    example = made.examples("train")[0]
    answer = example.meta["row"]["answer"]
    names = [component.name for component in made.components]
    assert names == ["right", "size", "waits", "wide", "judge"]
    found = made.score(example, answer)
    assert found.values == (1.0, 0.25, 1.0, 0, True)
    assert found.outcome is Outcome.WRONG  # two are below their maximum
    assert made.score(example, "").values == (0.0, 0.0, 0.0, None, True)
    best = task(rewards={"mine": right}, ranges={"mine": (0, 1)})
    assert best.score(example, answer).outcome is Outcome.RIGHT
    assert best.components[0].name == "mine"

  def test_what_waits_is_awaited_together(self):
    made = task(rewards=[waits])
    pairs = [(one, "abc") for one in made.examples("train")]
    start = time.perf_counter()
    found = made.score_many(pairs)
    assert time.perf_counter() - start < 0.2 * len(pairs) / 2
    assert [x.values[0] for x in found][:4] == [1.0, 1.0, 1.0, 0.0]
    assert made.score(*pairs[0]).values == (1.0,) and len(LOOPS) == 1
    assert task().score_many is None  # each by itself, in its own time

  def test_ranges_are_of_the_decorator_or_the_argument(self):
    made = task(rewards=[wide, right], ranges={"right": (-2, 3)})
    found = [(c.minimum, c.maximum) for c in made.components]
    assert found == [(-1.0, 2.0), (-2.0, 3.0)]

  def test_functions_of_a_file_by_their_names(self, tmp_path):
    path = tmp_path / "rewards_of_this_test.py"
    path.write_text(
      "def a(c, row): return 1\ndef b(c, row): return helper(c)\n"
    )
    # Its neighbours are found, too, by worker processes as well.
    text = "from helper_of_this_test import helper\n" + path.read_text()
    path.write_text(text)
    helper = "def helper(text): return 0.5\n"
    (tmp_path / "helper_of_this_test.py").write_text(helper)
    made = task(rewards=f"{path}:a,b")
    example = made.examples("train")[0]
    with Grader(made, num_workers=1, limit_s=5.0) as grader:
      assert grader.grade([example], ["x"]).rewards.tolist() == [[1.0, 0.5]]
    written = made.remember(tmp_path)["rewards"]
    assert written == {"a": f"{path}:a", "b": f"{path}:b"}
    path.rename(tmp_path / "elsewhere.py")
    del naming.FILES[sys.modules[path.stem].__name__]
    with pytest.raises(FileNotFoundError, match="moved"):
      task(rewards=written)

  def test_rows_in_memory_are_written_down(self, tmp_path):
    rows = [{**row, "n": np.float32(2)} for row in ROWS]
    options = task(rows, test=rows[:1]).remember(tmp_path / "run")
    again = saw_jax.task(**options | {"rewards": [right]})
    assert asked(again) == asked(task(rows, test=rows[:1]))
    assert again.examples("test")[0].meta["row"]["n"] == 2
    other = task(rows[:5], test=rows[:1]).remember(tmp_path / "run")
    assert other["rows"] != options["rows"]  # another run's name

  def test_votes(self):
    made = task(answer="answer", answer_key=lambda text: text[:1] or None)
    example = made.examples("train")[0]
    assert not hasattr(task(), "answer_key")
    assert made.answer_key("xyz", example) == "x"
    assert made.gold_completion(example) == example.reference
    assert not doctor.check_task(made, ["train"], 5)
    keyless = task(answer="answer", answer_key=lambda text: None)
    first, *_ = doctor.check_task(keyless, ["train"], 5)
    assert "answer_key finds nothing" in first
    label = made.with_label(example, "z")
    assert made.score(label, "z").values == (1.0,)
    assert label.reference == "z"
    rows = [{**row, "answer": 7} for row in ROWS]
    made = task(rows, answer="answer", answer_key=int)
    example = made.examples("train")[0]
    found = [made.with_label(example, x).meta["row"]["answer"] for x in "8x"]
    assert found == [8, "x"]  # a number, as the column has
    assert made.answer_key("07") == "7"
    with pytest.raises(RewardError, match="answer_key on completion 'x'"):
      made.answer_key("x")


def graded(fns, texts, **options):
  made = task(rewards=fns)
  options = {"num_workers": 1, "limit_s": 1.0, "crash_tolerance": 0.5} | options
  with Grader(made, **options) as grader:
    return grader.grade([made.examples("train")[0]] * len(texts), texts)


class TestMisbehaving:
  """What a function does wrong, in a worker process, sent there by value."""

  def test_what_raises_or_hangs_is_masked_alone(self):
    def bad(completions, rows):
      for text in completions:
        if text == "raise":
          raise ZeroDivisionError(text)
        while text == "hang":
          time.sleep(1)
      return [1.0] * len(completions)

    def single(completion, row):
      return bad([completion], [row])[0]

    texts = ["a", "raise", "b", "hang", "c"]
    for fn in (bad, single):
      # Half of the completions may have no reward.
      found = graded([fn], texts, unscored_tolerance=1.0)
      wanted = ["wrong", "crashed", "wrong", "timed_out", "wrong"]
      wanted = [w.replace("wrong", "right") for w in wanted]
      assert [one.value for one in found.outcomes] == wanted
      assert found.scored[:, 0].tolist() == [True, False, True, False, True]

  @pytest.mark.parametrize(
    ("value", "word"),
    [
      (float("nan"), "finite"),
      ("yes", "number"),
      (3, "outside"),
      ([], "number"),
    ],
  )
  def test_what_is_no_reward_names_the_function(self, value, word):
    def odd(completion, row):
      return value

    with pytest.raises(RewardError, match=f"'odd'.*{word}"):
      graded([right, odd], ["a"], num_workers=0)

  def test_another_number_of_values_names_the_function(self):
    def odd(completions, rows):
      return [0.5]

    with pytest.raises(RewardError, match="'odd' is '1 values for 3"):
      graded([odd], ["a"] * 3, num_workers=0)

  def test_none_is_no_reward_of_that_component(self):
    found = graded([right, wide], ["", "a"], num_workers=0)
    assert found.scored.tolist() == [[True, False], [True, True]]
