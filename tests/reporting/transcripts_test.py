"""Tests of saw_jax/reporting/transcripts.py."""

import html.parser
from typing import NamedTuple

import pytest

from saw_jax.reporting import transcripts
from saw_jax.reporting.transcripts import Episode, Segment, Step


class Reader(html.parser.HTMLParser):
  """Collects the text of each class, and which tags there are."""

  def __init__(self):
    super().__init__()
    self.open, self.texts, self.tags = [], [], set()

  def handle_starttag(self, tag, attrs):
    self.tags.add(tag)
    if tag not in ("meta",):
      self.open.append((tag, dict(attrs).get("class")))

  def handle_endtag(self, tag):
    assert self.open.pop()[0] == tag

  def handle_data(self, data):
    if self.open:
      self.texts.append((self.open[-1][1], data))


def read(page):
  reader = Reader()
  reader.feed(page)
  assert not reader.open
  return reader


def page(*segments, note="", title="won"):
  return transcripts.to_html(
    "Two episodes", [Episode(title, [Step(segments, note)])]
  )


def test_every_role_has_its_class():
  found = read(
    page(*(Segment(role, f"by {role}") for role in transcripts.ROLES))
  )
  for role in transcripts.ROLES:
    assert (role, f"by {role}") in found.texts


def test_what_a_policy_writes_is_text():
  hostile = "<script>alert(1)</script>&amp;\0\x1b[2J"
  made = page(Segment("policy", hostile), note="<b>", title="<i>")
  found = read(made)
  assert not found.tags & {"script", "b", "i"}
  said = "".join(text for kind, text in found.texts if kind == "policy")
  assert "<script>alert(1)</script>&amp;\\x00\\x1b[2J" in said
  assert "\0" not in made


def test_notes_and_titles_are_there_and_an_unknown_role_is_named():
  found = read(page(Segment("prompt", "a"), note="reward 10", title="lost"))
  texts = [text for _, text in found.texts]
  assert "lost" in texts and "step 1 · reward 10" in texts
  with pytest.raises(ValueError, match="no role 'poet'"):
    page(Segment("poet", "a"))


class Turn(NamedTuple):
  prompt: str
  reply: str
  observation: str
  reward: float
  valid: bool


def turn(reply="go", observation="A door.", reward=0.0, valid=True):
  return Turn("You are here.", reply, observation, reward, valid)


class TestTurns:
  def test_a_turn_says_who_wrote_what_and_what_it_paid(self):
    step = transcripts.read_turn(turn(reward=10.0))
    said = {s.role: s.text for s in step.segments if s.role != "glue"}
    assert said == {
      "prompt": "You are here.",
      "policy": "go",
      "observation": "A door.",
    }
    assert step.note == "reward 10"

  def test_a_reply_that_did_not_parse_is_told(self):
    step = transcripts.read_turn(turn(reply="", reward=-0.5, valid=False))
    assert step.note == "reward -0.5, the reply did not parse"
    # An empty reply still shows where it would have been.
    assert Segment("policy", " ") in step.segments

  def test_the_first_of_each_kind_is_shown(self):
    turns = [[turn("a")], [turn("b"), turn("c")], [turn("d")], [turn("e")]]
    found = transcripts.won_and_lost(turns, [False, True, False, True])
    titles = [episode.title for episode in found]
    assert titles == ["Won, in 2 steps", "Lost, in 1 steps"]
    first = [episode.steps[0].segments[2].text for episode in found]
    assert first == ["b", "a"]

  def test_a_kind_that_is_missing_is_left_out_and_each_has_an_end(self):
    (only,) = transcripts.won_and_lost([[turn()]], [False])
    assert only.title.startswith("Lost")
    with pytest.raises(ValueError, match="episodes"):
      transcripts.won_and_lost([[turn()]], [True, False])
