"""Settings that have to be made before JAX starts."""

import gc
import importlib.metadata
import os
import pathlib
import subprocess

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the time of the suite is compiling, and its programs are small: what
# optimising them takes is more than what it saves.
_FLAGS = ["--xla_backend_optimization_level=0"]
# Other releases may not know these flags, and stop at them.
if importlib.metadata.version("jaxlib").startswith("0.10."):
  _FLAGS += [
    # A program with collectives that is read from the cache below, not
    # compiled, may start them in another order on each device, and hangs. With
    # this scheduler off it does not.
    "--xla_cpu_enable_concurrency_optimized_scheduler=false",
    # Halves the time of compiling a small program.
    "--xla_cpu_use_fusion_emitters=false",
    # A third less again, where a program is generated in one part and not in up
    # to 32. The flags are read anew for each, as golden runs want the 32.
    "--xla_flags_reset=true",
    "--xla_cpu_parallel_codegen_split_count=1",
  ]
# A worker has them from the process that started it.
_BEFORE = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = _BEFORE + "".join(
  f" {flag}" for flag in _FLAGS if flag not in _BEFORE
)

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

from tests.shared_programs import PROGRAMS, call_fast, share_contexts  # noqa: E402

jax.jit, jax.pmap = map(PROGRAMS.share, (jax.jit, jax.pmap))
# An eighth of the time of a small program and half of the memory, in a part of
# JAX that other releases may have in another form.
if jax.__version__.startswith("0.10."):
  share_contexts()
  call_fast()

# Many tests run the same small programs, each with functions of its own: what
# one has compiled, the others read, however little it was. It halves the time
# of the whole suite. The environment says it to the programs that tests start,
# too.
_CACHE = pathlib.Path(__file__).parents[1] / ".cache" / "compiled_tests"
for name, value in (
  ("JAX_COMPILATION_CACHE_DIR", str(_CACHE)),
  ("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0"),
  ("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1"),
):
  os.environ.setdefault(name, value)
jax.config.update(
  "jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"]
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

# Four devices, so that meshes, `pmap` and `shard_map` are tested for real.
jax.config.update("jax_num_cpu_devices", 4)
# Where each operation was called is found anew for each, and nobody reads it.
jax.config.update("jax_traceback_in_locations_limit", 0)
# `[B, T] + [T]` is a bug more often than a wish: ranks are written out.
jax.config.update("jax_numpy_rank_promotion", "raise")
# What was imported stays: the collector need not look at it again and again.
gc.collect()
gc.freeze()
gc.set_threshold(20_000, 20, 50)
# A key that is used twice raises.
jax.config.update("jax_debug_key_reuse", True)

# The first example compiles, so a deadline would measure the compiler.
hypothesis.settings.register_profile(
  "local", deadline=None, max_examples=30, print_blob=True
)
hypothesis.settings.register_profile(
  "ci", deadline=None, max_examples=30, derandomize=True, database=None
)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(autouse=True)
def own_programs(request):
  """Nothing is shared with a test that patches."""
  if "monkeypatch" not in request.fixturenames:
    yield
    return
  shared, PROGRAMS.scope = PROGRAMS.scope, object()
  yield
  PROGRAMS.scope = shared


# What other libraries load, which need not be there.
collect_ignore = ["contrib/worlds"]


def pytest_addoption(parser):
  parser.addoption(
    "--since",
    metavar="COMMIT",
    help="leave out tests of task families that nothing changed since then "
    "could break: neither the family nor anything outside of families changed",
  )


def untouched_families(changed: list[str], families: set[str]) -> set[str]:
  """The task families whose tests a change of these files cannot break."""
  found = set()
  for path in changed:
    parts = pathlib.PurePath(path).parts
    is_code = path.endswith((".py", ".json", ".jsonl", ".txt"))
    if parts[:2] in (("saw_jax", "tasks"), ("tests", "tasks")):
      if len(parts) > 3 and parts[2] in families:
        found.add(parts[2])
        continue
    if is_code and parts[0] in ("saw_jax", "tests", "configs", "setup.py"):
      return set()
  return families - found


def _deselect_untouched(config, items) -> None:
  root = config.rootpath
  command = ["git", "diff", "--name-only", config.getoption("--since"), "--"]
  done = subprocess.run(command, cwd=root, capture_output=True, text=True)
  if done.returncode:
    raise pytest.UsageError(f"--since: {done.stderr.strip().splitlines()[0]}")
  families = {
    path.parent.name
    for path in root.glob("tests/tasks/*/*_test.py")
    if path.parent.name != "workers"
  }
  untouched = untouched_families(done.stdout.split(), families)
  folders = [root / "tests" / "tasks" / name for name in untouched]
  left_out = [item for item in items if item.path.parent in folders]
  config.hook.pytest_deselected(items=left_out)
  items[:] = [item for item in items if item not in set(left_out)]


def pytest_collection_modifyitems(config, items):
  """Puts the slow tests last, so that a mistake shows in the first minute.

  Notebooks are slow, each in a process of its own.
  """
  for item in items:
    if item.path.suffix == ".ipynb":
      item.add_marker("slow")
  if config.getoption("--since"):
    _deselect_untouched(config, items)
  # Then the longest before the others: were one the last, a worker would wait.
  longest = ("notebooks/", "processes_test", "two_hosts", "Wheel", "every_row")

  def place(item) -> int:
    is_long = any(name in item.nodeid for name in longest)
    return 2 - is_long if item.get_closest_marker("slow") else 0

  items.sort(key=place)
