"""Tests of saw_jax/tasks/household/task.py."""

import pickle

import hypothesis
import pytest
from hypothesis import strategies as st

from saw_jax.run import registry
from saw_jax.tasks import environments
from saw_jax.tasks.draws import Draws
from saw_jax.tasks.environments import Situation
from saw_jax.tasks.household import rules as household
from saw_jax.tasks.household.task import HouseholdConfig, HouseholdTask

COMPACT = HouseholdTask(
  HouseholdConfig(
    kinds=("pick", "look", "clean", "heat", "cool", "two"),
    receptacles=5,
    objects=6,
    max_steps=12,
    form="compact",
    shown=3,
    num_train=50,
    num_test=7,
  )
)
ENGLISH = HouseholdTask()
TOKENIZER = registry.make_tokenizer("household")


class TestTokenizer:
  def test_nothing_in_the_world_is_unknown_to_it(self):
    for task in (COMPACT, HouseholdTask(HouseholdConfig(num_train=40))):
      env = task.make("train")
      for seed in range(40):
        draws = Draws("tokens", seed)
        seen = [env.reset(seed)]
        while not env.done:
          action = draws.choice(env.admissible_actions)
          seen += [action, env.step(action).observation]
        for text in seen:
          assert TOKENIZER.decode(TOKENIZER.encode(text)) == text

  def test_an_action_is_few_tokens(self):
    sizes = {
      len(TOKENIZER.encode(action))
      for step in COMPACT.demonstrations(200, seed=0, wrong_rate=0.5)
      for action in [step.action]
    }
    assert max(sizes) == 6 and min(sizes) == 1


class TestPrompts:
  def step(self):
    steps = COMPACT.demonstrations(60, seed=1)
    return next(s for s in steps if len(s.history) == 4)

  def test_compact_ones_have_the_task_the_places_and_the_last_actions(self):
    step = self.step()
    text = next(COMPACT.prompts(step.before, step.history))
    task, places, actions, seen = text.split("|")
    assert task == step.before.task
    assert places.split() and all(
      f"go to{places}".count(a.removeprefix("go to ")) >= 1
      for a in step.before.actions
      if a.startswith("go to")
    )
    assert actions == ";".join(action for _, action in step.history[-3:])
    assert seen == step.before.observation + ">"

  def test_history_is_dropped_oldest_first(self):
    step = self.step()
    texts = list(COMPACT.prompts(step.before, step.history))
    assert len(texts) == 4
    sizes = [text.split("|")[2].count(";") for text in texts]
    assert sizes == [2, 1, 0, 0] and texts[-1].split("|")[2] == ""

  def test_at_the_first_step_the_places_are_said_once(self):
    first = COMPACT.demonstrations(1, seed=0)[0]
    (text,) = COMPACT.prompts(first.before, ())
    assert text.endswith("||>")

  def test_english_ones_are_alfworlds(self):
    step = ENGLISH.demonstrations(5, seed=0)[4]
    texts = list(ENGLISH.prompts(step.before, step.history))
    assert len(texts) == 3  # two, one and no earlier step
    assert "step 5" in texts[0] and "<think>" in texts[0]
    assert texts[-1] == household.make_prompt(
      step.before.task,
      step.before.observation,
      step.before.actions,
      step.history,
      shown=0,
    )


class TestReplies:
  @pytest.mark.parametrize("task", [COMPACT, ENGLISH])
  def test_what_is_written_is_read(self, task):
    for action in ("go to bed 1", "take mug 1 from desk 2", "look"):
      assert task.read_reply(task.write_reply(action)) == (action, True)

  @pytest.mark.parametrize("text", ["", " ", "mug 1", "look" * 100, "1 look"])
  def test_what_is_no_action_is_invalid(self, text):
    assert COMPACT.read_reply(text) == ("", False)

  @hypothesis.given(st.text())
  def test_it_never_raises(self, text):
    COMPACT.read_reply(text)
    ENGLISH.read_reply(text)


class TestDemonstrations:
  def test_they_are_what_playing_them_gives(self):
    steps = COMPACT.demonstrations(30, seed=3, wrong_rate=0.4)
    env, episode = COMPACT.make("train"), -1
    for step in steps:
      if not step.history:
        episode += 1
        observation = env.reset(episode)
      assert step.before == Situation(
        env.task, observation, tuple(env.admissible_actions), 0.0, False
      )
      observation = env.step(step.action).observation
      assert step.observation == observation

  def test_mistakes_come_at_their_rate(self):
    def first_actions(rate):
      env = COMPACT.make("train")
      right = 0
      steps = COMPACT.demonstrations(400, seed=0, wrong_rate=rate)
      for step in steps:
        right += step.action.startswith(("go to", "open", "take", "move"))
      del env
      return right / len(steps)

    assert first_actions(0.0) > first_actions(0.5) + 0.1

  def test_the_same_seed_gives_the_same(self):
    one, same, other = (
      COMPACT.demonstrations(40, seed=s, wrong_rate=0.3) for s in (0, 0, 1)
    )
    assert one == same and one != other

  def test_held_out_ones_are_of_test_worlds_without_mistakes(self):
    train = {s.before.task for s in COMPACT.demonstrations(50, seed=0)}
    held = COMPACT.held_out(50)
    assert len(held) == 50 and {s.before.task for s in held} - train
    env = COMPACT.make("test")
    assert held[0].before.observation == env.reset(0)

  def test_a_rate_of_one_is_refused(self):
    with pytest.raises(ValueError, match="not a rate below 1"):
      COMPACT.demonstrations(1, seed=0, wrong_rate=1.0)


class TestTask:
  def test_it_says_what_there_is(self):
    assert COMPACT.num_episodes("train") == 50
    assert COMPACT.num_episodes("test") == 7
    assert (COMPACT.max_steps, COMPACT.max_return) == (12, 10.0)
    (component,) = COMPACT.components
    assert component == ("return", 0.0, 10.0) or component.maximum == 10.0
    with pytest.raises(ValueError, match="did you mean 'test'"):
      COMPACT.num_episodes("tests")

  def test_an_episode_is_of_the_kind_of_its_task(self):
    task = HouseholdTask(HouseholdConfig(kinds=("look", "two"), num_test=30))
    env = task.make("test")
    found = set()
    for seed in range(30):
      kind = task.category("test", seed)
      env.reset(seed)
      assert ("examine" in env.task or "look at" in env.task) == (
        kind == "look"
      )
      found.add(kind)
    assert found == {"look", "two"}

  def test_it_is_an_agents_task_and_can_be_sent_to_a_process(self):
    again = pickle.loads(pickle.dumps(COMPACT))
    assert isinstance(again, environments.AgentTask)
    assert again.make("train").reset(3) == COMPACT.make("train").reset(3)

  @pytest.mark.parametrize(
    ("field", "words"),
    [
      ({"form": "compcat"}, "did you mean 'compact'"),
      ({"kinds": ("pikc",)}, "did you mean 'pick'"),
      ({"max_steps": 0}, "max_steps is not positive"),
    ],
  )
  def test_a_mistake_is_named(self, field, words):
    with pytest.raises(ValueError, match=words):
      HouseholdConfig(**field)
