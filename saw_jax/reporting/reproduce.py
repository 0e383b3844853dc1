"""The command that makes tables: runs what is missing, and writes it down.

With `--all`, each table has a process of its own: one that fails does not take
the others with it, and Ctrl-C reaches the one that runs once, so that it saves.
"""

import logging
import pathlib
import signal
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

import ml_collections
from absl import flags

from saw_jax.reporting import catalogue, pages, plots, report
from saw_jax.reporting import runs as runs_lib
from saw_jax.reporting.runs import RowRuns
from saw_jax.reporting.table import Table
from saw_jax.run import children, command_line, run_directory
from saw_jax.run import config as config_lib
from saw_jax.tasks.base import check_choice, nearest

flags.disclaim_key_flags()  # They are the script's, in its --help.

_OF_ONE_TABLE = ("rows", "steps", "checkpoint", "set", "out", "demo")
_DEMO_STEPS = 60


def main() -> int:
  """Makes one table or all, or lists them; returns the exit status."""
  given = flags.FLAGS
  with command_line.checking_input():
    if sum((bool(given.table), given.list, given.all)) != 1:
      raise ValueError("give one of --table=NAME, --all and --list")
    for name in given.figures or [""]:
      if name not in plots.FORMATS:
        said = nearest(name, plots.FORMATS)
        raise ValueError(f"--figures: unknown format {name!r}: {said}")
    if given.list:
      print(catalogue.listing())
      return 0
    if given.all:
      for name in _OF_ONE_TABLE:
        if given[name].value:
          raise ValueError(f"--{name} is of one table: give --table=NAME")
      jobs = plan(given.scale, given.seeds, given.runs, "results")
  if given.all:
    same = [f"--{n}={given[n].value}" for n in ("scale", "seeds", "runs")]
    same.append(f"--figures={','.join(given.figures)}")
    return run_all(jobs, [sys.executable, "-m", "saw_jax", "table", *same])
  try:
    return _make_table()
  except KeyboardInterrupt:
    # Between two runs, or twice: what was saved before is there.
    return _stopped()


# --- one table ---------------------------------------------------------------


def _make_table() -> int:
  given = flags.FLAGS
  name = f"{given.table}/{given.scale}" + ("_demo" if given.demo else "")
  runs = pathlib.Path(given.runs, name)
  default = runs / "tables" if given.demo else pathlib.Path("results", name)
  out = pathlib.Path(given.out or default)
  with command_line.checking_input():
    table = catalogue.load(given.table)
    # Before anything runs: a typo in one row must not cost the others.
    configs = {
      row: _config(table, row) for row in given.rows or table.default_runs
    }
    table.check(configs)
    rows = {
      row: runs_lib.find(runs, row, range(given.seeds), config.to_dict())
      for row, config in configs.items()
    }
    todo = [row for row, found in rows.items() if found.missing]
    if not given.mixed:
      now = run_directory.commit() if todo else None
      runs_lib.check_commits(rows, now=now)
  for row, found in rows.items():
    for directory in found.directories:
      logging.info("row %s: finished before, %s", row, directory)
  start = time.monotonic()
  for number, row in enumerate(todo):
    estimate = ""  # if rows are like those before
    if number:
      each = (time.monotonic() - start) / number
      left = duration(each * (len(todo) - number))
      estimate = f"; about {left} for what is left"
    of = f"{number + 1} of {len(todo)}"
    logging.info("row %s (%s to do)%s", row, of, estimate)
    if not _run(configs[row], rows[row]):
      return _stopped()
  rows = {row: found.whole for row, found in rows.items()}
  with command_line.checking_input():
    if not given.mixed:  # A run that went on keeps the commit of its start.
      runs_lib.check_commits(rows)
  command = command_line.again()
  with report.replacing(out) as folder:
    how = {"scale": given.scale, "figures": given.figures}
    lines = report.write(table, rows, folder, command=command, **how)
    pages.write_page(folder)
  print("\n".join(lines))
  drawn = sorted(out.glob(f"*.{given.figures[0]}"))
  # What happened over the steps comes first.
  for picture in sorted(drawn, key=lambda path: path.stem != "curves")[:1]:
    print(f"figure: {picture}")
  print(f"everything, as a page and as text: {out / 'table'}.{{html,md}}")
  return 0


