import contextlib
import csv
import io
import json
import logging
import math
import pickle
import sqlite3
import sys
import types

import pytest

from saw_jax.run import metrics, run_page


def write(directory, rows, first_step=0):
  """Writes `(step, seed, values)`; returns the rows of the CSV file."""
  writer = metrics.FileWriter(directory, "metrics", first_step=first_step)
  for row in rows:
    writer.write(*row)
  with (directory / "metrics.csv").open(newline="") as file:
    return list(csv.DictReader(file))


def lines_of(directory):
  return (directory / "metrics.jsonl").read_text().splitlines()


class TestFileWriter:
  def test_both_files_hold_a_line_per_step_and_seed(self, tmp_path):
    places = [(step, seed) for step in range(2) for seed in (3, 5)]
    rows = write(tmp_path, [(*p, {"loss": p[0] + 0.1 * p[1]}) for p in places])
    assert [(int(r["step"]), int(r["seed"])) for r in rows] == places
    expected = {"step": 1, "seed": 3, "loss": 1.3}
    assert json.loads(lines_of(tmp_path)[2]) == expected

  def test_a_resumed_run_drops_the_steps_that_it_repeats(self, tmp_path):
    write(tmp_path, [(step, 0, {"x": step + 0.1 + 0.2}) for step in range(4)])
    rows = write(tmp_path, [(2, 0, {"x": 20})], first_step=2)
    # To the last bit.
    assert [float(row["x"]) for row in rows] == [0.1 + 0.2, 1 + 0.1 + 0.2, 20]
    assert len(lines_of(tmp_path)) == 3

  @pytest.mark.parametrize(
    "damage",
    [
      b"\xff",
      b"[1]",
      b"null",
      b"7",
      b'{"step": 1, "se',
      b"\0\0",
      b"",
      b"[" * 9999,
    ]
    + [b'{"step": "1", "seed": 0}', b'{"step": 1}']
    + [b'{"step": null, "seed": 0}', b'{"step": 1e999, "seed": 0}']
    + [b'{"step": true, "seed": 0}', b'{"step": 1, "seed": 0.5}'],
  )
  def test_a_damaged_line_is_named_and_taken_back(
    self, tmp_path, caplog, damage
  ):
    whole = write(tmp_path, [(step, 0, {"x": step}) for step in range(4)])
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")
    # Of the last line, which a kill may have cut, nothing is said.
    path.write_bytes(b"\n".join([lines[0], damage, *lines[2:4], lines[0][:9]]))
    table = tmp_path / "metrics.csv"
    assert write(tmp_path, [], first_step=4) == whole
    said, counted = caplog.messages
    assert f"{path}, line 2, is damaged" in said
    assert "of 4 rows before step 4 it has 3; metrics.csv" in counted
    assert path.read_bytes().split(b"\n") == lines
    path.unlink()
    assert write(tmp_path, [], first_step=4) == whole
    assert f"{path} is gone" in caplog.messages[-2]
    # Of the table one row is cut, and one is none.
    cut = table.read_bytes().replace(b"\n1,0,1", b"\n1")
    table.write_bytes(cut.replace(b"2,0,2", b"2,?,2"))
    path.unlink()
    assert write(tmp_path, [], first_step=4) == [whole[0], whole[3]]

  @pytest.mark.parametrize("left", [0, 2])
  def test_lost_rows_are_taken_from_the_table(self, tmp_path, caplog, left):
    whole = write(
      tmp_path,
      [(step, 0, {"x": math.nan, "y": 0.1 + step}) for step in range(4)],
    )
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:left]))
    assert write(tmp_path, [], first_step=3) == whole[:3]
    assert path.read_bytes() == b"".join(lines[:3])
    (said,) = caplog.messages
    assert f"{path} is damaged: of 3 rows before step 3 it has {left};" in said

  def test_it_holds_no_rows(self, tmp_path):
    page = run_page.RunPage(tmp_path, 3000)
    writer = metrics.FileWriter(tmp_path, "metrics")
    sizes = []
    for step in range(3000):
      page.write(step, 0, {"loss": step / 7})
      if step % 20 == 0:
        writer.write(step, 0, {"loss": step / 7})
      if step in (990, 2990):
        sizes.append([len(pickle.dumps(one)) for one in (writer, page)])
    assert sizes[0][0] == sizes[1][0]
    assert sizes[1][1] < 1.02 * sizes[0][1] < 20_000

  def test_what_is_no_number_is_null_there_and_nan_when_resumed(self, tmp_path):
    odd = {"x": math.nan, "y": -math.inf, "z": 1.5}
    first = write(tmp_path, [(0, 0, odd)])
    line = json.loads(lines_of(tmp_path)[0], parse_constant=pytest.fail)
    assert line == {"step": 0, "seed": 0, "x": None, "y": None, "z": 1.5}
    assert write(tmp_path, [], first_step=1) == first
    assert [first[0][name] for name in "xyz"] == ["nan", "nan", "1.5"]

  def test_a_metric_that_appears_later_gets_a_column(self, tmp_path):
    values = [{"x": 1}, {"x": 2, "y": 3}, {"x": 4}]
    rows = write(tmp_path, [(i, 0, x) for i, x in enumerate(values)])
    assert [row["y"] for row in rows] == ["", "3", ""]


