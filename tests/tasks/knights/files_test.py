"""Tests of saw_jax/tasks/knights/files.py."""

import json

import pytest

from saw_jax.tasks.knights import files as knights_files

TEXT = "(1) Zoey is a knave\n(2) Oliver is a knight"
ROLES = "oliver=knight|zoey=knave"
PUBLIC = {
  "quiz": "A very special island. Zoey said ...",
  "names": ["Zoey", "Oliver"],
  "solution": [False, True],
  "solution_text_format": TEXT,
}


def verl(truth, **fields):
  return {
    "data_source": "kk_logic",
    "prompt": [{"role": "user", "content": "Who is who?"}],
    "reward_model": {"ground_truth": truth, "style": "rule"},
    **fields,
  }


def write(tmp_path, rows, name="rows.jsonl"):
  path = tmp_path / name
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


class TestReads:
  @pytest.mark.parametrize(
    "row",
    [
      PUBLIC,
      verl({"solution_text_format": TEXT, "statements": "..."}),
      verl({"answer": TEXT}),
      verl(TEXT),
      verl("zoey=knave|oliver=knight"),
      {"quiz": "Who?", "target": TEXT},
    ],
  )
  def test_the_known_forms(self, tmp_path, row):
    (example,) = knights_files.read_examples(write(tmp_path, [row]))
    assert example.reference == ROLES

  def test_the_puzzle_and_its_keys(self, tmp_path):
    wrapped = "<|im_start|>user ...<think>"
    rows = [PUBLIC, verl(TEXT), verl(TEXT, quiz="Q", prompt=wrapped)]
    examples = knights_files.read_examples(
      write(tmp_path, rows), first_key=100, template="{puzzle}!"
    )
    assert [e.key for e in examples] == [100, 101, 102]
    assert [e.messages[-1]["content"] for e in examples] == [
      "A very special island. Zoey said ...!",
      "Who is who?!",
      "Q!",
    ]

  def test_parquet(self, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [verl({"solution_text_format": TEXT}, quiz="Q")] * 2
    path = tmp_path / "train.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert [e.reference for e in knights_files.read_examples(path)] == [
      ROLES
    ] * 2


class TestBrokenRows:
  @pytest.mark.parametrize(
    ("row", "message"),
    [
      ([1], "row 1: not an object"),
      ({"quiz": " ", "answer": TEXT}, "the puzzle is empty"),
      ({"quiz": 3, "answer": TEXT}, "'quiz' is not a str"),
      ({"quiz": "Q"}, "no field 'reward_model'"),
      ({"quiz": "Q", "answer": "42"}, "no roles in the solution '42'"),
      (verl({"solution": TEXT}), "no field 'solution_text_format'"),
      (verl(3), "'ground_truth' is not a"),
      (verl(TEXT, prompt=[]), "not an object with a field 'content'"),
      (
        verl(TEXT, prompt=[{"content": "<|im_start|>user"}]),
        "has chat markers",
      ),
    ],
  )
  def test_are_named(self, tmp_path, row, message):
    path = write(tmp_path, [PUBLIC, row])
    with pytest.raises(ValueError, match=message):
      knights_files.read_examples(path)

  def test_no_rows_and_no_file(self, tmp_path):
    with pytest.raises(ValueError, match="no rows"):
      knights_files.read_examples(write(tmp_path, []))
    with pytest.raises(FileNotFoundError):
      knights_files.read_examples(tmp_path / "none.jsonl")
