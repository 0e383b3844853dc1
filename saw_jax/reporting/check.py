"""Checks a table against the code here by running part of it again."""

import csv
import pathlib
import tempfile
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from saw_jax.reporting import runs
from saw_jax.reporting.statistics import Seed
from saw_jax.run import run_directory

STEPS = 5  # that are compared, or those of a line of `curves.csv` if more


def made_by(folder: pathlib.Path) -> list[dict[str, str]]:
  """The runs of a table, as `runs.made` wrote them."""
  path = folder / "made.csv"
  if not path.exists():
    raise ValueError(f"{path} is not there: nothing says what made this table")
  with path.open(newline="", encoding="utf-8") as file:
    return list(csv.DictReader(file))


def origins(entries: Sequence[Mapping[str, str]]) -> str:
  """Says whether the code and the instruction set are the ones here."""
  here, said = {"code": run_directory.code(), **run_directory.processor()}, []
  for what in ("code", "instructions"):
    by = {entry[what]: entry["commit"] for entry in entries}
    others = [x or "unknown" for x in by if x != here[what]]
    told = f"other {what} ({', '.join(others)}; here {here[what]})"
    said.append(told if others else f"the same {what}")
  commits = ", ".join(dict.fromkeys(entry["commit"] for entry in entries))
  return f"of commit {commits}: {'; '.join(said)}"


def rerun(
  train: Callable[[pathlib.Path, Sequence[int], Callable[[], bool]], None],
  entry: Mapping[str, str],
  folder: pathlib.Path,
  *,
  is_full: bool = False,
) -> tuple[int, list[str]]:
  """Runs a row's first steps again, or all, and counts the numbers that differ.

  `train(directory, seeds, is_enough)` trains until `is_enough()` is true.
  """
  numbers = [int(word) for word in entry["seeds"].split()]
  file = folder / ("runs.csv" if is_full else "curves.csv")
  kept = runs.read_kept(file).get(entry["row"])
  if kept is None:
    raise ValueError(f"{file} has no row {entry['row']}")
  every = int(np.diff(kept.steps[:2]).sum()) or 1
  most = max(STEPS // every, 1) * every
  with tempfile.TemporaryDirectory() as place:
    directory = pathlib.Path(place, "run")
    path = directory / "metrics.csv"

    def is_enough() -> bool:
      lines = path.read_text().count("\n") if path.exists() else 0
      return not is_full and lines > most * len(numbers)  # one is the header

    train(directory, numbers, is_enough)
    if is_full:
      again = runs.read_finals([directory]).curves
    else:
      again = runs.averaged(runs.read_curves([directory]), every)
  chosen = {Seed(int(entry["start"]), number) for number in numbers}
  before, now = (_flat(found, chosen) for found in (kept, again))
  if not is_full:  # some steps, of which not all have all metrics
    numbers = [x for x in before.items() if x[0][-1] < most]
    before = {key: value for key, value in numbers if np.isfinite(value)}
  differ = []
  for (name, seed, step), value in before.items():
    other = now.get((name, seed, step))
    if repr(value) != repr(other):
      where = f"{name} of seed {seed}" + f" at step {step}" * (not is_full)
      differ.append(f"{where}: {value!r} there, {other!r} here")
  return len(before), differ


def _flat(
  found: runs.Curves, seeds: set[Seed]
) -> dict[tuple[str, Seed, int], float]:
  """The numbers of some seeds, by name, seed and step."""
  return {
    (name, seed, int(step)): float(values[n, t])
    for name, values in found.values.items()
    for n, seed in enumerate(found.seeds)
    for t, step in enumerate(found.steps)
    if seed in seeds
  }
