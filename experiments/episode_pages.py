"""Episodes as one HTML page, in which whatever a policy wrote is text."""

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from saw_jax.reporting import pages

if TYPE_CHECKING:
  from saw_jax.run.agents import Turn

ROLES = ("prompt", "policy", "observation", "glue")


def to_html(title: str, episodes: Mapping[str, Sequence["Turn"]]) -> str:
  """Writes the turns of episodes, by what each is called, as a page."""
  legend = " ".join(f'<span class="{role}">{role}</span>' for role in ROLES)
  parts = [
    f"<h1>{html.escape(title)}</h1>",
    f'<p class="meta">Who wrote what: {legend}</p>',
  ]
  for name, turns in episodes.items():
    parts.append(f"<h2>{html.escape(name)}</h2>")
    for number, turn in enumerate(turns, 1):
      glue = _span("glue", "\n")
      said = _span("prompt", turn.prompt), _span("policy", turn.reply or " ")
      spans = glue.join([*said, _span("observation", turn.observation)])
      parsed = "" if turn.valid else ", the reply did not parse"
      parts.append(
        f'<div class="step">{spans}<div class="meta">step {number} · reward '
        f"{turn.reward:g}{parsed}</div></div>"
      )
  return pages.page(title, "episodes", parts)


def won_and_lost(
  turns: Sequence[Sequence["Turn"]], won: Sequence[bool]
) -> dict[str, Sequence["Turn"]]:
  """The first episode that was won and the first that was lost, if any."""
  if len(turns) != len(won):
    raise ValueError(f"{len(turns)} episodes, and {len(won)} ends of them")
  found = {}
  for name, wanted in (("Won", True), ("Lost", False)):
    ends = [
      played for played, end in zip(turns, won, strict=True) if end == wanted
    ]
    found |= {f"{name}, in {len(first)} steps": first for first in ends[:1]}
  return found


def _span(role: str, text: str) -> str:
  seen = [
    c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text
  ]
  return f'<span class="{role}">{html.escape("".join(seen))}</span>'
