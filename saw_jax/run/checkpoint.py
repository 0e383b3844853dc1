"""Checkpoints, by Orbax and without pickles.

A checkpoint has the arrays of the state, a JSON document of the host, and a
fingerprint of every array. A run that is killed while it writes leaves the last
checkpoint whole; the fingerprints find damage that happens later.
"""

import contextlib
import functools
import hashlib
import json
import logging
import math
import os
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from saw_jax.run import store
from saw_jax.training import hosts
from saw_jax.types import Array, PyTree

LOG = logging.getLogger(__name__)
_LARGE = 2**16  # numbers: fewer are fetched faster than a program is compiled


class CheckpointError(ValueError):
  """A checkpoint is missing, damaged or of another shape."""


class Restored(NamedTuple):
  """What a checkpoint held."""

  step: int
  state: PyTree
  host: dict[str, Any]
  arrays: dict[str, np.ndarray]


class _Manager(ocp.CheckpointManager):
  """Orbax's manager, which opens a directory in spite of a damaged score."""

  def reached_preemption(self, step: int) -> bool:
    """Never asks JAX, which keeps one count: the session's."""
    return False

  def metrics(self, step: int) -> dict[str, float] | None:
    path = self.directory / str(step) / "metrics"
    with contextlib.suppress(Exception):
      score = float(super().metrics(step)["score"])
      if math.isfinite(score):
        return {"score": score}
    if path.exists():
      LOG.warning("the score in %s is damaged: it cannot be the best", path)
    return None

  def _load_checkpoint_infos(self, *args: Any, **options: Any) -> list:
    try:
      return super()._load_checkpoint_infos(*args, **options)
    except FileNotFoundError:  # The run has removed one meanwhile.
      return self._load_checkpoint_infos(*args, **options)


class Checkpointer:
  """Saves in the background; keeps the best and, against damage, the last two.

  With `reads` it changes nothing: another process may be saving there.
  """

  def __init__(self, directory: str | os.PathLike, *, reads: bool = False):
    self.directory, self._reads = pathlib.Path(directory).resolve(), reads
    self._folder = store.of(self.directory.parent)
    score = lambda metrics: metrics["score"]  # noqa: E731
    _silence_orbax()
    best = checkpoint_managers.BestN(
      get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False
    )
    options = ocp.CheckpointManagerOptions(
      preservation_policy=checkpoint_managers.AnyPreservationPolicy(
        [checkpoint_managers.LatestN(2), best]
      ),
      best_fn=score,
      read_only=reads,
      create=not reads,
      cleanup_tmp_directories=not reads,
      enable_async_checkpointing=True,
    )
    handlers = None
    if not reads:
      self._folder.start(jax.process_index(), jax.process_count())
      if jax.process_count() > 1 and not self._folder.is_shared:
        # Each host writes its part of each array into files of its own, in a
        # folder of its own; together they are the checkpoint.
        each = ocp.options.MultiprocessingOptions(primary_host=None)
        options.multiprocessing_options = each
        # Hosts would tell each other of a folder that others do not see.
        options.async_options = ocp.options.AsyncOptions(
          create_directories_asynchronously=False
        )
        arrays = ocp.StandardCheckpointHandler(
          multiprocessing_options=each, use_ocdbt=False
        )
        document = ocp.JsonCheckpointHandler(multiprocessing_options=each)
        handlers = {"state": arrays, "arrays": arrays, "document": document}
    self._manager = _Manager(
      self.directory, options=options, item_handlers=handlers
    )

  @property
  def steps(self) -> list[int]:
    return sorted(self._manager.all_steps())

  @property
  def best_step(self) -> int | None:
    return self._manager.best_step() if self.steps else None

  def forget_after(self, step: int) -> None:
    """Deletes the checkpoints of later steps, which will be repeated."""
    for later in reversed([one for one in self.steps if one > step]):
      LOG.info("the checkpoint of step %d is made again", later)
      self._manager.delete(later)
      self._folder.forget([later])

  def save(
    self,
    step: int,
    state: PyTree,
    host: dict,
    *,
    arrays: Mapping[str, np.ndarray] | None = None,
    score: float | None = None,
  ) -> None:
    """Starts saving; returns once the arrays are copied."""
    self._folder.check()
    finite = _of_each(_is_finite, [state, dict(arrays or {})])
    for name in (name for name, is_so in leaves(finite).items() if not is_so):
      raise FloatingPointError(
        f"array {name} is not finite after {step} steps, and was not saved; "
        f"there are checkpoints of the steps {self.steps}"
      )
    items = {"state": ocp.args.StandardSave(state)}
    document = {"host": host, "fingerprints": fingerprints(state)}
    if arrays:
      # Copied, since the run goes on while they are written.
      arrays = {name: np.array(array) for name, array in arrays.items()}
      items["arrays"] = ocp.args.StandardSave(arrays)
      document["arrays"] = fingerprints(arrays)
    document["digest"] = _digest_of(document)
    if score is not None and not math.isfinite(score):
      score = None  # Nothing was scored. JSON has no NaN.
    self._manager.save(
      step,
      force=True,  # Raise if the step exists; do not skip it silently.
      args=ocp.args.Composite(document=ocp.args.JsonSave(document), **items),
      metrics=None if score is None else {"score": float(score)},
    )

  def restore(self, template: PyTree, *, step: int | None = None) -> Restored:
    """Restores a checkpoint, checking every array."""
    self.wait()
    self.check_step(step)
    steps = self.steps
    wanted, step = step, steps[-1] if step is None else step
    try:
      return self._read(template, step)
    except CheckpointError as error:
      if self._reads:  # The run may have replaced it by a newer one.
        self._folder.bring()
        self._manager.reload()
        if self.steps != steps:
          return self.restore(template, step=wanted)
      advice, flag = "no earlier step is whole", "--resume_step"
      for earlier in (s for s in steps if s < step):
        with contextlib.suppress(CheckpointError):
          self._read(template, earlier)
          flag = "--checkpoint" if self._reads else flag
          advice = f"the last good step is {earlier}: {flag}={earlier}"
      raise CheckpointError(f"{error}; {advice}") from error

  def check_step(self, step: int | None) -> None:
    """Raises if there is no checkpoint of a step, or (None) none at all."""
    if not self.steps or step not in (None, *self.steps):
      what = "" if step is None else f" of step {step}"
      raise CheckpointError(
        f"there is no checkpoint{what} in {self.directory}; there are "
        f"{self.steps}"
      )

  def wait(self) -> None:
    self._manager.wait_until_finished()
    if not self._reads:
      self._folder.send()

  def close(self) -> None:
    self._manager.wait_until_finished()
    self._manager.close()
    self._folder.close()

  def _read(self, template: PyTree, step: int) -> Restored:
    folder = self.directory / str(step)
    self._folder.bring_step(step)
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
    document = self._get(folder, "document", ocp.args.JsonRestore())
    there = {name: of for name, (_, *of) in document["fingerprints"].items()}
    here = {k: [str(x.dtype), *x.shape] for k, x in leaves(abstract).items()}
    for name in sorted(there.keys() | here.keys()):
      if there.get(name) != here.get(name):
        raise CheckpointError(
          f"{folder} is of another model or optimizer: array {name} is "
          f"{there.get(name, 'absent')} there and {here.get(name, 'absent')} "
          "here"
        )
    restore, saved = ocp.args.StandardRestore, document.get("arrays")
    sums, arrays = document["fingerprints"], {}
    state = self._get(folder, "state", restore(abstract), sums)
    if saved:
      like = {k: np.zeros(shape, of) for k, (_, of, *shape) in saved.items()}
      arrays = self._get(folder, "arrays", restore(like), saved)
    arrays = jax.tree.map(np.asarray, arrays)
    return Restored(step, state, document["host"], arrays)

  def _get(
    self, folder: pathlib.Path, item: str, args: Any, expected: Any = None
  ) -> Any:
    """Reads an item, and compares the checksums of its arrays."""
    what = f"checkpoint {folder / item} is damaged"
    try:
      args = ocp.args.Composite(**{item: args})
      found = self._manager.restore(int(folder.name), args=args)[item]
      if item == "document":
        told = found.pop("digest", None)  # Older ones have none.
        is_whole = {"host", "fingerprints"} <= found.keys()
        if not is_whole or told not in (None, _digest_of(found)):
          raise ValueError("it is not what was saved")
    except Exception as error:
      text = (str(error).strip() or type(error).__name__).splitlines()[0]
      raise CheckpointError(f"{what} ({text[:200]})") from error
    for name, one in fingerprints(found).items() if expected else ():
      if one != expected[name]:
        raise CheckpointError(f"{what}: array {name} is not what was saved")
    return found


