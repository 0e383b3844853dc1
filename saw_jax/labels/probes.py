# SPDX-License-Identifier: Apache-2.0
"""CARE's two probes: small networks on hidden states and on how votes split.

They read a batch of `P` prompts with `G` responses each, before any label is
bought. The first says whether a vote is right, and of each response whether it
is; the second how many responses outside the vote are right. With u for the
prompt and R for a response, each normalised over the batch where N stands:

  u = ReLU(Linear₁₂₈(N([hidden, vote features])))
  R = ReLU(Linear₅₁₂(ReLU(Linear₆₄(N([response, length])))))    in the first
  R = m ReLU(Linear₅₁₂(ReLU(Linear₆₄(N(m response)))))          in the second
  logits = Linear(ReLU(Linear₂₅₆(N([u, mean R]))))
  response logits = Linear(ReLU(Linear₂₅₆(N([u, R]))))          the first alone

with m for the responses outside the vote, over which alone the second averages.
They learn by cross-entropies in which rare classes of a batch weigh more.

In training, `where [P]` marks the prompts that are there, since a batch may be
padded. What stands beside them is replaced by zeros before anything is
computed, and is left out of statistics and losses. Without `where` a probe
scores each prompt by itself, with its running statistics.
CARE, https://arxiv.org/abs/2605.25864, as its released code has it.
"""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from saw_jax import reductions
from saw_jax.labels.replay import ProbeFeatures, take_present
from saw_jax.types import Array, Mask

# As PyTorch's batch norm has them; momentum is the weight of the new value.
_MOMENTUM, _EPS = 0.1, 1e-5


class BatchNorm(nn.Module):
  """Batch normalisation over the rows that are there, as PyTorch has it.

    y = scale (x − mean) / √(var + ε) + bias

  In training mean and variance are those of the batch, the variance that of the
  population (÷ n); otherwise they are the running ones (`batch_stats`), which
  move towards the batch's, there with the sample's variance (÷ (n − 1)).
  """

  @nn.compact
  def __call__(self, x: Array, where: Mask = None) -> Array:
    """Normalises `[..., F]`, in training over the rows of `where [...]`."""
    (*shape, size), dtype = x.shape, jnp.result_type(float)
    x = x.reshape(-1, size)
    running_mean = self.variable("batch_stats", "mean", jnp.zeros, size, dtype)
    running_var = self.variable("batch_stats", "var", jnp.ones, size, dtype)
    scale = self.param("scale", nn.initializers.ones, (size,), dtype)
    bias = self.param("bias", nn.initializers.zeros, (size,), dtype)
    mean, var = running_mean.value, running_var.value
    if where is not None:
      chex.assert_shape(where, shape)
      rows = jnp.broadcast_to(where.reshape(-1, 1), x.shape)
      mean = reductions.all_mean(x, axis=0, where=rows)
      var = reductions.all_mean(jnp.square(x - mean[None]), axis=0, where=rows)
      count = jnp.sum(where)
      sample_var = var * count / jnp.maximum(count - 1, 1)
      for running, new in ((running_mean, mean), (running_var, sample_var)):
        running.value += _MOMENTUM * (new - running.value)
    x = (x - mean[None]) * jax.lax.rsqrt(var + _EPS)[None]
    return (x * scale[None] + bias[None]).reshape(*shape, size)


class _NormalisedMLP(nn.Module):
  """Normalises its input, then applies linear layers with ReLUs between.

  Weights and biases start uniformly within ±1/√(inputs), as PyTorch's do.
  """

  widths: tuple[int, ...]
  activate_last: bool = False

  @nn.compact
  def __call__(self, x: Array, where: Mask) -> Array:
    x, dtype = BatchNorm(name="norm")(x, where), jnp.result_type(float)
    for index, width in enumerate(self.widths):
      init = functools.partial(_uniform, x.shape[-1] ** -0.5)
      inits = dict(kernel_init=init, bias_init=init, param_dtype=dtype)
      x = nn.Dense(width, name=f"linear_{index}", **inits)(x)
      if index + 1 < len(self.widths) or self.activate_last:
        x = jax.nn.relu(x)
    return x


def _uniform(bound, key, shape, dtype):
  return jax.random.uniform(key, shape, dtype, -bound, bound)


class _Probe(nn.Module):
  """What both probes share: the encoders of prompts and responses."""

  widths: tuple[int, ...]  # of u, of both together, inside R, of R

  def encode(self, features, responses, where):
    """u `[P, 128]`, R `[P, G, 512]`, and the mask of responses."""
    of_prompt, _, *of_response = self.widths
    prompt = _join(features.prompt_hidden, features.vote_features)
    u = _NormalisedMLP((of_prompt,), True, name="prompt")(prompt, where)
    rows = where
    if where is not None:
      rows = jnp.broadcast_to(where[:, None], features.outside.shape)
    r = _NormalisedMLP(of_response, True, name="response")(responses, rows)
    return u, r, rows

  def head(self, name, classes, u, r, where):
    """Logits from u and R, or from its mean."""
    widths = self.widths[1], classes
    return _NormalisedMLP(widths, name=name)(_join(u, r), where)


def _join(*parts: Array) -> Array:
  return jnp.concatenate(parts, axis=-1)


