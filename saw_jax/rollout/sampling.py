# SPDX-License-Identifier: Apache-2.0
"""Drawing tokens, and the log-probs of the distribution they are drawn from."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from saw_jax import naming
from saw_jax.settings import constant
from saw_jax.types import Array

_BELOW_ONE = 1.0 - 2.0**-24  # the largest float32 below 1


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  """How a token is chosen from logits.

  Log-probs under `top_k`, `top_p` or `min_p` are of the truncated distribution,
  renormalised, and not those that the trainer recomputes: a run whose loss
  reads the sampler's is refused.
  """

  temperature: float = 1.0  # divides the logits
  top_k: int = constant(0)  # keep the k likeliest tokens; 0 keeps all
  top_p: float = 1.0  # then keep the likeliest tokens that hold this much
  # Then keep tokens that are at least this likely, times the likeliest one.
  min_p: float = constant(0.0)
  # Take the likeliest token; ignores the other four.
  greedy: bool = constant(False)

  def __post_init__(self):
    if not self.temperature > 0:
      said = f"temperature is {self.temperature}; it must be above 0"
      raise ValueError(f"{said} (or set greedy=True)")
    naming.check_range(self, "[0, inf)", "top_k")
    naming.check_range(self, "(0, 1]", "top_p")
    naming.check_range(self, "[0, 1]", "min_p")

  @property
  def truncates(self) -> bool:
    """Whether some tokens have no chance, which all have for the trainer."""
    some = self.top_k > 0 or self.top_p < 1 or self.min_p > 0
    return some and not self.greedy


def _drawn_from(logits_BV: Array, config: SamplingConfig) -> Array:
  """Logits in float32 of what is drawn from; if greedy, at temperature 1."""
  logits_BV = logits_BV.astype(jnp.float32)
  if config.greedy:
    return logits_BV
  if config.temperature != 1.0:
    logits_BV = logits_BV / config.temperature
  return _truncate(logits_BV, config)


def _truncate(logits_BV: Array, config: SamplingConfig) -> Array:
  """Gives -inf to the tokens that `top_k`, `top_p` and `min_p` exclude.

  Tokens that tie with the last one kept are kept; one of a row always is.

  Top-p: Holtzman et al., https://arxiv.org/abs/1904.09751
  Min-p: Nguyen et al., https://arxiv.org/abs/2407.01082
  """
  if 0 < config.top_k < logits_BV.shape[-1]:
    ones_BV = jnp.ones(logits_BV.shape, jnp.int32)
    logits_BV = _keep_likeliest(logits_BV, ones_BV, config.top_k)
  if config.top_p < 1:
    probs_BV = jax.nn.softmax(logits_BV, axis=-1)
    logits_BV = _keep_likeliest(logits_BV, probs_BV, config.top_p)
  if config.min_p > 0:
    # A ratio of two probabilities: the same whatever was excluded before.
    least_B1 = logits_BV.max(-1, keepdims=True) + math.log(config.min_p)
    logits_BV = jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)
  return logits_BV


def _keep_likeliest(logits_BV: Array, weights_BV: Array, most: float) -> Array:
  """Keeps a token while those above it weigh less than `most`: never none.

  The least logit that stays is found by bisection of its 32 bits, as whole
  numbers in the order of the floats: it is exact, and sums over the vocabulary
  are far cheaper than sorting it (on two cores 12 to 90 times).
  """
  bits_BV = jax.lax.bitcast_convert_type(logits_BV, jnp.int32)
  # Sign and size: -0.0 is 0 as well.
  size_BV = bits_BV & jnp.int32(2**31 - 1)
  order_BV = jnp.where(bits_BV < 0, -size_BV, size_BV)

  def halve(_, ends):
    low_B1, high_B1 = ends  # Below all that stay; what stays.
    middle_B1 = (low_B1 & high_B1) + ((low_B1 ^ high_B1) >> 1)
    above_BV = jnp.where(order_BV > middle_B1, weights_BV, 0)
    stays_B1 = jnp.sum(above_BV, axis=-1, keepdims=True) < most
    return (
      jnp.where(stays_B1, low_B1, middle_B1),
      jnp.where(stays_B1, middle_B1, high_B1),
    )

  high_B1 = jnp.max(order_BV, axis=-1, keepdims=True)
  low_B1 = jnp.full_like(high_B1, -(2**31))
  _, least_B1 = jax.lax.fori_loop(0, 32, halve, (low_B1, high_B1))
  return jnp.where(order_BV >= least_B1, logits_BV, -jnp.inf)


def sample(
  keys_B: Array, logits_BV: Array, config: SamplingConfig
) -> tuple[Array, Array]:
  """Draws a token per row, and takes its log-prob, from logits of any dtype.

  Log-probs are of the distribution sampled from: tempered, truncated and
  renormalised. A greedy token has that of the distribution it is the mode of,
  at temperature 1; the log-prob of the choice itself would always be 0.
  """
  logits_BV = _drawn_from(logits_BV, config)
  top_B1 = jnp.max(logits_BV, axis=-1, keepdims=True)
  weights_BV = jnp.exp(logits_BV - top_B1)
  if config.greedy:
    tokens_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
  else:
    # A row costs one uniform number: the token is where the running sum of the
    # probabilities passes it. A Gumbel number per token would cost V times the
    # random bits, which on a CPU is more than a tiny decoder's step.
    tokens_B = _invert(weights_BV, jax.vmap(jax.random.uniform)(keys_B))
  log_probs_B = _take(logits_BV - top_B1, tokens_B)
  return tokens_B, log_probs_B - jnp.log(jnp.sum(weights_BV, axis=-1))


def entropies(logits_BV: Array, config: SamplingConfig) -> Array:
  """Takes the entropy of what is drawn from; if greedy, at temperature 1."""
  logits_BV = _drawn_from(logits_BV, config)
  log_probs_BV = jax.nn.log_softmax(logits_BV, axis=-1)
  probs_BV = jnp.exp(log_probs_BV)
  # What is excluded has -inf, and 0 * inf is NaN.
  terms_BV = probs_BV * jnp.where(probs_BV > 0, log_probs_BV, 0.0)
  return -jnp.sum(terms_BV, axis=-1)


def _invert(weights_BV: Array, uniform_B: Array) -> Array:
  """Finds the token at which the running sum of weights passes `uniform`."""
  # First among blocks of tokens, then inside one: a running sum over a whole
  # vocabulary is slow on every backend.
  V = weights_BV.shape[-1]
  block = max(1, round(V**0.5))
  blocks = -(-V // block)
  padded_BV = jnp.pad(weights_BV, ((0, 0), (0, blocks * block - V)))
  weights_BIJ = padded_BV.reshape(-1, blocks, block)
  block_B, passed_B = _pass(jnp.sum(weights_BIJ, axis=-1), uniform_B)
  inside_BJ = jnp.take_along_axis(weights_BIJ, block_B[:, None, None], axis=1)
  token_B, _ = _pass(inside_BJ[:, 0], passed_B)
  return block_B * block + token_B


def _pass(weights_BI: Array, uniform_B: Array) -> tuple[Array, Array]:
  """Returns the index where the sum passes, and how far into it, in [0, 1)."""
  sums_BI = jnp.cumsum(weights_BI, axis=-1)
  # Below the last sum even after rounding, so that some index passes it.
  target_B1 = uniform_B[:, None] * sums_BI[:, -1:]
  index_B = jnp.sum(sums_BI <= target_B1, axis=-1).astype(jnp.int32)
  # A running sum in parallel may round up where nothing is added: a weight of
  # 0 is never drawn for it.
  likeliest_B = jnp.argmax(weights_BI, axis=-1).astype(jnp.int32)
  index_B = jnp.where(_take(weights_BI, index_B) > 0, index_B, likeliest_B)
  over_B = _take(sums_BI, index_B) - target_B1[:, 0]
  passed_B = 1.0 - over_B / _take(weights_BI, index_B)
  return index_B, jnp.clip(passed_B, 0.0, _BELOW_ONE)


def _take(values_BI: Array, index_B: Array) -> Array:
  return jnp.take_along_axis(values_BI, index_B[:, None], axis=-1)[:, 0]
