"""What stands below the main table: lines of Markdown, and pictures."""

import functools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from saw_jax.reporting import plots, runs, statistics, tables
from saw_jax.reporting.report import Found
from saw_jax.reporting.runs import Curves
from saw_jax.reporting.statistics import PairedDifference, Summary
from saw_jax.reporting.table import Table
from saw_jax.run.metrics import from_json

Section = Callable[[Found], list[str]]

_COMPILING = 5  # steps at the start whose times are not counted
# Share of the best mean reward, below which a seed has; and shares beside it.
_COLLAPSED, _BESIDE = 0.5, (0.4, 0.6)
_SECONDS = ("generate", "score", "choose", "lay out", "estimate", "update")
_SECONDS += ("probes", "step")
_LIKELIHOODS = {"S of positives": "nll/positive"}
_LIKELIHOODS |= {"S of negatives": "nll/negative"}
_KIND = "sampled/right_"  # how the success at a kind of task is called


def _lay_out(
  heading: str,
  rows: Sequence[Mapping[str, str]],  # cells by column, the first being the row
  columns: Iterable[str] = (),  # beside it; those of the first row by default
  intro: str = "",
  outro: str = "",
  words: int = 1,  # columns at the left that hold words
) -> list[str]:
  head = ["row", *columns] if columns else list(rows[0])
  grid = [[cells.get(column, "-") for column in head] for cells in rows]
  lines = ["", f"### {heading}", "", *([intro, ""] if intro else [])]
  lines += tables.grid(head, grid, words=words)
  return [*lines, "", outro] if outro else lines


def _by_value(
  heading: str, form: str, found: Mapping[str, Mapping[float, str]], intro=""
) -> list[str]:
  """A table of texts by row and value; a value's column is named by `form`."""
  rows = [
    {"row": row, **{form.format(value): text for value, text in of.items()}}
    for row, of in found.items()
  ]
  values = sorted({value for of in found.values() for value in of})
  return _lay_out(heading, rows, [form.format(v) for v in values], intro)


def _averages(
  curves: Curves, shown: Mapping[str, str], steps=slice(None), form=".3f"
) -> dict[str, str]:
  """Means over seeds and steps, by title, of the metrics that were logged."""
  found = {}
  for title, metric in shown.items():
    if metric in curves.values:
      values = curves.values[metric][:, steps]
      empty = np.isnan(values).all()
      found[title] = "-" if empty else f"{np.nanmean(values):{form}}"
  return found


def _mean(values: statistics.Sample) -> str:
  return tables.mean_and_width(statistics.summarise(values))


def _ends(found: Found) -> dict[str, slice]:
  window = found.table.window
  return {"first": slice(None, window), "last": slice(-window, None)}


def _stand_in(found: Found) -> str:
  stand_in = found.table.stand_ins.get(found.scale)
  return f" ({stand_in})" if stand_in else ""


def _keep(
  found: Found, names: Sequence[str], every: int = 1, evals: Sequence[str] = ()
) -> list[str]:
  """Writes evals.csv, and curves.csv, whose lines average `every` steps."""
  curves = {run: runs.averaged(c, every) for run, c in found.curves.items()}
  kinds = ("reward", "weight", "cv", "constant_groups")
  rewards = [f"{k}/{name}" for k in kinds for name in found.table.components]
  kept = tuple(dict.fromkeys((*rewards, *names, *found.table.curves)))
  runs.write_curves(found.folder / "curves.csv", curves, names=kept)
  if evals:
    runs.write_curves(found.folder / "evals.csv", found.evals, names=evals)
  return []


