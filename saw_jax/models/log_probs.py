# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities and entropies from the stream, a chunk of logits at a time.

With a vocabulary of 150,000 the logits of a batch outweigh the model. Here they
exist for `chunk_size` tokens and a band of the vocabulary at a time, with sums
that are carried from band to band, and are computed again in the backward pass;
those of one chunk alone are kept, as its backward pass follows at once. Over a
mesh each device has chunks of its own rows. It gathers a band of the head once
in a pass, and sums the band's gradient over all chunks before devices exchange
it: no device ever holds the whole head or its gradient.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import AxisType

from saw_jax.models import sharding
from saw_jax.models.attention import equally_varying
from saw_jax.types import Array

# Logits of a band, at least and at most. On a CPU they stay in its caches:
# gradients of 384 tokens with a head of 32,000 take a fifth longer with 2,000
# than with 1,000 (two cores). Elsewhere small products are slow.
_BANDS_ON_CPU, _BANDS = (1_000, 2_000), (16_000, 64_000)
# Stands for -inf, of which the difference to itself is no number.
_LOWEST = -1e30


def head_logits(
  hidden: Array, head_DV: Array, temperature: float = 1.0
) -> Array:
  """Returns float32 logits over the temperature, for any leading shape."""
  logits = jnp.matmul(
    hidden, head_DV.astype(hidden.dtype), preferred_element_type=jnp.float32
  )
  return logits if temperature == 1.0 else logits / temperature


