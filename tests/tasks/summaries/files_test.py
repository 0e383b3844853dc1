"""Texts with their summaries: readers, and what may not be in both splits."""

import pytest

from saw_jax.tasks.base import Example
from saw_jax.tasks.summaries import task as summary_files
from tests.tasks.answer_task_test import write


def numbered(first, count):
  """A text of different words."""
  return " ".join(f"w{i}" for i in range(first, first + count))


class TestRead:
  def test_what_comes_along_has_the_sizes_and_licences_that_it_says(self):
    readme, notice = (
      (summary_files._DOCSUM / name).read_text()
      for name in ("README.md", "LICENSE-BSD.txt")
    )
    apache, bsd = summary_files.DOCSUM_FILES["train"]
    for path, size, licence in (
      (apache, 1037, "Apache-2.0"),
      (bsd, 2363, "BSD-3-Clause"),
      (*summary_files.DOCSUM_FILES["test"], 400, None),
    ):
      rows = summary_files.read_examples([path])
      assert len(rows) == size and f"| {size:,} |" in readme
      if licence:
        assert {row.meta["licence"] for row in rows} == {licence}
      if licence == "BSD-3-Clause":
        for package in {row.meta["package"] for row in rows}:
          assert f"\n{package} " in notice

  @pytest.mark.parametrize(
    ("row", "text"),
    [
      ({"text": " a b ", "summary": "s"}, "a b"),
      ({"post": "a b", "summary": "s", "id": 3}, "a b"),
      ({"title": "t", "post": "a b", "summary": "s"}, "t\n\na b"),
      ({"title": " ", "post": "a b", "summary": "s"}, "a b"),
      ({"prompt": "POST: a b\n\nTL;DR:", "label": "s"}, "POST: a b"),
      ({"prompt": "POST: a b\nTL;DR: ", "completion": " s"}, "POST: a b"),
    ],
  )
  def test_schemas(self, tmp_path, row, text):
    path = write(tmp_path / "rows.jsonl", [row])
    one, other = summary_files.read_examples([path, path])
    assert one.meta["source"] == other.meta["source"] == text
    assert (one.key, other.key, one.reference) == (0, 1, "s")

  @pytest.mark.parametrize(
    ("row", "words"),
    [
      ({"summary": "s"}, "text, post"),
      ({"text": "a"}, "columns are text"),
      ({"text": 3, "summary": "s"}, "'text'"),
      ({"text": "...", "summary": "s"}, "the text"),
      ({"text": "a", "summary": "?!"}, "the summary"),
    ],
  )
  def test_a_broken_row_is_named(self, tmp_path, row, words):
    path = write(tmp_path / "rows.jsonl", [{"text": "a", "summary": "s"}, row])
    with pytest.raises(ValueError, match=words) as info:
      summary_files.read_examples([path])
    assert str(info.value).startswith(f"{path}, row 1: ")


@pytest.mark.parametrize(
  ("text", "summary", "leaks"),
  [
    # A fifth of the runs is too much: 11 words are 4 runs of 8, of 20.
    (numbered(0, 10) + " " + numbered(100, 100), "x", False),
    (numbered(0, 11) + " " + numbered(100, 100), "x", True),
    # The shorter text counts: 12 words have 5 runs, of which 8 equal words make
    # one: a fifth.
    (numbered(5, 8) + " " + numbered(200, 4), "x", True),
    (numbered(5, 8) + " " + numbered(200, 5), "x", False),
    # Signs and case do not hide a leak.
    (numbered(0, 27).upper().replace(" ", ", "), "x", True),
    ("other words", "returns A THING", True),
    # Short texts leak only when they are equal.
    ("two words", "x", True),
    ("two others", "x", False),
  ],
)
def test_leaks(text, summary, leaks):
  test = [
    Example(0, (), "Returns a thing.", {"source": numbered(0, 27)}),  # 20 runs
    Example(1, (), "s", {"source": "two words"}),
  ]
  row = Example(0, (), summary, {"source": text})
  assert summary_files.without_leaks([row], test) == [row] * (not leaks)
