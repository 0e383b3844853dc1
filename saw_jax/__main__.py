"""`python -m saw_jax` is the command `saw`."""

from saw_jax import commands

if __name__ == "__main__":
  commands.main()
