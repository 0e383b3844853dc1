"""Which runs a table has, which it lacks, and whether they belong together."""

import errno
import json
import subprocess
import sys

import pytest

from saw_jax.reporting import catalogue, report, run_plan
from saw_jax.reporting.report import RowRuns
from saw_jax.run.run_directory import RunError
from tests import experiments_test

CONFIG = {"scale": "tiny", "loop": {"num_steps": 9}}


def finish(folder, name, seeds, *, commit="abc", config=CONFIG):
  directory = folder / name
  directory.mkdir(parents=True)
  document = {"config": {**config, "seeds": list(seeds)}, "commit": commit}
  (directory / "run.json").write_text(json.dumps(document))
  (directory / "final.json").write_text(
    json.dumps([{"seed": seed, "step": 9} for seed in seeds])
  )
  return directory


class TestPlanRow:
  def plan(self, folder, count, row="gdpo", config=CONFIG):
    return run_plan.plan_row(folder, row, range(count), config)

  def test_nothing_is_there(self, tmp_path):
    plan = self.plan(tmp_path / "none", 5)
    assert plan.there == RowRuns(())
    assert plan.missing == (0, 1, 2, 3, 4)
    assert plan.directory == tmp_path / "none" / "gdpo_seeds_5"
    assert plan.whole == RowRuns((plan.directory,), plan.missing)

  def test_only_the_seeds_that_no_run_has_are_run(self, tmp_path):
    first = finish(tmp_path, "gdpo_seeds_5", range(5))
    finish(tmp_path, "gdpo_saw_seeds_8", range(8))  # another row
    plan = self.plan(tmp_path, 8)
    assert plan.there == RowRuns((first,), (0, 1, 2, 3, 4))
    assert plan.missing == (5, 6, 7)
    assert plan.directory == tmp_path / "gdpo_seeds_5-7"
    second = finish(tmp_path, plan.directory.name, plan.missing)
    again = self.plan(tmp_path, 8)
    assert again.missing == ()
    assert set(again.whole.directories) == {first, second}
    assert again.whole.seeds == tuple(range(8))

  def test_a_run_that_has_not_finished_goes_on_in_its_place(self, tmp_path):
    path = finish(tmp_path, "gdpo_seeds_5", range(5))
    # Fewer seeds are those of a larger run.
    assert self.plan(tmp_path, 3).whole == RowRuns((path,), (0, 1, 2))
    (path / "final.json").unlink()
    plan = self.plan(tmp_path, 5)
    assert plan.missing == (0, 1, 2, 3, 4)
    assert plan.directory == path

  def test_a_hole_is_named_by_its_seeds(self, tmp_path):
    finish(tmp_path, "gdpo_seeds_1-2", [1, 2])
    plan = self.plan(tmp_path, 5)
    assert plan.directory.name == "gdpo_seeds_0,3,4"

  def test_runs_that_share_a_seed_are_not_put_together(self, tmp_path):
    finish(tmp_path, "gdpo_seeds_2", [0, 1])
    finish(tmp_path, "gdpo_seeds_1-3", [1, 2, 3])
    plan = self.plan(tmp_path, 4)
    assert len(plan.there.directories) == 1
    assert set(plan.missing) | set(plan.there.seeds) == {0, 1, 2, 3}

  def test_another_config_is_refused(self, tmp_path):
    """Another scale in the same table, say."""
    finish(tmp_path, "gdpo_seeds_5", range(5), config={**CONFIG, "scale": "s"})
    with pytest.raises(RunError, match="with scale = 's', not 'tiny'"):
      self.plan(tmp_path, 5)
    assert self.plan(tmp_path, 5, config=None).missing == ()


