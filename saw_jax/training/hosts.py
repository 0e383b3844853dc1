"""What the processes that run one program must agree on."""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from orbax.checkpoint import multihost

from saw_jax.types import Array, PyTree


def is_first() -> bool:
  """Whether this process is the one that writes files."""
  return jax.process_index() == 0


def wait_for_all(limit_s: int = 3600) -> None:
  """Waits until every process is here: collectives wait for 30 s only."""
  wait = multihost.get_barrier_sync_fn()
  wait(key="saw_jax_start", timeout_ms=1000 * limit_s)


def spread(tree: PyTree, sharding: NamedSharding | PyTree) -> PyTree:
  """Puts arrays on devices, of which other processes may hold some."""
  if isinstance(sharding, NamedSharding):
    sharding = jax.tree.map(lambda _: sharding, tree)
  return jax.tree.map(_spread, tree, sharding)


def fetch(tree: PyTree) -> PyTree:
  """Takes whole arrays to the host; all processes ask for the same ones."""

  def leaf(x):
    is_here = not isinstance(x, jax.Array) or x.is_fully_addressable
    if is_here or x.is_fully_replicated:
      return jax.device_get(x)
    return multihost_utils.process_allgather(x, tiled=True)

  return jax.tree.map(leaf, tree)


def whole(tree: PyTree) -> PyTree:
  """Fetches what other processes hold parts of; all ask for the same."""
  return jax.tree.map(lambda x: fetch(x) if _is_elsewhere(x) else x, tree)


def add_up(tree: PyTree) -> PyTree:
  if jax.process_count() == 1:
    return tree
  return jax.tree.map(
    lambda x: x.sum(0, dtype=x.dtype), multihost_utils.process_allgather(tree)
  )


def gather(document: Any) -> list[Any]:
  """Collects by JSON what each process gives, in their order; all call."""
  if jax.process_count() == 1:
    return [document]
  said = np.frombuffer(json.dumps(document).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.array(said.size, np.int32))
  padded = np.zeros(sizes.max(), np.uint8)
  padded[: said.size] = said
  rows = multihost_utils.process_allgather(padded)
  pairs = zip(rows, sizes.tolist(), strict=True)
  return [json.loads(row[:size].tobytes()) for row, size in pairs]


def from_first(ask: Callable[[], Any]) -> Any:
  """Tells all, by JSON, what the first process finds; so is its error."""
  if jax.process_count() == 1:
    return ask()
  found, error = None, None
  try:
    found = ask() if is_first() else None
  except Exception as raised:
    error = raised
  found, said = gather([found, error and f"{type(error).__name__}: {error}"])[0]
  if said is not None:
    raise error or RuntimeError(f"the first process says: {said}")
  return found


def arrays_of_first(tree: PyTree) -> PyTree:
  """Gives all processes the first one's; machines may round differently."""
  if jax.process_count() == 1:
    return tree
  wait_for_all()
  return multihost_utils.broadcast_one_to_all(tree)


def any_of(flag: bool) -> bool:
  return bool(add_up(np.array(flag, np.int32)))


def is_sync_point(count: int) -> bool:
  """Whether all processes save and stop here, since one of them must go.

  JAX's preemption service names the count, one that none has reached.
  """
  return multihost_utils.reached_preemption_sync_point(count)


def _is_elsewhere(x: Array) -> bool:
  """Whether another process holds a part of an array."""
  return isinstance(x, jax.Array) and not x.is_fully_addressable


def _spread(x: Array, sharding: NamedSharding) -> Array:
  if sharding.is_fully_addressable or _is_elsewhere(x):
    return jax.device_put(x, sharding)
  if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
    data = _spread(jax.random.key_data(x), sharding)
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
  x = np.asarray(x)
  return jax.make_array_from_callback(x.shape, sharding, lambda at: x[at])
