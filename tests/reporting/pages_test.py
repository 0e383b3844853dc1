"""Pages of tables."""

import re

import pytest

from saw_jax.reporting import pages, statistics, tables

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


def marked(page: str) -> tuple[list[str], list[str]]:
  """The texts of cells that are marked as published, and of the others."""
  found = re.findall(r"<t[hd]([^>]*)>(.*?)</t[hd]>", page)
  return tuple(
    [
      text
      for attributes, text in found
      if ("published" in attributes) == wanted
    ]
    for wanted in (True, False)
  )


def test_published_columns_and_no_others_are_marked():
  theirs, ours = marked(pages.to_html(TEXT))
  assert theirs == ["theirs (published)", "0.8 [1]", "–"]
  assert {"0.9", "0.7", "1", "2"} <= set(ours)
  # So are those of a table as it is written.
  own = {"gdpo": {"Acc": statistics.summarise([1.0, 2.0])}}
  cell = tables.read("saw")[0]
  lines = tables.to_markdown("Tools", "tiny", own, {"gdpo": {"Acc": cell}})
  head, number = marked(pages.to_html("\n".join(lines)))[0]
  assert head == "Acc (published)" and number.startswith(str(cell.value))


def test_markup_is_text_and_the_title_is_the_first_heading():
  page = pages.to_html(TEXT)
  assert "<script" not in page and "&lt;script&gt;" in page
  assert "<title>A table</title>" in page
  assert "a note &amp; more" in page


def test_a_folder_becomes_a_page_with_its_pictures(tmp_path):
  with pytest.raises(FileNotFoundError, match="table.md"):
    pages.write_page(tmp_path)
  assert not list(tmp_path.iterdir())
  (tmp_path / "table.md").write_text(TEXT, encoding="utf-8")
  (tmp_path / "a.svg").touch()
  page = pages.write_page(tmp_path)
  assert 'src="a.svg"' in page.read_text(encoding="utf-8")
  for name in ("b.png", "a.png"):
    (tmp_path / name).touch()
  page = pages.write_page(tmp_path)
  assert page == tmp_path / "table.html"
  text = page.read_text(encoding="utf-8")
  assert re.findall('src="([^"]*)"', text) == ["a.png", "b.png"]
  assert "http" not in text
