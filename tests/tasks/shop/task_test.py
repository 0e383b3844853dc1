"""Tests of saw_jax/tasks/shop/task.py."""

import json
import pickle

import hypothesis
import pytest
from hypothesis import strategies as st

from saw_jax.run import registry
from saw_jax.tasks import environments
from saw_jax.tasks.draws import Draws
from saw_jax.tasks.environments import Situation
from saw_jax.tasks.shop import task as shop_task
from saw_jax.tasks.shop.task import ShopConfig, ShopTask
from saw_jax.tasks.workers.environment_pool import EnvironmentPool

COMPACT = ShopTask(
  ShopConfig(
    num_products=60,
    per_page=4,
    max_steps=6,
    form="compact",
    shown=4,
    shows_instruction=False,
    num_train=50,
    num_test=7,
  )
)
ENGLISH = ShopTask()
TOKENIZER = registry.make_tokenizer("shop")


class TestTokenizer:
  @pytest.mark.parametrize("task", [COMPACT, ENGLISH])
  def test_nothing_in_a_drawn_shop_is_unknown_to_it(self, task):
    env = task.make("train")
    for seed in range(30):
      draws = Draws("tokens", seed)
      seen = [env.reset(seed), env.task]
      query = draws.choice(env.catalogue.products).name
      seen.append(f"search[{query}]")
      seen.append(env.step(seen[-1]).observation)
      while not env.done:
        action = draws.choice(env.admissible_actions)
        action = action.replace("<your query>", query)
        seen += [action, env.step(action).observation]
      for text in seen:
        assert TOKENIZER.decode(TOKENIZER.encode(text)) == text

  def test_tiny_prompts_are_short(self):
    steps = COMPACT.demonstrations(300, seed=0, wrong_rate=0.25)
    assert max(len(TOKENIZER.encode(s.action)) for s in steps) <= 6
    assert max(len(TOKENIZER.encode(s.observation)) for s in steps) <= 48
    for step in steps:
      # All of it but the history.
      text = list(COMPACT.prompts(step.before, step.history))[-1]
      assert len(TOKENIZER.encode(text)) <= 94


class TestPrompts:
  def step(self, task):
    steps = task.demonstrations(60, seed=1)
    return next(s for s in steps if len(s.history) == 3)

  def test_compact_ones_have_instruction_actions_and_page(self):
    step = self.step(COMPACT)
    text = next(COMPACT.prompts(step.before, step.history))
    task, actions, page = text.split("|")
    assert task == step.before.task
    assert actions == ";".join(action for _, action in step.history)
    assert page == step.before.observation + ">"

  def test_history_is_dropped_oldest_first(self):
    step = self.step(COMPACT)
    texts = list(COMPACT.prompts(step.before, step.history))
    assert [t.split("|")[1].count(";") for t in texts] == [2, 1, 0, 0]
    assert texts[-1].split("|")[1] == ""

  def test_english_ones_say_the_instruction_once(self):
    step = self.step(ENGLISH)
    texts = list(ENGLISH.prompts(step.before, step.history))
    assert len(texts) == 3  # two, one and no earlier step
    for text in texts:
      assert text.count(step.before.task) == 1
      assert "<think>" in text and "click[buy now]" in text
    assert "step 4" in texts[0] and "step(s)" not in texts[-1]

  def test_a_prompt_above_13000_characters_goes_without_history(self):
    long = "word " * 2000
    situation = Situation("a hat", "a page", (), 0.0, False)
    history = [(long, "click[a]"), (long, "click[b]")]
    sizes = [len(text) for text in ENGLISH.prompts(situation, history)]
    assert len(sizes) == 2 and 10_000 < sizes[0] < 13_000 and sizes[1] < 1000


class TestReplies:
  @pytest.mark.parametrize("task", [COMPACT, ENGLISH])
  @pytest.mark.parametrize("action", ["search[soft shirt]", "click[< prev]"])
  def test_what_is_written_is_read(self, task, action):
    assert task.read_reply(task.write_reply(action)) == (action, True)

  @pytest.mark.parametrize(
    "text",
    ["", "search", "search[]", "buy[x]", "click[a]b", "search[a[b]]"]
    + ["search[" + "a" * 400 + "]"],
  )
  def test_what_is_no_action_is_invalid(self, text):
    assert COMPACT.read_reply(text) == ("", False)

  @hypothesis.given(st.text())
  def test_it_never_raises(self, text):
    COMPACT.read_reply(text)
    ENGLISH.read_reply(text)


