"""Reproduces a table: runs what is missing, then writes tables and pictures.

  python experiments/reproduce.py --table=saw/tool_calling --scale=tiny

Runs the seeds of every row that no run directory has, as one program a row;
killed, it goes on where it was. Then it writes runs.csv, curves.csv, table.md,
table.csv, table.html and pictures to results/<table>/<scale>/.

  python experiments/reproduce.py --list
  python experiments/reproduce.py --all --scale=tiny

The first lists the tables, what each needs, and what of that is missing here;
the second makes all that can run here (`make tables`).
"""

import ast
import importlib
import json
import logging
import pathlib
import sys
import time
from collections.abc import Sequence

import numpy as np
from absl import flags

from saw_jax.reporting import all_tables, catalogue, reports, run_plan
from saw_jax.run import command_line

_TABLE = flags.DEFINE_string(
  "table", None, "A file in configs/, as saw/tool_calling."
)
_LIST = flags.DEFINE_bool("list", False, "List the tables, and run nothing.")
_ALL = flags.DEFINE_bool(
  "all", False, "Every table that has the scale and can run here."
)
_SCALE = flags.DEFINE_string("scale", "tiny", "tiny, small or paper.")
_ROWS = flags.DEFINE_list("rows", [], "Rows of the table; all by default.")
_SEEDS = flags.DEFINE_integer("seeds", 5, "Number of seeds a row.", 1)
_STEPS = flags.DEFINE_integer("steps", None, "Steps; the config's by default.")
_CHECKPOINT = flags.DEFINE_string(
  "checkpoint", None, "config.checkpoint of every row; see docs/checkpoints.md."
)
_SET = flags.DEFINE_multi_string(
  "set",
  [],
  "KEY=VALUE of every row's config, as task.options.judge.url=http://...; may "
  "be given several times.",
)
_MIXED = flags.DEFINE_bool(
  "mixed", False, "Write a table even if its runs are of different commits."
)
_RUNS = flags.DEFINE_string("runs", "runs", "Where run directories go.")
_OUT = flags.DEFINE_string(
  "out", None, "Where tables go; results/<table>/<scale> by default."
)
_DEMO = flags.DEFINE_bool(
  "demo", False, "Few steps, and tables beside the runs: a first look."
)
_DEMO_STEPS = 60


def main() -> int:
  with command_line.checking_input():
    if sum((bool(_TABLE.value), _LIST.value, _ALL.value)) != 1:
      raise ValueError("give one of --table=NAME, --all and --list")
    if _ALL.value:
      for flag in (_ROWS, _STEPS, _CHECKPOINT, _SET, _OUT, _DEMO):
        if flag.value:
          raise ValueError(f"--{flag.name} is of one table: give --table=NAME")
      jobs = all_tables.plan(_SCALE.value, _SEEDS.value, _RUNS.value, "results")
    if _LIST.value:
      print(catalogue.listing())
      return 0
  if _ALL.value:
    return all_tables.run(jobs, _command_for)
  try:
    return _reproduce()
  except KeyboardInterrupt:
    # Between two runs, or twice: what was saved before is there.
    print(f"stopped; the same command goes on:\n  python {_command()}")
    return command_line.INTERRUPTED


def _command_for(table: str) -> list[str]:
  return [
    sys.executable,
    str(pathlib.Path(__file__).resolve()),
    f"--table={table}",
    f"--scale={_SCALE.value}",
    f"--seeds={_SEEDS.value}",
    f"--runs={_RUNS.value}",
  ]


