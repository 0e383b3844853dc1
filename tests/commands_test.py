"""The command `saw`: dispatch, comparisons, sweeps, and what fits."""

import contextlib
import csv
import errno
import importlib
import json
import math
import os
import pathlib
import subprocess
import sys
import types
import unittest.mock

import jax
import numpy as np
import pytest
from absl.testing import flagsaver

from saw_jax import commands
from saw_jax.ahead import footprint
from saw_jax.commands import grid
from saw_jax.models import decoder
from saw_jax.models.lora import LoraConfig
from saw_jax.reporting import catalogue, cells, compare, report, sections
from saw_jax.reporting.runs import RowRuns
from saw_jax.run import children, command_line
from saw_jax.run.checkpoint import CheckpointError
from saw_jax.training.parallel import ParallelConfig
from tests import helpers
from tests.reporting import golden_tables

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = "--config=saw/tool_calling:row=gdpo_saw,scale=tiny"


def call(monkeypatch, name: str, *words: object) -> int:
  """Runs a command in this process; a mistake is a UsageError."""
  command = importlib.import_module(f"saw_jax.commands.{name}")
  monkeypatch.setattr(sys, "argv", [f"saw {name}", *map(str, words)])
  command_line.given_config.cache_clear()
  with contextlib.ExitStack() as stack:
    stack.enter_context(flagsaver.flagsaver())
    stack.callback(command_line._OVERRIDES.clear)
    stack.callback(command_line.given_config.cache_clear)
    command_line.define(name)
    return command.main(*command_line._parse(sys.argv)[1:])


# --- dispatch -----------------------------------------------------------------


def dispatch(*words: str):
  program = f"""
import sys
from saw_jax import commands
sys.argv = {["saw", *words]!r}
try:
  commands.main()
finally:
  print("jax" in sys.modules)
"""
  return helpers.python("-c", program)


def test_a_word_that_is_no_command_has_its_nearest_and_loads_no_jax():
  done = dispatch("trian", "--workdir=x")
  assert done.returncode == 2 and done.stdout == "False\n"
  assert done.stderr.startswith("error: ") and "'train'" in done.stderr
  assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
  ("usage", "flag", "other"),
  [
    ("compare runs/a runs/b", "--metrics: ", "--workdir: "),
    ("sweep --workdir=runs/sweep", "--seeds: ", "--metrics: "),
  ],
)
def test_help_of_a_command_has_its_own_flags_alone(usage, flag, other):
  done = dispatch(usage.split()[0], "--help")
  assert (done.returncode, done.stderr) == (0, "")
  assert f"saw {usage}" in done.stdout
  assert flag in done.stdout and other not in done.stdout
  assert done.stdout.endswith("False\n")


def test_every_module_is_a_command_with_its_line(monkeypatch, capsys):
  folder = ROOT / "saw_jax" / "commands"
  modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}
  assert modules == {*commands.NAMES, "grid"}  # of sweep
  monkeypatch.setattr(sys, "argv", ["saw"])
  with pytest.raises(SystemExit) as end:
    commands.main()
  lines = capsys.readouterr().out.splitlines()
  assert end.value.code == 2
  assert [line.split()[0] for line in lines[1:]] == list(commands.NAMES)
  assert max(map(len, lines)) <= 80


def test_names_of_a_registry_and_of_no_registry(monkeypatch, capsys):
  assert call(monkeypatch, "list", "kl_estimators") == 0
  assert capsys.readouterr().out.split() == ["k1", "k2", "k3"]
  with pytest.raises(command_line.UsageError, match="losses"):
    call(monkeypatch, "list", "lossses")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", ["--help", "list --help", "list losses"])
def test_a_pipe_without_reader_ends_it_quietly(words, unbuffered):
  env = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
  line = f"{sys.executable} -m saw_jax {words} | true; echo ${{PIPESTATUS[0]}}"
  done = subprocess.run(["bash", "-c", line], env=env, capture_output=True)
  assert done.stderr == b"" and int(done.stdout) in (0, command_line.UNREAD)


# --- comparisons --------------------------------------------------------------

