"""Search questions as a task; text_tasks_test.py has what all tasks share."""

import json

import hypothesis
import pytest
from hypothesis import strategies as st

from saw_jax.tasks.environments import Situation
from saw_jax.tasks.search import corpus as search_corpus
from saw_jax.tasks.search import task as search_task
from saw_jax.tasks.search.corpus import KINDS, Passage, Question
from saw_jax.tasks.search.task import SearchConfig, SearchQuestions, SearchTask
from saw_jax.tasks.search_index import SearchIndex

PASSAGES = (
  Passage("Ann Bell", "Ann Bell was born in Oslo."),
  Passage("", "Oslo is a city in Norway."),
  Passage("Zürich", 'It is "big".'),
)
QUESTIONS = (
  Question("where was ann bell born?", ("Oslo", "Kristiania")),
  Question("who?", ("The Beatles",)),
)
SMALL = {"num_people": 60, "num_passages": 2}
COMPACT = SearchTask(SearchConfig(**SMALL, form="compact"))
ENGLISH = SearchTask()
SITUATION = Situation("who?", "found 2")
HISTORY = [("who?", "<search>1</search>"), ("found 1", "<search>2</search>")]


def make(seed=0, passages=PASSAGES, **options):
  library = SearchIndex(passages, [passage.contents for passage in passages])
  env = SearchQuestions(library, QUESTIONS, SearchConfig(**options))
  assert env.reset(seed) == env.task == QUESTIONS[seed].text
  return env


class TestEpisode:
  def test_by_hand(self):
    env = make()
    # The first has all three words, the second one of them.
    assert env.step("<search>ann bell oslo</search>") == (
      '<information>{"result": "Doc 1: Ann Bell\\nAnn Bell was born in Oslo.'
      '\\nDoc 2: Oslo is a city in Norway.\\n"}</information>',
      *(0.0, False),
    )
    assert env.step("<answer> The Oslo. </answer>") == ("", 1.0, True)
    assert env.searched == ["ann bell oslo"]

  def test_any_right_answer_pays_and_each_ends_it(self):
    answers = ("oslo", "KRISTIANIA!", "in oslo", "", "a beatles")
    for answer, seed in zip(answers, (0, 0, 0, 0, 1), strict=True):
      step = make(seed, reward=2.0).step(f"<answer>{answer}</answer>")
      assert step == ("", 0.0 if answer in ("in oslo", "") else 2.0, True)

  def test_what_is_found_is_json(self):
    for query, result in (
      ("zürich", 'Doc 1: Zürich\nIt is "big".\n'),  # escaped
      ("oslo", "Doc 1: Oslo is a city in Norway.\n"),  # as many as asked for
      ("xyzzy", ""),
    ):
      text = make(num_passages=1).step(f"<search>{query}</search>").observation
      inside = text.removeprefix("<information>").removesuffix("</information>")
      assert json.loads(inside) == {"result": result} and text.isascii()

  def test_what_is_neither_takes_a_step(self):
    env = make(max_steps=5)
    for action in ("", "oslo", "<answer>oslo", "<search></answer>"):
      assert env.step(action) == ("", 0.0, False)
    assert env.step("x <answer>oslo</answer>") == ("", 0.0, True)

  def test_enormous_texts_are_cut(self):
    env = make(passages=[Passage("", "word " + "x" * 100_000)] * 5)
    text = env.step("<search>" + "word " * 50_000 + "</search>").observation
    assert len(text) < 3 * search_task.LONGEST_PASSAGE + 200
    assert len(env.searched[0]) == search_task.LONGEST_QUERY

  @pytest.mark.parametrize(
    ("gold", "answer", "is_right"),
    [("1.5", "15", 0), ("-5", "5", 0), ("$1,234.50", "1234.50.", 1)]
    + [("A", "the", 0), ("A", "!", 0), ("A", "a.", 1), ("1,000", "1000", 1)]
    # A band's name and a mark that was asked for: an empty answer is neither.
    + [("!!!", "", 0), ("!!!", "?", 0), ("!!!", "!!!", 1), ("?", "<>", 0)],
  )
  def test_what_a_mark_or_an_article_may_change(self, gold, answer, is_right):
    same = search_task.normalise(gold) == search_task.normalise(answer)
    assert same == is_right

  @hypothesis.example("-,")
  @hypothesis.given(st.text() | st.text("1.,-$a "))
  def test_normalising_twice_changes_nothing(self, text):
    once = search_task.normalise(text)
    assert search_task.normalise(once) == once


