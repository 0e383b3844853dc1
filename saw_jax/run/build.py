"""The border: a config comes in, an experiment goes out."""

import dataclasses
import logging
import os
import pathlib
from collections.abc import Iterator

import jax
import ml_collections
import numpy as np

from saw_jax import algorithms, names
from saw_jax.models import decoder, lora
from saw_jax.models.config import DecoderConfig
from saw_jax.models.hub import pretrained
from saw_jax.run import (
  agents,
  checkpoint,
  groups,
  observations,
  registry,
  warm_start,
)
from saw_jax.run import (
  config as config_lib,
)
from saw_jax.run.experiment import (
  check_benchmarks,
  kind_of,
  param_shardings,
)
from saw_jax.run.loop import train as train
from saw_jax.run.sections import Experiment, RunConfig
from saw_jax.tasks import environments
from saw_jax.tokenizer import Tokenizer
from saw_jax.training import parallel
from saw_jax.types import PyTree

LOG = logging.getLogger(__name__)
# Fields of a decoder that say how it is computed, not what it is.
COMPUTED = ("scan_layers", "remat", "dtype", "param_dtype")


def build(config: ml_collections.ConfigDict | RunConfig) -> Experiment:
  """Makes everything that a run needs.

  Trains the warm start if there is one, or reads the pretrained weights. Before
  that, which can take minutes, all that is wrong with the config has been said:
  as a KeyError (an unknown name), a TypeError (an unknown key or option, a
  wrong type), a ValueError (values that do not go together, a damaged
  checkpoint), a FileNotFoundError or an ImportError (a library is missing).
  """
  run = config if isinstance(config, RunConfig) else config_lib.typed(config)
  names.lookup(dict.fromkeys(parallel.LIFTS), run.parallel.lift, "lift")
  task = registry.make_task(run.task.name, run.task.options)
  minima = np.array([c.minimum for c in task.components], np.float32)
  method = algorithms.make_method(run.algorithm, minima)
  source, tokenizer, model = _make_model(run)
  experiment = Experiment(
    task=task,
    tokenizer=tokenizer,
    decoder=dataclasses.replace(model, value_head=method.reads_values),
    params=None,
    method=method,
    loop=run.loop,
    rollout=run.rollout,
    sampling=run.sampling,
    optimizer=run.optimizer,
    parallel=run.parallel,
    evaluation=run.evaluation,
    grading=run.grading,
    asynchronous=run.asynchronous,
    episodes=run.episodes,
    labels=run.labels,
    lora=run.lora,
  )
  for is_wrong, message in _conflicts(experiment, run):
    if is_wrong:
      raise ValueError(message)
  lora.check_config(run.lora, experiment.decoder)
  groups.make_protocol(run.asynchronous, run.loop.prompts_per_step)
  check_benchmarks(experiment)
  return experiment._replace(params=make_params(run, experiment, source))


def _conflicts(
  experiment: Experiment, run: RunConfig
) -> Iterator[tuple[bool, str]]:
  """What does not go together: whether it is so, and the sentence."""
  task, method, loop = experiment.task, experiment.method, run.loop
  rollout, labels, ahead = run.rollout, run.labels, run.asynchronous
  is_agent = isinstance(task, environments.AgentTask)
  longest = rollout.max_prompt_tokens + rollout.max_new_tokens
  too_short = f"loop.pack_length is {loop.pack_length}, but"
  yield (
    0 < loop.pack_length < longest,
    f"{too_short} a prompt and its response may have {longest} tokens "
    "(rollout.max_prompt_tokens and rollout.max_new_tokens together): say at "
    "least that, or 0 to not pack",
  )
  table = algorithms.STEP_ADVANTAGES if is_agent else algorithms.ADVANTAGES
  kind = "episodes" if is_agent else "single answers"
  yield (
    is_agent != method.per_step,
    f"task {task.name!r} has {kind}, and the advantage is not one of those: "
    f"{', '.join(sorted(table))}",
  )
  has_episodes = f"task {task.name!r} has episodes"
  count = rollout.length_groups
  yield (
    is_agent and rollout.stops,
    f"{has_episodes}, and rollout.stops ends single answers: an action ends "
    "with the tokenizer's end token",
  )
  yield (
    is_agent and count > 1,
    f"rollout.length_groups is {count}, and {has_episodes}, whose prompts are "
    "sorted by length anyway: it must be 1",
  )
  yield (
    loop.prompts_per_step % count != 0,
    f"rollout.length_groups is {count}, and does not divide the "
    f"{loop.prompts_per_step} prompts of a step (loop.prompts_per_step)",
  )
  by_label = f"labels.method is {labels.method!r}, and"
  yield (
    is_agent and labels.method != "truth",
    f"{by_label} {has_episodes}: labels are bought for single answers",
  )
  yield (
    labels.method != "truth" and ahead.dynamic_sampling,
    f"{by_label} asynchronous.dynamic_sampling drops groups by their rewards: "
    "those are known when a group is learned from, so one of the two has to go",
  )
  if method.world is not None and not is_agent:
    yield (
      not isinstance(task, observations.ObservedTask),
      f"task {task.name!r} does not say what the world answers to a response, "
      "so there is nothing for algorithm.world_model.loss to predict: it has "
      "to be 'none'",
    )
    longest += len(agents.glue_of(experiment.tokenizer))
    longest += run.episodes.max_observation_tokens
    yield (
      0 < loop.pack_length < longest,
      f"{too_short} a prompt, its response and what is observed may have "
      f"{longest} tokens: say at least that, or 0 to not pack",
    )
  yield (
    is_agent and ahead.protocol != "none",
    "episodes are played between the updates: asynchronous.protocol is "
    f"{ahead.protocol!r} and must be 'none'",
  )
  if jax.process_count() == 1:
    return
  for is_there, what in (
    (
      run.parallel.lift != "meshed",
      f"parallel.lift={run.parallel.lift!r}, which is not 'meshed'",
    ),
    (labels.method != "truth", "labels.method other than 'truth'"),
    (ahead.protocol != "none", "asynchronous.protocol"),
    (method.per_step, "episodes"),
    (method.world is not None, "algorithm.world_model"),
    (
      bool(run.warm_start.num_steps),
      "warm_start: train it in one process, export it, and name it with "
      "config.checkpoint (and warm_start.num_steps=0)",
    ),
  ):
    yield is_there, f"several processes cannot do this together: {what}"


