"""What each table needs, and what `reproduce.py --list` says of it."""

import pathlib
from collections.abc import Iterator
from typing import Any

import pytest

from saw_jax.reporting import catalogue
from saw_jax.run import registry

MODULES = {name: catalogue.load(name) for name in catalogue.names()}
AT = [
  (name, scale) for name, module in MODULES.items() for scale in module.SCALES
]


def strings(tree: Any) -> Iterator[str]:
  if isinstance(tree, dict):
    for value in tree.values():
      yield from strings(value)
  elif isinstance(tree, list | tuple):
    for value in tree:
      yield from strings(value)
  elif isinstance(tree, str):
    yield tree


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
  """A machine without data, models, packages and accelerators."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(catalogue, "_count_accelerators", lambda: 0)
  monkeypatch.setattr(
    catalogue, "_packages", lambda extra: [f"package-of-{extra}"]
  )
  monkeypatch.setattr(catalogue, "_is_installed", lambda name: False)
  return tmp_path


@pytest.fixture
def everything(nowhere, monkeypatch):
  """The same machine, with all packages."""
  monkeypatch.setattr(catalogue, "_is_installed", lambda name: True)
  return nowhere


class TestNeeds:
  @pytest.mark.parametrize(("table", "scale"), AT)
  def test_its_files_are_those_of_the_config(self, table, scale):
    module = MODULES[table]
    configs = [
      catalogue.config(module, row, scale) for row in catalogue.rows(module)
    ]
    named = {
      text
      for config in configs
      for text in strings(config.task.to_dict())
      if text.startswith("data/")
    }
    assert named == set(catalogue.needs(module, scale).files)

  @pytest.mark.parametrize("table", MODULES)
  def test_there_is_one_for_each_scale(self, table):
    assert tuple(MODULES[table].NEEDS) == MODULES[table].SCALES

  @pytest.mark.parametrize(("table", "scale"), AT)
  def test_its_model_is_the_checkpoint(self, table, scale):
    module = MODULES[table]
    config = catalogue.config(module, catalogue.rows(module)[0], scale)
    said = catalogue.needs(module, scale).model
    if not config.checkpoint:
      assert "trained here" in said
    elif config.checkpoint != "smollm2":
      assert said.startswith(pathlib.PurePath(config.checkpoint).name)

  @pytest.mark.parametrize(("table", "scale"), AT)
  def test_its_extras_exist(self, table, scale):
    text = (catalogue.CONFIGS.parent / "setup.py").read_text(encoding="utf-8")
    for extra in catalogue.needs(MODULES[table], scale).extras:
      assert f'\n  "{extra}": ' in text

  def test_a_key_that_there_is_not_is_refused(self, monkeypatch):
    module = MODULES["saw/tool_calling"]
    monkeypatch.setitem(module.NEEDS["tiny"], "memory", "8 GB")
    with pytest.raises(TypeError, match="memory"):
      catalogue.needs(module, "tiny")


class TestRows:
  @pytest.mark.parametrize("table", MODULES)
  def test_those_on_request_are_none_of_the_tables_and_have_configs(
    self, table
  ):
    module = MODULES[table]
    always, asked = catalogue.rows(module), catalogue.on_request(module)
    every = list(getattr(module, "RUNS", module.ROWS))
    assert sorted(always + asked) == sorted(every) and always
    for row in asked:
      catalogue.config(module, row, module.SCALES[0])
    # What the paper printed is in the table.
    assert set(module.PUBLISHED) <= {
      every[i] if not hasattr(module, "RUNS") else module.RUNS[every[i]][0]
      for i in range(len(every))
      if every[i] in always
    }

  def test_budgets_of_puzzles_are_swept_on_request(self):
    module = MODULES["care/knights"]
    assert len(catalogue.rows(module)) == 15
    assert not any("0.4" in row for row in catalogue.rows(module))
    assert "care_0.4" in catalogue.on_request(module)
    assert catalogue.on_request(MODULES["care/math"]) == []


class TestMissing:
  def test_tiny_needs_packages_alone(self, everything):
    for table, module in MODULES.items():
      assert catalogue.missing(module, "tiny") == [], table

  def test_a_package_is_named_with_its_extra(self, nowhere):
    assert catalogue.missing(MODULES["paw/shop"], "tiny") == [
      "package package-of-report: pip install 'saw_jax[report]'",
      "package package-of-search: pip install 'saw_jax[search]'",
    ]

  def test_files_models_and_hardware_are_named(self, everything):
    module = MODULES["saw/tool_calling"]
    found = catalogue.missing(module, "paper")
    assert len(found) == 3  # bfcl-eval is among the packages that are there
    assert found[0].startswith("model Qwen2.5-1.5B-Instruct: put its Hugging")
    assert found[1].startswith(
      "files data/toolrl/train.parquet, data/toolrl/test.parquet: rlla_4k of "
    )
    assert found[2].startswith("hardware: 4 to 8 GPUs")
    (everything / "data" / "toolrl").mkdir(parents=True)
    (everything / "data" / "toolrl" / "train.parquet").touch()
    assert catalogue.missing(module, "paper")[1].startswith(
      "file data/toolrl/test.parquet: "
    )
    (everything / "data" / "toolrl" / "test.parquet").touch()
    (everything / "checkpoints" / "Qwen2.5-1.5B-Instruct").mkdir(parents=True)
    assert catalogue.missing(module, "paper") == found[2:]

  def test_an_accelerator_is_enough(self, everything, monkeypatch):
    module = MODULES["asympo/math"]
    (everything / "checkpoints" / "Qwen2.5-1.5B-Instruct").mkdir(parents=True)
    assert len(catalogue.missing(module, "small")) == 1
    monkeypatch.setattr(catalogue, "_count_accelerators", lambda: 1)
    assert catalogue.missing(module, "small") == []

  def test_a_setting_has_to_be_said(self, everything):
    found = catalogue.missing(MODULES["saw/summaries"], "paper")
    assert any(
      text.startswith("setting config.task.options.judge.url: the address")
      for text in found
    )

  def test_packages_are_read_off_the_installed_metadata(self):
    assert {"matplotlib", "scipy"} <= set(catalogue._packages("report"))
    assert catalogue._packages("no_such_extra") == []
    assert catalogue._is_installed("numpy")
    assert not catalogue._is_installed("no-such-package")

  def test_a_package_of_no_extra_is_named_with_how_to_install_it(self, nowhere):
    found = catalogue.missing(MODULES["saw/tool_calling"], "paper")
    assert (
      "package bfcl-eval: pip install --no-deps 'bfcl-eval==2026.3.23' "
      "(docs/reproducing.md, BFCL)"
    ) in found


class TestColumns:
  @pytest.mark.parametrize(("table", "scale"), AT)
  def test_those_of_benchmarks_are_scored(self, table, scale):
    module = MODULES[table]
    config = catalogue.config(module, catalogue.rows(module)[0], scale)
    scored = config.evaluation.benchmarks.to_dict()
    assert scored == getattr(module, "BENCHMARKS", {}).get(scale, {})
    names = catalogue.metrics(module, scale).values()
    for name in names:
      *split, mode, figure = name.split("/")
      assert mode in ("greedy", "sampled")
      if not split or split == ["benchmarks"]:
        continue
      assert scored[split[0]] or mode == "greedy", name
      if "@" in figure:
        assert figure.endswith(f"@{scored[split[0]]}"), name
    # Nothing is scored for hours and then not shown.
    assert set(scored) <= {name.partition("/")[0] for name in names}

  @pytest.mark.parametrize(("table", "scale"), AT)
  def test_benchmarks_are_splits_of_the_task(self, table, scale):
    module = MODULES[table]
    config = catalogue.config(module, catalogue.rows(module)[0], scale)
    if not config.evaluation.benchmarks:
      return
    task = registry.make_task(config.task.name, config.task.options.to_dict())
    assert set(config.evaluation.benchmarks) <= set(task.splits)

  def test_a_scale_adds_its_own(self):
    module = MODULES["saw/tool_calling"]
    tiny, paper = (catalogue.metrics(module, s) for s in ("tiny", "paper"))
    assert tiny == module.METRICS
    assert list(paper)[: len(tiny)] == list(tiny)
    assert paper["BFCL live, greedy"] == "bfcl/greedy/live"

  def test_a_row_may_have_several_published_cells(self):
    module = MODULES["asympo/benchmarks"]
    tiny = catalogue.published(module, "tiny")["grpo_dapo"]
    assert [(f["metric"], f["benchmark"]) for f in tiny] == [
      ("mean@8 (%)", "Avg"),
      ("pass@8 (%)", "Avg"),
    ]
    paper = catalogue.published(module, "paper")["grpo_dapo"]
    assert len(paper) == 14 and {f["table"] for f in paper} == {"Table 4"}
    assert catalogue.published(module)["grpo_dapo"] == paper
    both = catalogue.published(MODULES["saw/tool_calling"], "tiny")
    assert {f["paper"] for f in both["gdpo"]} == {"SAW", "GDPO"}
    assert {f["paper"] for f in both["gdpo_saw"]} == {"SAW"}


class TestListing:
  def test_each_table_and_scale_is_there(self, everything):
    text = catalogue.listing()
    assert "PaW in the shop, 11 runs, 11 more by --rows" in text
    for table, module in MODULES.items():
      head = f"{table}: {module.TITLE}, {len(catalogue.rows(module))} runs"
      part = text.partition(head)[2].partition("\n\n")[0]
      for scale in module.SCALES:
        assert f"\n  {scale}: " in part, (table, scale)
    assert text.count("  tiny: can run here") == len(MODULES)
    assert "  paper: cannot run here, for want of\n    - model " in text
    assert max(map(len, text.splitlines())) <= 88

  def test_what_the_papers_print_is_there_with_what_is_not_here(
    self, everything
  ):
    lines = catalogue.listing().partition("Tables that the papers print")[2]
    flat = " ".join(lines.split())
    gdpo = flat.partition("GDPO, arXiv:2601.05242")[2].partition("arXiv")[0]
    assert "BFCL-v3: saw/tool_calling" in gdpo
    assert gdpo.count("Minerva, Olympiad: gdpo/math") == 2
    assert "Taco: not here" in gdpo and "asympo" not in gdpo
    asympo = flat.partition("ASymPO, arXiv:2606.03070")[2].partition("arXiv")[0]
    assert asympo.count("Minerva, Avg: asympo/benchmarks") == 3
    assert "not here" not in asympo
    paw = flat.partition("PaW, arXiv:2606.02388")[2].partition("arXiv")[0]
    assert "WebShop: paw/shop" in paw and "ALFWorld Avg: paw/household" in paw
    saw = flat.partition("SAW, arXiv:2606.07705")[2]
    assert "BFCL-v4: saw/tool_calling" in saw
    assert "Reddit TL;DR: saw/summaries" in saw
    assert "(care): the numbers of its paper are not available" in flat
    assert "composed" not in flat  # no paper has that table

  def test_unknown_names_are_answered_with_the_nearest(self):
    with pytest.raises(ValueError, match="did you mean 'paw/shop'"):
      catalogue.load("paw/shopp")
    module = MODULES["asympo/math"]
    with pytest.raises(ValueError, match="did you mean 'spo_lag16'"):
      catalogue.config(module, "spo_lag17", "tiny")
