r"""Answers in `\boxed{...}`: found in a text, normalised, compared.

Two answers are equal if their normal forms are the same string, so that they
can be counted and grouped by it.
"""

import fractions
import itertools
import re

from saw_jax import naming

# A longer answer is compared as text; no number in a data set is near it.
MAX_NUMBER_SIZE = 256

# Product of all exponents that a computer algebra system is asked about.
_MAX_POWER = 10_000
_MAX_DEPTH = 8

_BRACES = re.compile(r"\\boxed ?\{|\\[{}]|[{}]")

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.[0-9]*)?|\.[0-9]+)"
_NUMBER = re.compile(rf"[+-]* ?{_DECIMAL}")
_RATIO = re.compile(rf"([+-]*{_DECIMAL}) ?/ ?([+-]*{_DECIMAL})")
_SPACED = re.compile(r"[0-9]{1,3}(?: [0-9]{3})+(?=\.|$)")  # 10 000
_MIXED = re.compile(r"([+-]*)([0-9]+) ([0-9]+) ?/ ?([0-9]+)")  # 1 1/2
# \frac{1}{2}, \frac12, \frac{1}2, and the mixed number 1\frac{1}{2}.
_PART = r"(?:\{([+-]*[0-9.,]+)\}|([0-9]))"
_FRACTION = re.compile(rf"([+-]*)({_DIGITS})?\\frac{_PART}{_PART}")