def leaves(tree: PyTree) -> dict[str, Any]:
  """The arrays of a tree by their names."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def fingerprints(tree: PyTree) -> dict[str, list]:
  sums = leaves(_of_each(_checksum, tree))
  return {
    name: [int(sums[name]), str(leaf.dtype), *map(int, leaf.shape)]
    for name, leaf in leaves(tree).items()
  }


def _of_each(fn: Callable, tree: PyTree) -> PyTree:
  """`fn` of each array; of large ones, on the devices that hold them."""

  def one(x):
    return _on_devices(fn, x) if x.size > _LARGE else fn(np, hosts.fetch(x))

  return hosts.fetch(jax.tree.map(one, tree))


# Arrays of one shape, such as those of layers, share a program.
_on_devices = jax.jit(lambda fn, leaf: fn(jnp, leaf), static_argnums=0)


def _is_finite(xp: Any, leaf: Array) -> Array:
  return xp.all(xp.isfinite(leaf))


def digest(tree: PyTree) -> str:
  return _digest_of(fingerprints(tree))


def _digest_of(document: dict[str, Any]) -> str:
  text = json.dumps(json.loads(json.dumps(document)), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def _checksum(xp: Any, leaf: Array) -> Array:
  dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)
  bits = xp.asarray(leaf, dtype).view(f"uint{dtype.itemsize * 8}")
  bits = bits.reshape(-1).astype("uint32")
  # A sum of integers depends neither on its order nor on the sharding.
  odd = 2 * xp.arange(bits.size, dtype="uint32") + 1
  return xp.sum(bits * odd, dtype="uint32")


def _is_news(record: logging.LogRecord) -> bool:
  text = record.getMessage()
  is_leftover = "exception was never retrieved" in text and "orbax" in text
  known = ("read only", "read_only", "did not provide metrics")
  return not (is_leftover or any(words in text for words in known))


@functools.cache
def _silence_orbax() -> None:
  """Drops Orbax's tracebacks of abandoned reads and its notes on read-only."""
  for name in ("asyncio", "absl"):
    logging.getLogger(name).addFilter(_is_news)
  before = sys.unraisablehook

  def hook(unraisable) -> None:
    code = getattr(unraisable.object, "cr_code", None)
    path = pathlib.Path(code.co_filename).parts if code else ()
    closed = "Event loop is closed" in str(unraisable.exc_value)
    if "orbax" not in path and not closed:
      before(unraisable)

  sys.unraisablehook = hook
