"""What a table of a paper is: its rows and columns, and what it needs."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections

from saw_jax.tasks.base import nearest

A_GPU = "a GPU (not run here)"
ACCELERATORS = "GPUs or a TPU slice (not run here; the paper does not say)"

TIMED_SEEDS = 5  # that the hours of a table are said for
# Row -> fields of published cells, as `tables.select` takes them.
Cells = Mapping[str, tuple[Mapping[str, str], ...]]


def _none() -> Any:
  return dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Needs:
  """What a table needs at one scale, beside its config's checkpoint."""

  data: str
  scored_on: str
  model: str = "a decoder of 0.1 M parameters, trained here"
  hardware: str = "2 CPU cores"  # any other has an accelerator
  # All rows, from one start; None: nobody has timed it.
  hours: float | None = None
  extras: tuple[str, ...] = ("report",)
  # A package that no extra can have -> how to install it.
  packages: Mapping[str, str] = _none()
  # Path in the config -> how to get it.
  files: Mapping[str, str] = _none()
  # Key of the config that has to be set -> what it is.
  settings: Mapping[str, str] = _none()


class Run(NamedTuple):
  """One of several runs of a row."""

  row: str
  value: float | None  # of what is swept; None: the row has no such thing
  argument: str  # of `get_config`, without the scale


@dataclasses.dataclass(frozen=True)
class Table:
  """The description of a table, which its config fills in."""

  title: str
  get_config: Callable[[str], ml_collections.ConfigDict]
  rows: tuple[str, ...]  # in this order
  needs: Mapping[str, Needs]  # by scale
  # What is written below the main table, and drawn, in this order: lists of
  # `saw_jax.reporting.sections`.
  sections: Sequence[Callable[[Any], list[str]]]
  caption: str = ", held out"  # follows the title
  # Column -> name in a run's final scores; and those of one scale alone.
  metrics: Mapping[str, str] = _none()
  metrics_at: Mapping[str, Mapping[str, str]] = _none()
  # Scale -> what finished policies are scored on -> samples an entry.
  benchmarks: Mapping[str, Mapping[str, int]] = _none()
  # Scale -> what is printed beside its numbers: they are not the paper's.
  stand_ins: Mapping[str, str] = _none()
  # The papers' cells that belong beside rows; and those of one scale alone.
  published: Sequence[Cells] = ()
  published_at: Mapping[str, Sequence[Cells]] = _none()
  # What is compared with what, seed by seed.
  comparisons: Sequence[tuple[str, str]] = ()
  # Which of them, and of which score, is what the table was run for: fixed
  # before it is. All others are exploratory.
  primary: tuple[str, str] = ("", "")
  # Comparisons that tell what the primary one owes to its method.
  controls: tuple[str, ...] = ()
  # Columns whose differences are drawn; the first one by default.
  drawn: tuple[str, ...] = ()
  # Metric of a step -> what it is called where its means are compared.
  compared: Mapping[str, str] = _none()
  # Rewards whose arrival is timed, as means over a window of steps.
  thresholds: Mapping[str, float] = _none()
  window: int = 5  # steps of a moving average
  components: tuple[str, ...] = ()  # rewards that are told one by one
  # Metric of a step -> what it is called; told at both ends, and drawn.
  curves: Mapping[str, str] = _none()
  # Heading -> rows that are drawn together.
  panels: Mapping[str, tuple[str, ...]] = _none()
  note: str = ""  # printed below the main table
  # Name of a run -> what it is, where rows have several runs.
  several: Mapping[str, Run] = _none()
  on_request: tuple[str, ...] = ()  # runs that only `--rows` adds
  swept: str = ""  # what the columns are values of; empty: `metrics` are
  at: float | None = None  # the value that the main table has, if only one

  @property
  def runs(self) -> Mapping[str, Run]:
    """All runs by name: the rows themselves, unless they have several."""
    rows = {row: Run(row, None, f"row={row}") for row in self.rows}
    return self.several or rows

  @property
  def default_runs(self) -> list[str]:
    """The runs that it is made of, unless `--rows` names others."""
    return [name for name in self.runs if name not in self.on_request]

  def runs_of(self, row: str) -> list[str]:
    return [name for name, run in self.runs.items() if run.row == row]

  def argument(self, name: str, scale: str) -> str:
    """The argument of `get_config` for a run."""
    if self.several and name not in self.several:
      raise ValueError(f"no run {name!r}: {nearest(name, list(self.several))}")
    run = self.runs.get(name) or Run(name, None, f"row={name}")
    return f"{run.argument},scale={scale}"

  def config(self, name: str, scale: str) -> ml_collections.ConfigDict:
    """Makes the config of a run, with the benchmarks of the table."""
    config = self.get_config(self.argument(name, scale))
    benchmarks = self.benchmarks.get(scale, {})
    config.evaluation.benchmarks = ml_collections.ConfigDict(benchmarks)
    return config

  def check(self, names: Iterable[str]) -> None:
    """Refuses runs of which no table can be made."""
    values = {self.runs[name].value for name in names}
    if self.at is not None and not values & {None, self.at}:
      raise ValueError(
        f"none of {', '.join(names)} has labels for {100 * self.at:g} % of the "
        "prompts, of which the table is made: add a run that has"
      )

  def columns(self, scale: str) -> dict[str, str]:
    """Heading -> name in a run's final scores."""
    return {**self.metrics, **self.metrics_at.get(scale, {})}

  def label(self, scale: str) -> str:
    """The scale as it stands beside its numbers, with any stand-in."""
    return ", ".join(filter(None, (scale, self.stand_ins.get(scale))))

  def cells(self, scale: str | None = None) -> Cells:
    """The published cells of a scale, or of all."""
    scales = self.published_at if scale is None else [scale]
    later = (self.published_at.get(name, ()) for name in scales)
    found: dict[str, list[Mapping[str, str]]] = {}
    for cells in itertools.chain(self.published, *later):
      for row, new in cells.items():
        of_row = found.setdefault(row, [])
        of_row += [cell for cell in new if cell not in of_row]
    return {row: tuple(of_row) for row, of_row in found.items()}


def published(
  methods: Mapping[str, str], **fields: str | Sequence[str]
) -> Cells:
  """Names the cells of rows: all combinations where a field has several values.

  >>> cells = published({"gdpo": "GDPO"}, paper="SAW", benchmark=("a", "b"))
  >>> [cell["benchmark"] for cell in cells["gdpo"]]
  ['a', 'b']
  """
  values = [(v,) if isinstance(v, str) else v for v in fields.values()]
  chosen = itertools.product(*values)
  cells = [dict(zip(fields, value, strict=True)) for value in chosen]
  return {
    row: tuple({**cell, "method": method} for cell in cells)
    for row, method in methods.items()
  }
