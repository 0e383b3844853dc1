r"""Answers in `\boxed{...}`: found in a text, normalised, compared.

Two answers are equal if their normal forms are the same string, so that they
can be counted and grouped by it; docs/grading.md has a table of the kinds.
"""

import fractions
import operator
import re
from collections.abc import Iterator
from typing import Any

from saw_jax import naming
from saw_jax.tasks.math import forms, spelling

# Product of all exponents that a computer algebra system is asked about.
_MAX_POWER = 10_000
_MAX_DEPTH, _MAX_PARTS = 8, 8
_DIGITS = 60  # of a difference at one point, which is looked at first

_BRACES = re.compile(r"(\\boxed\s*)?\{|\\[{}]|[{}]")
_DATA_BRACES = re.compile(r"(\\(?:boxed|fbox)\s*)?\{|\\[{}]|[{}]")
# In data, \boxed 5 ends with the formula that it is in.
_BARE = re.compile(
  r"\\(?:boxed|fbox)(?![A-Za-z])\s*(?![\s{])"
  r"([^$\n]{1,256}?(?=[.,]?\s*(?:\$|\\[\])]))|\S{1,256}?(?=[.,]?(?:\s|\Z)))"
)
_NAME = re.compile(r"\\[A-Za-z]+|[A-Za-z](?:_\{[^{}]*\})?")
_KEPT = {"\\frac", "\\sqrt", "\\cdot", "\\binom", "\\pi", "e", *forms.FUNCTIONS}
# What might keep a computer algebra system busy for ever, and possible words.
_REFUSED = re.compile(r"[0-9]{40}|!|binom|^[A-Za-z]+$")
# Arithmetic left undone: 13+3, (1+\sqrt{2})^{2}.
_UNDONE = re.compile(
  r"(?<![0-9.])[0-9.]+[+-][0-9.]+(?![0-9.\\A-Za-z({])|\)(?:\\cdot|[\^(])"
)
_INNER = re.compile(r"(?:\[[^]]*\])?[{(]([^{}()]*)[})]")
# Those of \ln 2 and \log_{2}3 are no factors.
_NUMBERS = re.compile(r"(?<![a-z0-9.])(?<!_ )[0-9.]+(?:/[0-9]+)?|\\frac")
_ROOTS = re.compile(r"\\sqrt|\\pi")


def extract_answer(text: str, braces: re.Pattern = _BRACES) -> str | None:
  r"""Finds the last complete `\boxed{...}` of a text, in linear time.

  A box that is never closed does not count, and neither does `\boxed 5`. Of a
  box in a box the inner one is the last.

  >>> extract_answer(r"\boxed{1}, no: \boxed{\frac{1}{2}}, so \boxed{3")
  '\\frac{1}{2}'
  """
  opened: list[tuple[bool, int]] = []
  best = -1, 0
  for match in braces.finditer(text):
    if match[0].endswith("{") and match[0] != "\\{":
      opened.append((bool(match[1]), match.end()))
    elif match[0] == "}" and opened:
      is_box, start = opened.pop()
      if is_box and start > best[0]:
        best = start, match.start()
  return None if best[0] < 0 else text[slice(*best)].strip()


def extract_reference(text: str) -> str | None:
  r"""Finds the last box of a solution in data: `\fbox{5}` and `\boxed 5`, too.

  >>> extract_reference(r"so that $x = \boxed 5$.")
  '5'
  """
  return extract_answer(_BARE.sub(r"\\boxed{\1}", text), _DATA_BRACES)


def normalise_answer(answer: str) -> str:
  r"""Returns the one form of all ways to write an answer.

  Numbers become a fraction in lowest terms; thousands separators, units of a
  closed list, percent signs, a variable before `=` and spaces go away, in each
  element of a tuple. What is not understood stays. 10 % is 10, not 1/10.

  >>> [normalise_answer(a) for a in (r"\$1,234.50", r"\dfrac{-6}{4}", "x = 7")]
  ['2469/2', '-3/2', '7']
  """
  return forms.read(answer).text


def parse_number(text: str) -> fractions.Fraction | None:
  r"""Reads an answer that is a rational number.

  >>> parse_number(r"-1\frac{1}{2}")
  Fraction(-3, 2)
  """
  form = forms.read(text)
  return fractions.Fraction(form.text) if form.kind == "number" else None


def is_equal(answer: str, reference: str) -> bool:
  """Whether answers have one normal form, and no two units or variables."""
  one, other = forms.read(answer), forms.read(reference)
  return one.text == other.text and not forms.clash(one, other)


