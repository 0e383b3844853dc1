"""The command that makes tables: runs what is missing, and writes it down.

Each row has a process of its own and, with `--all`, each table: one that fails
does not take the others with it, and Ctrl-C reaches those that run once, so
that they save.
"""

import functools
import itertools
import logging
import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import ml_collections
from absl import flags

from saw_jax.reporting import catalogue, check, pages, plots, report
from saw_jax.reporting import runs as runs_lib
from saw_jax.reporting.runs import RowRuns
from saw_jax.reporting.table import TIMED_SEEDS, Table
from saw_jax.run import children, command_line, store
from saw_jax.run import config as config_lib
from saw_jax.tasks.base import check_choice, nearest

flags.disclaim_key_flags()  # They are the script's, in its --help.

_OF_ALL = ("scale", "seeds", "starts", "runs", "jobs", "mixed")
_OF_ONE_TABLE = ("rows", "steps", "checkpoint", "set", "out", "demo")
_DEMO_STEPS = 60
_SHOWN = 5  # numbers that differ
_POLL_S, _LINE_S = 0.2, 60.0  # between two looks, and two lines of progress


def main() -> int:
  """Makes one table or all, or lists them; returns the exit status."""
  given = flags.FLAGS
  with command_line.checking_input():
    if given.full and not given.check:
      raise ValueError("--full goes with --check")
    if sum((bool(given.table), given.list, given.all)) != 1:
      raise ValueError("give one of --table=NAME, --all and --list")
    store.folder_of(given.runs, "--runs")
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
    if given.check:
      return _check([given.table] if given.table else catalogue.names())
    if given.all:
      jobs = plan(given.scale, given.seeds, given.starts, given.runs, "results")
  if given.all:
    same = [f"--{n}={given[n].value}" for n in _OF_ALL if given[n].value]
    same.append(f"--figures={','.join(given.figures)}")
    return run_all(jobs, children.saw("table", *same))
  try:
    return _make_table()
  except KeyboardInterrupt:  # before or after the rows
    return _stopped()


class Row(NamedTuple):
  """What one process trains: a row's missing seeds, from one start."""

  name: str
  config: ml_collections.ConfigDict
  words: list[str]  # of `saw train`, but for seeds and directory
  runs: RowRuns


def _make_table() -> int:
  given = flags.FLAGS
  name = f"{given.table}/{given.scale}" + ("_demo" if given.demo else "")
  runs = pathlib.Path(given.runs, name)
  default = runs / "tables" if given.demo else pathlib.Path("results", name)
  out = pathlib.Path(given.out or default)
  with command_line.checking_input():
    table = catalogue.load(given.table)
    # Before anything runs: a typo in one row must not cost the others.
    names = given.rows or table.default_runs
    rows = _rows(table, names, runs)
    table.check(names)
    todo = [row for row in rows if row.runs.missing]
    if not given.mixed:
      there = {row.name: row.runs for row in rows}
      runs_lib.check_same(there, is_whole=not todo)
  for row in rows:
    for directory in row.runs.directories:
      logging.info("row %s: finished before, %s", row.name, directory)
  failed = run_rows(todo, given.jobs)
  if failed is None:
    return _stopped()
  for line in failed:
    print(f"failed: {line}")
  if failed:
    said = "the table is made when they are there, by the same command"
    print(f"{len(failed)} of {len(todo)} rows failed; {said}")
    return 1
  with command_line.checking_input():
    found = iter(_rows(table, names, runs))
    merged = {
      name: runs_lib.together([next(found).runs for _ in range(given.starts)])
      for name in names
    }
    if not given.mixed:  # A run that went on keeps what its start was made by.
      runs_lib.check_same(merged)
  command = command_line.again()
  with report.replacing(out) as folder:
    how = {"scale": given.scale, "figures": given.figures}
    lines = report.write(table, merged, folder, command=command, **how)
    pages.write_page(folder)
  print("\n".join(lines))
  drawn = sorted(out.glob(f"*.{given.figures[0]}"))
  # What happened over the steps comes first.
  for picture in sorted(drawn, key=lambda path: path.stem != "curves")[:1]:
    print(f"figure: {picture}")
  print(f"everything, as a page and as text: {out / 'table'}.{{html,md}}")
  return 0