def _config(table: Table, row: str) -> ml_collections.ConfigDict:
  given = flags.FLAGS
  config = table.config(row, given.scale)
  if given.steps is not None or given.demo:
    config.loop.num_steps = given.steps or _DEMO_STEPS
  if given.checkpoint is not None:
    config.checkpoint = given.checkpoint
  for pair in given.set:
    key, equals, text = pair.partition("=")
    if not equals:
      raise ValueError(f"--set={pair}: say KEY=VALUE")
    try:
      config_lib.override(config, key, text)
    except (KeyError, TypeError, ValueError) as error:
      raise ValueError(f"--set={pair}: {error.args[0]}") from None
  return config.lock()


def _run(config: ml_collections.ConfigDict, found: RowRuns) -> bool:
  """Trains the missing seeds of a row; whether they came to their end."""
  from saw_jax.run import build

  seeds = list(found.missing)
  with command_line.checking_input():
    experiment = build.build(config, seeds, found.next)
  return build.train(experiment, seeds, directory=found.next).finished


def _stopped() -> int:
  print(f"stopped; the same command goes on:\n  {command_line.again()}")
  return command_line.INTERRUPTED


# --- all tables --------------------------------------------------------------


class Job(NamedTuple):
  """One table of several."""

  table: str
  rows: int  # that it has
  missing: int  # of them that have not been run
  is_done: bool = False  # every run is there, and the table after them
  seconds: float | None = None  # that they take; none if nobody has timed it
  lacks: Sequence[str] = ()  # what is not here


def plan(scale: str, seeds: int, runs: str, results: str) -> list[Job]:
  """Finds out what is missing of every table that has a scale."""
  tables = {name: catalogue.load(name) for name in catalogue.names()}
  known = list(dict.fromkeys(s for t in tables.values() for s in t.needs))
  check_choice("scale", scale, known)
  jobs = []
  for name, table in tables.items():
    if scale not in table.needs:
      continue
    folder = pathlib.Path(runs, name, scale)
    rows = [
      runs_lib.find(folder, row, range(seeds)) for row in table.default_runs
    ]
    missing = sum(bool(row.missing) for row in rows)
    hours = table.needs[scale].hours if missing else 0.0
    finals = [d / "final.json" for row in rows for d in row.directories]
    last = max((path.stat().st_mtime for path in finals), default=0.0)
    written = pathlib.Path(results, name, scale, "table.md")
    is_new = written.exists() and written.stat().st_mtime >= last
    seconds = None if hours is None else 3600 * hours * missing / len(rows)
    lacks = catalogue.missing(table, scale)
    is_done = is_new and not missing
    jobs.append(Job(name, len(rows), missing, is_done, seconds, lacks))
  return jobs


def run_all(jobs: Sequence[Job], command: Sequence[str]) -> int:
  """Runs what is missing, each table by the command; gives the status."""
  ends = {job.table: "was there" for job in jobs if job.is_done}
  for job in jobs:
    if job.lacks:
      ends[job.table] = f"left out, for want of {'; '.join(job.lacks)}"
  todo = [job for job in jobs if job.table not in ends]
  took, expected = 0.0, 0.0  # of the tables that were timed before and ran now
  with children.Children() as runner:
    for number, job in enumerate(todo):
      if runner.stopped:
        break
      pace = took / expected if expected else 1.0
      print(
        f"table {number + 1} of {len(todo)}: {job.table}, {job.missing} of "
        f"{job.rows} runs to do; {remaining(todo[number:], pace)}",
        flush=True,
      )
      start = time.monotonic()
      status = runner.run([*command, f"--table={job.table}"])
      seconds = time.monotonic() - start
      if status == command_line.INTERRUPTED or runner.stopped:
        ends[job.table] = "stopped"
        break
      if status > 0:
        ends[job.table] = f"failed with status {status}"
      elif status < 0:
        ends[job.table] = f"ended by {signal.Signals(-status).name}"
      else:
        ends[job.table] = f"made in {duration(seconds)}"
        if job.seconds:
          took, expected = took + seconds, expected + job.seconds
  for job in jobs:
    print(f"{job.table}: {ends.get(job.table, 'not begun')}")
  if runner.stopped or "stopped" in ends.values():
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
