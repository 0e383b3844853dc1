"""The command that trains: its flags, and what it does with them."""

import logging
import sys

from absl import flags

from saw_jax.run import command_line

flags.disclaim_key_flags()  # They are the script's, in its --help.


def define_flags() -> None:
  command_line.define_config()
  flags.mark_flag_as_required("config")
  flags.DEFINE_string(
    "workdir", None, "Where metrics and checkpoints go.", required=True
  )
  flags.DEFINE_list("seeds", ["0"], "Seeds, all in one program.")
  flags.DEFINE_integer(
    "resume_step",
    None,
    "Go on from this checkpoint rather than the latest one.",
    lower_bound=0,
  )
  flags.DEFINE_string(
    "coordinator",
    None,
    "host:port of the first of several processes that train one policy, or "
    "auto where the cluster says it (Slurm, MPI, TPU pods).",
  )
  flags.DEFINE_integer(
    "num_processes", None, "How many there are.", lower_bound=1
  )
  flags.DEFINE_integer(
    "process_id", None, "Which of them this is, from 0.", lower_bound=0
  )


def main() -> int:
  """Trains the config of `--config` in `--workdir`, or goes on there."""
  given = flags.FLAGS
  with command_line.checking_input():
    seeds = _parse_seeds(given.seeds)
    _check_processes(given.coordinator, given.num_processes, given.process_id)

  # JAX is imported here: a mistake in the flags is answered before that.
  import jax

  if given.coordinator == "auto":
    jax.distributed.initialize()
  elif given.coordinator:
    jax.distributed.initialize(
      given.coordinator, given.num_processes, given.process_id
    )
  from saw_jax.run import build, config, run_directory
  from saw_jax.training import hosts

  with command_line.checking_input():
    run = config.typed(command_line.given_config())
    document = {**config.to_config(run).to_dict(), "seeds": seeds}
    run_directory.check_run(given.workdir, document)
    experiment = build.build(run)
  if hosts.is_first():
    run_directory.open_run(given.workdir, document)
  result = build.train(
    experiment, seeds, directory=given.workdir, resume_step=given.resume_step
  )
  if not result.finished:
    print(
      f"stopped after step {result.step}, saved; the same command goes on "
      f"from there:\n  python {' '.join(sys.argv)}"
    )
    return command_line.INTERRUPTED
  for seed in result.final:
    scores = ", ".join(
      f"{name} {value:.3f}" for name, value in seed["greedy"].items()
    )
    logging.info("seed %d, held out, greedy: %s", seed["seed"], scores)
  return 0


def _check_processes(
  coordinator: str | None, count: int | None, index: int | None
) -> None:
  both = "--num_processes and --process_id"
  if coordinator in (None, "auto"):
    if (count, index) != (None, None):
      raise ValueError(f"{both} go with --coordinator=host:port")
  elif None in (count, index):
    raise ValueError(f"--coordinator=host:port needs {both}")
  elif ":" not in coordinator:
    raise ValueError(f"--coordinator is host:port or auto, not {coordinator!r}")
  elif index >= count:
    raise ValueError(
      f"--process_id={index} is not below --num_processes={count}"
    )


def _parse_seeds(words: list[str]) -> list[int]:
  try:
    seeds = [int(word) for word in words]
  except ValueError:
    raise ValueError(
      f"--seeds is a list of integers, not {','.join(words)!r}"
    ) from None
  if len(set(seeds)) != len(seeds) or not seeds:
    raise ValueError(f"--seeds must differ from each other, not {seeds}")
  return seeds
