"""The scripts: what they say to a mistake, and that they run."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = "--config=configs/saw/tool_calling.py"
SCRIPTS = (
  "train",
  "evaluate",
  "doctor",
  "reproduce",
  "annotate",
  "draw_gap",
  "export",
  "generate",
  "show_episodes",
)

# Runs a script as its own process would, and says whether JAX came with it.
_RUN = """
import runpy, sys
sys.argv = sys.argv[1:]
sys.path[0] = {root!r}
status = 0
try:
  runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
  status = end.code or 0
print("jax" in sys.modules, status)
"""


def script(name: str, *words: str, cwd: pathlib.Path = ROOT, **environment):
  """Runs a script; returns its process."""
  return subprocess.run(
    [sys.executable, str(ROOT / "experiments" / f"{name}.py"), *words],
    cwd=cwd,
    env={
      **os.environ,
      "PYTHONPATH": str(ROOT),
      "JAX_PLATFORMS": "cpu",
      "COLUMNS": "80",
      **environment,
    },
    capture_output=True,
    text=True,
    check=False,
  )


def complaint(name: str, *words: str) -> str:
  """Runs a script with a mistake; returns the one line that it says."""
  done = script(name, *words)
  assert done.returncode == 2, done.stderr
  assert done.stdout == ""
  lines = done.stderr.splitlines()
  assert len(lines) == 1, done.stderr
  assert lines[0].startswith("error: ")
  return lines[0]


class TestMistakesInFlags:
  @pytest.mark.parametrize(
    ("words", "message"),
    [
      (
        [CONFIG, "--config.optimizer.lerning_rate=1"],
        "unknown key 'lerning_rate' in --config.optimizer.lerning_rate: did "
        "you mean 'learning_rate'?",
      ),
      (
        [CONFIG, "--config.optimzer.b1=0.5"],
        "unknown key 'optimzer' in --config.optimzer.b1: did you mean "
        "'optimizer'?",
      ),
      (
        [CONFIG, "--config.task.options.num_trian=7"],
        "unknown key 'num_trian' in --config.task.options.num_trian: a flag "
        "can only change what the config file sets",
      ),
      (
        [CONFIG, "--config.optimizer.learning_rate=fast"],
        "--config.optimizer.learning_rate=fast: could not convert",
      ),
      (
        [CONFIG + ":row=gdpo_swa"],
        "unknown row 'gdpo_swa': did you mean 'gdpo_saw'? There are gdpo_saw,",
      ),
      ([CONFIG + ":scael=tiny"], "'scael': did you mean 'scale'?"),
      (
        ["--config=configs/saw/no_such.py"],
        "there is no config file 'configs/saw/no_such.py'",
      ),
      (
        ["--config", "configs/no_such.py", "--config.optimizer.b1=0.5"],
        "there is no config file 'configs/no_such.py'",
      ),
      (["--config=saw_jax/run/arguments.py"], "no attribute 'get_config'"),
      ([CONFIG, "--wrokdir=x"], "'wrokdir'. Did you mean: workdir ?"),
      ([CONFIG, "stray"], "unexpected argument 'stray'; see --help"),
      ([], "--config must have a value"),
      ([CONFIG, "--resume_step=-1"], "-1 is not a non-negative integer"),
      ([CONFIG, "--seeds=1,x"], "--seeds is a list of integers, not '1,x'"),
      ([CONFIG, "--seeds=1,2,1"], "must differ from each other, not [1, 2, 1]"),
      ([CONFIG, "--seeds="], "--seeds must differ"),
      (
        [CONFIG, "--coordinator=host:1", "--process_id=0"],
        "needs --num_processes and --process_id",
      ),
      ([CONFIG, "--num_processes=2"], "go with --coordinator=host:port"),
      (
        [CONFIG, "--coordinator=host", "--num_processes=2", "--process_id=0"],
        "--coordinator is host:port or auto, not 'host'",
      ),
      (
        [CONFIG, "--coordinator=h:1", "--num_processes=2", "--process_id=2"],
        "--process_id=2 is not below --num_processes=2",
      ),
    ],
  )
  def test_train_says_what_is_wrong_in_one_line(self, words, message, tmp_path):
    assert message in complaint("train", f"--workdir={tmp_path / 'x'}", *words)
    assert not (tmp_path / "x").exists()

  def test_train_needs_a_place_to_write(self):
    assert "--workdir must have a value" in complaint("train", CONFIG)

  @pytest.mark.slow
  @pytest.mark.parametrize(
    ("word", "message"),
    [
      (
        "algorithm.weights=sawe",
        "unknown weighting 'sawe': did you mean 'saw'?",
      ),
      (
        "algorithm.loss=asimpo",
        "unknown loss 'asimpo': did you mean 'asympo'?",
      ),
      ("parallel.lift=mehsed", "unknown lift 'mehsed': did you mean 'meshed'?"),
      (
        "asynchronous.protocol=max_lagg",
        "unknown protocol 'max_lagg': did you mean 'max_lag'?",
      ),
      ("loop.pack_length=100", "loop.pack_length is 100, but a prompt and its"),
      (
        "rollout.length_groups=3",
        "rollout.length_groups is 3, and does not divide the 16 prompts",
      ),
      ("rollout.length_groups=0", "length_groups must be 1 or more, not 0"),
    ],
  )
  def test_an_unknown_name_in_the_config_is_said_before_anything_runs(
    self, tmp_path, word, message
  ):
    said = complaint(
      "train", f"--workdir={tmp_path / 'x'}", CONFIG, f"--config.{word}"
    )
    assert message in said
    assert not (tmp_path / "x").exists()

  def test_doctor_needs_something_to_look_at(self):
    assert "give --config=" in complaint("doctor")

  @pytest.mark.slow
  def test_evaluate_names_a_directory_without_a_run(self, tmp_path):
    message = complaint("evaluate", f"--workdir={tmp_path}")
    assert f"{tmp_path} is no run directory" in message

  def test_export_names_a_directory_without_a_run(self, tmp_path):
    message = complaint("export", f"--workdir={tmp_path}", "--output=x")
    assert f"{tmp_path} is no run directory" in message

  def test_export_leaves_a_model_that_is_there_alone(self, tmp_path):
    (tmp_path / "config.json").touch()
    message = complaint("export", "--workdir=x", f"--output={tmp_path}")
    assert f"there is a model in {tmp_path}" in message

  @pytest.mark.parametrize(
    ("words", "message"),
    [
      ([], "--model must have a value"),
      (["--model=smollm"], "there is no 'smollm': put the model there, or"),
      (["--model=.", "--top_k=-1"], "--top_k"),
      (["--model=."], "tokenizer.json: there is no such file"),
    ],
  )
  def test_generate_says_what_is_wrong_in_one_line(self, words, message):
    assert message in complaint("generate", "--prompt=x", *words)

  @pytest.mark.parametrize(
    ("words", "message"),
    [
      ([], "give --run=DIRECTORY or --ledger=FILE, and not both"),
      (["--run=x", "--ledger=y"], "and not both"),
      (["--run=no_such_run"], "there is no run directory no_such_run"),
      (["--run=docs"], "there is no ledger docs/labels.sqlite"),
      (["--ledger=README.md"], "README.md is damaged (file is not a database)"),
      (["--ledger=x", "--host=0.0.0.0"], "to this machine alone"),
      (["--ledger=x", "--port=70000"], "--port=70000"),
    ],
  )
  def test_annotate_says_what_is_wrong_in_one_line(self, words, message):
    assert message in complaint("annotate", *words)

  @pytest.mark.parametrize(
    ("words", "message"),
    [
      (["--table=saw/tool_caling"], "did you mean 'saw/tool_calling'?"),
      (
        ["--table=saw/tool_calling", "--rows=gdpo,gdop"],
        "unknown row 'gdop': did you mean 'gdpo'?",
      ),
      (
        ["--table=saw/tool_calling", "--scale=tyni"],
        "unknown scale 'tyni': did you mean 'tiny'?",
      ),
      (["--table=saw/tool_calling", "--seeds=0"], "--seeds=0"),
      (
        ["--table=asympo/math", "--rows=asympo_lag17"],
        "no run 'asympo_lag17': did you mean 'asympo_lag1",
      ),
      ([], "give one of --table=NAME, --all and --list"),
      (["--all", "--list"], "give one of --table=NAME, --all and --list"),
      (["--all", "--rows=gdpo"], "--rows is of one table: give --table=NAME"),
      (
        ["--table=saw/tool_calling", "--set=loop.num_stpes=3"],
        "--set=loop.num_stpes=3: no key 'num_stpes': did you mean 'num_steps'",
      ),
      (
        ["--table=saw/tool_calling", "--set=loop.num_steps.x=3"],
        "--set=loop.num_steps.x=3: no key 'x': nothing is below it",
      ),
      (
        ["--table=saw/tool_calling", "--set=loop.num_steps=many"],
        "--set=loop.num_steps=many: ",
      ),
      (
        ["--table=saw/tool_calling", "--set=loop.num_steps"],
        "--set=loop.num_steps: say KEY=VALUE",
      ),
      (["--all", "--scale=tyni"], "unknown scale 'tyni': did you mean 'tiny'?"),
    ],
  )
  def test_reproduce_says_what_is_wrong_in_one_line(self, words, message):
    assert message in complaint("reproduce", *words)

  @pytest.mark.slow
  def test_reproduce_names_a_checkpoint_that_is_not_there(self, tmp_path):
    done = script(
      "reproduce",
      "--table=saw/tool_calling",
      "--scale=small",
      "--checkpoint=nowhere",
      f"--runs={tmp_path}",
    )
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: --config.checkpoint: there is no 'nowhere'")

  def test_a_traceback_is_there_for_who_asks(self):
    done = script(
      "train", "--workdir=x", CONFIG + ":row=x", SAW_JAX_TRACEBACK="1"
    )
    assert done.returncode != 0
    assert "Traceback" in done.stderr


class TestBeforeJax:
  def loaded(self, name, *words):
    done = subprocess.run(
      [sys.executable, "-c", _RUN.format(root=str(ROOT))]
      + [str(ROOT / "experiments" / f"{name}.py"), *words],
      cwd=ROOT,
      env={**os.environ, "PYTHONPATH": str(ROOT)},
      capture_output=True,
      text=True,
      check=False,
    )
    has_jax, status = done.stdout.splitlines()[-1].split()
    return has_jax == "True", int(status)

  @pytest.mark.parametrize(
    "words",
    [
      ["--workdir=x", CONFIG, "--config.optimizer.lerning_rate=1"],
      ["--workdir=x", CONFIG + ":row=gdpo_swa"],
      ["--workdir=x", CONFIG, "--wrokdir=x"],
      ["--workdir=x", CONFIG, "stray"],
      [CONFIG],
    ],
  )
  def test_a_mistake_in_the_flags_of_train_is_answered(self, words):
    assert self.loaded("train", *words) == (False, 2)

  @pytest.mark.parametrize(
    ("name", "words"),
    [
      ("reproduce", ["--table=saw/tool_calling", "--rows=gdop"]),
      ("reproduce", ["--table=saw/tool_caling"]),
      ("doctor", [CONFIG, "--config.task.nmae=x"]),
      ("doctor", []),
      ("evaluate", []),
      ("export", []),
      ("generate", ["--model=x", "--prompt="]),
    ],
  )
  def test_so_is_one_in_the_others(self, name, words):
    assert self.loaded(name, *words) == (False, 2)

  @pytest.mark.parametrize("name", SCRIPTS)
  def test_help_is_given(self, name):
    assert self.loaded(name, "--help") == (False, 0)

  def test_the_check_sees_jax_where_it_is(self):
    # An unknown name is found by building, after JAX.
    assert self.loaded(
      "train", "--workdir=x", CONFIG, "--config.algorithm.weights=sawe"
    ) == (True, 2)


class TestHelp:
  @pytest.mark.parametrize("name", SCRIPTS)
  def test_it_has_the_usage_and_the_flags(self, name):
    done = script(name, "--help")
    assert done.returncode == 0
    assert f"python experiments/{name}.py" in done.stdout
    wanted = {
      "doctor": "--config",
      "reproduce": "--table",
      "annotate": "--ledger",
      "draw_gap": "--group_size",
      "generate": "--model",
    }
    assert wanted.get(name, "--workdir") in done.stdout
    assert done.stderr == ""
