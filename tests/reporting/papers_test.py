import pytest

from saw_jax.reporting import papers


class TestRead:
  @pytest.mark.parametrize(
    ("paper", "count", "arxiv"),
    [
      ("saw", 24, "2606.07705"),
      ("gdpo", 205, "2601.05242"),
      ("paw", 264, "2606.02388"),
      ("asympo", 280, "2606.03070"),
    ],
  )
  def test_every_record_is_a_cell(self, paper, count, arxiv):
    cells = papers.read(paper)
    assert len(cells) == count
    assert {cell.arxiv for cell in cells} == {arxiv}

  @pytest.mark.parametrize("paper", papers.available())
  def test_no_cell_is_there_twice(self, paper):
    keys = [
      (cell.table, cell.model, cell.method, cell.benchmark, cell.metric)
      for cell in papers.read(paper)
    ]
    assert len(set(keys)) == len(keys)

  def test_an_unknown_paper_lists_the_known(self):
    with pytest.raises(ValueError, match="asympo"):
      papers.read("care")

  def test_secondary_and_inconsistent_numbers_say_so(self):
    assert {cell.source for cell in papers.read("saw")} == {"secondary"}
    notes = [cell.note for cell in papers.read("asympo")]
    assert sum(note.startswith("inconsistent") for note in notes) == 7


class TestSelect:
  def test_one_number(self):
    (cell,) = papers.select(
      papers.read("saw"),
      model="Qwen2.5-1.5B-Instruct",
      method="GDPO+SAW",
      metric="Overall Acc (%)",
    )
    assert cell.value == 34.02

  def test_nothing_left_lists_what_there_is(self):
    with pytest.raises(KeyError, match=r"GDPO\+SAW"):
      papers.select(papers.read("saw"), method="PPO")


class TestPublishedCell:
  FIELDS = dict.fromkeys(
    ("paper", "arxiv", "table", "model", "method", "benchmark", "metric"), "x"
  )

  def test_a_source_is_one_of_two_and_a_missing_value_has_a_reason(self):
    with pytest.raises(ValueError, match="primary or secondary"):
      papers.PublishedCell(**self.FIELDS, value=1.0, source="blog")
    with pytest.raises(ValueError, match="note"):
      papers.PublishedCell(**self.FIELDS, value=None, source="primary")
