"""What an update minimises: a sum of terms over one forward pass.

A term is a pure function of what the policy computed and what was recorded; it
returns a `Ratio`. SAW changes the advantages, another method changes or adds a
term: they compose without a branch.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import flax.struct
import jax

from saw_jax import losses, reductions
from saw_jax.models import decoder, log_probs
from saw_jax.models.config import DecoderConfig
from saw_jax.training.batch import TrainBatch
from saw_jax.types import Array, PyTree


@flax.struct.dataclass
class Outputs:
  """What the current policy says of a batch, on its last `T` positions."""

  log_probs: Array  # float32 [B, T], of the tokens that were taken
  entropies: Array  # float32 [B, T], of the whole distribution


# (outputs of the current policy, batch) -> Ratio
TermFn = Callable[[Outputs, TrainBatch], reductions.Ratio]
# (params, batch) -> Outputs
Forward = Callable[[PyTree, TrainBatch], Outputs]


class Term(NamedTuple):
  """One summand of the objective: `coefficient * numerator / denominator`.

  The denominator may not depend on the parameters.
  """

  fn: TermFn
  coefficient: float = 1.0


# (params, batch) -> (terms, diagnostics), both {name: Ratio}
Objective = Callable[
  [PyTree, TrainBatch],
  tuple[dict[str, reductions.Ratio], dict[str, reductions.Ratio]],
]


def make_forward(
  config: DecoderConfig, *, temperature: float = 1.0, chunk_size: int = 1024
) -> Forward:
  """Makes the forward pass of a decoder over a batch.

  Args:
    config: sizes of the decoder.
    temperature: of the sampling distribution; the log-probs are those of the
      distribution that was sampled from, not of the raw logits.
    chunk_size: tokens whose logits exist at one time.

  Returns:
    A function `(params, batch) -> Outputs`. Gradients flow to the parameters.
  """
  model = decoder.Decoder(config)

  def forward(params: PyTree, batch: TrainBatch) -> Outputs:
    hidden_BSD, _ = model.apply(
      {"params": params}, batch.tokens, batch.positions, batch.valid
    )
    # The token at position s is predicted at position s - 1.
    hidden_BTD = hidden_BSD[:, batch.prompt_size - 1 : -1]
    taken, entropies = log_probs.chunked_log_probs(
      hidden_BTD,
      decoder.head_kernel(params, config),
      batch.tokens[:, batch.prompt_size :],
      temperature=temperature,
      chunk_size=chunk_size,
    )
    return Outputs(log_probs=taken, entropies=entropies)

  return forward


def make_objective(
  forward: Forward,
  terms: Mapping[str, Term],
  diagnostics: Mapping[str, TermFn] | None = None,
) -> Objective:
  """Composes terms over one forward pass.

  Args:
    forward: the policy's forward pass.
    terms: what is minimised, by name.
    diagnostics: what is only logged, by name.

  Returns:
    A function `(params, batch) -> (terms, diagnostics)` of `Ratio`s; the terms
    are already multiplied by their coefficients.
  """
  diagnostics = diagnostics or {}

  def objective(params: PyTree, batch: TrainBatch):
    outputs = forward(params, batch)
    values = {}
    for name, term in terms.items():
      numerator, denominator = term.fn(outputs, batch)
      values[name] = reductions.Ratio(term.coefficient * numerator, denominator)
    return values, {
      name: fn(outputs, batch) for name, fn in diagnostics.items()
    }

  return objective


# --- terms and diagnostics that every method shares ------------------------


def clipped_surrogate(
  *,
  clip_low: float = 0.2,
  clip_high: float = 0.2,
  dual_clip: float | None = None,
  aggregate: losses.Aggregate = losses.token_mean,
) -> TermFn:
  """Makes the PPO term.

  Without `old_log_probs` the update is the first on its rollout, and the old
  policy is the current one: the ratio is 1 and only its gradient matters.

  Args:
    clip_low: how far the ratio may fall below 1.
    clip_high: how far it may rise above 1.
    dual_clip: bound on the loss of a negative advantage, above 1.
    aggregate: how tokens and sequences are averaged.

  Returns:
    The term's function.
  """

  def policy(outputs: Outputs, batch: TrainBatch) -> reductions.Ratio:
    return losses.clipped_surrogate_loss(
      outputs.log_probs,
      _old_log_probs(outputs, batch),
      batch.advantages,
      batch.completion_mask,
      clip_low=clip_low,
      clip_high=clip_high,
      dual_clip=dual_clip,
      aggregate=aggregate,
    )

  return policy


def kl(
  estimator: losses.KLEstimator,
  *,
  aggregate: losses.Aggregate = losses.token_mean,
) -> TermFn:
  """Makes the term that keeps the policy near the reference.

  Args:
    estimator: per-token estimate of the divergence.
    aggregate: how tokens and sequences are averaged.

  Returns:
    The term's function; it needs `ref_log_probs`.
  """

  def term(outputs: Outputs, batch: TrainBatch) -> reductions.Ratio:
    return losses.kl_loss(
      outputs.log_probs,
      batch.require("ref_log_probs", "the KL term"),
      batch.completion_mask,
      estimator=estimator,
      aggregate=aggregate,
    )

  return term


def entropy(*, aggregate: losses.Aggregate = losses.token_mean) -> TermFn:
  """Makes the entropy bonus: minus the mean entropy.

  Args:
    aggregate: how tokens and sequences are averaged.

  Returns:
    The term's function.
  """

  def term(outputs: Outputs, batch: TrainBatch) -> reductions.Ratio:
    return losses.entropy_loss(
      outputs.entropies, batch.completion_mask, aggregate=aggregate
    )

  return term


def likelihood(outputs: Outputs, batch: TrainBatch) -> reductions.Ratio:
  """Negative log-likelihood per token: the term of the warm start.

  Args:
    outputs: what the policy computed.
    batch: the demonstrations; their advantages are not read.

  Returns:
    The sum over the completions' tokens, and their number.
  """
  return losses.token_mean(-outputs.log_probs, batch.completion_mask)


def mean_entropy(outputs: Outputs, batch: TrainBatch) -> reductions.Ratio:
  """Mean entropy of the policy's tokens, in nats.

  Args:
    outputs: what the policy computed.
    batch: the batch.

  Returns:
    The sum and the number of tokens.
  """
  return losses.token_mean(outputs.entropies, batch.completion_mask)


def sampler_mismatch(outputs: Outputs, batch: TrainBatch) -> reductions.Ratio:
  """Mean |log-prob of the trainer - log-prob of the sampler| (R6).

  On the first update after a rollout the two are the same distribution, so
  anything beyond rounding is a defect of one of them.

  Args:
    outputs: what the policy computed.
    batch: the batch, with `behave_log_probs`.

  Returns:
    The sum and the number of tokens.
  """
  behave = batch.require("behave_log_probs", "the sampler mismatch")
  difference = abs(outputs.log_probs - behave)
  return losses.token_mean(difference, batch.completion_mask)


def clip_diagnostics(clip_low: float, clip_high: float) -> dict[str, TermFn]:
  """Makes the diagnostics of the clip.

  Args:
    clip_low: how far the ratio may fall below 1.
    clip_high: how far it may rise above 1.

  Returns:
    `clipped_low` and `clipped_high`: shares of the tokens that the clip holds.
  """

  def fractions(outputs: Outputs, batch: TrainBatch) -> losses.ClipFractions:
    return losses.clip_fractions(
      outputs.log_probs,
      _old_log_probs(outputs, batch),
      batch.advantages,
      batch.completion_mask,
      clip_low=clip_low,
      clip_high=clip_high,
    )

  return {
    "clipped_low": lambda outputs, batch: fractions(outputs, batch).low,
    "clipped_high": lambda outputs, batch: fractions(outputs, batch).high,
  }


def _old_log_probs(outputs: Outputs, batch: TrainBatch) -> Array:
  """The recorded old policy, or the current one with its gradient stopped."""
  if batch.old_log_probs is None:
    return jax.lax.stop_gradient(outputs.log_probs)
  return batch.old_log_probs
