"""Says what is wrong with a run before it starts: tables of sentences."""

import dataclasses
import logging
import os
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from saw_jax import algorithms, naming
from saw_jax.models import lora
from saw_jax.rollout import refill
from saw_jax.run import agents, engines, groups, labelling, metrics
from saw_jax.run.experiment import AnswerRun, EpisodeRun, kind_of
from saw_jax.run.policy import actor_lift, learner_devices
from saw_jax.run.rollouts import Encoder
from saw_jax.run.sections import Experiment, RunConfig
from saw_jax.tasks import base
from saw_jax.training import estimation, parallel

LOG = logging.getLogger(__name__)
_GREATEST = float(np.finfo(np.float32).max)  # of what a reward may be

Conflicts = dict[str, bool]

# What divides the prompts of a step into calls, and its responses into parts.
_GROUPS, _PARTS = "rollout.length_groups", "loop.num_microbatches"

# Lower bounds, and the numbers that have them.
LEAST = {
  1: "loop.num_steps loop.prompts_per_step loop.group_size "
  "loop.num_minibatches loop.num_microbatches loop.chunk_size "
  "rollout.max_prompt_tokens rollout.max_new_tokens rollout.prompt_multiple "
  "rollout.completion_multiple episodes.rows_per_call "
  "episodes.max_observation_tokens evaluation.num_examples "
  "evaluation.batch_size labels.verify_prompt_tokens labels.verify_new_tokens "
  "warm_start.batch_size warm_start.num_demonstrations",
  0: "rollout.cache_tokens loop.pack_length loop.checkpoint_interval "
  "evaluation.samples evaluation.interval grading.num_workers "
  "optimizer.warmup_steps warm_start.num_steps",
}


def check(
  made: Experiment,
  run: RunConfig | None = None,
  seeds: Sequence[int] | None = None,
  directory: str | os.PathLike | None = None,
) -> None:
  """Raises for settings that do not go together or cannot be used here.

  With `seeds` the run is to be trained here, and its devices, writers and
  estimator are checked, too. Reads no weights and no examples.
  """
  sections = made._asdict() | {"warm_start": run and run.warm_start}
  for least, keys in LEAST.items():
    for key in keys.split():
      section, _, name = key.partition(".")
      value = getattr(sections[section], name, least)
      if value < least:
        raise ValueError(f"{key} is {value}; it must be {least} or more")
  _refuse(_conflicts(made))
  _refuse(_CONFLICTS[type(kind_of(made))](made))
  if jax.process_count() > 1:
    _refuse(_conflicts_of_processes(made))
  # The cache needs room for one prompt and its response.
  encoder = Encoder(made.tokenizer, made.rollout)
  settings = encoder.settings(made.sampling, 1)
  refill.slots(settings, 1, encoder.round_up(made.rollout.max_prompt_tokens))
  lora.check_config(made.lora, made.decoder)
  groups.make_protocol(made.asynchronous, made.loop.prompts_per_step)
  if seeds is None:
    return
  metrics.check_writers(made.loop.writers)
  _refuse(_unheard(made))
  # A key takes 32 bits of a seed.
  if not seeds or len({n for n in seeds if 0 <= n < 2**32}) < len(seeds):
    said = "seeds differ, and are from 0 to 2**32 - 1"
    raise ValueError(f"{said}, not {list(seeds)}")
  lift = parallel.make_lift(
    *(made.parallel, made.decoder, None),  # no optimizer: nothing is placed
    num_seeds=len(seeds),
    devices=learner_devices(made),
  )
  check_rows(made, lift.num_shards)
  if made.asynchronous.actor_devices:
    _check_actors(made, len(seeds))
  if not made.method.per_step:
    _check_estimate(made)
  if made.loop.group_size == 1 and run is not None:
    _check_group_of_one(made)
  if directory is not None:
    check_directory(directory)
  if made.rollout.engine:
    engines.check(made, len(seeds))


