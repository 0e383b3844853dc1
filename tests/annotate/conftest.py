"""An empty ledger."""

import pytest

from saw_jax.annotate.ledger import LEDGER_NAME, LabelLedger


@pytest.fixture
def path(tmp_path):
  return tmp_path / LEDGER_NAME


@pytest.fixture
def ledger(path):
  return LabelLedger(path)
