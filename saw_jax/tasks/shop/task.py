"""The shop as a task: which episodes there are, and how one is asked."""

import functools
import itertools
import re
from collections.abc import Iterator

from saw_jax.tasks import base, environments, panels
from saw_jax.tasks.draws import Draws
from saw_jax.tasks.environments import History, Situation
from saw_jax.tasks.shop import products as shop_products
from saw_jax.tasks.shop import reward as shop_reward
from saw_jax.tasks.shop import site as shop
from saw_jax.tasks.shop.site import ShopConfig

_LONGEST_ACTION = 300
_MOST_CHOICES = 20_000  # combinations of options that the expert tries
_ACTION = re.compile(r"(search|click)\[[^\[\]]+\]")
# The pieces of compact prompts, of instructions, of actions, and of pages.
PIECES = base.asset(__file__, "pieces.json")


def _expert(env: shop.Shop, draws: Draws) -> Iterator[str]:
  """Yields what to do next, whoever took the last step; it never ends."""
  asked = env.instruction
  wanted = env.catalogue.by_code[asked.code]

  @functools.cache
  def choose(product: shop_products.Product) -> tuple | None:
    """The fewest options with which buying it scores 1; none: it cannot."""
    if product.price > asked.price_limit:
      return None
    several = []
    for name, values in product.options:
      # Those that are asked for, or all if none is word for word.
      likely = [value for value in values if value in asked.options] or values
      several.append([None, *((name, value) for value in likely)])
    tried = itertools.islice(itertools.product(*several), _MOST_CHOICES)
    choices = [tuple(filter(None, choice)) for choice in tried]
    for choice in sorted(choices, key=len):
      if shop_reward.score(product, wanted, asked, dict(choice)) == 1:
        return choice
    return None

  # The shortest of some queries that finds something to buy.
  short = " ".join((*asked.attributes, wanted.query))
  texts = (short, wanted.name, asked.text)
  queries = [text.lower().strip()[:200].strip() for text in texts]
  good = (
    q
    for q in filter(None, queries)
    if any(choose(one) is not None for one in env.catalogue.search(q))
  )
  query = next(good, queries[1])
  while True:
    page = env.page
    if page.kind == "start":
      yield f"search[{query}]"
      continue
    choice = choose(env.product) if env.product else None
    if page.query != query:
      name = shop.BACK
    elif page.kind == "results":
      codes = [one.code for one in env.listed if choose(one) is not None]
      names = [*codes, shop.NEXT, shop.PREVIOUS, shop.BACK]
      name = next(name for name in names if name.lower() in env.links)
    elif page.kind == "sub" or choice is None:
      name = shop.PREVIOUS
    else:
      # What else was chosen does no harm.
      left = [value for key, value in choice if page.options.get(key) != value]
      name = [*left, shop.BUY][0]
    yield f"click[{name.lower()}]"


class ShopTask(environments.FormTask):
  """Purchases in one shop, another instruction each seed."""

  name = "shop"
  expert = staticmethod(_expert)
  panel = panels.walked
  _role = "shops in the WebShop online store"
  _subject = "what you see and what you want"
  _longest_prompt = 13_000

  def __init__(self, config: ShopConfig | None = None):
    config = config or ShopConfig()
    self._catalogue, self._instructions = _open(config)
    super().__init__(config, self._instructions)

  def __reduce__(self):
    # Products and index are made again where they are needed: they may be far
    # larger than what they are made of.
    return type(self), (self.config,)

  def _make(self, split: str) -> shop.Shop:
    draw, catalogue = shop_products.draw_instruction, self._catalogue
    instruct = functools.partial(draw, catalogue.products, split)
    if self._instructions:
      instruct = self._instructions[split].__getitem__
    return shop.Shop(catalogue, instruct, self.config)

  def mistake(self, situation: Situation, draws: Draws) -> str:
    action = draws.choice(situation.actions)
    if action != shop.SEARCH:
      return action
    query = draws.choice(self._catalogue.products).name.lower()
    return f"search[{query[:200]}]"

  def prompts(self, situation: Situation, history: History) -> Iterator[str]:
    # Pages are told without the instruction that they may repeat.
    head = f"Instruction:{shop.SEP}{situation.task}{shop.SEP}"

    def strip(page: str) -> str:
      return page.partition(head)[2] if head in page else page

    page = strip(situation.observation)
    seen = [(strip(page), action) for page, action in history]
    return super().prompts(situation._replace(observation=page), seen)

  def _english(self, situation: Situation, history: History, shown: int) -> str:
    # The shortest form does not tell that there were steps.
    return super()._english(situation, history if shown else (), shown)

  def _is_action(self, text: str) -> bool:
    return len(text) <= _LONGEST_ACTION and bool(_ACTION.fullmatch(text))


@functools.lru_cache(maxsize=4)
def _open(config: ShopConfig):
  """The catalogue, and the instructions of files, if any; once a process."""
  c = config
  if not c.products:
    products = shop_products.draw_products(c.num_products, seed=c.seed)
    for split in ("train", "test"):  # there has to be something to ask for
      shop_products.draw_instruction(products, split, 0)
    return shop.Catalogue(products), {}
  files = (c.products, c.attributes, c.instructions, c.order)
  sizes = c.num_products, c.num_test
  products, instructions = shop_products.read_products(*files, *sizes)
  return shop.Catalogue(products), instructions
