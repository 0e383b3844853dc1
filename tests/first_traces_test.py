"""Every row of every table starts, at the scales that need a model."""

import json
import os
import subprocess
import sys

import pytest

from saw_jax.run import config as config_lib

TABLES = {name: config_lib.module(name) for name in config_lib.names()}
CASES = [
  f"{name}:row={row},scale={scale}"
  for name, table in TABLES.items()
  for scale in table.SCALES
  for row in table.ROWS
  if scale != "tiny"
]


@pytest.mark.slow
def test_every_row_starts_on_8_and_on_16_devices_and_every_loss_is_traced():
  ran = subprocess.run(
    [sys.executable, "-m", "tests.first_traces"],
    input="\n".join(CASES),
    env={**os.environ, "JAX_NUM_CPU_DEVICES": "16"},
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  found = {x["case"]: x for x in map(json.loads, ran.stdout.splitlines())}
  assert list(found) == CASES
  faults = {case: x["error"] for case, x in found.items() if "error" in x}
  assert not faults
  for name in TABLES:
    of_table = [x for case, x in found.items() if case.startswith(f"{name}:")]
    traced = {program for row in of_table for program in row["traced"]}
    if of_table:
      assert {"generate", "update", "estimate"} <= traced, name
      assert ("observe" in traced) == name.startswith("care")
  losses = [x for case, x in found.items() if case.startswith("asympo")]
  assert sum("update" in x["traced"] for x in losses) >= 18