def _draw(
  found: Found,
  file: str,
  metrics: Mapping[str, str],
  panels: Mapping[str, Mapping[str, str]],
  **looks,
) -> None:
  """Draws metrics over steps: runs by panel and row, if they logged them."""
  shown, wanted = {}, set(metrics.values())
  for heading, of in panels.items():
    rows = {row: _likely(found.curves[run]) for row, run in of.items()}
    rows = {row: c for row, c in rows.items() if wanted <= c.values.keys()}
    # Of some rows of a table, panels may have no more than one before them.
    if not any(rows.keys() <= one.keys() for one in ({}, *shown.values())):
      shown[heading] = rows
  if shown:
    looks = {"quantity": next(iter(metrics)), **looks, **found.picture(file)}
    plots.metric_panels(shown, metrics, window=found.table.window, **looks)


def _draw_main(found: Found, file: str, label: str, metric: str, panels=None):
  """Draws a metric of the main table's runs, in the table's panels."""
  chosen = {
    heading: {row: found.main[row] for row in rows if row in found.main}
    for heading, rows in (panels or found.table.panels).items()
  }
  _draw(found, file, {label: metric}, chosen)


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
    _primary(found, differences),
    "",
    *([late, ""] if table.thresholds else []),
    *tables.differences(differences),
    "",
  ]


def _primary(found: Found, differences) -> str:
  """Says what was asked, and how to read the answers to all else."""
  label, heading = found.table.primary
  one = differences.get(label, {}).get(heading)
  told = f"Primary, fixed before the run: {label}, {heading}"
  if one is None:
    told += ", which is not among these runs"
  else:
    p = statistics.p_value(one)
    told += f": {one.mean:+.3f} {tables.interval(one.t)}, p = {p:.2g}"
    for name in found.table.controls:
      if other := differences.get(name, {}).get(heading):
        ends = tables.interval(other.t)
        told += f"; its control, {name}: {other.mean:+.3f} {ends}"
  every = [one for of in differences.values() for one in of.values()]
  count = len(every)
  of_starts = "Intervals are of the means of supervised starts."
  if every[0].starts == 1:
    of_starts = "All seeds begin at the same weights, whose chance is in no "
    of_starts += "interval."
  return (
    f"{told}. All else is exploratory, and shown where Holm's p over these "
    f"{count} comparisons is below 0.05. A true difference of the last "
    f"column's size is found in four of five such tables. {of_starts}"
  )


def interquartile_means(found: Found) -> list[str]:
  """The scores again, as means of the middle half of the seeds."""

  def middle(scores: Mapping[statistics.Seed, float]) -> str:
    return f"{statistics.interquartile_mean([*scores.values()]):.3f}"

  if min(len(final.seeds) for final in found.finals.values()) < 3:
    return []
  rows = [{"row": row, **of} for row, of in found.cells(middle).items()]
  columns = found.columns
  if swept := found.table.swept:
    columns = [f"{swept} {value:g}" for value in found.values]
  return _lay_out("Interquartile means over seeds", rows, columns)


def compare(found: Found) -> dict[str, dict[str, PairedDifference]]:
  """Differences of scores, of means over training, and of steps."""
  table, differences = found.table, {}
  for label, *pair in _pairs(found):
    if len(found.finals[pair[0]].seeds) < 2:
      continue
    curves = [found.curves[run] for run in pair]
    values = {
      heading: [found.finals[run].by_seed(metric) for run in pair]
      for heading, metric in found.columns.items()
    }
    for metric, heading in table.compared.items():
      values[f"{heading}, mean over training"] = [
        c.by_seed(c.values[metric].mean(-1)) for c in curves
      ]
    for metric, threshold in table.thresholds.items():
      values[f"steps to {metric} ≥ {threshold:g}"] = [
        c.by_seed(np.minimum(_steps_to(table, c, metric), c.steps[-1] + 1))
        for c in curves
      ]
    differences[label] = {
      heading: statistics.paired_difference(*both)
      for heading, both in values.items()
    }
  return differences


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


def _steps_to(table: Table, curves: Curves, metric: str) -> list[float]:
  """Steps to a metric's threshold, of each seed; a step counts from 1."""
  at = table.thresholds[metric], table.window, curves.steps + 1
  steps = statistics.steps_to_threshold
  return [steps(values, *at) for values in curves.values[metric]]


