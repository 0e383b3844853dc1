"""The command `saw evaluate`, from a checkout."""

from saw_jax import commands

if __name__ == "__main__":
  commands.run("evaluate", "python experiments/evaluate.py")
