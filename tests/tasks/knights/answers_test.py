"""Roles and puzzles read from text, and the four rewards."""

import time

import pytest

from saw_jax.tasks import answer_task
from saw_jax.tasks.knights import answers
from tests.helpers import golden
from tests.tasks.answer_task_test import assert_refused, write

GOLDEN = golden("rlavr_care")["kk_reward"]
TRUTH = GOLDEN["ground_truth"]["solution_text_format"]


class TestGolden:
  @pytest.mark.parametrize("case", GOLDEN["cases"])
  def test_rewards_and_canonical_answers(self, case):
    found = answers.reward(case["response"], TRUTH)
    assert found == case["score"]
    assert (found == answers.RIGHT) == case["acc"]
    truth = answers.read_roles(TRUTH)
    assert answers.canonical(truth) == case["extracted_gt"]
    answer = answers.extract_answer(case["response"])
    roles = answers.read_roles(answer) if answer else {}
    assert (answers.canonical(roles, truth) or "") == case["pred"]

  @pytest.mark.parametrize("case", GOLDEN["pseudo_label_ground_truth_cases"])
  def test_a_vote_may_be_the_truth(self, case):
    found = answers.reward(case["response"], case["ground_truth"])
    assert found == case["score"]


@pytest.mark.parametrize(
  ("text", "answer"),
  [
    ("<answer>a</answer><answer>b</answer>", "b"),
    ("<answer>a<answer>b</answer>", "a<answer>b"),
    ("</answer><answer>a\nb</answer></answer>", "a\nb"),
    ("<Answer> a </ANSWER>", "a"),
    ("<answer>a</answer><answer>", "a"),
    *(
      (text, None)
      for text in (
        "<answer>a</answer><answer> </answer>",
        "<answer></answer>",
        "<answer>a",
        "answer: a",
      )
    ),
  ],
)
def test_the_last_block_is_the_answer(text, answer):
  assert answers.extract_answer(text) == answer


NOBODY = """ann=knight|bob; ann=knight, bob=knave; both Ann and Bob are knights
Ann is not a knave; it is false that Ann is a knight; Ann is a knight?
Ann is a knightly person; Suppose Ann is a knight
If Ann is a knight then Bob is a knave; If Ann is a knight, Bob is a knave
Bob is a knave, if Ann is a knight; Ann is a knight or a knave; not ann=knight
Ann is a knight and a knave; Ann is a knight or Bob is a knave; ann!=knight
Ann is a knight/or a knave; Ann is a knight. That is false.
The following is false:/Ann is a knight; It is not true that//ann=knight
either ann=knight|bob=knave; maybe ann=knight|bob=knave
Bob says: Ann is a knight; Bob says: "Hm. Ann is a knight. Yes."
Bob said “well. Ann is a knight.; I guess (Right? Ann is a knight. Or not.)
ann=knight|bob=knave, or not; ann=knave|ann=knight; Ann: knight, Ann: knave
The following is false./Ann is a knight.; Untrue! Ann is a knight.
Ann is a knight. Bob is a liar.; Nobody is what they say. Ann is a knight."""
NOBODY = [text for line in NOBODY.splitlines() for text in line.split("; ")]


