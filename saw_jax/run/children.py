"""Commands that are run one after the other, each in a process of its own."""

import signal
import subprocess
from collections.abc import Sequence


class Children:
  """Runs commands; a signal is passed on, once, to the one that runs."""

  def __init__(self):
    self.stopped = False  # by a signal: nothing more is to be run
    self._process: subprocess.Popen | None = None

  def __enter__(self) -> "Children":
    numbers = (signal.SIGINT, signal.SIGTERM)
    self._before = {n: signal.signal(n, self._forward) for n in numbers}
    return self

  def __exit__(self, *exc) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def run(self, words: Sequence[str]) -> int:
    """Runs a command to its end, and gives its status."""
    # In a group of its own, or a terminal's Ctrl-C would come twice: from
    # there and from here. The second would stop it at once, without saving.
    self._process = subprocess.Popen(words, process_group=0)
    return self._process.wait()

  def _forward(self, number, frame) -> None:
    del frame
    self.stopped = True
    if self._process is not None:
      self._process.send_signal(number)
