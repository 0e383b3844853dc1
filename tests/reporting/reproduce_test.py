"""One table and several: what is refused, estimates, failures, Ctrl-C."""

import errno
import os
import signal
import sys
import threading
import time

import pytest

from saw_jax.reporting import catalogue, report, reproduce
from saw_jax.reporting.reproduce import Job
from saw_jax.reporting.runs import RowRuns
from saw_jax.run import config as config_lib
from tests import experiments_test, helpers
from tests.reporting.runs_test import finish

HOUR = 3600.0


@pytest.fixture
def run(capsys):
  def run(jobs, program):
    status = reproduce.run_all(jobs, [sys.executable, "-c", program])
    return status, capsys.readouterr().out.splitlines()

  return run


class TestPlan:
  def test_what_is_there_is_counted(self, monkeypatch, tmp_path):
    monkeypatch.setattr(catalogue, "missing", lambda table, scale: [])
    runs = tmp_path / "runs/saw/tool_calling/tiny"

    def job():
      folders = tmp_path / "runs", tmp_path / "results"
      jobs = reproduce.plan("tiny", 3, 1, *folders)
      return next(job for job in jobs if job.table == "saw/tool_calling")

    table = catalogue.load("saw/tool_calling")
    rows = table.default_runs
    seconds = HOUR * table.needs["tiny"].hours * 3 / 5  # said for five seeds
    assert job()[1:5] == (len(rows), len(rows), False, seconds)
    for number, row in enumerate(rows, 1):
      # Two runs have the three seeds; one that has not finished has none.
      finish(runs / f"{row}_seeds_2", [0, 1])
      finish(runs / f"{row}_seeds_x", [1, 2, 3])
      (runs / f"{row}_seeds_x" / "final.json").unlink()
      assert job().missing == len(rows) - number + 1
      finish(runs / f"{row}_seeds_2-2", [2, 3])
      assert job().missing == len(rows) - number
    assert job().seconds == 0.0
    written = tmp_path / "results/saw/tool_calling/tiny/table.md"
    assert not job().is_done
    written.parent.mkdir(parents=True)
    written.touch()
    os.utime(written, (1, 1))  # as old as what a clone brings along
    assert not job().is_done
    os.utime(written)
    assert job().is_done

  def test_a_scale_that_a_table_or_all_lack(self, monkeypatch):
    with pytest.raises(ValueError, match="did you mean 'paper'"):
      reproduce.plan("papper", 5, 1, "runs", "results")
    monkeypatch.setattr(catalogue, "missing", lambda table, scale: ["x"])
    jobs = {job.table: job for job in reproduce.plan("small", 5, 1, "r", "r")}
    assert "paw/shop" not in jobs
    assert jobs["asympo/math"].lacks == ["x"]
    assert jobs["asympo/math"].seconds is None


def test_what_remains_is_in_proportion_and_what_nobody_timed_is_told():
  jobs = [Job("a", 10, 5, seconds=2 * HOUR), Job("b", 3, 0, seconds=0.0)]
  assert reproduce.remaining(jobs) == "about 2.0 h remain"
  assert reproduce.remaining(jobs, pace=1.5) == "about 3.0 h remain"
  jobs = [Job("a", 10, 5, seconds=180.0), Job("b", 3, 2)]
  unknown = "2 runs that nobody has timed"
  assert reproduce.remaining(jobs) == f"about 3 min remain and {unknown}"
  assert reproduce.remaining(jobs[1:]) == unknown
  found = map(reproduce.duration, (0, 89, 90, 5399, 5400))
  assert list(found) == ["0 s", "89 s", "2 min", "90 min", "1.5 h"]


