"""What an update minimises: a sum of terms over one forward pass.

A term is a pure function of what the policy computed and what was recorded; it
returns a `Ratio`. SAW changes the advantages, another method changes or adds a
term: they compose without a branch.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from saw_jax import losses, reductions, stale_losses, world_model
from saw_jax.models import decoder, log_probs
from saw_jax.models.config import DecoderConfig
from saw_jax.training import packing as packing_lib
from saw_jax.training.batch import TrainBatch, split_rows
from saw_jax.types import Array, PyTree


@flax.struct.dataclass
class Outputs:
  """What the current policy says of a batch, on its last `T` positions."""

  log_probs: Array  # float32 [B, T], of the tokens that were taken
  entropies: Array  # float32 [B, T], of the whole distribution
  values: Array | None = None  # float32 [B], at the end of the prompt


@flax.struct.dataclass
class Observation:
  """What a policy computes of its own responses, before it is updated.

  Hidden states are those after the last norm. An empty response ends where its
  prompt does.
  """

  prompt_hidden: Array  # float32 [P, D], at the last token of each prompt
  response_hidden: Array  # float32 [B, D], at the last token of each response
  log_probs: Array | None = None  # float32 [B, T], of the tokens taken
  entropies: Array | None = None  # float32 [B, T], of the whole distribution
  certainties: Array | None = None  # [B, T], `certainty.token_self_certainty`


# (outputs of the current policy, batch) -> Ratio
TermFn = Callable[[Outputs, TrainBatch], reductions.Ratio]
# The same, or a maximum; None: the batch does not hold what it reads
DiagnosticFn = Callable[
  [Outputs, TrainBatch], reductions.Ratio | reductions.Maximum | None
]
# (params, batch) -> Outputs
Forward = Callable[[PyTree, TrainBatch], Outputs]


class Term(NamedTuple):
  """One summand of the objective: `coefficient * numerator / denominator`.

  The denominator may not depend on the parameters.
  """

  fn: TermFn
  coefficient: float = 1.0


# (params, batch) -> (terms, diagnostics), by name
Objective = Callable[
  [PyTree, TrainBatch],
  tuple[
    dict[str, reductions.Ratio],
    dict[str, reductions.Ratio | reductions.Maximum],
  ],
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
    A packed batch gives the same outputs, with 0 on padding.
  """
  model = decoder.Decoder(config)

  def forward(params: PyTree, batch: TrainBatch) -> Outputs:
    stream = _read(model, params, batch)
    taken, entropies = log_probs.chunked_log_probs(
      stream.wanted,
      decoder.head_kernel(params, config),
      stream.targets,
      temperature=temperature,
      chunk_size=chunk_size,
    )
    values = None
    if config.value_head:
      values = decoder.values(params, stream.prompt_hidden)
    return Outputs(
      log_probs=_unpack(taken, batch),
      entropies=_unpack(entropies, batch),
      values=values,
    )

  return forward


def in_parts(
  fn: Callable[[PyTree, TrainBatch], PyTree], num_parts: int
) -> Callable[[PyTree, TrainBatch], PyTree]:
  """Runs a function of rows on some of them at a time, as an update does.

  A part's activations are all that is in memory at once, and on a CPU small
  parts stay in its caches.

  Args:
    fn: `(params, batch) -> arrays [B, ...]`, in which rows do not meet.
    num_parts: parts that pass one after the other, a divisor of the rows. A
      packed batch passes as a whole: its rows are few already.

  Returns:
    A function with the same arguments and results.
  """

  def parted(params: PyTree, batch: TrainBatch) -> PyTree:
    if num_parts == 1 or batch.packing is not None:
      return fn(params, batch)
    found = jax.lax.map(
      functools.partial(fn, params), split_rows(batch, num_parts)
    )
    # Part k holds the rows k, k + K, ...
    return jax.tree.map(
      lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), found
    )

  return parted


