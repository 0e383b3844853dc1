"""What a run says of itself, and who may go on in its directory."""

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


def changed(**sections):
  return {
    name: {**value, **sections[name]}
    if isinstance(sections.get(name), dict)
    else sections.get(name, value)
    for name, value in CONFIG.items()
  }


class TestOpenRun:
  def test_writes_what_is_needed_to_run_it_again(self, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["some/where/train.py", "--workdir=x"])
    document = run_directory.open_run(tmp_path / "deep" / "run", CONFIG)
    assert document == json.loads(
      (tmp_path / "deep" / "run" / "run.json").read_text()
    )
    assert document["config"]["optimizer"] == CONFIG["optimizer"]
    assert document["command"] == "train.py --workdir=x"
    assert {"jax", "flax", "optax", "numpy"} <= set(document["packages"])
    assert document["started"].endswith("Z")
    for name in ("commit", "machine", "python"):
      assert document[name]

  def test_the_same_config_goes_on_and_says_when(self, tmp_path):
    first = run_directory.open_run(tmp_path, CONFIG)
    assert "resumed" not in first
    run_directory.open_run(tmp_path, CONFIG)
    third = run_directory.open_run(tmp_path, CONFIG)
    assert len(third["resumed"]) == 2
    assert run_directory.commits(third) == [first["commit"]]
    third["resumed"][1]["commit"] = "other"
    assert run_directory.commits(third) == [first["commit"], "other"]
    assert {**third, "resumed": None} == {**first, "resumed": None}


class TestCheckRun:
  def test_the_first_key_that_differs_is_named_with_both_values(self, tmp_path):
    run_directory.open_run(tmp_path, CONFIG)
    other = changed(
      loop={"num_steps": 5}, optimizer={"learning_rate": 0.5, "b1": 0.8}
    )
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(run_directory.RunError, match=r"loop.num_steps = 4, no"):
      run_directory.open_run(tmp_path, other)
    assert (tmp_path / "run.json").read_bytes() == before

  @pytest.mark.parametrize(
    ("other", "message"),
    [
      (changed(seeds=[0, 2]), r"seeds = \[0, 1\], not \[0, 2\]"),
      (changed(optimizer={"b2": 0.9}), "optimizer.b2 = None, not 0.9"),
      (changed(task={"options": {"seed": 1}}), "task.options"),
      (
        {k: v for k, v in CONFIG.items() if k != "checkpoint"},
        "checkpoint = '', not None",
      ),
    ],
  )
  def test_new_and_missing_keys_and_lists_are_seen(
    self, tmp_path, other, message
  ):
    run_directory.open_run(tmp_path, CONFIG)
    with pytest.raises(run_directory.RunError, match=message):
      run_directory.check_run(tmp_path, other)

  def test_a_tuple_is_the_list_that_json_made_of_it(self, tmp_path):
    run_directory.open_run(tmp_path, CONFIG)
    run_directory.check_run(tmp_path, changed(loop={"writers": ["wandb"]}))


def test_what_is_no_run_says_so(tmp_path):
  with pytest.raises(run_directory.RunError, match=r"no run\.json"):
    run_directory.read_run(tmp_path)
  for text in ("{", "[]", "{}", '{"config": 3}'):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(run_directory.RunError, match=r"run\.json is damaged"):
      run_directory.read_run(tmp_path)


def git(folder, *words):
  return subprocess.run(
    ["git", "-c", "user.name=x", "-c", "user.email=x@example.org", *words],
    cwd=folder,
    check=True,
    capture_output=True,
    text=True,
  ).stdout.strip()


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


class TestCommit:
  def test_outside_git_it_is_unknown(self, checkout):
    assert run_directory.commit() == "unknown"

  @pytest.mark.parametrize(
    "code", ["saw_jax/training/module.py", "configs/a.py"]
  )
  def test_a_changed_file_is_marked(self, checkout, code):
    name = commit_all(checkout)
    assert run_directory.commit() == name
    (checkout / "saw_jax" / "notes.txt").write_text("not part of the code")
    (checkout / "docs" / "a.md").write_text("nor is this")
    assert run_directory.commit() == name
    (checkout / code).write_text("x = 2\n")
    assert run_directory.commit() == name + "+"


class TestIsSameCode:
  @pytest.mark.parametrize(
    ("path", "is_same"),
    [
      ("docs/a.md", True),
      ("saw_jax/training/module.py", False),
      ("configs/a.py", False),
    ],
  )
  def test_the_library_and_the_configs_count(self, checkout, path, is_same):
    first = commit_all(checkout)
    (checkout / path).write_text("x = 2\n")
    second = commit_all(checkout)
    assert first != second
    assert run_directory.is_same_code(first, second) == is_same
    assert run_directory.is_same_code(second, first) == is_same

  @pytest.mark.parametrize("name", ["unknown", "0123456789", "abc+", "--quiet"])
  def test_what_git_does_not_know_is_only_itself(self, checkout, name):
    known = commit_all(checkout)
    assert run_directory.is_same_code(name, name)
    assert not run_directory.is_same_code(name, known)
