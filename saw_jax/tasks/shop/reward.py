"""How well a purchase fits an instruction: WebShop's formula and constants.

Yao et al., 2022, section 3 and appendix. https://arxiv.org/abs/2207.01206
"""

import re
from collections.abc import Mapping

from saw_jax.tasks.search_index import STOP_WORDS
from saw_jax.tasks.shop.products import COLORS, Instruction, Product

_ALIKE = 85  # of 100; above, two texts are taken for the same
_LONGEST = 200  # characters of a text that are compared
_PLAIN_COLORS = tuple(
  sorted({*COLORS, *"beige brown gold navy orange purple silver teal".split()})
)


def score(
  product: Product,
  wanted: Product,
  instruction: Instruction,
  options: Mapping[str, str],
) -> float:
  """Scores the purchase of a product with options by name; 1 is success.

  With the attributes `A` and the options `O` that are asked for,

      r = r_type (|A that it has| + |chosen options in O| + [price <= limit])
          / (|A| + |O| + 1)

  An attribute counts if one of the product's is alike, or if it stands in the
  product's name, features or description; an option counts if its value is
  alike (a size: equal), or stands there. `r_type` depends on the share of the
  wanted name's words that the product's name has: 0 for none, 0.1 below a
  tenth. Else it is 1 if more than a fifth are there, the query is the same, or
  two categories are; and 0.5 if none of these holds.

  Differs from WebShop's code: the words of a name are all that are no stop
  words, where spaCy finds the nouns there; plain colours are a list of our own;
  and more options than were asked for do not lift the score above 1.
  """
  about = " ".join((product.name, *product.features, product.description))
  about = about.lower()
  right = sum(
    any(likeness(have, one) > _ALIKE for have in product.attributes)
    or one in about
    for one in instruction.attributes
  )
  asked = [_plain_color(value) for value in instruction.options]
  for name, value in options.items():
    value, is_size = _plain_color(value), name.lower() == "size"
    alike = (likeness(one, value) > _ALIKE for one in asked)
    # WebShop counts what stands in the product's text too.
    right += (value in asked if is_size else any(alike)) or value in about
  right += product.price <= instruction.price_limit
  number = len(instruction.attributes) + len(instruction.options) + 1
  return min(right / number, 1.0) * type_score(product, wanted)


def type_score(product: Product, wanted: Product) -> float:
  """Returns 1, 0.5, 0.1 or 0: is a product of the kind that is wanted?"""
  words, known = _words(wanted.name), _words(product.name)
  share = len(words & known) / len(words) if words else 0.2
  if share < 0.1:
    return 0.1 if share else 0.0
  common = set(product.categories) & set(wanted.categories)
  if product.query == wanted.query or len(common) >= 2 or share > 0.2:
    return 1.0
  return 0.5


def likeness(one: str, other: str) -> int:
  """Compares the sets of words of two texts: 100 if one's are all in the other.

  It is `token_set_ratio` of the library thefuzz, which WebShop uses.

  >>> likeness("long sleeve", "shirt with long sleeves")
  65
  """
  texts = (one.lower()[:_LONGEST], other.lower()[:_LONGEST])
  first, second = (set(re.findall(r"[^\W_]+", text)) for text in texts)
  if not first or not second:
    return 0
  shared = sorted(first & second)
  if shared and (first <= second or second <= first):
    return 100
  left, right = (
    " ".join(shared + sorted(words - set(shared))) for words in (first, second)
  )
  common = " ".join(shared)
  pairs = [(left, right), (common, left), (common, right)]
  return max(_ratio(*pair) for pair in pairs[: 3 if shared else 1])


def _ratio(one: str, other: str) -> int:
  """Twice the longest common subsequence over both lengths, in percent."""
  row = [0] * (len(other) + 1)
  for letter in one:
    before = 0
    for i, match in enumerate(other, 1):
      here = row[i]
      row[i] = before + 1 if letter == match else max(here, row[i - 1])
      before = here
  return round(200 * row[-1] / (len(one) + len(other)))


def _plain_color(value: str) -> str:
  return next((color for color in _PLAIN_COLORS if color in value), value)


def _words(name: str) -> set[str]:
  found = re.findall(r"[^\W\d_]+", name.lower())
  return {word for word in found if word not in STOP_WORDS}
