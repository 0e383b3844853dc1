"""The networks of the probes, and what they are trained on."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from saw_jax.labels import care, probes, replay
from tests.labels.golden_test import INPUTS
from tests.labels.golden_test import PROBES as GOLDEN

DTYPES = ((np.float64, 1e-9), (np.float32, 1e-5))
WIDTHS = (3, 4, 2, 3)
PROBES = {
  "stage1": probes.VoteProbe(WIDTHS),
  "stage2": probes.CountProbe(WIDTHS),
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
  state = {"params": {}, "batch_stats": {}}
  for key, value in GOLDEN[stage][name].items():
    part, layer, leaf = key.split(".")
    part, layer = PARTS[part], LAYERS[layer]
    part = part[stage] if isinstance(part, dict) else part
    if leaf == "num_batches_tracked":
      continue
    if leaf == "weight":
      leaf = "scale" if layer == "norm" else "kernel"
    kind = "batch_stats" if leaf.startswith("running_") else "params"
    leaves = state[kind].setdefault(part, {}).setdefault(layer, {})
    leaves[leaf.removeprefix("running_")] = jnp.array(value, dtype).T
  return state


def read_features(dtype):
  """The golden inputs: 6 prompts of 3 responses."""
  prompt, response, feat = (
    jnp.array(INPUTS[name], dtype) for name in ("hidden", "resp", "feat")
  )
  outside, possible = (
    jnp.array(INPUTS[f"stage2_{name}_valid_mask"], bool)
    for name in ("resp", "class")
  )
  rest = feat[:, :4], feat[:, 4:], outside, possible, jnp.ones(6, jnp.int32)
  return replay.ProbeFeatures(prompt, response, *rest)


def pad(tree, rows):
  """Adds rows of junk at the end."""

  def leaf(x):
    junk = np.nan if jnp.issubdtype(x.dtype, jnp.floating) else 1
    return jnp.concatenate([x, jnp.full((rows, *x.shape[1:]), junk, x.dtype)])

  return jax.tree.map(leaf, tree)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_golden_logits(stage):
  golden, apply = GOLDEN[stage], PROBES[stage].apply
  for dtype, rtol in DTYPES:
    with jax.enable_x64(dtype is np.float64):
      features = read_features(dtype)
      for state, logits in (
        ("initial_state", golden["eval_logits_at_init"]),
        ("state_after_3_steps", golden["eval_logits_after_3_steps"]),
      ):
        found = apply(read_variables(stage, state, dtype), features)
        found = found[0] if stage == "stage1" else found
        assert found.dtype == dtype
        np.testing.assert_allclose(found, logits, rtol=rtol)
      found, _ = apply(
        read_variables(stage, "initial_state", dtype),
        features,
        jnp.ones(6, bool),
        mutable="batch_stats",
      )
      found = found if stage == "stage1" else (found,)
      for name, value in zip(("logits", "aux_logits"), found, strict=False):
        want = golden["steps"][0][f"train_{name}"]
        np.testing.assert_allclose(value, want, rtol=rtol)


class TestSizes:
  @pytest.mark.parametrize(
    ("hidden_size", "vote", "count"),
    [(2048, 767_896, 603_739), (4096, 1_169_304, 1_005_147)],
  )
  def test_numbers_of_parameters(self, hidden_size, vote, count):
    features, _ = replay.make_replay(2, 8, hidden_size).samples
    for kind, want in ((probes.VoteProbe, vote), (probes.CountProbe, count)):
      init = kind(care.CareSettings().widths).init
      variables = jax.eval_shape(init, jax.random.key(0), features)
      leaves = jax.tree.leaves(variables["params"])
      assert sum(leaf.size for leaf in leaves) == want

  @pytest.mark.slow
  def test_initial_values(self):
    features, _ = replay.make_replay(2, 3, 5).samples
    probe = probes.VoteProbe(care.CareSettings().widths)
    variables = probe.init(jax.random.key(0), features)
    layer = variables["params"]["response"]["linear_1"]  # 64 inputs
    for leaf in (layer["kernel"], layer["bias"]):
      assert 0.95 / 8 < np.abs(leaf).max() <= 1 / 8
      assert abs(float(leaf.mean())) < 0.02


@pytest.mark.parametrize(
  ("x", "want", "stats"),
  [
    # Mean 2, variance 1 to divide by and 2 to remember; 6 and 9; a single row.
    ([[1.0], [3.0]], [[-1], [1]], {"mean": [0.2], "var": [1.1]}),
    ([[0.0], [3.0], [6.0]], [[-(1.5**0.5)], [0], [1.5**0.5]], {"var": [1.8]}),
    ([[5.0, 7.0]], [[0, 0]], {"mean": [0.5, 0.7], "var": [0.9, 0.9]}),
  ],
)
def test_batch_norm_by_hand(x, want, stats):
  norm, x = probes.BatchNorm(), jnp.array(x)
  variables = norm.init(jax.random.key(0), x)
  where = jnp.ones(len(x), bool)
  found, changed = norm.apply(variables, x, where, mutable="batch_stats")
  np.testing.assert_allclose(found, want, rtol=1e-4)
  for name, value in stats.items():
    np.testing.assert_allclose(changed["batch_stats"][name], value, rtol=1e-6)


@functools.partial(jax.jit, static_argnames="stage")
def gradient(stage, variables, features, where):
  """A number like a loss, logits, statistics, and the gradient of a probe."""

  def value(params):
    found, changed = PROBES[stage].apply(
      variables | {"params": params}, features, where, mutable="batch_stats"
    )
    # Squares, so that every row matters by how large it is.
    rows = jax.tree.map(jnp.square, replay.take_present(found, where))
    return sum(map(jnp.sum, jax.tree.leaves(rows))), (found, changed)

  return jax.value_and_grad(value, has_aux=True)(variables["params"])


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_padding_changes_nothing_of_a_probe(stage):
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


class TestClasses:
  def test_weights_by_hand(self):
    labels = np.array([0] * 100 + [1, -1, 9, 1])  # two of no class
    for there, want in ((103, [0.25, 20 / 11]), (0, [0, 0])):
      found = probes.class_weights(labels, 2, np.arange(104) < there)
      np.testing.assert_allclose(found, want, rtol=1e-6)

  def test_what_is_impossible_may_be_any_number(self):
    logits = np.array([[0.0, np.nan, 0.0, np.inf]])
    found = probes.class_probabilities(logits, np.isfinite(logits))
    np.testing.assert_allclose(found, [[0.5, 0, 0.5, 0]], rtol=1e-6)


class TestLosses:
  def test_gradients(self):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(4, 3)), np.array([0, 2, 1, 1])
    mask = np.array([[1, 1, 0], [0, 1, 1], [1, 1, 1], [1, 1, 0]], bool)
    weights = np.array([1.0, 2.0, 0.5])
    loss = functools.partial(probes.weighted_cross_entropy, class_mask=mask)
    with jax.enable_x64(True):
      check_grads(
        lambda x: loss(x, labels, weights), (logits,), order=1, modes=["rev"]
      )

  def test_no_samples(self):
    logits, nothing = np.full((2, 3), np.nan, np.float32), np.zeros(2, bool)
    options = dict(class_mask=np.zeros((2, 3), bool), where=nothing)
    loss = functools.partial(probes.weighted_cross_entropy, **options)
    labels = np.array([0, -5])
    value, gradient = jax.value_and_grad(loss)(logits, labels, np.ones(3))
    assert value == 0 and not gradient.any()

  @pytest.mark.slow
  def test_padding_changes_nothing(self):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 4)).astype(np.float32)
    answers = rng.normal(size=(5, 3, 2)).astype(np.float32)
    possible = np.arange(4) < np.full((5, 1), 3)
    for fn, arrays in (
      (probes.balanced_loss, (logits[:, :2], rng.integers(0, 2, 5))),
      (probes.response_loss, (answers, rng.integers(0, 2, (5, 3)))),
      (probes.count_loss, (logits, rng.integers(0, 3, 5), possible)),
    ):
      loss, gradient = jax.value_and_grad(fn)(*arrays)
      value, padded = jax.value_and_grad(fn)(
        *pad(arrays, 3), where=np.arange(8) < 5
      )
      np.testing.assert_allclose(value, loss, rtol=1e-6)
      np.testing.assert_allclose(padded[:5], gradient, rtol=1e-5)
      assert not padded[5:].any()

  def test_the_true_count_is_always_a_class(self):
    # Two clusters of one are both right: 2 is the size of neither.
    mask = np.array([[True, True, False, False]])
    loss = probes.count_loss(np.zeros((1, 4)), np.array([2]), mask)
    np.testing.assert_allclose(loss, np.log(3), rtol=1e-6)
