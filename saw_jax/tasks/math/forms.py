r"""The one form of all ways to write an answer.

An answer is an element or a list of them; an element is a number, an expression
or brackets around elements, with a unit behind it or a variable before it. What
is none of these is text, and stays as it is.

A number is digits, a fraction (of powers, too), a mixed number, a product with
a power of ten, a power, a factorial, a binomial, an exact root. Anything more
is arithmetic left undone.
"""

import contextlib
import fractions
import functools
import itertools
import math
import operator
import re
from typing import NamedTuple

from saw_jax.tasks.math import spelling, units
from saw_jax.tasks.math.spelling import GROUP, UPRIGHT

MAX_SIZE = 256  # characters that are looked at; no answer in data has more
FUNCTIONS = frozenset(spelling.TABLES["functions"])
_MAX_DEPTH = 20
_MAX_BITS = 850  # of a number of MAX_SIZE digits
_VARIABLES = frozenset(spelling.TABLES["variables"])
_KNOWN = _VARIABLES | FUNCTIONS | frozenset(spelling.TABLES["operators"])
_LITERAL = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3}(?![0-9.]))?"
_TOKEN = re.compile(rf"(?P<number>{_LITERAL})|(?:\\|{UPRIGHT})?[A-Za-z]+|\S")
_NAME = rf"{UPRIGHT}?([A-Za-z]|\\[a-z]+)(_\{{[^{{}}]*\}})?"
_ASSIGNED = re.compile(rf"({_NAME}) ?(?:=|\\in(?![a-z])) ?(?=[^=])")
_BRACKETS = re.compile(r"(\(|\[|\\?\{)(.*?)(\)|\]|\\?\})", re.DOTALL)
_AND = re.compile(rf" ?,? ?{UPRIGHT}?\b(?:and|or)\b ?")
_MONEY = re.compile(r"([+-]?) ?(?:(?:US)?([$€£¥₹]|(?:USD|EUR|GBP)\b) ?)?")
_UNIT_START = re.compile(r"(?<=[^ ])(?=[ A-Za-z/%$€£¥₹¢\\\ue000]|$)")
# How expressions that are no numbers are written.
_REWRITTEN = (
  (r"^\+(?![+-])", ""),
  (r"(?<=[0-9])\\cdot ?(?=\\(?!frac)|(?!e[+-]?[0-9])[A-Za-z])", ""),
  (r"^(-?)\(([^()]+)\)/([0-9]+|\\?[A-Za-z]+)$", r"\1\\frac{\2}{\3}"),
  (r"^(-?)([^-+/()]+)/([0-9]+|\\?[A-Za-z]+)$", r"\1\\frac{\2}{\3}"),
  (r"^\\frac\{-([^-+{}]*(?:\{[^{}]*\})?)\}", r"-\\frac{\1}"),
)


class Form(NamedTuple):
  """An answer in normal form; of a list or of brackets, its parts too."""

  text: str
  kind: str = "text"  # or "number", "constant", "expression", "list"
  unit: str = ""
  name: str = ""  # of the variable that it was the value of
  brackets: str = ""
  parts: tuple["Form", ...] = ()


def read(text: str) -> Form:
  """Reads an answer. It never raises, and takes limited time."""
  text = text.strip()
  if len(text) > MAX_SIZE:
    return Form(text)
  form = _read_once(text)
  # Text may read otherwise when it is put together again.
  for _ in range(MAX_SIZE):
    again = _read_once(form.text)
    if again.text == form.text:
      break
    seen = {"unit": form.unit or again.unit, "name": form.name or again.name}
    form = again._replace(**seen)
  return form


def clash(one: Form, other: Form) -> bool:
  """Whether equal forms were of different units or of different variables."""
  marks = ((one.unit, other.unit), (one.name, other.name))
  return any(a and b and a != b for a, b in marks) or any(
    itertools.starmap(clash, zip(one.parts, other.parts, strict=False))
  )


@functools.lru_cache(2**12)  # Samples of one prompt say the same.
def _read_once(text: str) -> Form:
  is_long = len(text) > MAX_SIZE
  if is_long or len(spelled := spelling.spell(text)) > 2 * MAX_SIZE:
    return Form(text)
  text = spelled
  open_at = depths(text)
  commas = _AND.sub(lambda m: m[0] if open_at[m.start()] else ",", text)
  form = _list("", commas, "", 0)
  if commas != text and "text" in [f.kind for f in (form, *form.parts)]:
    form = _list("", text, "", 0)  # 3 or more
  return form


def _list(opened: str, inside: str, closed: str, depth: int) -> Form:
  """Reads elements between commas, in brackets or none."""
  open_at = depths(inside)
  commas = [i for i, c in enumerate(inside) if c in ",;" and not open_at[i]]
  cuts = list(itertools.pairwise([-1, *commas, len(inside)]))
  parts = [_element(inside[a + 1 : b].strip(), depth) for a, b in cuts]
  if len(parts) == 1 and opened + closed in ("", "()"):
    return parts[0]
  if len({part.name for part in parts if part.name}) > 1 or Form("") in parts:
    return Form(_plain(opened + inside + closed))  # x=1, y=2
  if opened == "\\{" and all(part.kind != "text" for part in parts):
    parts = [part for _, part in sorted({p.text: p for p in parts}.items())]
  text = (", " if not opened else ",").join(part.text for part in parts)
  text, brackets = opened + text + closed, opened + closed
  return Form(text, "list", brackets=brackets, parts=tuple(parts))


def depths(text: str) -> list[int]:
  """How many brackets are open behind each character."""
  return list(itertools.accumulate((c in "([{") - (c in ")]}") for c in text))


