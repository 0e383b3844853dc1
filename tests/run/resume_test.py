"""Killed at any moment, the finished run is the uninterrupted one.

These tests run the real script in a process of its own and kill it with
SIGKILL, which nothing can catch.
"""

import shutil
import signal

import pytest

from tests.helpers import assert_same_run
from tests.run import script_runs
from tests.run.script_runs import checkpoints, finish, kill, wait_for

EPISODES = "configs/paw/household.py:row=gigpo_paw,scale=tiny"

pytestmark = pytest.mark.slow


def start(workdir, *flags, **changes):
  fields = {
    "loop.num_steps": 6,
    "loop.prompts_per_step": 4,
    "loop.checkpoint_interval": 2,
    "evaluation.num_examples": 4,
    "evaluation.interval": 3,
    "grading.num_workers": 1,
    **changes,
  }
  return script_runs.start(workdir, "--seeds=0,1", *flags, **fields)


def steps_done(workdir):
  path = workdir / "metrics.jsonl"
  return len(path.read_text().splitlines()) // 2 if path.exists() else 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("whole") / "run"
  finish(start(workdir))
  return workdir


class TestSigkill:
  def test_in_the_middle_of_a_step(self, whole, tmp_path):
    workdir = tmp_path / "run"
    process = start(workdir)
    wait_for([process], lambda: steps_done(workdir) >= 3)
    kill(process)
    assert steps_done(workdir) < 6, "the run was over before the kill"
    finish(start(workdir))
    assert_same_run(whole, workdir)

  def test_in_the_middle_of_a_save(self, whole, tmp_path):
    # What such a kill leaves behind: half of a checkpoint.
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    last = workdir / "checkpoints" / str(checkpoints(workdir)[-1])
    half = last.with_name(f"{last.name}.orbax-checkpoint-tmp")
    shutil.move(last, half)
    for path in sorted(half.rglob("*"))[::2]:
      if path.is_file():
        path.unlink()
    (workdir / "final.json").unlink()
    finish(start(workdir))
    assert_same_run(whole, workdir)
    assert not list(last.parent.glob("*tmp*"))

  def test_while_it_plays_episodes_in_other_processes(self, tmp_path):
    options = {"config": EPISODES, "task.options.max_steps": 3}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(whole, **options))
    process = start(killed, **options)
    wait_for([process], lambda: steps_done(killed) >= 3)
    kill(process)
    assert steps_done(killed) < 6, "the run was over before the kill"
    finish(start(killed, **options))
    assert_same_run(whole, killed)


def test_ctrl_c_saves_says_how_to_go_on_and_goes_on(whole, tmp_path):
  workdir = tmp_path / "run"
  process = start(workdir)
  wait_for([process], lambda: steps_done(workdir) >= 1)
  process.send_signal(signal.SIGINT)
  output = finish(process, status=130)
  assert "the same command goes on" in output
  assert f"--workdir={workdir}" in output
  assert "Traceback" not in output
  finish(start(workdir))
  assert_same_run(whole, workdir)


class TestTheWrongDirectory:
  def test_another_config_is_refused_by_name(self, whole):
    output = finish(start(whole, **{"optimizer.learning_rate": 0.02}), status=2)
    assert "optimizer.learning_rate = 0.01, not 0.02" in output
    assert "Traceback" not in output

  def test_a_damaged_checkpoint_names_the_last_good_step(self, whole, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    before, last = checkpoints(workdir)[-2:]
    files = (workdir / "checkpoints" / str(last) / "state").rglob("*")
    path = max(
      (f for f in files if f.is_file()), key=lambda f: f.stat().st_size
    )
    path.write_bytes(path.read_bytes()[:100])
    output = finish(start(workdir), status=2)
    assert f"the last good step is {before}" in output
    assert str(workdir / "checkpoints" / str(last)) in output
    assert "Traceback" not in output
    finish(start(workdir, f"--resume_step={before}"))
    assert_same_run(whole, workdir)
