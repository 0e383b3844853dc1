"""Tests of saw_jax/tasks/shop/expert.py."""

import pytest

from saw_jax.tasks.draws import Draws
from saw_jax.tasks.shop import products as shop_products
from saw_jax.tasks.shop.expert import expert
from saw_jax.tasks.shop.products import Instruction, Product
from saw_jax.tasks.shop.site import Catalogue, Shop
from saw_jax.tasks.shop.task import ShopConfig, ShopTask


def solve(env, seed):
  """Plays an episode as the expert; returns the reward and the actions."""
  env.reset(seed)
  ours, actions, reward = expert(env, None), [], 0.0
  while not env.done:
    actions.append(next(ours))
    reward += env.step(actions[-1]).reward
  return reward, actions


class TestExpert:
  @pytest.mark.parametrize("split", ["train", "test"])
  def test_its_way_is_short(self, split):
    env = ShopTask(ShopConfig(num_products=60, per_page=4)).make(split)
    for seed in range(100):
      _, actions = solve(env, seed)
      # A search, a product, as many clicks as options, and the purchase, with
      # a page turned now and then.
      assert len(actions) <= 3 + len(env.instruction.options) + 3

  def test_it_finds_back_from_mistakes(self):
    env = ShopTask(ShopConfig(num_products=60, max_steps=60)).make("train")
    solved = 0
    for seed in range(60):
      env.reset(seed)
      ours, draws = expert(env, None), Draws("mistakes", seed)
      while not env.done:
        action = next(ours)
        if draws.chance(0.3):
          action = draws.choice(env.admissible_actions)
        step = env.step(action)
      # What it can do nothing about: a purchase by mistake.
      solved += step.reward > 0
      assert step.reward or env.page.kind == "done"
    assert solved > 40

  def test_it_leaves_the_results_of_another_search(self):
    env = ShopTask(ShopConfig(num_products=60)).make("train")
    env.reset(0)
    ours = expert(env, None)
    mine = next(ours)
    env.step("search[shirt speaker chair]")
    assert next(ours) == "click[back to search]"
    env.step(next(ours))
    assert next(ours) == mine

  def test_it_turns_pages(self):
    cheap = Product(
      code="B000000099",
      name="hat",
      query="hat",
      categories=("hats",),
      price=5.0,
      price_tag="$5.0",
      description="",
      features=(),
      attributes=("soft",),
      options=(),
    )
    dear = [
      cheap._replace(code=f"B00000{i:04d}", price=500.0) for i in range(12)
    ]
    asked = Instruction("a hat", cheap.code, ("soft",), (), 10.0)
    env = Shop(
      Catalogue([*dear, cheap]), lambda seed: asked, ShopConfig(per_page=5)
    )
    reward, actions = solve(env, 0)
    assert reward == 10.0
    assert actions == [
      "search[soft hat]",
      *["click[next >]"] * 2,
      "click[b000000099]",
      "click[buy now]",
    ]
    # From what is too dear it goes back.
    env.reset(0)
    ours = expert(env, None)
    env.step(next(ours))
    env.step(f"click[{env.listed[0].code}]")
    assert next(ours) == "click[< prev]"

  def test_options_of_another_spelling_are_found(self):
    product = shop_products.draw_products(1)[0]._replace(
      options=(("color", ("dark navy", "light grey")), ("fit", ("any",)))
    )
    asked = Instruction(
      "x", product.code, product.attributes, ("grey",), product.price
    )
    env = Shop(Catalogue([product]), lambda seed: asked, ShopConfig())
    reward, actions = solve(env, 0)
    assert reward == 10.0 and actions[2] == "click[light grey]"
