"""Tests of saw_jax/labels/probes.py."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saw_jax.labels import probes
from tests.labels.golden_test import PROBES as GOLDEN

DTYPES = ((np.float64, 1e-9), (np.float32, 1e-5))
SIZES = dict(
  prompt_width=3, joint_width=4, response_hidden_width=2, response_width=3
)
PROBES = {
  "stage1": probes.VoteProbe(**SIZES),
  "stage2": probes.CountProbe(**SIZES),
}
# Our name of each part, by PyTorch's.
PARTS = {
  "prompt_proj": "prompt",
  "resp_proj": "response",
  "classifier": {"stage1": "vote_head", "stage2": "count_head"},
  "aux_head": "response_head",
}
LAYERS = {"0": "norm", "1": "linear_0", "3": "linear_1"}


def read_variables(stage, name, dtype):
  """The golden state of a probe, as Flax has it."""
  params, stats = {}, {}
  for key, value in GOLDEN[stage][name].items():
    part, layer, leaf = key.split(".")
    part, layer = PARTS[part], LAYERS[layer]
    part = part[stage] if isinstance(part, dict) else part
    value = jnp.array(value, dtype)
    if leaf in ("running_mean", "running_var"):
      leaf = leaf.removeprefix("running_")
      stats.setdefault(part, {}).setdefault(layer, {})[leaf] = value
    elif leaf != "num_batches_tracked":
      if leaf == "weight":
        leaf = "scale" if layer == "norm" else "kernel"
      leaves = params.setdefault(part, {}).setdefault(layer, {})
      leaves[leaf] = value.T
  return {"params": params, "batch_stats": stats}


def read_features(dtype):
  """The golden inputs: 6 prompts of 3 responses."""
  inputs = GOLDEN["inputs"]
  feat = jnp.array(inputs["feat"], dtype)
  return probes.ProbeFeatures(
    prompt_hidden=jnp.array(inputs["hidden"], dtype),
    response_hidden=jnp.array(inputs["resp"], dtype),
    vote_features=feat[:, :4],
    lengths=feat[:, 4:],
    outside=jnp.array(inputs["stage2_resp_valid_mask"], bool),
    possible=jnp.array(inputs["stage2_class_valid_mask"], bool),
    voted_count=jnp.ones(6, jnp.int32),
  )


def pad(tree, rows, junk=np.nan):
  """Adds rows of junk at the end."""

  def leaf(x):
    value = junk if jnp.issubdtype(x.dtype, jnp.floating) else 1
    return jnp.concatenate([x, jnp.full((rows, *x.shape[1:]), value, x.dtype)])

  return jax.tree.map(leaf, tree)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_golden_logits(stage):
  golden, probe = GOLDEN[stage], PROBES[stage]
  first = golden["steps"][0]
  for dtype, rtol in DTYPES:
    close = functools.partial(np.testing.assert_allclose, rtol=rtol)
    with jax.enable_x64(dtype is np.float64):
      features = read_features(dtype)
      for state, logits in (
        ("initial_state", "eval_logits_at_init"),
        ("state_after_3_steps", "eval_logits_after_3_steps"),
      ):
        found = probe.apply(read_variables(stage, state, dtype), features)
        found = found[0] if stage == "stage1" else found
        assert found.dtype == dtype
        close(found, golden[logits])
      found, _ = probe.apply(
        read_variables(stage, "initial_state", dtype),
        features,
        jnp.ones(6, bool),
        mutable="batch_stats",
      )
      if stage == "stage1":
        found, responses = found
        close(responses, first["train_aux_logits"])
      close(found, first["train_logits"])


class TestSizes:
  @pytest.mark.parametrize(
    ("hidden_size", "vote", "count"),
    [(2048, 767_896, 603_739), (4096, 1_169_304, 1_005_147)],
  )
  def test_numbers_of_parameters(self, hidden_size, vote, count):
    for probe, want in (
      (probes.VoteProbe(), vote),
      (probes.CountProbe(), count),
    ):
      features = probes.zero_features(2, 8, hidden_size)
      variables = jax.eval_shape(probe.init, jax.random.key(0), features)
      leaves = jax.tree.leaves(variables["params"])
      assert sum(leaf.size for leaf in leaves) == want

  @pytest.mark.slow
  def test_initial_values(self):
    features = probes.zero_features(2, 3, 5)
    variables = probes.VoteProbe().init(jax.random.key(0), features)
    layer = variables["params"]["response"]["linear_1"]  # 64 inputs
    for leaf in (layer["kernel"], layer["bias"]):
      assert 0.95 / 8 < np.abs(leaf).max() <= 1 / 8
      assert abs(float(leaf.mean())) < 0.02


class TestBatchNorm:
  def apply(self, x, where=None):
    norm, x = probes.BatchNorm(), jnp.asarray(x)
    variables = norm.init(jax.random.key(0), x)
    y, changed = norm.apply(variables, x, where, mutable="batch_stats")
    return y, changed["batch_stats"]

  def test_by_hand(self):
    # Mean 2, variance 1 to divide by and 2 to remember.
    y, stats = self.apply(np.array([[1.0], [3.0]]), jnp.ones(2, bool))
    np.testing.assert_allclose(y, [[-1], [1]], rtol=1e-4)
    np.testing.assert_allclose(stats["mean"], [0.2], rtol=1e-6)
    np.testing.assert_allclose(stats["var"], [1.1], rtol=1e-6)

  def test_a_single_row_leaves_no_nan(self):
    y, stats = self.apply(np.array([[5.0, 7.0]]), jnp.ones(1, bool))
    assert y.tolist() == [[0, 0]]
    chex.assert_tree_all_finite(stats)


@functools.partial(jax.jit, static_argnames="stage")
def gradient(stage, variables, features, where):
  """A number like a loss, logits, statistics, and the gradient of a probe."""

  def value(params):
    found, changed = PROBES[stage].apply(
      variables | {"params": params}, features, where, mutable="batch_stats"
    )
    # Squares, so that every row matters by how large it is.
    rows = jax.tree.map(jnp.square, probes.take_present(found, where))
    return sum(map(jnp.sum, jax.tree.leaves(rows))), (found, changed)

  return jax.value_and_grad(value, has_aux=True)(variables["params"])


class TestProbes:
  @pytest.mark.slow
  @pytest.mark.parametrize("stage", ["stage1", "stage2"])
  def test_padding_changes_nothing(self, stage):
    variables = read_variables(stage, "initial_state", np.float32)
    features = read_features(np.float32)
    want = gradient(stage, variables, features, jnp.ones(6, bool))
    (value, (found, stats)), grads = gradient(
      stage, variables, pad(features, 5), jnp.arange(11) < 6
    )
    found = jax.tree.map(lambda x: x[:6], found)
    chex.assert_trees_all_close(
      ((value, (found, stats)), grads), want, rtol=1e-4, atol=1e-5
    )


class TestFeatures:
  def test_by_hand(self):
    ids = jnp.array([[5, 3, 5, -1], [-1, -1, -1, -1]])
    prompt = jnp.arange(10.0).reshape(2, 5)
    responses = jnp.arange(40.0).reshape(2, 4, 5)
    lengths = jnp.array([[0, 10, 20, 50], [1, 2, 3, 4]])
    found = probes.probe_features(
      prompt, responses, ids, lengths, length_scale=20.0
    )
    assert found.prompt_hidden.tolist() == prompt.tolist()
    assert found.response_hidden.tolist() == responses.tolist()
    assert found.vote_features.tolist() == [[0.75, 0.5, 0.25, 0, 0], [0] * 5]
    assert found.lengths[0].tolist() == [0, 0.5, 1, 1]
    assert found.outside.tolist() == [[False, True, False, False], [False] * 4]
    assert (
      found.possible == np.array([[1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    ).all()
    assert found.voted_count.tolist() == [2, 0]

  def test_half_precision_becomes_single_and_no_gradient_reaches_it(self):
    def total(hidden):
      found = probes.probe_features(
        hidden[:, 0], hidden, jnp.zeros((1, 3), int), jnp.ones((1, 3), int)
      )
      assert found.prompt_hidden.dtype == found.lengths.dtype == np.float32
      assert found.response_hidden.dtype == np.float32
      return jnp.sum(found.prompt_hidden) + jnp.sum(found.response_hidden)

    assert not jax.grad(total)(jnp.ones((1, 3, 2), jnp.bfloat16)).any()
