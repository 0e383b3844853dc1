"""How long the learner waits: the asynchronous loop beside the synchronous one.

  python benchmarks/async_overlap.py

Trains the same policy with both loops in turn, in one process, and writes
benchmarks/results/async_overlap.{json,md}: the learner's idle share (time of a
step in which it neither estimates nor updates) and the ratio of the step times,
each as the median over repetitions of medians over steps.
"""

import pathlib
import sys
import tempfile

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import shared  # noqa: E402

REPETITIONS = 4
STEPS = 35
SKIPPED = 10  # steps that compile, or fill the queue
IDLE = ("generate", "score", "wait", "queue", "publish")
LOOPS = {
  "synchronous": {"protocol": "none"},
  "one thread, lag of at most 1": {
    "protocol": "max_lag",
    "lag": 1,
    "actors": 1,
  },
  "two threads, lag of at most 2": {
    "protocol": "max_lag",
    "lag": 2,
    "actors": 2,
  },
  "one process, lag of at most 2": {
    "protocol": "max_lag",
    "lag": 2,
    "actors": 1,
    "actor_kind": "process",
  },
}


def main() -> None:
  import dataclasses

  from configs.asympo import math
  from saw_jax.reporting import runs
  from saw_jax.run import build

  config = math.get_config("row=asympo,lag=0,scale=tiny")
  config.loop.num_steps = STEPS
  config.loop.checkpoint_interval = 0
  config.evaluation.interval = 0
  config.evaluation.num_examples = 8
  config.evaluation.batch_size = 8
  experiment = build.build(config)

  shares = {name: [] for name in LOOPS}
  seconds = {name: [] for name in LOOPS}
  for repetition in range(REPETITIONS):
    for name in shared.order(LOOPS, repetition):
      made = experiment._replace(
        asynchronous=dataclasses.replace(experiment.asynchronous, **LOOPS[name])
      )
      with tempfile.TemporaryDirectory() as directory:
        build.train(made, [0, 1], directory=directory)
        found = runs.read_curves([directory]).values
      step = found["seconds/step"][0, SKIPPED:]
      idle = sum(
        found[f"seconds/{part}"][0, SKIPPED:]
        for part in IDLE
        if f"seconds/{part}" in found
      )
      shares[name].append(float(np.median(idle / step)))
      seconds[name].append(float(np.median(step)))

  base = np.array(seconds["synchronous"])
  found = {
    name: shared.spread("idle_share", shares[name])
    | shared.spread("speed", base / np.array(seconds[name]))
    for name in LOOPS
  }
  rows = []
  for name, row in found.items():
    share, (low, high) = row["idle_share"], row["idle_share_range"]
    idle = f"{100 * share:.1f} %", f"{100 * low:.1f} to {100 * high:.1f} %"
    speed = f"{row['speed']:.2f}", shared.between(row["speed_range"])
    rows.append([name, *idle, *speed])
  timed = STEPS - SKIPPED
  shared.write(
    "async_overlap",
    {"loops": found, "repetitions": REPETITIONS, "steps": timed},
    "The learner's idle share",
    ["loop", "idle share", "range", "speed against synchronous", "range"],
    rows,
    f"{config.task.name} at tiny, two seeds, {REPETITIONS} repetitions of "
    f"{timed} steps, in turn; medians.",
  )


if __name__ == "__main__":
  main()
