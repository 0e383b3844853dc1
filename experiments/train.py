"""Trains a policy.

  python experiments/train.py --workdir=runs/gdpo_saw --seeds=0,1 \
    --config=configs/saw/tool_calling.py:row=gdpo_saw,scale=tiny

Several processes, each with its own devices, train one policy over one mesh
(config.parallel.lift=meshed): start each with the same command, and

  --coordinator=host:port --num_processes=2 --process_id=0

Several seeds run as one program. Run the same command again to go on after
Ctrl-C or a crash: the finished run is the one that was never interrupted.
"""

import logging
import sys

from absl import flags

from saw_jax.run import command_line

_CONFIG = command_line.define_config()
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Where metrics and checkpoints go.", required=True
)
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds, all in one program.")
_RESUME_STEP = flags.DEFINE_integer(
  "resume_step",
  None,
  "Go on from this checkpoint rather than the latest one.",
  lower_bound=0,
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator",
  None,
  "host:port of the first of several processes that train one policy, or auto "
  "where the cluster says it (Slurm, MPI, TPU pods).",
)
_NUM_PROCESSES = flags.DEFINE_integer(
  "num_processes", None, "How many there are.", lower_bound=1
)
_PROCESS_ID = flags.DEFINE_integer(
  "process_id", None, "Which of them this is, from 0.", lower_bound=0
)
flags.mark_flag_as_required("config")


def main() -> int:
  with command_line.checking_input():
    seeds = parse_seeds(_SEEDS.value)
    check_processes(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)

  # JAX is imported here: a mistake in the flags is answered before that.
  import jax

  if _COORDINATOR.value == "auto":
    jax.distributed.initialize()
  elif _COORDINATOR.value:
    jax.distributed.initialize(
      _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
    )
  from saw_jax.run import build, run_directory
  from saw_jax.training import hosts

  with command_line.checking_input():
    document = {**_CONFIG.value.to_dict(), "seeds": seeds}
    run_directory.check_run(_WORKDIR.value, document)
    experiment = build.build(_CONFIG.value)
  if hosts.is_first():
    run_directory.open_run(_WORKDIR.value, document)
  result = build.train(
    experiment,
    seeds,
    directory=_WORKDIR.value,
    resume_step=_RESUME_STEP.value,
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


def check_processes(
  coordinator: str | None, count: int | None, index: int | None
) -> None:
  given = count is not None, index is not None
  if coordinator in (None, "auto"):
    if any(given):
      raise ValueError(
        "--num_processes and --process_id go with --coordinator=host:port"
      )
    return
  if not all(given):
    raise ValueError(
      "--coordinator=host:port needs --num_processes and --process_id"
    )
  if ":" not in coordinator:
    raise ValueError(f"--coordinator is host:port or auto, not {coordinator!r}")
  if index >= count:
    raise ValueError(
      f"--process_id={index} is not below --num_processes={count}"
    )


def parse_seeds(words: list[str]) -> list[int]:
  try:
    seeds = [int(word) for word in words]
  except ValueError:
    raise ValueError(
      f"--seeds is a list of integers, not {','.join(words)!r}"
    ) from None
  if len(set(seeds)) != len(seeds) or not seeds:
    raise ValueError(f"--seeds must differ from each other, not {seeds}")
  return seeds


if __name__ == "__main__":
  command_line.run(main)
