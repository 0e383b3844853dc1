"""Tests of saw_jax/tasks/search/corpus.py."""

import json

import pytest

from saw_jax.tasks.search import corpus as search_corpus
from saw_jax.tasks.search.corpus import Passage, Question


class TestDraw:
  def test_the_numbers_of_passages_and_questions_whatever_the_seed(self):
    one, same, other = (
      search_corpus.draw_corpus(30, seed=s) for s in (0, 0, 1)
    )
    assert one == same and one != other
    passages, questions = other
    cities = len(search_corpus.CITIES)
    assert len(set(passages)) == cities + 30 + 20
    texts = [q.text for several in questions.values() for q in several]
    # One of each city, three of each person, two of each of the 20 works.
    assert len(set(texts)) == len(texts) == cities + 3 * 30 + 2 * 20

  @pytest.mark.parametrize("kind", search_corpus.KINDS)
  def test_each_answer_is_what_the_passages_say_hop_by_hop(self, kind):
    passages, questions = search_corpus.draw_corpus(60, kinds=(kind,))
    texts = [passage.text for passage in passages]
    for question in (*questions["train"], *questions["test"]):
      hops = [*question.queries, *question.answers]
      assert len(hops) == (3 if kind in search_corpus.TWO_HOPS else 2)
      assert hops[0] in question.text
      for this, that in zip(hops, hops[1:], strict=False):
        assert any(this in text and that in text for text in texts)

  def test_nobody_is_asked_about_in_both_splits(self):
    _, questions = search_corpus.draw_corpus(100)
    people = {}
    for split, several in questions.items():
      names = {name for q in several for name in (*q.queries, *q.answers)}
      first = search_corpus.FIRST
      people[split] = {name for name in names if name.split()[0] in first}
    train, test = people.values()
    assert train and test and not train & test

  def test_what_cannot_be_drawn_is_said(self):
    for count in (0, search_corpus.MOST_PEOPLE + 1):
      with pytest.raises(ValueError, match=f"not {count}"):
        search_corpus.draw_corpus(count)
    with pytest.raises(ValueError, match="no question for the split"):
      search_corpus.draw_corpus(1, kinds=("author",))


WHO = {"question": "who?", "answer": "x"}


class TestRead:
  @pytest.fixture
  def read(self, tmp_path):
    def read(kind, rows, name="nq.jsonl"):
      path = tmp_path / name
      path.parent.mkdir(exist_ok=True)
      path.write_text("\n".join(json.dumps(row) for row in rows))
      return getattr(search_corpus, f"read_{kind}s")(path)

    return read

  def test_both_forms_of_passages(self, read):
    rows = [
      {"id": "0", "contents": '"Ann Bell"\nShe was born.\nTwice.'},
      {"contents": "no title"},
      {"title": "Oslo", "text": "A city."},
      {"text": "alone"},
    ]
    assert read("passage", rows) == (
      Passage('"Ann Bell"', "She was born.\nTwice."),
      Passage("", "no title"),
      Passage("Oslo", "A city."),
      Passage("", "alone"),
    )
    assert Passage("Oslo", "A city.").contents == "Oslo\nA city."
    assert Passage("", "alone").contents == "alone"

  def test_questions_of_public_sets(self, read):
    rows = [
      {"id": "1", "question": " who? ", "golden_answers": ["Ann", "Bell"]},
      {"question": "where?", "answer": "Oslo"},
      {"question": "when?", "answers": ["1900"]},
    ]
    assert read("question", rows) == (
      Question("who?", ("Ann", "Bell"), source="nq"),
      Question("where?", ("Oslo",), source="nq"),
      Question("when?", ("1900",), source="nq"),
    )

  def test_a_row_or_a_folder_names_the_set(self, read):
    rows = [WHO, WHO | {"data_source": "nq"}]
    for name in ("musique/dev.jsonl", "musique/test.jsonl"):
      found = read("question", rows, name)
      assert [q.source for q in found] == ["musique", "nq"]

  @pytest.mark.parametrize(
    ("kind", "rows", "words"),
    [
      ("passage", [], "there is no passage in it"),
      ("passage", [7], "row 0: not an object"),
      ("passage", [{}], "row 0: no field 'text'"),
      ("passage", [{"contents": 7}], "row 0: field 'contents' is not a str"),
      ("passage", [{"text": "x", "title": 7}], "field 'title' is not a str"),
      ("question", [], "there is no question in it"),
      ("question", [None], "row 0: not an object"),
      ("question", [{"answer": "x"}], "row 0: no field 'question'"),
      ("question", [{"question": " ", "answer": "x"}], "'question' is empty"),
      ("question", [{"question": "x"}], "row 0: no field 'golden_answers'"),
      ("question", [WHO | {"answer": 7}], "'answer' is not a list"),
      ("question", [WHO | {"answer": [7]}], "'answer' is not a list"),
      ("question", [WHO | {"answer": []}], "'answer' is empty"),
      ("question", [WHO | {"answer": " "}], "'answer' is empty"),
      (
        "question",
        [WHO, WHO | {"data_source": 7}],
        "row 1: field 'data_source'",
      ),
    ],
  )
  def test_a_damaged_row_is_numbered(self, read, kind, rows, words):
    with pytest.raises(ValueError, match=words):
      read(kind, rows)