def _rows(
  table: Table, names: Sequence[str], folder: pathlib.Path
) -> list[Row]:
  """The runs of a table from each of its starts, and what is there of them."""
  given, rows = flags.FLAGS, []
  for name, start in itertools.product(names, range(given.starts)):
    config, words = _words(given.table, table, name, start)
    called = runs_lib.run_name(name, start)
    there = range(given.seeds), config.to_dict()
    found = runs_lib.find(folder, called, *there)
    rows.append(Row(called, config, words, found))
  return rows


def _words(
  place: str, table: Table, name: str, start: int
) -> tuple[ml_collections.ConfigDict, list[str]]:
  """The config of a run, and what makes `saw train` have the same."""
  given = flags.FLAGS
  config = table.config(name, given.scale)
  if start and not config.warm_start.num_steps:
    raise ValueError(f"--starts: {name} begins at a checkpoint, its one start")
  steps = given.steps or (_DEMO_STEPS if given.demo else None)
  changes = [f"loop.num_steps={steps}"] if steps else []
  if given.checkpoint is not None:
    changes.append(f"checkpoint={given.checkpoint}")
  changes += given.set
  changes += [f"warm_start.options.seed={start}"] if start else []
  for pair in changes:
    key, equals, text = pair.partition("=")
    if not equals:
      raise ValueError(f"--set={pair}: say KEY=VALUE")
    try:
      config_lib.override(config, key, text)
    except (KeyError, TypeError, ValueError) as error:
      raise ValueError(f"--set={pair}: {error.args[0]}") from None
  words = [f"--config={place}:{table.argument(name, given.scale)}"]
  for split, samples in table.benchmarks.get(given.scale, {}).items():
    words.append(f"--config.evaluation.benchmarks.{split}={samples}")
  return config.lock(), words + [f"--config.{pair}" for pair in changes]


def _check(names: Sequence[str]) -> int:
  """Says what made each table, and runs the first steps of a row again."""
  given, status = flags.FLAGS, 0
  for name in names:
    default = pathlib.Path("results", name, given.scale)
    folder = pathlib.Path(given.out or default)
    if given.all and not (folder / "made.csv").exists():
      print(f"{name}: nothing says what made it, or it is not there")
      continue
    table, entries = catalogue.load(name), check.made_by(folder)
    print(f"{name}: {check.origins(entries)}", flush=True)
    treated = table.primary[0].partition(" - ")[0]
    rows = [entry["row"] for entry in entries]
    for row in given.rows or [treated if treated in rows else rows[0]]:
      of_row = [entry for entry in entries if entry["row"] == row]
      if not of_row:
        raise ValueError(f"{folder} has no row {row}")
      _, words = _words(name, table, row, int(of_row[0]["start"]))
      again = functools.partial(_train_again, words)
      count, differ = check.rerun(again, of_row[0], folder, is_full=given.full)
      print(f"{name}: {row}: {len(differ)} of {count} numbers differ")
      for line in differ[:_SHOWN]:
        print(f"  {line}")
      status |= bool(differ)
  return status


def _train_again(
  words: Sequence[str],
  directory: pathlib.Path,
  seeds: Sequence[int],
  is_enough: Callable[[], bool],
) -> None:
  """Trains a row until that is enough, as `check.rerun` asks for."""
  is_cpu, log = not catalogue.has_accelerator(), directory.with_name("log")
  with children.Children() as runner:
    process = _start(runner, words, directory, seeds, log, is_cpu)
    while process.poll() is None:
      if is_enough():
        process.send_signal(signal.SIGINT)  # it stops after this step
        process.wait()
      time.sleep(_POLL_S)
  if runner.stopped:
    raise KeyboardInterrupt
  if process.returncode not in (0, command_line.INTERRUPTED):
    raise ValueError(_last_words(log))