class TestRead:
  @pytest.mark.parametrize(
    ("text", "roles"),
    [
      ("ann=knight|bob=knave", "knight knave"),
      (" Ann = KNIGHT | bob=knave ", "knight knave"),
      ("(1) Ann is a knight\n(2) Bob is a knave", "knight knave"),
      ("Ann is knight and Bob are an knave.", "knight knave"),
      ("Ann → knight; Bob → knave", "knight knave"),
      ("Ann is a knave. Bob is a knave. Ann is a knight.", "knight knave"),
      ("So the answer is:\n- **Ann**: Knight\n- Bob: knave", "knight knave"),
      ("1. Ann is a knight;\n2. thus Bob is the knave!", "knight knave"),
      ("Is Ann a knave? Is Ann? Ann is a knight.", "knight"),
      ("Ann is a knight. Bob is a knave. Bob is not a knave.", "knight"),
      *((text.replace("/", "\n"), "") for text in NOBODY),
    ],
  )
  def test_two_people(self, text, roles):
    expected = dict(zip(("ann", "bob"), roles.split(), strict=False))
    assert answers.read_roles(text) == expected

  def test_others_are_ignored_and_nobody_is_no_form(self):
    text = "<answer>ann=knight|eve=knave</answer>"
    assert answers.reward(text, "ann=knight") == answers.RIGHT
    assert answers.canonical({}) is None
    assert answers.canonical({"ann": "knight"}, ["ann", "bob"]) is None


@pytest.mark.parametrize(
  "text",
  ["<answer>" * 20_000, "a" * 100_000, "a " * 50_000, "ann is a " * 20_000]
  + ["a=|" * 30_000, " " * 100_000, "a=" + " " * 100_000, "\n" * 100_000]
  + ["'a'b \"(" * 30_000, "'" * 100_000, "a=knave.b" * 30_000 + "a." * 30_000],
)
def test_long_texts_take_little_time(text):
  start = time.perf_counter()
  answers.reward(f"<answer>{text}</answer>", "ann=knight")
  assert time.perf_counter() - start < 5  # seconds; milliseconds in truth


TEXT = "(1) Zoey is a knave\n(2) Oliver is a knight"
ROLES = "oliver=knight|zoey=knave"
PUBLIC = {
  "quiz": "A very special island. Zoey said ...",
  "names": ["Zoey", "Oliver"],
  "solution": [False, True],
  "solution_text_format": TEXT,
}


def verl(truth, **fields):
  prompt = [{"role": "user", "content": "Who is who?"}]
  return {"prompt": prompt, "reward_model": {"ground_truth": truth}, **fields}


def read_examples(path, *args):
  return answer_task.read_examples(path, answers.read_row, *args)


class TestReadExamples:
  @pytest.mark.parametrize(
    "row",
    [
      PUBLIC,
      verl({"solution_text_format": TEXT, "statements": "..."}),
      verl({"answer": TEXT}),
      verl(TEXT),
      verl("zoey=knave|oliver=knight"),
      {"quiz": "Who?", "target": TEXT},
    ],
  )
  @pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
  def test_the_known_forms(self, tmp_path, row, suffix):
    path = write(tmp_path / f"rows.{suffix}", [row])
    (example,) = read_examples(path)
    assert example.reference == ROLES

  def test_the_puzzle_and_its_keys(self, tmp_path):
    wrapped = "<|im_start|>user ...<think>"
    rows = [PUBLIC, verl(TEXT), verl(TEXT, quiz="Q", prompt=wrapped)]
    path = write(tmp_path / "rows.jsonl", rows)
    found = read_examples(path, 100, "%s!")
    assert [(e.key, e.messages[-1]["content"]) for e in found] == [
      (100, f"{PUBLIC['quiz']}!"),
      (101, "Who is who?!"),
      (102, "Q!"),
    ]

  @pytest.mark.parametrize(
    ("row", "word"),
    [
      ({"quiz": " ", "answer": TEXT}, "empty"),
      ({"quiz": 3, "answer": TEXT}, "'quiz'"),
      ({"quiz": "Q"}, "'reward_model'"),
      ({"quiz": "Q", "answer": "42"}, "'42'"),
      (verl({"solution": TEXT}), "'solution_text_format'"),
      (verl(3), "'ground_truth'"),
      (verl(TEXT, prompt=[]), "'content'"),
      (verl(TEXT, prompt=[{"content": "<|im_start|>user"}]), "chat markers"),
    ],
  )
  def test_a_broken_row_is_named(self, tmp_path, row, word):
    assert_refused("knights", tmp_path / "rows.jsonl", PUBLIC, row, word)
