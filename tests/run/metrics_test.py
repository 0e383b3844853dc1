import csv
import json

import pytest

from saw_jax.run import metrics


def read(path):
  with path.open(newline="") as file:
    return list(csv.DictReader(file))


class TestFileWriter:
  def test_both_files_hold_a_line_per_step_and_seed(self, tmp_path):
    writer = metrics.FileWriter(tmp_path, "metrics")
    for step in range(2):
      for seed in (3, 5):
        writer.write(step, seed, {"loss": step + 0.1 * seed})
    writer.close()
    rows = read(tmp_path / "metrics.csv")
    assert [(r["step"], r["seed"]) for r in rows] == [
      ("0", "3"),
      ("0", "5"),
      ("1", "3"),
      ("1", "5"),
    ]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[2]) == {"step": 1, "seed": 3, "loss": 1.3}

  def test_numbers_survive_the_round_trip_to_the_last_bit(self, tmp_path):
    writer = metrics.FileWriter(tmp_path, "metrics")
    value = 0.1 + 0.2
    writer.write(0, 0, {"x": value})
    writer.close()
    assert float(read(tmp_path / "metrics.csv")[0]["x"]) == value

  def test_a_resumed_run_drops_the_steps_that_it_repeats(self, tmp_path):
    writer = metrics.FileWriter(tmp_path, "metrics")
    for step in range(4):
      writer.write(step, 0, {"x": step})
    writer.close()
    again = metrics.FileWriter(tmp_path, "metrics", first_step=2)
    again.write(2, 0, {"x": 20})
    again.close()
    rows = read(tmp_path / "metrics.csv")
    assert [row["x"] for row in rows] == ["0", "1", "20"]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3

  def test_a_line_that_a_kill_cut_short_is_dropped(self, tmp_path):
    writer = metrics.FileWriter(tmp_path, "metrics")
    writer.write(0, 0, {"x": 1})
    writer.close()
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 1, "se')
    metrics.FileWriter(tmp_path, "metrics", first_step=1).close()
    assert len(path.read_text().splitlines()) == 1
    assert len(read(tmp_path / "metrics.csv")) == 1

  def test_a_metric_that_appears_later_gets_a_column(self, tmp_path):
    writer = metrics.FileWriter(tmp_path, "metrics")
    writer.write(0, 0, {"x": 1})
    writer.write(1, 0, {"x": 2, "y": 3})
    writer.write(2, 0, {"x": 4})
    writer.close()
    rows = read(tmp_path / "metrics.csv")
    assert [row["y"] for row in rows] == ["", "3", ""]


class TestMakeWriters:
  def test_an_unknown_writer_lists_those_there_are(self, tmp_path):
    with pytest.raises(KeyError, match="tensorboard"):
      metrics.make_writers(tmp_path, ["tensorbord"], first_step=0)

  @pytest.mark.parametrize("name", ["tensorboard", "wandb"])
  def test_a_missing_extra_is_named(self, tmp_path, monkeypatch, name):
    module = {"tensorboard": "tensorboardX", "wandb": "wandb"}[name]
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ImportError, match=rf"saw_jax\[{name}\]"):
      metrics.make_writers(tmp_path, [name], first_step=0)
