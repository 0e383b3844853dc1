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

with m for the responses outside the vote, over which alone the second probe
averages.

In training, `where [P]` marks the prompts that are there, since a batch may be
padded. What stands beside them is replaced by zeros before anything is
computed, and is left out of the statistics. Without `where` a probe scores each
prompt by itself, with its running statistics.

CARE, https://arxiv.org/abs/2605.25864, as its released code has it.
"""

import chex
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from saw_jax import reductions
from saw_jax.labels import voting
from saw_jax.types import Array

LENGTH_SCALE = 4000.0  # tokens; the longest response of the released scripts
# As PyTorch's batch norm has them; momentum is the weight of the new value.
_MOMENTUM, _EPS = 0.1, 1e-5


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

  >>> x = probe_features(jnp.ones((1, 5)), jnp.ones((1, 3, 5)),
  ...     jnp.array([[7, -1, 7]]), jnp.array([[1000, 4000, 9000]]))
  >>> print(x.lengths, x.voted_count)
  [[0.25 1.   1.  ]] [2]
  """
  P, G = jnp.shape(answer_ids)
  chex.assert_shape(prompt_hidden, (P, None))
  chex.assert_shape(response_hidden, (P, G, prompt_hidden.shape[-1]))
  chex.assert_shape(lengths, (P, G))
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


def zero_features(P: int, G: int, D: int) -> ProbeFeatures:
  """Features that are all 0, for initial values and empty stores."""
  hidden, ids = jnp.zeros((P, G, D)), jnp.zeros((P, G), int)
  features = probe_features(hidden[:, 0], hidden, ids, hidden[..., 0])
  return jax.tree.map(jnp.zeros_like, features)


class BatchNorm(nn.Module):
  """Batch normalisation over the rows that are there, as PyTorch has it.

    y = scale (x − mean) / √(var + ε) + bias

  In training mean and variance are those of the batch, the variance that of the
  population (÷ n); otherwise they are the running ones (`batch_stats`), which
  move towards the batch's, there with the sample's variance (÷ (n − 1)).
  """

  @nn.compact
  def __call__(self, x: Array, where: Array | None = None) -> Array:
    """Normalises `[..., F]`, in training over the rows of `where [...]`."""
    size, shape = x.shape[-1], x.shape
    x = x.reshape(-1, size)
    dtype = jnp.result_type(float)
    running_mean = self.variable("batch_stats", "mean", jnp.zeros, size, dtype)
    running_var = self.variable("batch_stats", "var", jnp.ones, size, dtype)
    scale = self.param("scale", nn.initializers.ones, (size,), dtype)
    bias = self.param("bias", nn.initializers.zeros, (size,), dtype)
    mean, var = running_mean.value, running_var.value
    if where is not None:
      chex.assert_shape(where, shape[:-1])
      rows = jnp.broadcast_to(where.reshape(-1, 1), x.shape)
      mean = reductions.all_mean(x, axis=0, where=rows)
      squares = jnp.square(x - mean[None])
      var = reductions.all_mean(squares, axis=0, where=rows)
      count = jnp.sum(where)
      sample_var = var * count / jnp.maximum(count - 1, 1)
      for running, new in ((running_mean, mean), (running_var, sample_var)):
        running.value += _MOMENTUM * (new - running.value)
    x = (x - mean[None]) * jax.lax.rsqrt(var + _EPS)[None]
    return (x * scale[None] + bias[None]).reshape(shape)


class _NormalisedMLP(nn.Module):
  """Normalises its input, then applies linear layers with ReLUs between.

  Weights and biases start uniformly within ±1/√(inputs), as PyTorch's do.
  """

  widths: tuple[int, ...]
  activate_last: bool = False

  @nn.compact
  def __call__(self, x: Array, where: Array | None) -> Array:
    x = BatchNorm(name="norm")(x, where)
    for index, width in enumerate(self.widths):
      init = _uniform(x.shape[-1] ** -0.5)
      name, dtype = f"linear_{index}", jnp.result_type(float)
      x = nn.Dense(
        width, name=name, kernel_init=init, bias_init=init, param_dtype=dtype
      )(x)
      if index + 1 < len(self.widths) or self.activate_last:
        x = jax.nn.relu(x)
    return x


class _Probe(nn.Module):
  """What both probes share: the encoders of prompts and responses."""

  prompt_width: int = 128
  joint_width: int = 256
  response_hidden_width: int = 64
  response_width: int = 512

  def encode(self, features, responses, where):
    """u `[P, 128]`, R `[P, G, 512]`, and the mask of responses."""
    prompt = jnp.concatenate(
      [features.prompt_hidden, features.vote_features], axis=-1
    )
    u = _NormalisedMLP((self.prompt_width,), True, name="prompt")(prompt, where)
    rows = where
    if where is not None:
      rows = jnp.broadcast_to(where[:, None], features.outside.shape)
    widths = (self.response_hidden_width, self.response_width)
    r = _NormalisedMLP(widths, True, name="response")(responses, rows)
    return u, r, rows


class VoteProbe(_Probe):
  """Whether a vote is right (class 1), and of each response whether it is."""

  @nn.compact
  def __call__(
    self, features: ProbeFeatures, where: Array | None = None
  ) -> tuple[Array, Array]:
    """Gives logits `[P, 2]` of the votes and `[P, G, 2]` of the responses."""
    features = take_present(features, where)
    responses = jnp.concatenate(
      [features.response_hidden, features.lengths[..., None]], axis=-1
    )
    u, r, rows = self.encode(features, responses, where)
    widths = (self.joint_width, 2)
    logits = _NormalisedMLP(widths, name="vote_head")(
      jnp.concatenate([u, jnp.mean(r, axis=1)], axis=-1), where
    )
    repeated = jnp.broadcast_to(u[:, None], (*r.shape[:2], u.shape[-1]))
    response_logits = _NormalisedMLP(widths, name="response_head")(
      jnp.concatenate([repeated, r], axis=-1), rows
    )
    return logits, response_logits


class CountProbe(_Probe):
  """How many responses outside the vote are right: 0 to G.

  Responses for the vote and those without an answer are zeros, which count in
  the batch statistics of their layer as they do in the reference code.
  """

  @nn.compact
  def __call__(
    self, features: ProbeFeatures, where: Array | None = None
  ) -> Array:
    """Gives logits `[P, G + 1]`, of impossible counts too."""
    features = take_present(features, where)
    outside = features.outside[..., None]
    responses = jnp.where(outside, features.response_hidden, 0)
    u, r, _ = self.encode(features, responses, where)
    count = jnp.maximum(jnp.sum(outside, axis=1), 1)
    mean = jnp.sum(jnp.where(outside, r, 0), axis=1) / count
    widths = (self.joint_width, features.possible.shape[-1])
    return _NormalisedMLP(widths, name="count_head")(
      jnp.concatenate([u, mean], axis=-1), where
    )


def take_present(rows: chex.ArrayTree, where: Array | None) -> chex.ArrayTree:
  """Puts zeros in the rows of a tree of `[N, ...]` that `where [N]` masks."""
  if where is None:
    return rows
  return jax.tree.map(
    lambda x: jnp.where(
      where.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.zeros_like(x)
    ),
    rows,
  )


def _uniform(bound: float) -> nn.initializers.Initializer:
  return lambda key, shape, dtype: jax.random.uniform(
    key, shape, dtype, -bound, bound
  )