def _unheard(made: Experiment) -> Conflicts:
  """Settings of sampling ahead that have no effect without it."""
  ahead, names = made.asynchronous, ["lag", "actors", "dynamic_sampling"]
  names += ["actor_kind"] * (ahead.actor_kind != "thread")
  return {
    f"asynchronous.{name} is {getattr(ahead, name)}, which does nothing while "
    "asynchronous.protocol is 'none': say fixed_lag, max_lag or quota": (
      ahead.protocol == "none" and bool(getattr(ahead, name))
    )
    for name in names
  }


def _check_actors(made: Experiment, num_seeds: int) -> None:
  """Raises if the devices of an actor cannot share its prompts evenly."""
  try:
    shards = actor_lift(made, num_seeds).num_shards
    _refuse(_conflicts_of_prompts(made, shards))
  except ValueError as error:
    raise ValueError(f"asynchronous.actor_devices: {error}") from None


def check_rows(made: Experiment, num_shards: int) -> None:
  """Raises if the rows of a call or micro-batch do not split over devices."""
  _refuse(_conflicts_of_rows(made, num_shards))


def check_examples(made: Experiment) -> None:
  """Raises if a split lacks examples, or has prompts that are too long."""
  config, size = made.evaluation, made.loop.prompts_per_step
  splits = {config.split: (config.num_examples, 1)}
  splits |= dict.fromkeys(config.benchmarks, (None, 1))
  for split, (most, least) in {**splits, "train": (None, size)}.items():
    count = kind_of(made).count_examples(split, most)
    if count < least:
      raise ValueError(
        f"split {split!r} has {count} prompts, and {least} are needed"
        + " for a step (loop.prompts_per_step)" * (split == "train")
      )


def check_workers(made: Experiment) -> None:
  """Loads the task in a worker process, if the run has any."""
  few = min(made.grading.num_workers, 1)
  grading = dataclasses.replace(made.grading, num_workers=few)
  with kind_of(made._replace(grading=grading)).open_workers():
    pass


def _refuse(conflicts: Conflicts) -> None:
  for message, is_so in conflicts.items():
    if is_so:
      raise ValueError(message)


def _conflicts(made: Experiment) -> Conflicts:
  rollout, loop, ahead = made.rollout, made.loop, made.asynchronous
  longest = rollout.max_tokens
  parts = "a prompt and its response"
  if made.method.world is not None:
    longest += len(agents.glue_of(made.tokenizer))
    longest += made.episodes.max_observation_tokens
    parts = "a prompt, its response and what is observed"
  names = [component.name for component in made.task.components]
  task = f"task {made.task.name!r}"
  limit, limited = made.grading.limit_s, getattr(made.task, "token_limits", ())
  return {
    f"grading.limit_s is {limit}: say how many seconds above 0 it takes": (
      not limit > 0
    ),
    f"rollout.page_size is {rollout.page_size}, and there is no "
    "rollout.cache_tokens, of which pages are made: say how many": (
      rollout.page_size > 0 and not rollout.cache_tokens
    ),
    f"{task} has no reward: it needs one of `components` or more": not names,
    f"{task} has two components of one name: {', '.join(names)}": (
      len(set(names)) < len(names)
    ),
    **{
      f"a component of {task} is called {name!r}, as a figure of every "
      "evaluation is: call it something else": True
      for name in ({*names} & base.FIGURES) - {*limited}
    },
    **{
      f"the range of component {one.name!r} of {task} is from {one.minimum} to "
      f"{one.maximum}: it needs two finite numbers, the smaller one first": (
        not -_GREATEST <= one.minimum < one.maximum <= _GREATEST
      )
      for one in made.task.components
    },
    "the loss reads the log-probs that the sampler recorded, and under "
    "sampling.top_k or top_p they are of the tokens that are kept alone, which "
    "no policy of the trainer's is: sample from all (top_k=0, top_p=1.0), or "
    "choose a loss that takes the trainer's own log-probs": (
      made.method.needs_behave and made.sampling.truncates
    ),
    f"loop.pack_length is {loop.pack_length}, but {parts} may have {longest} "
    "tokens: say at least that, or 0 to not pack": (
      0 < loop.pack_length < longest
    ),
    "a step on stale answers is one update: loop.num_minibatches is "
    f"{loop.num_minibatches} and must be 1, or the protocol 'fixed_lag' and "
    "asynchronous.lag 0; weights that are published after several updates are "
    "asynchronous.protocol='quota'": (
      ahead.protocol != "none"
      and (ahead.protocol, ahead.lag) != ("fixed_lag", 0)
      and loop.num_minibatches != 1
    ),
    "loop.group_size is 1, and asynchronous.dynamic_sampling drops groups "
    "whose rewards are all equal: it would drop each": (
      ahead.dynamic_sampling and loop.group_size == 1
    ),
  }