class VoteProbe(_Probe):
  """Whether a vote is right (class 1), and of each response whether it is."""

  @nn.compact
  def __call__(self, features: ProbeFeatures, where: Mask = None):
    """Gives logits `[P, 2]` of the votes and `[P, G, 2]` of the responses."""
    features = take_present(features, where)
    responses = _join(features.response_hidden, features.lengths[..., None])
    u, r, rows = self.encode(features, responses, where)
    logits = self.head("vote_head", 2, u, jnp.mean(r, axis=1), where)
    u = jnp.broadcast_to(u[:, None], (*r.shape[:2], u.shape[-1]))
    return logits, self.head("response_head", 2, u, r, rows)


class CountProbe(_Probe):
  """How many responses outside the vote are right: 0 to G.

  Responses for the vote and those without an answer are zeros, which count in
  the batch statistics of their layer as they do in the reference code.
  """

  @nn.compact
  def __call__(self, features: ProbeFeatures, where: Mask = None):
    """Gives logits `[P, G + 1]`, of impossible counts too."""
    features = take_present(features, where)
    outside = features.outside[..., None]
    responses = jnp.where(outside, features.response_hidden, 0)
    u, r, _ = self.encode(features, responses, where)
    count = jnp.maximum(jnp.sum(outside, axis=1), 1)
    mean = jnp.sum(jnp.where(outside, r, 0), axis=1) / count
    return self.head("count_head", features.possible.shape[-1], u, mean, where)


def class_weights(
  labels: Array,
  num_classes: int,
  where: Mask = None,
  *,
  power: float = 0.5,
  low: float = 0.25,
  high: float = 4.0,
) -> Array:
  """Weighs classes against how frequent they are among labels `[N]`. `[C]`.

    w_c = clip(n_c^(−power) / mean_present n^(−power), low, high)

  n counts labels; 0 for absent classes; not scaled again after they were cut.
  """
  is_class = jnp.asarray(labels)[:, None] == jnp.arange(num_classes)[None]
  if where is not None:
    is_class &= where[:, None]
  counts = jnp.sum(is_class, axis=0, dtype=jnp.result_type(float))
  present = counts > 0
  raw = jnp.where(present, counts, 1) ** -power
  mean = reductions.all_mean(raw, where=present)
  weights = jnp.clip(reductions.divide(raw, mean), low, high)
  return reductions.select(weights, present)


def class_probabilities(logits: Array, class_mask: Mask = None) -> Array:
  """A softmax over the last axis, exactly 0 outside `class_mask`."""
  log_probs = _class_log_probs(logits, class_mask)
  return reductions.select(jnp.exp(log_probs), class_mask)


def weighted_cross_entropy(
  logits: Array,
  labels: Array,
  weights: Array,
  *,
  class_mask: Mask = None,
  where: Mask = None,
) -> Array:
  """Averages cross-entropies, each by the weight of its class.

    loss = Σᵢ w_{tᵢ} (−log p_{tᵢ}) / Σᵢ w_{tᵢ},   0 without samples

  `logits [N, C]`, to which alone gradient flows; labels t `[N]`; weights w
  `[C]`; `class_mask [N, C]`, the classes that can occur; `where [N]`.
  """
  chex.assert_rank(logits, 2)
  # What stands beside the batch may be any number.
  labels = jnp.asarray(labels).astype(jnp.int32)
  logits, labels = take_present((logits, labels), where)
  log_probs = _class_log_probs(logits, class_mask)
  nll = -jnp.take_along_axis(log_probs, labels[:, None], axis=-1)[:, 0]
  w = jax.lax.stop_gradient(jnp.asarray(weights, nll.dtype)[labels])
  w = reductions.select(w, where)
  # Left out before the product, as the loss of an impossible class is huge.
  nll = reductions.select(nll, w > 0)
  return reductions.divide(jnp.sum(w * nll), jnp.sum(w))


def balanced_loss(
  logits: Array, labels: Array, where: Mask = None, class_mask: Mask = None
) -> Array:
  """Cross-entropy of logits `[P, C]`, in which rare classes weigh more."""
  weights = class_weights(labels, logits.shape[-1], where)
  masks = dict(class_mask=class_mask, where=where)
  return weighted_cross_entropy(logits, labels, weights, **masks)


def response_loss(
  response_logits: Array, correct: Array, where: Mask = None
) -> Array:
  """Trains the first probe on responses, which all weigh the same: `[P, G, 2]`.

  A response without an answer is not correct, and counts.
  """
  chex.assert_shape(response_logits, (*correct.shape, 2))
  if where is not None:
    where = jnp.repeat(where, correct.shape[-1])
  logits, labels = response_logits.reshape(-1, 2), jnp.ravel(correct)
  return weighted_cross_entropy(logits, labels, jnp.ones(2), where=where)


def count_loss(
  logits: Array, counts: Array, class_mask: Array, where: Mask = None
) -> Array:
  """Trains the second probe: balanced cross-entropy of y from 0 to G.

  From logits `[P, G + 1]`, `voting.correct_outside [P]` and
  `voting.possible_counts [P, G + 1]`. The right count is among the classes of
  its sample even where it is the size of two clusters together, which the mask
  does not foresee.
  """
  chex.assert_equal_shape([logits, class_mask])
  is_true = jnp.asarray(counts)[:, None] == jnp.arange(logits.shape[-1])[None]
  return balanced_loss(logits, counts, where, class_mask | is_true)


def _class_log_probs(logits: Array, class_mask: Mask) -> Array:
  """Log-softmax over the classes in the mask; −10⁹ or so outside it."""
  logits = reductions.at_least_float32(logits)
  if class_mask is not None:
    # Finite, so that a row without any class has a gradient that is no NaN.
    logits = jnp.where(class_mask, logits, -1e9)
  return jax.nn.log_softmax(logits, axis=-1)
