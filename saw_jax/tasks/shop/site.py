"""A shop in words: the pages and actions of WebShop's simple text mode.

References:
  Yao et al., 2022. WebShop. https://arxiv.org/abs/2207.01206
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from saw_jax.tasks import base, environments
from saw_jax.tasks.environments import Environment
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
    environments.check_together(self, "products", "attributes", "instructions")


class Catalogue(SearchIndex):
  """What a shop sells, and how it is found."""

  def __init__(self, products: Sequence[Product]):
    self.products = tuple(products)
    self.by_code = {product.code: product for product in products}
    texts = []
    for one in products:  # as WebShop indexes it
      options = [f"{name}: {', '.join(vs)}" for name, vs in one.options]
      about = (one.name, one.description, *one.features[:1])
      texts.append(" ".join([*about, ", ".join(options)]))
    super().__init__(self.products, texts)

  def search(self, query: str) -> list[Product]:
    return self.find(query, NUM_RESULTS)


class Page(NamedTuple):
  """Where one is in the shop."""

  kind: str = "start"  # or results, item, sub, done
  query: str = ""
  number: int = 1  # of the page of results, from 1 on
  code: str = ""  # of the product
  options: Mapping[str, str] = {}  # that are chosen, by name
  sub: str = ""  # one of SUB_PAGES


class Shop(Environment):
  """One instruction a seed, done when something is bought.

  With `pays="success"` a perfect purchase pays the `reward` and any other
  nothing; with "score" each pays the share that is its score.
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
    self.results, self.score = [], 0.0
    return self._show(Page())

  def _act(self, action: str) -> tuple[str, float, bool]:
    found, page = _ACTION.fullmatch(action), self.page
    if found:
      argument = found[2].strip().lower()[:_LONGEST_ARGUMENT]
      if found[1].lower() == "click":
        page = self.links.get(argument, page)
      elif argument:
        self.results = self.catalogue.search(argument)
        page = Page("results", argument)
    observation = self._show(page)
    is_success = self._config.pays == "success"
    share = float(self.score == 1) if is_success else self.score
    return observation, self.max_return * share, page.kind == "done"

  @property
  def admissible_actions(self) -> list[str]:
    if self.page.kind == "start":
      return [SEARCH]
    return [f"click[{name}]" for name in self.links]

  @property
  def listed(self) -> list[Product]:
    """The products on the current page of results."""
    first = (self.page.number - 1) * self._config.per_page
    return self.results[first : first + self._config.per_page]

  def _find_links(self) -> dict[str, Page]:
    page, links, values = self.page, {BACK: Page()}, {}
    if page.kind == "results":
      if page.number > 1:
        links[PREVIOUS] = page._replace(number=page.number - 1)
      if page.number * self._config.per_page < len(self.results):
        links[NEXT] = page._replace(number=page.number + 1)
      for product in self.listed:
        links[product.code] = Page("item", *page[1:3], product.code)
    elif page.kind == "item":
      # Of two options with one value the later, as in WebShop.
      values = {
        value: page._replace(options={**page.options, name: value})
        for name, several in self.product.options
        for value in several
      }
      links[PREVIOUS] = Page("results", *page[1:3])
      links |= values
      links |= {sub: page._replace(kind="sub", sub=sub) for sub in SUB_PAGES}
      links[BUY] = page._replace(kind="done")
    elif page.kind == "sub":
      links[PREVIOUS] = page._replace(kind="item", sub="")
    else:
      return {}
    return {name.lower(): to for name, to in links.items()} | values

  def _show(self, page: Page) -> str:
    """Goes to a page, and returns what it says."""
    self.page, self.product = page, self.catalogue.by_code.get(page.code)
    self.links = self._find_links()
    head = ["Instruction:", self.task] if self._config.shows_instruction else []
    if page.kind == "start":
      parts = ["WebShop", *head, "Search"] if head else ["Search"]
    elif page.kind == "done":
      wanted = self.catalogue.by_code[self.instruction.code]
      bought = self.product, wanted, self.instruction
      self.score = shop_reward.score(*bought, page.options)
      parts = ["Thank you for shopping with us!"]
      parts += ["Your score (min 0.0, max 1.0)", str(round(self.score, 4))]
    elif page.kind == "results":
      total = f"Page {page.number} (Total results: {len(self.results)})"
      turns = [b for b in (PREVIOUS, NEXT) if b.lower() in self.links]
      parts = [*head, BACK, total, *turns]
      for product in self.listed:
        parts += [product.code, product.name, product.price_tag]
    else:
      product = self.product
      options = [x for name, vs in product.options for x in (name, *vs)]
      about = [product.name, f"Price: {product.price_tag}"]
      about += [f"Rating: {product.rating}", *SUB_PAGES, BUY]
      content = {
        "": [*options, *about],
        "Description": [product.description or "No Description"],
        "Features": product.features or ["No Features"],
        "Reviews": ["No Reviews"],
      }
      parts = [*head, BACK, PREVIOUS, *content[page.sub]]
    return SEP.join(parts)[:LONGEST_PAGE]