ROWS = ("gdpo", "gdpo_saw")
SCORES = ("greedy/right", "greedy/total", "sampled/right")


def make_run(folder, name, seeds=(0, 1, 2), *, task="letters", steps=None):
  """A run directory with made-up numbers, maybe not to its end."""
  directory = folder / name
  golden_tables._make_run(directory, name, SCORES, seeds, has_kinds=False)
  config = {"task": {"name": task}, "loss": name, "seeds": list(seeds)}
  (directory / "run.json").write_text(json.dumps({"config": config}))
  for file in ("metrics.csv", "evals.csv") if steps else ():
    head, *lines = (directory / file).read_text().splitlines()
    kept = [line for line in lines if int(line.split(",")[0]) < steps]
    (directory / file).write_text("\n".join([head, *kept, ""]))
    (directory / "final.json").unlink(missing_ok=True)
  return directory


def rows_of(found: compare.Comparison) -> dict[str, compare.Row]:
  return {row.metric: row for row in found.rows}


@pytest.mark.parametrize(
  ("error", "said"),
  [
    (OSError(errno.ENOSPC, "x"), "error: the disk is full"),
    (CheckpointError("damaged"), "error: damaged"),
    (jax.errors.JaxRuntimeError("gone"), "error: a program of all 1"),
    (KeyError("a fault of ours"), "Traceback"),
  ],
)
def test_a_process_that_fails_does_not_wait_for_others(
  monkeypatch, capsys, error, said
):
  """They wait for it: at a checkpoint, for as long as Orbax does."""
  monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
  monkeypatch.setattr(command_line.time, "sleep", lambda _: None)
  leave = unittest.mock.Mock(side_effect=SystemExit)
  monkeypatch.setattr(command_line.os, "_exit", leave)
  with pytest.raises(SystemExit), command_line.leaving_others():
    raise error
  leave.assert_called_once_with(1)
  assert capsys.readouterr().err.startswith(said)


