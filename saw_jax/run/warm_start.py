"""A short supervised start, for a policy that begins from nothing."""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import logging
import os
import pathlib
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from saw_jax.models import decoder
from saw_jax.models.config import DecoderConfig
from saw_jax.rollout import transcript
from saw_jax.run import checkpoint, metrics
from saw_jax.settings import constant
from saw_jax.training import objective, update
from saw_jax.training import optimizer as optimizer_lib
from saw_jax.training.batch import TrainBatch
from saw_jax.types import PyTree

LOG = logging.getLogger(__name__)
# What reading a damaged or foreign file raises.
_DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
_DAMAGED += (zlib.error,)
_VERSION = 1  # raise it when this file changes what comes out


@dataclasses.dataclass(frozen=True)
class WarmStartConfig:
  """Settings of the supervised start; no steps, no start."""

  num_steps: int = 0  # 0: no start
  batch_size: int = 64  # demonstrations of a step
  num_demonstrations: int = 8192  # different ones
  log_interval: int = constant(100)
  observation_coefficient: float = 0.0  # of what followed a demonstrated action
  learning_rate: float = 3e-3  # the greatest
  # The rest of how it is trained.
  optimizer: optimizer_lib.OptimizerConfig = constant(
    optimizer_lib.OptimizerConfig(
      schedule="cosine", warmup_steps=50, weight_decay=0.1, b2=0.98
    )
  )
  # Arguments of the task's `demonstrations`, e.g. how many are wrong. `seed`
  # is that of the first weights, too: another seed is another start.
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def seed(self) -> int:
    return self.options.get("seed", 0)


