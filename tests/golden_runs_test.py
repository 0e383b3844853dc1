"""Short runs of every table compute what they computed before, to the bit."""

import pytest

from tests import golden_runs

_SHOWN = 12  # differences


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
  exact = expected["made_with"] == golden_runs.fingerprint()
  lines = golden_runs.differences(expected, found, exact=exact)
  if lines:
    how = "bit by bit" if exact else "within a tolerance: another machine"
    head = f"{name}: {len(lines)} differences, compared {how}"
    pytest.fail("\n".join([head, *lines[:_SHOWN]]), pytrace=False)


def test_every_file_has_its_case():
  files = {path.stem for path in golden_runs.FOLDER.glob("*.json")}
  assert files == set(golden_runs.CASES)
