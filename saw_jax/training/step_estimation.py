"""From the rewards of steps to what each row of an update gets.

All that refers to groups is decided here, once per update, on `[P, G, E]` with
a mask of the steps that were taken: after it, rows can be dropped, padded,
shuffled and split.
"""

import inspect
from collections.abc import Callable
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from saw_jax import reductions
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
  """What the rows of an update get."""

  advantages: Array  # float32 [P, G, E]
  coefficients: Array  # float32 [P], λ of the world model; 0 without it
  value_targets: Array | None = None  # [P, G, E], in units of max_return
  selected: Array | None = None  # bool [P, G, E]
  weights: Array | None = None  # [P, G, E], of RowWeights
  counts: Array | None = None  # [P, G, E], of RowWeights


class WorldEstimate(NamedTuple):
  """What the world model says of the rows of an update."""

  coefficients: Array  # float32 [P], λ
  selected: Array  # bool [P, G, E]
  weights: Array  # [P, G, E], of RowWeights
  counts: Array  # [P, G, E], of RowWeights


class WorldModel(NamedTuple):
  """The choices that make a world model, with their options bound."""

  token_loss: Callable  # of the objective; not read here
  measure: Callable  # (entropies, log_probs, mask) [B, T] -> [B]
  select: Callable  # ([key,] [entropies,] pool, *, axis_name) -> [B]
  coefficients: Callable  # (returns, *, [max_return,] scored) -> [P]
  aggregate: Callable  # (selected, coefficients, groups, *, rows, axis_name)
  shuffled: bool = False  # observations change places: the placebo


def make_step_estimate(
  advantage: Callable[..., Array],
  *,
  max_return: float,
  whiten: Whitening | None = None,
  world: WorldModel | None = None,
) -> Callable[..., StepEstimate]:
  """Composes an advantage of steps with a world model's weights.

  Args:
    advantage: e.g. `advantages.gigpo`; the names of its arguments say what it
      reads.
    max_return: the most that an episode can pay. An advantage that reads values
      gets rewards and penalties divided by it.
    whiten: over all steps of the batch, as PPO has it; None: not.
    world: the world model; None: there is none.

  Returns:
    A function `(record, key, *, axis_name=None) -> StepEstimate` over the
    record of one seed. No gradient flows.

  Raises:
    TypeError: the advantage reads something that there is not.
  """
  names = list(inspect.signature(advantage).parameters.values())
  required = [
    p.name for p in names if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
  ]
  for name in required:
    if name not in READABLE:
      raise TypeError(f"an advantage of steps cannot read {name!r}: {READABLE}")
  reads_values = "values" in required
  weigh = None if world is None else make_world_estimate(world, max_return)

  def estimate(
    record: StepRecord, key: Array, *, axis_name: str | None = None
  ) -> StepEstimate:
    scale = max_return if reads_values else 1.0
    found = advantage(
      *(
        record.rewards / scale if name == "rewards" else getattr(record, name)
        for name in required
      ),
      penalties=record.penalties / scale,
    )
    targets = found + record.values if reads_values else None
    if whiten is not None:
      found = whiten(found, scored=record.steps, axis_name=axis_name)
    made = StepEstimate(
      advantages=found,
      coefficients=jnp.zeros(found.shape[:1], found.dtype),
      value_targets=targets,
    )
    if weigh is not None:
      made = made.replace(**weigh(record, key, axis_name=axis_name)._asdict())
    return jax.lax.stop_gradient(made)

  return estimate


def make_world_estimate(
  world: WorldModel, max_return: float
) -> Callable[..., WorldEstimate]:
  """Makes the part of an estimate that is about the world model.

  Args:
    world: the world model.
    max_return: the most that an episode can pay.

  Returns:
    A function `(record, key, *, axis_name=None) -> WorldEstimate` over the
    record of one seed, with its entropies and its pool. No gradient flows.
  """
  takes_return = (
    "max_return" in inspect.signature(world.coefficients).parameters
  )
  options = {"max_return": max_return} if takes_return else {}

  def weigh(
    record: StepRecord, key: Array, *, axis_name: str | None = None
  ) -> WorldEstimate:
    shape = record.steps.shape
    rows = record.steps.reshape(-1)
    given = {
      "key": key,
      "entropies": record.entropies.reshape(-1),
      "pool": rows & record.pool.reshape(-1),
    }
    selected = world.select(
      *(given[name] for name in _positional(world.select)), axis_name=axis_name
    )
    returns = reductions.all_sum(record.rewards, axis=-1, where=record.steps)
    coefficients = world.coefficients(returns, scored=record.scored, **options)
    groups = jnp.repeat(jnp.arange(shape[0]), shape[1] * shape[2])
    weights, counts = world.aggregate(
      selected, coefficients, groups, rows=rows, axis_name=axis_name
    )
    return jax.lax.stop_gradient(
      WorldEstimate(
        coefficients=coefficients,
        selected=selected.reshape(shape),
        weights=weights.reshape(shape),
        counts=counts.reshape(shape),
      )
    )

  return weigh


def _positional(fn: Callable) -> list[str]:
  return [
    p.name
    for p in inspect.signature(fn).parameters.values()
    if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
  ]
