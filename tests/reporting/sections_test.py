"""What tables say of rewards whose numbers are known, and what they draw.

All else that is in a table is held to the letter by golden_tables_test.py.
"""

import dataclasses
import itertools
import json
import sys

import pytest

from saw_jax.reporting import (
  catalogue,
  plots,
  report,
  statistics,
  tables,
)
from saw_jax.reporting.runs import RowRuns
from saw_jax.reporting.sections import comparisons, labels
from saw_jax.reporting.sections import rewards as rewards_lib
from tests.reporting import golden_tables, made_up

STEPS = 40
SEEDS = (0, 1)


def make_run(directory, metrics, finals, evals=()):
  """A finished run; a metric is a number, or a function of step and seed."""
  lines = [["step", "seed", *metrics]]
  for step, seed in itertools.product(range(STEPS), SEEDS):
    values = [v(step, seed) if callable(v) else v for v in metrics.values()]
    lines.append([step, seed, *values])
  made_up.write_run(
    directory, lines, dict.fromkeys(SEEDS, finals), evals, step=STEPS
  )


class Written:
  """A table from made-up runs, and its text."""

  def __init__(self, folder, name, runs):
    for run, made in runs.items():
      make_run(folder / run, *made)
    found = {run: RowRuns((folder / run,)) for run in runs}
    self.folder = folder / "out"
    how = {"scale": "tiny", "command": "make it"}
    report.write(catalogue.load(name), found, self.folder, **how)
    self.text = (self.folder / "table.md").read_text()
    self.files = {path.name for path in self.folder.iterdir()}

  def lines(self, heading, row):
    section = self.text[self.text.index(heading) :]
    return [
      [cell.strip() for cell in line.strip("|").split("|")][1:]
      for line in section.splitlines()
      if line.startswith(f"| {row} |")
    ]

  def row(self, heading, row):
    return self.lines(heading, row)[0]


DRAWN = {
  "paw/household": "success lambda observation_nll clipped_tokens differences",
  "care/knights": "accuracy_by_budget curves majorities hopeless wasted",
  "asympo/math": "curves final_by_lag_paper final_by_lag_others likelihoods",
  "saw/summaries": "curves difference_conciseness difference_quality",
}


@pytest.mark.parametrize("name", catalogue.names())
def test_no_picture_is_written_over_another(name, tmp_path, monkeypatch):
  drawn = []

  def draw(*_, path, **looks):
    drawn.extend(one.name for one in path)

  for kind in ("reward_curves", "metric_panels", "sweep", "difference_forest"):
    monkeypatch.setattr(plots, kind, draw)
  golden_tables.write((name, "tiny", SEEDS, True), tmp_path)
  assert len(set(drawn)) == len(drawn) > 1
  if name in DRAWN:
    assert set(drawn) == {f"{one}.png" for one in DRAWN[name].split()}


@pytest.mark.parametrize(
  ("name", "runs", "panels"),
  [
    ("paw/household", ("grpo", "grpo_paw"), ["with and without PaW"]),
    ("composed/tool_calling", ("all", "none"), ["all or none"]),
    ("composed/tool_calling", None, ["one taken away", "one alone"]),
    ("asympo/math", None, [f"lag {lag}" for lag in (0, 4, 16, 32)]),
  ],
)
def test_no_panel_shows_the_runs_of_another(
  name, runs, panels, tmp_path, monkeypatch
):
  drawn = {}
  monkeypatch.setattr(
    plots,
    "metric_panels",
    lambda panels, *_, path, **looks: drawn.update({path[0].stem: [*panels]}),
  )
  table = catalogue.load(name)
  finals = dict.fromkeys(table.columns("tiny").values(), 0.5)
  rates = dict.fromkeys((*table.curves, "reward/total", "seconds/step"), 0.5)
  runs = dict.fromkeys(runs or table.default_runs, (rates, finals))
  Written(tmp_path, name, runs)
  assert drawn and all(one == panels for one in drawn.values())


@pytest.fixture(scope="module")
def rewards(tmp_path_factory):
  def run(first):  # step at which both rewards are high enough
    metrics = {
      "reward/quality": lambda step, seed: 2.0 * (step >= first),
      "reward/conciseness": lambda step, seed: 9.0 * (step >= first + seed),
      "entropy": 0.5,
      "seconds/step": 2.0,
      "seconds/estimate": 0.1,
    }
    evals = [["step", "seed", "quality", "conciseness"]]
    evals += [[0, seed, 1 + seed, 0] for seed in SEEDS]
    evals += [[STEPS, seed, 3 + 2 * seed, 0] for seed in SEEDS]
    columns = catalogue.load("saw/summaries").columns("tiny")
    return metrics, dict.fromkeys(columns.values(), float(first)), evals

  runs = {"gdpo_saw": run(4), "gdpo": run(10)}
  runs["gdpo_static"] = run(STEPS)
  return Written(tmp_path_factory.mktemp("rewards"), "saw/summaries", runs)