@pytest.mark.parametrize(
  ("name", "module", "error", "word"),
  [
    ("tensorbord", "none", KeyError, "tensorboard"),
    ("tensorboard", "tensorboardX", ImportError, r"saw_jax\[tensorboard\]"),
    ("trackio", "trackio", ImportError, r"saw_jax\[trackio\]"),
    ("wandb", "wandb", ImportError, r"saw_jax\[wandb\]"),
  ],
)
def test_a_writer_that_is_not_there_is_named(
  tmp_path, monkeypatch, name, module, error, word
):
  monkeypatch.setitem(sys.modules, module, None)
  with contextlib.ExitStack() as stack, pytest.raises(error, match=word):
    metrics.make_writers(tmp_path, [name], stack, 0)


HOSTILE = "<script>alert(1)</script> | **x**\n# y \x00"
SAMPLES = [
  {"prompt": "2+2", "completion": HOSTILE, "reward/right": None, "total": None},
  {"prompt": "2+2", "completion": "4", "reward/right": 1.0, "total": 1.0},
]


def log(directory, name, steps):
  """Writes two seeds, and completions at even steps; gives the writer."""
  with contextlib.ExitStack() as stack:
    (writer,) = metrics.make_writers(directory, [name], stack, steps[0])
    for step in steps:
      for seed in (0, 1):
        writer.write(step, seed, {"loss": step + seed / 2, "odd": math.nan})
        if step % 2 == 0:
          writer.write_samples(step, seed, SAMPLES)
  return writer


class TestTrackers:
  @pytest.mark.parametrize("name", ["trackio", "wandb"])
  def test_figures_and_a_table_go_to_what_has_wandbs_interface(
    self, tmp_path, monkeypatch, name
  ):
    calls, run = [], types.SimpleNamespace(finish=lambda: calls.append("end"))
    run.log = lambda values, step: calls.append((step, values))
    starts = []
    fake = types.SimpleNamespace(
      init=lambda *args, **how: starts.append(how) or run,
      Table=lambda columns, data: (columns, data),
      finish=run.finish,
    )
    fake.SQLiteStorage = types.SimpleNamespace(get_logs=lambda *_, **how: [])
    run.settings, run.mode, run.id = run, "online", "x"
    fake.setup, fake.login = lambda: run, lambda prompt: True
    fake.Error = OSError
    monkeypatch.setitem(sys.modules, name, fake)
    monkeypatch.setitem(sys.modules, "trackio.sqlite_storage", fake)
    log(tmp_path, name, [0])
    log(tmp_path, name, [2, 3])
    columns, cells = list(SAMPLES[0]), [list(row.values()) for row in SAMPLES]
    assert calls[1] == (0, {"seed_0/completions": (columns, cells)})
    assert calls[2][1].keys() == {"seed_1/loss", "seed_1/odd"}
    assert [step for step, _ in calls[5:-1]] == [2, 2, 2, 2, 3, 3]
    assert calls[4] == calls[-1] == "end"
    assert [how["name"] for how in starts] == [tmp_path.name] * 2
    if name == "wandb":  # Who is not logged in is told before the start.
      fake.login = lambda prompt: prompt
      with pytest.raises(ValueError, match="WANDB_MODE=offline"):
        metrics.check_writers([name])
      fake.login = lambda prompt: True
    # What is resumed is the same run, and what begins anew is none before.
    if name == "wandb":
      assert starts[0]["id"] == starts[1]["id"]
      log(tmp_path, name, [0])
      assert starts[2]["id"] != starts[0]["id"]
    else:
      assert [how["resume"] for how in starts] == ["never", "allow"]

  def test_trackio_has_them_in_its_store(self, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "store"))
    pytest.importorskip("trackio")
    for steps in ([0, 1], [1, 2]):  # killed before step 1 was saved
      log(tmp_path / "run", "trackio", steps)
    with sqlite3.connect(tmp_path / "store" / "saw_jax.db") as store:
      rows = store.execute("SELECT run_name, step, metrics FROM metrics")
      found = [(name, step, json.loads(text)) for name, step, text in rows]
    assert {(name, step) for name, step, _ in found} == {
      ("run", step) for step in range(3)
    }
    losses = [x["seed_1/loss"] for *_, x in found if "seed_1/loss" in x]
    assert losses == [0.5, 1.5, 2.5]
    tables = [x for *_, x in found if "seed_0/completions" in x]
    assert tables[1]["seed_0/completions"]["_value"] == SAMPLES

  def test_tensorboard_shows_text_and_obeys_none(self, tmp_path, monkeypatch):
    calls = []

    class Board:
      def __init__(self, folder, **how):
        calls.append((folder, how))

      def __enter__(self):
        return self

      def __exit__(self, *exc):
        calls.append("closed")

      def add_scalar(self, *values):
        calls.append(values)

      add_text = add_scalar

    fake = types.SimpleNamespace(SummaryWriter=Board)
    monkeypatch.setitem(sys.modules, "tensorboardX", fake)
    log(tmp_path, "tensorboard", [2])
    folder = str(tmp_path / "tensorboard" / "seed_0")
    assert calls[0] == (folder, {"purge_step": 2})
    assert calls[1] == ("loss", 2.0, 2)  # and no NaN
    name, text, step = calls[2]
    assert (name, step) == ("completions", 2)
    assert "total **1.0**" in text
    at = [x for x in text.splitlines() if "script" in x or "# y" in x]
    assert at and all(line.startswith("    ") for line in at)
    assert calls[-2:] == ["closed"] * 2


