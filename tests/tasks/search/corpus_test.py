"""Tests of saw_jax/tasks/search/corpus.py."""

import json

import pytest

from saw_jax.tasks.search import corpus as search_corpus
from saw_jax.tasks.search.corpus import Passage, Question


def write(path, rows):
  path.write_text("\n".join(json.dumps(row) for row in rows))
  return path


class TestDraw:
  def test_a_corpus_is_a_function_of_its_seed(self):
    one, same, other = (
      search_corpus.draw_corpus(30, seed=s) for s in (0, 0, 1)
    )
    assert one == same and one != other

  def test_the_numbers_of_passages_and_questions(self):
    passages, questions = search_corpus.draw_corpus(30)
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
    asked = {
      split: {
        name
        for q in several
        for name in (*q.queries, *q.answers)
        if name.partition(" ")[0] in search_corpus.FIRST
      }
      for split, several in questions.items()
    }
    assert asked["train"] and asked["test"]
    assert not asked["train"] & asked["test"]

  @pytest.mark.parametrize("count", [0, 1000])
  def test_there_are_not_as_many_people(self, count):
    with pytest.raises(ValueError, match=f"not {count}"):
      search_corpus.draw_corpus(count)

  def test_a_split_without_questions_is_said(self):
    with pytest.raises(ValueError, match="no question for the split"):
      search_corpus.draw_corpus(1, kinds=("author",))


class TestReadPassages:
  def test_both_forms_of_rows(self, tmp_path):
    path = write(
      tmp_path / "corpus.jsonl",
      [
        {"id": "0", "contents": '"Ann Bell"\nShe was born.\nTwice.'},
        {"contents": "no title"},
        {"title": "Oslo", "text": "A city."},
        {"text": "alone"},
      ],
    )
    assert search_corpus.read_passages(path) == (
      Passage('"Ann Bell"', "She was born.\nTwice."),
      Passage("", "no title"),
      Passage("Oslo", "A city."),
      Passage("", "alone"),
    )
    assert Passage("Oslo", "A city.").contents == "Oslo\nA city."
    assert Passage("", "alone").contents == "alone"

  @pytest.mark.parametrize(
    ("row", "words"),
    [
      (7, "row 1: not an object"),
      ({}, "row 1: no field 'text'"),
      ({"contents": 7}, "row 1: field 'contents' is not a str"),
      ({"text": "x", "title": 7}, "row 1: field 'title' is not a str"),
    ],
  )
  def test_a_damaged_row_is_numbered(self, tmp_path, row, words):
    path = write(tmp_path / "corpus.jsonl", [{"text": "x"}, row])
    with pytest.raises(ValueError, match=words):
      search_corpus.read_passages(path)

  def test_a_cut_line_is_named(self, tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"text": "x"}\n{"text": "y')
    with pytest.raises(ValueError, match=r"corpus.jsonl, line 1: ") as error:
      search_corpus.read_passages(path)
    assert "\n" not in str(error.value)

  def test_nothing_is_said(self, tmp_path):
    path = write(tmp_path / "corpus.jsonl", [])
    with pytest.raises(ValueError, match="there is no passage in it"):
      search_corpus.read_passages(path)
    with pytest.raises(FileNotFoundError, match=r"none.jsonl"):
      search_corpus.read_passages(tmp_path / "none.jsonl")


class TestReadQuestions:
  def test_the_fields_of_public_sets(self, tmp_path):
    path = write(
      tmp_path / "nq.jsonl",
      [
        {"id": "1", "question": " who? ", "golden_answers": ["Ann", "Bell"]},
        {"question": "where?", "answer": "Oslo"},
        {"question": "when?", "answers": ["1900"]},
      ],
    )
    assert search_corpus.read_questions(path) == (
      Question("who?", ("Ann", "Bell"), source="nq"),
      Question("where?", ("Oslo",), source="nq"),
      Question("when?", ("1900",), source="nq"),
    )
    other = tmp_path / "nq.json"
    other.write_text(json.dumps([{"question": "who?", "answer": "x"}]))
    (question,) = search_corpus.read_questions(other)
    assert question == Question("who?", ("x",), source="nq")

  def test_a_row_or_a_folder_names_the_set(self, tmp_path):
    folder = tmp_path / "musique"
    folder.mkdir()
    rows = [
      {"question": "who?", "answer": "x"},
      {"question": "who?", "answer": "x", "data_source": "nq"},
    ]
    path = write(folder / "dev.jsonl", rows)
    sources = [q.source for q in search_corpus.read_questions(path)]
    assert sources == ["musique", "nq"]
    path = write(folder / "test.jsonl", [{**rows[0], "data_source": 7}])
    with pytest.raises(ValueError, match="row 0: field 'data_source'"):
      search_corpus.read_questions(path)

  @pytest.mark.parametrize(
    ("row", "words"),
    [
      (None, "row 0: not an object"),
      ({"golden_answers": ["x"]}, "row 0: no field 'question'"),
      ({"question": " ", "answer": "x"}, "row 0: field 'question' is empty"),
      ({"question": "x"}, "row 0: no field 'golden_answers'"),
      ({"question": "x", "answer": 7}, "row 0: field 'answer' is not a list"),
      ({"question": "x", "answer": []}, "row 0: field 'answer' is no text"),
      ({"question": "x", "answer": [7]}, "row 0: field 'answer' is no text"),
      ({"question": "x", "answer": " "}, "row 0: field 'answer' is no text"),
    ],
  )
  def test_a_damaged_row_is_numbered(self, tmp_path, row, words):
    path = write(tmp_path / "nq.jsonl", [row])
    with pytest.raises(ValueError, match=words):
      search_corpus.read_questions(path)

  def test_nothing_is_said(self, tmp_path):
    path = tmp_path / "nq.json"
    path.write_text("[]")
    with pytest.raises(ValueError, match="there is no question in it"):
      search_corpus.read_questions(path)
