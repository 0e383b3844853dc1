"""What stands below the main table: lines of Markdown, and pictures.

A section takes the runs of a table and gives lines; what it draws, or keeps for
others to draw, it writes to the table's folder. A `Table` names its sections,
most of them by one of the four lists at the end.
"""

import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from saw_jax.reporting import plots, runs, statistics, tables
from saw_jax.reporting.report import Found
from saw_jax.reporting.statistics import PairedDifference

Section = Callable[[Found], list[str]]

_COMPILING = 5  # steps at the start whose times are not counted
_COLLAPSED = 0.5  # share of the best mean reward, below which a seed has
_SECONDS = ("generate", "score", "choose", "lay out", "estimate", "update")
_SECONDS += ("probes", "step")
_COUNTS = {"bought": "labels", "prompts": "prompts"}
_LIKELIHOODS = {
  "S of positives": "nll/positive",
  "S of negatives": "nll/negative",
}
_KIND = "sampled/right_"  # how the success at a kind of task is called


# --- sections that several kinds of tables have ------------------------------


def _keep(*names: str, every: int = 1) -> Section:
  """Writes curves.csv, whose lines average `every` steps.

  Averages keep a file of many runs small; a block is named by its first step.
  """

  def section(found: Found) -> list[str]:
    table = found.table
    rewards = [
      f"{kind}/{component}"
      for kind in ("reward", "weight", "cv", "constant_groups")
      for component in table.components
    ]
    kept = dict.fromkeys((*rewards, *names, *table.curves))
    curves = {run: _blocks(c, every) for run, c in found.curves.items()}
    runs.write_curves(found.folder / "curves.csv", curves, names=tuple(kept))
    return []

  return section


def _blocks(curves: runs.Curves, every: int) -> runs.Curves:
  size = len(curves.steps) // every * every
  values = {
    name: values[:, :size].reshape(len(values), -1, every).mean(-1)
    for name, values in curves.values.items()
  }
  return curves._replace(steps=curves.steps[:size:every], values=values)


def _keep_evals(*names: str) -> Section:
  def section(found: Found) -> list[str]:
    runs.write_curves(found.folder / "evals.csv", found.evals, names=names)
    return []

  return section


def _note(found: Found) -> list[str]:
  return ["", found.table.note]


def paired_differences(found: Found) -> list[str]:
  """What `compare` finds, as a table."""
  differences, table = compare(found), found.table
  if not differences:
    return []
  at = "" if table.at is None else f" at {100 * table.at:g} %"
  late = "A seed that never got to a threshold counts as the number of steps."
  return [
    "",
    f"### Paired differences{at}{_stand_in(found)}",
    "",
    *([late, ""] if table.thresholds else []),
    *tables.differences(differences),
    "",
  ]


def compare(found: Found) -> dict[str, dict[str, PairedDifference]]:
  """Differences of scores, of means over training, and of steps."""
  table = found.table
  differences = {}
  for label, *pair in _pairs(found):
    if len(found.finals[pair[0]].seeds) < 2:
      continue
    values = {
      heading: [found.finals[name].by_seed(metric) for name in pair]
      for heading, metric in found.columns().items()
    }
    for metric, heading in table.compared.items():
      values[f"{heading}, mean over training"] = [
        _by_seed(found.curves[name], metric) for name in pair
      ]
    for metric, threshold in table.thresholds.items():
      values[f"steps to {metric} ≥ {threshold:g}"] = [
        {
          seed: float(_limit(found, name) if step is None else step)
          for seed, step in _steps_to(found, name, metric).items()
        }
        for name in pair
      ]
    differences[label] = {
      heading: statistics.paired_difference(*both)
      for heading, both in values.items()
    }
  return differences


def forest(heading: str = "", file: str = "differences.png") -> Section:
  """Draws the differences of a column, by default of the first one."""

  def section(found: Found) -> list[str]:
    column = heading or next(iter(found.columns()))
    drawn = {
      label: cells[column]
      for label, cells in compare(found).items()
      if column in cells
    }
    if drawn:
      plots.difference_forest(
        drawn,
        quantity=f"held-out {column}",
        title=found.title,
        path=found.folder / file,
      )
    return []

  return section


def _pairs(found: Found) -> Iterator[tuple[str, str, str]]:
  """Labels and both runs of each comparison that can be made."""
  for treated, control in found.table.comparisons:
    label = f"{treated} - {control}"
    if found.table.swept:
      first, second = (found.rows.get(row, {}) for row in (treated, control))
      for value in sorted(first.keys() & second.keys()):
        at = f", {found.table.swept} {value:g}"
        yield label + at, first[value], second[value]
    elif treated in found.main and control in found.main:
      yield label, found.main[treated], found.main[control]


