"""Tests of saw_jax/contrib/hosted.py."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.saw import tool_calling
from saw_jax import advantages, losses, stale_losses, weighting
from saw_jax.algorithms import AlgorithmConfig, KLConfig, WorldModelConfig
from saw_jax.contrib import hosted
from saw_jax.run import config as config_lib

P, G, M, T = 3, 4, 2, 5
MINIMA = (-3.0, 0.0)
GDPO_SAW = dict(advantage="gdpo", weights="saw")
# A clipped loss, an entropy bonus and a KL term.
THREE = dict(
  loss_options={"clip_low": 0.1, "clip_high": 0.3},
  entropy_coefficient=0.25,
  kl=KLConfig(placement="loss", coefficient=0.5),
)
A = np.linspace(-1, 1, P * G, dtype=np.float32)


def make(minima=MINIMA, **options):
  return hosted.make_hosted(AlgorithmConfig(**options), minima=minima)


def sample(seed=0):
  rng = np.random.default_rng(seed)
  log_probs, old, ref = -rng.uniform(0.1, 3, (3, P * G, T)).astype(np.float32)
  mask = rng.random((P * G, T)) < 0.6
  mask[:, 0] = True
  entropies = rng.uniform(0, 2, (P * G, T)).astype(np.float32)
  return log_probs, old, ref, entropies, mask


def rewards(seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(-3, 4, (P * G, M)).astype(np.float32)


def test_advantages_are_of_the_rows_weighting_and_estimator():
  method = make(**GDPO_SAW)
  r, lengths = rewards(), np.arange(1, P * G + 1)
  got, statistics = method.estimate(r, group_size=G, lengths=lengths)
  groups = jnp.asarray(r).reshape(P, G, M)
  weights = weighting.saw_weights(groups, minima=np.float32(MINIMA))
  want = advantages.gdpo(groups, weights, lengths=lengths.reshape(P, G))
  np.testing.assert_allclose(statistics["weight"], weights, rtol=1e-6)
  np.testing.assert_allclose(got, want.reshape(-1), atol=1e-6)


def test_nan_is_unscored_and_not_zero():
  method = make(advantage="grpo", weights="equal")
  r = rewards()
  r[1] = np.nan
  got, _ = method.estimate(r, group_size=G)
  rest = np.delete(r[:G], 1, axis=0).sum(-1)
  want = (rest - rest.mean()) / (rest.std(ddof=1) + 1e-6)
  np.testing.assert_allclose(np.delete(got[:G], 1), want, atol=1e-5)
  assert got[1] == 0


@pytest.mark.parametrize(
  ("matrix", "message"),
  [
    (np.zeros((P * G, 3)), "2 components"),
    (np.zeros(P * G), "2 components"),
    (np.zeros((P * G - 1, M)), "no whole groups of 4"),
    (np.full((P * G, M), np.inf), "component 0 of response 0 is inf"),
  ],
)
def test_what_is_no_matrix_of_groups_is_refused(matrix, message):
  method = make(**GDPO_SAW)
  with pytest.raises(ValueError, match=message):
    method.estimate(matrix, group_size=G, lengths=np.ones(len(matrix)))


@pytest.mark.parametrize(
  ("advantage", "options", "needs"),
  [
    ("gdpo", {}, True),
    ("gdpo", {"whiten": "sequence"}, False),
    ("gdpo", {"whiten": "none"}, False),
    ("grpo", {}, False),
  ],
)
def test_a_method_tells_whether_it_needs_lengths(advantage, options, needs):
  method = make(advantage=advantage, advantage_options=options)
  assert method.needs_lengths is needs
  is_fine = contextlib.nullcontext()
  with pytest.raises(ValueError, match="lengths") if needs else is_fine:
    method.estimate(rewards(), group_size=G)


@pytest.mark.parametrize("row", ["grpo", "grpo_saw", "gdpo", "gdpo_saw"])
def test_a_row_of_a_table_is_hosted(row):
  config = tool_calling.get_config(f"row={row},scale=tiny")
  algorithm = config_lib.typed(config).algorithm
  method, lengths = hosted.make_hosted(algorithm, minima=MINIMA), np.ones(P * G)
  got, found = method.estimate(rewards(), group_size=G, lengths=lengths)
  assert np.isfinite(got).all() and np.abs(got).max() > 0.5
  assert (np.ptp(found["weight"]) > 1e-3) == row.endswith("_saw")


@pytest.mark.slow
def test_terms_are_the_losses_of_the_row():
  method = make(**THREE, aggregate="sequence_mean_token_mean")
  log_probs, old, ref, entropies, mask = sample()
  over = dict(aggregate=losses.sequence_mean_token_mean)

  def ours(x, e):
    terms, _ = method.terms(x, e, A, mask, old_log_probs=old, ref_log_probs=ref)
    return hosted.total_loss(terms)

  def direct(x, e):
    clips = THREE["loss_options"]
    policy = losses.clipped_surrogate_loss(x, old, A, mask, **clips, **over)
    kl = losses.kl_loss(x, ref, mask, **over)
    entropy = losses.entropy_loss(e, mask)
    return policy.value() + 0.5 * kl.value() + 0.25 * entropy.value()

  got = jax.value_and_grad(ours, argnums=(0, 1))(log_probs, entropies)
  want = jax.value_and_grad(direct, argnums=(0, 1))(log_probs, entropies)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
  jax.tree.map(close, got, want)
  assert method.kl_coefficient == 0.5


@pytest.mark.parametrize(
  ("name", "loss"),
  [("asympo", stale_losses.asympo_loss), ("spo", stale_losses.spo_loss)],
)
def test_losses_of_the_current_policy_need_no_other_log_probs(name, loss):
  method = make(loss=name, aggregate="sequence_mean_token_mean")
  log_probs, _, _, entropies, mask = sample()
  got = hosted.total_loss(method.terms(log_probs, entropies, A, mask)[0])
  want = loss(log_probs, A, mask).value()
  np.testing.assert_allclose(got, want, rtol=1e-6)


def test_terms_read_nothing_under_the_mask():
  method = make(**GDPO_SAW)
  log_probs, old, _, entropies, mask = sample()

  def loss(x, o, e):
    terms, _ = method.terms(x, e, A, mask, old_log_probs=o)
    return hosted.total_loss(terms)

  dirty = [np.where(mask, x, np.nan) for x in (log_probs, old, entropies)]
  grad = jax.value_and_grad(loss)
  want, got = grad(log_probs, old, entropies), grad(*dirty)
  jax.tree.map(np.testing.assert_array_equal, got, want)


def test_terms_name_what_they_miss():
  method = make(loss="tis")
  log_probs, _, _, entropies, mask = sample()
  assert method.needs_behave
  with pytest.raises(ValueError, match="behave_log_probs"):
    method.terms(log_probs, entropies, np.ones(P * G), mask)


@pytest.mark.slow
@pytest.mark.parametrize(
  "aggregate",
  ["token_mean", "sequence_mean_token_mean", "sequence_mean_token_sum"],
)
def test_parts_add_up_to_the_whole(aggregate):
  method = make(**THREE, aggregate=aggregate)
  log_probs, old, ref, entropies, mask = sample()
  counts = hosted.denominators(method, A, mask)

  def part(rows, counts=None):
    recorded = dict(old_log_probs=old[rows], ref_log_probs=ref[rows])
    given = (x[rows] for x in (log_probs, entropies, A, mask))
    return hosted.total_loss(method.terms(*given, **recorded)[0], counts)

  whole = part(slice(None))
  parts = [part(slice(0, 5), counts), part(slice(5, None), counts)]
  np.testing.assert_allclose(sum(parts), whole, rtol=1e-5)
  # Unequal numbers of tokens: the mean of the parts is another number.
  naive = (part(slice(0, 5)) + part(slice(5, None))) / 2
  assert abs(naive - whole) > 1e-3


@pytest.mark.parametrize(
  ("options", "word"),
  [
    (dict(advantage="gigpo"), "episodes"),
    (dict(weights="gradient"), "backward"),
    (dict(kl=KLConfig("reward", "k1", 0.1)), "kl.placement='loss'"),
    (dict(world_model=WorldModelConfig(loss="cross_entropy")), "world_model"),
    (dict(minima=()), "minima"),
  ],
)
def test_what_a_host_does_not_have_is_refused(options, word):
  with pytest.raises(ValueError, match=word):
    make(**options)
