"""Tests of saw_jax/tasks/shop/products.py."""

import json

import pytest

from saw_jax.tasks.shop import products as shop_products
from saw_jax.tasks.shop.products import NO_LIMIT

ROW = {
  "asin": "B09ABC1234",
  "name": "Soft Shirt",
  "query": " Men Shirts ",
  "category": "fashion",
  "product_category": "Clothing \u203a Men \u203a Shirts",
  "full_description": "It is soft.",
  "small_description": ["cotton", "washable"],
  "pricing": "$10.00$1,020.50",
  "customization_options": {
    "Color": [{"value": " Navy/Blue ", "image": None}, {"value": "Red"}],
    "Size": None,
  },
  "images": [],
}
ASKED = {
  "instruction": "I need a soft men's shirt.",
  "instruction_attributes": ["soft"],
  "instruction_options": ["navy | blue"],
}


@pytest.fixture
def folder(tmp_path):
  """WebShop's files with three products, and five things to ask for."""

  class Folder:
    products = tmp_path / "items_shuffle.json"
    attributes = tmp_path / "items_ins_v2.json"
    instructions = tmp_path / "items_human_ins.json"
    order = tmp_path / "human_goals.json"

    def write(self, rows=None, attributes=None, asked=None):
      rows = [ROW, {**ROW, "asin": "B2"}, {**ROW, "asin": "B3"}] + (rows or [])
      self.products.write_text(json.dumps(rows))
      attributes = {ROW["asin"]: {"attributes": ["soft"]}} | (attributes or {})
      self.attributes.write_text(json.dumps(attributes))
      five = [{**ASKED, "instruction": f"Number {i}."} for i in range(4)]
      asked = {ROW["asin"]: [ASKED], "B2": five} | (asked or {})
      self.instructions.write_text(json.dumps(asked))
      return self

    def read(self, **options):
      return shop_products.read_products(
        self.products,
        self.attributes,
        self.instructions,
        **{"num_test": 2, **options},
      )

  return Folder()


class TestDraw:
  def test_names_and_codes_are_there_once(self):
    products = shop_products.draw_products(shop_products.MOST_PRODUCTS)
    assert len({p.name for p in products}) == len(products)
    assert len({p.code for p in products}) == len(products)
    assert all(len(p.code) == 10 and p.code.isupper() for p in products)

  @pytest.mark.parametrize("count", [0, 10_000])
  def test_no_shop_has_as_many(self, count):
    with pytest.raises(ValueError, match=f"not {count}"):
      shop_products.draw_products(count)

  def test_splits_have_no_instruction_in_common(self):
    products = shop_products.draw_products(40)
    parts = {
      split: {
        (one.code, one.options)
        for seed in range(300)
        for one in [shop_products.draw_instruction(products, split, seed)]
      }
      for split in ("train", "test")
    }
    assert not parts["train"] & parts["test"]
    assert len(parts["test"]) > 10

  def test_an_instruction_says_what_counts(self):
    products = shop_products.draw_products(40)
    by_code = {p.code: p for p in products}
    for seed in range(50):
      one = shop_products.draw_instruction(products, "train", seed)
      product = by_code[one.code]
      assert product.name in one.text
      assert all(value in one.text for value in one.options)
      assert f"{one.price_limit:.2f} dollars" in one.text
      # One of the second to the fourth multiple of 10 above the price.
      assert 10 < one.price_limit - product.price <= 40
      assert one.price_limit % 10 == 0

  def test_another_split_is_refused(self):
    with pytest.raises(ValueError, match="'dev'"):
      shop_products.draw_instruction(shop_products.draw_products(3), "dev", 0)


