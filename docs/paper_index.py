"""Writes docs/paper_index.md: from a method to its functions and our number.

  python docs/paper_index.py

All of it is read from configs, from the tables of `saw_jax.algorithms` and from
results/*/*/tiny*/table.csv; tests/docs_test.py says when the page is old.
"""

import csv
import functools
import pathlib
import sys
from collections.abc import Callable

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from saw_jax.reporting import catalogue  # noqa: E402
from saw_jax.run import config  # noqa: E402

_SCALE = "tiny"
_HEAD = """# From papers to code

Every method and baseline: the functions that it is made of, the rows that run
it, and what came out here at scale `tiny`, from several supervised starts where
there are such runs; in brackets how many starts × seeds. This page is written
by `python docs/paper_index.py` from the configs and from `results/`, and a test
says when it is old. Names are those below `saw_jax`; options are in the config.
"""


def main() -> int:
  path = ROOT / "docs" / "paper_index.md"
  path.write_text(page(), encoding="utf-8")
  print(path)
  return 0


def page() -> str:
  return "\n".join([_HEAD, *map(_table, catalogue.names())])


def _table(name: str) -> str:
  table = catalogue.load(name)
  files = sorted((ROOT / "results" / name).glob(f"{_SCALE}*/table.csv"))
  kept: dict[tuple[str, str], str] = {}
  for file in files:  # what has several starts comes later, and stays
    kept |= _results(file)
  metrics = list(dict.fromkeys(metric for _, metric in kept))
  # Of a sweep all of it, of another table the first column.
  shown = metrics if table.swept else metrics[:1]
  where = ", ".join(
    f"[`{file.parent.name}`](../{file.parent.relative_to(ROOT)}/table.md)"
    for file in files
  )
  lines = f"""\
## {table.title}

Config: [`configs/{name}.py`](../configs/{name}.py). All rows:

    saw table --table={name} --scale={_SCALE} --seeds=5

Results: {where or "not run"}.

| row | advantage | weights | loss | besides | `--rows=` | \
{", ".join(shown) or "here"} |
| --- | --- | --- | --- | --- | --- | ---: |
"""
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
    lines += f"| {row} | {' | '.join(made)} | {words} | {', '.join(cells)} |\n"
  return lines


def _methods(run) -> list[str]:
  """The functions of a config: advantage, weights, loss, and what else."""
  from saw_jax import algorithms, weighting

  algorithm, world, labels = (
    run.algorithm,
    run.algorithm.world_model,
    run.labels,
  )
  advantages = algorithms.ADVANTAGES | algorithms.STEP_ADVANTAGES
  weights = algorithms.WEIGHTS[algorithm.weights] or weighting.gradient_weights
  losses = [
    algorithms.LOSSES[algorithm.loss],
    algorithms.AGGREGATES[algorithm.aggregate],
  ]
  besides = []
  if world.loss != "none":
    besides = [
      algorithms.TOKEN_LOSSES[world.loss],
      algorithms.SELECTIONS[world.selection],
      algorithms.COEFFICIENTS[world.coefficients],
      algorithms.ROW_AGGREGATES[world.aggregate],
    ]
  told = list(map(_name, besides))
  told += ["observations change places"] if world.shuffled else []
  told += map(_name, _label_functions(labels))
  if labels.method not in ("truth", "care") and labels.gate == "probe":
    told.append("CARE's gate")
  if labels.method == "care" and labels.gate == "none":
    told.append("no gate")
  told += ["votes for the rest"] if labels.unlabelled == "vote" else []
  if run.warm_start.observation_coefficient >= 1:
    told.append("a start that learned observations")
  told += ["dynamic sampling"] if run.asynchronous.dynamic_sampling else []
  return [
    _name(advantages[algorithm.advantage]),
    _name(weights),
    ", ".join(map(_name, losses)),
    ", ".join(told) or "–",
  ]


def _label_functions(labels) -> list[Callable]:
  from saw_jax.labels import care, certainty, selection, trajectories, voting
  from saw_jax.tasks import self_verification

  return {
    "truth": [],
    "vote": [voting.majority_vote],
    "filtered_vote": [voting.majority_vote, voting.is_vote_right],
    "random": [selection.random_scores],
    "entropy": [selection.entropy_scores],
    "margin": [voting.vote_margin],
    "mean_probability": [selection.unlikeliness_scores],
    "oracle": [selection.oracle_scores],
    "care": [care.care_probabilities, selection.care_selection],
    "trapo": [voting.majority_vote, trajectories.trusted_prompts],
    "certainty": [certainty.token_entropy],
    "self_verification": [self_verification.read_verdict],
  }[labels.method]


def _name(fn: Callable) -> str:
  bound = ""
  if isinstance(fn, functools.partial):
    options = fn.keywords.items()
    said = [f"{key}={getattr(v, '__name__', v)}" for key, v in options]
    fn, bound = fn.func, f"({', '.join(said)})"
  fn = getattr(fn, "__wrapped__", fn)  # of jax.jit
  return f"`{fn.__module__.removeprefix('saw_jax.')}.{fn.__name__}{bound}`"


def _results(path: pathlib.Path) -> dict[tuple[str, str], str]:
  """Mean and half-width of each row and metric that was measured here."""
  found = {}
  for line in csv.DictReader(path.read_text(encoding="utf-8").splitlines()):
    if line["origin"] != "here":
      continue
    text = f"{float(line['mean'] or 'nan'):.3f}"
    if line["low"]:
      half = (float(line["high"]) - float(line["low"])) / 2
      text += f" ± {half:.3f}"
    starts = int(line.get("starts") or 1)
    each = int(line["n"]) // starts
    found[line["row"], line["metric"]] = f"{text} ({starts} × {each})"
  return found


if __name__ == "__main__":
  sys.exit(main())
