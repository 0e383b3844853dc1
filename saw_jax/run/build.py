"""The border: turns a config into an experiment."""

import contextlib
import dataclasses
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from saw_jax import algorithms, naming
from saw_jax.models import decoder
from saw_jax.models.config import DecoderConfig
from saw_jax.models.hub import pretrained
from saw_jax.run import checkpoint, checks, registry, run_directory, warm_start
from saw_jax.run import config as config_lib
from saw_jax.run.experiment import kind_of, param_shardings, restore
from saw_jax.run.loop import train as train
from saw_jax.run.sections import Experiment, RunConfig, TaskConfig
from saw_jax.tasks import panels
from saw_jax.tasks.base import Task
from saw_jax.tasks.environments import AgentTask
from saw_jax.tokenizer import Tokenizer
from saw_jax.training import hosts, parallel, update
from saw_jax.types import PyTree

LOG = logging.getLogger(__name__)
# Fields of a decoder that say how it is computed, not what it computes.
COMPUTED = ("scan_layers", "remat", "attention", "dtype", "param_dtype")


def build(
  config: ml_collections.ConfigDict | RunConfig,
  seeds: Sequence[int] | None = None,
  directory: str | os.PathLike | None = None,
  *,
  task: Task | AgentTask | None = None,
  resume_step: int | None = None,
) -> Experiment:
  """Makes everything that a run needs, with the given task or the config's.

  Trains the warm start if there is one, or reads the pretrained weights. That
  can take minutes, so every mistake in the config is raised before: a KeyError
  (an unknown name), a TypeError (an unknown key or option, a wrong type), a
  ValueError (values that do not go together, a damaged checkpoint), a
  FileNotFoundError or an ImportError (a library is missing).

  With `seeds` the run is to be trained here, and devices, writers and examples
  are checked, too (`checks`). With a `directory` it is to be trained there: a
  RunError says that another run or another process is there; otherwise the
  directory now belongs to this process and has a `run.json`. A CheckpointError
  says that there is no `resume_step`, a RewardError that a worker process
  cannot load the task.
  """
  run = config if isinstance(config, RunConfig) else config_lib.typed(config)
  if directory is not None:
    checks.check_directory(directory)
    run, task = remembered(run, directory, task)
  made, source = outline(run, seeds, directory, task)
  if resume_step is not None:
    checkpoint_step(directory, str(resume_step))
  is_writer = directory is not None and hosts.is_first()
  with contextlib.ExitStack() as stack:
    if is_writer:
      run_directory.lock(directory)
      stack.callback(run_directory.unlock, directory)
      checks.check_workers(made)
    made = made._replace(params=make_params(run, made, source))
    if is_writer:
      document = run_directory.document_of(run, seeds)
      is_warm = run.warm_start.num_steps and source is None
      start = warm_start.digest(made.params) if is_warm else None
      held_out = run.evaluation.split, run.evaluation.num_examples
      panel = panels.describe(made.task, *held_out)
      run_directory.open_run(directory, document, run.optimizer, start, panel)
    stack.pop_all()  # All is well, and the directory stays this process's.
  return made


def remembered(
  run: RunConfig, directory: str | os.PathLike, task: Task | AgentTask | None
) -> tuple[RunConfig, Task | AgentTask]:
  """The task, and the config with which a reader of the run makes it again."""
  name, options = run.task.name, run.task.options
  if not (name if task is None else hasattr(task, "components")):
    raise TypeError(f"{task!r:.40} is no task: saw_jax.task makes one")
  if task is not None:
    name, options = registry.describe_task(task, directory)
  else:
    task = registry.make_task(name, options)
    if hasattr(task, "remember"):
      options = task.remember(directory)
    if ":" in name:
      name = naming.place_of(naming.load(name))
  return dataclasses.replace(run, task=TaskConfig(name, options)), task


