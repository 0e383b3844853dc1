"""Pages of tables."""

import re

import pytest

from saw_jax.reporting import pages, papers, statistics, tables

TEXT = """\
### A table

| row | ours (here, tiny) | theirs (published) |
| --- | ---: | ---: |
| care | 0.9 | 0.8 [1] |
| <script>alert(1)</script> | 0.7 | – |

[1] a note & more.

### Another

| row | (published) is not last | ours |
| --- | ---: | ---: |
| a | 1 | 2 |
"""


def cells(page: str) -> list[tuple[bool, str]]:
  found = re.findall(r"<t[hd]([^>]*)>(.*?)</t[hd]>", page)
  return [("published" in attributes, text) for attributes, text in found]


def test_published_columns_and_no_others_are_marked():
  found = cells(pages.to_html(TEXT))
  marked = [text for is_published, text in found if is_published]
  assert marked == ["theirs (published)", "0.8 [1]", "–"]
  unmarked = {text for is_published, text in found if not is_published}
  assert {"0.9", "0.7", "1", "2"} <= unmarked


def test_a_table_as_it_is_written_has_its_published_cells_marked():
  own = {"gdpo": {"Acc": statistics.summarise([1.0, 2.0])}}
  cell = papers.read("saw")[0]
  lines = tables.to_markdown("Tools", "tiny", own, {"gdpo": {"Acc": cell}})
  page = pages.to_html("\n".join(lines))
  marked = [text for is_published, text in cells(page) if is_published]
  assert marked[0] == "Acc (published)" and len(marked) == 2
  assert marked[1].startswith(str(cell.value))


def test_markup_is_text_and_the_title_is_the_first_heading():
  page = pages.to_html(TEXT)
  assert "<script" not in page and "&lt;script&gt;" in page
  assert "<title>A table</title>" in page
  assert "a note &amp; more" in page


def test_a_folder_becomes_a_page_with_its_pictures(tmp_path):
  (tmp_path / "table.md").write_text(TEXT, encoding="utf-8")
  for name in ("b.png", "a.png"):
    (tmp_path / name).write_bytes(b"")
  page = pages.write_page(tmp_path)
  assert page == tmp_path / "table.html"
  found = re.findall('src="([^"]*)"', page.read_text(encoding="utf-8"))
  assert found == ["a.png", "b.png"]
  assert "http" not in page.read_text(encoding="utf-8")


def test_a_folder_without_a_table_has_no_page(tmp_path):
  with pytest.raises(FileNotFoundError, match="table.md"):
    pages.write_page(tmp_path)
  assert not list(tmp_path.iterdir())
