"""An expert of the shop that looks at where it stands at every step.

It searches for the words of what is asked for, turns pages until a product is
listed with which the purchase can score 1, chooses its options, and buys. After
a mistake it goes on from where that led.
"""

import functools
import itertools

from saw_jax.tasks.shop import reward as shop_reward
from saw_jax.tasks.shop.products import Product
from saw_jax.tasks.shop.site import BACK, BUY, NEXT, PREVIOUS, Shop

_MOST_CHOICES = 20_000  # combinations of options that are tried


class Expert:
  """Solves one episode of a shop from its start, whoever takes the steps."""

  def __init__(self, env: Shop):
    self._env = env
    self._wanted = env.catalogue.by_code[env.instruction.code]
    self._choice = functools.cache(self._choose)
    self._query = self._find_query()

  def action(self) -> str:
    """Returns what it would do now."""
    env, page = self._env, self._env.page
    if page.kind == "start":
      return f"search[{self._query}]"
    if page.query != self._query:
      return f"click[{BACK.lower()}]"
    if page.kind == "results":
      return f"click[{self._next_of_results()}]"
    choice = self._choice(env.catalogue.by_code[page.code])
    if page.kind == "sub" or choice is None:
      return f"click[{PREVIOUS.lower()}]"
    for name, value in choice:
      if env.options.get(name) != value:
        return f"click[{value}]"
    # What else was chosen does no harm.
    return f"click[{BUY.lower()}]"

  def _next_of_results(self) -> str:
    for product in self._env.listed:
      if self._choice(product) is not None:
        return product.code.lower()
    if NEXT in self._env.buttons:
      return NEXT.lower()
    return PREVIOUS.lower() if self._env.page.number > 1 else BACK.lower()

  def _find_query(self) -> str:
    """The shortest of some queries that finds something to buy."""
    wanted, instruction = self._wanted, self._env.instruction
    queries = [
      " ".join((*instruction.attributes, wanted.query)),
      wanted.name,
      instruction.text,
    ]
    for query in queries:
      query = query.lower().strip()[:200].strip()
      found = self._env.catalogue.search(query)
      if query and any(self._choice(product) is not None for product in found):
        return query
    return queries[1].lower()[:200].strip()

  def _choose(self, product: Product) -> tuple[tuple[str, str], ...] | None:
    """The fewest options with which buying it scores 1; none: it cannot."""
    instruction = self._env.instruction
    if product.price > instruction.price_limit:
      return None
    several = [
      [None, *((name, value) for value in self._likely(values))]
      for name, values in product.options
    ]
    tried = itertools.islice(itertools.product(*several), _MOST_CHOICES)
    choices = [tuple(filter(None, choice)) for choice in tried]
    for choice in sorted(choices, key=len):
      options = dict(choice)
      if shop_reward.score(product, self._wanted, instruction, options) == 1:
        return choice
    return None

  def _likely(self, values: tuple[str, ...]) -> list[str]:
    """Those that are asked for, or all if none is word for word."""
    asked = self._env.instruction.options
    return [value for value in values if value in asked] or list(values)
