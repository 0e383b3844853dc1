"""Tests of saw_jax/tasks/shop/reward.py."""

import hypothesis
import pytest
from hypothesis import strategies as st

from saw_jax.tasks.shop import reward as shop_reward
from saw_jax.tasks.shop.products import Instruction, Product

WANTED = Product(
  *("B000000001", "Soft Cotton Shirt for Men", "men shirts"),
  categories=("Clothing", "Men", "Shirts"),
  price=25.0,
  price_tag="$25.0",
  description="Good for the summer.",
  features=("machine washable",),
  attributes=("soft cotton", "long sleeve"),
  options=(("color", ("navy blue", "red")), ("size", ("small", "large"))),
)
ASKED = Instruction(
  *("a shirt", WANTED.code, ("long sleeve", "machine washable")),
  options=("blue", "large"),
  price_limit=30.0,
)
BARE = {"features": (), "attributes": ()}
FIVE = "one two three four five"


def score(product=WANTED, **options):
  return shop_reward.score(product, WANTED, ASKED, options)


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
      # "x large" has all words of "large": alike, but no size asked for.
      ({"size": "x large"}, 3),
      ({"fit": "x large"}, 4),
      # More than were asked for are no more than right.
      ({"fit": "large", "cut": "large"}, 5),
      ({"fit": "large", "cut": "large", "size": "large", "hem": "large"}, 5),
    ],
  )
  def test_options_count_by_hand(self, options, right):
    assert score(**options) == right / 5

  def test_price_and_attributes_count_by_hand(self):
    for changes, right in (
      ({"price": 30.0}, 3),
      ({"price": 30.01}, 2),  # above the limit
      # An attribute may stand in the text alone.
      ({"features": ()}, 2),
      (BARE, 1),
      (BARE | {"description": "Long sleeve, machine washable."}, 3),
    ):
      assert score(WANTED._replace(**changes)) == right / 5, changes

  @hypothesis.given(
    st.text(max_size=20),
    st.dictionaries(st.text(max_size=5), st.text(max_size=20), max_size=3),
    st.floats(0, 100),
  )
  def test_it_is_a_share(self, name, options, price):
    product = WANTED._replace(name=name, price=price)
    assert 0 <= shop_reward.score(product, WANTED, ASKED, options) <= 1


@pytest.mark.parametrize(
  ("name", "wanted", "changes", "expected"),
  [
    # No common word is nothing whatever the query; a stop word is no word.
    ("table", "shirt", {"query": WANTED.query}, 0.0),
    ("for the", "shirt for the man", {}, 0.0),
    ("one", f"{FIVE} six seven eight nine ten eleven", {}, 0.1),
    # More than a fifth of the words, the query or two categories are enough.
    ("a one", FIVE, {}, 0.5),
    ("one two", FIVE, {}, 1.0),
    ("one", FIVE, {"query": WANTED.query}, 1.0),
    ("one", FIVE, {"categories": ("Men", "Shirts")}, 1.0),
    ("one", FIVE, {"categories": ("Men", "Hats")}, 0.5),
  ],
)
def test_the_type_by_hand(name, wanted, changes, expected):
  other = {"query": "x", "categories": ("Clothing",), "name": name} | changes
  product, wanted = WANTED._replace(**other), WANTED._replace(name=wanted)
  assert shop_reward.type_score(product, wanted) == expected


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
    assert 0 <= found == shop_reward.likeness(other, one) <= 100
