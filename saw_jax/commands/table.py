"""Makes a table: runs what is missing, then writes and draws it.

  saw table --table=saw/tool_calling --scale=tiny

Runs the seeds of every row that no run directory has, as one program a row;
killed, it goes on where it was. Then it writes runs.csv, curves.csv, table.md,
table.csv, table.html and pictures to results/<table>/<scale>/.

  saw table --list
  saw table --all --scale=tiny

The first lists the tables, what each needs, and what of that is missing here;
the second makes all that can run here (`make tables`).
"""

from saw_jax.reporting.reproduce import main as main

__all__ = ["main"]
