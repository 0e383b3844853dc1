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
from saw_jax.labels import care
from saw_jax.models import decoder
from saw_jax.models.config import DecoderConfig
from saw_jax.rollout.sampling import SamplingConfig
from saw_jax.tasks.base import nearest
from saw_jax.training import (
  async_loop,
  evaluation,
  labelling,
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
  longest = rollout.max_prompt_tokens + rollout.max_new_tokens
  if loop.pack_length and loop.pack_length < longest:
    raise ValueError(
      f"loop.pack_length is {loop.pack_length}, but a prompt and its response "
      f"may have {longest} tokens (rollout.max_prompt_tokens and "
      "rollout.max_new_tokens together): say at least that, or 0 to not pack"
    )
  minima = np.array([c.minimum for c in task.components], np.float32)
  algorithm = dict(values["algorithm"])
  method = algorithms.make_method(
    section(
      algorithms.AlgorithmConfig,
      {
        **algorithm,
        "kl": section(algorithms.KLConfig, algorithm["kl"]),
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
    labels=section(
      labelling.LabelConfig,
      {
        **values["labels"],
        "probe": section(care.CareSettings, values["labels"]["probe"]),
      },
    ),
  )
  if (
    experiment.labels.method != "truth"
    and experiment.asynchronous.protocol != "none"
  ):
    raise ValueError(
      f"labels.method is {experiment.labels.method!r} and "
      f"asynchronous.protocol {experiment.asynchronous.protocol!r}: labels are "
      "bought in the synchronous loop only, so one of the two has to go"
    )
  if experiment.asynchronous.protocol != "none":
    async_loop.check_config(experiment.asynchronous)
    async_loop.make_protocol(
      experiment.asynchronous, experiment.loop.prompts_per_step
    )
  # Last, since it can take minutes: all that is wrong has been said by now.
  return experiment._replace(params=make_params(config, experiment))


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
  if not warm.num_steps:
    return decoder.init_params(experiment.decoder, jax.random.key(warm.seed))
  demonstrations = experiment.task.demonstrations(
    warm.num_demonstrations, seed=warm.seed, **options
  )
  encoder = rollouts.Encoder(experiment.tokenizer, experiment.rollout)
  end = experiment.tokenizer.eos_ids[0]
  batch = warm_start.pack_demonstrations(
    [encoder.tokens(example) for example, _ in demonstrations],
    [
      [*experiment.tokenizer.encode(completion), end]
      for _, completion in demonstrations
    ],
  )
  return warm_start.warm_start(
    experiment.decoder, warm, batch, cache=CACHE / "warm_start"
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
