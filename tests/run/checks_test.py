"""Everything that is wrong with a run, before anything takes long."""

import builtins
import dataclasses
import fcntl
import json
import os
import pathlib
import sys

import jax
import pytest

import saw_jax
from saw_jax import algorithms
from saw_jax.annotate.ledger import LEDGER_NAME
from saw_jax.commands import evaluate
from saw_jax.run import (
  build,
  checkpoint,
  checks,
  command_line,
  evaluation,
  loop,
  run_directory,
  sections,
)
from saw_jax.run import config as config_lib
from saw_jax.tasks import base
from saw_jax.tasks.workers.pool import RewardError
from tests import helpers
from tests.tasks.misbehaving_tasks import Unloadable

TOOLS = "saw/tool_calling:row=gdpo_saw"
WORLDS, PAW = "paw/household:row=gigpo", "paw/household:row=grpo_paw"
# A table's row | keys and values | error | a word of the sentence.
REFUSED = """
{tools} | loop.num_steps=0 | ValueError | num_steps
{tools} | loop.prompts_per_step=0 | ValueError | prompts_per_step
{tools} | loop.group_size=-1 | ValueError | group_size
{tools} | loop.num_minibatches=0 | ValueError | num_minibatches
{tools} | loop.num_microbatches=0 | ValueError | num_microbatches
{tools} | loop.chunk_size=0 | ValueError | chunk_size
{tools} | loop.pack_length=-1 | ValueError | pack_length
{tools} | loop.checkpoint_interval=-1 | ValueError | checkpoint_interval
{tools} | rollout.max_new_tokens=0 | ValueError | max_new_tokens
{tools} | rollout.max_prompt_tokens=0 | ValueError | max_prompt_tokens
{tools} | rollout.prompt_multiple=0 | ValueError | prompt_multiple
{tools} | rollout.long_prompts=dorp | ValueError | 'drop'
{tools} | evaluation.num_examples=0 | ValueError | num_examples
{tools} | evaluation.batch_size=0 | ValueError | batch_size
{tools} | evaluation.samples=-1 | ValueError | samples
{tools} | evaluation.temperature=0.0 | ValueError | evaluation.temperature
{tools} | evaluation.top_p=1.5 | ValueError | evaluation.top_p
{tools} | warm_start.batch_size=0 | ValueError | warm_start
{tools} | grading.num_workers=-1 | ValueError | num_workers
{tools} | grading.limit_s=0.0 | ValueError | limit_s
{tools} | loop.num_minibatches=5 | ValueError | num_minibatches
{tools} | loop.num_microbatches=7 | ValueError | num_microbatches
{tools} | loop.prompts_per_step=9000 | ValueError | prompts_per_step
{tools} | loop.prompts_per_step=1 loop.group_size=1 | ValueError | group_size
{tools} | evaluation.benchmarks.tset=0 | ValueError | 'test'
{tools} | loop.writers=('tensorbord',) | KeyError | 'tensorboard'
{tools} | loop.writers=('wandb',) | ImportError | saw_jax[wandb]
{tools} | parallel.lift=meshed parallel.fsdp=3 | ValueError | there are 4
{tools} | parallel.lift=meshed parallel.fsdp=0 | ValueError | axes
{tools} | parallel.lift=meshed parallel.tensor=-2 | ValueError | axes
{tools} | parallel.lift=pmapped loop.prompts_per_step=6 | ValueError | devices
{tools} | parallel.lift=pmapped loop.num_microbatches=64 | ValueError | devices
{tools} | parallel.lift=meshed loop.num_microbatches=64 | ValueError \
| loop.num_microbatches=32 does
{tools} | asynchronous.protocol=max_lag loop.num_minibatches=2 | ValueError \
| quota
{tools} | asynchronous.lag=4 | ValueError | lag is 4, which does nothing
{tools} | asynchronous.actors=1 | ValueError | actors is 1
{tools} | asynchronous.actor_kind=process | ValueError | actor_kind is process
{tools} | asynchronous.dynamic_sampling=True | ValueError | 'none'
{tools} | asynchronous.protocol=max_lag asynchronous.dynamic_sampling=True \
loop.group_size=1 | ValueError | dynamic_sampling
{tools} | rollout.max_prompt_tokens=40 rollout.long_prompts=error | ValueError \
| tokens
{tools} | labels.method=self_verification | ValueError | verification
{tools} | labels.method=random labels.total=0.5 | ValueError | pay
{tools} | algorithm.weights=dual | ValueError | 'targets'
{tools} | algorithm.weights=static algorithm.weights_options.values=(1,1,1) \
| ValueError | float32[2]
{tools} | algorithm.aggregate=sequence_mean_token_sum_const | TypeError \
| aggregate_options: length
{worlds} | episodes.invalid_penalty=-0.1 | ValueError | invalid_penalty
{worlds} | episodes.rows_per_call=0 | ValueError | rows_per_call
{worlds} | episodes.rows_per_call=6 parallel.lift=pmapped | ValueError \
| rows_per_call
{worlds} | rollout.long_prompts=drop | ValueError | 'truncate'
paw/household:row=grpo | loop.group_size=1 | ValueError | group_size
{worlds} | loop.prompts_per_step=99999 | ValueError | prompts_per_step
paw/household:row=grpo | algorithm.advantage=grpo | ValueError | has episodes
{worlds} | labels.method=vote | ValueError | labels are bought
{worlds} | rollout.stops=("x",) | ValueError | stops
{paw} | asynchronous.protocol=fixed_lag | ValueError | must be 'none'
{paw} | algorithm.world_model.alpha=0.0 | ValueError | share
{paw} | algorithm.world_model.loss=huber | KeyError | world-model loss
{paw} | algorithm.world_model.selection=rnadom | KeyError | 'random'
{paw} | algorithm.kl.placement=reward | ValueError | steps
{paw} | loop.pack_length=47 | ValueError | observed
{tools} | algorithm.advantage=gigpo | ValueError | single answers
{tools} | algorithm.weights=sawe | KeyError | 'saw'
{tools} | algorithm.loss=asimpo | KeyError | 'asympo'
{tools} | parallel.lift=mehsed | KeyError | 'meshed'
{tools} | parallel.lift=pmapped | ValueError | processes cannot do this
{tools} | asynchronous.protocol=max_lagg | ValueError | 'max_lag'
{tools} | rollout.cache_tokens=100 | ValueError | a prompt of
{tools} | rollout.cache_tokens=-1 | ValueError | 0 or more
{tools} | loop.pack_length=100 | ValueError | pack_length
{tools} | loop.num_steps.x=1 | ValueError | nothing is below
saw/tool_calling:scale=paper | loop.num_steps=1 | FileNotFoundError | 1.5B-Inst
saw/summaries:scale=paper | loop.num_steps=1 | ValueError | judge.url
asympo/math:tis | sampling.top_p=0.9 | ValueError | tokens that are kept
care/knights:care | asynchronous.dynamic_sampling=True | ValueError | one of the
composed/tool_calling | loop.pack_length=160 | ValueError | observed
composed/tool_calling | task.name=knights tokenizer.name=knights \
task.options={{}} | ValueError | world
"""