def is_equal_by_math_verify(answer: str, reference: str) -> bool:
  """Whether answers are equal, or are expressions that algebra finds equal.

  Algebra is not asked where the reference is rational: then any other form is
  wrong, or is arithmetic left undone. It is not asked about text either, nor
  about anything that could take minutes.
  """
  with naming.needs_extra("math", "grader='math_verify' needs math-verify"):
    import math_verify
  return _is_same(forms.read(answer), forms.read(reference), math_verify.parse)


def explain(answer: str, reference: str) -> Iterator[str]:
  """Says how two answers are read, and what each grader makes of them."""
  for text in (answer, reference):
    form = forms.read(text)
    yield f"{text!r} reads {form.text!r}: {form.kind}, unit {form.unit or None}"
  yield f"exact: {is_equal(answer, reference)}"
  yield f"math_verify: {is_equal_by_math_verify(answer, reference)}"


def _is_same(one: forms.Form, other: forms.Form, parse: Any) -> bool:
  if one.text == other.text or forms.clash(one, other):
    return not forms.clash(one, other)
  if (one.kind, one.brackets) != (other.kind, other.brackets):
    return False
  if one.kind == "list":
    lists = one.parts, other.parts
    if other.brackets in ("", "\\{\\}"):  # in any order
      lists = map(sorted, lists)
    if not len(one.parts) == len(other.parts) <= _MAX_PARTS:
      return False
    return all(_is_same(*pair, parse) for pair in zip(*lists, strict=True))
  texts = one.text, other.text
  called, known = map(forms.functions, texts)
  work = map(operator.gt, _work(one.text), _work(other.text))
  is_undone = _UNDONE.search(one.text) or called - known or any(work)
  if one.kind == "constant" and is_undone:
    return False
  is_asked = one.kind in ("constant", "expression")
  return is_asked and all(map(_is_cheap, texts)) and _is_zero(*texts, parse)


def _work(text: str) -> tuple[int, int]:
  """Counts sums, and the most numbers or roots of any one product."""
  sums, counts, more = len(re.findall(r"(?<=[^({[])[+-]", text)), [1], True

  def weigh(match: re.Match) -> str:
    terms = re.split("[+-]", match[1])
    counts.extend(len(x.findall(t)) for t in terms for x in (_NUMBERS, _ROOTS))
    return " "

  # A product in parentheses is a part of the one around them.
  text = re.sub(r"\(([^()+-]*)\)", r" \1", text.replace("\\cdot", " "))
  text = f"({text})"
  while more:
    text, more = _INNER.subn(weigh, text)
  return sums, max(counts)


def _is_zero(one: str, other: str, parse: Any) -> bool:
  """Whether SymPy shows that the difference of two expressions is 0."""
  import sympy

  # Names of our own: math-verify takes A for a, and a last m for a unit.
  names = sorted(set(_NAME.findall(f"{one} {other}")) - _KEPT)
  places = {name: f"x_{{{place}}}" for place, name in enumerate(names)}

  def parsed(text: str) -> Any:
    text = _NAME.sub(lambda match: places.get(match[0], match[0]), text)
    text = re.sub(r"(x_\{[0-9]+\})\(", r"\1\\cdot (", text)
    # Its own limits are signals, which raise in any thread but the main one.
    return parse(rf"\boxed{{{text}}}", parsing_timeout=None)[0]

  try:
    difference = parsed(one) - parsed(other)
    found = {x: names[int(x.name[2:])] for x in difference.free_symbols}
    units = {x: sympy.I for x, name in found.items() if name == "i"}
    tops = {x: 17 + names.index(name) for x, name in found.items()}
    points = {x: sympy.Rational(top, 29) for x, top in tops.items()}
    value = difference.subs({**points, **units}).evalf(_DIGITS)
    is_near = abs(value) < 10.0 ** (-_DIGITS / 2)
    return bool(is_near and sympy.simplify(difference.subs(units)) == 0)
  except Exception:  # SymPy raises whatever it meets.
    return False


def _is_cheap(text: str) -> bool:
  """Whether a computer algebra system can be trusted with a text."""
  # Its parser takes half a minute for 120 parentheses.
  if _REFUSED.search(text) or max(forms.depths(text)) > _MAX_DEPTH:
    return False
  size = 1
  for exponent in text.split("^")[1:]:
    group = re.match(spelling.GROUP, exponent)
    if group is None or "^" in group[0]:  # perhaps a power in a power
      return False
    for number in re.findall("[0-9]+", group[0]):
      size *= max(int(number), 1)
  return size <= _MAX_POWER
