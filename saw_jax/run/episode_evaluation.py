"""How good a policy plays, and predicts, worlds it was not trained in."""

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
from saw_jax.run.sections import Experiment
from saw_jax.tasks.environments import Transition
from saw_jax.tasks.workers.environment_pool import EnvironmentPool
from saw_jax.training import hosts, parallel
from saw_jax.training.batch import TrainBatch


class EpisodeEvaluator(evaluation.BaseEvaluator):
  """Plays one set of held-out worlds, greedily or sampled."""

  def __init__(self, policy: Policy, pool: EnvironmentPool):
    super().__init__(policy, pool)
    lift, count = policy.lift, policy.made.episodes.num_transitions
    count = count // lift.num_shards * lift.num_shards
    found = self._task.held_out(count) if count else []
    self._transitions = lay_out(found, policy.made) if found else None
    self._predict = lift.wrap(
      make_predictions(policy.decoder),
      (parallel.STATE, parallel.ROWS),
      (parallel.SAME,),
      takes_axis_name=True,
    )

  def _read(self, split: str, most: int | None = None) -> list[int]:
    return list(range(self._task.num_episodes(split))[:most])

  def on(self, split: str, samples: int) -> "EpisodeEvaluator":
    """Plays another split; predictions are scored in this one alone."""
    other = super().on(split, samples)
    other._transitions = None
    return other

  def run(self, mode: str) -> dict[str, np.ndarray]:
    """Plays every world: what `evaluation.Evaluator.run` gives, for `E` worlds.

    `ended` are those that were not cut, `lengths` their steps; and `valid` is
    the share of replies that parsed.
    """
    played = self.play(mode)
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

  def play(self, mode: str) -> agents.Episodes:
    """Plays every world, and returns the episodes themselves."""
    (sampling, size), num_seeds = self.modes[mode], self.policy.num_seeds
    ids, seeds = [self.examples] * num_seeds, [0] * num_seeds
    return agents.play(
      self.policy,
      # One answer at a time: samples of a world part after the first action.
      self.policy.make_turn(sampling),
      [[(self.split, world) for world in self.examples]] * num_seeds,
      rollouts.row_keys(seeds, evaluation.FIRST_STEP, ids, size),
      self._workers,
    )

  def scores(self, mode: str) -> list[dict[str, float]]:
    """Averages an evaluation, a greedy one with predicted observations."""
    found = super().scores(mode)
    if mode == "greedy" and self._transitions is not None:
      batch = jax.tree.map(
        lambda x: np.stack([x] * self.policy.num_seeds), self._transitions
      )
      said = hosts.fetch(self._predict(self.policy.params, batch))
      for seed, values in enumerate(found):
        values |= {name: float(x[seed]) for name, x in said.items()}
    return found

  def more(self, result: dict[str, np.ndarray]) -> dict[str, float]:
    """The share of valid replies, and of each category's worlds those won."""
    places: dict[str, list[int]] = {}
    for place, world in enumerate(self.examples):
      name = self._task.category(self.split, world)
      places.setdefault(name, []).append(place)
    return {"valid": float(result["valid"].mean())} | {
      f"right_{name}": float(result["right"][own].mean(dtype=np.float64))
      for name, own in sorted(places.items())
      if name
    }


def lay_out(transitions: list[Transition], made: Experiment) -> TrainBatch:
  """Lays an expert's steps out as rows: prompt, action and observation."""
  encoder, task = rollouts.Encoder(made.tokenizer, made.rollout), made.task
  encode, end = made.tokenizer.encode, made.tokenizer.eos_ids[0]
  limit = made.episodes.max_observation_tokens
  return warm_start.pack_demonstrations(
    [
      agents.write_prompt(task, encoder, one.before, one.history)[1]
      for one in transitions
    ],
    [[*encode(task.write_reply(one.action)), end] for one in transitions],
    [list(encode(one.observation))[:limit] for one in transitions],
    glue=agents.glue_of(made.tokenizer),
    multiple=8,
  )


def make_predictions(
  config: DecoderConfig,
) -> Callable[..., dict[str, jax.Array]]:
  """Makes `(params, batch) -> scores` of predicted observations."""
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
