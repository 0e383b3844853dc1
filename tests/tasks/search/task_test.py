"""Tests of saw_jax/tasks/search/task.py."""

import json
import pickle

import hypothesis
import pytest
from hypothesis import strategies as st

from saw_jax.run import registry
from saw_jax.tasks import environments
from saw_jax.tasks.environments import Situation
from saw_jax.tasks.search.task import Expert, SearchConfig, SearchTask
from saw_jax.tasks.workers.environment_pool import EnvironmentPool

COMPACT = SearchTask(
  SearchConfig(num_people=60, num_passages=2, form="compact")
)
ENGLISH = SearchTask()
TOKENIZER = registry.make_tokenizer("search")


class TestExpert:
  @pytest.mark.parametrize("task", [COMPACT, ENGLISH])
  @pytest.mark.parametrize("split", ["train", "test"])
  def test_every_question_can_be_answered_from_what_is_found(self, task, split):
    env = task.make(split)
    for seed in range(task.num_episodes(split)):
      env.reset(seed)
      expert, known, reward = Expert(env), env.task, 0.0
      while not env.done:
        action = expert.action()
        # It asks and says nothing that it has not seen.
        words = action.partition(">")[2].rpartition("<")[0]
        assert words in known, env.question
        step = env.step(action)
        known += step.observation
        reward += step.reward
      assert reward == 1.0, env.question

  def test_nobody_knows_how_a_question_of_a_file_is_answered(self):
    env = COMPACT.make("train")
    env.reset(0)
    env.question = env.question._replace(queries=())
    with pytest.raises(ValueError, match="from a file"):
      Expert(env)


class TestCategory:
  def test_a_drawn_question_is_of_its_kind(self):
    task = SearchTask(SearchConfig(num_people=60, kinds=("job", "author")))
    for split in ("train", "test"):
      env = task.make(split)
      for seed in range(task.num_episodes(split)):
        env.reset(seed)
        kind = "author" if env.task.startswith("who wrote") else "job"
        assert task.category(split, seed) == kind