class TestReplies:
  @pytest.mark.parametrize(
    ("text", "action", "valid"),
    [
      ("<think>hm</think> <search> a </search>", "<search>a</search>", True),
      ("x <answer> B </answer> y", "<answer>B</answer>", True),
      # Of several the last one is taken, and it is invalid.
      ("<answer>a</answer><answer>b</answer>", "<answer>b</answer>", False),
      ("<search>a</search><answer>b</answer>", "<answer>b</answer>", False),
      ("<search>a</answer>", "", False),
      ("", "", False),
    ],
  )
  def test_by_hand(self, text, action, valid):
    assert ENGLISH.read_reply(text) == COMPACT.read_reply(text)
    assert ENGLISH.read_reply(text) == (action, valid)

  @hypothesis.given(st.text().map("<answer>{}</answer>".format) | st.text())
  def test_what_is_read_is_an_action_or_none(self, completion):
    action = ENGLISH.read_reply(completion).action
    if action:
      assert make().step(action).observation or "<answer>" in action


class TestExpert:
  @pytest.mark.parametrize("split", ["train", "test"])
  def test_it_says_nothing_that_it_has_not_seen(self, split):
    env = ENGLISH.make(split)
    for seed in range(ENGLISH.num_episodes(split)):
      env.reset(seed)
      expert, known = ENGLISH.expert(env, None), env.task
      while not env.done:
        action = next(expert)
        words = action.partition(">")[2].rpartition("<")[0]
        assert words in known, env.question
        known += env.step(action).observation


class TestPrompts:
  def test_compact_ones_have_question_searches_and_what_was_found(self):
    assert list(COMPACT.prompts(SITUATION, HISTORY)) == [
      "who?|<search>1</search>found 1|<search>2</search>found 2>",
      "who?|<search>2</search>found 2>",
      "who?|>",
    ]

  def test_english_ones_number_the_steps(self):
    two, one, none = ENGLISH.prompts(SITUATION, HISTORY)
    told = (
      "The question is: who?\nSo far you have taken 2 step(s), and this is "
      "what you searched for and what was found:\n"
    )
    last = "Step 2:<search>2</search> found 2\n\nIt is your turn to act."
    assert f"{told}Step 1:<search>1</search> found 1\n{last}" in two
    assert f"{told}{last}" in one
    assert none == next(ENGLISH.prompts(SITUATION, ()))
    assert "who?\n\nIt is your turn" in none and "step(s)" not in none


def test_drawn_questions_are_of_their_kinds_and_mixed():
  assert {COMPACT.category("test", i) for i in range(40)} == set(KINDS)
  task = SearchTask(SearchConfig(num_people=60, kinds=("job", "author")))
  for split in ("train", "test"):
    env = task.make(split)
    for seed in range(task.num_episodes(split)):
      env.reset(seed)
      kind = "author" if env.task.startswith("who wrote") else "job"
      assert task.category(split, seed) == kind


def test_local_files_are_another_corpus(tmp_path):
  rows = {
    "corpus": {"contents": "Oslo\nIt is in Norway."},
    "train": {"question": "a?", "golden_answers": ["b"]},
    "test": {"question": "c?", "answer": "d"},
  }
  paths = {name: str(tmp_path / f"{name}.jsonl") for name in rows}
  for name, row in rows.items():
    (tmp_path / f"{name}.jsonl").write_text(json.dumps(row))
  train, test = [paths["train"]] * 2, [paths["test"]]
  config = SearchConfig(corpus=paths["corpus"], train=train, test=test)
  task = SearchTask(config)
  assert task.num_episodes("train") == 2 and task.num_episodes("test") == 1
  env = task.make("test")
  assert env.reset(0) == "c?"
  assert "Norway" in env.step("<search>oslo</search>").observation
  assert env.step("<answer>D</answer>").reward == 1.0
  assert task.held_out(5) == []
  with pytest.raises(ValueError, match="from a file"):
    task.demonstrations(1, seed=0)


