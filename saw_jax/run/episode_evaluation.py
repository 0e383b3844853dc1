"""How good a policy plays worlds that it was not trained in.

And how well it says what comes next, after the actions of an expert.
"""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from saw_jax import reductions
from saw_jax.models import decoder, log_probs
from saw_jax.models.config import DecoderConfig
from saw_jax.reductions import Ratio
from saw_jax.rollout.sampling import SamplingConfig
from saw_jax.run import agents, evaluation, rollouts, warm_start
from saw_jax.tasks.environments import AgentTask
from saw_jax.tasks.workers.environment_pool import EnvironmentPool
from saw_jax.tokenizer import Tokenizer
from saw_jax.training import parallel
from saw_jax.training.batch import TrainBatch

# Evaluation keys are folded at steps that no training run reaches.
_FIRST_STEP = 2**30


class EpisodeEvaluator:
  """Plays one set of held-out worlds, greedily or sampled."""

  def __init__(
    self,
    task: AgentTask,
    tokenizer: Tokenizer,
    config: evaluation.EvaluationConfig,
    episodes: agents.EpisodeConfig,
    rollout: rollouts.RolloutConfig,
    lift: parallel.Lift,
    decoder_config: DecoderConfig,
    make_sampler: Callable[[SamplingConfig, int], rollouts.Generate],
  ):
    self.components = task.components
    size = min(task.num_episodes(config.split), config.num_examples)
    self.examples = list(range(size))
    self._task, self._tokenizer, self._config = task, tokenizer, config
    self._episodes, self._rollout = episodes, rollout
    # One answer at a time: the samples of a world part after the first action.
    self._greedy = make_sampler(SamplingConfig(greedy=True), 1)
    self._sampled = make_sampler(
      SamplingConfig(temperature=config.temperature, top_p=config.top_p), 1
    )
    self._modes = self._samplers(config.samples)
    self._transitions = self._held_out(lift.num_shards)
    self._predict = lift.wrap(
      make_predictions(decoder_config),
      (parallel.STATE, parallel.ROWS),
      (parallel.SAME,),
      takes_axis_name=True,
    )

  @property
  def modes(self) -> tuple[str, ...]:
    """How worlds are played: `greedy`, and `sampled` unless 0 samples."""
    return tuple(self._modes)

  def on(self, split: str, samples: int) -> "EpisodeEvaluator":
    """Plays the worlds of another split in the same way, all of them."""
    other = copy.copy(self)
    other._config = dataclasses.replace(self._config, split=split)
    other.examples = list(range(self._task.num_episodes(split)))
    other._modes = self._samplers(samples)
    other._transitions = None
    return other

  def _samplers(self, samples: int) -> dict[str, tuple[Any, int]]:
    modes = {"greedy": (self._greedy, 1)}
    return {**modes, "sampled": (self._sampled, samples)} if samples else modes

  def run(
    self, mode: str, params: Any, pool: EnvironmentPool, *, num_seeds: int
  ) -> dict[str, np.ndarray]:
    """Plays every world under the policies of all seeds."""
    played = self.play(mode, params, pool, num_seeds=num_seeds)
    steps = np.maximum(played.played.steps.reshape(played.rewards.shape), 0)
    taken = np.maximum(steps.sum(-1), 1)
    return {
      "rewards": played.returns[..., None],
      "scored": ~played.failed[..., None],
      "right": played.returns >= self._task.max_return,
      "ended": played.over,
      "lengths": steps.sum(-1),
      "valid": 1 - (played.invalid & steps).sum(-1) / taken,
    }

  def play(
    self, mode: str, params: Any, pool: EnvironmentPool, *, num_seeds: int
  ) -> agents.Episodes:
    """Plays every world, and returns the episodes themselves."""
    generate, group_size = self._modes[mode]
    return agents.play(
      generate,
      params,
      [[(self._config.split, seed) for seed in self.examples]] * num_seeds,
      rollouts.row_keys(
        [0] * num_seeds, _FIRST_STEP, [self.examples] * num_seeds, group_size
      ),
      task=self._task,
      tokenizer=self._tokenizer,
      pool=pool,
      config=self._episodes,
      rollout=self._rollout,
      group_size=group_size,
    )

  def scores(
    self, mode: str, params: Any, pool: EnvironmentPool, *, num_seeds: int
  ) -> list[dict[str, float]]:
    """Runs an evaluation and averages it; see `evaluation.average`."""
    result = self.run(mode, params, pool, num_seeds=num_seeds)
    found = evaluation.average(mode, result, self.components)
    for seed, values in enumerate(found):
      values["valid"] = float(result["valid"][seed].mean())
      for name, places in self._categories().items():
        right = result["right"][seed, places]
        values[f"right_{name}"] = float(right.mean(dtype=np.float64))
    if mode == "greedy" and self._transitions is not None:
      batch = jax.tree.map(
        lambda x: np.stack([x] * num_seeds), self._transitions
      )
      said = jax.device_get(self._predict(params, batch))
      for seed, values in enumerate(found):
        for name, value in said.items():
          values[name] = float(value[seed])
    return found

  def _categories(self) -> dict[str, list[int]]:
    """Places of the episodes of each category, by name."""
    found: dict[str, list[int]] = {}
    for place, seed in enumerate(self.examples):
      name = self._task.category(self._config.split, seed)
      if name:
        found.setdefault(name, []).append(place)
    return dict(sorted(found.items()))

  def _held_out(self, num_shards: int) -> TrainBatch | None:
    count = self._episodes.num_transitions // num_shards * num_shards
    transitions = self._task.held_out(count) if count else []
    if not transitions:
      return None
    return warm_start.pack_demonstrations(
      *agents.encode_transitions(
        transitions,
        task=self._task,
        tokenizer=self._tokenizer,
        config=self._episodes,
        rollout=self._rollout,
      ),
      glue=agents.glue_of(self._tokenizer),
      multiple=8,
    )


def make_predictions(
  config: DecoderConfig,
) -> Callable[..., dict[str, jax.Array]]:
  """Makes the scores of predicted observations."""
  model = decoder.Decoder(config)

  def predictions(params, batch: TrainBatch, *, axis_name: str | None = None):
    hidden_BSD, _ = model.apply(
      {"params": params}, batch.tokens, batch.positions, batch.valid
    )
    hidden_BTD = hidden_BSD[:, batch.prompt_size - 1 : -1]
    head_DV = decoder.head_kernel(params, config)

    def row(inputs):
      hidden_TD, targets_T = inputs
      logits_TV = log_probs.head_logits(hidden_TD, head_DV)
      taken_T, _ = log_probs.log_probs_of(logits_TV, targets_T)
      return taken_T, jnp.argmax(logits_TV, axis=-1) == targets_T

    taken_BT, right_BT = jax.lax.map(
      row, (hidden_BTD, batch.tokens[:, batch.prompt_size :])
    )
    over = dict(where=batch.observation_mask, axis_name=axis_name)
    count = reductions.all_sum(jnp.ones_like(taken_BT), **over)
    right = reductions.all_sum(right_BT.astype(jnp.float32), **over)
    return {
      "observation_accuracy": Ratio(right, count).value(),
      "observation_nll": Ratio(
        -reductions.all_sum(taken_BT, **over), count
      ).value(),
    }

  return predictions
