"""What a run says of itself, and who may go on in its directory."""

import functools
import json
import subprocess
import sys

import pytest

from saw_jax.run import run_directory

CONFIG = {
  "loop": {"num_steps": 4, "writers": ("wandb",)},
  "optimizer": {"learning_rate": 1e-3, "b1": 0.9},
  "seeds": [0, 1],
  "checkpoint": "",
  "task": {"options": {}},
}


def changed(path, value):
  """The config with another value, or without it where that is None."""
  other, (*inside, last) = json.loads(json.dumps(CONFIG)), path.split(".")
  section = functools.reduce(dict.get, inside, other)
  section[last] = value
  return {name: found for name, found in other.items() if found is not None}


def test_a_run_writes_what_is_needed_to_run_it_again(tmp_path, monkeypatch):
  monkeypatch.setattr(sys, "argv", ["some/where/train.py", "--workdir=x"])
  folder = tmp_path / "deep" / "run"
  first = run_directory.open_run(folder, CONFIG)
  assert first == json.loads((folder / "run.json").read_text())
  assert first["config"]["optimizer"] == CONFIG["optimizer"]
  assert first["command"] == "train.py --workdir=x"
  assert {"jax", "flax", "optax", "numpy"} <= set(first["packages"])
  assert first["started"].endswith("Z") and "resumed" not in first
  assert first["commit"] and first["machine"] and first["python"]
  # The same config goes on and says when.
  (folder / "checkpoints" / "2").mkdir(parents=True)
  run_directory.open_run(folder, CONFIG)
  third = run_directory.open_run(folder, CONFIG)
  assert len(third["resumed"]) == 2
  made = {first["commit"]: run_directory.code()}
  assert run_directory.commits(third) == made
  third["resumed"][1] |= {"commit": "other", "code": "another"}
  assert run_directory.commits(third) == made | {"other": "another"}
  assert first["instructions"] == run_directory.processor()["instructions"]
  assert {**third, "resumed": None} == {**first, "resumed": None}


def test_a_key_that_differs_is_named_with_both_values(tmp_path):
  run_directory.open_run(tmp_path, CONFIG)
  (tmp_path / "checkpoints" / "2").mkdir(parents=True)
  # A tuple is the list that JSON made of it, and trackers may come and go.
  run_directory.check_run(tmp_path, changed("seeds", (0, 1)))
  run_directory.check_run(tmp_path, changed("loop.writers", ["trackio"]))
  before = (tmp_path / "run.json").read_bytes()
  for path, value, message in (
    ("loop.num_steps", 5, "loop.num_steps = 4, not 5"),
    ("seeds", [0, 2], r"seeds = \[0, 1\], not \[0, 2\]"),
    ("optimizer.b2", 0.9, "optimizer.b2 = None, not 0.9"),
    ("task.options.seed", 1, "task.options.seed = None, not 1"),
    ("checkpoint", None, "checkpoint = '', not None"),
  ):
    with pytest.raises(run_directory.RunError, match=message):
      run_directory.open_run(tmp_path, changed(path, value))
  assert (tmp_path / "run.json").read_bytes() == before


def test_a_run_goes_on_with_the_files_that_it_began_with(tmp_path):
  rows = tmp_path / "rows.jsonl"
  rows.write_text("1")
  config = changed("task.options", {"rows": str(rows), "test": 0.1})
  run = run_directory.open_run(tmp_path / "run", config)
  assert list(run["files"]) == ["rows"]
  (tmp_path / "run" / "checkpoints" / "2").mkdir(parents=True)
  rows.write_text("2")
  with pytest.raises(run_directory.RunError, match="another content of rows"):
    run_directory.open_run(tmp_path / "run", config)
  rows.write_text("1")
  run_directory.open_run(tmp_path / "run", config)
  # An older run does not say what was in them.
  (tmp_path / "run" / "run.json").write_text(json.dumps({**run, "files": None}))
  rows.write_text("2")
  run_directory.open_run(tmp_path / "run", config)


