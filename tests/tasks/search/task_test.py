"""Search questions as a task; text_tasks_test.py has what all tasks share."""

import json

import pytest

from saw_jax.tasks.draws import Draws
from saw_jax.tasks.environments import Situation
from saw_jax.tasks.search.task import SearchConfig, SearchTask

COMPACT = SearchTask(
  SearchConfig(num_people=60, num_passages=2, form="compact")
)
ENGLISH = SearchTask()
SITUATION = Situation("who?", "found 2", (), 0.0, False)
HISTORY = [("who?", "<search>1</search>"), ("found 1", "<search>2</search>")]


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

  def test_nobody_knows_how_a_question_of_a_file_is_answered(self):
    env = COMPACT.make("train")
    env.reset(0)
    env.question = env.question._replace(queries=())
    with pytest.raises(ValueError, match="file"):
      next(ENGLISH.expert(env, None))


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


def test_a_drawn_question_is_of_its_kind():
  task = SearchTask(SearchConfig(num_people=60, kinds=("job", "author")))
  for split in ("train", "test"):
    env = task.make(split)
    for seed in range(task.num_episodes(split)):
      env.reset(seed)
      kind = "author" if env.task.startswith("who wrote") else "job"
      assert task.category(split, seed) == kind


def test_the_first_test_questions_are_of_all_kinds():
  env = COMPACT.make("test")
  starts = {env.reset(i).partition(" ")[0] for i in range(20)}
  assert starts == {"in", "what", "where", "who"}


def test_mistakes_are_other_searches_and_answers():
  draws = Draws("mistakes")
  found = {COMPACT.mistake(SITUATION, draws) for _ in range(40)}
  verbs = {action.partition(">")[0] for action in found}
  assert len(found) > 20 and verbs == {"<search", "<answer"}


def test_local_files_are_another_corpus(tmp_path):
  corpus, train, test = (
    tmp_path / f"{name}.jsonl" for name in ("corpus", "train", "test")
  )
  corpus.write_text(json.dumps({"contents": "Oslo\nIt is in Norway."}))
  train.write_text(json.dumps({"question": "a?", "golden_answers": ["b"]}))
  test.write_text(json.dumps({"question": "c?", "answer": "d"}))
  task = SearchTask(
    SearchConfig(
      corpus=str(corpus), train=[str(train), str(train)], test=[str(test)]
    )
  )
  assert task.num_episodes("train") == 2 and task.num_episodes("test") == 1
  env = task.make("test")
  assert env.reset(0) == "c?"
  assert "Norway" in env.step("<search>oslo</search>").observation
  assert env.step("<answer>D</answer>").reward == 1.0
  assert task.held_out(5) == []
  with pytest.raises(ValueError, match="file"):
    task.demonstrations(1, seed=0)
