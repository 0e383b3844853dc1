"""Tests of saw_jax/labels/probes.py."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

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
  "stage1": {
    "prompt_proj": "prompt",
    "resp_proj": "response",
    "classifier": "vote_head",
    "aux_head": "response_head",
  },
  "stage2": {
    "prompt_proj": "prompt",
    "resp_proj": "response",
    "classifier": "count_head",
  },
}
LAYERS = {"0": "norm", "1": "linear_0", "3": "linear_1"}


def read_variables(stage, name, dtype):
  """The golden state of a probe, as Flax has it."""
  params, stats = {}, {}
  for key, value in GOLDEN[stage][name].items():
    part, layer, leaf = key.split(".")
    part, layer = PARTS[stage][part], LAYERS[layer]
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


class GoldenTest(chex.TestCase):
  @parameterized.product(
    stage=["stage1", "stage2"],
    when=[
      ("initial_state", "eval_logits_at_init"),
      ("state_after_3_steps", "eval_logits_after_3_steps"),
    ],
  )
  @pytest.mark.slow
  def test_scoring(self, stage, when):
    state, logits = when
    for dtype, rtol in DTYPES:
      with jax.enable_x64(dtype is np.float64):
        found = PROBES[stage].apply(
          read_variables(stage, state, dtype), read_features(dtype)
        )
        found = found[0] if stage == "stage1" else found
        assert found.dtype == dtype
        np.testing.assert_allclose(found, GOLDEN[stage][logits], rtol=rtol)

  @parameterized.parameters("stage1", "stage2")
  @pytest.mark.slow
  def test_training(self, stage):
    want = GOLDEN[stage]["steps"][0]
    for dtype, rtol in DTYPES:
      with jax.enable_x64(dtype is np.float64):
        found, _ = PROBES[stage].apply(
          read_variables(stage, "initial_state", dtype),
          read_features(dtype),
          train=True,
          mutable=["batch_stats"],
        )
        if stage == "stage1":
          found, responses = found
          np.testing.assert_allclose(
            responses, want["train_aux_logits"], rtol=rtol
          )
        np.testing.assert_allclose(found, want["train_logits"], rtol=rtol)


class TestSizes:
  @pytest.mark.parametrize(
    ("hidden_size", "vote", "count"),
    [
      (2048, 767_896, 603_739),
      (2560, 868_248, 704_091),
      (3072, 968_600, 804_443),
      (4096, 1_169_304, 1_005_147),
    ],
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
      assert np.abs(leaf).max() <= 1 / 8
      assert np.abs(leaf).max() > 0.95 / 8
      assert abs(float(leaf.mean())) < 0.02
    norm = variables["params"]["response"]["norm"]
    assert (norm["scale"] == 1).all() and not norm["bias"].any()


class TestBatchNorm:
  def apply(self, x, where=None, stats=None, train=True):
    variables = probes.BatchNorm().init(
      jax.random.key(0), jnp.asarray(x), None, train=False
    )
    if stats is not None:
      variables |= {"batch_stats": stats}
    return probes.BatchNorm().apply(
      variables, jnp.asarray(x), where, train=train, mutable=["batch_stats"]
    )

  def test_by_hand(self):
    # Mean 2, variance 1 to divide by and 2 to remember.
    y, changed = self.apply(np.array([[1.0], [3.0]]))
    np.testing.assert_allclose(y, [[-1], [1]], rtol=1e-4)
    np.testing.assert_allclose(changed["batch_stats"]["mean"], [0.2], rtol=1e-6)
    np.testing.assert_allclose(changed["batch_stats"]["var"], [1.1], rtol=1e-6)

  def test_scoring_starts_as_the_identity_and_changes_nothing(self):
    x = np.random.default_rng(0).normal(size=(3, 5, 2)).astype(np.float32)
    y, changed = self.apply(x, train=False)
    np.testing.assert_allclose(y, x, rtol=1e-5)
    assert changed["batch_stats"]["mean"].tolist() == [0, 0]
    assert changed["batch_stats"]["var"].tolist() == [1, 1]

  def test_all_axes_but_the_last_are_rows(self):
    x = np.random.default_rng(0).normal(size=(3, 5, 2)) * 3 + 7
    y, changed = self.apply(x)
    rows = x.reshape(-1, 2)
    stats = changed["batch_stats"]
    np.testing.assert_allclose(
      y.reshape(-1, 2),
      (rows - rows.mean(0)) / rows.std(0),
      rtol=1e-3,
      atol=1e-5,
    )
    np.testing.assert_allclose(stats["mean"], rows.mean(0) / 10, rtol=1e-5)
    np.testing.assert_allclose(
      stats["var"], 0.9 + rows.var(0, ddof=1) / 10, rtol=1e-5
    )

  def test_rows_beside_the_mask_are_not_there(self):
    x = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    padded = np.concatenate([x, np.full((3, 2), 1e6, np.float32)])
    y, changed = self.apply(x)
    z, also = self.apply(padded, jnp.arange(7) < 4)
    np.testing.assert_allclose(z[:4], y, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(changed, also, rtol=1e-5)

  def test_a_single_row_leaves_no_nan(self):
    y, changed = self.apply(np.array([[5.0, 7.0]]))
    assert y.tolist() == [[0, 0]]
    chex.assert_tree_all_finite(changed)


@pytest.fixture(scope="module")
def gradient():
  """Loss-like number, statistics and gradient of a probe, compiled."""

  @functools.partial(jax.jit, static_argnames="stage")
  def run(stage, variables, features, where):
    def value(params):
      found, changed = PROBES[stage].apply(
        variables | {"params": params},
        features,
        where=where,
        train=True,
        mutable=["batch_stats"],
      )
      # Squares, so that every row matters by how large it is.
      rows = [
        jnp.sum(
          jnp.where(where.reshape(-1, *[1] * (x.ndim - 1)), jnp.square(x), 0)
        )
        for x in jax.tree.leaves(found)
      ]
      return sum(rows), (found, changed)

    return jax.value_and_grad(value, has_aux=True)(variables["params"])

  return run


class TestProbes:
  @pytest.mark.slow
  @pytest.mark.parametrize("stage", ["stage1", "stage2"])
  def test_padding_changes_nothing(self, gradient, stage):
    variables = read_variables(stage, "initial_state", np.float32)
    features = read_features(np.float32)
    (value, (found, stats)), grads = gradient(
      stage, variables, features, jnp.ones(6, bool)
    )
    (padded_value, (padded, padded_stats)), padded_grads = gradient(
      stage, variables, pad(features, 5), jnp.arange(11) < 6
    )
    np.testing.assert_allclose(padded_value, value, rtol=1e-5)
    chex.assert_trees_all_close(padded_stats, stats, rtol=1e-5, atol=1e-7)
    chex.assert_trees_all_close(padded_grads, grads, rtol=1e-4, atol=1e-5)
    first = jax.tree.map(lambda x: x[:6], padded)
    chex.assert_trees_all_close(first, found, rtol=1e-4, atol=1e-5)

  def test_a_prompt_is_scored_by_itself(self):
    features = read_features(np.float32)
    broken = jax.tree.map(
      lambda x: (
        x.at[1:].set(jnp.nan) if jnp.issubdtype(x.dtype, jnp.floating) else x
      ),
      features,
    )
    for stage, probe in PROBES.items():
      variables = read_variables(stage, "state_after_3_steps", np.float32)
      one, other = (probe.apply(variables, x) for x in (features, broken))
      for a, b in zip(
        jax.tree.leaves(one), jax.tree.leaves(other), strict=True
      ):
        assert a[0].tolist() == b[0].tolist()

  def test_the_order_of_responses_does_not_matter_to_a_prompt(self):
    features = read_features(np.float32)
    order = jnp.array([2, 0, 1])
    turned = features.replace(
      response_hidden=features.response_hidden[:, order],
      lengths=features.lengths[:, order],
      outside=features.outside[:, order],
    )
    vote, count = PROBES.values()
    variables = read_variables("stage1", "initial_state", np.float32)
    logits, responses = vote.apply(variables, features)
    turned_logits, turned_responses = vote.apply(variables, turned)
    np.testing.assert_allclose(turned_logits, logits, rtol=1e-5)
    np.testing.assert_allclose(
      turned_responses, responses[:, order], rtol=1e-5, atol=1e-6
    )
    variables = read_variables("stage2", "initial_state", np.float32)
    np.testing.assert_allclose(
      count.apply(variables, turned),
      count.apply(variables, features),
      rtol=1e-5,
    )

  def test_responses_for_the_vote_say_nothing_about_the_others(self):
    features = read_features(np.float32)
    hidden = jnp.where(
      features.outside[..., None], features.response_hidden, jnp.nan
    )
    variables = read_variables("stage2", "initial_state", np.float32)
    apply = PROBES["stage2"].apply
    assert (
      apply(variables, features).tolist()
      == apply(variables, features.replace(response_hidden=hidden)).tolist()
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
    assert found.possible.astype(int).tolist() == [
      [1, 1, 0, 0, 0],
      [1, 0, 0, 0, 0],
    ]
    assert found.voted_count.tolist() == [2, 0]

  def test_half_precision_becomes_single(self):
    found = probes.probe_features(
      jnp.ones((1, 2), jnp.bfloat16),
      jnp.ones((1, 3, 2), jnp.bfloat16),
      jnp.zeros((1, 3), int),
      jnp.ones((1, 3), int),
    )
    assert (
      found.prompt_hidden.dtype == found.response_hidden.dtype == np.float32
    )
    assert found.lengths.dtype == np.float32

  def test_no_gradient_reaches_the_policy(self):
    def total(hidden):
      found = probes.probe_features(
        hidden[:, 0], hidden, jnp.zeros((1, 3), int), jnp.ones((1, 3), int)
      )
      return jnp.sum(found.prompt_hidden) + jnp.sum(found.response_hidden)

    assert not jax.grad(total)(jnp.ones((1, 3, 2))).any()

  def test_shapes_have_to_agree(self):
    with pytest.raises(AssertionError):
      probes.probe_features(
        jnp.ones((2, 5)),
        jnp.ones((2, 3, 4)),
        jnp.zeros((2, 3), int),
        jnp.ones((2, 3), int),
      )
