"""The shop as a task; tests/tasks/text_tasks_test.py has what all share."""

import pickle

import pytest

from saw_jax.tasks.draws import Draws
from saw_jax.tasks.environments import Situation
from saw_jax.tasks.shop import task as shop_task
from saw_jax.tasks.shop.products import Instruction, Product
from saw_jax.tasks.shop.site import Catalogue, Shop
from saw_jax.tasks.shop.task import ShopConfig, ShopTask

COMPACT = ShopTask(ShopConfig(form="compact", shown=4))
ENGLISH = ShopTask()
HEAD = "Instruction: [SEP] a hat [SEP] "
SITUATION = Situation("a hat", f"{HEAD}page 4", ("click[x]",))
HISTORY = [(f"{HEAD}page {i}", f"click[{i}]") for i in range(1, 4)]
HAT = Product(
  *("B000000099", "hat", "hat", ("hats",), 5.0, "$5.0"),
  *("", (), ("soft",), ()),  # description, features, attributes, options
)


class TestPrompts:
  def test_english_ones_say_the_instruction_once(self):
    """Every word of them is in household/rules_test.py."""
    two, one, none = ENGLISH.prompts(SITUATION, HISTORY)
    for words in (
      "agent that shops in the WebShop online store.\nYour task is to: a hat\n",
      "[Observation 2: 'page 2', Action 2: 'click[2]'], [Observation 3: ",
      "\nYou are now at step 4 and your current observation is: page 4\nThe",
      "step by step about what you see and what you want, inside <think>",
    ):
      assert words in two
    assert "Instruction:" not in two and "The last 1 observation(s)" in one
    # The shortest form does not tell that there were steps.
    assert none == next(ENGLISH.prompts(SITUATION, ()))
    assert "a hat\nYour current observation is: page 4\nThe actions" in none

  def test_compact_ones_have_instruction_actions_and_page(self):
    text = next(COMPACT.prompts(SITUATION, HISTORY))
    assert text == "a hat|click[1];click[2];click[3]|page 4>"
    start = SITUATION._replace(observation=f"WebShop [SEP] {HEAD}Search")
    assert next(COMPACT.prompts(start, ())) == "a hat||Search>"

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


class TestExpert:
  """That it wins is in text_tasks_test.py."""

  def play(self, env, seed, wrong=0.0):
    """Plays an episode; returns the last step and the expert's actions."""
    env.reset(seed)
    expert, draws = ENGLISH.expert(env, None), Draws("mistakes", seed)
    actions = []
    while not env.done:
      actions.append(next(expert))
      is_wrong = draws.chance(wrong)
      action = draws.choice(env.admissible_actions) if is_wrong else actions[-1]
      step = env.step(action)
    return step, actions

  def test_its_way_is_short_and_it_finds_back_from_mistakes(self):
    config = ShopConfig(num_products=60, per_page=4, max_steps=60)
    env, solved = ShopTask(config).make("train"), 0
    for seed in range(60):
      _, actions = self.play(env, seed)
      # A search, a product, as many clicks as options, and the purchase, with
      # a page turned now and then.
      assert len(actions) <= 3 + len(env.instruction.options) + 3
      step, _ = self.play(env, seed, wrong=0.3)
      # What it can do nothing about: a purchase by mistake.
      solved += step.reward > 0
      assert step.reward or env.page.kind == "done"
    assert solved > 40

  def test_it_leaves_the_results_of_another_search(self):
    env = COMPACT.make("train")
    env.reset(0)
    expert = ENGLISH.expert(env, None)
    mine = next(expert)
    env.step("search[shirt speaker chair]")
    assert next(expert) == "click[back to search]"
    env.step(next(expert))
    assert next(expert) == mine

  def test_it_turns_pages_and_goes_back_from_what_is_too_dear(self):
    dear = [HAT._replace(code=f"B00000{i:04d}", price=500.0) for i in range(12)]
    asked = Instruction("a hat", HAT.code, ("soft",), (), 10.0)
    catalogue = Catalogue([*dear, HAT])
    env = Shop(catalogue, lambda seed: asked, ShopConfig(per_page=5))
    step, actions = self.play(env, 0)
    assert step.reward == 10.0
    assert actions == [
      *("search[soft hat]", "click[next >]", "click[next >]"),
      *("click[b000000099]", "click[buy now]"),
    ]
    env.reset(0)
    expert = ENGLISH.expert(env, None)
    env.step(next(expert))
    env.step(f"click[{env.listed[0].code}]")
    assert next(expert) == "click[< prev]"

  def test_options_of_another_spelling_are_found(self):
    options = (("color", ("dark navy", "light grey")), ("fit", ("any",)))
    product = HAT._replace(options=options)
    asked = Instruction("x", HAT.code, ("soft",), ("grey",), 5.0)
    env = Shop(Catalogue([product]), lambda seed: asked, ShopConfig())
    step, actions = self.play(env, 0)
    assert step.reward == 10.0 and actions[2] == "click[light grey]"

  def test_mistakes_are_sometimes_other_searches(self):
    steps = COMPACT.demonstrations(200, seed=0, wrong_rate=0.5)
    first = [s for s in steps if s.before.actions == ("search[<your query>]",)]
    words = [s.action.removeprefix("search[").split()[0] for s in first]
    found = [w in s.before.task for w, s in zip(words, first, strict=True)]
    assert not all(found)
    assert "search[<your query>]" not in {s.action for s in first}


def test_another_process_draws_the_same_shop():
  sent, env = pickle.dumps(COMPACT), COMPACT.make("train")
  shop_task._open.cache_clear()
  other = pickle.loads(sent).make("train")
  assert other.reset(3) == env.reset(3)
  action = f"search[{env.task}]"
  assert other.step(action) == env.step(action)
