"""A shop in words: the pages and actions of WebShop's simple text mode.

References:
  Yao et al., 2022. WebShop. https://arxiv.org/abs/2207.01206
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from saw_jax.tasks import base, environments
from saw_jax.tasks.environments import BoundedEnvironment
from saw_jax.tasks.search_index import SearchIndex
from saw_jax.tasks.shop import reward as shop_reward
from saw_jax.tasks.shop.products import Instruction, Product

SEP = " [SEP] "
NUM_RESULTS = 50  # of a search, at most
BACK, PREVIOUS, NEXT, BUY = "Back to Search", "< Prev", "Next >", "Buy Now"
SUB_PAGES = ("Description", "Features", "Reviews")
SEARCH = "search[<your query>]"  # how the admissible search is written
LONGEST_PAGE = 16_000  # characters
_LONGEST_ARGUMENT = 300  # characters of an action's argument that are read
_ACTION = re.compile(r"\s*(search|click)\[(.*)\]\s*", re.DOTALL | re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class ShopConfig:
  """What is sold, which episodes there are, and how one is asked.

  With `products`, `attributes` and `instructions`, which are read together, the
  shop is that of WebShop's files; else it is drawn.
  """

  num_products: int = 150  # of the shop; of the files: 0 for all
  seed: int = 0  # of the shop that is drawn
  num_train: int = 8192  # episodes of the shop that is drawn
  num_test: int = 500  # those of the files are 500 in WebShop
  products: str = ""  # path of items_shuffle.json
  attributes: str = ""  # path of items_ins_v2.json
  instructions: str = ""  # path of items_human_ins.json
  order: str = ""  # path of human_goals.json, if it decides on the split
  max_steps: int = 15
  reward: float = 10.0  # of a perfect purchase
  pays: str = "success"  # or "score"; see `Shop`
  per_page: int = 10
  shows_instruction: bool = True  # on each page
  form: str = "english"  # of prompts and replies; or "compact"
  shown: int = 2  # earlier steps in a prompt, where they fit

  def __post_init__(self):
    base.check_choice("form", self.form, environments.FORMS)
    base.check_choice("pays", self.pays, ("success", "score"))
    base.check_positive(self, "num_train", "num_test", "max_steps", "per_page")
    files = [self.products, self.attributes, self.instructions]
    if any(files) and not all(files):
      raise ValueError(
        "WebShop's files are read together: give products, attributes and "
        "instructions, or none of them."
      )


class Catalogue:
  """What a shop sells, and how it is found."""

  def __init__(self, products: Sequence[Product]):
    self.products = tuple(products)
    self.by_code = {product.code: product for product in products}
    self._index = SearchIndex([_searched(p) for p in self.products])

  def search(self, query: str) -> list[Product]:
    """Returns the products that a query finds, the best first."""
    found = self._index.find(query[:_LONGEST_ARGUMENT], NUM_RESULTS)
    return [self.products[i] for i in found]


class Page(NamedTuple):
  """Where one is in the shop."""

  kind: str = "start"  # or results, item, sub, done
  query: str = ""
  number: int = 1  # of the page of results, from 1 on
  code: str = ""  # of the product
  sub: str = ""  # one of SUB_PAGES


class Shop(BoundedEnvironment):
  """An `Environment`: one instruction a seed, done when something is bought.

  With `pays="success"` a perfect purchase pays the `reward` and any other
  nothing; with "score" each pays the share that is its score.

  Attributes:
    instruction: what is asked for.
    page: where one is.
    options: that are chosen, by name.
    results: of the last search.
    score: of the purchase, from 0 to 1.
  """

  def __init__(
    self,
    catalogue: Catalogue,
    instruct: Callable[[int], Instruction],
    config: ShopConfig,
  ):
    super().__init__(config.max_steps, config.reward)
    self.catalogue, self._instruct, self._config = catalogue, instruct, config

  def _start(self, seed: int) -> str:
    self.instruction = self._instruct(seed)
    self.task = self.instruction.text
    self.page = Page()
    self.options: dict[str, str] = {}
    self.results: list[Product] = []
    self.score = 0.0
    return self._write()

  def _act(self, action: str) -> tuple[str, float, bool]:
    found = _ACTION.fullmatch(action)
    if found:
      argument = found[2].strip().lower()[:_LONGEST_ARGUMENT]
      if found[1].lower() == "click":
        self._click(argument)
      elif argument:
        self._search(argument)
    share = (
      self.score if self._config.pays == "score" else float(self.score == 1)
    )
    return self._write(), self.max_return * share, self.page.kind == "done"

  @property
  def listed(self) -> list[Product]:
    """The products on the current page of results."""
    first = (self.page.number - 1) * self._config.per_page
    return self.results[first : first + self._config.per_page]

  @property
  def buttons(self) -> list[str]:
    """What can be clicked, as it is written."""
    page = self.page
    if page.kind == "results":
      back = [PREVIOUS] if page.number > 1 else []
      is_last = page.number * self._config.per_page >= len(self.results)
      codes = [product.code for product in self.listed]
      return [BACK, *back, *([] if is_last else [NEXT]), *codes]
    if page.kind == "item":
      options = self.catalogue.by_code[page.code].options
      values = [value for _, several in options for value in several]
      return [BACK, PREVIOUS, *dict.fromkeys(values), *SUB_PAGES, BUY]
    return [BACK, PREVIOUS] if page.kind == "sub" else []

  @property
  def admissible_actions(self) -> list[str]:
    if self.page.kind == "start":
      return [SEARCH]
    return [f"click[{button.lower()}]" for button in self.buttons]

  def _search(self, query: str) -> None:
    self.results = self.catalogue.search(query)
    self.page, self.options = Page("results", query), {}

  def _click(self, name: str) -> None:
    page = self.page
    if name not in [button.lower() for button in self.buttons]:
      return
    if page.kind == "item":
      product = self.catalogue.by_code[page.code]
      # Of two options with this value the later, as in WebShop.
      named = {v: option for option, vs in product.options for v in vs}
      if name in named:
        self.options[named[name]] = name
        return
    if name == BACK.lower():
      self.page = Page()
    elif name == NEXT.lower():
      self.page = page._replace(number=page.number + 1)
    elif name == PREVIOUS.lower() and page.kind == "results":
      self.page = page._replace(number=page.number - 1)
    elif name == PREVIOUS.lower() and page.kind == "item":
      self.page, self.options = Page("results", page.query, page.number), {}
    elif name == PREVIOUS.lower():
      self.page = page._replace(kind="item", sub="")
    elif page.kind == "results":
      self.page = page._replace(kind="item", code=name.upper())
    elif name == BUY.lower():
      wanted = self.catalogue.by_code[self.instruction.code]
      self.score = shop_reward.score(
        product, wanted, self.instruction, self.options
      )
      self.page = Page("done")
    else:
      self.page = page._replace(kind="sub", sub=name.capitalize())

  def _write(self) -> str:
    page = self.page
    head = ["Instruction:", self.task] if self._config.shows_instruction else []
    if page.kind == "start":
      parts = ["WebShop", *head, "Search"] if head else ["Search"]
    elif page.kind == "done":
      parts = ["Thank you for shopping with us!"]
      parts += ["Your score (min 0.0, max 1.0)", str(round(self.score, 4))]
    elif page.kind == "results":
      turns = [b for b in self.buttons[1:3] if b in (PREVIOUS, NEXT)]
      total = f"Page {page.number} (Total results: {len(self.results)})"
      parts = [*head, BACK, total, *turns]
      for product in self.listed:
        parts += [product.code, product.name, product.price_tag]
    else:
      product = self.catalogue.by_code[page.code]
      content = {
        "": _describe(product),
        "Description": [product.description or "No Description"],
        "Features": list(product.features) or ["No Features"],
        "Reviews": ["No Reviews"],
      }
      parts = [*head, BACK, PREVIOUS, *content[page.sub]]
    return SEP.join(parts)[:LONGEST_PAGE]


def _describe(product: Product) -> list[str]:
  options = [
    text for name, values in product.options for text in (name, *values)
  ]
  about = [product.name, f"Price: {product.price_tag}"]
  return [*options, *about, f"Rating: {product.rating}", *SUB_PAGES, BUY]


def strip_instruction(page: str, instruction: str) -> str:
  """Returns a page without the instruction that it may repeat."""
  head = f"Instruction:{SEP}{instruction}{SEP}"
  return page.partition(head)[2] if head in page else page


def _searched(product: Product) -> str:
  """What of a product is searched: as WebShop indexes it."""
  options = ", ".join(
    f"{name}: {', '.join(values)}" for name, values in product.options
  )
  parts = (product.name, product.description, *product.features[:1], options)
  return " ".join(parts)
