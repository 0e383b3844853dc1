"""Batches: masks, positions, which rows go together, and packed rows."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from saw_jax.models import decoder
from saw_jax.rollout import transcript as transcript_lib
from saw_jax.training import batch as batch_lib
from saw_jax.training import objective
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
  return transcript_lib.Transcript(
    tokens=np.broadcast_to(rows[..., None], (*shape, 7)),
    roles=np.full((*shape, 7), POLICY, np.int8),
    behave_log_probs=-np.ones((*shape, 4)),
    prompt_size=3,
    **dict.fromkeys(("starts", "ends", "group_ids"), rows),
  )


class TestTrainBatch:
  def test_masks_and_positions_by_hand(self):
    # The 0 at position 4 of the first row has the value of padding, and the
    # end token of the second row's first turn is that of its last. A prompt is
    # valid and not learned from.
    batch, equal = by_hand(), np.testing.assert_array_equal
    equal(batch.completion_mask, [[1, 1, 1, 0], [1, 0, 0, 1]])
    equal(batch.observation_mask, [[0, 0, 0, 0], [0, 1, 0, 0]])
    equal(batch.valid, [[0, 0, 1, 1, 1, 1, 0], [1] * 7])
    equal(batch.positions, [[0, 0, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 6]])
    assert not batch.replace(prompt_size=0).completion_mask[:, :3].any()

  def test_require_names_the_field_and_who_needs_it(self):
    with pytest.raises(ValueError, match="the KL term needs ref_log_probs"):
      by_hand().require("ref_log_probs", "the KL term")

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
  def test_groups_stay_whole(self):
    # Four prompts of three samples; a half is two prompts.
    advantages = jnp.arange(24.0).reshape(2, 4, 3)
    batch = batch_lib.make_batch(transcript((2, 12)), advantages)
    batch = batch.replace(starts=jnp.arange(24).reshape(2, 12) // 3)
    for part in range(2):
      taken = batch_lib.take_rows(batch, part, 2)
      groups = np.repeat(2 * part + np.r_[0, 1], 3)
      np.testing.assert_array_equal(taken.starts, [groups, groups + 4])
    with pytest.raises(ValueError, match="12 rows do not split into 5"):
      batch_lib.take_rows(batch, 0, 5)


def stacked(batch):
  return jax.tree.map(lambda x: np.asarray(x)[None], batch)


def packed(batch, **how):
  """Packs a batch of one seed."""
  found = batch_lib.pack_rows(stacked(batch), 24, target_multiple=8, **how)
  return jax.tree.map(lambda x: jnp.asarray(x[0]), found)


class TestFirstFit:
  @hypothesis.given(st.lists(st.integers(1, 20), min_size=1, max_size=40))
  def test_each_item_once_and_no_two_bins_fit_in_one(self, lengths):
    lengths = np.array(lengths)
    bins = batch_lib.first_fit(lengths, 20)
    assert sorted(sum(bins, [])) == list(range(len(lengths)))
    fills = sorted(int(lengths[items].sum()) for items in bins)
    assert fills[-1] <= 20
    if len(fills) > 1:
      assert fills[0] + fills[1] > 20

  def test_a_row_that_does_not_fit_names_the_setting(self):
    with pytest.raises(ValueError, match="row 1 has 9 .* loop.pack_length"):
      batch_lib.first_fit(np.array([2, 9]), 8)


class TestPack:
  @hypothesis.given(
    seed=st.integers(0, 1000),
    shards=st.sampled_from([1, 2]),
    parts=st.sampled_from([1, 2, 4]),
    multiple=st.sampled_from([1, 3]),
  )
  @hypothesis.settings(max_examples=40)
  def test_every_row_lies_whole_in_a_packed_row_of_its_own_part(
    self, seed, shards, parts, multiple
  ):
    seeds = [helpers.batch(rows=16, seed=seed + i) for i in range(2)]
    batch = jax.tree.map(lambda *x: np.stack(x), *seeds)
    made = batch_lib.pack_rows(
      batch,
      14,
      num_shards=shards,
      num_microbatches=parts,
      row_multiple=multiple,
      target_multiple=4,
    ).packing
    height = made.tokens.shape[1] // (shards * parts)
    assert height % multiple == 0
    assert made.targets.shape[2] % 4 == 0
    used = np.zeros_like(made.tokens, bool)
    for n in range(2):
      for b in range(16):
        shard, inside = divmod(b, 16 // shards)
        row = (shard * height + made.rows[n, b]) * parts + inside % parts
        real = batch.roles[n, b] != transcript_lib.PAD
        prompt = batch.prompt_size - batch.starts[n, b]
        first = made.sources[n, row, made.offsets[n, b]] + 1 - prompt
        here = slice(first, first + real.sum())
        assert len(set(made.segments[n, row, here])) == 1
        assert made.segments[n, row, first] > 0
        assert not used[n, row, here].any()
        used[n, row, here] = True
        begin, count = made.offsets[n, b], made.counts[n, b]
        for found, expected in (
          (made.tokens[n, row, here], batch.tokens[n, b][real]),
          (made.positions[n, row, here], np.arange(real.sum())),
          (
            made.targets[n, row, begin : begin + count],
            batch.tokens[n, b, batch.prompt_size :][:count],
          ),
        ):
          np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(used, made.segments > 0)

  def test_rows_are_split_as_the_batch_is(self):
    # What the micro-batches of an update see of both is the same rows.
    made = packed(helpers.batch(rows=8), num_microbatches=2)
    parts = batch_lib.split_rows(made, 2)
    for k in range(2):
      made = jax.tree.map(lambda x, k=k: x[k], parts)
      values = made.packing.targets.astype(jnp.float32)
      found = batch_lib.unpack(values, made.packing, 7)
      mask = made.completion_mask
      np.testing.assert_array_equal(found[mask], made.tokens[:, 5:][mask])

  def test_rows_that_do_not_split_are_counted(self):
    with pytest.raises(ValueError, match="8 rows do not split into 1 shards"):
      packed(helpers.batch(), num_microbatches=3)


class TestForward:
  params = functools.cached_property(
    lambda self: decoder.init_params(helpers.CONFIG, jax.random.key(0))
  )

  @functools.cached_property
  def forward(self):
    return jax.jit(
      objective.make_forward(helpers.CONFIG, temperature=0.7, chunk_size=16)
    )

  def test_is_that_of_rows_as_they_are(self):
    batch = helpers.batch()
    together = packed(batch)
    assert together.packing.tokens.shape[0] < 8  # or it packs nothing
    expected, found = (self.forward(self.params, x) for x in (batch, together))
    mask = batch.completion_mask
    for name in ("log_probs", "entropies"):
      x, y = getattr(found, name), getattr(expected, name)
      np.testing.assert_allclose(x[mask], y[mask], rtol=1e-5, atol=1e-6)
      assert not x[~mask].any()

  def test_in_parts_each_row_comes_back_to_its_place(self):
    batch, forward = helpers.batch(), self.forward
    fn = objective.in_parts(lambda *x: forward(*x).log_probs, 4)
    found = jax.jit(fn)(self.params, packed(batch, num_microbatches=4))
    expected = jax.jit(fn)(self.params, batch)
    mask = batch.completion_mask
    np.testing.assert_allclose(found[mask], expected[mask], rtol=1e-5)

  def test_the_padded_share_is_counted_by_hand(self):
    batch = jax.tree.map(lambda x: np.asarray(x)[None], helpers.batch())
    rows, size = batch.tokens.shape[1:]
    tokens = np.sum(batch.roles != transcript_lib.PAD)
    np.testing.assert_allclose(batch.padded_share(), 1 - tokens / rows / size)
    together = batch_lib.pack_rows(batch, 24)
    bins = together.packing.tokens.shape[1]
    np.testing.assert_allclose(together.padded_share(), 1 - tokens / bins / 24)

  def test_a_neighbour_changes_nothing(self):
    together = packed(helpers.batch())
    made = together.packing
    row = int(made.rows[0])
    others = np.asarray((made.rows == row) & (np.arange(8) != 0))
    assert others.any()
    first = int(made.sources[row, made.offsets[0]])
    mine = made.segments[row] == made.segments[row, first]
    changed = made.tokens.at[row].set(
      jnp.where(mine, (made.tokens[row] + 7) % 259, made.tokens[row])
    )
    before = self.forward(self.params, together)
    after = self.forward(
      self.params, together.replace(packing=made.replace(tokens=changed))
    )
    moved = np.asarray(before.log_probs != after.log_probs).any(1)
    assert moved[0]
    assert not moved[1:].any()
