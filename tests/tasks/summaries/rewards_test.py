"""Rule rewards of summaries: by hand, by another road, by property, hostile."""

import time

import hypothesis
import pytest
from hypothesis import strategies as st

from saw_jax.tasks.summaries import rewards

pytest.importorskip("rouge_score")

SOURCE = (
  "the router sorts all items by their probability and sends each item to its "
  "expert until the expert is full and every later item is then dropped"
)
REFERENCE = "Sends items to experts until these are full."
WORDS = st.lists(st.sampled_from("a b c d e f g h".split()), max_size=30)


class TestRougeL:
  def test_by_hand(self):
    # "cat sat" is common: P = 2/2, R = 2/4, F = 2/3.
    assert rewards.rouge_l("cat sat", "the cat sat down") == pytest.approx(
      2 / 3
    )
    # Order counts: one of two words.
    assert rewards.rouge_l("sat cat", "cat sat") == pytest.approx(0.5)

  def test_a_word_is_known_by_its_first_forty_letters(self):
    # Stemmers have been known to recurse along a word.
    long = "x" * 40
    assert rewards.rouge_l(long + "abc", long + "def") == 1.0
    assert rewards.rouge_l(long[1:] + "abc", long[1:] + "def") == 0.0


class TestQuality:
  def test_the_reference_is_best(self):
    assert rewards.quality(REFERENCE, REFERENCE, SOURCE) == 10.0

  def test_a_reference_may_quote_and_repeat(self):
    quote = SOURCE + " and " + SOURCE
    assert rewards.quality(quote, quote, SOURCE) == 10.0

  def test_by_hand(self):
    # Seven words; "to its expert until the expert is" would be copied, but here
    # six of them are: "each item to its expert until" in 7 words, c = 6/7.
    text = "each item to its expert until overflow"
    reference = "each item reaches an expert"
    # LCS "each item expert" = 3: F = 2·3/(7+5) = 1/2.
    assert rewards.quality(text, reference, SOURCE) == pytest.approx(
      10 * 0.5 * (1 - 6 / 7 / 2)
    )

  def test_five_words_of_the_source_are_free(self):
    assert rewards.copied_share("item to its expert until", "", SOURCE) == 0.0
    assert rewards.copied_share("item to its expert until the", "", SOURCE) == 1

  def test_saying_it_twice_by_hand(self):
    # LCS 3 of 6 and 3 words: F = 2/3. Runs: abc, bca, cab, abc: r = 1/4.
    found = rewards.quality("a b c a b c", "a b c", SOURCE)
    assert found == pytest.approx(10 * 2 / 3 * 3 / 4)
    # Runs: aaa, aaa, aaa: one is new, or as many as are in the reference.
    share = rewards.repeated_share
    assert share("a a a a a", "") == pytest.approx(2 / 3)
    assert share("a a a a a", "a a a a") == pytest.approx(1 / 3)
    assert share("a b c d e", "") == 0.0

  @hypothesis.given(st.text(max_size=300), st.text(max_size=99), st.text())
  def test_any_text_has_a_score_in_range(self, text, reference, source):
    assert 0.0 <= rewards.quality(text, reference, source) <= 10.0

  @pytest.mark.parametrize(
    "text",
    [
      "",
      " ",
      "y" * 1_000_000,  # the stemmer recurses along it
      "a " * 500_000,
      SOURCE * 5_000,
      "\ud800" * 100_000,
      "ab1! " * 200_000,
    ],
    ids=range(7),
  )
  def test_a_hostile_text_takes_bounded_time(self, text):
    # A second for what would take hours uncut: 10^11 cells of a table.
    start = time.process_time()
    found = rewards.quality(text, text or REFERENCE, text or SOURCE)
    assert 0.0 <= found <= 10.0
    assert time.process_time() - start < 5.0

  def test_what_comes_after_the_limit_does_not_count(self):
    text = f"{REFERENCE} {'.' * 2000}"
    assert rewards.quality(text + "more words", REFERENCE, SOURCE) == 10.0


class TestConciseness:
  def score(self, text):
    return rewards.conciseness(text, 40, 120)

  @pytest.mark.parametrize(
    ("length", "expected"),
    [(1, 10), (40, 10), (41, 9.875), (80, 5), (119, 0.125), (120, 0), (999, 0)],
  )
  def test_by_hand(self, length, expected):
    assert self.score("x" * length) == pytest.approx(expected)

  def test_white_space_around_is_free(self):
    assert self.score("\n  " + "x" * 80 + " " * 50) == 5.0

  @pytest.mark.parametrize("text", ["", " ", "\n", "...", "—!", "\x00"])
  def test_an_empty_summary_has_none(self, text):
    assert rewards.is_empty(text)
    assert self.score(text) == 0.0
