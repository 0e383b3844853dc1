"""The command `saw doctor`, from a checkout."""

from saw_jax import commands

if __name__ == "__main__":
  commands.run("doctor", "python experiments/doctor.py")
