"""Tests of log-probs and entropies in chunks."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from jax.test_util import check_grads

from saw_jax.models import log_probs

B, T, D, V = 5, 7, 11, 47


def inputs(seed=0, rows=B, steps=T, vocabulary=V):
  rng = np.random.default_rng(seed)
  return (
    jnp.asarray(rng.normal(size=(rows, steps, D)), jnp.float32),
    jnp.asarray(rng.normal(size=(D, vocabulary)), jnp.float32),
    jnp.asarray(rng.integers(0, vocabulary, (rows, steps)), jnp.int32),
  )


def plain(hidden, head, targets, *, temperature=1.0):
  return log_probs.log_probs_of(hidden @ head / temperature, targets)


def scalar(fn, hidden, head, targets, **kwargs):
  """Both outputs, each element with a cotangent of its own."""
  values, entropies = fn(hidden, head, targets, **kwargs)
  return jnp.sum(jnp.sin(values)) + jnp.sum(jnp.cos(1.7 * entropies))


def array_sizes(jaxpr):
  """The size of every array that a program makes, inner programs included."""
  for equation in jaxpr.eqns:
    for variable in equation.outvars:
      yield variable.aval.size
    for value in jax.tree.leaves(
      tuple(equation.params.values()),
      is_leaf=lambda x: hasattr(x, "jaxpr") or hasattr(x, "eqns"),
    ):
      if hasattr(value, "jaxpr"):
        yield from array_sizes(value.jaxpr)
      elif hasattr(value, "eqns"):
        yield from array_sizes(value)


class LogProbsOfTest(chex.TestCase):
  def test_agrees_with_numpy_in_float64(self):
    hidden, head, targets = inputs()
    logits = np.asarray(hidden, np.float64) @ np.asarray(head, np.float64)
    actual, entropies = log_probs.log_probs_of(jnp.asarray(logits), targets)
    for b in range(B):
      for t in range(T):
        probs = np.exp(logits[b, t]) / np.exp(logits[b, t]).sum()
        np.testing.assert_allclose(
          actual[b, t], np.log(probs[targets[b, t]]), atol=1e-5
        )
        np.testing.assert_allclose(
          entropies[b, t], -(probs * np.log(probs)).sum(), atol=1e-5
        )


class ChunkedLogProbsTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.parameters(
    # One token, some of the rows, some of the steps, all, more than all.
    (1, 1.0),
    (3, 0.7),
    (10, 1.0),
    (17, 0.7),
    (35, 0.7),
    (1000, 1.0),
  )
  def test_equals_whole_logits_in_value_and_gradient(
    self, chunk_size, temperature
  ):
    fn = functools.partial(log_probs.chunked_log_probs, chunk_size=chunk_size)
    args = inputs()
    actual = self.variant(
      lambda *args: (
        fn(*args, temperature=temperature),
        jax.grad(functools.partial(scalar, fn), (0, 1))(
          *args, temperature=temperature
        ),
      )
    )(*args)
    expected = (
      plain(*args, temperature=temperature),
      jax.grad(functools.partial(scalar, plain), (0, 1))(
        *args, temperature=temperature
      ),
    )
    chex.assert_trees_all_close(actual, expected, atol=3e-5)

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.product(num_bands=(2, 3, 16, 48), chunk_size=(10, 100))
  def test_bands_equal_the_whole_vocabulary(self, num_bands, chunk_size):
    hidden, head, targets = inputs(vocabulary=48)
    # The largest logit falls, and rises, from one band to the next.
    head += 0.03 * jnp.arange(48)[None] * jnp.sign(head)
    # Each token of the vocabulary is taken: the ends of bands are among them.
    targets = targets.at[:].set(jnp.arange(B * T).reshape(B, T) + 13)
    fn = functools.partial(
      log_probs.chunked_log_probs, chunk_size=chunk_size, num_bands=num_bands
    )
    for first in (0, 13):
      args = hidden, head, targets - first
      actual = self.variant(
        lambda *args: (
          fn(*args, temperature=0.7),
          jax.grad(functools.partial(scalar, fn), (0, 1))(
            *args, temperature=0.7
          ),
        )
      )(*args)
      expected = (
        plain(*args, temperature=0.7),
        jax.grad(functools.partial(scalar, plain), (0, 1))(
          *args, temperature=0.7
        ),
      )
      chex.assert_trees_all_close(actual, expected, atol=1e-4, rtol=1e-5)

  def test_bands_hold_no_more_than_their_logits(self):
    hidden, head, targets = inputs(rows=20, vocabulary=8_000)

    def largest(chunk_size, **kwargs):
      fn = functools.partial(
        log_probs.chunked_log_probs, chunk_size=chunk_size, **kwargs
      )
      program = jax.make_jaxpr(
        jax.value_and_grad(functools.partial(scalar, fn), (0, 1))
      )(hidden, head, targets)
      return max(array_sizes(program.jaxpr))

    # Two chunks, of 60 tokens.
    self.assertEqual(largest(60), 60 * 2_000)
    self.assertEqual(largest(60, num_bands=1), 60 * 8_000)
    # One chunk: all are kept for the backward pass, and for that alone.
    self.assertEqual(largest(140), 140 * 8_000)
    program = jax.make_jaxpr(log_probs.chunked_log_probs)(hidden, head, targets)
    self.assertLess(max(array_sizes(program.jaxpr)), 140 * 8_000)

  def test_a_vocabulary_that_may_be_split_is_not_taken_apart(self):
    args = inputs(vocabulary=4_000)

    def sizes():
      program = jax.make_jaxpr(log_probs.chunked_log_probs)(*args)
      return set(array_sizes(program.jaxpr))

    band, whole = B * T * 2_000, B * T * 4_000
    self.assertTrue(band in sizes() and whole not in sizes())
    mesh = jax.make_mesh(
      (4,), ("tensor",), axis_types=(jax.sharding.AxisType.Auto,)
    )
    with jax.set_mesh(mesh):
      self.assertTrue(whole in sizes() and band not in sizes())

  def test_bands_that_do_not_divide_are_refused(self):
    for num_bands in (0, 2, 48):
      with self.assertRaisesRegex(ValueError, "47 logits .* equal bands"):
        log_probs.chunked_log_probs(*inputs(), num_bands=num_bands)

  def test_gradients_agree_with_differences(self):
    hidden, head, targets = inputs(rows=2, steps=3)
    for chunk_size in (2, 100):
      check_grads(
        lambda hidden, head, chunk_size=chunk_size: log_probs.chunked_log_probs(
          hidden, head, targets, temperature=0.8, chunk_size=chunk_size
        ),
        (hidden, head),
        order=1,
        modes=["rev"],
        atol=1e-2,
        rtol=1e-2,
      )

  def test_no_array_has_the_size_of_all_logits(self):
    hidden, head, targets = inputs()

    def sizes(fn):
      program = jax.make_jaxpr(
        jax.value_and_grad(functools.partial(scalar, fn), (0, 1))
      )(hidden, head, targets)
      return list(array_sizes(program.jaxpr))

    chunked = functools.partial(log_probs.chunked_log_probs, chunk_size=10)
    # The gradient of the head outweighs a chunk of ten logits.
    self.assertEqual(max(sizes(chunked)), D * V)
    # The walk does see them where they are.
    self.assertEqual(max(sizes(plain)), B * T * V)

  @parameterized.parameters((11, 10), (100, 16), (1, 1))
  def test_a_chunk_is_never_larger_than_asked(self, rows, chunk_size):
    hidden, head, targets = inputs(rows=rows)
    program = jax.make_jaxpr(
      functools.partial(log_probs.chunked_log_probs, chunk_size=chunk_size)
    )(hidden, head, targets)
    # The head itself, and the padded stream, may be larger than the logits.
    limit = max(chunk_size * V, D * V, 2 * hidden.size)
    self.assertLessEqual(max(array_sizes(program.jaxpr)), limit)

  def test_one_chunk_needs_no_loop(self):
    args = inputs()
    for chunk_size, loops in ((B * T, False), (B * T - 1, True)):
      program = str(
        jax.make_jaxpr(
          jax.grad(
            functools.partial(
              scalar,
              functools.partial(
                log_probs.chunked_log_probs, chunk_size=chunk_size
              ),
            )
          )
        )(*args)
      )
      self.assertEqual("scan[" in program, loops)

  @parameterized.parameters((B * T, 3), (B * T - 1, 4))
  def test_one_chunk_is_not_computed_twice(self, chunk_size, products):
    fn = functools.partial(log_probs.chunked_log_probs, chunk_size=chunk_size)
    program = jax.make_jaxpr(
      jax.value_and_grad(functools.partial(scalar, fn), (0, 1))
    )(*inputs())
    self.assertEqual(str(program).count("dot_general["), products)

  @parameterized.product(head_axis=(0, None), num_bands=(1, 6))
  @pytest.mark.slow
  def test_a_leading_axis_of_seeds_equals_one_at_a_time(
    self, head_axis, num_bands
  ):
    hiddens, heads, targets = jax.tree.map(
      lambda *xs: jnp.stack(xs),
      *(inputs(seed, vocabulary=48) for seed in range(3)),
    )
    heads = heads if head_axis == 0 else heads[0]
    fn = functools.partial(
      log_probs.chunked_log_probs, chunk_size=10, num_bands=num_bands
    )

    def total(hiddens, heads):
      return jnp.sum(
        jax.vmap(functools.partial(scalar, fn), (0, head_axis, 0))(
          hiddens, heads, targets
        )
      )

    def expected_total(hiddens, heads):
      return sum(
        scalar(plain, hiddens[n], heads if head_axis is None else heads[n], y)
        for n, y in enumerate(targets)
      )

    actual = jax.value_and_grad(total, (0, 1))(hiddens, heads)
    expected = jax.value_and_grad(expected_total, (0, 1))(hiddens, heads)
    chex.assert_trees_all_close(actual, expected, atol=1e-4)

  @parameterized.parameters(1, 6)
  def test_rows_split_over_devices_have_the_same_gradient(self, num_bands):
    hidden, head, targets = inputs(rows=8, vocabulary=48)
    fn = functools.partial(
      log_probs.chunked_log_probs, chunk_size=6, num_bands=num_bands
    )
    mesh = jax.make_mesh(
      (4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
    )
    rows = jax.P("data")

    @functools.partial(
      jax.shard_map, mesh=mesh, in_specs=(rows, jax.P(), rows), out_specs=rows
    )
    def split(hidden, head, targets):
      return fn(hidden, head, targets)

    gradient = jax.jit(jax.grad(functools.partial(scalar, split), (0, 1)))
    expected = jax.grad(functools.partial(scalar, plain), (0, 1))(
      hidden, head, targets
    )
    chex.assert_trees_all_close(
      gradient(hidden, head, targets), expected, atol=3e-5
    )
    # The same under `jit`, where the compiler does the splitting.
    sharding = jax.sharding.NamedSharding(mesh, rows)
    gradient = jax.jit(jax.grad(functools.partial(scalar, fn), (0, 1)))
    placed = jax.device_put((hidden, targets), sharding)
    chex.assert_trees_all_close(
      gradient(placed[0], head, placed[1]), expected, atol=3e-5
    )

  def test_bfloat16_streams_have_float32_log_probs(self):
    hidden, head, targets = inputs()
    low = hidden.astype(jnp.bfloat16)
    actual, entropies = log_probs.chunked_log_probs(low, head, targets)
    self.assertEqual(actual.dtype, jnp.float32)
    self.assertEqual(entropies.dtype, jnp.float32)
    # Products of bfloat16 numbers, added and normalised in float32.
    expected = plain(
      low.astype(jnp.float32),
      head.astype(jnp.bfloat16).astype(jnp.float32),
      targets,
    )
    chex.assert_trees_all_close((actual, entropies), expected, atol=1e-5)
    gradients = jax.grad(
      functools.partial(scalar, log_probs.chunked_log_probs), (0, 1)
    )(low, head, targets)
    self.assertEqual(gradients[0].dtype, jnp.bfloat16)
    self.assertEqual(gradients[1].dtype, jnp.float32)

  @parameterized.parameters(1, 6)
  def test_extreme_logits_stay_finite(self, num_bands):
    hidden, head, targets = inputs(vocabulary=48)
    fn = functools.partial(log_probs.chunked_log_probs, num_bands=num_bands)
    outputs = fn(1e3 * hidden, head, targets)
    gradients = jax.grad(functools.partial(scalar, fn), (0, 1))(
      1e3 * hidden, head, targets
    )
    chex.assert_tree_all_finite((outputs, gradients))
    self.assertLessEqual(float(outputs[0].max()), 0.0)
    self.assertGreaterEqual(float(outputs[1].min()), 0.0)
    chex.assert_trees_all_close(
      outputs, plain(1e3 * hidden, head, targets), rtol=1e-5, atol=1e-3
    )

  def test_no_rows_or_no_steps_are_legal(self):
    hidden, head, targets = inputs()
    for b, t in ((0, T), (B, 0)):
      outputs = log_probs.chunked_log_probs(
        hidden[:b, :t], head, targets[:b, :t]
      )
      chex.assert_shape(outputs, (b, t))

  def test_a_chunk_of_nothing_is_refused(self):
    with self.assertRaisesRegex(ValueError, "chunk_size"):
      log_probs.chunked_log_probs(*inputs(), chunk_size=0)