def _make_model(
  run: RunConfig,
) -> tuple[pretrained.Pretrained | None, Tokenizer, DecoderConfig]:
  """The checkpoint without its weights, if there is one, and what it says."""
  name = run.tokenizer.name
  if not run.checkpoint:
    tokenizer = registry.make_tokenizer(name)
    return (
      None,
      tokenizer,
      dataclasses.replace(run.model, vocab_size=tokenizer.vocab_size),
    )
  source = open_checkpoint(run)
  # A name of one of our own short vocabularies stands for the model's.
  name = str(source.path) if name in registry.TOKENIZERS else name
  tokenizer = registry.make_tokenizer(name)
  if tokenizer.vocab_size > source.config.vocab_size:
    raise ValueError(
      f"{name}: the tokenizer has {tokenizer.vocab_size} ids; {source.path} "
      f"has {source.config.vocab_size}"
    )
  defaults = RunConfig().model
  for key in config_lib.to_config(defaults):
    value, theirs = getattr(run.model, key), getattr(source.config, key)
    if key not in COMPUTED and value not in (getattr(defaults, key), theirs):
      raise ValueError(
        f"config.model.{key} = {value!r}, and {source.path} has {theirs!r}: "
        "leave it out, sizes come with the checkpoint"
      )
  how = {key: getattr(run.model, key) for key in COMPUTED}
  return source, tokenizer, dataclasses.replace(source.config, **how)


def open_checkpoint(run: RunConfig) -> pretrained.Pretrained:
  try:
    path = registry.find_checkpoint(run.checkpoint)
  except FileNotFoundError as error:
    raise FileNotFoundError(f"--config.checkpoint: {error}") from error
  longest = run.rollout.max_prompt_tokens + run.rollout.max_new_tokens
  source = pretrained.open_checkpoint(path, max_length=longest)
  LOG.info(
    "%s: %s, %.0f M parameters",
    path,
    source.document["architectures"][0],
    sum(x.size for x in jax.tree.leaves(decoder.param_shapes(source.config)))
    / 1e6,
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


def make_params(
  run: RunConfig,
  experiment: Experiment,
  source: pretrained.Pretrained | None = None,
) -> PyTree:
  """Makes the parameters that every seed starts from."""
  headless = dataclasses.replace(experiment.decoder, value_head=False)
  bare = experiment._replace(decoder=headless)
  warm = run.warm_start
  if source is not None:
    params = source.load(headless, param_shardings(bare))
  elif warm.num_steps:
    params = warm_start.warm_start(
      headless,
      warm,
      kind_of(bare).demonstrations(
        warm.num_demonstrations, warm.seed, warm.options
      ),
      cache=cache_folder() / "warm_start",
    )
  else:
    params = decoder.init_params(headless, jax.random.key(warm.seed))
  # Added later, so that all rows of a table share one start.
  if experiment.decoder.value_head:
    params = decoder.add_value_head(params, experiment.decoder)
  return params


def cache_folder() -> pathlib.Path:
  """Of starts that were trained before: the checkout's, else the user's."""
  if not config_lib.IS_INSTALLED:
    return config_lib.FOLDER.parent / ".cache"
  user = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  return pathlib.Path(user) / "saw_jax"


def checkpoint_step(workdir: str | os.PathLike, word: str) -> int | None:
  """The step of `last` (none), `best`, or a number, in a run directory."""
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