def log_probs_of(logits: Array, targets: Array) -> tuple[Array, Array]:
  """Returns the log-prob of each target and the entropy, from whole logits.

  The definition of what `chunked_log_probs` computes, in float32:

    log π(y) = z_y - log Σᵥ exp zᵥ,   H = -Σᵥ π(v) log π(v)
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
  num_bands: int | None = None,
) -> tuple[Array, Array]:
  """Returns the log-prob of each target and the entropy, without `[B, T, V]`.

  The stream after the last norm, the head and the token taken after each
  position give float32 `[B, T]`, differentiable in the first two. Logits of
  `chunk_size` tokens of a device with one of `num_bands` equal parts of its
  vocabulary are in memory at once. A chunk is some time steps of all rows; the
  last one is padded.

  Where a mesh and Flax's logical rules say how rows and head are split, each
  device computes its rows with its part of the vocabulary. Between devices the
  head and its gradient have the dtype of the stream.
  """
  if chunk_size < 1:
    raise ValueError(f"chunk_size must be at least 1, not {chunk_size}.")
  B, T, _ = hidden_BTD.shape
  if B * T == 0:
    return jnp.zeros((B, T), jnp.float32), jnp.zeros((B, T), jnp.float32)
  of_head = ("embed", "vocab")
  (rows,) = sharding.split(("batch",), (B,))
  of_D, of_V = sharding.split(of_head, head_DV.shape)

  def on_a_device(hidden_BTD, head_DV, targets_BT):
    if rows or of_D or of_V:
      # Marked before it is gathered: backward, the part of the head alone is
      # summed over the other axes.
      head_DV = head_DV.astype(hidden_BTD.dtype)
      head_DV = equally_varying(head_DV, hidden_BTD)[0]
    how = float(temperature), chunk_size, num_bands, of_D, of_V
    return _local_log_probs(hidden_BTD, head_DV, targets_BT, *how)

  return sharding.on_each_device(
    on_a_device,
    (hidden_BTD, head_DV, targets_BT),
    (("batch", None, None), of_head, ("batch", None)),
    ("batch", None),
  )


def _local_log_probs(
  hidden_BTD: Array,
  head_DV: Array,
  targets_BT: Array,
  temperature: float,
  chunk_size: int,
  num_bands: int | None,
  of_D: tuple[str, ...] | None,
  of_V: tuple[str, ...] | None,
) -> tuple[Array, Array]:
  """`chunked_log_probs` of one device, with its part of the head."""
  (B, T, _), V = hidden_BTD.shape, head_DV.shape[1]
  if num_bands is None:
    num_bands = choose_bands(V)
  if num_bands < 1 or V % num_bands:
    raise ValueError(f"{V} logits do not split into {num_bands} equal bands.")
  # R rows by W steps make a chunk; there are I parts of rows, J parts of steps.
  I = -(-B // chunk_size)  # noqa: E741
  R = -(-B // I)
  J = -(-T // max(1, chunk_size // R))
  W = -(-T // J)

  def split(x_BT: Array) -> Array:
    widths = [(0, R * I - B), (0, W * J - T)] + [(0, 0)] * (x_BT.ndim - 2)
    tail = x_BT.shape[2:]
    x_RIJW = jnp.pad(x_BT, widths).reshape(R, I, J, W, *tail)
    return jnp.moveaxis(x_RIJW, 0, 2).reshape(I * J, R * W, *tail)

  def join(x_CN: Array) -> Array:
    x_RIJW = jnp.moveaxis(x_CN.reshape(I, J, R, W), 2, 0)
    return x_RIJW.reshape(R * I, J * W)[:B, :T]

  # By rows: those of an embedding that is the head as well are there already,
  # where columns would have to be copied. A device has d of their D numbers.
  hidden_CND, head_Vd, targets_CN = equally_varying(
    split(hidden_BTD), jnp.asarray(head_DV).T, split(targets_BT)
  )
  head_KUd = head_Vd.reshape(num_bands, V // num_bands, -1)
  log_probs_CN, entropies_CN = _chunked(
    hidden_CND, head_KUd, targets_CN, temperature, of_D, of_V
  )
  return join(log_probs_CN), join(entropies_CN)


def choose_bands(vocab_size: int) -> int:
  """The most equal bands that are wide enough; 1 where there are none."""
  # A vocabulary that the compiler may have split stays where it is.
  mesh = jax.sharding.get_abstract_mesh()
  if any(
    size > 1 and kind != AxisType.Manual
    for size, kind in zip(mesh.axis_sizes, mesh.axis_types, strict=True)
  ):
    return 1
  on_cpu = jax.default_backend() == "cpu"
  least, most = _BANDS_ON_CPU if on_cpu else _BANDS
  # A prime number of logits has no such bands; those of models are round.
  counts = range(vocab_size // least, -(-vocab_size // most) - 1, -1)
  return next((n for n in counts if vocab_size % n == 0), 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _chunked(hidden_CND, head_KUd, targets_CN, *how):
  return _compute(hidden_CND, head_KUd, targets_CN, *how)[0]


def _chunked_forward(hidden_CND, *others):
  return _compute(hidden_CND, *others, is_kept=hidden_CND.shape[0] == 1)


def _compute(
  hidden_CND, head_KUd, targets_CN, temperature, of_D, of_V, is_kept=False
):
  K, U, _ = head_KUd.shape
  if of_V:  # Counted from the first logit of this device.
    targets_CN -= jax.lax.axis_index(of_V) * K * U

  def band(sums_CN, inputs):
    start, head_Ud = inputs
    head_UD = _gather(head_Ud, of_D)

    def chunk(_, inputs):
      (top_N, total_N, weighted_N, taken_N), hidden_ND, targets_N = inputs
      logits_NU = head_logits(hidden_ND, head_UD.T, temperature)
      new_top_N = jnp.maximum(top_N, jnp.max(logits_NU, axis=-1))
      # What was summed relative to another maximum, relative to this one.
      drop_N = top_N - new_top_N
      weighted_N = jnp.exp(drop_N) * (weighted_N + drop_N * total_N)
      total_N = jnp.exp(drop_N) * total_N
      below_NU = logits_NU - new_top_N[:, None]
      weights_NU = jnp.exp(below_NU)
      place_N = targets_N - start
      found_N = jnp.take_along_axis(
        logits_NU, jnp.clip(place_N, 0, U - 1)[:, None], axis=-1
      )[:, 0]
      sums_N = (
        new_top_N,
        total_N + jnp.sum(weights_NU, axis=-1),
        weighted_N + jnp.sum(weights_NU * below_NU, axis=-1),
        jnp.where((place_N >= 0) & (place_N < U), found_N, taken_N),
      )
      # After the last band they are those of the whole vocabulary.
      found_N = _finish(sums_N, of_V)
      return None, (sums_N, (found_N, logits_NU if is_kept else None))

    return _scan(chunk, None, (sums_CN, hidden_CND, targets_CN))[1]

  zeros_CN = _zeros(targets_CN.shape, hidden_CND, head_KUd)
  _, (found_KCN, logits_KCNU) = _scan(
    band,
    (zeros_CN + _LOWEST, zeros_CN, zeros_CN, zeros_CN),
    (jnp.arange(K) * U, head_KUd),
  )
  log_probs_CN, entropies_CN, normalizers_CN = (x[-1] for x in found_KCN)
  kept = (hidden_CND, head_KUd, targets_CN, entropies_CN, normalizers_CN)
  return (log_probs_CN, entropies_CN), (*kept, logits_KCNU)


def _finish(sums_N, of_V):
  """Log-probs, entropies and normalizers of what was summed over logits."""
  top_N, total_N, weighted_N, taken_N = sums_N
  if of_V:  # The sums of all devices' logits, relative to their maximum.
    local_top_N, top_N = top_N, jax.lax.pmax(top_N, of_V)
    drop_N = local_top_N - top_N
    weighted_N = jnp.exp(drop_N) * (weighted_N + drop_N * total_N)
    total_N = jnp.exp(drop_N) * total_N
    total_N, weighted_N, taken_N = jax.lax.psum(
      (total_N, weighted_N, taken_N), of_V
    )
  log_total_N = jnp.log(total_N)
  # log π = z - top - log Σ, and H = -Σ π log π.
  return (
    taken_N - top_N - log_total_N,
    log_total_N - weighted_N / total_N,
    top_N + log_total_N,
  )


def _chunked_backward(temperature, of_D, of_V, residuals, cotangents):
  del of_V  # The gradient of a device's logits is its own.
  hidden_CND, head_KUd, *of_chunks, logits_KCNU = residuals
  (K, U, _), D = head_KUd.shape, hidden_CND.shape[-1]

  def band(hidden_grad_CND, inputs):
    start, head_Ud, logits_CNU = inputs
    head_UD = _gather(head_Ud, of_D).astype(hidden_CND.dtype)

    def chunk(head_grad_UD, inputs):
      hidden_grad_ND, logits_NU, hidden_ND, targets_N = inputs[:4]
      entropies_N, normalizers_N, dlog_probs_N, dent_N = inputs[4:]
      if logits_NU is None:
        logits_NU = head_logits(hidden_ND, head_UD.T, temperature)
      log_probs_NU = logits_NU - normalizers_N[:, None]
      # d log π(y) / dz = onehot(y) - π;  dH / dz = -π (log π + H)
      logits_grad_NU = -jnp.exp(log_probs_NU) * (
        dlog_probs_N[:, None]
        + dent_N[:, None] * (log_probs_NU + entropies_N[:, None])
      )
      logits_grad_NU += jnp.where(
        (targets_N - start)[:, None] == jnp.arange(U)[None],
        dlog_probs_N[:, None],
        0.0,
      )
      logits_grad_NU = (logits_grad_NU / temperature).astype(hidden_ND.dtype)
      hidden_grad_ND += jnp.matmul(
        logits_grad_NU, head_UD, preferred_element_type=jnp.float32
      )
      head_grad_UD += jnp.matmul(
        logits_grad_NU.T, hidden_ND, preferred_element_type=jnp.float32
      )
      return head_grad_UD, hidden_grad_ND

    head_grad_UD, hidden_grad_CND = _scan(
      chunk,
      _zeros((U, D), hidden_CND, head_Ud),
      (hidden_grad_CND, logits_CNU, hidden_CND, *of_chunks, *cotangents),
    )
    head_grad_UD = head_grad_UD.astype(head_Ud.dtype)
    return hidden_grad_CND, _scatter(head_grad_UD, of_D)

  hidden_grad_CND, head_grad_KUd = _scan(
    band,
    _zeros(hidden_CND.shape, hidden_CND, head_KUd),
    (jnp.arange(K) * U, head_KUd, logits_KCNU),
  )
  return hidden_grad_CND.astype(hidden_CND.dtype), head_grad_KUd, None


_chunked.defvjp(_chunked_forward, _chunked_backward)


def _gather(head_Ud, axes):
  if not axes:
    return head_Ud
  return jax.lax.all_gather(head_Ud, axes, axis=1, tiled=True)


def _scatter(grad_UD, axes):
  """The sum over devices of a device's own part."""
  if not axes:
    return grad_UD
  # Apart first: of columns that are no whole tiles a TPU would send all.
  num_parts = jax.lax.axis_size(axes)
  grad_UPd = grad_UD.reshape(len(grad_UD), num_parts, -1)
  return jax.lax.psum_scatter(jnp.moveaxis(grad_UPd, 1, 0), axes)


def _zeros(shape, *like):
  return equally_varying(jnp.zeros(shape, jnp.float32), *like)[0]


def _scan(body, init, xs):
  """A scan that is a plain call where there is one chunk."""
  if jax.tree.leaves(xs)[0].shape[0] > 1:
    return jax.lax.scan(body, init, xs)
  carry, ys = body(init, jax.tree.map(lambda x: x[0], xs))
  return carry, jax.tree.map(lambda y: y[None], ys)
