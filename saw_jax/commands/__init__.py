"""The command `saw`: its first word names a module here.

  saw train --help

A module has `main()`, which returns the exit status, and a docstring, which is
the command's --help; its flags are in `run/assets/flags.json`.
"""

import atexit
import contextlib
import importlib
import sys

from absl import flags

from saw_jax import naming
from saw_jax.run import command_line

flags.disclaim_key_flags()  # --help shows flags as the command's own.

NAMES = "train doctor evaluate generate export compare sweep table list".split()
NAMES += ["annotate", "fit"]


def main() -> None:
  """Runs the command that the first word names."""
  words = sys.argv[1:]
  atexit.register(command_line.is_unread)
  if words[:1] in ([], ["--help"], ["-h"], ["help"]):
    with contextlib.suppress(BrokenPipeError):
      print(listing())
    sys.exit(0 if words else 2)
  if words[0] not in NAMES:
    near = naming.nearest(words[0], NAMES)
    sys.exit(command_line.complain(f"no command {words[0]!r}: {near}"))
  del sys.argv[1]
  run(words[0], f"saw {words[0]}")


def run(name: str, typed: str) -> None:
  """Runs a command on `sys.argv`, in which `typed` replaces the first word."""
  sys.argv[0] = typed
  command = importlib.import_module(f"{__name__}.{name}")
  command_line.define(name)
  # absl prints it for --help.
  document = command.__doc__.replace(f"saw {name}", typed)
  sys.modules["__main__"].__doc__ = document
  command_line.run(command.main)


def listing() -> str:
  """Each command with the first line of its --help."""
  found = {
    name: importlib.import_module(f"{__name__}.{name}").__doc__.splitlines()[0]
    for name in NAMES
  }
  lines = [f"  {name:<9} {line}" for name, line in found.items()]
  head = "saw COMMAND [flags]; saw COMMAND --help says more."
  return "\n".join([head, *lines])
