"""Counts the FLOPs of the matrix products of a traced program, on all devices.

Two for each multiplication, in loops as often as they run, and with what the
backward pass recomputes. Every platform has to do these.
"""

import math

import jax
from jax.interpreters import partial_eval


def count(traced: jax.stages.Traced) -> float:
  """FLOPs of a traced function, without those that its results do not need.

  NaN if the length of a loop cannot be known.
  """
  whole = traced.jaxpr.jaxpr
  needed, _ = partial_eval.dce_jaxpr(whole, [True] * len(whole.outvars))
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
      if each := _of(given["body_jaxpr"].jaxpr):
        total += each * _trips(given["cond_jaxpr"].jaxpr, bounds)
    elif name == "cond":
      total += max(_of(branch.jaxpr) for branch in given["branches"])
    elif name == "shard_map":  # Its shapes are one device's.
      axes = given.get("newly_manual_axes") or given["manual_axes"]
      shares = math.prod(given["mesh"].shape[axis] for axis in axes)
      total += shares * _of(given["jaxpr"])
    elif name == "pallas_call":
      total += _blocks(one) * _of(given["jaxpr"])
    else:
      inside = (getattr(x, "jaxpr", x) for x in given.values())
      total += sum(_of(x) for x in inside if hasattr(x, "eqns"))
  return total


def _blocks(kernel) -> float:
  """How many blocks a kernel computes; splash skips what causality masks."""
  grid = math.prod(kernel.params["grid_mapping"].grid)
  if not str(kernel.params.get("name")).startswith("splash"):
    return grid
  *_, size, _ = kernel.invars[0].aval.shape  # queries, and as many keys
  return grid * (size + 1) / (2 * size)


def _trips(condition, bounds: list[int]) -> float:
  """The trips of a loop that counts to a bound, from where the last one ended.

  NaN if it has other conditions, which leave the count unknown.
  """
  found = [one for one in condition.eqns if one.primitive.name == "lt"]
  bound = getattr(found[0].invars[-1], "val", None) if len(found) == 1 else None
  if bound is None or any(x.primitive.name == "or" for x in condition.eqns):
    return math.nan
  bounds.append(int(bound))
  return max(1, bounds[-1] - bounds[-2])