class TestCompare:
  def test_numbers_are_those_of_the_tables(self, tmp_path):
    table = catalogue.load("saw/tool_calling")
    scores = list(table.columns("tiny").values())
    for name in ROWS:
      make = golden_tables._make_run
      make(tmp_path / name, name, scores, (0, 1, 2), has_kinds=False)
      document = {"config": {"task": {"name": "x"}}, "commit": "a"}
      (tmp_path / name / "run.json").write_text(json.dumps(document))
    runs = {name: RowRuns((tmp_path / name,)) for name in ROWS}
    told = sections.comparisons.compare(
      report.Found(table, "tiny", tmp_path, runs)
    )
    expected = told["gdpo_saw - gdpo"]
    found = rows_of(compare.compare([tmp_path / name for name in ROWS]))
    for heading, metric in table.columns("tiny").items():
      assert found[metric].difference == expected[heading]
    for metric, heading in table.compared.items():
      np.testing.assert_allclose(
        np.hstack(found[metric].difference),
        np.hstack(expected[f"{heading}, mean over training"]),
      )

  def test_a_difference_by_hand(self, tmp_path):
    a, b = (make_run(tmp_path, name, (0, 1)) for name in "ab")
    for path, scores in ((a, (0.25, 0.5)), (b, (0.5, 1.0))):
      records = [
        {"seed": seed, "step": 23, "greedy": {"right": score}}
        for seed, score in enumerate(scores)
      ]
      (path / "final.json").write_text(json.dumps(records))
      document = json.loads((path / "run.json").read_text())
      document["files"] = {"rows": path.name, "test": "alike"}
      (path / "run.json").write_text(json.dumps(document))
    found = compare.compare([a, b], ["greedy/right"])
    ((run, control, part, _, value, before, (mean, count, t, *_)),) = found.rows
    assert (run, control, part, count) == ("b", "a", "held out", 2)
    assert (value.mean, before.mean, mean) == (0.75, 0.375, 0.375)
    # 12.706 is Student's quantile of one degree of freedom.
    half = 12.7062 * np.std([0.25, 0.5], ddof=1) / math.sqrt(2)
    np.testing.assert_allclose(t, (0.375 - half, 0.375 + half), rtol=1e-4)
    assert found.notes == ("b - a: loss 'a' -> 'b'; another content of rows.",)
    assert "+0.375" in repr(found) == str(found)

  def test_one_seed_has_no_interval_and_says_so(self, tmp_path, monkeypatch):
    words = [make_run(tmp_path, name, (3,)) for name in "abc"]
    output = tmp_path / "figures" / "all.svg"
    assert call(monkeypatch, "compare", *words, f"--output={output}") == 0
    assert "<svg" in output.read_text()
    with output.with_suffix(".csv").open() as file:
      lines = list(csv.DictReader(file))
    assert {(line["run"], line["control"]) for line in lines} == {
      ("b", "a"),
      ("c", "a"),
    }
    assert all(line["t_low"] == "" and line["seeds"] == "1" for line in lines)
    assert "interval" in compare.compare(words).notes[-1]

  def test_a_run_that_goes_on_is_compared_as_far_as_it_came(self, tmp_path):
    a, b = make_run(tmp_path, "a"), make_run(tmp_path, "b", steps=12)
    found = compare.compare([a, b])
    rows, notes = rows_of(found), " ".join(found.notes)
    assert "0 to 11" in notes and "after the 10 steps" in notes
    values = np.genfromtxt(a / "metrics.csv", delimiter=",", names=True)
    first = values[values["step"] < 12]["rewardtotal"]
    total = rows["reward/total"].control_value.mean
    assert total == pytest.approx(first.mean())
    other = rows_of(compare.compare([b, a]))
    for name in ("reward/total", "greedy/total"):
      assert other[name].difference.mean == -rows[name].difference.mean
    # There are no sampled scores before the end.
    assert {row.metric for row in found.rows if row.part == "held out"} == {
      f"greedy/{name}"
      for name in ("right", "observation_accuracy", *golden_tables._REWARDS)
    }

  def test_what_one_of_them_lacks_is_left_out_and_said(self, tmp_path):
    a, b = make_run(tmp_path, "a"), make_run(tmp_path, "b")
    records = json.loads((b / "final.json").read_text())
    records[0]["greedy"]["total"] = None  # nothing of it could be scored
    (b / "final.json").write_text(json.dumps(records))
    found = compare.compare([a, b])
    names = {row.metric for row in found.rows if row.part == "held out"}
    assert names == {"greedy/right", "sampled/right"}
    assert "b - a: without greedy/total, not a number for each." in str(found)
    (b / "evals.csv").write_text("step,seed,right\n7,0,1\n7,1,1\n7,2,1\n")
    (b / "final.json").unlink()
    found = compare.compare([a, b])
    assert {row.part for row in found.rows} == {"training"}
    assert "b - a: nothing held out after as many steps." in found.notes

  def test_seeds_are_paired_and_the_others_named(self, tmp_path):
    a, b = make_run(tmp_path, "a", (0, 1, 2)), make_run(tmp_path, "b", (2, 1))
    found = compare.compare([a, b])
    assert {row.difference.count for row in found.rows} == {2}
    assert any("seeds" in note and "1 to 2" in note for note in found.notes)

  @pytest.mark.parametrize(
    ("change", "metrics", "word"),
    [
      ({"task": "math"}, None, "'math'"),
      ({"seeds": (7, 8)}, None, "no seeds in common"),
      ({}, ["greedy/rigth"], "'greedy/right'"),
      ({}, "greedy/rigth", "'greedy/right'"),
    ],
  )
  def test_what_cannot_be_compared(self, tmp_path, change, metrics, word):
    a, b = make_run(tmp_path, "a"), make_run(tmp_path, "b", **change)
    with pytest.raises((ValueError, KeyError), match=word):
      compare.compare([a, b], metrics)

  @pytest.mark.parametrize(
    ("words", "word"),
    [
      (["A"], "two"),
      (["A", "A"], "differ"),
      (["A", "docs"], "docs is no run directory"),
      (["A", "B", "--output=x.jpg"], "x.jpg"),
    ],
  )
  def test_mistakes(self, tmp_path, monkeypatch, words, word):
    made = {name: make_run(tmp_path, name) for name in "AB"}
    monkeypatch.chdir(ROOT)
    with pytest.raises((command_line.UsageError, ValueError), match=word):
      call(monkeypatch, "compare", *(made.get(word, word) for word in words))


