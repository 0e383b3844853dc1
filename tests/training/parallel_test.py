"""One device, many, many seeds and micro-batches: the same step."""

import functools
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saw_jax import advantages, weighting
from saw_jax.models import decoder
from saw_jax.training import batch as batch_lib
from saw_jax.training import estimation, parallel, update
from saw_jax.training import optimizer as optimizer_lib
from tests import helpers

STATE, ROWS, SAME = parallel.STATE, parallel.ROWS, parallel.SAME
# Adam divides by the root of a square, so that a gradient of rounding size may
# take either sign: with this epsilon it takes no step to speak of.
OPTIMIZER = optimizer_lib.make_optimizer(
  optimizer_lib.OptimizerConfig(learning_rate=1e-2, eps=1e-3), 10
)


def start(seed=0):
  params = decoder.init_params(helpers.CONFIG, jax.random.key(seed))
  return update.create_state(params, OPTIMIZER, num_components=2)


@functools.cache
def reference(seed=0, start=start, base=lambda seed: None, merge=None):
  """Two updates on one device in one piece."""
  made = helpers.full_objective()
  step = jax.jit(update.make_update(made, OPTIMIZER, merge=merge))
  state, _ = step(start(seed), helpers.batch(seed=seed), base(seed))
  return jax.device_get(step(state, helpers.batch(seed=seed + 10), base(seed)))


def mesh_lift(data=-1, fsdp=1, tensor=1):
  config = parallel.ParallelConfig(data=data, fsdp=fsdp, tensor=tensor)
  return parallel.meshed(parallel.make_mesh(config), helpers.CONFIG, OPTIMIZER)


def lifted(
  lift, num_microbatches=1, seeds=(0,), packing=None, start=start, base=None,
  merge=None,
):  # fmt: skip
  """The same two updates through a lift, packed if `packing` says how."""
  below = []
  if base is not None:
    below = [lift.place_params(update.stack_states([*map(base, seeds)]))]
  step = lift.wrap(
    update.make_update(
      helpers.full_objective(),
      OPTIMIZER,
      num_microbatches=num_microbatches,
      merge=merge,
    ),
    (STATE, ROWS, STATE)[: 2 + len(below)],
    (STATE, SAME),
    takes_axis_name=True,
    donate=(0,),
  )
  state = lift.place(update.stack_states([start(seed) for seed in seeds]))
  for offset in (0, 10):
    rows = [helpers.batch(seed=seed + offset) for seed in seeds]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *rows)
    if packing:
      stacked = batch_lib.pack_rows(stacked, 24, **packing)
    state, metrics = step(state, stacked, *below)
  return lift.fetch(state), jax.device_get(metrics)


def assert_same(found, expected, index=0):
  state, metrics = found
  expected_state, expected_metrics = expected
  assert metrics.keys() == expected_metrics.keys()
  for name, value in expected_metrics.items():
    np.testing.assert_allclose(
      metrics[name][index], value, rtol=2e-5, atol=1e-6, err_msg=name
    )
  # A small part of a step.
  chex.assert_trees_all_close(
    update.take_seed(state, index).params, expected_state.params, atol=2e-5
  )


class TestLiftsAgree:
  def test_pmapped_over_four_devices(self):
    lift = parallel.pmapped(jax.devices()[:4])
    assert_same(lifted(lift, 2), reference())

  @pytest.mark.parametrize(
    ("sizes", "num_microbatches"),
    [
      pytest.param((2, 1, 2), 1, marks=pytest.mark.slow),
      pytest.param((1, 2, 2), 1, marks=pytest.mark.slow),
      ((2, 2, 1), 2),
    ],
  )
  def test_meshed_over_four_devices(self, sizes, num_microbatches):
    lift = mesh_lift(*sizes)
    assert_same(lifted(lift, num_microbatches), reference())

  def test_the_seed_axis_may_be_split_over_devices(self):
    found = lifted(parallel.seeded(jax.devices()[:2]), seeds=(0, 1))
    for index in range(2):
      assert_same(found, reference(index), index)

  @pytest.mark.slow
  def test_packed_rows_of_seeds_one_after_the_other(self):
    packing = dict(num_microbatches=4, target_multiple=8)
    found = lifted(parallel.seeded(), 4, seeds=(0, 1), packing=packing)
    for index in range(2):
      assert_same(found, reference(index), index)

  @pytest.mark.parametrize(
    "kind", ["pmapped", pytest.param("meshed", marks=pytest.mark.slow)]
  )
  def test_packed_rows_over_devices_with_micro_batches(self, kind):
    shards = {"num_shards": 2} if kind == "pmapped" else {"row_multiple": 4}
    packing = dict(num_microbatches=2, target_multiple=8) | shards
    lift = parallel.pmapped(jax.devices()[:2])
    if kind == "meshed":
      lift = mesh_lift(data=2, fsdp=2)
    assert_same(lifted(lift, 2, packing=packing), reference())

  def test_a_mean_of_the_parts_means_would_be_another_number(self):
    # The tests above would pass a wrong update if all parts had equal masks.
    first, second = (helpers.batch().completion_mask[i::2] for i in range(2))
    assert first.sum() != second.sum()