def _reproduce() -> int:
  with command_line.checking_input():
    module = catalogue.load(_TABLE.value)
    rows = _ROWS.value or catalogue.rows(module)
    # Before anything runs: a typo in one row must not cost the others.
    configs = {row: _config(module, row) for row in rows}
    report = _report(module)
    if hasattr(report, "check"):
      report.check(module, rows)
    name = f"{_TABLE.value}/{_SCALE.value}" + ("_demo" if _DEMO.value else "")
    runs = pathlib.Path(_RUNS.value) / name
    plans = {
      row: run_plan.plan_row(
        runs, row, range(_SEEDS.value), configs[row].to_dict()
      )
      for row in rows
    }
    todo = [row for row in rows if plans[row].missing]
    if not _MIXED.value:
      from saw_jax.run import run_directory

      run_plan.check_commits(
        {row: plan.there for row, plan in plans.items()},
        now=run_directory.commit() if todo else None,
      )
  default = runs / "tables" if _DEMO.value else pathlib.Path("results") / name
  out = pathlib.Path(_OUT.value) if _OUT.value else default

  for row in rows:
    for directory in plans[row].there.directories:
      logging.info("row %s: finished before, %s", row, directory)
  took = []
  for number, row in enumerate(todo):
    logging.info(
      "row %s (%d of %d to do)%s",
      row,
      number + 1,
      len(todo),
      _estimate(took, len(todo) - number),
    )
    start = time.monotonic()
    plan = plans[row]
    status = _run(configs[row], list(plan.missing), plan.directory)
    if status:
      print(f"stopped; the same command goes on:\n  python {_command()}")
      return status
    took.append(time.monotonic() - start)
  directories = {row: plan.whole for row, plan in plans.items()}
  with command_line.checking_input():
    if not _MIXED.value:  # A run that went on keeps the commit of its start.
      run_plan.check_commits(directories)
  with reports.replacing(out) as folder:
    if report is not None:
      report.write(
        module, directories, folder, scale=_SCALE.value, command=_command()
      )
    else:
      _write(module, directories, folder, _SCALE.value)
    from saw_jax.reporting import pages

    pages.write_page(folder)
  print((out / "table.md").read_text())
  print(f"tables and pictures: {out}")
  return 0


def _estimate(took: list[float], count: int) -> str:
  """How long the rows that are left take, if they are like those before."""
  if not took:
    return ""
  seconds = count * sum(took) / len(took)
  return f"; about {all_tables.duration(seconds)} for what is left"


def _report(module):
  """What writes a table down, where that is not done here."""
  name = getattr(module, "REPORT", None)
  return importlib.import_module(f"experiments.{name}") if name else None


def _config(module, row: str):
  config = catalogue.config(module, row, _SCALE.value)
  if _STEPS.value is not None or _DEMO.value:
    config.loop.num_steps = _STEPS.value or _DEMO_STEPS
  if _CHECKPOINT.value is not None:
    config.checkpoint = _CHECKPOINT.value
  _override(config, _SET.value)
  return config.lock()


def _override(config, pairs: Sequence[str]) -> None:
  """Sets what --set says, and nothing that the config does not have."""
  from saw_jax.tasks.base import nearest

  for pair in pairs:
    key, equals, text = pair.partition("=")
    if not equals:
      raise ValueError(f"--set={pair}: say KEY=VALUE")
    *path, last = key.split(".")
    section = config
    for depth, part in enumerate((*path, last)):
      names = list(section) if hasattr(section, "keys") else []
      if part not in names:
        close = nearest(part, names) if names else "nothing is below it"
        raise ValueError(f"--set={pair}: no key {part!r}: {close}")
      if depth < len(path):
        section = section[part]
    try:
      value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
      value = text
    try:
      section[last] = value
    except TypeError as error:
      raise ValueError(f"--set={pair}: {error}") from None


def _run(config, seeds, directory: pathlib.Path) -> int:
  from saw_jax.run import build, run_directory

  with command_line.checking_input():
    document = {**config.to_dict(), "seeds": seeds}
    run_directory.check_run(directory, document)
    experiment = build.build(config)
    run_directory.open_run(directory, document)
  result = build.train(experiment, seeds, directory=directory)
  return 0 if result.finished else command_line.INTERRUPTED


