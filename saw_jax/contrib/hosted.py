"""A row of a config as the functions that another library's trainer calls.

A host gives rewards of a batch, log-probs of its own model and a mask, and gets
advantages and a loss, those of `algorithms.make_method`.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from saw_jax import advantages as advantages_lib
from saw_jax import algorithms, naming, reductions
from saw_jax.rollout import transcript
from saw_jax.training import batch as batch_lib
from saw_jax.training import estimation
from saw_jax.training import objective as objective_lib
from saw_jax.types import Array

Terms = Mapping[str, reductions.Ratio]


class Hosted(NamedTuple):
  """What a host calls, see `make_hosted`, and what it has to record for it."""

  estimate: Callable[..., tuple[np.ndarray, dict[str, np.ndarray]]]
  terms: Callable[..., tuple[dict, dict]]
  num_components: int  # M
  kl_coefficient: float  # 0 without a KL term, which needs `ref_log_probs`
  needs_lengths: bool  # by the advantage's whitening
  needs_behave: bool  # the sampler's log-probs, by the loss


def make_hosted(
  config: algorithms.AlgorithmConfig, *, minima: Sequence[float]
) -> Hosted:
  """Turns the names of a method into what a host calls.

  `estimate` gives advantages `[P * G]` and statistics by name (`weight`,
  `mean`, `std`, `cv`: `[M]`); a reward that is NaN was not scored. `terms` goes
  from `[B, T]` and advantages `[B]` or `[B, T]` to the terms of the loss, times
  their coefficients, and what is only logged. Without `old_log_probs` the ratio
  is 1. `minima` are the least values of the host's reward functions, in their
  order.
  """
  minima = np.asarray(minima, np.float32)
  if minima.ndim != 1 or not minima.size:
    raise ValueError(
      "minima are one number for each reward function, not an array of shape "
      f"{minima.shape}"
    )
  method = algorithms.make_method(config, minima)
  for what, is_so in {
    f"advantage {config.advantage!r} is of the steps of episodes, and a host "
    f"has single answers: {', '.join(algorithms.ADVANTAGES)}": method.per_step,
    "a world model learns from observations behind the responses, which no "
    "host lays out: world_model.loss has to be 'none'": method.world,
    "weights 'gradient' take a backward pass for each component, which no "
    "host makes: use another weighting, or our own loop": not method.weights,
    "a host has its log-probs after its rewards, so that KL in the reward "
    "has no place there: use kl.placement='loss'": method.kl_in_reward,
  }.items():
    if is_so:
      raise ValueError(what)
  compute = jax.jit(
    estimation.make_estimate(method.advantage, method.weights, minima=minima)
  )
  objective = objective_lib.make_objective(
    lambda outputs, batch: outputs, method.terms, method.diagnostics
  )

  def estimate(
    rewards: np.ndarray, *, group_size: int, lengths: np.ndarray | None = None
  ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    rewards = np.asarray(rewards, np.float32)
    if rewards.ndim != 2 or rewards.shape[1] != minima.size:
      raise ValueError(
        f"rewards have the shape {rewards.shape}, but the method takes a row "
        f"for each response and {minima.size} components: give as many minima "
        "as there are reward functions"
      )
    if (count := len(rewards)) % group_size:
      raise ValueError(f"{count} responses are no whole groups of {group_size}")
    if np.isinf(rewards).any():
      row, component = np.argwhere(np.isinf(rewards))[0]
      raise ValueError(
        f"component {component} of response {row} is infinite: a reward is a "
        "number, or NaN where there is none"
      )
    rewards = rewards.reshape(-1, group_size, minima.size)
    if lengths is not None:
      lengths = np.asarray(lengths).reshape(rewards.shape[:2])
    scored = ~np.isnan(rewards)
    rewards = np.where(scored, rewards, 0)
    found = compute(rewards, scored, lengths, None, None)
    advantages, statistics = jax.tree.map(np.asarray, found)
    return advantages.reshape(-1), statistics

  def terms(
    log_probs: Array,
    entropies: Array,
    advantages: Array,
    completion_mask: Array,
    **recorded: Array | None,
  ):
    mask = jnp.asarray(completion_mask, bool)
    batch = batch_lib.TrainBatch(
      # The terms of single answers read the mask, never the tokens.
      tokens=jnp.zeros(mask.shape, jnp.int32),
      roles=jnp.where(mask, transcript.POLICY, transcript.PAD),
      starts=jnp.zeros(mask.shape[:1], jnp.int32),
      advantages=advantages,
      **recorded,
    )
    outputs = objective_lib.Outputs(log_probs=log_probs, entropies=entropies)
    return objective(outputs, batch)

  kl = method.terms.get("kl")
  whiten = naming.options(method.advantage).get("whiten")
  return Hosted(
    estimate=estimate,
    terms=terms,
    num_components=minima.size,
    kl_coefficient=0.0 if kl is None else kl.coefficient,
    needs_lengths=whiten is advantages_lib.token_whiten,
    needs_behave=method.needs_behave,
  )


def denominators(
  hosted: Hosted, advantages: Array, completion_mask: Array
) -> dict[str, Array]:
  """Counts for each term what a whole batch divides by, before it is cut up."""
  # A denominator does not depend on the policy: any log-probs will do.
  zeros = jnp.zeros(completion_mask.shape, jnp.float32)
  kinds = ("old_log_probs", "behave_log_probs", "ref_log_probs")
  recorded = dict.fromkeys(kinds, zeros)
  terms, _ = hosted.terms(zeros, zeros, advantages, completion_mask, **recorded)
  return {name: term.denominator for name, term in terms.items()}


def total_loss(terms: Terms, counts: Mapping | None = None) -> Array:
  """Divides the terms of a batch and adds them up."""
  if counts is None:
    counts = {name: term.denominator for name, term in terms.items()}
  pairs = ((terms[name].numerator, counts[name]) for name in terms)
  return sum(itertools.starmap(reductions.divide, pairs))


def logged_values(terms: Terms, logged: Mapping) -> dict[str, Array]:
  """Divides everything that `Hosted.terms` gives, for a host's log."""
  named = {f"loss/{name}": term for name, term in terms.items()} | {**logged}
  return {name: value.value() for name, value in named.items()}


def check_beta(hosted: Hosted, beta: float, host: str) -> None:
  """Refuses a host's `beta` that is not the coefficient of the KL term."""
  if beta != hosted.kl_coefficient:
    raise ValueError(
      f"GRPOConfig.beta is {beta} and the method's kl.coefficient "
      f"{hosted.kl_coefficient}: {host} has reference log-probs where beta is "
      "not 0, so the two must be equal"
    )
