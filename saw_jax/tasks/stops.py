"""Strings that end an answer: where they stand in text, and in tokens."""

import bisect
from collections.abc import Callable, Sequence


def check_stops(stops: Sequence[str]) -> tuple[str, ...]:
  """Returns stop strings as a tuple, or raises what is wrong with them."""
  if isinstance(stops, str):
    what = f"stop strings are a list, and {stops!r} is one string: write "
    raise ValueError(f"{what}({stops!r},)")
  for stop in stops:
    if not isinstance(stop, str) or not stop:
      what = "a stop string is text of at least one character"
      raise ValueError(f"{what}, not {stop!r}")
  return tuple(stops)


def find_stop(text: str, stops: Sequence[str]) -> int | None:
  """Returns where the stop string begins that is completed first, if any.

  >>> find_stop("2 + 3 = 5 Next", ["Next", "5"])
  8
  """
  found = [(text.find(stop), stop) for stop in stops]
  ends = [(at + len(stop), at) for at, stop in found if at >= 0]
  return min(ends)[1] if ends else None


def settled(text: str, stops: Sequence[str]) -> str:
  """Returns the text before a stop string, or before an end that may begin one.

  >>> settled("5 a", ["and"])
  '5 '
  """
  at = find_stop(text, stops)
  if at is not None:
    return text[:at]
  longest = max(map(len, stops), default=1) - 1
  for size in range(min(longest, len(text)), 0, -1):
    if any(stop.startswith(text[-size:]) for stop in stops):
      return text[:-size]
  return text


def count_tokens(
  ids: Sequence[int],
  decode: Callable[[Sequence[int]], str],
  stops: Sequence[str],
) -> int | None:
  """Counts the tokens up to the one that completes a stop string, if any."""
  if find_stop(decode(ids), stops) is None:
    return None
  # More tokens never take a string away.
  return bisect.bisect_left(
    range(len(ids)),
    True,
    lo=1,
    key=lambda size: find_stop(decode(ids[:size]), stops) is not None,
  )
