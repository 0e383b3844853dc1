r"""The closed list of units that may stand at a number.

What is not in it is part of the answer: "5 million", "3 or more", "5xy". In
plain letters `5m` is five times m: a unit of one letter is upright, as in
`5\text{ m}`, or in a quotient with a longer one.
"""

import collections
import re

from saw_jax.tasks.math.spelling import GROUP, TABLES, UPRIGHT

_NAMES, _RAISED = TABLES["units"], TABLES["raised"]
_DEGREES = re.compile(rf"(?:\\degree|degrees?) ?{UPRIGHT}?([CF])[a-z]*\b")
_SHORT = rf"(?<!{UPRIGHT})\b(?:{'|'.join(TABLES['upright_units'])}|per)\b"
_RAISER = rf"(?:{UPRIGHT}?(square|sq|cubic|cu) ?)?"
_FACTOR = re.compile(
  rf"(/|{UPRIGHT}?per\b)? ?{_RAISER}{UPRIGHT}?(\\?[A-Za-z]+|[^\s/])"
  rf"(?: ?(?:\^\{{(-?[1-9])\}}|{UPRIGHT}?(squared|cubed)))? ?"
)


def read(text: str) -> str | None:
  """Gives the one form of a unit, its factors with their powers, or None."""
  text = re.sub(rf"\\frac{GROUP}{GROUP}", r"\1/\2", text)
  text = re.sub(r"\\cdot|\.", "", _DEGREES.sub(r"\\degree\1", text)).strip()
  powers: dict[str, int] = collections.Counter()
  factors = list(_FACTOR.finditer(text))
  for match in factors:
    over, before, name, power, behind = match.groups()
    known = _NAMES.get(name, _NAMES.get(name.lower() if len(name) > 3 else ""))
    if known is None:
      return None
    size = _RAISED.get(before or behind) or int(power or 1)
    powers[known] += -size if over else size
  if "".join(match[0] for match in factors) != text or not factors:
    return None
  if re.search(_SHORT.replace("|per", ""), text):  # 5m, but 5 km/h and 5 m/s
    is_long = re.search("[A-Za-z]{2}", re.sub(_SHORT, "", text))
    if "/" not in text or not (is_long or re.match(r"m ?/ ?s\b", text)):
      return None
  return " ".join(f"{n}^{powers[n]}" for n in sorted(powers) if n)
