import pytest

from saw_jax.reporting import papers


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
  cells = papers.read(paper)
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
    papers.read("care")


def test_cells_are_selected_by_fields_and_nothing_left_lists_what_there_is():
  fields = {"model": "Qwen2.5-1.5B-Instruct", "metric": "Overall Acc (%)"}
  found = papers.select(papers.read("saw"), method="GDPO+SAW", **fields)
  assert [cell.value for cell in found] == [34.02]
  with pytest.raises(KeyError, match=r"GDPO\+SAW"):
    papers.select(papers.read("saw"), method="PPO")
