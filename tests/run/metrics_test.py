import csv
import io
import json
import logging
import sys

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

  def test_a_resumed_run_drops_the_steps_that_it_repeats(self, tmp_path):
    writer = metrics.FileWriter(tmp_path, "metrics")
    for step in range(4):
      writer.write(step, 0, {"x": step + 0.1 + 0.2})
    writer.close()
    again = metrics.FileWriter(tmp_path, "metrics", first_step=2)
    again.write(2, 0, {"x": 20})
    again.close()
    rows = read(tmp_path / "metrics.csv")
    # To the last bit.
    assert [float(row["x"]) for row in rows] == [0.1 + 0.2, 1 + 0.1 + 0.2, 20]
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


class Terminal(io.StringIO):
  """Says that it is one."""

  def isatty(self):
    return True


@pytest.fixture
def lines(monkeypatch, caplog):
  """Moves time by 8 s a step, off a terminal, and returns what was logged."""
  monkeypatch.setattr(sys, "stderr", io.StringIO())
  caplog.set_level(logging.INFO, logger=metrics.__name__)
  now = [100.0]

  def monotonic():
    now[0] += 8.0
    return now[0]

  monkeypatch.setattr(metrics.time, "monotonic", monotonic)
  return caplog


class TestProgress:
  def test_off_a_terminal_a_line_now_and_then_and_one_at_the_end(self, lines):
    with metrics.Progress("train", 10, interval_s=20.0) as bar:
      for _ in range(10):
        bar.advance(loss=1.23456789, tok_s=123456.0)
    # Every third step is the first after 20 s; the tenth is the last.
    steps = [line.split()[1] for line in lines.messages]
    assert steps == ["3/10", "6/10", "9/10", "10/10"]
    assert lines.messages[0] == "train 3/10  loss 1.235  tok_s 1.235e+05"

  def test_on_a_terminal_it_is_a_bar_that_gives_the_cursor_back(
    self, monkeypatch, caplog
  ):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    caplog.set_level(logging.INFO, logger=metrics.__name__)
    with pytest.raises(KeyError), metrics.Progress("train", 3, start=1) as bar:
      # A job that goes on counts from where it was.
      bar.advance(loss=0.25)
      bar.advance(loss=0.125)
      raise KeyError
    shown = terminal.getvalue()
    for words in ("train", "3/3", "loss 0.125"):
      assert words in shown
    assert caplog.messages == []
    hide, show = "\x1b[?25l", "\x1b[?25h"
    assert -1 < shown.rfind(hide) < shown.rfind(show)
