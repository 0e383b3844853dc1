"""Tests of saw_jax/tasks/shop/reward.py."""

import hypothesis
import pytest
from hypothesis import strategies as st

from saw_jax.tasks.shop import reward as shop_reward
from saw_jax.tasks.shop.products import Instruction, Product

WANTED = Product(
  code="B000000001",
  name="Soft Cotton Shirt for Men",
  query="men shirts",
  categories=("Clothing", "Men", "Shirts"),
  price=25.0,
  price_tag="$25.0",
  description="Good for the summer.",
  features=("machine washable",),
  attributes=("soft cotton", "long sleeve"),
  options=(("color", ("navy blue", "red")), ("size", ("small", "large"))),
)
ASKED = Instruction(
  text="a shirt",
  code=WANTED.code,
  attributes=("long sleeve", "machine washable"),
  options=("blue", "large"),
  price_limit=30.0,
)


def score(product=WANTED, options=(), **asked):
  return shop_reward.score(
    product, WANTED, ASKED._replace(**asked), dict(options)
  )


class TestScore:
  """Five things are asked for: two attributes, two options and a price."""

  @pytest.mark.parametrize(
    ("options", "right"),
    [
      ({}, 3),
      ({"size": "large"}, 4),
      ({"size": "small"}, 3),
      # "navy blue" and "blue" are both plain "blue".
      ({"color": "navy blue", "size": "large"}, 5),
      ({"color": "red", "size": "large"}, 4),
    ],
  )
  def test_options_count_by_hand(self, options, right):
    assert score(options=options.items()) == right / 5

  def test_a_price_above_the_limit_costs_its_share(self):
    options = {"color": "navy blue", "size": "large"}.items()
    assert score(WANTED._replace(price=30.0), options) == 1.0
    assert score(WANTED._replace(price=30.01), options) == 4 / 5

  def test_an_attribute_may_stand_in_the_text_alone(self):
    assert "machine washable" not in WANTED.attributes
    assert score() == 3 / 5
    assert score(WANTED._replace(features=())) == 2 / 5
    bare = WANTED._replace(features=(), attributes=())
    assert score(bare) == 1 / 5
    named = bare._replace(description="Long sleeve, machine washable.")
    assert score(named) == 3 / 5

  def test_sizes_are_equal_or_wrong(self):
    # "x large" has all words of "large": alike, but no size that was asked for.
    assert score(options={"size": "x large"}.items()) == 3 / 5
    assert score(options={"fit": "x large"}.items()) == 4 / 5

  def test_more_options_than_asked_for_are_no_more_than_right(self):
    assert score(options={"fit": "large", "cut": "large"}.items()) == 1.0
    many = {"fit": "large", "cut": "large", "size": "large", "hem": "large"}
    assert score(options=many.items()) == 1.0

  @hypothesis.given(
    st.text(max_size=20),
    st.dictionaries(st.text(max_size=5), st.text(max_size=20), max_size=3),
    st.floats(0, 100),
  )
  def test_it_is_a_share(self, name, options, price):
    product = WANTED._replace(name=name, price=price)
    assert 0 <= score(product, options.items()) <= 1


class TestType:
  OTHER = WANTED._replace(query="x", categories=("Clothing",))

  def names(self, name, wanted, **fields):
    return shop_reward.type_score(
      self.OTHER._replace(name=name, **fields), WANTED._replace(name=wanted)
    )

  def test_no_common_word_is_nothing_whatever_the_query(self):
    assert self.names("table", "shirt", query=WANTED.query) == 0.0

  def test_a_fifth_of_the_words_is_half(self):
    assert self.names("a one", "one two three four five") == 0.5
    # A stop word is no word.
    assert self.names("for the", "shirt for the man") == 0.0

  def test_more_than_a_fifth_the_query_or_two_categories_are_enough(self):
    assert self.names("one two", "one two three four five") == 1.0
    long = "one two three four five"
    assert self.names("one", long, query=WANTED.query) == 1.0
    assert self.names("one", long, categories=("Men", "Shirts")) == 1.0
    assert self.names("one", long, categories=("Men", "Hats")) == 0.5

  def test_below_a_tenth(self):
    words = "one two three four five six seven eight nine ten eleven"
    assert self.names("one", words) == 0.1


class TestLikeness:
  @pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
      ("long sleeve", "LONG sleeve!", 100),
      ("sleeve", "long sleeve shirt", 100),
      ("", "long", 0),
      ("--", "long", 0),
      ("ab", "cd", 0),
      # No common word: "washable" in "washables" is 8 of (8 + 9) / 2 letters.
      ("washable", "washables", 94),
      # The common "a b" in "a b x": 3 letters of (3 + 5) / 2.
      ("a b x", "a b c d", 75),
    ],
  )
  def test_by_hand(self, one, other, expected):
    assert shop_reward.likeness(one, other) == expected

  @hypothesis.given(st.text(max_size=30), st.text(max_size=30))
  def test_it_is_symmetric(self, one, other):
    found = shop_reward.likeness(one, other)
    assert found == shop_reward.likeness(other, one)
    assert 0 <= found <= 100
