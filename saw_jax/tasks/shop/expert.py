"""An expert of the shop that looks at where it stands at every step."""

import functools
import itertools
from collections.abc import Iterator

from saw_jax.tasks.draws import Draws
from saw_jax.tasks.shop import reward as shop_reward
from saw_jax.tasks.shop.products import Product
from saw_jax.tasks.shop.site import BACK, BUY, NEXT, PREVIOUS, Shop

_MOST_CHOICES = 20_000  # combinations of options that are tried


def expert(env: Shop, draws: Draws) -> Iterator[str]:
  """Yields what to do next, whoever took the last step; it never ends.

  It searches for the words of what is asked for, turns pages until a product is
  listed with which the purchase can score 1, chooses its options, and buys.
  """
  del draws
  choose = functools.cache(functools.partial(_choose, env))
  query = _find_query(env, choose)
  while True:
    page = env.page
    if page.kind == "start":
      yield f"search[{query}]"
      continue
    choice = choose(env.product) if page.code else None
    if page.query != query:
      name = BACK
    elif page.kind == "results":
      good = [one.code for one in env.listed if choose(one) is not None]
      names = [*good, NEXT, PREVIOUS, BACK]
      name = next(name for name in names if name.lower() in env.links)
    elif page.kind == "sub" or choice is None:
      name = PREVIOUS
    else:
      # What else was chosen does no harm.
      left = [value for key, value in choice if page.options.get(key) != value]
      name = [*left, BUY][0]
    yield f"click[{name.lower()}]"


def _find_query(env: Shop, choose) -> str:
  """The shortest of some queries that finds something to buy."""
  wanted = env.catalogue.by_code[env.instruction.code]
  short = " ".join((*env.instruction.attributes, wanted.query))
  for query in (short, wanted.name, env.instruction.text):
    query = query.lower().strip()[:200].strip()
    found = env.catalogue.search(query)
    if query and any(choose(product) is not None for product in found):
      return query
  return wanted.name.lower()[:200].strip()


def _choose(env: Shop, product: Product) -> tuple[tuple[str, str], ...] | None:
  """The fewest options with which buying it scores 1; none: it cannot."""
  wanted = env.catalogue.by_code[env.instruction.code]
  if product.price > env.instruction.price_limit:
    return None
  several = []
  for name, values in product.options:
    # Those that are asked for, or all if none is word for word.
    asked = [value for value in values if value in env.instruction.options]
    several.append([None, *((name, value) for value in asked or values)])
  tried = itertools.islice(itertools.product(*several), _MOST_CHOICES)
  choices = [tuple(filter(None, choice)) for choice in tried]
  for choice in sorted(choices, key=len):
    options = dict(choice)
    if shop_reward.score(product, wanted, env.instruction, options) == 1:
      return choice
  return None
