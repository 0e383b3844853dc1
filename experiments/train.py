"""The command `saw train`, from a checkout."""

from saw_jax import commands

if __name__ == "__main__":
  commands.run("train", "python experiments/train.py")