def make_observe(
  config: DecoderConfig,
  *,
  group_size: int,
  temperature: float = 1.0,
  chunk_size: int = 1024,
  log_probs_too: bool = True,
) -> Callable[[PyTree, TrainBatch], Observation]:
  """Makes the pass before the update that label buying looks at.

  Where the update needs old log-probs anyway, the pass is the one that computes
  them; else the head is not applied and there are no logits.

  Args:
    config: sizes of the decoder.
    group_size: responses per prompt, `G`.
    temperature: of the sampling distribution.
    chunk_size: tokens whose logits exist at one time.
    log_probs_too: whether tokens are looked at, or hidden states alone.

  Returns:
    A function `(params, batch) -> Observation`, through which no gradient is
    meant to flow.
  """
  model = decoder.Decoder(config)

  def observe(params: PyTree, batch: TrainBatch) -> Observation:
    stream = _read(model, params, batch)
    hidden = Observation(
      prompt_hidden=stream.prompt_hidden[::group_size].astype(jnp.float32),
      response_hidden=stream.response_hidden.astype(jnp.float32),
    )
    if not log_probs_too:
      return hidden
    head_DV = decoder.head_kernel(params, config)
    taken, entropies = log_probs.chunked_log_probs(
      stream.wanted,
      head_DV,
      stream.targets,
      temperature=temperature,
      chunk_size=chunk_size,
    )
    # log Σ exp z - mean z, of which the first part is z(y) - log π(y), and the
    # mean of the logits is the logit of the mean column.
    columns = jnp.take(head_DV.T, stream.targets, axis=0)
    columns -= jnp.mean(head_DV.astype(jnp.float32), axis=-1)[None, None]
    over_mean = jnp.einsum(
      "btd,btd->bt", stream.wanted, columns, preferred_element_type=jnp.float32
    )
    certainties = over_mean / temperature - taken
    return hidden.replace(
      log_probs=_unpack(taken, batch),
      entropies=_unpack(entropies, batch),
      certainties=_unpack(certainties, batch),
    )

  return observe


class _Stream(NamedTuple):
  """The stream after the last norm, where it is asked for."""

  wanted: Array  # [X, C, D], before each token whose log-prob is wanted
  targets: Array  # int32 [X, C], these tokens
  prompt_hidden: Array  # [B, D], at the last token of each prompt
  response_hidden: Array  # [B, D], at the last token of each row


def _read(model: decoder.Decoder, params: PyTree, batch: TrainBatch) -> _Stream:
  """Passes a batch through the model, packed or as it is."""
  packing = batch.packing
  if packing is None:
    hidden_BSD, _ = model.apply(
      {"params": params}, batch.tokens, batch.positions, batch.valid
    )
    before = batch.prompt_size - 1
    counts = jnp.sum(batch.valid[:, batch.prompt_size :], axis=1)
    last = jnp.arange(counts.shape[0]), before + counts
    return _Stream(
      # The token at position s is predicted at position s - 1.
      wanted=hidden_BSD[:, before:-1],
      targets=batch.tokens[:, batch.prompt_size :],
      prompt_hidden=hidden_BSD[:, before],
      response_hidden=hidden_BSD[last],
    )
  hidden_RLD, _ = model.apply(
    {"params": params},
    packing.tokens,
    packing.positions,
    None,
    segment_ids=packing.segments,
  )
  return _Stream(
    wanted=packing_lib.take_sources(hidden_RLD, packing),
    targets=packing.targets,
    prompt_hidden=hidden_RLD[packing.rows, packing.prompt_ends],
    response_hidden=hidden_RLD[
      packing.rows, packing.prompt_ends + packing.counts
    ],
  )


def _unpack(values: Array, batch: TrainBatch) -> Array:
  """Puts one number per wanted token to its place in `[B, T]`."""
  if batch.packing is None:
    return values
  size = batch.tokens.shape[1] - batch.prompt_size
  return packing_lib.unpack(values, batch.packing, size)


def make_objective(
  forward: Forward,
  terms: Mapping[str, Term],
  diagnostics: Mapping[str, DiagnosticFn] | None = None,
) -> Objective:
  """Composes terms over one forward pass.

  Args:
    forward: the policy's forward pass.
    terms: what is minimised, by name.
    diagnostics: what is only logged, by name; one that returns `None` is left
      out.

  Returns:
    A function `(params, batch) -> (terms, diagnostics)`; the terms are
    `Ratio`s, already multiplied by their coefficients.
  """
  diagnostics = diagnostics or {}

  def objective(params: PyTree, batch: TrainBatch):
    outputs = forward(params, batch)
    values = {}
    for name, term in terms.items():
      numerator, denominator = term.fn(outputs, batch)
      values[name] = reductions.Ratio(term.coefficient * numerator, denominator)
    logged = {name: fn(outputs, batch) for name, fn in diagnostics.items()}
    return values, {
      name: value for name, value in logged.items() if value is not None
    }

  return objective


# --- terms and diagnostics that every method shares ------------------------


