"""What a reward function may be called."""

import pytest

from saw_jax.tasks.rows import rewards


@pytest.mark.parametrize("name", ["length", "total", "ended", "unscored"])
def test_a_reward_is_not_taken_for_a_figure_of_an_evaluation(name):
  def fn(completion, row):
    return 1.0

  (other,) = rewards.make_rewards({f"my_{name}": fn})
  assert other.name == f"my_{name}"
  with pytest.raises(ValueError, match=name):
    rewards.make_rewards({name: fn})
