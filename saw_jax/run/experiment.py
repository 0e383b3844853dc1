"""All that a run is made of, and what its kind of task needs."""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from saw_jax import algorithms
from saw_jax.models import lora as lora_lib
from saw_jax.models.config import DecoderConfig
from saw_jax.rollout.sampling import SamplingConfig
from saw_jax.run import (
  agents,
  answers,
  checkpoint,
  episode_evaluation,
  episode_source,
  evaluation,
  groups,
  labelling,
  observations,
  rollouts,
  warm_start,
)
from saw_jax.run.groups import AsyncConfig
from saw_jax.run.learner import Learner, LoopConfig
from saw_jax.run.policy import Policy
from saw_jax.run.session import Session
from saw_jax.settings import constant
from saw_jax.tasks.base import Task
from saw_jax.tasks.environments import AgentTask
from saw_jax.tasks.workers.environment_pool import EnvironmentPool
from saw_jax.tasks.workers.grading import Grader
from saw_jax.tokenizer import Tokenizer
from saw_jax.training import optimizer as optimizer_lib
from saw_jax.training import parallel
from saw_jax.training.batch import TrainBatch
from saw_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class GradingConfig:
  """How rewards are computed; see `tasks.workers.grading`."""

  num_workers: int = 2  # 0: in this process, without a time limit
  limit_s: float = 5.0  # per response, or step of an episode
  crash_tolerance: float = constant(0.1)  # share of a step that may crash


class Experiment(NamedTuple):
  """All that a run is made of: the record that `build.build` returns."""

  task: Task | AgentTask
  tokenizer: Tokenizer
  decoder: DecoderConfig
  params: PyTree  # where every seed starts; also the KL reference
  method: algorithms.Method
  loop: LoopConfig
  rollout: rollouts.RolloutConfig
  sampling: SamplingConfig
  optimizer: optimizer_lib.OptimizerConfig
  parallel: parallel.ParallelConfig
  evaluation: evaluation.EvaluationConfig
  grading: GradingConfig
  asynchronous: AsyncConfig = AsyncConfig()
  episodes: agents.EpisodeConfig = agents.EpisodeConfig()
  labels: labelling.LabelConfig = labelling.LabelConfig()
  lora: lora_lib.LoraConfig = lora_lib.LoraConfig()


class AnswerRun:
  """What a run needs whose task has single answers."""

  unit, turns = "responses", 1

  def __init__(self, experiment: Experiment):
    self._made = experiment
    self.encoder = rollouts.Encoder(experiment.tokenizer, experiment.rollout)

  def check_benchmark(self, split: str) -> int:
    """Reads a whole split, and returns its size."""
    examples = self._made.task.examples(split)
    for index in range(len(examples)):
      self.encoder.tokens(examples[index])
    return len(examples)

  def open_workers(self) -> Grader | EnvironmentPool:
    """Starts the processes that score answers, or play episodes."""
    return Grader(self._made.task, **dataclasses.asdict(self._made.grading))

  def make_evaluator(self, policy: Policy) -> evaluation.BaseEvaluator:
    """Makes the evaluation on held-out examples, or in held-out worlds."""
    task, config = self._made.task, self._made.evaluation
    return evaluation.Evaluator(task, self.encoder, config, policy)

  def make_source(
    self,
    learner: Learner,
    session: Session,
    grader: Grader,
    stack: contextlib.ExitStack,
    seeds: Sequence[int],
    directory: pathlib.Path,
  ) -> answers.Answers | episode_source.Episodes:
    """Makes the source, as it was when the run was saved."""
    made, loop, encoder = self._made, self._made.loop, self.encoder
    policy, task, sampling = learner.policy, made.task, made.sampling
    settings = encoder.settings(sampling, loop.group_size)
    labels = labelling.make_labeller(
      made.labels,
      labelling.Scorer(task, made.tokenizer, grader, made.rollout.stops),
      seeds=seeds,
      prompts_per_step=loop.prompts_per_step,
      group_size=loop.group_size,
      width=made.decoder.width,
      directory=directory,
      stop=lambda: session.interrupt.requested,
      verify=answers.make_verifier(
        policy, task, encoder, sampling, made.labels, seeds, loop.group_size
      ),
    )
    labels.restore(session.step, session.host, session.arrays)
    world, heat = made.method.world, sampling.temperature
    if world is not None:
      world = observations.Appender(
        world, policy, task, encoder, made.episodes, loop, seeds, heat
      )
    examples = task.examples("train")
    protocol = groups.make_protocol(made.asynchronous, loop.prompts_per_step)
    if protocol is None:
      generate = rollouts.make_generate(policy.lift, policy.decoder, settings)
      draws = answers.Fresh(generate, encoder, learner, examples, loop, seeds)
      return answers.Answers(draws, labels, learner, world)
    draws = groups.Queue(
      made.asynchronous,
      protocol,
      learner,
      labels,
      encoder,
      settings,
      examples,
      seeds,
      needs_log_probs=made.method.needs_behave,
    )
    draws.restore(session.step, session.host, session.arrays)
    draws.start_actors(stack)
    return answers.Answers(draws, labels, learner, world)

  def demonstrations(
    self, count: int, seed: int, options: Mapping[str, Any]
  ) -> TrainBatch:
    """Lays out what a supervised start imitates."""
    encode, end = self._made.tokenizer.encode, self._made.tokenizer.eos_ids[0]
    found = self._made.task.demonstrations(count, seed=seed, **options)
    return warm_start.pack_demonstrations(
      [self.encoder.tokens(example) for example, _ in found],
      [[*encode(completion), end] for _, completion in found],
    )

  def play(self, policy: Policy, mode: str) -> agents.Episodes:
    """Plays held-out worlds, `greedy` or `sampled`; answers are no episodes."""
    raise ValueError(
      f"task {self._made.task.name!r} has single answers, and only episodes "
      "can be played"
    )


