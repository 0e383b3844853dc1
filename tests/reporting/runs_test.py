import json

import numpy as np
import pytest

from saw_jax.reporting import runs
from saw_jax.reporting.runs import RowRuns
from saw_jax.reporting.statistics import Seed
from saw_jax.run.run_directory import RunError


def seeds(*numbers, start=0):
  return tuple(Seed(start, number) for number in numbers)


def write_run(directory, csv_lines, final=None, name="metrics", start=None):
  directory.mkdir()
  options = {} if start is None else {"options": {"seed": start}}
  document = {"config": {"warm_start": options}}
  (directory / "run.json").write_text(json.dumps(document))
  (directory / f"{name}.csv").write_text("\n".join(csv_lines) + "\n")
  if final is not None:
    (directory / "final.json").write_text(json.dumps(final))
  return directory


def final(seed, step=2, **greedy):
  return {"seed": seed, "step": step, "greedy": greedy, "sampled": {"x": 0.25}}


CONFIG = {"scale": "tiny", "loop": {"num_steps": 9}}


def finish(directory, seeds, *, commit="abc", config=CONFIG):
  """Leaves what `find` reads of a finished run."""
  directory.mkdir(parents=True)
  document = {"config": {**config, "seeds": list(seeds)}, "commit": commit}
  (directory / "run.json").write_text(json.dumps(document))
  (directory / "final.json").touch()
  return directory


class TestFind:
  @pytest.fixture
  def find(self, tmp_path):
    return lambda count, config=CONFIG: runs.find(
      tmp_path, "gdpo", range(count), config
    )

  def test_only_the_seeds_that_no_run_has_are_run(self, tmp_path, find):
    place = tmp_path / "gdpo_seeds_5"
    five = tuple(range(5))
    assert find(5) == RowRuns((), (), five, place)
    finish(place, five)
    finish(tmp_path / "gdpo_saw_seeds_8", range(8))  # another row
    more = tmp_path / "gdpo_seeds_5-7"
    assert find(8) == RowRuns((place,), five, (5, 6, 7), more)
    finish(more, (5, 6, 7))
    assert set(find(8).directories) == {place, more}
    assert find(8)[1:3] == (tuple(range(8)), ())
    # Fewer seeds are those of a larger run.
    assert find(3)[:3] == ((place,), (0, 1, 2), ())
    # One that has not finished goes on in its place.
    (place / "final.json").unlink()
    assert find(5)[2:] == (five, place)

  @pytest.mark.parametrize(
    ("runs", "count", "directory"),
    [
      ([[1, 2]], 5, "0,3,4"),
      ([[0, 3]], 4, "1-2"),
      # Runs that share a seed are not put together.
      ([[0, 1], [1, 2, 3]], 4, "1"),
    ],
  )
  def test_a_hole_names_its_seeds(self, tmp_path, find, runs, count, directory):
    for number, seeds in enumerate(runs):
      finish(tmp_path / f"gdpo_seeds_{9 - number}", seeds)
    assert find(count).next.name == f"gdpo_seeds_{directory}"
    assert len(find(count).directories) == 1

  def test_another_config_is_refused(self, tmp_path, find):
    """Another scale in the same table, say."""
    finish(tmp_path / "gdpo_seeds_5", range(5), config={**CONFIG, "scale": "s"})
    with pytest.raises(RunError, match="with scale = 's', not 'tiny'"):
      find(5)
    assert find(5, config=None).missing == ()


