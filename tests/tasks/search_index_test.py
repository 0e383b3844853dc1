import math
import sys

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from saw_jax.tasks import search_index
from saw_jax.tasks.search_index import SearchIndex, split_words
from tests import helpers

TEXTS = ("a red shirt", "a blue shirt", "the glass river", "a red glass", "")
INDEX = SearchIndex(range(len(TEXTS)), TEXTS)


def bm25(query, texts, *, k1=1.5, b=0.75):
  """Lucene's BM25, written out."""
  words = [split_words(text) for text in texts]
  mean = sum(map(len, words)) / len(words)
  scores = np.zeros(len(texts))
  for word in split_words(query):
    df = sum(word in other for other in words)
    idf = math.log(1 + (len(words) - df + 0.5) / (df + 0.5))
    for i, own in enumerate(words):
      tf = own.count(word)
      scores[i] += idf * tf / (tf + k1 * (1 - b + b * len(own) / mean))
  return scores


class TestFind:
  @pytest.mark.parametrize("query", ["red shirt", "glass", "blue red glass"])
  def test_the_order_is_that_of_the_formula(self, query):
    order = np.argsort(-bm25(query, TEXTS), kind="stable")
    found = INDEX.find(query, 10)
    assert len(found) > 1 and found == order[: len(found)].tolist()

  def test_of_equal_texts_the_first_comes_first(self):
    index = SearchIndex(range(64), ["one two", "two three"] * 32)
    assert index.find("one", 64) == list(range(0, 64, 2))
    assert index.find("one", 2) == [0, 2]

  @pytest.mark.parametrize("query", ["", "the of a", "zebra", "!?", "\x00"])
  def test_what_is_nowhere_finds_nothing(self, query):
    assert INDEX.find(query, 10) == []

  @hypothesis.given(st.text(), st.integers(1, 10))
  def test_any_text_is_a_query(self, query, count):
    found = INDEX.find(query, count)
    assert len(found) == len(set(found)) <= min(count, len(TEXTS))

  def test_nothing_to_search_is_said(self):
    with pytest.raises(ValueError, match="no text has a word"):
      SearchIndex([1, 2], ["", "the"])


class TestImport:
  def test_it_does_not_start_jax(self):
    program = "from saw_jax.tasks import search_index as x; x._import_bm25s()"
    assert helpers.loaded(program, "jax", "jaxlib", "bm25s") == {"bm25s"}

  @pytest.mark.parametrize("can_import", [True, False])
  def test_a_jax_that_is_there_stays(self, monkeypatch, can_import):
    there = object()
    monkeypatch.setitem(sys.modules, "jax", there)
    monkeypatch.delitem(sys.modules, "bm25s", raising=False)
    if can_import:
      search_index._import_bm25s()
    else:
      monkeypatch.setattr(sys, "meta_path", [])
      with pytest.raises(ImportError, match=r"saw_jax\[search\]"):
        search_index._import_bm25s()
    assert sys.modules["jax"] is there