def _conflicts_of_answers(made: Experiment) -> Conflicts:
  task, method = f"task {made.task.name!r}", made.labels.method
  needed = ("verification",) * made.labels.strategy.needs_verdicts
  return {
    **{
      f"{task} cannot be trained with labels.method={method!r}: it has no "
      f"{name}; math and knights have all": (
        method != "truth" and not hasattr(made.task, name)
      )
      for name in labelling.NEEDED + needed
    },
    f"{task} has single answers, and the advantage is not one of those: "
    f"{', '.join(sorted(algorithms.ADVANTAGES))}": made.method.per_step,
    f"labels.method is {method!r}, and asynchronous.dynamic_sampling drops "
    "groups by their rewards, which are known when a group is learned from: "
    "one of the two has to go": (
      method != "truth" and made.asynchronous.dynamic_sampling
    ),
    f"{task} does not say what the world answers to a response: "
    "algorithm.world_model.loss has to be 'none'": (
      made.method.world is not None and not hasattr(made.task, "observe")
    ),
  }


def _conflicts_of_episodes(made: Experiment) -> Conflicts:
  task = f"task {made.task.name!r} has episodes, and"
  protocol = made.asynchronous.protocol
  return {
    f"{task} the advantage is not one of those: "
    f"{', '.join(sorted(algorithms.STEP_ADVANTAGES))}": (
      not made.method.per_step
    ),
    f"{task} rollout.stops ends single answers": bool(made.rollout.stops),
    f"{task} what is cut has its part in what they pay: loss_options.truncated "
    "must be 'learn' or 'mask'": made.method.truncated == "drop",
    f"{task} their prompts are written as they are played: "
    "rollout.long_prompts must be 'error' or 'truncate'": (
      made.rollout.long_prompts == "drop"
    ),
    f"{task} labels are bought for single answers: labels.method is "
    f"{made.labels.method!r}": made.labels.method != "truth",
    f"{task} they are played between the updates: asynchronous.protocol is "
    f"{protocol!r} and must be 'none'": protocol != "none",
  }


_CONFLICTS = {
  AnswerRun: _conflicts_of_answers,
  EpisodeRun: _conflicts_of_episodes,
}


def _conflicts_of_processes(made: Experiment) -> Conflicts:
  return {
    f"several processes cannot do this together: {what}": is_so
    for what, is_so in {
      "parallel.lift other than 'meshed'": made.parallel.lift != "meshed",
      "labels.source='annotator', since all would wait for a person": (
        made.labels.source == "annotator"
      ),
      f"asynchronous.actors={made.asynchronous.actors}: with 0 they sample "
      "between the updates": made.asynchronous.actors > 0,
      "algorithm.world_model on single answers": (
        made.method.world is not None and not made.method.per_step
      ),
      "rollout.engine": bool(made.rollout.engine),
    }.items()
  }


def splitting(made: Experiment, num_shards: int) -> dict[str, int]:
  """Fewer parts of a step that split over devices, where today's do not.

  The results are the same but for the order of sums.
  """
  loop, prompts = made.loop, made.loop.prompts_per_step
  share = prompts * loop.group_size // loop.num_minibatches
  found = {}
  for key, now, rows in (
    (_GROUPS, made.rollout.length_groups, prompts),
    (_PARTS, loop.num_microbatches, share),
  ):
    fitting = [k for k in range(1, now + 1) if rows % (k * num_shards) == 0]
    if fitting and fitting[-1] != now:
      found[key] = fitting[-1]
  return found


def _fewer(made: Experiment, num_shards: int, key: str) -> str:
  """Advice: with how many parts a step splits over devices."""
  count = splitting(made, num_shards).get(key)
  return f"{key}={count} does" if count else "take more loop.prompts_per_step"


