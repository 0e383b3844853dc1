"""Rule rewards of summaries: by hand, by property, hostile."""

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
LONG = "x" * 40


@pytest.mark.parametrize(
  ("summary", "reference", "expected"),
  [
    # "cat sat" is common: P = 2/2, R = 2/4, F = 2/3.
    ("cat sat", "the cat sat down", 2 / 3),
    ("sat cat", "cat sat", 1 / 2),  # Order counts: one of two words.
    # A word is its first forty letters: stemmers have recursed along one.
    (LONG + "abc", LONG + "def", 1),
    (LONG[1:] + "abc", LONG[1:] + "def", 0),
  ],
)
def test_rouge_l_by_hand(summary, reference, expected):
  assert rewards.rouge_l(summary, reference) == pytest.approx(expected)


class TestQuality:
  @pytest.mark.parametrize(
    ("text", "reference", "expected"),
    [
      (REFERENCE, REFERENCE, 10),
      # A reference may quote and repeat.
      (f"{SOURCE} and {SOURCE}", f"{SOURCE} and {SOURCE}", 10),
      # What comes after the limit does not count.
      (f"{REFERENCE} {'.' * 2000}more words", REFERENCE, 10),
      # Six of seven words are copied, and LCS "each item expert" = 3:
      # F = 2·3/(7+5) = 1/2.
      (
        "each item to its expert until overflow",
        "each item reaches an expert",
        10 * 0.5 * (1 - 6 / 7 / 2),
      ),
      # LCS 3 of 6 and 3 words: F = 2/3. Runs: abc, bca, cab, abc: r = 1/4.
      ("a b c a b c", "a b c", 10 * 2 / 3 * 3 / 4),
    ],
  )
  def test_by_hand(self, text, reference, expected):
    found = rewards.quality(text, reference, SOURCE)
    assert found == pytest.approx(expected)

  def test_five_words_of_the_source_are_free(self):
    assert rewards.copied_share("item to its expert until", "", SOURCE) == 0.0
    assert rewards.copied_share("item to its expert until the", "", SOURCE) == 1

  def test_saying_it_twice_by_hand(self):
    # Runs: aaa, aaa, aaa: one is new, or as many as are in the reference.
    share = rewards.repeated_share
    assert share("a a a a a", "") == pytest.approx(2 / 3)
    assert share("a a a a a", "a a a a") == pytest.approx(1 / 3)
    assert share("a b c d e", "") == 0.0

  @pytest.mark.parametrize("hide", ["_ ".join, "é ".join])
  def test_what_rouge_passes_over_hides_nothing(self, hide):
    copy, plain = (
      hide(SOURCE.split()),
      rewards.quality(SOURCE, SOURCE[:60], SOURCE),
    )
    assert rewards.quality(copy, SOURCE[:60], SOURCE) == pytest.approx(plain)
    assert rewards.repeated_share(f"a b c {hide('abc')}", "") == 0.25

  @hypothesis.given(st.text(max_size=300), st.text(max_size=99), st.text())
  def test_any_text_has_a_score_in_range(self, text, reference, source):
    assert 0.0 <= rewards.quality(text, reference, source) <= 10.0

  @pytest.mark.parametrize(
    "text",
    ["", " ", "y" * 1_000_000, "a " * 500_000, SOURCE * 5_000]
    + ["\ud800" * 100_000, "ab1! " * 200_000],
    ids=range(7),
  )
  def test_a_hostile_text_takes_bounded_time(self, text):
    # A second for what would take hours uncut: 10^11 cells of a table.
    start = time.process_time()
    found = rewards.quality(text, text or REFERENCE, text or SOURCE)
    assert 0.0 <= found <= 10.0
    assert time.process_time() - start < 5.0


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    *(("x" * n, 10) for n in (1, 40)),
    *(("x" * n, (120 - n) / 8) for n in (41, 80, 119)),
    *(("x" * n, 0) for n in (120, 999)),
    ("\n  " + "x" * 80 + " " * 50, 5),  # White space around is free.
    *((text, 0) for text in ("", " ", "\n", "...", "—!", "\x00")),
  ],
)
def test_conciseness_by_hand(text, expected):
  assert rewards.conciseness(text, 40, 120) == pytest.approx(expected)
  assert rewards.is_empty(text) == ("x" not in text)
