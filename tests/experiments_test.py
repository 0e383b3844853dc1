"""The scripts: what they say to a mistake, and that they run."""

import functools
import os
import pathlib
import subprocess
import sys

import pytest
from absl import flags

from saw_jax.run import command_line, train

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
--config configs/no_such.py --config.optimizer.b1=0.5 | configs/no_such.py
{CONFIG} --wrokdir=x | Did you mean: workdir
{CONFIG} stray | unexpected argument 'stray'
 | --config must have a value
{CONFIG} --seeds=1,x | not '1,x'
{CONFIG} --coordinator=h:1 --num_processes=2 --process_id=2 | not below
"""
OTHERS = """
export --workdir=x --output=tests/data/model | there is a model in
evaluate --workdir=docs | docs is no run directory
generate --prompt=x | --model must have a value
generate --prompt=x --model=smollm | there is no 'smollm'
generate --prompt=x --model=. --top_k=-1 | --top_k
generate --prompt=x --model=. | tokenizer.json: there is no such file
annotate | and not both
annotate --run=no_such_run | there is no run directory no_such_run
annotate --run=docs | there is no ledger docs/labels.sqlite
annotate --ledger=README.md | README.md is damaged
annotate --ledger=x --host=0.0.0.0 | to this machine alone
annotate --ledger=x --port=70000 | --port=70000
reproduce --table=saw/tool_calling --scale=tyni | 'tiny'
reproduce --table=saw/tool_calling --seeds=0 | --seeds=0
reproduce --table=asympo/math --rows=asympo_lag17 | 'asympo_lag1
reproduce --all --list | give one of --table=NAME, --all and --list
reproduce --all --rows=gdpo | --rows is of one table
reproduce --table=saw/tool_calling --set=loop.num_stpes=3 | 'num_steps'
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
    return has_jax == "True", int(status), done

  @pytest.mark.parametrize(
    ("words", "word"),
    [
      (f"train --workdir=x {CONFIG}:row=gdpo_swa", "'gdpo_saw'"),
      ("train --workdir=x --config=saw/tool_caling", "'saw/tool_calling'"),
      (f"train {CONFIG}", "--workdir must have a value"),
      ("reproduce --table=saw/tool_calling --rows=gdop", "'gdpo'"),
      ("reproduce --table=saw/tool_caling", "'saw/tool_calling'"),
      ("reproduce", "give one of --table=NAME, --all and --list"),
      ("doctor", "give --config="),
      ("evaluate", "--workdir"),
      ("export", "--workdir"),
      ("generate --model=x --prompt=", "no prompt"),
    ],
  )
  def test_a_mistake_in_the_flags_is_answered(self, words, word):
    has_jax, status, done = self.loaded(*words.split())
    assert (has_jax, status) == (False, 2)
    assert word in done.stderr

  @pytest.mark.parametrize("name", SCRIPTS)
  def test_help_has_the_usage_and_the_flags(self, name):
    has_jax, status, done = self.loaded(name, "--help")
    assert (has_jax, status) == (False, 0)
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

  def test_the_check_sees_jax_where_it_is(self):
    # An unknown name is found by building, after JAX.
    words = ["--workdir=x", CONFIG, "--config.algorithm.weights=sawe"]
    assert self.loaded("train", *words)[:2] == (True, 2)


@pytest.mark.parametrize(
  ("words", "word"),
  [
    ("--seeds=1,2,1", "differ, not '1,2,1'"),
    ("--seeds=", "differ"),
    ("--coordinator=host:1 --process_id=0", "needs --num_processes"),
    ("--num_processes=2", "go with --coordinator"),
    ("--coordinator=h --num_processes=2 --process_id=0", "not 'h'"),
  ],
)
def test_flags_of_train_that_do_not_go_together(words, word, monkeypatch):
  values = flags.FlagValues()
  monkeypatch.setattr(flags, "FLAGS", values)
  for name in ("string", "integer", "list"):
    define = functools.partial(
      getattr(flags, f"DEFINE_{name}"), flag_values=values
    )
    monkeypatch.setattr(flags, f"DEFINE_{name}", define)
  monkeypatch.setattr(flags, "mark_flag_as_required", lambda name: None)
  train.define_flags()
  values(["train", "--workdir=x", *words.split()])
  with pytest.raises(command_line.UsageError, match=word):
    train.main()


@pytest.mark.slow
@pytest.mark.parametrize(
  ("config", "shown"),
  [
    ("saw/tool_calling:row=gdpo_saw", "reward correctness: mean"),
    (
      "paw/household:row=grpo --config.task.options.max_steps=3",
      "2 episodes of 1 worlds: return mean 0.000",
    ),
  ],
)
def test_the_doctor_sees_that_an_untrained_policy_has_nothing(config, shown):
  done = script(
    *("doctor", *f"--config={config}".split(), "--prompts=1", "--examples=5"),
    *(
      "--config.model.num_layers=1",
      "--config.warm_start.num_steps=0",
      "--config.loop.group_size=2",
    ),
    *("--config.rollout.max_new_tokens=4", "--config.grading.num_workers=0"),
  )
  assert done.returncode == 1, done.stderr
  assert shown in done.stdout
  assert "PROBLEM: " in done.stdout and "nothing to learn" in done.stdout
