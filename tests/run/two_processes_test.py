"""Two processes on loopback, four devices each, are one process of eight.

These tests run the real script in processes of their own. The programs that the
processes compile differ from those of one process only in who holds which
devices; sums over devices may be taken in another order.
"""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests import helpers

ROOT = pathlib.Path(__file__).parents[2]
SMALL = {
  "warm_start.num_steps": 0,
  "model.width": 16,
  "model.num_layers": 1,
  "model.num_heads": 2,
  "model.num_kv_heads": 1,
  "model.head_size": 8,
  "model.mlp_size": 24,
  "rollout.max_new_tokens": 6,
  "loop.num_steps": 3,
  "loop.prompts_per_step": 8,
  "loop.group_size": 4,
  "loop.checkpoint_interval": 1,
  "evaluation.num_examples": 8,
  "evaluation.batch_size": 8,
  "evaluation.samples": 1,
  "evaluation.interval": 0,
  "grading.num_workers": 0,
  "optimizer.learning_rate": 0.01,
  "algorithm.entropy_coefficient": 0.1,
  "parallel.lift": "meshed",
  "parallel.fsdp": 2,
}
CLOCK = ("seconds/", "tokens_per_second", "compilations")

pytestmark = pytest.mark.slow


def start(workdir, count, **changes):
  """Starts the processes of one run."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  processes = []
  for index in range(count):
    words = []
    if count > 1:
      words = [f"--coordinator=127.0.0.1:{port}"]
      words += [f"--num_processes={count}", f"--process_id={index}"]
    processes.append(
      subprocess.Popen(
        [
          sys.executable,
          "experiments/train.py",
          "--config=configs/saw/tool_calling.py:row=gdpo_saw,scale=tiny",
          f"--workdir={workdir}",
          *words,
          *(f"--config.{k}={v}" for k, v in {**SMALL, **changes}.items()),
        ],
        cwd=ROOT,
        env={
          **os.environ,
          "PYTHONPATH": str(ROOT),
          "JAX_NUM_CPU_DEVICES": str(8 // count),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
      )
    )
  return processes


def finish(processes):
  outputs = [p.communicate(timeout=900)[0] for p in processes]
  for process, output in zip(processes, outputs, strict=True):
    assert process.returncode == 0, output
  return outputs


def rows(workdir):
  """What was logged, but for the clock."""
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [
    {k: v for k, v in json.loads(line).items() if not k.startswith(CLOCK)}
    for line in lines
  ]


def last(workdir):
  """The number of the last whole checkpoint."""
  folder = workdir / "checkpoints"
  names = [p.name for p in folder.iterdir()] if folder.exists() else []
  return max((int(name) for name in names if name.isdigit()), default=0)


def document(workdir):
  return helpers.read_document(workdir / "checkpoints" / str(last(workdir)))


def arrays(workdir):
  """The state in the last checkpoint, whoever wrote which part of it."""
  folder = workdir / "checkpoints" / str(last(workdir)) / "state"
  with ocp.PyTreeCheckpointer() as reader:
    tree = reader.metadata(folder).item_metadata.tree
    wanted = jax.tree.map(
      lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree
    )
    return reader.restore(folder, restore_args=wanted)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("pair") / "run"
  finish(start(workdir, 2))
  return workdir


def test_the_numbers_are_those_of_one_process(pair, tmp_path):
  one = tmp_path / "one"
  finish(start(one, 1))
  first, second = rows(pair), rows(one)
  assert len(first) == len(second) == 3
  assert first[-1]["gradient_norm"] > 0
  for found, expected in zip(first, second, strict=True):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
      np.testing.assert_allclose(
        found[name], value, rtol=2e-5, atol=1e-6, err_msg=name
      )
  # Adam divides by the root of a square: see parallel_test.
  chex.assert_trees_all_close(arrays(pair), arrays(one), atol=2e-5)
  finals = [json.loads((d / "final.json").read_text()) for d in (pair, one)]
  assert finals[0] == finals[1]


def test_killed_and_resumed_it_is_the_run_that_was_not(pair, tmp_path):
  workdir = tmp_path / "run"
  processes = start(workdir, 2)
  end = time.monotonic() + 600
  while not last(workdir):
    assert all(p.poll() is None for p in processes), finish(processes)
    assert time.monotonic() < end
    time.sleep(0.01)
  for process in processes:
    process.send_signal(signal.SIGKILL)
  for process in processes:
    process.communicate()
  outputs = finish(start(workdir, 2))
  assert "resumed from step" in outputs[0]
  assert rows(workdir) == rows(pair)
  assert document(workdir)["fingerprints"] == document(pair)["fingerprints"]


def test_another_lift_is_refused(tmp_path):
  processes = start(tmp_path / "run", 2, **{"parallel.lift": "pmapped"})
  outputs = [p.communicate(timeout=300)[0] for p in processes]
  assert any(
    "error: several processes cannot do this together: parallel.lift='pmapped'"
    in output
    for output in outputs
  ), outputs
