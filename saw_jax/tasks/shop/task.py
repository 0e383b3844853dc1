"""The shop as a task: which episodes there are, and how one is asked.

Two forms of prompts and replies: WebShop's, in English with tags, and a compact
one for policies that start from nothing, of few tokens in the tokenizer `shop`:
the instruction, the last actions, and the page; a reply is the action alone.
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Iterator, Sequence

from saw_jax.tasks import base, environments
from saw_jax.tasks.draws import Draws
from saw_jax.tasks.environments import Reply, Situation, Transition
from saw_jax.tasks.shop import products as shop_products
from saw_jax.tasks.shop import site as shop
from saw_jax.tasks.shop.expert import Expert

__all__ = ["PIECES", "ShopConfig", "ShopTask"]

_FORMS = ("english", "compact")
_LONGEST_PROMPT = 13_000  # characters; a longer one goes without history
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
  pays: str = "success"  # or "score"; see `shop.Shop`
  per_page: int = 10
  shows_instruction: bool = True  # on each page
  form: str = "english"  # of prompts and replies; or "compact"
  shown: int = 2  # earlier steps in a prompt, where they fit

  def __post_init__(self):
    for name, known in (("form", _FORMS), ("pays", shop.PAYS)):
      value = getattr(self, name)
      if value not in known:
        raise ValueError(
          f"unknown {name} {value!r}: {base.nearest(value, known)}"
        )
    for name in ("num_train", "num_test", "max_steps", "per_page"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name} is not positive: {getattr(self, name)}.")
    files = [self.products, self.attributes, self.instructions]
    if any(files) and not all(files):
      raise ValueError(
        "WebShop's files are read together: give products, attributes and "
        "instructions, or none of them."
      )


class ShopTask(environments.AgentTask):
  """Purchases in one shop, another instruction each seed."""

  name = "shop"

  def __init__(self, config: ShopConfig | None = None):
    """Draws or reads what is sold.

    Args:
      config: of the shop.

    Raises:
      FileNotFoundError: a file is not there.
      ValueError: a file is damaged.
      ImportError: bm25s is missing.
    """
    self.config = ShopConfig() if config is None else config
    self.max_steps = self.config.max_steps
    self.max_return = self.config.reward
    self._catalogue, self._instructions = _open(self.config)

  def __reduce__(self):
    # Products and index are made again where they are needed: they may be far
    # larger than what they are made of.
    return type(self), (self.config,)

  def num_episodes(self, split: str) -> int:
    """Returns how many seeds of episodes a split has."""
    config = self.config
    sizes = {"train": config.num_train, "test": config.num_test}
    if self._instructions is not None:
      sizes = {name: len(all_) for name, all_ in self._instructions.items()}
    if split not in sizes:
      raise ValueError(f"no split {split!r}: {base.nearest(split, [*sizes])}")
    return sizes[split]

  def make(self, split: str) -> shop.Shop:
    """Makes an environment, whose `reset` takes a seed of the split."""
    config = self.config
    self.num_episodes(split)  # says so if there is no such split
    if self._instructions is not None:
      instruct = self._instructions[split].__getitem__
    else:
      instruct = functools.partial(
        shop_products.draw_instruction, self._catalogue.products, split
      )
    return shop.Shop(
      self._catalogue,
      instruct,
      max_steps=config.max_steps,
      max_return=config.reward,
      pays=config.pays,
      per_page=config.per_page,
      shows_instruction=config.shows_instruction,
    )

  def prompts(
    self, situation: Situation, history: Sequence[tuple[str, str]]
  ) -> Iterator[str]:
    """Yields prompts with less and less history."""
    for shown in range(min(self.config.shown, len(history)), -1, -1):
      text = self._write(situation, history, shown)
      if not shown or len(text) <= _LONGEST_PROMPT:
        yield text

  def read_reply(self, completion: str) -> Reply:
    """Finds the action in a completion, whatever it is."""
    if self.config.form == "english":
      return environments.read_reply(completion)
    action = completion.strip().lower()
    is_action = len(action) <= _LONGEST_ACTION and _ACTION.fullmatch(action)
    return Reply(action if is_action else "", bool(is_action))

  def write_reply(self, action: str) -> str:
    """Returns a completion that asks for an action."""
    if self.config.form == "english":
      return super().write_reply(action)
    return action

  def demonstrations(
    self, count: int, *, seed: int, wrong_rate: float = 0.0
  ) -> list[Transition]:
    """Returns steps of an expert that errs at a given rate.

    It goes on from where its mistakes lead, so that both are shown. Episodes
    are those of the training split, cut where they end or are over the limit.

    Args:
      count: of steps.
      seed: of the first episode's mistakes.
      wrong_rate: probability that a step is any admissible action instead, and
        a search one for another product.

    Returns:
      The steps, episode by episode.

    Raises:
      ValueError: it would do nothing right.
    """
    return list(self._play("train", count, seed, wrong_rate))

  def held_out(self, count: int) -> list[Transition]:
    """Returns steps of an expert in test episodes, without mistakes.

    Args:
      count: of steps.

    Returns:
      The steps, episode by episode.
    """
    return list(self._play("test", count, 0, 0.0))

  def _play(
    self, split: str, count: int, seed: int, wrong_rate: float
  ) -> Iterator[Transition]:
    number = self.num_episodes(split)
    steps = environments.play(
      self.make(split),
      (
        (episode % number, Draws("shop expert", split, seed, episode))
        for episode in itertools.count()
      ),
      expert=lambda env, draws: Expert(env),
      mistake=self._mistake,
      wrong_rate=wrong_rate,
    )
    return itertools.islice(steps, count)

  def _mistake(self, situation: Situation, draws: Draws) -> str:
    action = draws.choice(situation.actions)
    if action != shop.SEARCH:
      return action
    query = draws.choice(self._catalogue.products).name.lower()
    return f"search[{query[:200]}]"

  def _write(
    self,
    situation: Situation,
    history: Sequence[tuple[str, str]],
    shown: int,
  ) -> str:
    page = shop.strip_instruction(situation.observation, situation.task)
    last = history[len(history) - shown :]
    if self.config.form == "compact":
      actions = ";".join(action for _, action in last)
      return f"{situation.task}|{actions}|{page}>"
    seen = [
      (shop.strip_instruction(text, situation.task), action)
      for text, action in history
    ]
    # The shortest form does not tell that there were steps.
    return shop.make_prompt(
      situation.task,
      page,
      situation.actions,
      seen if shown else (),
      shown=shown,
    )


@functools.lru_cache(maxsize=4)
def _open(config: ShopConfig):
  """The catalogue, and the instructions of files; once a process."""
  if not config.products:
    products = shop_products.draw_products(
      config.num_products, seed=config.seed
    )
    return shop.Catalogue(products), None
  goods = shop_products.read_products(
    config.products,
    config.attributes,
    config.instructions,
    order=config.order,
    num_products=config.num_products,
    num_test=config.num_test,
  )
  return shop.Catalogue(goods.products), goods.instructions
