"""The command `saw generate`, from a checkout."""

from saw_jax import commands

if __name__ == "__main__":
  commands.run("generate", "python experiments/generate.py")
