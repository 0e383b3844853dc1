"""From the rewards of steps to what each row of an update gets.

All that refers to groups is decided here, once per update, on `[P, G, E]` with
a mask of the steps that were taken: after it, rows can be dropped, padded,
shuffled and split.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from saw_jax import names, reductions
from saw_jax.advantages import Whitening
from saw_jax.types import Array

# What an advantage of steps may read, as its arguments are called.
READABLE = ("rewards", "values", "anchors", "steps", "penalties")


@flax.struct.dataclass
class StepRecord:
  """What is known of the steps of all episodes of one seed."""

  rewards: Array  # float32 [P, G, E], of the environment
  steps: Array  # bool [P, G, E], taken, in episodes that count
  scored: Array  # bool [P, G], episodes that count
  anchors: Array  # int32 [P, G, E], equal where what was seen before is
  penalties: Array  # float32 [P, G, E], for replies that do not parse
  values: Array | None = None  # float32 [P, G, E], in units of max_return
  entropies: Array | None = None  # float32 [P, G, E], of each action
  pool: Array | None = None  # bool [P, G, E], steps with an observation after


@flax.struct.dataclass
class StepEstimate:
  """What the rows of an update get: all of it, or the world model's part."""

  coefficients: Array  # float32 [P], λ of the world model; 0 without it
  advantages: Array | None = None  # float32 [P, G, E]
  value_targets: Array | None = None  # [P, G, E], in units of max_return
  selected: Array | None = None  # bool [P, G, E]
  weights: Array | None = None  # [P, G, E], of RowWeights
  counts: Array | None = None  # [P, G, E], of RowWeights


class WorldModel(NamedTuple):
  """The functions that make a world model, with their options bound.

  Each is given those of the values on the right that its arguments name.
  """

  token_loss: Callable  # of the objective; not read here
  measure: Callable  # entropies=, log_probs=, completion_mask= [B, T] -> [B]
  select: Callable  # key, entropies, pool [B], axis_name -> [B]
  coefficients: Callable  # returns, scored [P, G], max_return -> [P]
  aggregate: Callable  # selected, coefficients, groups, rows, axis_name
  shuffled: bool = False  # observations change places: the placebo


def make_step_estimate(
  advantage: Callable[..., Array],
  *,
  max_return: float,
  whiten: Whitening | None = None,
  world: WorldModel | None = None,
) -> Callable[..., StepEstimate]:
  """Composes an advantage of steps with a world model's weights; no gradient.

  The advantage is given those of `READABLE` that its arguments name; if it
  reads values, rewards and penalties are divided by `max_return`, the most that
  an episode can pay. `whiten` goes over all steps of the batch, as PPO has it.
  """
  reads = names.positional(advantage)
  for name in reads:
    if name not in READABLE:
      raise TypeError(f"an advantage of steps cannot read {name!r}: {READABLE}")
  reads_values = "values" in reads
  weigh = None if world is None else make_world_estimate(world, max_return)

  def estimate(
    record: StepRecord, key: Array, *, axis_name: str | None = None
  ) -> StepEstimate:
    scale = max_return if reads_values else 1.0
    given = {name: getattr(record, name) for name in READABLE}
    for name in ("rewards", "penalties"):
      given[name] = given[name] / scale
    found = names.supply(advantage, **given)
    targets = found + record.values if reads_values else None
    if whiten is not None:
      found = whiten(found, scored=record.steps, axis_name=axis_name)
    made = StepEstimate(jnp.zeros(found.shape[:1], found.dtype))
    if weigh is not None:
      made = weigh(record, key, axis_name=axis_name)
    made = made.replace(advantages=found, value_targets=targets)
    return jax.lax.stop_gradient(made)

  return estimate


def make_world_estimate(
  world: WorldModel, max_return: float
) -> Callable[..., StepEstimate]:

  def weigh(
    record: StepRecord, key: Array, *, axis_name: str | None = None
  ) -> StepEstimate:
    shape = record.steps.shape
    rows = record.steps.reshape(-1)
    selected = names.supply(
      world.select,
      key=key,
      entropies=record.entropies.reshape(-1),
      pool=rows & record.pool.reshape(-1),
      axis_name=axis_name,
    )
    coefficients = names.supply(
      world.coefficients,
      returns=reductions.all_sum(record.rewards, axis=-1, where=record.steps),
      scored=record.scored,
      max_return=max_return,
    )
    weights, counts = names.supply(
      world.aggregate,
      selected=selected,
      coefficients=coefficients,
      groups=jnp.repeat(jnp.arange(shape[0]), shape[1] * shape[2]),
      rows=rows,
      axis_name=axis_name,
    )
    of_steps = {"selected": selected, "weights": weights, "counts": counts}
    of_steps = {name: x.reshape(shape) for name, x in of_steps.items()}
    return jax.lax.stop_gradient(StepEstimate(coefficients, **of_steps))

  return weigh
