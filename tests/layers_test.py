"""Imports go one way: the rooms of docs/architecture.md, held with `ast`."""

import ast
import pathlib
import sys
from typing import NamedTuple

import pytest

from tests import helpers

ROOT = pathlib.Path(__file__).parents[1]
STDLIB = frozenset(sys.stdlib_module_names)
# What pure functions of arrays may take from the standard library: no files,
# no clock, no logging, no environment, no random state.
PURE_STDLIB = frozenset(
  ["collections", "dataclasses", "enum", "functools", "itertools", "math"]
  + ["operator", "types", "typing"]
)
MATHEMATICS = (
  "settings types reductions weighting advantages component_advantages "
  "step_advantages diagnostics losses stale_losses trust_regions trust_masks "
  "world_model labels"
)
GAMES = "alfworld textworld textworld_express py4j"
ENVIRONMENTS = "gymnasium openenv jsonschema verifiers pydantic"


class Room:
  """What the modules of a room may import.

  `optional` packages come with an extra: they may be imported inside a function
  only, so that the core works without them.
  """

  def __init__(self, modules, rooms="", packages="", optional=""):
    self.modules, self.rooms = modules.split(), rooms.split()
    self.packages, self.optional = packages.split(), optional.split()


ROOMS = {
  "naming": Room("naming asking", "naming", "", "httpx"),
  "mathematics": Room(MATHEMATICS, "mathematics", "jax chex numpy"),
  "models": Room(
    "models",
    "mathematics models tasks",
    "jax flax numpy",
    "gguf jinja2 safetensors tokenizers",
  ),
  "rollout": Room("rollout", "mathematics models rollout", "jax flax numpy"),
  "tasks": Room(
    "tasks tokenizer tokenizer_files",
    "tasks",
    "numpy",
    f"{GAMES} bfcl_eval bm25s gguf httpx jinja2 math_verify pyarrow "
    "reasoning_gym rouge_score starlette sympy tokenizers uvicorn cloudpickle",
  ),
  "training": Room(
    "training",
    "mathematics models rollout training",
    "jax flax numpy optax orbax",
  ),
  "edges": Room(
    "algorithms", "mathematics models rollout training edges", "numpy"
  ),
  "annotate": Room("annotate", "tasks annotate", "numpy", "starlette uvicorn"),
  "run": Room(
    "run",
    "mathematics models rollout tasks training edges annotate run",
    "jax flax numpy optax orbax etils fsspec rich ml_collections absl",
    "tensorboardX trackio wandb",
  ),
  "reporting": Room(
    "reporting",
    "reporting run tasks edges mathematics",
    "absl numpy ml_collections",
    "markdown_it matplotlib scipy",
  ),
  "ahead": Room(
    "ahead",
    "mathematics models rollout tasks training run ahead",
    "jax flax numpy",
  ),
  "commands": Room(
    "commands __main__",
    "mathematics models rollout tasks training annotate run reporting ahead "
    "commands door",
    "absl jax ml_collections",
    "submitit",
  ),
  "door": Room(
    "api",
    "tasks training annotate run reporting commands",
    "ml_collections numpy",
  ),
  "contrib": Room(
    "contrib",
    "mathematics models rollout tasks training edges run contrib",
    "jax flax numpy",
    f"{GAMES} {ENVIRONMENTS} lm_eval torch trl tunix",
  ),
  "configs": Room(""),
}
# Modules that may import a package beside their room's row: a probe is a small
# network, and its state a tree that is saved.
ALSO_PACKAGES = {
  "saw_jax.labels.care": {"flax"},
  "saw_jax.labels.probes": {"flax"},
  "saw_jax.labels.replay": {"flax"},
}


class Import(NamedTuple):
  """One imported name: `saw_jax.losses`, `jax.numpy`, `os`."""

  name: str
  line: int
  lazy: bool  # in a function, or for the type checker only

  @property
  def top(self) -> str:
    return self.name.partition(".")[0]


def find_imports(tree: ast.AST, lazy: bool = False) -> list[Import]:
  """Every import of a module, wherever it stands in it."""
  found = []
  for node in ast.iter_child_nodes(tree):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.level:
      names = ["." * node.level]
    elif isinstance(node, ast.ImportFrom):
      names = [node.module]
      if node.module in ("saw_jax", "absl"):  # the names are modules
        names = [f"{node.module}.{alias.name}" for alias in node.names]
    else:
      is_lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or (
        isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
      )
      found += find_imports(node, lazy or is_lazy)
      continue
    found += [Import(name, node.lineno, lazy) for name in names]
  return found


def room_of(module: str) -> str | None:
  """The room of `saw_jax.<module>`, or None."""
  top = module.removeprefix("saw_jax.").partition(".")[0]
  owners = [name for name, room in ROOMS.items() if top in room.modules]
  return owners[0] if owners else None


