import html.parser
from typing import NamedTuple

import pytest

from experiments import episode_pages


class Reader(html.parser.HTMLParser):
  """Collects the text of each class, and which tags there are."""

  def __init__(self, page):
    super().__init__()
    self.open, self.texts, self.tags = [], [], set()
    self.feed(page)
    assert not self.open

  def handle_starttag(self, tag, attrs):
    self.tags.add(tag)
    if tag not in ("meta",):
      self.open.append((tag, dict(attrs).get("class")))

  def handle_endtag(self, tag):
    assert self.open.pop()[0] == tag

  def handle_data(self, data):
    if self.open:
      self.texts.append((self.open[-1][1], data))


class Turn(NamedTuple):
  reply: str = "go"
  prompt: str = "You are here."
  observation: str = "A door."
  reward: float = 0.0
  valid: bool = True


def test_a_turn_says_who_wrote_what_and_what_it_paid():
  turns = [Turn(reward=10.0), Turn("", reward=-0.5, valid=False)]
  found = Reader(episode_pages.to_html("Two", {"won": turns})).texts
  for role in episode_pages.ROLES:
    assert (role, role) in found  # the legend
  start = found.index((None, "won"))
  assert [text for text in found[start + 1 :] if text != (None, "\n")] == [
    ("prompt", "You are here."),
    *(("glue", "\n"), ("policy", "go"), ("glue", "\n")),
    *(("observation", "A door."), ("meta", "step 1 · reward 10")),
    ("prompt", "You are here."),
    # An empty reply still shows where it would have been.
    *(("glue", "\n"), ("policy", " "), ("glue", "\n")),
    ("observation", "A door."),
    ("meta", "step 2 · reward -0.5, the reply did not parse"),
  ]


def test_what_a_policy_writes_is_text():
  hostile = "<script>alert(1)</script>&amp;\0\x1b[2J"
  turn = Turn(hostile, hostile, hostile)
  made = episode_pages.to_html("<b>", {"<i>": [turn]})
  found = Reader(made)
  assert not found.tags & {"script", "b", "i"}
  for role in episode_pages.ROLES[:3]:
    said = "".join(text for kind, text in found.texts if kind == role)
    assert "<script>alert(1)</script>&amp;\\x00\\x1b[2J" in said
  assert "\0" not in made


def test_the_first_that_was_won_and_the_first_that_was_lost_are_shown():
  turns = [[Turn("a")], [Turn("b"), Turn("c")], [Turn("d")], [Turn("e")]]
  found = episode_pages.won_and_lost(turns, [False, True, False, True])
  assert list(found.items()) == [
    ("Won, in 2 steps", turns[1]),
    ("Lost, in 1 steps", turns[0]),
  ]
  # Of a kind that is missing there is none.
  assert list(episode_pages.won_and_lost(turns[:1], [False])) == [
    "Lost, in 1 steps"
  ]
  with pytest.raises(ValueError, match="episodes"):
    episode_pages.won_and_lost(turns[:1], [True, False])