class TestTokenizer:
  def test_nothing_in_a_drawn_corpus_is_unknown_to_it(self):
    for step in COMPACT.demonstrations(400, seed=0, wrong_rate=0.5):
      for text in (step.before.task, step.action, step.observation):
        assert TOKENIZER.decode(TOKENIZER.encode(text)) == text

  def test_tiny_prompts_are_short(self):
    steps = COMPACT.demonstrations(300, seed=0, wrong_rate=0.25)
    assert max(len(TOKENIZER.encode(s.action)) for s in steps) <= 5
    assert max(len(TOKENIZER.encode(s.observation)) for s in steps) <= 24
    sizes = sorted(
      len(TOKENIZER.encode(next(COMPACT.prompts(s.before, s.history))))
      for s in steps
    )
    assert sizes[len(sizes) * 9 // 10] <= 62


class TestPrompts:
  def step(self, task):
    steps = task.demonstrations(200, seed=1)
    return next(s for s in steps if len(s.history) == 2)

  def test_compact_ones_have_question_searches_and_what_was_found(self):
    step = self.step(COMPACT)
    text = next(COMPACT.prompts(step.before, step.history))
    (_, first), (found, second) = step.history
    assert text == (
      f"{step.before.task}|{first}{found}|{second}{step.before.observation}>"
    )

  def test_history_is_dropped_oldest_first(self):
    step = self.step(COMPACT)
    texts = list(COMPACT.prompts(step.before, step.history))
    assert [t.count("<information>") for t in texts] == [2, 1, 0]
    assert step.before.observation in texts[1]
    assert texts[2] == f"{step.before.task}|>"

  def test_english_ones_tell_all_steps(self):
    step = self.step(ENGLISH)
    texts = list(ENGLISH.prompts(step.before, step.history))
    assert "Step 1:<search>" in texts[0] and "Step 2:<search>" in texts[0]
    assert step.before.observation in texts[0]
    assert "Step 1:" not in texts[1] and "step(s)" not in texts[2]

  def test_the_first_one_has_the_question_once(self):
    first = ENGLISH.demonstrations(1, seed=0)[0]
    (text,) = ENGLISH.prompts(first.before, ())
    assert text.count(first.before.task) == 1


class TestReplies:
  @pytest.mark.parametrize("task", [COMPACT, ENGLISH])
  @pytest.mark.parametrize("verb", ["search", "answer"])
  def test_what_is_written_is_read(self, task, verb):
    action = f"<{verb}>Ann Bell</{verb}>"
    assert task.read_reply(task.write_reply(action)) == (action, True)
    assert ("<think>" in task.write_reply(action)) == (task is ENGLISH)

  @hypothesis.given(st.text())
  def test_it_never_raises(self, text):
    COMPACT.read_reply(text)


class TestDemonstrations:
  def test_they_are_what_playing_them_gives(self):
    env = COMPACT.make("train")
    texts = {env.reset(i): i for i in range(COMPACT.num_episodes("train"))}
    for step in COMPACT.demonstrations(60, seed=3, wrong_rate=0.4):
      if not step.history:
        observation = env.reset(texts[step.before.task])
      assert step.before == Situation(
        env.task, observation, tuple(env.admissible_actions), 0.0, False
      )
      observation = env.step(step.action).observation
      assert step.observation == observation

  def test_the_same_seed_gives_the_same(self):
    one, same, other = (
      COMPACT.demonstrations(40, seed=s, wrong_rate=0.3) for s in (0, 0, 1)
    )
    assert one == same and one != other

  def test_held_out_ones_are_of_test_questions_without_mistakes(self):
    env = COMPACT.make("test")
    tests = {env.reset(i) for i in range(COMPACT.num_episodes("test"))}
    held = COMPACT.held_out(40)
    assert {s.before.task for s in held} <= tests
    assert sum(s.action.startswith("<answer>") for s in held) > 10

  def test_a_rate_of_one_is_refused(self):
    with pytest.raises(ValueError, match="not a rate below 1"):
      COMPACT.demonstrations(1, seed=0, wrong_rate=1.0)


class TestTask:
  def test_it_says_what_there_is(self):
    assert COMPACT.num_episodes("train") > COMPACT.num_episodes("test") > 20
    assert (COMPACT.max_steps, COMPACT.max_return) == (4, 1.0)
    with pytest.raises(ValueError, match="did you mean 'test'"):
      COMPACT.make("tests")

  def test_the_first_test_questions_are_of_all_kinds(self):
    env = COMPACT.make("test")
    starts = {env.reset(i).partition(" ")[0] for i in range(20)}
    assert starts == {"in", "what", "where", "who"}

  def test_it_can_be_sent_to_a_process_as_its_config(self):
    sent = pickle.dumps(COMPACT)
    assert len(sent) < 1000
    again = pickle.loads(sent)
    assert isinstance(again, environments.AgentTask)
    assert again.make("train").reset(3) == COMPACT.make("train").reset(3)

  def test_it_is_played_in_worker_processes(self):
    with EnvironmentPool(COMPACT, num_workers=1, limit_s=30.0) as pool:
      (first,) = pool.start([("train", 0)])
      found = pool.step({0: f"<search>{first.task}</search>"})[0]
      assert found.observation.startswith("<information>")
      assert pool.step({0: "<answer>x</answer>"})[0].done

  def test_local_files_are_another_corpus(self, tmp_path):
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
    with pytest.raises(ValueError, match="from a file"):
      task.demonstrations(1, seed=0)

  @pytest.mark.parametrize(
    ("field", "words"),
    [
      ({"form": "compcat"}, "did you mean 'compact'"),
      ({"kinds": ("jbo",)}, "did you mean 'job'"),
      ({"max_steps": 0}, "max_steps is not positive"),
      ({"corpus": "a.jsonl"}, "are read together"),
    ],
  )
  def test_a_mistake_is_named(self, field, words):
    with pytest.raises(ValueError, match=words):
      SearchConfig(**field)