def _draw_differences(found: Found, columns: Sequence[str], file: str) -> None:
  compared = compare(found).items()
  panels = {
    f"held-out {column}": {x: of[column] for x, of in compared if column in of}
    for column in columns
  }
  if all(panels.values()):
    plots.difference_forest(panels, **found.picture(file))


def before_and_after(found: Found) -> list[str]:
  """Greedy scores at both ends, over seeds, and over examples if evaluated."""
  rows = []

  def add(label: str, component: str, *ends: Summary) -> None:
    before, after = map(_interval, ends)
    cells = {"reward": component, "before": before, "after": after}
    rows.append({"row": label, **cells})

  for run, (paths, seeds, *_) in found.directories.items():
    evals = found.evals[run]
    for name in found.table.components if evals.steps[0] == 0 else ():
      ends = map(evals.by_seed, evals.values[name].T[[0, -1]])
      add(run, name, *map(statistics.summarise, ends))
    for before, after in (pair for path in paths for pair in _scored(path)):
      if not seeds or before["seed"] in seeds:
        label = f"{run}, seed {before['seed']}, over examples"
        for name in found.table.components:
          ends = (entry["greedy"][name] for entry in (before, after))
          add(label, name, *(Summary(**end) for end in ends))
  return _lay_out(
    f"Before and after training, greedy, held out (here, {found.label})",
    rows,
    ["reward", "before", "after"],
    "95 % t intervals over seeds, or over examples where it says so.",
    words=2,
  )


def _scored(path: pathlib.Path) -> Iterable[tuple[dict, dict]]:
  """What `evaluate.py` found of a run's seeds at the start and at the end."""
  files = [path / name for name in ("evaluation_start.json", "evaluation.json")]
  if not all(file.exists() for file in files):
    return []
  start, end = (from_json(file.read_text())["seeds"] for file in files)
  return zip(start, end, strict=True)


def _interval(summary: Summary) -> str:
  text = f"{summary.mean:.3f}"
  if summary.count > 1:
    text += f" [{summary.low:.3f}, {summary.high:.3f}]"
  return f"{text} ({summary.size})"


def _steps_to_thresholds(found: Found) -> list[str]:
  """How soon rewards arrive, and what a step takes."""
  table, rows = found.table, []
  for run, curves in found.curves.items():
    cells = {
      f"{metric} ≥ {threshold:g}": statistics.median_steps(
        _steps_to(table, curves, metric), limit=curves.steps[-1] + 1
      )
      for metric, threshold in table.thresholds.items()
    }
    # The first steps compile. Timings are of the program, not of a seed.
    step, estimate, weigh = (
      np.median(curves.values.get(f"seconds/{key}", np.zeros((1, 4)))[0, 3:])
      for key in ("step", "estimate", "weigh")
    )
    estimate += weigh  # by gradients, with the passes that these cost
    cells["seconds a step"] = f"{step:.2f}"
    cells["estimate, share of step"] = f"{100 * estimate / step:.2f} %"
    rows.append({"row": run, **cells})
  seeds = next(iter(found.finals.values())).seeds
  return _lay_out(
    f"Steps until a reward's mean over {table.window} steps passes a "
    f"threshold{_stand_in(found)}",
    rows,
    intro="Median over seeds (seeds that got there).",
    outro=f"A step trains {len(seeds)} seeds at once. The estimate is weights "
    "and advantages together. Rows ran one after another on a shared machine: "
    "compare shares, not seconds.",
  )


def _draw_rewards(found: Found) -> list[str]:
  names, looks = found.table.components, found.picture("curves.png")
  plots.reward_curves(found.curves, names, window=found.table.window, **looks)
  for name in names:
    _draw_differences(found, [f"{name}, greedy"], f"difference_{name}.png")
  return []


