"""The shop as a task; tests/tasks/text_tasks_test.py has what all share."""

import json
import pickle

import pytest

from saw_jax.tasks.environments import Situation
from saw_jax.tasks.shop import task as shop_task
from saw_jax.tasks.shop.task import ShopConfig, ShopTask

COMPACT = ShopTask(ShopConfig(form="compact", shown=4))
ENGLISH = ShopTask()
HEAD = "Instruction: [SEP] a hat [SEP] "
SITUATION = Situation("a hat", f"{HEAD}page 4", ("click[x]",), 0.0, False)
HISTORY = [(f"{HEAD}page {i}", f"click[{i}]") for i in range(1, 4)]


class TestPrompts:
  def test_english_ones_say_the_instruction_once(self):
    two, one, none = ENGLISH.prompts(SITUATION, HISTORY)
    assert two == (
      "You are an expert agent that shops in the WebShop online store.\n"
      "Your task is to: a hat\n"
      "So far you have taken 3 step(s). The last 2 observation(s) and the "
      "actions that you took: [Observation 2: 'page 2', Action 2: 'click[2]'], "
      "[Observation 3: 'page 3', Action 3: 'click[3]']\n"
      "You are now at step 4 and your current observation is: page 4\n"
      "The actions that are admissible now are: ['click[x]'].\n\n"
      "It is your turn to act. First reason step by step about what you see "
      "and what you want, inside <think> </think> tags. Then choose one "
      "admissible action and write it inside <action> </action> tags."
    )
    assert "The last 1 observation(s)" in one
    # The shortest form does not tell that there were steps.
    assert none == next(ENGLISH.prompts(SITUATION, ()))
    assert "a hat\nYour current observation is: page 4\nThe actions" in none

  def test_compact_ones_have_instruction_actions_and_page(self):
    text = next(COMPACT.prompts(SITUATION, HISTORY))
    assert text == "a hat|click[1];click[2];click[3]|page 4>"

  def test_a_prompt_above_13000_characters_goes_without_history(self):
    history = [("word " * 2000, "click[a]"), ("word " * 2000, "click[b]")]
    sizes = [len(text) for text in ENGLISH.prompts(SITUATION, history)]
    assert len(sizes) == 2 and 10_000 < sizes[0] < 13_000 and sizes[1] < 1000


@pytest.mark.parametrize(
  "text",
  ["", "search", "search[]", "buy[x]", "click[a]b", "search[a[b]]"]
  + ["search[" + "a" * 400 + "]"],
)
def test_what_is_no_action_is_invalid(text):
  assert COMPACT.read_reply(text) == ("", False)


def test_mistakes_are_sometimes_other_searches():
  steps = COMPACT.demonstrations(200, seed=0, wrong_rate=0.5)
  first = [s for s in steps if s.before.actions == ("search[<your query>]",)]
  assert not all(
    s.action.removeprefix("search[").split()[0] in s.before.task for s in first
  )
  assert "search[<your query>]" not in {s.action for s in first}


def test_another_process_draws_the_same_shop():
  sent, env = pickle.dumps(COMPACT), COMPACT.make("train")
  shop_task._open.cache_clear()
  other = pickle.loads(sent).make("train")
  assert other.reset(3) == env.reset(3)
  action = f"search[{env.task}]"
  assert other.step(action) == env.step(action)


def test_webshops_files_are_another_shop(tmp_path):
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
  contents = {"products": rows, "attributes": {}, "instructions": asked}
  paths = {name: str(tmp_path / f"{name}.json") for name in contents}
  for name, content in contents.items():
    with open(paths[name], "w") as file:
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
