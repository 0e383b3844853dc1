"""Rows of files, and what is said of broken ones."""

import json
import pathlib
import sys

import pytest

from saw_jax.tasks import row_files
from tests.tasks.answer_task_test import write

ROWS = [{"a": 1, "b": "é"}, {"a": 2, "b": ""}]


def test_each_kind_of_file_has_the_same_rows(tmp_path):
  lines = tmp_path / "x.jsonl"
  lines.write_text("\n" + "".join(json.dumps(row) + "\n\n" for row in ROWS))
  assert list(row_files.read_rows(str(lines))) == ROWS
  for suffix in (".json", ".parquet"):  # the second needs pyarrow
    path = write(tmp_path / f"x{suffix}", ROWS)
    assert list(row_files.read_rows(pathlib.Path(path))) == ROWS


def test_a_missing_file_is_one_sentence(tmp_path):
  for suffix in (".json", ".jsonl", ".parquet"):
    path = tmp_path / f"x{suffix}"
    with pytest.raises(FileNotFoundError) as info:
      list(row_files.read_rows(path))
    assert str(info.value) == f"{path}: there is no such file."


@pytest.mark.parametrize(
  ("name", "text", "message"),
  [
    ("x.txt", "", "not a .parquet"),
    ("x.json", "{", "not JSON"),
    ("x.json", "{}", "not a list of rows"),
    ("x.jsonl", "{}\n\n{\n", "line 2: "),
  ],
)
def test_a_broken_file_is_named(tmp_path, name, text, message):
  path = tmp_path / name
  path.write_text(text)
  with pytest.raises(ValueError, match=message) as info:
    list(row_files.read_rows(path))
  assert str(info.value).startswith(str(path))


def test_a_missing_pyarrow_names_the_extra(tmp_path, monkeypatch):
  path = tmp_path / "x.parquet"
  path.touch()
  monkeypatch.setitem(sys.modules, "pyarrow", None)
  monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
  with pytest.raises(ImportError, match=r"saw_jax\[data\]"):
    list(row_files.read_rows(path))


@pytest.mark.parametrize(
  ("row", "name", "kind", "message"),
  [
    ({"a": 1}, "b", int, "^no field 'b'$"),
    ({"a": 1}, "a", str, "^field 'a' is not a str$"),
    ({"a": 1}, "a", (str, list), "^field 'a' is not a str or list$"),
    ([1], "a", int, "not an object with a field 'a'"),
  ],
)
def test_a_field_is_there_and_of_its_kind(row, name, kind, message):
  assert row_files.field({"a": 1}, "a", (str, int)) == 1
  with pytest.raises(ValueError, match=message):
    row_files.field(row, name, kind)
