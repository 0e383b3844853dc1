"""The shop and its task; tests/tasks/text_tasks_test.py has what all share."""

import pytest

from saw_jax.tasks.draws import Draws
from saw_jax.tasks.environments import Situation
from saw_jax.tasks.shop import site as shop
from saw_jax.tasks.shop.products import Instruction, Product
from saw_jax.tasks.shop.site import Catalogue, Shop
from saw_jax.tasks.shop.task import ShopConfig, ShopTask

SHIRT = Product(
  code="B000000001",
  name="Soft Cotton Shirt",
  query="shirt",
  categories=("clothing", "shirt"),
  price=25.0,
  price_tag="$25.0",
  description="A good shirt.",
  features=("soft", "washable"),
  attributes=("soft", "cotton"),
  options=(("color", ("red", "blue")), ("size", ("small", "large"))),
)
DEAR = SHIRT._replace(code="B000000002", price=99.0, price_tag="$99.0")
HATS = [
  SHIRT._replace(
    code=f"B0000001{i:02d}", name=f"Hat {i}", description="A hat.", options=()
  )
  for i in range(60)
]
CATALOGUE = Catalogue([SHIRT, DEAR, *HATS])
ASKED = Instruction("a soft red shirt", SHIRT.code, ("soft",), ("red",), 30.0)
HEAD = "Instruction: [SEP] a soft red shirt [SEP] "


def make(*products, **options):
  catalogue = Catalogue(products) if products else CATALOGUE
  env = Shop(catalogue, lambda seed: ASKED, ShopConfig(**options))
  env.reset(0)
  return env


def play(env, *actions):
  for action in actions:
    step = env.step(action)
  return step


class TestPurchase:
  def test_page_by_page(self):
    env = make()
    start = "WebShop [SEP] Instruction: [SEP] a soft red shirt [SEP] Search"
    assert env.reset(0) == start
    assert env.admissible_actions == ["search[<your query>]"]
    listed = (
      f"{HEAD}Back to Search [SEP] Page 1 (Total results: 2) [SEP] B000000001"
      " [SEP] Soft Cotton Shirt [SEP] $25.0 [SEP] B000000002"
      " [SEP] Soft Cotton Shirt [SEP] $99.0"
    )
    assert env.step("search[Cotton]") == (listed, 0.0, False)
    names = ("back to search", "b000000001", "b000000002")
    assert env.admissible_actions == [f"click[{name}]" for name in names]
    item = (
      f"{HEAD}Back to Search [SEP] < Prev [SEP] color [SEP] red [SEP] blue"
      " [SEP] size [SEP] small [SEP] large [SEP] Soft Cotton Shirt"
      " [SEP] Price: $25.0 [SEP] Rating: N.A. [SEP] Description"
      " [SEP] Features [SEP] Reviews [SEP] Buy Now"
    )
    features = f"{HEAD}Back to Search [SEP] < Prev [SEP] soft [SEP] washable"
    for action, page in (
      ("click[B000000001]", item),
      ("click[features]", features),
      ("click[< prev]", item),
      ("click[red]", item),
    ):
      assert env.step(action) == (page, 0.0, False)
    assert env.page.options == {"color": "red"}
    # One attribute, one option and the price: three of three.
    step, told = env.step("click[buy now]"), "Your score (min 0.0, max 1.0)"
    done = f"Thank you for shopping with us! [SEP] {told} [SEP] 1.0"
    assert step == (done, 10.0, True)
    assert env.score == 1.0 and env.admissible_actions == []

  @pytest.mark.parametrize(
    ("code", "options", "score"),
    [
      (SHIRT.code, ["red"], 1.0),
      (SHIRT.code, ["red", "blue"], 2 / 3),  # the last one counts
      (SHIRT.code, [], 2 / 3),
      (DEAR.code, ["red"], 2 / 3),
      (DEAR.code, [], 1 / 3),
      (HATS[0].code, [], 0.0),  # its name has no word of the other's
    ],
  )
  @pytest.mark.parametrize("pays", ["success", "score"])
  def test_what_is_paid(self, code, options, score, pays):
    env = make(pays=pays, reward=5.0)
    query = "search[hat 0]" if code == HATS[0].code else "search[shirt]"
    clicks = [f"click[{name}]" for name in (code, *options, "buy now")]
    step = play(env, query, *clicks)
    assert step.done and env.score == pytest.approx(score)
    share = score if pays == "score" else float(score == 1)
    assert step.reward == pytest.approx(5.0 * share)


