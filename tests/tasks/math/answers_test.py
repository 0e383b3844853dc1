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
# Reference, mark, answer. They are equal (=), as the normal form of the answer
# is the reference itself (>), for algebra alone (~), or not (!);
# docs/grading.md says why.
_ROWS = (DATA / "math_answers.tsv").read_text("utf-8").strip("\n").split("\n")
BY_HAND = [row.split("\t") for row in _ROWS]

settings = hypothesis.settings(max_examples=300, derandomize=True)
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


class TestNormaliseAnswer:
  def test_by_hand(self):
    found = [(*row, normalise_answer(row[2])) for row in BY_HAND]
    assert [row for row in found if row[1] == ">" and row[3] != row[0]] == []
    assert normalise_answer("") == ""

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
  right = "=>~" if equal is is_equal_by_math_verify else "=>"
  pairs = [(gold, answer, mark in right) for gold, mark, answer in BY_HAND]
  assert len(pairs) > 600 and judge(equal, pairs) == ([], [])


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
  "macros": "\\alpha" * 12,
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
  DIFFERENT = {("x+1", "1+x"), (r"\sqrt{8}", r"2\sqrt{2}"), ("A", "a")}

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


def test_a_missing_library_names_the_extra(monkeypatch):
  monkeypatch.setitem(sys.modules, "math_verify", None)
  with pytest.raises(ImportError, match=r"saw_jax\[math\]"):
    is_equal_by_math_verify("1", "2")
