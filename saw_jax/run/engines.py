"""What a run asks of the servers of an inference engine."""

import dataclasses
import logging
import os
import pathlib

import jax
import numpy as np

from saw_jax.models.hub import pretrained
from saw_jax.rollout import transcript
from saw_jax.rollout.engine import Engine, EngineConfig, EngineError, Traits
from saw_jax.rollout.engine_servers import Servers
from saw_jax.rollout.generate import GenerateConfig
from saw_jax.rollout.sampling import SamplingConfig
from saw_jax.run.sections import Experiment
from saw_jax.training import hosts, parallel, update

LOG = logging.getLogger(__name__)


def options(made: Experiment) -> EngineConfig:
  given = made.rollout.engine_options
  dtype = given.get("dtype") or made.decoder.dtype
  bound = 0.01 if dtype == "float32" else 0.5
  return EngineConfig(**{"bound": bound, **given, "dtype": dtype})


def export(params: dict, made: Experiment, folder: str | os.PathLike) -> None:
  """Writes weights for servers; a tied head gets a tensor of its own.

  vLLM on a CPU multiplies by a packed copy of Llama's head, and only makes that
  copy again if a tensor for the head comes in.
  """
  decoder, dtype = made.decoder, options(made).dtype
  if decoder.tied_head:
    params = {**params, "head": np.transpose(params["embedding"])}
    decoder = dataclasses.replace(decoder, tied_head=False)
  pretrained.save_checkpoint(folder, params, decoder, dtype=dtype)


def _open(made: Experiment, **functions) -> Servers:
  return Servers(
    made.rollout.engine,
    options(made),
    vocab_size=made.decoder.vocab_size,
    max_length=made.rollout.max_tokens,
    **functions,
  )


def open_servers(
  made: Experiment,
  lift: parallel.Lift,
  native: Engine,
  directory: str | os.PathLike | None,
) -> Servers:
  """Opens servers that take a policy's weights; `native` checks them."""

  def write(params, folder: pathlib.Path) -> None:
    export(update.take_seed(lift.fetch(params), 0), made, folder)

  def greedy(params, prompt: list[int], size: int):
    rows = transcript.pad_prompts(
      [prompt] * lift.num_shards, multiple=made.rollout.prompt_multiple
    )
    rows = jax.tree.map(lambda x: x[None], rows)
    keys = jax.random.split(jax.random.key(0), (1, lift.num_shards))
    config = GenerateConfig(size, 1, (), sampling=SamplingConfig(greedy=True))
    found = hosts.fetch(native.sample(params, rows, keys, config))
    return found.tokens[0, 0, found.prompt_size :], found.behave_log_probs[0, 0]

  folder = None if directory is None else pathlib.Path(directory)
  return _open(made, write=write, greedy=greedy, folder=folder)


def check(made: Experiment, num_seeds: int) -> Traits:
  """Finds the servers, or raises for what does not go together with them."""
  ahead, method = made.asynchronous, made.method
  for what, is_so in {
    f"trains one seed at a time, not {num_seeds}: start a run a seed, with "
    "servers of their own": num_seeds > 1,
    "is asked by threads: asynchronous.actor_kind must be 'thread', with "
    "actor_devices and partial_tokens 0": ahead.actors > 0
    and (
      ahead.actor_kind != "thread"
      or ahead.actor_devices > 0
      or ahead.partial_tokens > 0
    ),
    "aborts rows for newer weights (engine_options.in_flight), and fixed_lag "
    "promises which a group is of: choose max_lag or quota": (
      ahead.protocol == "fixed_lag" and options(made).in_flight == "abort"
    ),
    "gives no entropies, which the world model of episodes selects by: "
    "algorithm.world_model.loss must be 'none'": (
      method.world is not None and method.per_step
    ),
  }.items():
    if is_so:
      raise ValueError(f"rollout.engine {what}")
  servers = _open(made)
  servers.close()
  traits = servers.traits
  if method.needs_behave and not traits.gives_log_probs(made.sampling):
    flag = {"vllm": ": start it with --logprobs-mode processed_logprobs"}
    raise ValueError(
      f"the loss reads the log-probs of the distribution sampled from, and "
      f"{traits.name} gives {traits.log_probs or 'no'} ones"
      + flag.get(traits.name, "")
      + "; spo and asympo need tokens and rewards alone"
    )
  _compare_sizes(made, traits)
  return traits


def _compare_sizes(made: Experiment, traits: Traits) -> None:
  """Raises if the servers' own model, where it can be read, has other sizes."""
  path = pathlib.Path(traits.model)
  if not (path / "config.json").is_file():
    return
  theirs, ours = pretrained.open_checkpoint(path).config, made.decoder
  names = "vocab_size width num_layers num_heads num_kv_heads head_size "
  for name in (names + "mlp_size qkv_bias qk_norm").split():
    pair = getattr(theirs, name), getattr(ours, name)
    if not np.equal(*pair):
      raise ValueError(
        f"rollout.engine serves {path}, whose {name} is {pair[0]}; the "
        f"policy's is {pair[1]}: start it with a model of the policy's sizes"
      )


def describe(apart: np.ndarray, made: Experiment) -> dict[str, float]:
  """Mean and maximum of distances of log-probs, and the share out of bounds.

  The share is judged if nothing is sampled ahead: rows are then of the policy
  that they are compared with.
  """
  config, is_ahead = options(made), made.asynchronous.protocol != "none"
  if not apart.size:
    return {}
  beyond = float((apart > config.bound).mean())
  if beyond > config.most_beyond and not is_ahead:
    message = (
      f"{beyond:.2%} of the tokens have log-probs of the engine and of the "
      f"trainer more than {config.bound:g} apart (rollout.engine_options)"
    )
    if config.beyond == "stop":
      raise EngineError(f"{message}: a publication or the engine is at fault")
    LOG.warning("%s", message)
  return {
    "mismatch/mean": float(apart.mean()),
    "mismatch/max": float(apart.max()),
    "mismatch/beyond": beyond,
  }
