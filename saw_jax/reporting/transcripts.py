"""Episodes for people: one HTML page, each role in its own colour.

The page needs no network and no script, and whatever a policy wrote in it is
text: markup is escaped, and what cannot be seen is named.
"""

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from saw_jax.reporting import pages

if TYPE_CHECKING:
  from saw_jax.run.agents import Turn

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
  """Writes episodes as a page."""
  legend = " ".join(f'<span class="{role}">{role}</span>' for role in ROLES)
  parts = [
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
  return pages.page(title, _STYLE, parts)


def read_turn(turn: "Turn") -> Step:
  """A step of an episode as a page shows it, with its reward below."""
  note = f"reward {turn.reward:g}"
  return Step(
    [
      Segment("prompt", turn.prompt),
      Segment("glue", "\n"),
      Segment("policy", turn.reply or " "),
      Segment("glue", "\n"),
      Segment("observation", turn.observation),
    ],
    note if turn.valid else f"{note}, the reply did not parse",
  )


def won_and_lost(
  turns: Sequence[Sequence["Turn"]], won: Sequence[bool]
) -> list[Episode]:
  """The first episode that was won and the first that was lost, if any."""
  if len(turns) != len(won):
    raise ValueError(f"{len(turns)} episodes, and {len(won)} ends of them")
  found = []
  for name, wanted in (("Won", True), ("Lost", False)):
    for played, is_won in zip(turns, won, strict=True):
      if bool(is_won) == wanted:
        steps = [read_turn(turn) for turn in played]
        found.append(Episode(f"{name}, in {len(steps)} steps", steps))
        break
  return found


def _span(segment: Segment) -> str:
  if segment.role not in ROLES:
    raise ValueError(f"no role {segment.role!r}, only {', '.join(ROLES)}")
  text = "".join(
    c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}"
    for c in segment.text
  )
  return f'<span class="{segment.role}">{html.escape(text)}</span>'
