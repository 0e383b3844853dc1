"""Runs tables one after the other, each in a process of its own.

`reproduce.py --all` calls it. A table that fails does not take the others with
it, and Ctrl-C reaches the one that runs exactly once, so that it saves.
"""

import contextlib
import dataclasses
import pathlib
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence

from saw_jax.reporting import catalogue, run_plan
from saw_jax.reporting.table import Table
from saw_jax.run import command_line
from saw_jax.tasks.base import nearest


@dataclasses.dataclass(frozen=True)
class Job:
  """One table."""

  table: str
  rows: int  # that it has
  missing: int  # of them that have not been run
  is_written: bool = False  # and its table is newer than its runs
  hours: float | None = None  # that all its rows take
  lacks: tuple[str, ...] = ()  # what is not here

  @property
  def is_done(self) -> bool:
    """Whether every run is there, and the table after them."""
    return not self.missing and self.is_written

  @property
  def seconds(self) -> float | None:
    """Estimated, of the rows that are missing; none if nobody has timed it."""
    if not self.missing:
      return 0.0
    if self.hours is None:
      return None
    return 3600 * self.hours * self.missing / self.rows


def plan(scale: str, seeds: int, runs: str, results: str) -> list[Job]:
  """Finds out what is missing of every table that has a scale."""
  tables = {name: catalogue.load(name) for name in catalogue.names()}
  known = list(dict.fromkeys(s for t in tables.values() for s in t.scales))
  if scale not in known:
    raise ValueError(f"unknown scale {scale!r}: {nearest(scale, known)}")
  return [
    _job(name, table, scale, seeds, runs, results)
    for name, table in tables.items()
    if scale in table.scales
  ]


def _job(
  name: str, table: Table, scale: str, seeds: int, runs: str, results: str
) -> Job:
  plans = [
    run_plan.plan_row(pathlib.Path(runs, name, scale), row, range(seeds))
    for row in table.default_runs
  ]
  written = pathlib.Path(results, name, scale, "table.md")
  ends = [
    (directory / "final.json").stat().st_mtime
    for plan in plans
    for directory in plan.there.directories
  ]
  return Job(
    name,
    rows=len(plans),
    missing=sum(bool(plan.missing) for plan in plans),
    is_written=written.exists()
    and written.stat().st_mtime >= max(ends, default=0.0),
    hours=table.needs[scale].hours,
    lacks=tuple(catalogue.missing(table, scale)),
  )


def run(
  jobs: Sequence[Job],
  command: Callable[[str], list[str]],
  *,
  say: Callable[[str], None] = print,
) -> int:
  """Runs what is missing; returns 0, 1 if a table failed, or an interrupt's.

  `command` is that which makes a table, and `say` takes a line for people.
  """
  ends = {}
  took, expected = 0.0, 0.0  # of the tables that were timed before and ran now
  todo = [job for job in jobs if not job.is_done and not job.lacks]
  for job in jobs:
    if job.lacks:
      ends[job.table] = f"left out, for want of {'; '.join(job.lacks)}"
    elif job.is_done:
      ends[job.table] = "was there"
  with _forwarding() as child:
    for number, job in enumerate(todo):
      pace = took / expected if expected else 1.0
      say(
        f"table {number + 1} of {len(todo)}: {job.table}, {job.missing} of "
        f"{job.rows} runs to do; {remaining(todo[number:], pace)}"
      )
      start = time.monotonic()
      status = child.run(command(job.table))
      seconds = time.monotonic() - start
      if status == command_line.INTERRUPTED or child.is_stopped:
        ends[job.table] = "stopped"
        break
      if status > 0:
        ends[job.table] = f"failed with status {status}"
      elif status < 0:
        ends[job.table] = f"ended by {signal.Signals(-status).name}"
      else:
        ends[job.table] = f"made in {duration(seconds)}"
        if job.missing and job.seconds is not None:
          took, expected = took + seconds, expected + job.seconds
  for job in jobs:
    say(f"{job.table}: {ends.get(job.table, 'not begun')}")
  if "stopped" in ends.values():
    say("stopped; the same command goes on")
    return command_line.INTERRUPTED
  return int(any(e.startswith(("failed", "ended")) for e in ends.values()))


def remaining(jobs: Sequence[Job], pace: float = 1.0) -> str:
  """How long tables will take, where estimates are to be multiplied by pace."""
  known = [job.seconds for job in jobs if job.seconds is not None]
  unknown = sum(job.missing for job in jobs if job.seconds is None)
  words = [f"about {duration(pace * sum(known))} remain"] if known else []
  if unknown:
    words.append(f"{unknown} runs that nobody has timed")
  return " and ".join(words)


def duration(seconds: float) -> str:
  """A time in the unit that suits it."""
  if seconds < 90:
    return f"{seconds:.0f} s"
  if seconds < 90 * 60:
    return f"{seconds / 60:.0f} min"
  return f"{seconds / 3600:.1f} h"


class _Child:
  """The process that runs, to which signals are passed on."""

  def __init__(self):
    self.is_stopped = False
    self._process = None

  def run(self, command: list[str]) -> int:
    if self.is_stopped:
      return command_line.INTERRUPTED
    # In a group of its own, or a terminal's Ctrl-C would come twice: from there
    # and from here. The second one would stop it at once, without saving.
    self._process = subprocess.Popen(command, process_group=0)
    try:
      return self._process.wait()
    finally:
      self._process = None

  def signal(self, number, frame) -> None:
    del frame
    self.is_stopped = True
    if self._process is not None:
      with contextlib.suppress(ProcessLookupError):
        self._process.send_signal(number)


@contextlib.contextmanager
def _forwarding() -> Iterator[_Child]:
  child = _Child()
  numbers = (signal.SIGINT, signal.SIGTERM)
  before = {number: signal.signal(number, child.signal) for number in numbers}
  try:
    yield child
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