def _panels(
  found: Found,
  groups: Mapping[str, Mapping[str, str]],
  metrics: Mapping[str, str],
  file: str,
  quantity: str = "",
  *,
  log: bool = False,
) -> None:
  """Draws metrics over steps: runs by heading and row, if they logged them."""
  wanted = set(metrics.values())
  panels = {
    heading: {
      row: found.curves[name]
      for row, name in rows.items()
      if wanted <= found.curves[name].values.keys()
    }
    for heading, rows in groups.items()
  }
  panels = {heading: rows for heading, rows in panels.items() if rows}
  if panels:
    plots.metric_panels(
      panels,
      metrics,
      quantity=quantity or next(iter(metrics)),
      title=found.title,
      window=found.table.window,
      log=log,
      path=found.folder / file,
    )


def _grouped(
  found: Found, panels: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, str]]:
  return {
    heading: {row: found.main[row] for row in rows if row in found.main}
    for heading, rows in panels.items()
  }


def _lay_out(
  heading: str, head: Iterable[str], rows: list[list[str]], *after: str
) -> list[str]:
  grid = tables.grid(["row", *head], rows)
  return ["", f"### {heading}", "", *grid, *after]


def _average(
  curves: runs.Curves, metric: str, steps=slice(None), form: str = ".3f"
) -> str:
  """The mean over seeds and steps; `-` where nothing was logged."""
  values = curves.values.get(metric)
  if values is None or np.isnan(values[:, steps]).all():
    return "-"
  return f"{np.nanmean(values[:, steps]):{form}}"


def _ends(found: Found) -> tuple[slice, slice]:
  """The first and the last steps."""
  window = found.table.window
  return slice(None, window), slice(-window, None)


def _mean(values: Sequence[float]) -> str:
  return tables.mean_and_width(statistics.summarise(values))


def _scores(found: Found, name: str, metric: str) -> list[float]:
  return list(found.finals[name].by_seed(metric).values())


def _by_seed(curves: runs.Curves, metric: str) -> dict[int, float]:
  """The mean of a metric over the steps, by seed."""
  means = curves.values[metric].mean(-1)
  return dict(zip(curves.seeds, means, strict=True))


def _stand_in(found: Found) -> str:
  stand_in = found.table.stand_ins.get(found.scale)
  return f" ({stand_in})" if stand_in else ""


# --- tables of several rewards -----------------------------------------------


def before_and_after(found: Found) -> list[str]:
  """Greedy scores before the first step and after the last one.

  Over seeds they come from the run; over examples, where a table has one seed,
  from `evaluate.py`, if it was run for the start and for the end.
  """
  rows = []
  for row, (paths, seeds) in found.directories.items():
    evals = found.evals[row]
    for component in found.table.components if evals.steps[0] == 0 else ():
      ends = (evals.values[component][:, at] for at in (0, -1))
      cells = [_interval(statistics.summarise(values)) for values in ends]
      rows.append([row, component, *cells])
    for before, after in (pair for path in paths for pair in _scored(path)):
      if seeds and before["seed"] not in seeds:
        continue
      for component in found.table.components:
        cells = [
          _interval(statistics.Summary(**entry["greedy"][component]))
          for entry in (before, after)
        ]
        label = f"{row}, seed {before['seed']}, over examples"
        rows.append([label, component, *cells])
  return [
    "",
    f"### Before and after training, greedy, held out (here, {found.label})",
    "",
    "95 % t intervals over seeds, or over examples where it says so.",
    "",
    *tables.grid(["row", "reward", "before", "after"], rows, words=2),
  ]


def _steps_to_thresholds(found: Found) -> list[str]:
  """How soon rewards arrive, and what a step takes."""
  table = found.table
  rows = []
  for row in found.directories:
    reached = [
      statistics.median_steps(
        list(_steps_to(found, row, metric).values()), limit=_limit(found, row)
      )
      for metric in table.thresholds
    ]
    # The first steps compile. Timings are of the program, not of a seed.
    step, estimate = (
      np.median(found.curves[row].values[f"seconds/{key}"][0, 3:])
      for key in ("step", "estimate")
    )
    share = f"{100 * estimate / step:.2f} %"
    rows.append([row, *reached, f"{step:.2f}", share])
  head = [f"{name} ≥ {value:g}" for name, value in table.thresholds.items()]
  seeds = next(iter(found.finals.values())).seeds
  return [
    "",
    f"### Steps until a reward's mean over {table.window} steps passes a "
    f"threshold{_stand_in(found)}",
    "",
    "Median over seeds (seeds that got there).",
    "",
    *tables.grid(
      ["row", *head, "seconds a step", "estimate, share of step"], rows
    ),
    "",
    f"A step trains {len(seeds)} seeds at once. The estimate is weights and "
    "advantages together. Rows ran one after another on a shared machine: "
    "compare shares, not seconds.",
  ]


