"""Which runs a table needs, which of them are there, and whether they agree.

A row's seeds may lie in several run directories: who asks for three seeds more
gets those three run.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from saw_jax.reporting.report import RowRuns
from saw_jax.run import run_directory


class Plan(NamedTuple):
  """What is there of a row, and what has to be run."""

  there: RowRuns  # finished runs
  missing: tuple[int, ...]  # seeds that none of them has
  directory: pathlib.Path  # where the missing seeds go

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

  If a config is given, a finished run that had another one is refused.
  """
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
  """Refuses runs of different code; `now` would run what is missing, if any."""
  made = [
    (commit, row)
    for row, runs in rows.items()
    for directory in runs.directories
    for commit in run_directory.commits(run_directory.read_run(directory))
  ]
  if now is not None:
    made.append((now, "what is missing"))
  names: dict[str, dict[str, None]] = {}  # commit -> what was made at it
  for commit, name in made:
    same = [c for c in names if run_directory.is_same_code(c, commit)]
    names.setdefault(same[0] if same else commit, {})[name] = None
  if len(names) < 2:
    return
  said = "; ".join(f"{commit}: {', '.join(of)}" for commit, of in names.items())
  raise ValueError(
    "a table is made by one version of the code, and its runs are of "
    f"{len(names)} ({said}): go back to one of them, name another folder with "
    "--runs, or say --mixed to have the table name them all"
  )


def _name(seeds: Sequence[int]) -> str:
  """As `5` for the first five seeds, and `5-7` for the next three."""
  if list(seeds) == list(range(len(seeds))):
    return str(len(seeds))
  if list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
    return f"{seeds[0]}-{seeds[-1]}"
  return ",".join(map(str, seeds))