class TestCheckCommits:
  def test_all_that_is_made_has_one_commit(self, tmp_path):
    rows = {
      row: RowRuns((finish(tmp_path, row, [0], commit=commit),))
      for row, commit in (("a", "abc"), ("b", "def"), ("c", "abc"))
    }
    same = {row: rows[row] for row in "ac"}
    run_plan.check_commits(same)
    run_plan.check_commits(same, now="abc")
    with pytest.raises(ValueError, match=r"abc: a, c; def: b\)"):
      run_plan.check_commits(rows)
    # So has code that would be the second, and a run that went on with it.
    with pytest.raises(ValueError, match="abc: a, c; def: what is missing"):
      run_plan.check_commits(same, now="def")
    path = tmp_path / "a" / "run.json"
    document = json.loads(path.read_text())
    document["resumed"] = [{"at": "noon", "commit": "def"}]
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match="abc: a; def: a"):
      run_plan.check_commits({"a": rows["a"]})

  def test_the_script_refuses_before_anything_runs(self, tmp_path):
    table = catalogue.load("saw/tool_calling")
    runs = tmp_path / "saw/tool_calling/tiny"
    for row, commit in (("gdpo", "abc"), ("gdpo_saw", "def")):
      config = table.config(row, "tiny").to_dict()
      path = finish(runs, f"{row}_seeds_1", [0], commit=commit, config=config)
    words = ["--table=saw/tool_calling", "--seeds=1", "--rows=gdpo,gdpo_saw"]
    words += [f"--runs={tmp_path}", f"--out={tmp_path / 'out'}"]
    said = experiments_test.complaint("reproduce", *words)
    assert "abc: gdpo; def: gdpo_saw" in said
    assert "--mixed" in said
    # With --mixed it goes on to read them: one has been half-written.
    (path / "final.json").write_text('[{"seed": 0, "st')
    done = experiments_test.script("reproduce", *words, "--mixed")
    assert done.returncode == 2
    said = done.stderr.splitlines()[-1]
    assert said.startswith(f"error: {path / 'final.json'} is damaged")
    assert not (tmp_path / "out").exists()


class TestReplacing:
  def test_a_failure_leaves_what_was_there(self, tmp_path):
    out = tmp_path / "results" / "tiny"
    with report.replacing(out) as folder:
      (folder / "table.md").write_text("first")
      (folder / "runs.csv").write_text("1")
    with pytest.raises(OSError), report.replacing(out) as folder:
      (folder / "runs.csv").write_text("2")
      raise OSError(errno.ENOSPC, "no room")
    assert (out / "runs.csv").read_text() == "1"
    assert [path.name for path in out.parent.iterdir()] == ["tiny"]
    with report.replacing(out) as folder:
      (folder / "table.md").write_text("second")
    assert (out / "table.md").read_text() == "second"
    assert (out / "runs.csv").read_text() == "1"

  def test_the_table_is_moved_last(self, tmp_path, monkeypatch):
    moved = []
    monkeypatch.setattr(
      report.shutil, "move", lambda file, to: moved.append(to.name)
    )
    with report.replacing(tmp_path / "tiny") as folder:
      for name in ("table.csv", "table.md", "wasted.png", "curves.csv"):
        (folder / name).touch()
    assert len(moved) == 4 and moved[-1] == "table.md"


class TestFullDisk:
  """In a process of its own: a script sets up logging for itself."""

  PROGRAM = """
import errno, os
from saw_jax.run import command_line

def main():
  try:
    raise {error}
  except Exception as inner:
    raise RuntimeError("while saving") from inner

command_line.run(main)
"""

  @pytest.mark.parametrize(
    "error",
    [
      "OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'metrics.csv')",
      "ValueError('RESOURCE_EXHAUSTED: write: No space left on device')",
    ],
  )
  def test_is_one_sentence(self, error):
    done = subprocess.run(
      [sys.executable, "-c", self.PROGRAM.format(error=error)],
      cwd=experiments_test.ROOT,
      capture_output=True,
      text=True,
      check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: the disk is full")
    assert done.stderr.count("\n") == 1
