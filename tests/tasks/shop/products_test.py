"""Tests of saw_jax/tasks/shop/products.py."""

import json
import random

import pytest

from saw_jax.tasks.shop import products as shop_products
from saw_jax.tasks.shop.products import NO_LIMIT
from saw_jax.tasks.shop.task import ShopConfig, ShopTask

ROW = {
  "asin": "B09ABC1234",
  "name": "Soft Shirt",
  "query": " Men Shirts ",
  "product_category": "Clothing \u203a Men \u203a Shirts",
  "full_description": "It is soft.",
  "small_description": ["cotton", "washable"],
  "pricing": "$10.00$1,020.50",
  "customization_options": {
    "Color": [{"value": " Navy/Blue "}, {"value": "Red"}],
    "Size": None,
  },
}
ASKED = {
  "instruction": "I need a soft men's shirt.",
  "instruction_attributes": ["soft"],
  "instruction_options": ["navy | blue"],
}


def asked(**changes):
  return {"asked": {"B3": [ASKED | changes]}}


@pytest.fixture
def read(tmp_path):
  """Reads WebShop's files with three products, and five things to ask for."""

  def read(rows=(), attributes=None, asked=None, order=None, **options):
    four = [{**ASKED, "instruction": f"Number {i}."} for i in range(4)]
    first, others = ROW["asin"], [ROW | {"asin": a} for a in ("B2", "B3")]
    contents = {
      "items_shuffle": [ROW, *others, *rows],
      "items_ins_v2": {first: {"attributes": ["soft"]}} | (attributes or {}),
      "items_human_ins": {first: [ASKED], "B2": four} | (asked or {}),
      "human_goals": order,
    }
    paths = [tmp_path / f"{name}.json" for name in contents]
    for path, content in zip(paths, contents.values(), strict=True):
      if not path.exists():
        path.write_text(json.dumps(content))
    paths[3] = paths[3] if order else ""
    return shop_products.read_products(*paths, **{"num_test": 2, **options})

  return read


class TestDraw:
  def test_names_and_codes_are_there_once(self):
    products = shop_products.draw_products(shop_products.MOST_PRODUCTS)
    assert len({p.name for p in products}) == len(products)
    assert len({p.code for p in products}) == len(products)
    assert all(len(p.code) == 10 and p.code.isupper() for p in products)
    for count in (0, len(products) + 1):
      with pytest.raises(ValueError, match=f"not {count}"):
        shop_products.draw_products(count)

  def test_an_instruction_says_what_counts_and_is_of_one_split(self):
    products = shop_products.draw_products(40)
    by_code = {p.code: p for p in products}
    asked = {"train": set(), "test": set()}
    for split, several in asked.items():
      for seed in range(300):
        one = shop_products.draw_instruction(products, split, seed)
        several.add((one.code, one.options))
        product = by_code[one.code]
        assert product.name in one.text
        assert all(value in one.text for value in one.options)
        assert f"{one.price_limit:.2f} dollars" in one.text
        # One of the second to the fourth multiple of 10 above the price.
        assert 10 < one.price_limit - product.price <= 40
        assert one.price_limit % 10 == 0
    assert not asked["train"] & asked["test"] and len(asked["test"]) > 10
    with pytest.raises(ValueError, match="'dev'"):
      shop_products.draw_instruction(products, "dev", 0)

  def test_a_shop_with_nothing_for_a_split_is_refused(self):
    # A lamp, without options: all instructions are one.
    with pytest.raises(ValueError, match="1 product.* 'test'"):
      ShopTask(ShopConfig(num_products=1))


