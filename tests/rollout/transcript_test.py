"""Tests of prompts and transcripts."""

import chex
import jax.numpy as jnp
import numpy as np

from saw_jax.rollout import transcript
from saw_jax.rollout.transcript import Role


class PadPromptsTest(chex.TestCase):
  def test_prompts_end_together(self):
    batch = transcript.pad_prompts(
      [[5, 6], [7, 8, 9], [4]], ids=[31, 17, 23], pad_id=2
    )
    np.testing.assert_array_equal(
      batch.tokens, [[2, 5, 6], [7, 8, 9], [2, 2, 4]]
    )
    np.testing.assert_array_equal(batch.lengths, [2, 3, 1])
    np.testing.assert_array_equal(batch.ids, [31, 17, 23])
    chex.assert_type([batch.tokens, batch.lengths, batch.ids], np.int32)

  def test_sizes_are_rounded_up_to_a_multiple(self):
    for length, size in ((1, 8), (8, 8), (9, 16)):
      batch = transcript.pad_prompts([[1] * length], multiple=8)
      self.assertEqual(batch.tokens.shape, (1, size))

  def test_a_long_prompt_is_refused_or_keeps_its_end(self):
    prompts = [[1], [1, 2, 3, 4]]
    with self.assertRaisesRegex(ValueError, "Prompt 1 has 4 tokens .* for 3"):
      transcript.pad_prompts(prompts, size=3)
    batch = transcript.pad_prompts(prompts, size=3, truncate=True)
    np.testing.assert_array_equal(batch.tokens, [[0, 0, 1], [2, 3, 4]])
    np.testing.assert_array_equal(batch.lengths, [1, 3])

  def test_no_prompt_and_empty_prompts_are_refused(self):
    with self.assertRaisesRegex(ValueError, "no prompt"):
      transcript.pad_prompts([])
    with self.assertRaisesRegex(ValueError, "Prompt 1 is empty"):
      transcript.pad_prompts([[1], []])


class TranscriptTest(chex.TestCase):
  def test_masks_come_from_roles(self):
    roles = [
      [Role.PAD, Role.PROMPT, Role.POLICY, Role.OBSERVATION, Role.POLICY],
      [Role.PROMPT, Role.PROMPT, Role.POLICY, Role.GLUE, Role.PAD],
    ]
    record = transcript.Transcript(
      tokens=jnp.zeros((2, 5), jnp.int32),  # the values say nothing
      roles=jnp.array(roles, jnp.int8),
      starts=jnp.array([1, 0]),
      ends=jnp.array([5, 4]),
      behave_log_probs=jnp.zeros((2, 3)),
      group_ids=jnp.array([0, 0]),
      policy_versions=jnp.array([0, 0]),
      prompt_size=2,
    )
    np.testing.assert_array_equal(
      record.completion_mask, [[1, 0, 1], [1, 0, 0]]
    )
    np.testing.assert_array_equal(record.completion_lengths, [2, 1])
    np.testing.assert_array_equal(
      record.valid, [[0, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    )
    np.testing.assert_array_equal(
      record.positions, [[0, 0, 1, 2, 3], [0, 1, 2, 3, 4]]
    )
