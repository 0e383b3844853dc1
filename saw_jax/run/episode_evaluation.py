"""How good a policy plays worlds that it was not trained in.

And how well it says what comes next, after the actions of an expert.
"""

import copy
import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from saw_jax import reductions
from saw_jax.models import decoder, log_probs
from saw_jax.models.config import DecoderConfig
from saw_jax.reductions import Ratio
from saw_jax.run import agents, evaluation, rollouts, warm_start
from saw_jax.run.policy import Policy
from saw_jax.tasks.environments import AgentTask, Transition
from saw_jax.tasks.workers.environment_pool import EnvironmentPool
from saw_jax.training import parallel
from saw_jax.training.batch import TrainBatch


class EpisodeEvaluator:
  """Plays one set of held-out worlds, greedily or sampled."""

  def __init__(
    self,
    task: AgentTask,
    encoder: rollouts.Encoder,
    config: evaluation.EvaluationConfig,
    episodes: agents.EpisodeConfig,
    policy: Policy,
  ):
    self.config, self._task, self._encoder = config, task, encoder
    size = min(task.num_episodes(config.split), config.num_examples)
    self.examples = list(range(size))
    self.modes = config.modes(config.samples)
    self._episodes = episodes
    lift = policy.lift
    # One answer at a time: the samples of a world part after the first action.
    self._make_generate = functools.cache(
      lambda sampling: rollouts.make_generate(
        lift, policy.decoder, encoder.settings(sampling, 1)
      )
    )
    count = episodes.num_transitions // lift.num_shards * lift.num_shards
    transitions = task.held_out(count) if count else []
    self._transitions = None
    if transitions:
      self._transitions = lay_out(transitions, task, encoder, episodes)
    self._predict = lift.wrap(
      make_predictions(policy.decoder),
      (parallel.STATE, parallel.ROWS),
      (parallel.SAME,),
      takes_axis_name=True,
    )

  def on(self, split: str, samples: int) -> "EpisodeEvaluator":
    """Plays the worlds of another split in the same way, all of them.

    With 0 samples it is greedy alone. It does not score predictions. What is
    compiled is shared.
    """
    other = copy.copy(self)
    other.config = dataclasses.replace(self.config, split=split)
    other.examples = list(range(self._task.num_episodes(split)))
    other.modes = self.config.modes(samples)
    other._transitions = None
    return other

  def run(
    self, mode: str, policy: Policy, pool: EnvironmentPool
  ) -> dict[str, np.ndarray]:
    """Plays every world under the policies of all seeds.

    Returns what `evaluation.Evaluator.run` does, for `E` worlds: `rewards`
    `[N, E, G, 1]`, what an episode paid; `scored`, that its environment did not
    fail; `right`, that it paid the most; `ended`, that it was not cut;
    `lengths`, its steps. And `valid`, the share of its replies that parsed.
    """
    played = self.play(mode, policy, pool)
    steps = played.played.steps.reshape(played.rewards.shape)
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
    self, mode: str, policy: Policy, pool: EnvironmentPool
  ) -> agents.Episodes:
    """Plays every world, and returns the episodes themselves."""
    sampling, group_size = self.modes[mode]
    num_seeds, worlds = policy.num_seeds, self.examples
    return agents.play(
      self._make_generate(sampling),
      policy.params,
      [[(self.config.split, seed) for seed in worlds]] * num_seeds,
      rollouts.row_keys(
        [0] * num_seeds, evaluation.FIRST_STEP, [worlds] * num_seeds, group_size
      ),
      task=self._task,
      encoder=self._encoder,
      pool=pool,
      config=self._episodes,
      group_size=group_size,
    )

  def scores(
    self, mode: str, policy: Policy, pool: EnvironmentPool
  ) -> list[dict[str, float]]:
    """Runs an evaluation and averages it; see `evaluation.average`.

    With the share of valid replies as `valid`, and of each category of the
    task's episodes the share that was won, as `right_<category>`. A greedy one
    has `observation_accuracy` and `observation_nll` too, where the task has an
    expert: how often the likeliest token is the one that came, and its mean
    negative log-likelihood.
    """
    result = self.run(mode, policy, pool)
    found = evaluation.average(mode, result, self._task.components)
    for seed, values in enumerate(found):
      values["valid"] = float(result["valid"][seed].mean())
      for name, places in self._categories().items():
        right = result["right"][seed, places]
        values[f"right_{name}"] = float(right.mean(dtype=np.float64))
    if mode == "greedy" and self._transitions is not None:
      batch = jax.tree.map(
        lambda x: np.stack([x] * policy.num_seeds), self._transitions
      )
      said = jax.device_get(self._predict(policy.params, batch))
      for seed, values in enumerate(found):
        for name, value in said.items():
          values[name] = float(value[seed])
    return found

  def _categories(self) -> dict[str, list[int]]:
    """Places of the episodes of each category, by name."""
    found: dict[str, list[int]] = {}
    for place, seed in enumerate(self.examples):
      name = self._task.category(self.config.split, seed)
      if name:
        found.setdefault(name, []).append(place)
    return dict(sorted(found.items()))


def lay_out(
  transitions: list[Transition],
  task: AgentTask,
  encoder: rollouts.Encoder,
  config: agents.EpisodeConfig,
) -> TrainBatch:
  """Lays an expert's steps out as rows: prompt, action and observation."""
  encoded = agents.encode_transitions(
    transitions,
    task=task,
    encoder=encoder,
    max_observation_tokens=config.max_observation_tokens,
  )
  glue = agents.glue_of(encoder.tokenizer)
  return warm_start.pack_demonstrations(*encoded, glue=glue, multiple=8)


def make_predictions(
  config: DecoderConfig,
) -> Callable[..., dict[str, jax.Array]]:
  """Makes the scores of predicted observations, `(params, batch) -> scores`.

  `observation_accuracy` and `observation_nll` are over the observation tokens
  of a batch, at temperature 1. The logits of one row exist at a time.
  """
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

    def total(x):
      return reductions.all_sum(
        x, where=batch.observation_mask, axis_name=axis_name
      )

    count = total(jnp.ones_like(taken_BT))
    right = total(right_BT.astype(jnp.float32))
    return {
      "observation_accuracy": Ratio(right, count).value(),
      "observation_nll": Ratio(-total(taken_BT), count).value(),
    }

  return predictions
