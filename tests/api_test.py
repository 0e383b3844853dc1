"""The door for Python: the lines of the first page; what a run remembers."""

import functools
import json
import os
import pathlib
import sys
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import saw_jax
from saw_jax import algorithms, naming
from saw_jax.run import build, command_line, run_directory, session
from saw_jax.run import config as config_lib
from saw_jax.run import experiment as experiment_lib
from tests import commands_test, helpers

# What the first page shows; `make` stands for what chooses the model.
SNIPPET = """
import saw_jax

def right(completion, row): return float(row["answer"] in completion)
def short(completion, row): return 1.0 / (1.0 + len(completion) / 200)

config = saw_jax.config("gdpo+saw", {model})
config.loop.num_steps = {steps}
task = saw_jax.task("problems.jsonl", prompt="question", rewards=[right, short])
run = saw_jax.train(config, task, seeds=range({seeds}), directory="runs/a")
run.plot("reward/right"); run.compare("runs/b")
"""
TINY = (
  "loop=dict(prompts_per_step=4, chunk_size=4096), "
  "optimizer=dict(learning_rate=2e-2), "
  "algorithm=dict(entropy_coefficient=lambda step: 0.0 * step), "
  "evaluation=dict(interval=0, num_examples=2, samples=0), "
  "rollout=dict(max_prompt_tokens=48, prompt_multiple=48, max_new_tokens=8), "
  "model=dict(width=16, num_layers=1, num_heads=2, head_size=8, mlp_size=24)"
)


def write_problems(folder):
  rows = [{"question": f"say e, {n}", "answer": "e"} for n in range(20)]
  text = "".join(json.dumps(row) + "\n" for row in rows)
  (folder / "problems.jsonl").write_text(text)


def test_the_first_page_is_short():
  assert len([x for x in SNIPPET.splitlines() if x.strip()]) <= 14


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """What a notebook has after the lines of the first page."""
  folder = tmp_path_factory.mktemp("door")
  write_problems(folder)
  text = SNIPPET.format(model=TINY, steps=30, seeds=2)
  lines, _, last = text.rstrip().rpartition("\n")
  before, space = pathlib.Path.cwd(), {"__name__": "a_notebook"}
  os.chdir(folder)
  try:
    exec(lines, space)
    (folder / "runs/b").symlink_to(folder / "runs/a")
    exec(last, space)
  finally:
    os.chdir(before)
  return folder, space


