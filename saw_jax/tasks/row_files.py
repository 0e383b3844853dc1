"""Rows of a local data file, and their fields; what is wrong is named."""

import codecs
import csv
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from saw_jax import naming

_T = TypeVar("_T")
_MARK = codecs.BOM_UTF8  # with which some editors begin a file


def read_rows(path: str | pathlib.Path) -> Iterator[Any]:
  """Yields the rows of a `.parquet`, `.jsonl`, `.json` or `.csv` file."""
  path = pathlib.Path(path)
  if path.suffix not in (".parquet", ".json", ".jsonl", ".csv"):
    raise ValueError(f"{path}: not a .parquet, .json, .jsonl or .csv file.")
  if path.suffix == ".json":
    yield from _read_json(path, list, "a list of rows")
    return
  _check_file(path)
  if path.suffix == ".parquet":
    with naming.needs_extra("data", "reading a .parquet file needs pyarrow"):
      import pyarrow.parquet
    yield from _read_parquet(path, pyarrow.parquet)
  elif path.suffix == ".csv":
    yield from _read_csv(path)
  else:
    yield from read_lines(path)


def _read_parquet(path: pathlib.Path, parquet: Any) -> Iterator[Any]:
  count = 0
  try:
    with parquet.ParquetFile(path, page_checksum_verification=True) as file:
      for batch in file.iter_batches(1000):
        yield from (rows := batch.to_pylist())
        count += len(rows)
  except Exception as error:  # of many kinds
    what = str(error).strip().partition("\n")[0][:200] or type(error).__name__
    where = f"{path}, row {count} or after"
    raise ValueError(f"{where}: damaged, or no Parquet: {what}") from error


def _read_csv(path: pathlib.Path) -> Iterator[dict[str, str]]:
  """Yields what the columns, named by the first line, say: texts alone."""
  with path.open(newline="", encoding="utf-8-sig") as file:
    reader = csv.DictReader(file)
    try:
      for row in reader:
        if None in row or None in row.values():
          raise ValueError(
            f"{path}, line {reader.line_num}: not as many columns as the first"
          )
        yield row
    except (csv.Error, UnicodeError) as error:
      where = f"{path}, after line {reader.line_num}"
      raise ValueError(f"{where}: {error}") from error


def read_lines(path: pathlib.Path) -> Iterator[Any]:
  """Yields the values of a file of JSON lines."""
  with path.open("rb") as file:
    for number, line in enumerate(file, 1):
      if text := line.removeprefix(_MARK if number == 1 else b"").strip():
        yield _parse(text, f"{path}, line {number}")


def read_object(path: str | pathlib.Path) -> dict[str, Any]:
  """Reads a JSON file that holds one object."""
  return _read_json(pathlib.Path(path), dict, "an object")


def parse_rows(
  path: str | pathlib.Path, parse: Callable[[Any], _T], what: str = "row"
) -> Iterator[_T]:
  """Yields what `parse` makes of each row; a ValueError of it names the row."""
  for number, row in enumerate(read_rows(path)):
    try:
      parsed = parse(row)
    except ValueError as error:
      raise ValueError(f"{path}, {what} {number}: {error}") from error
    yield parsed


def messages(row: Any) -> tuple[dict[str, str], ...]:
  """Returns the chat messages in the field `prompt` of a row in verl's form."""
  return tuple(
    {name: field(m, name, str) for name in ("role", "content")}
    for m in field(row, "prompt", list)
  )


def field(row: Any, name: str, kind: type | tuple[type, ...]) -> Any:
  """Returns a field of a row, of a kind that it has to be."""
  if not isinstance(row, Mapping):
    raise ValueError(f"not an object with a field {name!r}")
  if name not in row:
    raise ValueError(f"no field {name!r}")
  if not isinstance(row[name], kind):
    kinds = kind if isinstance(kind, tuple) else (kind,)
    wanted = " or ".join(one.__name__ for one in kinds)
    raise ValueError(f"field {name!r} is not a {wanted}")
  return row[name]


def texts(row: Any, name: str) -> tuple[str, ...]:
  """Returns a field of a row that is a text, or a list of texts."""
  found = field(row, name, (list, str))
  several = [found] if isinstance(found, str) else found
  if not all(isinstance(text, str) for text in several):
    raise ValueError(f"field {name!r} is not a list of texts")
  return tuple(several)


def _read_json(path: pathlib.Path, kind: type, what: str) -> Any:
  _check_file(path)
  content = _parse(path.read_bytes().removeprefix(_MARK), f"{path}: not JSON")
  if not isinstance(content, kind):
    raise ValueError(f"{path}: not {what}.")
  return content


def _parse(text: bytes, where: str) -> Any:
  try:
    return json.loads(text.decode())
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{where}: {error}") from error


def _check_file(path: pathlib.Path) -> None:
  if not path.is_file():
    what = "a folder, not a file" if path.is_dir() else "there is no such file"
    raise FileNotFoundError(f"{path}: {what}.")
