"""Compares runs seed by seed, each with the first.

  saw compare runs/a runs/b

Prints paired differences of rewards, as means over training, and of held-out
scores, with 95 % intervals over seeds, as the tables have them. Writes them to
compare.csv, and a picture of them to compare.png; with --output=figures/a.pdf
(or .svg), to that file and the .csv beside it. A run that still goes on may be
among them: what is compared is what both have done.
"""

import pathlib

from absl import flags

from saw_jax.run import command_line


def main(*runs: str) -> int:
  given, output = flags.FLAGS, pathlib.Path(flags.FLAGS.output)
  if len(runs) < 2:
    raise command_line.UsageError("name two or more run directories")
  if output.suffix not in (".png", ".svg", ".pdf"):
    raise command_line.UsageError(f"--output={output}: .png, .svg or .pdf")

  from saw_jax.reporting import compare

  table = output.with_suffix(".csv")
  with command_line.checking_input():
    found = compare.compare(runs, given.metrics)
    output.parent.mkdir(parents=True, exist_ok=True)
    found.write(table)
    found.plot(output)
  print(f"{found}\n{table} and {output}")
  return 0
