"""What the probes see and learn, and the ring that keeps it."""

import collections
import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from saw_jax.labels import replay
from tests.labels.golden_test import GOLDEN

make = jax.jit(replay.make_replay, static_argnums=(0, 1, 2))
push = jax.jit(replay.push)
draw_uniform = jax.jit(replay.draw_uniform, static_argnames="count")
draw_stratified = jax.jit(
  replay.draw_stratified, static_argnames=("count", "num_classes")
)


@functools.cache
def zeros(size):
  shapes = jax.eval_shape(lambda: replay.make_replay(size, 1, 1).samples)
  return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)


def samples(numbers, classes=0):
  """Samples that are told apart by their hidden state."""
  numbers = np.asarray(numbers)
  features, labels = zeros(len(numbers))
  return (
    features.replace(prompt_hidden=numbers[:, None].astype(np.float32)),
    labels.replace(
      vote_right=numbers % 2 == 0,
      correct_outside=np.full(numbers.shape, classes, np.int32),
    ),
  )


def ring_of(classes, size):
  """A ring that holds samples of these classes, in this order."""
  rows = np.pad(np.array(classes, int), (0, size - len(classes)))
  return replay.Replay(samples(np.arange(size), rows), np.int32(len(classes)))


def numbers_in(ring):
  hidden = np.array(ring.samples[0].prompt_hidden[:, 0]).astype(int)
  return hidden[np.array(ring.filled)].tolist()


def chosen(drawn):
  """The places that were drawn, all different."""
  places, there = map(np.array, drawn)
  assert len(set(places[there])) == there.sum()
  return places[there]


class TestPush:
  @hypothesis.settings(max_examples=15)
  @hypothesis.given(
    st.lists(st.lists(st.booleans(), min_size=3, max_size=3), max_size=6)
  )
  def test_it_is_a_queue_that_forgets_the_oldest(self, steps):
    ring = make(5, 1, 1)
    queue = collections.deque(maxlen=5)
    for step, where in enumerate(steps):
      numbers = 1 + 3 * step + np.arange(3)
      ring = push(ring, samples(numbers), np.array(where))
      queue.extend(numbers[np.array(where)].tolist())
    assert sorted(numbers_in(ring)) == sorted(queue)
    assert ring.pushed == sum(map(sum, steps))
    # Every leaf of a sample went to the same place.
    stored = np.array(ring.samples[1].vote_right)[np.array(ring.filled)]
    assert stored.tolist() == [number % 2 == 0 for number in numbers_in(ring)]

  def test_of_more_than_it_holds_the_last_stay(self):
    ring = make(2, 1, 1)
    ring = push(ring, samples([1, 2, 3, 4]), np.arange(4) < 3)
    assert sorted(numbers_in(ring)) == [2, 3]


def test_absent_rows_are_zeros_and_none_is_all():
  rows = {"flat": np.arange(1, 4), "deep": np.ones((3, 2, 4))}
  found = replay.take_present(rows, np.array([True, False, True]))
  assert found["flat"].tolist() == [1, 0, 3]
  assert found["deep"].sum(axis=(1, 2)).tolist() == [8, 0, 8]
  assert replay.take_present(rows, None) is rows


