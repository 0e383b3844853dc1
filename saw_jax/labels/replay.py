# SPDX-License-Identifier: Apache-2.0
"""Bought labels and the features that they were bought with, kept for later.

A ring of fixed size: the oldest samples make room for new ones. Features stay
as they were when the label was bought, although the policy has moved on. Both
probes draw from the one ring, each with its own rule, without replacement. All
shapes are static: a draw has as many rows as were asked for, and a mask of
those that are there, since a young ring holds fewer.

CARE, https://arxiv.org/abs/2605.25864.
"""

import chex
import flax.struct
import jax
import jax.numpy as jnp

from saw_jax.labels import probes, voting
from saw_jax.types import Array, Key


@flax.struct.dataclass
class ProbeLabels:
  """What bought labels say about `P` prompts."""

  vote_right: Array  # bool [P], `voting.is_vote_right`
  correct_outside: Array  # int32 [P], `voting.correct_outside`
  correct: Array  # bool [P, G]; false for a response without an answer


@flax.struct.dataclass
class Samples:
  """Prompts with a label; every array has a leading axis of `N` of them."""

  features: probes.ProbeFeatures
  labels: ProbeLabels


@flax.struct.dataclass
class Replay:
  """A ring of samples, the next of which goes to `pushed` modulo its size."""

  samples: Samples  # N: the size of the ring
  pushed: Array  # int32 [], samples that were ever stored

  @property
  def capacity(self) -> int:
    return self.samples.labels.vote_right.shape[0]

  @property
  def filled(self) -> Array:
    """Mask of the places that hold a sample. Boolean `[N]`."""
    return jnp.arange(self.capacity) < self.pushed


def probe_labels(answer_ids: Array, correct: Array) -> ProbeLabels:
  """What the probes learn from ground truth, row by row."""
  answered = jnp.asarray(answer_ids) >= 0
  return ProbeLabels(
    vote_right=voting.is_vote_right(answer_ids, correct),
    correct_outside=voting.correct_outside(answer_ids, correct),
    correct=jnp.asarray(correct, bool) & answered,
  )


def make_replay(size: int, group_size: int, hidden_size: int) -> Replay:
  """Makes an empty ring of at least 1: a checkpoint takes no empty arrays.

  A sample of `G = 8` and `D = 2048` takes 74 kB.
  """
  ids = jnp.zeros((size, group_size), int)
  labels = jax.tree.map(jnp.zeros_like, probe_labels(ids, ids))
  features = probes.zero_features(size, group_size, hidden_size)
  return Replay(Samples(features, labels), jnp.zeros((), jnp.int32))


def push(replay: Replay, samples: Samples, where: Array) -> Replay:
  """Stores the samples of `where [N]` in place of the oldest.

  If they are more than the ring holds, the last ones stay.
  """
  capacity = replay.capacity
  chex.assert_shape(where, samples.labels.vote_right.shape)
  rank = jnp.cumsum(where, dtype=jnp.int32) - 1
  total = jnp.sum(where, dtype=jnp.int32)
  kept = where & (rank >= total - capacity)
  # A place outside the ring is written nowhere.
  place = jnp.where(kept, (replay.pushed + rank) % capacity, capacity)
  stored = jax.tree.map(
    lambda old, new: old.at[place].set(new.astype(old.dtype), mode="drop"),
    replay.samples,
    samples,
  )
  return Replay(stored, replay.pushed + total)


def draw_uniform(replay: Replay, key: Key, count: int) -> tuple[Array, Array]:
  """Draws samples, each as likely as any other.

  Gives places in the ring, all different, and whether there is a sample: in
  min(count, samples in the ring) of them. Shape `[min(count, capacity)]`.
  """
  # Places rather than random numbers, of which two may be equal.
  order = jax.random.permutation(key, replay.capacity)
  rank = jnp.where(replay.filled, order, order + replay.capacity)
  return _lowest(replay, rank, count)


def draw_stratified(
  replay: Replay, key: Key, count: int, num_classes: int
) -> tuple[Array, Array]:
  """Draws samples of every class, `labels.correct_outside` from 0 to C − 1.

  From each class that is there, in increasing order, max(1, ⌊count / classes
  there⌋) samples, or all that it has; then any of the rest, each as likely as
  any other. With more classes than `count` the first ones are drawn from.

  >>> ring = make_replay(4, 1, 1).replace(pushed=jnp.array(3))
  >>> _, there = draw_stratified(ring, jax.random.key(0), 4, num_classes=2)
  >>> print(there)
  [ True  True  True False]
  """
  size, filled = replay.capacity, replay.filled
  shuffle_key, fill_key = jax.random.split(key)
  classes = replay.samples.labels.correct_outside
  # A place without a sample is of a class behind the last.
  classes = jnp.where(filled, classes, num_classes)
  counts = jnp.zeros(num_classes + 1, jnp.int32).at[classes].add(1)
  present = jnp.sum(counts[:num_classes] > 0)
  share = jnp.maximum(count // jnp.maximum(present, 1), 1)
  # Sorted by class, shuffled within: a place's number within its class.
  shuffled = jax.random.permutation(shuffle_key, size)
  order = jnp.lexsort((shuffled, classes))
  starts = jnp.cumsum(counts) - counts
  numbers = jnp.arange(size) - starts[classes[order]]
  within = jnp.zeros_like(order).at[order].set(numbers)
  # The rest is shuffled anew: who is left over of a class came late in it.
  rest = jax.random.permutation(fill_key, size)
  rank = jnp.where(
    filled & (within < share),
    classes * size + within,
    rest + jnp.where(filled, num_classes, num_classes + 1) * size,
  )
  return _lowest(replay, rank, count)


def _lowest(replay: Replay, rank: Array, count: int) -> tuple[Array, Array]:
  """The places of lowest rank, and which of them hold a sample."""
  places = jnp.argsort(rank)[:count]
  return places, replay.filled[places]
