"""Eight seeds as one program beside eight runs one after another.

  python benchmarks/seeds.py

Runs experiments/train.py as a user would, in processes of their own, in turn:
once with all seeds, and once for each seed. Writes
benchmarks/results/seeds.{json,md}: the time of eight runs over that of one, of
whole commands (start, compilation, evaluation and all) and of steps alone. The
supervised start is made before, and no program is kept between commands.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

CONFIG = "configs/saw/tool_calling.py:row=gdpo_saw,scale=tiny"
SEEDS = range(8)
REPETITIONS = 3
STEPS = 20
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


def train(seeds, steps: int = STEPS) -> tuple[float, float]:
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
  from saw_jax.training import run_directory

  train([0], steps=SKIPPED + 1)  # makes the supervised start
  ratios: dict[str, list[float]] = {"commands": [], "steps": []}
  for repetition in range(REPETITIONS):
    jobs = [[list(SEEDS)], [[seed] for seed in SEEDS]]
    times = {}
    for job in jobs if repetition % 2 == 0 else jobs[::-1]:
      print(
        f"repetition {repetition + 1} of {REPETITIONS}: {len(job)} command(s)"
      )
      times[len(job)] = np.sum([train(seeds) for seeds in job], axis=0)
    together, apart = times[1], times[len(SEEDS)]
    for name, ratio in zip(ratios, apart / together, strict=True):
      ratios[name].append(float(ratio))

  document = {
    "ratios": ratios,
    "medians": {name: float(np.median(x)) for name, x in ratios.items()},
    "seeds": len(SEEDS),
    "steps": STEPS,
    **run_directory.environment(),
  }
  out = ROOT / "benchmarks" / "results"
  out.mkdir(exist_ok=True)
  (out / "seeds.json").write_text(json.dumps(document, indent=2) + "\n")
  lines = [
    f"### {len(SEEDS)} runs one after another, over one of {len(SEEDS)} seeds",
    "",
    "| time of | ratio | range |",
    "| --- | ---: | ---: |",
  ]
  for name, what in (("commands", "whole commands"), ("steps", "steps alone")):
    found = ratios[name]
    lines.append(
      f"| {what} | {np.median(found):.2f} | {min(found):.2f} to "
      f"{max(found):.2f} |"
    )
  lines += [
    "",
    f"`{CONFIG}`, {STEPS} steps, {REPETITIONS} repetitions in turn; medians. "
    f"{document['machine']}, commit {document['commit']}.",
    "",
  ]
  (out / "seeds.md").write_text("\n".join(lines))
  print("\n".join(lines))


if __name__ == "__main__":
  main()