class TestRead:
  def test_a_product_by_hand(self, folder):
    product = folder.write().read()[0][0]
    assert product == shop_products.Product(
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

  def test_what_is_missing_is_what_webshop_makes_of_it(self, folder):
    row = {**ROW, "asin": "B4", "pricing": None, "customization_options": None}
    row |= {"small_description": "one text", "full_description": None}
    product = folder.write([row]).read()[0][-1]
    assert (product.price, product.price_tag) == (100.0, "$100.0")
    assert product.options == () and product.features == ("one text",)
    assert product.attributes == ("DUMMY_ATTR",)

  def test_products_without_a_code_and_repeated_ones_are_left_out(self, folder):
    rows = [{**ROW, "asin": code} for code in ("nan", "B2", "B2345678901")]
    assert len(folder.write(rows).read()[0]) == 3

  def test_each_instruction_is_in_one_split(self, folder):
    _, asked = folder.write().read()
    train, test = (asked[name] for name in ("train", "test"))
    assert (len(train), len(test)) == (3, 2)
    assert len({one.text for one in (*train, *test)}) == 5
    one = next(o for o in (*train, *test) if o.code == "B09ABC1234")
    assert one.text.startswith("I need a soft men's shirt, and price lower")
    assert one.price_limit > 515.25 and one.options == ("navy | blue",)

  def test_the_shuffle_is_that_of_webshop(self, folder):
    # random.Random(233).shuffle on five: 2, 0, 4, 3, 1 with Python 3.11.
    import random

    order = list(range(5))
    random.Random(233).shuffle(order)
    _, asked = folder.write().read()
    texts = ["I need a soft", *(f"Number {i}" for i in range(4))]
    found = [*asked["test"], *asked["train"]]
    assert all(
      one.text.startswith(texts[i]) for one, i in zip(found, order, strict=True)
    )

  def test_a_list_of_texts_may_decide_on_the_split(self, folder):
    folder.write()
    texts = ["i need a soft mens shirt", "number 3", "number 0"]
    folder.order.write_text(json.dumps(texts))
    _, asked = folder.read(order=folder.order)
    test = {one.text.partition(",")[0] for one in asked["test"]}
    assert test == {"I need a soft men's shirt", "Number 3"}
    assert len(asked["train"]) == 3

  def test_an_instruction_without_attributes_is_left_out(self, folder):
    asked = {"B3": [{**ASKED, "instruction_attributes": []}]}
    _, asked = folder.write(asked=asked).read()
    assert sum(map(len, asked.values())) == 5

  def test_no_limit_above_what_prices_there_are(self, folder):
    rows = [{**ROW, "asin": "B9", "pricing": "$985.00"}]
    _, asked = folder.write(rows, asked={"B9": [ASKED]}).read(num_test=1)
    every = [one for several in asked.values() for one in several]
    (one,) = (one for one in every if one.code == "B9")
    assert one.price_limit == NO_LIMIT and "dollars" not in one.text

  def test_only_the_first_products_are_read(self, folder):
    folder.write()
    assert len(folder.read(num_products=2)[0]) == 2


ROW_4 = {**ROW, "asin": "B4"}


class TestDamage:
  @pytest.mark.parametrize("name", ["products", "attributes", "instructions"])
  @pytest.mark.parametrize("content", ["", "{", '[1, 2, "', "3", None])
  def test_a_damaged_or_missing_file_is_named(self, folder, name, content):
    path = getattr(folder.write(), name)
    path.unlink()
    if content is not None:
      path.write_text(content)
    what = FileNotFoundError if content is None else ValueError
    with pytest.raises(what, match=path.name) as error:
      folder.read()
    assert "\n" not in str(error.value)

  @pytest.mark.parametrize(
    ("row", "words"),
    [
      (7, "product 3: not an object"),
      (ROW_4 | {"asin": 7}, "product 3: field 'asin'"),
      (ROW_4 | {"name": None}, "product 3: field 'name'"),
      (ROW_4 | {"pricing": "free"}, "'free'"),
      (ROW_4 | {"pricing": 3.5}, "'pricing'"),
      (ROW_4 | {"pricing": "$1.2.3"}, "no price"),
      (ROW_4 | {"customization_options": [1]}, "'customization_options'"),
      (ROW_4 | {"customization_options": {"a": 1}}, "field 'a'"),
      (ROW_4 | {"customization_options": {"a": [{}]}}, "'value'"),
      (ROW_4 | {"small_description": [1]}, "features"),
    ],
  )
  def test_a_damaged_product_is_numbered(self, folder, row, words):
    with pytest.raises(ValueError, match=words):
      folder.write([row]).read()

  @pytest.mark.parametrize(
    ("asked", "words"),
    [
      (7, "B3: not a list"),
      ([{}], "B3: no field 'instruction'"),
      ([{**ASKED, "instruction_attributes": [1]}], "instruction_attributes"),
      ([{**ASKED, "instruction_options": "x"}], "instruction_options"),
    ],
  )
  def test_a_damaged_instruction_names_its_product(self, folder, asked, words):
    with pytest.raises(ValueError, match=words):
      folder.write(asked={"B3": asked}).read()

  def test_other_damages_are_said(self, folder):
    with pytest.raises(ValueError, match="attributes of B2"):
      folder.write(attributes={"B2": 7}).read()
    folder.write().order.write_text("[1, 2]")
    with pytest.raises(ValueError, match="list of texts"):
      folder.read(order=folder.order)
    for number, split in ((0, "test"), (5, "train")):
      with pytest.raises(ValueError, match=f"'{split}'"):
        folder.read(num_test=number)
    folder.products.write_text("[]")
    with pytest.raises(ValueError, match="no product"):
      folder.read()