# --- sweeps -------------------------------------------------------------------


class TestGrid:
  def test_cells_are_all_combinations_by_name(self):
    found = grid.cells(["optimizer.b1=0.8,0.9", "algorithm.loss=spo,asympo"])
    assert list(found)[:2] == ["b1=0.8,loss=spo", "b1=0.8,loss=asympo"]
    assert len(found) == 4
    assert found["b1=0.9,loss=spo"] == {
      "optimizer.b1": "0.9",
      "algorithm.loss": "spo",
    }

  def test_a_list_is_one_value_and_a_path_no_folder(self):
    assert [
      cell["rollout.stops"]
      for cell in grid.cells(["rollout.stops=['a','b'],('c',),[]"]).values()
    ] == ["['a','b']", "('c',)", "[]"]
    assert list(grid.cells(["checkpoint=/a/b,c d"])) == [
      "checkpoint=-a-b",
      "checkpoint=c-d",
    ]

  def test_keys_that_end_alike_are_named_whole(self):
    (name,) = grid.cells(["a.seed=1", "b.seed=2"])
    assert name == "a.seed=1,b.seed=2"

  @pytest.mark.parametrize(
    "texts", [["a"], ["a="], ["a=1,"], ["a=1,1"], ["a=1", "a=2"], ["a=x/,x:"]]
  )
  def test_mistakes(self, texts):
    with pytest.raises(ValueError, match="--grid"):
      grid.cells(texts)

  def test_other_flags_are_passed_on_as_they_were_typed(self):
    words = ["--grid", "a=1", "-workdir=x", "--seeds", "0,1", "--grid=b=2"]
    assert grid.without(words, ("grid", "workdir")) == ["--seeds", "0,1"]


