import json

import numpy as np
import pytest

from saw_jax.reporting import runs


def write_run(directory, csv_lines, final=None, name="metrics"):
  directory.mkdir()
  (directory / f"{name}.csv").write_text("\n".join(csv_lines) + "\n")
  if final is not None:
    (directory / "final.json").write_text(json.dumps(final))
  return directory


def final(seed, step=2, **greedy):
  return {"seed": seed, "step": step, "greedy": greedy, "sampled": {"x": 0.25}}


class TestReadCurves:
  def test_seeds_of_several_runs_are_joined_in_order(self, tmp_path):
    a = write_run(
      tmp_path / "a",
      ["step,seed,loss", "0,5,1.0", "0,3,2.0", "1,5,3.0", "1,3,4.0"],
    )
    b = write_run(
      tmp_path / "b", ["step,seed,loss,kl", "1,1,5.0,7.0", "0,1,6.0,"]
    )
    curves = runs.read_curves([a, b])
    assert curves.seeds == (1, 3, 5)
    np.testing.assert_array_equal(curves.steps, [0, 1])
    np.testing.assert_array_equal(
      curves.values["loss"], [[6.0, 5.0], [2.0, 4.0], [1.0, 3.0]]
    )
    nan = np.nan
    np.testing.assert_array_equal(
      curves.values["kl"], [[nan, 7.0], [nan, nan], [nan, nan]]
    )

  def test_seeds_that_are_not_asked_for_are_left_out(self, tmp_path):
    a = write_run(
      tmp_path / "a",
      ["step,seed,loss", "0,0,1", "0,1,2", "0,2,3"],
      [final(seed, x=seed) for seed in range(3)],
    )
    found = runs.read_curves([a], seeds=(0, 2))
    assert found.seeds == (0, 2)
    np.testing.assert_array_equal(found.values["loss"], [[1.0], [3.0]])
    assert runs.read_finals([a], seeds=(1, 2)).by_seed("greedy/x") == {
      1: 1.0,
      2: 2.0,
    }

  def test_a_seed_that_is_a_step_short_is_missing_there(self, tmp_path):
    lines = ["step,seed,loss", "0,0,1", "0,1,0.0", "1,0,3"]
    a = write_run(tmp_path / "a", lines, name="evals")
    found = runs.read_curves([a], name="evals").values["loss"]
    np.testing.assert_array_equal(found, [[1.0, 3.0], [0.0, np.nan]])

  def test_a_seed_in_two_runs_and_a_missing_file_are_refused(self, tmp_path):
    lines = ["step,seed,loss", "0,4,1.0"]
    both = [write_run(tmp_path / name, lines) for name in "ab"]
    with pytest.raises(ValueError, match="seed 4 is in"):
      runs.read_curves(both)
    with pytest.raises(FileNotFoundError, match=r"metrics\.csv"):
      runs.read_curves([tmp_path])

  @pytest.mark.parametrize(
    ("line", "word"),
    [("0,4,1.0", "twice"), ("1,4", "line 3"), ("1,4,1.0,1.0", "line 3")],
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
    assert (finals.step, finals.seeds) == (2, (1, 2))
    assert finals.by_seed("greedy/total") == {1: 3.0, 2: 0.0}
    assert finals.by_seed("sampled/x") == {1: 0.25, 2: 0.25}

    with pytest.raises(KeyError, match="greedy/total"):
      finals.by_seed("total")

  def test_an_unfinished_run_is_refused(self, tmp_path):
    a = write_run(tmp_path / "a", ["step,seed,loss", "0,0,1"])
    with pytest.raises(FileNotFoundError, match="not finished"):
      runs.read_finals([a])

  @pytest.mark.parametrize(
    ("records", "words"),
    [
      ([final(1, total=1.0), final(1, total=1.0)], "twice"),
      ([final(1, total=1.0), final(2, step=3, total=1.0)], "lengths"),
      ([final(1, total=1.0), final(2, right=1.0)], "same scores"),
      ([], "no finished seeds"),
    ],
  )
  def test_seeds_that_do_not_belong_together(self, tmp_path, records, words):
    a = write_run(tmp_path / "a", ["step,seed"], records)
    with pytest.raises(ValueError, match=words):
      runs.read_finals([a])


class TestResults:
  def test_what_is_written_is_read_back(self, tmp_path):
    rng = np.random.default_rng(0)
    rows = {
      "gdpo_saw": runs.Finals(
        7, (0, 1, 2), {"greedy/total": rng.normal(size=3)}
      ),
      "gdpo": runs.Finals(7, (0, 1), {"greedy/total": np.array([0.0, 1 / 3])}),
    }
    path = tmp_path / "runs.csv"
    runs.write_results(path, rows, commit="abc")
    again = runs.read_results(path)
    assert list(again) == ["gdpo_saw", "gdpo"]
    for row, finals in rows.items():
      assert again[row][:2] == finals[:2]
      np.testing.assert_array_equal(
        again[row].values["greedy/total"], finals.values["greedy/total"]
      )
    header, first, *_ = path.read_text().splitlines()
    assert header == "row,seed,commit,step,greedy/total"
    assert first.startswith("gdpo_saw,0,abc,7,")

  def test_curves_that_are_written_are_read_back(self, tmp_path):
    values = np.random.default_rng(0).normal(size=(2, 3))
    values[1, 2] = np.nan
    curves = runs.Curves(
      np.array([0, 5, 7]), (3, 4), {"a": values, "b": values}
    )
    runs.write_curves(tmp_path / "curves.csv", {"row": curves}, names=["a"])
    again = runs.read_kept_curves(tmp_path / "curves.csv")["row"]
    assert again.seeds == (3, 4)
    assert list(again.values) == ["a"]
    lines = (tmp_path / "curves.csv").read_text().splitlines()
    assert len(lines) == 1 + 5  # none for the step that a seed lacks
    np.testing.assert_array_equal(again.steps, curves.steps)
    np.testing.assert_array_equal(again.values["a"], values)
