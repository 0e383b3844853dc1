"""Eight seeds as one program beside eight runs one after another.

  python benchmarks/seeds.py [--repetitions=3] [--steps=20]

Runs experiments/train.py as a user would, in processes of their own, in turn:
once with all seeds, and once for each seed. Writes
benchmarks/results/seeds.{json,md}: the time of eight runs over that of one, of
whole commands (start, compilation, evaluation and all) and of steps alone. The
supervised start is made before, and no program is kept between commands.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import shared  # noqa: E402

CONFIG = "configs/saw/tool_calling.py:row=gdpo_saw,scale=tiny"
SEEDS = range(8)
SKIPPED = 3  # steps that compile


def command(seeds, workdir, steps: int) -> list[str]:
  """Returns the command that trains some seeds."""
  return [
    sys.executable,
    str(ROOT / "experiments" / "train.py"),
    f"--workdir={workdir}",
    f"--seeds={','.join(map(str, seeds))}",
    f"--config={ROOT / CONFIG}",
    f"--config.loop.num_steps={steps}",
    "--config.loop.checkpoint_interval=0",
    "--config.evaluation.interval=0",
  ]


def train(seeds, steps: int) -> tuple[float, float]:
  """Trains some seeds; returns seconds of the command, and of all its steps."""
  from saw_jax.reporting import runs

  with tempfile.TemporaryDirectory() as directory:
    workdir = pathlib.Path(directory) / "run"
    started = time.perf_counter()
    done = subprocess.run(
      command(seeds, workdir, steps),
      env={**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"},
      capture_output=True,
      text=True,
      check=False,
    )
    seconds = time.perf_counter() - started
    if done.returncode:
      raise SystemExit(f"train.py failed:\n{done.stderr[-2000:]}")
    found = runs.read_curves([workdir]).values["seconds/step"][0, SKIPPED:]
  return seconds, float(np.median(found)) * steps


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--repetitions", type=int, default=3)
  parser.add_argument("--steps", type=int, default=20, help="of each run")
  flags = parser.parse_args()
  if flags.steps <= SKIPPED:
    parser.error(f"--steps: the first {SKIPPED} compile, and are not timed")

  train([0], steps=SKIPPED + 1)  # makes the supervised start
  ratios: dict[str, list[float]] = {"commands": [], "steps": []}
  for repetition in range(flags.repetitions):
    jobs = [[list(SEEDS)], [[seed] for seed in SEEDS]]
    times = {}
    for job in shared.order(jobs, repetition):
      print(
        f"repetition {repetition + 1} of {flags.repetitions}: {len(job)} "
        "command(s)",
        flush=True,
      )
      found = [train(seeds, flags.steps) for seeds in job]
      times[len(job)] = np.sum(found, axis=0)
    together, apart = times[1], times[len(SEEDS)]
    for name, ratio in zip(ratios, apart / together, strict=True):
      ratios[name].append(float(ratio))
    write(ratios, flags.steps)  # Whoever stops it has what was measured.


def write(ratios: dict[str, list[float]], steps: int) -> None:
  """Writes what was measured so far."""
  names = {"commands": "whole commands", "steps": "steps alone"}
  shared.write(
    "seeds",
    {
      "ratios": ratios,
      "medians": {name: float(np.median(x)) for name, x in ratios.items()},
      "seeds": len(SEEDS),
      "steps": steps,
    },
    f"{len(SEEDS)} runs one after another, over one of {len(SEEDS)} seeds",
    ["time of", "ratio", "range"],
    [
      [
        what,
        f"{np.median(found):.2f}",
        shared.between((min(found), max(found))),
      ]
      for found, what in ((ratios[name], names[name]) for name in names)
    ],
    f"`{CONFIG}`, {steps} steps, {len(ratios['steps'])} repetition(s) in turn; "
    "medians.",
  )


if __name__ == "__main__":
  main()