class TestSweep:
  GRID = ("--grid", "loop.group_size=4,8", "--grid=algorithm.loss=spo,asympo")
  CELLS = (
    *("group_size=4,loss=spo", "group_size=4,loss=asympo"),
    *("group_size=8,loss=spo", "group_size=8,loss=asympo"),
  )

  @pytest.fixture
  def ran(self, monkeypatch):
    """The cells that were trained, by a stand-in that writes their scores."""
    ran, ends = [], {}

    def run(self, words):
      (place,) = (w for w in words if w.startswith("--workdir="))
      directory = pathlib.Path(place.removeprefix("--workdir="))
      ran.append(directory.name)
      if status := ends.get(directory.name, 0):
        return status
      directory.mkdir(parents=True)
      scores = {"total": 0.5 + len(ran), "right": 0.25}
      record = {"seed": 0, "step": 60, "greedy": scores}
      (directory / "final.json").write_text(json.dumps([record]))
      return 0

    monkeypatch.setattr(children.Children, "run", run)
    return ran, ends

  def test_it_goes_on_where_it_was_and_ends_with_a_table(
    self, tmp_path, monkeypatch, capsys, ran
  ):
    ran, ends = ran
    words = [f"--workdir={tmp_path}", CONFIG, "--config.loop.num_steps=60"]
    words += self.GRID
    ends[self.CELLS[1]] = command_line.INTERRUPTED
    assert call(monkeypatch, "sweep", *words) == command_line.INTERRUPTED
    assert ran == list(self.CELLS[:2])
    # The same command: what is finished is not begun again.
    ran.clear()
    ends[self.CELLS[1]] = 2
    assert call(monkeypatch, "sweep", *words) == 1
    assert ran == list(self.CELLS[1:])
    said = capsys.readouterr().out
    assert f"failed: {self.CELLS[1]}, with status 2" in said
    ends.clear()
    assert call(monkeypatch, "sweep", *words) == 0
    assert ran[3:] == [self.CELLS[1]]
    with (tmp_path / "sweep.csv").open() as file:
      lines = list(csv.DictReader(file))
    keys = ("loop.group_size", "algorithm.loss", "seed", "greedy/total")
    assert [tuple(line[key] for key in keys) for line in lines] == [
      ("4", "spo", "0", "1.5"),
      ("4", "asympo", "0", "4.5"),
      ("8", "spo", "0", "2.5"),
      ("8", "asympo", "0", "3.5"),
    ]

  def test_cells_with_other_scores_or_none_are_in_one_table(self, tmp_path):
    for name, greedy, more in (
      ("a", 0.5, {"sampled": {"total": 0.25}}),
      ("b", None, {}),  # nothing could be scored
    ):
      record = {"seed": 0, "step": 60, "greedy": {"total": greedy}, **more}
      (tmp_path / name).mkdir()
      (tmp_path / name / "final.json").write_text(json.dumps([record]))
    samples = {"a": "4", "b": "0"}
    keys = {k: {"evaluation.samples": n} for k, n in samples.items()}
    _, one, other, _ = cells.write(tmp_path, keys).splitlines()
    assert one.split() == ["4", "0.500", "0.250"]
    assert other.split() == ["0", "–", "–"]

  def test_a_longer_sweep_is_not_finished(self, tmp_path, monkeypatch, ran):
    ran, _ = ran
    cell = ["--grid=loop.group_size=4", f"--workdir={tmp_path}", CONFIG]
    for steps in (60, 61):
      with contextlib.suppress(FileExistsError):  # the stand-in is asked again
        call(monkeypatch, "sweep", *cell, f"--config.loop.num_steps={steps}")
    assert len(ran) == 2

  @pytest.mark.parametrize(
    ("grids", "word"),
    [
      (["loop.group_sise=4"], "group_size"),
      (["loop.group_size=4,many"], "many"),
      (["algorithm.loss=spo,asymppo"], "asympo"),
      (["parallel.lift=seeded,meshed", "parallel.fsdp=64"], "devices"),
    ],
  )
  def test_a_bad_cell_is_said_before_anything_runs(
    self, tmp_path, monkeypatch, ran, grids, word
  ):
    words = [f"--workdir={tmp_path / 'x'}", CONFIG]
    with pytest.raises((command_line.UsageError, SystemExit), match=word):
      call(monkeypatch, "sweep", *words, *(f"--grid={text}" for text in grids))
    assert ran[0] == [] and not (tmp_path / "x").exists()

  def test_a_plan_prints_commands(self, tmp_path, monkeypatch, capsys, ran):
    words = [f"--workdir={tmp_path}", CONFIG, "--seeds=0,1", *self.GRID]
    assert call(monkeypatch, "sweep", *words, "--plan=print") == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == (
      f"saw train {CONFIG} --seeds=0,1 --workdir={tmp_path}/{self.CELLS[0]} "
      "--config.loop.group_size=4 --config.algorithm.loss=spo"
    )
    assert len(rest) == 3 and ran[0] == []

  def test_a_job_array_runs_its_cell(self, tmp_path, monkeypatch, ran):
    monkeypatch.setattr(sys, "executable", "echo")
    words = [f"--workdir={tmp_path / 'my runs'}", CONFIG, *self.GRID]
    assert call(monkeypatch, "sweep", *words, "--plan=slurm") == 0
    path = tmp_path / "my runs" / "sweep.sbatch"
    assert "#SBATCH --array=0-3\n" in path.read_text()
    done = subprocess.run(
      ["bash", path],
      env={"SLURM_ARRAY_TASK_ID": "2", "PATH": "/bin:/usr/bin"},
      capture_output=True,
      text=True,
      check=True,
    )
    assert done.stdout.startswith(f"-m saw_jax train {CONFIG}")
    assert f"--workdir={tmp_path}/my runs/{self.CELLS[2]} " in done.stdout
    assert ran[0] == []

  def test_submitit_gets_all_cells(self, tmp_path, monkeypatch, capsys, ran):
    words = [f"--workdir={tmp_path / 'x'}", CONFIG, *self.GRID, "--plan=slurm"]
    words += ["--submit=slurm,timeout_min=5,slurm_account=me"]
    fake = unittest.mock.MagicMock()
    made = fake.AutoExecutor.return_value
    made.update_parameters.side_effect = AssertionError("no account")
    for module, word in ((None, "saw_jax.submitit"), (fake, "no account")):
      monkeypatch.setitem(sys.modules, "submitit", module)
      with pytest.raises(command_line.UsageError, match=word):
        call(monkeypatch, "sweep", *words)
    assert not (tmp_path / "x").exists()
    named = {"name": "x", "timeout_min": 5, "slurm_account": "me"}
    made.update_parameters.side_effect = None
    made.map_array.side_effect = lambda fn, every: [
      types.SimpleNamespace(job_id=words[-3]) for words in every
    ]
    assert call(monkeypatch, "sweep", *words) == 0
    made.update_parameters.assert_called_with(**named)
    assert capsys.readouterr().out.splitlines()[1:] == [
      f"  job --workdir={tmp_path / 'x' / name}: {name}" for name in self.CELLS
    ]


