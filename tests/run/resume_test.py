"""Killed at any moment, the finished run is the uninterrupted one.

These tests run the real script in a process of its own and kill it with
SIGKILL, which nothing can catch.
"""

import signal

import pytest

from tests.helpers import assert_same_run, largest_file
from tests.run import script_runs
from tests.run.script_runs import checkpoints, finish, kill, wait_for
from tests.run.script_runs import start_small as start

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("whole") / "run"
  finish(start(workdir))
  return workdir


def test_killed_in_the_middle_of_a_step_and_of_a_save(whole, tmp_path):
  process = start(tmp_path)
  wait_for([process], lambda: 4 in checkpoints(tmp_path))
  kill(process)
  assert checkpoints(tmp_path)[-1] < 8, "the run was over before the kill"
  script_runs.break_off(tmp_path)
  assert "resumed from step" in finish(start(tmp_path))
  assert_same_run(whole, tmp_path)
  assert not list((tmp_path / "checkpoints").glob("*tmp*"))


def test_ctrl_c_saves_and_a_damaged_step_names_the_good_one(whole, tmp_path):
  process = start(tmp_path)
  wait_for([process], lambda: 2 in checkpoints(tmp_path))
  process.send_signal(signal.SIGINT)
  stopped = finish(process, status=130)
  assert "the same command goes on" in stopped
  assert f"--workdir={tmp_path}" in stopped

  before, last = checkpoints(tmp_path)[-2:]
  folder = tmp_path / "checkpoints" / str(last)
  path = largest_file(folder / "state")
  path.write_bytes(path.read_bytes()[:100])
  damaged = finish(start(tmp_path), status=2)
  assert f"the last good step is {before}" in damaged
  assert str(folder) in damaged
  assert "Traceback" not in stopped + damaged
  finish(start(tmp_path, f"--resume_step={before}"))
  assert_same_run(whole, tmp_path)