class TestRunAll:
  def test_what_is_missing_runs_and_failures_stop_nothing(self, tmp_path, run):
    jobs = [
      Job("done", 2, 0, is_done=True),
      Job("lacking", 2, 2, lacks=("file x: nowhere",)),
      Job("bad", 2, 2, seconds=HOUR),
      Job("killed", 2, 2),
      Job("good", 2, 1, seconds=HOUR / 2),
      Job("last", 2, 0, seconds=HOUR),
    ]
    program = f"""
import os, signal, sys
table = sys.argv[1].removeprefix("--table=")
with open({str(tmp_path / "log")!r}, "a") as file:
  print(table, file=file)
if table == "killed":
  os.kill(os.getpid(), signal.SIGKILL)
sys.exit(3 if table == "bad" else 0)
"""
    status, said = run(jobs, program)
    assert status == 1
    ran = (tmp_path / "log").read_text().split()
    assert ran == ["bad", "killed", "good", "last"]
    assert said[0] == (
      "table 1 of 4: bad, 2 of 2 runs to do; about 2.5 h remain and 2 runs "
      "that nobody has timed"
    )
    # Estimates follow what tables take: an hour was said, and it was nothing.
    assert said[2].endswith("about 1.5 h remain")
    assert said[3].endswith(" s remain")
    ends = dict(line.split(": ", 1) for line in said[-6:])
    for name in ("good", "last"):
      assert ends.pop(name).startswith("made in ")
    assert ends == {
      "done": "was there",
      "lacking": "left out, for want of file x: nowhere",
      "bad": "failed with status 3",
      "killed": "ended by SIGKILL",
    }
    assert run(jobs[:2], program)[0] == 0

  def test_a_table_that_says_it_was_stopped_ends_all(self, run):
    jobs = [Job("a", 1, 1), Job("b", 1, 1)]
    status, said = run(jobs, "import sys; sys.exit(130)")
    assert status == 130
    stopped = "stopped; the same command goes on"
    assert said[-3:] == ["a: stopped", "b: not begun", stopped]

  @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
  def test_a_signal_reaches_the_table_once_and_ends_all(self, number, tmp_path):
    # As training does: the first signal asks it to save and stop.
    log = tmp_path / "log"
    table = f"""
import pathlib, signal, sys, time
log = pathlib.Path({str(log)!r})
count = []
for number in (signal.SIGINT, signal.SIGTERM):
  signal.signal(number, lambda number, frame: count.append(number))
log.write_text("ready")
while not count:
  time.sleep(0.01)
time.sleep(0.3)
log.write_text(" ".join(str(int(n)) for n in count))
sys.exit(130)
"""
    program = f"""
import sys
from saw_jax.reporting.reproduce import Job, run_all
jobs = [Job("a", 1, 1), Job("b", 1, 1)]
sys.exit(run_all(jobs, [sys.executable, "-c", {table!r}]))
"""
    process = helpers.process("-c", program, process_group=0)
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


# In the place of Python, that trains: a row waits for the one beside it.
TRAINS = f"""#!{sys.executable}
import os, pathlib, signal, sys, time
words = dict(word[2:].split("=", 1) for word in sys.argv if "=" in word)
place = pathlib.Path(words["workdir"])
name, folder = place.name, place.parent
assert (os.environ["NPROC"], words["seeds"]) == ("1", "0,1")
count = []
signal.signal(signal.SIGINT, lambda *_: count.append(1))
(folder / f"{{name}}.ready").touch()
if name == "bad":
  sys.exit("error: no such thing")
limit = time.monotonic() + 60
while time.monotonic() < limit:
  if count:
    time.sleep(0.2)
    sys.exit(f"stopped by {{len(count)}}")
  if words.get("stays") is None and len([*folder.glob("*.ready")]) == 3:
    sys.exit(0)
  time.sleep(0.02)
"""


class TestRunRows:
  @pytest.fixture
  def run(self, tmp_path, monkeypatch):
    (tmp_path / "python").write_text(TRAINS)
    (tmp_path / "python").chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(catalogue, "has_accelerator", lambda: False)

    def run(names, *words):
      runs = (RowRuns((), (), (0, 1), tmp_path / name) for name in names)
      config = config_lib.get_config()
      rows = map(reproduce.Row, names, [config] * 3, [words] * 3, runs)
      return reproduce.run_rows([*rows], 2)

    return run

  def test_rows_run_side_by_side_and_a_failure_is_its_own(self, tmp_path, run):
    log = tmp_path / "bad.log"
    assert run(["bad", "a", "b"]) == [f"row bad: no such thing ({log})"]

  def test_a_signal_reaches_each_row_once_and_none_begins(self, tmp_path, run):
    def interrupt():
      while len([*tmp_path.glob("*.ready")]) < 2:
        time.sleep(0.02)
      os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert run(["a", "b", "c"], "--stays=1") is None
    thread.join()
    for name in "ab":
      assert (tmp_path / f"{name}.log").read_text() == "stopped by 1\n"
    assert not (tmp_path / "c.log").exists()