# --- what fits ----------------------------------------------------------------


class TestFit:
  def held(self, devices=1, **changes) -> dict[str, float]:
    return footprint.per_device(helpers.experiment(**changes), devices)

  def test_parameters_gradients_and_moments(self):
    sizes = self.held()
    shapes = jax.tree.leaves(decoder.param_shapes(helpers.CONFIG))
    count = sum(x.size for x in shapes)
    assert sizes["parameters"] == sizes["gradients"] == 4 * count
    assert sizes["moments of the optimizer"] == pytest.approx(8 * count, abs=16)
    # Keys and values of 16 rows of 53 tokens, one head of 8, float32.
    cache = 2 * 4 * 16 * 53 * 8
    assert sizes["cache of keys and values"] == pytest.approx(cache, rel=0.05)
    assert sizes["reference for the KL"] == 0

  def test_a_mesh_splits_and_a_longer_group_does_not(self):
    alone = self.held()
    meshed = ParallelConfig(lift="meshed", fsdp=4)
    split = self.held(4, parallel=meshed)
    # Of 259 rows of the embedding and 16 of the stream, the second divide.
    for name in ("parameters", "gradients"):
      assert split[name] == pytest.approx(alone[name] / 4, rel=0.01)
    name = "cache of keys and values"
    assert split[name] == pytest.approx(alone[name] / 4, rel=0.05)
    larger = self.held(loop={"group_size": 8})
    assert larger["parameters"] == alone["parameters"]
    assert larger[name] == pytest.approx(2 * alone[name], rel=0.05)
    with pytest.raises(ValueError, match="devices"):
      self.held(3, parallel=meshed)

  def test_adapters_train_less_and_are_merged(self):
    alone, thin = self.held(), self.held(lora=LoraConfig(rank=2))
    assert thin["gradients"] < alone["gradients"] / 2
    assert thin["adapters merged"] == alone["parameters"]
    assert thin["parameters"] == alone["parameters"] + thin["gradients"]

  def test_the_peak_is_of_one_phase(self):
    names = [*footprint.HELD, *footprint.SAMPLING, *footprint.UPDATING]
    sizes = dict.fromkeys(names, 1.0)
    most = len(footprint.HELD) + len(footprint.UPDATING)
    assert footprint.peak(sizes) == (most, "an update")

  def test_the_command_says_what_would_help(self, monkeypatch, capsys):
    assert call(monkeypatch, "fit", CONFIG, "--memory=16") == 0
    assert call(monkeypatch, "fit", CONFIG, "--memory=0.01") == 1
    assert "num_microbatches" in capsys.readouterr().out


def test_compiled_programs_are_kept_where_it_is_said(tmp_path, monkeypatch):
  from saw_jax.commands import train

  name, kept = "jax_compilation_cache_dir", tmp_path / ".compiled"
  before = jax.config.jax_compilation_cache_dir
  try:
    for given, there, now in (
      (None, None, str(kept)),  # beside the run directory
      (None, "chosen", "chosen"),  # by the environment
      ("here", "chosen", "here"),
      ("", "chosen", None),
    ):
      jax.config.update(name, there)
      train._keep_programs(given, str(tmp_path / "run"))
      assert jax.config.jax_compilation_cache_dir == now
  finally:
    jax.config.update(name, before)
