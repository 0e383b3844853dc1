"""What tables say of runs whose numbers are known: by hand, section by section.

Main tables and paired differences are held to the letter by
golden_tables_test.py.
"""

import csv
import dataclasses
import itertools
import json

import numpy as np
import pytest

from saw_jax.reporting import catalogue, report, sections, statistics, tables
from saw_jax.reporting.runs import RowRuns

STEPS = 40
SEEDS = (0, 1)


def make_run(directory, metrics, finals, evals=()):
  """A finished run; metrics and scores are numbers or functions of the seed.

  A metric may also be a function of step and seed.
  """
  directory.mkdir(parents=True)
  lines = [["step", "seed", *metrics]]
  for step, seed in itertools.product(range(STEPS), SEEDS):
    values = [v(step, seed) if callable(v) else v for v in metrics.values()]
    lines.append([step, seed, *values])
  evals = evals or [["step", "seed", "right"]]
  for name, rows in (("metrics", lines), ("evals", evals)):
    with (directory / f"{name}.csv").open("w", newline="") as file:
      csv.writer(file).writerows(rows)
  records = [{"seed": seed, "step": STEPS} for seed in SEEDS]
  for record, (name, value) in itertools.product(records, finals.items()):
    how, _, figure = name.rpartition("/")
    score = value(record["seed"]) if callable(value) else value
    record.setdefault(how, {})[figure] = score
  (directory / "final.json").write_text(json.dumps(records))
  document = {"config": {}, "commit": "abc", "machine": "one machine"}
  (directory / "run.json").write_text(json.dumps(document))


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


