"""Boxed answers: found, normalised, compared; and what hostile text costs."""

import fractions
import itertools
import pathlib
import random
import sys
import time

import hypothesis
import pytest
from hypothesis import strategies as st

from saw_jax.tasks.math import forms, task
from saw_jax.tasks.math.answers import (
  explain,
  extract_answer,
  is_equal,
  is_equal_by_math_verify,
  normalise_answer,
  parse_number,
)
from tests.helpers import golden

DATA = pathlib.Path(__file__).parents[2] / "data"
CARE = golden("rlavr_care")["math_reward"]

settings = hypothesis.settings(
  max_examples=300, deadline=None, derandomize=True, database=None
)
# Text that looks like an answer often enough to reach the odd places.
latex = st.lists(
  st.sampled_from(
    [*"0123456789+-*/=^_.,()[]{}$%\\ xyi", "\\boxed{", "\\frac", "\\frac{1}{2}"]
    + ["\\text{", "\\{", "\\}", "\\left(", "\\right)", "\\sqrt{", "^\\circ"]
    + ["\\%", "\\$", "\\,", "{,}", "\\pi", " cm", "1,000", "−", "٣", "\n", "½"]
  ),
  max_size=14,
).map("".join)


class TestExtractAnswer:
  @pytest.mark.parametrize(
    ("text", "answer"),
    [
      (r"so \boxed{46}.", "46"),
      (r"\boxed{1} and \boxed{2}", "2"),
      (r"\boxed{1} and \boxed{2", "1"),
      (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
      (r"\boxed{ 7 }", "7"),
      (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
      (r"\boxed{\boxed{5}}", "5"),
      (r"\boxed{4 + \boxed{3}", "3"),
      (r"}} { \boxed{3}", "3"),
      (r"\boxed {3}", "3"),
      (r"\boxed{}", ""),
      ("\\boxed{1\n2}", "1\n2"),
      *((text, None) for text in (r"\boxed 5", r"\boxed{5", r"\boxed{a{b}")),
      *((text, None) for text in (r"\fbox{5}", "46", "")),
    ],
  )
  def test_by_hand(self, text, answer):
    assert extract_answer(text) == answer

  @settings
  @hypothesis.given(latex, st.text(alphabet="0123456789-/,. "))
  def test_a_box_at_the_end_is_found_whatever_comes_before(self, before, text):
    assert extract_answer(f"{before} \\boxed{{{text}}}") == text.strip()


# Normal forms, each with ways to write it.
NORMAL = {
  "42": ["42", "+42"],
  "0": ["-0"],
  "7": ["007"],
  "-3": ["−3", "- 3"],
  "5": ["5.", "5.0", r"5\text{ cm}^2", r"5 \mathrm{m}", "(5)", "((5))"]
  + ["x = 5", "x_1=5"],
  "1/2": [".5", "2/4", r"\frac12", r"\frac{1}2", r"\tfrac 1 2"]
  + [r"\frac{1.5}{3}"],
  "7/2": ["3.50"],
  "2": ["6 / 3"],
  "3/2": ["1 1/2"],
  "-3/2": [r"\dfrac{-6}{4}", r"-1\frac{1}{2}"],
  "1234": ["1,234", "1{,}234", r"1\,234"],
  "2469135/2": ["1,234,567.5"],
  "10000": ["10 000"],
  "18": [r"\$18", "$18$", r"\(18\)", "18 dollars", "18 points."],
  "50": [r"50\%", "50 %"],
  "30": [r"30^\circ", r"30^{\circ}"],
  "A": [r"\text{(A)}"],
  "even": [r"\text{even}"],
  "(1,1/2)": ["(1, 0.5)", r"\left( 1, \frac{1}{2} \right)"],
  "[0,1)": ["[0, 1.0)"],
  r"\{1,2\}": [r"\{2, 1\}", r"x\in\{1,2,1\}"],
  "2y+1": ["x = 2y + 1"],
  r"5\pi": ["5 pi"],
  "1024": ["2^{10}", "2^10"],
  "1000": ["1e3"],
  "3": ["٣"],
  "1, 2": ["(1),(2)", "1 or 2", "x = 1, 2"],
  "": [""],
}
# What is not one number stays text.
TEXTS = [
  "(1,234)",
  "1 2",
  "1, 23",
  "1.2.3",
  r"\frac{1}{0}",
  "18fresheggs",
  "--1",
]
TEXTS += ["13+3", "5x", r"5\pi", "nan"]


class TestNormaliseAnswer:
  @pytest.mark.parametrize(
    ("answer", "normal"),
    [(way, normal) for normal, ways in NORMAL.items() for way in ways]
    + [(text, text) for text in TEXTS],
  )
  def test_by_hand(self, answer, normal):
    assert normalise_answer(answer) == normal

  @settings
  @hypothesis.given(latex | st.text())
  def test_a_normal_form_is_its_own(self, text):
    normal = normalise_answer(text)
    assert normalise_answer(normal) == normal
    assert is_equal(normal, text)

  @settings
  @hypothesis.given(st.fractions(), st.booleans())
  def test_every_way_to_write_a_fraction_is_that_fraction(self, value, sign):
    top, bottom = value.numerator, value.denominator
    ways = [f"{top}/{bottom}", rf"\frac{{{top}}}{{{bottom}}}"]
    ways += [f"${top}/{bottom}$", rf"\dfrac{{{2 * top}}}{{{2 * bottom}}}"]
    if bottom == 1:
      ways += [f"{top}", f"{top:,}", f"{top}.00", rf"\${top:,}", f"{top} kg"]
    assert {normalise_answer(way) for way in ways} == {str(value)}

  @settings
  @hypothesis.given(st.decimals(allow_nan=False, allow_infinity=False))
  def test_decimals_are_exact(self, value):
    text = f"{value:f}"
    hypothesis.assume(len(text) < 200)
    assert normalise_answer(text) == str(fractions.Fraction(text))

  def test_a_number_that_is_too_long_is_text(self):
    digits = "9" * forms.MAX_SIZE
    assert parse_number(digits) == int(digits)
    assert parse_number(digits + "9") is None
    assert normalise_answer("+" + digits) == "+" + digits


@pytest.fixture(params=[is_equal, is_equal_by_math_verify])
def equal(request):
  if request.param is is_equal_by_math_verify:
    pytest.importorskip("math_verify")
  return request.param


def judge(equal, rows):
  """The right answers that are refused, and the wrong ones that are not."""
  found = [(*row, equal(row[1], row[0])) for row in rows]
  refused = [row for row in found if row[2] and not row[3]]
  return refused, [row for row in found if row[3] and not row[2]]


def test_each_kind_of_pair_by_hand(equal):
  # reference, = or !, answer; docs/grading.md says why.
  text = (DATA / "math_answers.tsv").read_text("utf-8")
  rows = [line.split("\t") for line in text.strip("\n").split("\n")]
  assert len(rows) > 500
  pairs = [(gold, answer, mark == "=") for gold, mark, answer in rows]
  assert judge(equal, pairs) == ([], [])


# Ways to write what a part stands for, and what is another answer.
WHOLE = ["{0}", "+{0}", "{0}.0", "0{0}", "({0})", "${0}$", "**{0}**", "`{0}`"]
WHOLE += [r"\boxed{{{0}}}", r"{0}\text{{ cm}}", "{0} km/h", r"{0}\%", r"\${0}"]
WHOLE += ["x = {0}", "{0}.", "\u200b{0}", r"{0}\,\mathrm{{m}}^2", "{0} degrees"]
NOT_WHOLE = ["{0} million", r"{0}\text{{ or more}}", "{0}x", "{0}, {1}", "{1}"]
NOT_WHOLE += ["{0}_6", "{0}+0", "{1}-1", "{0}=x=2", r"\{{{0}\}}", "{0}.00001"]
NOT_WHOLE += [
  "{0} dozen",
  r"{0}\mathrm{{i}}",
  "-{0}",
  "{0} 7",
  "{0}/7",
  "{0}e1",
]
FRACTION = ["{0}/{1}", r"\frac{{{0}}}{{{1}}}", r"\tfrac{{{2}}}{{{3}}}"]
FRACTION += [r"\left(\dfrac{{{0}}}{{{1}}}\right)", "{0}\u2044{1}", "{2}/{3}"]
NOT_FRACTION = ["{1}/{0}", "{0}:{1}", r"\frac{{{0}}}{{{1}}}+1", "{0}/{1}x"]
NOT_FRACTION += ["{0}/{3}", "({0},{1})", "1 {0}/{1}", "{0}/{1}^{{2}}"]
ROOT = [r"{0}\sqrt{{{1}}}", "{0}√{1}", r"{0}\cdot\sqrt{{{1}}}", "{0}sqrt({1})"]
NOT_ROOT = [
  r"\sqrt{{{0}}}{1}",
  r"{0}+\sqrt{{{1}}}",
  "{0}",
  "{0}*{1}",
  "{1}√{0}",
]
TUPLE = ["({0},{1})", r"\left( {0}, {1} \right)", r"\bigl({0},\,{1}\bigr)"]
NOT_TUPLE = ["({1},{0})", "[{0},{1}]", r"\{{{0},{1}\}}", "{0},{1}", "({0},{1}]"]
SET = [r"\{{{0},{1}\}}", r"\lbrace {1},{0}\rbrace", r"x\in\{{{0}, {1}\}}"]
NOT_SET = ["({0},{1})", r"\{{{0}\}}", r"\{{{0},{1},0\}}", "{0},{1}"]
FAMILIES = (
  *((WHOLE, NOT_WHOLE), (FRACTION, NOT_FRACTION), (ROOT, NOT_ROOT)),
  *((TUPLE, NOT_TUPLE), (SET, NOT_SET)),
)


def test_generated_forms_are_never_taken_for_another(equal):
  drawn, rows = random.Random(0), []
  for ways, others in FAMILIES * 20:
    a, b = drawn.choice([2, 3, 5, 6, 11]), drawn.choice([7, 13, 17, 1009])
    values = a, b, 6 * a, 6 * b
    gold = ways[0].format(*values)
    rows += [(gold, way.format(*values), True) for way in ways]
    rows += [(gold, other.format(*values), False) for other in others]
  refused, accepted = judge(equal, rows)
  assert len(rows) > 1000 and not accepted and len(refused) < len(rows) / 100


def test_the_question_in_the_box_is_no_answer(equal):
  made = task.MathTask(task.MathConfig(levels=(1, 2, 3, 4), word_share=0.0))
  examples = made.examples("train")[:400]
  asked = [(e.reference, e.meta["expression"], False) for e in examples]
  assert judge(equal, asked) == ([], [])


def test_the_doctor_shows_the_forms_of_two_answers():
  pytest.importorskip("math_verify")
  assert list(explain(r"9\text{ m}", "9 cm")) == [
    r"'9\\text{ m}' reads '9': number, unit m^1",
    "'9 cm' reads '9': number, unit cm^1",
    "exact: False",
    "math_verify: False",
  ]


HOSTILE = {
  "tower": "9^{9^{9^{9}}}",
  "power": "7^{99999999}",
  "factorial": "99999999!",
  "digits": "9" * 1_000_000,
  "fractions": "\\frac{" * 100_000,
  "nested": "\\frac{1}{" * 5_000 + "1" + "}" * 5_000,
  "parentheses": "(" * 100_000 + "1" + ")" * 100_000,
  "short parentheses": "(" * 120 + "1" + ")" * 120,
  "signs": "-" * 100_000 + "1",
  "spaces": "1" + " " * 100_000 + "x",
  "words": "1 " + "ab " * 80 + "!",
  "boxes": "\\boxed{" * 100_000,
  "closed boxes": "\\boxed{1}" * 100_000,
  "braces": "{" * 1_000_000,
  "surrogate": "\ud800",
  "one character that is many": "\ufdfa" * 256,
  "styles": "\\mathbf{" * 28 + "}" * 28,
  "units": "5" + " cm" * 80,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_costs_nothing(name, equal):
  equal("1", "2")  # The first call imports.
  text = HOSTILE[name]
  start = time.perf_counter()
  answer = extract_answer(f"\\boxed{{{text}}}")
  assert not equal(text, "2")
  assert answer is None or not equal(answer, "2")
  # Most take microseconds; a wrong turn takes hours.
  assert time.perf_counter() - start < 10


class TestAgainstCare:
  """The grader of CARE's released code, and where the exact one differs."""

  # Algebra and other cases are no normal forms. The reference code calls these
  # pairs equal.
  DIFFERENT = {
    ("x+1", "1+x"),
    (r"\sqrt{8}", r"2\sqrt{2}"),
    ("A", "a"),
  }

  @pytest.mark.parametrize("case", CARE["extract_and_score_vs_gt_34"])
  def test_extraction_and_score(self, case):
    answer, want = extract_answer(case["response"]), case["extracted"]
    assert answer == (want if want is None else want.strip())
    assert (answer is not None and is_equal(answer, "34")) == case["score"]

  @pytest.mark.parametrize("case", CARE["grade"])
  def test_grades_of_the_training_reward(self, case):
    pair = case["model"], case["gt"]
    want = case["grade_fast_false (training-reward path)"]
    if pair in self.DIFFERENT:
      assert want and not is_equal(*pair)
    else:
      assert is_equal(*pair) == want

  def test_votes_fall_into_the_same_clusters(self):
    for one, other in itertools.combinations(CARE["vote_normalisation"], 2):
      want = one["normalised"] == other["normalised"]
      if {one["boxed"], other["boxed"]} == {"x+1", "1+x"}:
        assert want  # Algebra again.
        want = False
      assert is_equal(one["boxed"], other["boxed"]) == want


class TestMathVerify:
  # Pairs that the exact grader calls equal; that only math-verify does, since
  # algebra is what the extra is for; and that neither does.
  EXACT = [
    ("46", "46"),
    ("0.5", r"\frac{1}{2}"),
    ("1/3", r"\frac{1}{3}"),
    (r"50\%", "50"),
    (r"30^\circ", "30"),
    ("(1,2)", "(1, 2)"),
    (r"2\sqrt{3}", r"2\sqrt{3}"),
    ("2^{10}", "1024"),
    (r"\{2,1\}", r"\{1,2\}"),
  ]
  ALGEBRA = [
    (r"\sqrt{12}", r"2\sqrt{3}"),
    ("x+1", "1+x"),
    ("(x+1)^2", "x^2+2x+1"),
    (r"x^{\frac12}", r"\sqrt{x}"),
    ("3i+2", "2+3i"),
    (r"\tan x", r"\frac{\sin x}{\cos x}"),
    (r"(1,\sqrt{12})", r"(1,2\sqrt3)"),
    (r"1,\sqrt{12}", r"2\sqrt3,1"),
    (r"\frac{\sqrt2}{2}+\frac{\sqrt2}{2}i", r"\frac{1+i}{\sqrt2}"),
    (r"2\log_2 3", r"\log_2 9"),
    (r"\frac{10\pi}{2}", r"5\pi"),
  ]
  # A value of a function, or a product of roots, is not evaluated.
  NEITHER = [
    (r"\sin 60^\circ", r"\frac{\sqrt{3}}{2}"),
    (r"\sqrt{2}\sqrt{6}", r"2\sqrt{3}"),
    ("A+1", "1+a"),
    ("5ab", "5"),
    (r"\sqrt{x^2}", "x"),
    (r"\frac{355}{113}", r"\pi"),
    ("46", "47"),
    ("0.34", r"\frac{1}{3}"),
    ("(2,1)", "(1,2)"),
    ("x^{}", "x^2"),
    ("2^{20000}", "4^{10000}"),  # Not asked, as it could take for ever.
  ]

  @pytest.mark.parametrize(("answer", "gold"), EXACT + ALGEBRA + NEITHER)
  def test_where_the_two_graders_agree_and_where_not(self, answer, gold):
    pytest.importorskip("math_verify")
    pair = answer, gold
    assert is_equal(*pair) is (pair in self.EXACT)
    assert is_equal_by_math_verify(*pair) is (pair not in self.NEITHER)

  def test_a_missing_library_names_the_extra(self, monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(ImportError, match=r"saw_jax\[math\]"):
      is_equal_by_math_verify("1", "2")