def test_what_is_set_aside_takes_the_place_of_nothing(tmp_path):
  path = tmp_path / "labels.sqlite"
  for text in "abc":
    path.write_text(text)
    kept = run_directory.set_aside(path)
    if text == "b":  # Somebody has no use for the first any more.
      (tmp_path / "labels_1.sqlite").unlink()
  assert kept.read_text() == "c" and not path.exists()
  assert (tmp_path / "labels_2.sqlite").read_text() == "b"


def one(completion, row):
  return 1.0


def other(completion, row):
  return 0.0


def test_functions_that_have_changed_are_told(tmp_path, monkeypatch, caplog):
  main, file = sys.modules["__main__"], tmp_path / "rewards.py"
  file.write_text("right = str")
  monkeypatch.setattr(main, "one", one, raising=False)
  rewards = {"mine": "__main__:one", "right": f"{file}:right"}
  config = changed("task.options", {"rewards": rewards})
  config["algorithm"] = {"loss": "__main__:lost", "aggregate": "token_mean"}
  run = run_directory.open_run(tmp_path / "run", config)
  assert [*run["files"]] == ["rewards.mine", "rewards.right"]
  (tmp_path / "run" / "checkpoints" / "2").mkdir(parents=True)
  run_directory.open_run(tmp_path / "run", config)
  assert not caplog.messages
  file.write_text("right = int")
  monkeypatch.setattr(main, "one", other)
  run_directory.open_run(tmp_path / "run", config)
  for name, said in zip(rewards, caplog.messages, strict=True):
    assert f"rewards.{name} has changed" in said
  # Of what is in none, as in another notebook, nobody knows.
  file.unlink()
  monkeypatch.delattr(main, "one")
  assert run_directory.changes(run, config) == []


def test_what_is_no_run_says_so(tmp_path):
  with pytest.raises(run_directory.RunError, match=r"no run\.json"):
    run_directory.read_run(tmp_path)
  damaged = ["{", "[]", "{}", '{"config": 3}', '{"config": {"task": "x"}}']
  for text in (*damaged, "[" * 100_000, '{"config": {"loop": {}}}'):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(run_directory.RunError, match=r"run\.json is damaged"):
      run_directory.read_config(tmp_path)


def git(folder, *words):
  who = ("-c", "user.name=x", "-c", "user.email=x@example.org")
  how = dict(cwd=folder, check=True, capture_output=True, text=True)
  return subprocess.run(["git", *who, *words], **how).stdout.strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
  """A folder with a library, configs and documents, and no git yet."""
  for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
  root = tmp_path / "checkout"
  module = root / "saw_jax" / "training" / "module.py"
  for path in (module, root / "configs" / "a.py", root / "docs" / "a.md"):
    path.parent.mkdir(parents=True)
    path.write_text("x = 1\n")
  monkeypatch.setattr(run_directory, "__file__", str(module))
  return root


def commit_all(folder):
  """Commits what is there; returns the name of the commit."""
  git(folder, "init", "--quiet")
  git(folder, "add", ".")
  git(folder, "commit", "--quiet", "-m", "a commit")
  return git(folder, "rev-parse", "HEAD")[:10]


CODE = ("saw_jax/training/module.py", "configs/a.py")


def test_a_commit_is_marked_where_its_code_was_changed(checkout):
  assert run_directory.commit() == "unknown"  # outside git
  name = commit_all(checkout)
  (checkout / "saw_jax" / "notes.txt").write_text("not part of the code")
  (checkout / "docs" / "a.md").write_text("nor is this")
  assert run_directory.commit() == name
  for path in CODE:
    (checkout / path).write_text("x = 2\n")
    assert run_directory.commit() == name + "+"
    (checkout / path).write_text("x = 1\n")


def test_the_code_of_a_run_is_what_computes_it(checkout):
  def code():
    run_directory.code.cache_clear()
    return run_directory.code()

  package = checkout / "saw_jax"
  (package / "reporting").mkdir()
  first = code()
  (package / "reporting" / "a.py").write_text("x = 2\n")
  (package / "training" / "module.py").write_text("x  =  1  # a remark\n")
  assert code() == first
  (package / "training" / "module.py").write_text("x = 2\n")
  second = code()
  (package / "training" / "data.json").write_text("{}")
  assert len({first, second, code()}) == 3
  run_directory.code.cache_clear()
