"""Runs of the real script, in processes of their own."""

import os
import pathlib
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[2]
TOOLS = "configs/saw/tool_calling.py:row=gdpo_saw,scale=tiny"
SMALL = {
  "warm_start.num_steps": 0,
  "model.width": 16,
  "model.num_layers": 1,
  "model.num_heads": 2,
  "model.num_kv_heads": 1,
  "model.head_size": 8,
  "model.mlp_size": 24,
  "rollout.max_new_tokens": 6,
  "loop.group_size": 4,
  "optimizer.learning_rate": 0.01,
}


def start(workdir, *flags, config=TOOLS, env=None, before=(), **changes):
  return subprocess.Popen(
    [
      *before,
      sys.executable,
      "experiments/train.py",
      f"--config={config}",
      f"--workdir={workdir}",
      *flags,
      *(f"--config.{k}={v}" for k, v in {**SMALL, **changes}.items()),
    ],
    cwd=ROOT,
    env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def start_small(workdir, *flags, **changes):
  """A run of two seeds and 8 steps, which saves every second one."""
  fields = {
    "loop.num_steps": 8,
    "loop.prompts_per_step": 4,
    "loop.checkpoint_interval": 2,
    "evaluation.num_examples": 4,
    "evaluation.interval": 3,
    "grading.num_workers": 1,
    **changes,
  }
  return start(workdir, "--seeds=0,1", *flags, **fields)


def finish(process, status=0, timeout=900):
  output, _ = process.communicate(timeout=timeout)
  assert process.returncode == status, output
  return output


def wait_for(processes, condition):
  """Polls until a condition holds; no process may end before."""
  end = time.monotonic() + 600
  while not condition():
    for process in processes:
      assert process.poll() is None, process.communicate()[0]
    assert time.monotonic() < end
    time.sleep(0.002)


def kill(*processes):
  """With a signal that nothing can catch."""
  for process in processes:
    process.kill()
  for process in processes:
    process.communicate()


def checkpoints(workdir):
  folder = workdir / "checkpoints"
  names = [p.name for p in folder.iterdir()] if folder.exists() else []
  return sorted(int(name) for name in names if name.isdigit())


def break_off(workdir):
  """Leaves what a kill in the middle of the last save does: half of it."""
  last = workdir / "checkpoints" / str(checkpoints(workdir)[-1])
  half = last.with_name(f"{last.name}.orbax-checkpoint-tmp")
  shutil.move(last, half)
  for path in sorted(half.rglob("*"))[::2]:
    if path.is_file():
      path.unlink()
  (workdir / "final.json").unlink(missing_ok=True)
