"""The tables and pictures of a table of episodes, from run directories."""

import csv
import json

import pytest

from configs.paw import household
from saw_jax.reporting import agent_report, catalogue, reports
from saw_jax.reporting.run_plan import RowRuns

STEPS = 20
ROWS = {"grpo": 0.5, "grpo_paw": 0.7}


def make_run(directory, *, score, has_world):
  """A finished run of two seeds, whose success rises by a tenth."""
  directory.mkdir(parents=True)
  names = ["success", "reward/return", "steps"]
  world = ["lambda", "loss/world_model", "clipped_tokens"] if has_world else []
  seconds = [f"seconds/{name}" for name in agent_report._SECONDS]
  with (directory / "metrics.csv").open("w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["step", "seed", *names, *world, *seconds])
    for step in range(STEPS):
      value = score + (0.1 if step >= STEPS // 2 else 0.0)
      for seed in (0, 1):
        more = [1 - value, 0.25, 0.75] if has_world else []
        writer.writerow(
          [step, seed, value, 10 * value, 4.0, *more, *[0.5] * len(seconds)]
        )
  with (directory / "evals.csv").open("w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["step", "seed", "right", "observation_accuracy"])
    for seed in (0, 1):
      writer.writerow([STEPS, seed, score, 0.9])
  figures = {
    "right": score,
    "length": 4.0,
    "observation_accuracy": 0.9,
    "observation_nll": 0.3,
  }
  kinds = {"right_pick": 0.4, "right_look": 0.6} if has_world else {}
  finals = [
    {
      "seed": seed,
      "step": STEPS,
      "greedy": figures,
      "sampled": {**figures, "right": score + 0.1 * seed, **kinds},
    }
    for seed in (0, 1)
  ]
  (directory / "final.json").write_text(json.dumps(finals))
  document = {"config": {}, "commit": "abc", "machine": "one machine"}
  (directory / "run.json").write_text(json.dumps(document))


@pytest.fixture(scope="module")
def out(tmp_path_factory):
  folder = tmp_path_factory.mktemp("agents")
  directories = {}
  for row, score in ROWS.items():
    path = folder / "runs" / row
    directories[row] = RowRuns((path,))
    make_run(path, score=score, has_world=row == "grpo_paw")
  agent_report.write(
    household, directories, folder / "out", scale="tiny", command="make it"
  )
  return folder / "out"


def row_of(text, heading, row):
  section = text[text.index(heading) :]
  line = next(x for x in section.splitlines() if x.startswith(f"| {row} |"))
  return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_success_is_ours_beside_the_published(out):
  text = (out / "table.md").read_text()
  cells = row_of(text, "held out", "grpo_paw")
  assert "0.750" in cells[0] and "0.700" in cells[1]
  assert cells[-1].startswith("77.9")


def test_the_world_model_is_told_at_the_start_and_at_the_end(out):
  text = (out / "table.md").read_text()
  cells = row_of(text, "### First and last 5 steps", "grpo_paw")
  assert cells == [
    "0.700 → 0.800",
    "0.300 → 0.200",
    "0.250 → 0.250",
    "0.750 → 0.750",
  ]
  assert row_of(text, "### First and last", "grpo")[1:] == ["-"] * 3


def test_seeds_are_paired(out):
  text = (out / "table.md").read_text()
  assert "grpo_paw - grpo" in text
  section = text[text.index("### Paired differences") :]
  assert "0.200" in section


def test_kinds_are_told_where_there_are_any(out):
  text = (out / "table.md").read_text()
  heading = "### Held-out success by kind, sampled"
  assert "| row | look | pick |" in text[text.index(heading) :]
  assert row_of(text, heading, "grpo") == ["-", "-"]
  assert row_of(text, heading, "grpo_paw") == ["0.600 ± 0.000", "0.400 ± 0.000"]


def test_a_mean_of_one_has_no_interval():
  assert reports.write_mean([0.25]) == "0.250"
  assert reports.write_mean([0.25, 0.25]) == "0.250 ± 0.000"


def test_no_picture_is_written_over_another():
  for table in catalogue.names():
    curves = getattr(catalogue.load(table), "CURVES", {})
    stems = [agent_report._stem(metric, curves) for metric in curves]
    assert len(set(stems)) == len(stems), table
  assert agent_report._stem("loss/world_model", household.CURVES) == (
    "world_model"
  )


def test_files_and_pictures_are_there(out):
  names = {path.name for path in out.iterdir()}
  assert {
    "table.md",
    "table.csv",
    "runs.csv",
    "curves.csv",
    "evals.csv",
    "success.png",
    "lambda.png",
    "world_model.png",
    "clipped_tokens.png",
    "differences.png",
  } <= names


@pytest.mark.parametrize("table", catalogue.names())
def test_published_cells_are_found_for_any_table(table):
  # Nothing for one of no paper, or of a paper without numbers.
  module = catalogue.load(table)
  for scale in module.SCALES:
    found = reports.read_published(module, module.PUBLISHED, scale)
    assert set(found) == set(module.PUBLISHED)