def _draw_rewards(found: Found) -> list[str]:
  plots.reward_curves(
    found.curves,
    found.table.components,
    title=found.title,
    window=found.table.window,
    path=found.folder / "curves.png",
  )
  for component in found.table.components:
    forest(f"{component}, greedy", f"difference_{component}.png")(found)
  return []


def _steps_to(found: Found, name: str, metric: str) -> dict[int, int | None]:
  """Steps to a metric's threshold by seed; a step counts from 1."""
  table, curves = found.table, found.curves[name]
  return {
    seed: statistics.steps_to_threshold(
      values, table.thresholds[metric], table.window, curves.steps + 1
    )
    for seed, values in zip(curves.seeds, curves.values[metric], strict=True)
  }


def _limit(found: Found, name: str) -> int:
  return int(found.curves[name].steps[-1]) + 1


def _scored(path: pathlib.Path):
  """What `evaluate.py` found of a run's seeds at the start and at the end."""
  files = [path / name for name in ("evaluation_start.json", "evaluation.json")]
  if not all(file.exists() for file in files):
    return []
  start, end = (json.loads(file.read_text())["seeds"] for file in files)
  return zip(start, end, strict=True)


def _interval(summary: statistics.Summary) -> str:
  text = f"{summary.mean:.3f}"
  if summary.count > 1:
    text += f" [{summary.low:.3f}, {summary.high:.3f}]"
  return f"{text} ({summary.count})"


# --- tables of figures over steps: episodes, benchmarks ----------------------


def _by_kind(found: Found) -> list[str]:
  """Success by kind of task, where there are kinds."""
  names = {name for final in found.finals.values() for name in final.values}
  kinds = sorted(name for name in names if name.startswith(_KIND))
  rows = [
    [row]
    + [_mean(final.values[k]) if k in final.values else "-" for k in kinds]
    for row, final in found.finals.items()
  ]
  head = [kind.removeprefix(_KIND) for kind in kinds]
  heading = "Held-out success by kind, sampled"
  return _lay_out(heading, head, rows) if kinds else []


def _first_and_last(found: Found) -> list[str]:
  """The curves of each row at both ends, as means over seeds."""

  def cell(curves: runs.Curves, metric: str) -> str:
    if metric not in curves.values:
      return "-"
    return " → ".join(_average(curves, metric, end) for end in _ends(found))

  table = found.table
  rows = [
    [row, *(cell(curves, metric) for metric in table.curves)]
    for row, curves in found.curves.items()
  ]
  heading = f"First and last {table.window} steps of training, mean over seeds"
  return _lay_out(heading, table.curves.values(), rows)


def _seconds(found: Found) -> list[str]:
  """Seconds of the parts of a step."""
  logged = {name for curves in found.curves.values() for name in curves.values}
  names = [name for name in _SECONDS if f"seconds/{name}" in logged]

  def cell(values: np.ndarray | None) -> str:
    # Timings are of the program, not of a seed; the first steps compile.
    if values is None or values.shape[1] <= _COMPILING:
      return "-"
    return f"{np.median(values[0, _COMPILING:]):.3f}"

  rows = [
    [row, *(cell(curves.values.get(f"seconds/{name}")) for name in names)]
    for row, curves in found.curves.items()
  ]
  return _lay_out(
    "Seconds of a step, median",
    names,
    rows,
    "",
    "A step trains all seeds at once. Rows ran one after another on a shared "
    "machine: for ratios see `benchmarks/world_model_cost.py`.",
  )


def _draw_curves(found: Found) -> list[str]:
  table = found.table
  groups = _grouped(found, table.panels)
  for metric, heading in table.curves.items():
    file = f"{picture_name(metric, table.curves)}.png"
    _panels(found, groups, {heading: metric}, file)
  return []


