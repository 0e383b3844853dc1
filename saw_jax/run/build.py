"""The border: a config comes in, an experiment goes out."""

import contextlib
import dataclasses
import logging
import os
import pathlib

import jax
import ml_collections
import numpy as np

from saw_jax import algorithms, naming
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
from saw_jax.run import config as config_lib
from saw_jax.run.experiment import (
  AnswerRun,
  EpisodeRun,
  check_benchmarks,
  kind_of,
  param_shardings,
)
from saw_jax.run.loop import train as train
from saw_jax.run.sections import Experiment, RunConfig
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
  experiment, source = outline(run)
  return experiment._replace(params=make_params(run, experiment, source))


def outline(
  run: RunConfig,
) -> tuple[Experiment, pretrained.Pretrained | None]:
  """An experiment without parameters, and the checkpoint that has them."""
  naming.lookup(dict.fromkeys(parallel.LIFTS), run.parallel.lift, "lift")
  task = registry.make_task(run.task.name, run.task.options)
  minima = np.array([c.minimum for c in task.components], np.float32)
  method = algorithms.make_method(run.algorithm, minima)
  source, tokenizer, model = _make_model(run)
  model = dataclasses.replace(model, value_head=method.reads_values)
  made = {"task": task, "tokenizer": tokenizer, "method": method}
  made |= {"decoder": model, "params": None}
  shared = {k: v for k, v in vars(run).items() if k in Experiment._fields}
  experiment = Experiment(**(shared | made))
  for message, is_so in _conflicts(experiment, run).items():
    if is_so:
      raise ValueError(message)
  lora.check_config(run.lora, experiment.decoder)
  groups.make_protocol(run.asynchronous, run.loop.prompts_per_step)
  check_benchmarks(experiment)
  return experiment, source


def _conflicts(made: Experiment, run: RunConfig) -> dict[str, bool]:
  """What does not go together: a sentence each, and whether it is so."""
  rollout, loop = made.rollout, made.loop
  found = CONFLICTS[type(kind_of(made))](made)
  longest = rollout.max_prompt_tokens + rollout.max_new_tokens
  parts = "a prompt and its response"
  if made.method.world is not None and not made.method.per_step:
    longest += len(agents.glue_of(made.tokenizer))
    longest += made.episodes.max_observation_tokens
    parts = "a prompt, its response and what is observed"
  found |= {
    f"rollout.length_groups is {rollout.length_groups}, and does not divide "
    f"the {loop.prompts_per_step} prompts of a step (loop.prompts_per_step)": (
      loop.prompts_per_step % rollout.length_groups > 0
    ),
    f"loop.pack_length is {loop.pack_length}, but {parts} may have {longest} "
    "tokens: say at least that, or 0 to not pack": (
      0 < loop.pack_length < longest
    ),
  }
  if jax.process_count() > 1:
    for what, is_so in {
      "parallel.lift other than 'meshed'": made.parallel.lift != "meshed",
      "labels.method other than 'truth'": made.labels.method != "truth",
      "asynchronous.protocol": made.asynchronous.protocol != "none",
      "episodes": made.method.per_step,
      "algorithm.world_model": made.method.world is not None,
      "warm_start: train it in one process, export it, and name it with "
      "config.checkpoint (and warm_start.num_steps=0)": (
        run.warm_start.num_steps > 0
      ),
    }.items():
      found[f"several processes cannot do this together: {what}"] = is_so
  return found


def _conflicts_of_answers(made: Experiment) -> dict[str, bool]:
  task, method = f"task {made.task.name!r}", made.labels.method
  is_observed = isinstance(made.task, observations.ObservedTask)
  return {
    f"{task} has single answers, and the advantage is not one of those: "
    f"{', '.join(sorted(algorithms.ADVANTAGES))}": made.method.per_step,
    f"labels.method is {method!r}, and asynchronous.dynamic_sampling drops "
    "groups by their rewards, which are known when a group is learned from: "
    "one of the two has to go": (
      method != "truth" and made.asynchronous.dynamic_sampling
    ),
    f"{task} does not say what the world answers to a response: "
    "algorithm.world_model.loss has to be 'none'": (
      made.method.world is not None and not is_observed
    ),
  }


