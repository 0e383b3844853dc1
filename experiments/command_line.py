"""What the scripts share before JAX is imported: flags, logging, errors."""

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence

from absl import app, flags
from ml_collections import config_flags

INTERRUPTED = 130  # exit status after Ctrl-C, as shells have it

# Errors that say all there is to say: no traceback. Set SAW_JAX_TRACEBACK=1 to
# see where an input was refused.
_EXPLAINED = {
  "UsageError",
  "RewardError",
  "CheckpointError",
  "RunError",
  "FloatingPointError",
}


class UsageError(Exception):
  """What was asked for cannot be done; the message says why."""


def define_config(default: str | None = None):
  """Defines `--config=configs/...py:arguments` and its overrides.

  Args:
    default: the config, if the flag is not given.

  Returns:
    The flag's holder.
  """
  return config_flags.DEFINE_config_file(
    "config",
    default,
    "A config file and its arguments, e.g. "
    "configs/saw/tool_calling.py:row=gdpo_saw,scale=tiny. Override any key "
    "with --config.section.key=value.",
  )


def run(main: Callable[[], int | None]) -> None:
  """Parses the flags and runs a script.

  A mistake of the caller's ends the script with one sentence and status 2, any
  other error with its traceback.

  Args:
    main: the script, without arguments; returns the exit status.
  """

  def guarded(argv: Sequence[str]) -> int | None:
    if len(argv) > 1:
      return _complain(f"unexpected argument {argv[1]!r}; see --help")
    logging.basicConfig(
      level=logging.INFO,
      format="%(asctime)s %(message)s",
      datefmt="%H:%M:%S",
      force=True,
    )
    for noisy in ("absl", "orbax", "jax"):
      logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
      return main()
    except Exception as error:
      # By name, so that a mistake in the flags is answered without JAX.
      names = {cls.__name__ for cls in type(error).__mro__}
      if names & _EXPLAINED:
        return _complain(_text(error))
      raise

  def parse(argv: Sequence[str]) -> Sequence[str]:
    try:
      return flags.FLAGS(argv)
    except flags.Error as error:
      sys.exit(_complain(f"{error}; see --help"))
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
      sys.exit(_complain(_text(error)))

  app.run(guarded, flags_parser=parse)


@contextlib.contextmanager
def checking_input() -> Iterator[None]:
  """Marks the part of a script in which an error is about its input.

  Raises:
    UsageError: in place of any error about a value, a name or a file.
  """
  try:
    yield
  except (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    OSError,
    ImportError,
  ) as error:
    if os.environ.get("SAW_JAX_TRACEBACK"):
      raise
    raise UsageError(_text(error)) from error


def _text(error: Exception) -> str:
  text = str(error.args[0]) if error.args else type(error).__name__
  if isinstance(error, OSError):
    text = str(error)
  return text.replace("\n", " ")


def _complain(text: str) -> int:
  print(f"error: {text}", file=sys.stderr)
  return 2
