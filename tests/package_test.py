"""What holds for the package as a whole, whatever its modules do."""

import ast
import importlib.metadata
import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

import saw_jax

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "saw_jax"
PATHS = sorted(PACKAGE.glob("**/*.py"))
MODULES = [path for path in PATHS if path.name != "__init__.py"]
# Messages between a run and its own worker processes; never a file.
MAY_PICKLE = (
  "tasks/workers/environment_pool.py",
  "tasks/workers/environment_worker.py",
  "tasks/workers/grading.py",
  "tasks/workers/worker.py",
)
# Sums and names need no source; formulas do.
FORMULAS = [
  path
  for path in MODULES
  if path.relative_to(PACKAGE).parts[0].removesuffix(".py")
  in (
    "weighting",
    "advantages",
    "losses",
    "stale_losses",
    "world_model",
    "labels",
  )
]


def _name(path: pathlib.Path) -> str:
  return path.relative_to(PACKAGE).as_posix()


def _tree(path: pathlib.Path) -> ast.Module:
  return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _public_functions(tree: ast.Module) -> list[ast.FunctionDef]:
  return [
    node
    for node in tree.body
    if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
  ]


def _arguments(function: ast.FunctionDef) -> list[str]:
  every = function.args
  named = [*every.posonlyargs, *every.args, *every.kwonlyargs]
  starred = [one for one in (every.vararg, every.kwarg) if one is not None]
  return [one.arg for one in [*named, *starred]]


