"""Answers, numbered so that they can vote."""

import pytest

from saw_jax.tasks import clusters


class TestAnswerIds:
  def test_in_order_of_appearance(self):
    ids = clusters.answer_ids([["b", None, "a", "b"], ["x", "y", "x", "z"]])
    assert ids.tolist() == [[0, -1, 1, 0], [0, 1, 0, 2]]
    assert ids.dtype == "int32"

  def test_no_answers_and_no_prompts(self):
    assert clusters.answer_ids([[None, None]]).tolist() == [[-1, -1]]
    assert clusters.answer_ids([]).shape == (0, 0)

  def test_an_equality_that_is_no_equivalence(self):
    # 1 ~ 2 and 2 ~ 3, but not 1 ~ 3: the first member decides.
    def near(a, b):
      return abs(int(a) - int(b)) <= 1

    ids = clusters.answer_ids([["1", "3", "2"], ["2", "1", "3"]], is_equal=near)
    assert ids.tolist() == [[0, 1, 0], [0, 0, 0]]

  def test_it_is_asked_in_both_directions(self):
    def one_way(a, b):
      return (a, b) == ("one", "1")

    ids = clusters.answer_ids([["one", "1"], ["1", "one"]], is_equal=one_way)
    assert ids.tolist() == [[0, 0], [0, 0]]

  def test_an_exception_is_no(self):
    def broken(a, b):
      raise RuntimeError

    ids = clusters.answer_ids([["a", "b", "a"]], is_equal=broken)
    assert ids.tolist() == [[0, 1, 0]]

  def test_groups_have_one_size(self):
    with pytest.raises(ValueError, match="different sizes"):
      clusters.answer_ids([["a"], ["a", "b"]])