def pack_demonstrations(
  prompts: Sequence[Sequence[int]],
  completions: Sequence[Sequence[int]],
  observations: Sequence[Sequence[int]] = (),  # none: nothing followed
  *,
  glue: Sequence[int] = (),
  multiple: int = 16,
) -> TrainBatch:
  """Lays demonstrations out as transcripts."""
  observations = observations or [()] * len(prompts)
  parts = list(zip(prompts, completions, observations, strict=True))
  longest = max(len(said) + len(glue) + len(seen) for _, said, seen in parts)
  batch = transcript.pad_prompts(prompts, multiple=multiple)
  more = -(-longest // multiple) * multiple
  tokens = np.pad(batch.tokens, ((0, 0), (0, more)))
  roles = np.full(tokens.shape, transcript.PAD, np.int8)
  starts = batch.tokens.shape[1] - batch.lengths
  for row, (prompt, said, seen) in enumerate(parts):
    transcript.write(
      tokens[row],
      roles[row],
      starts[row],
      (prompt, transcript.PROMPT),
      (said, transcript.POLICY),
      (glue if len(seen) else (), transcript.GLUE),
      (seen, transcript.OBSERVATION),
    )
  return TrainBatch(
    tokens=tokens,
    roles=roles,
    starts=starts,
    advantages=np.ones(len(parts), np.float32),
    prompt_size=batch.tokens.shape[1],
  )


def warm_start(
  decoder_config: DecoderConfig,
  config: WarmStartConfig,
  demonstrations: TrainBatch,
  *,
  cache: pathlib.Path,
  kept: pathlib.Path | None = None,
) -> PyTree:
  """Trains a decoder on demonstrations, or takes it from a folder.

  If another process is making the same one, waits for it.
  """
  shapes = decoder.param_shapes(decoder_config)
  name = f"{_digest(decoder_config, config, demonstrations)}.npz"
  folders = [folder for folder in (kept, cache) if folder is not None]
  if (found := _find(name, shapes, folders)) is not None:
    return found
  cache.mkdir(parents=True, exist_ok=True)
  with (cache / f"{name}.lock").open("a") as lock:
    with contextlib.suppress(OSError):  # Some file systems have no locks.
      fcntl.flock(lock, fcntl.LOCK_EX)
    if (found := _find(name, shapes, [cache])) is not None:
      return found
    params = decoder.init_params(decoder_config, jax.random.key(config.seed))
    made = _train(params, decoder_config, config, demonstrations)
    made = _keep(cache / name, made)
    pathlib.Path(lock.name).unlink(missing_ok=True)
    return made


def _find(
  name: str, shapes: PyTree, folders: Sequence[pathlib.Path]
) -> PyTree | None:
  for folder in folders:
    if (folder / name).exists():
      try:
        found = _read(folder / name, shapes)
        LOG.info("warm start: from the cache, %s", folder / name)
        return found
      except _DAMAGED as error:
        LOG.warning("warm start: made anew, since %s: %s", name, error)
        with contextlib.suppress(OSError):  # the package's own are not ours
          (folder / name).unlink()
  return None


def _train(
  params: PyTree,
  decoder_config: DecoderConfig,
  config: WarmStartConfig,
  demonstrations: TrainBatch,
) -> PyTree:
  rate = config.learning_rate
  settings = dataclasses.replace(config.optimizer, learning_rate=rate)
  optimizer = optimizer_lib.make_optimizer(settings, config.num_steps)
  terms = {"likelihood": objective.Term(objective.likelihood)}
  if config.observation_coefficient:
    terms["observations"] = objective.Term(
      objective.observation_likelihood, config.observation_coefficient
    )
  made = objective.make_objective(objective.make_forward(decoder_config), terms)
  how = {"can_overflow": settings.can_overflow}
  step_fn = update.make_update(made, optimizer, **how)
  step_fn = jax.jit(step_fn, donate_argnums=0)
  current = update.create_state(params, optimizer)
  rng = np.random.default_rng(config.seed)
  rows = demonstrations.tokens.shape[0]
  with metrics.progress("warm start", config.num_steps) as advance:
    for step in range(config.num_steps):
      chosen = rng.integers(0, rows, config.batch_size)
      batch = jax.tree.map(
        lambda x, c=chosen: jnp.asarray(x[c]), demonstrations
      )
      current, values = step_fn(current, batch)
      # The bar counts what was computed, not what was dispatched.
      jax.block_until_ready(values)
      if fault := update.not_finite(jax.device_get(values)):
        raise FloatingPointError(f"supervised start, step {step}: {fault}")
      if step % config.log_interval == 0 or step + 1 == config.num_steps:
        loss = float(values["loss"])
      advance(loss=loss)
  return current.params


def digest(params: PyTree) -> str:
  """Names a start by its weights; a value head is none of them."""
  found = hashlib.sha256()
  for name, leaf in checkpoint.leaves(params).items():
    if not name.startswith("value_"):
      found.update(np.asarray(leaf).tobytes())
  return found.hexdigest()[:10]


def _keep(path: pathlib.Path, params: PyTree) -> PyTree:
  """Saves a start in float32, unless another process has made it meanwhile."""
  beside = path.with_name(f"{path.stem}_{os.getpid()}.npz")
  found = checkpoint.leaves(params).items()
  try:
    np.savez(beside, **{name: np.asarray(x, np.float32) for name, x in found})
    if not path.exists():
      beside.rename(path)
  finally:
    beside.unlink(missing_ok=True)
  return _read(path, params)


def _read(path: pathlib.Path, like: PyTree) -> PyTree:
  with np.load(path) as file:
    found = [file[name] for name in checkpoint.leaves(like)]
  leaves, structure = jax.tree.flatten(like)
  found = [jnp.asarray(x, y.dtype) for x, y in zip(found, leaves, strict=True)]
  if [x.shape for x in found] != [x.shape for x in leaves]:
    raise ValueError("its shapes differ")
  return jax.tree.unflatten(structure, found)


def _digest(decoder_config, config, demonstrations: TrainBatch) -> str:
  # Settings that came later, at the value that older starts were made with.
  added = dict(wide_qk_norm=False, post_norm=False, rotated=())
  added |= dict(attention="auto", state_dtype="float32")
  old = lambda kept: {k: x for k, x in kept.items() if x != added.get(k)}  # noqa: E731
  settings = {**dataclasses.asdict(config), "seed": config.seed}
  settings["optimizer"] = old(settings["optimizer"])
  made_by = [_VERSION, old(vars(decoder_config)), settings]
  digest = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode())
  for leaf in jax.tree.leaves(demonstrations):
    digest.update(np.ascontiguousarray(leaf).tobytes())
  return digest.hexdigest()[:16]
