"""Counts the products of a traced program, over all devices.

What is counted is two for each multiplication of a matrix product, in loops as
often as they run: those that a program of XLA on any platform has to do, with
what it computes again in the backward pass.
"""

import math

import jax
from jax.interpreters import partial_eval


def count(traced: jax.stages.Traced) -> float:
  """Of a traced function, without what its results do not need."""
  closed = traced.jaxpr
  needed, _ = partial_eval.dce_jaxpr(
    closed.jaxpr, [True] * len(closed.jaxpr.outvars)
  )
  return _of(needed)


def _of(jaxpr) -> float:
  total, bounds = 0.0, [0]
  for one in jaxpr.eqns:
    name, given = one.primitive.name, one.params
    if name == "dot_general":
      (summed, _), _ = given["dimension_numbers"]
      size = math.prod(one.invars[0].aval.shape[axis] for axis in summed)
      total += 2 * size * math.prod(one.outvars[0].aval.shape)
    elif name == "scan":
      total += given["length"] * _of(given["jaxpr"].jaxpr)
    elif name == "while":
      total += _trips(given["cond_jaxpr"].jaxpr, bounds) * _of(
        given["body_jaxpr"].jaxpr
      )
    elif name == "cond":
      total += max(_of(branch.jaxpr) for branch in given["branches"])
    elif name == "shard_map":  # whose shapes are those of one device
      axes = given.get("newly_manual_axes") or given["manual_axes"]
      shares = math.prod(given["mesh"].shape[axis] for axis in axes)
      total += shares * _of(given["jaxpr"])
    elif name == "pallas_call":
      said = given.get("cost_estimate")
      steps = math.prod(x for x in given["grid_mapping"].grid)
      total += said.flops if said else steps * _of(given["jaxpr"])
    else:
      inside = (getattr(x, "jaxpr", x) for x in given.values())
      total += sum(_of(x) for x in inside if hasattr(x, "eqns"))
  return total


def _trips(condition, bounds: list[int]) -> int:
  """Of loops one after the other that count on to a bound, as the sampler's."""
  for one in condition.eqns:
    bound = getattr(one.invars[-1], "val", None)
    if one.primitive.name == "lt" and bound is not None:
      bounds.append(int(bound))
      return max(1, bounds[-1] - bounds[-2])
  return 1