def _run(program: str, cwd: pathlib.Path) -> str:
  """Runs a program in a fresh interpreter that can import the package."""
  environment = {**os.environ, "PYTHONPATH": str(ROOT)}
  environment.pop("PYTHONDONTWRITEBYTECODE", None)
  environment["PYTHONPYCACHEPREFIX"] = str(cwd.with_name("pycache"))
  done = subprocess.run(
    [sys.executable, "-c", program],
    cwd=cwd,
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert not done.stderr, done.stderr
  return done.stdout.strip()


class TestDependencies:
  def test_the_core_is_seven(self):
    tree = _tree(ROOT / "setup.py")
    (core,) = (
      ast.literal_eval(node.value)
      for node in tree.body
      if isinstance(node, ast.Assign) and node.targets[0].id == "_CORE"
    )
    names = [re.split(r"[<>=]", requirement)[0] for requirement in core]
    assert names == [
      "jax",
      "flax",
      "optax",
      "orbax-checkpoint",
      "chex",
      "ml-collections",
      "numpy",
    ]
    for requirement in core:
      assert ">=" in requirement and "<" in requirement, requirement

  def test_absl_comes_with_the_core(self):
    for name in ("chex", "ml-collections"):
      wanted = importlib.metadata.requires(name)
      assert any(re.match(r"absl[-_]py\b", line) for line in wanted), name

  def test_rich_comes_with_the_core(self):
    assert any(
      r.startswith("rich") for r in importlib.metadata.requires("flax")
    )


class TestImport:
  @pytest.fixture
  def empty(self, tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder

  def test_it_takes_less_than_two_seconds(self, empty):
    # The one place where a time is asserted: the promise is a time. It takes
    # some milliseconds, so that a busy machine does not reach the bound.
    seconds = _run(
      "import time; start = time.perf_counter(); import saw_jax; "
      "print(time.perf_counter() - start)",
      empty,
    )
    assert float(seconds) < 2.0

  def test_it_loads_nothing_else(self, empty):
    heavy = ["jax", "flax", "optax", "orbax", "chex", "numpy", "absl"]
    loaded = _run(
      "import sys; before = set(sys.modules); import saw_jax; "
      f"print(sorted(set(sys.modules) & set({heavy})))",
      empty,
    )
    assert loaded == "[]"

  @pytest.mark.slow
  def test_no_module_has_an_effect_when_imported(self, empty):
    # No device is asked for, no setting of JAX changes, the environment stays,
    # no handler of the log is added, and no file is written.
    names = [
      "saw_jax." + _name(path).removesuffix(".py").replace("/", ".")
      for path in MODULES
    ]
    program = f"""
import importlib, logging, os, signal
import jax, flax, optax, chex
import orbax.checkpoint
settings, environment = dict(jax.config.values), dict(os.environ)
handlers = list(logging.root.handlers)
interrupt = signal.getsignal(signal.SIGINT)
for name in {names}:
  importlib.import_module(name)
from jax._src import xla_bridge
assert not xla_bridge._backends, xla_bridge._backends
assert dict(jax.config.values) == settings
assert dict(os.environ) == environment
assert logging.root.handlers == handlers
assert signal.getsignal(signal.SIGINT) is interrupt
"""
    assert _run(program, empty) == ""
    assert list(empty.iterdir()) == []

  def test_modules_are_loaded_when_asked_for(self, empty):
    program = "import saw_jax; print(saw_jax.reporting.__name__)"
    assert _run(program, empty) == "saw_jax.reporting"

  def test_an_unknown_name_is_an_attribute_error(self):
    with pytest.raises(AttributeError, match="'lossses'"):
      saw_jax.lossses  # noqa: B018

  def test_the_names_are_those_of_the_files(self):
    found = {
      path.stem
      for path in PACKAGE.iterdir()
      if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert sorted(saw_jax.__all__) == sorted(found - {"__init__"})
    assert set(saw_jax.__all__) <= set(dir(saw_jax))


class TestFiles:
  def test_every_folder_is_a_package(self):
    for folder in {path.parent for path in PATHS}:
      assert (folder / "__init__.py").is_file(), folder

  @pytest.mark.parametrize("path", MODULES, ids=_name)
  def test_every_module_has_tests(self, path):
    has_code = any(
      isinstance(node, ast.FunctionDef | ast.ClassDef)
      for node in _tree(path).body
    )
    inside = path.relative_to(PACKAGE)
    test = ROOT / "tests" / inside.with_name(f"{inside.stem}_test.py")
    assert test.is_file() or not has_code, (
      f"{test.relative_to(ROOT)} is missing"
    )

  @pytest.mark.parametrize("path", PATHS, ids=_name)
  def test_no_path_of_a_machine_and_no_pickle(self, path):
    text = path.read_text(encoding="utf-8")
    machine = re.search(r"""["'\s(=](/(work|root|home|tmp|mnt)/\S*)""", text)
    assert machine is None, machine[1]
    tops = {
      alias.name.partition(".")[0]
      for node in ast.walk(_tree(path))
      if isinstance(node, ast.Import)
      for alias in node.names
    } | {
      (node.module or "").partition(".")[0]
      for node in ast.walk(_tree(path))
      if isinstance(node, ast.ImportFrom)
    }
    if _name(path) not in MAY_PICKLE:
      assert not tops & {"pickle", "cloudpickle", "dill", "joblib", "shelve"}
    assert "allow_pickle=True" not in text


class TestDocstrings:
  @pytest.mark.parametrize("path", PATHS, ids=_name)
  def test_public_functions_say_what_they_take_and_give(self, path):
    for function in _public_functions(_tree(path)):
      text = ast.get_docstring(function)
      assert text, f"{function.name} has no docstring"
      arguments = _arguments(function)
      if not arguments:
        continue
      section = text.partition("\nArgs:\n")[2]
      for argument in arguments:
        assert re.search(
          rf"^  (`?\w+`?, )*`?\*{{0,2}}{argument}\b", section, re.MULTILINE
        ), f"{function.name} does not describe {argument}"
      gives = function.returns is not None and not (
        isinstance(function.returns, ast.Constant)
        and function.returns.value is None
      )
      if gives:
        assert re.search(r"^(Returns|Yields):$", text, re.MULTILINE), (
          f"{function.name} does not say what it returns"
        )

  @pytest.mark.parametrize("path", PATHS, ids=_name)
  def test_public_functions_are_annotated(self, path):
    for function in _public_functions(_tree(path)):
      every = function.args
      for one in [*every.posonlyargs, *every.args, *every.kwonlyargs]:
        assert one.annotation is not None, f"{function.name}, {one.arg}"
      assert function.returns is not None, f"{function.name}, what it returns"

  def test_formulas_name_their_source(self):
    assert FORMULAS
    for path in FORMULAS:
      tree = _tree(path)
      general = ast.get_docstring(tree) or ""
      for function in _public_functions(tree):
        text = general + (ast.get_docstring(function) or "")
        assert re.search(r"References:|arXiv|https?://", text), (
          f"{_name(path)}, {function.name}: where is it from?"
        )


@pytest.mark.slow
def test_the_wheel_holds_the_package_alone(tmp_path):
  source = tmp_path / "source"
  source.mkdir()
  for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
    shutil.copy(ROOT / name, source / name)
  # A neighbour that must stay out.
  (source / "configs").mkdir()
  (source / "configs" / "__init__.py").touch()
  ignored = shutil.ignore_patterns("__pycache__")
  shutil.copytree(PACKAGE, source / "saw_jax", ignore=ignored)
  subprocess.run(
    [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    + ["--wheel-dir", str(tmp_path), str(source)],
    check=True,
  )
  (wheel,) = tmp_path.glob("*.whl")
  assert wheel.name.startswith(f"saw_jax-{saw_jax.__version__}-")
  with zipfile.ZipFile(wheel) as archive:
    names = {n for n in archive.namelist() if ".dist-info/" not in n}
  expected = {
    path.relative_to(ROOT).as_posix()
    for path in PACKAGE.glob("**/*")
    if path.is_file() and "__pycache__" not in path.parts
  }
  assert names == expected