def _by_kind(found: Found) -> list[str]:
  """Success by kind of task, where there are kinds."""
  rows, kinds = [], set()
  for run, final in found.finals.items():
    of = {k: v for k, v in final.values.items() if k.startswith(_KIND)}
    cells = {n.removeprefix(_KIND): _mean(final.by_seed(n)) for n in of}
    rows.append({"row": run, **cells})
    kinds |= cells.keys()
  heading = "Held-out success by kind, sampled"
  return _lay_out(heading, rows, sorted(kinds)) if kinds else []


def _first_and_last(found: Found) -> list[str]:
  """The curves of each row at both ends, as means over seeds."""
  shown = {heading: metric for metric, heading in found.table.curves.items()}
  rows = []
  for run, curves in found.curves.items():
    first, last = (_averages(curves, shown, at) for at in _ends(found).values())
    rows.append({"row": run} | {k: f"{first[k]} → {last[k]}" for k in first})
  window = found.table.window
  heading = f"First and last {window} steps of training, mean over seeds"
  return _lay_out(heading, rows, shown)


def _seconds(found: Found) -> list[str]:
  rows = []
  for run, curves in found.curves.items():
    cells = {"row": run}
    for part in _SECONDS:
      if f"seconds/{part}" in curves.values:
        # Timings are of the program, not of a seed; the first steps compile.
        values = curves.values[f"seconds/{part}"][0, _COMPILING:]
        cells[part] = f"{np.median(values):.3f}" if values.size else "-"
    rows.append(cells)
  return _lay_out(
    "Seconds of a step, median",
    rows,
    [part for part in _SECONDS if any(part in cells for cells in rows)],
    outro="A step trains all seeds at once. Rows ran one after another on a "
    "shared machine: for ratios see `benchmarks/world_model_cost.py`.",
  )


def _draw_curves(found: Found) -> list[str]:
  curves = found.table.curves
  for metric, label in curves.items():
    _draw_main(found, f"{picture_name(metric, curves)}.png", label, metric)
  columns = [*found.columns]
  drawn = [column for column in found.table.drawn if column in columns]
  _draw_differences(found, drawn or columns[:1], "differences.png")
  return []


def picture_name(metric: str, metrics: Iterable[str]) -> str:
  """The metric's last part, or all of it where two end alike."""
  last = metric.rpartition("/")[2]
  alike = [name for name in metrics if name.rpartition("/")[2] == last]
  return last if len(alike) == 1 else metric.replace("/", "_")


def _before(found: Found) -> list[str]:
  evals = found.evals[next(iter(found.main.values()))]
  right = float(evals.values["right"][:, evals.steps == 0].mean())
  before = f"Before training: {100 * right:.1f} % right, greedy."
  return ["", before, "", found.table.note]


def _by_budget(found: Found) -> list[str]:
  """Accuracy of the rows that were run at several budgets."""
  scores = {
    row: {100 * v: found.scores(run, "sampled/right") for v, run in of.items()}
    for row, of in found.rows.items()
    if None not in of and len(of) > 1
  }
  if not scores:
    return [""]
  plots.sweep(
    scores,
    swept="labels, % of the prompts of a step",
    quantity="held-out right, sampled",
    **found.picture("accuracy_by_budget.png"),
  )
  cells = {
    row: {budget: _mean(values) for budget, values in of.items()}
    for row, of in scores.items()
  }
  return _by_value("Held-out right, sampled, by budget", "{:g} %", cells)


