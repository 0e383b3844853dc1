"""Draws the Corrective Advantage Gap by counts: what a label is worth.

  python experiments/draw_gap.py --group_size=8 --out=docs/pictures/gap.png

Across: how many responses gave the voted answer. Up: how many gave the right
one, where the vote is wrong; in the lowest row nobody is right.
"""

import pathlib

from absl import flags

from saw_jax.run import command_line

_GROUP_SIZE = flags.DEFINE_integer("group_size", 8, "Responses, G.", 1, 64)
_OUT = flags.DEFINE_string("out", "docs/pictures/gap.png", "The picture.")


def main() -> int:
  import numpy as np

  from saw_jax.labels import gap
  from saw_jax.reporting import plots

  size = _GROUP_SIZE.value
  x, y = np.mgrid[: size + 1, : size + 1]
  table = np.where(
    gap.is_possible(x, y, size), np.asarray(gap.gap_table(size)), np.nan
  )
  rows = max(1, np.flatnonzero(~np.isnan(table).all(0))[-1] + 1)
  path = pathlib.Path(_OUT.value)
  path.parent.mkdir(parents=True, exist_ok=True)
  plots.heat_map(
    table[:, :rows].T,
    across="responses that gave the voted, wrong answer",
    down="responses that gave the right answer",
    quantity="gap: how far a label moves the advantages",
    title=f"What a label is worth, {size} responses",
    path=path,
  )
  print(path)
  return 0


if __name__ == "__main__":
  command_line.run(main)
