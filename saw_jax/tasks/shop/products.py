"""What a shop sells and what is asked for: drawn from a seed, or WebShop's own.

A drawn product's name says its kind and two attributes; colour and size are
options. The files are those of WebShop (https://arxiv.org/abs/2207.01206).
"""

import itertools
import pathlib
import random
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from saw_jax.tasks import base, row_files
from saw_jax.tasks import draws as draws_lib
from saw_jax.tasks.draws import Draws

NO_LIMIT = 1_000_000.0  # dollars: of an instruction without a price
_SHUFFLE_SEED = 233  # with which WebShop orders its instructions
_LONGEST_CODE = 10
_MOST_DRAWS = 10_000  # of an instruction, of which one in five is of a test

COLORS = ("black", "blue", "green", "grey", "pink", "red", "white", "yellow")
SIZES = ("small", "medium", "large", "x-large")
_CLOTH = ("cotton", "soft", "washable", "warm", "slim fit", "long sleeve")
_HOME = ("wooden", "modern", "sturdy", "easy clean", "foldable", "heavy duty")
_TECH = ("wireless", "portable", "fast", "waterproof", "light", "long lasting")
_CLOTHES = ("shirt", "jacket", "sweater", "dress")
_WEAR = {"color": COLORS, "size": SIZES}
_ROOM = {"color": COLORS}
# Kind of product -> its category, its options, its attributes.
KINDS = (
  dict.fromkeys(_CLOTHES, ("clothing", _WEAR, _CLOTH))
  | dict.fromkeys(("table", "chair", "shelf"), ("home", _ROOM, _HOME))
  | dict.fromkeys(("speaker", "lamp", "camera"), ("electronics", {}, _TECH))
)


class Product(NamedTuple):
  """One thing that is sold."""

  code: str  # upper case, as "B000001234"
  name: str
  query: str  # what kind of thing it is, as people search for it
  categories: tuple[str, ...]  # from the general to the special
  price: float  # dollars
  price_tag: str  # as it is shown
  description: str
  features: tuple[str, ...]
  attributes: tuple[str, ...]
  options: tuple[tuple[str, tuple[str, ...]], ...]  # names, values; lower case
  rating: str = "N.A."


class Instruction(NamedTuple):
  """What somebody wants, and the product they had in mind."""

  text: str
  code: str  # of that product
  attributes: tuple[str, ...]
  options: tuple[str, ...]  # values
  price_limit: float  # dollars; NO_LIMIT: none is given


# What a drawn product can be: kinds with two of their attributes.
_NAMES = tuple(
  (kind, pair)
  for kind, (_, _, attributes) in KINDS.items()
  for pair in itertools.permutations(attributes, 2)
  if pair[0] < pair[1]
)
MOST_PRODUCTS = len(_NAMES)


def draw_products(count: int, *, seed: int = 0) -> tuple[Product, ...]:
  """Draws the products of a shop, no two with the same name."""
  if not 1 <= count <= MOST_PRODUCTS:
    most = f"a drawn shop has 1 to {MOST_PRODUCTS} products"
    raise ValueError(f"{most}, not {count}.")
  draws = Draws("shop", seed)
  chosen = draws.sample(_NAMES, count)
  codes = draws.sample(range(10_000), count)
  products = []
  for (kind, attributes), number in zip(chosen, codes, strict=True):
    category, options, _ = KINDS[kind]
    price = 10.0 + 10.0 * draws.chance(0.5) + draws.choice(range(70))
    options = [(o, tuple(draws.sample(vs, 3))) for o, vs in options.items()]
    name = f"{' '.join(attributes)} {kind}"
    code, categories = f"B00000{number:04d}", (category, f"{kind}s", kind)
    about = (f"a {name}", attributes, attributes, tuple(options))
    products.append(
      Product(code, name, kind, categories, price, f"${price:.1f}", *about)
    )
  return tuple(products)


def draw_instruction(
  products: Sequence[Product], split: str, seed: int
) -> Instruction:
  """Draws what is asked for in one episode of "train" or "test"."""
  base.check_split(split, ("train", "test"))
  draws = Draws("instruction", split, seed)
  for _ in range(_MOST_DRAWS):
    product = draws.choice(products)
    options = tuple(draws.choice(values) for _, values in product.options)
    if draws_lib.split_of(repr((product.name, options))) == split:
      break
  else:
    few = f"a shop of {len(products)} product{'s' * (len(products) > 1)}"
    raise ValueError(f"{few} has nothing to ask for in the split {split!r}.")
  text = f"i need a {product.name}"
  for (name, _), value in zip(product.options, options, strict=True):
    text += f", {name}: {value}"
  text, limit = _priced(text, product.price, draws)
  return Instruction(text, product.code, product.attributes, options, limit)


def _priced(text: str, price: float, draws: Draws) -> tuple[str, float]:
  """Allows the higher of two of the next four multiples of 10 dollars."""
  above = [limit for limit in range(10, 1000, 10) if limit > price][:4]
  if len(above) < 2:
    return text, NO_LIMIT
  limit = float(max(draws.sample(above, 2)))
  return f"{text}, and price lower than {limit:.2f} dollars", limit


