"""The commands as scripts: what they say to a mistake, and that they run."""

import json
import os
import pathlib
import subprocess

import pytest

from saw_jax.run import doctor, registry
from tests import helpers

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = "--config=configs/saw/tool_calling.py"
# A script, and a flag that its help has to name.
SCRIPTS = {
  **dict.fromkeys(
    ["train", "evaluate", "export", "show_episodes"], "--workdir"
  ),
  "doctor": "--config",
  "reproduce": "--table",
  "annotate": "--ledger",
  "draw_gap": "--group_size",
  "label_value": "--starts",
  "generate": "--model",
}
# Runs each script as its own process would, in a fork of one that has imported
# what many need, and says whether JAX came with it. To take down what was
# imported would take longer than many a script.
_RUN = """
import json, os, runpy, sys, tempfile, traceback
sys.path[0] = {root!r}
modules = sys.argv[1:]
for name in modules:
  __import__(name)
for line in sys.stdin:
  files = [tempfile.TemporaryFile() for _ in range(2)]
  if not os.fork():
    for number, file in enumerate(files, 1):
      os.dup2(file.fileno(), number)
    sys.argv = json.loads(line)
    status = 0
    try:
      runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
      status = end.code
    except BaseException:
      traceback.print_exc()
      status = 1
    print("jax" in sys.modules, flush=True)
    (os._exit if modules else sys.exit)(status)
  status = os.waitstatus_to_exitcode(os.wait()[1])
  said = [file.seek(0) or file.read().decode() for file in files]
  print(json.dumps([status, *said]), flush=True)
"""


EARLY_MODULES = "saw_jax.run.config", "absl.app"


def scripts(lines, *modules: str, **environment: str):
  """Runs scripts; the last line of what each prints says if JAX came."""
  folder = ROOT / "experiments"
  lines = [[str(folder / f"{name}.py"), *words] for name, *words in lines]
  done = helpers.python(
    *("-W", "ignore", "-c", _RUN.format(root=str(ROOT)), *modules),
    input="\n".join(map(json.dumps, lines)),
    env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    | {"COLUMNS": "80", **environment},
  )
  found = [json.loads(line) for line in done.stdout.splitlines()]
  assert len(found) == len(lines), done.stderr
  return [
    subprocess.CompletedProcess(words, *said)
    for words, said in zip(lines, found, strict=True)
  ]


def script(name: str, *words: str, **environment: str):
  return scripts([(name, *words)], **environment)[0]


# What is wrong, and a word of the one line that answers it.
TRAIN = f"""
{CONFIG} --config.optimizer.lerning_rate=1 | 'learning_rate'
--config configs/no_such.py --config.optimizer.b1=0.5 | configs/no_such.py
{CONFIG} --wrokdir=x | Did you mean: workdir
{CONFIG} stray | unexpected argument 'stray'
{CONFIG} --seeds=1,x | not '1,x'
{CONFIG} --seeds=1,2,1 | differ, not '1,2,1'
{CONFIG} --seeds=-1 | differ
{CONFIG} --coordinator=h:1 --process_id=0 | needs --num_processes
{CONFIG} --num_processes=2 | go with --coordinator
{CONFIG} --coordinator=h --num_processes=2 --process_id=0 | not 'h'
{CONFIG} --resume_step=7 | no checkpoint of step 7
{CONFIG} --workdir=gs://bucket/run | pip install 'saw_jax[gcs]'
{CONFIG} --compilation_cache=gz://a/b | gz://a/b cannot be used
{CONFIG} --log=trackoi | 'trackio'
{CONFIG} --coordinator=h:1 --num_processes=2 --process_id=2 | not below
"""
# The same, answered before JAX is imported.
EARLY = f"""
train --workdir=x {CONFIG}:row=gdpo_swa | 'gdpo_saw'
train --workdir=x --config=saw/tool_caling | 'saw/tool_calling'
train {CONFIG} | --workdir must have a value
train --workdir=x | give --config=TABLE, or --rows=FILE
train --workdir=x --rows=x.jsonl --rewards=x.py:right | x.py
train --workdir=x --method=gdpo | --rows
doctor {CONFIG}:row=gdpo_swa | 'gdpo_saw'
reproduce --table=saw/tool_calling --rows=gdop | 'gdpo'
reproduce --table=saw/tool_caling | 'saw/tool_calling'
reproduce | give one of --table=NAME, --all and --list
reproduce --table=saw/tool_calling --figures=png,jpg | 'jpg'
doctor | give --config=
doctor --form=5 | two of --form
evaluate | --workdir
export | --workdir
generate --model=x --prompt= | no prompt
"""
OTHERS = """
train --workdir=DIR --config.task.name=mth | 'math'
export --workdir=x --output=MODEL | there is a model in
evaluate --workdir=docs | docs is no run directory
generate --prompt=x | --model must have a value
generate --prompt=x --model=smollm | there is no 'smollm'
generate --prompt=x --model=. --top_k=-1 | --top_k
generate --prompt=x --model=. | tokenizer.json: there is no such file
annotate | and not both
annotate --run=no_such_run | there is no run directory no_such_run
annotate --run=gs://bucket/run | --run=gs://bucket/run: give a folder
annotate --run=docs | there is no ledger docs/labels.sqlite
annotate --ledger=README.md | README.md is damaged
annotate --ledger=x --export=a --import=b | or --import=FILE
annotate --ledger=x --labeling_config=a | --export=FILE
annotate --ledger=x --host=0.0.0.0 | to this machine alone
annotate --ledger=x --port=70000 | --port=70000
label_value --config=care/knigths | 'care/knights'
reproduce --table=saw/tool_calling --scale=tyni | 'tiny'
reproduce --table=saw/tool_calling --seeds=0 | --seeds=0
reproduce --table=asympo/math --rows=asympo_lag17 | 'asympo_lag1
reproduce --table=saw/tool_calling --runs=gs://a/b | a/b: give a folder
reproduce --all --list | give one of --table=NAME, --all and --list
reproduce --all --rows=gdpo | --rows is of one table
reproduce --table=saw/tool_calling --set=loop.num_stpes=3 | 'num_steps'
reproduce --table=saw/tool_calling --set=loop.num_steps=many | =many:
reproduce --table=saw/tool_calling --set=loop.num_steps | say KEY=VALUE
reproduce --all --scale=tyni | 'tiny'
"""


