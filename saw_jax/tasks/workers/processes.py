"""A process of our own that answers on a pipe and can be killed at any moment.

Graders and environments meet text that a policy wrote, so they run apart. Such
a process imports neither JAX nor the program that started it.
"""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys

START_LIMIT_S = 120.0
# Not multiprocessing's spawn, which would import the main script, and with it
# JAX, into each worker.
_COMMAND = """
import importlib, sys
sys.path[:] = {path!r}
importlib.import_module({module!r}).serve({handle})
"""


class Process:
  """A started process, and this end of the pipe to it.

  Attributes:
    pipe: a `multiprocessing.connection.Connection`.
  """

  def __init__(self, module: str, greeting: bytes):
    """Starts the process, and does not wait for it.

    Args:
      module: has `serve(handle)`, which answers on a file descriptor: first to
        the greeting, with None or a sentence on what is wrong with it.
      greeting: the first message.
    """
    self.pipe, theirs = multiprocessing.Pipe()
    with theirs:
      command = _COMMAND.format(
        path=sys.path, module=module, handle=theirs.fileno()
      )
      self._process = subprocess.Popen(
        [sys.executable, "-c", command],
        stdin=subprocess.DEVNULL,
        pass_fds=(theirs.fileno(),),
        start_new_session=True,  # Its children die with it; no Ctrl-C comes in.
      )
    with contextlib.suppress(OSError):  # Its death shows in `problem`.
      self.pipe.send_bytes(greeting)

  def problem(self) -> str | None:
    """Waits for the answer to the greeting; None if all is well."""
    try:
      if self.pipe.poll(START_LIMIT_S):
        return self.pipe.recv()
    except (EOFError, OSError):
      return f"its process died, exit code {self.stop(1.0)}"
    return "its process did not start"

  def is_alive(self) -> bool:
    """Whether the process still runs."""
    return self._process.poll() is None

  def stop(self, grace_s: float = 0.0) -> int:
    """Kills the process with its children; returns its exit code."""
    self.pipe.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
      if grace_s:
        self._process.wait(grace_s)
    with contextlib.suppress(ProcessLookupError, PermissionError):
      os.killpg(self._process.pid, signal.SIGKILL)
    return self._process.wait()