def read_products(
  products: str | pathlib.Path,
  attributes: str | pathlib.Path,
  instructions: str | pathlib.Path,
  order: str | pathlib.Path = "",
  num_products: int = 0,
  num_test: int = 500,
) -> tuple[tuple[Product, ...], dict[str, list[Instruction]]]:
  """Reads WebShop's files, which `ShopConfig` tells about.

  A price range counts as its middle. An instruction's price limit is drawn from
  a seed made of its product. The test split is the first `num_test` texts of
  `order`, or of WebShop's shuffle.
  """
  known = row_files.read_object(attributes)
  asked = row_files.read_object(instructions)
  goods: dict[str, Product] = {}
  found: list[Instruction] = []
  rows = row_files.parse_rows(
    products, lambda row: _read_product(row, known), "product"
  )
  for product in itertools.islice(rows, num_products or None):
    if product is None or product.code in goods:
      continue
    goods[product.code] = product
    try:
      found += _read_instructions(product, asked.get(product.code, []))
    except ValueError as error:
      where = f"{instructions}, product {product.code}"
      raise ValueError(f"{where}: {error}") from error
  if not goods:
    raise ValueError(f"{products}: there is no product in it.")
  if order:
    first = list(itertools.islice(row_files.read_rows(order), num_test))
    tests = set(map(_plain, row_files.texts({str(order): first}, str(order))))
    parts = {"test": [], "train": []}
    for one in found:
      parts["test" if _plain(one.text) in tests else "train"].append(one)
  else:
    random.Random(_SHUFFLE_SEED).shuffle(found)
    parts = {"test": found[:num_test], "train": found[num_test:]}
  for split, chosen in parts.items():
    if not chosen:
      raise ValueError(
        f"{instructions}: no instruction is left for the split {split!r}; "
        f"there are {len(found)}, and num_test is {num_test}."
      )
  return tuple(goods.values()), parts


def _read_product(row: Any, known: Mapping[str, Any]) -> Product | None:
  """One product; None if WebShop leaves it out."""
  field = row_files.field
  code = field(row, "asin", str)
  if code == "nan" or len(code) > _LONGEST_CODE or not code:
    return None
  kinds = (list, str, type(None))
  features = {"features": field(row, "small_description", kinds) or []}
  entry = known.get(code, {})
  if not isinstance(entry, dict):
    raise ValueError(f"the attributes of {code} are not an object")
  entry = {"attributes": ["DUMMY_ATTR"], **entry}
  price, tag = _read_price(row.get("pricing"))
  categories = field(row, "product_category", str).split("\u203a")
  asked = {"customization_options": row.get("customization_options") or {}}
  asked = field(asked, "customization_options", dict)
  options = []
  for name, values in asked.items():
    if values is not None:
      texts = [field(value, "value", str) for value in field(asked, name, list)]
      texts = [t.strip().replace("/", " | ").lower() for t in texts]
      options.append((name.lower(), tuple(filter(None, texts))))
  return Product(
    code=code.upper(),
    name=field(row, "name", str),
    query=field(row, "query", str).lower().strip(),
    categories=tuple(map(str.strip, categories)),
    price=price,
    price_tag=tag,
    description=field(row, "full_description", (str, type(None))) or "",
    features=row_files.texts(features, "features"),
    attributes=row_files.texts(entry, "attributes"),
    options=tuple(options),
    rating=str(row.get("average_rating") or "N.A."),
  )


def _read_price(pricing: Any) -> tuple[float, str]:
  """Price and tag of "$5.00" or "$5.00$9.00"; without any, WebShop says 100."""
  if not pricing:
    return 100.0, "$100.0"
  try:
    prices = [float(re.sub(r"[^\d.]", "", p)) for p in pricing.split("$")[1:3]]
    return statistics.fmean(prices), " to ".join(f"${p}" for p in prices)
  except (ValueError, AttributeError) as error:  # no number, or no text
    raise ValueError(
      f"field 'pricing' is {str(pricing)[:40]!r}, which is no price"
    ) from error


def _read_instructions(product: Product, rows: Any) -> Iterator[Instruction]:
  if not isinstance(rows, list):
    raise ValueError("not a list of instructions")
  for number, row in enumerate(rows):
    text = row_files.field(row, "instruction", str).strip().strip(".")
    attributes = row_files.texts(row, "instruction_attributes")
    options = row_files.field(row, "instruction_options", (list, dict))
    if isinstance(options, dict):
      options = list(options.values())
    options = row_files.texts({"options": options}, "options")
    if attributes:  # WebShop leaves others out: nothing to be right about.
      draws = Draws("limit", product.code, number)
      text, limit = _priced(text, product.price, draws)
      yield Instruction(text, product.code, attributes, options, limit)


def _plain(text: str) -> str:
  """An instruction as `human_goals.json` has it: no price, no quotes."""
  text = text.lower().partition(", and price lower than")[0]
  return re.sub(r"[\"']", "", text).strip().strip(".").strip()
