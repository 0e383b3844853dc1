"""Several tables in a row: estimates, failures, Ctrl-C."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from saw_jax.reporting import all_tables, catalogue
from saw_jax.reporting.all_tables import Job

ROOT = pathlib.Path(__file__).parents[2]


def python(program: str):
  return lambda table: [sys.executable, "-c", program, table]


@pytest.fixture
def run(capsys):
  def run(jobs, program):
    status = all_tables.run(jobs, python(program))
    return status, capsys.readouterr().out.splitlines()

  return run


class TestPlan:
  def test_what_is_there_is_counted(self, monkeypatch, tmp_path):
    monkeypatch.setattr(catalogue, "missing", lambda table, scale: [])
    runs, results = tmp_path / "runs", tmp_path / "results"

    def job():
      (found,) = [
        job
        for job in all_tables.plan("tiny", 3, str(runs), str(results))
        if job.table == "saw/tool_calling"
      ]
      return found

    rows = catalogue.load("saw/tool_calling").default_runs
    assert (job().rows, job().missing) == (len(rows), len(rows))
    for number, row in enumerate(rows, 1):
      # Two runs have the three seeds; one that has not finished has none.
      for seeds, name in (([0, 1], "2"), ([1, 2, 3], "x"), ([2, 3], "2-3")):
        assert job().missing == len(rows) - number + 1
        folder = runs / "saw/tool_calling/tiny" / f"{row}_seeds_{name}"
        folder.mkdir(parents=True, exist_ok=True)
        document = {"config": {"seeds": seeds}, "commit": "abc"}
        (folder / "run.json").write_text(json.dumps(document))
        if name != "x":
          (folder / "final.json").touch()
      assert job().missing == len(rows) - number
    assert not job().is_done  # nothing is written yet
    written = results / "saw/tool_calling/tiny/table.md"
    written.parent.mkdir(parents=True)
    written.touch()
    os.utime(written, (1, 1))  # as old as what a clone brings along
    assert not job().is_done
    os.utime(written)
    assert job().is_done

  def test_a_scale_that_no_table_has(self):
    with pytest.raises(ValueError, match="did you mean 'paper'"):
      all_tables.plan("papper", 5, "runs", "results")

  def test_a_table_without_the_scale_is_left_out(self, monkeypatch):
    monkeypatch.setattr(catalogue, "missing", lambda table, scale: ["x"])
    jobs = {job.table: job for job in all_tables.plan("small", 5, "r", "r")}
    assert "paw/shop" not in jobs
    assert jobs["asympo/math"].lacks == ["x"]


class TestRemaining:
  def test_it_is_in_proportion_to_what_is_missing(self):
    jobs = [Job("a", 10, 5, hours=4.0), Job("b", 3, 0, hours=9.0)]
    assert all_tables.remaining(jobs) == "about 2.0 h remain"
    assert all_tables.remaining(jobs, pace=1.5) == "about 3.0 h remain"
    # What nobody has timed is told.
    jobs = [Job("a", 10, 5, hours=0.1), Job("b", 3, 2)]
    assert all_tables.remaining(jobs) == (
      "about 3 min remain and 2 runs that nobody has timed"
    )
    assert all_tables.remaining(jobs[1:]) == "2 runs that nobody has timed"

  def test_times_have_a_unit_that_suits_them(self):
    found = map(all_tables.duration, (0, 89, 90, 5399, 5400))
    assert list(found) == ["0 s", "89 s", "2 min", "90 min", "1.5 h"]


class TestRun:
  def test_only_what_is_missing_runs_and_a_failure_stops_nothing(
    self, tmp_path, run
  ):
    jobs = [
      Job("done", 2, 0, is_written=True),
      Job("lacking", 2, 2, lacks=("file x: nowhere",)),
      Job("bad", 2, 2, hours=1.0),
      Job("killed", 2, 2),
      Job("good", 2, 1, hours=1.0),
      Job("unwritten", 2, 0),
    ]
    program = f"""
import os, pathlib, signal, sys
with open({str(tmp_path / "log")!r}, "a") as file:
  print(sys.argv[1], file=file)
if sys.argv[1] == "killed":
  os.kill(os.getpid(), signal.SIGKILL)
sys.exit(3 if sys.argv[1] == "bad" else 0)
"""
    status, said = run(jobs, program)
    assert status == 1
    ran = (tmp_path / "log").read_text().split()
    assert ran == ["bad", "killed", "good", "unwritten"]
    assert said[0] == (
      "table 1 of 4: bad, 2 of 2 runs to do; about 1.5 h remain and 2 runs "
      "that nobody has timed"
    )
    ends = dict(line.split(": ", 1) for line in said[-6:])
    for name in ("good", "unwritten"):
      assert ends.pop(name).startswith("made in ")
    assert ends == {
      "done": "was there",
      "lacking": "left out, for want of file x: nowhere",
      "bad": "failed with status 3",
      "killed": "ended by SIGKILL",
    }

  def test_estimates_follow_what_tables_take(self, run):
    # An hour was said, and it took next to nothing.
    jobs = [Job("a", 1, 1, hours=1.0), Job("b", 1, 1, hours=1.0)]
    status, said = run(jobs, "pass")
    assert status == 0
    assert said[0].endswith("about 2.0 h remain")
    assert said[1].endswith("about 0 s remain")

  def test_a_table_that_says_it_was_stopped_ends_all(self, run):
    jobs = [Job("a", 1, 1), Job("b", 1, 1)]
    status, said = run(jobs, "import sys; sys.exit(130)")
    assert status == 130
    assert said[-3:] == [
      "a: stopped",
      "b: not begun",
      "stopped; the same command goes on",
    ]

  @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
  def test_a_signal_reaches_the_table_once_and_the_rest_is_not_begun(
    self, number, tmp_path
  ):
    # As training does: the first signal asks it to save and stop.
    table = f"""
import pathlib, signal, sys, time
log = pathlib.Path({str(tmp_path / "log")!r})
count = []
def stop(number, frame):
  count.append(number)
signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, stop)
log.write_text("ready")
while not count:
  time.sleep(0.01)
time.sleep(0.3)
log.write_text(" ".join(str(int(n)) for n in count))
sys.exit(130)
"""
    program = f"""
import sys
from saw_jax.reporting import all_tables
from saw_jax.reporting.all_tables import Job
jobs = [Job("a", 1, 1), Job("b", 1, 1)]
sys.exit(all_tables.run(jobs, lambda name: [sys.executable, "-c", {table!r}]))
"""
    process = subprocess.Popen(
      [sys.executable, "-c", program],
      cwd=ROOT,
      env={**os.environ, "PYTHONPATH": str(ROOT)},
      stdout=subprocess.PIPE,
      text=True,
      process_group=0,
    )
    log = tmp_path / "log"
    limit = time.monotonic() + 60
    while not (log.exists() and log.read_text() == "ready"):
      assert time.monotonic() < limit and process.poll() is None
      time.sleep(0.02)
    # To the whole group, as a terminal does.
    os.killpg(process.pid, number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert log.read_text() == str(int(number))
    assert "b: not begun" in said
    assert said.rstrip().endswith("stopped; the same command goes on")
