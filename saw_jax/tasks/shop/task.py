"""The shop as a task: which episodes there are, and how one is asked.

Prompts and replies are WebShop's, in English with tags, or compact: the
instruction, the last actions, and the page.
"""

import functools
import re

from saw_jax.tasks import environments
from saw_jax.tasks.draws import Draws
from saw_jax.tasks.environments import History, Situation
from saw_jax.tasks.shop import products as shop_products
from saw_jax.tasks.shop import site as shop
from saw_jax.tasks.shop.expert import expert
from saw_jax.tasks.shop.site import ShopConfig

__all__ = ["PIECES", "ShopConfig", "ShopTask"]

_LONGEST_ACTION = 300
_ACTION = re.compile(r"(search|click)\[[^\[\]]+\]")
_SHARED_BY_ALL = " [SEP] Description [SEP] Features [SEP] Reviews [SEP] Buy Now"
_WORDS = sorted(
  {*shop_products.COLORS, *shop_products.SIZES, *shop_products.KINDS}
  | {one for _, _, several in shop_products.KINDS.values() for one in several}
  | {name for _, options, _ in shop_products.KINDS.values() for name in options}
)
# The pieces of drawn shops: of instructions, of actions, and of pages.
PIECES = (
  *("search[", "click[", "]", "|", ">", ";", " ", "i need a ", ", ", ": "),
  ", and price lower than ",
  *(f"{limit}.00 dollars" for limit in range(20, 140, 10)),
  *_WORDS,
  *(f" {word}" for word in _WORDS),
  *(f"{number:02d}" for number in range(100)),
  *("0", "1", "2", "3", "4", "5", "6", "7", "8", "9"),
  *("b00000", " [SEP] B00000", " [SEP] ", " [SEP] $", ".0"),
  *("back to search", "< prev", "next >", "buy now"),
  *("description", "features", "reviews"),
  *("Search", "Back to Search", "Back to Search [SEP] Page "),
  *(" (Total results: ", ")", " [SEP] Next >", " [SEP] < Prev"),
  *(" [SEP] Price: $", _SHARED_BY_ALL, " [SEP] Rating: N.A." + _SHARED_BY_ALL),
  *(" [SEP] a", " [SEP] No Reviews", "WebShop", " [SEP] Instruction:"),
  "Instruction:",
  "Thank you for shopping with us! [SEP] Your score (min 0.0, max 1.0) [SEP] ",
  "0.",
)


class ShopTask(environments.FormTask):
  """Purchases in one shop, another instruction each seed."""

  name = "shop"
  expert = staticmethod(expert)
  _role = "shops in the WebShop online store"
  _subject = "what you see and what you want"
  _longest_prompt = 13_000

  def __init__(self, config: ShopConfig | None = None):
    config = config or ShopConfig()
    self._catalogue, self._instructions = _open(config)
    sizes = {name: len(several) for name, several in self._instructions.items()}
    super().__init__(config, sizes)

  def __reduce__(self):
    # Products and index are made again where they are needed: they may be far
    # larger than what they are made of.
    return type(self), (self.config,)

  def make(self, split: str) -> shop.Shop:
    self.num_episodes(split)  # raises if there is no such split
    if self._instructions:
      instruct = self._instructions[split].__getitem__
    else:
      instruct = functools.partial(
        shop_products.draw_instruction, self._catalogue.products, split
      )
    return shop.Shop(self._catalogue, instruct, self.config)

  def mistake(self, situation: Situation, draws: Draws) -> str:
    """Returns any admissible action; a search is for another product."""
    action = draws.choice(situation.actions)
    if action != shop.SEARCH:
      return action
    query = draws.choice(self._catalogue.products).name.lower()
    return f"search[{query[:200]}]"

  def _english(self, situation: Situation, history: History, shown: int) -> str:
    page = shop.strip_instruction(situation.observation, situation.task)
    seen = [
      (shop.strip_instruction(text, situation.task), action)
      for text, action in history
    ]
    # The shortest form does not tell that there were steps.
    return super()._english(
      situation._replace(observation=page), seen if shown else (), shown
    )

  def _compact(self, situation: Situation, history: History, shown: int) -> str:
    page = shop.strip_instruction(situation.observation, situation.task)
    actions = ";".join(action for _, action in history[len(history) - shown :])
    return f"{situation.task}|{actions}|{page}>"

  def _is_action(self, text: str) -> bool:
    return len(text) <= _LONGEST_ACTION and bool(_ACTION.fullmatch(text))


@functools.lru_cache(maxsize=4)
def _open(config: ShopConfig):
  """The catalogue, and the instructions of files, if any; once a process."""
  if not config.products:
    products = shop_products.draw_products(
      config.num_products, seed=config.seed
    )
    return shop.Catalogue(products), {}
  products, instructions = shop_products.read_products(
    config.products,
    config.attributes,
    config.instructions,
    order=config.order,
    num_products=config.num_products,
    num_test=config.num_test,
  )
  return shop.Catalogue(products), instructions