def _write(module, directories, out: pathlib.Path, scale: str) -> None:
  from saw_jax.reporting import plots, runs, statistics, tables

  finals, curves, documents = found = reports.read(directories)
  commits = found.commits

  metrics = catalogue.metrics(module, scale)
  published = reports.read_published(module, directories, scale)
  # What is not the paper's reward says so beside each number.
  stand_in = getattr(module, "STAND_INS", {}).get(_SCALE.value)
  label = f"{_SCALE.value}, {stand_in}" if stand_in else _SCALE.value
  table = tables.Table(
    f"{module.TITLE}, held out",
    label,
    tables.own_cells(finals, metrics),
    published,
  )
  tables.write(table, out)
  runs.write_results(out / "runs.csv", finals, commit="/".join(commits))
  names = [
    f"{kind}/{component}"
    for kind in ("reward", "weight", "cv", "constant_groups")
    for component in module.COMPONENTS
  ]
  runs.write_curves(
    out / "curves.csv", curves, names=[*names, "entropy", "length"]
  )

  # --- how soon, how fast, and what differs --------------------------------
  steps = {
    row: _steps_to(module, statistics, curves[row]) for row in directories
  }
  limit = {row: int(curves[row].steps[-1]) + 1 for row in directories}
  lines = [
    *_before_and_after(module, directories, label),
    "",
    f"### Steps until a reward's mean over {module.WINDOW} steps passes a "
    "threshold" + (f" ({stand_in})" if stand_in else ""),
    "",
    "Median over seeds (seeds that got there).",
    "",
    "| row | "
    + " | ".join(f"{k} ≥ {v:g}" for k, v in module.THRESHOLDS.items())
    + " | seconds a step | estimate, share of step |",
    "| --- |" + " ---: |" * (len(module.THRESHOLDS) + 2),
  ]
  for row in directories:
    reached = [
      str(
        statistics.summarise_steps(
          list(steps[row][metric].values()), limit=limit[row]
        )
      )
      for metric in module.THRESHOLDS
    ]
    # The first steps compile. Timings are of the program, not of a seed.
    late = {
      key: np.median(curves[row].values[f"seconds/{key}"][0, 3:])
      for key in ("step", "estimate")
    }
    share = 100 * late["estimate"] / late["step"]
    lines.append(
      f"| {row} | {' | '.join(reached)} | {late['step']:.2f} | {share:.2f} % |"
    )
  seeds = next(iter(finals.values())).seeds
  lines += [
    "",
    f"A step trains {len(seeds)} seeds at once. The estimate is weights and "
    "advantages together. Rows ran one after another on a shared machine: "
    "compare shares, not seconds.",
  ]

  differences = _differences(
    module, metrics, statistics, finals, curves, steps, limit
  )
  if differences:
    lines += [
      "",
      "### Paired differences" + (f" ({stand_in})" if stand_in else ""),
      "",
      "A seed that never got to a threshold counts as the number of steps.",
      "",
      tables.differences_to_markdown(differences),
    ]
  first = documents[0]
  lines += [
    f"Made by `python {_command()}` at commit {', '.join(commits)}; seeds "
    f"{', '.join(map(str, seeds))}; {first['machine']}.",
    "",
  ]
  with (out / "table.md").open("a", encoding="utf-8") as file:
    file.write("\n".join(lines))

  # --- pictures ------------------------------------------------------------
  plots.reward_curves(
    curves,
    module.COMPONENTS,
    title=f"{module.TITLE}, scale {label}",
    window=module.WINDOW,
    path=out / "curves.png",
  )
  for metric in (f"{component}, greedy" for component in module.COMPONENTS):
    found = {
      label: cells[metric]
      for label, cells in differences.items()
      if metric in cells
    }
    if found and len(seeds) > 1:
      plots.difference_forest(
        found,
        quantity=f"held-out {metric}",
        title=f"{module.TITLE}, scale {label}",
        path=out / f"difference_{metric.split(',')[0]}.png",
      )


