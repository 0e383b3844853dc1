"""Tests of saw_jax/labels/replay.py."""

import collections

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from saw_jax.labels import probes, replay
from tests.labels.golden_test import GOLDEN

push = jax.jit(replay.push)
draw_uniform = jax.jit(replay.draw_uniform, static_argnames="count")
draw_stratified = jax.jit(
  replay.draw_stratified, static_argnames=("count", "num_classes")
)


def samples(numbers, classes=0):
  """Samples that are told apart by their hidden state."""
  numbers = jnp.asarray(numbers)
  classes = jnp.broadcast_to(classes, numbers.shape)
  features = probes.zero_features(len(numbers), 1, 1)
  return replay.Samples(
    features.replace(prompt_hidden=numbers[:, None].astype(jnp.float32)),
    replay.ProbeLabels(
      vote_right=numbers % 2 == 0,
      correct_outside=jnp.asarray(classes, jnp.int32),
      correct=jnp.zeros((len(numbers), 1), bool),
    ),
  )


def ring_of(classes, size):
  """A ring that holds samples of these classes, in this order."""
  ring = replay.make_replay(size, 1, 1)
  count = len(classes)
  rows = np.zeros(size, int)
  rows[:count] = classes
  filled = samples(np.arange(size), rows)
  return ring.replace(samples=filled, pushed=jnp.array(count, jnp.int32))


def numbers_in(ring):
  hidden = np.array(ring.samples.features.prompt_hidden[:, 0]).astype(int)
  return hidden[np.array(ring.filled)].tolist()


class TestPush:
  @hypothesis.settings(max_examples=15)
  @hypothesis.given(
    st.lists(st.lists(st.booleans(), min_size=3, max_size=3), max_size=6)
  )
  def test_it_is_a_queue_that_forgets_the_oldest(self, steps):
    ring = replay.make_replay(5, 1, 1)
    queue = collections.deque(maxlen=5)
    for step, where in enumerate(steps):
      numbers = 1 + 3 * step + np.arange(3)
      ring = push(ring, samples(numbers), np.array(where))
      queue.extend(numbers[np.array(where)].tolist())
    assert sorted(numbers_in(ring)) == sorted(queue)
    assert ring.pushed == sum(map(sum, steps))
    # Every leaf of a sample went to the same place.
    stored = ring.samples.labels.vote_right[ring.filled].tolist()
    assert stored == [number % 2 == 0 for number in numbers_in(ring)]

  def test_of_more_than_it_holds_the_last_stay(self):
    ring = push(
      replay.make_replay(2, 1, 1), samples([1, 2, 3, 4]), np.arange(4) < 3
    )
    assert sorted(numbers_in(ring)) == [2, 3]


class TestUniform:
  @pytest.mark.parametrize("held", [0, 1, 3, 7])
  def test_as_many_as_there_are(self, held):
    ring = ring_of([0] * held, 7)
    for seed in range(5):
      places, there = draw_uniform(ring, jax.random.key(seed), count=3)
      assert there.sum() == min(held, 3) and there.shape == (3,)
      chosen = np.array(places)[np.array(there)]
      assert len(set(chosen.tolist())) == len(chosen)
      assert (chosen < held).all()

  def test_every_sample_is_as_likely_as_any_other(self):
    ring = ring_of([0] * 5, 8)
    keys = jax.random.split(jax.random.key(0), 3000)
    places, _ = jax.jit(
      jax.vmap(lambda key: replay.draw_uniform(ring, key, count=2))
    )(keys)
    counts = np.bincount(np.ravel(places), minlength=8)
    assert not counts[5:].any()
    # 1200 each; the standard deviation is 27.
    np.testing.assert_allclose(counts[:5], 1200, atol=5 * 27)


class TestStratified:
  @pytest.mark.parametrize("case", GOLDEN["replay_stratified"])
  def test_golden(self, case):
    held = {int(c): n for c, n in case["buffer_stage2_label_counts"].items()}
    classes = np.repeat(list(held), list(held.values()))
    classes = np.random.default_rng(0).permutation(classes)
    guaranteed = {int(c): n for c, n in case["guaranteed_per_class"].items()}
    ring = ring_of(classes, 256)
    count = case["history_n"]
    for seed in range(3):
      places, there = draw_stratified(
        ring, jax.random.key(seed), count=count, num_classes=9
      )
      chosen = np.array(places)[np.array(there)]
      assert len(set(chosen.tolist())) == len(chosen)
      drawn = collections.Counter(classes[chosen].tolist())
      total = sum(guaranteed.values()) + case["filled_uniformly_from_leftovers"]
      assert drawn.total() == total
      for which, least in guaranteed.items():
        assert drawn[which] >= least
      if not case["filled_uniformly_from_leftovers"]:
        assert drawn == guaranteed

  @hypothesis.settings(max_examples=20)
  @hypothesis.given(
    st.lists(st.integers(0, 3), max_size=12), st.integers(0, 2**31)
  )
  def test_it_draws_as_loops_say(self, classes, seed):
    count = 5
    places, there = draw_stratified(
      ring_of(classes, 12), jax.random.key(seed), count=count, num_classes=4
    )
    drawn = collections.Counter(
      classes[place] for place, ok in zip(places, there, strict=True) if ok
    )
    present = sorted(set(classes))
    room, least = count, {}
    for which in present:
      share = max(1, count // len(present))
      least[which] = min(share, classes.count(which), room)
      room -= least[which]
    assert drawn.total() == min(count, len(classes))
    assert all(drawn[which] >= least[which] for which in present)

  def test_what_is_left_is_drawn_uniformly(self):
    # Of 8 and 2 one each is taken; 7 and 1 are left for the last place.
    classes = np.array([0] * 8 + [1] * 2)
    ring = ring_of(classes, 10)
    keys = jax.random.split(jax.random.key(1), 4000)
    places, _ = jax.jit(
      jax.vmap(
        lambda key: replay.draw_stratified(ring, key, count=3, num_classes=2)
      )
    )(keys)
    seconds = (classes[np.array(places)] == 1).sum(axis=1) == 2
    # 500 times in 8; the standard deviation is 21.
    np.testing.assert_allclose(seconds.sum(), 500, atol=5 * 21)
    # Within a class all are alike: 4000 (1 + 7/8) / 8 each.
    counts = np.bincount(np.ravel(places), minlength=10)[:8]
    np.testing.assert_allclose(counts, 937.5, atol=5 * 27)


class TestLabels:
  def test_by_hand(self):
    ids = np.array([[1, 1, 2, -1], [1, 1, 2, -1], [1, 1, 2, -1]])
    correct = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    labels = replay.probe_labels(ids, correct)
    assert labels.vote_right.tolist() == [True, False, False]
    assert labels.correct_outside.tolist() == [0, 1, 0]
    # Who gave no answer is wrong, whatever a grader says.
    assert labels.correct.astype(int).tolist() == [
      [1, 0, 0, 0],
      [0, 0, 1, 0],
      [0, 0, 0, 0],
    ]
