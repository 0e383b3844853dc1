"""Two processes on loopback, two devices each, are one process of four.

The two run the real script. The programs that they compile differ from those of
one process only in who holds which devices; sums over devices may be taken in
another order.
"""

import json
import signal
import socket

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from saw_jax.run import build
from saw_jax.run import config as config_lib
from tests import helpers
from tests.run import script_runs

FIELDS = {
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


# Labels that are bought for answers of before the last update, and episodes.
KINDS = {
  "labels": (
    "care/knights:row=care,scale=tiny",
    {
      "rollout.max_new_tokens": 16,
      "asynchronous.protocol": "fixed_lag",
      "asynchronous.lag": 1,
      "loop.num_steps": 3,
      "loop.prompts_per_step": 20,
      "loop.num_microbatches": 1,
      "loop.group_size": 2,
      "parallel.fsdp": 1,
    },
  ),
  "episodes": (
    "paw/household:row=gigpo_paw,scale=tiny",
    {
      "loop.num_microbatches": 1,
      "loop.group_size": 2,
      "episodes.rows_per_call": 8,
      "task.options.max_steps": 3,
      "loop.num_steps": 4,
      "algorithm.entropy_coefficient": 0.01,
    },
  ),
}


def start(workdir, config=script_runs.TOOLS, fields=FIELDS):
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  words = [f"--coordinator=127.0.0.1:{port}", "--num_processes=2"]
  env = {"JAX_NUM_CPU_DEVICES": "2"}
  how = {"config": config, "env": env, **fields}
  return [
    script_runs.start(workdir, *words, f"--process_id={k}", **how)
    for k in range(2)
  ]


def finish(workdir, *how):
  """Runs two processes to their end; returns what the first one says."""
  return [script_runs.finish(process) for process in start(workdir, *how)][0]


def run_one(workdir, name=script_runs.TOOLS, fields=FIELDS):
  config = config_lib.load(name)
  config.update_from_flattened_dict({**script_runs.SMALL, **fields})
  build.train(build.build(config.lock(), [0], workdir), [0], directory=workdir)


def assert_close(pair, one):
  first, second = helpers.curves(pair), helpers.curves(one)
  assert first.keys() == second.keys()
  for name, value in second.items():
    np.testing.assert_allclose(first[name], value, 2e-5, 1e-6, err_msg=name)
  # Adam divides by the root of a square: see parallel_test.
  chex.assert_trees_all_close(arrays(pair), arrays(one), atol=2e-5)


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


@pytest.mark.slow
def test_two_are_one_and_go_on_after_a_kill(tmp_path):
  pair, one, killed = (tmp_path / name for name in ("pair", "one", "killed"))
  finish(pair)
  run_one(one)
  assert_close(pair, one)
  assert helpers.curves(one)["gradient_norm"][0, -1] > 0
  finals = [json.loads((d / "final.json").read_text()) for d in (pair, one)]
  assert finals[0] == finals[1]

  both = start(killed)
  script_runs.wait_for(both, lambda: script_runs.checkpoints(killed))
  script_runs.kill(*both)
  assert "resumed from step" in finish(killed)
  helpers.assert_same_run(killed, pair)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_share_labels_and_episodes_and_stop_together(tmp_path, kind):
  pair, one, stopped = (tmp_path / name for name in ("pair", "one", "stopped"))
  name, changes = KINDS[kind]
  fields = {**FIELDS, **changes}
  finish(pair, name, fields)
  run_one(one, name, fields)
  assert_close(pair, one)
  # What one of them is told, both do: after the same step, saved.
  both = start(stopped, name, fields)
  script_runs.wait_for(both, lambda: script_runs.checkpoints(stopped))
  both[1].send_signal(signal.SIGTERM)
  for process in both:
    script_runs.finish(process, status=130)
  assert not (stopped / "final.json").exists()
  assert "resumed from step" in finish(stopped, name, fields)
  helpers.assert_same_run(stopped, pair)
