# SPDX-License-Identifier: Apache-2.0
"""A table as one HTML page, without network or script."""

import html
import os
import pathlib
from collections.abc import Sequence

from saw_jax import naming
from saw_jax.reporting import tables

_ASSETS = pathlib.Path(__file__).parent / "assets"


def write_page(folder: str | os.PathLike) -> pathlib.Path:
  """Writes `table.html` beside a `table.md` and its pictures."""
  folder = pathlib.Path(folder)
  text = (folder / "table.md").read_text(encoding="utf-8")
  page = folder / "table.html"
  kinds = ("*.png", "*.svg")  # one of them, as both show the same
  found = next(filter(None, (list(folder.glob(kind)) for kind in kinds)), [])
  pictures = sorted(path.name for path in found)
  page.write_text(to_html(text, pictures), encoding="utf-8")
  return page


def to_html(text: str, pictures: Sequence[str] = ()) -> str:
  """Renders Markdown; HTML in it is shown and not obeyed."""
  with naming.needs_extra("report", "a table's page needs the extra 'report'"):
    import markdown_it

  reader = markdown_it.MarkdownIt("commonmark", {"html": False}).enable("table")
  tokens = reader.parse(text)
  title = _mark(tokens)
  body = reader.renderer.render(tokens, reader.options, {})
  body = body.replace("<table>", '<div class="wide"><table>')
  body = body.replace("</table>", "</table></div>")
  shown = [
    f'<img src="{name}" alt="{pathlib.Path(name).stem}">'
    for name in map(html.escape, pictures)
  ]
  return page(title, "table", [body.rstrip(), *shown])


def page(title: str, style: str, parts: Sequence[str]) -> str:
  """A document in one of our styles, around parts that are HTML already."""
  css = (_ASSETS / f"{style}.css").read_text(encoding="utf-8")
  head = f"<title>{html.escape(title)}</title><style>\n{css}</style>"
  return "\n".join(
    [
      "<!DOCTYPE html>",
      '<html lang="en"><head><meta charset="utf-8">',
      f"{head}</head><body>",
      *parts,
      "</body></html>\n",
    ]
  )


def _mark(tokens) -> str:
  """Marks the cells of published columns; returns the first heading's text."""
  title, column, published = "", 0, set()
  for token, following in zip(tokens, tokens[1:], strict=False):
    if token.type == "heading_open":
      title = title or following.content
    elif token.type == "table_open":
      published = set()
    elif token.type == "tr_open":
      column = 0
    elif token.type in ("th_open", "td_open"):
      ends = following.content.endswith(tables.PUBLISHED)
      if token.type == "th_open" and ends:
        published.add(column)
      if column in published:
        token.attrJoin("class", "published")
      column += 1
  return title
