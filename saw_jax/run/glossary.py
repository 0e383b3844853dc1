"""The names and meanings of a run's figures; `<word>` stands for any word."""

import functools
import re
from typing import NamedTuple

from saw_jax.tasks import base

OTHER = "Other"  # the section of figures without a line


class Entry(NamedTuple):
  """A line of the glossary."""

  section: str
  name: str  # or a pattern, such as reward/<component>
  line: str
  order: int = 0


@functools.cache
def entries() -> tuple[Entry, ...]:
  """All lines in the order of the page."""
  table = base.asset(__file__, "glossary.json")
  lines = [(s, *line) for s, named in table.items() for line in named.items()]
  return tuple(Entry(*line, order) for order, line in enumerate(lines))


def sections() -> list[str]:
  return [*dict.fromkeys(entry.section for entry in entries()), OTHER]


@functools.cache
def find(name: str) -> Entry:
  """The line of a logged name: its own, or else that of a pattern."""
  found = [entry for entry in entries() if _pattern(entry.name).fullmatch(name)]
  return min(found, key=lambda e: "<" in e.name, default=Entry(OTHER, name, ""))


@functools.cache
def _pattern(name: str) -> re.Pattern:
  parts = re.split(r"<\w+>", name)
  return re.compile(".+".join(map(re.escape, parts)))
