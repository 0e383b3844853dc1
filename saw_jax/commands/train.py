"""Trains a policy, or goes on with one.

  saw train --workdir=runs/gdpo_saw --seeds=0,1 \\
    --config=saw/tool_calling:row=gdpo_saw,scale=tiny
  saw train --workdir=runs/a --rows=problems.jsonl --prompt=question \\
    --rewards=my_rewards.py:right,short --method=gdpo+saw --model=smollm2

The first trains a row of a table, the second on rows of one's own.

Several processes, each with its own devices, train one policy over one mesh
(config.parallel.lift=meshed): start each with the same command, and

  --coordinator=host:port --num_processes=2 --process_id=0

Several seeds run as one program. Run the same command again to go on after
Ctrl-C or a crash: the finished run is the one that was never interrupted.
"""

import logging
import pathlib

import ml_collections
from absl import flags

from saw_jax.run import command_line, metrics, store


def given_config(*more: tuple[str, str]) -> ml_collections.ConfigDict:
  """The config of the flags, with `more` overrides of keys."""
  log = flags.FLAGS.log
  writers = [("loop.writers", repr(tuple(log)))] if log else []
  return command_line.given_config(*writers, *more)


def main() -> int:
  """Trains the config of `--config` in `--workdir`, or goes on there."""
  given = flags.FLAGS
  with command_line.checking_input():
    seeds, processes = read_seeds(), _check_processes()
    if store.is_store(given.compilation_cache or ""):
      store.open_root(given.compilation_cache, writes=True)
    folder = store.local(given.workdir, writes=True)
  # JAX is imported only now: mistakes in the flags are answered before.
  import jax

  _keep_programs(given.compilation_cache, given.workdir)
  if given.coordinator:
    jax.distributed.initialize(*processes)
  from saw_jax.run import build

  how = {"directory": folder, "resume_step": given.resume_step}
  with command_line.leaving_others():
    with command_line.checking_input():
      made = [build.build(given_config(), seeds, **how)]
    # Popped, and no `**how`, so that no parameters are kept while it trains.
    result = build.train(
      made.pop(), seeds, directory=folder, resume_step=given.resume_step
    )
  if not result.finished:
    print(
      f"stopped after step {result.step}, saved; the same command goes on "
      f"from there:\n  {command_line.again()}"
    )
    return command_line.INTERRUPTED
  for seed in result.final:
    scores = [f"{name} {value:.3f}" for name, value in seed["greedy"].items()]
    said = ", ".join(scores)
    logging.info("seed %d, held out, greedy: %s", seed["seed"], said)
  return 0


def _keep_programs(folder: str | None, workdir: str) -> None:
  """Keeps compiled programs, so that a start after a preemption compiles none.

  A place that the environment or the caller chose is left alone.
  """
  import jax

  if folder is None:
    if jax.config.jax_compilation_cache_dir:
      return
    if store.is_store(workdir):
      folder = workdir.rstrip("/").rpartition("/")[0] + "/.compiled"
    else:
      folder = str(pathlib.Path(workdir).absolute().parent / ".compiled")
  jax.config.update("jax_compilation_cache_dir", folder or None)


def _check_processes() -> tuple:
  """What JAX is told of the processes; nothing where the cluster tells it."""
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


def read_seeds() -> list[int]:
  """The seeds; also checks other flags while JAX is not yet imported."""
  words, given = flags.FLAGS.seeds, flags.FLAGS
  said = f"--seeds are numbers from 0 on that differ, not {','.join(words)!r}"
  try:
    seeds = [int(word) for word in words]
  except ValueError:
    raise ValueError(said) from None
  if len(set(seeds)) != len(seeds) or min(seeds, default=-1) < 0:
    raise ValueError(said)
  if not (given.config or given.rows or command_line.names_task()):
    raise ValueError(
      "give --config=TABLE, or --rows=FILE with --prompt and --rewards, or "
      "--config.task.name=NAME"
    )
  metrics.check_writers(given.log)
  return seeds
