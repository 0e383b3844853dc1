"""From rewards to advantages: weights, then advantages, then what to log."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from saw_jax import advantages, losses, weighting
from saw_jax.training import update as update_lib
from saw_jax.training.batch import TrainBatch
from saw_jax.training.objective import Objective
from saw_jax.types import Array, PyTree

# (rewards, *, scored, axis_name) -> [M]
Weights = Callable[..., Array]
# (rewards, weights, *, scored, lengths, penalties, axis_name) -> [P, G]
Advantage = Callable[..., Array]


def make_estimate(
  advantage: Advantage, weights: Weights | None, *, minima: Array
) -> Callable[..., tuple[Array, dict[str, Array]]]:
  """Composes a weighting with an advantage estimator.

  Args:
    advantage: e.g. `advantages.gdpo`.
    weights: e.g. `weighting.saw_weights`; `None` if the caller brings weights
      that persist over steps, as gradient weighting does.
    minima: least value that each component can take. Shape `[M]`.

  Returns:
    A function `(rewards [P, G, M], scored, lengths [P, G], penalties [P, G],
    persistent_weights [M], *, axis_name=None) -> (advantages [P, G],
    statistics)`. No gradient flows.
  """

  def estimate(
    rewards: Array,
    scored: Array,
    lengths: Array,
    penalties: Array | None,
    persistent_weights: Array,
    *,
    axis_name: str | None = None,
  ) -> tuple[Array, dict[str, Array]]:
    num_components = rewards.shape[-1]
    if weights is None:
      weight = num_components * persistent_weights
    else:
      weight = weights(rewards, scored=scored, axis_name=axis_name)
    advantage_PG = advantage(
      rewards,
      weight,
      scored=scored,
      lengths=lengths,
      penalties=penalties,
      axis_name=axis_name,
    )
    statistics = weighting.reward_statistics(
      rewards, scored=scored, minima=minima, axis_name=axis_name
    )
    return jax.lax.stop_gradient(advantage_PG), {
      "weight": weight,
      "mean": statistics.mean,
      "std": statistics.std,
      "cv": statistics.cv,
      "constant_groups": statistics.constant_groups,
    }

  return estimate


def make_gradient_weights(
  objective: Objective,
  *,
  num_microbatches: int = 1,
  merge: update_lib.Merge | None = None,
  learning_rate: float = 1e-6,
  temperature: float = 1e-5,
) -> Callable[..., Array]:
  """Makes the gradient-weighting baseline (Lu et al.): one backward a reward.

  Args:
    objective: the policy term alone, without entropy or KL.
    num_microbatches: parts of the batch, as in the update.
    merge: of parameters that are adapters, see `update.make_gradient`.
    learning_rate: of the weights' update; by convention the policy's.
    temperature: divides the inner products.

  Returns:
    A function `(params, weights [M], batch, rewards [P, G, M], scored,
    base=None, *, axis_name=None) -> weights [M]` that sum to 1. Each
    component's advantages are its group-normalised rewards, and its gradient is
    clipped to norm 1.

  References:
    Lu et al., "Learning to Optimize Multi-Objective Alignment Through Dynamic
    Reward Weighting". https://arxiv.org/abs/2509.11452
  """
  gradient_of = update_lib.make_gradient(
    objective, num_microbatches=num_microbatches, merge=merge
  )

  def gradient_weights(
    params: PyTree,
    weights: Array,
    batch: TrainBatch,
    rewards: Array,
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
      gradient, _ = gradient_of(
        params,
        batch.replace(advantages=one.reshape(-1)),
        base,
        axis_name=axis_name,
      )
      return gradient

    gradients = jax.lax.map(component_gradient, jnp.arange(rewards.shape[-1]))
    return weighting.gradient_weights(
      weights,
      weighting.gram_of_clipped(gradients),
      learning_rate=learning_rate,
      temperature=temperature,
    )

  return gradient_weights


def kl_penalties(
  batch: TrainBatch,
  estimator: losses.KLEstimator,
  coefficient: float,
  *,
  group_size: int,
) -> Array:
  """Prices the distance from the reference, for KL in the reward.

  Args:
    batch: with `old_log_probs` and `ref_log_probs`; rows `[N, P * G]`.
    estimator: per-token estimate of the divergence.
    coefficient: what a nat costs in units of reward.
    group_size: responses per prompt, `G`.

  Returns:
    What is subtracted from each response's reward. Shape `[N, P, G]`.
  """
  penalty = jax.vmap(
    lambda old, ref, mask: losses.kl_penalty(
      old, ref, mask, estimator=estimator, coefficient=coefficient
    )
  )(
    batch.require("old_log_probs", "KL in the reward"),
    batch.require("ref_log_probs", "KL in the reward"),
    batch.completion_mask,
  )
  return penalty.reshape(penalty.shape[0], -1, group_size)