class TestRead:
  def test_a_product_by_hand(self, read):
    assert read()[0][0] == shop_products.Product(
      code="B09ABC1234",
      name="Soft Shirt",
      query="men shirts",
      categories=("Clothing", "Men", "Shirts"),
      price=(10.0 + 1020.5) / 2,
      price_tag="$10.0 to $1020.5",
      description="It is soft.",
      features=("cotton", "washable"),
      attributes=("soft",),
      options=(("color", ("navy | blue", "red")),),
    )

  def test_what_is_missing_is_what_webshop_makes_of_it(self, read):
    row = {**ROW, "asin": "B4", "pricing": None, "customization_options": None}
    row |= {"small_description": "one text", "full_description": None}
    product = read([row])[0][-1]
    assert (product.price, product.price_tag) == (100.0, "$100.0")
    assert product.options == () and product.features == ("one text",)
    assert product.attributes == ("DUMMY_ATTR",)

  def test_what_is_left_out(self, read):
    rows = [{**ROW, "asin": code} for code in ("nan", "B2", "B2345678901")]
    asked = {"B3": [{**ASKED, "instruction_attributes": []}]}
    products, asked = read(rows, asked=asked)
    assert len(products) == 3 and sum(map(len, asked.values())) == 5
    assert len(read(num_products=2)[0]) == 2

  def test_the_shuffle_is_that_of_webshop(self, read):
    order = list(range(5))
    random.Random(233).shuffle(order)
    assert order == [2, 0, 3, 4, 1]
    _, asked = read()
    assert len(asked["test"]) == 2
    texts = ["I need a soft", *(f"Number {i}" for i in range(4))]
    found = [*asked["test"], *asked["train"]]
    for one, i in zip(found, order, strict=True):
      assert one.text.startswith(texts[i])
    one = found[order.index(0)]
    assert one.text.startswith("I need a soft men's shirt, and price lower")
    assert one.price_limit > 515.25 and one.options == ("navy | blue",)

  def test_a_list_of_texts_may_decide_on_the_split(self, read):
    texts = ["i need a soft mens shirt", "number 3", "number 0"]
    _, asked = read(order=texts)
    test = {one.text.partition(",")[0] for one in asked["test"]}
    assert test == {"I need a soft men's shirt", "Number 3"}
    assert len(asked["train"]) == 3

  def test_no_limit_above_what_prices_there_are(self, read):
    rows = [{**ROW, "asin": "B9", "pricing": "$985.00"}]
    _, asked = read(rows, asked={"B9": [ASKED]}, num_test=1)
    every = [one for several in asked.values() for one in several]
    (one,) = (one for one in every if one.code == "B9")
    assert one.price_limit == NO_LIMIT and "dollars" not in one.text

  def test_they_make_a_task(self, read, tmp_path):
    read()
    names = {"products": "items_shuffle", "attributes": "items_ins_v2"}
    names["instructions"] = "items_human_ins"
    paths = {name: str(tmp_path / f"{n}.json") for name, n in names.items()}
    task = ShopTask(ShopConfig(num_products=0, num_test=2, **paths))
    assert (task.num_episodes("train"), task.num_episodes("test")) == (3, 2)
    held = task.held_out(4)
    clicks = ["click[b09abc1234]", "click[navy | blue]", "click[buy now]"]
    assert [s.action for s in held] == ["search[soft men shirts]", *clicks]
    assert held[-1].observation.endswith(" 1.0")


class TestDamage:
  @pytest.mark.parametrize(
    "name", ["items_shuffle", "items_ins_v2", "items_human_ins"]
  )
  @pytest.mark.parametrize("content", ["", "{", "3", "[]", None])
  def test_a_bad_or_missing_file_is_named(self, read, tmp_path, name, content):
    path = tmp_path / f"{name}.json"
    if content is None:
      path.mkdir()  # no file
    else:
      path.write_text(content)
    what = FileNotFoundError if content is None else ValueError
    with pytest.raises(what, match=path.name) as error:
      read()
    assert "\n" not in str(error.value)

  @pytest.mark.parametrize(
    ("change", "words"),
    [
      ({"asin": 7}, "product 3: field 'asin'"),
      ({"name": None}, "product 3: field 'name'"),
      ({"pricing": "free"}, "'free'"),
      ({"pricing": 3.5}, "'pricing'"),
      ({"pricing": "$1.2.3"}, "no price"),
      ({"customization_options": [1]}, "'customization_options'"),
      ({"customization_options": {"a": 1}}, "field 'a'"),
      ({"customization_options": {"a": [{}]}}, "'value'"),
      ({"small_description": [1]}, "features"),
    ],
  )
  def test_a_damaged_product_is_numbered(self, read, change, words):
    with pytest.raises(ValueError, match=words):
      read([ROW | {"asin": "B4"} | change])

  @pytest.mark.parametrize(
    ("options", "words"),
    [
      ({"asked": {"B3": 7}}, "B3: not a list"),
      ({"asked": {"B3": [{}]}}, "B3: no field 'instruction'"),
      (asked(instruction_attributes=[1]), "instruction_attributes"),
      (asked(instruction_options="x"), "instruction_options"),
      (asked(instruction_options=[1]), "'options' is not a list"),
      ({"rows": [7]}, "product 3: not an object"),
      ({"attributes": {"B2": 7}}, "attributes of B2"),
      ({"order": [1, 2]}, "list of texts"),
      ({"num_test": 0}, "'test'"),
      ({"num_test": 5}, "'train'"),
    ],
  )
  def test_other_damages_are_said(self, read, options, words):
    with pytest.raises(ValueError, match=words):
      read(**options)
