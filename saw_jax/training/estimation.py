"""From rewards to advantages: weights, then advantages, then what to log."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from saw_jax import advantages, diagnostics, losses, names, weighting
from saw_jax.training import update as update_lib
from saw_jax.training.batch import TrainBatch
from saw_jax.training.objective import Objective
from saw_jax.types import Array, PyTree


def make_estimate(
  advantage: Callable[..., Array],
  weights: Callable[..., Array] | None,
  *,
  minima: Array,
) -> Callable[..., tuple[Array, dict[str, Array]]]:
  """Composes a weighting with an advantage, see `advantages`; no gradient.

  Weights that are `None` persist over steps, and are brought by the caller.
  """

  def estimate(
    rewards: Array,  # [P, G, M]
    scored: Array,
    lengths: Array | None,  # [P, G]
    penalties: Array | None,  # [P, G]
    persistent_weights: Array,  # [M], with sum 1
    *,
    axis_name: str | None = None,
  ) -> tuple[Array, dict[str, Array]]:
    batch = dict(scored=scored, axis_name=axis_name)
    if weights is None:
      weight = rewards.shape[-1] * persistent_weights
    else:
      weight = weights(rewards, **batch)
    if penalties is not None and "penalties" not in names.arguments(advantage):
      user = names.name_of(advantage)
      raise ValueError(f"{user} takes no penalties: put the KL in the loss")
    advantage_PG = names.supply(
      advantage, rewards, weight, lengths=lengths, penalties=penalties, **batch
    )
    statistics = diagnostics.reward_statistics(rewards, minima=minima, **batch)
    return jax.lax.stop_gradient(advantage_PG), {"weight": weight, **statistics}

  return estimate


def make_gradient_weights(
  objective: Objective,
  *,
  num_microbatches: int = 1,
  merge: update_lib.Merge | None = None,
  learning_rate: float = 1e-6,
  temperature: float = 1e-5,
) -> Callable[..., Array]:
  """The gradient-weighting baseline (Lu et al.): one backward a reward.

  `objective` is the policy term alone, under each component's own
  group-normalised rewards. The weights that come out sum to 1.
  """
  gradient_of = update_lib.make_gradient(
    objective, num_microbatches=num_microbatches, merge=merge
  )

  def gradient_weights(
    params: PyTree,
    weights: Array,  # [M]
    batch: TrainBatch,
    rewards: Array,  # [P, G, M]
    scored: Array,
    base: PyTree = None,
    *,
    axis_name: str | None = None,
  ) -> Array:
    def component_gradient(component: Array) -> PyTree:
      one = advantages.normalize_groups(
        jnp.take(rewards, component, axis=-1),
        scored=jnp.take(scored, component, axis=-1),
      )
      batch_of_one = batch.replace(advantages=one.reshape(-1))
      return gradient_of(params, batch_of_one, base, axis_name=axis_name)[0]

    gradients = jax.lax.map(component_gradient, jnp.arange(rewards.shape[-1]))
    return weighting.gradient_weights(
      weights,
      weighting.gram_of_clipped(gradients),
      learning_rate=learning_rate,
      temperature=temperature,
    )

  return gradient_weights


def kl_penalties(
  batch: TrainBatch,  # rows [N, P * G]
  estimator: losses.KLEstimator,
  coefficient: float,
  *,
  group_size: int,
) -> Array:
  """What KL in the reward takes from each response. Shape `[N, P, G]`."""
  old = batch.require("old_log_probs", "KL in the reward")
  ref = batch.require("ref_log_probs", "KL in the reward")
  penalty = functools.partial(
    losses.kl_penalty, estimator=estimator, coefficient=coefficient
  )
  found = jax.vmap(penalty)(old, ref, batch.completion_mask)
  return found.reshape(found.shape[0], -1, group_size)
