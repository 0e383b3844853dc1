"""The tables that there are, what each needs, and what of that is missing here.

What a table needs is in its config, `NEEDS`, beside its rows; which numbers of
the papers are set beside ours is in `PUBLISHED`. Nothing is said here twice.
"""

import dataclasses
import functools
import importlib
import importlib.metadata
import itertools
import pathlib
import re
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from types import ModuleType

import ml_collections

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"
_WIDTH = 88


@dataclasses.dataclass(frozen=True)
class Needs:
  """What a table needs at one scale, beside its config's checkpoint."""

  model: str
  data: str
  scored_on: str
  hardware: str
  accelerators: int = 0  # that JAX has to see
  hours: float | None = None  # all rows, five seeds; none: nobody has timed it
  extras: tuple[str, ...] = ("report",)
  # A package that no extra can have -> how to install it.
  packages: Mapping[str, str] = dataclasses.field(default_factory=dict)
  # Path in the config -> how to get it.
  files: Mapping[str, str] = dataclasses.field(default_factory=dict)
  # Key of the config that has to be said -> what it is.
  settings: Mapping[str, str] = dataclasses.field(default_factory=dict)


def names() -> list[str]:
  """Names the tables that have a config, as `saw/tool_calling`."""
  return sorted(
    str(file.relative_to(CONFIGS).with_suffix(""))
    for file in CONFIGS.glob("*/*.py")
    if file.stem != "__init__"
  )


def load(table: str) -> ModuleType:
  """Imports the config of a table.

  Raises:
    ValueError: there is no such table; the message has the nearest one.
  """
  if table not in names():
    from saw_jax.tasks.base import nearest

    raise ValueError(f"no table {table!r}: {nearest(table, names())}")
  return importlib.import_module("configs." + table.replace("/", "."))


def rows(module: ModuleType) -> list[str]:
  """Names all runs that a table is made of."""
  asked = on_request(module)
  return [
    row for row in getattr(module, "RUNS", module.ROWS) if row not in asked
  ]


def on_request(module: ModuleType) -> list[str]:
  """Names the runs that a table has only if `--rows` names them."""
  return list(getattr(module, "ON_REQUEST", ()))


def config(
  module: ModuleType, row: str, scale: str
) -> ml_collections.ConfigDict:
  """Makes the config of a run, with the benchmarks that its table has.

  Raises:
    ValueError: an unknown run or scale; the message has the nearest one.
  """
  sweep = getattr(module, "RUNS", None)  # of a table that sweeps something
  if sweep is not None and row not in sweep:
    from saw_jax.tasks.base import nearest

    raise ValueError(f"no run {row!r}: {nearest(row, list(sweep))}")
  argument = sweep[row][-1] if sweep else f"row={row}"
  made = module.get_config(f"{argument},scale={scale}")
  benchmarks = getattr(module, "BENCHMARKS", {}).get(scale, {})
  made.evaluation.benchmarks = ml_collections.ConfigDict(benchmarks)
  return made


def metrics(module: ModuleType, scale: str) -> dict[str, str]:
  """Names the columns of a table: heading -> name in a run's final scores."""
  always = getattr(module, "METRICS", {})  # a sweep has one figure, METRIC
  return always | getattr(module, "METRICS_AT", {}).get(scale, {})


def published(
  module: ModuleType, scale: str | None = None
) -> dict[str, tuple[Mapping[str, str], ...]]:
  """Names the published cells that belong beside the rows of a table.

  Args:
    module: the config of the table.
    scale: one that it has; all of them by default.

  Returns:
    The fields of each cell, as `papers.select` takes them, by row.
  """
  at = getattr(module, "PUBLISHED_AT", {})
  found: dict[str, tuple[Mapping[str, str], ...]] = {}
  for rows_ in (module.PUBLISHED, *(at[s] for s in at if scale in (None, s))):
    for row, fields in rows_.items():
      cells = fields if isinstance(fields, tuple) else (fields,)
      before = found.get(row, ())
      found[row] = before + tuple(c for c in cells if c not in before)
  return found


def needs(module: ModuleType, scale: str) -> Needs:
  """Reads what a table needs at a scale."""
  return Needs(**module.NEEDS[scale])


