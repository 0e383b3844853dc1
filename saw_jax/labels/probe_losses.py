# SPDX-License-Identifier: Apache-2.0
"""What CARE's two probes are trained on, and how.

The first probe says whether a vote is right (class 1), and of each response
whether it is. The second says how many responses outside the vote are right:
classes 0 to G, of which `voting.possible_counts` says which can occur. Rare
classes weigh more, by the counts of the current batch. A batch may be padded:
`where` marks the prompts that are there.

CARE, https://arxiv.org/abs/2605.25864.
"""

import chex
import jax
import jax.numpy as jnp

from saw_jax import reductions
from saw_jax.types import Array


def class_counts(
  labels: Array, num_classes: int, *, where: Array | None = None
) -> Array:
  """Counts the labels, integers `[N]`, of each class. Float `[C]`."""
  is_class = jnp.asarray(labels)[:, None] == jnp.arange(num_classes)[None]
  if where is not None:
    is_class &= where[:, None]
  return jnp.sum(is_class, axis=0, dtype=jnp.result_type(float))


def class_weights(
  counts: Array, power: float = 0.5, low: float = 0.25, high: float = 4.0
) -> Array:
  """Weighs classes against how frequent they are, from counts n `[C]`.

    w_c = clip(n_c^(−power) / mean_present n^(−power), low, high)

  0 for absent classes; not scaled again after they were cut.

  >>> print(class_weights(jnp.array([9.0, 1.0, 0.0])))
  [0.5 1.5 0. ]
  """
  counts = reductions.at_least_float32(counts)
  present = counts > 0
  raw = jnp.where(present, counts, jnp.ones_like(counts)) ** -power
  mean = reductions.all_mean(raw, where=present)
  return reductions.select(
    jnp.clip(reductions.divide(raw, mean), low, high), present
  )


def class_probabilities(
  logits: Array, class_mask: Array | None = None
) -> Array:
  """A softmax over the last axis, exactly 0 outside `class_mask`."""
  log_probs = _class_log_probs(logits, class_mask)
  return reductions.select(jnp.exp(log_probs), class_mask)


def weighted_cross_entropy(
  logits: Array,
  labels: Array,
  weights: Array,
  *,
  class_mask: Array | None = None,
  where: Array | None = None,
) -> Array:
  """Averages cross-entropies, each by the weight of its class.

    loss = Σᵢ w_{tᵢ} (−log p_{tᵢ}) / Σᵢ w_{tᵢ},   0 without samples

  `logits [N, C]`, to which alone gradient flows; labels t `[N]`; weights w
  `[C]`; `class_mask [N, C]`, the classes that can occur; `where [N]`.

  >>> loss = weighted_cross_entropy(
  ...     jnp.zeros((2, 2)), jnp.array([0, 1]), jnp.array([0.5, 1.5]))
  >>> print(f"{loss:.4f}")  # log 2
  0.6931
  """
  chex.assert_rank(logits, 2)
  labels = jnp.asarray(labels)
  if where is not None:
    # What stands beside the batch may be any number.
    labels = jnp.where(where, labels, 0)
    logits = jnp.where(where[:, None], logits, jnp.zeros_like(logits))
  log_probs = _class_log_probs(logits, class_mask)
  nll = -jnp.take_along_axis(log_probs, labels[:, None], axis=-1)[:, 0]
  w = jax.lax.stop_gradient(jnp.asarray(weights, nll.dtype)[labels])
  w = reductions.select(w, where)
  # Left out before the product, as the loss of an impossible class is huge.
  nll = reductions.select(nll, w > 0)
  return reductions.divide(jnp.sum(w * nll), jnp.sum(w))


def vote_loss(
  logits: Array, vote_right: Array, where: Array | None = None
) -> Array:
  """Trains the first probe on votes: balanced cross-entropy of `[P, 2]`."""
  return _balanced(logits, jnp.asarray(vote_right).astype(jnp.int32), where)


def response_loss(
  response_logits: Array, correct: Array, where: Array | None = None
) -> Array:
  """Trains the first probe on responses, which all weigh the same: `[P, G, 2]`.

  A response without an answer is not correct, and counts.
  """
  chex.assert_shape(response_logits, (*correct.shape, 2))
  if where is not None:
    where = jnp.repeat(where, correct.shape[-1])
  return weighted_cross_entropy(
    response_logits.reshape(-1, 2),
    jnp.ravel(correct).astype(jnp.int32),
    jnp.ones(2),
    where=where,
  )


def count_loss(
  logits: Array, counts: Array, class_mask: Array, where: Array | None = None
) -> Array:
  """Trains the second probe: balanced cross-entropy of y from 0 to G.

  From logits `[P, G + 1]`, `voting.correct_outside [P]` and
  `voting.possible_counts [P, G + 1]`. The right count is among the classes of
  its sample even where it is the size of two clusters together, which the mask
  does not foresee.
  """
  chex.assert_equal_shape([logits, class_mask])
  is_true = jnp.asarray(counts)[:, None] == jnp.arange(logits.shape[-1])[None]
  return _balanced(logits, counts, where, class_mask | is_true)


def _balanced(
  logits: Array,
  labels: Array,
  where: Array | None,
  class_mask: Array | None = None,
) -> Array:
  weights = class_weights(class_counts(labels, logits.shape[-1], where=where))
  return weighted_cross_entropy(
    logits, labels, weights, class_mask=class_mask, where=where
  )


def _class_log_probs(logits: Array, class_mask: Array | None) -> Array:
  """Log-softmax over the classes in the mask; −10⁹ or so outside it."""
  logits = reductions.at_least_float32(logits)
  if class_mask is not None:
    # Finite, so that a row without any class has a gradient that is no NaN.
    logits = jnp.where(class_mask, logits, jnp.full_like(logits, -1e9))
  return jax.nn.log_softmax(logits, axis=-1)
