import json

import numpy as np
import pytest

from saw_jax.rollout.transcript import PAD, POLICY, PROMPT, Transcript
from saw_jax.run import groups
from saw_jax.run.rollouts import Rollout
from saw_jax.tasks.base import Outcome


def make_rollout(seed=0, *, num_seeds=2, prompts=3, size=2, prompt=4, width=6):
  """Rows of unequal lengths, with the padding that a rollout has."""
  rng = np.random.default_rng(seed)
  rows = prompts * size
  shape = (num_seeds, rows, prompt + width)
  lengths = rng.integers(1, width + 1, (num_seeds, rows))
  starts = rng.integers(0, prompt, (num_seeds, rows))
  order = np.arange(prompt + width)
  inside = (order >= starts[..., None]) & (order < prompt + lengths[..., None])
  roles = np.where(order < prompt, PROMPT, POLICY)
  roles = np.where(inside, roles, PAD).astype(np.int8)
  tokens = np.where(inside, rng.integers(1, 99, shape), 0).astype(np.int32)
  written = roles[..., prompt:] == POLICY
  log_probs = np.where(written, -rng.random(written.shape), 0)
  return Rollout(
    transcript=Transcript(
      tokens=tokens,
      roles=roles,
      starts=starts.astype(np.int32),
      ends=(prompt + lengths).astype(np.int32),
      behave_log_probs=log_probs.astype(np.float32),
      group_ids=np.tile(np.repeat(np.arange(prompts), size), (num_seeds, 1)),
      policy_versions=np.zeros((num_seeds, rows), np.int32),
      prompt_size=prompt,
    ),
    completions=[],
    rewards=rng.random((num_seeds, prompts, size, 2)).astype(np.float32),
    scored=rng.random((num_seeds, prompts, size, 2)) > 0.2,
    outcomes=list(rng.choice(list(Outcome), num_seeds * rows)),
    lengths=lengths.reshape(num_seeds, prompts, size),
    ended=rng.random((num_seeds, prompts, size)) > 0.5,
  )


def written(rollout, n, row):
  """What a row says, wherever its padding is."""
  transcript = rollout.transcript
  real = transcript.roles[n, row] != PAD
  completion = transcript.roles[n, row, transcript.prompt_size :] != PAD
  return (
    transcript.tokens[n, row][real].tolist(),
    transcript.roles[n, row][real].tolist(),
    transcript.behave_log_probs[n, row][completion].tolist(),
  )


def assert_consistent(rollout):
  transcript = rollout.transcript
  real = transcript.roles != PAD
  np.testing.assert_array_equal(real.argmax(-1), transcript.starts)
  np.testing.assert_array_equal(
    real.shape[-1] - real[..., ::-1].argmax(-1), transcript.ends
  )


class TestSplitAndJoin:
  def test_undo_each_other(self):
    rollout = make_rollout()
    apart = groups.split(rollout, carry_log_probs=True)
    again = groups.join(apart, multiple=1, max_new_tokens=6)
    assert_consistent(again)
    for n in range(2):
      for row in range(6):
        assert written(again, n, row) == written(rollout, n, row)
    for name in ("rewards", "scored", "lengths", "ended"):
      np.testing.assert_array_equal(
        getattr(again, name), getattr(rollout, name)
      )
    assert again.outcomes == rollout.outcomes

  def test_groups_of_rollouts_of_other_sizes(self):
    short = make_rollout(1, prompt=3, width=2)
    long = make_rollout(2, prompt=7, width=9)
    a = groups.split(short, carry_log_probs=True)
    b = groups.split(long, carry_log_probs=True)
    mixed = groups.join(
      [[a[0][2], b[0][1]], [b[1][0], a[1][1]]], multiple=4, max_new_tokens=12
    )
    assert_consistent(mixed)
    assert mixed.transcript.prompt_size == 7
    assert (mixed.transcript.tokens.shape[-1] - 7) % 4 == 0
    assert written(mixed, 0, 0) == written(short, 0, 4)
    assert written(mixed, 0, 3) == written(long, 0, 3)
    assert written(mixed, 1, 1) == written(long, 1, 1)
    assert written(mixed, 1, 2) == written(short, 1, 2)

  def test_the_width_is_rounded_up_and_bounded(self):
    apart = groups.split(make_rollout(width=5), carry_log_probs=True)
    widest = max(g.lengths.max() for row in apart for g in row)
    assert widest == 5
    wide = groups.join(apart, multiple=4, max_new_tokens=64)
    cut = groups.join(apart, multiple=4, max_new_tokens=5)
    assert wide.transcript.tokens.shape[-1] == 4 + 8
    assert cut.transcript.tokens.shape[-1] == 4 + 5

  def test_versions_are_those_of_the_groups(self):
    apart = groups.split(make_rollout(), carry_log_probs=True)
    versions = np.array([[5, 6, 7], [8, 9, 10]])
    joined = groups.join(apart, multiple=1, max_new_tokens=6, versions=versions)
    np.testing.assert_array_equal(
      joined.transcript.policy_versions, np.repeat(versions, 2, axis=1)
    )

  @pytest.mark.parametrize("carried", ["none", "some"])
  def test_log_probs_that_are_not_carried_by_all_are_absent(self, carried):
    apart = groups.split(make_rollout(), carry_log_probs=carried == "some")
    if carried == "some":
      apart[0][0] = apart[0][0]._replace(behave_log_probs=None)
    joined = groups.join(apart, multiple=1, max_new_tokens=6)
    assert joined.transcript.behave_log_probs is None

  def test_does_not_hold_on_to_the_rollout(self):
    rollout = make_rollout()
    apart = groups.split(rollout, carry_log_probs=True)
    before = apart[0][0].tokens.copy()
    rollout.transcript.tokens[:] = 0
    rollout.rewards[:] = 0
    np.testing.assert_array_equal(apart[0][0].tokens, before)
    assert apart[0][0].rewards.any()


class TestPack:
  @pytest.mark.parametrize("carry", [True, False])
  def test_groups_come_back_as_they_were(self, carry):
    rollout = make_rollout()
    first = groups.split(rollout, carry_log_probs=carry)
    other = groups.split(make_rollout(3, prompt=6), carry_log_probs=carry)
    flat = [first[0][1], other[1][2], first[1][0]]
    document, arrays = groups.pack(flat)
    found = groups.unpack(json.loads(json.dumps(document)), arrays)
    a = groups.join([flat], multiple=1, max_new_tokens=6)
    b = groups.join([found], multiple=1, max_new_tokens=6)
    assert_consistent(b)
    np.testing.assert_array_equal(a.transcript.tokens, b.transcript.tokens)
    np.testing.assert_array_equal(a.transcript.roles, b.transcript.roles)
    np.testing.assert_array_equal(a.rewards, b.rewards)
    assert a.outcomes == b.outcomes
    if carry:
      np.testing.assert_array_equal(
        a.transcript.behave_log_probs, b.transcript.behave_log_probs
      )
