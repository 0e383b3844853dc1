"""Episodes for people: one HTML page, each role in its own colour.

The page needs no network and no script, and whatever a policy wrote in it is
text: markup is escaped, and what cannot be seen is named.
"""

import html
from collections.abc import Sequence
from typing import NamedTuple

ROLES = ("prompt", "policy", "observation", "glue")
_STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem; color: #1f2328; background: #fff; }
.step { margin: 0.6rem 0; padding: 0.4rem 0.6rem;
  border-left: 3px solid #d0d7de;
  white-space: pre-wrap; overflow-wrap: anywhere;
  font-family: ui-monospace, monospace; font-size: 13px; }
.meta { color: #656d76; font-size: 12px; }
.prompt { color: #57606a; }
.policy { color: #0a3069; background: #ddf4ff; }
.observation { color: #4d2d00; background: #fff8c5; }
.glue { color: #8c959f; background: #f6f8fa; }
"""


class Segment(NamedTuple):
  """A stretch of a transcript that one role wrote."""

  role: str  # one of ROLES
  text: str


class Step(NamedTuple):
  """One step of an episode: what it was asked, what it did, what followed."""

  segments: Sequence[Segment]
  note: str = ""  # below it, as its reward


class Episode(NamedTuple):
  """A whole episode."""

  title: str
  steps: Sequence[Step]


def to_html(title: str, episodes: Sequence[Episode]) -> str:
  """Writes episodes as a page.

  Args:
    title: of the page.
    episodes: in their order.

  Returns:
    A complete HTML document.

  Raises:
    ValueError: a role that there is not.
  """
  legend = " ".join(f'<span class="{role}">{role}</span>' for role in ROLES)
  parts = [
    "<!DOCTYPE html>",
    '<html lang="en"><head><meta charset="utf-8">',
    f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>",
    f"<h1>{html.escape(title)}</h1>",
    f'<p class="meta">Who wrote what: {legend}</p>',
  ]
  for episode in episodes:
    parts.append(f"<h2>{html.escape(episode.title)}</h2>")
    for number, step in enumerate(episode.steps, 1):
      spans = "".join(_span(segment) for segment in step.segments)
      note = f" · {html.escape(step.note)}" if step.note else ""
      parts.append(
        f'<div class="step">{spans}<div class="meta">step {number}{note}'
        "</div></div>"
      )
  return "\n".join([*parts, "</body></html>", ""])


def _span(segment: Segment) -> str:
  if segment.role not in ROLES:
    raise ValueError(
      f"there is no role {segment.role!r}, only {', '.join(ROLES)}"
    )
  text = "".join(
    c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}"
    for c in segment.text
  )
  return f'<span class="{segment.role}">{html.escape(text)}</span>'
