"""What each table needs, and what `reproduce.py --list` says of it."""

import pathlib

import jax
import pytest

from saw_jax.reporting import catalogue, tables
from saw_jax.run import config as config_lib
from saw_jax.run import registry
from tests import helpers

ROOT = pathlib.Path(__file__).parents[2]
TABLES = {name: catalogue.load(name) for name in catalogue.names()}
AT = [(name, scale) for name, table in TABLES.items() for scale in table.needs]


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
  """A machine without data, models, packages and accelerators."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(catalogue, "has_accelerator", lambda: False)
  monkeypatch.setattr(catalogue, "_is_installed", lambda name: False)
  packages = lambda extra: [f"package-of-{extra}"]  # noqa: E731
  monkeypatch.setattr(catalogue, "_packages", packages)
  return tmp_path


@pytest.fixture
def everything(nowhere, monkeypatch):
  """The same machine, with all packages."""
  monkeypatch.setattr(catalogue, "_is_installed", lambda name: True)
  return nowhere


@pytest.mark.parametrize("name", TABLES)
class TestTable:
  def test_its_parts_are_of_its_own_rows_and_scales(self, name):
    table = TABLES[name]
    assert set(table.needs) == set(config_lib.module(name).SCALES)
    at = (table.metrics_at, table.benchmarks, table.stand_ins)
    for part in (*at, table.published_at):
      assert set(part) <= set(table.needs)
    rows = {row for pair in table.comparisons for row in pair}
    rows |= {row for panel in table.panels.values() for row in panel}
    rows |= {run.row for run in table.runs.values()}
    assert rows <= set(table.rows)
    label, heading = table.primary
    assert label not in table.controls  # which stand beside it
    pair, _, value = label.partition(f", {table.swept} ")
    assert tuple(pair.split(" - ")) in table.comparisons
    values = {run.value for run in table.runs.values()}
    assert not value or float(value) in values
    assert heading in table.columns(next(iter(table.needs)))

  def test_runs_on_request_are_none_of_the_tables_and_have_configs(self, name):
    table = TABLES[name]
    always, asked = table.default_runs, list(table.on_request)
    assert sorted(always + asked) == sorted(table.runs) and always
    for run in asked:
      table.config(run, next(iter(table.needs)))
    # What the paper printed is in the table.
    assert set(table.cells()) <= {table.runs[run].row for run in always}

  def test_its_published_cells_are_one_each(self, name):
    table = TABLES[name]
    for fields in [cell for row in table.cells().values() for cell in row]:
      cells = tables.select(tables.read(fields["paper"].lower()), **fields)
      # The averages of two data sets, of which the first is meant.
      assert len(cells) == (2 if name == "asympo/math" else 1), fields


@pytest.mark.parametrize(("name", "scale"), AT)
class TestScale:
  def test_its_files_model_and_extras_are_right(self, name, scale):
    table, needs = TABLES[name], TABLES[name].needs[scale]
    configs = [table.config(row, scale) for row in table.default_runs]
    leaves = jax.tree.leaves([config.task.to_dict() for config in configs])
    named = {x for x in leaves if isinstance(x, str) and x.startswith("data/")}
    assert named == set(needs.files)
    checkpoint = configs[0].checkpoint
    if not checkpoint:
      assert "trained here" in needs.model
    elif checkpoint != "smollm2":
      assert needs.model.startswith(pathlib.PurePath(checkpoint).name)
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    for extra in needs.extras:
      assert f'\n  "{extra}": ' in text

  def test_columns_of_benchmarks_are_scored_splits(self, name, scale):
    table = TABLES[name]
    config = table.config(table.default_runs[0], scale)
    scored = config.evaluation.benchmarks.to_dict()
    assert scored == table.benchmarks.get(scale, {})
    columns = table.columns(scale).values()
    for column in columns:
      *split, mode, figure = column.split("/")
      assert mode in ("greedy", "sampled")
      if split and split != ["benchmarks"]:
        assert scored[split[0]] or mode == "greedy", column
        if "@" in figure:
          assert figure.endswith(f"@{scored[split[0]]}"), column
    # Nothing is scored for hours and then not shown.
    assert set(scored) <= {column.partition("/")[0] for column in columns}
    if scored:
      task = registry.make_task(config.task.name, config.task.options.to_dict())
      assert set(scored) <= set(task.splits)


@pytest.mark.parametrize("name", ["saw/tool_calling", "saw/summaries"])
def test_rewards_of_a_table_are_those_of_its_task(name):
  table = TABLES[name]
  task = registry.make_task(name.partition("/")[2], {})
  assert table.components == tuple(c.name for c in task.components)
  rewards = {f"reward/{component}" for component in table.components}
  assert set(table.thresholds) == set(table.compared) == rewards
  figures = {figure.partition("/")[2] for figure in table.metrics.values()}
  assert figures <= {*table.components, "right", "total", "length"}


def test_a_run_is_called_after_its_row_and_value():
  table = TABLES["asympo/math"]
  for row in config_lib.module("asympo/math").PAPER_ROWS:
    assert len(table.runs_of(row)) == 4
  for name, run in table.runs.items():
    assert name == f"{run.row}_lag{run.value}"
    assert table.config(name, "tiny").asynchronous.lag == run.value
  table = TABLES["care/knights"]
  for row in ("random", "entropy", "care", "oracle"):
    assert len(table.runs_of(row)) == 5
  for name, run in table.runs.items():
    labels = table.config(name, "tiny").labels
    assert run.row.startswith(labels.method)
    if run.value is not None:
      assert name == f"{run.row}_{run.value:g}"
      assert labels.label_fraction == run.value
  # Budgets of puzzles are swept on request.
  assert len(table.default_runs) == 15
  assert not any("0.4" in run for run in table.default_runs)
  assert "care_0.4" in table.on_request
  assert TABLES["care/math"].on_request == ()
  assert "care_0.4" in TABLES["care/math"].runs_of("care")


def test_runs_that_make_no_table_are_refused():
  table = TABLES["care/knights"]
  table.check(["care_0.05", "vote"])
  table.check(["care_0.05", "random_0.2"])
  with pytest.raises(ValueError, match="none of care_0.05 has labels"):
    table.check(["care_0.05"])


def test_numbers_of_rules_are_labelled():
  table = TABLES["saw/summaries"]
  for scale in table.needs:
    options = table.config("gdpo", scale).task.options
    by_rules = options.reward == "rules"
    assert (scale in table.stand_ins) == by_rules
    if by_rules:
      task = registry.make_task("summaries", options.to_dict())
      assert table.stand_ins[scale] == task.stand_in != ""


def test_an_unknown_table_or_run_has_its_nearest():
  with pytest.raises(ValueError, match="paw/shop"):
    catalogue.load("paw/shopp")
  with pytest.raises(ValueError, match="spo_lag16"):
    TABLES["asympo/math"].config("spo_lag17", "tiny")
  with pytest.raises(ValueError, match="gdpo_saw"):
    TABLES["saw/tool_calling"].config("gdpo_swa", "tiny")


def test_importing_a_table_is_light():
  program = "from saw_jax.reporting import sections, table"
  assert helpers.loaded(program, "matplotlib", "scipy", "markdown_it") == set()


def test_a_scale_adds_columns_and_a_row_may_have_several_published_cells():
  table = TABLES["saw/tool_calling"]
  tiny, paper = (table.columns(scale) for scale in ("tiny", "paper"))
  assert tiny == table.metrics
  assert list(paper)[: len(tiny)] == list(tiny)
  assert paper["BFCL live, greedy"] == "bfcl/greedy/live"
  both = table.cells("tiny")
  assert {f["paper"] for f in both["gdpo"]} == {"SAW", "GDPO"}
  assert {f["paper"] for f in both["gdpo_saw"]} == {"SAW"}
  table = TABLES["asympo/benchmarks"]
  tiny, paper = (table.cells(scale)["grpo_dapo"] for scale in ("tiny", "paper"))
  found = [(f["metric"], f["benchmark"]) for f in tiny]
  assert found == [("mean@8 (%)", "Avg"), ("pass@8 (%)", "Avg")]
  assert len(paper) == 14 and {f["table"] for f in paper} == {"Table 4"}
  assert table.cells()["grpo_dapo"] == paper


class TestMissing:
  def test_tiny_needs_packages_alone(self, everything):
    for name, table in TABLES.items():
      assert catalogue.missing(table, "tiny") == [], name

  def test_a_package_is_named_with_how_to_install_it(self, nowhere):
    assert catalogue.missing(TABLES["saw/summaries"], "tiny") == [
      f"package package-of-{extra}: pip install 'saw_jax[{extra}]'"
      for extra in ("report", "hf", "summaries")
    ]
    how = "pip install --no-deps 'bfcl-eval==2026.3.23' "
    assert f"package bfcl-eval: {how}(docs/reproducing.md, BFCL)" in (
      catalogue.missing(TABLES["saw/tool_calling"], "paper")
    )

  def test_files_models_and_hardware_are_named(self, everything, monkeypatch):
    table = TABLES["saw/tool_calling"]
    found = catalogue.missing(table, "paper")
    train, test = "data/toolrl/train.parquet", "data/toolrl/test.parquet"
    assert len(found) == 3  # bfcl-eval is among the packages that are there
    assert found[0].startswith("model Qwen2.5-1.5B-Instruct: put its Hugging")
    assert found[1].startswith(f"files {train}, {test}: rlla_4k of ")
    assert found[2].startswith("hardware: 4 to 8 GPUs")
    (everything / train).parent.mkdir(parents=True)
    (everything / train).touch()
    assert catalogue.missing(table, "paper")[1].startswith(f"file {test}: ")
    (everything / test).touch()
    (everything / "checkpoints" / "Qwen2.5-1.5B-Instruct").mkdir(parents=True)
    assert catalogue.missing(table, "paper") == found[2:]
    monkeypatch.setattr(catalogue, "has_accelerator", lambda: True)
    assert catalogue.missing(table, "paper") == []

  def test_a_setting_has_to_be_said(self, everything):
    found = catalogue.missing(TABLES["saw/summaries"], "paper")
    start = "setting config.task.options.judge.url: the address"
    assert any(text.startswith(start) for text in found)

  def test_packages_are_read_off_the_installed_metadata(self):
    assert {"matplotlib", "scipy"} <= set(catalogue._packages("report"))
    assert catalogue._packages("no_such_extra") == []
    assert catalogue._is_installed("numpy")
    assert not catalogue._is_installed("no-such-package")


def test_the_list_has_each_table_and_scale(everything):
  text = catalogue.listing()
  assert "PaW in the shop, 11 runs, 17 more by --rows" in text
  for name, table in TABLES.items():
    head = f"{name}: {table.title}, {len(table.default_runs)} runs"
    part = text.partition(head)[2].partition("\n\n")[0]
    for scale in table.needs:
      assert f"\n  {scale}: " in part, (name, scale)
  assert text.count("  tiny: can run here") == len(TABLES)
  assert "  paper: cannot run here, for want of\n    - model " in text
  assert max(map(len, text.splitlines())) <= 88


def test_the_list_has_what_the_papers_print_and_what_is_not_here(everything):
  lines = catalogue.listing().partition("Tables that the papers print")[2]
  flat = " ".join(lines.split())

  def part(head):
    return flat.partition(f"{head}, arXiv:")[2].partition("arXiv")[0]

  gdpo, asympo, paw, saw = map(part, ("GDPO", "ASymPO", "PaW", "SAW"))
  assert "BFCL-v3: saw/tool_calling" in gdpo
  assert gdpo.count("Minerva, Olympiad: gdpo/math") == 2
  assert "Taco: not here" in gdpo and "asympo" not in gdpo
  assert asympo.count("Minerva, Avg: asympo/benchmarks") == 3
  assert "not here" not in asympo
  assert "WebShop: paw/shop" in paw and "ALFWorld Avg: paw/household" in paw
  assert "BFCL-v4: saw/tool_calling" in saw
  assert "Reddit TL;DR: saw/summaries" in saw
  assert "(care): the numbers of its paper are not available" in flat
  assert "composed" not in flat  # no paper has that table