def objection(module: str, imported: Import) -> str | None:
  """Says why a module may not have an import, or None when it may."""
  room = ROOMS[room_of(module)]
  if imported.name.startswith("."):
    return "relative import"
  if imported.top == "saw_jax":
    owner = room_of(imported.name)
    if owner in ("naming", *room.rooms):
      return None
    return f"{room_of(module)} may not import {owner or imported.name}"
  if imported.top in STDLIB:
    if room_of(module) != "mathematics" or imported.top in PURE_STDLIB:
      return None
    return f"{imported.name} has no place in a room of pure functions"
  if imported.top in {*room.packages, *ALSO_PACKAGES.get(module, ())}:
    return None
  if imported.top in room.optional:
    if imported.lazy:
      return None
    return f"{imported.name} is optional: import it inside the function"
  return f"{room_of(module)} may not import {imported.name}"


def _imports_of(path: pathlib.Path) -> list[Import]:
  return find_imports(ast.parse(path.read_text(encoding="utf-8")))


MODULES = {
  ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(
    ".__init__"
  ): path
  for path in sorted(ROOT.glob("saw_jax/**/*.py"))
}
INSIDE = sorted(set(MODULES) - {"saw_jax"})


class TestRooms:
  def test_the_rooms_are_those_of_the_architecture_page(self):
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.partition("## 1. The rooms")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert [row.split("|")[1].strip() for row in rows[2:]] == list(ROOMS)

  @pytest.mark.parametrize("module", INSIDE)
  def test_imports_stay_within_the_room(self, module):
    assert room_of(module) is not None, f"{module} is in no room"
    objections = [
      f"line {imported.line}: {text}"
      for imported in _imports_of(MODULES[module])
      if (text := objection(module, imported))
    ]
    assert not objections, "\n".join([module, *objections])

  def test_task_families_do_not_know_each_other(self):
    paths = ROOT.glob("saw_jax/tasks/*/task.py")
    families = {path.parent.name for path in paths}
    assert len(families) == 9
    for module in INSIDE:
      _, _, inside = module.partition("saw_jax.tasks.")
      family = inside.partition(".")[0]
      if family in families:
        others = {f"saw_jax.tasks.{name}" for name in families - {family}}
        for found in _imports_of(MODULES[module]):
          parent = ".".join(found.name.split(".")[:3])
          assert parent not in others, f"{module}, line {found.line}"

  def test_the_package_itself_imports_nothing(self):
    names = {found.top for found in _imports_of(MODULES["saw_jax"])}
    assert names <= {"importlib", "pkgutil", "types"}

  def test_mathematics_neither_prints_nor_opens(self):
    for module in [x for x in INSIDE if room_of(x) == "mathematics"]:
      tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
      calls = {
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
      }
      assert not calls & {"open", "print", "input", "exec", "eval"}, module

  def test_configs_are_data(self):
    paths = sorted(ROOT.glob("configs/**/*.py"))
    assert paths
    for path in paths:
      tops = {found.top for found in _imports_of(path)}
      # "": each other
      assert tops <= STDLIB | {"", "saw_jax", "ml_collections", "numpy"}, path

  def test_every_exception_is_still_there(self):
    for module, packages in ALSO_PACKAGES.items():
      tops = {found.top for found in _imports_of(MODULES[module])}
      assert packages <= tops, module

  @pytest.mark.parametrize("room", ["tasks", "annotate"])
  def test_a_room_without_jax_loads_without_jax(self, room):
    modules = [name for name in INSIDE if room_of(name) == room]
    program = "\n".join(f"import {name}" for name in modules)
    assert helpers.loaded(program, "jax", "jaxlib") == set()


# The rules above would be of no use if they could not fail.
REFUSED = """
saw_jax.losses: import optax
saw_jax.losses: import flax.linen as nn
saw_jax.labels.gap: import flax.struct
saw_jax.labels.care: import optax
saw_jax.losses: from saw_jax import models
saw_jax.losses: import logging
saw_jax.losses: def f(): import time
saw_jax.losses: from . import reductions
saw_jax.rollout.generate: from saw_jax import tokenizer
saw_jax.tasks.base: import jax
saw_jax.tasks.base: from saw_jax import reductions
saw_jax.tokenizer: import tokenizers
saw_jax.training.update: from saw_jax.tasks import base
saw_jax.training.update: from saw_jax import algorithms
saw_jax.training.update: import chex
saw_jax.reporting.plots: import matplotlib
saw_jax.algorithms: from saw_jax.tasks import base
saw_jax.training.update: def f(): import torch
saw_jax.contrib.trl: import torch
saw_jax.algorithms: from saw_jax import nowhere
"""
ALLOWED = """
saw_jax.losses: import jax.numpy as jnp
saw_jax.losses: from collections.abc import Callable
saw_jax.training.update: import optax
saw_jax.labels.probes: import flax.linen as nn
saw_jax.run.loop: from saw_jax.tasks import grading
saw_jax.reporting.plots: def f(): import matplotlib
saw_jax.contrib.tunix: def f(): from tunix.rl import common
saw_jax.reporting.plots: if TYPE_CHECKING: import matplotlib
"""


@pytest.mark.parametrize(
  ("line", "is_refused"),
  [(line, True) for line in REFUSED.strip().splitlines()]
  + [(line, False) for line in ALLOWED.strip().splitlines()],
)
def test_the_checker_objects_where_it_must(line, is_refused):
  module, _, source = line.partition(": ")
  (imported,) = find_imports(ast.parse(source))
  assert bool(objection(module, imported)) == is_refused


def test_a_module_in_no_room_is_seen():
  assert room_of("saw_jax.utils") is None
