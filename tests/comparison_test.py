"""docs/comparison.md: the numbers of its table are those of its code."""

import ast
import pathlib
import re

import pytest

from tests import helpers

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "comparison.md"
WIDTH = 88


def sections():
  """The blocks, kind and code, of each heading's first fold."""
  found = {}
  for part in PAGE.read_text("utf-8").split("\n## ")[1:]:
    name, _, text = part.partition("\n")
    fold = text.partition("</details>")[0]
    found[name] = re.findall(r"^```(\w+)\n(.*?)^```$", fold, re.M | re.S)
  return found


def rows():
  """The lines and the files that the table says, by heading."""
  pattern = r"^\| \[.*?\]\(#([\w-]+)\) \| (\d+) \| (\d+) \|"
  text = PAGE.read_text("utf-8")
  return {
    anchor: (int(lines), int(files))
    for anchor, lines, files in re.findall(pattern, text, re.M)
  }


def count(code):
  lines = (line.strip() for line in code.splitlines())
  return sum(bool(line) and not line.startswith("#") for line in lines)


def test_the_table_counts_what_is_on_the_page():
  counted = {}
  for name, blocks in sections().items():
    files = sum(kind != "bash" for kind, _ in blocks)
    lines = sum(count(code) for _, code in blocks)
    counted[name.lower().replace(" ", "-")] = lines, files
  # A change to a file of theirs is one for each file that it touches.
  lines, files = counted["prime-rl-with-verifiers"]
  counted["prime-rl-with-verifiers"] = lines, files + 1
  assert rows() == counted
  ours, *others = (lines for lines, _ in rows().values())
  assert ours == min([ours, *others]) and ours <= 14


@pytest.mark.parametrize("name", sections())
def test_code_is_laid_out_alike_and_none_is_squeezed(name):
  for kind, code in sections()[name]:
    assert max(map(len, code.splitlines())) <= WIDTH
    if kind == "py":
      ast.parse(code)
      done = helpers.python("-m", "ruff", "format", "-", input=code)
      assert (done.returncode, done.stdout) == (0, code)
