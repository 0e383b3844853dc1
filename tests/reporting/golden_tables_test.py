"""The tables come out as they did: text and numbers, from made-up runs."""

import json

import pytest

from saw_jax.reporting import plots
from tests.reporting import golden_tables

DIGESTS = json.loads((golden_tables.FOLDER / "digests.json").read_text())


@pytest.fixture
def no_pictures(monkeypatch):
  for draw in ("reward_curves", "metric_panels", "sweep", "difference_forest"):
    monkeypatch.setattr(plots, draw, lambda *args, **options: None)


@pytest.mark.parametrize("case", golden_tables.CASES, ids=golden_tables.name_of)
def test_a_table_is_as_it_was(case, tmp_path, no_pictures):
  out = golden_tables.write(case, tmp_path)
  name = golden_tables.name_of(case)
  if name in golden_tables.WHOLE:
    kept = (golden_tables.FOLDER / f"{name}.md").read_text(encoding="utf-8")
    assert (out / "table.md").read_text(encoding="utf-8") == kept
  assert golden_tables.digest(out) == DIGESTS[name]
