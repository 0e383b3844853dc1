"""What a run's kind of task needs, and what is done with finished policies."""

import contextlib
import dataclasses
import os
import pathlib
from typing import Any

import jax
import numpy as np

from saw_jax.run import (
  agents,
  answers,
  checkpoint,
  episode_evaluation,
  episode_source,
  evaluation,
  rollouts,
  warm_start,
)
from saw_jax.run.policy import Policy, learner_devices
from saw_jax.run.sections import Experiment
from saw_jax.tasks.environments import AgentTask
from saw_jax.tasks.workers.environment_pool import EnvironmentPool
from saw_jax.tasks.workers.grading import Grader
from saw_jax.training import parallel
from saw_jax.training.batch import TrainBatch
from saw_jax.types import PyTree

# Figures of an evaluation by mode and name: see `Evaluator.run`.
Results = dict[str, dict[str, np.ndarray]]


class AnswerRun:
  """What a run on single answers needs."""

  unit, turns = "responses", 1
  Evaluator: type[evaluation.BaseEvaluator] = evaluation.Evaluator
  Source: type = answers.Answers

  def __init__(self, made: Experiment):
    self._made, self._task = made, made.task
    self._grading = dataclasses.asdict(made.grading)

  def open_workers(self) -> Grader | EnvironmentPool:
    """Starts the processes that score answers, or play episodes."""
    return Grader(self._task, **self._grading)

  def count_examples(self, split: str, most: int | None = None) -> int:
    """How many prompts of a split a run has; looks at the length of each."""
    encoder = rollouts.encoder_of(self._made.tokenizer, self._made.rollout)
    examples = self._task.examples(split)
    encoder.check_lengths(examples, f"prompts of split {split!r}", most)
    return len(encoder.keep(examples))

  def demonstrations(self, settings: warm_start.WarmStartConfig) -> TrainBatch:
    """Lays out what a supervised start imitates."""
    tokenizer = self._made.tokenizer
    encoder = rollouts.encoder_of(tokenizer, self._made.rollout)
    found = self._shown(settings)
    if encoder.config.long_prompts == "drop":
      found = [one for one in found if encoder.fits(one[0])]
    return warm_start.pack_demonstrations(
      [encoder.tokens(example) for example, _ in found],
      [[*tokenizer.encode(text), tokenizer.eos_ids[0]] for _, text in found],
    )

  def _shown(self, settings: warm_start.WarmStartConfig) -> list[Any]:
    options = {**settings.options, "seed": settings.seed}
    return self._task.demonstrations(settings.num_demonstrations, **options)

  def play(self, policy: Policy, mode: str = "sampled") -> agents.Episodes:
    """Plays held-out worlds, `greedy` or `sampled`; answers are no episodes."""
    name = self._task.name
    raise ValueError(f"task {name!r} has single answers, no episodes to play")


class EpisodeRun(AnswerRun):
  """What a run on episodes needs."""

  Evaluator = episode_evaluation.EpisodeEvaluator
  Source = episode_source.Episodes

  def __init__(self, made: Experiment):
    super().__init__(made)
    self.turns = made.task.max_steps
    self.unit = f"episodes of at most {self.turns} actions"

  def open_workers(self) -> EnvironmentPool:
    limit = self._made.episodes.max_observation_chars
    kind = agents.SharedPool if jax.process_count() > 1 else EnvironmentPool
    return kind(self._task, max_chars=limit, **self._grading)

  def count_examples(self, split: str, most: int | None = None) -> int:
    return self._task.num_episodes(split)

  def demonstrations(self, settings: warm_start.WarmStartConfig) -> TrainBatch:
    return episode_evaluation.lay_out(self._shown(settings), self._made)

  def play(self, policy: Policy, mode: str = "sampled") -> agents.Episodes:
    with self.open_workers() as pool:
      return self.Evaluator(policy, pool).play(mode)


def kind_of(experiment: Experiment) -> AnswerRun:
  """What a run of the experiment's task needs."""
  is_played = isinstance(experiment.task, AgentTask)
  return (EpisodeRun if is_played else AnswerRun)(experiment)


def param_shardings(experiment: Experiment) -> PyTree | None:
  """Where a mesh wants the parameters; None: they start from one device."""
  if experiment.parallel.lift != "meshed":
    return None
  mesh = parallel.make_mesh(experiment.parallel, learner_devices(experiment))
  return parallel.param_shardings(mesh, experiment.decoder)


def restore(
  experiment: Experiment,
  num_seeds: int,
  directory: str | os.PathLike,
  *,
  step: int | None = None,
) -> tuple[int, Policy]:
  """Reads the policies of a checkpoint, or raises a `CheckpointError`."""
  policy = Policy(experiment, num_seeds)
  folder = pathlib.Path(directory) / "checkpoints"
  store = checkpoint.Checkpointer(folder, reads=True)
  with contextlib.closing(store):
    return policy.restore(store, step).step, policy


def evaluate(policy: Policy) -> Results:
  """Evaluates policies, `greedy` and `sampled`."""
  kind = kind_of(policy.made)
  with kind.open_workers() as workers:
    evaluator = kind.Evaluator(policy, workers)
    return {mode: evaluator.run(mode) for mode in evaluator.modes}
