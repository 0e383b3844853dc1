"""Runs commands, each in a process of its own."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any


def count_cores() -> int:
  """The cores that this process may use."""
  allowed = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count()))
  return len(allowed(0))


def saw(*words: str) -> list[str]:
  """The words that run `saw` as this process does."""
  return [sys.executable, "-m", "saw_jax", *words]


class Children:
  """Runs commands, and passes a signal on to those that run, once."""

  def __init__(self):
    self.stopped = False  # by a signal: start nothing more
    self._begun: list[subprocess.Popen] = []

  def __enter__(self) -> "Children":
    numbers = (signal.SIGINT, signal.SIGTERM)
    self._before = {n: signal.signal(n, self._forward) for n in numbers}
    return self

  def __exit__(self, *exc) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def run(self, words: Sequence[str]) -> int:
    """Runs a command to its end, and gives its status."""
    return self.start(words).wait()

  def start(self, words: Sequence[str], **how: Any) -> subprocess.Popen:
    """Starts a command beside those that run; `how` is that of `Popen`."""
    # A process group of its own, or Ctrl-C would reach it twice, from the
    # terminal and from here, and the second would stop it without saving.
    self._begun.append(subprocess.Popen(words, process_group=0, **how))
    return self._begun[-1]

  def _forward(self, number, frame) -> None:
    del frame
    self.stopped = True
    for process in self._begun:
      process.send_signal(number)  # does nothing to one that has ended
