"""Answers, numbered so that they can vote."""

import pytest

from saw_jax.tasks import clusters


def test_in_order_of_appearance():
  ids = clusters.answer_ids([["b", None, "a", "b"], ["x", "y", "x", "z"]])
  assert ids.tolist() == [[0, -1, 1, 0], [0, 1, 0, 2]]
  assert ids.dtype == "int32"
  assert clusters.answer_ids([[None, None]]).tolist() == [[-1, -1]]


def test_groups_have_one_size():
  with pytest.raises(ValueError):
    clusters.answer_ids([["a"], ["a", "b"]])