@pytest.fixture(scope="module")
def episodes(tmp_path_factory):
  def run(score, world, kinds):
    def rising(step, seed):
      return score + (0.1 if step >= STEPS // 2 else 0.0)

    metrics = {"success": rising, "seconds/step": 0.5}
    if world:
      metrics["lambda"] = lambda step, seed: 1 - rising(step, seed)
      metrics |= {"loss/world_model": 0.25, "clipped_tokens": 0.75}
    figures = {
      f"{mode}/{name}": value
      for mode in ("greedy", "sampled")
      for name, value in (("right", score), ("length", 4.0))
    }
    figures |= {"greedy/observation_accuracy": 0.9, **kinds}
    figures["greedy/observation_nll"] = 0.3
    figures["sampled/right"] = lambda seed: score + 0.1 * seed
    return metrics, figures

  kinds = {"sampled/right_pick": 0.4, "sampled/right_look": 0.6}
  return Written(
    tmp_path_factory.mktemp("episodes"),
    "paw/household",
    {"grpo": run(0.5, False, {}), "grpo_paw": run(0.7, True, kinds)},
  )


class TestFigures:
  def test_curves_are_told_at_the_start_and_at_the_end(self, episodes):
    heading = "### First and last 5 steps"
    ends = ["0.700 → 0.800", "0.300 → 0.200", "0.250 → 0.250", "0.750 → 0.750"]
    assert episodes.row(heading, "grpo_paw") == ends
    assert episodes.row(heading, "grpo")[1:] == ["-"] * 3

  def test_seeds_are_paired(self, episodes):
    cells = episodes.row("### Paired differences", "grpo_paw - grpo")
    assert cells[:2] == ["success, sampled", "+0.200"]

  def test_kinds_are_told_where_there_are_any(self, episodes):
    heading = "### Held-out success by kind, sampled"
    assert "| row | look | pick |" in episodes.text
    assert episodes.row(heading, "grpo") == ["-", "-"]
    kinds = ["0.600 ± 0.000", "0.400 ± 0.000"]
    assert episodes.row(heading, "grpo_paw") == kinds

  def test_files(self, episodes):
    names = "success lambda world_model clipped_tokens differences".split()
    kept = {"table.md", "table.csv", "runs.csv", "curves.csv", "evals.csv"}
    assert episodes.files == kept | {f"{name}.png" for name in names}

  @pytest.mark.parametrize("name", catalogue.names())
  def test_no_picture_is_written_over_another(self, name):
    curves = catalogue.load(name).curves
    files = {sections.picture_name(metric, curves) for metric in curves}
    assert len(files) == len(curves)


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
  def run(name, score):
    metrics = {"reward/total": 1.0, "entropy": 0.2, "seconds/step": 2.0}
    metrics |= {"audit/correct": 0.5, "audit/vote_right": 0.6}
    metrics["audit/majority"] = 0.7
    if name == "vote":  # it falls in the middle of the run
      metrics["audit/correct"] = lambda step, seed: 0.1 if step > 20 else 0.5
    else:
      metrics |= {"overlap/labelled": 0.4, "labels/wasted": 0.3}
      metrics |= {"labels/hopeless": 0.1, "seconds/choose": 0.1}
      for count in ("bought", "prompts"):
        metrics[f"labels/{count}"] = lambda step, seed: 7 * (step + 1)
    if name.startswith("care"):
      metrics |= {"gate/precision": 0.9, "seconds/probes": 0.3}
    finals = {"greedy/right": score, "sampled/maj@8": score}
    finals["sampled/right"] = lambda seed: score + 0.1 * seed
    evals = [["step", "seed", "right"], [0, 0, 0.25], [0, 1, 0.5]]
    return metrics, finals, [*evals, [20, 0, 0.9], [20, 1, 0.9]]

  names = ("vote", "random_0.2", "care_0.05", "care_0.2", "random_0.4")
  return Written(
    tmp_path_factory.mktemp("labels"),
    "care/knights",
    {name: run(name, 0.7 if name == "care_0.2" else 0.2) for name in names},
  )


class TestLabels:
  def test_accuracy_by_budget_leaves_out_what_was_not_run(self, labels):
    care, random = (labels.row("by budget", row) for row in ("care", "random"))
    assert [cell[:5] for cell in care] == ["0.250", "0.750", "-"]
    assert [cell[:5] for cell in random] == ["-", "0.250", "0.250"]

  def test_training_shows_what_fell(self, labels):
    assert labels.row("### Training", "vote")[:2] == ["0.500", "0.100"]

  def test_labels_are_counted_at_the_end_and_cost_a_share(self, labels):
    small, main = labels.lines("### Labels", "care")
    means = ["0.400", "0.300", "0.100", "0.900"]
    assert small == ["5 %", "280", "280", *means, "20.0"]
    assert main[0] == "20 %"
    assert labels.row("### Labels", "random")[-2:] == ["-", "5.0"]

  def test_pictures(self, labels):
    names = "accuracy_by_budget curves majorities overlaps wasted".split()
    drawn = {file for file in labels.files if file.endswith(".png")}
    assert drawn == {f"{name}.png" for name in names}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
  def run(falls, score):
    def reward(step, seed):  # only the first seed falls
      return 0.1 if falls and seed == 0 and step > STEPS // 2 else 0.6

    metrics = {"reward/total": reward, "nll/positive": 0.2, "nll/negative": 1.5}
    metrics |= {"entropy": 0.3, "length": 6.0, "zero_advantage": 0.5}
    return metrics, {"sampled/mean@8": lambda seed: score + 0.1 * seed}

  others = ("naive_lag0", "asympo_lag0", "asympo_lag16")
  runs = {name: run(False, 0.5) for name in others}
  runs["naive_lag16"] = run(True, 0.2)
  return Written(tmp_path_factory.mktemp("sweep"), "asympo/math", runs)


class TestSweep:
  def test_seeds_that_collapsed_are_counted(self, sweep):
    heading = "### Seeds that collapsed"
    assert sweep.row(heading, "naive") == ["0/2", "1/2"]
    assert sweep.row(heading, "asympo") == ["0/2", "0/2"]
    assert "below 50 % of the best such mean" in sweep.text

  def test_the_end_is_told_at_the_greatest_value(self, sweep):
    heading = "### The last 10 steps at lag 16"
    cells = ["0.2", "1.5", "0.3", "6", "0.5", "-", "-"]
    assert sweep.row(heading, "asympo") == cells

  def test_the_kept_curves_average_blocks_of_steps(self, sweep):
    with (sweep.folder / "curves.csv").open() as file:
      lines = list(csv.DictReader(file))
    assert len(lines) == 4 * len(SEEDS) * STEPS // 5
    assert {int(line["step"]) for line in lines} == set(range(0, STEPS, 5))
    of = [x for x in lines if (x["row"], x["seed"]) == ("naive_lag16", "0")]
    naive = [float(line["reward/total"]) for line in of]
    np.testing.assert_allclose(naive[:4], 0.6)
    np.testing.assert_allclose(naive[-3:], 0.1)


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

  def test_over_examples_where_evaluate_was_run(self, tmp_path):
    make_run(tmp_path / "gdpo", {"entropy": 1.0}, {}, [["step", "seed"]])
    (tmp_path / "gdpo" / "evals.csv").write_text("step,seed,quality\n20,7,9\n")
    for name, mean in (("evaluation_start", 1.5), ("evaluation", 4.0)):
      found = {"mean": mean, "std": 1.0, "low": mean - 1, "high": mean + 1}
      entry = {"seed": 7, "greedy": {"quality": {**found, "count": 128}}}
      document = json.dumps({"step": 0, "seeds": [entry]})
      (tmp_path / "gdpo" / f"{name}.json").write_text(document)
    table = catalogue.load("saw/summaries")
    table = dataclasses.replace(table, components=("quality",))
    rows = {"gdpo": RowRuns((tmp_path / "gdpo",))}
    found = report.Found(table, "tiny", tmp_path, rows)
    assert sections.before_and_after(found)[-1] == (
      "| gdpo, seed 7, over examples | quality | 1.500 [0.500, 2.500] (128) | "
      "4.000 [3.000, 5.000] (128) |"
    )


def test_one_seed_has_no_interval_and_no_differences(tmp_path):
  assert tables.mean_and_width(statistics.summarise([0.25])) == "0.250"
  table = catalogue.load("composed/tool_calling")
  scores = dict.fromkeys(table.columns("tiny").values(), 0.5)
  for row in ("all", "none"):
    make_run(tmp_path / row, {"audit/correct": 0.5}, scores)
  rows = {row: RowRuns((tmp_path / row,), (0,)) for row in ("all", "none")}
  found = report.Found(table, "tiny", tmp_path, rows)
  assert sections.compare(found) == {}
  assert sections.paired_differences(found) == []
