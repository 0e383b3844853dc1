"""Runs tables one after the other, each in a process of its own.

`reproduce.py --all` calls it. A table that fails does not take the others with
it, and Ctrl-C reaches the one that runs exactly once, so that it saves.
"""

import pathlib
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from saw_jax.reporting import catalogue, run_plan
from saw_jax.run import command_line
from saw_jax.tasks.base import nearest


class Job(NamedTuple):
  """One table."""

  table: str
  rows: int  # that it has
  missing: int  # of them that have not been run
  is_written: bool = False  # and its table is newer than its runs
  hours: float | None = None  # that all its rows take
  lacks: Sequence[str] = ()  # what is not here

  @property
  def is_done(self) -> bool:
    """Whether every run is there, and the table after them."""
    return not self.missing and self.is_written

  @property
  def seconds(self) -> float | None:
    """Estimated, of the rows that are missing; none if nobody has timed it."""
    if self.missing and self.hours is None:
      return None
    return 3600 * (self.hours or 0.0) * self.missing / self.rows


def plan(scale: str, seeds: int, runs: str, results: str) -> list[Job]:
  """Finds out what is missing of every table that has a scale."""
  tables = {name: catalogue.load(name) for name in catalogue.names()}
  known = list(dict.fromkeys(s for t in tables.values() for s in t.scales))
  if scale not in known:
    raise ValueError(f"unknown scale {scale!r}: {nearest(scale, known)}")
  jobs = []
  for name, table in tables.items():
    if scale not in table.scales:
      continue
    plans = [
      run_plan.plan_row(pathlib.Path(runs, name, scale), row, range(seeds))
      for row in table.default_runs
    ]
    finals = [d / "final.json" for p in plans for d in p.there.directories]
    last = max((path.stat().st_mtime for path in finals), default=0.0)
    written = pathlib.Path(results, name, scale, "table.md")
    jobs.append(
      Job(
        name,
        rows=len(plans),
        missing=sum(bool(plan.missing) for plan in plans),
        is_written=written.exists() and written.stat().st_mtime >= last,
        hours=table.needs[scale].hours,
        lacks=catalogue.missing(table, scale),
      )
    )
  return jobs


def run(jobs: Sequence[Job], command: Callable[[str], list[str]]) -> int:
  """Runs what is missing, each table by its command.

  Returns 0, 1 if a table failed, or an interrupt's status.
  """
  ends = {}
  took, expected = 0.0, 0.0  # of the tables that were timed before and ran now
  todo = [job for job in jobs if not job.is_done and not job.lacks]
  for job in jobs:
    if job.lacks:
      ends[job.table] = f"left out, for want of {'; '.join(job.lacks)}"
    elif job.is_done:
      ends[job.table] = "was there"
  signals, processes = [], []

  def forward(number, frame):
    del frame
    signals.append(number)
    for process in processes[-1:]:
      process.send_signal(number)

  numbers = (signal.SIGINT, signal.SIGTERM)
  before = {number: signal.signal(number, forward) for number in numbers}
  try:
    for number, job in enumerate(todo):
      if signals:
        break
      pace = took / expected if expected else 1.0
      print(
        f"table {number + 1} of {len(todo)}: {job.table}, {job.missing} of "
        f"{job.rows} runs to do; {remaining(todo[number:], pace)}",
        flush=True,
      )
      start = time.monotonic()
      # In a group of its own, or a terminal's Ctrl-C would come twice: from
      # there and from here. The second would stop it at once, without saving.
      processes.append(subprocess.Popen(command(job.table), process_group=0))
      status = processes[-1].wait()
      seconds = time.monotonic() - start
      if status == command_line.INTERRUPTED or signals:
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
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
  for job in jobs:
    print(f"{job.table}: {ends.get(job.table, 'not begun')}")
  if signals or "stopped" in ends.values():
    print("stopped; the same command goes on")
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
