"""Which runs a table needs, which of them are there, and whether they agree.

A row's seeds may lie in several run directories: who asks for three seeds more
gets those three run. `reproduce.py` and `all_tables` both ask here.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class RowRuns(NamedTuple):
  """Where the seeds of a row lie.

  Attributes:
    directories: of finished runs.
    seeds: those of them that are meant; all where there are none.
  """

  directories: tuple[pathlib.Path, ...]
  seeds: tuple[int, ...] = ()


class Plan(NamedTuple):
  """What is there of a row, and what has to be run.

  Attributes:
    there: finished runs.
    missing: seeds that none of them has.
    directory: where the missing seeds go.
  """

  there: RowRuns
  missing: tuple[int, ...]
  directory: pathlib.Path

  @property
  def whole(self) -> RowRuns:
    """The row once the missing seeds have run."""
    directories = self.there.directories
    if self.missing:
      directories = (*directories, self.directory)
    return RowRuns(directories, tuple(sorted(self.there.seeds + self.missing)))


def plan_row(
  folder: pathlib.Path,
  row: str,
  seeds: Sequence[int],
  config: Mapping[str, Any] | None = None,
) -> Plan:
  """Finds the runs of a row that have finished, and what they lack.

  Args:
    folder: with the run directories of the table.
    row: its name.
    seeds: that are wanted.
    config: that the runs must have had; None to not look.

  Returns:
    The plan.

  Raises:
    ValueError: a finished run had another config, or its file is damaged.
  """
  from saw_jax.run import run_directory

  wanted, directories, found = set(seeds), [], []
  for directory in sorted(folder.glob(f"{row}_seeds_*")):
    if not (directory / "final.json").is_file():
      continue
    document = run_directory.read_run(directory)
    own = [int(seed) for seed in document["config"].get("seeds", ())]
    new = [seed for seed in own if seed in wanted and seed not in found]
    if not new:
      continue
    if config is not None:
      run_directory.check_run(directory, {**config, "seeds": own})
    if set(own) & set(found):
      continue  # Runs that share a seed are not put together.
    directories.append(directory)
    found += new
  missing = tuple(seed for seed in seeds if seed not in found)
  return Plan(
    RowRuns(tuple(directories), tuple(sorted(found))),
    missing,
    folder / f"{row}_seeds_{_name(missing or tuple(seeds))}",
  )


def check_commits(
  rows: Mapping[str, RowRuns], *, now: str | None = None
) -> None:
  """Refuses a table whose runs were made by different code.

  Args:
    rows: finished runs by row.
    now: commit of the code that is going to run what is missing, if anything.

  Raises:
    ValueError: names the commits and what was made at each.
  """
  from saw_jax.run import run_directory

  made: dict[str, list[str]] = {}
  for row, runs in rows.items():
    for directory in runs.directories:
      document = run_directory.read_run(directory)
      for commit in run_directory.commits(document):
        same = [c for c in made if run_directory.is_same_code(c, commit)]
        made.setdefault(same[0] if same else commit, []).append(row)
  if now is not None:
    same = [c for c in made if run_directory.is_same_code(c, now)]
    made.setdefault(same[0] if same else now, []).append("what is missing")
  if len(made) < 2:
    return
  said = "; ".join(
    f"{commit}: {', '.join(dict.fromkeys(names))}"
    for commit, names in made.items()
  )
  raise ValueError(
    "a table is made by one version of the code, and its runs are of "
    f"{len(made)} ({said}): go back to one of them, name another folder with "
    "--runs, or say --mixed to have the table name them all"
  )


def _name(seeds: Sequence[int]) -> str:
  """As `5` for the first five seeds, and `5-7` for the next three."""
  if list(seeds) == list(range(len(seeds))):
    return str(len(seeds))
  if list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
    return f"{seeds[0]}-{seeds[-1]}"
  return ",".join(map(str, seeds))
