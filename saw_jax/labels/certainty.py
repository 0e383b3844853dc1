# SPDX-License-Identifier: Apache-2.0
"""Rewards from a policy's own certainty, without any label.

Each is one number a response, `[B]`, with its gradient stopped, to be
standardised within its group like any other reward. The first argument is one
number a token and `completion_mask` marks the tokens that the policy chose,
both `[B, T]`. Averages are over the tokens of a response, with an ε beside
their count as in the reference code of CARE:

  mean_t u = Σₜ mₜ uₜ / (Σₜ mₜ + 10⁻⁸)

They are the baselines of CARE, https://arxiv.org/abs/2605.25864.
"""

import jax
import jax.numpy as jnp

from saw_jax import reductions
from saw_jax.types import Array

_EPS = 1e-8


def token_self_certainty(logits: Array) -> Array:
  """How far a next-token distribution, of logits `[..., V]`, is from uniform.

  u = log Σ exp z − mean z  =  KL(uniform ‖ p) + log V
  """
  logits = reductions.at_least_float32(logits)
  return jax.nn.logsumexp(logits, axis=-1) - jnp.mean(logits, axis=-1)


def self_certainty(certainties: Array, completion_mask: Array) -> Array:
  """Rewards certain tokens: mean_t u. https://arxiv.org/abs/2502.18581."""
  return _token_mean(certainties, completion_mask)


def token_entropy(entropies: Array, completion_mask: Array) -> Array:
  """Rewards low entropies: −mean_t H. RENT, https://arxiv.org/abs/2505.22660.

  CARE's released trainer drops the entropies before they are read, so that all
  rewards are 0; this is the formula that it states.
  """
  return -_token_mean(entropies, completion_mask)


def trajectory_entropy(log_probs: Array, completion_mask: Array) -> Array:
  """Rewards likely responses, whatever their length: mean_t log π."""
  return _token_mean(log_probs, completion_mask)


def probability(log_probs: Array, completion_mask: Array) -> Array:
  """Rewards a response by its probability, exp Σₜ log π; 1 without tokens."""
  log_probs = jax.lax.stop_gradient(log_probs)
  return jnp.exp(reductions.all_sum(log_probs, axis=-1, where=completion_mask))


def mean_probability(log_probs: Array, completion_mask: Array) -> Array:
  """Averages the probabilities of a response's tokens: mean_t π, without the ε.

  The baseline "average probability" buys labels by it; it is no reward.
  """
  # Selected before the exponential: what stands beside the tokens is no log.
  log_probs = reductions.select(log_probs, completion_mask)
  p = jnp.exp(jax.lax.stop_gradient(log_probs))
  return reductions.all_mean(p, axis=-1, where=completion_mask)


def _token_mean(x: Array, completion_mask: Array) -> Array:
  x = jax.lax.stop_gradient(x)
  total = reductions.all_sum(x, axis=-1, where=completion_mask)
  count = jnp.sum(completion_mask, axis=-1, dtype=total.dtype)
  return reductions.divide(total, count + _EPS)