def _start(
  runner: children.Children,
  words: Sequence[str],
  directory: pathlib.Path,
  seeds: Sequence[int],
  log: pathlib.Path,
  is_cpu: bool,
) -> subprocess.Popen:
  numbers = ",".join(map(str, seeds))
  words = [*words, f"--workdir={directory}", f"--seeds={numbers}"]
  environment = {**os.environ, **({"NPROC": "1"} if is_cpu else {})}
  log.parent.mkdir(parents=True, exist_ok=True)
  with log.open("a") as file:
    return runner.start(
      children.saw("train", *words),
      **{"env": environment, "stdout": file, "stderr": file},
      stdin=subprocess.DEVNULL,
    )


def run_rows(todo: Sequence[Row], jobs: int | None) -> list[str] | None:
  """Trains rows side by side; those that failed, or None if it was stopped.

  On CPUs XLA has one thread for each, with which a run does not depend on the
  number of cores.
  """
  if not todo:
    return []
  is_cpu = not catalogue.has_accelerator()
  most = jobs or (children.count_cores() if is_cpu else 1)
  waiting, running, failed = list(todo), {}, []
  begun = said = time.monotonic()
  with children.Children() as runner:
    while running or (waiting and not runner.stopped):
      while waiting and len(running) < most and not runner.stopped:
        row = waiting.pop(0)
        place, seeds = row.runs.next, row.runs.missing
        process = _start(runner, row.words, place, seeds, _log(row), is_cpu)
        running[row.name] = row, process
        logging.info("row %s: begun, log in %s", row.name, _log(row))
      time.sleep(_POLL_S)
      for row, process in [*running.values()]:
        if process.poll() is None:
          continue
        del running[row.name]
        if runner.stopped:
          continue
        done = len(todo) - len(waiting) - len(running)
        left = (time.monotonic() - begun) / done * (len(todo) - done)
        how = "done" if process.returncode == 0 else "failed"
        if process.returncode:
          log = _log(row)
          failed.append(f"row {row.name}: {_last_words(log)} ({log})")
        told = f"{done} of {len(todo)}, about {duration(left)} for what is left"
        logging.info("row %s: %s; %s", row.name, how, told)
      if time.monotonic() - said > _LINE_S:
        said = time.monotonic()
        for row, _ in running.values():
          of = f"{_steps(row)} of {row.config.loop.num_steps}"
          logging.info("row %s: %s steps", row.name, of)
  return None if runner.stopped else failed


def _log(row: Row) -> pathlib.Path:
  return row.runs.next.with_name(f"{row.runs.next.name}.log")


def _last_words(log: pathlib.Path) -> str:
  lines = log.read_text(errors="replace").split("\n")
  return next(filter(None, reversed(lines)), "").removeprefix("error: ")


def _steps(row: Row) -> int:
  path = row.runs.next / "metrics.jsonl"
  text = path.read_bytes() if path.exists() else b""
  return len(text.splitlines()) // len(row.runs.missing)


def _stopped() -> int:
  print(f"stopped; the same command goes on:\n  {command_line.again()}")
  return command_line.INTERRUPTED


class Job(NamedTuple):
  """One table of several."""

  table: str
  rows: int  # that it has
  missing: int  # of them that have not been run
  is_done: bool = False  # every run is there, and the table after them
  seconds: float | None = None  # that they take; none if nobody has timed it
  lacks: Sequence[str] = ()  # what is not here


def plan(
  scale: str, seeds: int, starts: int, runs: str, results: str
) -> list[Job]:
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
      runs_lib.find(folder, runs_lib.run_name(row, start), range(seeds))
      for row in table.default_runs
      for start in range(starts)
    ]
    missing = sum(bool(row.missing) for row in rows)
    hours = table.needs[scale].hours if missing else 0.0
    finals = [d / "final.json" for row in rows for d in row.directories]
    last = max((path.stat().st_mtime for path in finals), default=0.0)
    written = pathlib.Path(results, name, scale, "table.md")
    is_new = written.exists() and written.stat().st_mtime >= last
    pace = seeds / TIMED_SEEDS * missing / len(table.default_runs)
    seconds = None if hours is None else 3600 * hours * pace
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
