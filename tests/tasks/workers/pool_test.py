"""What graders and environment pools share: processes that come and go."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import psutil
import pytest

from saw_jax.tasks.workers.environment_pool import EnvironmentPool
from saw_jax.tasks.workers.grading import Grader
from saw_jax.tasks.workers.pool import Pool, RewardError, Worker
from tests import helpers
from tests.tasks import misbehaving_environments as envs
from tests.tasks import misbehaving_tasks as tasks

ROOT = pathlib.Path(__file__).parents[3]
POOLS = [(Grader, tasks.Obedient), (EnvironmentPool, envs.CounterTask)]
UNLOADABLE = [(Grader, tasks.Unloadable), (EnvironmentPool, envs.Unloadable)]


def children():
  return {p.pid for p in psutil.Process().children(recursive=True)}


@pytest.mark.parametrize(("make", "task"), POOLS)
class TestOpening:
  def test_a_number_that_makes_no_sense_is_named(self, make, task):
    wrong = [("num_workers", -1), ("limit_s", 0.0), ("limit_s", float("nan"))]
    for name, value in (
      *wrong,
      ("crash_tolerance", 1.5),
      ("unscored_tolerance", -0.1),
    ):
      options = {"num_workers": 0, "limit_s": 1.0} | {name: value}
      with pytest.raises(ValueError, match=name):
        make(task(), **options)

  def test_a_task_of_no_module_is_sent_by_value(self, make, task, monkeypatch):
    class Local(task):
      pass

    for workers in (0, 1):
      make(Local(), num_workers=workers, limit_s=1.0).close()
    monkeypatch.setitem(sys.modules, "cloudpickle", None)  # it is missing
    with pytest.raises(RewardError, match="notebook"):
      make(Local(), num_workers=1, limit_s=1.0)

  def test_closing_leaves_no_process(self, make, task):
    before = children()
    with make(task(), num_workers=2, limit_s=0.3) as pool:
      assert len(children() - before) == 2
    assert children() <= before
    pool.close()


def test_a_worker_that_the_system_kills_ran_out_of_memory():
  class Dies:
    def __reduce__(self):
      return signal.raise_signal, (signal.SIGKILL,)

  with pytest.raises(RewardError, match="memory runs out. Fewer workers"):
    Pool(Dies(), "x", num_workers=1, limit_s=1.0)


@pytest.mark.parametrize(("make", "task"), UNLOADABLE)
def test_a_task_that_cannot_be_loaded_is_named(make, task):
  before = children()
  with pytest.raises(RewardError, match=f"'{task.name}'.*RuntimeError"):
    make(task(), num_workers=1, limit_s=1.0)
  assert children() <= before


OWN = """
import sys
sys.modules["cloudpickle"] = None  # it is missing
import saw_jax
from saw_jax.tasks.workers.grading import Grader

def right(completion, row):
  return 1.0

rows = [{"prompt": "a"}] * 2
task = saw_jax.task(rows, test=rows, rewards=right)
with Grader(task, num_workers=1, limit_s=9.0) as grader:
  print(grader.grade(task.examples("train"), ["x", "y"]).rewards.tolist())
"""


def test_the_functions_of_a_script_are_read_again(tmp_path):
  path = tmp_path / "script.py"
  path.write_text(OWN)
  environment = {**os.environ, "PYTHONPATH": str(ROOT)}
  done = helpers.python(path, cwd=tmp_path, env=environment)
  assert (done.stdout, done.stderr) == ("[[1.0], [1.0]]\n", "")


def test_a_process_that_does_not_come_up_says_how_it_ended():
  one = Worker(b"nonsense", 1.0)
  assert one.problem() == "its process died, exit code 1"
  assert one.process.poll() == 1


# A program that is started in the background of a shell ignores Ctrl-C unless
# it says otherwise.
SCRIPT = """
import signal, sys, threading
signal.signal(signal.SIGINT, signal.default_int_handler)
from saw_jax.tasks.workers import grading
from tests.tasks import misbehaving_tasks
task = misbehaving_tasks.Obedient()
grader = grading.Grader(task, num_workers=1, limit_s=1000)
def grade():
  grader.grade(task.examples("train")[:1], ["spin"])
if "thread" in sys.argv:
  threading.Thread(target=grade, daemon=True).start()
  print("ready", flush=True)
  input()
else:
  print("ready", flush=True)
  grade()
"""


@pytest.mark.parametrize("end", ["Ctrl-C", "thread", "kill"])
def test_a_program_that_ends_while_grading_takes_its_workers_along(end):
  if end == "kill" and sys.platform != "linux":
    pytest.skip("needs prctl")
  how = {"stderr": subprocess.DEVNULL}
  with helpers.process("-c", SCRIPT, end, **how) as process:
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.4)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) == 1
    if end == "Ctrl-C":
      process.send_signal(signal.SIGINT)
    elif end == "kill":
      process.kill()
    else:
      process.stdin.close()
    try:
      assert process.wait(20) != 0
      _, alive = psutil.wait_procs(workers, timeout=5)
      assert not alive
    finally:
      for worker in workers:
        if worker.is_running():
          worker.kill()
