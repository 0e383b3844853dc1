"""Tests of saw_jax/tasks/search/questions.py."""

import json

import hypothesis
import pytest
from hypothesis import strategies as st

from saw_jax.tasks.search import questions as search_questions
from saw_jax.tasks.search.corpus import Passage, Question
from saw_jax.tasks.search.questions import SearchQuestions
from saw_jax.tasks.search_index import SearchIndex


def library(passages):
  return SearchIndex(passages, [passage.contents for passage in passages])


LIBRARY = library(
  [
    Passage("Ann Bell", "Ann Bell was born in Oslo."),
    Passage("", "Oslo is a city in Norway."),
    Passage("Zürich", 'It is "big".'),
  ]
)
QUESTIONS = (
  Question("where was ann bell born?", ("Oslo", "Kristiania")),
  Question("who?", ("The Beatles",)),
)


def make(seed=0, **options):
  env = SearchQuestions(LIBRARY, QUESTIONS, **options)
  assert env.reset(seed) == env.task == QUESTIONS[seed].text
  return env


class TestEpisode:
  def test_by_hand(self):
    env = make()
    found = (
      '<information>{"result": "Doc 1: Ann Bell\\nAnn Bell was born in Oslo.'
      '\\nDoc 2: Oslo is a city in Norway.\\n"}</information>'
    )
    # The first has all three words, the second one of them.
    step = env.step("<search>ann bell oslo</search>")
    assert step == (found, 0.0, False)
    assert env.step("<answer> The Oslo. </answer>") == ("", 1.0, True)
    assert env.searched == ["ann bell oslo"]

  @pytest.mark.parametrize(
    ("answer", "reward"),
    [("oslo", 2.0), ("KRISTIANIA!", 2.0), ("in oslo", 0.0), ("", 0.0)],
  )
  def test_any_of_the_right_answers_pays_and_each_ends_it(self, answer, reward):
    step = make(max_return=2.0).step(f"<answer>{answer}</answer>")
    assert step == ("", reward, True)

  def test_articles_do_not_count(self):
    assert make(1).step("<answer>a beatles</answer>").reward == 1.0

  def test_passages_are_as_many_as_asked_for(self):
    text = make(num_passages=1).step("<search>oslo</search>").observation
    assert "Doc 1:" in text and "Doc 2:" not in text

  def test_they_are_json_with_escapes(self):
    text = make().step("<search>zürich</search>").observation
    inside = text.removeprefix("<information>").removesuffix("</information>")
    assert json.loads(inside) == {"result": 'Doc 1: Zürich\nIt is "big".\n'}
    assert text.isascii()

  def test_nothing_found_is_said_in_the_same_form(self):
    text = make().step("<search>xyzzy</search>").observation
    assert text == '<information>{"result": ""}</information>'


class TestHostileText:
  @pytest.mark.parametrize(
    "action",
    [
      "",
      "oslo",
      "<answer>oslo",
      "<search></answer>",
      "x <answer>oslo</answer>",
    ],
  )
  def test_what_is_neither_takes_a_step(self, action):
    assert make(max_steps=2).step(action) == ("", 0.0, False)

  def test_enormous_passages_are_cut(self):
    many = library([Passage("", "word " + "x" * 100_000)] * 5)
    env = SearchQuestions(many, QUESTIONS)
    env.reset(0)
    text = env.step("<search>" + "word " * 50_000 + "</search>").observation
    assert len(text) < 3 * search_questions.LONGEST_PASSAGE + 200
    assert len(env.searched[0]) == search_questions.LONGEST_QUERY


class TestReplies:
  @pytest.mark.parametrize(
    ("text", "action", "valid"),
    [
      ("<search>a</search>", "<search>a</search>", True),
      ("x <answer> B </answer> y", "<answer>B</answer>", True),
      # The last one is taken, and more than one is invalid.
      ("<answer>a</answer><answer>b</answer>", "<answer>b</answer>", False),
      ("<search>a</search><answer>b</answer>", "<answer>b</answer>", False),
      ("<search>a</answer>", "", False),
      ("", "", False),
    ],
  )
  def test_by_hand(self, text, action, valid):
    assert search_questions.read_reply(text) == (action, valid)

  @hypothesis.given(st.text())
  def test_what_is_read_is_an_action_or_none(self, text):
    for completion in (text, f"<answer>{text}</answer>"):
      action = search_questions.read_reply(completion).action
      if action:
        assert make().step(action).observation or "<answer>" in action

  @hypothesis.given(st.text())
  def test_normalising_twice_changes_nothing(self, text):
    once = search_questions.normalise(text)
    assert search_questions.normalise(once) == once
