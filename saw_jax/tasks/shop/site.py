"""A shop in words: WebShop's pages and actions, without its server.

Pages are those of WebShop's simple text mode, their parts joined by `[SEP]`.
What is sold and asked for is data (`shop_products`), search is BM25
(`search_index`), and the reward is WebShop's (`shop_reward`).

References:
  Yao et al., 2022. WebShop. https://arxiv.org/abs/2207.01206
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from saw_jax.tasks import base
from saw_jax.tasks.environments import Step
from saw_jax.tasks.search.index import SearchIndex
from saw_jax.tasks.shop import reward as shop_reward
from saw_jax.tasks.shop.products import Instruction, Product

SEP = " [SEP] "
NUM_RESULTS = 50  # of a search, at most
BACK, PREVIOUS, NEXT, BUY = "Back to Search", "< Prev", "Next >", "Buy Now"
SUB_PAGES = ("Description", "Features", "Reviews")
SEARCH = "search[<your query>]"  # how the admissible search is written
PAYS = ("success", "score")
LONGEST_PAGE = 16_000  # characters
_LONGEST_ARGUMENT = 300  # characters of an action's argument that are read
_ACTION = re.compile(r"\s*(search|click)\[(.*)\]\s*", re.DOTALL | re.IGNORECASE)

_TASK = """\
You are an expert agent that shops in the WebShop online store.
Your task is to: {task}
"""
_HISTORY = """\
So far you have taken {steps} step(s). The last {shown} observation(s) and the \
actions that you took: {history}
You are now at step {now} and your current observation is: {observation}
"""
_END = """\
The actions that are admissible now are: [{actions}].

