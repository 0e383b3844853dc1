"""Tests of prompts and transcripts."""

import json
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saw_jax.rollout import transcript
from saw_jax.rollout.transcript import GLUE, OBSERVATION, PAD, POLICY, PROMPT
from tests import helpers

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "paw_gigpo.json"


def test_prompts_end_together():
  batch = transcript.pad_prompts([[5, 6], [7, 8, 9], [4]], ids=[31, 17, 23])
  np.testing.assert_array_equal(batch.tokens, [[0, 5, 6], [7, 8, 9], [0, 0, 4]])
  np.testing.assert_array_equal(batch.lengths, [2, 3, 1])
  np.testing.assert_array_equal(batch.ids, [31, 17, 23])
  chex.assert_type([batch.tokens, batch.lengths, batch.ids], np.int32)
  for length, size in ((1, 8), (8, 8), (9, 16)):
    batch = transcript.pad_prompts([[1] * length], multiple=8)
    assert batch.tokens.shape == (1, size)
  for prompts in ([], [[1], []]):
    with pytest.raises(ValueError, match="empty prompt"):
      transcript.pad_prompts(prompts)


def test_masks_come_from_roles():
  roles = [
    [PAD, PROMPT, POLICY, OBSERVATION, POLICY],
    [PROMPT, PROMPT, POLICY, GLUE, PAD],
  ]
  record = transcript.Transcript(
    tokens=jnp.zeros((2, 5), jnp.int32),  # the values say nothing
    roles=jnp.array(roles, jnp.int8),
    starts=jnp.array([1, 0]),
    ends=jnp.array([5, 4]),
    behave_log_probs=jnp.zeros((2, 3)),
    group_ids=jnp.array([0, 0]),
    prompt_size=2,
  )
  for name, want in {
    "completion_mask": [[1, 0, 1], [1, 0, 0]],
    "observation_mask": [[0, 1, 0], [0, 0, 0]],
    "completion_lengths": [2, 1],
    "valid": [[0, 1, 1, 1, 1], [1, 1, 1, 1, 0]],
    "positions": [[0, 0, 1, 2, 3], [0, 1, 2, 3, 4]],
  }.items():
    np.testing.assert_array_equal(getattr(record, name), want, name)


def record(prompts, responses, size):
  """The transcript of some turns, in `size` positions behind the prompts."""
  found = helpers.transcript_of(
    [responses], size, [prompts], prompt_size=max(map(len, prompts))
  )
  return jax.tree.map(lambda x: x[0], found)


def test_golden_layout():
  cases = json.loads(GOLDEN.read_text())["cases"]
  (case,) = (case for case in cases if case["kind"] == "sequence")
  inputs, want = case["inputs"], case["expected"]
  size = inputs["max_len"] - len(inputs["prompt"]) - inputs["max_obs"]
  found = transcript.append_observations(
    record([inputs["prompt"]], [inputs["response"]], size),
    [inputs["observation"]],
    max_tokens=inputs["max_obs"],
  )
  (tokens,), (roles,) = found.tokens, found.roles
  np.testing.assert_array_equal(tokens, want["input_ids"])
  np.testing.assert_array_equal(found.valid[0], want["attention_mask"])
  # The file's masks stand where a token is predicted.
  following = np.append(roles[1:], PAD)
  np.testing.assert_array_equal(np.append(tokens[1:], 0), want["labels"])
  np.testing.assert_array_equal(following == POLICY, want["action_label_mask"])
  np.testing.assert_array_equal(
    following == OBSERVATION, want["obs_label_mask"]
  )
  np.testing.assert_array_equal(
    np.where(found.valid, found.positions, 0)[0], want["position_ids"]
  )


def test_glue_belongs_to_neither_mask():
  found = transcript.append_observations(
    record([[1], [1, 2]], [[3, 4], [5]], 3),
    [[6, 7, 8], []],
    max_tokens=2,
    before=[20, 21],
  )
  for values, expected in (
    (found.tokens[:, 2:], [[3, 4, 20, 21, 6, 7, 0], [5, 0, 0, 0, 0, 0, 0]]),
    (found.completion_mask, [[1, 1, 0, 0, 0, 0, 0], [1] + [0] * 6]),
    (found.observation_mask, [[0, 0, 0, 0, 1, 1, 0], [0] * 7]),
    (found.ends, [8, 3]),
  ):
    np.testing.assert_array_equal(values, expected)
  assert found.behave_log_probs.shape == (2, 7)
  assert not found.behave_log_probs[:, 3:].any()


def test_there_is_one_observation_a_row():
  with pytest.raises(ValueError, match="shorter"):
    transcript.append_observations(
      record([[1], [1]], [[2], [2]], 1), [[3]], max_tokens=1
    )