class TestTrain:
  def test_a_directory_that_is_a_file(self, tmp_path):
    """Rows in memory are written there before all else."""
    (tmp_path / "file").touch()
    rows = [{"prompt": f"say {n}"} for n in range(9)]
    task = saw_jax.task(rows, rewards={"one": lambda *_: 1.0})
    with pytest.raises(NotADirectoryError, match="is a file: choose another"):
      saw_jax.train(saw_jax.config(), task, directory=tmp_path / "file")

  def test_the_parameters_that_it_starts_from_are_not_kept(
    self, tmp_path, monkeypatch
  ):
    start, kept = [], []
    make, save = build.make_params, session.Session.save

    def made(*given):
      params = make(*given)
      start.extend(map(weakref.ref, jax.tree.leaves(params)))
      return params

    def saved(*given):
      kept.extend(one() is not None for one in start)
      return save(*given)

    monkeypatch.setattr(build, "make_params", made)
    monkeypatch.setattr(session.Session, "save", saved)
    write_problems(tmp_path)
    monkeypatch.chdir(tmp_path)
    exec(SNIPPET.format(model=TINY, steps=1, seeds=1).rpartition("run.plot")[0])
    assert kept and not any(kept)

  def test_the_reward_rises(self, trained):
    folder, space = trained
    rewards = space["run"].metrics("reward/right")
    assert rewards.shape == (2, 30)
    assert (rewards[:, -5:].mean(1) > rewards[:, :5].mean(1) + 0.3).all()
    assert space["run"].result.finished

  def test_a_run_is_drawn_and_compared(self, trained):
    folder, space = trained
    picture = folder / "runs/a/plots/reward_right.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    run = saw_jax.open_run(folder / "runs/a")
    found = run.compare(folder / "runs/b", metrics=["reward/right"])
    assert [row.difference.mean for row in found.rows] == [0.0]
    assert run.plot("entropy", path=folder / "x.png")._repr_png_()
    with pytest.raises(KeyError, match="'reward/right'"):
      run.metrics("reward/rigth")

  def test_functions_of_a_notebook_are_passed(
    self, trained, monkeypatch, capsys
  ):
    folder, space = trained
    monkeypatch.chdir(folder)
    with pytest.raises(Exception, match="notebook.*task=task"):
      saw_jax.open_run("runs/a").evaluate(samples=0)
    # To export it, and to draw it, nobody asks for a reward or a schedule.
    words = ["--workdir=runs/a", "--output=exported"]
    assert commands_test.call(monkeypatch, "export", *words) == 0
    run = saw_jax.open_run("runs/a", task=space["task"])
    capsys.readouterr()
    run.evaluate(samples=0, examples=1)
    assert "one example" in (said := capsys.readouterr().out), said
    assert "nan" not in said
    for _ in range(2):  # Other scores are kept, and the same ones not twice.
      found = run.evaluate(samples=0)
    assert "are in" in (said := capsys.readouterr().out), said
    (kept,) = (folder / "runs" / "a").glob("evaluation_*.json")
    first = json.loads(kept.read_text())["seeds"][0]["greedy"]["right"]
    assert (kept.name, first["count"]) == ("evaluation_1.json", 1)
    assert [one["seed"] for one in found["seeds"]] == [0, 1]
    final = space["run"].result.final[0]["greedy"]["right"]
    assert found["seeds"][0]["greedy"]["right"]["mean"] == pytest.approx(final)
    evaluate = experiment_lib.evaluate

    def unscored(policy):
      results = evaluate(policy)
      results["greedy"]["scored"][..., 0] = False
      return results

    monkeypatch.setattr(experiment_lib, "evaluate", unscored)
    found = run.evaluate(samples=0)["seeds"][0]["greedy"]
    assert (found["right"]["count"], found["short"]["count"]) == (0, 2)
    assert "right        nothing was scored" in capsys.readouterr().out
    with pytest.raises(command_line.UsageError, match="'test'"):
      run.evaluate(samples=0, split="tset")
    path = run.export("policy", dtype="float32", seed=1)
    assert (path / "config.json").is_file()


def mine(log_probs, advantages, completion_mask, *, aggregate):
  """A loss of one's own."""
  return aggregate(-advantages[:, None] * log_probs, completion_mask)


def falling(step):
  return 0.1 / (1.0 + step)


def by_step(rewards, step):
  return jnp.stack([1.0 + step, 1.0])


class TestFunctions:
  @pytest.mark.slow
  def test_they_stand_where_names_stand_for_as_long_as_the_run(self, tmp_path):
    # Asynchronous, interrupted by a checkpoint, and taken up by the places
    # that run.json has.
    made = config_lib.get_config()  # from which a table starts, too
    made.algorithm.loss, made.algorithm.weights = mine, by_step
    made.algorithm.entropy_coefficient = falling
    made.algorithm.kl.coefficient = falling
    document = config_lib.to_document(config_lib.typed(made))
    assert document["algorithm"]["loss"].endswith(":mine")
    again = config_lib.typed(json.loads(json.dumps(document))).algorithm
    assert naming.load(again.kl.coefficient) is falling
    for steps in (2, 4):
      one = helpers.experiment(
        algorithm=again,
        loop={"num_steps": steps},
        asynchronous={"protocol": "fixed_lag", "lag": 1},
        evaluation={"interval": 0, "samples": 0, "num_examples": 1},
      )
      build.train(one, [3], directory=tmp_path)
    found = helpers.curves(tmp_path)
    weights = np.stack([found["weight/letter"], found["weight/small"]])
    np.testing.assert_allclose(weights[:, 0], [[1, 2, 3, 4], [1, 1, 1, 1]])
    wanted = -falling(np.arange(4)) * found["entropy"][0]
    np.testing.assert_allclose(found["loss/entropy"][0], wanted, rtol=1e-4)

  @pytest.mark.parametrize(
    ("key", "value", "word"),
    [
      ("algorithm.loss", 3, "algorithm.loss"),
      ("algorithm.ratio_to", mine, "ratio_to"),
      ("loop.num_steps", falling, "num_steps"),
      ("algorithm.kl.coefficient", "1", "coefficient"),
    ],
  )
  def test_elsewhere_they_are_refused(self, key, value, word):
    made = saw_jax.config("gdpo")
    *sections, name = key.split(".")
    functools.reduce(lambda x, part: x[part], sections, made)[name] = value
    with pytest.raises(TypeError, match=word):
      config_lib.typed(made)

  @pytest.mark.parametrize("lost", ["__main__:<lambda>", "/of/another.py:mine"])
  def test_who_reads_a_run_needs_no_function_of_no_file(self, tmp_path, lost):
    algorithm = {"ratio_to": "behave"}
    values = {"loss": lost, "loss_options": {"mine": 1}, **algorithm}
    values |= {"kl": {"placement": "loss", "coefficient": lost}}

    def read():
      document = {"config": {"algorithm": values, "seeds": [3]}}
      (tmp_path / "run.json").write_text(json.dumps(document))
      return run_directory.read_config(tmp_path)[0].algorithm

    assert read() == algorithms.AlgorithmConfig(**algorithm)
    # An advantage is of answers or of steps, and nobody knows which.
    values["advantage"] = lost
    with pytest.raises((ValueError, OSError), match="config=config|moved"):
      algorithms.make_method(read(), np.zeros(1))