It is your turn to act. First reason step by step about what you see and what \
you want, inside <think> </think> tags. Then choose one admissible action and \
write it inside <action> </action> tags."""


class Catalogue:
  """What a shop sells, and how it is found."""

  def __init__(self, products: Sequence[Product]):
    """Indexes the products.

    Args:
      products: at least one.

    Raises:
      ImportError: bm25s is missing.
    """
    self.products = tuple(products)
    self._numbers = {p.code: i for i, p in enumerate(self.products)}
    self._index = SearchIndex([_searched(p) for p in self.products])

  def product(self, code: str) -> Product:
    """Returns the product with a code, as "B000001234"."""
    return self.products[self._numbers[code]]

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


class Shop:
  """An `Environment`: one instruction a seed, done when something is bought."""

  def __init__(
    self,
    catalogue: Catalogue,
    instruct: Callable[[int], Instruction],
    *,
    max_steps: int = 15,
    max_return: float = 10.0,
    pays: str = "success",
    per_page: int = 10,
    shows_instruction: bool = True,
  ):
    """Opens no page yet: `reset` does.

    Args:
      catalogue: what is sold.
      instruct: what is asked for in the episode of a seed.
      max_steps: after which the episode is over.
      max_return: what the best purchase pays.
      pays: "success": that, or nothing if the score is below 1; "score": its
        share.
      per_page: products on a page of results.
      shows_instruction: whether each page repeats it, as in WebShop.

    Raises:
      ValueError: it pays in another way.
    """
    if pays not in PAYS:
      raise ValueError(f"unknown pay {pays!r}: {base.nearest(pays, PAYS)}")
    self.catalogue = catalogue
    self.max_return = max_return
    self.task = ""
    self._instruct, self._max_steps, self._pays = instruct, max_steps, pays
    self._per_page, self._shows_instruction = per_page, shows_instruction

  def reset(self, seed: int) -> str:
    """Starts the episode of a seed, and returns its first observation."""
    self.instruction = self._instruct(seed)
    self.task = self.instruction.text
    self.page = Page()
    self.options: dict[str, str] = {}  # that are chosen, by name
    self.results: list[Product] = []  # of the last search
    self.score = 0.0  # of the purchase
    self._steps = 0
    return self._write()

  def step(self, action: str) -> Step:
    """Takes an action: any text at all, while the episode is not done.

    Raises:
      RuntimeError: the episode is done, or none was started.
    """
    if not self.task or self.done:
      raise RuntimeError("the episode is over: reset first")
    self._steps += 1
    found = _ACTION.fullmatch(action)
    if found:
      argument = found[2].strip().lower()[:_LONGEST_ARGUMENT]
      if found[1].lower() == "click":
        self._click(argument)
      elif argument:
        self._search(argument)
    share = self.score if self._pays == "score" else float(self.score == 1)
    return Step(self._write(), self.max_return * share, self.done)

  @property
  def done(self) -> bool:
    """Whether something was bought or the steps are used up."""
    return self.page.kind == "done" or self._steps >= self._max_steps

  @property
  def listed(self) -> list[Product]:
    """The products on the current page of results."""
    first = (self.page.number - 1) * self._per_page
    return self.results[first : first + self._per_page]

  @property
  def buttons(self) -> list[str]:
    """What can be clicked, as it is written."""
    page = self.page
    if page.kind == "results":
      buttons = [BACK]
      if page.number > 1:
        buttons.append(PREVIOUS)
      if page.number * self._per_page < len(self.results):
        buttons.append(NEXT)
      return buttons + [product.code for product in self.listed]
    if page.kind == "item":
      options = self.catalogue.product(page.code).options
      values = [value for _, several in options for value in several]
      return [BACK, PREVIOUS, *dict.fromkeys(values), *SUB_PAGES, BUY]
    return [BACK, PREVIOUS] if page.kind == "sub" else []

  @property
  def admissible_actions(self) -> list[str]:
    """What would do something now, in a fixed order."""
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
    if page.kind == "item" and self._choose(name):
      return
    if name == BACK.lower():
      self.page = Page()
    elif name == NEXT.lower():
      self.page = page._replace(number=page.number + 1)
    elif name == PREVIOUS.lower():
      self._go_back()
    elif page.kind == "results":
      self.page = page._replace(kind="item", code=name.upper())
    elif name == BUY.lower():
      self.score = shop_reward.score(
        self.catalogue.product(page.code),
        self.catalogue.product(self.instruction.code),
        self.instruction,
        self.options,
      )
      self.page = Page("done")
    else:
      self.page = page._replace(kind="sub", sub=name.capitalize())

  def _choose(self, value: str) -> bool:
    """Chooses an option; of two with this value the later, as in WebShop."""
    for name, values in reversed(
      self.catalogue.product(self.page.code).options
    ):
      if value in values:
        self.options[name] = value
        return True
    return False

  def _go_back(self) -> None:
    page = self.page
    if page.kind == "results":
      self.page = page._replace(number=page.number - 1)
    elif page.kind == "item":
      self.page = Page("results", page.query, page.number)
      self.options = {}
    else:
      self.page = page._replace(kind="item", sub="")

  def _write(self) -> str:
    page = self.page
    head = ["Instruction:", self.task] if self._shows_instruction else []
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
      parts = [*head, BACK, PREVIOUS]
      product = self.catalogue.product(page.code)
      parts += (
        self._item(product) if page.kind == "item" else self._sub(product)
      )
    return SEP.join(parts)[:LONGEST_PAGE]

  def _item(self, product: Product) -> list[str]:
    parts = []
    for name, values in product.options:
      parts += [name, *values]
    parts += [product.name, f"Price: {product.price_tag}"]
    return [*parts, f"Rating: {product.rating}", *SUB_PAGES, BUY]

  def _sub(self, product: Product) -> list[str]:
    if self.page.sub == "Description":
      return [product.description or "No Description"]
    if self.page.sub == "Features":
      return list(product.features) or ["No Features"]
    return ["No Reviews"]


def strip_instruction(page: str, instruction: str) -> str:
  """Returns a page without the instruction that it repeats.

  Args:
    page: an observation.
    instruction: of the episode.

  Returns:
    What follows the instruction; the page if it does not repeat it.
  """
  head = f"Instruction:{SEP}{instruction}{SEP}"
  return page.partition(head)[2] if head in page else page


def make_prompt(
  task: str,
  observation: str,
  admissible_actions: Sequence[str],
  history: Sequence[tuple[str, str]] = (),
  *,
  shown: int = 2,
) -> str:
  """Writes what the policy is asked at a step.

  Args:
    task: what is asked for.
    observation: the current page, without the instruction.
    admissible_actions: what would do something.
    history: every earlier page of the episode with the action taken.
    shown: how many of the last ones are shown.

  Returns:
    The text of one message of the user; without history a shorter one.
  """
  text = _TASK.format(task=task)
  if history:
    first = max(len(history) - shown, 0)
    entries = ", ".join(
      f"[Observation {k}: '{seen}', Action {k}: '{action}']"
      for k, (seen, action) in enumerate(history[first:], first + 1)
    )
    text += _HISTORY.format(
      steps=len(history),
      shown=len(history) - first,
      history=entries,
      now=len(history) + 1,
      observation=observation,
    )
  else:
    text += f"Your current observation is: {observation}\n"
  actions = ", ".join(f"'{action}'" for action in admissible_actions)
  return text + _END.format(actions=actions)


def _searched(product: Product) -> str:
  """What of a product is searched: as WebShop indexes it."""
  options = ", ".join(
    f"{name}: {', '.join(values)}" for name, values in product.options
  )
  parts = (product.name, product.description, *product.features[:1], options)
  return " ".join(parts)
