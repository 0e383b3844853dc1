"""The border: a ConfigDict comes in, frozen dataclasses go out."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax
import ml_collections
import numpy as np

from saw_jax import algorithms
from saw_jax.models import decoder
from saw_jax.models.config import DecoderConfig
from saw_jax.rollout.sampling import SamplingConfig
from saw_jax.tasks import environments
from saw_jax.tasks.base import nearest
from saw_jax.training import (
  agents,
  async_loop,
  evaluation,
  optimizer,
  parallel,
  rollouts,
  session,
  sync_loop,
  warm_start,
)
from saw_jax.training import experiment as experiment_lib

CACHE = pathlib.Path(__file__).resolve().parent.parent / ".cache"
T = TypeVar("T")


def build(config: ml_collections.ConfigDict) -> experiment_lib.Experiment:
  """Makes everything that a run needs; trains the warm start if there is one.

  Args:
    config: a complete config.

  Returns:
    The experiment.

  Raises:
    KeyError: an unknown name.
    TypeError: an unknown option or key.
    ValueError: values that do not go together.
  """
  values = config.to_dict()
  lifts = dict.fromkeys(parallel.LIFTS)
  algorithms.lookup(lifts, values["parallel"]["lift"], "lift")
  task = algorithms.make_task(values["task"]["name"], values["task"]["options"])
  tokenizer = algorithms.make_tokenizer(values["tokenizer"]["name"])
  decoder_config = section(
    DecoderConfig, values["model"], vocab_size=tokenizer.vocab_size
  )
  rollout = section(rollouts.RolloutConfig, values["rollout"])
  loop = section(
    experiment_lib.LoopConfig,
    {**values["loop"], "writers": tuple(values["loop"]["writers"])},
  )
  minima = np.array([c.minimum for c in task.components], np.float32)
  algorithm = dict(values["algorithm"])
  method = algorithms.make_method(
    section(
      algorithms.AlgorithmConfig,
      {
        **algorithm,
        "kl": section(algorithms.KLConfig, algorithm["kl"]),
        "world_model": section(
          algorithms.WorldModelConfig, algorithm["world_model"]
        ),
      },
    ),
    minima,
  )
  experiment = experiment_lib.Experiment(
    task=task,
    tokenizer=tokenizer,
    decoder=decoder_config,
    params=None,
    method=method,
    loop=loop,
    rollout=rollout,
    sampling=section(SamplingConfig, values["sampling"]),
    optimizer=section(optimizer.OptimizerConfig, values["optimizer"]),
    parallel=section(parallel.ParallelConfig, values["parallel"]),
    evaluation=section(evaluation.EvaluationConfig, values["evaluation"]),
    grading=section(experiment_lib.GradingConfig, values["grading"]),
    asynchronous=section(experiment_lib.AsyncConfig, values["asynchronous"]),
    episodes=section(agents.EpisodeConfig, values["episodes"]),
  )
  check_task(experiment)
  if experiment.asynchronous.protocol != "none":
    async_loop.check_config(experiment.asynchronous)
    async_loop.make_protocol(
      experiment.asynchronous, experiment.loop.prompts_per_step
    )
  # Last, since it can take minutes: all that is wrong has been said by now.
  return experiment._replace(params=make_params(config, experiment))


def check_task(experiment: experiment_lib.Experiment) -> None:
  """Refuses a method that the task cannot have.

  Args:
    experiment: without parameters.

  Raises:
    ValueError: says which, and why.
  """
  is_agent = isinstance(experiment.task, environments.AgentTask)
  if is_agent != experiment.method.per_step:
    names = sorted(
      algorithms.STEP_ADVANTAGES if is_agent else algorithms.ADVANTAGES
    )
    raise ValueError(
      f"task {experiment.task.name!r} has "
      f"{'episodes' if is_agent else 'single answers'}, and the advantage is "
      f"not one of those: {', '.join(names)}"
    )
  if is_agent and experiment.asynchronous.protocol != "none":
    raise ValueError(
      "episodes are played between the updates: asynchronous.protocol is "
      f"{experiment.asynchronous.protocol!r} and must be 'none'"
    )
  if experiment.method.reads_values and not experiment.decoder.value_head:
    raise ValueError(
      "the advantage reads values: set config.model.value_head=True"
    )


def train(
  experiment: experiment_lib.Experiment,
  seeds: Sequence[int],
  *,
  directory: str | os.PathLike,
  resume_step: int | None = None,
) -> session.Result:
  """Runs the loop that an experiment asks for.

  Args:
    experiment: from `build`.
    seeds: of the runs.
    directory: where metrics and checkpoints go.
    resume_step: go on from this checkpoint; the latest by default.

  Returns:
    How the run ended.
  """
  asynchronous = experiment.asynchronous.protocol != "none"
  loop = async_loop if asynchronous else sync_loop
  return loop.run(
    experiment, seeds, directory=directory, resume_step=resume_step
  )


def make_params(
  config: ml_collections.ConfigDict, experiment: experiment_lib.Experiment
) -> Any:
  """Makes the parameters that every seed starts from.

  Args:
    config: its `checkpoint` and `warm_start` are read.
    experiment: the rest.

  Returns:
    The parameters.

  Raises:
    ValueError: a checkpoint is asked for; there is no loader yet.
  """
  if config.checkpoint:
    raise ValueError(
      f"config.checkpoint = {config.checkpoint!r}: this version cannot load "
      "pretrained weights yet; scale=tiny runs without them"
    )
  settings = config.warm_start.to_dict()
  options = settings.pop("options")
  learning_rate = settings.pop("learning_rate")
  warm = section(warm_start.WarmStartConfig, settings)
  warm = dataclasses.replace(
    warm,
    optimizer=dataclasses.replace(warm.optimizer, learning_rate=learning_rate),
  )
  # A value head is added afterwards, so that all rows share one start.
  headless = dataclasses.replace(experiment.decoder, value_head=False)
  if warm.num_steps:
    batch = _demonstrations(experiment, warm, options)
    params = warm_start.warm_start(
      headless, warm, batch, cache=CACHE / "warm_start"
    )
  else:
    params = decoder.init_params(headless, jax.random.key(warm.seed))
  if experiment.decoder.value_head:
    params = decoder.add_value_head(params, experiment.decoder)
  return params


def _demonstrations(
  experiment: experiment_lib.Experiment,
  warm: warm_start.WarmStartConfig,
  options: Mapping[str, Any],
):
  """What a supervised start imitates, laid out as a batch."""
  demonstrations = experiment.task.demonstrations(
    warm.num_demonstrations, seed=warm.seed, **options
  )
  if isinstance(experiment.task, environments.AgentTask):
    return warm_start.pack_demonstrations(
      *agents.encode_transitions(
        demonstrations,
        task=experiment.task,
        tokenizer=experiment.tokenizer,
        config=experiment.episodes,
        rollout=experiment.rollout,
      ),
      glue=agents.glue_of(experiment.tokenizer),
      multiple=8,
    )
  encoder = rollouts.Encoder(experiment.tokenizer, experiment.rollout)
  end = experiment.tokenizer.eos_ids[0]
  return warm_start.pack_demonstrations(
    [encoder.tokens(example) for example, _ in demonstrations],
    [
      [*experiment.tokenizer.encode(completion), end]
      for _, completion in demonstrations
    ],
  )


def section(cls: type[T], values: Mapping[str, Any], **extra: Any) -> T:
  """Spreads a section into its dataclass.

  Args:
    cls: the dataclass.
    values: the section.
    **extra: fields that are not in the config.

  Returns:
    The dataclass.

  Raises:
    TypeError: the section has a key that the dataclass has not.
  """
  known = [field.name for field in dataclasses.fields(cls)]
  for key in values:
    if key not in known:
      raise TypeError(
        f"{cls.__name__} has no field {key!r}: {nearest(key, known)}"
      )
  return cls(**values, **extra)