def _conflicts_of_prompts(made: Experiment, num_shards: int) -> Conflicts:
  """How the prompts of a call of the sampler split."""
  prompts = made.loop.prompts_per_step // made.rollout.length_groups
  return {
    f"the {prompts} prompts that are sampled at a time (loop.prompts_per_step "
    f"by {_GROUPS}) do not split over the {num_shards} devices that have rows: "
    f"{_fewer(made, num_shards, _GROUPS)}": prompts % num_shards > 0
  }


def _conflicts_of_rows(made: Experiment, num_shards: int) -> Conflicts:
  """How the rows of a step split, into updates and over devices."""
  loop, calls = made.loop, made.episodes.rows_per_call
  over = f"do not split over the {num_shards} devices that have rows"
  if made.method.per_step:  # Updates are filled up with empty rows.
    groups, is_apart = loop.prompts_per_step, made.parallel.lift == "pmapped"
    return {
      f"the {groups} groups of a step {over}": (
        is_apart and groups % num_shards > 0
      ),
      f"episodes.rows_per_call is {calls}, which {over}": (
        calls % num_shards > 0
      ),
    }
  rows = loop.prompts_per_step * loop.group_size
  parts = loop.num_minibatches * loop.num_microbatches
  fewer = _fewer(made, num_shards, _PARTS)
  return _conflicts_of_prompts(made, num_shards) | {
    f"the {rows} responses of a step do not split into {parts} equal parts "
    "(loop.num_minibatches x loop.num_microbatches)": rows % parts > 0,
    f"the {rows // parts} rows of a micro-batch {over}: {fewer}": (
      rows // parts % num_shards > 0
    ),
  }


def _check_estimate(made: Experiment) -> None:
  """Traces the weights and the advantage, which may be the user's own."""
  method, loop = made.method, made.loop
  shape = (loop.prompts_per_step, loop.group_size, len(made.task.components))
  rewards, before = jnp.zeros(shape), jnp.zeros(shape[2:])
  try:
    jax.eval_shape(
      estimation.make_estimate(method.advantage, method.weights, minima=before),
      *(rewards, rewards == 0, rewards[..., 0]),
      rewards[..., 0] if method.kl_in_reward else None,
      *(before, jnp.int32(0)),
    )
  except Exception as error:
    said = str(error).partition("\n")[0]
    raise ValueError(f"algorithm.weights or .advantage: {said}") from error


def _check_group_of_one(made: Experiment) -> None:
  """Raises if the estimator gives every group of one an advantage of 0."""
  size, count = made.loop.prompts_per_step, len(made.task.components)
  paid = np.linspace(0.5, 1.0, size, dtype=np.float32)[:, None, None]
  advantage = made.method.advantage
  if made.method.per_step:  # episodes of two steps, paid at the end
    names = ("values", "anchors")
    nothing = dict.fromkeys(names, np.zeros((size, 1, 2), np.int32))
    steps = np.ones((size, 1, 2), bool)
    rewards = paid * np.array([0, 1], np.float32)
    found = naming.supply(advantage, rewards=rewards, steps=steps, **nothing)
  else:
    rewards = np.repeat(paid, count, axis=-1)
    lengths = np.arange(1, size + 1, dtype=np.float32)[:, None]
    ones = np.ones(count, np.float32)
    found = naming.supply(advantage, rewards, ones, lengths=lengths)
  if not np.any(found):
    raise ValueError(
      "loop.group_size is 1, and the advantage of a response that is compared "
      "with no other one is always 0: say 2 or more"
    )
  LOG.warning(
    "loop.group_size is 1: no response is compared with others to its prompt"
  )


def check_directory(directory: str | os.PathLike) -> None:
  path = pathlib.Path(directory).absolute()
  place = next(one for one in (path, *path.parents) if one.exists())
  if not place.is_dir():
    raise NotADirectoryError(f"{place} is a file: choose another --workdir")
  if not os.access(place, os.W_OK | os.X_OK):
    raise PermissionError(
      f"nothing can be written in {place}: choose another --workdir"
    )