def missing(module: ModuleType, scale: str) -> list[str]:
  """Says what a table lacks on this machine.

  Args:
    module: the config of the table.
    scale: one that it has.

  Returns:
    A sentence for each thing that is not there, with how to get it; none if
    the table can run here.
  """
  wanted = needs(module, scale)
  found = []
  for extra in wanted.extras:
    lacking = [name for name in _packages(extra) if not _is_installed(name)]
    if lacking:
      found.append(
        f"package {', '.join(lacking)}: pip install 'saw_jax[{extra}]'"
      )
  for name, how in wanted.packages.items():
    if not _is_installed(name):
      found.append(f"package {name}: {how}")
  values = config(module, rows(module)[0], scale)
  if values.checkpoint:
    from saw_jax.run import registry

    try:
      registry.find_checkpoint(values.checkpoint)
    except ImportError as error:
      found.append(str(error))
    except FileNotFoundError:
      name = pathlib.PurePath(values.checkpoint).name
      found.append(
        f"model {name}: put its Hugging Face directory at {values.checkpoint}, "
        "or say where it is with --checkpoint (docs/checkpoints.md)"
      )
  absent = {}
  for path, how in wanted.files.items():
    if not pathlib.Path(path).exists():
      absent.setdefault(how, []).append(path)
  for how, paths in absent.items():
    found.append(
      f"file{'s' if len(paths) > 1 else ''} {', '.join(paths)}: {how}"
    )
  for key, what in wanted.settings.items():
    value = values
    for part in key.split("."):
      value = value[part]
    if not value:
      found.append(f"setting config.{key}: {what}")
  if wanted.accelerators and wanted.accelerators > _count_accelerators():
    found.append(f"hardware: {wanted.hardware}")
  return found


def listing() -> str:
  """Describes all tables, ours and those that the papers print.

  Returns:
    Text for a terminal.
  """
  lines = []
  for table in names():
    module = load(table)
    more = len(on_request(module))
    lines += [
      f"{table}: {module.TITLE}, {len(rows(module))} runs"
      + (f", {more} more by --rows" if more else "")
    ]
    for scale in module.SCALES:
      wanted, lacks = needs(module, scale), missing(module, scale)
      hours = "not timed" if wanted.hours is None else f"{wanted.hours:g} h"
      state = "cannot run here, for want of" if lacks else "can run here"
      lines += [f"  {scale}: {state}"]
      lines += [_wrap(text, "    - ") for text in lacks]
      lines += [
        _wrap(
          f"{wanted.model}; {wanted.data}; scored on {wanted.scored_on}; "
          f"{wanted.hardware}, {hours}",
          "    ",
        )
      ]
    lines += [""]
  lines += ["Tables that the papers print, and where ours stand beside them"]
  return "\n".join([*lines, *_printed()])


def _printed() -> list[str]:
  """Every published table and benchmark, with the config that it is beside."""
  from saw_jax.reporting import papers

  cells = {paper: papers.read(paper) for paper in papers.available()}
  beside = {}
  for table in names():
    module = load(table)
    for fields in itertools.chain(*published(module).values()):
      cell = papers.select(cells[fields["paper"].lower()], **fields)[0]
      beside.setdefault((cell.paper, cell.table, cell.benchmark), table)
  lines = []
  for found in cells.values():
    lines += [f"  {found[0].paper}, arXiv:{found[0].arxiv}"]
    for name in dict.fromkeys(cell.table for cell in found):
      owners = {}
      for cell in found:
        if cell.table == name:
          key = (cell.paper, cell.table, cell.benchmark)
          owners.setdefault(beside.get(key, "not here"), {})[cell.benchmark] = 0
      said = "; ".join(
        f"{', '.join(benchmarks)}: {owner}"
        for owner, benchmarks in owners.items()
      )
      lines += [_wrap(f"{name}: {said}", "    ")]
  lines += ["  RLAVR (care): the numbers of its paper are not available"]
  return lines


def _wrap(text: str, indent: str) -> str:
  return textwrap.fill(
    text,
    _WIDTH,
    initial_indent=indent,
    subsequent_indent=" " * len(indent),
    break_long_words=False,
    break_on_hyphens=False,
  )


def _packages(extra: str) -> list[str]:
  """The packages of an extra, as the installed metadata has them."""
  try:
    wanted = importlib.metadata.requires("saw_jax") or []
  except importlib.metadata.PackageNotFoundError:
    return []  # a checkout that was never installed: nobody knows
  return [
    re.match(r"[\w.-]+", line)[0]
    for line in wanted
    if re.search(rf"""extra == ["']{extra}["']""", line)
  ]


def _is_installed(name: str) -> bool:
  try:
    importlib.metadata.distribution(name)
  except importlib.metadata.PackageNotFoundError:
    return False
  return True


@functools.cache
def _count_accelerators() -> int:
  """Asks in another process: this one must not take their memory."""
  program = "import jax; print(sum(d.platform != 'cpu' for d in jax.devices()))"
  done = subprocess.run(
    [sys.executable, "-c", program], capture_output=True, text=True, check=False
  )
  return int(done.stdout) if done.returncode == 0 else 0