def _conflicts_of_episodes(made: Experiment) -> dict[str, bool]:
  task = f"task {made.task.name!r} has episodes, and"
  count, protocol = made.rollout.length_groups, made.asynchronous.protocol
  return {
    f"{task} the advantage is not one of those: "
    f"{', '.join(sorted(algorithms.STEP_ADVANTAGES))}": (
      not made.method.per_step
    ),
    f"{task} rollout.stops ends single answers": bool(made.rollout.stops),
    f"{task} their prompts are sorted by length anyway: rollout.length_groups "
    f"is {count} and must be 1": count > 1,
    f"{task} labels are bought for single answers: labels.method is "
    f"{made.labels.method!r}": made.labels.method != "truth",
    f"{task} they are played between the updates: asynchronous.protocol is "
    f"{protocol!r} and must be 'none'": protocol != "none",
  }


CONFLICTS = {
  AnswerRun: _conflicts_of_answers,
  EpisodeRun: _conflicts_of_episodes,
}


def _make_model(
  run: RunConfig,
) -> tuple[pretrained.Pretrained | None, Tokenizer, DecoderConfig]:
  """The checkpoint without its weights, if there is one, and what it says."""
  name, model = run.tokenizer.name, run.model
  if not run.checkpoint:
    tokenizer = registry.make_tokenizer(name)
    size = tokenizer.vocab_size
    return None, tokenizer, dataclasses.replace(model, vocab_size=size)
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
    value, theirs = getattr(model, key), getattr(source.config, key)
    if key not in COMPUTED and value not in (getattr(defaults, key), theirs):
      raise ValueError(
        f"config.model.{key} = {value!r}, and {source.path} has {theirs!r}: "
        "leave it out, sizes come with the checkpoint"
      )
  how = {key: getattr(model, key) for key in COMPUTED}
  return source, tokenizer, dataclasses.replace(source.config, **how)


def open_checkpoint(run: RunConfig) -> pretrained.Pretrained:
  try:
    path = registry.find_checkpoint(run.checkpoint)
  except FileNotFoundError as error:
    raise FileNotFoundError(f"--config.checkpoint: {error}") from error
  longest = run.rollout.max_prompt_tokens + run.rollout.max_new_tokens
  source = pretrained.open_checkpoint(path, max_length=longest)
  shapes = jax.tree.leaves(decoder.param_shapes(source.config))
  kind, count = source.document["architectures"][0], sum(x.size for x in shapes)
  LOG.info("%s: %s, %.0f M parameters", path, kind, count / 1e6)
  made_for = source.document.get("max_position_embeddings")
  if made_for and longest > made_for:
    said = "prompts and answers are up to %d tokens; %s was made for %d"
    LOG.warning(said, longest, source.path, made_for)
  return source


def make_params(
  run: RunConfig,
  experiment: Experiment,
  source: pretrained.Pretrained | None = None,
) -> PyTree:
  """Makes the parameters that every seed starts from."""
  headless = dataclasses.replace(experiment.decoder, value_head=False)
  bare, warm = experiment._replace(decoder=headless), run.warm_start
  if source is not None:
    params = source.load(headless, param_shardings(bare))
  elif warm.num_steps:
    shown = kind_of(bare).demonstrations(
      warm.num_demonstrations, warm.seed, warm.options
    )
    cache = cache_folder() / "warm_start"
    params = warm_start.warm_start(headless, warm, shown, cache=cache)
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
    with contextlib.closing(store):
      return store.best_step
  if word.isdigit():
    return int(word)
  raise ValueError(f"--checkpoint is last, best or a step, not {word!r}")
