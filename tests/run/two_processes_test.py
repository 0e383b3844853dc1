"""Two processes on loopback, two devices each, are one process of four.

The two run the real script. The programs that they compile differ from those of
one process only in who holds which devices; sums over devices may be taken in
another order.
"""

import fcntl
import json
import os
import signal
import socket
import sys
import time

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from saw_jax.annotate import ledger
from saw_jax.run import build
from saw_jax.run import config as config_lib
from tests import helpers
from tests.run import script_runs

FIELDS = {
  "model.num_layers": 1,
  "warm_start.num_steps": 2,
  "warm_start.num_demonstrations": 64,
  "loop.num_steps": 2,
  "loop.prompts_per_step": 4,
  "loop.checkpoint_interval": 1,
  "evaluation.num_examples": 4,
  "evaluation.batch_size": 4,
  "evaluation.samples": 1,
  "evaluation.interval": 0,
  "grading.num_workers": 0,
  "algorithm.entropy_coefficient": 0.1,
  "parallel.lift": "meshed",
  "parallel.fsdp": 2,
}


# Labels that are bought for answers of before the last update.
LABELS = (
  "care/knights:row=care,scale=tiny",
  {
    **FIELDS,
    "warm_start.num_steps": 0,
    "rollout.max_new_tokens": 16,
    "asynchronous.protocol": "fixed_lag",
    "asynchronous.lag": 1,
    "loop.num_steps": 3,
    "loop.prompts_per_step": 20,
    "loop.num_microbatches": 1,
    "loop.group_size": 2,
    "parallel.fsdp": 1,
  },
)
EPISODES = (
  "paw/household:row=gigpo_paw,scale=tiny",
  {
    **FIELDS,
    "warm_start.num_steps": 0,
    "loop.num_microbatches": 1,
    "loop.group_size": 2,
    "episodes.rows_per_call": 8,
    "task.options.max_steps": 3,
    "loop.num_steps": 4,
    "algorithm.entropy_coefficient": 0.01,
  },
)


def start(workdir, config=script_runs.TOOLS, fields=FIELDS, shape=(2, 2)):
  """Starts so many processes, of so many devices each."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  count, devices = shape
  words = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}"]
  env = {"JAX_NUM_CPU_DEVICES": str(devices)}
  before = sys.executable, "-m", "tests.shared_programs"
  how = {"config": config, "env": env, "before": before, **fields}
  return [
    script_runs.start(workdir, *words, f"--process_id={k}", **how)
    for k in range(count)
  ]


def finish(workdir, *how):
  """Runs processes to their end; returns what the first one says."""
  return [script_runs.finish(process) for process in start(workdir, *how)][0]


def pair(tmp_path_factory):
  """A run of two processes: one for all tests, and all of pytest's workers."""
  root = tmp_path_factory.getbasetemp()
  root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
  folder = root / "pair"
  with folder.with_suffix(".lock").open("w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not (folder / "final.json").exists():
      finish(folder)
  return folder


def run_one(workdir, name=script_runs.TOOLS, fields=FIELDS):
  config = config_lib.load(name)
  config.update_from_flattened_dict({**script_runs.SMALL, **fields})
  build.train(build.build(config.lock(), [0], workdir), [0], directory=workdir)


def assert_close(two, one):
  first, second = helpers.curves(two), helpers.curves(one)
  assert first.keys() == second.keys()
  for name, value in second.items():
    np.testing.assert_allclose(first[name], value, 2e-5, 1e-6, err_msg=name)
  # Adam divides by the root of a square: see parallel_test.
  chex.assert_trees_all_close(arrays(two), arrays(one), atol=2e-5)


def arrays(workdir):
  """The state in the last checkpoint, whoever wrote which part of it."""
  last = script_runs.checkpoints(workdir)[-1]
  folder = workdir / "checkpoints" / str(last) / "state"
  with ocp.PyTreeCheckpointer() as reader:
    tree = reader.metadata(folder).item_metadata.tree
    as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
    wanted = jax.tree.map(lambda _: as_numpy, tree)
    return reader.restore(folder, restore_args=wanted)


# Both are killed in store_test.py.
@pytest.mark.slow
def test_two_are_one(tmp_path, tmp_path_factory):
  one, two = tmp_path, pair(tmp_path_factory)
  run_one(one)
  assert_close(two, one)
  assert helpers.curves(one)["gradient_norm"][0, -1] > 0
  finals = [json.loads((d / "final.json").read_text()) for d in (two, one)]
  assert finals[0] == finals[1]


@pytest.mark.slow
def test_two_stop_together_and_lose_nothing(tmp_path):
  one, two = tmp_path / "one", tmp_path / "two"
  # What one of them is told, both do: after the same step, saved. The first
  # step compiles, which takes longer than the service takes to tell.
  both = start(two, *LABELS)
  script_runs.wait_for(both, (two / "run.html").exists)
  both[1].send_signal(signal.SIGTERM)
  said = [script_runs.finish(process, status=130) for process in both]
  step = script_runs.checkpoints(two)[-1]
  assert all(f"stopped after step {step}" in text for text in said)
  assert not (two / "final.json").exists()

  # One is killed: the other ends, says why, and nothing is lost or doubled.
  both = start(two, *LABELS)
  script_runs.wait_for(both, lambda: has_begun(two, step))
  script_runs.kill(both[1])
  assert "on all again" in script_runs.finish(both[0], status=1, timeout=60)
  assert "resumed from step" in finish(two, *LABELS)
  run_one(one, *LABELS)
  assert_close(two, one)
  assert purchases(two) == purchases(one)


# Gloo adds up round a ring, from another device on for each part of an array,
# and one process from the first device to the last. So two devices give the
# same sums whoever holds them, and four do where several processes have them.
@pytest.mark.slow
def test_who_holds_the_devices_changes_no_bit(tmp_path):
  one, two, four = (tmp_path / name for name in ("one", "two", "four"))
  # Of (2, 1) and (1, 2) it was seen to hold, too.
  finish(two, *EPISODES)
  finish(four, *EPISODES, (4, 1))
  helpers.assert_same_run(four, two)
  run_one(one, *EPISODES)
  assert_close(two, one)


@pytest.mark.slow
def test_no_process_reads_or_holds_a_whole_model(tmp_path):
  out = tmp_path / "found.json"
  words = ["--model=Qwen2.5-1.5B-Instruct", f"--out={out}"]
  script = script_runs.ROOT / "benchmarks" / "load_memory.py"
  done = helpers.python(script, *words, cwd=script_runs.ROOT)
  assert done.returncode == 0, done.stderr
  (found,) = json.loads(out.read_text()).values()
  first, second = found["processes"]
  embedding = 151_936 * 1536 * 2 / 1e9  # the largest tensor, split by columns
  for one in (first, second):
    assert one["share"] < 0.51 * one["model"]
    assert one["peak"] - one["before"] < one["share"] + embedding + 0.2
    assert one["read"] < 0.9 * one["model"]  # Rows of some are another's alone.


def has_begun(workdir, step):
  """Whether a step has bought its labels."""
  time.sleep(0.05)
  bought = purchases(workdir)
  return bought and bought[-1].step >= step


def purchases(workdir):
  path = workdir / ledger.LEDGER_NAME
  bought = ledger.LabelLedger(path).purchases() if path.exists() else []
  return [one._replace(time="") for one in bought]