class TestDemonstrations:
  def test_they_are_what_playing_them_gives(self):
    steps = COMPACT.demonstrations(40, seed=3, wrong_rate=0.4)
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

  def test_the_same_seed_gives_the_same(self):
    one, same, other = (
      COMPACT.demonstrations(40, seed=s, wrong_rate=0.3) for s in (0, 0, 1)
    )
    assert one == same and one != other

  def test_held_out_ones_are_of_test_instructions_without_mistakes(self):
    held = COMPACT.held_out(40)
    env = COMPACT.make("test")
    assert held[0].before.observation == env.reset(0)
    assert held[0].before.task == env.task
    ends = [s for s in held if s.action == "click[buy now]"]
    assert ends and all(s.observation.endswith(" 1.0") for s in ends)

  def test_mistakes_are_sometimes_other_searches(self):
    steps = COMPACT.demonstrations(200, seed=0, wrong_rate=0.5)
    first = [s for s in steps if s.before.observation == "Search"]
    assert not all(
      s.action.removeprefix("search[").split()[0] in s.before.task
      for s in first
    )
    assert "search[<your query>]" not in {s.action for s in first}

  def test_a_rate_of_one_is_refused(self):
    with pytest.raises(ValueError, match="not a rate below 1"):
      COMPACT.demonstrations(1, seed=0, wrong_rate=1.0)


class TestTask:
  def test_it_says_what_there_is(self):
    assert COMPACT.num_episodes("train") == 50
    assert COMPACT.num_episodes("test") == 7
    assert (COMPACT.max_steps, COMPACT.max_return) == (6, 10.0)
    with pytest.raises(ValueError, match="did you mean 'test'"):
      COMPACT.make("tests")

  def test_it_can_be_sent_to_a_process_as_its_config(self):
    sent = pickle.dumps(COMPACT)
    assert len(sent) < 1000
    again = pickle.loads(sent)
    assert isinstance(again, environments.AgentTask)
    assert again.make("train").reset(3) == COMPACT.make("train").reset(3)
    shop_task._open.cache_clear()
    other = pickle.loads(sent).make("train")
    env = COMPACT.make("train")
    assert other.reset(3) == env.reset(3)
    action = f"search[{env.task}]"
    assert other.step(action) == env.step(action)

  @pytest.mark.parametrize("num_workers", [0, 1])
  def test_it_is_played_in_worker_processes(self, num_workers):
    with EnvironmentPool(
      COMPACT, num_workers=num_workers, limit_s=30.0
    ) as pool:
      first, second = pool.start([("train", 0), ("test", 1)])
      assert first.observation == second.observation == "Search"
      found = pool.step({0: "search[shirt]", 1: "nonsense"})
      assert found[0].observation.startswith("Back to Search")
      assert found[1].observation == "Search" and not found[1].failure

  def test_webshops_files_are_another_shop(self, tmp_path):
    rows = [
      {
        "asin": f"B{i}",
        "name": f"shirt number {word}",
        "query": "shirt",
        "product_category": "a \u203a b",
        "full_description": None,
        "small_description": [],
        "pricing": "$5.00",
        "customization_options": {"size": [{"value": "S"}, {"value": "L"}]},
      }
      for i, word in enumerate(["one", "two", "three"])
    ]
    asked = {
      "B1": [
        {
          "instruction": text,
          "instruction_attributes": ["number two"],
          "instruction_options": ["l"],
        }
        for text in ("give me two", "two it is")
      ]
    }
    paths = {
      name: str(tmp_path / f"{name}.json")
      for name in ("products", "attributes", "instructions")
    }
    for (_, path), content in zip(
      paths.items(), (rows, {}, asked), strict=True
    ):
      with open(path, "w") as file:
        json.dump(content, file)
    task = ShopTask(ShopConfig(num_products=0, num_test=1, **paths))
    assert task.num_episodes("train") == task.num_episodes("test") == 1
    held = task.held_out(4)
    assert [s.action for s in held[1:]] == [
      "click[b1]",
      "click[l]",
      "click[buy now]",
    ]
    assert held[-1].observation.endswith(" 1.0")

  @pytest.mark.parametrize(
    ("field", "words"),
    [
      ({"form": "compcat"}, "did you mean 'compact'"),
      ({"pays": "sucess"}, "did you mean 'success'"),
      ({"max_steps": 0}, "max_steps is not positive"),
      ({"products": "a.json"}, "are read together"),
    ],
  )
  def test_a_mistake_is_named(self, field, words):
    with pytest.raises(ValueError, match=words):
      ShopConfig(**field)