class TestConfig:
  def test_it_has_every_key_and_takes_sections(self):
    made = saw_jax.config("gdpo+saw", loop={"num_steps": 7})
    assert made.loop.num_steps == 7 and made.algorithm.weights == "saw"
    assert {*made} == {*config_lib.get_config()}
    with pytest.raises(TypeError, match="'loop'"):
      saw_jax.config("gdpo", lopo={})
    with pytest.raises(TypeError, match="is no task"):
      saw_jax.train(made, [{"prompt": "a"}])
    with pytest.raises(TypeError, match="range"):
      saw_jax.train(made, seeds=3)
    with pytest.raises(TypeError, match="integer"):
      saw_jax.train(made, seeds=[0.5])

  def test_a_checkpoint_has_its_own_lengths(self, tmp_path):
    made, bare = (saw_jax.config("grpo", x) for x in (str(tmp_path), ""))
    assert (made.checkpoint, made.model.dtype) == (str(tmp_path), "float32")
    assert made.optimizer.learning_rate < bare.optimizer.learning_rate
    assert config_lib.typed(made).rollout.max_prompt_tokens == 512

  def test_every_registry_lists_itself(self):
    assert all(map(saw_jax.names, saw_jax.names()))
    assert "asympo" in saw_jax.names("losses")
    assert "gdpo" in saw_jax.names("methods")
    assert "saw/tool_calling" in saw_jax.names("configs")
    with pytest.raises(KeyError, match="'losses'"):
      saw_jax.names("loses")


TASK = """
from tests import commands_test, helpers

class Mine(helpers.Letters):
  def __init__(self, first="a"):
    self.first = first
"""
SCRIPT = """
import functools, saw_jax
def right(completion, row): return 1.0
class Judge: __call__ = lambda self, completion, row: 1.0
half, judge = functools.partial(right), Judge()
def get_config(argument): return saw_jax.config(argument)
READ = []
saw_jax.train(None, None, directory=READ.append(1))
LATER = 1
"""


class TestPlaces:
  def test_a_task_of_ones_own_is_found_by_its_file(self, tmp_path, monkeypatch):
    (tmp_path / "tasks_of_this_test.py").write_text(TASK)
    monkeypatch.chdir(tmp_path)
    run = config_lib.typed(config_lib.get_config())
    run = config_lib.replace(run, "task.name", "tasks_of_this_test.py:Mine")
    run = config_lib.replace(run, "task.options", {"first": "b"})
    told, task = build.remembered(run, tmp_path, None)
    assert task.first == "b"
    assert told.task.name == f"{tmp_path}/tasks_of_this_test.py:Mine"
    # An object of it cannot be made again, as nobody knows its arguments.
    told, _ = build.remembered(run, tmp_path, task)
    with pytest.raises(ValueError, match="notebook"):
      naming.load(told.task.name)
    with pytest.raises(TypeError, match="'first'"):
      build.remembered(
        config_lib.replace(run, "task.options", {"fisrt": 1}), tmp_path, None
      )

  def test_a_script_is_read_up_to_where_it_trains(self, tmp_path):
    path = tmp_path / "script_of_this_test.py"
    path.write_text(SCRIPT)
    found = naming.load(f"{path}:right")
    module = sys.modules[found.__module__]
    assert module.READ == [1] and not hasattr(module, "LATER")
    for name in ("right", "half", "judge", "Judge"):
      assert naming.place_of(naming.load(f"{path}:{name}")) == f"{path}:{name}"
    assert config_lib.load(f"{path}:gdpo").algorithm.advantage == "gdpo"
    for odd in (module.Judge(), functools.partial(mine)):
      assert naming.is_lost(naming.place_of(odd))
    assert naming.load_file(path) is module
    with pytest.raises(ValueError, match="'right'"):
      naming.load(f"{path}:rihgt")

  def test_files_of_one_name_are_two_modules(self, tmp_path):
    for name in "ab":
      (tmp_path / name).mkdir()
      (tmp_path / name / "json.py").write_text(f"which = {name!r}")
    found = [naming.load(f"{tmp_path}/{x}/json.py:which") for x in "ab"]
    assert found == ["a", "b"]
    assert sys.modules["json"] is json
    with pytest.raises(FileNotFoundError, match="moved"):
      naming.load(f"{tmp_path}/c/json.py:which")


