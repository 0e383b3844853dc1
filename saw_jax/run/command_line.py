"""What commands share before JAX is imported: flags, config, errors."""

import atexit
import contextlib
import errno
import functools
import inspect
import logging
import os
import select
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence

import ml_collections
from absl import app, flags

from saw_jax.run import config as config_lib
from saw_jax.run import methods, store
from saw_jax.tasks import base
from saw_jax.tasks.rows import task as rows_task

flags.disclaim_key_flags()  # --help shows flags as the command's own.

# Exit status after Ctrl-C, and where nobody reads on, as shells have them.
INTERRUPTED, UNREAD = 130, 141

# Errors whose message is enough, without a traceback. SAW_JAX_TRACEBACK=1 shows
# where an input was refused.
_EXPLAINED = set(
  "UsageError RewardError CheckpointError RunError DamagedRunError LedgerError "
  "FloatingPointError ActorError EngineError StoreError".split()
)
# Errors that are about the input, where input is read.
_OF_INPUT = (ValueError, KeyError, TypeError, AttributeError)
_OF_INPUT += (OSError, ImportError)
# Why a write may fail, and what helps.
_FULL = {
  errno.ENOSPC: ("the disk is full", "make room"),
  errno.EDQUOT: ("the quota is used up", "make room"),
  errno.EFBIG: ("a file gets too large", "raise the limit (ulimit -f)"),
  errno.EROFS: ("the disk is read-only", "make it writable"),
}


class UsageError(Exception):
  """What was asked for cannot be done; the message says why."""


_OVERRIDES: list[tuple[str, str]] = []  # keys of the config, and their text
# Flags by command: how absl defines each, and ("+") the commands whose flags it
# has, too.
_FLAGS: dict[str, dict[str, list]] = base.asset(__file__, "flags.json")
# Flags that make a config for rows of one's own, or change that of --config.
_ROWS = [name for name in _FLAGS["config"] if name != "config"]


def define(command: str) -> None:
  table = dict(_FLAGS[command])
  for other in table.pop("+", ()):
    define(other)
  for name, (kind, *given) in table.items():
    options = given.pop() if isinstance(given[-1], dict) else {}
    getattr(flags, f"DEFINE_{kind}")(name, *given, **options)


def names_task() -> bool:
  """Whether an override names a task, so that no other flag has to."""
  return any(key == "task.name" for key, _ in _OVERRIDES)


@functools.cache
def given_config(*more: tuple[str, str]) -> ml_collections.ConfigDict | None:
  """The locked config of the flags and `more` overrides; None without any."""
  given = {name: getattr(flags.FLAGS, name) for name in ("config", *_ROWS)}
  given = {name: text for name, text in given.items() if text is not None}
  options = {x: given[x] for x in _ROWS[:-2] if x in given}
  method, model = given.get("method", ""), given.get("model", "")
  if not (given.keys() & {"config", "rows"} or names_task()):
    for name in [*(f"config.{key}" for key, _ in _OVERRIDES), *given]:
      raise ValueError(f"--{name} changes a config: give --config or --rows")
    return None
  if options:  # Mistakes in them are answered before JAX is imported.
    with contextlib.suppress(ValueError):
      options["test"] = float(options.get("test", 0.1))
    rows_task.make_task(rows_task.RowsConfig(**options)).examples("train")
  methods.keys_of(method or "grpo")
  if "config" in given:
    config = config_lib.load(given["config"])
    config.checkpoint = model or config.checkpoint
  else:
    config = config_lib.own_config(model)
  if method:
    methods.set_method(config, method)
  if options:
    config.task = ml_collections.ConfigDict({"name": "rows"})
    config.task.options = ml_collections.ConfigDict(options)
  for key, text in (*_OVERRIDES, *more):
    try:
      config_lib.override(config, key, text)
    except (TypeError, ValueError) as error:
      raise ValueError(f"--config.{key}={text}: {error}") from error
  return config.lock()


def run(main: Callable[..., int | None]) -> None:
  """Runs a command; a mistake is answered by one sentence and status 2."""

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
    # Orbax warns here of every checkpoint without a score, and logs a traceback
    # for every thread that fails. It raises what matters.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    try:
      return main(*argv[1:])
    except KeyboardInterrupt:
      print("interrupted", file=sys.stderr)
      return INTERRUPTED
    except Exception as error:
      if isinstance(error, BrokenPipeError) and is_unread():
        return UNREAD
      if (status := _explain(error)) is None:
        raise
      return status

  atexit.register(is_unread)
  app.run(guarded, flags_parser=_parse)


