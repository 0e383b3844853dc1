"""What an update minimises: a sum of terms over one forward pass.

A term is a pure function of what the policy computed and what was recorded; it
returns a `Ratio`. SAW changes the advantages, another method changes or adds a
term: they compose without a branch.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from saw_jax import diagnostics, losses, naming, reductions, world_model
from saw_jax.models import decoder, log_probs
from saw_jax.models.config import DecoderConfig
from saw_jax.reductions import Maximum, Ratio
from saw_jax.training.batch import TrainBatch, split_rows, unpack
from saw_jax.types import Array, PyTree


@flax.struct.dataclass
class Outputs:
  """What the current policy says of a batch, on its last `T` positions."""

  log_probs: Array  # float32 [B, T], of the tokens that were taken
  entropies: Array  # float32 [B, T], of the whole distribution
  values: Array | None = None  # float32 [B], at the end of the prompt


@flax.struct.dataclass
class Observation:
  """What a policy computes of its own responses, before it is updated."""

  # After the last norm. An empty response ends where its prompt does.
  prompt_hidden: Array  # float32 [P, D], at the last token of each prompt
  response_hidden: Array  # float32 [B, D], at the last token of each response
  log_probs: Array | None = None  # float32 [B, T], of the tokens taken
  entropies: Array | None = None  # float32 [B, T], of the whole distribution
  certainties: Array | None = None  # [B, T], `certainty.token_self_certainty`


TermFn = Callable[[Outputs, TrainBatch], Ratio]
Figures = dict[str, Ratio | Maximum]
# What is logged, by name; {} where the batch does not hold what it reads.
DiagnosticFn = Callable[[Outputs, TrainBatch], Figures]
Forward = Callable[[PyTree, TrainBatch], Outputs]
# (params, batch, step=None) -> (terms, diagnostics), by name
Objective = Callable[..., tuple[dict[str, Ratio], Figures]]


class Term(NamedTuple):
  """One summand of the objective: `coefficient * numerator / denominator`."""

  fn: TermFn
  coefficient: float | Callable[[Array], Array] = 1.0  # or of the step
  diagnostic: DiagnosticFn | None = None  # logged beside it


def make_forward(
  config: DecoderConfig, *, temperature: float = 1.0, chunk_size: int = 1024
) -> Forward:
  """The forward pass of a decoder over a batch, packed or not.

  Log-probs are those of the distribution that was sampled from, at
  `temperature`; the logits of `chunk_size` tokens exist at one time.
  """

  def forward(params: PyTree, batch: TrainBatch) -> Outputs:
    stream = _read(config, params, batch)
    taken, entropies = stream.log_probs(temperature, chunk_size)
    values = None
    if config.value_head:
      values = decoder.values(params, stream.prompt_hidden)
    return Outputs(stream.unpack(taken), stream.unpack(entropies), values)

  return forward


def in_parts(
  fn: Callable[[PyTree, TrainBatch], PyTree], num_parts: int
) -> Callable[[PyTree, TrainBatch], PyTree]:
  """Runs a function of rows on one part of them after the other."""

  def parted(params: PyTree, batch: TrainBatch) -> PyTree:
    if num_parts == 1:
      return fn(params, batch)
    parts = split_rows(batch, num_parts)
    found = jax.lax.map(functools.partial(fn, params), parts)
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
  num_parts: int = 1,
) -> Callable[[PyTree, TrainBatch], Observation]:
  """The forward pass by which labels are chosen; without gradient.

  Without `log_probs_too` the head is not applied and there are no logits.
  """

  def look(params: PyTree, batch: TrainBatch) -> Observation:
    stream = _read(config, params, batch)
    hidden = Observation(
      prompt_hidden=stream.prompt_hidden.astype(jnp.float32),
      response_hidden=stream.response_hidden.astype(jnp.float32),
    )
    if not log_probs_too:
      return hidden
    taken, entropies = stream.log_probs(temperature, chunk_size)
    # log Σ exp z - mean z, of which the first part is z(y) - log π(y), and the
    # mean of the logits is the logit of the mean column.
    columns = jnp.take(stream.head_DV.T, stream.targets, axis=0)
    columns -= jnp.mean(stream.head_DV.astype(jnp.float32), axis=-1)[None, None]
    over_mean = jnp.einsum(
      "btd,btd->bt", stream.wanted, columns, preferred_element_type=jnp.float32
    )
    return hidden.replace(
      log_probs=stream.unpack(taken),
      entropies=stream.unpack(entropies),
      certainties=stream.unpack(over_mean / temperature - taken),
    )

  looked = in_parts(look, num_parts)

  def observe(params: PyTree, batch: TrainBatch) -> Observation:
    found = looked(params, batch)
    return found.replace(prompt_hidden=found.prompt_hidden[::group_size])

  return observe


class _Stream(NamedTuple):
  """The stream after the last norm, where it is asked for."""

  wanted: Array  # [X, C, D], before each token whose log-prob is wanted
  targets: Array  # int32 [X, C], these tokens
  prompt_hidden: Array  # [B, D], at the last token of each prompt
  response_hidden: Array  # [B, D], at the last token of each row
  head_DV: Array
  unpack: Callable[[Array], Array]  # from [X, C] to [B, T]

  def log_probs(self, temperature: float, chunk_size: int):
    return log_probs.chunked_log_probs(
      *(self.wanted, self.head_DV, self.targets),
      temperature=temperature,
      chunk_size=chunk_size,
    )


def _read(config: DecoderConfig, params: PyTree, batch: TrainBatch) -> _Stream:
  apply = functools.partial(decoder.Decoder(config).apply, {"params": params})
  head_DV = decoder.head_kernel(params, config)
  where, size = batch.packing, batch.prompt_size
  if where is None:
    hidden_BSD, _ = apply(batch.tokens, batch.positions, batch.valid)
    counts = jnp.sum(batch.valid[:, size:], axis=1)
    last = jnp.arange(counts.shape[0]), size - 1 + counts
    return _Stream(
      # The token at position s is predicted at position s - 1.
      wanted=hidden_BSD[:, size - 1 : -1],
      targets=batch.tokens[:, size:],
      prompt_hidden=hidden_BSD[:, size - 1],
      response_hidden=hidden_BSD[last],
      head_DV=head_DV,
      unpack=lambda values_BT: values_BT,
    )
  hidden_RLD, _ = apply(
    where.tokens, where.positions, None, segment_ids=where.segments
  )
  length = batch.tokens.shape[1] - size
  return _Stream(
    wanted=jnp.take_along_axis(hidden_RLD, where.sources[..., None], axis=1),
    targets=where.targets,
    prompt_hidden=hidden_RLD[where.rows, where.prompt_ends],
    response_hidden=hidden_RLD[where.rows, where.prompt_ends + where.counts],
    head_DV=head_DV,
    unpack=lambda values_RC: unpack(values_RC, where, length),
  )


def make_objective(
  forward: Forward, terms: Mapping[str, Term], logs: Sequence[DiagnosticFn] = ()
) -> Objective:
  """Composes terms, multiplied by their coefficients, over one forward pass."""

  def objective(params: PyTree, batch: TrainBatch, step: Array | None = None):
    outputs = forward(params, batch)
    values, logged = {}, {}
    for name, term in terms.items():
      numerator, denominator = term.fn(outputs, batch)
      factor = at_step(term.coefficient, step, f"the coefficient of {name}")
      values[name] = Ratio(factor * numerator, denominator)
    for fn in (*logs, *(term.diagnostic for term in terms.values())):
      logged |= fn(outputs, batch) if fn else {}
    return values, logged

  return objective


def at_step(given: Any, step: Array | None, what: str) -> Any:
  """The value, at this step, of what may be a function of the step."""
  if not callable(given):
    return given
  if step is None:
    raise ValueError(f"{what} is a function of the step, which is unknown here")
  reductions.check_shapes(found := given(step), (), given)
  return found


def policy(loss: Callable[..., Ratio], *, ratio_to: str = "old") -> Term:
  """The term of a policy loss, its options bound, with the shares of its clip.

  The names of the loss's arguments say what is read of the batch: `(log_probs,
  [old_log_probs,] [behave_log_probs,] advantages, completion_mask)`. A loss
  without the optional ones runs where neither was recorded; `lags` that were
  not are 0. Tokens that are not `kept` have advantage 0. Without recorded
  `old_log_probs`, the update is the first on its rollout, and the old policy is
  the current one: the ratio is 1 and only its gradient matters.

  `ratio_to` is what a loss is given as `old_log_probs`: "old", those of the
  policy that the update starts from, which the trainer recomputes; or "behave",
  the sampler's own, for a loss with no ratio but that to the old policy: it
  saves that forward pass and lets the clip see staleness. A loss that clips has
  the options `clip_low` and `clip_high`, and `clipped_ratio`, which the shares
  are of; without it they are of the tokens that get no gradient.
  """
  user, needs = naming.name_of(loss), recorded_log_probs(loss)
  if ratio_to not in ("old", "behave"):
    raise ValueError(f'ratio_to is {ratio_to!r}, neither "old" nor "behave"')
  if ratio_to == "behave" and needs != ("old_log_probs",):
    raise ValueError(
      f'ratio_to="behave" replaces old_log_probs by the sampler\'s, but '
      f"{user} reads {' and '.join(needs) or 'neither'}"
    )

  def recorded(field: str, outputs: Outputs, batch: TrainBatch) -> Array:
    if field == "lags":
      return jnp.zeros_like(batch.starts) if batch.lags is None else batch.lags
    if field == "behave_log_probs" or ratio_to == "behave":
      return batch.require("behave_log_probs", user)
    if batch.old_log_probs is None:
      return jax.lax.stop_gradient(outputs.log_probs)
    return batch.old_log_probs

  def told(batch: TrainBatch) -> tuple[Array, Array]:
    a, mask = batch.advantages, batch.completion_mask
    if batch.kept is not None:
      a = jnp.where(batch.kept, losses.token_advantages(a, mask), 0)
    return a, mask

  def term(outputs: Outputs, batch: TrainBatch) -> Ratio:
    others = (recorded(field, outputs, batch) for field in needs)
    found = loss(outputs.log_probs, *others, *told(batch))
    reductions.check_shapes(found, Ratio((), ()), loss)
    return found

  def clip_shares(outputs: Outputs, batch: TrainBatch) -> Figures:
    rest = told(batch)
    if "clipped_ratio" not in clip:
      held = jax.grad(lambda x: term(outputs.replace(log_probs=x), batch)[0])(
        jax.lax.stop_gradient(outputs.log_probs)
      )
      return diagnostics.held_fractions(held, *rest)
    old = recorded("old_log_probs", outputs, batch)
    return diagnostics.clip_fractions(outputs.log_probs, old, *rest, **clip)

  clips = ("clip_low", "clip_high", "clipped_ratio")
  clip = {k: x for k, x in naming.options(loss).items() if k in clips}
  return Term(term, diagnostic=clip_shares if clip else None)


def recorded_log_probs(loss: Callable[..., Ratio]) -> tuple[str, ...]:
  """What a loss needs of a rollout beside the current policy's log-probs."""
  fields = ("old_log_probs", "behave_log_probs", "lags")
  return tuple(name for name in naming.arguments(loss) if name in fields)


def make_decide(
  forward: Forward,
  keep: Callable | None = None,
  step_size: Callable | None = None,
  *,
  num_parts: int = 1,
) -> Callable[..., tuple[TrainBatch, Array | None]]:
  """Makes what decides for all rows of an update at once: `trust_masks`.

  Makes `(params, batch, axis_name) -> (batch, factor of the learning rate)`,
  None without `step_size`; it costs a forward pass, in `num_parts` parts.
  """
  now = in_parts(lambda *given: forward(*given).log_probs, num_parts)

  def decide(params: PyTree, batch: TrainBatch, axis_name: str | None):
    mask = batch.completion_mask
    moved = now(params, batch) - batch.require("behave_log_probs", "a mask")
    given = {
      "log_ratios": reductions.select(jax.lax.stop_gradient(moved), mask),
      "advantages": losses.token_advantages(batch.advantages, mask),
      "mask": mask,
      "axis_name": axis_name,
    }
    if keep:
      batch = batch.replace(kept=naming.supply(keep, **given))
    return batch, step_size and naming.supply(step_size, **given)

  return decide


def kept_share(outputs: Outputs, batch: TrainBatch) -> Figures:
  """`kept`, the share of the policy's tokens whose advantage counts."""
  if batch.kept is None:
    return {}
  kept = batch.kept.astype(jnp.float32)
  return {"kept": losses.token_mean(kept, batch.completion_mask)}


def kl(
  estimator: losses.KLEstimator,
  *,
  aggregate: losses.Aggregate = losses.token_mean,
) -> TermFn:
  """The term that keeps the policy near the reference."""
  how = {"estimator": estimator, "aggregate": aggregate}

  def term(outputs: Outputs, batch: TrainBatch) -> Ratio:
    ref = batch.require("ref_log_probs", "the KL term")
    return losses.kl_loss(outputs.log_probs, ref, batch.completion_mask, **how)

  return term


def entropy(outputs: Outputs, batch: TrainBatch) -> Ratio:
  return losses.entropy_loss(outputs.entropies, batch.completion_mask)


def value(outputs: Outputs, batch: TrainBatch) -> Ratio:
  """Half the squared error of the value head, a mean over rows with tokens."""
  if outputs.values is None:
    raise ValueError(
      "an advantage that reads values needs config.model.value_head=True"
    )
  rows = batch.completion_mask.any(-1)
  targets = batch.require("value_targets", "the value term")
  errors = reductions.select(outputs.values - targets, rows)
  return Ratio(0.5 * jnp.sum(errors**2), jnp.sum(rows.astype(errors.dtype)))


def world(token_loss: world_model.TokenLoss) -> Term:
  """PaW's term, to predict what an action brought about, and what is logged.

  `clipped_tokens` are observation tokens above the loss's own `rho`, else 0.2.
  """
  rho = naming.options(token_loss).get("rho", 0.2)

  def term(outputs: Outputs, batch: TrainBatch) -> Ratio:
    said, mask = outputs.log_probs, batch.observation_mask
    weights = batch.require("world", "the world model")
    return world_model.world_model_loss(
      said, mask, weights, token_loss=token_loss
    )

  def shares(outputs: Outputs, batch: TrainBatch) -> Figures:
    clipped = diagnostics.clipped_token_share(
      outputs.log_probs, batch.observation_mask, rho=rho
    )
    nll = observation_likelihood(outputs, batch)
    return {"clipped_tokens": clipped, "observation_nll": nll}

  return Term(term, diagnostic=shares)


def likelihood(outputs: Outputs, batch: TrainBatch) -> Ratio:
  return losses.token_mean(-outputs.log_probs, batch.completion_mask)


def observation_likelihood(outputs: Outputs, batch: TrainBatch) -> Ratio:
  return losses.token_mean(-outputs.log_probs, batch.observation_mask)


def mean_entropy(outputs: Outputs, batch: TrainBatch) -> Figures:
  """`entropy`, the mean of the policy's tokens, in nats."""
  mean = losses.token_mean(outputs.entropies, batch.completion_mask)
  return {"entropy": mean}


def balance(outputs: Outputs, batch: TrainBatch) -> Figures:
  """How good and bad responses weigh, see `diagnostics.balance`."""
  advantages, mask = batch.advantages, batch.completion_mask
  return diagnostics.balance(outputs.log_probs, advantages, mask)


def sampler_mismatch(outputs: Outputs, batch: TrainBatch) -> Figures:
  """How far the trainer's log-probs are from the sampler's.

  On the first update after a rollout a mismatch beyond rounding is a defect of
  one of them. `behave_kl` is by k3: how far the policy has moved since.
  """
  behave, mask = batch.behave_log_probs, batch.completion_mask
  if behave is None:
    return {}
  far = losses.token_mean(abs(outputs.log_probs - behave), mask)
  moved = losses.kl_loss(behave, outputs.log_probs, mask)
  return {"sampler_mismatch": far, "behave_kl": moved}
