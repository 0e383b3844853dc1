"""The tables and pictures of runs that bought labels, from run directories."""

import csv
import json

import pytest

from configs.care import knights
from saw_jax.reporting import label_report
from saw_jax.reporting.run_plan import RowRuns

STEPS = 40
RUNS = ("vote", "random_0.2", "care_0.05", "care_0.2", "random_0.4")


def make_run(directory, name, *, score):
  """A finished run of two seeds."""
  directory.mkdir(parents=True)
  values = {
    "reward/total": 1.0,
    "audit/correct": 0.5,
    "audit/vote_right": 0.6,
    "audit/majority": 0.7,
    "entropy": 0.2,
    "seconds/step": 2.0,
  }
  if name != "vote":
    values |= {
      "overlap/labelled": 0.4,
      "labels/wasted": 0.3,
      "labels/hopeless": 0.1,
      "seconds/choose": 0.1,
    }
  if name.startswith("care"):
    values |= {"gate/precision": 0.9, "seconds/probes": 0.3}
  with (directory / "metrics.csv").open("w", newline="") as file:
    writer = csv.writer(file)
    counted = [] if name == "vote" else ["labels/bought", "labels/prompts"]
    writer.writerow(["step", "seed", *values, *counted])
    for step in range(STEPS):
      # Falls from 0.5 to 0.1 in the middle of the votes' run.
      late = {"audit/correct": 0.1} if name == "vote" and step > 20 else {}
      row = list((values | late).values())
      for seed in (0, 1):
        writer.writerow([step, seed, *row, *[7 * (step + 1)] * len(counted)])
  finals = [
    {
      "seed": seed,
      "step": STEPS,
      "greedy": {"right": score},
      "sampled": {"right": score + 0.1 * seed, "maj@8": score},
    }
    for seed in (0, 1)
  ]
  (directory / "final.json").write_text(json.dumps(finals))
  (directory / "evals.csv").write_text(
    "step,seed,right\n0,0,0.25\n0,1,0.5\n20,0,0.9\n20,1,0.9\n"
  )
  document = {"config": {}, "commit": "abc", "machine": "one machine"}
  (directory / "run.json").write_text(json.dumps(document))


@pytest.fixture(scope="module")
def out(tmp_path_factory):
  folder = tmp_path_factory.mktemp("labels")
  directories = {}
  for name in RUNS:
    path = folder / "runs" / name
    directories[name] = RowRuns((path,))
    make_run(path, name, score=0.7 if name == "care_0.2" else 0.2)
  label_report.write(
    knights, directories, folder / "out", scale="tiny", command="make it"
  )
  return folder / "out"


def row_of(text, heading, row):
  section = text[text.index(heading) :]
  line = next(x for x in section.splitlines() if x.startswith(f"| {row} |"))
  return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_the_main_table_is_at_one_budget(out):
  text = (out / "table.md").read_text()
  assert "0.700" in row_of(text, "held out", "care")[0]
  assert "0.200" in row_of(text, "held out", "random")[0]
  assert "Before training: 37.5 % right, greedy." in text
  assert "make it" in text and "abc" in text


def test_accuracy_by_budget_leaves_out_what_was_not_run(out):
  text = (out / "table.md").read_text()
  care = row_of(text, "by budget", "care")
  assert [cell[:5] for cell in care] == ["0.250", "0.750", "-"]
  random = row_of(text, "by budget", "random")
  assert [cell[:5] for cell in random] == ["-", "0.250", "0.250"]


def test_training_shows_what_fell(out):
  text = (out / "table.md").read_text()
  cells = row_of(text, "### Training", "vote")
  assert cells[:2] == ["0.500", "0.100"]


def test_labels_are_counted_at_the_end_and_their_cost_is_a_share(out):
  text = (out / "table.md").read_text()
  lines = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in text[text.index("### Labels") :].splitlines()
    if line.startswith("| care |")
  ]
  budgets = [cells[1] for cells in lines]
  assert budgets == ["5 %", "20 %"]
  assert lines[0][2:] == [
    "280", "280", "0.400", "0.300", "0.100", "0.900", "20.0",
  ]  # fmt: skip
  assert row_of(text, "### Labels", "random")[-2:] == ["-", "5.0"]


def test_pairs_seeds(out):
  text = (out / "table.md").read_text()
  assert row_of(text, "### Paired", "care - random")[1] == "+0.500"


def test_draws_the_pictures(out):
  assert {path.name for path in out.glob("*.png")} == {
    "accuracy_by_budget.png",
    "curves.png",
    "majorities.png",
    "overlaps.png",
    "wasted.png",
  }


def test_runs_that_make_no_table_are_refused_before_they_run():
  label_report.check(knights, ["care_0.05", "vote"])
  label_report.check(knights, ["care_0.05", "random_0.2"])
  with pytest.raises(ValueError, match="none of care_0.05 has labels for 20 %"):
    label_report.check(knights, ["care_0.05"])


def test_runs_that_bought_nothing_have_no_table_of_labels(tmp_path):
  make_run(tmp_path / "vote", "vote", score=0.2)
  label_report.write(
    knights,
    {"vote": RowRuns((tmp_path / "vote",))},
    tmp_path / "out",
    scale="tiny",
    command="make it",
  )
  assert "### Labels" not in (tmp_path / "out" / "table.md").read_text()
