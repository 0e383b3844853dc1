"""Short runs of every table compute what they computed before, to the bit."""

import pytest

from tests import golden_runs

_SHOWN = 12  # differences


@pytest.fixture(scope="module", autouse=True)
def as_recorded():
  with golden_runs.recorded_flags():
    yield


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=[pytest.mark.slow] if case.is_slow else [])
    for name, case in golden_runs.CASES.items()
  ],
)
def test_a_run_computes_what_it_did(name):
  expected, case = golden_runs.read(name), golden_runs.CASES[name]
  assert expected["case"] == golden_runs.describe(case), "not what was recorded"
  found = golden_runs.run(case)
  is_own = expected["is_own"]
  lines = golden_runs.differences(expected, found, names=not is_own)
  if lines:
    head = f"{name}: {len(lines)} differences"
    pytest.fail("\n".join([head, *lines[:_SHOWN]]), pytrace=False)
  if not is_own:
    pytest.skip(
      "no such machine is recorded: its names were compared, not bits"
    )


def test_every_file_has_its_case_and_one_machine_has_all():
  found = [
    {path.stem for path in folder.glob("*.json")}
    for folder in golden_runs.FOLDER.iterdir()
  ]
  assert all(files <= set(golden_runs.CASES) for files in found)
  assert set(golden_runs.CASES) in found
