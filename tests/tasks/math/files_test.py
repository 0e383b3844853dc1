"""Readers of problem files: a row of our own in each schema, and real ones."""

import pathlib

import pytest

from saw_jax.tasks.math import files as math_files
from saw_jax.tasks.math.answers import normalise_answer
from tests.tasks.answer_task_test import assert_refused, texts, write

DATA = pathlib.Path(__file__).parents[2] / "data"


class TestRealRows:
  def test_gsm8k(self):
    train = math_files.read_examples(DATA / "gsm8k" / "train.jsonl")
    assert [e.reference for e in train] == ["72", "10", "5", "42", "624"]
    assert texts(train)[0].startswith("Natalia sold clips to 48")
    working = train[0].meta["working"]
    assert "48/2 = 24 clips" in working
    assert "<<" not in working and "####" not in working
    test = math_files.read_examples(DATA / "gsm8k" / "test.jsonl", key=9)
    assert [e.key for e in test] == [9, 10, 11, 12, 13]

  def test_svamp(self):
    found = math_files.read_examples(DATA / "svamp" / "SVAMP.json")
    assert [e.reference for e in found][:2] == ["51", "1"]
    assert texts(found)[0] == (
      "Each pack of dvds costs 76 dollars. If there is a discount of 25 "
      "dollars on each pack. How much do you have to pay to buy each pack?"
    )
    assert len(found) == 6


VERL = {
  "data_source": "ours",
  "prompt": [{"role": "user", "content": "What is 2 + 2?"}],
  "reward_model": {"ground_truth": "4", "style": "rule"},
}
MATH = {"problem": "What is 2 + 2?", "level": "Level 1", "type": "Sums"}
MATH["solution"] = r"We add: \boxed{2+2 = 4}, so \boxed{4}."
# One row of our own in the schema of each data set.
SCHEMAS = {
  "MATH": MATH,
  "AIME": {"Problem": "What is 2 + 2?", "Solution": "We add.", "Answer": 4},
  "AMC 23": {"id": 0, "question": "What is 2 + 2?", "answer": 4.0},
  "Minerva": {"question": "What is 2 + 2?", "solution": r"\boxed{4}", "idx": 0},
  "several": {"question": "What is 2 + 2?", "final_answer": ["4"]},
  "boxed": {"problem": "What is 2 + 2?", "answer": r"$\boxed{4}$"},
  "bare": {**MATH, "solution": r"So $x = \boxed 4$. (Not $5$.)"},
  "bare fraction": {**MATH, "solution": r"\[\boxed\frac{8}{2}.\]"},
  "fbox": {**MATH, "solution": r"We get \fbox{4}."},
  "verl": VERL,
}


class TestSchemas:
  @pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
  @pytest.mark.parametrize("name", SCHEMAS)
  def test_each_is_recognised_by_its_columns(self, tmp_path, name, suffix):
    path = write(tmp_path / f"rows.{suffix}", [SCHEMAS[name]])
    (example,) = math_files.read_examples(path, key=7)
    assert example.key == 7
    assert example.messages == ({"role": "user", "content": "What is 2 + 2?"},)
    assert normalise_answer(example.reference) == "4"

  def test_the_template_is_put_around_the_problem(self, tmp_path):
    system = {"role": "system", "content": "Be brief."}
    row = {**VERL, "prompt": [system, *VERL["prompt"]]}
    path = write(tmp_path / "rows.jsonl", [row])
    (example,) = math_files.read_examples(path, template="<%s> {}")
    assert example.messages == (
      system,
      {"role": "user", "content": "<What is 2 + 2?> {}"},
    )

  def test_what_dapo_asks_beside_the_problem_is_left_out(self, tmp_path):
    # Its last line asks for an answer without a box.
    first = "Solve the following math problem step by step. The last line"
    last = "Remember to put your answer on its own line after ..."
    content = f"{first}\n\nWhat is 2 + 2?\n\nIt is a sum.\n\n{last}"
    row = {**VERL, "prompt": [{"role": "user", "content": content}]}
    (example,) = math_files.read_examples(write(tmp_path / "rows.jsonl", [row]))
    assert texts([example])[0] == "What is 2 + 2?\n\nIt is a sum."

  def test_repeated_rows_count_once_and_keep_their_number(self, tmp_path):
    other = {**VERL, "reward_model": {"ground_truth": "5"}}
    path = write(tmp_path / "rows.jsonl", [VERL, VERL, other, VERL])
    found = math_files.read_examples(path)
    assert [(e.key, e.reference) for e in found] == [(0, "4"), (2, "5")]


def test_few_rows_that_cannot_be_read_are_left_out_and_named(tmp_path, caplog):
  rows = [{**MATH, "problem": f"What is 2 + {n}?"} for n in range(200)]
  for left_out in (1, 2, 3):
    rows[40 * left_out] = {"problem": "x", "solution": "no box"}
    path = write(tmp_path / "rows.jsonl", rows)
    if left_out < 3:  # of 200, one in a hundred
      found = math_files.read_examples(path)
      assert len(found) == 200 - left_out and found[-1].key == 199
  assert f"{path}, row 40: field 'solution' has no" in caplog.text
  assert "rows 40, 80" in caplog.text
  with pytest.raises(ValueError, match="row 40: .*3 of 200 rows are unread"):
    math_files.read_examples(path)


def test_small_and_large_numbers_keep_their_digits(tmp_path):
  values = [1.6e-19, 0.1 + 0.2, 123456789012345.0, 2e30, -0.5, 8.0]
  rows = [{"problem": f"p{i}", "answer": x} for i, x in enumerate(values)]
  found = math_files.read_examples(write(tmp_path / "rows.jsonl", rows))
  assert [e.reference for e in found] == [
    *("1.6e-19", "0.3", "123456789012345", "2e+30", "-0.5", "8")
  ]


AMC, GSM8K = SCHEMAS["AMC 23"], {"question": "x", "answer": "y #### 1"}
SVAMP = {"Body": "x", "Question": "y", "Answer": 1.0}


@pytest.mark.parametrize(
  ("first", "second", "word"),
  [
    (MATH, {"problem": "x"}, "'solution'"),
    (MATH, {"problem": "x", "solution": r"\boxed{4"}, "boxed"),
    (AMC, {"question": None, "answer": 1}, "'problem'"),
    (AMC, {"question": " ", "answer": 1}, "empty"),
    (AMC, {"question": "x", "answer": ""}, "empty"),
    (AMC, {"question": "x", "answer": float("nan")}, "finite"),
    (AMC, {"question": "x", "answer": True}, "True"),
    (SCHEMAS["several"], {"question": "x", "final_answer": ["1", "2"]}, "2"),
    (GSM8K, {"question": "x", "answer": "y 1"}, "####"),
    (SVAMP, {**SVAMP, "Question": 3}, "'question'"),
    (VERL, {**VERL, "prompt": []}, "user"),
    (VERL, {**VERL, "prompt": "x"}, "'prompt'"),
    (VERL, {**VERL, "reward_model": {}}, "'ground_truth'"),
  ],
)
def test_a_broken_row_is_named(tmp_path, first, second, word):
  assert_refused("math", tmp_path / "rows.jsonl", first, second, word)


def test_unknown_columns_are_listed(tmp_path):
  path = write(tmp_path / "others.jsonl", [{"text": "x", "label": 1}])
  with pytest.raises(ValueError, match="label, text"):
    math_files.read_examples(path)