def test_a_run_directory_has_places_and_no_function(trained):
  document = run_directory.read_run(trained[0] / "runs/a")["config"]["task"]
  assert document["name"] == "rows"
  assert document["options"]["rewards"]["right"] == "__main__:right"
  assert document["options"]["rows"] == str(trained[0] / "problems.jsonl")


FUNCTIONS = "def right(completion, row): return 1.0\nget_config = {}.get\n"
GOOD = {
  "rows": "problems.jsonl",
  "prompt": "question",
  "rewards": "rewards_of_a_command.py:right",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
  write_problems(tmp_path)
  (tmp_path / "rewards_of_a_command.py").write_text(FUNCTIONS)
  (tmp_path / "broken.py").write_text("{}['NO_KEY']")
  monkeypatch.chdir(tmp_path)
  return tmp_path


class TestCommand:
  """`saw train --rows` is the same, and its mistakes are one sentence each."""

  def test_the_config_of_the_flags_is_that_of_python(self, folder, monkeypatch):
    found, other = [], folder / "another.py"
    other.write_text(FUNCTIONS.replace("right", "short"))
    monkeypatch.setattr(build, "build", lambda *x, **_: found.append(x[0]))
    given = GOOD | {"method": "gdpo+saw", "test": "0.25", "workdir": "run"}
    with pytest.raises(AttributeError):  # nothing was built
      commands_test.call(
        monkeypatch,
        "train",
        *(f"--{name}={text}" for name, text in given.items()),
        f"--rewards={other}:short",
        "--config.loop.num_steps=7",
        "--config.algorithm.loss=rewards_of_a_command.py:right",
      )
    made = saw_jax.config("gdpo+saw", loop={"num_steps": 7})
    made.algorithm.loss = "rewards_of_a_command.py:right"
    own = {"test": 0.25, "rewards": [GOOD["rewards"], f"{other}:short"]}
    made.task.name, made.task.options = "rows", GOOD | own
    assert [config.to_dict() for config in found] == [made.to_dict()]
    told, _ = build.remembered(config_lib.typed(found[0]), "run", None)
    assert told.task.options["rows"] == str(folder / "problems.jsonl")

  @pytest.mark.parametrize(
    ("flag", "word"),
    [
      ("prompt=questoin", "'question'"),
      ("rewards=rewards_of_a_command.py:wrong", "'right'"),
      ("rewards=nowhere.py:right", "nowhere.py"),
      ("rewards=broken.py:right", "broken.py: KeyError: 'NO_KEY'"),
      ("config=rewards_of_a_command.py", "gives a config"),
      ("rewards=", "reward"),
      ("rows=nowhere.jsonl", "nowhere.jsonl"),
      ("method=gdop", "'gdpo'"),
      ("answer=anser", "'answer'"),
      ("test=2", "share"),
    ],
  )
  def test_a_mistake_is_told(self, folder, monkeypatch, capsys, flag, word):
    name, _, text = flag.partition("=")
    words = [f"--{k}={x}" for k, x in (GOOD | {name: text}).items()]
    with pytest.raises(SystemExit) as info:
      commands_test.call(monkeypatch, "train", "--workdir=run", *words)
    error = capsys.readouterr().err
    assert info.value.code == 2 and word in error and error.count("\n") == 1
    assert not (folder / "run").exists()
