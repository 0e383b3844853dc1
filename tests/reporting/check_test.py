"""A table is of this code, or of another; its first steps again, or all."""

import pytest

from saw_jax.reporting import check, runs
from saw_jax.reporting.runs import RowRuns
from saw_jax.run import run_directory
from tests.reporting import made_up

SEEDS = (3, 4)


def make_run(directory, steps, *, change=0.0):
  """A run from start 1 whose numbers are those of seed and step."""
  lines = [
    [t, s, 0.1 * s + t / 3 + change] for t in range(steps) for s in SEEDS
  ]
  made_up.write_run(
    directory,
    [["step", "seed", "loss"], *lines],
    {seed: {"greedy/x": seed / 7 + change} for seed in SEEDS},
    step=12,
    config={"warm_start": {"options": {"seed": 1}}, "seeds": SEEDS},
    code=run_directory.code(),
  )
  return directory


@pytest.fixture(params=[1, 3])
def folder(request, tmp_path):
  """The files of a table, whose curves may be means of several steps."""
  made = {"row": RowRuns((make_run(tmp_path / "run", 12),), SEEDS)}
  curves = runs.read_curves(made["row"].directories)
  curves = runs.averaged(curves, request.param)
  runs.write_curves(tmp_path / "curves.csv", {"row": curves}, names=["loss"])
  finals = {"row": runs.read_finals(made["row"].directories)}
  runs.write_results(tmp_path / "runs.csv", finals, commit="abc")
  lines = [[*entry.values()] for entry in runs.made(made)]
  runs.write_csv(tmp_path / "made.csv", [*runs.made(made)[0]], lines)
  return tmp_path


def again(change=0.0, steps=12):
  def train(directory, seeds, is_enough):
    assert seeds == [*SEEDS] and not is_enough()
    make_run(directory, steps, change=change)
    train.is_enough = is_enough()

  return train


def test_the_same_numbers_are_found_and_others_are_named(folder):
  (entry,) = check.made_by(folder)
  # Five steps, or one mean of three of them.
  every = len((folder / "curves.csv").read_text().splitlines()) < 20
  first = again()
  assert check.rerun(first, entry, folder) == (
    len(SEEDS) * (1 if every else 5),
    [],
  )
  assert first.is_enough
  _, differ = check.rerun(again(1e-9), entry, folder)
  assert len(differ) == len(SEEDS) * (1 if every else 5)
  assert differ[0].startswith("loss of seed 3 of start 1 at step 0: ")


def test_a_whole_row_is_compared_by_its_scores(folder):
  (entry,) = check.made_by(folder)
  whole = again()
  assert check.rerun(whole, entry, folder, is_full=True) == (len(SEEDS), [])
  assert not whole.is_enough
  _, differ = check.rerun(again(1e-9), entry, folder, is_full=True)
  assert len(differ) == len(SEEDS) and "greedy/x of seed 3" in differ[0]


def test_code_and_instructions_are_those_that_are_here_or_not(folder):
  entries = check.made_by(folder)
  said = check.origins(entries)
  assert said.startswith("of commit abc: the same code; other instructions (")
  others = [*entries, {**entries[0], "code": "xyz", "commit": "def"}]
  said = check.origins(others)
  assert said.startswith("of commit abc, def: other code (xyz; here ")


def test_a_table_that_does_not_say_what_made_it_and_a_row_that_it_lacks(folder):
  entries = check.made_by(folder)
  with pytest.raises(ValueError, match="no row other"):
    check.rerun(again(), entries[0] | {"row": "other"}, folder)
  with pytest.raises(ValueError, match="nothing says what made"):
    check.made_by(folder / "run")
