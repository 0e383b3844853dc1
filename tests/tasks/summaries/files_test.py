"""Texts with their summaries: readers, and what may not be in both splits."""

import pytest

from saw_jax.tasks.summaries import files as summary_files
from saw_jax.tasks.summaries.files import Row
from tests.tasks.answer_task_test import write


def numbered(first, count):
  """A text of different words."""
  return " ".join(f"w{i}" for i in range(first, first + count))


class TestRead:
  def test_what_comes_along_has_the_rows_that_its_readme_says(self):
    sizes = [
      len(summary_files.read_rows([path]))
      for files in summary_files.DOCSUM_FILES.values()
      for path in files
    ]
    assert sizes == [1037, 2363, 400]
    readme = (summary_files._DOCSUM / "README.md").read_text()
    assert all(f"| {size:,} |" in readme for size in sizes)

  def test_each_row_says_its_licence_and_is_in_the_file_of_it(self):
    apache, bsd = summary_files.DOCSUM_FILES["train"]
    for path, licence in ((apache, "Apache-2.0"), (bsd, "BSD-3-Clause")):
      rows = summary_files.read_rows([path])
      assert {row.meta["licence"] for row in rows} == {licence}
    notice = (summary_files._DOCSUM / "LICENSE-BSD.txt").read_text()
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
    (found,) = summary_files.read_rows([write(tmp_path / "rows.jsonl", [row])])
    assert (found.text, found.summary) == (text, "s")

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
      summary_files.read_rows([path])
    assert str(info.value).startswith(f"{path}, row 1: ")


class TestLeaks:
  TEST = (Row(0, numbered(0, 27), "Returns a thing.", {}),)  # 20 runs

  def kept(self, text, summary="Another one"):
    row = Row(0, text, summary, {})
    return summary_files.without_leaks([row], self.TEST) == [row]

  def test_a_fifth_of_the_runs_is_too_much(self):
    # 11 words are 4 runs of 8, a fifth of 20; 10 words are 3.
    assert self.kept(numbered(0, 10) + " " + numbered(100, 100))
    assert not self.kept(numbered(0, 11) + " " + numbered(100, 100))

  def test_the_shorter_text_counts(self):
    # 12 words have 5 runs, of which 8 equal words make one: a fifth.
    assert not self.kept(numbered(5, 8) + " " + numbered(200, 4))
    assert self.kept(numbered(5, 8) + " " + numbered(200, 5))

  def test_signs_and_case_do_not_hide_a_leak(self):
    assert not self.kept(numbered(0, 27).upper().replace(" ", ", "))
    assert not self.kept("other words", "returns A THING")

  def test_short_texts_leak_only_when_equal(self):
    test = [Row(0, "two words", "s", {})]
    rows = [Row(0, "two words", "x", {}), Row(1, "two others", "y", {})]
    assert summary_files.without_leaks(rows, test) == rows[1:]
