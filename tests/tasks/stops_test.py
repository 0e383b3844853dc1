import re

import pytest

from saw_jax import tokenizer as tokenizer_lib
from saw_jax.tasks import stops

BYTES = tokenizer_lib.ByteTokenizer()
PIECES = ["ab", "cd", "e", "d e", "é"]


def decode(ids):
  return "".join(PIECES[i] for i in ids)


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ("stop", "write ('stop',)"),
    (["a", ""], "at least one character, not ''"),
    ([3], "at least one character, not 3"),
  ],
)
def test_what_cannot_be_one_is_refused(values, message):
  assert stops.check_stops(["a", "b"]) == ("a", "b")  # hashable
  with pytest.raises(ValueError, match=re.escape(message)):
    stops.check_stops(values)


@pytest.mark.parametrize(
  ("text", "strings", "expected"),
  [
    ("abcabc", ["c", "b"], 1),
    ("abcabc", ["x"], None),
    ("abcabc", [], None),
    ("", ["a"], None),
    # "bc" is complete before "abcd" is: what follows is never sampled.
    ("abcd", ["abcd", "bc"], 1),
    # Both are complete at the same character: the longer one goes.
    ("abc", ["bc", "abc"], 0),
  ],
)
def test_the_stop_that_is_complete_first_by_hand(text, strings, expected):
  assert stops.find_stop(text, strings) == expected


class TestSettled:
  def test_an_end_that_may_begin_a_stop_is_held_back(self):
    for text, left in (("1 <", "1 "), ("1 <en", "1 "), ("1 <ex", "1 <ex")):
      assert stops.settled(text, ["<end>"]) == left
    assert stops.settled("aab", ["abab", "bb"]) == "a"
    # A stop and what follows is gone; without stops all is certain.
    assert stops.settled("1 <end> 2", ["<end>"]) == "1 "
    assert stops.settled("1 <", []) == "1 <"

  def test_what_was_certain_once_stays(self):
    text, strings = "aabab ababbaabba", ["abba", "ba a"]
    whole = stops.settled(text, strings)
    for size in range(len(text)):
      assert whole.startswith(stops.settled(text[:size], strings)), size


class TestCountTokens:
  def test_a_stop_may_begin_and_end_inside_tokens(self):
    ids = [0, 1, 2, 3, 0]  # ab cd e "d e" ab
    assert stops.count_tokens(ids, decode, ["bc"]) == 2
    assert stops.count_tokens(ids, decode, ["b"]) == 1
    assert stops.count_tokens(ids, decode, ["ed "]) == 4
    assert stops.count_tokens(ids, decode, ["ea"]) == 5
    assert stops.count_tokens(ids, decode, ["x"]) is None
    assert stops.count_tokens([], decode, ["x"]) is None

  def test_is_the_first_prefix_that_has_it(self):
    ids = BYTES.encode("née en été, née")
    for text in ("é", "né", "e e", ", n", "n"):
      sizes = range(len(ids) + 1)
      expected = next(n for n in sizes if text in BYTES.decode(ids[:n]))
      assert stops.count_tokens(ids, BYTES.decode, [text]) == expected
