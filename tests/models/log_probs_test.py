"""Tests of log-probs and entropies in chunks."""

import contextlib
import functools
import math
import re

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saw_jax.models import log_probs
from saw_jax.training import parallel

B, T, D, V = 5, 7, 11, 47


def inputs(seed=0, rows=B, steps=T, vocabulary=V):
  rng = np.random.default_rng(seed)
  return (
    rng.normal(size=(rows, steps, D)).astype(np.float32),
    rng.normal(size=(D, vocabulary)).astype(np.float32),
    rng.integers(0, vocabulary, (rows, steps)).astype(np.int32),
  )


def mesh(axis):
  return jax.make_mesh((4,), (axis,), axis_types=(jax.sharding.AxisType.Auto,))


def plain(hidden, head, targets, *, temperature=1.0):
  return log_probs.log_probs_of(hidden @ head / temperature, targets)


def scalar(fn, hidden, head, targets, **kwargs):
  """Both outputs, each element with a cotangent of its own."""
  values, entropies = fn(hidden, head, targets, **kwargs)
  return jnp.sum(jnp.sin(values)) + jnp.sum(jnp.cos(1.7 * entropies))


def chunked(**options):
  return functools.partial(log_probs.chunked_log_probs, **options)


def outputs_and_gradients(fn, *args, **kwargs):
  gradient = jax.grad(functools.partial(scalar, fn), (0, 1))
  return fn(*args, **kwargs), gradient(*args, **kwargs)


def compiled(fn, **kwargs):
  return jax.jit(functools.partial(outputs_and_gradients, fn, **kwargs))


plainly = compiled(plain, temperature=0.7)


def program_of(fn, *args):
  """The program of value and gradient."""
  total = functools.partial(scalar, fn)
  return jax.make_jaxpr(jax.value_and_grad(total, (0, 1)))(*args)


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


def largest(fn, *args):
  return max(array_sizes(program_of(fn, *args).jaxpr))


def test_whole_logits_agree_with_numpy_in_float64():
  hidden, head, targets = inputs()
  logits = hidden.astype(np.float64) @ head.astype(np.float64)
  found = log_probs.log_probs_of(jnp.asarray(logits), targets)
  probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  taken = np.take_along_axis(np.log(probs), targets[..., None], -1)[..., 0]
  entropies = -(probs * np.log(probs)).sum(-1)
  chex.assert_trees_all_close(found, (taken, entropies), atol=1e-5)


@pytest.mark.parametrize(
  ("chunk_size", "temperature"),
  # One token, some of the rows, some of the steps, all, more than all.
  [(1, 1.0), (3, 0.7), (10, 1.0), (17, 0.7), (35, 0.7), (1000, 1.0)],
)
def test_chunks_equal_whole_logits(chunk_size, temperature):
  fn, how = chunked(chunk_size=chunk_size), {"temperature": temperature}
  expected = compiled(plain, **how)(*inputs())
  found = compiled(fn, **how)(*inputs())
  chex.assert_trees_all_close(found, expected, atol=3e-5)
  if chunk_size == 10:  # op by op
    found = outputs_and_gradients(fn, *inputs(), **how)
    chex.assert_trees_all_close(found, expected, atol=3e-5)


@pytest.mark.parametrize("num_bands", [2, 3, 16, 48])
@pytest.mark.parametrize("chunk_size", [10, 100])
def test_bands_equal_the_whole_vocabulary(num_bands, chunk_size):
  hidden, head, targets = inputs(vocabulary=48)
  # The largest logit falls, and rises, from one band to the next.
  head += np.float32(0.03) * np.arange(48, dtype=np.float32) * np.sign(head)
  # Each token of the vocabulary is taken: the ends of bands are among them.
  targets[:] = np.arange(B * T).reshape(B, T) + 13
  fn = chunked(chunk_size=chunk_size, num_bands=num_bands)
  fn = compiled(fn, temperature=0.7)
  for first in (0, 13):
    args = hidden, head, targets - first
    chex.assert_trees_all_close(fn(*args), plainly(*args), atol=1e-4, rtol=1e-5)


def test_bands_hold_no_more_than_their_logits():
  args = inputs(rows=100, vocabulary=8_000)
  # Three chunks, of 300 tokens.
  assert largest(chunked(chunk_size=300), *args) == 300 * 1_000
  assert largest(chunked(chunk_size=300, num_bands=1), *args) == 300 * 8_000
  # One chunk: all are kept for the backward pass, and for that alone.
  assert largest(chunked(chunk_size=700), *args) == 700 * 8_000
  program = jax.make_jaxpr(log_probs.chunked_log_probs)(*args)
  assert max(array_sizes(program.jaxpr)) < 700 * 8_000


