import pytest

from saw_jax.reporting import statistics, tables

OWN = {
  "gdpo": {"total": statistics.summarise([1.0, 2.0, 3.0])},
  "gdpo_saw": {"total": statistics.summarise([0.5])},
}


def printed(**changes):
  where = ("SAW", "2606.07705", "Table 1", "Qwen", "GDPO", "BFCL", "Acc")
  return tables.PublishedCell(*where, 33.82, "primary")._replace(**changes)


def lines_of(start, **cells):
  published = {row: {"Acc": cell} for row, cell in cells.items()}
  lines = tables.to_markdown("Tool calls", "tiny", OWN, published)
  assert lines[0] == "### Tool calls"
  return [line for line in lines if line.startswith(start)]


@pytest.mark.parametrize("write", [tables.to_markdown, tables.to_lines])
def test_no_cell_is_taken_for_one_of_the_other_side(write):
  title = ["t"] if write is tables.to_markdown else []
  with pytest.raises((AttributeError, TypeError)):
    write(*title, "tiny", {"gdpo": {"Acc": printed()}}, {})
  with pytest.raises(AttributeError):
    write(*title, "tiny", {}, OWN)


def test_the_table_of_a_terminal_has_the_first_columns():
  own = {
    row: {"x": cells["total"], "y": OWN["gdpo"]["total"]}
    for row, cells in OWN.items()
  }
  assert tables.to_text(own, most=1) == [
    "          x",
    "gdpo      2.000 ± 2.484",
    "gdpo_saw  0.500",
  ]
  assert tables.to_text(own)[0].split() == ["x", "y"]
  own["gdpo_saw"] = {}
  assert tables.to_text(own)[2].split() == ["gdpo_saw", *2 * [tables.MISSING]]


class TestToMarkdown:
  def test_published_cells_have_columns_of_their_own(self):
    assert "95 % t interval" in lines_of("Here")[0]
    assert not lines_of("Published")  # without any of them
    cells = {"gdpo": printed(std=0.5), "ppo": printed(value=30.0)}
    assert lines_of("| ", **cells) == [
      "| row | total (here, tiny) | Acc (published) |",
      "| --- | ---: | ---: |",
      "| gdpo | 2.000 ± 2.484 (3) | 33.82 (std 0.5) [1] |",
      "| gdpo_saw | 0.500 (1) | – |",
      "| ppo | – | 30 [1] |",
    ]
    note = "[1] SAW, arXiv:2606.07705, Table 1, Qwen."
    assert lines_of("[1] ", **cells) == [note]

  def test_what_has_to_be_known_stands_below(self):
    cells = {
      "gdpo": printed(source="secondary"),
      "gdpo_saw": printed(value=None, note="collapsed"),
      "ppo": printed(note="inconsistent with Table 2"),
    }
    rows = [line.split(" | ")[-1] for line in lines_of("| ", **cells)[2:]]
    assert rows == ["33.82 [1] |", "– [2, 3] |", "33.82 [2, 4] |"]
    assert "secondary source" in lines_of("[1]", **cells)[0]
    assert lines_of("[3]", **cells) == ["[3] collapsed."]
    assert lines_of("[4]", **cells) == ["[4] inconsistent with Table 2."]

  def test_a_bar_in_a_name_does_not_end_the_cell(self):
    assert tables.grid(["row", "x"], [["a|b", "1"]])[-1] == "| a\\|b | 1 |"

  @pytest.mark.parametrize("paper", tables.available())
  def test_every_published_number_can_be_shown(self, paper):
    cells = tables.read(paper)
    rows = {str(n): {cell.metric: cell} for n, cell in enumerate(cells)}
    own = {"0": {"x": statistics.summarise([1.0])}}
    lines = tables.to_markdown("t", "tiny", own, rows)
    assert sum(line.startswith("| ") for line in lines) == len(cells) + 2
    assert not any("nan" in line or "None" in line for line in lines)


def test_a_line_of_csv_is_filled_on_its_own_side():
  cell = printed(std=0.5, note="a, b")
  head, *lines = tables.to_lines("tiny", OWN, {"gdpo": {"Acc": cell}})
  first, second, third = (dict(zip(head, x, strict=True)) for x in lines)
  assert (first["origin"], first["scale"], first["n"]) == ("here", "tiny", 3)
  assert float(first["mean"]) == 2.0 and float(first["std"]) == 1.0
  assert first["published_value"] == first["model"] == ""
  assert (second["mean"], second["low"]) == ("0.5", "")
  assert third["origin"] == "published"
  assert third["mean"] == third["scale"] == third["n"] == ""
  assert float(third["published_value"]) == 33.82
  assert third["note"] == "a, b"


def test_differences_have_a_sign_and_intervals_if_there_are_several():
  two = statistics.PairedDifference(0.25, 5, (-0.125, 0.625), (0, 0.5))
  one = statistics.paired_difference({0: 1.0}, {0: 0.5})
  assert tables.differences({"saw - gdpo": {"total": two, "x": one}}) == [
    "| comparison | metric | mean difference | 95 %, t | 95 %, bootstrap | "
    "seeds | p, Holm | detectable |",
    "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    "| saw - gdpo | total | +0.250 | [-0.125, +0.625] | [+0.000, +0.500] | 5 | "
    "0.14 | 0.502 |",
    "| saw - gdpo | x | +0.500 | – | – | 1 | – | – |",
  ]


@pytest.mark.parametrize(
  ("paper", "count", "arxiv"),
  [
    ("saw", 24, "2606.07705"),
    ("gdpo", 205, "2601.05242"),
    ("paw", 264, "2606.02388"),
    ("asympo", 280, "2606.03070"),
  ],
)
def test_every_record_is_a_cell_that_says_where_it_is_from(paper, count, arxiv):
  cells = tables.read(paper)
  assert len(cells) == count
  assert {cell.arxiv for cell in cells} == {arxiv}
  keys = [
    (cell.table, cell.model, cell.method, cell.benchmark, cell.metric)
    for cell in cells
  ]
  assert len(set(keys)) == len(keys)
  source = "secondary" if paper == "saw" else "primary"
  assert {cell.source for cell in cells} == {source}
  assert all(cell.note for cell in cells if cell.value is None)
  found = sum(cell.note.startswith("inconsistent") for cell in cells)
  assert found == {"asympo": 7, "paw": 1}.get(paper, 0)


def test_an_unknown_paper_lists_the_known():
  with pytest.raises(ValueError, match="asympo"):
    tables.read("care")


def test_cells_are_selected_by_fields_and_nothing_left_lists_what_there_is():
  fields = {"model": "Qwen2.5-1.5B-Instruct", "metric": "Overall Acc (%)"}
  found = tables.select(tables.read("saw"), method="GDPO+SAW", **fields)
  assert [cell.value for cell in found] == [34.02]
  with pytest.raises(KeyError, match=r"GDPO\+SAW"):
    tables.select(tables.read("saw"), method="PPO")