def picture_name(metric: str, metrics: Iterable[str]) -> str:
  """The metric's last part, or all of it where two end alike."""
  last = metric.rpartition("/")[2]
  alike = [name for name in metrics if name.rpartition("/")[2] == last]
  return last if len(alike) == 1 else metric.replace("/", "_")


# --- tables of runs that bought labels ---------------------------------------


def _before(found: Found) -> list[str]:
  evals = found.evals[next(iter(found.main.values()))]
  right = float(evals.values["right"][:, evals.steps == 0].mean())
  return ["", f"Before training: {100 * right:.1f} % right, greedy."]


def _by_budget(found: Found) -> list[str]:
  """Accuracy of the rows that were run at several budgets."""
  scores = _scores_by_budget(found)
  if not scores:
    return [""]
  budgets = sorted({budget for cells in scores.values() for budget in cells})
  rows = [
    [row, *(_mean(cells[b]) if b in cells else "-" for b in budgets)]
    for row, cells in scores.items()
  ]
  head = [f"{budget:g} %" for budget in budgets]
  return _lay_out("Held-out right, sampled, by budget", head, rows)


def _training(found: Found) -> list[str]:
  """What training did to the policy's own answers."""
  window = found.table.window
  shown = {
    "right": "audit/correct",
    "votes right": "audit/vote_right",
    "majority": "audit/majority",
  }
  rows = []
  for row, name in found.main.items():
    curves = found.curves[name]
    cells = [
      _average(curves, metric, end)
      for metric in shown.values()
      for end in _ends(found)
    ]
    rows.append([row, *cells, _average(curves, "entropy", _ends(found)[1])])
  head = [f"{title}, {end}" for title in shown for end in ("first", "last")]
  heading = f"Training, mean over seeds; first and last {window} steps"
  return _lay_out(heading, [*head, "entropy, last"], rows)


def _bought(found: Found) -> list[str]:
  """What the labels were spent on, and what choosing cost."""
  shown = {
    "oracle's choice": "overlap/labelled",
    "on right votes": "labels/wasted",
    "nobody right": "labels/hopeless",
    "gate precision": "gate/precision",
  }
  last = slice(-1, None)
  rows = []
  for row, names in found.rows.items():
    for budget, curves in ((b, found.curves[n]) for b, n in names.items()):
      if budget is None or "labels/bought" not in curves.values:
        continue
      parts, step = (
        sum(np.median(curves.values.get(f"seconds/{n}", 0)) for n in names)
        for names in (("choose", "probes"), ("step",))
      )
      rows.append(
        [row, f"{100 * budget:g} %"]
        + [_average(curves, f"labels/{n}", last, ".0f") for n in _COUNTS]
        + [_average(curves, metric) for metric in shown.values()]
        + [f"{100 * parts / step:.1f}"]
      )
  if not rows:
    return [""]
  head = ["budget", *_COUNTS.values(), *shown, "choosing, % of a step"]
  return _lay_out("Labels, mean over the run and seeds", head, rows)


def _draw_budgets(found: Found) -> list[str]:
  scores = _scores_by_budget(found)
  if scores:
    plots.sweep(
      scores,
      swept="labels, % of the prompts of a step",
      quantity="held-out right, sampled",
      title=found.title,
      path=found.folder / "accuracy_by_budget.png",
    )
  return []


def _draw_answers(found: Found) -> list[str]:
  groups = _grouped(found, found.table.panels)
  right, same = "right answers in training", "share of the majority"
  _panels(found, groups, {right: "audit/correct"}, "curves.png")
  _panels(found, groups, {same: "audit/majority"}, "majorities.png")
  return []


def draw_choices(*buyers: str) -> Section:
  """Draws what the labels of some rows were spent on."""

  def section(found: Found) -> list[str]:
    groups = _grouped(found, {f"at {100 * found.table.at:g} %": buyers})
    same, wasted = "share of the oracle's choice", "labels on right votes"
    _panels(found, groups, {same: "overlap/labelled"}, "overlaps.png")
    _panels(found, groups, {wasted: "labels/wasted"}, "wasted.png")
    return []

  return section


def _scores_by_budget(found: Found) -> dict[str, dict[float, list[float]]]:
  """By row that was run at several budgets, and budget in percent."""
  return {
    row: {
      100 * value: _scores(found, name, "sampled/right")
      for value, name in names.items()
    }
    for row, names in found.rows.items()
    if None not in names and len(names) > 1
  }


# --- tables whose columns are values of one thing ----------------------------


