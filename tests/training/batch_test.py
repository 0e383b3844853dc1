"""Batches: masks, positions, which rows go together; and states of seeds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from saw_jax.rollout import transcript as transcript_lib
from saw_jax.training import batch as batch_lib
from saw_jax.training import update
from tests import helpers

PAD, PROMPT, POLICY = 0, 1, 2
OBSERVATION, GLUE = 3, 4


def by_hand() -> batch_lib.TrainBatch:
  """Two rows: a padded turn, and two turns with a tool's answer between."""
  return batch_lib.TrainBatch(
    tokens=jnp.array([[0, 0, 5, 7, 0, 9, 0], [4, 4, 4, 8, 3, 6, 8]]),
    roles=jnp.array(
      [
        [PAD, PAD, PROMPT, POLICY, POLICY, POLICY, PAD],
        [PROMPT, PROMPT, PROMPT, POLICY, OBSERVATION, GLUE, POLICY],
      ],
      jnp.int8,
    ),
    starts=jnp.array([2, 0], jnp.int32),
    advantages=jnp.ones(2),
    prompt_size=3,
  )


def transcript(shape: tuple[int, ...]) -> transcript_lib.Transcript:
  """Arrays that only tell rows apart."""
  rows = np.arange(np.prod(shape)).reshape(shape)
  size, prompt_size = 7, 3
  return transcript_lib.Transcript(
    tokens=np.broadcast_to(rows[..., None], (*shape, size)),
    roles=np.full((*shape, size), POLICY, np.int8),
    starts=rows,
    ends=rows,
    behave_log_probs=-np.ones((*shape, size - prompt_size)),
    group_ids=rows,
    prompt_size=prompt_size,
  )


class TestTrainBatch:
  def test_a_token_that_the_policy_chose_counts_whatever_its_value(self):
    # The 0 at position 4 of the first row has the value of padding, and the
    # end token of the second row's first turn is that of its last.
    np.testing.assert_array_equal(
      by_hand().completion_mask,
      [[True, True, True, False], [True, False, False, True]],
    )

  def test_a_prompt_is_valid_and_not_learned_from(self):
    np.testing.assert_array_equal(
      by_hand().valid,
      [[False, False, True, True, True, True, False], [True] * 7],
    )
    whole = by_hand().replace(prompt_size=0)
    assert not whole.completion_mask[:, :3].any()

  def test_positions_count_from_the_first_real_token(self):
    np.testing.assert_array_equal(
      by_hand().positions, [[0, 0, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 6]]
    )

  def test_require_names_the_field_and_who_needs_it(self):
    with pytest.raises(ValueError, match="the KL term needs ref_log_probs"):
      by_hand().require("ref_log_probs", "the KL term")


class TestMakeBatch:
  def test_seeds_are_a_leading_axis(self):
    advantages = jnp.arange(12.0).reshape(2, 2, 3)
    batch = batch_lib.make_batch(transcript((2, 6)), advantages)
    np.testing.assert_array_equal(batch.advantages, batch.tokens[..., 0])


class TestSplitRows:
  def test_part_k_holds_every_count_th_row_from_k_on(self):
    batch = batch_lib.make_batch(transcript((6,)), jnp.arange(6.0))
    parts = batch_lib.split_rows(batch, 3)
    np.testing.assert_array_equal(parts.starts, [[0, 3], [1, 4], [2, 5]])
    np.testing.assert_array_equal(parts.advantages, parts.starts)
    np.testing.assert_array_equal(parts.tokens[..., 0], parts.starts)

  def test_rows_that_do_not_divide_are_an_error(self):
    with pytest.raises(ValueError, match="8 rows do not split into 3 equal"):
      batch_lib.split_rows(helpers.batch(), 3)


class TestTakeRows:
  def batch(self):
    return batch_lib.make_batch(
      transcript((2, 12)), jnp.arange(24.0).reshape(2, 4, 3)
    )

  def test_groups_stay_whole(self):
    # Four prompts of three samples; a half is two prompts.
    batch = self.batch()
    group = jnp.arange(24).reshape(2, 12) // 3
    for part in range(2):
      taken = batch_lib.take_rows(batch.replace(starts=group), part, 2)
      for seed in range(2):
        groups, counts = np.unique(taken.starts[seed], return_counts=True)
        np.testing.assert_array_equal(counts, [3, 3])
        np.testing.assert_array_equal(groups, 4 * seed + 2 * part + np.r_[0, 1])

  def test_rows_that_do_not_divide_are_an_error(self):
    with pytest.raises(ValueError, match="12 rows do not split into 5"):
      batch_lib.take_rows(self.batch(), 0, 5)


class TestStates:
  def state(self, seed):
    params = {"a": jnp.full((2, 5), seed), "b": {"c": jnp.array([seed, 7.0])}}
    made = update.create_state(params, optax.adam(1e-3), num_components=4)
    assert made.step == 0 and made.step.dtype == jnp.int32
    np.testing.assert_array_equal(made.weights, [0.25] * 4)
    return made.replace(step=jnp.int32(10 * seed))

  def test_a_seed_is_taken_out_as_it_was_stacked(self):
    states = [self.state(float(seed)) for seed in (1, 2, 3)]
    stacked = update.stack_states(states)
    np.testing.assert_array_equal(stacked.step, [10, 20, 30])
    assert stacked.weights.shape == (3, 4)
    for index, expected in enumerate(states):
      found = update.take_seed(stacked, index)
      jax.tree.map(np.testing.assert_array_equal, found, expected)
