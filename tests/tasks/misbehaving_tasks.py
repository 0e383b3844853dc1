"""Tasks whose reward does what the completion says, for the grader's tests."""

import os
import signal
import sys
import time

from saw_jax.tasks.base import Component, Example, Outcome, Score

SCORES = {
  "gave up": Score((2.0, 1.0), Outcome.TIMED_OUT),
  "no verdict": Score((None, None), Outcome.CRASHED),
  "half": Score((None, 1.0), Outcome.WRONG),
  "nan": Score((float("nan"), 0.0), Outcome.RIGHT),
}
ACTIONS = {
  "sleep": lambda: time.sleep(1000),
  "exit": lambda: os._exit(3),
  "system exit": lambda: sys.exit(4),
  "segfault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
}


class Obedient:
  """Two components; the completion says how to behave."""

  name = "obedient"
  components = (Component("first", -3.0, 3.0), Component("second", 0.0, 1.0))

  def examples(self, split):
    return [Example(i, (), "") for i in range(1000)]

  def score(self, example, completion):
    if completion in SCORES:
      return SCORES[completion]
    if completion in ACTIONS:
      ACTIONS[completion]()
    if completion.startswith("/") and not os.path.exists(completion):
      os.mkdir(completion)
      os.kill(os.getpid(), signal.SIGKILL)  # once
    while completion == "spin":
      pass
    if completion == "raise":
      raise KeyError("no such thing")
    if completion in ("memory", "gigabytes"):
      size = (1 << 40) if completion == "memory" else (2 << 30)
      return Score((float(bytearray(size)[7]), 0.0), Outcome.RIGHT)
    if completion == "modules":
      has_jax = any(name.split(".")[0] == "jax" for name in sys.modules)
      return Score((3.0, float(has_jax)), Outcome.RIGHT)
    value = (len(completion) + example.key) % 3
    return Score((float(value), 1.0), Outcome.RIGHT)


class Unloadable(Obedient):
  """A task that no other process can load."""

  def __reduce__(self):
    return exec, ("raise RuntimeError('this cannot be loaded')",)
