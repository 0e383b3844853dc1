"""Several processes that train one policy: what only they must agree on.

Every process runs the same program on the same host data, and devices of all of
them make one mesh. So there is little to say here: how a host array gets onto
the mesh, how one comes back, and how what a single process saw (its share of
the rewards, a Ctrl-C) becomes known to all. With one process each function does
nothing, or what JAX does.
"""

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from orbax.checkpoint import multihost

from saw_jax.types import Array, PyTree


def is_first() -> bool:
  """Says whether this process is the one that writes files.

  Returns:
    True in one process of the run.
  """
  return jax.process_index() == 0


def wait_for_all(limit_s: int = 3600) -> None:
  """Waits until every process is here.

  Collectives of CPU devices wait for half a minute only, and processes that
  import and load at different speeds are further apart than that. After this
  they go in step.

  Args:
    limit_s: the longest wait, in seconds.
  """
  multihost.get_barrier_sync_fn()(
    key="saw_jax_start", timeout_ms=1000 * limit_s
  )


def spread(tree: PyTree, sharding: NamedSharding | PyTree) -> PyTree:
  """Puts arrays on devices, of which other processes may hold some.

  Args:
    tree: host arrays, the same in all processes, or arrays of all processes.
    sharding: where they go; one for all, or a tree like the arrays.

  Returns:
    The arrays. Each process copies its own part and none is sent.
  """
  if isinstance(sharding, NamedSharding):
    return jax.tree.map(lambda x: _spread(x, sharding), tree)
  return jax.tree.map(_spread, tree, sharding)


def fetch(tree: PyTree) -> PyTree:
  """Takes arrays back to the host, whoever holds them.

  Args:
    tree: arrays. All processes have to ask for the same ones.

  Returns:
    NumPy arrays, whole ones in each process.
  """

  def leaf(x):
    if not isinstance(x, jax.Array) or x.is_fully_addressable:
      return jax.device_get(x)
    if x.is_fully_replicated:
      return jax.device_get(x)
    return multihost_utils.process_allgather(x, tiled=True)

  return jax.tree.map(leaf, tree)


def add_up(tree: PyTree) -> PyTree:
  """Adds up the arrays of all processes.

  Args:
    tree: NumPy arrays, of the same shapes in each process.

  Returns:
    The sums, in each process.
  """
  if jax.process_count() == 1:
    return tree
  return jax.tree.map(
    lambda x: x.sum(0, dtype=x.dtype), multihost_utils.process_allgather(tree)
  )


def any_of(flag: bool) -> bool:
  """Asks whether something happened in any process.

  Args:
    flag: whether it did in this one.

  Returns:
    The same in each process.
  """
  return bool(add_up(np.array(flag, np.int32)))


def _spread(x: Array, sharding: NamedSharding) -> Array:
  if sharding.is_fully_addressable:
    return jax.device_put(x, sharding)
  if isinstance(x, jax.Array) and not x.is_fully_addressable:
    return jax.device_put(x, sharding)
  if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
    data = _spread(jax.random.key_data(x), sharding)
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
  x = np.asarray(x)
  return jax.make_array_from_callback(x.shape, sharding, lambda at: x[at])