def _element(text: str, depth: int = 0) -> Form:
  open_at = depths(text)
  if not open_at or min(open_at) < 0 or open_at[-1] or depth > _MAX_DEPTH:
    return Form(_plain(text))
  if match := _ASSIGNED.match(text):
    form = _element(text[match.end() :], depth + 1)
    if form.name:
      return Form(_plain(text))  # x=y=5
    return form._replace(name=_plain(match[1]))
  match = _BRACKETS.fullmatch(text)
  if not match or open_at.index(0, len(match[1]) - 1) < len(text) - 1:
    return _quantity(text)
  opened, inside, closed = match.groups()
  if opened == "\\{" and not inside.strip():
    return Form("\\emptyset")
  if opened == "{":
    opened = closed = ""
  return _list(opened, inside, closed, depth + 1)


def _quantity(text: str) -> Form:
  """Reads an expression, or a number and its units, else text."""
  match = _MONEY.match(text)
  sign, money = match.groups("")
  rest = text[match.end() :]
  for match in _UNIT_START.finditer(rest):
    behind = f"{money} {rest[match.end() :]}".strip()
    unit = units.read(behind) if behind else ""
    body = _plain(sign + rest[: match.end()])
    value = None if unit is None else _number(body)
    if value is not None and len(str(value)) <= MAX_SIZE:
      return Form(str(value), "number", unit)
    if unit and _kind(body) == "constant" and not functions(body):
      return Form(_rewritten(body), "constant", unit)
  kind, text = _kind(text), _plain(text)
  return Form(text if kind == "text" else _rewritten(text), kind)


def functions(text: str) -> set[str]:
  """The functions that an expression has a value of."""
  return FUNCTIONS & set(re.findall(r"\\[a-z]+", text))


def _kind(text: str) -> str:
  """The kind of an expression that is no number; "text" if it is not known."""
  letters, before = set(), ""
  for match in _TOKEN.finditer(text):
    token, is_number = match[0].removeprefix(UPRIGHT), bool(match["number"])
    is_word = token.isalpha() and len(token) > (3 if token == match[0] else 1)
    is_odd = is_number and before.isalnum()  # x2, 1 2
    is_base = token == "_" and before[:1].isdigit()  # 101_2
    is_known = is_number or token.isalpha() or token in _KNOWN
    if is_word or is_odd or is_base or not is_known:
      return "text"
    letters |= {token} & _VARIABLES | set(token if token.isalpha() else "")
    before = token
  return "constant" if letters <= {"e", "i"} else "expression"


def _plain(text: str) -> str:
  """Takes away spaces that say nothing, and marks of upright words."""
  kept = r"(\\[A-Za-z]+(?= +[A-Za-z])|[0-9.](?= +[0-9.]))? +"
  text = text.replace(UPRIGHT, "").strip()
  return re.sub(kept, lambda m: f"{m[1]} " if m[1] else "", text)


def _rewritten(text: str) -> str:
  for pattern, plain in _REWRITTEN:
    text = re.sub(pattern, plain, text)
  return text


def _number(text: str, is_part: bool = False) -> fractions.Fraction | None:
  """Reads a number, or a part of one, which is no fraction."""
  sign = -1 if text[:1] == "-" else 1
  body = text[1:] if text[:1] in ("+", "-") else text
  if re.match(r"\(?[+-]", body) and body != text:
    return None  # --5 and -(-5)
  if re.fullmatch(_LITERAL, body):
    return sign * fractions.Fraction(body)
  for pattern, combine in (_PARTS if is_part else _NUMBERS).items():
    match = re.fullmatch(pattern, body)
    parts = [_number(part, True) for part in match.groups()] if match else []
    if parts and None not in parts:
      with contextlib.suppress(ArithmeticError, ValueError):
        return sign * combine(*parts)
  return None


def _power(base: fractions.Fraction, exponent: fractions.Fraction):
  size = max(base.numerator.bit_length(), base.denominator.bit_length())
  if size * abs(exponent) > _MAX_BITS or not base:
    raise ValueError
  return base ** int(exponent)


def _root(degree: fractions.Fraction | int, value: fractions.Fraction):
  if value < 0 and degree % 2:
    return -_root(degree, -value)
  # What floats do not find is no root.
  parts = (abs(n) ** (1 / degree) + 0.5 for n in value.as_integer_ratio())
  root = fractions.Fraction(*map(math.floor, parts))
  if root**degree != value:
    raise ValueError
  return root


_WHOLE, _DIGITS = "([0-9]{1,3})", "([0-9]+)"
_PARTS = {
  r"\(([^()]*)\)": lambda value: value,
  rf"\(?([+-]?{_LITERAL})\)?\^\{{([+-]?[0-9]{{1,4}})\}}": _power,
}
_NUMBERS = _PARTS | {
  rf"\\sqrt\{{(-?{_LITERAL})\}}": functools.partial(_root, 2),
  rf"\\sqrt\[{_WHOLE}\]\{{(-?{_LITERAL})\}}": _root,
  f"{_WHOLE}!": lambda n: math.factorial(int(n)),
  rf"\\binom\{{{_WHOLE}\}}\{{{_WHOLE}\}}": lambda n, k: math.comb(
    int(n), int(k)
  ),
  rf"{_DIGITS} {_DIGITS}/{_DIGITS}": lambda a, b, c: a + b / c,
  rf"{_DIGITS}\\frac\{{{_DIGITS}\}}\{{{_DIGITS}\}}": lambda a, b, c: a + b / c,
  rf"\\frac{GROUP}{GROUP}": operator.truediv,
  r"([^/]+)/([^/]+)": operator.truediv,
  rf"({_LITERAL})\\cdot(10\^\{{[+-]?[0-9]{{1,3}}\}})": operator.mul,
}
