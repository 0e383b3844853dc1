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


# What is wrong, and a word of the one line that answers it.
TRAIN = f"""
{CONFIG} --config.optimizer.lerning_rate=1 | 'learning_rate'
{CONFIG} --config.optimzer.learning_rate=0.5 | 'optimizer'
{CONFIG} --config.loop.num_steps.x=1 | nothing is below it
{CONFIG} --config.optimizer.learning_rate=fast | a number, not 'fast'
{CONFIG}:row=gdpo_swa | 'gdpo_saw'
{CONFIG}:scael=tiny | 'scale'
--config=saw/tool_caling | 'saw/tool_calling'
--config=configs/saw/no_such.py | no config file 'configs/saw/no_such.py'
--config configs/no_such.py --config.optimizer.b1=0.5 | configs/no_such.py
--config=saw_jax/run/arguments.py | no function get_config
{CONFIG} --wrokdir=x | Did you mean: workdir
{CONFIG} stray | unexpected argument 'stray'
 | --config must have a value
{CONFIG} --resume_step=-1 | -1 is not a non-negative integer
{CONFIG} --seeds=1,x | not '1,x'
{CONFIG} --seeds=1,2,1 | not [1, 2, 1]
{CONFIG} --seeds= | --seeds must differ
{CONFIG} --coordinator=host:1 --process_id=0 | needs --num_processes
{CONFIG} --num_processes=2 | go with --coordinator
{CONFIG} --coordinator=host --num_processes=2 --process_id=0 | not 'host'
{CONFIG} --coordinator=h:1 --num_processes=2 --process_id=2 | not below
"""
OTHERS = """
train --config=saw/tool_calling | --workdir must have a value
doctor | give --config=
export --workdir=docs --output=x | docs is no run directory
export --workdir=x --output=tests/data/model | there is a model in
evaluate --workdir=docs | docs is no run directory
show_episodes --workdir=docs --out=x | docs is no run directory
generate --prompt=x | --model must have a value
generate --prompt=x --model=smollm | there is no 'smollm'
generate --prompt=x --model=. --top_k=-1 | --top_k
generate --prompt=x --model=. | tokenizer.json: there is no such file
annotate | and not both
annotate --run=x --ledger=y | and not both
annotate --run=no_such_run | there is no run directory no_such_run
annotate --run=docs | there is no ledger docs/labels.sqlite
annotate --ledger=README.md | README.md is damaged
annotate --ledger=x --host=0.0.0.0 | to this machine alone
annotate --ledger=x --port=70000 | --port=70000
reproduce --table=saw/tool_caling | 'saw/tool_calling'
reproduce --table=saw/tool_calling --rows=gdpo,gdop | 'gdpo'
reproduce --table=saw/tool_calling --scale=tyni | 'tiny'
reproduce --table=saw/tool_calling --seeds=0 | --seeds=0
reproduce --table=asympo/math --rows=asympo_lag17 | 'asympo_lag1
reproduce | give one of --table=NAME, --all and --list
reproduce --all --list | give one of --table=NAME, --all and --list
reproduce --all --rows=gdpo | --rows is of one table
reproduce --table=saw/tool_calling --set=loop.num_stpes=3 | 'num_steps'
reproduce --table=saw/tool_calling --set=loop.num_steps.x=3 | nothing is below
reproduce --table=saw/tool_calling --set=loop.num_steps=many | =many:
reproduce --table=saw/tool_calling --set=loop.num_steps | say KEY=VALUE
reproduce --all --scale=tyni | 'tiny'
"""


def lines(text: str) -> list[tuple[str, str]]:
  return [
    tuple(part.strip() for part in line.split("|"))
    for line in text[1:].splitlines()
  ]


class TestMistakesInFlags:
  @pytest.mark.parametrize(("words", "word"), lines(TRAIN))
  def test_train_says_what_is_wrong_in_one_line(self, words, word, tmp_path):
    workdir = tmp_path / "x"
    assert word in complaint("train", f"--workdir={workdir}", *words.split())
    assert not workdir.exists()

  @pytest.mark.parametrize(("words", "word"), lines(OTHERS))
  def test_others_say_what_is_wrong_in_one_line(self, words, word, tmp_path):
    name, *words = words.split()
    if words[-1:] == ["--output=tests/data/model"]:
      (tmp_path / "config.json").touch()
      words[-1] = f"--output={tmp_path}"
    assert word in complaint(name, *words)

  @pytest.mark.slow
  def test_reproduce_names_a_checkpoint_that_is_not_there(self, tmp_path):
    done = script(
      *("reproduce", "--table=saw/tool_calling", "--scale=small"),
      *("--checkpoint=nowhere", f"--runs={tmp_path}"),
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
    ("name", "words"),
    [
      ("train", ["--workdir=x", CONFIG + ":row=gdpo_swa"]),
      ("train", ["--workdir=x", CONFIG, "--wrokdir=x"]),
      ("train", ["--workdir=x", "--config=saw/tool_caling"]),
      ("train", [CONFIG]),
      ("reproduce", ["--table=saw/tool_calling", "--rows=gdop"]),
      ("reproduce", ["--table=saw/tool_caling"]),
      ("doctor", []),
      ("evaluate", []),
      ("export", []),
      ("generate", ["--model=x", "--prompt="]),
    ],
  )
  def test_a_mistake_in_the_flags_is_answered(self, name, words):
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


@pytest.mark.slow
@pytest.mark.parametrize(
  ("config", "shown"),
  [
    ("saw/tool_calling:row=gdpo_saw", "reward correctness: mean"),
    ("paw/household:row=grpo", "2 episodes of 1 worlds: return mean 0.000"),
  ],
)
def test_the_doctor_sees_that_an_untrained_policy_has_nothing(config, shown):
  done = script(
    *("doctor", f"--config={config}", "--prompts=1", "--examples=5"),
    *("--config.warm_start.num_steps=0", "--config.loop.group_size=2"),
    *("--config.rollout.max_new_tokens=4", "--config.grading.num_workers=0"),
  )
  assert done.returncode == 1, done.stderr
  assert shown in done.stdout
  assert "PROBLEM: " in done.stdout and "nothing to learn" in done.stdout
