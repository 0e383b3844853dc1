"""The tables and pictures of a swept table, from run directories."""

import csv
import json

import numpy as np
import pytest

from configs.asympo import math
from saw_jax.reporting import sweep_report
from saw_jax.reporting.run_plan import RowRuns

STEPS = 40
RUNS = ("naive_lag0", "naive_lag16", "asympo_lag0", "asympo_lag16")


def make_run(directory, *, falls, score):
  """A finished run of two seeds, whose reward may fall at the end."""
  directory.mkdir(parents=True)
  names = ["reward/total", "nll/positive", "nll/negative", "entropy", "length"]
  with (directory / "metrics.csv").open("w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["step", "seed", *names, "zero_advantage"])
    for step in range(STEPS):
      reward = 0.1 if falls and step > STEPS // 2 else 0.6
      for seed in (0, 1):
        # Only the first seed falls.
        value = 0.6 if seed else reward
        writer.writerow([step, seed, value, 0.2, 1.5, 0.3, 6.0, 0.5])
  finals = [
    {
      "seed": seed,
      "step": STEPS,
      "greedy": {"right": score},
      "sampled": {"mean@8": score + 0.1 * seed},
    }
    for seed in (0, 1)
  ]
  (directory / "final.json").write_text(json.dumps(finals))
  document = {"config": {}, "commit": "abc", "machine": "one machine"}
  (directory / "run.json").write_text(json.dumps(document))


@pytest.fixture(scope="module")
def out(tmp_path_factory):
  folder = tmp_path_factory.mktemp("sweep")
  directories = {}
  for name in RUNS:
    falls = name == "naive_lag16"
    path = folder / "runs" / name
    directories[name] = RowRuns((path,))
    make_run(path, falls=falls, score=0.2 if falls else 0.5)
  sweep_report.write(
    math, directories, folder / "out", scale="tiny", command="make it"
  )
  return folder / "out"


def row_of(text, heading, row):
  section = text[text.index(heading) :]
  line = next(x for x in section.splitlines() if x.startswith(f"| {row} |"))
  return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_counts_the_seeds_that_collapsed(out):
  text = (out / "table.md").read_text()
  assert row_of(text, "### Seeds that collapsed", "naive") == ["0/2", "1/2"]
  assert row_of(text, "### Seeds that collapsed", "asympo") == ["0/2", "0/2"]
  assert "below 50 % of the best such mean" in text


def test_has_a_column_for_each_value_and_the_published_apart(out):
  text = (out / "table.md").read_text()
  first = text.splitlines()
  head = next(line for line in first if line.startswith("| row |"))
  assert head.index("lag 0 (here") < head.index("lag 16 (here")
  assert "(published)" in head
  assert "0.250" in row_of(text, "held-out", "naive")[1]
  assert row_of(text, "held-out", "asympo")[-1].startswith("36.98")


def test_pairs_seeds_at_each_value(out):
  text = (out / "table.md").read_text()
  cells = row_of(text, "### Paired", "asympo - naive, lag 16")
  assert cells[0] == "held-out mean@8"
  assert cells[1] == "+0.300"
  assert "make it" in text and "abc" in text


def test_draws_the_pictures(out):
  assert {path.name for path in out.glob("*.png")} == {
    "final_by_lag_paper.png",
    "curves.png",
    "likelihoods.png",
  }


def test_the_kept_curves_average_blocks_of_steps(out):
  with (out / "curves.csv").open() as file:
    lines = list(csv.DictReader(file))
  assert len(lines) == len(RUNS) * 2 * STEPS // 5
  assert {int(line["step"]) for line in lines} == set(range(0, STEPS, 5))
  naive = [
    float(line["reward/total"])
    for line in lines
    if line["row"] == "naive_lag16" and line["seed"] == "0"
  ]
  np.testing.assert_allclose(naive[:4], 0.6)
  np.testing.assert_allclose(naive[-3:], 0.1)
