"""Lists the tables, or the names that a config may use.

  saw list
  saw list losses

The first says which tables there are, what each needs, and what of that is
missing here.
"""


def define() -> None:
  """It has no flags."""


def main(registry: str = "") -> int:
  del registry
  from saw_jax.reporting import catalogue

  print(catalogue.listing())
  return 0