def _collapsed(found: Found) -> list[str]:
  window = found.table.window

  def cell(name: str) -> str:
    seeds = [
      statistics.has_collapsed(rewards, window, _COLLAPSED)
      for rewards in found.curves[name].values["reward/total"]
    ]
    return f"{sum(seeds)}/{len(seeds)}"

  return [
    "",
    "### Seeds that collapsed",
    "",
    f"A seed has collapsed if the mean reward of its last {window} steps is "
    f"below {100 * _COLLAPSED:g} % of the best such mean that it had.",
    "",
    *_by_value(found, cell),
  ]


def _last_rewards(found: Found) -> list[str]:
  last = _ends(found)[1]

  def cell(name: str) -> str:
    rewards = found.curves[name].values["reward/total"]
    return _mean(rewards[:, last].mean(-1))

  heading = f"### Training reward, last {found.table.window} steps"
  return ["", heading, "", *_by_value(found, cell)]


def _at_the_end(found: Found) -> list[str]:
  """The diagnostics at the end of the runs at the greatest value."""
  table, value = found.table, _values(found)[-1]
  shown = _LIKELIHOODS | {
    "entropy": "entropy",
    "length": "length",
    "zero-advantage share": "zero_advantage",
    "gradient norm": "gradient_norm",
    "skipped updates": "skipped",
  }
  last = _ends(found)[1]
  rows = [
    [row]
    + [
      _average(found.curves[names[value]], metric, last, ".3g")
      for metric in shown.values()
    ]
    for row, names in found.rows.items()
    if value in names
  ]
  at = f"{table.swept} {value:g}, mean over seeds"
  return _lay_out(f"The last {table.window} steps at {at}", shown, rows)


def _draw_sweep(found: Found) -> list[str]:
  """Draws scores by value, and the curves of the rows in the first panel."""
  table = found.table
  ((heading, metric),) = found.columns().items()
  for kind, rows in table.panels.items():
    scores = {
      row: {
        value: _scores(found, name, metric)
        for value, name in found.rows[row].items()
      }
      for row in rows
      if row in found.rows
    }
    if scores:
      plots.sweep(
        scores,
        swept=f"{table.swept}, optimizer steps",
        quantity=heading,
        title=found.title,
        path=found.folder / f"final_by_{table.swept}_{kind}.png",
      )
  first = next(iter(table.panels.values()))
  main = {row: found.rows[row] for row in first if row in found.rows}
  by_value = {
    f"{table.swept} {value:g}": {
      row: names[value] for row, names in main.items() if value in names
    }
    for value in _values(found)
  }
  _panels(found, by_value, {"training reward": "reward/total"}, "curves.png")
  heading, last = list(by_value.items())[-1]
  by_row = {f"{row}, {heading}": {row: name} for row, name in last.items()}
  quantity = "mean token NLL"
  _panels(found, by_row, _LIKELIHOODS, "likelihoods.png", quantity, log=True)
  return []


def _values(found: Found) -> list[float]:
  return sorted({value for names in found.rows.values() for value in names})


def _by_value(found: Found, cell: Callable[[str], str]) -> list[str]:
  values = _values(found)
  return tables.grid(
    ["row", *(f"{found.table.swept} {value:g}" for value in values)],
    [
      [row]
      + [cell(names[value]) if value in names else "-" for value in values]
      for row, names in found.rows.items()
    ],
  )


# --- the kinds of tables -----------------------------------------------------

REWARDS = (
  _keep("entropy", "length"),
  before_and_after,
  _steps_to_thresholds,
  paired_differences,
  _draw_rewards,
)
FIGURES = (
  _keep(
    *("success", "reward/return", "steps", "invalid", "failed", "entropy"),
    *("lambda", "loss/world_model", "clipped_tokens", "observation_nll"),
  ),
  _keep_evals("right", "observation_accuracy"),
  _by_kind,
  _first_and_last,
  _seconds,
  paired_differences,
  _draw_curves,
  forest(),
)
LABELS = (
  _keep(
    *("reward/total", "audit/correct", "audit/vote_right", "audit/majority"),
    *("overlap/labelled", "labels/wasted", "entropy"),
    every=5,
  ),
  _before,
  _note,
  _by_budget,
  _training,
  _bought,
  paired_differences,
  _draw_budgets,
  _draw_answers,
)
SWEEP = (
  _keep(
    *("reward/total", "nll/positive", "nll/negative", "entropy", "length"),
    every=5,
  ),
  _note,
  _collapsed,
  _last_rewards,
  _at_the_end,
  paired_differences,
  _draw_sweep,
)