def test_a_vocabulary_that_may_be_split_is_not_taken_apart():
  args = inputs(vocabulary=4_000)

  def sizes():
    program = jax.make_jaxpr(log_probs.chunked_log_probs)(*args)
    return set(array_sizes(program.jaxpr))

  band, whole = B * T * 1_000, B * T * 4_000
  assert band in sizes() and whole not in sizes()
  with jax.set_mesh(mesh("tensor")):
    assert whole in sizes() and band not in sizes()


@pytest.mark.parametrize(
  "option", [{"num_bands": n} for n in (0, 2, 48)] + [{"chunk_size": 0}]
)
def test_sizes_that_cannot_be_are_refused(option):
  word = "47" if "num_bands" in option else "chunk_size"
  with pytest.raises(ValueError, match=word):
    log_probs.chunked_log_probs(*inputs(), **option)


@pytest.mark.parametrize(("rows", "chunk_size"), [(11, 10), (100, 16), (1, 1)])
def test_a_chunk_is_never_larger_than_asked(rows, chunk_size):
  args = inputs(rows=rows)
  program = jax.make_jaxpr(chunked(chunk_size=chunk_size))(*args)
  # The head itself, and the padded stream, may be larger than the logits.
  limit = max(chunk_size * V, D * V, 2 * args[0].size)
  assert max(array_sizes(program.jaxpr)) <= limit


@pytest.mark.parametrize(
  ("chunk_size", "products", "loops"), [(B * T, 3, False), (B * T - 1, 4, True)]
)
def test_one_chunk_is_not_computed_twice(chunk_size, products, loops):
  program = str(program_of(chunked(chunk_size=chunk_size), *inputs()))
  assert program.count("dot_general[") == products
  assert ("scan[" in program) == loops


@pytest.mark.parametrize("head_axis", [0, None])
@pytest.mark.parametrize("num_bands", [1, 6])
@pytest.mark.slow
def test_a_leading_axis_of_seeds_equals_one_at_a_time(head_axis, num_bands):
  hiddens, heads, targets = jax.tree.map(
    lambda *xs: np.stack(xs),
    *(inputs(seed, vocabulary=48) for seed in range(3)),
  )
  heads = heads if head_axis == 0 else heads[0]
  fn = functools.partial(scalar, chunked(chunk_size=10, num_bands=num_bands))

  def total(hiddens, heads):
    each = jax.vmap(fn, (0, head_axis, 0))(hiddens, heads, targets)
    return jnp.sum(each)

  def expected_total(hiddens, heads):
    return sum(
      scalar(plain, hiddens[n], heads if head_axis is None else heads[n], y)
      for n, y in enumerate(targets)
    )

  actual, expected = (
    jax.jit(jax.value_and_grad(f, (0, 1)))(hiddens, heads)
    for f in (total, expected_total)
  )
  chex.assert_trees_all_close(actual, expected, atol=1e-4)


@pytest.mark.parametrize("num_bands", [1, 6])
def test_rows_split_over_devices_have_the_same_gradient(num_bands):
  hidden, head, targets = inputs(rows=8, vocabulary=48)
  fn = chunked(chunk_size=6, num_bands=num_bands)
  rows, four = jax.P("data"), mesh("data")
  specs = dict(in_specs=(rows, jax.P(), rows), out_specs=rows)
  split = jax.shard_map(fn, mesh=four, **specs)

  def gradient(fn):
    return jax.jit(jax.grad(functools.partial(scalar, fn), (0, 1)))

  expected = gradient(plain)(hidden, head, targets)
  found = gradient(split)(hidden, head, targets)
  chex.assert_trees_all_close(found, expected, atol=3e-5)
  # The same under `jit`, where the compiler does the splitting.
  sharding = jax.sharding.NamedSharding(four, rows)
  placed = jax.device_put((hidden, targets), sharding)
  found = gradient(fn)(placed[0], head, placed[1])
  chex.assert_trees_all_close(found, expected, atol=3e-5)


@contextlib.contextmanager
def meshed(*sizes):
  config = parallel.ParallelConfig("meshed", *sizes)
  with jax.set_mesh(parallel.make_mesh(config)):
    with nn.logical_axis_rules(parallel.RULES):
      yield


