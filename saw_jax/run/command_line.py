"""What scripts share before JAX is imported, and the command that trains."""

import contextlib
import errno
import functools
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence

import ml_collections
from absl import app, flags

from saw_jax.run import config as config_lib

flags.disclaim_key_flags()  # A flag is the script's, in its --help.

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
def given_config() -> ml_collections.ConfigDict | None:
  """The locked config of `--config` with its overrides, if it is given."""
  if flags.FLAGS.config is None:
    for key, _ in _OVERRIDES:
      raise ValueError(f"--config.{key} changes a config: give --config, too")
    return None
  config = config_lib.load(flags.FLAGS.config)
  for key, text in _OVERRIDES:
    try:
      config_lib.override(config, key, text)
    except (TypeError, ValueError) as error:
      raise ValueError(f"--config.{key}={text}: {error}") from error
  return config.lock()


def run(main: Callable[[], int | None]) -> None:
  """Runs a script; a mistake of the caller's is one sentence and status 2."""

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
      return _complain(text)

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
    sys.exit(_complain(_text(error) + advice))


def _text(error: Exception) -> str:
  text = error.args[0] if error.args else type(error).__name__
  text = str(error if isinstance(error, OSError) else text)
  return " ".join(text.split())


def _complain(text: str) -> int:
  print(f"error: {text}", file=sys.stderr)
  return 2


def define_train() -> None:
  define_config()
  flags.mark_flag_as_required("config")
  flags.DEFINE_string(
    "workdir", None, "Where metrics and checkpoints go.", required=True
  )
  flags.DEFINE_list("seeds", ["0"], "Seeds, all in one program.")
  flags.DEFINE_integer(
    "resume_step", None, "Go on from this checkpoint, not the latest one.", 0
  )
  flags.DEFINE_string(
    "coordinator",
    None,
    "host:port of the first of several processes that train one policy, or "
    "auto where the cluster says it (Slurm, MPI, TPU pods).",
  )
  flags.DEFINE_integer("num_processes", None, "How many there are.", 1)
  flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.", 0)


def train() -> int:
  """Trains the config of `--config` in `--workdir`, or goes on there."""
  given = flags.FLAGS
  with checking_input():
    seeds = _parse_seeds(given.seeds)
    processes = _check_processes()

  # JAX is imported here: a mistake in the flags is answered before that.
  import jax

  if given.coordinator:
    jax.distributed.initialize(*processes)
  from saw_jax.run import build

  with checking_input():
    experiment = build.build(given_config(), seeds, given.workdir)
  result = build.train(
    experiment, seeds, directory=given.workdir, resume_step=given.resume_step
  )
  if not result.finished:
    print(
      f"stopped after step {result.step}, saved; the same command goes on "
      f"from there:\n  python {' '.join(sys.argv)}"
    )
    return INTERRUPTED
  for seed in result.final:
    scores = [f"{name} {value:.3f}" for name, value in seed["greedy"].items()]
    said = ", ".join(scores)
    logging.info("seed %d, held out, greedy: %s", seed["seed"], said)
  return 0


def _check_processes() -> tuple:
  """What JAX is told of the processes; nothing where the cluster says it."""
  given, both = flags.FLAGS, "--num_processes and --process_id"
  place, count, index = given.coordinator, given.num_processes, given.process_id
  if place in (None, "auto"):
    if (count, index) != (None, None):
      raise ValueError(f"{both} go with --coordinator=host:port")
    return ()
  if None in (count, index):
    raise ValueError(f"--coordinator=host:port needs {both}")
  if ":" not in place:
    raise ValueError(f"--coordinator is host:port or auto, not {place!r}")
  if index >= count:
    raise ValueError(
      f"--process_id={index} is not below --num_processes={count}"
    )
  return place, count, index


def _parse_seeds(words: list[str]) -> list[int]:
  said = f"--seeds is a list of integers that differ, not {','.join(words)!r}"
  try:
    seeds = [int(word) for word in words]
  except ValueError:
    raise ValueError(said) from None
  if len(set(seeds)) != len(seeds) or not seeds:
    raise ValueError(said)
  return seeds
