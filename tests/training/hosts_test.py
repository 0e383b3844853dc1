"""With one process there is nothing to agree on; two_processes_test has two."""

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from saw_jax.training import hosts, parallel


def mesh():
  return parallel.make_mesh(parallel.ParallelConfig(data=2, fsdp=2))


def test_spread_and_fetch_are_inverse():
  rows = NamedSharding(mesh(), PartitionSpec(("data", "fsdp")))
  same = NamedSharding(mesh(), PartitionSpec())
  tree = {"rows": np.arange(8.0), "same": np.arange(3)}
  placed = hosts.spread(tree, {"rows": rows, "same": same})
  assert placed["rows"].addressable_shards[0].data.shape == (2,)
  assert placed["same"].sharding == same
  found = hosts.fetch({**placed, "host": 3})
  for name, value in tree.items():
    np.testing.assert_array_equal(found[name], value)
  assert isinstance(found["rows"], np.ndarray) and found["host"] == 3


def test_one_sharding_does_for_a_tree_with_keys():
  rows = NamedSharding(mesh(), PartitionSpec(("data", "fsdp")))
  keys = jax.random.split(jax.random.key(0), 8)
  data = jax.random.key_data(keys)
  placed = hosts.spread({"keys": keys, "ids": np.arange(8)}, rows)
  assert placed["keys"].sharding.is_equivalent_to(rows, 1)
  np.testing.assert_array_equal(jax.random.key_data(placed["keys"]), data)


def test_one_process_agrees_with_itself():
  tree = {"a": np.arange(3), "b": np.ones((2, 2), np.float32)}
  assert hosts.add_up(tree) is tree
  assert hosts.any_of(True) is True
  assert hosts.any_of(False) is False
  assert hosts.is_first()
