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
  from experiments import gap_picture

  path = pathlib.Path(_OUT.value)
  path.parent.mkdir(parents=True, exist_ok=True)
  gap_picture.draw(_GROUP_SIZE.value).savefig(path)
  print(path)
  return 0


if __name__ == "__main__":
  command_line.run(main)
