"""Tests of drawing tokens."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from saw_jax.rollout import sampling
from saw_jax.rollout.sampling import SamplingConfig

V = 23


@functools.partial(jax.jit, static_argnums=2)
def draw(keys, logits, config):
  return sampling.sample(keys, logits, config)


def logits_of(rows, seed=0, scale=1.5):
  rng = np.random.default_rng(seed)
  return jnp.asarray(scale * rng.normal(size=(rows, V)), jnp.float32)


def many(config, logits, count=20_000):
  """The tokens and log-probs of many draws from one distribution."""
  keys = jax.random.split(jax.random.key(0), count)
  return draw(keys, jnp.tile(logits, (count, 1)), config)


def kept_by_hand(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
  """The renormalised probabilities, a token at a time."""
  weights = np.exp(np.asarray(logits, np.float64) / temperature)
  order = np.argsort(-weights)[: top_k or None]
  probs = weights / weights[order].sum()
  kept, held = [], 0.0
  for token in order:
    if held >= top_p or probs[token] < min_p * probs[order[0]]:
      break
    kept.append(token)
    held += probs[token]
  result = np.zeros(len(logits))
  result[kept] = weights[kept] / weights[kept].sum()
  return result


@pytest.mark.parametrize(
  "changes",
  [
    {},
    {"temperature": 0.6},
    {"top_k": 5},
    {"top_p": 0.7},
    {"temperature": 1.4, "top_k": 9, "top_p": 0.8},
    {"min_p": 0.2},
    {"temperature": 2.0, "top_k": 12, "top_p": 0.9, "min_p": 0.15},
  ],
)
def test_frequencies_agree_with_the_distribution(changes):
  config = SamplingConfig(**changes)
  logits = logits_of(1)
  tokens, log_probs = many(config, logits)
  probs = kept_by_hand(logits[0], **changes)
  counts = np.bincount(tokens, minlength=V)
  np.testing.assert_array_equal(counts[probs == 0], 0)
  expected = len(tokens) * probs[probs > 0]
  statistic = ((counts[probs > 0] - expected) ** 2 / expected).sum()
  freedom = len(expected) - 1
  # Mean `freedom`, variance twice that: four deviations.
  assert statistic < freedom + 4 * (2 * freedom) ** 0.5
  # And the log-probs are those of this distribution, renormalised.
  np.testing.assert_allclose(log_probs, np.log(probs[tokens]), atol=2e-5)


@pytest.mark.parametrize("changes", [{"top_k": 5}, {"top_p": 0.8}])
@hypothesis.given(seed=st.integers(0, 10**6), grid=st.booleans())
@hypothesis.settings(max_examples=40)
def test_what_is_kept_is_what_sorting_keeps(changes, seed, grid):
  """By the sort, ties and all; also where many tokens tie or cannot be."""
  rng = np.random.default_rng(seed)
  logits = rng.normal(size=(4, V)) * rng.choice([0.1, 3, 40])
  if grid:
    logits = np.round(logits)
    logits[rng.random(logits.shape) < 0.2] = -np.inf
    logits[:, 3] = -0.0
  logits = logits.astype(np.float32)
  config = SamplingConfig(**changes)
  found = jax.jit(sampling._truncate, static_argnums=1)(logits, config)
  ordered = -np.sort(-logits, axis=-1)
  if config.top_k:
    least = ordered[:, config.top_k - 1]
  else:
    probs = np.exp((ordered - ordered[:, :1]).astype(np.float64))
    probs /= probs.sum(-1, keepdims=True)
    before = np.cumsum(probs, -1) - probs
    # A tie of the sum itself is decided by rounding.
    hypothesis.assume(np.abs(before - config.top_p).min() > 1e-6)
    least = np.where(before < config.top_p, ordered, np.inf).min(-1)
  kept = logits >= least[:, None]
  np.testing.assert_array_equal(found, np.where(kept, logits, -np.inf))


def test_impossible_tokens_are_never_drawn():
  possible = np.array([3, 4, 11, 22])
  logits = jnp.full((1, V), -jnp.inf).at[0, possible].set(0.0)
  tokens, log_probs = many(SamplingConfig(), logits)
  assert set(np.asarray(tokens)) == set(possible)
  np.testing.assert_allclose(log_probs, -np.log(4), atol=1e-6)
  # Nor by the ends of the uniform number.
  weights = jnp.zeros((2, V)).at[:, possible].set(1.0)
  tokens = sampling._invert(weights, jnp.array([0.0, 1 - 2.0**-24]))
  np.testing.assert_array_equal(tokens, [3, 22])


def test_a_row_depends_on_its_key_and_logits_alone():
  logits = logits_of(7)
  keys = [jax.random.split(jax.random.key(0), 7) for _ in range(2)]
  tokens, log_probs = draw(keys[0], logits, SamplingConfig())
  order = np.array([4, 0, 6, 2])
  some, some_log_probs = draw(keys[1][order], logits[order], SamplingConfig())
  np.testing.assert_array_equal(some, tokens[order])
  np.testing.assert_array_equal(some_log_probs, log_probs[order])


def test_a_greedy_token_is_the_likeliest_with_its_untempered_log_prob():
  logits = logits_of(7)
  keys = jax.random.split(jax.random.key(0), 7)
  tokens, log_probs = draw(
    keys, logits, SamplingConfig(greedy=True, temperature=0.5, top_k=2)
  )
  np.testing.assert_array_equal(tokens, logits.argmax(-1))
  np.testing.assert_allclose(
    log_probs, jax.nn.log_softmax(logits).max(-1), atol=1e-6
  )


HALF, THIRDS = np.log([0.5, 0.26, 0.24]), np.log([0.34, 0.33, 0.33])


@pytest.mark.parametrize(
  ("changes", "logits", "kept"),
  [
    # Tokens that tie with the last one kept are kept.
    ({"top_k": 2}, [3.0, 1.0, 2.0, 2.0, 2.0, 0.0], [1, 0, 1, 1, 1, 0]),
    # The likeliest is, however small it is.
    ({"top_p": 1e-6}, THIRDS, [1, 0, 0]),
    ({"top_p": 0.5}, HALF, [1, 0, 0]),
    ({"top_p": 0.51}, HALF, [1, 1, 0]),
    # A share of the likeliest.
    ({"min_p": 0.5}, HALF, [1, 1, 0]),
    ({"min_p": 0.5}, THIRDS, [1, 1, 1]),
    ({"min_p": 0.45}, HALF, [1, 1, 1]),
    ({"min_p": 1.0}, THIRDS, [1, 0, 0]),
  ],
)
def test_what_is_excluded_by_hand(changes, logits, kept):
  logits = jnp.asarray(logits, jnp.float32)[None]
  found = sampling._truncate(logits, SamplingConfig(**changes))
  np.testing.assert_array_equal(jnp.isfinite(found[0]), kept)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"temperature": 0.0}, "greedy=True"),
    ({"temperature": float("nan")}, "temperature"),
    ({"top_k": -1}, "top_k"),
    ({"top_p": 0.0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"min_p": -0.1}, "min_p"),
    ({"min_p": 1.1}, "min_p"),
  ],
)
def test_a_config_that_cannot_be_is_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    SamplingConfig(**changes)


@pytest.mark.parametrize(
  ("config", "want"),
  [
    (SamplingConfig(), 1.75 * np.log(2)),
    (SamplingConfig(greedy=True, top_k=1), 1.75 * np.log(2)),
    # Two thirds and a third of what is left.
    (SamplingConfig(top_k=2), np.log(3) - 2 / 3 * np.log(2)),
    (SamplingConfig(top_k=1), 0.0),
  ],
)
def test_entropies_of_truncated_distributions_by_hand(config, want):
  logits = jnp.log(jnp.array([[0.5, 0.25, 0.125, 0.125]]))
  found = sampling.entropies(logits, config)
  np.testing.assert_allclose(found, [want], rtol=1e-5, atol=1e-6)