def _training(found: Found) -> list[str]:
  """What training did to the policy's own answers."""
  right, same = "right answers in training", "share of the majority"
  _draw_main(found, "curves.png", right, "audit/correct")
  _draw_main(found, "majorities.png", same, "audit/majority")
  shown = {
    "right": "audit/correct",
    "votes right": "audit/vote_right",
    "majority": "audit/majority",
    "entropy": "entropy",
  }
  rows, ends = [], _ends(found)
  for row, run in found.main.items():
    cells = {"row": row}
    for end, steps in ends.items():
      averages = _averages(found.curves[run], shown, steps)
      cells |= {f"{title}, {end}": text for title, text in averages.items()}
    rows.append(cells)
  columns = [f"{title}, {end}" for title in shown for end in ends]
  columns.remove("entropy, first")
  window = found.table.window
  heading = f"Training, mean over seeds; first and last {window} steps"
  return _lay_out(heading, rows, columns)


def _bought(found: Found) -> list[str]:
  """What the labels were spent on, and what choosing cost."""
  counts = {"labels": "labels/bought", "prompts": "labels/prompts"}
  shown = {
    "on right votes": "labels/wasted",
    "nobody right": "labels/hopeless",
    "gate precision": "gate/precision",
  }
  rows = []
  for row, of in found.rows.items():
    for budget, run in of.items():
      curves = found.curves[run]
      if budget is None or "labels/bought" not in curves.values:
        continue
      choose, probes, step = (
        np.median(curves.values.get(f"seconds/{part}", 0))
        for part in ("choose", "probes", "step")
      )
      cells = _averages(curves, counts, slice(-1, None), ".0f")
      cells |= _averages(curves, shown)
      cells["recall"] = _recall(curves)
      cells["choosing, % of a step"] = f"{100 * (choose + probes) / step:.1f}"
      rows.append({"row": row, "budget": f"{100 * budget:g} %", **cells})
  columns = ["budget", *counts, "recall", *shown, "choosing, % of a step"]
  heading = "Labels, mean over the run and seeds"
  told = "Recall: of the prompts whose label would have changed something, in "
  told += "all steps, the share that was bought."
  return _lay_out(heading, rows, columns, told) if rows else [""]


def _recall(curves: Curves) -> str:
  """The share of the prompts with a gap that the labels went to."""
  names = ("labelled", "wasted", "hopeless")
  found = [curves.values.get(f"labels/{name}") for name in names]
  found.append(curves.values.get("audit/with_gap"))
  if any(values is None for values in found):
    return "-"
  # A label is without effect where the vote is right, or no response is.
  share, wasted, hopeless, with_gap = found
  hits = np.nansum(share * (1 - wasted - hopeless))
  return f"{hits / max(np.nansum(with_gap), 1e-9):.3f}"


def draw_choices(*buyers: str) -> Section:
  """Draws what the labels of some rows were spent on."""

  def section(found: Found) -> list[str]:
    panels = {f"at {100 * found.table.at:g} %": buyers}
    wasted, hopeless = "labels on right votes", "labels where nobody is right"
    _draw_main(found, "wasted.png", wasted, "labels/wasted", panels)
    _draw_main(found, "hopeless.png", hopeless, "labels/hopeless", panels)
    return []

  return section


def _rewards(found: Found) -> list[str]:
  """How many seeds fell in training, and where they ended."""
  table, form = found.table, f"{found.table.swept} {{:g}}"

  def collapsed(run: str) -> str:
    rewards = found.curves[run].values["reward/total"]
    ends = [statistics.best_and_last(of, table.window) for of in rewards]
    count, *beside = (
      sum(last < share * best for best, last in ends)
      for share in (_COLLAPSED, *_BESIDE)
    )
    told = " to ".join(map(str, beside))
    return f"{count}/{len(ends)}" + f" ({told})" * (beside != [count] * 2)

  def last(run: str) -> str:
    curves, end = found.curves[run], _ends(found)["last"]
    rewards = curves.values["reward/total"][:, end]
    return _mean(curves.by_seed(rewards.mean(-1)))

  intro = (
    f"A seed has collapsed if the mean reward of its last {table.window} steps "
    f"is below {100 * _COLLAPSED:g} % of the best such mean that it had; in "
    f"brackets, where others are counted, at {100 * _BESIDE[0]:g} and at "
    f"{100 * _BESIDE[1]:g} %. Both means are in runs.csv."
  )
  fallen, ends = found.by_value(collapsed), found.by_value(last)
  lines = ["", table.note]
  lines += _by_value("Seeds that collapsed", form, fallen, intro)
  heading = f"Training reward, last {table.window} steps"
  return lines + _by_value(heading, form, ends)


