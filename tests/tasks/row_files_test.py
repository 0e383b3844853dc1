"""Rows of files, and what is said of broken ones."""

import gzip
import json
import pathlib
import sys

import pytest

from saw_jax.tasks import row_files
from tests import helpers
from tests.tasks.answer_task_test import write

ROWS = [{"a": 1, "b": "é"}, {"a": 2, "b": ""}]


def test_each_kind_of_file_has_the_same_rows(tmp_path):
  lines = tmp_path / "x.jsonl"
  text = "\n" + "".join(json.dumps(row) + "\n\n" for row in ROWS)
  lines.write_text(text, "utf-8-sig")
  assert list(row_files.read_rows(str(lines))) == ROWS
  for suffix in (".json", ".parquet"):  # the second needs pyarrow
    path = write(tmp_path / f"x{suffix}", ROWS)
    assert list(row_files.read_rows(pathlib.Path(path))) == ROWS


def test_a_file_that_is_none_is_one_sentence(tmp_path):
  (tmp_path / "y.json").mkdir()
  for name in ("x.json", "x.jsonl", "x.parquet", "y.json"):
    what = "a folder, not a file."
    if name[0] == "x":
      what = "there is no such file."
    with pytest.raises(FileNotFoundError) as info:
      list(row_files.read_rows(tmp_path / name))
    assert str(info.value) == f"{tmp_path / name}: {what}"


@pytest.mark.parametrize(
  ("name", "text", "message"),
  [
    ("x.json", "{", "not JSON"),
    ("x.json", "{}", "not a list of rows"),
    ("x.jsonl", "{}\n\n{\n", "line 3: "),
    ("x.json", "[" * 200_000, "not JSON: maximum recursion"),
    ("x.jsonl", "{}\n" + "[" * 200_000, "line 2: maximum recursion"),
    ("x.jsonl", "{}\n" + "9" * 5000, "line 2: Exceeds the limit"),
    ("x.jsonl", b"{}\n\xff", "line 2: 'utf-8' codec"),
    ("x.jsonl", gzip.compress(b"{}\n", mtime=0), "line 1: 'utf-8' codec"),
    ("x.json", b"\xff", "not JSON: 'utf-8' codec"),
    ("x.csv", b"a,b\n1,\xff", "'utf-8' codec"),
    ("x.csv", "a\n" + "b" * 200_000, "after line 1: field larger"),
    ("x.parquet", "PAR1" * 9, "row 0 or after: damaged"),
    ("x.csv.gz", "", "not a .parquet"),
  ],
)
def test_a_broken_file_is_named(tmp_path, name, text, message):
  path = tmp_path / name
  path.write_bytes(text if isinstance(text, bytes) else text.encode())
  with pytest.raises(ValueError, match=message) as info:
    list(row_files.read_rows(path))
  assert str(info.value).startswith(str(path))


def test_any_damage_of_a_parquet_file_is_one_sentence(tmp_path):
  path = pathlib.Path(write(tmp_path / "x.parquet", ROWS))
  whole, said = path.read_bytes(), 0
  for place in range(0, len(whole), 7):
    path.write_bytes(whole)
    helpers.flip_a_byte(path, place)
    try:
      list(row_files.read_rows(path))
    except ValueError as error:
      said += 1
      assert str(error).startswith(f"{path}, row ") and "\n" not in str(error)
  assert said > 20


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