# What a number is dressed in, and what is left of it.
_DRESS = (
  (r"\{,\}", ","),
  ("[−\u2013]", "-"),
  (r"\\\(|\\\)|\\?[$€£]", ""),
  (r"\\(?:left|right)(?![a-zA-Z])", ""),
  (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
  (r"(?<=\\frac) +", ""),
  (r"\\[,!]", ""),
  (r"\\[;:> ]|\\q?quad(?![a-zA-Z])|~|\s+", " "),
)
_TEXT = r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\{([^{}]*)\}"
# What stands behind a number and says what it counts: \text{ cm}^2, degrees.
_UNIT = re.compile(
  rf"(?:{_TEXT}(?:\^(?:[0-9]|\{{[0-9]\}}))?|\^\\circ|\^\{{\\circ\}}|°|\\?%)$"
)
# Words behind a number, the first of at least two letters: "18 fresh eggs".
_WORDS = re.compile(r"(?<=[0-9.}]) +([A-Za-z]{2,}(?:[ .'-][A-Za-z .'-]*)?)$")
# Words that are part of the mathematics.
_NOT_UNITS = frozenset(["pi", "sqrt", "sin", "cos", "tan", "log", "ln", "exp"])
_NOT_UNITS |= frozenset(["or", "and", "mod", "to", "over", "times"])
_ASSIGNMENT = re.compile(r"^[A-Za-z](?:_[0-9A-Za-z])? ?= ?(?=[^=])")
# What a computer algebra system might not come back from.
_COSTLY = re.compile(r"[0-9]{40}|!|\\(?:sum|prod|int|lim)|binom|gamma|mod")
_TUPLE = re.compile(r"([(\[]|\\\{)(.*)([)\]]|\\\})", re.DOTALL)


def extract_answer(text: str) -> str | None:
  r"""Finds the last complete `\boxed{...}` of a text, in linear time.

  A box that is never closed does not count, and neither does `\boxed 5`. Of a
  box in a box the inner one is the last.

  >>> extract_answer(r"\boxed{1}, no: \boxed{\frac{1}{2}}, so \boxed{3")
  '\\frac{1}{2}'
  """
  opened: list[tuple[bool, int]] = []
  best: tuple[int, int] | None = None
  for match in _BRACES.finditer(text):
    token = match[0]
    if token == "{" or token.startswith("\\boxed"):
      opened.append((token != "{", match.end()))
    elif token == "}" and opened:
      is_box, start = opened.pop()
      if is_box and (best is None or start > best[0]):
        best = start, match.start()
  return None if best is None else text[best[0] : best[1]].strip()


def normalise_answer(answer: str) -> str:
  r"""Returns the one form of all ways to write an answer.

  Numbers become a fraction in lowest terms; thousands separators, dollar signs,
  units, percent signs, a variable before `=` and spaces go away, in each
  element of a tuple. Other expressions stay as they are. 10 % is 10, not 1/10.

  >>> [normalise_answer(a) for a in (r"\$1,234.50", r"\dfrac{-6}{4}", "x = 7")]
  ['2469/2', '-3/2', '7']
  """
  # What is left may be dressed again, as in ((5)); none gets longer for ever.
  for _ in range(MAX_NUMBER_SIZE):
    before, answer = answer, _normalise_once(answer.strip())
    if answer == before:
      break
  return answer


def parse_number(text: str) -> fractions.Fraction | None:
  r"""Reads an integer, a decimal, a ratio, a `\frac` or a mixed number.

  >>> parse_number(r"-1\frac{1}{2}")
  Fraction(-3, 2)
  """
  text = text.strip()
  if len(text) > MAX_NUMBER_SIZE:
    return None
  if match := _SPACED.match(text):
    text = match[0].replace(" ", "") + text[match.end() :]
  try:
    if _NUMBER.fullmatch(text):
      return _fraction(text)
    if match := _RATIO.fullmatch(text):
      return _fraction(match[1]) / _fraction(match[2])
    match = _MIXED.fullmatch(text) or _FRACTION.fullmatch(text.replace(" ", ""))
    if not match:
      return None
    signs, whole, *parts = match.groups()
    top, bottom = (_fraction(part) for part in parts if part)
    value = _fraction(whole or "0") + top / bottom
    return -value if signs.count("-") % 2 else value
  except (ValueError, ZeroDivisionError):
    return None


def is_equal(answer: str, reference: str) -> bool:
  """Whether two answers have the same normal form."""
  return normalise_answer(answer) == normalise_answer(reference)


def is_equal_by_math_verify(answer: str, reference: str) -> bool:
  """Whether two answers are equal, or `math_verify` finds that they are.

  An answer that could cost it minutes is compared by its normal form alone.
  """
  with naming.needs_extra("math", "grader='math_verify' needs math-verify"):
    import math_verify
  if is_equal(answer, reference):
    return True
  if not (_is_cheap(answer) and _is_cheap(reference)):
    return False
  # Its own limits are signals, which raise in any thread but the main one.
  parsed = [
    math_verify.parse(f"\\boxed{{{text}}}", parsing_timeout=None)
    for text in (reference, answer)
  ]
  return bool(math_verify.verify(*parsed, timeout_seconds=None))


def _clean(text: str) -> str:
  """Takes away what a number is dressed in."""
  for pattern, plain in _DRESS:
    text = re.sub(pattern, plain, text)
  text = re.sub(r"(?<=[^.])\.$", "", text.strip()).strip()
  text = _ASSIGNMENT.sub("", text)
  while len(shorter := _UNIT.sub("", text).strip()) not in (0, len(text)):
    text = shorter
  text = re.sub(_TEXT, r"\1", text).strip()
  words = _WORDS.search(text)
  if words and words[1].split()[0].lower() not in _NOT_UNITS:
    text = text[: words.start()]
  return text.strip()


def _normalise_once(text: str) -> str:
  if len(text) > MAX_NUMBER_SIZE:
    return text
  text = _clean(text)
  match = _TUPLE.fullmatch(text)
  parts = _split(match[2]) if match else None
  if not parts:
    return _element(text)
  parts = [_element(_clean(part)) for part in parts]
  is_plain = len(parts) == 1 and (match[1], match[3]) == ("(", ")")
  return parts[0] if is_plain else match[1] + ",".join(parts) + match[3]


def _element(text: str) -> str:
  number = parse_number(text)
  if number is not None:
    return str(number)
  return re.sub(r"(?<![0-9])\s|\s(?![0-9])", "", text)  # 1 2 is not 12.


def _depths(text: str) -> list[int]:
  """How many brackets are open after each character."""
  steps = ((c in "([{") - (c in ")]}") for c in text)
  return list(itertools.accumulate(steps, initial=0))


def _split(text: str) -> list[str] | None:
  """Splits at commas; None if a bracket opens that is not closed, or nested."""
  _, *depths = _depths(text)
  if depths and (min(depths) < 0 or depths[-1]):
    return None
  found = zip(text, depths, strict=True)
  commas = [i for i, (c, depth) in enumerate(found) if c == "," and not depth]
  cuts = itertools.pairwise([-1, *commas, len(text)])
  return [text[start + 1 : end] for start, end in cuts]


def _fraction(text: str) -> fractions.Fraction:
  """Reads signs and a decimal; a ValueError if it is none after all, 1.2.3."""
  digits = text.lstrip("+- ")
  if not _NUMBER.fullmatch(digits):
    raise ValueError
  value = fractions.Fraction(digits.replace(",", "").rstrip("."))
  return -value if text.count("-") % 2 else value


def _is_cheap(text: str) -> bool:
  """Whether a computer algebra system can be trusted with a text."""
  if len(text) > MAX_NUMBER_SIZE or _COSTLY.search(text):
    return False
  # Its parser takes half a minute for 120 parentheses.
  if max(_depths(text)) > _MAX_DEPTH:
    return False
  size = 1
  for exponent in re.split(r"\^|\*\*", text)[1:]:
    group = re.match(r"\s*(?:\{([^{}]*)\}|([0-9.]+|\\?[A-Za-z]+))", exponent)
    if group is None:  # Braces in an exponent, so perhaps a power in a power.
      return False
    for number in re.findall(r"[0-9]+", group[0]):
      size *= max(int(number), 1)
  return size <= _MAX_POWER
