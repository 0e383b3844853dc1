"""The projection is a matrix product, whoever differentiates it."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from saw_jax.models.attention import project


def draw(*shape, dtype=jnp.float32):
  rng = np.random.default_rng(sum(shape))
  return jnp.asarray(rng.standard_normal(shape), dtype)


def loss(fn, x, kernel, weights):
  return jnp.sum(weights * jnp.sin(fn(x, kernel)))


@pytest.mark.parametrize("lead", [(), (3,), (2, 5), (2, 1, 4), (0,)])
def test_is_the_product_and_has_its_gradients(lead):
  x, kernel, weights = draw(*lead, 6), draw(6, 4), draw(*lead, 4)
  np.testing.assert_allclose(
    project(x, kernel), np.asarray(x) @ np.asarray(kernel), atol=1e-6
  )
  ours, plain = (
    jax.grad(functools.partial(loss, fn), (0, 1))(x, kernel, weights)
    for fn in (project, jnp.matmul)
  )
  chex.assert_trees_all_close(ours, plain, atol=1e-5)


def test_several_kernels_at_once():
  x, kernels, weights = draw(3, 2, 5, 6), draw(3, 6, 4), draw(3, 2, 5, 4)
  ours, plain = (
    jax.vmap(jax.grad(functools.partial(loss, fn), (0, 1)))(x, kernels, weights)
    for fn in (project, jnp.matmul)
  )
  chex.assert_trees_all_close(ours, plain, atol=1e-5)


def test_gradients_have_the_dtypes_of_the_inputs():
  x, kernel = draw(2, 6, dtype=jnp.bfloat16), draw(6, 4, dtype=jnp.bfloat16)
  assert project(x, kernel).dtype == jnp.bfloat16
  grads = jax.grad(lambda *a: project(*a).sum().astype(jnp.float32), (0, 1))
  assert [g.dtype for g in grads(x, kernel)] == [jnp.bfloat16] * 2


def test_a_kernel_that_devices_share_gets_the_gradient_of_all():
  x, kernel, weights = draw(8, 3, 6), draw(6, 4), draw(8, 3, 4)
  mesh = jax.make_mesh(
    (4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
  )

  def gradient(x, kernel, weights):
    grad = jax.grad(functools.partial(loss, project), 1)
    return grad(x, kernel, weights)

  spread = jax.shard_map(
    gradient, mesh=mesh, in_specs=(P("data"), P(), P("data")), out_specs=P()
  )
  np.testing.assert_allclose(
    jax.jit(spread)(x, kernel, weights), gradient(x, kernel, weights), atol=1e-4
  )


def test_no_activation_is_copied_for_the_kernels_gradient():
  """What it is there for: the transposed copies of a plain product."""

  def copies(fn):
    grad = jax.jit(jax.grad(functools.partial(loss, fn), 1))
    text = grad.lower(*shapes).compile().as_text()
    return sum(" transpose(" in x or " copy(" in x for x in text.splitlines())

  shapes = (draw(4, 8, 16), draw(16, 32), draw(4, 8, 32))
  assert copies(project) == 0