def _at_the_end(found: Found) -> list[str]:
  """The diagnostics at the end of the runs at the greatest value."""
  table, value, last = found.table, found.values[-1], _ends(found)["last"]
  shown = _LIKELIHOODS | {
    "entropy": "entropy",
    "length": "length",
    "zero-advantage share": "zero_advantage",
    "gradient norm": "gradient_norm",
    "skipped updates": "skipped",
  }
  rows = [
    {
      "row": row,
      **_averages(_likely(found.curves[of[value]]), shown, last, ".3g"),
    }
    for row, of in found.rows.items()
    if value in of
  ]
  at = f"{table.swept} {value:g}, mean over seeds"
  return _lay_out(f"The last {table.window} steps at {at}", rows, shown)


def _likely(curves: Curves) -> Curves:
  """The same, where a likelihood of no response is missing and not 0."""
  values = {
    name: np.where(array == 0, np.nan, array) if name[:4] == "nll/" else array
    for name, array in curves.values.items()
  }
  return curves._replace(values=values)


def _draw_sweep(found: Found) -> list[str]:
  """Draws scores by value, and the curves of the rows in the first panel."""
  table = found.table
  ((heading, metric),) = found.columns.items()
  of_all = found.by_value(lambda run: found.scores(run, metric))
  looks = {"swept": f"{table.swept}, optimizer steps", "quantity": heading}
  for kind, rows in table.panels.items():
    if scores := {row: of_all[row] for row in rows if row in of_all}:
      picture = found.picture(f"final_by_{table.swept}_{kind}.png")
      plots.sweep(scores, **looks, **picture)
  panels: dict[str, dict[str, str]] = {}
  first = next(iter(table.panels.values()))
  rows = {row: found.rows[row] for row in first if row in found.rows}
  for value in found.values:
    at = f"{table.swept} {value:g}"
    panels[at] = {row: of[value] for row, of in rows.items() if value in of}
  _draw(found, "curves.png", {"training reward": "reward/total"}, panels)
  by_row = {f"{row}, {at}": {row: run} for row, run in panels[at].items()}
  looks = {"quantity": "mean token NLL", "log": True}
  _draw(found, "likelihoods.png", _LIKELIHOODS, by_row, **looks)
  return []


REWARDS = (
  functools.partial(_keep, names=("entropy", "length")),
  before_and_after,
  _steps_to_thresholds,
  interquartile_means,
  paired_differences,
  _draw_rewards,
)
FIGURES = (
  functools.partial(
    _keep,
    names=("success", "reward/return", "steps", "invalid", "failed", "entropy")
    + ("lambda", "loss/world_model", "clipped_tokens", "observation_nll"),
    evals=("right", "observation_accuracy"),
  ),
  _by_kind,
  _first_and_last,
  _seconds,
  interquartile_means,
  paired_differences,
  _draw_curves,
)
LABELS = (
  functools.partial(
    _keep,
    names=("reward/total", "audit/correct", "audit/vote_right")
    + ("audit/majority", "audit/with_gap", "labels/labelled", "labels/wasted")
    + ("labels/hopeless", "entropy"),
    every=5,
  ),
  _before,
  _by_budget,
  _training,
  _bought,
  interquartile_means,
  paired_differences,
)
SWEEP = (
  functools.partial(
    _keep,
    names=("reward/total", "nll/positive", "nll/negative", "entropy", "length"),
    every=5,
  ),
  _rewards,
  _at_the_end,
  interquartile_means,
  paired_differences,
  _draw_sweep,
)