class TestMeshedState:
  def test_parameters_are_split_as_the_rules_say(self):
    lift = mesh_lift(data=1, fsdp=2, tensor=2)
    placed = lift.place(update.stack_states([start()]))
    axes = {
      name
      for leaf in jax.tree.leaves(placed.params)
      for name in leaf.sharding.spec
    }
    assert {"fsdp", "tensor"} <= axes
    # Adam's moments lie with their parameters.
    moments = [
      leaf
      for leaf in jax.tree.leaves(placed.opt_state)
      if leaf.ndim > 1 and not leaf.sharding.is_fully_replicated
    ]
    assert moments


class TestEstimateUnderLifts:
  @pytest.mark.slow
  @pytest.mark.parametrize("kind", ["pmapped", "meshed", "seeded"])
  def test_batch_statistics_are_those_of_the_whole_batch(self, kind):
    fn = estimation.make_estimate(
      advantages.gdpo,
      functools.partial(weighting.saw_weights, minima=-3.0),
      minima=np.full(2, -3.0, np.float32),
    )
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=(8, 4, 2)).astype(np.float32)
    scored = rng.random((8, 4, 2)) > 0.1
    lengths = rng.integers(1, 9, (8, 4)).astype(np.float32)
    expected, statistics = fn(rewards, scored, lengths, None, jnp.ones(2) / 2)
    lifts = {"meshed": mesh_lift, "seeded": parallel.seeded}
    lift = lifts.get(kind, parallel.pmapped)()
    estimate = lift.wrap(
      fn, (ROWS, ROWS, ROWS, ROWS, STATE), (ROWS, SAME), takes_axis_name=True
    )
    state = lift.place(update.stack_states([start()]))
    found, found_statistics = estimate(
      rewards[None], scored[None], lengths[None], None, state.weights
    )
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-5)
    for name, value in statistics.items():
      np.testing.assert_allclose(
        found_statistics[name][0], value, rtol=1e-5, atol=1e-6, err_msg=name
      )


class TestMakeLift:
  @pytest.mark.parametrize(
    ("lift", "num_seeds", "words"),
    [("sharded", 1, "lift 'sharded'"), ("meshed", 2, "one seed, not 2")],
  )
  def test_a_mistake_is_named(self, lift, num_seeds, words):
    config = parallel.ParallelConfig(lift=lift)
    with pytest.raises(ValueError, match=words):
      parallel.make_lift(config, helpers.CONFIG, OPTIMIZER, num_seeds=num_seeds)

  @pytest.mark.parametrize("kind", ["cpu", "tpu"])
  @pytest.mark.parametrize("tensor", [1, 2])
  def test_a_tpu_gathers_what_is_split_over_fsdp_alone(self, kind, tensor):
    chips = np.array([types.SimpleNamespace(platform=kind)])
    mesh = types.SimpleNamespace(devices=chips, shape={"tensor": tensor})
    found = parallel.compiler_options(mesh)
    assert (found is not None) == (kind == "tpu" and tensor == 1)

  def test_a_mesh_that_does_not_fit_says_how_many_devices_there_are(self):
    with pytest.raises(ValueError, match="there are 4"):
      parallel.make_mesh(parallel.ParallelConfig(data=3))

  def test_rows_that_do_not_split_are_counted(self):
    lift = parallel.pmapped(jax.devices()[:4])
    step = lift.wrap(lambda x: x, (ROWS,), (ROWS,))
    with pytest.raises(ValueError, match="6 rows"):
      step(np.zeros((1, 6)))