def cases(text: str) -> list[tuple[str, str]]:
  return [
    tuple(part.strip() for part in line.split("|"))
    for line in text[1:].splitlines()
  ]


@pytest.mark.parametrize("is_early", [True, False])
def test_a_mistake_is_answered_in_one_line(is_early, tmp_path):
  (tmp_path / "config.json").touch()
  late = [
    (f"train --workdir=DIR {words}", word) for words, word in cases(TRAIN)
  ]
  asked = cases(EARLY) if is_early else [*late, *cases(OTHERS)]
  paths = {"DIR": str(tmp_path / "x"), "MODEL": str(tmp_path)}
  lines = []
  for words, _ in asked:
    for name, path in paths.items():
      words = words.replace(name, path)
    lines.append(words.split())
  late = ["saw_jax.run.build", "saw_jax.reporting.report", "uvicorn"]
  found = scripts(lines, *(EARLY_MODULES if is_early else late))
  for done, (words, word) in zip(found, asked, strict=True):
    assert done.returncode == 2, (words, done)
    (said,) = done.stderr.splitlines()
    assert said.startswith("error: ") and word in said, words
    # Nothing else is said.
    (has_jax,) = done.stdout.splitlines()
    assert has_jax == "False" or not is_early, words
  assert not (tmp_path / "x").exists()


def test_help_has_the_usage_and_the_flags_and_no_jax():
  found = scripts([(name, "--help") for name in SCRIPTS], *EARLY_MODULES)
  for done, (name, flag) in zip(found, SCRIPTS.items(), strict=True):
    assert (done.returncode, done.stderr) == (0, ""), name
    assert f"python experiments/{name}.py" in done.stdout
    assert flag in done.stdout, name
    assert done.stdout.splitlines()[-1] == "False", name


def test_a_traceback_is_there_for_who_asks_and_jax_is_seen():
  words = ["--workdir=x", CONFIG, "--config.algorithm.weights=sawe"]
  done = script("train", *words, SAW_JAX_TRACEBACK="1")
  assert done.returncode != 0 and "Traceback" in done.stderr
  assert done.stdout.splitlines()[-1] == "True"  # of a name found by building


def test_the_doctor_says_what_it_could_check(capsys):
  task = helpers.Letters()
  assert doctor.check_task(task, ["train"], 5) == []
  task.gold_completion = lambda example: example.reference
  task.best_values = lambda example: (1.0, 1.0)
  assert doctor.check_task(task, ["train"], 5) == []
  bare, known = capsys.readouterr().out.splitlines()
  assert bare == "train: 13 examples"
  assert known == f"{bare}; 5 checked; gold answers below the maximum: 0"


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
    *f"doctor --config={config} --prompts=1 --examples=5".split(),
    *"--config.model.num_layers=1 --config.warm_start.num_steps=0".split(),
    *"--config.loop.group_size=2 --config.rollout.max_new_tokens=4".split(),
    "--config.grading.num_workers=0",
  )
  assert done.returncode == 1, done.stderr
  assert shown in done.stdout
  assert "PROBLEM: " in done.stdout and "nothing to learn" in done.stdout


@pytest.mark.slow
def test_a_policy_from_nothing_is_trained_exported_and_talked_with(tmp_path):
  sizes = {
    **dict.fromkeys(["warm_start.num_steps", "loop.num_steps"], 2),
    **{"loop.prompts_per_step": 4, "loop.group_size": 2},
    **{"evaluation.num_examples": 4, "evaluation.samples": 0},
    **{"warm_start.num_demonstrations": 64, "rollout.max_new_tokens": 8},
  }
  run, policy = tmp_path / "run", tmp_path / "policy"
  talk = (f"--model={policy}", "--prompt=Oslo?", "--max_new_tokens=8")
  for words in (
    ["train", f"--workdir={run}", f"{CONFIG}:row=gdpo_saw,scale=tiny"]
    + [f"--config.{key}={value}" for key, value in sizes.items()]
    + [f"--compilation_cache={tmp_path / 'programs'}"],
    ["export", f"--workdir={run}", f"--output={policy}"],
    ["generate", *talk],
    ["generate", *talk, "--system=Be kind."],
  ):
    done = script(*words)
    assert done.returncode == 0, done.stderr
  assert list((tmp_path / "programs").iterdir())
  assert done.stdout.removesuffix("True\n").strip()
  messages = [{"role": "user", "content": "Oslo?<|im_end|>\n"}]
  names = (str(policy), "tool_calling")
  opened, ours = (registry.make_tokenizer(name) for name in names)
  assert opened.encode_chat(messages) == ours.encode_chat(messages)
