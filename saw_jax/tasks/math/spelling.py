r"""One spelling of an answer, whatever its characters and macros.

>>> spell("\\dfrac１2\\,\\text{ cm²}").replace(UPRIGHT, "")
'\\frac{1}{2} cm^{2}'
"""

import itertools
import re
import unicodedata

from saw_jax.tasks import base

UPRIGHT = "\ue000"  # before a word that is no product of letters
TABLES = base.asset(__file__, "answers.json")
GROUP = r"\{((?:[^{}]|\{[^{}]*\})*)\}"

_CHARACTERS, _MACROS = TABLES["characters"], TABLES["macros"]
_SCRIPTS = {"<super>": "^", "<sub>": "_"}
# What is around a whole answer and says nothing: `73`, **73**.
_WRAPPED = re.compile(r"(\*\*|__|[*_'\"]|`+)(.+)\1", re.DOTALL)
_DOT = re.compile(r"(?<=[^.])\s*\.$")
_FONTS = "|".join((*TABLES["styles"], *TABLES["upright"]))
# {\rm cm}, \rm{cm} and \mathrm i are \text{cm} and \mathrm{i}.
_OLD_FONTS = re.compile(r"(?:\{\s*\\(?:rm|bf|it)(?![A-Za-z])|\\(?:rm|bf)\s*\{)")
_FONT_OF_ONE = re.compile(rf"(\\(?:{_FONTS}))(?:\s*([0-9])|\s+([A-Za-z]))")
_TEXT = re.compile(rf"\\(?:{'|'.join(TABLES['upright'])})\s*{GROUP}")
# A separator of thousands; in brackets a comma is between elements.
_GAP = r"\{,\}|,\\! ?|\\[,;:! ]|[ ~](?![0-9]+ ?/)"
_THOUSANDS = (
  r"(?<![0-9.])[1-9][0-9]{{,2}}({0})[0-9]{{3}}(?:\1[0-9]{{3}})*(?!{0}?[0-9])"
)
_MACRO = re.compile(
  r"\\(?:[A-Za-z]+|.)|(?<![A-Za-z])[a-z]+(?![A-Za-z])|[*]|(?<=[^\s=<>~])~"
)
_ATOM = r"([0-9A-Za-z]|\\[A-Za-z]+)"
# A half of `1 \over 2`, with no bracket or comma of its own.
_HALF = r" *((?:[^][(){},;\\]|\\(?!over)[A-Za-z]++|\{[^{}]*\})+?) *"
_STEPS = [
  (re.compile(pattern, re.DOTALL), plain)
  for pattern, plain in (
    (r"\\(?:text)?color\s*\{[^{}]*\}", ""),
    (rf"\\(?:{'|'.join(TABLES['styles'])})\s*{GROUP}", r"\1"),
    (rf"^{_HALF}\\over(?![A-Za-z]){_HALF}$", r"\\frac{\1}{\2}"),
    (
      rf"(?<![A-Za-z}}\]])\{{{_HALF}\\over(?![A-Za-z]){_HALF}\}}",
      r"\\frac{\1}{\2}",
    ),
    (r"\^\s*(?:\\circ(?![A-Za-z])|\{\s*\\circ\s*\}|\\degree)", r"\\degree "),
    (r"\{\s*\}", ""),
    ("\u221a\\s*([0-9.]+)", r"\\sqrt{\1}"),
    ("\u221a", r"\\sqrt "),
    (r"(\^|\\sqrt)\s*\(([^()]*)\)", r"\1{\2}"),
    (rf"([\^_])\s*([+-]?(?:[0-9]+|{UPRIGHT}?{_ATOM}))", r"\1{\2}"),
    (rf"\\sqrt\s*(\[[0-9]+\])?\s*{_ATOM}(?![0-9.])", r"\\sqrt\1{\2}"),
    (rf"(\\(?:frac|binom)(?![A-Za-z]))\s*{_ATOM}", r"\1{\2}"),
    (
      rf"(\\(?:frac|binom)\s*\{{(?:[^{{}}]|\{{[^{{}}]*\}})*\}})\s*{_ATOM}",
      r"\1{\2}",
    ),
    (r"\s+", " "),
    (r"(?<![^(,[])( ?)\+ ?\\infty", r"\1\\infty"),
    (r"\\\\ ?(?=\\end)", ""),
    # Far apart, as in `2\quad 100`, or 1 234/500: no thousands.
    (r"(?<=[0-9]) (?=[0-9]{3}(?![0-9/]))", ", "),
    # 2e - 3 is a difference, 2e-3 a number.
    (r"(?<=[0-9])(?=[e+ -]* )( ?)e ?([+-]?) ?(?=[0-9])", r"\\cdot e\2"),
  )
]


def spell(text: str) -> str:
  """Writes an answer with one spelling for each thing that it can say."""
  parts = itertools.groupby(text.strip(), _script)
  text = "".join(
    f"{script}{{{run}}}" if script else run
    for script, some in parts
    for run in ["".join(map(_plain, some))]
  )
  text = _DOT.sub("", text)
  while match := _WRAPPED.fullmatch(text):
    text = _DOT.sub("", match[2].strip())
  if len(re.findall(r"(?<!\\)\$", text)) % 2 == 0:  # around formulas
    text = re.sub(r"(?<!\\)\$", " ", text)
  gaps = _GAP if re.search(r"[(\[]|\\\{|\\lbrace", text) else f"{_GAP}|,"
  thousands = _THOUSANDS.format(f"(?:{gaps})")
  text = re.sub(thousands, lambda m: m[0].replace(m[1], ""), text)
  text = _FONT_OF_ONE.sub(r"\1{\2\3}", _OLD_FONTS.sub(r"\\text{", text))
  text = _MACRO.sub(lambda m: _MACROS.get(m[0], m[0]), text.replace("**", "^"))
  while match := _TEXT.search(text):
    words = re.sub(r"(?<![\\A-Za-z])[A-Za-z]+", rf"{UPRIGHT}\g<0>", match[1])
    text = f"{text[: match.start()]} {words} {text[match.end() :]}"
  for pattern, plain in _STEPS:
    text = pattern.sub(plain, text)
  return _DOT.sub("", text.strip())


def _script(character: str) -> str:
  kind = unicodedata.decomposition(character).split(" ")[0]
  return "" if character in _CHARACTERS else _SCRIPTS.get(kind, "")


def _plain(character: str) -> str:
  """The ASCII of a character, where there is one that means the same."""
  if character in _CHARACTERS:
    return _CHARACTERS[character]
  category = unicodedata.category(character)
  if category in ("Cf", "Pd"):
    return "-" if category == "Pd" else ""
  if category == "Nd":
    return str(unicodedata.decimal(character))
  kind, *codes = unicodedata.decomposition(character).split(" ")
  if kind == "<fraction>" and "2044" in codes[:-1]:
    top, bottom = "".join(chr(int(c, 16)) for c in codes).split("\u2044")
    return rf"\frac{{{top}}}{{{bottom}}}"
  if category == "No" and kind not in _SCRIPTS:  # 5① is not 51.
    return character
  simple = unicodedata.normalize("NFKC", character)
  is_known = simple != character and len(simple) < 5
  return "".join(map(_plain, simple)) if is_known else character