class TestPages:
  def test_results_come_in_tens_and_end_at_fifty(self):
    env = make()
    first = play(env, "search[hat]").observation
    assert "Page 1 (Total results: 50) [SEP] Next > [SEP] B0" in first
    assert "< prev" not in env.links
    codes = [p.code for p in env.listed]
    for number in range(2, 6):
      page = env.step("click[next >]").observation
      assert f"Page {number} (Total results: 50) [SEP] < Prev" in page
      assert len(env.listed) == 10
      codes += [p.code for p in env.listed]
    assert len(set(codes)) == 50 and "next >" not in env.links
    assert env.step("click[next >]").observation == page
    play(env, *["click[< prev]"] * 4)
    assert play(env, "search[hat]").observation == first

  def test_from_an_item_one_gets_back_to_its_page_of_results(self):
    env = make()
    page = play(env, "search[hat]", "click[next >]").observation
    code = env.listed[3].code
    assert play(env, f"click[{code}]", "click[< prev]").observation == page

  @pytest.mark.parametrize(
    ("actions", "options"),
    [
      (["click[description]", "click[< prev]"], {"color": "red"}),
      (["click[< prev]", f"click[{SHIRT.code}]"], {}),
      (["click[back to search]", "search[shirt]"], {}),
      (["search[hat]"], {}),
    ],
  )
  def test_options_are_forgotten_with_the_item(self, actions, options):
    env = make()
    play(env, "search[shirt]", f"click[{SHIRT.code}]", "click[red]", *actions)
    assert env.page.options == options

  def test_what_there_is_nothing_about_is_said(self):
    env = make(SHIRT._replace(description="", features=()))
    play(env, "search[shirt]", f"click[{SHIRT.code}]")
    for name in ("Description", "Features", "Reviews"):
      page = env.step(f"click[{name}]").observation
      assert page.endswith(f"< Prev [SEP] No {name}")
      env.step("click[< prev]")

  def test_a_value_of_two_options_is_the_later_ones_and_of_a_button_none(self):
    both = SHIRT._replace(options=(("a", ("x", "reviews")), ("b", ("x",))))
    env = make(both)
    play(env, "search[shirt]", f"click[{both.code}]", "click[x]")
    play(env, "click[reviews]")
    assert env.page.options == {"b": "x", "a": "reviews"}
    assert len(set(env.admissible_actions)) == len(env.admissible_actions)

  def test_nothing_found_is_a_page_too_and_the_instruction_may_be_left_out(
    self,
  ):
    page = "Back to Search [SEP] Page 1 (Total results: 0)"
    env = make(shows_instruction=False, per_page=4)
    assert env.reset(0) == "Search"
    assert play(env, "search[zebra]").observation == page
    assert play(make(), "search[zebra]").observation == HEAD + page
    play(env, "search[hat]")
    assert len(env.listed) == 4


class TestHostileText:
  @pytest.mark.parametrize(
    "action",
    ["", "buy now", "click[]", "click[search]", "click[buy now]", "search[]"]
    + ["search[ ]", "buy[x]", "click[b000000001]", "search[a", "click[start]"],
  )
  def test_what_cannot_be_done_takes_a_step_and_changes_nothing(self, action):
    env = make(max_steps=2)
    before = env.reset(0)
    assert env.step(action) == (before, 0.0, False)
    assert env.step(action) == (before, 0.0, True)

  def test_enormous_texts_are_cut(self):
    huge = SHIRT._replace(name="shirt " * 10_000, description="x" * 100_000)
    env = make(huge)
    for action in ("search[" + "shirt " * 50_000 + "]", f"click[{huge.code}]"):
      assert len(env.step(action).observation) <= shop.LONGEST_PAGE
    assert len(env.page.query) <= 300

  def test_every_admissible_action_does_something(self):
    env = ShopTask(ShopConfig(num_products=30, max_steps=30)).make("train")
    for seed in range(8):
      env.reset(seed)
      draws = Draws("walk", seed)
      while not env.done:
        action = draws.choice(env.admissible_actions)
        before = env.page
        env.step(action.replace("<your query>", env.task))
        assert env.page != before or action[6:-1] in before.options.values()


COMPACT = ShopTask(ShopConfig(form="compact", shown=4))
ENGLISH = ShopTask()
TOLD = "Instruction: [SEP] a hat [SEP] "
SITUATION = Situation("a hat", f"{TOLD}page 4", ("click[x]",))
HISTORY = [(f"{TOLD}page {i}", f"click[{i}]") for i in range(1, 4)]
HAT = SHIRT._replace(
  **dict(code="B000000099", name="hat", query="hat", categories=("hats",)),
  **dict(price=5.0, description="", features=(), options=()),
)


class TestPrompts:
  """Every word of the English ones is in household/household_test.py."""

  def test_english_ones_say_the_instruction_once(self):
    two, one, none = ENGLISH.prompts(SITUATION, HISTORY)
    assert "[Observation 2: 'page 2', Action 2: 'click[2]'], [Observ" in two
    assert "Instruction:" not in two and "The last 1 observation(s)" in one
    # The shortest form does not tell that there were steps.
    assert none == next(ENGLISH.prompts(SITUATION, ()))
    assert "a hat\nYour current observation is: page 4\nThe actions" in none

  def test_compact_ones_have_instruction_actions_and_page(self):
    text = next(COMPACT.prompts(SITUATION, HISTORY))
    assert text == "a hat|click[1];click[2];click[3]|page 4>"
    start = SITUATION._replace(observation=f"WebShop [SEP] {TOLD}Search")
    assert next(COMPACT.prompts(start, ())) == "a hat||Search>"

  def test_a_prompt_above_13000_characters_goes_without_history(self):
    history = [("word " * 2000, "click[a]"), ("word " * 2000, "click[b]")]
    sizes = [len(text) for text in ENGLISH.prompts(SITUATION, history)]
    assert len(sizes) == 2 and 10_000 < sizes[0] < 13_000 and sizes[1] < 1000


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
