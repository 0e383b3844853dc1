"""Tasksets of verifiers: answers, tools, and a game of its own environments."""

import pathlib

import numpy as np
import pytest

pytest.importorskip("verifiers")

from saw_jax import tokenizer
from saw_jax.run import registry
from saw_jax.tasks import base
from saw_jax.tasks.workers.grading import Grader
from tests import agent_helpers
from tests.agent_helpers import play

CALL = '<tool_call>{"name": "add", "arguments": {"amount": %s}}</tool_call>'


@pytest.fixture(autouse=True)
def tasksets(monkeypatch):
  """Those of the folder are installed."""
  monkeypatch.syspath_prepend(pathlib.Path(__file__).parent / "worlds")


def make(env, **options):
  return registry.make_task("verifiers", {"env": env, "num_test": 4} | options)


class TestAnswers:
  def test_each_reward_is_a_component_with_its_weight(self):
    task = make("sums_taskset")
    assert task.components == (
      base.Component("long", -1.0, 0.0),
      base.Component("right", 0.0, 2.0),
    )
    train, test = (task.examples(split) for split in ("train", "test"))
    assert (len(train), len(test)) == (16, 4)
    assert [m["content"] for m in test[0].messages] == ["Add.", "0+1="]
    assert [m["role"] for m in test[0].messages] == ["system", "user"]
    assert {one.key for one in train}.isdisjoint(one.key for one in test)

  def test_the_test_split_may_be_another(self):
    task = make("sums_taskset", test={"first": 100})
    assert task.examples("train")[0].messages[-1]["content"] == "0+1="
    assert task.examples("test")[0].messages[-1]["content"] == "100+1="

  @pytest.mark.parametrize("num_workers", [0, 1])
  def test_they_are_scored_by_the_library(self, num_workers):
    task = make("sums_taskset")
    examples = [task.examples("train")[0]] * 3  # of 4 + 1
    options = {"limit_s": 20, "crash_tolerance": 0.5}
    with Grader(task, num_workers=num_workers, **options) as grader:
      graded = grader.grade(examples, ["5", "no", "boom"])
    assert graded.rewards.ravel() == pytest.approx([-0.1, 2, -0.2, 0, 0, 0])
    assert graded.scored.tolist() == [[True] * 2] * 2 + [[False] * 2]

  def test_a_policy_learns_from_both(self, tmp_path):
    curves = agent_helpers.train(
      "verifiers",
      {"env": "sums_taskset", "num_test": 4},
      tokenizer.PieceTokenizer([*"0123456789+=Ad.", "0123456789"]),
      tmp_path,
      algorithm=dict(advantage="gdpo", weights="saw"),
    )
    right, long = curves["reward/right"], curves["reward/long"]
    assert 0 < right.max() < 2 and (long < 0).all()
    assert curves["reward/total"] == pytest.approx(right + long)
    assert np.ptp(right)


class TestTools:
  @pytest.mark.parametrize("num_workers", [0, 1])
  def test_they_are_listed_and_called(self, num_workers):
    task = make("counter_taskset", num_train=3, max_steps=5)
    said = [CALL % 1, CALL % '"x"', '<tool_call>{"name": "sub"}</tool_call>']
    start, *steps = play(
      task, [*said, CALL % 1, "done"], num_workers=num_workers
    )
    assert "add(amount: int) -> str: Adds" in start.task
    assert start.task.endswith("user: Count to 2.")
    told = [
      "the count is 1",
      "ValidationError",
      "KeyError",
      "the count is 2",
      "",
    ]
    assert steps[0].observation == "tool: the count is 1"
    for step, words in zip(steps, told, strict=True):
      assert words in step.observation
    assert [step.reward for step in steps] == [0, 0, 0, 0, 1]
    assert steps[-1].done and not steps[-2].done
    prompt = next(task.prompts(steps[0], [("", said[0])]))
    assert prompt.startswith("You may call") and prompt.endswith("count is 1")
    assert f"assistant: {said[0]}" in prompt

  def test_turns_that_are_used_up_end_it_with_a_score(self):
    task = make("counter_taskset", num_train=3, max_steps=2)
    *_, last = play(task, [CALL % 1, CALL % 1])
    assert (last.done, last.reward) == (True, 1)

  def test_an_episode_that_is_left_is_forgotten(self):
    task = make("counter_taskset", num_train=3, max_steps=3)
    env = task.make("train")
    env.reset(0)
    env.step(CALL % 2)
    env.reset(1)
    assert env.task.endswith("Count to 3.")
    assert env.step(CALL % 3).observation.endswith("the count is 3")


@pytest.fixture(scope="module")
def words(tmp_path_factory):
  """The words of the game, in place of NLTK's, which are downloaded."""
  pytest.importorskip("textarena")
  import nltk

  root = tmp_path_factory.mktemp("nltk")
  folder = root / "corpora" / "words"
  folder.mkdir(parents=True)
  for name in ("README", "en", "en-basic"):
    (folder / name).write_text("aba\nbab\n")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(nltk.data, "path", [str(root)])
    patch.setattr(nltk, "download", lambda *args, **options: False)
    yield


GAME = {"env": "textarena", "kwargs": {"game": "Hangman-v0"}, "num_test": 4}


class TestGame:
  def test_it_is_played_turn_by_turn(self, words):
    task = make(**GAME, num_train=4, max_steps=8)
    start, *steps = play(task, ["[c]", "I pass", "[a]", "[b]"])
    assert "You are playing Hangman" in start.task
    assert "invalid move" in steps[1].observation
    assert "A" in steps[2].observation
    assert (steps[3].reward, steps[3].done) == (1, True)

  def test_a_policy_learns_its_letters(self, words, tmp_path):
    moves = [f"[{letter}]" for letter in "abcdefgh"]
    curves = agent_helpers.train(
      "verifiers",
      GAME | {"num_train": 4, "max_steps": 5, "shown": 1},
      tokenizer.PieceTokenizer([*"ABC_: \n", *moves]),
      tmp_path,
      rollout=dict(max_prompt_tokens=64, prompt_multiple=64)
      | dict(long_prompts="truncate"),
    )
    print(curves["reward/return"], curves["failed"])
    assert not curves["failed"].any()
    assert curves["reward/return"].max() > 0


@pytest.mark.parametrize(
  ("options", "word"),
  [
    ({"env": "sums_taskset", "kwargs": {"runtime": True}}, "runtime"),
    ({"env": "sums_taskset", "num_test": 20}, "num_test"),
    ({"env": "sums_taskset", "kwargs": {"num_task": 3}}, "num_task"),
    ({"env": ""}, "options.env"),
  ],
)
def test_a_mistake_is_named(options, word):
  with pytest.raises(ValueError, match=word):
    make(**options)
