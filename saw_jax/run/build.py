"""The border: a ConfigDict comes in, frozen dataclasses go out."""

import dataclasses
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax
import ml_collections
import numpy as np

from saw_jax import algorithms
from saw_jax import tokenizer as tokenizer_lib
from saw_jax.labels import care
from saw_jax.models import decoder, lora
from saw_jax.models.config import DecoderConfig
from saw_jax.models.hub import pretrained
from saw_jax.models.hub import weights as hub_weights
from saw_jax.rollout.sampling import SamplingConfig
from saw_jax.run import (
  agents,
  async_loop,
  benchmarks,
  checkpoint,
  evaluation,
  labelling,
  observations,
  rollouts,
  session,
  sync_loop,
  warm_start,
)
from saw_jax.run import config as base
from saw_jax.run import experiment as experiment_lib
from saw_jax.tasks import environments
from saw_jax.tasks.base import nearest
from saw_jax.training import hosts, optimizer, parallel

CACHE = pathlib.Path(__file__).resolve().parents[2] / ".cache"
T = TypeVar("T")
LOG = logging.getLogger(__name__)
# Keys of config.model that say how a decoder is computed, not what it is.
COMPUTED = ("scan_layers", "remat", "dtype", "param_dtype")


def build(config: ml_collections.ConfigDict) -> experiment_lib.Experiment:
  """Makes everything that a run needs.

  Trains the warm start if there is one, or reads the pretrained weights.

  Args:
    config: a complete config.

  Returns:
    The experiment.

  Raises:
    KeyError: an unknown name.
    TypeError: an unknown option or key.
    ValueError: values that do not go together, or a damaged checkpoint.
    FileNotFoundError: there is no such checkpoint, or a part is missing.
    ImportError: a library that reads it is missing.
  """
  values = config.to_dict()
  lifts = dict.fromkeys(parallel.LIFTS)
  algorithms.lookup(lifts, values["parallel"]["lift"], "lift")
  task = algorithms.make_task(values["task"]["name"], values["task"]["options"])
  rollout = section(rollouts.RolloutConfig, values["rollout"])
  source = None
  if values["checkpoint"]:
    source = open_checkpoint(config, rollout)
    tokenizer = make_tokenizer(config, source)
    decoder_config = pretrained_decoder(values["model"], source)
  else:
    tokenizer = algorithms.make_tokenizer(values["tokenizer"]["name"])
    decoder_config = section(
      DecoderConfig, values["model"], vocab_size=tokenizer.vocab_size
    )
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
  method = algorithms.make_method(make_algorithm(values["algorithm"]), minima)
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
    labels=section(
      labelling.LabelConfig,
      {
        **values["labels"],
        "probe": section(care.CareSettings, values["labels"]["probe"]),
      },
    ),
    lora=section(lora.LoraConfig, values["lora"]),
  )
  lora.check_config(experiment.lora, decoder_config)
  check_task(experiment)
  check_processes(experiment, config.warm_start.num_steps)
  if experiment.asynchronous.protocol != "none":
    async_loop.check_config(experiment.asynchronous)
    async_loop.make_protocol(
      experiment.asynchronous, experiment.loop.prompts_per_step
    )
  benchmarks.check(
    task,
    rollouts.Encoder(tokenizer, rollout),
    experiment.evaluation.benchmarks,
  )
  # Last, since it can take minutes: all that is wrong has been said by now.
  return experiment._replace(params=make_params(config, experiment, source))


