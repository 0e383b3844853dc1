"""Benchmarks, but for their measuring: what is written of it, and the end."""

import json
import types
from unittest import mock

import numpy as np

from benchmarks import shared, world_model_cost


class Watch:
  """In the place of a stopwatch: the second row takes twice as long."""

  made = []

  def __init__(self, row, pack_length):
    size = 10 * len(self.made) + 10
    self.batch = types.SimpleNamespace(
      valid=np.ones(size), tokens=np.ones(2 * size), packing=None
    )
    self.seconds, self.workers = len(self.made) + 1.0, mock.Mock()
    self.made.append(self)

  def run(self, steps):
    lap = dict.fromkeys(("generate", "update", "step"), self.seconds)
    return [lap] * steps

  def memory(self):
    return 100


def test_what_paw_costs_is_written_and_its_workers_end(tmp_path, monkeypatch):
  monkeypatch.setattr(world_model_cost, "Stopwatch", Watch)
  monkeypatch.setattr(shared, "RESULTS", tmp_path)
  world_model_cost.main()
  text = (tmp_path / "world_model_cost.md").read_text()
  assert "| grpo_paw | 2.00 | 2.00 to 2.00 | 2.00 | 1.00 | 2.000 | 40 |" in text
  document = json.loads((tmp_path / "world_model_cost.json").read_text())
  assert document["rows"]["grpo_paw"]["step_range"] == [2, 2]
  assert f"{document['machine']}, commit {document['commit']}." in text
  assert len(Watch.made) == len(world_model_cost.ROWS)
  for watch in Watch.made:
    watch.workers.close.assert_called_once_with()
