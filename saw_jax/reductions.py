# SPDX-License-Identifier: Apache-2.0
"""Every masked average, deviation and extreme of the package.

Three rules hold throughout. What a mask excludes is *selected away* before any
arithmetic, so that NaN or infinity there reaches neither a value nor a
gradient (`0 * nan` is NaN). Sums and counts are at least float32. And a
statistic over a batch that is split over a device axis takes `axis_name`: the
mean of the devices' means is not the batch's mean.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from saw_jax.types import Array

Axis = int | tuple[int, ...] | None


class Ratio(NamedTuple):
  """A quotient that is not divided yet.

  Losses and metrics are ratios, so that those of micro-batches, devices and
  hosts add up, and one place divides.

  >>> half, third = Ratio(1.0, 2.0), Ratio(1.0, 3.0)
  >>> print(half.merge(third).value())
  0.4
  """

  numerator: Array
  denominator: Array

  def merge(self, other: "Ratio") -> "Ratio":
    """Adds numerators and denominators: the ratio of both parts together.

    Args:
      other: the ratio of another part of the batch.

    Returns:
      The ratio of the union. `+` would concatenate, as this is a tuple.
    """
    return Ratio(
      self.numerator + other.numerator, self.denominator + other.denominator
    )

  def value(self) -> Array:
    """Divides.

    Returns:
      The quotient, and 0 where nothing was counted. Gradient flows.
    """
    return divide(self.numerator, self.denominator)


class Maximum(NamedTuple):
  """A greatest value that other parts of the batch may still exceed.

  What a `Ratio` is to a mean, for diagnostics that are no mean.

  >>> print(Maximum(jnp.array(2.0)).merge(Maximum(jnp.array(3.0))).value())
  3.0
  """

  greatest: Array  # minus infinity where nothing was counted

  def merge(self, other: "Maximum") -> "Maximum":
    """Takes the greater of two.

    Args:
      other: the maximum of another part of the batch.

    Returns:
      The maximum of the union.
    """
    return Maximum(jnp.maximum(self.greatest, other.greatest))

  def value(self) -> Array:
    """Gives the maximum.

    Returns:
      The greatest value, and 0 where nothing was counted.
    """
    empty = jnp.isneginf(self.greatest)
    return jnp.where(empty, jnp.zeros_like(self.greatest), self.greatest)


def divide(numerator: Array, denominator: Array) -> Array:
  """Divides, with 0 in place of a division by 0.

  Args:
    numerator: any shape.
    denominator: the same shape, a scalar, or size 1 along some axes.

  Returns:
    The quotient. Gradient flows, and is 0 where the denominator is 0.

  >>> print(divide(jnp.array([1.0, 1.0]), jnp.array([2.0, 0.0])))
  [0.5 0. ]
  """
  empty = jnp.equal(denominator, 0)
  # The input of the division is selected too: the gradient of an unselected
  # quotient by 0 is NaN.
  quotient = numerator / jnp.where(
    empty, jnp.ones_like(denominator), denominator
  )
  return jnp.where(empty, jnp.zeros_like(quotient), quotient)


def square_root(x: Array) -> Array:
  """Takes the square root, with gradient 0 and not infinity at 0.

  Args:
    x: not negative. Any shape.

  Returns:
    The square root. Gradient flows, and is 0 where `x` is 0.

  >>> print(jax.grad(square_root)(0.0))
  0.0
  """
  zero = jnp.equal(x, 0)
  root = jnp.sqrt(jnp.where(zero, jnp.ones_like(x), x))
  return jnp.where(zero, jnp.zeros_like(root), root)


def at_least_float32(x: Array) -> Array:
  """Converts to float32, or leaves float64.

  Args:
    x: any shape; bfloat16, integer and boolean are legal.

  Returns:
    The array in float32 or, if it was float64, in float64. Gradient flows.

  >>> print(at_least_float32(jnp.ones(2, jnp.bfloat16)).dtype)
  float32
  """
  x = jnp.asarray(x)
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def select(x: Array, where: Array | None) -> Array:
  """Puts 0 where the mask is off, in value and in gradient.

  Args:
    x: any shape.
    where: mask of the same shape; `None` selects everything.

  Returns:
    The array, at least in float32. Gradient flows where the mask is on.

  >>> print(select(jnp.array([1.0, jnp.nan]), jnp.array([True, False])))
  [1. 0.]
  """
  x = at_least_float32(x)
  if where is None:
    return x
  chex.assert_equal_shape([x, where])
  return jnp.where(jnp.asarray(where, bool), x, jnp.zeros_like(x))


def all_sum(
  x: Array,
  *,
  axis: Axis = None,
  where: Array | None = None,
  keepdims: bool = False,
  axis_name: str | None = None,
) -> Array:
  """Sums what the mask selects, over array axes and devices.

  Args:
    x: any shape.
    axis: axes to sum over; `None` for all.
    where: mask of the shape of `x`.
    keepdims: whether summed axes stay, with size 1.
    axis_name: device axis that the data are split over.

  Returns:
    The sum, at least in float32. Gradient flows where the mask is on.

  >>> print(all_sum(jnp.array([1.0, jnp.inf]), where=jnp.array([True, False])))
  1.0
  """
  total = jnp.sum(select(x, where), axis=axis, keepdims=keepdims)
  return total if axis_name is None else jax.lax.psum(total, axis_name)


def all_mean(
  x: Array,
  *,
  axis: Axis = None,
  where: Array | None = None,
  weights: Array | None = None,
  keepdims: bool = False,
  axis_name: str | None = None,
) -> Array:
  """Averages what the mask selects, over array axes and devices.

    x̄ = Σ n x / Σ n

  Args:
    x: any shape.
    axis: axes to average over; `None` for all.
    where: mask of the shape of `x`.
    weights: how often each entry counts, `n`. The shape of `x`; default 1.
    keepdims: whether averaged axes stay, with size 1.
    axis_name: device axis that the data are split over.

  Returns:
    The mean, at least in float32; 0 if nothing is selected. Gradient flows to
    `x` where the mask is on.

  >>> print(all_mean(jnp.array([1.0, 4.0]), weights=jnp.array([2, 1])))
  2.0
  """
  over = dict(axis=axis, keepdims=keepdims, axis_name=axis_name)
  x = select(x, where)
  count = _counts(x, where, weights)
  return divide(all_sum(count * x, **over), all_sum(count, **over))


def all_min(
  x: Array,
  *,
  axis: Axis = None,
  where: Array | None = None,
  keepdims: bool = False,
  axis_name: str | None = None,
) -> Array:
  """Finds the least selected entry, over array axes and devices.

  Args:
    x: any shape.
    axis: axes to search; `None` for all.
    where: mask of the shape of `x`.
    keepdims: whether searched axes stay, with size 1.
    axis_name: device axis that the data are split over.

  Returns:
    The minimum, at least in float32, with its gradient stopped; infinity if
    nothing is selected.

  >>> print(all_min(jnp.array([3.0, 1.0]), where=jnp.array([True, False])))
  3.0
  """
  return -all_max(
    -at_least_float32(x),
    axis=axis,
    where=where,
    keepdims=keepdims,
    axis_name=axis_name,
  )


def all_max(
  x: Array,
  *,
  axis: Axis = None,
  where: Array | None = None,
  keepdims: bool = False,
  axis_name: str | None = None,
) -> Array:
  """Finds the greatest selected entry, over array axes and devices.

  Args:
    x: any shape.
    axis: axes to search; `None` for all.
    where: mask of the shape of `x`.
    keepdims: whether searched axes stay, with size 1.
    axis_name: device axis that the data are split over.

  Returns:
    The maximum, at least in float32, with its gradient stopped; minus infinity
    if nothing is selected.

  >>> print(all_max(jnp.array([3.0, 9.0]), where=jnp.array([True, False])))
  3.0
  """
  x = jax.lax.stop_gradient(at_least_float32(x))
  if where is not None:
    chex.assert_equal_shape([x, where])
    x = jnp.where(jnp.asarray(where, bool), x, -jnp.inf)
  greatest = jnp.max(x, axis=axis, keepdims=keepdims, initial=-jnp.inf)
  return greatest if axis_name is None else jax.lax.pmax(greatest, axis_name)


def all_deviations(
  x: Array,
  *,
  axis: Axis = None,
  where: Array | None = None,
  weights: Array | None = None,
  axis_name: str | None = None,
) -> Array:
  """Subtracts the mean, exactly.

  The float32 mean of seven copies of 1.8 is not 1.8. What is left over is noise
  that a division by a deviation of the same size turns into advantages of 0.3,
  so entries that are all alike deviate by 0 by decree:

    dⱼ = xⱼ − x̄,   0 where max x = min x

  Args:
    x: any shape.
    axis: axes to average over; `None` for all.
    where: mask of the shape of `x`.
    weights: how often each entry counts. The shape of `x`; default 1. Entries
      that count 0 times have a deviation, but no say in what is constant.
    axis_name: device axis that the data are split over.

  Returns:
    The deviations, 0 where the mask is off. The shape of `x`. Gradient flows
    where the mask is on and the entries differ.

  >>> print(all_deviations(jnp.array([1.0, 2.0, 6.0])))
  [-2. -1.  3.]
  """
  over = dict(axis=axis, keepdims=True, axis_name=axis_name)
  x = select(x, where)
  count = _counts(x, where, weights)
  mean = divide(all_sum(count * x, **over), all_sum(count, **over))
  counted = count > 0
  # True too where nothing counts (-∞ ≤ ∞), false for a NaN, which stays one.
  alike = all_max(x, where=counted, **over) <= all_min(x, where=counted, **over)
  return select(jnp.where(alike, jnp.zeros_like(x), x - mean), where)


def all_var(
  x: Array,
  *,
  axis: Axis = None,
  where: Array | None = None,
  weights: Array | None = None,
  ddof: int = 0,
  keepdims: bool = False,
  axis_name: str | None = None,
) -> Array:
  """Averages squared deviations, in two passes.

    v = Σ n (x − x̄)² / (Σ n − ddof)

  Args:
    x: any shape.
    axis: axes to average over; `None` for all.
    where: mask of the shape of `x`.
    weights: how often each entry counts, `n`. The shape of `x`; default 1.
    ddof: 0 for the population's variance (`jnp.std`), 1 for the sample's
      (`torch.std`).
    keepdims: whether averaged axes stay, with size 1.
    axis_name: device axis that the data are split over.

  Returns:
    The variance, at least in float32; exactly 0 if all entries are equal, and
    0 if there are no more than `ddof` of them. Gradient flows to `x`.

  >>> print(all_var(jnp.array([0.0, 2.0]), ddof=1))
  2.0
  """
  over = dict(axis=axis, keepdims=keepdims, axis_name=axis_name)
  deviations = all_deviations(
    x, axis=axis, where=where, weights=weights, axis_name=axis_name
  )
  count = _counts(deviations, where, weights)
  freedom = jnp.maximum(all_sum(count, **over) - ddof, 0)
  return divide(all_sum(count * jnp.square(deviations), **over), freedom)


def all_std(
  x: Array,
  *,
  axis: Axis = None,
  where: Array | None = None,
  weights: Array | None = None,
  ddof: int = 0,
  keepdims: bool = False,
  axis_name: str | None = None,
) -> Array:
  """Takes the root of `all_var`.

  Args:
    x: any shape.
    axis: axes to average over; `None` for all.
    where: mask of the shape of `x`.
    weights: how often each entry counts. The shape of `x`; default 1.
    ddof: 0 for the population's deviation, 1 for the sample's.
    keepdims: whether averaged axes stay, with size 1.
    axis_name: device axis that the data are split over.

  Returns:
    The deviation. Gradient flows to `x`, and is 0 (not NaN) if all entries are
    equal.

  >>> print(all_std(jnp.array([0.0, 2.0])))
  1.0
  """
  return square_root(
    all_var(
      x,
      axis=axis,
      where=where,
      weights=weights,
      ddof=ddof,
      keepdims=keepdims,
      axis_name=axis_name,
    )
  )


def _counts(x: Array, where: Array | None, weights: Array | None) -> Array:
  """How often each entry of `x` counts; 0 where the mask is off."""
  if weights is None:
    weights = jnp.ones_like(x)
  chex.assert_equal_shape([x, weights])
  return jax.lax.stop_gradient(select(weights, where)).astype(x.dtype)
