"""What the scripts share before JAX is imported: flags, logging, errors."""

import contextlib
import errno
import logging
import os
import re
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
  "DamagedRunError",
  "LedgerError",
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
    for noisy in ("jax", "orbax"):
      logging.getLogger(noisy).setLevel(logging.WARNING)
    # Orbax warns here of each checkpoint that has no score, and has a traceback
    # for each of its threads that fails: it raises what matters, too.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    try:
      return main()
    except Exception as error:
      # By name, so that a mistake in the flags is answered without JAX.
      names = {cls.__name__ for cls in type(error).__mro__}
      is_full = _is_full(error)
      if not is_full and not names & _EXPLAINED:
        raise
      # The other reads or writes of a checkpoint of which one failed are thrown
      # away as the process ends, each with its own words on that.
      sys.unraisablehook = lambda _: None
      logging.getLogger("asyncio").setLevel(logging.CRITICAL)
      if is_full:
        return _complain(
          f"the disk is full ({_text(error)[:200]}): what was saved before is "
          "whole; make room, and the same command goes on from there"
        )
      return _complain(_text(error))

  app.run(guarded, flags_parser=_parse)


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


def _is_full(error: BaseException | None) -> bool:
  """Whether a write failed for want of room, whoever says so."""
  while error is not None:
    if isinstance(error, OSError):
      if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    # A checkpoint's writer is not Python: it has words alone.
    elif os.strerror(errno.ENOSPC) in str(error):
      return True
    error = error.__cause__ or error.__context__
  return False


def _parse(argv: Sequence[str]) -> Sequence[str]:
  """Reads the flags, or ends the script with a sentence."""
  try:
    rest = flags.FLAGS(argv)
    if "config" in flags.FLAGS and flags.FLAGS.config is not None:
      flags.FLAGS.config.to_dict()  # A file that is not there fails on use.
    return rest
  except SystemExit:
    sys.exit(0)  # Only --help and its like end here; absl's status is 1.
  except (
    flags.Error,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    OSError,
    SyntaxError,
    ImportError,
  ) as error:
    if os.environ.get("SAW_JAX_TRACEBACK"):
      raise
    sys.exit(_complain(_explain(error, argv)))


def _explain(error: Exception, argv: Sequence[str]) -> str:
  """Says in a sentence what is wrong with the flags."""
  root = error
  while (cause := root.__cause__ or root.__context__) is not None:
    root = cause
  if isinstance(root, KeyError) and root.args:
    # ml_collections wraps it, with the nearest key in the outer message.
    key = str(root.args[0])
    names = [word.partition("=")[0] for word in argv]
    flag = next((n for n in names if key in n.split(".")), "--config")
    close = re.search(r'Did you mean "(.+?)"', str(error))
    advice = (
      f"did you mean {close[1]!r}?"
      if close
      else "a flag can only change what the config file sets"
    )
    return f"unknown key {key!r} in {flag}: {advice}"
  if "Failed loading config file" in str(error):
    path = re.search(r"\[Relative path\]:\s*(.+)", str(error))
    name = repr(path[1].strip()) if path else "of that name"
    return f"there is no config file {name}; see --help"
  if isinstance(error, flags.Error):
    # ml_collections puts the traceback of a config file into the message.
    is_long = "Traceback" in str(error)
    return f"{_text(root if is_long else error)}; see --help"
  return _text(error)


def _text(error: Exception) -> str:
  text = str(error.args[0]) if error.args else type(error).__name__
  if isinstance(error, OSError):
    text = str(error)
  return " ".join(text.split())


def _complain(text: str) -> int:
  print(f"error: {text}", file=sys.stderr)
  return 2