class TestDrawnCorpus:
  def test_the_numbers_of_passages_and_questions_whatever_the_seed(self):
    draw = search_corpus.draw_corpus
    one, same, other = (draw(30, seed=seed) for seed in (0, 0, 1))
    assert one == same and one != other
    passages, questions = other
    cities = len(search_corpus.NAMES["cities"])
    assert len(set(passages)) == cities + 30 + 20
    texts = [q.text for several in questions.values() for q in several]
    # One of each city, three of each person, two of each of the 20 works.
    assert len(set(texts)) == len(texts) == cities + 3 * 30 + 2 * 20

  @pytest.mark.parametrize("kind", search_corpus.KINDS)
  def test_each_answer_is_what_the_passages_say_hop_by_hop(self, kind):
    passages, questions = search_corpus.draw_corpus(60, kinds=(kind,))
    texts = [passage.text for passage in passages]
    for question in (*questions["train"], *questions["test"]):
      hops = [*question.queries, *question.answers]
      assert len(hops) == (3 if kind in search_corpus.TWO_HOPS else 2)
      assert hops[0] in question.text
      for this, that in zip(hops, hops[1:], strict=False):
        assert any(this in text and that in text for text in texts)

  def test_nobody_is_asked_about_in_both_splits(self):
    _, questions = search_corpus.draw_corpus(100)
    people = {}
    for split, several in questions.items():
      names = {name for q in several for name in (*q.queries, *q.answers)}
      first, _ = search_corpus.NAMES["people"]
      people[split] = {name for name in names if name.split()[0] in first}
    train, test = people.values()
    assert train and test and not train & test

  def test_what_cannot_be_drawn_is_said(self):
    for count in (0, search_corpus.MOST_PEOPLE + 1):
      with pytest.raises(ValueError, match=f"not {count}"):
        search_corpus.draw_corpus(count)
    with pytest.raises(ValueError, match="no question for the split"):
      search_corpus.draw_corpus(1, kinds=("author",))


WHO = {"question": "who?", "answer": "x"}


class TestFiles:
  @pytest.fixture
  def read(self, tmp_path):
    def read(kind, rows, name="nq.jsonl"):
      path = tmp_path / name
      path.parent.mkdir(exist_ok=True)
      path.write_text("\n".join(json.dumps(row) for row in rows))
      return getattr(search_corpus, f"read_{kind}s")(path)

    return read

  def test_both_forms_of_passages(self, read):
    rows = [
      {"id": "0", "contents": '"Ann Bell"\nShe was born.\nTwice.'},
      {"contents": "no title"},
      {"title": "Oslo", "text": "A city."},
      {"text": "alone"},
    ]
    assert read("passage", rows) == (
      Passage('"Ann Bell"', "She was born.\nTwice."),
      Passage("", "no title"),
      Passage("Oslo", "A city."),
      Passage("", "alone"),
    )
    assert Passage("Oslo", "A city.").contents == "Oslo\nA city."
    assert Passage("", "alone").contents == "alone"

  def test_questions_of_public_sets(self, read):
    rows = [
      {"id": "1", "question": " who? ", "golden_answers": ["Ann", "Bell"]},
      {"question": "where?", "answer": "Oslo"},
      {"question": "when?", "answers": ["1900"]},
    ]
    assert read("question", rows) == (
      Question("who?", ("Ann", "Bell"), source="nq"),
      Question("where?", ("Oslo",), source="nq"),
      Question("when?", ("1900",), source="nq"),
    )

  def test_a_row_or_a_folder_names_the_set(self, read):
    rows = [WHO, WHO | {"data_source": "nq"}]
    for name in ("musique/dev.jsonl", "musique/test.jsonl"):
      found = read("question", rows, name)
      assert [q.source for q in found] == ["musique", "nq"]

  @pytest.mark.parametrize(
    ("kind", "rows", "words"),
    [
      ("passage", [], "there is no passage in it"),
      ("passage", [7], "row 0: not an object"),
      ("passage", [{}], "row 0: no field 'text'"),
      ("passage", [{"contents": 7}], "row 0: field 'contents' is not a str"),
      ("passage", [{"text": "x", "title": 7}], "field 'title' is not a str"),
      ("question", [], "there is no question in it"),
      ("question", [None], "row 0: not an object"),
      ("question", [{"answer": "x"}], "row 0: no field 'question'"),
      ("question", [{"question": " ", "answer": "x"}], "'question' is empty"),
      ("question", [{"question": "x"}], "row 0: no field 'golden_answers'"),
      ("question", [WHO | {"answer": 7}], "'answer' is not a list"),
      ("question", [WHO | {"answer": [7]}], "'answer' is not a list"),
      ("question", [WHO | {"answer": []}], "'answer' is empty"),
      ("question", [WHO | {"answer": " "}], "'answer' is empty"),
      (
        "question",
        [WHO, WHO | {"data_source": 7}],
        "row 1: field 'data_source'",
      ),
    ],
  )
  def test_a_damaged_row_is_numbered(self, read, kind, rows, words):
    with pytest.raises(ValueError, match=words):
      read(kind, rows)
