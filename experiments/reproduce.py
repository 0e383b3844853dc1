"""The command `saw table`, from a checkout."""

from saw_jax import commands

if __name__ == "__main__":
  commands.run("table", "python experiments/reproduce.py")
