"""Tasks whose reward does what the completion says, for the grader's tests."""

import os
import signal
import sys
import time

from saw_jax.tasks import base

RIGHT = base.Outcome.RIGHT


class Obedient:
  """Two components; the completion says how to behave."""

  name = "obedient"
  components = (
    base.Component("first", -3.0, 3.0),
    base.Component("second", 0.0, 1.0),
  )

  def examples(self, split):
    return [base.Example(i, (), "") for i in range(1000)]

  def score(self, example, completion):
    if completion == "sleep":
      time.sleep(1000)
    if completion == "spin":
      while True:
        pass
    if completion == "exit":
      os._exit(3)
    if completion == "system exit":
      sys.exit(4)
    if completion == "segfault":
      os.kill(os.getpid(), signal.SIGSEGV)
    if completion == "raise":
      raise KeyError("no such thing")
    if completion == "memory":
      return base.Score((float(len(bytearray(1 << 40))), 0.0), RIGHT)
    if completion == "gigabytes":
      return base.Score((float(bytearray(2 << 30)[7]), 0.0), RIGHT)
    if completion == "gave up":
      return base.Score((2.0, 1.0), base.Outcome.TIMED_OUT)
    if completion == "no verdict":
      return base.Score((None, None), base.Outcome.CRASHED)
    if completion == "low":
      return base.Score((-3.5, 0.0), RIGHT)
    if completion == "nan":
      return base.Score((float("nan"), 0.0), RIGHT)
    if completion == "inf":
      return base.Score((0.0, float("inf")), RIGHT)
    if completion == "text":
      return base.Score((0.0, "1"), RIGHT)
    if completion == "three":
      return base.Score((0.0, 0.0, 0.0), RIGHT)
    if completion == "high":
      return base.Score((0.0, 1.5), RIGHT)
    if completion == "float":
      return 1.0
    if completion == "half":
      return base.Score((None, 1.0), base.Outcome.WRONG)
    if completion == "modules":
      has_jax = any(name.split(".")[0] == "jax" for name in sys.modules)
      return base.Score((3.0, float(has_jax)), RIGHT)
    value = (len(completion) + example.key) % 3
    return base.Score((float(value), 1.0), RIGHT)


class Unloadable(Obedient):
  """A task that no other process can load."""

  def __reduce__(self):
    return (_fail, ())


def _fail():
  raise RuntimeError("this cannot be loaded")
