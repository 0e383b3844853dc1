"""The command `saw annotate`, from a checkout."""

from saw_jax import commands

if __name__ == "__main__":
  commands.run("annotate", "python experiments/annotate.py")
