"""The command that makes tables: runs what is missing, and writes it down."""

import logging
import pathlib
import sys
import time
from collections.abc import Callable

import ml_collections
from absl import flags

from saw_jax.reporting import all_tables, catalogue, pages, report, run_plan
from saw_jax.reporting.run_plan import Plan
from saw_jax.reporting.table import Table
from saw_jax.run import command_line, run_directory
from saw_jax.run import config as config_lib

flags.disclaim_key_flags()  # They are the script's, in its --help.

_OF_ONE_TABLE = ("rows", "steps", "checkpoint", "set", "out", "demo")
_DEMO_STEPS = 60


def define_flags() -> None:
  """Defines the flags of the command."""
  flags.DEFINE_string("table", None, "A file in configs/: saw/tool_calling.")
  flags.DEFINE_bool("list", False, "List the tables, and run nothing.")
  flags.DEFINE_bool(
    "all", False, "Every table that has the scale and can run here."
  )
  flags.DEFINE_string("scale", "tiny", "tiny, small or paper.")
  flags.DEFINE_list("rows", [], "Rows of the table; all by default.")
  flags.DEFINE_integer("seeds", 5, "Number of seeds a row.", 1)
  flags.DEFINE_integer("steps", None, "Steps; the config's by default.")
  flags.DEFINE_string(
    "checkpoint",
    None,
    "config.checkpoint of every row; see docs/checkpoints.md.",
  )
  flags.DEFINE_multi_string(
    "set",
    [],
    "KEY=VALUE of every row's config, as task.options.judge.url=http://...; "
    "may be given several times.",
  )
  flags.DEFINE_bool(
    "mixed", False, "Write a table even if its runs are of different commits."
  )
  flags.DEFINE_string("runs", "runs", "Where run directories go.")
  flags.DEFINE_string(
    "out", None, "Where tables go; results/<table>/<scale> by default."
  )
  flags.DEFINE_bool(
    "demo", False, "Few steps, and tables beside the runs: a first look."
  )


def main() -> int:
  """Makes one table or all, or lists them; returns the exit status."""
  given = flags.FLAGS
  with command_line.checking_input():
    if sum((bool(given.table), given.list, given.all)) != 1:
      raise ValueError("give one of --table=NAME, --all and --list")
    if given.list:
      print(catalogue.listing())
      return 0
    if given.all:
      for name in _OF_ONE_TABLE:
        if given[name].value:
          raise ValueError(f"--{name} is of one table: give --table=NAME")
      jobs = all_tables.plan(given.scale, given.seeds, given.runs, "results")
  if given.all:
    return all_tables.run(jobs, _command_for)
  try:
    return _make_table()
  except KeyboardInterrupt:
    # Between two runs, or twice: what was saved before is there.
    return _stopped()


def _make_table() -> int:
  given = flags.FLAGS
  name = f"{given.table}/{given.scale}" + ("_demo" if given.demo else "")
  runs = pathlib.Path(given.runs) / name
  default = runs / "tables" if given.demo else pathlib.Path("results") / name
  out = pathlib.Path(given.out) if given.out else default
  with command_line.checking_input():
    table = catalogue.load(given.table)
    rows = given.rows or table.default_runs
    # Before anything runs: a typo in one row must not cost the others.
    configs = {row: _config(table, row) for row in rows}
    table.check(rows)
    plans = {
      row: run_plan.plan_row(
        runs, row, range(given.seeds), configs[row].to_dict()
      )
      for row in rows
    }
    todo = [row for row in rows if plans[row].missing]
    if not given.mixed:
      there = {row: plan.there for row, plan in plans.items()}
      now = run_directory.commit() if todo else None
      run_plan.check_commits(there, now=now)
  for row in rows:
    for directory in plans[row].there.directories:
      logging.info("row %s: finished before, %s", row, directory)
  status = _run_all(todo, lambda row: _run(configs[row], plans[row]))
  if status:
    return _stopped()
  directories = {row: plan.whole for row, plan in plans.items()}
  with command_line.checking_input():
    if not given.mixed:  # A run that went on keeps the commit of its start.
      run_plan.check_commits(directories)
  with report.replacing(out) as folder:
    report.write(
      table, directories, folder, scale=given.scale, command=_command()
    )
    pages.write_page(folder)
  print((out / "table.md").read_text())
  print(f"tables and pictures: {out}")
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


def _run_all(rows: list[str], run: Callable[[str], int]) -> int:
  """Runs rows one after another, until one does not end well."""
  took = []
  for number, row in enumerate(rows):
    left = len(rows) - number
    estimate = ""  # if they are like those before
    if took:
      seconds = all_tables.duration(left * sum(took) / len(took))
      estimate = f"; about {seconds} for what is left"
    logging.info(
      "row %s (%d of %d to do)%s", row, number + 1, len(rows), estimate
    )
    start = time.monotonic()
    status = run(row)
    if status:
      return status
    took.append(time.monotonic() - start)
  return 0


def _run(config: ml_collections.ConfigDict, plan: Plan) -> int:
  from saw_jax.run import build

  seeds = list(plan.missing)
  with command_line.checking_input():
    document = {**config.to_dict(), "seeds": seeds}
    run_directory.check_run(plan.directory, document)
    experiment = build.build(config)
    run_directory.open_run(plan.directory, document)
  result = build.train(experiment, seeds, directory=plan.directory)
  return 0 if result.finished else command_line.INTERRUPTED


def _stopped() -> int:
  print(f"stopped; the same command goes on:\n  python {_command()}")
  return command_line.INTERRUPTED


def _command() -> str:
  path = pathlib.Path(sys.argv[0])
  return " ".join([f"experiments/{path.name}", *sys.argv[1:]])


def _command_for(table: str) -> list[str]:
  given = flags.FLAGS
  return [
    sys.executable,
    str(pathlib.Path(sys.argv[0]).resolve()),
    f"--table={table}",
    *(f"--{name}={given[name].value}" for name in ("scale", "seeds", "runs")),
  ]