def policy(
  loss: Callable[..., reductions.Ratio], *, ratio_to: str = "old"
) -> TermFn:
  """Makes the term of a policy loss.

  The names of the loss's arguments say what is read of the batch: a loss
  without `old_log_probs` and `behave_log_probs` runs where neither was recorded
  (R7).

  Where `old_log_probs` were not recorded, the update is the first on its
  rollout, and the old policy is the current one: the ratio is 1 and only its
  gradient matters.

  Args:
    loss: `(log_probs, [old_log_probs,] [behave_log_probs,] advantages,
      completion_mask) -> Ratio`, with its options bound.
    ratio_to: what a loss is given as `old_log_probs`: "old", those of the
      policy that the update starts from, which the trainer recomputes; or
      "behave", the sampler's own, which saves that forward pass and lets the
      clip see staleness.

  Returns:
    The term's function.

  Raises:
    ValueError: `ratio_to` is neither, or is "behave" for a loss that has no
      ratio to the old policy, or one to each of the two.
  """
  needs = recorded_log_probs(loss)
  if ratio_to not in ("old", "behave"):
    raise ValueError(f'ratio_to is {ratio_to!r}, neither "old" nor "behave"')
  if ratio_to == "behave" and needs != ("old_log_probs",):
    raise ValueError(
      f'ratio_to="behave" replaces old_log_probs by the sampler\'s, but '
      f"{_name(loss)} reads {' and '.join(needs) or 'neither'}"
    )
  old = _old_log_probs if ratio_to == "old" else _behave_log_probs
  read = {"old_log_probs": old, "behave_log_probs": _behave_log_probs}

  def term(outputs: Outputs, batch: TrainBatch) -> reductions.Ratio:
    return loss(
      outputs.log_probs,
      *(read[name](outputs, batch, _name(loss)) for name in needs),
      batch.advantages,
      batch.completion_mask,
    )

  return term


def recorded_log_probs(
  loss: Callable[..., reductions.Ratio],
) -> tuple[str, ...]:
  """Says which log-probs a loss needs beside the current policy's.

  Args:
    loss: a policy loss.

  Returns:
    `old_log_probs` and `behave_log_probs`, as far as they are its arguments.
  """
  fields = ("old_log_probs", "behave_log_probs")
  return tuple(
    name for name in inspect.signature(loss).parameters if name in fields
  )


def clipped_surrogate(
  *,
  clip_low: float = 0.2,
  clip_high: float = 0.2,
  dual_clip: float | None = None,
  aggregate: losses.Aggregate = losses.token_mean,
) -> TermFn:
  """Makes the PPO term.

  Args:
    clip_low: how far the ratio may fall below 1.
    clip_high: how far it may rise above 1.
    dual_clip: bound on the loss of a negative advantage, above 1.
    aggregate: how tokens and sequences are averaged.

  Returns:
    The term's function; see `policy`.
  """
  return policy(
    functools.partial(
      losses.clipped_surrogate_loss,
      clip_low=clip_low,
      clip_high=clip_high,
      dual_clip=dual_clip,
      aggregate=aggregate,
    )
  )


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


def world(token_loss: world_model.TokenLoss) -> TermFn:
  """Makes PaW's term: to predict what an action brought about.

  Args:
    token_loss: from an observation token's log-prob to its loss.

  Returns:
    The term's function; it needs `world`, the rows' weights, and reads the
    tokens with the role of an observation.
  """

  def term(outputs: Outputs, batch: TrainBatch) -> reductions.Ratio:
    return world_model.world_model_loss(
      outputs.log_probs,
      batch.observation_mask,
      batch.require("world", "the world model"),
      token_loss=token_loss,
    )

  return term


def value(outputs: Outputs, batch: TrainBatch) -> reductions.Ratio:
  """Half the squared error of the value head, a mean over rows with tokens.

  Args:
    outputs: what the policy computed, with `values`.
    batch: the batch, with `value_targets`.

  Returns:
    The sum and the number of rows. Gradient flows to the values.

  Raises:
    ValueError: the decoder has no value head, or there are no targets.
  """
  if outputs.values is None:
    raise ValueError(
      "an advantage that reads values needs config.model.value_head=True"
    )
  rows = batch.completion_mask.any(-1)
  targets = batch.require("value_targets", "the value term")
  errors = reductions.select(outputs.values - targets, rows)
  return reductions.Ratio(
    0.5 * jnp.sum(errors**2), jnp.sum(rows.astype(errors.dtype))
  )


def world_diagnostics(rho: float) -> dict[str, DiagnosticFn]:
  """Makes the diagnostics of the world model.

  Args:
    rho: probability from which a token counts as learned.

  Returns:
    `clipped_tokens`, the share of observation tokens above it, and
    `observation_nll`, the mean negative log-likelihood of those tokens; of the
    observations that the batch holds.
  """
  return {
    "clipped_tokens": lambda outputs, batch: world_model.clipped_token_share(
      outputs.log_probs, batch.observation_mask, rho=rho
    ),
    "observation_nll": lambda outputs, batch: losses.token_mean(
      -outputs.log_probs, batch.observation_mask
    ),
  }


