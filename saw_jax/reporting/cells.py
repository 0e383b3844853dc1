"""The scores of a sweep's cells: a table, and all of them as CSV."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from saw_jax.reporting import runs, statistics, tables


def write(folder: pathlib.Path, cells: Mapping[str, Mapping[str, str]]) -> str:
  """Writes `sweep.csv`, and gives the table of finished cells, by directory."""
  finals = {name: runs.read_finals([folder / name]) for name in cells}
  keys = list(next(iter(cells.values())))
  scores = list(dict.fromkeys(s for of in finals.values() for s in of.values))
  shown = [name for name in scores if name.endswith(("/total", "/right"))]
  lines, rows = [], [[*keys, *shown]]
  for name, (step, seeds, values) in finals.items():
    chosen = list(cells[name].values())
    for n, seed in enumerate(seeds):
      found = (values[s][n] if s in values else None for s in scores)
      lines.append([*chosen, seed, step, *map(tables.number, found)])
    rows.append([*chosen, *(_told(values.get(s, ())) for s in shown)])
  path = folder / "sweep.csv"
  runs.write_csv(path, [*keys, "seed", "step", *scores], lines)
  said = f"held out; every score of each seed: {path}"
  return "\n".join([*tables.aligned(rows), said])


def _told(scores: Sequence[float]) -> str:
  """A mean; a dash where a cell has no such score, or nothing was scored."""
  is_known = len(scores) and np.isfinite(scores).all()
  if not is_known:
    return tables.MISSING
  return tables.mean_and_width(statistics.summarise(scores))
