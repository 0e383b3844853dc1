# SPDX-License-Identifier: Apache-2.0
"""Every masked average, deviation and extreme of the package.

Three rules hold throughout. What a mask excludes is *selected away* before any
arithmetic, so that NaN or infinity there reaches neither a value nor a
gradient (`0 * nan` is NaN). Sums and counts are at least float32. And a
statistic over a batch that is split over a device axis takes `axis_name`: the
mean of the devices' means is not the batch's mean.

The statistics share their arguments: `where` (mask of the shape of `x`),
`weights` (how often each entry counts; the shape of `x`, default 1), `axis`
(axes to reduce; all by default), `keepdims`, and `axis_name`. Gradients flow to
`x` where the mask is on, but not through an extreme.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from saw_jax import naming
from saw_jax.types import Array, Axis, Mask


class Ratio(NamedTuple):
  """A quotient that is not divided yet.

  Those of micro-batches, devices and hosts add up, and one place divides.

  >>> half, third = Ratio(1.0, 2.0), Ratio(1.0, 3.0)
  >>> print(half.merge(third).value())
  0.4
  """

  numerator: Array
  denominator: Array

  def merge(self, other: "Ratio") -> "Ratio":
    """The ratio of both parts together (`+` would concatenate tuples)."""
    return Ratio(*(a + b for a, b in zip(self, other, strict=True)))

  def value(self) -> Array:
    """The quotient; 0 where nothing was counted. Gradient flows."""
    return divide(self.numerator, self.denominator)


class Maximum(NamedTuple):
  """A greatest value: what a `Ratio` is to a mean, for other diagnostics."""

  greatest: Array  # minus infinity where nothing was counted

  def merge(self, other: "Maximum") -> "Maximum":
    """The maximum of both parts together."""
    return Maximum(jnp.maximum(self.greatest, other.greatest))

  def value(self) -> Array:
    """The greatest value; 0 where nothing was counted."""
    return jnp.where(jnp.isneginf(self.greatest), 0.0, self.greatest)


def divide(numerator: Array, denominator: Array) -> Array:
  """Divides, with value and gradient 0 in place of a division by 0.

  >>> print(divide(jnp.array([1.0, 1.0]), jnp.array([2.0, 0.0])))
  [0.5 0. ]
  """
  empty = jnp.equal(denominator, 0)
  # Its input too: the gradient of an unselected quotient by 0 is NaN.
  return jnp.where(empty, 0, numerator / jnp.where(empty, 1, denominator))


def square_root(x: Array) -> Array:
  """The square root, with gradient 0 and not infinity at 0."""
  zero = jnp.equal(x, 0)
  return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, x)))


def at_least_float32(x: Array) -> Array:
  """Converts any type to float32, but leaves float64."""
  x = jnp.asarray(x)
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def select(x: Array, where: Mask) -> Array:
  """Puts 0 where the mask is off, in value and in gradient.

  >>> print(select(jnp.array([1.0, jnp.nan]), jnp.array([True, False])))
  [1. 0.]
  """
  x = at_least_float32(x)
  if where is None:
    return x
  chex.assert_equal_shape([x, where])
  return jnp.where(jnp.asarray(where, bool), x, 0)


def all_sum(
  x: Array, *, where: Mask = None, axis_name: Axis = None, **axes: Any
) -> Array:
  """The sum."""
  total = jnp.sum(select(x, where), **axes)
  return total if axis_name is None else jax.lax.psum(total, axis_name)


def all_mean(
  x: Array, *, where: Mask = None, weights: Mask = None, **axes: Any
) -> Array:
  """The mean, `x̄ = Σ n x / Σ n`; 0 if nothing is selected."""
  x = select(x, where)
  count = _counts(x, where, weights)
  return divide(all_sum(count * x, **axes), all_sum(count, **axes))


def all_max(
  x: Array, *, where: Mask = None, axis_name: Axis = None, **axes: Any
) -> Array:
  """The maximum, without gradient; minus infinity if nothing is selected."""
  x = jax.lax.stop_gradient(at_least_float32(x))
  if where is not None:
    chex.assert_equal_shape([x, where])
    x = jnp.where(jnp.asarray(where, bool), x, -jnp.inf)
  greatest = jnp.max(x, initial=-jnp.inf, **axes)
  return greatest if axis_name is None else jax.lax.pmax(greatest, axis_name)


def all_min(x: Array, **reduced: Any) -> Array:
  """The minimum, as `all_max`; infinity if nothing is selected."""
  return -all_max(-at_least_float32(x), **reduced)


def all_deviations(
  x: Array, *, where: Mask = None, weights: Mask = None, **axes: Any
) -> Array:
  """Subtracts the mean, exactly; 0 where the mask is off.

  The float32 mean of seven copies of 1.8 is not 1.8. What is left over is noise
  that a division by a deviation of the same size turns into advantages of 0.3,
  so entries that are all alike deviate by 0 by decree:

    dⱼ = xⱼ − x̄,   0 where max x = min x

  Entries that count 0 times have a deviation, but no say in what is constant.

  >>> print(all_deviations(jnp.array([1.0, 2.0, 6.0])))
  [-2. -1.  3.]
  """
  x = select(x, where)
  count = _counts(x, where, weights)
  total, number = (
    all_sum(each, keepdims=True, **axes) for each in (count * x, count)
  )
  counted = dict(where=count > 0, keepdims=True, **axes)
  # True too where nothing counts (-∞ - ∞), false for a NaN and for sums that
  # overflowed (∞ - ∞), which become one.
  alike = all_max(x, **counted) - all_min(x, **counted) <= 0
  return select(jnp.where(alike, 0, x - divide(total, number)), where)


def all_var(
  x: Array,
  *,
  where: Mask = None,
  weights: Mask = None,
  ddof: int = 0,  # 1 for the sample's variance (`torch.std`)
  keepdims: bool = False,
  **axes: Any,
) -> Array:
  """The variance in two passes, `v = Σ n (x − x̄)² / (Σ n − ddof)`.

  Exactly 0 if all entries are equal, and 0 if there are no more than `ddof`. An
  overflow is NaN, since what is divided by infinity is a silent 0.
  """
  deviations = all_deviations(x, where=where, weights=weights, **axes)
  count = _counts(deviations, where, weights)
  axes["keepdims"] = keepdims
  freedom = jnp.maximum(all_sum(count, **axes) - ddof, 0)
  var = divide(all_sum(count * jnp.square(deviations), **axes), freedom)
  return jnp.where(jnp.isinf(var), jnp.nan, var)


def all_std(x: Array, **reduced: Any) -> Array:
  """The root of `all_var`; its gradient is 0 if all entries are equal."""
  return square_root(all_var(x, **reduced))


def own_rows(x: Array, rows: int, axis_name: Axis) -> Array:
  """This device's part of the rows of all devices."""
  first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * rows
  return jax.lax.dynamic_slice_in_dim(x, first, rows)


def _counts(x: Array, where: Mask, weights: Mask) -> Array:
  """How often each entry of `x` counts; 0 where the mask is off."""
  if weights is None:
    weights = jnp.ones_like(x)
  chex.assert_equal_shape([x, weights])
  return jax.lax.stop_gradient(select(weights, where)).astype(x.dtype)


def check_shapes(found: Any, wanted: tuple, fn: Callable) -> None:
  """Refuses what a function gave, which may be one of somebody's own."""
  if (shapes := jax.tree.map(jnp.shape, found)) != wanted:
    raise ValueError(f"{naming.name_of(fn)} gave shapes {shapes}, not {wanted}")