def likelihood(outputs: Outputs, batch: TrainBatch) -> reductions.Ratio:
  """Negative log-likelihood per token: the term of the warm start.

  Args:
    outputs: what the policy computed.
    batch: the demonstrations; their advantages are not read.

  Returns:
    The sum over the completions' tokens, and their number.
  """
  return losses.token_mean(-outputs.log_probs, batch.completion_mask)


def observation_likelihood(
  outputs: Outputs, batch: TrainBatch
) -> reductions.Ratio:
  """Negative log-likelihood per token of what the environment said.

  Args:
    outputs: what the policy computed.
    batch: the demonstrations, with what followed them.

  Returns:
    The sum over the observations' tokens, and their number.
  """
  return losses.token_mean(-outputs.log_probs, batch.observation_mask)


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


def behave_kl(outputs: Outputs, batch: TrainBatch) -> reductions.Ratio:
  """Estimates KL(sampler, current policy), for reporting only.

  How far the policy has moved since the rollout; `sampler_mismatch` is the mean
  of the absolute log-ratio.

  Args:
    outputs: what the policy computed.
    batch: the batch, with `behave_log_probs`.

  Returns:
    The sum of the k3 estimates and the number of tokens.
  """
  behave = batch.require("behave_log_probs", "the KL to the sampler")
  return losses.kl_loss(behave, outputs.log_probs, batch.completion_mask)


def if_recorded(field: str, fn: DiagnosticFn) -> DiagnosticFn:
  """Leaves a diagnostic out where a batch does not hold what it reads.

  Args:
    field: name of the batch's field.
    fn: the diagnostic.

  Returns:
    The diagnostic; it gives `None` if the field was not recorded.
  """

  def diagnostic(outputs: Outputs, batch: TrainBatch):
    return None if getattr(batch, field) is None else fn(outputs, batch)

  return diagnostic


def balance_diagnostics() -> dict[str, DiagnosticFn]:
  """Makes the diagnostics of how good and bad responses weigh.

  Returns:
    `nll/positive` and `nll/negative`, `balance`, `balance_ratio`,
    `zero_advantage` and `largest_inverse_nll`; see `stale_losses.Balance`. They
    read the current policy alone.
  """
  names = {
    "nll/positive": "nll_positive",
    "nll/negative": "nll_negative",
    "balance": "balance",
    "balance_ratio": "balance_ratio",
    "zero_advantage": "zero_advantage",
    "largest_inverse_nll": "largest_inverse_nll",
  }

  def statistic(field: str) -> DiagnosticFn:
    # Each computes all of them: the compiler keeps one copy.
    return lambda outputs, batch: getattr(
      stale_losses.balance(
        outputs.log_probs, batch.advantages, batch.completion_mask
      ),
      field,
    )

  return {name: statistic(field) for name, field in names.items()}


def clip_diagnostics(
  clip_low: float,
  clip_high: float,
  *,
  ratio_of: losses.RatioOf = losses.token_ratio,
  ratio_to: str = "old",
) -> dict[str, DiagnosticFn]:
  """Makes the diagnostics of the clip.

  Args:
    clip_low: how far the ratio may fall below 1.
    clip_high: how far it may rise above 1.
    ratio_of: the ratio that is clipped, of a token or of its response.
    ratio_to: "old" or "behave", as of the term.

  Returns:
    `clipped_low` and `clipped_high`: shares of the tokens that the clip holds.
  """
  old = _old_log_probs if ratio_to == "old" else _behave_log_probs

  def fractions(outputs: Outputs, batch: TrainBatch) -> losses.ClipFractions:
    return losses.clip_fractions(
      outputs.log_probs,
      old(outputs, batch, "the clip's share"),
      batch.advantages,
      batch.completion_mask,
      clip_low=clip_low,
      clip_high=clip_high,
      ratio_of=ratio_of,
    )

  return {
    "clipped_low": lambda outputs, batch: fractions(outputs, batch).low,
    "clipped_high": lambda outputs, batch: fractions(outputs, batch).high,
  }


def _old_log_probs(outputs: Outputs, batch: TrainBatch, user: str) -> Array:
  """The recorded old policy, or the current one with its gradient stopped."""
  del user
  if batch.old_log_probs is None:
    return jax.lax.stop_gradient(outputs.log_probs)
  return batch.old_log_probs


def _behave_log_probs(outputs: Outputs, batch: TrainBatch, user: str) -> Array:
  del outputs
  return batch.require("behave_log_probs", user)


def _name(fn: Callable) -> str:
  """The name of a function, of one with bound options too."""
  return getattr(fn, "func", fn).__name__