def test_a_table_is_of_one_code_start_and_instruction_set(tmp_path):
  def row(name, seeds=(0,), **document):
    path = finish(tmp_path / name, seeds, commit=document.pop("commit", "abc"))
    made = json.loads((path / "run.json").read_text()) | document
    (path / "run.json").write_text(json.dumps(made))
    return {name: RowRuns((path,))}

  by = {"code": "1", "instructions": "avx", "start": "w"}
  by["panel"] = {"digest": "p", "episodes": 2}
  same = row("a", **by) | row("b", **(by | {"commit": "def"}))
  runs.check_same(same)
  with pytest.raises(ValueError, match=r"one version.*1: a, b; 2: c\)"):
    runs.check_same(same | row("c", **(by | {"code": "2"})))
  with pytest.raises(ValueError, match=r"instruction set.*avx: a, b; avx2: d"):
    runs.check_same(same | row("d", **(by | {"instructions": "avx2"})))
  with pytest.raises(ValueError, match=r"one start 0.*w: a, b; x: e\)"):
    runs.check_same(same | row("e", **(by | {"start": "x"})))
  with pytest.raises(ValueError, match=r"panel of episodes.*p: a, b; q: i\)"):
    runs.check_same(same | row("i", **(by | {"panel": {"digest": "q"}})))
  # An older run has its commit alone, and one that went on may have two codes.
  with pytest.raises(ValueError, match="1: a, b; abc: f"):
    runs.check_same(same | row("f"))
  later = [{"at": "noon", "commit": "def", "code": "2"}]
  with pytest.raises(ValueError, match="1: g; 2: g"):
    runs.check_same(row("g", **by, resumed=later))
  # So has the code that would run what is missing.
  with pytest.raises(ValueError, match="1: a, b; .*: what is missing"):
    runs.check_same(same, is_whole=False)
  assert runs.made(row("h", (3, 5), **by)) == [
    {"row": "h", "start": 0, "seeds": "3 5", "commit": "abc", "code": "1"}
    | {"instructions": "avx", "weights": "w", "panel": "p"}
  ]


class TestReadCurves:
  def test_seeds_of_several_runs_are_joined_in_order(self, tmp_path):
    lines = ["step,seed,loss", "0,5,1.0", "0,3,2.0", "1,5,3.0", "1,3,4.0"]
    a = write_run(tmp_path / "a", lines)
    # One step is not there of the seed, another lacks a metric.
    lines = ["step,seed,loss,kl", "1,1,5.0,7.0", "0,1,6.0,", "1,2,1,2"]
    b = write_run(tmp_path / "b", lines)
    curves = runs.read_curves([a, b])
    assert curves.seeds == seeds(1, 2, 3, 5)
    np.testing.assert_array_equal(curves.steps, [0, 1])
    nan = np.nan
    losses = [[6.0, 5.0], [nan, 1.0], [2.0, 4.0], [1.0, 3.0]]
    np.testing.assert_array_equal(curves.values["loss"], losses)
    kls = [[nan, 7.0], [nan, 2.0], [nan, nan], [nan, nan]]
    np.testing.assert_array_equal(curves.values["kl"], kls)

  def test_the_seeds_of_several_starts_are_told_apart(self, tmp_path):
    lines = ["step,seed,loss", "0,4,1.0"]
    starts = enumerate((2, None))
    paths = [write_run(tmp_path / f"{n}", lines, start=s) for n, s in starts]
    assert runs.read_curves(paths).seeds == seeds(4) + seeds(4, start=2)

  def test_seeds_that_are_not_asked_for_are_left_out(self, tmp_path):
    finals = [final(seed, x=seed) for seed in range(3)]
    lines = ["step,seed,loss", "0,0,1", "0,1,2", "0,2,3"]
    a = write_run(tmp_path / "a", lines, finals, name="evals")
    found = runs.read_curves([a], name="evals", seeds=(0, 2))
    assert found.seeds == seeds(0, 2)
    np.testing.assert_array_equal(found.values["loss"], [[1.0], [3.0]])
    found = runs.read_finals([a], seeds=(1, 2)).by_seed("greedy/x")
    assert found == dict(zip(seeds(1, 2), (1.0, 2.0), strict=True))

  def test_a_seed_in_two_runs_and_a_missing_file_are_refused(self, tmp_path):
    lines = ["step,seed,loss", "0,4,1.0"]
    both = [write_run(tmp_path / name, lines) for name in "ab"]
    with pytest.raises(ValueError, match="seed 4 is in"):
      runs.read_curves(both)
    with pytest.raises(FileNotFoundError, match=r"metrics\.csv"):
      runs.read_curves([tmp_path])

  def test_a_file_that_lost_all_rows_is_damaged(self, tmp_path):
    a = write_run(tmp_path / "a", ["step,seed,loss"])
    assert not runs.read_curves([a]).seeds  # nothing was logged yet
    rows = [f'{{"step": 0, "seed": {seed}, "loss": 1.0}}\n' for seed in (4, 5)]
    for text in ("", "step,seed,loss\n"):
      (a / "metrics.csv").write_text(text)
      # A run writes the other file first.
      (a / "metrics.jsonl").write_text(rows[0])
      assert not runs.read_curves([a]).seeds
      (a / "metrics.jsonl").write_text("".join(rows))
      with pytest.raises(
        runs.DamagedRunError, match=r"metrics\.csv is damaged"
      ):
        runs.read_curves([a])

  @pytest.mark.parametrize(
    ("line", "word"),
    [("0,4,1.0", "twice")]
    + [
      (line, "csv, line 3")
      for line in ("1,4", "1,4,1.0,1.0", "\0,4,1", "x,4,1")
    ],
  )
  def test_a_line_that_does_not_belong_is_refused(self, tmp_path, line, word):
    a = write_run(tmp_path / "a", ["step,seed,loss", "0,4,1.0", line])
    with pytest.raises(ValueError, match=word):
      runs.read_curves([a])


