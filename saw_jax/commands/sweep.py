"""Trains every combination of some values, one after the other.

  saw sweep --workdir=runs/sweep --config=saw/tool_calling:gdpo_saw,tiny \\
    --grid optimizer.learning_rate=1e-4,3e-4 --grid loop.group_size=4,8

Each cell is a `saw train` with all other flags of this command, in a directory
of --workdir that is named by its values. The same command goes on where it was,
and ends with a table of the cells' held-out scores, which is in sweep.csv, too.
--plan=print only prints the commands; --plan=slurm writes them as a job array
to sweep.sbatch, for `sbatch`, or has submitit submit them (the extra submitit):

  saw sweep ... --plan=slurm --submit=slurm,timeout_min=600,gpus_per_node=1

Afterwards, the same command without --plan makes the table.
"""

import logging
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from saw_jax.commands import grid, train
from saw_jax.run import children, command_line, store

_OWN = ("grid", "plan", "submit", "workdir")
_END = "final.json"


def main() -> int:
  given = flags.FLAGS
  with command_line.checking_input():
    folder = store.folder_of(given.workdir, "--workdir")
    if given.submit and given.plan != "slurm":
      raise ValueError("--submit goes with --plan=slurm")
    submits = given.submit and grid.open_executor(folder, given.submit)
    seeds, cells = train.read_seeds(), grid.cells(given.grid)
    todo = [x for x in cells if not _check(folder / x, cells[x], seeds)]
  shared = grid.without(sys.argv[1:], _OWN)
  commands = {
    name: ["train", *shared, f"--workdir={folder / name}"]
    + [f"--config.{key}={value}" for key, value in cells[name].items()]
    for name in todo
  }
  if todo and given.plan == "print":
    for words in commands.values():
      print("saw", shlex.join(words))
    return 0
  if todo and given.plan == "slurm":
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "sweep.sbatch"
    path.write_text(grid.job_array(folder, list(commands.values())))
    count = f"{len(todo)} of {len(cells)} cells"
    if submits:
      _submit(submits, commands, count)
    else:
      print(f"{count}: sbatch {path}")
    return 0
  failed = []
  with children.Children() as runner:
    for number, (name, words) in enumerate(commands.items(), 1):
      logging.info("cell %d of %d: %s", number, len(commands), name)
      status = runner.run(children.saw(*words))
      if status == command_line.INTERRUPTED or runner.stopped:
        print(f"stopped; the same command goes on:\n  {command_line.again()}")
        return command_line.INTERRUPTED
      failed += [f"{name}, with status {status}"] if status else []
  if done := {x: cells[x] for x in cells if (folder / x / _END).exists()}:
    from saw_jax.reporting import cells as cells_lib

    print(cells_lib.write(folder, done))
  for line in failed:
    print(f"failed: {line}")
  return int(bool(failed))


def _submit(
  executor: Any, commands: Mapping[str, Sequence[str]], count: str
) -> None:
  words = [children.saw(*one) for one in commands.values()]
  try:
    jobs = executor.map_array(subprocess.check_call, words)
  except RuntimeError as error:
    raise command_line.UsageError(f"--submit: {error}") from error
  print(f"{count}, logs in {executor.folder}:")
  for name, job in zip(commands, jobs, strict=True):
    print(f"  job {job.job_id}: {name}")
    if executor.cluster == "debug":  # It runs a job when its result is asked.
      job.results()


def _check(
  directory: pathlib.Path, cell: Mapping[str, str], seeds: Sequence[int]
) -> bool:
  """Checks a cell's config; whether the cell was trained to its end."""
  from saw_jax.reporting import runs
  from saw_jax.run import build, config, run_directory

  run = config.typed(train.given_config(*cell.items()))
  run, task = build.remembered(run, directory, None)
  # A plan may run on other devices.
  here = (seeds, directory) if flags.FLAGS.plan == "run" else ()
  build.outline(run, *here, task=task)
  document = run_directory.document_of(run, seeds)
  run_directory.check_run(directory, document, run.optimizer)
  if not (directory / _END).exists():
    return False
  return runs.read_finals([directory]).step == run.loop.num_steps
