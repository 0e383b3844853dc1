"""Weightings, advantages and losses inside Tunix's GRPO learner: extra `tunix`.

`register` puts a method into Tunix's own registries, from which its
`GRPOLearner` takes it by name where the advantage needs no lengths; the
subclass of `learner_class` takes every method. `loss_agg_mode`, `epsilon` and
`loss_algo` have no effect. Weights are of what one call of the estimator sees:
the whole batch if `rollout_micro_batch_size` and
`compute_logps_micro_batch_size` are the batch. Gradients of the parts of a
batch (`train_micro_batch_size`) are averaged, however many tokens each has.
"""

import dataclasses
import functools
import threading
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from saw_jax import naming
from saw_jax.contrib import hosted as hosted_lib
from saw_jax.types import Array

# What learners of `learner_class` have in Tunix's registries.
LEARNER = "saw_jax.learner"
_PENDING = "saw_jax.pending"
_MATRIX = "saw_jax.matrix"
_MISSING = "Tunix is missing"


def register(hosted: hosted_lib.Hosted, name: str) -> None:
  """Registers a method with Tunix under one name, for the `GRPOConfig`."""
  with naming.needs_extra("tunix", _MISSING):
    from tunix.rl import function_registry as registry
  if hosted.needs_behave:
    raise ValueError(
      "the loss needs the sampler's log-probs, which Tunix's GRPO learner does "
      "not record: use a loss without them"
    )
  registry.register_reward_manager(name)(_reward_manager())
  registry.register_advantage_estimator(name)(advantage_estimator(hosted))
  registry.register_policy_loss_fn(name)(policy_loss(hosted))


def advantage_estimator(hosted: hosted_lib.Hosted) -> Callable[..., np.ndarray]:
  """Makes the method's weighting and advantage an estimator of Tunix's."""

  def estimator(rewards: np.ndarray, num_generations: int) -> np.ndarray:
    if hosted.needs_lengths:
      raise ValueError(
        "the advantage weighs responses by their lengths, which Tunix does not "
        "give to an estimator: use saw_jax.contrib.tunix.learner_class, "
        "or advantage_options whiten='sequence'"
      )
    return hosted.estimate(np.asarray(rewards), group_size=num_generations)[0]

  return estimator


def policy_loss(hosted: hosted_lib.Hosted) -> Callable[..., tuple[Array, dict]]:
  """Makes the method's loss one of Tunix's, which runs the model itself."""
  with naming.needs_extra("tunix", _MISSING):
    from tunix.rl import algo_core, common

  def loss_fn(model, train_example, algo_config, pad_id, eos_id, **_):
    if train_example.segment_ids is not None:
      raise ValueError(
        "packed sequences have several responses in a row, and the losses here "
        "one: leave max_seq_token_per_tpu at None"
      )
    if train_example.sampler_is_weights is not None:
      raise ValueError(
        "the learner weighs tokens by importance, which would act beside the "
        "method's loss: switch that off"
      )
    hosted_lib.check_beta(hosted, algo_config.beta, "Tunix")
    log_probs, logits = common.compute_per_token_logps(
      *nnx.split(model),
      prompt_tokens=train_example.prompt_ids,
      completion_tokens=train_example.completion_ids,
      pad_id=pad_id,
      eos_id=eos_id,
      stop_gradient=False,
      return_logits=True,
      temperature=algo_config.temperature,
    )
    terms, logged = hosted.terms(
      log_probs.astype(jnp.float32),
      algo_core.compute_entropy_from_logits(logits.astype(jnp.float32)),
      train_example.advantages.astype(jnp.float32),
      train_example.completion_mask,
      old_log_probs=train_example.old_per_token_logps,
      ref_log_probs=train_example.ref_per_token_logps,
    )
    values = hosted_lib.logged_values(terms, logged)
    kl = terms["kl"].value() / hosted.kl_coefficient if "kl" in terms else 0.0
    clipped = values.get("clipped_low", 0.0) + values.get("clipped_high", 0.0)
    # Tunix's learner logs these two by name.
    values |= {"kl": jnp.asarray(kl), "pg_clipfrac": jnp.asarray(clipped)}
    return hosted_lib.total_loss(terms), values

  return loss_fn


@functools.cache
def learner_class(hosted: hosted_lib.Hosted) -> type:
  """Makes Tunix's GRPO learner one that learns by the method.

  Advantages are estimated when the responses' lengths are known; functions of
  metrics see them, and the matrix of rewards. The weight of each reward
  function is logged as `weights/<position>`. The three names in the
  `algo_config` are replaced by the method's.
  """
  with naming.needs_extra("tunix", _MISSING):
    from tunix.rl import function_registry as registry
    from tunix.rl import rl_cluster as cluster_lib
    from tunix.rl.grpo import grpo_learner

  class HostedGRPOLearner(grpo_learner.GRPOLearner):
    """Tunix's learner with the method's advantages and loss."""

    def __init__(
      self,
      rl_cluster: cluster_lib.RLCluster,
      algo_config: grpo_learner.GRPOConfig,
      reward_fns: Callable | list[Callable],
      metric_fns: Sequence[Callable] | None = None,
      data_shuffle_seed: int | None = None,
    ):
      register(hosted, LEARNER)
      # Until `_generate_and_compute_advantage` knows the lengths.
      registry.register_advantage_estimator(_PENDING)(
        lambda rewards, num_generations: np.zeros(len(rewards), np.float32)
      )
      # Training and evaluation may run in two threads.
      self._seen = threading.local()
      self._metric_fns = metric_fns or []
      config = dataclasses.replace(
        algo_config,
        reward_manager=LEARNER,
        advantage_estimator=_PENDING,
        policy_loss_fn=LEARNER,
      )
      options = {"data_shuffle_seed": data_shuffle_seed}
      super().__init__(rl_cluster, config, reward_fns, **options)

    def _compute_rewards(self, prompts, completions, *more, **options):
      rewards = super()._compute_rewards(prompts, completions, *more, **options)
      self._seen.completions, self._seen.rewards = completions, rewards
      return rewards

    def _generate_and_compute_advantage(
      self, training_input, mode=cluster_lib.Mode.TRAIN
    ):
      example = super()._generate_and_compute_advantage(training_input, mode)
      advantages, statistics = hosted.estimate(
        self._seen.rewards,
        group_size=self.algo_config.num_generations,
        lengths=np.asarray(example.completion_mask).sum(-1),
      )
      weights = enumerate(statistics["weight"])
      metrics = {f"weights/{index}": (one, np.mean) for index, one in weights}
      self.rl_cluster.buffer_metrics(metrics, mode=mode)
      for metric_fn in self._metric_fns:
        metrics = metric_fn(
          completions=self._seen.completions,
          advantages=advantages,
          rewards=self._seen.rewards,
          **training_input,
        )
        self.rl_cluster.buffer_metrics(metrics, mode=mode)
      return example.replace(advantages=jax.device_put(advantages))

  return HostedGRPOLearner


def _reward_manager() -> type:
  """A reward manager that gives the matrix `[P * G, M]`, not its sum."""
  from tunix.rl import reward_manager

  class MatrixRewardManager(reward_manager.SequenceRewardManager):
    def _prepare_log_metrics(self, prompts, completions, rewards):
      metrics = super()._prepare_log_metrics(prompts, completions, rewards)
      return {**metrics, _MATRIX: rewards}

    def __call__(self, prompts, completions, **columns):
      info = super().__call__(prompts, completions, **columns)
      matrix = info["log_metrics"].pop(_MATRIX)
      return {**info, "rewards": matrix}

  return MatrixRewardManager
