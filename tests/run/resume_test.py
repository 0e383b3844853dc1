"""Killed at any moment, the finished run is the uninterrupted one (R10).

These tests run the real script in a process of its own and kill it with
SIGKILL, which nothing can catch.
"""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from saw_jax.reporting import runs
from tests import helpers

ROOT = pathlib.Path(__file__).parents[2]
CLOCK = ("seconds/", "tokens_per_second", "compilations")
SMALL = {
  "warm_start.num_steps": 0,
  "model.width": 16,
  "model.num_layers": 1,
  "model.num_heads": 2,
  "model.num_kv_heads": 1,
  "model.head_size": 8,
  "model.mlp_size": 24,
  "rollout.max_new_tokens": 6,
  "loop.num_steps": 6,
  "loop.prompts_per_step": 4,
  "loop.group_size": 4,
  "loop.checkpoint_interval": 2,
  "evaluation.num_examples": 4,
  "evaluation.interval": 3,
  "grading.num_workers": 1,
  "optimizer.learning_rate": 0.01,
}

pytestmark = pytest.mark.slow


TOOLS = "configs/saw/tool_calling.py:row=gdpo_saw,scale=tiny"
EPISODES = "configs/paw/household.py:row=gigpo_paw,scale=tiny"


def start(workdir, *flags, config=TOOLS, **changes):
  return subprocess.Popen(
    [
      sys.executable,
      "experiments/train.py",
      f"--config={config}",
      f"--workdir={workdir}",
      "--seeds=0,1",
      *(f"--config.{k}={v}" for k, v in {**SMALL, **changes}.items()),
      *flags,
    ],
    cwd=ROOT,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finish(process, status=0):
  output, _ = process.communicate(timeout=400)
  assert process.returncode == status, output
  return output


def wait_for(process, condition):
  """Polls until a condition holds; the process may not end before."""
  end = time.monotonic() + 300
  while not condition():
    assert process.poll() is None, process.communicate()[0]
    assert time.monotonic() < end
    time.sleep(0.0005)


def steps_done(workdir):
  path = workdir / "metrics.jsonl"
  return len(path.read_text().splitlines()) // 2 if path.exists() else 0


def checkpoints(workdir):
  folder = workdir / "checkpoints"
  names = [p.name for p in folder.iterdir()] if folder.exists() else []
  return sorted(int(name) for name in names if name.isdigit())


def is_saving(workdir):
  """An unfinished checkpoint lies in the folder."""
  folder = workdir / "checkpoints"
  return folder.exists() and any(
    "tmp" in path.name for path in folder.iterdir()
  )


def assert_same_run(a, b):
  curves = [runs.read_curves([directory]) for directory in (a, b)]
  first, second = (
    {k: v for k, v in found.values.items() if not k.startswith(CLOCK)}
    for found in curves
  )
  assert first.keys() == second.keys()
  for name, value in first.items():
    np.testing.assert_array_equal(value, second[name], err_msg=name)
  for name in ("final.json", "evals.csv"):
    assert (a / name).read_text() == (b / name).read_text()
  assert fingerprints(a) == fingerprints(b)


def fingerprints(workdir):
  folder = workdir / "checkpoints" / str(checkpoints(workdir)[-1])
  return helpers.read_document(folder)["fingerprints"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("whole") / "run"
  finish(start(workdir))
  return workdir


class TestSigkill:
  def test_in_the_middle_of_a_step(self, whole, tmp_path):
    workdir = tmp_path / "run"
    process = start(workdir)
    wait_for(process, lambda: steps_done(workdir) >= 3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert steps_done(workdir) < 6, "the run was over before the kill"
    finish(start(workdir))
    assert_same_run(whole, workdir)

  def test_in_the_middle_of_a_save(self, whole, tmp_path):
    workdir = tmp_path / "run"
    process = start(workdir)
    wait_for(process, lambda: is_saving(workdir))
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    finish(start(workdir))
    assert_same_run(whole, workdir)
    assert not is_saving(workdir)

  def test_with_a_half_written_checkpoint_left_behind(self, whole, tmp_path):
    # The kill above may come a moment too late; this cannot.
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    folder = workdir / "checkpoints"
    last = folder / str(checkpoints(workdir)[-1])
    half = folder / f"{last.name}.orbax-checkpoint-tmp"
    shutil.move(last, half)
    for path in sorted(half.rglob("*"))[::2]:
      if path.is_file():
        path.unlink()
    (workdir / "final.json").unlink()
    finish(start(workdir))
    assert_same_run(whole, workdir)


class TestCtrlC:
  def test_saves_says_how_to_go_on_and_goes_on(self, whole, tmp_path):
    workdir = tmp_path / "run"
    process = start(workdir)
    wait_for(process, lambda: steps_done(workdir) >= 1)
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


def test_so_is_a_run_of_episodes(tmp_path):
  # Killed while it plays: its environments are in other processes.
  options = {"config": EPISODES, "task.options.max_steps": 3}
  whole, killed = tmp_path / "whole", tmp_path / "killed"
  finish(start(whole, **options))
  process = start(killed, **options)
  wait_for(process, lambda: steps_done(killed) >= 3)
  process.send_signal(signal.SIGKILL)
  process.wait()
  process.stdout.close()
  assert steps_done(killed) < 6, "the run was over before the kill"
  finish(start(killed, **options))
  assert_same_run(whole, killed)