class TestRewards:
  def test_before_and_after(self, rewards):
    # Mean 1.5, deviation √½, t of one degree of freedom 12.706: ± 6.353.
    ends = ["1.500 [-4.853, 7.853] (2)", "4.000 [-8.706, 16.706] (2)"]
    assert rewards.row("### Before", "gdpo_saw") == ["quality", *ends]

  def test_steps_to_a_threshold_count_from_one(self, rewards):
    # The last of five steps of which enough are high: 4 of 5, then 5 of 5.
    cells = rewards.row("### Steps until", "gdpo_saw")
    assert cells == ["8 (2/2 reached)", "9.5 (2/2 reached)", "2.00", "5.00 %"]
    late = rewards.row("### Steps until", "gdpo_static")
    assert late[0] == "> 40 (0/2 reached)"

  def test_differences_of_scores_means_and_steps(self, rewards):
    lines = rewards.lines("### Paired", "gdpo_saw - gdpo")
    found = dict(cells[:2] for cells in lines)
    assert found["quality, greedy"] == "-6.000"
    assert found["reward/quality, mean over training"] == "+0.300"
    assert found["steps to reward/quality ≥ 1.5"] == "-6.000"
    lines = rewards.lines("### Paired", "gdpo_saw - gdpo_static")
    late = dict(cells[:2] for cells in lines)
    assert late["steps to reward/quality ≥ 1.5"] == "-32.000"

  @pytest.mark.parametrize("step", [STEPS, STEPS - 10])
  def test_over_examples_where_evaluate_was_run(self, tmp_path, step, caplog):
    scores, path = {"greedy/total": 1.0}, tmp_path / "gdpo"
    make_run(path, {"entropy": 1.0}, scores, [["step", "seed"]])
    (path / "evals.csv").write_text("step,seed,quality\n20,7,9\n")
    ends = (0, "evaluation_start", 1.5), (step, "evaluation", 4.0)
    for at, name, mean in ends:
      found = {"mean": mean, "std": 1.0, "low": mean - 1, "high": mean + 1}
      entry = {"seed": 7, "greedy": {"quality": {**found, "count": 128}}}
      document = json.dumps({"step": at, "seeds": [entry]})
      (path / f"{name}.json").write_text(document)
    table = catalogue.load("saw/summaries")
    table = dataclasses.replace(table, components=("quality",))
    rows = {"gdpo": RowRuns((path,))}
    found = report.Found(table, "tiny", tmp_path, rows)
    told = (
      "| gdpo, seed 7, over examples | quality | 1.500 [0.500, 2.500] (128) | "
      "4.000 [3.000, 5.000] (128) |"
    )
    is_last = step == STEPS
    assert (told in rewards_lib.before_and_after(found)) == is_last
    assert (f"evaluation.json is of step {step}" in caplog.text) != is_last

  def test_a_run_of_a_few_steps_has_no_seconds(self, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "STEPS", 3)
    table = catalogue.load("saw/summaries")
    metrics = dict.fromkeys((*table.thresholds, "seconds/step"), 1.0)
    make_run(tmp_path / "gdpo", metrics, {"greedy/total": 1.0})
    rows = {"gdpo": RowRuns((tmp_path / "gdpo",))}
    found = report.Found(table, "tiny", tmp_path, rows)
    (line,) = (
      line
      for line in rewards_lib.steps_to_thresholds(found)
      if line.startswith("| gdpo |")
    )
    assert line.endswith("| - | - |")


@pytest.mark.parametrize("first", [0, 20])
def test_what_was_not_scored_before_training_is_not_told(tmp_path, first):
  table = catalogue.load("care/knights")
  evals = [["step", "seed", "right"], [first, 0, 0.25], [STEPS, 0, 1.0]]
  make_run(tmp_path / "vote", {"audit/correct": 0.5}, {}, evals)
  rows = {"vote": RowRuns((tmp_path / "vote",))}
  found = report.Found(table, "tiny", tmp_path, rows)
  told = "Before training: 25.0 % right, greedy."
  assert labels.before(found) == ["", *[told, ""] * (not first), table.note]


def test_one_seed_has_no_interval_and_no_differences(tmp_path):
  assert tables.mean_and_width(statistics.summarise([0.25])) == "0.250"
  table = catalogue.load("composed/tool_calling")
  scores = dict.fromkeys(table.columns("tiny").values(), 0.5)
  for row in ("all", "none"):
    make_run(tmp_path / row, {"audit/correct": 0.5}, scores)
  rows = {row: RowRuns((tmp_path / row,), (0,)) for row in ("all", "none")}
  found = report.Found(table, "tiny", tmp_path, rows)
  assert comparisons.compare(found) == {}
  assert comparisons.paired_differences(found) == []
