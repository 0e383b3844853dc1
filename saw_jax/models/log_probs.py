# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities and entropies from the stream, a chunk of logits at a time.

With a vocabulary of 150,000 the logits of a batch outweigh the model. Here they
exist for `chunk_size` tokens at a time, in the forward pass and again, computed
a second time, in the backward pass. Where there is but one chunk it is kept:
the backward pass of the head follows its forward pass, so that nothing is saved
by computing it twice.
"""

import functools

import jax
import jax.numpy as jnp

from saw_jax.models.projection import equally_varying
from saw_jax.types import Array


def head_logits(
  hidden: Array, head_DV: Array, temperature: float = 1.0
) -> Array:
  """Returns float32 logits over the temperature, for any leading shape.

  The sampler and the trainer both call this, so that they speak of one
  distribution.

  Args:
    hidden: the stream after the last norm. Shape `[..., D]`.
    head_DV: from the stream to the logits. Shape `[D, V]`.
    temperature: divides the logits.

  Returns:
    The logits, float32. Shape `[..., V]`.
  """
  logits = jnp.matmul(
    hidden, head_DV.astype(hidden.dtype), preferred_element_type=jnp.float32
  )
  return logits if temperature == 1.0 else logits / temperature


def log_probs_of(logits: Array, targets: Array) -> tuple[Array, Array]:
  """Returns the log-prob of each target and the entropy, from whole logits.

  The definition of what `chunked_log_probs` computes:

    log π(y) = z_y - log Σᵥ exp zᵥ,   H = -Σᵥ π(v) log π(v)

  Args:
    logits: of any real dtype; computed in float32. Shape `[..., V]`.
    targets: token ids. Shape `[...]`.

  Returns:
    Log-probs and entropies, float32. Shape `[...]` each.
  """
  log_probs_V = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
  log_probs = jnp.take_along_axis(log_probs_V, targets[..., None], axis=-1)
  entropies = -jnp.sum(jnp.exp(log_probs_V) * log_probs_V, axis=-1)
  return log_probs[..., 0], entropies


def chunked_log_probs(
  hidden_BTD: Array,
  head_DV: Array,
  targets_BT: Array,
  *,
  temperature: float = 1.0,
  chunk_size: int = 1024,
) -> tuple[Array, Array]:
  """Returns the log-prob of each target and the entropy, without `[B, T, V]`.

  A chunk is a band of time steps of all rows, so that rows that are split over
  devices stay where they are.

  Args:
    hidden_BTD: the stream after the last norm. Shape `[B, T, D]`.
    head_DV: from the stream to the logits. Shape `[D, V]`.
    targets_BT: the token taken after each position. Shape `[B, T]`.
    temperature: divides the logits; that of the sampler.
    chunk_size: how many tokens have their logits in memory at once, over all
      devices. The last chunk is padded.

  Returns:
    Log-probs and entropies, float32, differentiable in `hidden_BTD` and
    `head_DV`. Shape `[B, T]` each.

  Raises:
    ValueError: `chunk_size` is below 1.
  """
  if chunk_size < 1:
    raise ValueError(f"chunk_size must be at least 1, not {chunk_size}.")
  B, T, D = hidden_BTD.shape
  if B * T == 0:
    empty_BT = jnp.zeros((B, T), jnp.float32)
    return empty_BT, empty_BT
  # R rows by W steps make a chunk; there are I bands of rows, J bands of steps.
  I = -(-B // chunk_size)  # noqa: E741
  R = -(-B // I)
  J = -(-T // max(1, chunk_size // R))
  W = -(-T // J)

  def split(x_BT: Array) -> Array:
    widths = [(0, R * I - B), (0, W * J - T)] + [(0, 0)] * (x_BT.ndim - 2)
    tail = x_BT.shape[2:]
    x_RIJW = jnp.pad(x_BT, widths).reshape(R, I, J, W, *tail)
    x_IJRW = jnp.moveaxis(x_RIJW, 0, 2)
    return x_IJRW.reshape(I * J, R * W, *tail)

  def join(x_CN: Array) -> Array:
    x_RIJW = jnp.moveaxis(x_CN.reshape(I, J, R, W), 2, 0)
    return x_RIJW.reshape(R * I, J * W)[:B, :T]

  hidden_CND, head_DV, targets_CN = equally_varying(
    split(hidden_BTD), jnp.asarray(head_DV), split(targets_BT)
  )
  log_probs_CN, entropies_CN = _chunked(
    hidden_CND, head_DV, targets_CN, float(temperature)
  )
  return join(log_probs_CN), join(entropies_CN)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _chunked(hidden_CND, head_DV, targets_CN, temperature):
  return _chunked_forward(hidden_CND, head_DV, targets_CN, temperature)[0]


def _chunked_forward(hidden_CND, head_DV, targets_CN, temperature):
  is_kept = hidden_CND.shape[0] == 1

  def chunk(_, inputs):
    hidden_ND, targets_N = inputs
    logits_NV = head_logits(hidden_ND, head_DV, temperature)
    top_N = jnp.max(logits_NV, axis=-1)
    total_N = jnp.sum(jnp.exp(logits_NV - top_N[:, None]), axis=-1)
    normalizers_N = top_N + jnp.log(total_N)
    # H = -Σ π log π. An exponential that both sums had in common would be
    # written out as a whole chunk; this one stays inside its sum.
    chunk_log_probs_NV = logits_NV - normalizers_N[:, None]
    entropies_N = -jnp.sum(
      jnp.exp(chunk_log_probs_NV) * chunk_log_probs_NV, axis=-1
    )
    taken_N = jnp.take_along_axis(logits_NV, targets_N[:, None], axis=-1)[:, 0]
    return None, (
      taken_N - normalizers_N,
      entropies_N,
      normalizers_N,
      logits_NV if is_kept else None,
    )

  _, (log_probs_CN, entropies_CN, normalizers_CN, logits_CNV) = _scan(
    chunk, None, (hidden_CND, targets_CN)
  )
  residuals = (
    hidden_CND,
    head_DV,
    targets_CN,
    entropies_CN,
    normalizers_CN,
    logits_CNV,
  )
  return (log_probs_CN, entropies_CN), residuals


def _chunked_backward(temperature, residuals, cotangents):
  hidden_CND, head_DV, *of_chunks = residuals

  def chunk(head_grad_DV, inputs):
    hidden_ND, targets_N, entropies_N, normalizers_N, logits_NV, *grads = inputs
    dlog_probs_N, dent_N = grads
    if logits_NV is None:
      logits_NV = head_logits(hidden_ND, head_DV, temperature)
    log_probs_NV = logits_NV - normalizers_N[:, None]
    # d log π(y) / dz = onehot(y) - π;  dH / dz = -π (log π + H)
    logits_grad_NV = -jnp.exp(log_probs_NV) * (
      dlog_probs_N[:, None]
      + dent_N[:, None] * (log_probs_NV + entropies_N[:, None])
    )
    vocabulary_V = jnp.arange(logits_NV.shape[-1])
    logits_grad_NV += jnp.where(
      targets_N[:, None] == vocabulary_V[None], dlog_probs_N[:, None], 0.0
    )
    logits_grad_NV = (logits_grad_NV / temperature).astype(hidden_ND.dtype)
    hidden_grad_ND = jnp.matmul(
      logits_grad_NV,
      head_DV.T.astype(hidden_ND.dtype),
      preferred_element_type=jnp.float32,
    )
    head_grad_DV += jnp.matmul(
      hidden_ND.T, logits_grad_NV, preferred_element_type=jnp.float32
    )
    return head_grad_DV, hidden_grad_ND.astype(hidden_ND.dtype)

  zeros_DV, _ = equally_varying(
    jnp.zeros(head_DV.shape, jnp.float32), hidden_CND
  )
  head_grad_DV, hidden_grad_CND = _scan(
    chunk,
    zeros_DV,
    (hidden_CND, *of_chunks, *cotangents),
  )
  return hidden_grad_CND, head_grad_DV.astype(head_DV.dtype), None


_chunked.defvjp(_chunked_forward, _chunked_backward)


def _scan(body, init, xs):
  """A scan that is a plain call where there is one chunk."""
  if jax.tree.leaves(xs)[0].shape[0] > 1:
    return jax.lax.scan(body, init, xs)
  carry, ys = body(init, jax.tree.map(lambda x: x[0], xs))
  return carry, jax.tree.map(lambda y: y[None], ys)