class TestUniform:
  def test_as_many_as_there_are(self):
    for held in (0, 1, 3, 7):
      for seed in range(5):
        key = jax.random.key(seed)
        places = chosen(draw_uniform(ring_of([0] * held, 7), key, count=3))
        assert len(places) == min(held, 3) and (places < held).all()

  def test_every_sample_is_as_likely_as_any_other(self):
    ring = ring_of([0] * 5, 8)
    keys = jax.random.split(jax.random.key(0), 3000)
    draw = jax.vmap(lambda key: replay.draw_uniform(ring, key, count=2))
    counts = np.bincount(np.ravel(jax.jit(draw)(keys)[0]), minlength=8)
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
    left = case["filled_uniformly_from_leftovers"]
    options = dict(count=case["history_n"], num_classes=9)
    for seed in range(3):
      ring, key = ring_of(classes, 256), jax.random.key(seed)
      found = draw_stratified(ring, key, **options)
      drawn = collections.Counter(classes[chosen(found)].tolist())
      assert drawn.total() == sum(guaranteed.values()) + left
      assert drawn >= collections.Counter(guaranteed)

  @hypothesis.settings(max_examples=20)
  @hypothesis.given(
    st.lists(st.integers(0, 3), max_size=12), st.integers(0, 2**31)
  )
  def test_it_draws_as_loops_say(self, classes, seed):
    ring, key, count = ring_of(classes, 12), jax.random.key(seed), 5
    places = chosen(draw_stratified(ring, key, count=count, num_classes=4))
    drawn = collections.Counter(classes[place] for place in places)
    present, room = sorted(set(classes)), count
    for which in present:
      share = max(1, count // len(present))
      least = min(share, classes.count(which), room)
      room -= least
      assert drawn[which] >= least
    assert drawn.total() == min(count, len(classes))

  def test_what_is_left_is_drawn_uniformly(self):
    # Of 8 and 2 one each is taken; 7 and 1 are left for the last place.
    classes = np.array([0] * 8 + [1] * 2)
    ring = ring_of(classes, 10)
    keys = jax.random.split(jax.random.key(1), 4000)
    draw = jax.vmap(lambda key: replay.draw_stratified(ring, key, 3, 2))
    places = np.array(jax.jit(draw)(keys)[0])
    seconds = (classes[places] == 1).sum(axis=1) == 2
    # 500 times in 8; the standard deviation is 21.
    np.testing.assert_allclose(seconds.sum(), 500, atol=5 * 21)
    # Within a class all are alike: 4000 (1 + 7/8) / 8 each.
    counts = np.bincount(np.ravel(places), minlength=10)[:8]
    np.testing.assert_allclose(counts, 937.5, atol=5 * 27)


class TestSamples:
  def test_features_by_hand(self):
    ids = jnp.array([[5, 3, 5, -1], [-1, -1, -1, -1]])
    prompt = jnp.arange(10.0).reshape(2, 5)
    responses = jnp.arange(40.0).reshape(2, 4, 5)
    lengths = jnp.array([[0, 10, 20, 50], [1, 2, 3, 4]])
    given = prompt, responses, ids, lengths
    found = replay.probe_features(*given, length_scale=20.0)
    assert found.prompt_hidden.tolist() == prompt.tolist()
    assert found.response_hidden.tolist() == responses.tolist()
    assert found.vote_features.tolist() == [[0.75, 0.5, 0.25, 0, 0], [0] * 5]
    assert found.lengths[0].tolist() == [0, 0.5, 1, 1]
    assert found.outside.tolist() == [[False, True, False, False], [False] * 4]
    assert found.possible.astype(int).tolist() == [
      [1, 1, 0, 0, 0],
      [1] + [0] * 4,
    ]
    assert found.voted_count.tolist() == [2, 0]

  def test_half_precision_becomes_single_and_no_gradient_reaches_it(self):
    def total(hidden):
      found = replay.probe_features(
        hidden[:, 0], hidden, jnp.zeros((1, 3), int), jnp.ones((1, 3), int)
      )
      assert found.prompt_hidden.dtype == found.lengths.dtype == np.float32
      assert found.response_hidden.dtype == np.float32
      return jnp.sum(found.prompt_hidden) + jnp.sum(found.response_hidden)

    assert not jax.grad(total)(jnp.ones((1, 3, 2), jnp.bfloat16)).any()

  def test_labels_by_hand(self):
    ids = np.array([[1, 1, 2, -1]] * 3)
    correct = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    labels = replay.probe_labels(ids, correct)
    assert labels.vote_right.tolist() == [True, False, False]
    assert labels.correct_outside.tolist() == [0, 1, 0]
    # Who gave no answer is wrong, whatever a grader says.
    assert labels.correct.tolist() == (correct * [1, 1, 1, 0] == 1).tolist()
