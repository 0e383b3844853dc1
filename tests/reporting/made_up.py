"""Run directories with numbers that no run has made."""

import csv
import json


def write_run(directory, metrics, scores, evals=(), *, step, **document):
  """Writes a finished run of so many steps.

  `metrics` and `evals` are lines, the first of names; `scores` are by seed and
  by name, as greedy/total.
  """
  directory.mkdir(parents=True)
  evals = evals or [["step", "seed", "right"]]
  for name, lines in (("metrics", metrics), ("evals", evals)):
    with (directory / f"{name}.csv").open("w", newline="") as file:
      csv.writer(file).writerows(lines)
  records = []
  for seed, of in scores.items():
    records.append({"seed": seed, "step": step})
    for score, value in of.items():
      how, _, figure = score.rpartition("/")
      records[-1].setdefault(how, {})[figure] = value
  (directory / "final.json").write_text(json.dumps(records))
  document = {
    "config": {},
    "commit": "abc",
    "machine": "one machine",
  } | document
  (directory / "run.json").write_text(json.dumps(document))
