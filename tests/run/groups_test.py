import numpy as np
import pytest

from saw_jax.rollout.transcript import PAD, POLICY
from saw_jax.run import groups
from saw_jax.run.rollouts import Rollout
from tests import helpers


def make_rollout(seed=0, *, prompt=4, width=6):
  """Rows of unequal lengths `[2, 3 * 2]`, padded as a rollout's are."""
  rng = np.random.default_rng(seed)
  shape, rows = (2, 3, 2), (2, 6)

  def tokens(first, last):
    sizes = rng.integers(first, last, rows)
    return [[rng.integers(1, 99, k).tolist() for k in row] for row in sizes]

  sampled = helpers.transcript_of(
    tokens(1, width + 1), width, tokens(1, prompt + 1), prompt_size=prompt
  )
  is_written = sampled.roles[..., prompt:] == POLICY
  return Rollout(
    transcript=sampled.replace(
      behave_log_probs=np.where(is_written, sampled.behave_log_probs, 0),
      group_ids=np.tile(np.repeat(np.arange(3), 2), (2, 1)),
    ),
    completions=[],
    rewards=rng.random((*shape, 2)).astype(np.float32),
    scored=rng.random((*shape, 2)) > 0.2,
    outcomes=rng.integers(0, 4, shape).astype(np.int8),
    lengths=(sampled.ends - prompt).reshape(shape),
    ended=rng.random(shape) > 0.5,
  )


def split(*args, carry=True, **fields):
  return groups.split(make_rollout(*args, **fields), carry)


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
  real = rollout.transcript.roles != PAD
  np.testing.assert_array_equal(real.argmax(-1), rollout.transcript.starts)
  ends = real.shape[-1] - real[..., ::-1].argmax(-1)
  np.testing.assert_array_equal(ends, rollout.transcript.ends)


def assert_same(a, b):
  assert_consistent(b)
  for n, row in np.ndindex(a.transcript.starts.shape):
    assert written(a, n, row) == written(b, n, row)
  for name in ("rewards", "scored", "lengths", "ended", "outcomes"):
    np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_join_undoes_split_and_holds_on_to_nothing():
  rollout, same = make_rollout(), make_rollout()
  apart = groups.split(rollout, True)
  rollout.transcript.tokens[:] = 0
  rollout.rewards[:] = 0
  again = groups.join(apart)
  assert_same(same, again)
  np.testing.assert_array_equal(
    again.transcript.group_ids, same.transcript.group_ids
  )


def test_groups_of_rollouts_of_other_sizes():
  short = make_rollout(1, prompt=3, width=2)
  long = make_rollout(2, prompt=7, width=9)
  a, b = (groups.split(rollout, True) for rollout in (short, long))
  rows = [[a[0][2], b[0][1]], [b[1][0], a[1][1]]]
  mixed = groups.join(rows, multiple=4, max_new_tokens=12)
  assert_consistent(mixed)
  assert mixed.transcript.prompt_size == 7
  assert (mixed.transcript.tokens.shape[-1] - 7) % 4 == 0
  assert written(mixed, 0, 0) == written(short, 0, 4)
  assert written(mixed, 0, 3) == written(long, 0, 3)
  assert written(mixed, 1, 1) == written(long, 1, 1)
  assert written(mixed, 1, 2) == written(short, 1, 2)


@pytest.mark.parametrize(("limit", "width"), [(64, 8), (5, 5)])
def test_the_width_is_rounded_up_and_bounded(limit, width):
  apart = split(width=5)
  assert max(g.arrays["lengths"].max() for row in apart for g in row) == 5
  joined = groups.join(apart, multiple=4, max_new_tokens=limit, pad_id=9)
  assert joined.transcript.tokens.shape[-1] == 4 + width
  assert (joined.transcript.tokens[..., 9:] == 9).all()


@pytest.mark.parametrize("some", [False, True])
def test_log_probs_that_are_not_carried_by_all_are_absent(some):
  apart = split(carry=some)
  if some:
    del apart[0][0].arrays["behave_log_probs"]
  assert groups.join(apart).transcript.behave_log_probs is None


def test_packed_groups_are_the_same_groups():
  first, other = split(), split(3, prompt=6)
  flat = [first[0][1], other[1][2], first[1][0]]
  arrays, size = groups.pack(flat)
  sizes = [group.prompt_size for group in flat]
  found = groups.unpack(arrays, size, sizes)
  assert [group.prompt_size for group in found] == [4, 6, 4]
  assert_same(groups.join([flat]), groups.join([found]))
  # Alone each is as wide as it was.
  for a, b in zip(flat, found, strict=True):
    a, b = groups.join([[a]]), groups.join([[b]])
    assert_same(a, b)
    np.testing.assert_array_equal(a.transcript.tokens, b.transcript.tokens)