def cases():
  text = REFUSED.format(tools=TOOLS, worlds=WORLDS, paw=PAW)
  for line in text.strip().splitlines():
    yield tuple(part.strip() for part in line.split("|"))


@pytest.fixture
def untouched(monkeypatch):
  """Whatever takes long must not begin."""

  def refuse(*_):
    raise AssertionError("weights were touched")

  monkeypatch.setattr(build, "make_params", refuse)


@pytest.mark.parametrize(("row", "settings", "error", "word"), list(cases()))
def test_it_is_refused_before_any_weight(
  row, settings, error, word, untouched, tmp_path, monkeypatch
):
  monkeypatch.setitem(sys.modules, "wandb", None)
  if "processes" in word:  # in one process all is well
    monkeypatch.setattr(jax, "process_count", lambda: 2)
  config = config_lib.load(row)
  word = word.replace("[", r"\[")
  with pytest.raises(getattr(builtins, error), match=word):
    for setting in settings.split():
      config_lib.override(config, *setting.split("="))
    build.build(config.lock(), [0], tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_a_step_and_a_task_that_are_absent_are_said_first(untouched, tmp_path):
  config = config_lib.load(f"{TOOLS},scale=tiny").lock()
  with pytest.raises(checkpoint.CheckpointError, match="of step 7"):
    build.build(config, [0], tmp_path / "run", resume_step=7)
  with pytest.raises(RewardError, match="cannot be loaded"):
    build.build(config, [0], tmp_path / "run", task=Unloadable())
  # Who reads a run is told, too, before there are weights.
  document = run_directory.document_of(config_lib.typed(config), [0])
  run_directory.open_run(tmp_path, document)
  with pytest.raises(checkpoint.CheckpointError, match="of step 7"):
    build.read_policy(tmp_path, 7)
  with pytest.raises(command_line.UsageError, match="no checkpoint"):
    evaluate.evaluate(tmp_path)


def test_every_number_with_a_least_is_there():
  run = sections.RunConfig()
  for least, keys in checks.LEAST.items():
    for key in keys.split():
      section, _, name = key.partition(".")
      assert getattr(getattr(run, section), name) >= least, key


def test_an_advantage_of_ones_own_is_traced():
  def flat(rewards, weights):
    return (rewards @ weights).reshape(-1)

  made = helpers.experiment(algorithm=algorithms.AlgorithmConfig(flat))
  checks.check(made)
  with pytest.raises(ValueError, match=r"flat gave shapes \(16,\)"):
    checks.check(made, None, [0])


@pytest.mark.parametrize(
  ("seeds", "lift", "word"),
  [(seeds, "seeded", "differ") for seeds in ([], [1, 1], [-1], [2**32])]
  + [([0, 1], "meshed", "one seed"), ([0], "mesh", "unknown lift")],
)
def test_seeds_and_lifts_are_looked_at(seeds, lift, word):
  made = helpers.experiment(parallel={"lift": lift})
  with pytest.raises(ValueError, match=word):
    checks.check(made, None, seeds)


@pytest.mark.parametrize(
  "components",
  ["", "a a", "a:1:0", "a:0:inf", "a:0:1e39", "a:0:0", "total", "length"],
)
def test_components_are_looked_at(components):
  made = helpers.experiment()
  parts = [f"{word}:0:1".split(":")[:3] for word in components.split()]
  found = [base.Component(n, float(a), float(b)) for n, a, b in parts]
  made.task.components = tuple(found)
  with pytest.raises(ValueError, match=made.task.name):
    checks.check(made)


def test_a_directory_has_to_be_one_that_can_be_written(tmp_path, monkeypatch):
  made = helpers.experiment()
  (tmp_path / "file").touch()
  for path in ("file", "file/run"):
    with pytest.raises(NotADirectoryError, match="file"):
      checks.check(made, None, [0], tmp_path / path)
  monkeypatch.setattr(os, "access", lambda *_: False)
  with pytest.raises(PermissionError, match=tmp_path.name):
    checks.check(made, None, [0], tmp_path / "deep" / "run")
  assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", algorithms.ADVANTAGES)
def test_the_estimator_says_whether_a_group_may_have_one(name, caplog):
  def check(prompts):
    algorithm = algorithms.AlgorithmConfig(advantage=name)
    sizes = {"prompts_per_step": prompts, "group_size": 1}
    made = helpers.experiment(algorithm=algorithm, loop=sizes)
    checks.check(made, sections.RunConfig(), [0])

  check(4)
  assert "no response is compared" in caplog.text
  # One that is whitened over the batch is 0 if it is all there is.
  if name in ("gdpo", "reinforce_plus_plus_baseline"):
    with pytest.raises(ValueError, match="group_size"):
      check(1)


class Long(helpers.Letters):
  """Every tenth prompt is long, and of those the second is the longest."""

  def examples(self, split):
    found = super().examples(split) * 3
    for place, size in ((10, 60), (20, 70), (30, 60)):
      messages = ({"role": "user", "content": "a" * size},)
      found[place] = dataclasses.replace(found[place], messages=messages)
    return found


def long(how, **changes):
  fields = {"long_prompts": how}
  return helpers.experiment(task=Long(), rollout=fields, **changes)


SENTENCE = r"3 of 39 prompts of split 'train' .* 48 tokens .* \(row 20, .* 7\)"


def test_prompts_that_are_too_long_are_counted(caplog):
  with pytest.raises(ValueError, match=SENTENCE):
    checks.check_examples(long("error"))
  for how, word in (("drop", "left out"), ("truncate", "ends are kept")):
    caplog.clear()
    checks.check_examples(long(how))
    (said,) = [x for x in caplog.messages if "'train'" in x]
    assert word in said
  # Those that are never asked for are of no interest, and dropped ones of none.
  few = {"num_examples": 10, "split": "test"}
  caplog.clear()
  checks.check_examples(long("truncate", evaluation=few))
  assert not [x for x in caplog.messages if "'test'" in x]
  with pytest.raises(ValueError, match="36 prompts, and 37"):
    checks.check_examples(long("drop", loop={"prompts_per_step": 37}))


def test_what_is_dropped_is_seen_by_nobody():
  made = long("drop", evaluation={"num_examples": 30})
  policy = helpers.make_learner(made).policy
  kept = policy.encoder.keep(made.task.examples("train"))
  assert len(kept) == 36
  evaluator = evaluation.Evaluator(policy, None)
  found = [example.messages[0]["content"] for example in evaluator.examples]
  assert len(found) == 30 and max(map(len, found)) < 10


HOLD = """
import sys, time
from saw_jax.run import run_directory
run_directory.lock(sys.argv[1])
print("held", flush=True)
time.sleep(60)
"""


def test_the_second_process_is_told_of_the_first(tmp_path, monkeypatch):
  with helpers.process("-c", HOLD, tmp_path) as first:
    assert first.stdout.readline() == "held\n"
    monkeypatch.setattr(loop, "Session", None)
    with pytest.raises(run_directory.RunError, match=str(first.pid)):
      loop.train(helpers.experiment(), [0], directory=tmp_path)
    first.kill()
  # Whoever is dead holds nothing.
  run_directory.lock(tmp_path)
  run_directory.lock(tmp_path)
  assert str(os.getpid()) in (tmp_path / "lock").read_text()
  run_directory.unlock(tmp_path)
  run_directory.unlock(tmp_path)


def test_unreadable_weights_leave_the_directory_free(tmp_path, monkeypatch):
  def fail(*_):
    raise ValueError("truncated")

  monkeypatch.setattr(build, "make_params", fail)
  with pytest.raises(ValueError, match="truncated"):
    build.build(config_lib.load(TOOLS).lock(), [0], tmp_path)
  assert not (tmp_path / "run.json").exists()
  with (tmp_path / "lock").open("a") as file:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_the_other_processes_of_a_run_take_no_lock(tmp_path, monkeypatch):
  monkeypatch.setattr(build, "make_params", lambda *_: None)
  monkeypatch.setattr(build.hosts, "is_first", lambda: False)
  build.build(config_lib.load(TOOLS).lock(), [0], tmp_path)
  assert not list(tmp_path.iterdir())


def test_without_locks_there_is_a_warning(tmp_path, monkeypatch, caplog):
  def flock(*_):
    raise OSError(37, "No locks available")

  monkeypatch.setattr(fcntl, "flock", flock)
  run_directory.lock(tmp_path)
  assert "No locks available" in caplog.text
  run_directory.unlock(tmp_path)


def test_a_start_that_failed_is_replaced(tmp_path, monkeypatch):
  monkeypatch.setattr(build, "make_params", lambda *_: None)

  def start(steps):
    config = config_lib.load(TOOLS)
    config.loop.num_steps = steps
    build.build(config.lock(), [0], tmp_path)
    run_directory.unlock(tmp_path)
    document = json.loads((tmp_path / "run.json").read_text())
    return document, document["config"]["loop"]["num_steps"]

  start(5)
  ledger = tmp_path / LEDGER_NAME
  ledger.write_text("labels")
  assert start(5)[1] == 5 and ledger.exists()
  document, steps = start(3)
  assert steps == 3 and "resumed" not in document
  # Labels of other prompts are kept, and out of the way.
  assert not ledger.exists()
  (kept,) = tmp_path.glob("labels_*")
  assert kept.read_text() == "labels"
  (tmp_path / "checkpoints" / "2").mkdir(parents=True)
  with pytest.raises(run_directory.RunError, match="num_steps = 3, not 2"):
    start(2)


def test_the_rows_of_a_run_are_not_overwritten_by_others(tmp_path):
  def remember(word):
    rows = [{"prompt": word, "n": k} for k in range(4)]
    task = saw_jax.task(rows, rewards={"one": lambda completion, row: 1.0})
    return pathlib.Path(task.remember(tmp_path)["rows"])

  first, other = remember("a"), remember("b")
  assert first != other and "a" in first.read_text()
  assert remember("a") == first


@pytest.mark.slow
def test_a_run_that_is_lengthened_is_the_longer_run(tmp_path):
  def run(name, steps, **changes):
    fields = {"num_steps": steps}
    greedy = {"samples": 0, "interval": 3, "num_examples": 2}
    made = helpers.experiment(loop=fields, evaluation=greedy, **changes)
    document = {"loop": fields, "seeds": [0]}
    folder = tmp_path / name
    run_directory.open_run(folder, document, made.optimizer)
    assert not (folder / "final.json").exists()
    loop.train(made, [0], directory=folder)
    return folder

  once = run("once", 4)
  run("twice", 2)
  with pytest.raises(run_directory.RunError, match="linear"):
    run("twice", 4, optimizer={"schedule": "linear"})
  twice = run("twice", 4)
  helpers.assert_same_run(once, twice)
  document = run_directory.read_run(twice)
  assert document["config"]["loop"]["num_steps"] == 4
  assert document["resumed"][0]["steps_before"] == 2
  # A decay that ends at a step of its own is as good as none.
  other = {"schedule": "linear", "decay_steps": 9}
  optimizer = helpers.experiment(optimizer=other).optimizer
  longer = {"loop": {"num_steps": 5}, "seeds": [0]}
  run_directory.check_run(twice, longer, optimizer)
