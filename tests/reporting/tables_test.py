import csv
import io

import numpy as np
import pytest

from saw_jax.reporting import papers, statistics, tables
from saw_jax.reporting.runs import Finals


def published(**changes):
  fields = {
    "paper": "SAW",
    "arxiv": "2606.07705",
    "table": "Table 1",
    "model": "Qwen",
    "method": "GDPO",
    "benchmark": "BFCL",
    "metric": "Acc",
    "value": 33.82,
    "source": "primary",
  }
  return papers.PublishedCell(**{**fields, **changes})


def table(**cells):
  own = {
    "gdpo": {"total": tables.OwnCell.from_seeds({0: 1.0, 1: 2.0, 2: 3.0})},
    "gdpo_saw": {"total": tables.OwnCell.from_seeds({0: 0.5})},
  }
  return tables.Table(
    title="Tool calls",
    scale="tiny",
    own=own,
    published={row: {"Acc": cell} for row, cell in cells.items()},
  )


def lines_of(text, start):
  return [line for line in text.splitlines() if line.startswith(start)]


class TestTable:
  def test_a_published_cell_is_not_one_of_ours(self):
    with pytest.raises(TypeError, match="expected OwnCell, got PublishedCell"):
      tables.Table("t", "tiny", own={"gdpo": {"Acc": published()}})

  def test_one_of_ours_is_not_a_published_cell(self):
    own = tables.OwnCell.from_seeds({0: 1.0})
    with pytest.raises(TypeError, match="expected PublishedCell, got OwnCell"):
      tables.Table("t", "tiny", own={}, published={"gdpo": {"Acc": own}})


class TestOwnCells:
  def test_each_row_and_metric(self):
    finals = Finals(9, (0, 1), {"greedy/total": np.array([1.0, 3.0])})
    cells = tables.own_cells({"gdpo": finals}, {"total": "greedy/total"})
    assert cells["gdpo"]["total"].summary.mean == 2.0
    assert cells["gdpo"]["total"].summary.count == 2


class TestToMarkdown:
  def test_own_cells(self):
    text = tables.to_markdown(table(), digits=2)
    assert lines_of(text, "| ") == [
      "| row | total (here, tiny) |",
      "| --- | ---: |",
      "| gdpo | 2.00 ± 2.48 (3) |",
      "| gdpo_saw | 0.50 (1) |",
    ]
    assert "95 % t interval" in text
    assert "ublished" not in text

  def test_published_cells_have_columns_of_their_own(self):
    text = tables.to_markdown(
      table(gdpo=published(std=0.5), ppo=published(value=30.0)), digits=2
    )
    assert lines_of(text, "| ") == [
      "| row | total (here, tiny) | Acc (published) |",
      "| --- | ---: | ---: |",
      "| gdpo | 2.00 ± 2.48 (3) | 33.82 (std 0.5) [1] |",
      "| gdpo_saw | 0.50 (1) | – |",
      "| ppo | – | 30 [1] |",
    ]
    assert lines_of(text, "[1] ") == [
      "[1] SAW, arXiv:2606.07705, Table 1, Qwen."
    ]

  def test_what_has_to_be_known_stands_below(self):
    text = tables.to_markdown(
      table(
        gdpo=published(source="secondary"),
        gdpo_saw=published(value=None, note="collapsed"),
        ppo=published(note="inconsistent with Table 2"),
      )
    )
    rows = [line.split(" | ")[-1] for line in lines_of(text, "| ")[2:]]
    assert rows == ["33.82 [1] |", "– [2, 3] |", "33.82 [2, 4] |"]
    assert "secondary source" in lines_of(text, "[1]")[0]
    assert lines_of(text, "[3]") == ["[3] collapsed."]
    assert lines_of(text, "[4]") == ["[4] inconsistent with Table 2."]

  def test_a_bar_in_a_name_does_not_end_the_cell(self):
    own = {"a|b": {"x": tables.OwnCell.from_seeds({0: 1.0})}}
    text = tables.to_markdown(tables.Table("t", "tiny", own=own))
    assert "| a\\|b |" in text

  def test_intervals_of_two_levels_are_refused(self):
    own = {
      "gdpo": {
        "a": tables.OwnCell.from_seeds({0: 1.0}),
        "b": tables.OwnCell.from_seeds({0: 1.0}, confidence=0.9),
      }
    }
    with pytest.raises(ValueError, match="one confidence"):
      tables.to_markdown(tables.Table("t", "tiny", own=own))

  @pytest.mark.parametrize("paper", papers.available())
  def test_every_published_number_can_be_shown(self, paper):
    cells = papers.read(paper)
    rows = {str(n): {cell.metric: cell} for n, cell in enumerate(cells)}
    own = {"0": {"x": tables.OwnCell.from_seeds({0: 1.0})}}
    text = tables.to_markdown(tables.Table("t", "tiny", own, rows))
    assert len(lines_of(text, "| ")) == len(cells) + 2
    assert "nan" not in text and "None" not in text


class TestToCsv:
  def test_a_line_is_filled_on_its_own_side(self):
    text = tables.to_csv(table(gdpo=published(std=0.5, note="a, b")))
    first, second, third = csv.DictReader(io.StringIO(text))
    assert (first["origin"], first["scale"], first["n"]) == (
      "here",
      "tiny",
      "3",
    )
    assert float(first["mean"]) == 2.0 and float(first["std"]) == 1.0
    assert first["published_value"] == first["model"] == ""
    assert (second["mean"], second["low"]) == ("0.5", "")
    assert third["origin"] == "published"
    assert third["mean"] == third["scale"] == third["n"] == ""
    assert float(third["published_value"]) == 33.82
    assert third["note"] == "a, b"


class TestDifferencesToMarkdown:
  def test_by_hand(self):
    difference = statistics.PairedDifference(
      0.25,
      5,
      statistics.Interval(-0.125, 0.625),
      statistics.Interval(0.0, 0.5),
      0.95,
    )
    text = tables.differences_to_markdown(
      {"gdpo_saw - gdpo": {"total": difference}}, digits=2
    )
    assert lines_of(text, "| ") == [
      "| comparison | metric | mean difference | 95 %, t | 95 %, bootstrap "
      "| seeds |",
      "| --- | ---: | ---: | ---: | ---: | ---: |",
      "| gdpo_saw - gdpo | total | +0.25 | [-0.12, +0.62] | [+0.00, +0.50] "
      "| 5 |",
    ]

  def test_one_pair_shows_no_interval(self):
    difference = statistics.paired_difference({0: 1.0}, {0: 0.5})
    text = tables.differences_to_markdown({"a": {"b": difference}})
    assert "| +0.500 | – | – | 1 |" in text


class TestWrite:
  def test_both_files(self, tmp_path):
    tables.write(table(), tmp_path / "new", name="saw")
    assert (
      (tmp_path / "new" / "saw.md").read_text().startswith("### Tool calls")
    )
    assert (tmp_path / "new" / "saw.csv").read_text().startswith("row,metric,")
