"""Writes docs/paper_index.md: from a method to its functions and our number.

  python saw_jax/reporting/paper_index.py

All of it is read from configs, from the tables of `saw_jax.algorithms` and from
results/*/*/tiny/table.csv; tests/docs_test.py says when the page is old.
"""

import csv
import functools
import pathlib
from collections.abc import Callable

from saw_jax.reporting import catalogue
from saw_jax.run import command_line, config

ROOT = pathlib.Path(__file__).resolve().parents[2]
_SCALE = "tiny"
_HEAD = """# From papers to code

Every method and baseline: the functions that it is made of, the rows that run
it, and what came out here at scale `tiny`. This page is written by
`python saw_jax/reporting/paper_index.py` from the configs and from `results/`,
and a test says when it is old. Names are those below `saw_jax`; options are in
the config.
"""


def main() -> int:
  """Writes the page into docs/."""
  path = ROOT / "docs" / "paper_index.md"
  path.write_text(page(), encoding="utf-8")
  print(path)
  return 0


def page() -> str:
  """Writes the page."""
  lines = [_HEAD]
  for table in catalogue.names():
    lines += _table(table)
  return "\n".join(lines)


def _table(name: str) -> list[str]:
  table = catalogue.load(name)
  kept = _results(ROOT / "results" / name / _SCALE / "table.csv")
  metrics = list(dict.fromkeys(metric for _, metric in kept))
  # Of a sweep all of it, of another table the first column.
  shown = metrics if table.swept else metrics[:1]
  where = f"[`{_SCALE}`](../results/{name}/{_SCALE}/table.md)"
  lines = [
    f"## {table.title}",
    "",
    f"Config: [`configs/{name}.py`](../configs/{name}.py). All rows:",
    "",
    f"    python experiments/reproduce.py --table={name} --scale={_SCALE} "
    "--seeds=5",
    "",
    f"Results: {where if kept else 'not run'}.",
    "",
    f"| row | advantage | weights | loss | besides | `--rows=` | "
    f"{', '.join(shown) or 'here'} |",
    "| --- | --- | --- | --- | --- | --- | ---: |",
  ]
  for row in table.rows:
    runs = table.runs_of(row)
    if not runs:  # a row that the table leaves out, such as at this scale
      continue
    made = _methods(config.typed(table.config(runs[0], _SCALE)))
    cells = [kept.get((row, metric), "–") for metric in shown]
    if not any((row, metric) in kept for metric in shown):
      asked = set(runs) <= set(table.on_request)
      cells = ["by `--rows` alone" if asked else "not run"]
    words = ", ".join(f"`{run}`" for run in runs)
    lines += [f"| {row} | {' | '.join(made)} | {words} | {', '.join(cells)} |"]
  return [*lines, ""]


def _methods(run) -> list[str]:
  """The functions of a config: advantage, weights, loss, and what else."""
  from saw_jax import algorithms, weighting

  algorithm = run.algorithm
  weights = algorithms.WEIGHTS[algorithm.weights]
  advantages = algorithms.ADVANTAGES | algorithms.STEP_ADVANTAGES
  return [
    _name(advantages[algorithm.advantage]),
    _name(weights or weighting.gradient_weights),
    f"{_name(algorithms.LOSSES[algorithm.loss])}, "
    f"{_name(algorithms.AGGREGATES[algorithm.aggregate])}",
    ", ".join(_besides(run)) or "–",
  ]


def _besides(run) -> list[str]:
  """The functions of labels and of a world model, if there are any."""
  from saw_jax import algorithms

  world, found = run.algorithm.world_model, []
  if world.loss != "none":
    found = [
      algorithms.TOKEN_LOSSES[world.loss],
      algorithms.SELECTIONS[world.selection],
      algorithms.COEFFICIENTS[world.coefficients],
      algorithms.ROW_AGGREGATES[world.aggregate],
    ]
  found = [_name(fn) for fn in found]
  if world.shuffled:
    found.append("observations change places")
  labels = run.labels
  found += [_name(fn) for fn in _label_functions(labels)]
  if labels.method not in ("truth", "care") and labels.gate == "probe":
    found.append("CARE's gate")
  if labels.method == "care" and labels.gate == "none":
    found.append("no gate")
  if labels.unlabelled == "vote":
    found.append("votes for the rest")
  if run.asynchronous.dynamic_sampling:
    found.append("dynamic sampling")
  return found


def _label_functions(labels) -> list[Callable]:
  from saw_jax.labels import care, certainty, selection, voting
  from saw_jax.tasks import self_verification

  return {
    "truth": [],
    "vote": [voting.majority_vote],
    "filtered_vote": [voting.majority_vote, voting.is_vote_right],
    "random": [selection.random_scores],
    "entropy": [selection.entropy_scores],
    "mean_probability": [selection.unlikeliness_scores],
    "oracle": [selection.oracle_scores],
    "care": [care.care_probabilities, selection.care_selection],
    "certainty": [certainty.token_entropy],
    "self_verification": [self_verification.read_verdict],
  }[labels.method]


def _name(fn: Callable) -> str:
  bound = ""
  if isinstance(fn, functools.partial):
    bound = ", ".join(
      f"{k}={getattr(v, '__name__', v)}" for k, v in fn.keywords.items()
    )
    fn, bound = fn.func, f"({bound})"
  fn = getattr(fn, "__wrapped__", fn)  # of jax.jit
  return f"`{fn.__module__.removeprefix('saw_jax.')}.{fn.__name__}{bound}`"


def _results(path: pathlib.Path) -> dict[tuple[str, str], str]:
  """Mean and half-width of each row and metric that was measured here."""
  if not path.exists():
    return {}
  with path.open(encoding="utf-8", newline="") as file:
    return {
      (line["row"], line["metric"]): _cell(line)
      for line in csv.DictReader(file)
      if line["origin"] == "here"
    }


def _cell(line) -> str:
  text = f"{float(line['mean']):.3f}"
  if line["low"]:
    half = (float(line["high"]) - float(line["low"])) / 2
    text += f" ± {half:.3f}"
  return text


if __name__ == "__main__":
  command_line.run(main)