def test_the_script_refuses_other_commits_before_anything_runs(tmp_path):
  table = catalogue.load("saw/tool_calling")
  runs = tmp_path / "saw/tool_calling/tiny"
  for row, commit in (("gdpo", "abc"), ("gdpo_saw", "def")):
    config = table.config(row, "tiny").to_dict()
    finish(runs / f"{row}_seeds_1", [0], commit=commit, config=config)
  words = ["--table=saw/tool_calling", "--seeds=1", "--rows=gdpo,gdpo_saw"]
  words += [f"--runs={tmp_path}", f"--out={tmp_path / 'out'}"]
  words = "reproduce", *words
  done, mixed = experiments_test.scripts(
    [words, [*words, "--mixed"]], "saw_jax.run.build"
  )
  (said,) = done.stderr.splitlines()
  assert done.returncode == 2 and said.startswith("error: ")
  assert "abc: gdpo; def: gdpo_saw" in said
  assert "--mixed" in said
  # With --mixed it goes on to read them: they have been half-written.
  assert mixed.returncode == 2
  path = runs / "gdpo_seeds_1" / "final.json"
  said = mixed.stderr.splitlines()[-1]
  assert said.startswith(f"error: {path} is damaged")
  assert not (tmp_path / "out").exists()


class TestReplacing:
  def test_a_failure_leaves_what_was_there(self, tmp_path):
    out = tmp_path / "results" / "tiny"
    with report.replacing(out) as folder:
      (folder / "table.md").write_text("first")
      (folder / "runs.csv").write_text("1")
    with pytest.raises(OSError), report.replacing(out) as folder:
      (folder / "runs.csv").write_text("2")
      raise OSError(errno.ENOSPC, "no room")
    assert (out / "runs.csv").read_text() == "1"
    assert [path.name for path in out.parent.iterdir()] == ["tiny"]
    with report.replacing(out) as folder:
      (folder / "table.md").write_text("second")
    assert (out / "table.md").read_text() == "second"
    assert (out / "runs.csv").read_text() == "1"

  def test_the_table_is_moved_last(self, tmp_path, monkeypatch):
    moved = []
    move = lambda file, to: moved.append(to.name)  # noqa: E731
    monkeypatch.setattr(report.shutil, "move", move)
    with report.replacing(tmp_path / "tiny") as folder:
      for name in ("table.csv", "table.md", "wasted.png", "curves.csv"):
        (folder / name).touch()
    assert len(moved) == 4 and moved[-1] == "table.md"


# Raised by a script -> how its one sentence begins.
WRITES = {
  "RuntimeError('saving') from of_a_file(errno.ENOSPC)": "the disk is full",
  "ValueError('RESOURCE_EXHAUSTED: No space left on device')": "the disk is "
  "full",
  "RuntimeError('saving') from of_a_file(errno.EFBIG)": "a file gets too large",
  "ValueError('write: File too large')": "a file gets too large",
  "of_a_file(errno.EROFS)": "the disk is read-only",
  "of_a_file(errno.EISDIR)": "[Errno 21] Is a directory: 'metrics.csv'",
  "ActorError('4 actors died')": "4 actors died",
}


def test_a_write_that_fails_is_one_sentence():
  # In a process of its own: a script sets up logging for itself.
  program = f"""
import errno, os
from saw_jax.run import command_line

class ActorError(RuntimeError): ...

def of_a_file(code):
  return OSError(code, os.strerror(code), 'metrics.csv')

for error in {[*WRITES]!r}:
  try:
    command_line.run(lambda: exec(f"raise {{error}}"))
  except SystemExit as end:
    print(end.code)
"""
  done = helpers.python("-c", program)
  assert done.stdout.split() == ["2"] * len(WRITES), done.stderr
  lines = done.stderr.splitlines()
  for line, said in zip(lines, WRITES.values(), strict=True):
    assert line.startswith(f"error: {said}")