def outline(
  run: RunConfig,
  seeds: Sequence[int] | None = None,
  directory: str | os.PathLike | None = None,
  task: Task | AgentTask | None = None,
) -> tuple[Experiment, pretrained.Pretrained | None]:
  """The experiment without parameters, and the checkpoint that it starts from.

  Checks everything and writes nothing.
  """
  if directory is not None:
    document = run_directory.document_of(run, seeds)
    run_directory.check_run(directory, document, run.optimizer)
  naming.lookup(dict.fromkeys(parallel.LIFTS), run.parallel.lift, "lift")
  if task is None:
    task = registry.make_task(run.task.name, run.task.options)
  ends = [(c.minimum, c.maximum) for c in task.components]
  method = algorithms.make_method(run.algorithm, *np.array(ends, np.float32).T)
  source, tokenizer, model = _make_model(run)
  model = dataclasses.replace(model, value_head=method.reads_values)
  made = dict(task=task, tokenizer=tokenizer, method=method, decoder=model)
  shared = {k: v for k, v in vars(run).items() if k in Experiment._fields}
  experiment = Experiment(**(shared | made), params=None)
  checks.check(experiment, run, seeds, directory)
  if seeds is not None:
    checks.check_examples(experiment)
  return experiment, source


def _make_model(
  run: RunConfig,
) -> tuple[pretrained.Pretrained | None, Tokenizer, DecoderConfig]:
  """The checkpoint, if there is one; the tokenizer and the decoder."""
  name, model = run.tokenizer.name, run.model
  if not run.checkpoint:
    tokenizer = registry.make_tokenizer(name, run.chat_template_options)
    size = tokenizer.vocab_size
    return None, tokenizer, dataclasses.replace(model, vocab_size=size)
  source = open_checkpoint(run)
  # Names of our own short vocabularies stand for the checkpoint's tokenizer.
  name = str(source.path) if name in registry.TOKENIZERS else name
  tokenizer = registry.make_tokenizer(name, run.chat_template_options)
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
  path = registry.find_checkpoint(run.checkpoint)
  longest = run.rollout.max_tokens
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
    params = warm_start.warm_start(
      headless,
      warm,
      kind_of(bare).demonstrations(warm),
      cache=cache_folder() / "warm_start",
      kept=config_lib.FOLDER / "starts",
    )
    params = hosts.arrays_of_first(params)
  else:
    params = decoder.init_params(headless, jax.random.key(warm.seed))
  # Added last, so that all rows of a table share one start.
  if experiment.decoder.value_head:
    params = decoder.add_value_head(params, experiment.decoder)
  return params


def cache_folder() -> pathlib.Path:
  """Where trained starts are cached: in the checkout, or the user's cache."""
  if not config_lib.IS_INSTALLED:
    return config_lib.FOLDER.parent / ".cache"
  user = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  return pathlib.Path(user) / "saw_jax"


def checkpoint_step(workdir: str | os.PathLike, word: str) -> int | None:
  """The step that `last` (None), `best` or a number names in a run directory.

  A `CheckpointError` says that there is no such checkpoint.
  """
  if word not in ("last", "best") and not word.isdigit():
    said = "last, best or a step (start, of saw evaluate)"
    raise ValueError(f"--checkpoint is {said}, not {word!r}")
  folder = pathlib.Path(workdir) / "checkpoints"
  with contextlib.closing(checkpoint.Checkpointer(folder, reads=True)) as store:
    store.check_step(step := int(word) if word.isdigit() else None)
    return store.best_step if word == "best" else step


def read_policy(
  workdir: str | os.PathLike,
  checkpoint: str | int = "last",
  seed: int | None = None,
  *,
  task: Any = None,
  config: Any = None,
) -> tuple[RunConfig, Experiment, int, int, PyTree]:
  """One policy of a run: its settings, experiment, seed, step, parameters."""
  run, seeds = run_directory.read_config(workdir, config)
  seed = seeds[0] if seed is None else seed
  if seed not in seeds:
    raise ValueError(f"seed={seed}: the run in {workdir} has {seeds}")
  if task is None:
    task = registry.make_task(run.task.name, _uncalled(run.task.options))
  step = checkpoint_step(workdir, str(checkpoint))
  made = build(run, task=task)
  step, policy = restore(made, len(seeds), workdir, step=step)
  params = policy.lift.fetch(policy.params)
  return run, made, seed, step, update.take_seed(params, seeds.index(seed))


def _uncalled(given: Any) -> Any:
  """Options for a task that scores nothing, whose functions may be lost."""
  if isinstance(given, Mapping):
    return {name: _uncalled(value) for name, value in given.items()}
  return (lambda *_: None) if naming.is_lost(given) else given
