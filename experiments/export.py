"""The command `saw export`, from a checkout."""

from saw_jax import commands

if __name__ == "__main__":
  commands.run("export", "python experiments/export.py")
