# SPDX-License-Identifier: Apache-2.0
"""What the probes see and learn, and the ring in which it is kept for later.

A sample is a prompt whose label was bought: `ProbeFeatures`, which need no
label, and `ProbeLabels`. Of a ring of fixed size the oldest samples make room
for new ones. Features stay as they were when the label was bought, although the
policy has moved on. Both probes draw from the one ring, each with its own rule,
without replacement. All shapes are static: a draw has as many rows as were
asked for, and a mask of those that are there, since a young ring holds fewer.
CARE, https://arxiv.org/abs/2605.25864.
"""

import chex
import flax.struct
import jax
import jax.numpy as jnp

from saw_jax import reductions
from saw_jax.labels import voting
from saw_jax.types import Array, Key, Mask

LENGTH_SCALE = 4000.0  # tokens; the longest response of the released scripts


@flax.struct.dataclass
class ProbeFeatures:
  """What the probes see of `P` prompts: nothing of it needs a label."""

  prompt_hidden: Array  # [P, D], after the last prompt token
  response_hidden: Array  # [P, G, D], after the last token of each response
  vote_features: Array  # [P, 1 + G], `voting.vote_features`
  lengths: Array  # [P, G], of the responses, from 0 to 1
  outside: Array  # bool [P, G]: has an answer, and not the voted one
  possible: Array  # bool [P, G + 1], `voting.possible_counts`
  voted_count: Array  # int32 [P]: x, responses that gave the voted answer


@flax.struct.dataclass
class ProbeLabels:
  """What bought labels say about `P` prompts."""

  vote_right: Array  # bool [P], `voting.is_vote_right`
  correct_outside: Array  # int32 [P], `voting.correct_outside`
  correct: Array  # bool [P, G]; false for a response without an answer


Samples = tuple[ProbeFeatures, ProbeLabels]  # of `N` prompts


@flax.struct.dataclass
class Replay:
  """A ring of samples, the next of which goes to `pushed` modulo its size."""

  samples: Samples  # N: the size of the ring
  pushed: Array  # int32 [], samples that were ever stored

  @property
  def capacity(self) -> int:
    return self.samples[1].vote_right.shape[0]

  @property
  def filled(self) -> Array:
    """Mask of the places that hold a sample. Boolean `[N]`."""
    return jnp.arange(self.capacity) < self.pushed


def probe_features(
  prompt_hidden: Array,
  response_hidden: Array,
  answer_ids: Array,
  lengths: Array,
  *,
  length_scale: float = LENGTH_SCALE,
) -> ProbeFeatures:
  """Collects what the probes see, at least in float32, without gradient.

  `prompt_hidden [P, D]` is the policy's last hidden state, after its last norm,
  at the last token of each prompt; `response_hidden [P, G, D]` the same at the
  last token of each response, which is its end-of-sequence token if it has one.
  `lengths [P, G]` are tokens, of which `length_scale` or more count as 1.
  """
  P, G, D = response_hidden.shape
  chex.assert_shape(prompt_hidden, (P, D))
  chex.assert_shape([answer_ids, lengths], (P, G))
  prompt_hidden, response_hidden, lengths = (
    reductions.at_least_float32(jax.lax.stop_gradient(x))
    for x in (prompt_hidden, response_hidden, lengths)
  )
  votes = voting.majority_vote(answer_ids)
  return ProbeFeatures(
    prompt_hidden=prompt_hidden,
    response_hidden=response_hidden,
    vote_features=voting.vote_features(votes),
    lengths=jnp.clip(lengths / length_scale, 0, 1),
    outside=votes.for_other,
    possible=voting.possible_counts(answer_ids),
    voted_count=votes.size,
  )


def probe_labels(answer_ids: Array, correct: Array) -> ProbeLabels:
  """What the probes learn from ground truth, row by row."""
  return ProbeLabels(
    vote_right=voting.is_vote_right(answer_ids, correct),
    correct_outside=voting.correct_outside(answer_ids, correct),
    correct=jnp.asarray(correct, bool) & (jnp.asarray(answer_ids) >= 0),
  )


def take_present(rows: chex.ArrayTree, where: Mask) -> chex.ArrayTree:
  """Puts zeros in the rows of a tree of `[N, ...]` that `where [N]` masks."""

  def take(x):
    there = where.reshape(-1, *[1] * (x.ndim - 1))
    return jnp.where(there, x, jnp.zeros_like(x))

  return rows if where is None else jax.tree.map(take, rows)


def make_replay(size: int, group_size: int, hidden_size: int) -> Replay:
  """Makes an empty ring; a sample of `G = 8` and `D = 2048` takes 74 kB."""
  ids = jnp.zeros((size, group_size), int)
  hidden = jnp.zeros((size, group_size, hidden_size))
  features = probe_features(hidden[:, 0], hidden, ids, hidden[..., 0])
  samples = features, probe_labels(ids, ids)
  return Replay(jax.tree.map(jnp.zeros_like, samples), jnp.int32(0))


def push(replay: Replay, samples: Samples, where: Array) -> Replay:
  """Stores the samples of `where [N]` in place of the oldest; the last stay."""
  capacity = replay.capacity
  chex.assert_tree_shape_prefix(samples, where.shape)
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
  as many as there are. Shape `[min(count, capacity)]`.
  """
  # Places rather than random numbers, of which two may be equal.
  order = jax.random.permutation(key, replay.capacity)
  rank = jnp.where(replay.filled, order, order + replay.capacity)
  return _lowest(replay, rank, count)


def draw_stratified(
  replay: Replay, key: Key, count: int, num_classes: int
) -> tuple[Array, Array]:
  """Draws samples of every class, of `correct_outside` from 0 to C − 1.

  From each class that is there, in increasing order, max(1, ⌊count / classes
  there⌋) samples, or all that it has; then any of the rest, each as likely as
  any other. With more classes than `count` the first ones are drawn from.
  """
  size, filled = replay.capacity, replay.filled
  shuffle_key, fill_key = jax.random.split(key)
  # A place without a sample is of a class behind the last.
  classes = jnp.where(filled, replay.samples[1].correct_outside, num_classes)
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
  rest += jnp.where(filled, num_classes, num_classes + 1) * size
  first = filled & (within < share)
  rank = jnp.where(first, classes * size + within, rest)
  return _lowest(replay, rank, count)


def _lowest(replay: Replay, rank: Array, count: int) -> tuple[Array, Array]:
  """The places of lowest rank, and which of them hold a sample."""
  places = jnp.argsort(rank)[:count]
  return places, replay.filled[places]
