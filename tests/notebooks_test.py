"""What the notebooks look like; `make test` also runs them (nbmake)."""

import json
import os
import pathlib
import re

import pytest

from tests import helpers

ROOT = pathlib.Path(__file__).parents[1]
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
_LARGEST = 300_000  # bytes, of a file with its pictures


def cells(path: pathlib.Path, kind: str) -> list[dict]:
  document = json.loads(path.read_text(encoding="utf-8"))
  return [cell for cell in document["cells"] if cell["cell_type"] == kind]


def source(path: pathlib.Path) -> str:
  return "\n".join("".join(cell["source"]) for cell in cells(path, "code"))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
class TestNotebook:
  def test_it_holds_what_a_whole_run_left(self, path):
    found = cells(path, "code")
    counts = [cell["execution_count"] for cell in found]
    assert counts == list(range(1, len(found) + 1))
    outputs = [output for cell in found for output in cell["outputs"]]
    kinds = {output["output_type"] for output in outputs}
    assert "error" not in kinds
    assert all(output.get("name") != "stderr" for output in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs)
    # Timings would change with each run.
    assert not any("execution" in cell["metadata"] for cell in found)

  def test_it_is_small_clean_and_named_in_the_readme(self, path):
    assert path.stat().st_size < _LARGEST
    text = path.read_text(encoding="utf-8")
    machine = re.search(r"[\"'\s(=](/(work|root|home|tmp|mnt)/\S*)", text)
    assert machine is None, machine[1]
    # Runs go to temporary folders, which are given back.
    program = source(path)
    assert "mkdtemp" not in program
    assert program.count("TemporaryDirectory()") == program.count(".cleanup()")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"(notebooks/{path.name})" in readme


def test_they_are_numbered_without_a_gap():
  numbers = [int(path.name[:2]) for path in PATHS]
  assert numbers == list(range(1, len(PATHS) + 1)) and numbers


def test_they_are_collected_as_slow_tests():
  done = helpers.python(
    *"-m pytest --nbmake --collect-only -q -p no:cacheprovider -m slow".split(),
    # With a file of tests/, whose conftest.py marks them.
    *("tests/notebooks_test.py", "notebooks"),
    cwd=ROOT,
    env={**os.environ, "PYTEST_ADDOPTS": ""},
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert all(path.name in done.stdout for path in PATHS)


@pytest.mark.slow
def test_what_a_reader_sees_is_written_into_a_notebook(tmp_path):
  import nbformat

  path = tmp_path / "one.ipynb"
  program = "import sys; print('seen'); print('a log', file=sys.stderr); 6 * 7"
  notebook = nbformat.v4.new_notebook(
    cells=[nbformat.v4.new_code_cell(program)],
    metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
  )
  path.write_text(nbformat.writes(notebook))
  script = ROOT / "experiments" / "run_notebooks.py"
  assert helpers.python(script, path).returncode == 0
  (cell,) = cells(path, "code")
  stream, value = cell["outputs"]
  assert "".join(stream["text"]) == "seen\n" and stream["name"] == "stdout"
  assert value["data"]["text/plain"] == ["42"]
  assert cell["execution_count"] == 1 and "execution" not in cell["metadata"]

  # A cell that raises is an error, and the file stays as it was.
  notebook.cells[0].source = "1 / 0"
  path.write_text(nbformat.writes(notebook))
  before = path.read_text()
  done = helpers.python(script, path)
  assert done.returncode != 0 and "ZeroDivisionError" in done.stderr
  assert path.read_text() == before