class EpisodeRun(AnswerRun):
  """What a run needs whose task has episodes."""

  def __init__(self, experiment: Experiment):
    super().__init__(experiment)
    self.turns = experiment.task.max_steps
    self.unit = f"episodes of at most {self.turns} actions"

  def check_benchmark(self, split: str) -> int:
    return self._made.task.num_episodes(split)

  def open_workers(self) -> EnvironmentPool:
    grading = dataclasses.asdict(self._made.grading)
    limit = self._made.episodes.max_observation_chars
    return EnvironmentPool(self._made.task, max_chars=limit, **grading)

  def make_evaluator(
    self, policy: Policy
  ) -> episode_evaluation.EpisodeEvaluator:
    made = self._made
    return episode_evaluation.EpisodeEvaluator(
      made.task, self.encoder, made.evaluation, made.episodes, policy
    )

  def make_source(
    self, learner, session, pool, stack, seeds, directory
  ) -> episode_source.Episodes:
    del session, stack, directory  # It is a function of the state.
    made = self._made
    return episode_source.Episodes(
      learner,
      made.method,
      made.task,
      self.encoder,
      made.sampling,
      pool,
      made.episodes,
      made.loop,
      seeds,
    )

  def demonstrations(
    self, count: int, seed: int, options: Mapping[str, Any]
  ) -> TrainBatch:
    task, episodes = self._made.task, self._made.episodes
    found = task.demonstrations(count, seed=seed, **options)
    return episode_evaluation.lay_out(found, task, self.encoder, episodes)

  def play(self, policy: Policy, mode: str) -> agents.Episodes:
    with self.open_workers() as pool:
      return self.make_evaluator(policy).play(mode, policy, pool)


def kind_of(experiment: Experiment) -> AnswerRun:
  """What a run of the experiment's task needs."""
  is_played = isinstance(experiment.task, AgentTask)
  return (EpisodeRun if is_played else AnswerRun)(experiment)


def check_benchmarks(experiment: Experiment) -> None:
  """Says what is wrong with benchmarks before a run, and not at its end."""
  for name in experiment.evaluation.benchmarks:
    if not kind_of(experiment).check_benchmark(name):
      raise ValueError(f"the benchmark {name!r} is empty")


def make_policy(experiment: Experiment, num_seeds: int) -> Policy:
  """Makes the state of all seeds before the first step."""
  loop, lora, decoder = experiment.loop, experiment.lora, experiment.decoder
  optimizer = optimizer_lib.make_optimizer(
    experiment.optimizer, loop.num_steps * loop.num_minibatches
  )
  lift = parallel.make_lift(
    experiment.parallel,
    decoder,
    optimizer,
    num_seeds=num_seeds,
    lora=lora if lora.rank else None,
    devices=_learner_devices(experiment),
  )
  return Policy(
    decoder,
    experiment.params,
    optimizer,
    lift,
    lora=lora,
    num_components=len(experiment.task.components),
    num_seeds=num_seeds,
  )


def param_shardings(experiment: Experiment) -> PyTree | None:
  """Where a mesh wants the parameters; None: they start from one device."""
  if experiment.parallel.lift != "meshed":
    return None
  mesh = parallel.make_mesh(experiment.parallel, _learner_devices(experiment))
  return parallel.param_shardings(mesh, experiment.decoder)


def _learner_devices(experiment: Experiment) -> list[jax.Device]:
  devices = jax.devices()
  return devices[: len(devices) - experiment.asynchronous.actor_devices]


def restore(
  experiment: Experiment,
  num_seeds: int,
  directory: str | os.PathLike,
  *,
  step: int | None = None,
) -> tuple[int, Policy]:
  """Reads the policies of a run's checkpoint, by default of the latest one.

  Raises a `CheckpointError` if it is absent, damaged or of another shape, or if
  its adapters are of another model.
  """
  policy = make_policy(experiment, num_seeds)
  store = checkpoint.Checkpointer(pathlib.Path(directory) / "checkpoints")
  with contextlib.closing(store):
    return policy.restore(store, step).step, policy


def evaluate_checkpoint(
  experiment: Experiment,
  num_seeds: int,
  directory: str | os.PathLike,
  *,
  step: int | None = None,
) -> tuple[int, dict[str, dict[str, np.ndarray]]]:
  """Evaluates what `restore` reads: its step, and as `evaluate_start`."""
  step, policy = restore(experiment, num_seeds, directory, step=step)
  return step, _evaluate(experiment, policy)


def evaluate_start(
  experiment: Experiment, num_seeds: int
) -> dict[str, dict[str, np.ndarray]]:
  """Evaluates the policy that every seed starts from.

  For `greedy` and `sampled` there is what `Evaluator.run` returns.
  """
  return _evaluate(experiment, make_policy(experiment, num_seeds))


def _evaluate(
  experiment: Experiment, policy: Policy
) -> dict[str, dict[str, np.ndarray]]:
  kind = kind_of(experiment)
  evaluator = kind.make_evaluator(policy)
  with kind.open_workers() as workers:
    return {
      mode: evaluator.run(mode, policy, workers) for mode in evaluator.modes
    }


def play_checkpoint(
  experiment: Experiment,
  num_seeds: int,
  directory: str | os.PathLike,
  *,
  mode: str = "sampled",
  step: int | None = None,
) -> tuple[int, agents.Episodes]:
  """Plays held-out worlds with the policies that `restore` reads.

  Returns its step, and the episodes of all seeds, in arrays and in words.
  """
  step, policy = restore(experiment, num_seeds, directory, step=step)
  return step, kind_of(experiment).play(policy, mode)
