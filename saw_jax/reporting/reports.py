"""What the reports of all kinds of tables share: reading, saving, signing.

`sweep_report`, `label_report` and `agent_report` build on it.
"""

import contextlib
import math
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from saw_jax.reporting import catalogue
from saw_jax.reporting.run_plan import RowRuns

_EVERY = 5  # steps that a line of a thinned curves.csv averages


class Found(NamedTuple):
  """What run directories hold.

  Attributes:
    finals: the last evaluation by name of the run.
    curves: the metrics of every step by name of the run.
    documents: the runs' own descriptions.
  """

  finals: dict[str, Any]
  curves: dict[str, Any]
  documents: list[Mapping[str, Any]]

  @property
  def commits(self) -> list[str]:
    """The commits that the runs were made at, sorted."""
    from saw_jax.run import run_directory

    return sorted(
      {
        commit
        for document in self.documents
        for commit in run_directory.commits(document)
      }
    )


@contextlib.contextmanager
def replacing(out: pathlib.Path) -> Iterator[pathlib.Path]:
  """Lets files be written beside those of a folder, and then over them.

  Whatever goes wrong before the end, a full disk say, leaves the folder as it
  was. `table.md` is moved last: who finds it finds the others.

  Args:
    out: the folder; made if absent.

  Yields:
    An empty folder to write to.
  """
  out.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(
    dir=out.parent, prefix=f".{out.name}_"
  ) as folder:
    folder = pathlib.Path(folder)
    yield folder
    out.mkdir(exist_ok=True)
    files = sorted(folder.iterdir(), key=lambda file: file.name == "table.md")
    for file in files:
      shutil.move(file, out / file.name)


def read(directories: Mapping[str, RowRuns]) -> Found:
  """Reads finished runs.

  Args:
    directories: run directories by name of the run.

  Returns:
    Their numbers.
  """
  from saw_jax.reporting import runs
  from saw_jax.run import run_directory

  return Found(
    {
      name: runs.read_finals(row.directories, seeds=row.seeds)
      for name, row in directories.items()
    },
    {
      name: runs.read_curves(row.directories, seeds=row.seeds)
      for name, row in directories.items()
    },
    [
      run_directory.read_run(directory)
      for row in directories.values()
      for directory in row.directories
    ],
  )


def read_published(
  module, rows: Iterable[str], scale: str
) -> dict[str, dict[str, Any]]:
  """Returns the papers' cells for the rows that a table has.

  Args:
    module: the config.
    rows: those that were run.
    scale: of the runs.

  Returns:
    Row -> heading -> the published cell; nothing for a table of no paper.
  """
  from saw_jax.reporting import papers

  found: dict[str, dict[str, Any]] = {}
  rows = set(rows)
  for row, cells in catalogue.published(module, scale).items():
    if row not in rows:
      continue
    for fields in cells:
      heading = f"{fields['metric']}, {fields['benchmark']}"
      cell = papers.select(papers.read(fields["paper"].lower()), **fields)[0]
      found.setdefault(row, {})[heading] = cell
  return found


def save_runs(
  found: Found, out: pathlib.Path, *, names: Sequence[str], thinned: bool
) -> None:
  """Writes runs.csv and curves.csv.

  Args:
    found: the runs.
    out: the folder.
    names: of the metrics that the curves keep.
    thinned: average blocks of five steps, which keeps a file of many runs
      small; a block is named by its first step.
  """
  from saw_jax.reporting import runs

  curves = found.curves
  if thinned:
    curves = {name: _thin(values) for name, values in curves.items()}
  runs.write_results(
    out / "runs.csv", found.finals, commit="/".join(found.commits)
  )
  runs.write_curves(out / "curves.csv", curves, names=names)


def append(
  lines: Sequence[str], found: Found, out: pathlib.Path, *, command: str
) -> None:
  """Adds to table.md, and signs it: what made it, where, and of which commit.

  Args:
    lines: what follows the table.
    found: the runs.
    out: the folder.
    command: that makes it again.
  """
  final = next(iter(found.finals.values()))
  signature = (
    f"{final.step} steps a run. Made by `python {command}` at commit "
    f"{', '.join(found.commits)}; seeds {', '.join(map(str, final.seeds))}; "
    f"{found.documents[0]['machine']}."
  )
  with (out / "table.md").open("a", encoding="utf-8") as file:
    file.write("\n".join([*lines, signature, ""]))


def grid(head: Sequence[str], rows: Mapping[str, Sequence[str]]) -> list[str]:
  """Lays cells out as the lines of a Markdown table.

  Args:
    head: of the columns after the first, which names the row.
    rows: the cells by row.

  Returns:
    The lines.

  >>> print("\\n".join(grid(["5 %"], {"care": ["0.9"]})))
  | row | 5 % |
  | --- | ---: |
  | care | 0.9 |
  """
  return [
    f"| row | {' | '.join(head)} |",
    "| --- |" + " ---: |" * len(head),
    *(f"| {row} | {' | '.join(cells)} |" for row, cells in rows.items()),
  ]


def write_mean(values: Sequence[float]) -> str:
  """Writes a mean with half of its 95 % interval.

  Args:
    values: one a seed.

  Returns:
    As `0.912 ± 0.019`; `0.912` of a single seed.
  """
  from saw_jax.reporting import statistics

  found = statistics.summarise(values)
  half = (found.high - found.low) / 2
  return f"{found.mean:.3f}" + ("" if math.isnan(half) else f" ± {half:.3f}")


def by_seed(curves, metric: str) -> dict[int, float]:
  """Averages a metric over training.

  Args:
    curves: of one run.
    metric: which.

  Returns:
    Its mean over the steps, by seed.
  """
  means = curves.values[metric].mean(-1)
  return dict(zip(curves.seeds, means, strict=True))


def _thin(curves):
  size = len(curves.steps) // _EVERY * _EVERY
  return curves._replace(
    steps=curves.steps[:size:_EVERY],
    values={
      name: values[:, :size].reshape(len(values), -1, _EVERY).mean(-1)
      for name, values in curves.values.items()
    },
  )
