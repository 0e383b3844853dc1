"""The tables that there are, and what each lacks on this machine."""

import functools
import importlib.metadata
import operator
import pathlib
import re
import subprocess
import sys
import textwrap

from saw_jax.reporting import tables
from saw_jax.reporting.table import Needs, Table
from saw_jax.run import config
from saw_jax.tasks.base import nearest

names = config.names


def load(name: str) -> Table:
  """The table of a config; the nearest name where there is none."""
  if name not in names():
    raise ValueError(f"no table {name!r}: {nearest(name, names())}")
  return config.module(name).TABLE


def missing(table: Table, scale: str) -> list[str]:
  """A sentence for each thing that is not here, with how to get it."""
  needs, found = table.needs[scale], []
  for extra in needs.extras:
    lacking = [name for name in _packages(extra) if not _is_installed(name)]
    if lacking:
      how = f"pip install 'saw_jax[{extra}]'"
      found.append(f"package {', '.join(lacking)}: {how}")
  for name, how in needs.packages.items():
    if not _is_installed(name):
      found.append(f"package {name}: {how}")
  values = table.config(table.default_runs[0], scale)
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
  absent: dict[str, list[str]] = {}
  for path, how in needs.files.items():
    if not pathlib.Path(path).exists():
      absent.setdefault(how, []).append(path)
  for how, paths in absent.items():
    many = "s" if len(paths) > 1 else ""
    found.append(f"file{many} {', '.join(paths)}: {how}")
  for key, what in needs.settings.items():
    if not functools.reduce(operator.getitem, key.split("."), values):
      found.append(f"setting config.{key}: {what}")
  if needs.hardware != Needs.hardware and not has_accelerator():
    found.append(f"hardware: {needs.hardware}")
  return found


def listing() -> str:
  """Describes all tables, ours and those that the papers print."""
  lines, beside = [], {}
  for name in names():
    table = load(name)
    more = len(table.on_request)
    lines.append(
      f"{name}: {table.title}, {len(table.default_runs)} runs"
      + (f", {more} more by --rows" if more else "")
    )
    for scale, needs in table.needs.items():
      lacks = missing(table, scale)
      hours = "not timed" if needs.hours is None else f"{needs.hours:g} h"
      state = "cannot run here, for want of" if lacks else "can run here"
      lines += [f"  {scale}: {state}"]
      lines += [_wrap(text, "    - ") for text in lacks]
      about = f"{needs.model}; {needs.data}; scored on {needs.scored_on}"
      lines.append(_wrap(f"{about}; {needs.hardware}, {hours}", "    "))
    lines.append("")
    for fields in (cell for row in table.cells().values() for cell in row):
      cell = tables.find(fields)
      beside.setdefault((cell.paper, cell.table, cell.benchmark), name)
  lines.append("Tables that the papers print, and where ours stand beside them")
  for cells in map(tables.read, tables.available()):
    lines.append(f"  {cells[0].paper}, arXiv:{cells[0].arxiv}")
    # Printed table -> the config that is beside it -> benchmarks, in order.
    owners: dict[str, dict[str, dict[str, None]]] = {}
    for cell in cells:
      owner = beside.get((cell.paper, cell.table, cell.benchmark), "not here")
      of_table = owners.setdefault(cell.table, {})
      of_table.setdefault(owner, {})[cell.benchmark] = None
    for name, found in owners.items():
      said = [f"{', '.join(of)}: {owner}" for owner, of in found.items()]
      lines.append(_wrap(f"{name}: {'; '.join(said)}", "    "))
  lines.append("  RLAVR (care): the numbers of its paper are not available")
  return "\n".join(lines)


def _wrap(text: str, indent: str) -> str:
  looks = {"break_long_words": False, "break_on_hyphens": False}
  looks |= {"initial_indent": indent, "subsequent_indent": " " * len(indent)}
  return textwrap.fill(text, width=88, **looks)


def _packages(extra: str) -> list[str]:
  """The packages of an extra, as the installed metadata has them."""
  try:
    wanted = importlib.metadata.requires("saw_jax") or []
  except importlib.metadata.PackageNotFoundError:
    return []  # a checkout that was never installed: nobody knows
  is_of_extra = re.compile(rf"""extra == ["']{extra}["']""").search
  return [re.match(r"[\w.-]+", line)[0] for line in filter(is_of_extra, wanted)]


def _is_installed(name: str) -> bool:
  try:
    importlib.metadata.distribution(name)
  except importlib.metadata.PackageNotFoundError:
    return False
  return True


@functools.cache
def has_accelerator() -> bool:
  """Asks in another process: this one must not take their memory."""
  program = "import jax; print(any(d.platform != 'cpu' for d in jax.devices()))"
  done = subprocess.run(
    [sys.executable, "-c", program], capture_output=True, text=True, check=False
  )
  return done.stdout.strip() == "True"
