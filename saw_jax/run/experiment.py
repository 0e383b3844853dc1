"""All that a run is made of, past the border where configs end."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from saw_jax import algorithms
from saw_jax.models import lora as lora_lib
from saw_jax.models.config import DecoderConfig
from saw_jax.rollout.sampling import SamplingConfig
from saw_jax.run import (
  agents,
  checkpoint,
  episode_evaluation,
  evaluation,
  labelling,
  rollouts,
)
from saw_jax.settings import constant
from saw_jax.tasks.base import Task
from saw_jax.tasks.environments import AgentTask
from saw_jax.tasks.workers.environment_pool import EnvironmentPool
from saw_jax.tasks.workers.grading import Grader
from saw_jax.tokenizer import Tokenizer
from saw_jax.training import optimizer as optimizer_lib
from saw_jax.training import parallel
from saw_jax.training import state as state_lib
from saw_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class LoopConfig:
  """Sizes of a run."""

  num_steps: int = 100
  prompts_per_step: int = 16  # P
  group_size: int = 8  # G
  num_minibatches: int = 1  # updates per rollout
  num_microbatches: int = 1  # parts of an update that run one after the other
  chunk_size: int = 1024  # tokens whose logits exist at one time
  pack_length: int = 0  # tokens of a packed row; 0: rows are not packed
  checkpoint_interval: int = 25  # steps; 0: only at the end
  skip_nonfinite: bool = False  # go on after an update that is not finite
  writers: tuple[str, ...] = ()  # beside the files: tensorboard, wandb


@dataclasses.dataclass(frozen=True)
class GradingConfig:
  """How rewards are computed; see `tasks.grading`."""

  num_workers: int = 2
  limit_s: float = 5.0
  crash_tolerance: float = constant(0.1)


@dataclasses.dataclass(frozen=True)
class AsyncConfig:
  """Whether, and how far, responses are sampled ahead of the updates.

  With `partial_tokens`, a response is sampled in parts of so many tokens, and
  one that is unfinished goes on with the newest weights.

  A loss that reads the sampler's log-probs gets them whatever
  `carry_log_probs` says; without it, a loss that does not, learns from tokens
  and rewards alone.
  """

  protocol: str = "none"  # none, fixed_lag, max_lag or quota
  lag: int = 0  # of fixed_lag, in optimizer steps; of max_lag, in versions
  # Of quota: share of a window that is started ahead.
  threshold: float = constant(0.5)
  require: int = constant(4)  # of quota: optimizer steps of a learner batch
  # Of quota: learner batches between two publications.
  trigger: int = constant(4)
  actors: int = 0  # 0: sample between the updates, as fast as is allowed
  actor_kind: str = "thread"  # or "process", each with its own JAX on the CPU
  # The last devices, which the learner leaves alone.
  actor_devices: int = constant(0)
  max_deaths: int = constant(3)  # actors that are restarted in a run
  # 0: a response is sampled whole; else in parts.
  partial_tokens: int = constant(0)
  dynamic_sampling: bool = False  # replace groups whose rewards are all equal
  # Groups filtered per group wanted, then they stay.
  max_attempts: int = constant(10)
  carry_log_probs: bool = constant(True)  # the sampler's, also for reports


class Experiment(NamedTuple):
  """All that a run is made of, past the border where configs end."""

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


def start_state(
  experiment: Experiment, num_seeds: int
) -> tuple[optax.GradientTransformation, parallel.Lift, Any]:
  """Makes the state of all seeds before the first step.

  Args:
    experiment: what is trained.
    num_seeds: `N`.

  Returns:
    The optimizer, the lift, and the state where the lift keeps it. Its
    parameters are the policy's, or adapters if the experiment has those.
  """
  loop, lora = experiment.loop, experiment.lora
  optimizer = optimizer_lib.make_optimizer(
    experiment.optimizer, loop.num_steps * loop.num_minibatches
  )
  lift = parallel.make_lift(
    experiment.parallel,
    experiment.decoder,
    optimizer,
    num_seeds=num_seeds,
    lora=lora if lora.rank else None,
    devices=_learner_devices(experiment),
  )
  params = experiment.params
  if lora.rank:
    params = lora_lib.init_adapters(params, lora, experiment.decoder)
  initial = state_lib.create_state(
    params,
    optimizer,
    num_components=len(experiment.task.components),
  )
  return (
    optimizer,
    lift,
    lift.place(state_lib.stack_states([initial] * num_seeds)),
  )


def place_base(
  experiment: Experiment, lift: parallel.Lift, num_seeds: int
) -> PyTree | None:
  """Puts the model that adapters sit on where the lift keeps parameters.

  Args:
    experiment: what is trained.
    lift: how arrays are spread.
    num_seeds: `N`.

  Returns:
    The parameters that the experiment starts from, one copy a seed; none
    without adapters.
  """
  if not experiment.lora.rank:
    return None
  return lift.place_params(
    state_lib.stack_states([experiment.params] * num_seeds)
  )


def make_merge(
  experiment: Experiment, lift: parallel.Lift
) -> Callable[[PyTree, PyTree], PyTree]:
  """Makes what gives a state's parameters the form that the decoder takes.

  Args:
    experiment: what is trained.
    lift: how arrays are spread.

  Returns:
    A function `(base, params) -> params`; without adapters it gives back the
    parameters, and else those of the base with the adapters merged into them.
  """
  if not experiment.lora.rank:
    return lambda base, params: params
  return lift.wrap(
    functools.partial(lora_lib.merge, config=experiment.lora),
    (parallel.STATE, parallel.STATE),
    (parallel.STATE,),
  )


def param_shardings(experiment: Experiment) -> PyTree | None:
  """Says where the parameters are wanted before there are any.

  Args:
    experiment: all but its parameters.

  Returns:
    A tree of shardings over the mesh that the experiment's lift will use; none
    if its lift starts from one device.

  Raises:
    ValueError: the mesh does not fit the devices.
  """
  if experiment.parallel.lift != "meshed":
    return None
  mesh = parallel.make_mesh(experiment.parallel, _learner_devices(experiment))
  return parallel.param_shardings(mesh, experiment.decoder)


def _learner_devices(experiment: Experiment) -> list[jax.Device]:
  devices = jax.devices()
  return devices[: len(devices) - experiment.asynchronous.actor_devices]


def open_workers(experiment: Experiment) -> Grader | EnvironmentPool:
  """Starts the processes that score answers, or play episodes.

  Args:
    experiment: its task and its `grading`.

  Returns:
    A context manager that ends them.

  Raises:
    RewardError: a worker cannot load the task.
  """
  options = dataclasses.asdict(experiment.grading)
  if isinstance(experiment.task, AgentTask):
    return EnvironmentPool(
      experiment.task,
      max_chars=experiment.episodes.max_observation_chars,
      **options,
    )
  return Grader(experiment.task, **options)


def make_evaluator(
  experiment: Experiment, lift: parallel.Lift, encoder: rollouts.Encoder
) -> evaluation.Evaluator | episode_evaluation.EpisodeEvaluator:
  """Makes the evaluation of an experiment.

  Args:
    experiment: what is evaluated.
    lift: how arrays are spread.
    encoder: of the prompts.

  Returns:
    The evaluator.
  """

  def make_sampler(sampling, group_size):
    return rollouts.make_generate(
      lift,
      experiment.decoder,
      experiment.rollout,
      experiment.tokenizer,
      sampling=sampling,
      group_size=group_size,
    )

  if isinstance(experiment.task, AgentTask):
    return episode_evaluation.EpisodeEvaluator(
      experiment.task,
      experiment.tokenizer,
      experiment.evaluation,
      experiment.episodes,
      experiment.rollout,
      lift,
      experiment.decoder,
      make_sampler,
    )
  return evaluation.Evaluator(
    experiment.task,
    experiment.tokenizer,
    encoder,
    experiment.evaluation,
    make_sampler,
  )


def restore(
  experiment: Experiment,
  num_seeds: int,
  directory: str | os.PathLike,
  *,
  step: int | None = None,
) -> tuple[parallel.Lift, checkpoint.Restored]:
  """Reads a checkpoint of a run.

  Args:
    experiment: as the run was made.
    num_seeds: seeds of the run, `N`.
    directory: of the run.
    step: which checkpoint; the latest by default.

  Returns:
    The lift, and what the checkpoint held. Adapters have been merged: its
    parameters are whole policies.

  Raises:
    CheckpointError: it is absent, damaged or of another shape, or its adapters
      are of another model.
  """
  _, lift, state = start_state(experiment, num_seeds)
  store = checkpoint.Checkpointer(pathlib.Path(directory) / "checkpoints")
  try:
    found = store.restore(state, step=step)
  finally:
    store.close()
  check_base(found.host, base_digest(experiment))
  params = make_merge(experiment, lift)(
    place_base(experiment, lift, num_seeds), found.state.params
  )
  return lift, found._replace(state=found.state.replace(params=params))


def base_digest(experiment: Experiment) -> str | None:
  """Names the model that adapters sit on by what is in it.

  Args:
    experiment: what is trained.

  Returns:
    A digest of all parameters; none without adapters.
  """
  if not experiment.lora.rank:
    return None
  return checkpoint.digest(experiment.params)


def check_base(host: Mapping[str, Any], digest: str | None) -> None:
  """Refuses adapters that were trained on another model.

  Args:
    host: what the checkpoint says beside its arrays.
    digest: from `base_digest`.

  Raises:
    CheckpointError: the checkpoint's is another.
  """
  if host.get("base") != digest:
    raise checkpoint.CheckpointError(
      "the checkpoint's adapters were trained on another model than the one "
      "that this run starts from: give it the model and the warm start that "
      "the run began with"
    )


def evaluate_checkpoint(
  experiment: Experiment,
  num_seeds: int,
  directory: str | os.PathLike,
  *,
  step: int | None = None,
) -> tuple[int, dict[str, dict[str, np.ndarray]]]:
  """Evaluates the policies in a checkpoint.

  Args:
    experiment: as the run was made.
    num_seeds: seeds of the run, `N`.
    directory: of the run.
    step: which checkpoint; the latest by default.

  Returns:
    The step, and for `greedy` and `sampled` what `Evaluator.run` returns.

  Raises:
    CheckpointError: it is absent, damaged or of another shape.
  """
  lift, found = restore(experiment, num_seeds, directory, step=step)
  return found.step, _evaluate(experiment, lift, found.state.params, num_seeds)


def play_checkpoint(
  experiment: Experiment,
  num_seeds: int,
  directory: str | os.PathLike,
  *,
  mode: str = "sampled",
  step: int | None = None,
) -> tuple[int, agents.Episodes]:
  """Plays held-out worlds with the policies in a checkpoint.

  Args:
    experiment: as the run was made; its task is one of episodes.
    num_seeds: seeds of the run, `N`.
    directory: of the run.
    mode: `greedy` or `sampled`.
    step: which checkpoint; the latest by default.

  Returns:
    The step, and the episodes of all seeds, in arrays and in words.

  Raises:
    ValueError: the task has no episodes.
    CheckpointError: it is absent, damaged or of another shape.
  """
  if not isinstance(experiment.task, AgentTask):
    raise ValueError(
      f"task {experiment.task.name!r} has single answers, and only episodes "
      "can be played"
    )
  lift, found = restore(experiment, num_seeds, directory, step=step)
  encoder = rollouts.Encoder(experiment.tokenizer, experiment.rollout)
  evaluator = make_evaluator(experiment, lift, encoder)
  with open_workers(experiment) as pool:
    played = evaluator.play(mode, found.state.params, pool, num_seeds=num_seeds)
  return found.step, played


def evaluate_start(
  experiment: Experiment, num_seeds: int
) -> dict[str, dict[str, np.ndarray]]:
  """Evaluates the policy that every seed starts from.

  Args:
    experiment: as the run was made.
    num_seeds: seeds of the run, `N`.

  Returns:
    For `greedy` and `sampled` what `Evaluator.run` returns.
  """
  _, lift, state = start_state(experiment, num_seeds)
  return _evaluate(experiment, lift, state.params, num_seeds)


def _evaluate(
  experiment: Experiment, lift: parallel.Lift, params: PyTree, num_seeds: int
) -> dict[str, dict[str, np.ndarray]]:
  encoder = rollouts.Encoder(experiment.tokenizer, experiment.rollout)
  evaluator = make_evaluator(experiment, lift, encoder)
  with open_workers(experiment) as grader:
    return {
      mode: evaluator.run(mode, params, grader, num_seeds=num_seeds)
      for mode in evaluator.modes
    }