# Six rows over four devices are padded, a width of 11 over two is kept whole.
@pytest.mark.parametrize("sizes", [(2, 2, 1), (1, 2, 2), (1, 1, 4)])
@pytest.mark.parametrize(("width", "num_bands"), [(10, 1), (11, 1), (10, 3)])
def test_a_head_split_over_a_mesh_gives_the_same(sizes, width, num_bands):
  hidden, head, targets = inputs(rows=6, vocabulary=48)
  args = hidden[..., :width], head[:width], targets
  expected = compiled(plain)(*args)
  with meshed(*sizes):
    found = compiled(chunked(chunk_size=4, num_bands=num_bands))(*args)
  chex.assert_trees_all_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("chunk_size", [2, 14])
@pytest.mark.parametrize("num_bands", [1, 3])
def test_devices_exchange_bands_of_the_head_and_not_for_each_chunk(
  num_bands, chunk_size
):
  hidden, head, targets = inputs(rows=8, vocabulary=48)
  fn = chunked(chunk_size=chunk_size, num_bands=num_bands)
  with meshed(1, 4, 1):
    split = jax.P("fsdp")
    args = jax.device_put((hidden[..., :8], head[:8]), split)
    total = jax.grad(functools.partial(scalar, fn), (0, 1))
    total = jax.jit(total, out_shardings=split)
    text = total.lower(*args, targets).compile().as_text()
  # A computation that a loop runs begins with its name.
  computations = dict(
    (part.split(" ")[0], part) for part in re.split(r"\n(?=(?:ENTRY )?%)", text)
  )
  bodies = re.findall(r"body=(%[\w.\-]+)", text)
  bands = [x for x in bodies if "body=" in computations[x]]
  chunks = [computations[x] for x in bodies if x not in bands]
  sent = r"(?:all-\w+|reduce-scatter|collective-\w+)(?=\()"
  is_looped = chunk_size < 14
  if is_looped:
    assert not re.findall(sent, "".join(chunks))
    assert len(bands) == (2 if num_bands > 1 else 0)
  found = sorted(re.findall(sent, text))
  assert found == ["all-gather"] * (len(found) - 1) + ["reduce-scatter"]
  # Of its columns or rows, at a time.
  sizes = re.findall(r"= f32\[([\d,]+)\]\S* all-gather\(", text)
  assert {math.prod(map(int, x.split(","))) for x in sizes} == {
    8 * 48 // num_bands
  }


@pytest.mark.parametrize(
  ("vocab_size", "num_bands"),
  # The largest is Qwen2.5's; the last one has no divisor that would do.
  [(151_936, 8), (49_152, 3), (32_000, 2), (512, 1), (149 * 1_009, 1)],
)
def test_bands_of_an_accelerator_are_wide(monkeypatch, vocab_size, num_bands):
  monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
  assert log_probs.choose_bands(vocab_size) == num_bands


def test_bfloat16_streams_have_float32_log_probs():
  hidden, head, targets = inputs()
  low = hidden.astype(jnp.bfloat16)
  outputs, gradients = compiled(chunked())(low, head, targets)
  # Products of bfloat16 numbers, added and normalised in float32.
  rounded = head.astype(jnp.bfloat16).astype(jnp.float32)
  expected = jax.jit(plain)(low.astype(jnp.float32), rounded, targets)
  chex.assert_trees_all_close(outputs, expected, atol=1e-5)
  dtypes = [x.dtype for x in (*outputs, *gradients)]
  assert dtypes == [jnp.float32, jnp.float32, jnp.bfloat16, jnp.float32]


@pytest.mark.parametrize("num_bands", [1, 6])
def test_extreme_logits_stay_finite(num_bands):
  hidden, head, targets = inputs(vocabulary=48)
  args = np.float32(1e3) * hidden, head, targets
  fn = chunked(num_bands=num_bands)
  outputs, gradients = compiled(fn)(*args)
  chex.assert_tree_all_finite((outputs, gradients))
  assert outputs[0].max() <= 0 and outputs[1].min() >= 0
  expected = jax.jit(plain)(*args)
  chex.assert_trees_all_close(outputs, expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(("b", "t"), [(0, T), (B, 0)])
def test_no_rows_or_no_steps_are_legal(b, t):
  hidden, head, targets = inputs()
  outputs = log_probs.chunked_log_probs(hidden[:b, :t], head, targets[:b, :t])
  chex.assert_shape(outputs, (b, t))
