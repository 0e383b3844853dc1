"""Training adapters in place of a model: through lifts, loops and files."""

import dataclasses
import functools
import shutil

import chex
import jax
import numpy as np
import pytest

from saw_jax import algorithms
from saw_jax.models import decoder, lora
from saw_jax.run import checkpoint, loop
from saw_jax.run import experiment as experiment_lib
from saw_jax.training import parallel, update
from tests import helpers
from tests.training import parallel_test
from tests.training.parallel_test import OPTIMIZER

LORA = lora.LoraConfig(rank=2, alpha=8.0)
ATTACH = functools.partial(lora.attach, config=LORA)


def base(seed=0):
  return decoder.init_params(helpers.CONFIG, jax.random.key(seed))


def start(seed=0):
  adapters = lora.init_adapters(
    base(seed), dataclasses.replace(LORA, seed=seed), helpers.CONFIG
  )
  return update.create_state(adapters, OPTIMIZER, num_components=2)


def mesh_lift():
  mesh = parallel.make_mesh(parallel.ParallelConfig(data=1, fsdp=2, tensor=2))
  return parallel.meshed(mesh, helpers.CONFIG, OPTIMIZER, lora=LORA)


def experiment(**changes):
  return helpers.experiment(lora=dataclasses.asdict(LORA), **changes)


def reference(seed=0):
  return parallel_test.reference(seed, start, base, ATTACH)


def check(lift, *args, seeds=(0,)):
  """Two updates through a lift are those of one device."""
  how = dict(start=start, base=base, merge=ATTACH)
  found = parallel_test.lifted(lift, *args, seeds=seeds, **how)
  for index in seeds:
    parallel_test.assert_same(found, reference(index), index)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  directory = tmp_path_factory.mktemp("whole")
  result = loop.train(experiment(), [0, 1], directory=directory)
  assert result.finished
  return directory


class TestUpdate:
  @pytest.mark.slow
  def test_the_gradient_is_the_chain_rule_through_the_whole_one(self):
    objective = helpers.full_objective()
    adapters = reference()[0].params  # No B is 0 any more.
    gradient = update.make_gradient(objective, merge=ATTACH)
    found, metrics = jax.jit(gradient)(adapters, helpers.batch(), base())
    merge = functools.partial(lora.merge, base(), config=LORA)
    merged, pull = jax.vjp(merge, adapters)
    plain = jax.jit(update.make_gradient(objective))
    whole, expected = plain(merged, helpers.batch())
    chex.assert_trees_all_close(found, pull(whole)[0], rtol=1e-4, atol=1e-7)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(found))
    assert metrics["loss"] == pytest.approx(float(expected["loss"]), rel=1e-5)

  @pytest.mark.slow
  def test_many_devices_are_one(self):
    check(mesh_lift(), 2)
    check(parallel.pmapped(jax.devices()[:4]))

  @pytest.mark.slow
  def test_seeded_trains_each_seed_on_a_base_of_its_own(self):
    check(parallel.seeded(), seeds=(0, 1))

  def test_adapters_lie_on_the_mesh_as_their_kernels_do(self):
    state = mesh_lift().place(update.stack_states([start()]))
    pair = state.params["layer_0"]["mlp"]["up"]
    spec = jax.sharding.PartitionSpec
    assert pair["a"].sharding.spec == spec("fsdp", None)
    assert pair["b"].sharding.spec == spec(None, "tensor")
    moments = state.opt_state[1][0].mu["layer_0"]["mlp"]["up"]
    assert moments["a"].sharding == pair["a"].sharding


class TestLearner:
  @pytest.mark.slow
  @pytest.mark.parametrize("lift", parallel.LIFTS)
  def test_the_reference_is_the_base_which_stays_as_it_is(self, lift):
    kl = algorithms.KLConfig(placement="loss", coefficient=0.1)
    algorithm = {"advantage": "grpo", "kl": kl}
    made = experiment(algorithm=algorithm, parallel={"lift": lift})
    learner = helpers.make_learner(made)
    policy = learner.policy
    batch = jax.tree.map(lambda x: np.asarray(x)[None], helpers.batch())
    before = learner.recompute(batch)
    at_start = policy.lift.fetch(policy.params)
    chex.assert_trees_all_equal(update.take_seed(at_start, 0), made.params)
    learner.update(before)
    after = learner.recompute(batch)
    np.testing.assert_array_equal(after.ref_log_probs, before.ref_log_probs)
    below = policy.lift.fetch(policy.base)
    chex.assert_trees_all_equal(update.take_seed(below, 0), made.params)
    moved = policy.lift.fetch(policy.params)
    up = [x["layer_0"]["mlp"]["up"] for x in (moved, at_start)]
    assert np.abs(np.asarray(up[0]) - np.asarray(up[1])).max() > 1e-3
    np.testing.assert_array_equal(moved["embedding"], at_start["embedding"])

  @pytest.mark.slow
  def test_weights_by_gradients_are_of_the_adapters(self, tmp_path):
    made = experiment(
      algorithm={"advantage": "grpo", "weights": "gradient"},
      loop={"num_steps": 1},
      evaluation={"interval": 0, "samples": 0, "num_examples": 1},
    )
    assert loop.train(made, [0], directory=tmp_path).finished


@pytest.mark.slow
class TestRun:
  def test_a_resumed_run_is_the_one_never_interrupted(self, whole, tmp_path):
    again = shutil.copytree(whole, tmp_path / "again")
    loop.train(experiment(), [0, 1], directory=again, resume_step=2)
    helpers.assert_same_run(again, whole)

  def test_a_checkpoint_holds_adapters_alone(self, whole):
    kept = helpers.fingerprints(whole).values()
    largest = max(int(np.prod(shape)) for _, _, *shape in kept)
    assert largest < 2 * base()["layer_0"]["mlp"]["up"].size

  def test_restore_gives_policies_in_the_decoders_form(self, whole):
    _, found = experiment_lib.restore(experiment(), 2, whole)
    policy = update.take_seed(found.lift.fetch(found.params), 1)
    chex.assert_trees_all_equal_shapes(policy, base())
    np.testing.assert_array_equal(policy["embedding"], base()["embedding"])
    change = policy["layer_0"]["mlp"]["up"] - base()["layer_0"]["mlp"]["up"]
    values = np.linalg.svd(np.asarray(change), compute_uv=False)
    assert values[1] > 1e-4 and values[2] < 1e-6  # Of rank 2.

  def test_another_base_is_refused(self, whole, tmp_path):
    made, word = experiment(params=base(seed=1)), "were trained on another"
    again = shutil.copytree(whole, tmp_path / "again")
    with pytest.raises(checkpoint.CheckpointError, match=word):
      loop.train(made, [0, 1], directory=again)
    with pytest.raises(checkpoint.CheckpointError, match=word):
      experiment_lib.restore(made, 2, whole)
