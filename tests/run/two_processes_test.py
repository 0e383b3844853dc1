"""Two processes on loopback, four devices each, are one process of eight.

These tests run the real script in processes of their own. The programs that the
processes compile differ from those of one process only in who holds which
devices; sums over devices may be taken in another order.
"""

import json
import socket

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests import helpers
from tests.run import script_runs

pytestmark = pytest.mark.slow


def start(workdir, count, **changes):
  """Starts the processes of one run."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  fields = {
    "loop.num_steps": 3,
    "loop.prompts_per_step": 8,
    "loop.checkpoint_interval": 1,
    "evaluation.num_examples": 8,
    "evaluation.batch_size": 8,
    "evaluation.samples": 1,
    "evaluation.interval": 0,
    "grading.num_workers": 0,
    "algorithm.entropy_coefficient": 0.1,
    "parallel.lift": "meshed",
    "parallel.fsdp": 2,
    **changes,
  }
  words = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}"]
  return [
    script_runs.start(
      workdir,
      *([*words, f"--process_id={index}"] if count > 1 else []),
      env={"JAX_NUM_CPU_DEVICES": str(8 // count)},
      **fields,
    )
    for index in range(count)
  ]


def finish(processes):
  return [script_runs.finish(process) for process in processes]


def arrays(workdir):
  """The state in the last checkpoint, whoever wrote which part of it."""
  last = script_runs.checkpoints(workdir)[-1]
  folder = workdir / "checkpoints" / str(last) / "state"
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
  first, second = helpers.curves(pair), helpers.curves(one)
  assert first.keys() == second.keys()
  assert first["gradient_norm"][0, 2] > 0
  for name, value in second.items():
    np.testing.assert_allclose(first[name], value, 2e-5, 1e-6, err_msg=name)
  # Adam divides by the root of a square: see parallel_test.
  chex.assert_trees_all_close(arrays(pair), arrays(one), atol=2e-5)
  finals = [json.loads((d / "final.json").read_text()) for d in (pair, one)]
  assert finals[0] == finals[1]


def test_killed_and_resumed_it_is_the_run_that_was_not(pair, tmp_path):
  workdir = tmp_path / "run"
  processes = start(workdir, 2)
  script_runs.wait_for(processes, lambda: script_runs.checkpoints(workdir))
  script_runs.kill(*processes)
  outputs = finish(start(workdir, 2))
  assert "resumed from step" in outputs[0]
  helpers.assert_same_run(workdir, pair)