def is_unread() -> bool:
  """Flushes the output; whether its reader has gone, as `| head` does."""
  with contextlib.suppress(BrokenPipeError, AttributeError):
    sys.stdout.flush()
  # Standard output may be no file, or missing.
  with contextlib.suppress(OSError, ValueError, AttributeError):
    poll, out = select.poll(), sys.stdout.fileno()
    poll.register(out, 0)
    if poll.poll(0):
      # Python flushes once more as it ends, and would complain.
      os.dup2(os.open(os.devnull, os.O_WRONLY), out)
      return True
  return False


@contextlib.contextmanager
def checking_input() -> Iterator[None]:
  """Turns errors inside, which are about the input, into a UsageError."""
  try:
    yield
  except BrokenPipeError:
    raise  # This one is about the output.
  except _OF_INPUT as error:
    if os.environ.get("SAW_JAX_TRACEBACK"):
      raise
    raise UsageError(_text(error)) from error


@contextlib.contextmanager
def leaving_others() -> Iterator[None]:
  """Ends this process at once if it fails, so that the others do not wait."""
  import jax

  try:
    yield
  except Exception as error:
    if not jax.distributed.is_initialized():
      raise
    if isinstance(error, jax.errors.JaxRuntimeError):
      complain(
        f"a program of all {jax.process_count()} processes failed in process "
        f"{jax.process_index()} ({str(error).splitlines()[0]}): if another one "
        "has died, its own output says why; the same command, started on all "
        "again, goes on from the last checkpoint"
      )
    elif _explain(error) is None:
      traceback.print_exc()
    sys.stdout.flush()
    time.sleep(1)  # Others may be about to report the same.
    # A normal exit would wait for the other processes for minutes, then abort.
    os._exit(1)


def _explain(error: Exception) -> int | None:
  """Prints an error that has a sentence; gives the status, or None."""
  # By name, so that mistakes in the flags are answered without JAX.
  names, text = {c.__name__ for c in type(error).__mro__}, _text(error)
  if full := [said for code, said in _FULL.items() if _says(error, code)]:
    text = (
      f"{full[0][0]} ({text[:200]}): what was saved before is whole; "
      f"{full[0][1]}, and the same command goes on from there"
    )
  elif not (names & _EXPLAINED or isinstance(error, OSError)):
    return None
  # The other reads or writes of the same checkpoint are dropped as the process
  # ends, and each would report that.
  sys.unraisablehook = lambda _: None
  logging.getLogger("asyncio").setLevel(logging.CRITICAL)
  return complain(text)


def _says(error: BaseException | None, code: int) -> bool:
  """Whether an error, or one that caused it, is of a system call's code."""
  if error is None:
    return False
  if isinstance(error, OSError):
    found = error.errno == code
  else:  # A checkpoint's writer is no Python and reports words alone.
    found = os.strerror(code) in str(error)
  return found or _says(error.__cause__ or error.__context__, code)


def _parse(argv: Sequence[str]) -> Sequence[str]:
  """Parses the flags and the config, or exits with a sentence."""
  # A script may have a --config of its own, without the other flags.
  has_config, rest, words = {"config", *_ROWS} <= {*flags.FLAGS}, [], iter(argv)
  for word in words:
    name, equals, text = word.partition("=")
    if has_config and name.startswith("--config."):
      text = text if equals else next(words, "")
      _OVERRIDES.append((name.removeprefix("--config."), text))
    else:
      rest.append(word)
  try:
    rest = flags.FLAGS(rest)
    # JAX must know of other processes before it looks for devices.
    others = "coordinator" in flags.FLAGS and flags.FLAGS.coordinator
    if has_config and not others:
      given_config()
    return rest
  except (SystemExit, BrokenPipeError):
    sys.exit(0)  # Only --help and the like end here; absl's status is 1.
  except (flags.Error, SyntaxError, *_OF_INPUT) as error:
    if os.environ.get("SAW_JAX_TRACEBACK"):
      raise
    advice = "; see --help" if isinstance(error, flags.Error) else ""
    sys.exit(complain(_text(error) + advice))


def _text(error: Exception) -> str:
  text = error.args[0] if error.args else type(error).__name__
  text = store.named(error if isinstance(error, OSError) else text)
  return " ".join(text.split())


def again() -> str:
  """This command as one would type it again."""
  return " ".join([sys.argv[0], *map(shlex.quote, sys.argv[1:])])


def complain(text: str) -> int:
  """Prints what is wrong; gives the exit status of a mistake."""
  print(f"error: {text}", file=sys.stderr)
  return 2