def make_algorithm(values: Mapping[str, Any]) -> algorithms.AlgorithmConfig:
  """Types the section of a config that names a method.

  Args:
    values: `config.algorithm` as a dictionary.

  Returns:
    The names and their options; also what `integrations.hosted` takes.

  Raises:
    TypeError: an unknown key.
  """
  return section(
    algorithms.AlgorithmConfig,
    {
      **values,
      "kl": section(algorithms.KLConfig, values["kl"]),
      "world_model": section(
        algorithms.WorldModelConfig, values["world_model"]
      ),
    },
  )


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
  if is_agent and experiment.rollout.stops:
    raise ValueError(
      f"task {experiment.task.name!r} has episodes, and rollout.stops ends "
      "single answers: an action ends with the tokenizer's end token"
    )
  check_length_groups(experiment, is_agent)
  labels = experiment.labels.method
  if labels != "truth" and is_agent:
    raise ValueError(
      f"labels.method is {labels!r}, and task {experiment.task.name!r} has "
      "episodes: labels are bought for single answers"
    )
  if labels != "truth" and experiment.asynchronous.dynamic_sampling:
    raise ValueError(
      f"labels.method is {labels!r}, and asynchronous.dynamic_sampling drops "
      "groups by their rewards: those are known when a group is learned from, "
      "so one of the two has to go"
    )
  has_world = experiment.method.world is not None
  if has_world and not is_agent:
    if not isinstance(experiment.task, observations.ObservedTask):
      raise ValueError(
        f"task {experiment.task.name!r} does not say what the world answers "
        "to a response, so there is nothing for algorithm.world_model.loss to "
        "predict: it has to be 'none'"
      )
    pack_length = experiment.loop.pack_length
    longest = (
      experiment.rollout.max_prompt_tokens
      + experiment.rollout.max_new_tokens
      + len(agents.glue_of(experiment.tokenizer))
      + experiment.episodes.max_observation_tokens
    )
    if 0 < pack_length < longest:
      raise ValueError(
        f"loop.pack_length is {pack_length}, but a prompt, its response and "
        f"what is observed may have {longest} tokens: say at least that, or 0 "
        "to not pack"
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


def check_length_groups(
  experiment: experiment_lib.Experiment, is_agent: bool
) -> None:
  """Refuses parts that a step's prompts cannot be sampled in.

  Args:
    experiment: without parameters.
    is_agent: its task has episodes.

  Raises:
    ValueError: says which, and why.
  """
  count = experiment.rollout.length_groups
  prompts = experiment.loop.prompts_per_step
  if count == 1:
    return
  if is_agent:
    raise ValueError(
      f"rollout.length_groups is {count}, and task {experiment.task.name!r} "
      "has episodes, whose prompts are sorted by length anyway: it must be 1"
    )
  if prompts % count:
    raise ValueError(
      f"rollout.length_groups is {count}, and does not divide the {prompts} "
      "prompts of a step (loop.prompts_per_step)"
    )


def check_processes(
  experiment: experiment_lib.Experiment, warm_steps: int
) -> None:
  """Refuses what several processes cannot do together.

  Args:
    experiment: without parameters.
    warm_steps: of a supervised start, if there is no checkpoint.

  Raises:
    ValueError: says which, and why.
  """
  if jax.process_count() == 1:
    return
  lift = experiment.parallel.lift
  for is_there, what in (
    (lift != "meshed", f"parallel.lift={lift!r}, which is not 'meshed'"),
    (experiment.labels.method != "truth", "labels.method other than 'truth'"),
    (experiment.asynchronous.protocol != "none", "asynchronous.protocol"),
    (experiment.method.per_step, "episodes"),
    (experiment.method.world is not None, "algorithm.world_model"),
    (
      warm_steps,
      "warm_start: train it in one process, export it, and name it "
      "with config.checkpoint (and warm_start.num_steps=0)",
    ),
  ):
    if is_there:
      raise ValueError(f"several processes cannot do this together: {what}")


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
  hosts.wait_for_all()
  asynchronous = experiment.asynchronous.protocol != "none"
  loop = async_loop if asynchronous else sync_loop
  return loop.run(
    experiment, seeds, directory=directory, resume_step=resume_step
  )


def open_checkpoint(
  config: ml_collections.ConfigDict, rollout: rollouts.RolloutConfig
) -> pretrained.Pretrained:
  """Reads and checks the headers of the pretrained model that a config names.

  Args:
    config: its `checkpoint` is read.
    rollout: how long sequences get.

  Returns:
    The model, without its weights.

  Raises:
    FileNotFoundError: it is not there, or a part of it is missing.
    ValueError: it is damaged, or of an unknown kind.
    ImportError: a library that reads it is missing.
  """
  try:
    path = algorithms.find_checkpoint(config.checkpoint)
  except FileNotFoundError as error:
    raise FileNotFoundError(f"--config.checkpoint: {error}") from error
  longest = rollout.max_prompt_tokens + rollout.max_new_tokens
  source = pretrained.open_checkpoint(path, max_length=longest)
  LOG.info(
    "%s: %s, %.0f M parameters",
    path,
    source.document["architectures"][0],
    hub_weights.count_parameters(source.config) / 1e6,
  )
  made_for = source.document.get("max_position_embeddings")
  if made_for and longest > made_for:
    LOG.warning(
      "prompts and answers are up to %d tokens; %s was made for %d",
      longest,
      source.path,
      made_for,
    )
  return source


def make_tokenizer(
  config: ml_collections.ConfigDict, source: pretrained.Pretrained
) -> tokenizer_lib.Tokenizer:
  """Makes the tokenizer of a pretrained model.

  Args:
    config: its `tokenizer.name` is read: a path is taken, and a name of one of
      our own short vocabularies stands for the model's tokenizer.
    source: the model.

  Returns:
    The tokenizer.

  Raises:
    ValueError: it has more ids than the model.
  """
  name = config.tokenizer.name
  if name in algorithms.TOKENIZERS:
    name = str(source.path)
  tokenizer = algorithms.make_tokenizer(name)
  if tokenizer.vocab_size > source.config.vocab_size:
    raise ValueError(
      f"{name}: the tokenizer has {tokenizer.vocab_size} ids; {source.path} "
      f"has {source.config.vocab_size}"
    )
  return tokenizer


def pretrained_decoder(
  values: Mapping[str, Any], source: pretrained.Pretrained
) -> DecoderConfig:
  """Joins what a pretrained model is with how the config has it computed.

  Args:
    values: the section `model` of the config.
    source: the model.

  Returns:
    The decoder.

  Raises:
    ValueError: the config gives a size of its own that is not the model's.
  """
  how = {name: values[name] for name in (*COMPUTED, "value_head")}
  defaults = base.get_config().model
  for name, value in values.items():
    theirs = getattr(source.config, name)
    # The file of a run holds lists.
    value = tuple(value) if isinstance(value, list) else value
    if name not in how and value not in (defaults[name], theirs):
      raise ValueError(
        f"config.model.{name} = {value!r}, and {source.path} has {theirs!r}: "
        "leave it out, sizes come with the checkpoint"
      )
  return dataclasses.replace(source.config, **how)


def make_params(
  config: ml_collections.ConfigDict,
  experiment: experiment_lib.Experiment,
  source: pretrained.Pretrained | None = None,
) -> Any:
  """Makes the parameters that every seed starts from.

  Args:
    config: its `warm_start` is read.
    experiment: the rest.
    source: the pretrained model to load; by default a warm start makes them.

  Returns:
    The parameters. A value head is added afterwards, so that all rows of a
    table share one start.
  """
  headless = dataclasses.replace(experiment.decoder, value_head=False)
  if source is None:
    params = _warm_params(config, experiment._replace(decoder=headless))
  else:
    params = source.load(
      headless,
      experiment_lib.param_shardings(experiment._replace(decoder=headless)),
    )
  if experiment.decoder.value_head:
    params = decoder.add_value_head(params, experiment.decoder)
  return params


def _warm_params(
  config: ml_collections.ConfigDict, experiment: experiment_lib.Experiment
) -> Any:
  """Random parameters, after a supervised start if the config has one."""
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
  batch = _demonstrations(experiment, warm, options)
  return warm_start.warm_start(
    experiment.decoder, warm, batch, cache=CACHE / "warm_start"
  )


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


def checkpoint_step(workdir: str | os.PathLike, word: str) -> int | None:
  """Reads which checkpoint of a run is meant.

  Args:
    workdir: the run directory.
    word: `last`, `best`, or the number of a step.

  Returns:
    The step; none for the last one.

  Raises:
    ValueError: another word.
  """
  if word == "last":
    return None
  if word == "best":
    store = checkpoint.Checkpointer(pathlib.Path(workdir) / "checkpoints")
    step = store.best_step
    store.close()
    return step
  if word.isdigit():
    return int(word)
  raise ValueError(f"--checkpoint is last, best or a step, not {word!r}")


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
