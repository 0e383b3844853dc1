"""What commands share before JAX is imported: flags, config, mistakes."""

import contextlib
import errno
import functools
import inspect
import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence

import ml_collections
from absl import app, flags

from saw_jax.run import config as config_lib

flags.disclaim_key_flags()  # A flag is the command's, in its --help.

INTERRUPTED = 130  # exit status after Ctrl-C, as shells have it

# Errors that say all there is to say: no traceback. Set SAW_JAX_TRACEBACK=1 to
# see where an input was refused.
_EXPLAINED = set(
  "UsageError RewardError CheckpointError RunError DamagedRunError LedgerError "
  "FloatingPointError".split()
)
# Errors that are about what was given, where input is read.
_OF_INPUT = (ValueError, KeyError, TypeError, AttributeError)
_OF_INPUT += (OSError, ImportError)


class UsageError(Exception):
  """What was asked for cannot be done; the message says why."""


_OVERRIDES: list[tuple[str, str]] = []  # keys of the config, and their text


def define_config() -> None:
  flags.DEFINE_string(
    "config",
    None,
    "The config of a table or of a file, and its arguments, e.g. "
    "saw/tool_calling:row=gdpo_saw,scale=tiny or configs/mine.py:row=one. "
    "Override any key with --config.section.key=value.",
  )


@functools.cache
def given_config(*more: tuple[str, str]) -> ml_collections.ConfigDict | None:
  """The locked config of `--config` with its overrides, if it is given.

  `more` are keys and texts that override it after those.
  """
  if flags.FLAGS.config is None:
    for key, _ in _OVERRIDES:
      raise ValueError(f"--config.{key} changes a config: give --config, too")
    return None
  config = config_lib.load(flags.FLAGS.config)
  for key, text in (*_OVERRIDES, *more):
    try:
      config_lib.override(config, key, text)
    except (TypeError, ValueError) as error:
      raise ValueError(f"--config.{key}={text}: {error}") from error
  return config.lock()


def run(main: Callable[..., int | None]) -> None:
  """Runs a command; a mistake of the caller's is one sentence and status 2.

  What is no flag among its words are the arguments of `main`.
  """

  def guarded(argv: Sequence[str]) -> int | None:
    try:
      inspect.signature(main).bind(*argv[1:])
    except TypeError:
      return complain(f"unexpected argument {argv[-1]!r}; see --help")
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
      return main(*argv[1:])
    except KeyboardInterrupt:
      print("interrupted", file=sys.stderr)
      return INTERRUPTED
    except Exception as error:
      # By name, so that a mistake in the flags is answered without JAX.
      names, text = {c.__name__ for c in type(error).__mro__}, _text(error)
      if _is_full(error):
        text = (
          f"the disk is full ({text[:200]}): what was saved before is whole; "
          "make room, and the same command goes on from there"
        )
      elif not names & _EXPLAINED:
        raise
      # The other reads or writes of a checkpoint of which one failed are thrown
      # away as the process ends, each with its own words on that.
      sys.unraisablehook = lambda _: None
      logging.getLogger("asyncio").setLevel(logging.CRITICAL)
      return complain(text)

  app.run(guarded, flags_parser=_parse)


@contextlib.contextmanager
def checking_input() -> Iterator[None]:
  """Marks the part of a script in which an error is about its input."""
  try:
    yield
  except _OF_INPUT as error:
    if os.environ.get("SAW_JAX_TRACEBACK"):
      raise
    raise UsageError(_text(error)) from error


def _is_full(error: BaseException | None) -> bool:
  """Whether a write failed for want of room, whoever says so."""
  if error is None:
    return False
  if isinstance(error, OSError):
    found = error.errno in (errno.ENOSPC, errno.EDQUOT)
  else:  # A checkpoint's writer is not Python: it has words alone.
    found = os.strerror(errno.ENOSPC) in str(error)
  return found or _is_full(error.__cause__ or error.__context__)


def _parse(argv: Sequence[str]) -> Sequence[str]:
  """Reads the flags and the config, or ends the script with a sentence."""
  has_config, rest, words = "config" in flags.FLAGS, [], iter(argv)
  for word in words:
    name, equals, text = word.partition("=")
    if has_config and name.startswith("--config."):
      text = text if equals else next(words, "")
      _OVERRIDES.append((name.removeprefix("--config."), text))
    else:
      rest.append(word)
  try:
    rest = flags.FLAGS(rest)
    if has_config:
      given_config()
    return rest
  except SystemExit:
    sys.exit(0)  # Only --help and its like end here; absl's status is 1.
  except (flags.Error, SyntaxError, *_OF_INPUT) as error:
    if os.environ.get("SAW_JAX_TRACEBACK"):
      raise
    advice = "; see --help" if isinstance(error, flags.Error) else ""
    sys.exit(complain(_text(error) + advice))


def _text(error: Exception) -> str:
  text = error.args[0] if error.args else type(error).__name__
  text = str(error if isinstance(error, OSError) else text)
  return " ".join(text.split())


def again() -> str:
  """This command, as it is typed to go on with what it did."""
  return " ".join([sys.argv[0], *map(shlex.quote, sys.argv[1:])])


def complain(text: str) -> int:
  """Says what is wrong; the exit status of a mistake."""
  print(f"error: {text}", file=sys.stderr)
  return 2
