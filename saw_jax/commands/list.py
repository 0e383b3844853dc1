"""Lists the tables, or the names that a config may use.

  saw list
  saw list losses

The first says which tables there are, what each needs, what of that is missing
here, and of what else there are names.
"""

from saw_jax.run import command_line


def main(registry: str = "") -> int:
  from saw_jax import api

  with command_line.checking_input():
    if registry:
      print("\n".join(api.names(registry)))
      return 0
  from saw_jax.reporting import catalogue

  print(catalogue.listing())
  print(f"\nsaw list NAME, of {', '.join(api.names())}")
  return 0