def _before_and_after(module, directories, label: str) -> list[str]:
  """Greedy scores before the first step and after the last one.

  Over seeds they come from the run; over examples, where a table has one seed,
  from `evaluate.py`, if it was run for the start and for the end.
  """
  from saw_jax.reporting import runs, statistics

  lines = [
    "",
    f"### Before and after training, greedy, held out (here, {label})",
    "",
    "95 % t intervals over seeds, or over examples where it says so.",
    "",
    "| row | reward | before | after |",
    "| --- | --- | ---: | ---: |",
  ]
  for row, (paths, seeds) in directories.items():
    evals = runs.read_curves(paths, name="evals", seeds=seeds)
    for component in module.COMPONENTS if evals.steps[0] == 0 else ():
      cells = [
        _interval(statistics.summarise(evals.values[component][:, at]))
        for at in (0, -1)
      ]
      lines.append(f"| {row} | {component} | {' | '.join(cells)} |")
    for before, after in (pair for path in paths for pair in _scored(path)):
      if seeds and before["seed"] not in seeds:
        continue
      for component in module.COMPONENTS:
        cells = [
          _interval(statistics.Summary(**entry["greedy"][component]))
          for entry in (before, after)
        ]
        lines.append(
          f"| {row}, seed {before['seed']}, over examples | {component} | "
          f"{' | '.join(cells)} |"
        )
  return lines


def _scored(path: pathlib.Path):
  """What `evaluate.py` found of a run's seeds at the start and at the end."""
  files = [path / name for name in ("evaluation_start.json", "evaluation.json")]
  if not all(file.exists() for file in files):
    return []
  start, end = (json.loads(file.read_text())["seeds"] for file in files)
  return zip(start, end, strict=True)


def _interval(summary) -> str:
  text = f"{summary.mean:.3f}"
  if summary.count > 1:
    text += f" [{summary.low:.3f}, {summary.high:.3f}]"
  return f"{text} ({summary.count})"


def _steps_to(module, statistics, curves) -> dict[str, dict[int, int | None]]:
  """Steps to each threshold by metric and seed; a step counts from 1."""
  return {
    metric: {
      seed: statistics.steps_to_threshold(
        curves.values[metric][n],
        threshold,
        window=module.WINDOW,
        steps=curves.steps + 1,
      )
      for n, seed in enumerate(curves.seeds)
    }
    for metric, threshold in module.THRESHOLDS.items()
  }


def _differences(module, metrics, statistics, finals, curves, steps, limit):
  """Paired differences of scores, of curves' means and of steps."""
  differences = {}
  for treated, control in module.COMPARISONS:
    if treated not in finals or control not in finals:
      continue
    if len(finals[treated].seeds) < 2:
      continue
    cells = differences[f"{treated} - {control}"] = {}
    for heading, name in metrics.items():
      cells[heading] = statistics.paired_difference(
        finals[treated].by_seed(name), finals[control].by_seed(name)
      )
    for component in module.COMPONENTS:
      name = f"reward/{component}"
      means = [
        dict(
          zip(
            curves[row].seeds,
            curves[row].values[name].mean(-1),
            strict=True,
          )
        )
        for row in (treated, control)
      ]
      cells[f"{name}, mean over training"] = statistics.paired_difference(
        *means
      )
    for metric, threshold in module.THRESHOLDS.items():
      censored = [
        {
          seed: float(limit[row] if step is None else step)
          for seed, step in steps[row][metric].items()
        }
        for row in (treated, control)
      ]
      cells[f"steps to {metric} ≥ {threshold:g}"] = (
        statistics.paired_difference(*censored)
      )
  return differences


def _command() -> str:
  path = pathlib.Path(sys.argv[0])
  return " ".join([f"experiments/{path.name}", *sys.argv[1:]])


if __name__ == "__main__":
  command_line.run(main)
