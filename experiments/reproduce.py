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

from saw_jax.reporting import reproduce
from saw_jax.run import command_line

reproduce.define_flags()

if __name__ == "__main__":
  command_line.run(reproduce.main)