class TestReadFinals:
  def test_seeds_are_joined_and_names_are_flat(self, tmp_path):
    a = write_run(tmp_path / "a", ["step,seed"], [final(2, total=0.0)])
    b = write_run(tmp_path / "b", ["step,seed"], [final(1, total=3.0)])
    finals = runs.read_finals([a, b])
    assert (finals.step, finals.seeds) == (2, seeds(1, 2))
    one, two = seeds(1, 2)
    assert finals.by_seed("greedy/total") == {one: 3.0, two: 0.0}
    assert finals.by_seed("sampled/x") == {one: 0.25, two: 0.25}
    with pytest.raises(KeyError, match="greedy/total"):
      finals.by_seed("total")

  def test_null_is_a_score_that_is_no_number(self, tmp_path):
    a = write_run(tmp_path / "a", ["step,seed"], [final(1, total=None)])
    assert np.isnan(runs.read_finals([a]).by_seed("greedy/total")[0, 1])

  @pytest.mark.parametrize(
    ("records", "words"),
    [
      ([final(1, total=1.0), final(1, total=1.0)], "twice"),
      ([final(1, total=1.0), final(2, step=3, total=1.0)], "lengths"),
      ([final(1, total=1.0), final(2, right=1.0)], "same scores"),
      ([], "no finished seeds"),
      ([{"seed": 1}], r"final.json is damaged \('step'\)"),
    ],
  )
  def test_seeds_that_do_not_belong_together(self, tmp_path, records, words):
    a = write_run(tmp_path / "a", ["step,seed"], records)
    with pytest.raises(ValueError, match=words):
      runs.read_finals([a])
    (a / "final.json").unlink()
    with pytest.raises(FileNotFoundError, match="not finished"):
      runs.read_finals([a])


@pytest.mark.parametrize("kind", ["results", "curves"])
def test_what_is_written_is_read_back(kind, tmp_path):
  made, path = np.random.default_rng(0).normal(size=(2, 3)), tmp_path / "x.csv"
  one = seeds(3, 4, start=2)
  if kind == "results":
    rows = {
      "gdpo_saw": runs.Finals(7, one, {"greedy/total": made[:, 0]}),
      "gdpo": runs.Finals(7, seeds(0), {"greedy/total": np.array([1 / 3])}),
    }
    runs.write_results(path, rows, commit="abc")
    rows = {row: finals.curves for row, finals in rows.items()}
    head, line = (
      "row,start,seed,commit,step,greedy/total",
      "gdpo_saw,2,3,abc,7,",
    )
  else:
    made[1, 2] = np.nan
    curves = runs.Curves(np.array([0, 5, 7]), one, {"a": made, "b": made})
    runs.write_curves(path, {"row": curves}, names=["a"])
    rows = {"row": curves._replace(values={"a": made})}
    head, line = "row,start,seed,step,a", "row,2,3,0,"
    # There is no line for the step that a seed lacks.
    assert len(path.read_text().splitlines()) == 1 + 5
  again = runs.read_kept(path)
  assert list(again) == list(rows)
  for row, kept in rows.items():
    assert again[row].seeds == kept.seeds
    np.testing.assert_array_equal(again[row].steps, kept.steps)
    np.testing.assert_equal(again[row].values, kept.values)
  assert path.read_text().startswith(f"{head}\n{line}")
