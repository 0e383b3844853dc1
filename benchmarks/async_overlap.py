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
  from saw_jax.run import build, metrics, run_directory

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
    names = list(LOOPS)
    if repetition % 2:
      names.reverse()  # no loop always goes first
    for name in names:
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
  rows = {
    name: {
      "idle_share": float(np.median(shares[name])),
      "idle_share_range": [min(shares[name]), max(shares[name])],
      "speed": float(np.median(base / np.array(seconds[name]))),
      "speed_range": [
        float((base / np.array(seconds[name])).min()),
        float((base / np.array(seconds[name])).max()),
      ],
    }
    for name in LOOPS
  }
  document = {
    "loops": rows,
    "repetitions": REPETITIONS,
    "steps": STEPS - SKIPPED,
    **run_directory.environment(),
  }
  out = ROOT / "benchmarks" / "results"
  out.mkdir(exist_ok=True)
  metrics.write_json(out / "async_overlap.json", document)
  lines = [
    "### The learner's idle share",
    "",
    "| loop | idle share | range | speed against synchronous | range |",
    "| --- | ---: | ---: | ---: | ---: |",
  ]
  for name, row in rows.items():
    lines.append(
      f"| {name} | {100 * row['idle_share']:.1f} % | "
      f"{100 * row['idle_share_range'][0]:.1f} to "
      f"{100 * row['idle_share_range'][1]:.1f} % | {row['speed']:.2f} | "
      f"{row['speed_range'][0]:.2f} to {row['speed_range'][1]:.2f} |"
    )
  lines += [
    "",
    f"{config.task.name} at tiny, two seeds, {REPETITIONS} repetitions of "
    f"{STEPS - SKIPPED} steps, in turn; medians. {document['machine']}, commit "
    f"{document['commit']}.",
    "",
  ]
  (out / "async_overlap.md").write_text("\n".join(lines))
  print("\n".join(lines))


if __name__ == "__main__":
  main()