class TestProgress:
  def test_off_a_terminal_lines_come_now_and_then(self, monkeypatch, caplog):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    caplog.set_level(logging.INFO, logger=metrics.__name__)
    times = iter(range(100, 1000, 8))  # 8 s a step
    monkeypatch.setattr(metrics.time, "monotonic", lambda: next(times))
    with metrics.progress("train", 10) as advance:
      for _ in range(10):
        advance(loss=1.23456789, tok_s=123456.0)
    # Every third step is the first after 20 s; the tenth is the last.
    steps = [line.split()[1] for line in caplog.messages]
    assert steps == ["3/10", "6/10", "9/10", "10/10"]
    first, *_, last = caplog.messages
    assert first == "train 3/10  56 s left  loss 1.235  tok_s 1.235e+05"
    assert last == "train 10/10  loss 1.235  tok_s 1.235e+05"

  def test_the_time_left_knows_nothing_of_what_the_first_step_compiled(
    self, monkeypatch, caplog
  ):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    caplog.set_level(logging.INFO, logger=metrics.__name__)
    # A run that goes on at step 4; one minute to compile, then 7 s a step.
    times = iter([0, 60, 67, 74, 81, 88])
    monkeypatch.setattr(metrics.time, "monotonic", lambda: next(times))
    with metrics.progress("train", 20, 4) as advance:
      for _ in range(5):
        advance()
    left = [line.split()[2] for line in caplog.messages[1:]]
    assert left == ["84"]  # 12 steps

  def test_on_a_terminal_a_bar_returns_the_cursor(self, monkeypatch, caplog):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    caplog.set_level(logging.INFO, logger=metrics.__name__)
    with pytest.raises(KeyError), metrics.progress("train", 3, 1) as advance:
      # A job that goes on counts from where it was.
      advance(loss=0.25)
      advance(loss=0.125)
      raise KeyError
    shown = terminal.getvalue()
    for words in ("train", "3/3", "loss 0.125"):
      assert words in shown
    assert caplog.messages == []
    hide, show = "\x1b[?25l", "\x1b[?25h"
    assert -1 < shown.rfind(hide) < shown.rfind(show)


def test_no_document_holds_what_json_has_not(tmp_path):
  path = tmp_path / "x.json"
  metrics.write_json(path, {"a": [math.inf, (1, math.nan)], "b": {"c": None}})
  found = json.loads(path.read_text(), parse_constant=pytest.fail)
  assert found == {"a": [None, [1, None]], "b": {"c": None}}
  assert math.isnan(metrics.from_json(path.read_text())["a"][1][1])
